//! Two clusters on one network: what the nodes install, what the pods see, what the commands say.

use std::{collections::BTreeSet, net::UdpSocket};

use lab::Node;

use super::meshes::{Admin, Mesh, READY, WEST_EAST, column, eventually, pairs, ping, rows};

const NODES: [&str; 4] = ["west-control-plane", "west-worker", "east-control-plane", "east-worker"];
/// TTL of an answer that two nodes forwarded: pods send with 64.
const TTL: u32 = 62;

#[test]
fn pods_of_two_clusters_talk_with_their_own_addresses() {
    let mesh = Mesh::up("west-east", WEST_EAST);
    let west = [("west-control-plane-client", "10.0.0.20"), ("west-worker-client", "10.0.1.20")];
    let east = [("east-control-plane-webpod", "10.1.0.10"), ("east-worker-webpod", "10.1.1.10")];
    for (pod, address) in west {
        for (remote_pod, remote) in east {
            assert_eq!(ping(&mesh.node(pod), remote), TTL, "{pod} to {remote}");
            assert_eq!(ping(&mesh.node(remote_pod), address), TTL, "{remote_pod} to {address}");
            let seen = source_seen(&mesh.node(pod), &mesh.node(remote_pod), remote);
            assert_eq!(seen, address, "{remote_pod} sees the address of {pod}");
        }
    }
    mesh.finish();
}

/// The source address with which a datagram from one pod reaches another one.
fn source_seen(from: &Node, to: &Node, address: &str) -> String {
    let bind = |pod: &Node, address: &str| {
        let socket = pod.within(|| UdpSocket::bind((address, 0))).expect("the pod runs").expect("a socket in the pod");
        socket.set_read_timeout(Some(READY)).expect("a timeout is set");
        socket
    };
    let (client, server) = (bind(from, "0.0.0.0"), bind(to, address));
    client.send_to(b"who am I?", server.local_addr().expect("a bound socket")).expect("sent");
    let (_, source) = server.recv_from(&mut [0; 64]).expect("the datagram arrives");
    source.ip().to_string()
}

#[test]
fn the_commands_show_a_settled_node() {
    let mesh = Mesh::up("west-east", WEST_EAST);
    mesh.wait_healthy(&NODES);

    let status = mesh.ask("west-worker", &["status"]);
    assert_eq!(status["cluster"], serde_json::json!({"name": "west", "id": 1}));
    assert_eq!(status["node"]["name"], "west-worker");
    assert_eq!(status["node"]["addresses"], serde_json::json!(["172.18.0.5"]));
    assert_eq!(status["node"]["pod_cidrs"], serde_json::json!(["10.0.1.0/24"]));
    assert_eq!(status["health"], "ok");
    assert_eq!(status["problems"], serde_json::json!([]));
    assert_eq!(status["routes"], serde_json::json!({"desired": 3, "installed": 3, "errors": 0}));
    assert_eq!(status["bgp"]["peers"], 0);
    assert_eq!(status["datapath"]["enabled"], true);
    assert_eq!(status["datapath"]["programs"].as_array().map(Vec::len), Some(6), "{}", status["datapath"]);
    let peer = &status["peers"][0];
    assert_eq!((&peer["cluster"], &peer["id"]), (&"east".into(), &2.into()));
    assert_eq!((&peer["connected"], &peer["ready"], &peer["nodes"]), (&true.into(), &true.into(), &2.into()));
    assert_eq!(peer["reconnections"], 0, "{peer}");
    assert!(peer.get("last_failure").is_some(), "{peer}");
    // The two webpods of east; their labels are one identity, and one service selects them.
    let counts = || {
        let peer = &mesh.ask("west-worker", &["status"])["peers"][0];
        ["endpoints", "identities", "services"].map(|kind| peer[kind].as_u64().unwrap_or(0))
    };
    assert!(eventually(|| counts() == [2, 1, 1]), "endpoints, identities and services are {:?}", counts());

    let routes = mesh.ask("west-worker", &["get", "routes"]);
    assert_eq!(
        column(&routes, "prefix"),
        BTreeSet::from(["10.0.0.0/24", "10.1.0.0/24", "10.1.1.0/24"].map(Into::into))
    );
    let row = rows(&routes).iter().find(|row| row["prefix"] == "10.1.1.0/24").expect("the route is listed");
    let next_hops = serde_json::json!([{"via": "172.18.0.2", "dev": "eth0"}]);
    let expected = serde_json::json!({
        "prefix": "10.1.1.0/24", "next_hops": next_hops, "mode": "native", "mtu": 1500, "cluster": "east",
        "node": "east-worker", "status": "done", "error": null,
    });
    assert_eq!(*row, expected);

    for node in NODES {
        assert_eq!(mesh.ask(node, &["plan"]), serde_json::json!({"actions": []}), "plan of {node}");
        assert_eq!(mesh.ask(node, &["get", "rejected"]), serde_json::json!([]), "refusals on {node}");
    }
    // Each cluster has the 65,536 numbers that begin with its id.
    let identities = mesh.ask("west-worker", &["get", "identities"]);
    assert_eq!(column(&identities, "cluster"), BTreeSet::from(["east".into(), "west".into()]));
    for row in rows(&identities) {
        let range = if row["cluster"] == "west" { 65_536..131_072 } else { 131_072..196_608 };
        let id = row["id"].as_u64().expect("the number is settled");
        assert!(range.contains(&id), "{row}");
        assert_eq!(row["labels"]["k8s:io.cilium.k8s.policy.cluster"], row["cluster"], "{row}");
    }
    mesh.finish();
}

#[test]
fn drain_takes_the_node_out_and_a_restart_brings_it_back() {
    let mesh = Mesh::up("west-east", WEST_EAST);
    mesh.wait_healthy(&NODES);
    let store = Admin::embedded(mesh.node("west-control-plane"));
    let keys = ["cilium/state/nodes/v1/west/west-worker", "cilium/state/ip/v1/default/10.0.1.10"];
    for key in keys {
        assert!(eventually(|| !store.get(key).is_empty()), "{key} is published");
    }

    let drained = mesh.ask("west-worker", &["drain"]);
    assert_eq!((&drained["removed_routes"], &drained["errors"]), (&3.into(), &serde_json::json!([])), "{drained}");
    assert!(drained["withdrawn_keys"].as_u64().is_some_and(|keys| keys >= 2), "{drained}");

    for key in keys {
        assert_eq!(store.get(key), "", "{key} is withdrawn");
    }
    mesh.wait_for_routes_of("west-worker", &BTreeSet::new());
    for (node, routes) in WEST_EAST.iter().filter(|(node, _)| *node != "west-worker") {
        let mut left = pairs(routes);
        left.retain(|(prefix, _)| prefix != "10.0.1.0/24");
        mesh.wait_for_routes_of(node, &left);
    }

    mesh.daemon("west-worker").restart().expect("restarted");
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn sigterm_keeps_the_routes() {
    let mesh = Mesh::up("west-east", WEST_EAST);
    for node in NODES {
        mesh.daemon(node).stop().expect("it ends in time");
    }
    mesh.assert_routes();
    assert_eq!(ping(&mesh.node("west-worker-client"), "10.1.1.10"), TTL);
    for node in NODES {
        mesh.daemon(node).start().expect("started");
    }
    mesh.wait_healthy(&NODES);
    mesh.assert_routes();
    mesh.finish();
}
