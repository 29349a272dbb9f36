//! Connections through services: real sockets in the pods of the west/east lab, translated by the kernel's programs.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lab::Node;
use serde_json::Value;

use super::{
    meshes::eventually,
    services::{ALL_BACKENDS, EAST, EAST_BACKENDS, NODES, Services, WEST, WEST_BACKENDS},
};

/// How long a connection may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Address of `webpod` in west.
pub(super) const WEST_SERVICE: &str = "10.2.0.80:80";
/// The same in east.
const EAST_SERVICE: &str = "10.3.0.80:80";

/// Servers in the four webpods: each says who it is and whom it sees, and then repeats what it is told.
pub(super) struct Webpods {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Webpods {
    pub(super) fn start(lab: &Services) -> Self {
        let addresses = ["10.0.0.10", "10.0.1.10", "10.1.0.10", "10.1.1.10"];
        let places =
            NODES.into_iter().zip(addresses).map(|(node, address)| (node, address.parse().expect("an address")));
        Self::start_at(lab, places)
    }

    /// Starts them in the webpods of nodes.
    pub(super) fn start_at<'a>(lab: &Services, places: impl IntoIterator<Item = (&'a str, IpAddr)>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (node, address) in places {
            let pod = lab.mesh.node(&format!("{node}-webpod"));
            let at = SocketAddr::new(address, 80);
            let (tcp, udp) = pod
                .within(|| (TcpListener::bind(at).expect("listen"), UdpSocket::bind(at).expect("bind")))
                .expect("inside of the pod");
            tcp.set_nonblocking(true).expect("not blocking");
            udp.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            let ended = stop.clone();
            threads.push(thread::spawn(move || serve_tcp(&tcp, at.ip(), &ended)));
            let ended = stop.clone();
            threads.push(thread::spawn(move || serve_udp(&udp, at.ip(), &ended)));
        }
        Self { stop, threads }
    }

    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a server ends in order");
        }
    }
}

fn greeting(own: IpAddr, client: IpAddr) -> String {
    format!("{own} {client}\n")
}

fn serve_tcp(listener: &TcpListener, own: IpAddr, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, client)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        stream.set_nonblocking(false).expect("blocking");
        thread::spawn(move || {
            // A client that goes away has what it wanted.
            let _gone = stream.write_all(greeting(own, client.ip()).as_bytes());
            let mut buffer = [0; 64];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
    }
}

fn serve_udp(socket: &UdpSocket, own: IpAddr, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        let Ok((_, client)) = socket.recv_from(&mut buffer) else { continue };
        // From no port: the kernel ended the client's socket while it was sending, and such a datagram wants no answer (RFC 768).
        if client.port() != 0 {
            socket.send_to(greeting(own, client.ip()).as_bytes(), client).expect("answered");
        }
    }
}

/// Opens a connection from inside of a node or pod; returns it with who answered and whom that one saw.
pub(super) fn open(from: &Node, to: &str) -> (TcpStream, IpAddr, IpAddr) {
    let to: SocketAddr = to.parse().expect("an address");
    let mut stream = from
        .within(|| TcpStream::connect_timeout(&to, PATIENCE))
        .expect("inside")
        .unwrap_or_else(|error| panic!("{} reaches {to}: {error}", from.name()));
    let (own, client) = greeted(&mut stream);
    (stream, own, client)
}

/// Who is at the other end of a connection, and whom that one sees.
pub(super) fn greeted(stream: &mut TcpStream) -> (IpAddr, IpAddr) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("a greeting");
        line.push(byte[0]);
    }
    two_addresses(&String::from_utf8(line).expect("text"))
}

fn two_addresses(greeting: &str) -> (IpAddr, IpAddr) {
    let (own, client) = greeting.trim().split_once(' ').expect("two addresses");
    (own.parse().expect("an address"), client.parse().expect("an address"))
}

/// The next port that nobody has asked from, so that no question is part of a connection that is known.
static NEXT_PORT: AtomicU16 = AtomicU16::new(10_000);

/// The same by datagrams, each from a socket and a port of its own. What is lost on its way is asked again by another one.
pub(super) fn ask_udp(from: &Node, to: &str, times: usize) -> BTreeMap<(String, String), usize> {
    let to: SocketAddr = to.parse().expect("an address");
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let mut answers = BTreeMap::new();
    let mut lost = 0;
    while answers.values().sum::<usize>() < times {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let socket = from.within(|| UdpSocket::bind((any, port))).expect("inside").expect("bind");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        socket.send_to(b"?", to).expect("sent");
        let mut buffer = [0; 128];
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            assert_eq!(from, to, "the answer comes from whom was asked");
            let (own, client) = two_addresses(&String::from_utf8_lossy(&buffer[..length]));
            *answers.entry((own.to_string(), client.to_string())).or_default() += 1;
        } else {
            lost += 1;
            assert!(lost < times, "no answer by datagrams from {to} to {}: {answers:?}", from.name());
        }
    }
    answers
}

/// Who answers so many connections, how often, and whom each of them sees.
pub(super) fn ask(from: &Node, to: &str, times: usize) -> BTreeMap<(String, String), usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let (_, own, client) = open(from, to);
        *answers.entry((own.to_string(), client.to_string())).or_default() += 1;
    }
    answers
}

/// Demands that all of these backends answered, and that each saw the client that it should.
pub(super) fn assert_seen(
    when: &str,
    answers: &BTreeMap<(String, String), usize>,
    expected: &[&str],
    client_of: impl Fn(&str) -> &'static str,
) {
    assert_eq!(backends(answers), expected, "{when}: {answers:?}");
    for (own, client) in answers.keys() {
        assert_eq!(client, client_of(own), "{when}, {own}: {answers:?}");
    }
}

pub(super) fn backends(answers: &BTreeMap<(String, String), usize>) -> Vec<&str> {
    answers.keys().map(|(own, _)| own.as_str()).collect()
}

pub(super) fn packets(lab: &Services, node: &str, reason: &str) -> u64 {
    let status: Value = lab.mesh.ask(node, &["status"]);
    status["datapath"]["packets"][reason].as_u64().unwrap_or(0)
}

/// Echoes once over a connection that is open.
pub(super) fn echo(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    stream.write_all(text)?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, text);
    Ok(())
}

/// Waits until a service answers at all.
pub(super) fn wait_open(lab: &Services, from: &Node, to: &str) {
    let target: SocketAddr = to.parse().expect("an address");
    let answers = || from.within(|| TcpStream::connect_timeout(&target, PATIENCE).is_ok()).expect("inside");
    let node = from.name().trim_end_matches("-client");
    let log = || lab.mesh.node(node).daemon("meshd").and_then(|daemon| daemon.log()).unwrap_or_default();
    assert!(eventually(answers), "{} does not reach {to}: {}", from.name(), log());
}

pub(super) fn up() -> (Services, Webpods) {
    let lab = Services::up();
    lab.wait(&NODES, &ALL_BACKENDS);
    let webpods = Webpods::start(&lab);
    // The tables follow the view of the API by a moment.
    for (node, service) in [("west-worker", WEST_SERVICE), ("east-worker", EAST_SERVICE)] {
        wait_open(&lab, &lab.mesh.node(&format!("{node}-client")), service);
    }
    (lab, webpods)
}

#[test]
fn each_of_four_backends_answers_a_fair_share() {
    let (lab, webpods) = up();
    for (node, service, own) in [("west-worker", WEST_SERVICE, "10.0.1.20"), ("east-worker", EAST_SERVICE, "10.1.1.20")]
    {
        let answers = ask(&lab.mesh.node(&format!("{node}-client")), service, 2_000);
        assert_eq!(backends(&answers), ALL_BACKENDS, "{answers:?}");
        for ((_, client), count) in &answers {
            assert_eq!(client, own, "inside the mesh a pod is seen by its own address");
            // Six standard deviations of a fair choice.
            assert!((384..=616).contains(count), "{answers:?}");
        }
    }
    // A backend that asks its own service may meet itself, and sees then that the source is none of the mesh.
    let answers = ask(&lab.mesh.node("west-worker-webpod"), WEST_SERVICE, 200);
    assert_eq!(backends(&answers), ALL_BACKENDS, "{answers:?}");
    for (own, client) in answers.keys() {
        assert_eq!(client, if own == "10.0.1.10" { "169.254.77.1" } else { "10.0.1.10" }, "{answers:?}");
    }
    // The figures of the status are a second old at most.
    let counted = || packets(&lab, "west-worker", "new_connection") >= 2_200;
    assert!(eventually(counted), "{}", lab.mesh.ask("west-worker", &["status"])["datapath"]);
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn connections_follow_affinity_sharing_and_scale() {
    let (lab, webpods) = up();
    let client = lab.mesh.node("west-worker-client");
    let meets = |expected: &[&str]| {
        let is = || backends(&ask(&client, WEST_SERVICE, 60)) == expected;
        assert!(eventually(is), "{:?}", ask(&client, WEST_SERVICE, 60));
    };
    lab.edit(&WEST, "      global: true\n", "      global: true\n      affinity: local\n");
    meets(&WEST_BACKENDS);
    lab.edit(&WEST, "affinity: local", "affinity: remote");
    meets(&EAST_BACKENDS);
    lab.edit(&WEST, "      affinity: remote\n", "");
    meets(&ALL_BACKENDS);
    lab.edit(&EAST, "      global: true\n", "      global: true\n      shared: false\n");
    meets(&WEST_BACKENDS);
    lab.edit(&EAST, "      shared: false\n", "");
    meets(&ALL_BACKENDS);
    // Scaled to zero in both clusters: nobody answers, and the counter says why.
    for cluster in [WEST, EAST] {
        lab.edit(&cluster, "labels: {app: webpod}", "labels: {app: other}");
    }
    let to: SocketAddr = WEST_SERVICE.parse().expect("an address");
    let refused = || {
        client.within(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_err()).expect("inside")
            && packets(&lab, "west-worker", "no_backend") > 0
    };
    assert!(eventually(refused), "somebody answers");
    for cluster in [WEST, EAST] {
        lab.edit(&cluster, "labels: {app: other}", "labels: {app: webpod}");
    }
    meets(&ALL_BACKENDS);
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn a_node_port_is_reached_from_outside_and_udp_as_well() {
    let (lab, webpods) = up();
    let udp = "{name: dns, protocol: udp, port: 80}";
    lab.open_node_port(&WEST, &[udp]);
    lab.add_port(&EAST, udp);
    // A node of the other cluster is outside as far as this one is concerned.
    let outside = lab.mesh.node("east-worker");
    let to: SocketAddr = "172.18.0.5:30080".parse().expect("an address");
    let is_open = || outside.within(|| TcpStream::connect_timeout(&to, PATIENCE).is_ok()).expect("inside");
    assert!(eventually(is_open), "{}", lab.mesh.log("west-worker"));
    let answers = ask(&outside, "172.18.0.5:30080", 400);
    assert_eq!(backends(&answers), ALL_BACKENDS, "{answers:?}");
    for (own, client) in answers.keys() {
        let expected = if own == "10.0.1.10" { "172.18.0.2" } else { "172.18.0.5" };
        assert_eq!(client, expected, "on this node the client's address, elsewhere the node's: {answers:?}");
    }
    let socket =
        lab.mesh.node("west-worker-client").within(|| UdpSocket::bind("0.0.0.0:0").expect("bind")).expect("inside");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let mut buffer = [0; 64];
    let answered = || {
        socket.send_to(b"?", WEST_SERVICE).expect("sent");
        socket.recv_from(&mut buffer).is_ok_and(|(_, from)| from.to_string() == WEST_SERVICE)
    };
    assert!(eventually(answered), "no answer by UDP from the address that was asked");
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn connections_survive_kills_and_restarts() {
    let (lab, webpods) = up();
    let client = lab.mesh.node("west-worker-client");
    let mut streams: Vec<TcpStream> = (0..200).map(|_| open(&client, WEST_SERVICE).0).collect();
    let mut all = |when: &str| {
        for stream in &mut streams {
            echo(stream, b"still here").unwrap_or_else(|error| panic!("{when}: {error}"));
        }
    };
    all("at first");
    lab.mesh.daemon("west-worker").kill9().expect("killed");
    all("while nobody runs");
    let answers = ask(&client, WEST_SERVICE, 100);
    assert_eq!(backends(&answers), ALL_BACKENDS, "new connections need nobody either: {answers:?}");
    lab.mesh.daemon("west-worker").start().expect("started");
    lab.wait(&["west-worker"], &ALL_BACKENDS);
    all("after the start");
    // What is adopted runs the new process's programs, and nothing was put beside it.
    let adopted = || lab.mesh.log("west-worker").matches("attached=Adopted").count() == 6;
    assert!(eventually(adopted), "{}", lab.mesh.log("west-worker"));
    let status = lab.mesh.ask("west-worker", &["status"]);
    let programs = status["datapath"]["programs"].as_array().cloned().unwrap_or_default();
    assert!(programs.len() == 6 && programs.iter().all(|program| program["attached"] == "tcx"), "{programs:?}");
    all("with adopted programs");
    // A backend that goes keeps the connections it has, and gets no new ones.
    lab.edit(&["east-worker"], "labels: {app: webpod}", "labels: {app: other}");
    let three = ["10.0.0.10", "10.0.1.10", "10.1.0.10"];
    let is = || backends(&ask(&client, WEST_SERVICE, 60)) == three;
    assert!(eventually(is), "{:?}", ask(&client, WEST_SERVICE, 60));
    all("after a backend went");
    webpods.stop();
    lab.mesh.finish();
}
