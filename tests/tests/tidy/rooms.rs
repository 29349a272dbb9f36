//! Rules for folders: sibling rooms have the same files, and the stages of the flow do not know each other.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _};

use super::tree::{SourceFile, assert_none, files, root};

/// Folders whose subfolders are siblings, and the files each of those has.
const SIBLINGS: [(&str, &[&str]); 2] = [
    ("meshd/src/sources/", &["mod.rs", "watch.rs", "convert.rs"]),
    ("meshd/src/reconcilers/", &["mod.rs", "ops.rs", "actual.rs"]),
];

/// Folder, and the modules that nothing in it may name (invariant I3, and the pure core below all).
const STRANGERS: [(&str, &[&str]); 3] = [
    ("meshd/src/sources/", &["crate::reconcilers"]),
    ("meshd/src/reconcilers/", &["crate::sources"]),
    ("meshd/src/kernel/", &["crate::sources", "crate::reconcilers", "crate::pipeline"]),
];

/// Scripts that are called by their path.
const SCRIPTS: [&str; 8] =
    ["setup", ".ci/run", ".ci/test", ".ci/lint", ".ci/fuzz", ".ci/bench", ".ci/demo", ".ci/kernels"];

fn missing_siblings(files: &[SourceFile]) -> Vec<String> {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let mut findings = Vec::new();
    for (folder, expected) in SIBLINGS {
        let rooms: BTreeSet<&str> =
            paths.iter().filter_map(|path| path.strip_prefix(folder)?.split_once('/').map(|(room, _)| room)).collect();
        for room in rooms {
            for name in expected {
                let path = format!("{folder}{room}/{name}");
                if !paths.contains(path.as_str()) {
                    findings.push(format!("{path}: missing; its sibling rooms have it"));
                }
            }
        }
    }
    findings
}

fn known_strangers(files: &[SourceFile]) -> Vec<String> {
    let mut findings = Vec::new();
    for (folder, strangers) in STRANGERS {
        for file in files.iter().filter(|file| file.is_rust() && file.path.starts_with(folder)) {
            for (number, line) in file.lines() {
                if let Some(stranger) = strangers.iter().find(|stranger| line.contains(**stranger)) {
                    findings.push(format!("{}:{number}: {folder} must not know {stranger}", file.path));
                }
            }
        }
    }
    findings
}

/// Fuzz targets without a committed input, and inputs without a target.
fn unfed_targets(targets: &BTreeSet<String>, corpora: &BTreeSet<String>) -> Vec<String> {
    let unfed = targets.difference(corpora).map(|name| format!("{name}: no input is committed"));
    let orphaned = corpora.difference(targets).map(|name| format!("{name}: inputs without a fuzz target"));
    unfed.chain(orphaned).collect()
}

#[test]
fn sibling_rooms_have_the_same_files() {
    assert_none(&missing_siblings(files()));
}

#[test]
fn stages_do_not_know_each_other() {
    assert_none(&known_strangers(files()));
}

#[test]
fn scripts_can_be_executed() {
    let not_executable = |path: &&&str| {
        let mode = fs::metadata(root().join(path)).expect("the script is there").permissions().mode();
        mode & 0o111 != 0o111
    };
    let findings: Vec<String> =
        SCRIPTS.iter().filter(not_executable).map(|path| format!("{path}: not executable")).collect();
    assert_none(&findings);
}

#[test]
fn every_fuzz_target_has_a_corpus() {
    let mut fuzz_crates = 0;
    for file in files().iter().filter(|file| file.path.ends_with("fuzz/Cargo.toml")) {
        fuzz_crates += 1;
        let folder = root().join(file.path.trim_end_matches("Cargo.toml"));
        let names = |sub: &str, keep: fn(&std::path::Path) -> Option<String>| -> BTreeSet<String> {
            fs::read_dir(folder.join(sub))
                .unwrap_or_else(|error| panic!("{}{sub}: {error}", folder.display()))
                .filter_map(|entry| keep(&entry.expect("a folder entry").path()))
                .collect()
        };
        let stem = |path: &std::path::Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let targets = names("fuzz_targets", stem);
        let corpora = names("corpus", |path| {
            let filled = fs::read_dir(path).expect("a corpus is a folder").next().is_some();
            filled.then(|| path.file_name().expect("a name").to_string_lossy().into_owned())
        });
        assert_none(&unfed_targets(&targets, &corpora));
    }
    assert!(fuzz_crates > 0, "no fuzz crate was found: the search is broken");
}

mod bad {
    use super::*;

    #[test]
    fn missing_siblings_are_found() {
        let files =
            ["mod.rs", "watch.rs"].map(|name| SourceFile::sample(&format!("meshd/src/sources/etcd/{name}"), ""));
        assert_eq!(missing_siblings(&files), ["meshd/src/sources/etcd/convert.rs: missing; its sibling rooms have it"]);
    }

    #[test]
    fn known_strangers_are_found() {
        let files = [SourceFile::sample("meshd/src/sources/etcd/mod.rs", "use crate::reconcilers::routes;")];
        assert_eq!(known_strangers(&files).len(), 1);
    }

    #[test]
    fn unfed_targets_are_found() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(unfed_targets(&set(&["a", "b"]), &set(&["b", "c"])).len(), 2);
    }
}
