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

/// Is there a module of this name, or something of this name in one?
fn is_there(name: &str) -> bool {
    let mut folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut text = String::new();
    let mut parts = name.split("::").peekable();
    while let Some(part) =
        parts.next_if(|part| folder.join(part).is_dir() || folder.join(part).with_extension("rs").is_file())
    {
        folder.push(part);
        let file = [folder.with_extension("rs"), folder.join("mod.rs")].into_iter().find(|file| file.is_file());
        text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    }
    // What is left is a type or a function, which its module defines or exports.
    !text.is_empty() && parts.all(|item| text.contains(item))
}

/// A test with foreign routers: its file beside this crate, and in it a function where one is named.
fn is_interop(name: &str) -> bool {
    let Some((file, function)) = name.strip_prefix("interop::").map(|it| it.split_once("::").unwrap_or((it, "")))
    else {
        return false;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests/interop");
    std::fs::read_to_string(folder.join(file).with_extension("rs")).is_ok_and(|text| text.contains(function))
}

#[test]
fn every_standard_has_a_module_and_a_test() {
    let readme = include_str!("../README.md");
    let tests = tests();
    let fuzz_targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut wrong = Vec::new();
    let rows = readme.lines().skip_while(|line| !line.starts_with("| RFC |")).skip(2);
    let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 50, "the table was found");
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [rfc, _, modules, shown_by] = cells.as_slice() else {
            wrong.push(format!("{row}: four columns are expected"));
            continue;
        };
        wrong.extend(quoted(modules).filter(|name| !is_there(name)).map(|name| format!("{rfc}: no module {name}")));
        let (shown, fuzzed) = shown_by.split_once("fuzz target").unwrap_or((shown_by, ""));
        let is_test = |name: &str| {
            let inside = format!("{name}::");
            is_interop(name) || tests.iter().any(|test| test == name || test.starts_with(&inside))
        };
        wrong.extend(quoted(shown).filter(|name| !is_test(name)).map(|name| format!("{rfc}: no test {name}")));
        let is_target = |name: &str| fuzz_targets.join(name).with_extension("rs").is_file();
        wrong
            .extend(quoted(fuzzed).filter(|name| !is_target(name)).map(|name| format!("{rfc}: no fuzz target {name}")));
        if quoted(modules).next().is_none() || quoted(shown).next().is_none() {
            wrong.push(format!("{rfc}: names no module or no test"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
