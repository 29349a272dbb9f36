//! The story of `webpod`, a service of two clusters: what happens to it while the clusters do not hear each other, who stays with whom,
//! and that all nodes choose alike.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use lab::Node;
use socket2::{Domain, Socket, Type};

use super::{
    meshes::{eventually, eventually_within},
    service_traffic::{PATIENCE, WEST_SERVICE, ask, ask_udp, assert_seen, backends, greeted, up, wait_open},
    services::{ALL_BACKENDS, EAST, EAST_BACKENDS, REMOTE_TIMEOUT, WEST, WEST_BACKENDS},
};

/// The address of the load balancer, which outsiders reach by way of either node of west.
const BALANCER: &str = "198.51.100.80:80";
/// `webpod` in east.
const EAST_SERVICE: &str = "10.3.0.80:80";
const ONE_PORT: &str = "      ports: [{name: http, port: 80}]\n";

/// Waits until connections meet these backends and no others.
fn meets(from: &Node, to: &str, expected: &[&str]) {
    let is = || backends(&ask(from, to, 60)) == expected;
    assert!(eventually(is), "{} meets {:?}", from.name(), ask(from, to, 60));
}

#[test]
fn clusters_that_do_not_hear_each_other_use_their_own_backends() {
    let (lab, webpods) = up();
    let clients = ["west-worker-client", "east-worker-client"].map(|client| lab.mesh.node(client));
    let services = [WEST_SERVICE, EAST_SERVICE];
    for (client, service) in clients.iter().zip(services) {
        meets(client, service, &ALL_BACKENDS);
    }
    // Nothing of the other cluster arrives, neither of its nodes nor of its workloads.
    for node in WEST {
        let rule = "ip saddr { 172.18.0.2, 172.18.0.3, 10.1.0.0/16 } drop";
        let table = format!("table inet cut {{ chain cut {{ type filter hook prerouting priority -400; {rule}; }}; }}");
        lab.mesh.node(node).exec(&["nft", &table]).and_then(lab::Output::ok).expect("cut");
    }
    // Connections to stores would notice by themselves, after 40 s of silence.
    for (nodes, others) in [(WEST, ["172.18.0.2", "172.18.0.3"]), (EAST, ["172.18.0.4", "172.18.0.5"])] {
        for node in nodes {
            let end = ["ss", "-K", "dst", others[0], "or", "dst", others[1]];
            lab.mesh.node(node).exec(&end).and_then(lab::Output::ok).expect("ended");
        }
    }
    for (node, own) in
        WEST.into_iter().map(|node| (node, WEST_BACKENDS)).chain(EAST.into_iter().map(|node| (node, EAST_BACKENDS)))
    {
        let own: BTreeSet<String> = own.into_iter().map(str::to_owned).collect();
        let is = eventually_within(REMOTE_TIMEOUT * 6, || lab.used(node) == own);
        assert!(is, "{node} uses {:?}", lab.used(node));
    }
    for ((client, service), own) in clients.iter().zip(services).zip([WEST_BACKENDS, EAST_BACKENDS]) {
        meets(client, service, &own);
        let answers = ask(client, service, 200);
        assert_eq!(backends(&answers), own, "nobody tries the other cluster any more: {answers:?}");
    }
    for node in WEST {
        lab.mesh.node(node).exec(&["nft", "delete", "table", "inet", "cut"]).and_then(lab::Output::ok).expect("healed");
    }
    lab.wait_used(&WEST, &ALL_BACKENDS);
    lab.wait_used(&EAST, &ALL_BACKENDS);
    for (client, service) in clients.iter().zip(services) {
        meets(client, service, &ALL_BACKENDS);
    }
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn a_client_keeps_its_backend_as_long_as_there_is_one() {
    let (lab, webpods) = up();
    let section = "      selector: {app: webpod}\n";
    lab.edit(&WEST, section, &format!("{section}      session_affinity_s: 600\n"));
    let (client, outside) = (lab.mesh.node("west-worker-client"), lab.mesh.node("east-worker"));
    let only = |from: &Node, to: &str| {
        let answers = ask(from, to, 60);
        let found = backends(&answers);
        (found.len() == 1).then(|| found[0].to_owned())
    };
    let mut chosen = None;
    let is_kept = || {
        chosen = only(&client, WEST_SERVICE);
        chosen.is_some()
    };
    assert!(eventually(is_kept), "{:?}", ask(&client, WEST_SERVICE, 60));
    let chosen = chosen.expect("one");
    // The next daemon knows it as well, and so does the one after a kill.
    lab.mesh.daemon("west-worker").kill9().expect("killed");
    assert_eq!(only(&client, WEST_SERVICE).as_ref(), Some(&chosen), "while nobody runs");
    lab.mesh.daemon("west-worker").start().expect("started");
    lab.wait(&["west-worker"], &ALL_BACKENDS);
    assert_eq!(only(&client, WEST_SERVICE).as_ref(), Some(&chosen), "after a restart");
    // Its backend goes: another one is kept, also when the first is back.
    let at = ALL_BACKENDS.iter().position(|backend| **backend == chosen).expect("one of them");
    let node = [WEST[0], WEST[1], EAST[0], EAST[1]][at];
    lab.edit(&[node], "labels: {app: webpod}", "labels: {app: other}");
    let mut next = None;
    let has_moved = || {
        next = only(&client, WEST_SERVICE).filter(|next| *next != chosen);
        next.is_some()
    };
    assert!(eventually(has_moved), "{:?}", ask(&client, WEST_SERVICE, 60));
    lab.edit(&[node], "labels: {app: other}", "labels: {app: webpod}");
    lab.wait_used(&["west-worker"], &ALL_BACKENDS);
    assert_eq!(only(&client, WEST_SERVICE), next);

    // A client from outside keeps its own.
    lab.open_node_port(&WEST, &[]);
    wait_open(&lab, &outside, "172.18.0.5:30080");
    assert!(only(&outside, "172.18.0.5:30080").is_some(), "{:?}", ask(&outside, "172.18.0.5:30080", 60));
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn a_client_has_the_same_backend_on_every_node_when_the_source_alone_decides() {
    let (lab, webpods) = up();
    let balancer =
        format!("      type: load_balancer\n      load_balancer_ips: [198.51.100.80]\n      hash: source\n{ONE_PORT}");
    lab.edit(&WEST, ONE_PORT, &balancer);
    let outside = lab.mesh.node("east-worker");
    let to: SocketAddr = BALANCER.parse().expect("an address");
    // Another address is another client, and some of them meet another backend.
    let sources: Vec<IpAddr> = (110..130).map(|last| [172, 18, 0, last].into()).collect();
    for source in &sources {
        outside
            .exec(&["ip", "addr", "add", &format!("{source}/32"), "dev", "lo"])
            .and_then(lab::Output::ok)
            .expect("added");
    }
    let mut chosen: Vec<Vec<IpAddr>> = Vec::new();
    for gateway in ["172.18.0.4", "172.18.0.5"] {
        let route = ["ip", "route", "replace", "198.51.100.80", "via", gateway];
        outside.exec(&route).and_then(lab::Output::ok).expect("a route");
        wait_open(&lab, &outside, BALANCER);
        let of = |source: &IpAddr| {
            let met: BTreeSet<IpAddr> =
                (40_101..40_109).map(|port| asked_as(&outside, (*source, port).into(), to)).collect();
            assert_eq!(met.len(), 1, "{source} by {gateway}: {met:?}");
            met.into_iter().next().expect("one")
        };
        chosen.push(sources.iter().map(of).collect());
    }
    assert_eq!(chosen[0], chosen[1]);
    let backends: BTreeSet<&IpAddr> = chosen[0].iter().collect();
    assert_eq!(backends.len(), ALL_BACKENDS.len(), "{:?}", chosen[0]);
    webpods.stop();
    lab.mesh.finish();
}

/// Who answers a connection from this very port. It is closed at once, so that the port can be used again.
fn asked_from(from: &Node, port: u16, to: SocketAddr) -> IpAddr {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    asked_as(from, SocketAddr::new(any, port), to)
}

/// The same from an address.
fn asked_as(from: &Node, source: SocketAddr, to: SocketAddr) -> IpAddr {
    let connect = || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&source.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        std::io::Result::Ok(TcpStream::from(socket))
    };
    let mut stream = from.within(connect).expect("inside").unwrap_or_else(|error| panic!("{source} to {to}: {error}"));
    greeted(&mut stream).0
}

#[test]
fn two_nodes_choose_the_same_backend_for_the_same_connection() {
    let (lab, webpods) = up();
    let balancer = format!("      type: load_balancer\n      load_balancer_ips: [198.51.100.80]\n{ONE_PORT}");
    lab.edit(&WEST, ONE_PORT, &balancer);
    let outside = lab.mesh.node("east-worker");
    let to: SocketAddr = BALANCER.parse().expect("an address");
    let by = |gateway: &str| {
        let route = ["ip", "route", "replace", "198.51.100.80", "via", gateway];
        outside.exec(&route).and_then(lab::Output::ok).expect("a route");
    };
    let ports = 40_001..40_061;
    let mut chosen: Vec<Vec<IpAddr>> = Vec::new();
    for gateway in ["172.18.0.4", "172.18.0.5"] {
        by(gateway);
        wait_open(&lab, &outside, BALANCER);
        chosen.push(ports.clone().map(|port| asked_from(&outside, port, to)).collect());
    }
    assert_eq!(chosen[0], chosen[1]);
    let backends: BTreeSet<&IpAddr> = chosen[0].iter().collect();
    assert_eq!(backends.len(), ALL_BACKENDS.len(), "{backends:?}");
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn datagrams_to_a_node_port_are_answered_with_and_without_translated_sources() {
    const ASKED: &str = "172.18.0.5:30081";
    let (lab, webpods) = up();
    lab.add_port(&EAST, "{name: dns, protocol: udp, port: 80}");
    lab.open_node_port(&WEST, &["{name: dns, protocol: udp, port: 80, node_port: 30081}"]);
    let outside = lab.mesh.node("east-worker");
    let all = || backends(&ask_udp(&outside, ASKED, 60)) == ALL_BACKENDS;
    wait_open(&lab, &outside, "172.18.0.5:30080");
    assert!(eventually(all), "{:?}", ask_udp(&outside, ASKED, 60));
    let seen = |when: &str, of: &dyn Fn(&str) -> &'static str| {
        assert_seen(when, &ask_udp(&outside, ASKED, 120), &ALL_BACKENDS, of);
    };
    let (client, node) = ("172.18.0.2", "172.18.0.5");
    seen("snat", &|own| if own == "10.0.1.10" { client } else { node });
    lab.with_each_form(&WEST, &ALL_BACKENDS, |form| {
        let direct = || ask_udp(&outside, ASKED, 60).contains_key(&("10.0.0.10".to_owned(), client.to_owned()));
        assert!(eventually(direct), "{form}: {:?}", ask_udp(&outside, ASKED, 60));
        seen(form, &|own| if own.starts_with("10.0.") { client } else { node });
    });
    webpods.stop();
    lab.mesh.finish();
}
