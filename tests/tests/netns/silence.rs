//! Packets between a node and the store of another cluster vanish, and nothing says so.

use std::time::{Duration, Instant};

use super::meshes::{Mesh, WEST_EAST, eventually_within, ping};

/// The node that is cut off from the store of east.
const NODE: &str = "west-worker";
/// As long as five pings of the store take; etcd ends a connection at the third that comes too early.
const PEACE: Duration = Duration::from_secs(32);
/// When the daemon must know, from docs/guides/real-etcd.md: eleven seconds, and two for the machine.
const NOTICED: Duration = Duration::from_secs(13);
/// Drops what goes to the etcd of east and what comes from it.
const CUT: &str = "nft add table ip cut \
    && nft 'add chain ip cut out { type filter hook output priority 0; }' \
    && nft 'add chain ip cut in { type filter hook input priority 0; }' \
    && nft add rule ip cut out ip daddr 172.18.0.7 drop \
    && nft add rule ip cut in ip saddr 172.18.0.7 drop";

#[test]
fn a_store_whose_packets_vanish_is_given_up_soon_and_an_idle_one_never() {
    let mesh = Mesh::up("west-east-etcd", WEST_EAST);
    mesh.wait_healthy(&["west-control-plane", NODE, "east-control-plane", "east-worker"]);
    let east = || mesh.ask(NODE, &["status"])["peers"][0].clone();
    let reconnections = |peer: &serde_json::Value| peer["reconnections"].as_u64();
    let first = east();
    assert_eq!(first["cluster"], "east", "{first}");
    let restless = eventually_within(PEACE, || reconnections(&east()) != reconnections(&first));
    assert!(!restless, "etcd ended an idle connection: {}", east());

    let run = |command: &str| {
        mesh.node(NODE).exec(&["sh", "-c", command]).expect("sh runs").ok().expect("nft does as it is told");
    };
    let cut = Instant::now();
    run(CUT);
    assert!(eventually_within(NOTICED, || east()["connected"] == false), "not noticed: {}", east());
    println!("noticed after {:?}", cut.elapsed());
    let told = mesh.ask(NODE, &["status"]);
    assert!(told["peers"][0]["problem"].is_string() && told["peers"][0]["stale_since"].is_string(), "{told:#}");
    mesh.assert_routes();
    assert_eq!(ping(&mesh.node("west-worker-client"), "10.1.1.10"), 62);

    run("nft delete table ip cut");
    mesh.wait_healthy(&[NODE]);
    assert!(reconnections(&east()) > reconnections(&first), "{}", east());
    mesh.finish();
}
