//! Rules for the text of source files.

use super::tree::{SourceFile, assert_none, files};

/// A file longer than this is more than one concept.
const LINES_MAX: usize = 1_000;
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 8] = ["common", "helper", "helpers", "manager", "misc", "util", "utils", "v2"];
/// What marks unfinished work. Written in halves, because this file is checked as well.
const UNFINISHED: [&str; 5] = [
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
];
/// Places of the machines that this was written on; they mean nothing to anybody else.
const PRIVATE_PLACES: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/tmp", "/w/"), concat!("../sha", "red"), concat!("BRIE", "F.md")];

fn too_long(files: &[SourceFile]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.is_rust())
        .map(|file| (file, file.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(file, lines)| format!("{}: {lines} lines, at most {LINES_MAX}", file.path))
        .collect()
}

fn empty_names(files: &[SourceFile]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let path = file.path.trim_end_matches(".rs");
        findings.extend(
            path.split('/')
                .filter(|part| EMPTY_NAMES.contains(part))
                .map(|part| format!("{}: {part} says nothing about what is inside", file.path)),
        );
        for (number, line) in file.lines() {
            let Some((_, after)) = line.split_once("mod ") else { continue };
            let name = after.trim_end_matches([';', '{', ' ']);
            if EMPTY_NAMES.contains(&name) {
                findings.push(format!("{}:{number}: module {name} says nothing about what is inside", file.path));
            }
        }
    }
    findings
}

/// Lint attributes that silence a lint without a reason.
fn bare_allows(files: &[SourceFile]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        for opening in [concat!("#[al", "low("), concat!("#![al", "low(")] {
            for (offset, _) in file.text.match_indices(opening) {
                let attribute = &file.text[offset..];
                let end = attribute.find(")]").unwrap_or(attribute.len());
                if !attribute[..end].contains("reason") {
                    let line = file.text[..offset].lines().count() + 1;
                    findings.push(format!("{}:{line}: a lint is silenced without a reason", file.path));
                }
            }
        }
    }
    findings
}

fn occurrences(files: &[SourceFile], needles: &[&str], what: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files {
        for (number, line) in file.lines() {
            if let Some(needle) = needles.iter().find(|needle| line.contains(**needle)) {
                findings.push(format!("{}:{number}: {needle} {what}", file.path));
            }
        }
    }
    findings
}

fn unfinished(files: &[SourceFile]) -> Vec<String> {
    let code = |file: &&SourceFile| file.is_rust() || file.path.starts_with(".ci/") || file.path == "setup";
    files
        .iter()
        .filter(code)
        .flat_map(|file| occurrences(std::slice::from_ref(file), &UNFINISHED, "marks unfinished work"))
        .collect()
}

/// Rooms (a folder's `mod.rs`, a crate's `lib.rs`) without the essay that says what they are for.
fn silent_rooms(files: &[SourceFile]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.path.ends_with("/mod.rs") || file.path.ends_with("/lib.rs"))
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| format!("{}: does not open with what it is for", file.path))
        .collect()
}

#[test]
fn no_file_is_too_long() {
    assert_none(&too_long(files()));
}

#[test]
fn no_name_is_empty() {
    assert_none(&empty_names(files()));
}

#[test]
fn no_lint_is_silenced_without_a_reason() {
    assert_none(&bare_allows(files()));
}

#[test]
fn nothing_is_unfinished() {
    assert_none(&unfinished(files()));
}

#[test]
fn no_private_place_is_mentioned() {
    assert_none(&occurrences(files(), &PRIVATE_PLACES, "means nothing outside of one machine"));
}

#[test]
fn every_room_says_what_it_is_for() {
    assert_none(&silent_rooms(files()));
}

mod bad {
    use super::*;

    fn one(path: &str, text: &str) -> [SourceFile; 1] {
        [SourceFile::sample(path, text)]
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(too_long(&one("a.rs", &"\n".repeat(LINES_MAX + 1))).len(), 1);
        assert_eq!(too_long(&one("a.rs", &"\n".repeat(LINES_MAX))), Vec::<String>::new());
    }

    #[test]
    fn empty_names_are_found() {
        for (path, text) in [
            ("a/utils.rs", ""),
            ("a/helpers/mod.rs", ""),
            ("a.rs", "pub(crate) mod manager;"),
            ("a.rs", "mod common {"),
        ] {
            assert_eq!(empty_names(&one(path, text)).len(), 1, "{path} {text}");
        }
        assert_eq!(empty_names(&one("a/commons.rs", "mod utilisation;")), Vec::<String>::new());
    }

    #[test]
    fn bare_allows_are_found() {
        let bare = concat!("\n#[al", "low(dead_code)]\n#![al", "low(\n  unused\n)]");
        assert_eq!(bare_allows(&one("a.rs", bare)).len(), 2);
        let argued = concat!("#[al", "low(dead_code, reason = \"generated\")]");
        assert_eq!(bare_allows(&one("a.rs", argued)), Vec::<String>::new());
    }

    #[test]
    fn unfinished_work_is_found() {
        for mark in UNFINISHED {
            assert_eq!(unfinished(&one("a.rs", &format!("x {mark} y"))).len(), 1, "{mark}");
        }
        assert_eq!(unfinished(&one("setup", UNFINISHED[3])).len(), 1);
    }

    #[test]
    fn private_places_are_found() {
        for place in PRIVATE_PLACES {
            let files = one("README.md", &format!("see {place}"));
            assert_eq!(occurrences(&files, &PRIVATE_PLACES, "").len(), 1, "{place}");
        }
    }

    #[test]
    fn silent_rooms_are_found() {
        assert_eq!(silent_rooms(&one("a/mod.rs", "pub mod b;")).len(), 1);
        assert_eq!(silent_rooms(&one("a/lib.rs", "//! For things.\n")), Vec::<String>::new());
    }
}
