//! What a session may demand before it is established: BFD, and packets that are signed with TCP-AO; and what else this node
//! advertises: addresses of services.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use tests::routers::{Blueprint, Network, Router, until};

use super::configurations::configuration;

const DEADLINE: Duration = Duration::from_secs(30);

fn ours(name: &str, number: u8, asn: u32, bgp: &str) -> Blueprint {
    let node = format!("name: {name}, addresses: [192.0.2.{number}], pod_cidrs: [10.0.{number}.0/24]");
    let bgp = format!("  import: {{accept: [\"0.0.0.0/0 le 32\", \"::/0 le 128\"]}}\n{bgp}");
    Blueprint::meshd(name, &configuration(&node, asn, &bgp)).address(&format!("192.0.2.{number}/24"))
}

fn neighbor(router: &Router, address: &str) -> anyhow::Result<serde_json::Value> {
    let text = router.run(&["meshd", "bgp", "neighbors", address, "-o", "json"])?;
    let mut all: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    all.pop().ok_or_else(|| anyhow::anyhow!("no neighbor"))
}

fn bird(bfd: &str) -> Blueprint {
    let configuration = format!(
        "
router id 192.0.2.1;
{bfd}
protocol bgp {{ local 192.0.2.1 as 65001; neighbor 192.0.2.10 as 65010; connect delay time 1; connect retry time 1;
  {} ipv4 {{ import all; export all; }}; }}
",
        if bfd.is_empty() { "" } else { "bfd on;" }
    );
    Blueprint::bird("bird", &configuration).address("192.0.2.1/24")
}

/// With `strict`, BGP is up only when BFD is.
#[test]
fn a_strict_session_is_up_only_with_bfd() {
    tests::need_root();
    let strict =
        "  peers: [{address: 192.0.2.1, remote_as: 65001, bfd: {transmit_ms: 100, receive_ms: 100, strict: true}}]";
    let network = Network::up(&[bird(""), ours("ours", 10, 65_010, strict)]).unwrap();
    let router = network.router("ours").unwrap();
    until("a session that waits for BFD", DEADLINE, || {
        let state = neighbor(&router, "192.0.2.1")?["state"].clone();
        anyhow::ensure!(state == "open_confirm", "{state}");
        Ok(())
    })
    .unwrap();
    assert!(router.established().unwrap().is_empty());
    network.down().unwrap();

    let with_bfd = bird("protocol bfd { interface \"*\" { min rx interval 100 ms; min tx interval 100 ms; }; }");
    let network = Network::up(&[with_bfd, ours("ours", 10, 65_010, strict)]).unwrap();
    let router = network.router("ours").unwrap();
    router.wait_established("192.0.2.1").unwrap();
    network.router("bird").unwrap().wait_established("192.0.2.10").unwrap();
    let found = neighbor(&router, "192.0.2.1").unwrap();
    assert!(found.to_string().contains("bfd-strict"), "{found}");
    network.down().unwrap();
}

fn key(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    path.display().to_string()
}

fn signed(address: &str, asn: u32, key: &str) -> String {
    format!(
        "  peers: [{{address: {address}, remote_as: {asn}, tcp_ao: {{key_file: {key}, send_id: 5, receive_id: 5}}}}]"
    )
}

/// A kernel without TCP-AO keeps the session down and says what it lacks; nothing goes unsigned. With it, a peer that
/// does not sign gets no session.
#[test]
fn a_session_to_be_signed_is_never_unsigned() {
    tests::need_root();
    let folder = tempfile::tempdir().unwrap();
    let key = key(folder.path(), "key", "hush");
    let network = Network::up(&[bird(""), ours("ours", 10, 65_010, &signed("192.0.2.1", 65_001, &key))]).unwrap();
    let router = network.router("ours").unwrap();
    let status = || router.node().exec(&["meshd", "status", "-o", "json"]).map(|output| output.stdout);
    if meshd::speaker::transport::ao::probe().is_err() {
        until("the reason", DEADLINE, || {
            let text = status()?;
            anyhow::ensure!(text.contains("192.0.2.1: ") && text.contains("CONFIG_TCP_AO"), "{text}");
            Ok(())
        })
        .unwrap();
        let shut_down = neighbor(&router, "192.0.2.1").map(|found| found["shutdown"] == true);
        assert!(shut_down.as_ref().is_ok_and(|it| *it), "{shut_down:?}\n{}", router.log().unwrap());
    }
    // Longer than any of both waits before a connection.
    let log = until("attempts", DEADLINE, || {
        let log = network.router("bird")?.run(&["birdc", "show", "protocols", "all", "bgp1"])?;
        anyhow::ensure!(log.contains("BGP state:") && !log.contains("Established"), "{log}");
        Ok(log)
    })
    .unwrap();
    assert!(router.established().unwrap().is_empty(), "{log}");
    network.down().unwrap();
}

/// Two of ours with one key, and then with two.
#[test]
#[ignore = "needs a kernel with TCP-AO: Linux 6.7 with CONFIG_TCP_AO=y"]
fn two_of_ours_sign_with_tcp_ao() {
    tests::need_root();
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (key(folder.path(), "one", "hush"), key(folder.path(), "other", "hash"));
    for (second, agrees) in [(&one, true), (&other, false)] {
        let network = Network::up(&[
            ours("left", 10, 65_010, &signed("192.0.2.20", 65_020, &one)),
            ours("right", 20, 65_020, &signed("192.0.2.10", 65_010, second)),
        ])
        .unwrap();
        let (left, right) = (network.router("left").unwrap(), network.router("right").unwrap());
        if agrees {
            left.wait_established("192.0.2.20").unwrap();
            right.wait_established("192.0.2.10").unwrap();
        } else {
            until("refused attempts", DEADLINE, || {
                let found = neighbor(&left, "192.0.2.20")?;
                anyhow::ensure!(found["state"] != "established" && found.to_string().contains("last_reset"), "{found}");
                Ok(())
            })
            .unwrap();
        }
        network.down().unwrap();
    }
}

const SERVICE: &str = r#"{"cluster":"west","namespace":"default","name":"web","frontends":{"10.96.0.10":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.0.10.5":{"http":{"Protocol":"TCP","Port":8080}}},"hostnames":{},"labels":{},"selector":{},"includeExternal":false,"shared":true,"clusterID":1}"#;

/// The address of a service that our cluster shares is advertised while the service has a backend, and taken from nobody.
#[test]
fn addresses_of_services_are_advertised_and_refused_from_peers() {
    tests::need_root();
    let bgp = "  advertise: [{service_vips: true}]\n  peers: [{address: 192.0.2.1, remote_as: 65001}]";
    let thief = Blueprint::bird(
        "bird",
        "
router id 192.0.2.1;
protocol static { ipv4; route 10.96.0.10/32 blackhole; route 10.7.0.0/24 blackhole; }
protocol bgp { local 192.0.2.1 as 65001; neighbor 192.0.2.10 as 65010; connect delay time 1; connect retry time 1;
  ipv4 { import all; export where source = RTS_STATIC; }; }
",
    );
    let network = Network::up(&[thief.address("192.0.2.1/24"), ours("ours", 10, 65_010, bgp)]).unwrap();
    let (bird, router) = (network.router("bird").unwrap(), network.router("ours").unwrap());
    router.wait_established("192.0.2.1").unwrap();
    router.wait_path("10.7.0.0/24").unwrap();
    let etcdctl = |words: &[&str]| {
        let words: Vec<&str> =
            ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints=127.0.0.1:2379"].iter().chain(words).copied().collect();
        router.run(&words).unwrap()
    };
    let record = "cilium/state/services/v1/west/default/web";
    let heard = || -> anyhow::Result<bool> {
        let paths = bird.paths_to("10.96.0.10/32")?;
        Ok(paths.iter().any(|path| path.as_path == "65010"))
    };
    let rejected = || -> anyhow::Result<bool> {
        let text = router.run(&["meshd", "bgp", "received", "-o", "json"])?;
        let all: Vec<serde_json::Value> = serde_json::from_str(&text)?;
        let of_peer = all.iter().find(|row| row["prefix"] == "10.96.0.10/32");
        Ok(of_peer.is_some_and(|row| row["status"] == "rejected"))
    };
    assert!(!heard().unwrap() && !rejected().unwrap());
    etcdctl(&["put", record, SERVICE]);
    until("the address of the service", DEADLINE, || {
        anyhow::ensure!(heard()? && rejected()?, "heard: {}, rejected: {}", heard()?, rejected()?);
        Ok(())
    })
    .unwrap();
    let explained = router.run(&["meshd", "bgp", "rib", "10.96.0.10/32"]).unwrap();
    assert!(explained.contains("Advertised to, the local path:\n  192.0.2.1"), "{explained}");
    let other = router.run(&["meshd", "bgp", "rib", "10.7.0.0/24"]).unwrap();
    assert!(other.contains("Not advertised to, the path of 192.0.2.1:\n  192.0.2.1   came from this peer"), "{other}");
    // Without a backend packets for it would end here.
    etcdctl(&["put", record, &SERVICE.replace(r#""10.0.10.5":{"http":{"Protocol":"TCP","Port":8080}}"#, "")]);
    until("the withdrawal", DEADLINE, || {
        anyhow::ensure!(!heard()? && rejected()?, "heard: {}, rejected: {}", heard()?, rejected()?);
        Ok(())
    })
    .unwrap();
    network.down().unwrap();
}
