//! Faults under a running ping: no packet may be lost (promise 1, invariant I10).
//!
//! Each test brings up its own west/east lab, starts `ping -i 0.01` between pods of two clusters in both directions, breaks
//! something, waits until the mesh has dealt with it, and then asks ping for a gap in its sequence numbers.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use lab::{Node, Running};
use nix::sys::signal::Signal;

use super::meshes::{self, READY, WEST_EAST, eventually};

const NODES: [&str; 4] = ["west-control-plane", "west-worker", "east-control-plane", "east-worker"];
const PODS: [(&str, &str); 2] = [("west-worker-client", "10.1.1.10"), ("east-worker-client", "10.0.1.10")];

/// Lines of each log a failed test shows.
const LOG_TAIL: usize = 40;
/// Foreign routes that must survive everything.
const FOREIGN: u32 = 1_000;

/// A west/east lab under load.
struct Mesh {
    /// Gone once the lab was taken down.
    mesh: Option<meshes::Mesh>,
    pings: Vec<Running>,
    foreign: BTreeSet<String>,
}

impl Mesh {
    /// A running lab with every route in place and pings under way.
    fn up() -> Self {
        let mut mesh = Self::up_quiet();
        mesh.start_pings();
        mesh
    }

    /// The same without pings.
    fn up_quiet() -> Self {
        let mesh = meshes::Mesh::up("west-east", WEST_EAST);
        let mut mesh = Self { mesh: Some(mesh), pings: Vec::new(), foreign: BTreeSet::new() };
        mesh.add_foreign_routes();
        mesh
    }

    fn mesh(&self) -> &meshes::Mesh {
        self.mesh.as_ref().expect("the lab is up")
    }

    fn node(&self, name: &str) -> Node {
        self.mesh().node(name)
    }

    fn daemon(&self, node: &str) -> lab::Daemon {
        self.mesh().daemon(node)
    }

    fn wait_for_routes(&self) {
        self.mesh().wait_for_routes();
    }

    fn wait_healthy(&self, node: &str) {
        self.mesh().wait_healthy(&[node]);
    }

    fn add_foreign_routes(&mut self) {
        let node = self.node("west-worker");
        let line = |i: u32| format!("route add 100.64.{}.{}/32 via 172.18.0.4 metric {}", i / 250, i % 250, i % 3);
        let batch: Vec<String> = (0..FOREIGN).map(line).collect();
        let command = format!("ip -batch - <<END\n{}\nEND", batch.join("\n"));
        node.exec(&["sh", "-c", &command]).expect("sh runs").ok().expect("foreign routes are added");
        self.foreign = foreign(&node);
        assert!(self.foreign.len() > FOREIGN as usize);
    }

    fn start_pings(&mut self) {
        for (pod, target) in PODS {
            let ping = self.node(pod).spawn(&["ping", "-n", "-O", "-i", "0.01", target]).expect("ping starts");
            self.pings.push(ping);
        }
        // The fault must not meet a ping that has not begun.
        wait("pings are answered", || {
            self.pings.iter().all(|ping| answers(&ping.so_far().unwrap_or_default()).len() > 20)
        });
    }

    /// Lets the pings run a little longer, stops them and demands every answer.
    fn finish(mut self) {
        let before: Vec<usize> =
            self.pings.iter().map(|ping| answers(&ping.so_far().unwrap_or_default()).len()).collect();
        wait("pings go on", || {
            self.pings
                .iter()
                .zip(&before)
                .all(|(ping, before)| answers(&ping.so_far().unwrap_or_default()).len() > before + 50)
        });
        for ping in std::mem::take(&mut self.pings) {
            let output = ping.stop(Signal::SIGINT, Duration::from_secs(5)).expect("ping ends");
            let answers = answers(&output.stdout);
            let last = *answers.last().expect("at least one answer");
            let lost: Vec<u32> = (1..=last).filter(|seq| !answers.contains(seq)).collect();
            assert!(lost.is_empty(), "{} of {last} packets lost: {lost:?}", lost.len());
        }
        assert_eq!(foreign(&self.node("west-worker")), self.foreign, "foreign routes were touched");
        for node in NODES {
            let log = self.mesh().log(node);
            assert!(log.contains("meshd starts"), "{node} has no log");
            assert!(!log.contains(" ERROR "), "{node} says:\n{log}");
        }
        self.mesh.take().expect("the lab is up").finish();
    }
}

impl Drop for Mesh {
    /// A failed test says what the daemons said.
    fn drop(&mut self) {
        let Some(mesh) = self.mesh.as_ref().filter(|_| std::thread::panicking()) else { return };
        for node in NODES {
            let log = mesh.log(node);
            let tail: Vec<&str> = log.lines().rev().take(LOG_TAIL).collect();
            println!("{node}:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Sequence numbers that were answered. A late answer after "no answer yet" counts: the packet was not lost.
fn answers(output: &str) -> BTreeSet<u32> {
    let answered = output.lines().filter(|line| line.contains("bytes from"));
    answered.filter_map(|line| line.split("icmp_seq=").nth(1)?.split_whitespace().next()?.parse().ok()).collect()
}

/// Every route that is not ours, as text.
fn foreign(node: &Node) -> BTreeSet<String> {
    let all = node.exec(&["ip", "route", "show", "table", "all"]).expect("ip runs").ok().expect("ip succeeds");
    all.lines().filter(|line| !line.contains("proto 77") && !line.contains("nhid 77")).map(str::to_owned).collect()
}

fn wait(what: &str, done: impl FnMut() -> bool) {
    assert!(eventually(done), "{what}: not within {READY:?}");
}

#[test]
fn kill_9_and_restart_of_every_daemon_in_turn() {
    let mesh = Mesh::up();
    for node in NODES {
        let daemon = mesh.daemon(node);
        daemon.kill9().expect("killed");
        daemon.start().expect("started");
        mesh.wait_healthy(node);
    }
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn the_remote_store_is_dead_for_two_minutes() {
    let mesh = Mesh::up();
    let daemon = mesh.daemon("east-control-plane");
    daemon.kill9().expect("killed");
    std::thread::sleep(Duration::from_secs(120));
    mesh.wait_for_routes();
    daemon.start().expect("started");
    mesh.wait_healthy("east-control-plane");
    mesh.wait_healthy("west-worker");
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn the_store_is_restarted_in_an_orderly_way() {
    let mesh = Mesh::up();
    let daemon = mesh.daemon("east-control-plane");
    daemon.restart().expect("restarted");
    for node in NODES {
        mesh.wait_healthy(node);
    }
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn the_store_is_replaced_by_an_empty_one() {
    let mesh = Mesh::up();
    let node = mesh.node("east-control-plane");
    let store_id = |node: &Node| {
        let peers = node.exec(&["meshd", "get", "peers", "-o", "json"]).expect("meshd runs").json().expect("JSON");
        peers[0]["store_id"].as_str().unwrap_or_default().to_owned()
    };
    let before = store_id(&mesh.node("west-worker"));
    let daemon = mesh.daemon("east-control-plane");
    daemon.kill9().expect("killed");
    node.exec(&["sh", "-c", "rm /var/lib/meshd/store.redb"]).expect("rm runs").ok().expect("the data file is removed");
    daemon.start().expect("started");
    wait("west reads the new store", || {
        let now = store_id(&mesh.node("west-worker"));
        !now.is_empty() && now != before
    });
    for node in NODES {
        mesh.wait_healthy(node);
    }
    mesh.wait_for_routes();
    mesh.finish();
}

/// The disk with the store and the memory of who published there is lost, and comes back before a sibling does: the new
/// store has its canaries, the sibling is missing from it, and is alive.
#[test]
fn the_store_is_lost_together_with_its_memory() {
    let mesh = Mesh::up();
    let store = mesh.daemon("east-control-plane");
    let sibling = mesh.daemon("east-worker");
    store.kill9().expect("killed");
    sibling.kill9().expect("killed");
    let lose = "rm /var/lib/meshd/store.redb /var/lib/meshd/state.redb";
    mesh.node("east-control-plane").exec(&["sh", "-c", lose]).expect("rm runs").ok().expect("the files are removed");
    store.start().expect("started");
    wait("west has read the new store and keeps what it lacks", || {
        let peers = mesh.mesh().ask("west-worker", &["get", "peers"]);
        peers[0]["ready"] == true && peers[0]["kept_until"].is_string() && peers[0]["nodes"] == 2
    });
    mesh.mesh().assert_routes_of(&["west-control-plane", "west-worker"]);
    sibling.start().expect("started");
    for node in NODES {
        mesh.wait_healthy(node);
    }
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn a_node_starts_while_a_peer_is_down() {
    let mesh = Mesh::up();
    let remote = mesh.daemon("east-control-plane");
    let local = mesh.daemon("west-worker");
    remote.kill9().expect("killed");
    local.restart().expect("restarted");
    wait("west-worker answers with its remembered routes", || {
        let status = mesh.node("west-worker").exec(&["meshd", "status", "-o", "json"]).expect("meshd runs");
        serde_json::from_str::<serde_json::Value>(&status.stdout)
            .is_ok_and(|status| status["routes"]["installed"] == 3 && status["peers"][0]["stale_since"].is_string())
    });
    mesh.wait_for_routes();
    remote.start().expect("started");
    mesh.wait_healthy("east-control-plane");
    mesh.wait_healthy("west-worker");
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn a_spare_link_bounces() {
    let mesh = Mesh::up();
    let node = mesh.node("west-worker");
    let run = |command: &str| node.exec(&["sh", "-c", command]).expect("sh runs").ok().expect("ip succeeds");
    run(
        "ip link add spare0 type veth peer name spare1 && ip addr add 192.0.2.1/24 dev spare0 && ip link set spare1 up",
    );
    for _ in 0..5 {
        run("ip link set spare0 up");
        run("ip link set spare0 down");
    }
    run("ip link del spare0");
    mesh.wait_healthy("west-worker");
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn a_reload_by_sighup() {
    let mesh = Mesh::up();
    for node in NODES {
        mesh.daemon(node).reload().expect("reloaded");
    }
    wait("every daemon has read its configuration again", || {
        NODES.iter().all(|node| {
            let daemon = mesh.daemon(node);
            daemon.log().unwrap_or_default().contains("configuration reloaded")
        })
    });
    for node in NODES {
        mesh.wait_healthy(node);
    }
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn an_upgrade_in_place() {
    let mesh = Mesh::up();
    let old = lab::catalog::meshd().expect("meshd is built");
    let folder = tempfile::tempdir().expect("a folder for the new binary");
    let new: PathBuf = folder.path().join("meshd-new");
    std::fs::copy(&old, &new).expect("the binary is copied");
    for name in NODES {
        let node = mesh.node(name);
        node.use_meshd(&new).expect("the binary is replaced");
        mesh.daemon(name).restart().expect("restarted");
        mesh.wait_healthy(name);
    }
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn routes_changed_by_hand_are_back_within_a_second() {
    // A packet that meets the gap is lost, whoever made it.
    let mesh = Mesh::up_quiet();
    let node = mesh.node("west-worker");
    let damages = [
        "ip route del 10.1.0.0/24 proto 77",
        "ip route replace 10.1.0.0/24 via 172.18.0.4 proto 77 metric 77",
        "ip route del 10.0.0.0/24 && ip route del 10.1.1.0/24",
        "ip nexthop flush proto 77",
    ];
    let routes = || mesh.mesh().routes("west-worker");
    let expected = routes();
    for damage in damages {
        let at = Instant::now();
        node.exec(&["sh", "-c", damage]).expect("sh runs").ok().unwrap_or_else(|error| panic!("{damage}: {error}"));
        wait("the repair", || routes() == expected);
        let took = at.elapsed();
        println!("repaired after `{damage}`: {took:?}");
        assert!(took < Duration::from_secs(1), "{damage}: {took:?}");
    }
    mesh.finish();
}
