//! The table of standards in the README names modules and tests that exist.

use std::{collections::BTreeSet, path::Path, process::Command};

/// What stands in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The names of all tests of this crate, as they are run.
fn tests() -> BTreeSet<String> {
    let itself = std::env::current_exe().expect("a program knows its file");
    let listed = Command::new(itself).arg("--list").output().expect("the same program again");
    let text = String::from_utf8(listed.stdout).expect("names");
    text.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect()
}

/// Is this a module with a file of its own?
fn is_module(name: &str) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let path = name.split("::").fold(source, |path, part| path.join(part));
    path.with_extension("rs").is_file() || path.join("mod.rs").is_file()
}

/// A test of this crate, or a module that has some.
fn is_test(tests: &BTreeSet<String>, name: &str) -> bool {
    let inside = format!("{name}::");
    tests.iter().any(|test| test == name || test.starts_with(&inside))
}

/// A test with foreign routers: its file beside this crate, which has tests, and in it the one that is named, if one is.
fn is_interop(name: &str) -> bool {
    let mut parts = name.split("::");
    let (Some("interop"), Some(file), function, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/interop");
    let text = std::fs::read_to_string(folder.join(file).with_extension("rs")).unwrap_or_default();
    let mut names = text.split("#[test]\n").skip(1).filter_map(|test| {
        let line = test.lines().find(|line| !line.starts_with("#["))?;
        Some(line.strip_prefix("fn ")?.split_once('(')?.0)
    });
    match function {
        Some(function) => names.any(|name| name == function),
        None => names.next().is_some(),
    }
}

/// What the rows of a table say that is not so.
fn untrue(rows: &[&str]) -> Vec<String> {
    let tests = tests();
    let fuzz_targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut wrong = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [rfc, _, modules, shown_by] = cells.as_slice() else {
            wrong.push(format!("{row}: four columns are expected"));
            continue;
        };
        wrong.extend(quoted(modules).filter(|name| !is_module(name)).map(|name| format!("{rfc}: no module {name}")));
        let (shown, fuzzed) = shown_by.split_once("fuzz target").unwrap_or((shown_by, ""));
        let is_shown = |name: &str| is_interop(name) || is_test(&tests, name);
        wrong.extend(quoted(shown).filter(|name| !is_shown(name)).map(|name| format!("{rfc}: no test {name}")));
        let is_target = |name: &str| fuzz_targets.join(name).with_extension("rs").is_file();
        let missing = quoted(fuzzed).filter(|name| !is_target(name));
        wrong.extend(missing.map(|name| format!("{rfc}: no fuzz target {name}")));
        if quoted(modules).next().is_none() || quoted(shown).next().is_none() {
            wrong.push(format!("{rfc}: names no module or no test"));
        }
    }
    wrong
}

#[test]
fn every_standard_has_a_module_and_a_test() {
    let readme = include_str!("../README.md");
    let rows = readme.lines().skip_while(|line| !line.starts_with("| RFC |")).skip(2);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 50, "the table was found");
    let wrong = untrue(&rows);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_row_that_names_what_is_not_there_is_found() {
    let (module, test) = ("`rib::decision`", "`rib::tests::selection`");
    for (modules, shown, wrong) in [
        (module, test, None),
        (module, "`interop::add_path`", None),
        (module, "`interop::restart::no_packet_is_lost_while_we_are_killed_and_start_again`", None),
        ("`rib::decision::compare`", test, Some("no module rib::decision::compare")),
        ("`rib::decide`", test, Some("no module rib::decide")),
        (module, "`rib::tests::select`", Some("no test rib::tests::select")),
        (module, "`rib::tests::selection::every`", Some("no test rib::tests::selection::every")),
        (module, "`interop::restart::no_packet_is_lost`", Some("no test interop::restart::no_packet_is_lost")),
        (module, "`interop::restarts`", Some("no test interop::restarts")),
        (module, "`interop::main`", Some("no test interop::main")),
        (module, "`rib::tests::selection`, fuzz target `updat`", Some("no fuzz target updat")),
        (module, "tshark", Some("names no module or no test")),
        ("", test, Some("names no module or no test")),
    ] {
        let row = format!("| 4271 | something | {modules} | {shown} |");
        let expected: Vec<String> = wrong.iter().map(|wrong| format!("4271: {wrong}")).collect();
        assert_eq!(untrue(&[&row]), expected, "{row}");
    }
    assert_eq!(untrue(&["| 4271 | something |"]).len(), 1);
}
