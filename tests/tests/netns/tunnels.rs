//! Nodes that are reached through the tunnel: by choice, and because the native way takes no packets of workloads.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use lab::{Node, Output};
use serde_json::Value;
use tests::{
    load::{Load, STREAM_PORT},
    traffic::Traffic,
};

use super::{
    meshes::{Expected, Mesh, WEST_EAST, column, eventually, ping, rows},
    users::{Users, one_backend},
};

pub(super) const NODES: [&str; 4] = ["west-control-plane", "west-worker", "east-control-plane", "east-worker"];
/// TTL of an answer that two nodes forwarded, natively or not.
const TTL: u32 = 62;
/// Within this time traffic must go on after its way was cut.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);
/// The same for a connection of TCP, which tries again after twice the time each time.
const STREAM_DEADLINE: Duration = Duration::from_secs(4);

/// The west/east lab with more configuration on every node.
pub(super) struct Tunnels {
    pub(super) mesh: Mesh,
    pub(super) folder: tempfile::TempDir,
}

impl Tunnels {
    fn up(more: &str, native: bool) -> Self {
        // Through the tunnel routes have no gateway.
        Self::up_with(1_500, if native { WEST_EAST } else { TUNNELLED }, |_, text| format!("{text}{more}"))
    }

    /// The lab over links that take packets of this size, with configurations that are changed by node, and the routes that come of it.
    pub(super) fn up_with(mtu: u32, expected: Expected, change: impl Fn(&str, &str) -> String) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lab/topologies");
        let topology = folder.path().join("west-east.clab.yml");
        let text = fs::read_to_string(source.join("west-east.clab.yml")).expect("the topology");
        let first = "- ip address add 172.18.0.";
        assert_eq!(text.matches(first).count(), NODES.len());
        let text = text.replace(first, &format!("- ip link set eth0 mtu {mtu}\n        {first}"));
        fs::write(&topology, text).expect("written");
        for node in NODES {
            let text =
                fs::read_to_string(source.join("west-east").join(node).join("meshd.yaml")).expect("a configuration");
            let to = folder.path().join("west-east").join(node);
            fs::create_dir_all(&to).expect("a folder");
            fs::write(to.join("meshd.yaml"), change(node, &text)).expect("written");
        }
        let path = topology.to_str().expect("a plain path");
        let mesh = Mesh::up(path, expected);
        Self { mesh, folder }
    }

    pub(super) fn run(&self, node: &str, command: &str) -> String {
        let output = self.mesh.node(node).exec(&["sh", "-c", command]).expect("a shell");
        output.ok().unwrap_or_else(|error| panic!("{command} on {node}: {error}"))
    }

    /// Modes of the routes of a node, by prefix.
    pub(super) fn mode(&self, node: &str, prefix: &str) -> String {
        let routes = self.mesh.ask(node, &["get", "routes"]);
        let row = rows(&routes).iter().find(|row| row["prefix"] == prefix);
        row.map_or(String::new(), |row| row["mode"].as_str().unwrap_or_default().to_owned())
    }

    fn wait_mode(&self, node: &str, prefix: &str, mode: &str) {
        assert!(eventually(|| self.mode(node, prefix) == mode), "{prefix} on {node}: {}", self.mesh.log(node));
    }

    /// Drops what goes from the workloads of one worker to those of the other, and nothing between the nodes, and waits until both send
    /// through the tunnel. Returns how long that took from before the first rule, and demands that it was not too long.
    fn cut(&self) -> Duration {
        let begin = Instant::now();
        for (node, from, to) in
            [("east-worker", "10.0.1.0/24", "10.1.1.0/24"), ("west-worker", "10.1.1.0/24", "10.0.1.0/24")]
        {
            let rule = format!("iifname eth0 ip saddr {from} ip daddr {to} drop");
            let chain = "type filter hook prerouting priority -400;";
            self.run(node, &format!("nft 'table inet cut {{\nchain cut {{\n{chain}\n{rule}\n}}\n}}'"));
        }
        for (node, pod) in [("west-worker", "10.1.1.10"), ("east-worker", "10.0.1.10")] {
            // Of the kernel: the daemon says so a moment later.
            let is_tunnelled = || self.run(node, &format!("ip route get {pod}")).contains("meshd_vxlan");
            assert!(eventually(is_tunnelled), "{pod} on {node}: {}", self.mesh.log(node));
        }
        let switched = begin.elapsed();
        assert!(switched < DEADLINE, "the switch took {switched:?}: {}", self.mesh.log("west-worker"));
        self.wait_mode("west-worker", "10.1.1.0/24", "tunnel");
        self.wait_mode("east-worker", "10.0.1.0/24", "tunnel");
        switched
    }

    fn heal(&self) {
        for node in ["east-worker", "west-worker"] {
            self.run(node, "nft delete table inet cut");
        }
    }

    /// Waits until both workers have had answers on both ways.
    fn wait_probed(&self) {
        for (node, other) in [("west-worker", "east-worker"), ("east-worker", "west-worker")] {
            let is_probed = || {
                let nodes = self.mesh.ask(node, &["get", "nodes", other]);
                let path = &nodes[0]["paths"][0];
                path["native"]["state"] == "ok" && path["tunnel"]["answered"].as_u64() >= Some(2)
            };
            assert!(eventually(is_probed), "{}; {}", self.mesh.ask(node, &["get", "nodes"]), self.mesh.log(node));
        }
    }
}

/// What `ip -j` says of routes through the tunnel: the far end stands where the prefix does otherwise, and there is no gateway.
const TUNNELLED: Expected = &[
    ("west-control-plane", &[("172.18.0.5", ""), ("172.18.0.3", ""), ("172.18.0.2", "")]),
    ("west-worker", &[("172.18.0.4", ""), ("172.18.0.3", ""), ("172.18.0.2", "")]),
    ("east-control-plane", &[("172.18.0.4", ""), ("172.18.0.5", ""), ("172.18.0.2", "")]),
    ("east-worker", &[("172.18.0.4", ""), ("172.18.0.5", ""), ("172.18.0.3", "")]),
];

/// A connection from the client of west's worker to the webpod of east's over which octets flow without a pause.
fn stream(mesh: &Mesh) -> Load {
    stream_from(mesh, "west-worker-client")
}

/// The same from another workload.
fn stream_from(mesh: &Mesh, client: &str) -> Load {
    let mut load = Load::new().expect("a load");
    let server = SocketAddr::new([10, 1, 1, 10].into(), STREAM_PORT);
    load.serve(&mesh.node("east-worker-webpod"), server.ip()).expect("a server");
    load.stream(&mesh.node(client), server).expect("connected");
    load
}

fn wait_progress(load: &mut Load, when: &str) {
    load.wait_progress(1).unwrap_or_else(|error| panic!("{when}: {error:#}"));
}

/// Packets of a reason that the programs of a node have counted.
fn counted(mesh: &Mesh, node: &str, reason: &str) -> u64 {
    mesh.ask(node, &["status"])["datapath"]["packets"][reason].as_u64().unwrap_or(0)
}

/// Waits until the programs of a node are seen to have written and read frames.
fn wait_counted(mesh: &Mesh, node: &str) {
    let works = || ["encapsulated", "decapsulated"].iter().all(|reason| counted(mesh, node, reason) > 10);
    assert!(eventually(works), "{}", mesh.ask(node, &["status"]));
}

/// What the programs of a node write, once they do.
fn wait_written(mesh: &Mesh, node: &str, protocol: &str) {
    let writes = || mesh.ask(node, &["status"])["datapath"]["tunnel"] == protocol;
    assert!(eventually(writes), "{}; {}", mesh.ask(node, &["status"]), mesh.log(node));
}

fn is_degraded_by(status: &Value, component: &str) -> bool {
    rows(&status["problems"]).iter().any(|problem| problem["component"] == component)
}

#[test]
fn a_mesh_can_be_reached_through_the_tunnel_alone() {
    let tunnels = Tunnels::up("routing: {mode: tunnel}\ntunnel: {protocol: vxlan, port: 8472}\n", false);
    let mesh = &tunnels.mesh;
    mesh.wait_healthy(&NODES);
    assert_eq!(ping(&mesh.node("west-worker-client"), "10.1.1.10"), TTL);
    let routes = mesh.ask("west-worker", &["get", "routes"]);
    assert_eq!(column(&routes, "mode"), BTreeSet::from(["tunnel".to_owned()]));
    assert!(rows(&routes).iter().all(|row| row["mtu"] == 1450), "{routes}");

    // A packet that does not fit is answered as a router does it.
    let client = mesh.node("west-worker-client");
    let large = client.exec(&["ping", "-c", "1", "-W", "1", "-s", "1472", "-M", "do", "10.1.1.10"]).expect("ping runs");
    assert!(large.stdout.contains("mtu = 1450") || large.stderr.contains("mtu=1450"), "{large:?}");
    let fits = client.exec(&["ping", "-c", "1", "-W", "2", "-s", "1422", "-M", "do", "10.1.1.10"]).expect("ping runs");
    assert!(fits.success(), "{fits:?}");

    // What somebody takes away comes back.
    let traffic = Traffic::start(&client, &mesh.node("east-worker-webpod"), [10, 1, 1, 10].into()).expect("traffic");
    tunnels.run("west-worker", "ip link del meshd_vxlan");
    assert!(eventually(|| tunnels.run("west-worker", "ip route show proto 77").lines().count() == 3));
    tunnels.run("east-worker", "nft delete table netdev meshd");
    assert!(eventually(|| tunnels.run("east-worker", "nft list ruleset").contains("pkttype")));
    thread::sleep(Duration::from_millis(50));
    let counted = traffic.finish().expect("counted");
    assert!(counted.longest_gap < DEADLINE, "{counted:?}");

    // A restart loses nothing.
    let traffic = Traffic::start(&client, &mesh.node("east-worker-webpod"), [10, 1, 1, 10].into()).expect("traffic");
    for node in ["west-worker", "east-worker"] {
        mesh.daemon(node).kill9().expect("killed");
        mesh.daemon(node).start().expect("started");
    }
    mesh.wait_healthy(&NODES);
    let counted = traffic.finish().expect("counted");
    assert_eq!(counted.lost(), 0, "{counted:?}");

    mesh.ask("west-worker", &["drain"]);
    assert!(!tunnels.run("west-worker", "ip link").contains("meshd_vxlan"));
    assert!(!tunnels.run("west-worker", "nft list ruleset").contains("pkttype"));
    tunnels.mesh.finish();
}

/// Pings, a stream and connections through a service between workers, of which those of west have programs.
fn assert_carried(mesh: &Mesh) {
    let (client, server) = (mesh.node("west-worker-webpod"), mesh.node("east-worker-webpod"));
    assert_eq!(ping(&client, "10.1.1.10"), TTL);
    assert_eq!(ping(&server, "10.0.1.10"), TTL);
    let mut load = stream_from(mesh, "west-worker-webpod");
    wait_progress(&mut load, "through the tunnel");
    load.finish().expect("nothing breaks");
    // The service of the own cluster has the other one's backends, too.
    let listeners: Vec<TcpListener> = [
        ("west-control-plane-webpod", "10.0.0.10"),
        ("west-worker-webpod", "10.0.1.10"),
        ("east-control-plane-webpod", "10.1.0.10"),
        ("east-worker-webpod", "10.1.1.10"),
    ]
    .into_iter()
    .map(|(pod, address)| {
        mesh.node(pod).within(|| TcpListener::bind((address, 80))).expect("the pod runs").expect("a listener")
    })
    .collect();
    let to = "10.2.0.80:80".parse().expect("an address");
    let asks = mesh.node("west-worker-client");
    for _ in 0..40 {
        let connected = asks.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).expect("the pod runs");
        connected.expect("a backend answers");
    }
    drop(listeners);
}

#[test]
fn programs_write_the_identity_of_workloads_into_frames() {
    for (protocol, more) in [
        ("vxlan", "routing: {mode: tunnel, mss_clamp: true}\ntunnel: {protocol: vxlan}\n"),
        ("geneve", "routing: {mode: tunnel}\ntunnel: {protocol: geneve}\n"),
    ] {
        let tunnels = Tunnels::up(more, false);
        let mesh = &tunnels.mesh;
        mesh.wait_healthy(&NODES);
        for node in NODES {
            wait_written(mesh, node, protocol);
        }
        assert_eq!(
            tunnels.run("west-worker", "nft list ruleset").contains("maxseg size set rt mtu"),
            protocol == "vxlan"
        );
        let identities = mesh.ask("east-worker", &["get", "endpoints"]);
        let row =
            rows(&identities).iter().find(|row| row["address"].as_str().is_some_and(|ip| ip.starts_with("10.0.1.10")));
        let identity = row.and_then(|row| row["identity"].as_u64()).unwrap_or_else(|| panic!("{identities}"));
        let file = tunnels.folder.path().join("frames.pcap");
        let file = file.to_str().expect("a plain path");
        let capture = mesh.node("east-worker").spawn(&[
            "tcpdump",
            "-Z",
            "root",
            "-i",
            "eth0",
            "-U",
            "-w",
            file,
            "udp",
            "and",
            "src",
            "172.18.0.5",
        ]);
        let capture = capture.expect("tcpdump runs");
        let is_seen = || {
            assert_eq!(ping(&mesh.node("west-worker-webpod"), "10.1.1.10"), TTL);
            let field = format!("{protocol}.vni");
            let decode = if protocol == "vxlan" { "udp.port==8472,vxlan" } else { "udp.port==6081,geneve" };
            let read = format!("tshark -r {file} -d {decode} -Y icmp -T fields -e {field} 2>/dev/null || true");
            tunnels.run("east-worker", &read).lines().any(|line| parse_number(line) == Some(identity))
        };
        assert!(eventually(is_seen), "no frame says {identity}");
        drop(capture);
        assert_carried(mesh);
        for node in ["west-worker", "east-worker"] {
            wait_counted(mesh, node);
            for reason in ["tunnel_refused", "identity_mismatch", "no_route"] {
                assert_eq!(counted(mesh, node, reason), 0, "{reason} on {node}");
            }
        }
        tunnels.mesh.finish();
    }
}

/// A number as `tshark` prints it.
fn parse_number(text: &str) -> Option<u64> {
    let text = text.split(',').next()?.trim();
    text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |digits| u64::from_str_radix(digits, 16).ok())
}

#[test]
fn nodes_with_programs_and_nodes_with_the_device_alone_understand_each_other() {
    let tunnels = Tunnels::up_with(1_500, TUNNELLED, |node, text| {
        let text =
            if node.starts_with("east") { text.replace("enabled: true", "enabled: false") } else { text.to_owned() };
        format!("{text}routing: {{mode: tunnel}}\ntunnel: {{protocol: vxlan}}\n")
    });
    let mesh = &tunnels.mesh;
    mesh.wait_healthy(&NODES);
    wait_written(mesh, "west-worker", "vxlan");
    assert_eq!(mesh.ask("east-worker", &["status"])["datapath"]["enabled"], false);
    assert_carried(mesh);
    wait_counted(mesh, "west-worker");
    tunnels.mesh.finish();
}

#[test]
fn traffic_goes_on_through_the_tunnel_when_the_native_way_is_cut_and_comes_back() {
    let more = "routing: {mode: auto}\ntunnel: {protocol: vxlan, port: 8472}\n";
    let tunnels = Tunnels::up_with(1_500, WEST_EAST, |node, text| one_backend(node, text) + more);
    let mesh = &tunnels.mesh;
    mesh.wait_healthy(&NODES);
    tunnels.wait_probed();
    let (client, server) = (mesh.node("west-worker-client"), mesh.node("east-worker-webpod"));
    let traffic = Traffic::start(&client, &server, [10, 1, 1, 10].into()).expect("traffic");
    let mut users = Users::begin(mesh);

    let switched = tunnels.cut();
    users.wait_progress("through the tunnel");
    assert_eq!(ping(&client, "10.1.1.10"), TTL);
    assert_eq!(tunnels.mode("west-worker", "10.1.0.0/24"), "native", "only what is cut");
    assert!(is_degraded_by(&mesh.ask("west-worker", &["status"]), "paths"));
    let counted = traffic.finish().expect("counted");
    assert!(counted.longest_gap < DEADLINE, "{counted:?}");

    // In this state a daemon that is killed and comes back loses nothing either.
    let traffic = Traffic::start(&client, &server, [10, 1, 1, 10].into()).expect("traffic");
    for node in ["west-worker", "east-worker"] {
        mesh.daemon(node).kill9().expect("killed");
        mesh.daemon(node).start().expect("started");
    }
    tunnels.wait_mode("west-worker", "10.1.1.0/24", "tunnel");
    // Long enough for a daemon that had forgotten to send everything natively once.
    thread::sleep(DEADLINE);
    tunnels.heal();
    tunnels.wait_mode("west-worker", "10.1.1.0/24", "native");
    tunnels.wait_mode("east-worker", "10.0.1.0/24", "native");
    users.wait_progress("natively again");
    let counted = traffic.finish().expect("counted");
    assert_eq!(counted.lost(), 0, "{counted:?}");
    users.finish(switched);
    mesh.wait_healthy(&NODES);
    mesh.wait_for_routes();
    tunnels.mesh.finish();
}

/// Packets that the rule with this comment has counted.
fn packets(tunnels: &Tunnels, node: &str, comment: &str) -> u64 {
    let listed = tunnels.run(node, "nft list table inet watch");
    let line = listed.lines().find(|line| line.contains(comment)).unwrap_or_else(|| panic!("{listed}"));
    let packets = line.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    packets.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn the_fast_path_leaves_the_packet_filter_out_and_breaks_no_connection_when_the_way_changes() {
    const WORKERS: [&str; 2] = ["west-worker", "east-worker"];
    const PODS: &str = "{ 10.0.1.10, 10.1.1.10 }";
    let tunnels = Tunnels::up("routing: {mode: auto, fast_path: true}\ntunnel: {protocol: vxlan}\n", true);
    let mesh = &tunnels.mesh;
    mesh.wait_healthy(&NODES);
    tunnels.wait_probed();
    let (client, server) = (mesh.node("west-worker-webpod"), mesh.node("east-worker-webpod"));
    // A packet filter that drops what it has seen half of, as that of Kubernetes does.
    for node in WORKERS {
        let rules = format!(
            "ct state invalid counter drop comment \\\"half\\\"
             ip saddr {PODS} ip daddr {PODS} counter comment \\\"seen\\\""
        );
        let chain = "type filter hook forward priority 0;";
        tunnels.run(node, &format!("nft \"table inet watch {{\nchain watch {{\n{chain}\n{rules}\n}}\n}}\""));
    }
    // The first packets find out who the neighbors are, through the stack.
    let is_fast = |node: &str| {
        let seen = packets(&tunnels, node, "seen");
        assert_eq!(ping(&client, "10.1.1.10"), TTL);
        counted(mesh, node, "forwarded") > 0 && packets(&tunnels, node, "seen") == seen
    };
    for node in WORKERS {
        assert!(eventually(|| is_fast(node)), "{}; {}", mesh.ask(node, &["status"]), mesh.log(node));
    }
    assert_eq!(mesh.ask("west-worker", &["status"])["datapath"]["fast_path"], true);
    let seen = WORKERS.map(|node| packets(&tunnels, node, "seen"));
    let traffic = Traffic::start(&client, &server, [10, 1, 1, 10].into()).expect("traffic");
    let mut load = stream_from(mesh, "west-worker-webpod");
    wait_progress(&mut load, "natively");

    // What programs send meets no chain but that of the link.
    for (node, from, to) in
        [("west-worker", "10.0.1.0/24", "10.1.1.0/24"), ("east-worker", "10.1.1.0/24", "10.0.1.0/24")]
    {
        let chain = "type filter hook egress device eth0 priority 0;";
        let rule = format!("ip saddr {from} ip daddr {to} drop");
        tunnels.run(node, &format!("nft 'table netdev cut {{\nchain cut {{\n{chain}\n{rule}\n}}\n}}'"));
    }
    tunnels.wait_mode("west-worker", "10.1.1.0/24", "tunnel");
    tunnels.wait_mode("east-worker", "10.0.1.0/24", "tunnel");
    wait_progress(&mut load, "through the tunnel");
    assert_eq!(ping(&client, "10.1.1.10"), TTL);
    for node in WORKERS {
        wait_counted(mesh, node);
    }
    let counted = traffic.finish().expect("counted");
    assert!(counted.longest_gap < DEADLINE, "{counted:?}");

    let traffic = Traffic::start(&client, &server, [10, 1, 1, 10].into()).expect("traffic");
    for node in WORKERS {
        mesh.daemon(node).kill9().expect("killed");
        mesh.daemon(node).start().expect("started");
    }
    tunnels.wait_mode("west-worker", "10.1.1.0/24", "tunnel");
    thread::sleep(DEADLINE);
    for node in WORKERS {
        tunnels.run(node, "nft delete table netdev cut");
    }
    tunnels.wait_mode("west-worker", "10.1.1.0/24", "native");
    tunnels.wait_mode("east-worker", "10.0.1.0/24", "native");
    wait_progress(&mut load, "natively again");
    let counted = traffic.finish().expect("counted");
    assert_eq!(counted.lost(), 0, "{counted:?}");
    let figures = load.finish().expect("the connection holds");
    assert!(figures.longest_pause < STREAM_DEADLINE, "{figures:?}");
    for (node, seen) in WORKERS.into_iter().zip(seen) {
        assert_eq!(packets(&tunnels, node, "seen"), seen, "the packet filter of {node} has seen them");
        assert_eq!(packets(&tunnels, node, "half"), 0, "{node}");
    }
    mesh.wait_healthy(&NODES);
    tunnels.mesh.finish();
}

#[test]
fn large_packets_that_vanish_make_routes_narrower() {
    let tunnels = Tunnels::up("routing: {mode: auto}\ntunnel: {protocol: vxlan}\n", true);
    let mesh = &tunnels.mesh;
    mesh.wait_healthy(&NODES);
    tunnels.wait_probed();
    // The rule sees what a link would make of several segments as one packet, which is not what a narrow link takes offence at.
    for pod in ["west-worker-client", "east-worker-webpod"] {
        tunnels.run(pod, "ethtool -K eth0 tso off gso off gro off");
    }
    for node in ["west-worker", "east-worker"] {
        let chain = "type filter hook prerouting priority -400;";
        let rule = "iifname eth0 meta length > 1400 drop";
        tunnels.run(node, &format!("nft 'table inet hole {{\nchain hole {{\n{chain}\n{rule}\n}}\n}}'"));
    }
    let narrow = || {
        let routes = tunnels.run("west-worker", "ip route show 10.1.1.0/24 proto 77");
        let mtu = routes.split("mtu ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        mtu.is_some_and(|mtu: u32| (1_392..=1_400).contains(&mtu))
    };
    assert!(eventually(narrow), "{}", tunnels.run("west-worker", "ip route"));
    assert!(is_degraded_by(&mesh.ask("west-worker", &["status"]), "paths/size"));
    // A workload is told and goes on.
    let client = mesh.node("west-worker-client");
    let large = client.exec(&["ping", "-c", "1", "-W", "1", "-s", "1472", "-M", "do", "10.1.1.10"]).expect("ping runs");
    assert!(large.stdout.contains("mtu = ") || large.stderr.contains("mtu="), "{large:?}");
    let mut stream = stream(mesh);
    wait_progress(&mut stream, "with narrower routes");
    stream.finish().expect("the connection holds");
    tunnels.mesh.finish();
}

#[test]
fn what_takes_the_fast_path_fits_where_large_packets_vanish() {
    const WORKERS: [&str; 2] = ["west-worker", "east-worker"];
    let tunnels = Tunnels::up("routing: {mode: auto, fast_path: true}\ntunnel: {protocol: vxlan}\n", true);
    let mesh = &tunnels.mesh;
    mesh.wait_healthy(&NODES);
    tunnels.wait_probed();
    let client = mesh.node("west-worker-webpod");
    // What a link would make of several segments as one packet is not what a narrow link takes offence at.
    for pod in ["west-worker-webpod", "east-worker-webpod"] {
        tunnels.run(pod, "ethtool -K eth0 tso off gso off gro off");
    }
    let is_fast = |node: &str| {
        assert_eq!(ping(&client, "10.1.1.10"), TTL);
        counted(mesh, node, "forwarded") > 0
    };
    for node in WORKERS {
        assert!(eventually(|| is_fast(node)), "{}", mesh.ask(node, &["status"]));
    }
    assert!(whole(&client, 1_500).success(), "what the links take arrives");
    // What programs send meets no chain but that of the link, where a packet is longer by its header.
    for node in WORKERS {
        let chain = "type filter hook egress device eth0 priority 0;";
        let rule = "meta length > 1414 drop";
        tunnels.run(node, &format!("nft 'table netdev hole {{\nchain hole {{\n{chain}\n{rule}\n}}\n}}'"));
    }
    let is_narrow =
        |node: &str, prefix: &str| tunnels.run(node, &format!("ip route show {prefix} proto 77")).contains("mtu ");
    assert!(eventually(|| is_narrow("west-worker", "10.1.1.0/24")), "{}", tunnels.run("west-worker", "ip route"));
    assert!(eventually(|| is_narrow("east-worker", "10.0.1.0/24")), "{}", tunnels.run("east-worker", "ip route"));
    // A workload is told and goes on.
    let is_told = || {
        let large = whole(&client, 1_500);
        large.stdout.contains("mtu = ") || large.stderr.contains("mtu=")
    };
    assert!(eventually(is_told), "{}", mesh.ask("west-worker", &["status"]));
    assert!(eventually(|| counted(mesh, "west-worker", "too_big") > 0), "by the program, not by the stack");
    let mut load = stream_from(mesh, "west-worker-webpod");
    wait_progress(&mut load, "with narrower routes");
    load.finish().expect("the connection holds");
    // What the program cannot tell of the stack does: the kernel shortens no packet that a device has put a frame around.
    tunnels.run(
        "west-worker-webpod",
        "ip route flush cache
         ip link add own mtu 1450 type vxlan id 5 remote 10.1.1.10 dstport 4790 df set && ip link set own up
         ip addr add 192.0.2.1/24 dev own && ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:05 dev own nud permanent",
    );
    let is_told = || {
        tunnels.run("west-worker-webpod", "bash -c 'head -c 1400 /dev/zero >/dev/udp/192.0.2.2/9'");
        tunnels.run("west-worker-webpod", "ip route get 10.1.1.10").contains("mtu ")
    };
    assert!(eventually(is_told), "{}", mesh.ask("west-worker", &["status"]));
    // What is no longer than the route takes goes on past the stack.
    let before = counted(mesh, "west-worker", "forwarded");
    assert_eq!(ping(&client, "10.1.1.10"), TTL);
    assert!(eventually(|| counted(mesh, "west-worker", "forwarded") > before));
    tunnels.mesh.finish();
}

/// One echo of this size, which must not be fragmented, from west's worker's client to east's worker's webpod.
fn whole(client: &Node, size: u32) -> Output {
    let data = (size - 28).to_string();
    client.exec(&["ping", "-n", "-c", "1", "-W", "2", "-s", &data, "-M", "do", "10.1.1.10"]).expect("ping runs")
}

/// Waits until packets of this size arrive, and larger ones are answered with it.
fn wait_size(client: &Node, size: u32) {
    // What a router said is remembered for ten minutes otherwise.
    let forget = || client.exec(&["ip", "route", "flush", "cache"]).and_then(Output::ok).expect("forgotten");
    let mut said = Vec::new();
    let is = || {
        forget();
        let (fits, larger) = (whole(client, size), whole(client, 1_500));
        let text = larger.stdout.clone() + &larger.stderr;
        let is = fits.success() && (text.contains(&format!("mtu = {size}")) || text.contains(&format!("mtu={size}")));
        said = vec![fits, larger];
        is
    };
    assert!(eventually(is), "{size}: {said:?}");
}

#[test]
fn a_narrow_network_carries_both_ways_and_the_switch_between_them() {
    let more = "routing: {mode: auto}\ntunnel: {protocol: vxlan, port: 8472}\n";
    let tunnels = Tunnels::up_with(1_400, WEST_EAST, |node, text| one_backend(node, text) + more);
    let mesh = &tunnels.mesh;
    mesh.wait_healthy(&NODES);
    tunnels.wait_probed();
    let (client, server) = (mesh.node("west-worker-client"), mesh.node("east-worker-webpod"));
    wait_size(&client, 1_400);
    let traffic = Traffic::start(&client, &server, [10, 1, 1, 10].into()).expect("traffic");
    let mut users = Users::begin(mesh);

    let switched = tunnels.cut();
    users.wait_progress("through the tunnel");
    wait_size(&client, 1_350);
    let counted = traffic.finish().expect("counted");
    assert!(counted.longest_gap < DEADLINE, "{counted:?}");

    let traffic = Traffic::start(&client, &server, [10, 1, 1, 10].into()).expect("traffic");
    tunnels.heal();
    tunnels.wait_mode("west-worker", "10.1.1.0/24", "native");
    tunnels.wait_mode("east-worker", "10.0.1.0/24", "native");
    users.wait_progress("natively again");
    wait_size(&client, 1_400);
    let counted = traffic.finish().expect("counted");
    assert_eq!(counted.lost(), 0, "{counted:?}");
    users.finish(switched);
    mesh.wait_healthy(&NODES);
    tunnels.mesh.finish();
}

#[test]
fn a_foreign_link_with_the_port_is_left_alone_and_named() {
    let tunnels = Tunnels::up("", true);
    let mesh = &tunnels.mesh;
    tunnels.run("west-worker", "ip link add other type vxlan external dstport 8472 && ip link set other up");
    let text = tunnels.run("west-worker", "cat /etc/meshd/meshd.yaml");
    let text = format!("{text}routing: {{mode: auto}}\ntunnel: {{protocol: vxlan}}\n");
    tunnels.run(
        "west-worker",
        &format!(
            "cat > /etc/meshd/new.yaml <<'END'\n{text}\nEND\nmount --bind /etc/meshd/new.yaml /etc/meshd/meshd.yaml"
        ),
    );
    mesh.daemon("west-worker").restart().expect("restarted");
    let names_it = || {
        let status = mesh.ask("west-worker", &["status"]);
        rows(&status["problems"]).iter().any(|problem| {
            problem["component"] == "tunnel"
                && problem["message"].as_str().is_some_and(|text| text.contains("link other"))
        })
    };
    assert!(eventually(names_it), "{}", mesh.ask("west-worker", &["status"]));
    assert!(tunnels.run("west-worker", "ip -d link show other").contains("UP"));
    assert_eq!(ping(&mesh.node("west-worker-client"), "10.1.1.10"), TTL, "natively as before");
    tunnels.mesh.finish();
}
