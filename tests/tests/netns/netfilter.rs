//! Services on nodes whose netfilter drops what it takes for invalid: packets of connections of which it sees one direction only.

use std::net::{SocketAddr, TcpStream};

use lab::Node;

use super::{
    meshes::eventually,
    service_traffic::{PATIENCE, WEST_SERVICE, echo, open, up},
    services::{NODES, WEST},
};

/// The address of the load balancer, which the nodes of the other cluster reach by way of west-worker.
const BALANCER: &str = "198.51.100.80:80";
/// Connections from each place: enough that each of four backends is met.
const CONNECTIONS: usize = 24;

/// Has a node's netfilter drop what it takes for invalid.
pub(super) fn judge(node: &Node) {
    let rules = "table inet judge { chain forward { type filter hook forward priority 0;
                   ct state invalid counter drop
                 }
                 }";
    node.exec(&["nft", rules]).and_then(lab::Output::ok).expect("rules");
}

#[test]
fn connections_through_services_are_valid_or_not_seen() {
    let (lab, webpods) = up();
    let section = "      ports: [{name: http, port: 80}]\n";
    let balancer = "      type: load_balancer\n      load_balancer_ips: [198.51.100.80]\n";
    lab.edit(&WEST, section, &format!("{balancer}{section}"));
    for node in NODES {
        judge(&lab.mesh.node(node));
    }
    let outside = lab.mesh.node("east-worker");
    let route = ["ip", "route", "add", "198.51.100.80", "via", "172.18.0.5"];
    outside.exec(&route).and_then(lab::Output::ok).expect("a route");
    let to: SocketAddr = BALANCER.parse().expect("an address");
    let can = || outside.within(|| TcpStream::connect_timeout(&to, PATIENCE).is_ok()).expect("inside");
    assert!(eventually(can), "{}", lab.mesh.log("west-worker"));

    for (from, to) in [
        ("west-worker-client", WEST_SERVICE),
        ("west-worker-webpod", WEST_SERVICE),
        ("west-worker-client", BALANCER),
        ("east-worker", BALANCER),
    ] {
        let client = lab.mesh.node(from);
        let mut met = std::collections::BTreeSet::new();
        for _ in 0..CONNECTIONS {
            let (mut stream, backend, _) = open(&client, to);
            echo(&mut stream, b"what follows the first packets").expect("it goes on");
            met.insert(backend);
        }
        assert!(met.len() > 1, "{from} met {met:?}");
    }
    webpods.stop();
    lab.mesh.finish();
}
