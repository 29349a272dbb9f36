//! Services at connect time: real sockets of processes in a node's control group, on the node itself and in a pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use lab::Node;

use super::{
    meshes::eventually,
    service_traffic::{PATIENCE, WEST_SERVICE, ask, backends, echo, open, packets, up},
    services::{ALL_BACKENDS, EAST, Services, WEST},
};

const NODE: &str = "west-worker";
/// Programs of sockets.
const PROGRAMS: usize = 8;

/// The control group of the node, in which the test's process can be for a while.
struct Group {
    path: PathBuf,
    before: PathBuf,
}

impl Group {
    fn of(node: &Node) -> Self {
        let path = node.cgroup_path().expect("control groups of version 2");
        let own = fs::read_to_string("/proc/self/cgroup").expect("groups");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a group of version 2");
        // Mount, all labs, lab, node.
        let before = path.ancestors().nth(3).expect("the mount").join(own);
        Self { path, before }
    }

    /// Runs code whose sockets and processes are the group's. What listens was opened before and is not.
    fn within<T>(&self, inside: impl FnOnce() -> T) -> T {
        struct Back<'a>(&'a Path);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                take(self.0);
            }
        }
        take(&self.path);
        let _back = Back(&self.before);
        inside()
    }
}

fn take(group: &Path) {
    fs::write(group.join("cgroup.procs"), "0").expect("the process changes its group");
}

/// A process that is in the group and in a pod's network, as every process of a pod is.
struct Sleeper(Child);

impl Sleeper {
    fn start(group: &Group, pod: &Node) -> Self {
        let start = || pod.within(|| Command::new("sleep").arg("600").spawn().expect("started")).expect("inside");
        Self(group.within(start))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It may be gone already.
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// A socket of datagrams that is connected to the service, and which backend it talks to.
fn connected(from: &Node) -> (UdpSocket, IpAddr) {
    try_connected(from).expect("connected and answered")
}

fn try_connected(from: &Node) -> io::Result<(UdpSocket, IpAddr)> {
    let to: SocketAddr = WEST_SERVICE.parse().expect("an address");
    let connect = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to).map(|()| socket)
    };
    let socket = from.within(connect).expect("inside")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    assert_eq!(socket.peer_addr()?, to);
    let (backend, from) = greeted(&socket)?;
    assert_eq!(from, to, "the answer comes from the service");
    Ok((socket, backend))
}

/// Asks who is there.
fn greeted(socket: &UdpSocket) -> io::Result<(IpAddr, SocketAddr)> {
    let mut buffer = [0; 64];
    socket.send(b"?")?;
    let (length, from) = socket.recv_from(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let backend = text.split(' ').next().and_then(|own| own.parse().ok()).expect("a greeting");
    Ok((backend, from))
}

fn attached(lab: &Services, word: &str) -> usize {
    let status = lab.mesh.ask(NODE, &["status"]);
    let programs = status["datapath"]["programs"].as_array().cloned().unwrap_or_default();
    let is = |program: &&serde_json::Value| {
        program["program"].as_str().is_some_and(|name| name.starts_with("socket_")) && program["attached"] == word
    };
    programs.iter().filter(is).count()
}

/// What the kernel says is on the group.
fn on(group: &Path) -> usize {
    let output = Command::new("bpftool").args(["cgroup", "show"]).arg(group).output().expect("bpftool runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).matches("socket_").count()
}

/// Lets the node translate sockets below its control group.
fn switch_on(lab: &Services, group: &Group) {
    let section = format!("services:\n  enabled: true\n  cgroup: {}\n", group.path.display());
    lab.edit(&[NODE], "services:\n  enabled: true\n", &section);
    lab.mesh.daemon(NODE).restart().expect("restarted");
    assert!(eventually(|| attached(lab, "cgroup") == PROGRAMS), "{}", lab.mesh.ask(NODE, &["status"])["datapath"]);
    assert_eq!(on(&group.path), PROGRAMS);
}

/// A node port and datagrams, which need a port of their own; waits until every backend has them.
fn widen(lab: &Services, group: &Group) {
    let udp = "{name: dns, protocol: udp, port: 80}";
    lab.open_node_port(&WEST, &[udp]);
    lab.add_port(&EAST, udp);
    let node = lab.mesh.node(NODE);
    let node_port: SocketAddr = "172.18.0.5:30080".parse().expect("an address");
    let is_wide = || {
        let open = group.within(|| node.within(|| TcpStream::connect_timeout(&node_port, PATIENCE).is_ok()));
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let Ok((_, backend)) = group.within(|| try_connected(&node)) else { return false };
            seen.insert(backend);
        }
        open.expect("inside") && seen.len() == ALL_BACKENDS.len()
    };
    assert!(eventually(is_wide), "{}", lab.mesh.log(NODE));
}

fn ended(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted)
}

#[test]
fn processes_of_the_node_and_of_pods_reach_services_without_translated_packets() {
    let (lab, webpods) = up();
    let (node, pod) = (lab.mesh.node(NODE), lab.mesh.node("west-worker-client"));
    let group = Group::of(&node);
    switch_on(&lab, &group);
    widen(&lab, &group);
    let before = packets(&lab, NODE, "new_connection");
    for from in [&node, &pod] {
        let answers = group.within(|| ask(from, WEST_SERVICE, 200));
        assert_eq!(backends(&answers), ALL_BACKENDS, "{answers:?}");
        let (stream, ..) = group.within(|| open(from, WEST_SERVICE));
        assert_eq!(stream.peer_addr().expect("a peer").to_string(), WEST_SERVICE);
        // Datagrams without a connection: each answer comes from whom was asked.
        let socket = group.within(|| from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("inside").expect("bind"));
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        for _ in 0..3 {
            socket.send_to(b"?", WEST_SERVICE).expect("sent");
            let (_, answered) = socket.recv_from(&mut [0; 64]).expect("an answer");
            assert_eq!(answered.to_string(), WEST_SERVICE);
        }
        group.within(|| connected(from));
        // A port of the node's own address.
        let answers = group.within(|| ask(from, "172.18.0.5:30080", 60));
        assert_eq!(backends(&answers), ALL_BACKENDS, "{answers:?}");
    }
    // No packet of the pod was one of a service.
    assert_eq!(packets(&lab, NODE, "new_connection"), before);
    assert!(eventually(|| packets(&lab, NODE, "socket_translated") >= 520), "{}", lab.mesh.ask(NODE, &["status"]));
    // A pod that asks its own service meets itself under its own address: the packet translated on its way cannot do that.
    let webpod = lab.mesh.node("west-worker-webpod");
    let answers = group.within(|| ask(&webpod, WEST_SERVICE, 60));
    assert!(answers.keys().any(|(own, client)| own == "10.0.1.10" && client == "10.0.1.10"), "{answers:?}");

    // Nobody needs to run for that, and the next process takes the programs over.
    lab.mesh.daemon(NODE).kill9().expect("killed");
    assert_eq!(backends(&group.within(|| ask(&node, WEST_SERVICE, 60))), ALL_BACKENDS);
    lab.mesh.daemon(NODE).start().expect("started");
    assert!(eventually(|| attached(&lab, "adopted") == PROGRAMS), "{}", lab.mesh.ask(NODE, &["status"])["datapath"]);
    assert_eq!(on(&group.path), PROGRAMS);

    // Without backends a call is refused at once, and the counter says so.
    for cluster in [WEST, EAST] {
        lab.edit(&cluster, "labels: {app: webpod}", "labels: {app: other}");
    }
    let to: SocketAddr = WEST_SERVICE.parse().expect("an address");
    let refused = || {
        let outcome = group.within(|| node.within(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("inside"));
        outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    assert!(eventually(refused), "somebody answers");
    assert!(eventually(|| packets(&lab, NODE, "socket_refused") > 0), "nothing was counted");

    // Draining takes everything away.
    node.exec(&["meshd", "drain"]).and_then(lab::Output::ok).expect("drained");
    assert_eq!(on(&group.path), 0);
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn sockets_of_a_removed_backend_end_as_configured() {
    let (lab, webpods) = up();
    let (node, pod) = (lab.mesh.node(NODE), lab.mesh.node("west-worker-client"));
    let group = Group::of(&node);
    switch_on(&lab, &group);
    widen(&lab, &group);
    let _process = Sleeper::start(&group, &pod);

    let mut streams: BTreeMap<String, Vec<TcpStream>> = BTreeMap::new();
    let mut sockets: BTreeMap<String, Vec<UdpSocket>> = BTreeMap::new();
    for from in [&node, &pod] {
        for _ in 0..60 {
            let (stream, own, _) = group.within(|| open(from, WEST_SERVICE));
            streams.entry(own.to_string()).or_default().push(stream);
            let (socket, own) = group.within(|| connected(from));
            sockets.entry(own.to_string()).or_default().push(socket);
        }
    }
    assert!(streams.keys().eq(ALL_BACKENDS.iter()) && sockets.keys().eq(ALL_BACKENDS.iter()));

    // Kept: a connection of TCP goes on, datagrams do not.
    lab.edit(&["east-control-plane"], "labels: {app: webpod}", "labels: {app: other}");
    let is_over =
        |socket: &UdpSocket| eventually(|| greeted(socket).is_err_and(|error| error.kind() != ErrorKind::WouldBlock));
    for socket in &sockets.remove("10.1.0.10").expect("some") {
        assert!(is_over(socket), "the datagrams still go to a backend that is gone");
    }
    for stream in streams.get_mut("10.1.0.10").expect("some") {
        echo(stream, b"kept").expect("a connection is kept");
    }

    // Killed: both end.
    let reloads = || lab.mesh.log(NODE).matches("configuration reloaded").count();
    let before = reloads();
    lab.edit(
        &WEST,
        "      selector: {app: webpod}\n",
        "      selector: {app: webpod}\n      on_backend_removal: kill\n",
    );
    assert!(eventually(|| reloads() > before), "{}", lab.mesh.log(NODE));
    lab.edit(&["east-worker"], "labels: {app: webpod}", "labels: {app: other}");
    for socket in &sockets.remove("10.1.1.10").expect("some") {
        assert!(is_over(socket), "the datagrams still go to a backend that is gone");
    }
    for stream in &mut streams.remove("10.1.1.10").expect("some") {
        let mut last = None;
        let is_over = || echo(stream, b"alive?").inspect_err(|error| last = Some(error.kind())).is_err();
        assert!(eventually(is_over), "a connection to a backend that is gone goes on");
        assert!(last.is_some_and(|kind| ended(&kind.into()) || kind == ErrorKind::BrokenPipe), "{last:?}");
    }
    // The others are as they were.
    for stream in streams.values_mut().flatten() {
        echo(stream, b"still here").expect("nobody else is touched");
    }
    for socket in sockets.values().flatten() {
        greeted(socket).expect("nobody else is touched");
    }
    webpods.stop();
    lab.mesh.finish();
}
