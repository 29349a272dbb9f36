//! `meshd connect` and `meshd disconnect`.

use std::ffi::OsStr;

use super::meshd::{Files, Run, mode, run};

const CONFIG: &str = "cluster: {name: west, id: 1}
node: {pod_cidrs: [10.0.1.0/24]}
store: {mode: embedded, listen: \"127.0.0.1:0\"}
peers: [{cluster: north, endpoints: [\"http://127.0.0.1:1\"], accept: {pod_cidrs: [10.9.0.0/16], node_cidrs: [172.18.0.0/16]}}]
";

fn verb(files: &Files, arguments: &[&str]) -> Run {
    let config = files.path("meshd.yaml");
    let mut all: Vec<&OsStr> = arguments.iter().map(AsRef::as_ref).collect();
    all.extend(["--config".as_ref(), config.as_os_str()]);
    run(all)
}

#[test]
fn a_peer_in_the_include_folder() {
    let files = Files::new();
    files.write("meshd.yaml", &format!("{CONFIG}include: conf.d\n"));
    files.authority("pki");
    files.issue("pki", "remote-west", "remote", &["--client"]);
    let pki = |name: &str| files.path("pki").join(name).to_str().expect("UTF-8").to_owned();
    let (ca, cert, key) = (pki("ca.crt"), pki("remote.crt"), pki("remote.key"));
    let east = [
        "connect",
        "east",
        "--endpoint",
        "https://127.0.0.1:2379",
        "--ca",
        &ca,
        "--cert",
        &cert,
        "--key",
        &key,
        "--accept-pod-cidr",
        "10.1.0.0/16",
        "--accept-node-cidr",
        "172.18.0.0/16",
    ];
    // Nobody but `connect` takes a missing folder for an empty one.
    let main = files.path("meshd.yaml");
    let missing = ["meshd.yaml:5: include: the folder ", "conf.d does not exist", "hint: "];
    run(["check".as_ref(), main.as_os_str()]).expect(64).says(&missing);
    verb(&files, &["run"]).expect(64).says(&missing);
    verb(&files, &east).expect(0);
    let path = files.path("conf.d/peer-east.yaml");
    assert_eq!(mode(&path), 0o600);
    let checked = run(["check".as_ref(), main.as_os_str()]).expect(0);
    assert!(checked.stdout.contains("peers east, north"), "{}", checked.stdout);
    assert_eq!(checked.stderr, "");

    verb(&files, &east).expect(1).says(&["peer-east.yaml exists", "--force"]);
    let mut again = east.to_vec();
    again.push("--force");
    verb(&files, &again).expect(0);

    verb(&files, &["disconnect", "east"]).expect(0);
    assert!(!path.exists());
    verb(&files, &["disconnect", "east"]).expect(64).says(&["cluster east is not configured", "known: north"]);
    verb(&files, &["disconnect", "north"]).expect(64).says(&["configured in", "meshd.yaml", "editor"]);
}

#[test]
fn a_wrong_peer_leaves_no_file() {
    let files = Files::new();
    files.write("meshd.yaml", &format!("{CONFIG}include: conf.d\n"));
    for (arguments, words) in [
        (&["connect", "west", "--endpoint", "http://127.0.0.1:1"][..], "own name"),
        (&["connect", "East", "--endpoint", "http://127.0.0.1:1"], "invalid cluster name"),
        (&["connect", "north", "--endpoint", "http://127.0.0.1:1"], "cluster north is configured in"),
        (&["connect", "east", "--endpoint", "127.0.0.1:1"], "not a URL"),
        (&["connect", "east", "--endpoint", "https://127.0.0.1:1"], "https needs certificates"),
        (&["connect", "east", "--endpoint", "http://127.0.0.1:1", "--accept-pod-cidr", "10.0.1.0/24"], "own pod_cidrs"),
        (&["connect", "east", "--endpoint", "http://127.0.0.1:1", "--to", "peers-dir"], "has no peers_dir"),
        (
            &["connect", "east", "--endpoint", "https://127.0.0.1:1", "--ca", "x", "--cert", "x", "--key", "x"],
            "failed to read key",
        ),
    ] {
        verb(&files, arguments).expect(64).says(&[words, "hint: "]);
    }
    let left: Vec<_> =
        std::fs::read_dir(files.path("conf.d")).map(|entries| entries.flatten().collect()).unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_peer_in_ciliums_directory() {
    let files = Files::new();
    files.write("meshd.yaml", &format!("{CONFIG}peers_dir: peers\n"));
    files.authority("pki");
    files.issue("pki", "remote-west", "remote", &["--client"]);
    let pki = |name: &str| files.path("pki").join(name).to_str().expect("UTF-8").to_owned();
    verb(
        &files,
        &[
            "connect",
            "east",
            "--endpoint",
            "https://east.mesh.cilium.io:2379",
            "--ca",
            &pki("ca.crt"),
            "--cert",
            &pki("remote.crt"),
            "--key",
            &pki("remote.key"),
        ],
    )
    .expect(0);
    let text = std::fs::read_to_string(files.path("peers/east")).expect("the file");
    assert!(text.starts_with("endpoints:\n- \"https://east.mesh.cilium.io:2379\"\ntrusted-ca-file: "), "{text}");
    assert_eq!(mode(&files.path("peers/east")), 0o600);
    files.write("peers/south", "endpoints: [nowhere]\n");
    let main = files.path("meshd.yaml");
    let checked = run(["check".as_ref(), main.as_os_str()]).expect(0);
    assert!(checked.stdout.contains("peers east, north, 1 warning"), "{}", checked.stdout);
    checked.says(&["warning: peers_dir: ", "peers/south:1: endpoints[0]: \"nowhere\" is not a URL"]);
    std::fs::remove_file(files.path("peers/south")).expect("the file is removed");
    verb(&files, &["connect", "south", "--endpoint", "http://127.0.0.1:1", "--accept-pod-cidr", "10.1.0.0/16"])
        .expect(64)
        .says(&["peers_defaults.accept"]);
    verb(&files, &["disconnect", "east"]).expect(0);
    assert!(!files.path("peers/east").exists());
}
