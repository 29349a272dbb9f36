//! The systemd unit is read by systemd itself.

use std::{fs, path::Path, process::Command};

use super::meshd;

/// What `systemd-analyze verify` says about the unit with its lines mapped by `change`.
fn verify(change: impl Fn(&str) -> String) -> String {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/systemd/meshd.service");
    let text = fs::read_to_string(&unit).expect("the unit is there");
    let binary = meshd::binary().display().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("meshd.service");
    let lines: Vec<String> = text.lines().map(|line| change(&line.replace("/usr/bin/meshd", &binary))).collect();
    fs::write(&copy, lines.join("\n")).expect("the copy is written");
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&copy)
        .output()
        .expect("systemd-analyze is installed; `make setup` does that");
    let text = [output.stdout, output.stderr].concat();
    // Other units of the machine are read along and are not our concern.
    let said = String::from_utf8_lossy(&text).into_owned();
    said.lines().filter(|line| line.contains("meshd")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_unit_file_is_understood() {
    assert_eq!(verify(str::to_owned), "");
}

#[test]
fn a_key_systemd_does_not_know_would_be_found() {
    let said = verify(|line| line.replace("WatchdogSec=", "WatchdogSecs="));
    assert!(said.contains("WatchdogSecs"), "{said}");
}
