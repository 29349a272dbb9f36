//! Nodes that are reached in another way than the rest, and the segments of TCP that fit each way.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    path::Path,
};

use nix::sys::signal::Signal;

use super::{
    direct_return::{CAPTURED, capture, read},
    meshes::{Expected, WEST_EAST, eventually},
    service_traffic::PATIENCE,
    tunnels::{NODES, Tunnels},
};

/// Routes of nodes that say for a cluster and for single nodes how these are reached: the workers meet in the tunnel, west's control plane takes
/// out of it what the worker sends and answers natively, and everything to and from east's control plane goes natively.
const MIXED: Expected = &[
    WEST_EAST[0],
    ("west-worker", &[("172.18.0.4", ""), ("10.1.0.0/24", "172.18.0.3"), ("172.18.0.2", "")]),
    WEST_EAST[2],
    ("east-worker", &[("172.18.0.4", ""), ("172.18.0.5", ""), ("10.1.0.0/24", "172.18.0.3")]),
];

/// The largest segments that the webpods of other nodes hear of when west's worker's client connects, each with the destinations of the
/// packet: of the frame around it, and its own.
fn segments(tunnels: &Tunnels, file: &Path) -> BTreeSet<(String, String)> {
    const PODS: [&str; 3] = ["10.0.0.10", "10.1.0.10", "10.1.1.10"];
    let uplink = capture(&tunnels.mesh.node("west-worker"), "eth0", file);
    let client = tunnels.mesh.node("west-worker-client");
    for pod in PODS {
        // Nobody listens: that is an answer as well.
        let to = SocketAddr::new(pod.parse().expect("an address"), 80);
        let refused = client.within(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("inside");
        assert_eq!(refused.expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused, "{pod}");
    }
    let openings = "tcp.flags.syn == 1 && tcp.flags.ack == 0 && tcp.dstport == 80";
    let mut seen = BTreeSet::new();
    let all = || {
        let rows = read(file, openings, &["ip.dst", "tcp.options.mss_val"]);
        seen = rows.into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
        PODS.iter().all(|pod| seen.iter().any(|(to, _)| to.ends_with(pod)))
    };
    assert!(eventually(all), "not all have come by");
    uplink.stop(Signal::SIGINT, CAPTURED).expect("tcpdump ends");
    seen
}

#[test]
fn a_cluster_and_a_node_go_other_ways_than_the_rest_and_segments_are_clamped_to_theirs() {
    let tunnels = Tunnels::up_with(1_500, MIXED, |node, text| {
        let to = |cluster: &str, node: &str, mode: &str| format!("{{cluster: {cluster}, node: {node}, mode: {mode}}}");
        let all_of = |cluster: &str| {
            let peer = format!("  - cluster: {cluster}\n");
            text.replace(&peer, &format!("{peer}    routing: {{mode: tunnel}}\n"))
        };
        let (text, nodes) = match node {
            // All of east, but for one node.
            "west-worker" => {
                let nodes = [("east", "east-control-plane", "native"), ("west", "west-control-plane", "tunnel")];
                (all_of("east"), nodes.map(|(cluster, node, mode)| to(cluster, node, mode)).join(", "))
            }
            "east-worker" => (all_of("west"), String::new()),
            // Those that send nothing by the tunnel take it out all the same.
            _ => (text.to_owned(), String::new()),
        };
        format!("{text}routing: {{mode: native, nodes: [{nodes}]}}\ntunnel: {{protocol: vxlan, port: 8472}}\n")
    });
    let mesh = &tunnels.mesh;
    mesh.wait_healthy(&NODES);
    for (prefix, mode) in [("10.0.0.0/24", "tunnel"), ("10.1.0.0/24", "native"), ("10.1.1.0/24", "tunnel")] {
        assert_eq!(tunnels.mode("west-worker", prefix), mode, "{prefix}");
    }
    let ways = |inside: &str| {
        let all = [("172.18.0.4,10.0.0.10", inside), ("10.1.0.10", "1460"), ("172.18.0.2,10.1.1.10", inside)];
        BTreeSet::from(all.map(|(to, size)| (to.to_owned(), size.to_owned())))
    };
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(segments(&tunnels, &folder.path().join("as-sent.pcap")), ways("1460"));

    let path = tunnels.folder.path().join("west-east/west-worker/meshd.yaml");
    let text = fs::read_to_string(&path).expect("the configuration");
    fs::write(&path, text.replace("mode: native, nodes", "mss_clamp: true, mode: native, nodes")).expect("written");
    mesh.daemon("west-worker").restart().expect("restarted");
    assert!(eventually(|| tunnels.run("west-worker", "nft list ruleset").contains("maxseg size set rt mtu")));
    mesh.wait_healthy(&NODES);
    // 50 octets are around a packet, and 40 are headers of IP and TCP.
    assert_eq!(segments(&tunnels, &folder.path().join("clamped.pcap")), ways("1410"));
    tunnels.mesh.finish();
}
