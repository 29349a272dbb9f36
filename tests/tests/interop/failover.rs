//! A node with a cable to each of two switches loses one: BFD notices, and one message to the kernel moves every route.
//!
//! The cable is not pulled but made to swallow everything, so nobody's link goes down. What is measured is the longest silence of each
//! of many flows, of which about half go over the dead cable.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lab::{Lab, Node, Options, Running};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::routers::{Blueprint, DEADLINE, Network, until};

use super::configurations;

/// What traffic over a cable that dies may miss: 150 ms until BFD at 50 ms times 3 says so, and the rest for what follows.
const SILENCE_MAX: Duration = Duration::from_millis(300);
/// Flows with a longer silence have been over that cable. BFD waits for 100 ms at least.
const SILENCE_MIN: Duration = Duration::from_millis(80);
const FLOWS: u8 = 16;
/// So many routes change at once; with no more than that all of them may have gone to another object in the same moment.
const BATCH: u32 = 4096;
/// Pause between two packets of a flow.
const SEND_EVERY: Duration = Duration::from_millis(2);
const PORT: u16 = 7777;

/// Flows between two nodes, one way.
struct Flows {
    arrivals: Arc<Mutex<Vec<Vec<Instant>>>>,
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flows {
    /// Each pair is a flow. Sources must be addresses of `from`, targets of `to`.
    fn start(from: &Node, to: &Node, pairs: Vec<(Ipv4Addr, Ipv4Addr)>) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let arrivals = Arc::new(Mutex::new(vec![Vec::new(); pairs.len()]));
        let sink = to.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()).unwrap();
        sink.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let bind = |pair: &(Ipv4Addr, Ipv4Addr)| (UdpSocket::bind((pair.0, 0)).unwrap(), pair.1);
        let sources: Vec<_> = from.within(|| pairs.iter().map(bind).collect()).unwrap();
        let receiver = {
            let (done, arrivals) = (Arc::clone(&done), Arc::clone(&arrivals));
            spawn(move || {
                let mut octet = [0];
                while !done.load(Ordering::Relaxed) {
                    if sink.recv(&mut octet).is_ok_and(|count| count == 1) {
                        arrivals.lock().unwrap()[usize::from(octet[0])].push(Instant::now());
                    }
                }
            })
        };
        let sender = {
            let done = Arc::clone(&done);
            spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for (flow, (socket, target)) in (0_u8..).zip(&sources) {
                        // A way that is not there any more is what this is about.
                        let _sent = socket.send_to(&[flow], (*target, PORT));
                    }
                    sleep(SEND_EVERY);
                }
            })
        };
        let flows = Self { arrivals, done, threads: vec![receiver, sender] };
        flows.wait_for_news(Instant::now());
        flows
    }

    /// Waits until each flow has arrived after `since`.
    fn wait_for_news(&self, since: Instant) {
        self.wait_for_news_or(since, String::new);
    }

    /// The same, with words about why they may not have.
    fn wait_for_news_or(&self, since: Instant, explain: impl Fn() -> String) {
        let waited = until("every flow to arrive", DEADLINE, || {
            let arrivals = self.arrivals.lock().unwrap();
            let silent = arrivals.iter().filter(|flow| flow.last().is_none_or(|last| *last < since)).count();
            ensure!(silent == 0, "{silent} are silent");
            Ok(())
        });
        if let Err(error) = waited {
            panic!("{error:#}\n{}", explain());
        }
    }

    /// The longest silence of each flow since `since`, in order.
    fn silences(&self, since: Instant) -> Vec<Duration> {
        let arrivals = self.arrivals.lock().unwrap();
        let longest = |flow: &Vec<Instant>| {
            let from = flow.partition_point(|at| *at < since).saturating_sub(1);
            flow[from..].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::MAX)
        };
        let mut silences: Vec<Duration> = arrivals.iter().map(longest).collect();
        silences.sort();
        silences
    }

    /// Some were interrupted, and none for long.
    fn assert_moved(&self, what: &str, since: Instant) {
        let silences = self.silences(since);
        let longest = silences[silences.len() - 1];
        let moved = silences.iter().filter(|silence| **silence >= SILENCE_MIN).count();
        println!("{what}: {moved} of {} flows moved, the longest silence is {longest:?}", silences.len());
        assert!(moved > 0, "{what}: nothing went over the dead cable: {silences:?}");
        assert!(longest < SILENCE_MAX, "{what}: {silences:?}");
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Everything that goes over a link of a node is dropped, and nobody is told.
fn cut(node: &Node, link: &str) -> Instant {
    let rules = format!(
        "table inet cut {{
           chain in {{ type filter hook prerouting priority -300; iifname {link} drop; }}
           chain out {{ type filter hook postrouting priority 300; oifname {link} drop; }}
         }}"
    );
    let before = Instant::now();
    node.exec(&["nft", &rules]).unwrap().ok().unwrap();
    before
}

fn mend(node: &Node) {
    node.exec(&["nft", "delete", "table", "inet", "cut"]).unwrap().ok().unwrap();
}

/// Next hops of the groups a node has, by number of members.
fn groups(node: &Node) -> anyhow::Result<Vec<usize>> {
    let objects: Value = serde_json::from_str(&node.exec(&["ip", "-j", "nexthop"])?.ok()?)?;
    let objects = objects.as_array().context("no objects")?;
    Ok(objects.iter().filter_map(|object| Some(object["group"].as_array()?.len())).collect())
}

/// BFD watches the ways to both switches, at the pace that was agreed.
fn ensure_watched(node: &Node) -> anyhow::Result<()> {
    let neighbors: Value = serde_json::from_str(&node.exec(&["meshd", "bgp", "neighbors", "-o", "json"])?.ok()?)?;
    let neighbors = neighbors.as_array().context("no neighbors")?;
    let up = neighbors.iter().filter(|neighbor| neighbor["bfd"] == "up").count();
    ensure!(up == 2, "{up} of {} are watched", neighbors.len());
    Ok(())
}

/// Objects of the kernel that routes refer to, by id.
fn objects(node: &Node) -> anyhow::Result<BTreeSet<u64>> {
    let objects: Value = serde_json::from_str(&node.exec(&["ip", "-j", "nexthop"])?.ok()?)?;
    Ok(objects.as_array().context("no objects")?.iter().filter_map(|object| object["id"].as_u64()).collect())
}

/// How many routes of ours use objects that lead there and nowhere else.
fn routes_over(node: &Node, gateway: &str) -> anyhow::Result<u32> {
    let objects: Value = serde_json::from_str(&node.exec(&["ip", "-j", "nexthop"])?.ok()?)?;
    let objects = objects.as_array().context("no objects")?;
    let id = |object: &Value| object["id"].as_u64();
    let direct: BTreeSet<u64> = objects.iter().filter(|object| object["gateway"] == gateway).filter_map(id).collect();
    let is_there = |object: &&Value| match object["group"].as_array() {
        Some(members) => members.iter().all(|member| id(member).is_some_and(|id| direct.contains(&id))),
        None => id(object).is_some_and(|id| direct.contains(&id)),
    };
    let there: BTreeSet<u64> = objects.iter().filter(is_there).filter_map(id).collect();
    let routes = node.exec(&["ip", "-o", "-4", "route", "show", "proto", "77"])?.ok()?;
    let object = |line: &str| line.split_once("nhid ")?.1.split(' ').next()?.parse().ok();
    let count = routes.lines().filter_map(object).filter(|id| there.contains(id)).count();
    Ok(u32::try_from(count)?)
}

fn monitor(node: &Node) -> Running {
    node.spawn(&["ip", "-ts", "monitor", "nexthop"]).unwrap()
}

/// What moved the traffic was one change of an object that all routes referred to before.
fn assert_one_message(monitor: Running, before: &BTreeSet<u64>) {
    let heard = monitor.stop(Signal::SIGINT, DEADLINE).unwrap().stdout;
    let first = heard.lines().find(|line| line.contains("proto 77")).unwrap_or_else(|| panic!("nothing: {heard:?}"));
    let id = first.split_once(" id ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    assert!(id.is_some_and(|id| before.contains(&id)), "{first:?} is none of {before:?}: {heard}");
    assert!(!first.contains("10.201.0.2") && !first.contains("Deleted"), "{heard}");
    println!("the first message: {first}");
}

/// The topology as it is in `lab/topologies`: FRR, and a handful of routes.
#[test]
fn traffic_of_bgp_tor_moves_when_a_cable_dies() {
    tests::need_root();
    let name = Some(format!("failover-{}", std::process::id()));
    let lab = Lab::up("bgp-tor", &Options { name, ready_within: Some(DEADLINE), ..Options::default() }).unwrap();
    let node = |name: &str| lab.node(name).unwrap();
    let (node_1, tor) = (node("node-1"), node("tor-1"));
    let mut pairs = (Vec::new(), Vec::new());
    for flow in 0..FLOWS {
        let (out, back) = (Ipv4Addr::new(192, 0, 2, 100 + flow), Ipv4Addr::new(10, 0, 2, 100 + flow));
        for (name, address) in [("server", format!("{out}/32")), ("node-2-client", format!("{back}/32"))] {
            node(name).exec(&["ip", "address", "add", &address, "dev", "eth0"]).unwrap().ok().unwrap();
        }
        pairs.0.push((Ipv4Addr::new(10, 0, 1, 10), out));
        pairs.1.push((back, Ipv4Addr::new(10, 0, 1, 10)));
    }
    // Nobody forwards what comes from an address without a way back.
    node("node-2").exec(&["ip", "route", "add", "10.0.2.96/27", "dev", "pod-client"]).unwrap().ok().unwrap();
    until("both ways of both nodes", DEADLINE, || {
        ensure!(groups(&node_1)? == [2] && groups(&node("node-2"))? == [2], "{:?}", groups(&node_1)?);
        ensure_watched(&node_1)
    })
    .unwrap();
    let out = Flows::start(&node("node-1-client"), &node("server"), pairs.0);
    let back = Flows::start(&node("node-2-client"), &node("node-1-client"), pairs.1);
    let since = cut(&tor, "node1");
    until("the end of the session", DEADLINE, || {
        let said = node_1.exec(&["meshd", "bgp", "neighbors", "10.201.0.2", "-o", "json"])?.ok()?;
        ensure!(said.contains("BFD down"), "{said}");
        Ok(())
    })
    .unwrap();
    for flows in [&out, &back] {
        flows.wait_for_news(Instant::now());
    }
    out.assert_moved("out of the node", since);
    back.assert_moved("towards the node", since);
    // The cable works again, and nobody notices.
    let since = Instant::now();
    mend(&tor);
    until("both ways again", DEADLINE, || {
        let said = node_1.exec(&["ip", "route", "show", "192.0.2.0/24"])?.ok()?;
        ensure!(said.contains("dev eth0") && said.contains("dev eth1"), "{said}");
        Ok(())
    })
    .unwrap();
    out.wait_for_news(Instant::now());
    let silences = out.silences(since);
    assert!(silences.iter().all(|silence| *silence < SILENCE_MIN), "{silences:?}");
    drop((out, back));
    lab.down().unwrap();
}

/// The shape of `bgp-tor` with one node, and switches that have so many routes.
fn rack(routes: u32) -> Network {
    let listed = (0..routes).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "route {}/24 blackhole;", Ipv4Addr::from(0x1400_0000 + (number << 8)));
        text
    });
    let switch = |number: u8| {
        let configuration = format!(
            "router id 10.255.0.{number};
             protocol bfd {{ interface \"down\" {{ min rx interval 50 ms; min tx interval 50 ms; multiplier 3; }}; }}
             protocol static {{ ipv4;
include \"/etc/bird/routes.conf\";
             }}
             protocol bgp {{ local 10.20{number}.0.2 as 6510{number}; neighbor 10.20{number}.0.3 as 65000; bfd on; hold time 9;
               connect delay time 1; connect retry time 1;
               ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}"
        );
        Blueprint::bird(&format!("tor-{number}"), &configuration)
            .file("/etc/bird/routes.conf", &listed)
            .address(&format!("203.0.113.{number}/24"))
            .run(&format!("ip address add 10.20{number}.0.2/31 dev down"))
            .run("ip route add 20.0.0.0/7 via 203.0.113.10")
            .run(&format!("ip route add 10.0.1.0/24 via 10.20{number}.0.3"))
            .ahead()
    };
    let bgp = "  multipath: {ebgp: 2, relax: true}
  import: {accept: [20.0.0.0/7 ge 24 le 24]}
  peer_groups: {tor: {remote_as: external, bfd: {transmit_ms: 50, receive_ms: 50, multiplier: 3}}}
  peers: [{address: 10.201.0.2, group: tor}, {address: 10.202.0.2, group: tor}]
  advertise: [{pod_cidrs: true}]";
    let node =
        configurations::configuration("name: node-1, addresses: [10.255.1.1], pod_cidrs: [10.0.1.0/24]", 65_000, bgp);
    let node = Blueprint::meshd("node-1", &node)
        // What configs/sysctl.d recommends for so many routes: else each change of an object costs the kernel 150 ms.
        .run("sysctl -qw net.ipv4.nexthop_compat_mode=0")
        .run("ip address add 10.255.1.1/32 dev lo")
        .run("ip address add 10.201.0.3/31 dev up1")
        .run("ip address add 10.202.0.3/31 dev up2")
        .run("ip address add 10.0.1.1/24 dev pod");
    let client =
        Blueprint::plain("client").run("ip address add 10.0.1.10/24 dev up").run("ip route add default via 10.0.1.1");
    let server = Blueprint::plain("server").address("203.0.113.10/24").run("ip route add 10.0.1.0/24 via 203.0.113.1");
    let links = [("node-1:up1", "tor-1:down"), ("node-1:up2", "tor-2:down"), ("node-1:pod", "client:up")];
    Network::with_links(&[switch(1), switch(2), node, client, server], &links).unwrap()
}

fn neighbor(node: &Node, address: &str) -> anyhow::Result<Value> {
    let said = node.exec(&["meshd", "bgp", "neighbors", address, "-o", "json"])?.ok()?;
    serde_json::from_str::<Value>(&said)?.get(0).cloned().with_context(|| said.clone())
}

/// Who gave up whom, in the words of everybody.
fn explain(network: &Network) -> String {
    let mut told = String::new();
    for (name, questions) in [
        ("node-1", &["meshd bgp neighbors", "meshd status", "ip nexthop"][..]),
        ("tor-2", &["birdc show bfd sessions", "birdc show protocols all"]),
    ] {
        let router = network.router(name).unwrap();
        for question in questions {
            let words: Vec<&str> = question.split(' ').collect();
            let _ = writeln!(told, "-- {name}: {question}\n{:?}", router.node().exec(&words).map(|said| said.stdout));
        }
        let log = router.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let _ = writeln!(told, "-- log of {name}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    }
    told
}

fn traffic_moves(routes: u32) {
    tests::need_root();
    let network = rack(routes);
    let node = |name: &str| network.router(name).unwrap().node().clone();
    let (ours, server) = (node("node-1"), node("server"));
    // Spread over the routes, so that it is not only the first one that moves.
    let target = |flow: u8| {
        Ipv4Addr::from(0x1400_0001 + ((u32::from(flow) * (routes - 1) / u32::from(FLOWS)) << 8) + u32::from(flow))
    };
    for flow in 0..FLOWS {
        server.exec(&["ip", "address", "add", &format!("{}/32", target(flow)), "dev", "lo"]).unwrap().ok().unwrap();
    }
    network
        .router("node-1")
        .unwrap()
        .wait("all routes", || {
            let status: Value = serde_json::from_str(&ours.exec(&["meshd", "status", "-o", "json"])?.stdout)?;
            ensure!(status["routes"]["installed"] == routes && groups(&ours)? == [2], "{status} {:?}", groups(&ours)?);
            ensure_watched(&ours)
        })
        .unwrap();
    let pairs = (0..FLOWS).map(|flow| (Ipv4Addr::new(10, 0, 1, 10), target(flow))).collect();
    let flows = Flows::start(&node("client"), &server, pairs);
    let (before, heard) = (objects(&ours).unwrap(), monitor(&ours));
    let since = cut(&node("tor-1"), "down");
    // Whatever else has to be done for that many routes is done without hurry, and the traffic does not notice it.
    network
        .router("node-1")
        .unwrap()
        .wait("nothing over the dead cable", || {
            let left = ours.exec(&["ip", "-j", "nexthop"])?.ok()?;
            ensure!(!left.contains("10.201.0.2"), "{left}");
            Ok(())
        })
        .unwrap();
    println!("{routes} routes: nothing over the dead cable after {:?}", since.elapsed());
    flows.wait_for_news_or(Instant::now(), || explain(&network));
    let healthy = neighbor(&ours, "10.202.0.2").unwrap();
    assert_eq!(healthy["established_count"], 1, "the other session ended too: {healthy}\n{}", explain(&network));
    flows.assert_moved(&format!("{routes} routes"), since);
    if routes > BATCH {
        assert_one_message(heard, &before);
    }
    // While routes go from the group to the object that is left, a list of them has neither all nor each once.
    network
        .router("node-1")
        .unwrap()
        .wait("all routes over the other cable", || {
            let there = routes_over(&ours, "10.202.0.2")?;
            ensure!(there == routes, "{there} of {routes}\n{}", explain(&network));
            Ok(())
        })
        .unwrap();
    drop(flows);
    network.down().unwrap();
}

#[test]
fn traffic_of_one_route_moves_when_a_cable_dies() {
    traffic_moves(1);
}

#[test]
fn traffic_of_a_hundred_thousand_routes_moves_as_fast() {
    traffic_moves(100_000);
}
