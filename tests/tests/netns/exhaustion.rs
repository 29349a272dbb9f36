//! What happens when there is no more room: who comes is refused, that is counted and said, and whoever is there goes on.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use lab::Node;
use meshd_abi::{BPFFS_FOLDER, LINKS};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use super::{
    meshes::eventually,
    service_traffic::{WEST_SERVICE, Webpods, ask, backends, echo, greeted, packets, up, wait_open},
    services::{ALL_BACKENDS, EAST, NODES, Services, WEST},
};

/// The node whose room is used up.
const NODE: &str = "west-worker";
/// Its configuration up to where sizes are said.
const SECTION: &str = "services:\n  enabled: true\n";
/// How long a connection that may be refused is waited for. What is refused is not answered.
const BRIEF: Duration = Duration::from_millis(200);
/// Connections that must be refused when there is no room.
const REFUSED: u64 = 10;
/// Connections that were refused when a table is taken for full.
const FOUND_FULL: u64 = 30;

/// Restarts the node with something more in its section of services.
fn restart_with(lab: &Services, more: &str) {
    lab.edit(&[NODE], SECTION, &format!("{SECTION}{more}"));
    lab.mesh.daemon(NODE).restart().expect("restarted");
}

/// `used` and `room` of a map, as `status` shows them.
fn map(lab: &Services, name: &str) -> (u64, u64) {
    let status = lab.mesh.ask(NODE, &["status"]);
    let maps = status["datapath"]["maps"].as_array().cloned().unwrap_or_default();
    let map = maps.into_iter().find(|map| map["name"] == name).unwrap_or(Value::Null);
    (map["used"].as_u64().unwrap_or(0), map["room"].as_u64().unwrap_or(0))
}

/// A counter as Prometheus gets it.
fn metric(lab: &Services, reason: &str) -> u64 {
    let socket = ["curl", "-s", "--unix-socket", "/run/meshd/meshd.sock", "http://node/metrics"];
    let text = lab.mesh.node(NODE).exec(&socket).and_then(lab::Output::ok).expect("metrics");
    let name = format!("meshd_datapath_packets_total{{reason=\"{reason}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().expect("a count"))
}

/// What `status` says of a component that has a problem.
fn problem(lab: &Services, component: &str) -> Option<String> {
    let status = lab.mesh.ask(NODE, &["status"]);
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    let found = problems.into_iter().find(|problem| problem["component"] == component)?;
    found["message"].as_str().map(str::to_owned)
}

fn try_open(from: &Node, to: SocketAddr) -> Option<TcpStream> {
    from.within(|| TcpStream::connect_timeout(&to, BRIEF)).expect("inside").ok()
}

/// Demands that everybody who is there goes on, that whoever comes is refused, and that both are seen. At most `taken` of those who
/// come may find a place that nobody else could have.
fn refuses(lab: &Services, from: &Node, to: SocketAddr, held: &mut Vec<TcpStream>, (reason, taken): (&str, u64)) {
    let before = [packets(lab, NODE, reason), metric(lab, reason)];
    let (mut refused, mut more) = (0, 0);
    while refused < REFUSED {
        match try_open(from, to) {
            Some(mut stream) => {
                greeted(&mut stream);
                held.push(stream);
                more += 1;
            }
            None => refused += 1,
        }
        assert!(more <= taken, "{to} takes {more} more from {}, and refused {refused}", from.name());
        for stream in held.iter_mut() {
            echo(stream, b"unharmed").expect("what is open goes on");
        }
    }
    let has_moved = || {
        let after = [packets(lab, NODE, reason), metric(lab, reason)];
        after.iter().zip(before).all(|(after, before)| *after >= before + REFUSED)
    };
    assert!(eventually(has_moved), "{before:?} {reason}: {}", lab.mesh.ask(NODE, &["status"])["datapath"]["packets"]);
}

#[test]
fn a_full_table_of_connections_is_a_problem_and_breaks_nothing_that_is_open() {
    const COMPONENT: &str = "datapath/connections";
    let (lab, webpods) = up();
    restart_with(&lab, "  maps: {connections: 1024}\n");
    let room = || map(&lab, "connections_ipv4").1;
    assert!(eventually(|| room() == 1024), "{}", lab.mesh.ask(NODE, &["status"])["datapath"]);
    lab.wait(&[NODE], &ALL_BACKENDS);
    let client = lab.mesh.node("west-worker-client");
    let to: SocketAddr = WEST_SERVICE.parse().expect("an address");
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("as many files as may be");
    // Two entries for each, and places for twice as many as are asked for: the last of them find few.
    let mut held = Vec::new();
    let mut refused = 0;
    let is_full = eventually(|| {
        match try_open(&client, to) {
            Some(mut stream) => {
                greeted(&mut stream);
                held.push(stream);
            }
            None => refused += 1,
        }
        refused == FOUND_FULL || held.len() > 1_024
    });
    assert!(is_full && (512..=1_024).contains(&held.len()), "{} connections in 1,024 entries", held.len());
    refuses(&lab, &client, to, &mut held, ("no_connection", 10 * REFUSED));
    let is_said = || problem(&lab, COMPONENT).is_some_and(|text| text.contains("is full"));
    assert!(eventually(is_said), "{}", lab.mesh.ask(NODE, &["status"])["problems"]);
    let message = problem(&lab, COMPONENT).expect("it is there");
    assert!(message.contains("raise services.maps.connections"), "{message}");
    // There is room again when they go, and a flush makes it at once, also of what the programs remember.
    drop(held);
    let node = lab.mesh.node(NODE);
    let pin = format!("bpftool -j map lookup pinned {BPFFS_FOLDER}/*/EPOCH key 0 0 0 0");
    let epoch = || node.exec(&["sh", "-c", &pin]).and_then(lab::Output::ok).expect("bpftool runs");
    let before = epoch();
    let flushed = node.exec(&["meshd", "bpf", "ct", "flush", "--force"]).expect("meshd runs").ok().expect("flushed");
    assert!(flushed.contains("entries removed"), "{flushed}");
    assert_ne!(epoch(), before);
    wait_open(&lab, &client, WEST_SERVICE);
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn ports_that_are_used_up_are_a_problem_of_their_destination_and_break_nothing_that_is_open() {
    /// As few as a node may have.
    const PORTS: u64 = 64;
    /// The one backend that is asked.
    const BACKEND: &str = "10.0.0.10";
    const COMPONENT: &str = "datapath/ports";
    /// Where it is said that the kernel may give them to others.
    const LOCAL: &str = "datapath/local-ports";
    let lab = Services::up();
    lab.wait(&NODES, &ALL_BACKENDS);
    let webpods = Webpods::start(&lab);
    lab.open_node_port(&WEST, &[]);
    for nodes in [&EAST[..], &[NODE]] {
        lab.edit(nodes, "labels: {app: webpod}", "labels: {app: other}");
    }
    restart_with(&lab, "  snat_ports: 40000-40063\n");
    lab.wait_used(&[NODE], &[BACKEND]);
    let (outside, inside) = (lab.mesh.node("east-worker"), lab.mesh.node("west-worker-client"));
    let to: SocketAddr = "172.18.0.5:30080".parse().expect("an address");
    let only = || try_open(&outside, to).is_some() && map(&lab, "snat_ports").1 == PORTS;
    assert!(eventually(only), "{}", lab.mesh.log(NODE));
    // The kernel may give them to sockets of the node, until they are reserved.
    let message = problem(&lab, LOCAL).expect("it is there");
    let reserve = "net.ipv4.ip_local_reserved_ports=40000-40063";
    assert!(message.contains("64 ports of services.snat_ports") && message.ends_with(reserve), "{message}");
    lab.mesh.node(NODE).exec(&["sysctl", "-w", reserve]).and_then(lab::Output::ok).expect("reserved");
    assert!(eventually(|| problem(&lab, LOCAL).is_none()), "{:?}", problem(&lab, LOCAL));
    // A port is found by trying some of them, so the last ones take patience; so do those of connections that were closed.
    let mut held = Vec::new();
    let is_used_up = eventually(|| {
        if let Some(mut stream) = try_open(&outside, to) {
            let (own, client) = greeted(&mut stream);
            assert_eq!((own.to_string(), client.to_string()), (BACKEND.to_owned(), "172.18.0.5".to_owned()));
            held.push(stream);
        }
        held.len() as u64 == PORTS
    });
    assert!(is_used_up, "{} of {PORTS} ports: {}", held.len(), lab.mesh.ask(NODE, &["status"])["datapath"]);
    refuses(&lab, &outside, to, &mut held, ("no_port", 0));
    assert!(eventually(|| map(&lab, "snat_ports") == (PORTS, PORTS)), "{:?}", map(&lab, "snat_ports"));
    let towards = format!("{BACKEND}:80/tcp ({PORTS} of {PORTS})");
    let is_said = || problem(&lab, COMPONENT).is_some_and(|text| text.contains(&towards));
    assert!(eventually(is_said), "{}", lab.mesh.ask(NODE, &["status"])["problems"]);
    let message = problem(&lab, COMPONENT).expect("it is there");
    assert!(message.contains("were refused") && message.contains("widen services.snat_ports"), "{message}");
    // A workload keeps its own address, and needs none of them.
    assert_eq!(backends(&ask(&inside, WEST_SERVICE, 20)), [BACKEND]);
    // So does who talks to another backend: there are as many ports to each.
    lab.edit(&["east-control-plane"], "labels: {app: other}", "labels: {app: webpod}");
    let mut other = open_to_another(&lab, &outside, to, BACKEND);
    echo(&mut other, b"unharmed").expect("it goes on");
    lab.edit(&["east-control-plane"], "labels: {app: webpod}", "labels: {app: other}");
    lab.wait_used(&[NODE], &[BACKEND]);
    // Half of them go, and whoever comes gets theirs.
    held.truncate(held.len() / 2);
    assert!(eventually(|| try_open(&outside, to).is_some()), "{}", lab.mesh.ask(NODE, &["status"])["datapath"]);
    for stream in &mut held {
        echo(stream, b"unharmed").expect("what is open goes on");
    }
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn an_uplink_without_a_place_in_the_table_of_links_is_named_and_left_to_tc() {
    const COMPONENT: &str = "datapath";
    const SAID: &str = "XDP does nothing on far0, TC does all of it: eth0 has its place";
    let (lab, webpods) = up();
    lab.open_node_port(&WEST, &[]);
    let node = lab.mesh.node(NODE);
    let run = |words: &[&str]| node.exec(words).and_then(lab::Output::ok).expect("ip runs");
    let index = node.within(|| nix::net::if_::if_nametoindex("eth0")).expect("inside").expect("a link") + LINKS;
    run(&["ip", "link", "add", "far0", "index", &index.to_string(), "type", "veth", "peer", "name", "far1"]);
    run(&["ip", "link", "set", "far0", "up"]);
    run(&["ip", "link", "set", "far1", "up"]);
    restart_with(&lab, "  xdp: on\n  uplinks: [eth0, far0]\n");
    let is_said = || problem(&lab, COMPONENT).is_some_and(|text| text.contains(SAID));
    assert!(eventually(is_said), "{}\n{}", lab.mesh.ask(NODE, &["status"])["problems"], lab.mesh.log(NODE));
    // Both have their programs, and whoever comes by the first is served.
    let status = lab.mesh.ask(NODE, &["status"]);
    let programs = status["datapath"]["programs"].as_array().cloned().unwrap_or_default();
    for link in ["eth0", "far0"] {
        assert_eq!(programs.iter().filter(|program| program["link"] == link).count(), 3, "{programs:?}");
    }
    let outside = lab.mesh.node("east-worker");
    // A veth brings packets whose sums are still to be computed, which XDP cannot see.
    outside.exec(&["ethtool", "-K", "eth0", "tx", "off"]).and_then(lab::Output::ok).expect("sums");
    wait_open(&lab, &outside, "172.18.0.5:30080");
    assert_eq!(backends(&ask(&outside, "172.18.0.5:30080", 60)), ALL_BACKENDS);
    run(&["ip", "link", "del", "far0"]);
    assert!(eventually(|| problem(&lab, COMPONENT).is_none()), "{:?}", problem(&lab, COMPONENT));
    webpods.stop();
    lab.mesh.finish();
}

/// Opens a connection that another backend than this one answers.
fn open_to_another(lab: &Services, from: &Node, to: SocketAddr, not: &str) -> TcpStream {
    let mut found = None;
    let is = eventually(|| {
        found = try_open(from, to).and_then(|mut stream| (greeted(&mut stream).0.to_string() != not).then_some(stream));
        found.is_some()
    });
    assert!(is, "nobody but {not} answers: {}", lab.mesh.log(NODE));
    found.expect("it is there")
}
