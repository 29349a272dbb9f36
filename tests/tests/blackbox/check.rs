//! Bad configurations: `check` and `run` exit 64 and say file, line or key, and what to do.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use super::meshd::{Files, command, run};

const GOOD: &str = "cluster: {name: west, id: 1}
node: {pod_cidrs: [10.0.1.0/24]}
store: {mode: embedded, listen: \"127.0.0.1:0\"}
";

/// Both verbs refuse this configuration with these words.
#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let files = Files::new();
    refused_in(&files, text, words);
}

#[track_caller]
fn refused_in(files: &Files, text: &str, words: &[&str]) {
    let path = files.write("meshd.yaml", text);
    let path = path.to_str().expect("UTF-8");
    for arguments in [["check", path].as_slice(), &["run", "--config", path]] {
        let result = run(arguments).expect(64);
        assert_eq!(result.stdout, "");
        result.says(&["error: ", path, "hint: "]);
        result.says(words);
    }
}

#[test]
fn unknown_key() {
    refused(
        &format!("{GOOD}routing:\n  metrik: 7\n"),
        &["meshd.yaml:5: routing.metrik: unknown key metrik", "hint: did you mean metric?"],
    );
}

#[test]
fn wrong_type() {
    refused(
        &GOOD.replace("id: 1", "id: first"),
        &["meshd.yaml:1: cluster.id: wrong type: expected a whole number", "found the text \"first\""],
    );
}

#[test]
fn accept_list_equal_to_or_inside_the_own_prefix() {
    for (prefix, relation) in
        [("10.0.1.0/24", "10.0.1.0/24 is this node's own"), ("10.0.1.64/26", "10.0.1.64/26 is inside this node's own")]
    {
        let peer = format!(
            "peers:\n- cluster: east\n  endpoints: [\"http://127.0.0.1:1\"]\n  accept: {{pod_cidrs: [{prefix}]}}\n"
        );
        refused(
            &format!("{GOOD}{peer}"),
            &[
                "meshd.yaml:7: peers[0].accept.pod_cidrs[0]",
                relation,
                "hint: write the pod_cidrs of the remote cluster",
            ],
        );
    }
}

#[test]
fn key_file_that_is_missing_unreadable_or_everybodys() {
    let files = Files::new();
    files.authority("pki");
    files.issue("pki", "node-west", "node", &[]);
    let text = GOOD.replace("127.0.0.1:0\"", "127.0.0.1:0\", tls: {ca: pki/ca.crt, cert: pki/node.crt, key: KEY}");
    refused_in(
        &files,
        &text.replace("KEY", "pki/none.key"),
        &[
            "meshd.yaml:3: store.tls.key: failed to read key",
            "none.key",
            "No such file",
            "hint: make it with `meshd cert issue`",
        ],
    );
    refused_in(&files, &text.replace("KEY", "pki"), &["store.tls.key: failed to read key", "Is a directory"]);
    let key = files.path("pki/node.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    refused_in(&files, &text.replace("KEY", "pki/node.key"), &["can be read by everybody", "hint: chmod 0600"]);
}

#[test]
fn invalid_cluster_name() {
    refused(
        &GOOD.replace("west", "West_1"),
        &["meshd.yaml:1: cluster.name: invalid cluster name \"West_1\"", "hint: for instance west-1"],
    );
}

#[test]
fn all_mistakes_in_one_go() {
    let files = Files::new();
    let path =
        files.write("meshd.yaml", "cluster: {name: W, id: 0}\nnode: {pod_cidrs: [10.0.1.7/24]}\nstore: {mode: etcd}\n");
    let result = run(["check".as_ref(), path.as_os_str()]).expect(64);
    assert_eq!(result.stderr.matches("error: ").count(), 4, "{}", result.stderr);
    assert_eq!(result.stderr.matches("hint: ").count(), 4, "{}", result.stderr);
}

#[test]
fn a_good_configuration_passes_and_warnings_do_not_fail() {
    let files = Files::new();
    let path = files.write("meshd.yaml", GOOD);
    let result = run(["check".as_ref(), path.as_os_str()]).expect(0);
    assert!(result.stdout.ends_with("ok (cluster west, id 1, no peers)\n"), "{}", result.stdout);
    let path = files.write("meshd.yaml", &GOOD.replace("id: 1", "id: 200"));
    let result = run(["check".as_ref(), path.as_os_str()]).expect(0);
    result.says(&["warning: ", "cluster id 200 is above 127"]);
    let peer = "peers:
- cluster: east
  endpoints: [\"http://127.0.0.1:1\"]
  accept: {pod_cidrs: [10.0.0.0/8], node_cidrs: [10.64.0.0/16]}
";
    let path = files.write("meshd.yaml", &format!("{GOOD}{peer}"));
    let result = run(["check".as_ref(), path.as_os_str()]).expect(0);
    result.says(&[
        "warning: ",
        "peers[0].accept.pod_cidrs",
        "10.0.0.0/8 contains 10.64.0.0/16, which is in node_cidrs",
    ]);
}

#[test]
fn wrong_command_lines_exit_64() {
    for arguments in [
        vec![],
        vec!["bogus"],
        vec!["status", "-o", "xml"],
        vec!["status", "--timeout", "soon"],
        vec!["get", "nothing"],
        vec!["run", "--set", "a"],
    ] {
        run(arguments).expect(64);
    }
    run(["--help"]).expect(0);
    run(["--version"]).expect(0);
}

#[test]
fn read_verbs_without_a_daemon_say_so() {
    let files = Files::new();
    let socket = files.path("none.sock");
    for verb in [["status"].as_slice(), &["get", "routes"], &["peers"], &["plan"], &["drain"], &["observe"]] {
        let mut arguments: Vec<&std::ffi::OsStr> = verb.iter().map(AsRef::as_ref).collect();
        arguments.extend(["--socket".as_ref(), socket.as_os_str()]);
        let result = run(arguments).expect(1);
        result.says(&["error: failed to connect to the daemon", "none.sock", "hint: is it running"]);
    }
}

#[test]
fn maps_that_are_not_there_and_tables_that_are_not_flushed() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = folder.path().join("meshd");
    for table in ["lb", "ct", "nat", "ipcache", "masq"] {
        let arguments: [&std::ffi::OsStr; 4] = ["bpf".as_ref(), table.as_ref(), "--bpffs".as_ref(), nowhere.as_ref()];
        run(arguments).expect(1).says(&["error: there are no maps below", "hint: "]);
    }
    for (arguments, said) in [
        (["bpf", "lb", "flush"], "lb cannot be flushed"),
        (["bpf", "ct", "flush"], "those that are open break"),
        (["bpf", "nat", "get"], "get needs an address"),
    ] {
        run(arguments).expect(64).says(&["error: ", said, "hint: "]);
    }
    run(["bpf", "ct", "get", "10.0.0"]).expect(64).says(&["is no address"]);
    run(["observe", "--type", "often"]).expect(64).says(&["[possible values: new, change, close, drop]"]);
    let script = run(["completions", "bash"]).expect(0).stdout;
    assert!(script.contains("meshd__observe") || script.contains("meshd__subcmd__observe"), "no completion of observe");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = command()
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn environment_variables_are_read_and_named() {
    let files = Files::new();
    let path = files.write("meshd.yaml", GOOD);
    let output = command().arg("check").arg(&path).env("MESHD_CLUSTER__NAME", "north").output().expect("it runs");
    assert!(String::from_utf8_lossy(&output.stdout).contains("cluster north"));
    let output = command().arg("check").arg(&path).env("MESHD_CLUSTER__NAEM", "north").output().expect("it runs");
    assert_eq!(output.status.code(), Some(64));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("environment variable MESHD_CLUSTER__NAEM: cluster.naem: unknown key"), "{stderr}");
}
