//! ICMP errors about packets that were translated on their way: whoever sent them is told in the words it used, and its kernel believes it.
//!
//! Nothing here looks at the errors themselves. A kernel takes an error only for a connection or socket of its own whose addresses
//! and ports are those in the error, so what it has learned says that all of them were right.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use lab::Node;
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::Ipv4RecvErr},
};

use super::{
    direct_return::{ASKED, CLIENT, REMOTE, reach},
    meshes::eventually,
    service_traffic::{WEST_SERVICE, Webpods, ask, echo, open},
    services::{ALL_BACKENDS, EAST, NODES, Services, WEST},
};

/// The node that translates.
const NODE: &str = "west-worker";
/// The same service as [`ASKED`], by datagrams.
const ASKED_UDP: &str = "172.18.0.5:30081";
/// An address outside of the mesh, and a port that repeats what it is told.
const OUTSIDE: &str = "203.0.113.9:7";
/// What the way takes behind the node that translates.
const NARROW: u32 = 1_300;
/// What is too long for that one only, also with a note of direct server return.
const BETWEEN: u32 = 1_400;
/// What all others take.
const WIDE: u32 = 1_500;
/// Octets of many packets.
const LARGE: usize = 60_000;
/// How long an error or an answer may be under way.
const SOON: Duration = Duration::from_millis(500);

fn run(lab: &Services, node: &str, command: &str) -> String {
    let output = lab.mesh.node(node).exec(&["sh", "-c", command]).expect("a shell");
    output.ok().unwrap_or_else(|error| panic!("{command} on {node}: {error}"))
}

/// What a kernel believes that the path to an address takes; `None`: what the link does.
fn learned(lab: &Services, node: &str, to: &str) -> Option<u32> {
    let host = to.split(':').next().expect("an address");
    let route = run(lab, node, &format!("ip route get {host}"));
    route.split("mtu ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// Demands that octets of many packets pass over a connection, and that the client's kernel has learned this size.
fn assert_tcp(lab: &Services, from: &str, to: &str, size: Option<u32>, when: &str) {
    assert_learned(lab, from, to, size, when, || {
        let mut stream = open(&lab.mesh.node(from), to).0;
        echo(&mut stream, &vec![7; LARGE]).unwrap_or_else(|error| panic!("{when}: {error}"));
    });
}

/// The same with datagrams in packets of this length that must not be fragmented on their way: the first ones get lost, and those after the
/// error, which the client fragments itself, are answered.
fn assert_udp(lab: &Services, from: &str, to: &str, length: u32, size: u32, when: &str) {
    let large = vec![7; length as usize - 28];
    assert_learned(lab, from, to, Some(size), when, || {
        let asks = lab.mesh.node(from).within(|| UdpSocket::bind("0.0.0.0:0").expect("bind")).expect("inside");
        asks.connect(to).expect("a socket with one peer");
        asks.set_read_timeout(Some(SOON)).expect("a timeout");
        let is_answered = || asks.send(&large).is_ok() && asks.recv(&mut [0; 64]).is_ok();
        assert!(eventually(is_answered), "{when}: no answer to datagrams");
    });
}

/// Asks until the client's kernel has learned this size by it: another form of direct return begins a moment after the daemon.
fn assert_learned(lab: &Services, from: &str, to: &str, size: Option<u32>, when: &str, ask: impl Fn()) {
    let mut known = None;
    let is = || {
        run(lab, from, "ip route flush cache");
        ask();
        known = learned(lab, from, to);
        known == size
    };
    let packets = || lab.mesh.ask(NODE, &["status"])["datapath"]["packets"].clone();
    assert!(eventually(is), "{when}: {known:?} and not {size:?}; {}", packets());
}

/// Demands that a datagram that may be forwarded so often does not arrive, and that its sender is told so.
fn assert_exceeded(from: &Node, to: &str, hops: u32) {
    let socket = from.within(|| UdpSocket::bind("0.0.0.0:0").expect("bind")).expect("inside");
    socket.connect(to).expect("a socket with one peer");
    setsockopt(&socket, Ipv4RecvErr, &true).expect("errors are asked for");
    socket.set_ttl(hops).expect("a limit");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut said = Vec::new();
    let is_told = || {
        // An error that came since the last call is told by whatever call is next.
        let told = [socket.send(b"?").err(), socket.recv(&mut [0; 64]).err()];
        said = told.iter().flatten().filter_map(std::io::Error::raw_os_error).map(Errno::from_raw).collect();
        said.contains(&Errno::EHOSTUNREACH)
    };
    assert!(eventually(is_told), "{to} after {hops} hops: {said:?}");
}

/// Repeats what it is told, once.
fn repeat_once(node: &Node) -> thread::JoinHandle<()> {
    let at: SocketAddr = OUTSIDE.parse().expect("an address");
    let listener = node.within(|| TcpListener::bind(at)).expect("inside").expect("listen");
    thread::spawn(move || {
        let (mut stream, client) = listener.accept().expect("a client");
        // As those of services do: who it is, and whom it sees.
        writeln!(stream, "{} {}", at.ip(), client.ip()).expect("greeted");
        let mut octets = vec![0; LARGE];
        stream.read_exact(&mut octets).expect("all of it");
        stream.write_all(&octets).expect("answered");
    })
}

#[test]
fn errors_about_translated_packets_are_told_to_who_sent_them() {
    let lab = Services::up();
    lab.wait(&NODES, &ALL_BACKENDS);
    let webpods = Webpods::start(&lab);
    let udp = "{name: dns, protocol: udp, port: 80}";
    lab.add_port(&EAST, udp);
    lab.open_node_port(&WEST, &["{name: dns, protocol: udp, port: 80, node_port: 30081}"]);
    lab.edit(&[NODE], "services:\n  enabled: true\n", "masquerade: {enabled: true}\nservices:\n  enabled: true\n");
    // One backend only, on west's other node.
    lab.edit(&EAST, "labels: {app: webpod}", "labels: {app: other}");
    lab.edit(&[NODE], "labels: {app: webpod}", "labels: {app: other}");
    lab.mesh.daemon(NODE).restart().expect("restarted");
    lab.wait_used(&[NODE], &[REMOTE]);
    let (client, pod) = (lab.mesh.node("east-worker"), lab.mesh.node("west-worker-client"));
    reach(&lab, &client);
    // Segments that travel as one packet are cut into such as fit, and nobody has to be told.
    run(&lab, "east-worker", "ethtool -K eth0 tso off gso off gro off");
    run(&lab, NODE, "ethtool -K eth0 gro off");
    let narrow =
        |mtu| drop(run(&lab, "west-control-plane", &format!("ip route replace 10.0.0.10 dev pod-webpod mtu {mtu}")));

    // Behind a translated source, to a client outside; and to a pod that knows the service's address only.
    narrow(NARROW);
    let is_seen_as = |seen: &str| ask(&client, ASKED, 1).contains_key(&(REMOTE.to_owned(), seen.to_owned()));
    assert!(eventually(|| is_seen_as("172.18.0.5")));
    assert_tcp(&lab, "east-worker", ASKED, Some(NARROW), "snat");
    assert_udp(&lab, "east-worker", ASKED_UDP, BETWEEN, NARROW, "snat");
    assert_tcp(&lab, "west-worker-client", WEST_SERVICE, Some(NARROW), "a service of the cluster");
    assert_exceeded(&pod, WEST_SERVICE, 2);
    assert_exceeded(&client, ASKED_UDP, 2);

    // What leaves the mesh by the node's address.
    run(&lab, "east-worker-client", "ip addr add 203.0.113.9/32 dev lo");
    run(&lab, "east-worker", &format!("ip route add 203.0.113.9 dev pod-client mtu {NARROW}"));
    run(&lab, NODE, "ip route add 203.0.113.9 via 172.18.0.2");
    let by = || lab.mesh.ask(NODE, &["status"])["masquerade"]["by"] == "programs";
    assert!(eventually(by), "{}", lab.mesh.ask(NODE, &["status"])["masquerade"]);
    let repeats = repeat_once(&lab.mesh.node("east-worker-client"));
    assert_tcp(&lab, "west-worker-client", OUTSIDE, Some(NARROW), "masquerade");
    repeats.join().expect("it ends in order");
    assert_exceeded(&pod, OUTSIDE, 2);
    let traced = pod.exec(&["ping", "-n", "-c", "1", "-t", "2", "-W", "2", "203.0.113.9"]).expect("ping runs").stdout;
    assert!(traced.contains("From 172.18.0.2 icmp_seq=1 Time to live exceeded"), "{traced}");

    // A backend's node behind direct return, and the node before it, which has something to add to packets.
    lab.with_each_form(&WEST, &[REMOTE], |form| {
        assert!(eventually(|| is_seen_as(CLIENT)), "{form}: {:?}", ask(&client, ASKED, 1));
        narrow(NARROW);
        assert_tcp(&lab, "east-worker", ASKED, Some(NARROW), form);
        assert_udp(&lab, "east-worker", ASKED_UDP, BETWEEN, NARROW, form);
        narrow(WIDE);
        // The option is in what opens a connection and in all datagrams.
        let (tcp, udp) = match form {
            "option" => (None, WIDE - 8),
            "ipip" => (Some(WIDE - 28), WIDE - 28),
            _ => (Some(WIDE - 62), WIDE - 62),
        };
        assert_tcp(&lab, "east-worker", ASKED, tcp, form);
        assert_udp(&lab, "east-worker", ASKED_UDP, WIDE, udp, form);
    });
    webpods.stop();
    lab.mesh.finish();
}
