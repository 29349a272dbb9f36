//! The mesh over BGP: two clusters of ours, each with a store that the other one never sees, and a session between them.

use std::time::Duration;

use anyhow::ensure;
use lab::Running;
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::routers::{Blueprint, Network, Router};

use super::configurations::{Bird, assert_content, assert_marked, installed, reconfigure, wait_installed};

/// A cluster with one node: its number is in its AS, its address and its prefixes. It accepts what the `other` one is to have.
fn cluster(name: &str, number: u8, other: (&str, u8), more_prefixes: &str, more_peers: &str) -> Blueprint {
    let (them, their_number) = other;
    let text = format!(
        r#"
cluster: {{name: {name}, id: {number}}}
node: {{name: {name}-1, addresses: [192.0.2.{number}0, "fd00::{number}0"], pod_cidrs: [10.{number}.1.0/24, "fd0{number}:1::/64"{more_prefixes}]}}
store: {{mode: embedded, listen: "127.0.0.1:2379"}}
peers:
  - cluster: {them}
    id: {their_number}
    accept: {{pod_cidrs: [10.{their_number}.0.0/16, "fd0{their_number}::/16"], node_cidrs: [192.0.2.0/24, "fd00::/64"]}}
bgp:
  asn: 6500{number}
  mesh: {{enabled: true}}
  import: {{accept: [10.0.0.0/8 le 32, "fd00::/8 le 128"]}}
  policies: {{all: [{{}}]}}
  advertise: [{{pod_cidrs: true}}]
  peers:
    - {{address: 192.0.2.{their_number}0, remote_as: 6500{their_number}, export: [all], families: {{ipv4: {{}}, ipv6: {{}}}}, timers: {{connect_retry_s: 1}}}}
    {more_peers}
"#
    );
    Blueprint::meshd(name, &text)
        .address(&format!("192.0.2.{number}0/24"))
        .address(&format!("fd00::{number}0/64"))
        .run(&format!("ip address add 10.{number}.1.1/32 dev lo"))
        .run(&format!("ip address add fd0{number}:1::1/128 dev lo"))
}

fn nodes_of(router: &Router, cluster: &str) -> anyhow::Result<Vec<String>> {
    let nodes = router.json("get nodes")?;
    let ours = nodes.as_array().into_iter().flatten().filter(|node| node["cluster"] == cluster);
    Ok(ours.map(|node| format!("{}: {}", node["name"].as_str().unwrap_or_default(), node["pod_cidrs"])).collect())
}

fn peer(router: &Router, cluster: &str) -> anyhow::Result<Value> {
    let peers = router.json("get peers")?;
    Ok(peers.as_array().into_iter().flatten().find(|peer| peer["cluster"] == cluster).cloned().unwrap_or_default())
}

fn ping(from: &Router, source: &str, target: &str) {
    from.run(&["ping", "-c", "3", "-i", "0.05", "-W", "1", "-I", source, target]).unwrap();
}

const EAST_AT_WEST: [&str; 3] =
    ["10.2.1.0/24 via 192.0.2.20", "10.2.2.0/24 via 192.0.2.20", "fd02:1::/64 via fd00::20"];

/// What is deleted of ours at the kernel from now on.
struct Deletions(Running);

impl Deletions {
    fn of(router: &Router) -> Self {
        Self(router.node().spawn(&["ip", "monitor", "route"]).unwrap())
    }

    fn assert_only(self, prefixes: &[&str]) {
        let heard = self.0.stop(Signal::SIGINT, Duration::from_secs(5)).unwrap();
        let deleted = heard.stdout.lines().filter(|line| line.starts_with("Deleted") && line.contains("proto 77"));
        let deleted: Vec<&str> = deleted.filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(deleted, prefixes);
    }
}

/// The whole life of such a pair.
#[test]
fn two_clusters_join_without_a_store() {
    tests::need_root();
    // A router that has nothing to do with either cluster hears whose the prefixes are, and says something itself.
    let watcher = "- {address: 192.0.2.1, remote_as: 4200000001, export: [all], families: {ipv4: {}}, timers: {connect_retry_s: 1}}";
    let network = Network::up(&[
        cluster("west", 1, ("east", 2), "", watcher),
        cluster("east", 2, ("west", 1), ", 10.2.2.0/24, 10.9.1.0/24", ""),
        Bird { peer: ("192.0.2.10", 65_001), ..Bird::USUAL }.blueprint("bird"),
    ])
    .unwrap();
    let router = |name| network.router(name).unwrap();
    let (west, east, bird) = (router("west"), router("east"), router("bird"));

    // What bird says carries no mark: it is an ordinary route, whose metric and place are those of BGP.
    let mut everything = EAST_AT_WEST.to_vec();
    everything.insert(0, "10.1.0.0/24 via 192.0.2.1");
    wait_installed(
        &east,
        "77",
        &["10.1.0.0/24 via 192.0.2.10", "10.1.1.0/24 via 192.0.2.10", "fd01:1::/64 via fd00::10"],
    );
    wait_installed(&west, "77", &everything);
    ping(&west, "10.1.1.1", "10.2.1.1");
    ping(&east, "fd02:1::1", "fd01:1::1");

    assert_eq!(
        nodes_of(&west, "east").unwrap(),
        [r#"bgp-192-0-2-20: ["10.2.1.0/24","10.2.2.0/24"]"#, r#"bgp-fd00-0-0-0-0-0-0-20: ["fd02:1::/64"]"#]
    );
    let view = peer(&west, "east").unwrap();
    assert_eq!(
        (&view["id"], &view["ready"], &view["address"]),
        (&2.into(), &true.into(), &"BGP *:77:2".into()),
        "{view}"
    );
    // What east may not say is refused, and is no ordinary route either, although the policy for the peer accepts it.
    let rejected = west.json("get rejected").unwrap();
    assert_eq!(rejected[0]["key"], "bgp/10.9.1.0/24", "{rejected}");
    assert!(rejected[0]["reason"].as_str().unwrap().contains("10.9.1.0/24"), "{rejected}");

    let path = bird.wait_path("10.1.1.0/24").unwrap();
    assert_eq!(path.large, ["65001:77:1".to_owned()].into(), "{path:?}");
    let path = bird.wait_path("10.2.1.0/24").unwrap();
    assert_eq!((path.as_path.as_str(), path.large), ("65001 65002", ["65002:77:2".to_owned()].into()));
    assert_marked(&east.wait_path("10.1.0.0/24").unwrap(), "65001 4200000001");
    assert_content(&network, &["bird"]);

    // A crash and a restart change nothing at the kernel.
    let monitor = west.node().spawn(&["ip", "monitor", "route", "nexthop"]).unwrap();
    west.kill9().unwrap();
    west.start().unwrap();
    west.wait_established("192.0.2.20").unwrap();
    west.wait("east is complete", || {
        let view = peer(&west, "east")?;
        ensure!(view["ready"] == true && view["stale_since"].is_null(), "{view}");
        Ok(())
    })
    .unwrap();
    let heard = monitor.stop(Signal::SIGINT, Duration::from_secs(5)).unwrap();
    let changes: Vec<&str> = heard.stdout.lines().filter(|line| line.contains("proto 77")).collect();
    assert_eq!(changes, Vec::<&str>::new());
    assert_eq!(installed(&west, "77").unwrap(), everything);

    // Less is accepted of east from now on; then more again.
    let deletions = Deletions::of(&west);
    reconfigure(&west, "pod_cidrs: [10.2.0.0/16, ", "pod_cidrs: [10.2.1.0/24, ");
    wait_installed(&west, "77", &["10.1.0.0/24 via 192.0.2.1", EAST_AT_WEST[0], EAST_AT_WEST[2]]);
    reconfigure(&west, "pod_cidrs: [10.2.1.0/24, ", "pod_cidrs: [10.2.0.0/16, ");
    wait_installed(&west, "77", &everything);
    deletions.assert_only(&["10.2.2.0/24"]);

    // East withdraws what it has: its routes go, and who looks is told why there are none.
    reconfigure(&east, "advertise: [{pod_cidrs: true}]", "advertise: []");
    wait_installed(&west, "77", &["10.1.0.0/24 via 192.0.2.1"]);
    let view = peer(&west, "east").unwrap();
    assert!(view["problem"].as_str().unwrap().contains("no accepted BGP path has a large community *:77:2"), "{view}");
    reconfigure(&east, "advertise: []", "advertise: [{pod_cidrs: true}]");
    wait_installed(&west, "77", &everything);

    // East is no cluster of ours any more: what is left is what the policy for the peer accepts.
    let text = west.run(&["cat", "/etc/meshd/meshd.yaml"]).unwrap();
    let entry = &text[text.find("peers:\n  - cluster").unwrap()..text.find("bgp:").unwrap()];
    let deletions = Deletions::of(&west);
    reconfigure(&west, entry, "");
    west.wait("nobody knows east", || {
        let view = peer(&west, "east")?;
        ensure!(view.is_null(), "{view}");
        Ok(())
    })
    .unwrap();
    everything.insert(3, "10.9.1.0/24 via 192.0.2.20");
    wait_installed(&west, "77", &everything);
    deletions.assert_only(&[]);
    // And it is one again.
    reconfigure(&west, "bgp:\n", &format!("{entry}bgp:\n"));
    everything.remove(3);
    wait_installed(&west, "77", &everything);
    assert_eq!(peer(&west, "east").unwrap()["nodes"], 2);
    network.down().unwrap();
}
