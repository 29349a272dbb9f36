//! `meshd cert`: files, modes, refusals, verification.

use super::meshd::{Files, mode, run};

#[test]
fn an_authority_issues_certificates_that_verify() {
    let files = Files::new();
    files.authority("pki");
    files.issue(
        "pki",
        "store-west",
        "store",
        &["--server", "--san", "172.18.0.4", "--san", "*.mesh.cilium.io", "--days", "30"],
    );
    files.issue("pki", "remote-west", "remote", &["--client"]);
    for (name, expected) in
        [("ca.key", 0o600), ("store.key", 0o600), ("remote.key", 0o600), ("store.crt", 0o644), ("ca.crt", 0o644)]
    {
        assert_eq!(mode(&files.path("pki").join(name)), expected, "{name}");
    }
    let (store, ca) = (files.path("pki/store.crt"), files.path("pki/ca.crt"));
    let arguments = [
        "cert".as_ref(),
        "show".as_ref(),
        store.as_os_str(),
        "--ca".as_ref(),
        ca.as_os_str(),
        "-o".as_ref(),
        "json".as_ref(),
    ];
    let result = run(arguments).expect(0);
    let shown: serde_json::Value = serde_json::from_str(&result.stdout).expect("JSON");
    let certificate = &shown[0]["certificates"][0];
    assert_eq!(shown[0]["verified"], true);
    assert_eq!(certificate["common_name"], "store-west");
    assert_eq!(certificate["issuer"], "CN=meshd CA");
    assert_eq!(certificate["subject_alt_names"], serde_json::json!(["172.18.0.4", "*.mesh.cilium.io"]));
    assert_eq!(certificate["usages"], serde_json::json!(["server"]));
    assert_eq!(certificate["is_ca"], false);
    let page = run(["cert".as_ref(), "show".as_ref(), store.as_os_str()]).expect(0).stdout;
    for words in
        ["subject:  CN=store-west", " days left)", "names:    172.18.0.4, *.mesh.cilium.io", "use:      server"]
    {
        assert!(page.contains(words), "{words:?} is not in\n{page}");
    }
}

#[test]
fn another_authority_of_the_same_name_does_not_verify() {
    let files = Files::new();
    files.authority("one");
    files.authority("two");
    files.issue("one", "remote-west", "remote", &[]);
    let (cert, ca) = (files.path("one/remote.crt"), files.path("two/ca.crt"));
    let result = run(["cert".as_ref(), "show".as_ref(), cert.as_os_str(), "--ca".as_ref(), ca.as_os_str()]).expect(1);
    assert!(result.stdout.contains("verified: no"), "{}", result.stdout);
    assert!(result.stdout.contains("another authority of the same name"), "{}", result.stdout);
}

#[test]
fn nothing_is_overwritten_without_force() {
    let files = Files::new();
    files.authority("pki");
    files.issue("pki", "remote-west", "remote", &[]);
    let before = std::fs::read(files.path("pki/remote.key")).expect("the key");
    let dir = files.path("pki");
    let dir = dir.to_str().expect("UTF-8");
    let result = run(["cert", "issue", "--dir", dir, "--cn", "remote-west", "--out", "remote"]).expect(1);
    result.says(&["error: ", "remote.key exists", "hint: ", "--force"]);
    run(["cert", "init", "--dir", dir]).expect(1);
    assert_eq!(std::fs::read(files.path("pki/remote.key")).expect("the key"), before);
    run(["cert", "issue", "--dir", dir, "--cn", "remote-west", "--out", "remote", "--force"]).expect(0);
    assert_ne!(std::fs::read(files.path("pki/remote.key")).expect("the key"), before);
}

#[test]
fn wrong_requests_are_refused() {
    let files = Files::new();
    files.authority("pki");
    let dir = files.path("pki");
    let dir = dir.to_str().expect("UTF-8");
    for (more, words) in [
        (&["--cn", "x", "--out", "../x"][..], "cannot be a file name"),
        (&["--cn", "x", "--out", "ca"], "cannot be a file name"),
        (&["--cn", "", "--out", "x"], "cannot be a common name"),
        (&["--cn", "x", "--san", "not a name"], "neither an address nor a DNS name"),
        (&["--cn", "x", "--server"], "accepted by nobody"),
    ] {
        let mut arguments = vec!["cert", "issue", "--dir", dir];
        arguments.extend(more);
        run(arguments).expect(64).says(&[words, "hint: "]);
    }
    let empty = files.path("none");
    let empty = empty.to_str().expect("UTF-8");
    run(["cert", "issue", "--dir", empty, "--cn", "x"])
        .expect(1)
        .says(&["failed to read the authority", "hint: make one with `meshd cert init"]);
}
