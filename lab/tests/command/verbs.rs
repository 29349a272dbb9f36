//! Exit codes, messages and hints of the command.

use std::process::{Command, Output};

fn lab(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lab")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_topology_checks_out() {
    for name in ["single-l2-ipv6", "west-east", "west-east-etcd"] {
        let output = lab(&["check", name]);
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with(&format!("{name}: ")) && text.trim_end().ends_with("links: ok"), "{text}");
    }
}

#[test]
fn a_wrong_topology_is_a_usage_error_with_key_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.clab.yml");
    std::fs::write(&path, "name: wrong\ntopology:\n  nodes:\n    a:\n      kind: linux\n      bind: [a:/b]\n").unwrap();
    let output = lab(&["check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    let message = said(&output);
    assert!(message.contains("line 6: unknown key topology.nodes.a.bind; the nearest known one is binds"), "{message}");
}

#[test]
fn unknown_names_come_with_a_hint() {
    let output = lab(&["check", "no-such-topology"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("no topology no-such-topology; looked for "), "{}", said(&output));
    assert!(said(&output).contains("hint: `lab list`"), "{}", said(&output));
    let output = lab(&["exec", "no-such-lab", "node", "--", "true"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("lab no-such-lab is not up"), "{}", said(&output));
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in
        [&["fly"][..], &["up"], &["down"], &["exec", "lab", "node"], &["up", "west-east", "--timeout", "x"]]
    {
        assert_eq!(lab(arguments).status.code(), Some(64), "{arguments:?}");
    }
    assert!(lab(&["--help"]).status.success());
}

#[test]
fn the_list_names_what_there_is() {
    let output = lab(&["list"]);
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("LAB") && text.contains("west-east-etcd ("), "{text}");
}
