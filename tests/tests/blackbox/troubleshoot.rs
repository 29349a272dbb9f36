//! Every fault injected for real, and named by `meshd troubleshoot` with its likely cause.

use std::path::Path;

use meshd_store::{AuthConfig, ServerTls, Store, StoreOptions};
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair};
use serde_json::Value;

use super::etcd::{Etcd, free_port};
use super::meshd::{Files, run};

const CONFIG: &str = "cluster: {name: west, id: 1}
node: {pod_cidrs: [10.0.1.0/24]}
store: {mode: embedded, listen: \"127.0.0.1:0\"}
peers_defaults: {accept: {pod_cidrs: [10.0.0.0/8], node_cidrs: [172.16.0.0/12]}}
";

const CLUSTER_CONFIG: &str = r#"{"id":2,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}"#;
const CANARIES: [&str; 4] = ["nodes", "services", "identities", "ip"];

/// Runs `troubleshoot east -o json` for a peer at `endpoint` with `TLS/{ca.crt,NAME.crt,NAME.key}`.
fn troubleshoot(files: &Files, endpoint: &str, ca: &str, pair: &str) -> (i32, Value) {
    let peer = format!(
        "peers:\n- cluster: east\n  endpoints: [\"{endpoint}\"]\n  tls: {{ca: {ca}, cert: {pair}.crt, key: {pair}.key}}\n"
    );
    let path = files.write("meshd.yaml", &format!("{CONFIG}{peer}"));
    let arguments = ["troubleshoot", "east", "-o", "json", "--config", path.to_str().expect("UTF-8")];
    let result = run(arguments);
    let report = serde_json::from_str(&result.stdout)
        .unwrap_or_else(|error| panic!("{error}\nstdout:\n{}\nstderr:\n{}", result.stdout, result.stderr));
    (result.code.expect("an exit code"), report)
}

/// The check of this name failed, with these words in detail, cause or hint, and the exit code is 1.
#[track_caller]
fn names((code, report): &(i32, Value), check: &str, words: &[&str]) {
    assert_eq!(*code, 1, "{report:#}");
    let checks = report[0]["checks"].as_array().expect("checks");
    let failed: Vec<&Value> = checks.iter().filter(|found| found["outcome"] == "failed").collect();
    let found = failed
        .iter()
        .find(|found| found["check"] == check)
        .unwrap_or_else(|| panic!("{check} did not fail\n{report:#}"));
    for key in ["detail", "cause", "hint"] {
        assert!(found[key].as_str().is_some_and(|text| !text.is_empty()), "no {key}\n{found:#}");
    }
    let text = found.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in\n{found:#}");
    }
}

#[track_caller]
fn healthy((code, report): &(i32, Value)) {
    assert_eq!(*code, 0, "{report:#}");
    assert_eq!(report[0]["ok"], true);
}

/// A certificate of `FOLDER/ca.*` whose time is over.
fn issue_expired(files: &Files, folder: &str, cn: &str, out: &str, sans: &[&str]) {
    let read = |name: &str| std::fs::read_to_string(files.path(folder).join(name)).expect("the authority");
    let issuer_key = KeyPair::from_pem(&read("ca.key")).expect("its key");
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), issuer_key).expect("its certificate");
    let sans: Vec<String> = sans.iter().map(|san| (*san).to_owned()).collect();
    let mut parameters = CertificateParams::new(sans).expect("names");
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, cn);
    let key = KeyPair::generate().expect("a key");
    let certificate = parameters.signed_by(&key, &issuer).expect("a certificate");
    files.write(&format!("{folder}/{out}.crt"), &certificate.pem());
    let path = files.write(&format!("{folder}/{out}.key"), &key.serialize_pem());
    private(&path);
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
}

/// An authority with the certificates of a store and of its reader.
fn pki(files: &Files, folder: &str) {
    files.authority(folder);
    files.issue(folder, "clustermesh-apiserver.cilium.io", "server", &["--san", "127.0.0.1", "--san", "localhost"]);
    files.issue(folder, "root", "root", &["--client"]);
    files.issue(folder, "remote-west", "remote", &["--client"]);
}

#[test]
fn unresolvable_name() {
    let files = Files::new();
    pki(&files, "pki");
    let result = troubleshoot(&files, "https://no-such-store.invalid:2379", "pki/ca.crt", "pki/remote");
    names(&result, "dns", &["no-such-store.invalid cannot be resolved", "unresolvable name"]);
}

#[test]
fn refused_port() {
    let files = Files::new();
    pki(&files, "pki");
    let result = troubleshoot(&files, &format!("https://127.0.0.1:{}", free_port()), "pki/ca.crt", "pki/remote");
    names(&result, "tcp", &["refused the connection", "refused port"]);
}

#[test]
fn certificates_that_do_not_fit() {
    let files = Files::new();
    pki(&files, "pki");
    files.authority("other");
    files.issue("other", "remote-west", "remote", &["--client"]);
    issue_expired(&files, "pki", "remote-west", "expired", &[]);
    let etcd = Etcd::start(&files, "pki");
    let endpoint = format!("https://127.0.0.1:{}", etcd.port);

    let result = troubleshoot(&files, &endpoint, "other/ca.crt", "pki/remote");
    names(
        &result,
        "tls",
        &["cannot be verified", "another authority of the same name", "wrong CA: tls.ca is not the authority"],
    );
    let result = troubleshoot(&files, &endpoint, "pki/ca.crt", "other/remote");
    names(&result, "tls", &["TLS alert", "wrong CA: the store does not trust the authority of our certificate"]);
    let result = troubleshoot(&files, &endpoint, "pki/ca.crt", "pki/expired");
    names(&result, "certificate", &["expired on 2021-01-01", "expired certificate"]);
    names(&result, "tls", &["TLS alert", "expired certificate"]);
    let result = troubleshoot(&files, &endpoint.replace("127.0.0.1", "127.0.0.2"), "pki/ca.crt", "pki/remote");
    names(&result, "tcp", &["127.0.0.2"]);
}

#[test]
fn expired_server_certificate() {
    let files = Files::new();
    files.authority("pki");
    issue_expired(&files, "pki", "clustermesh-apiserver.cilium.io", "server", &["127.0.0.1"]);
    files.issue("pki", "root", "root", &["--client"]);
    files.issue("pki", "remote-west", "remote", &["--client"]);
    let etcd = Etcd::start(&files, "pki");
    let result = troubleshoot(&files, &format!("https://127.0.0.1:{}", etcd.port), "pki/ca.crt", "pki/remote");
    names(&result, "tls", &["the server's certificate expired on 2021-01-01", "expired certificate on the other side"]);
}

#[test]
fn rights_clocks_and_content() {
    let files = Files::new();
    pki(&files, "pki");
    files.issue("pki", "stranger", "stranger", &["--client"]);
    files.issue("pki", "remote", "legacy", &["--client"]);
    let etcd = Etcd::start(&files, "pki");
    etcd.set_up_users("east", "remote-west");
    let endpoint = format!("https://localhost:{}", etcd.port);
    let look = |pair: &str| troubleshoot(&files, &endpoint, "pki/ca.crt", pair);
    let beat = |value: &str| etcd.ctl(&["put", "cilium/.heartbeat", value]);
    let canary = |kind: &str| format!("cilium/synced/east/cilium/state/{kind}/v1");
    let date = |text: &str| {
        let output =
            std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", text]).output().expect("date");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };

    names(&look("pki/remote"), "cluster_config", &["absent cluster-config", "cilium/cluster-config/east"]);
    etcd.ctl(&["put", "cilium/cluster-config/east", CLUSTER_CONFIG]);
    for kind in &CANARIES[1..] {
        etcd.ctl(&["put", &canary(kind), "now"]);
    }
    names(&look("pki/remote"), "canaries", &["absent canary", "missing: cilium/synced/east/cilium/state/nodes/v1"]);
    etcd.ctl(&["put", &canary("nodes"), "now"]);
    names(&look("pki/remote"), "clock", &["there is no heartbeat"]);
    beat(&date("now"));
    let well = look("pki/remote");
    healthy(&well);
    let access = well.1[0]["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .find(|check| check["check"] == "version")
        .expect("a version");
    assert!(access["detail"].as_str().expect("text").starts_with("etcd 3."), "{access}");

    beat(&date("now + 1 hour"));
    names(&look("pki/remote"), "clock", &["s in the future", "clock skew"]);
    beat(&date("now - 1 hour"));
    names(&look("pki/remote"), "clock", &["s old", "clock skew"]);
    beat(&date("now"));

    names(&look("pki/stranger"), "access", &["permission denied", "wrong CN", "stranger", "remote-west"]);
    names(&look("pki/legacy"), "access", &["permission denied", "missing RBAC role", "user remote"]);
    etcd.ctl(&["user", "revoke-role", "remote-west", "remote"]);
    names(
        &look("pki/remote"),
        "access",
        &["permission denied", "missing RBAC role", "etcdctl user grant-role remote-west remote"],
    );
    etcd.ctl(&["user", "grant-role", "remote-west", "remote"]);

    etcd.ctl(&["put", "cilium/cluster-config/east", r#"{"id":1,"capabilities":{}}"#]);
    names(&look("pki/remote"), "cluster_config", &["cluster id 1", "west"]);
    etcd.ctl(&["put", "cilium/cluster-config/east", CLUSTER_CONFIG]);
    healthy(&look("pki/remote"));
}

#[test]
fn the_page_for_people_has_cause_and_hint() {
    let files = Files::new();
    pki(&files, "pki");
    let (_, _) = troubleshoot(&files, &format!("https://127.0.0.1:{}", free_port()), "pki/ca.crt", "pki/remote");
    let path = files.path("meshd.yaml");
    let path = path.to_str().expect("UTF-8");
    let page = run(["troubleshoot", "--config", path]).expect(1).stdout;
    for words in ["cluster east (", "FAILED   tcp", "cause: refused port", "hint: check the port", "skipped  canaries"]
    {
        assert!(page.contains(words), "{words:?} is not in\n{page}");
    }
    run(["troubleshoot", "south", "--config", path])
        .expect(64)
        .says(&["cluster south is not configured", "hint: known here: east"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_is_diagnosed_like_etcd() {
    let files = std::sync::Arc::new(Files::new());
    pki(&files, "pki");
    files.issue("pki", "stranger", "stranger", &["--client"]);
    let read = |name: &str| std::fs::read(files.path("pki").join(name)).expect("a file of the PKI");
    let tls = ServerTls { cert_pem: read("server.crt"), key_pem: read("server.key"), client_ca_pem: read("ca.crt") };
    let options = StoreOptions { auth: AuthConfig::standard("east", ["west"]), ..StoreOptions::default() };
    let (store, _) = Store::open(options).expect("a store");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("https://{}", listener.local_addr().expect("an address"));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn({
        let store = store.clone();
        async move { store.serve(listener, Some(tls), async { drop(stopped.await) }).await }
    });
    let look = |pair: &'static str| {
        let (files, endpoint) = (std::sync::Arc::clone(&files), endpoint.clone());
        async move {
            let look = move || troubleshoot(&files, &endpoint, "pki/ca.crt", pair);
            tokio::task::spawn_blocking(look).await.expect("it ends")
        }
    };
    names(&look("pki/remote").await, "cluster_config", &["absent cluster-config"]);
    names(&look("pki/stranger").await, "access", &["wrong CN"]);
    let channel = etcd_client::Channel::Tonic(store.local_channel());
    let mut client = etcd_client::Client::from_channel(channel, None).await.expect("a client");
    client.put("cilium/cluster-config/east", CLUSTER_CONFIG, None).await.expect("put");
    for kind in CANARIES {
        client.put(format!("cilium/synced/east/cilium/state/{kind}/v1"), "now", None).await.expect("put");
    }
    let now = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().expect("date").stdout;
    client.put("cilium/.heartbeat", now.trim_ascii(), None).await.expect("put");
    healthy(&look("pki/remote").await);
    drop(stop);
    serving.await.expect("the task").expect("the store");
    store.close().await;
}
