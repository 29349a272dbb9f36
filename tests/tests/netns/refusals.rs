//! What a remote cluster must not say, said through its store: each record is refused with its reason, and nothing else
//! changes. Oversized values cannot be in a store at all: both etcd and the embedded store refuse them at the door, which
//! is tested here; that a reader refuses one unread is a unit test of the codec.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::meshes::{Admin, Mesh, READY, WEST_EAST, eventually, rows};

const NODES: &str = "cilium/state/nodes/v1/east";
const CONFIG: &str = "cilium/cluster-config/east";
/// Where the reader under test runs.
const READER: &str = "west-worker";

/// A record that must be refused, and a part of the reason.
struct Bad {
    key: String,
    value: String,
    reason: &'static str,
}

/// The node record of `good` under another name, on a free address and with a free PodCIDR, and one thing changed.
fn node(good: &Value, name: &str, reason: &'static str, change: impl Fn(&mut Value)) -> Bad {
    let mut record = good.clone();
    record["Name"] = name.into();
    record["IPAddresses"] = json!([{"Type": "InternalIP", "IP": "172.18.0.200"}]);
    record["IPv4AllocCIDR"] = json!({"IP": "10.1.9.0", "Mask": "////AA=="});
    change(&mut record);
    Bad { key: format!("{NODES}/{name}"), value: record.to_string(), reason }
}

fn pod_cidr(good: &Value, name: &str, ip: &str, mask: &str, reason: &'static str) -> Bad {
    node(good, name, reason, |record| record["IPv4AllocCIDR"] = json!({"IP": ip, "Mask": mask}))
}

fn endpoint(key: &str, value: &Value, reason: &'static str) -> Bad {
    Bad { key: format!("cilium/state/ip/v1/default/{key}"), value: value.to_string(), reason }
}

fn bad_records(good: &Value) -> Vec<Bad> {
    let host = "172.18.0.2";
    vec![
        node(good, "cluster", "names cluster \"north\", but was published by cluster \"east\"", |record| {
            record["Cluster"] = "north".into();
        }),
        node(good, "cluster-id", "cluster id 3, but the cluster-config of \"east\" says 2", |record| {
            record["ClusterID"] = 3.into();
        }),
        node(good, "key-value", "the key says \"key-value\", but Name in the value is \"other\"", |record| {
            record["Name"] = "other".into();
        }),
        node(good, "address", "\"FD18:0::1\", which in canonical form is fd18::1", |record| {
            record["IPAddresses"] = json!([{"Type": "InternalIP", "IP": "FD18:0::1"}]);
        }),
        pod_cidr(
            good,
            "outside",
            "10.9.0.0",
            "////AA==",
            "10.9.0.0/24 is outside accept.pod_cidrs of cluster \"east\"",
        ),
        pod_cidr(good, "equal", "10.0.1.0", "////AA==", "10.0.1.0/24 is our own PodCIDR 10.0.1.0/24"),
        pod_cidr(good, "inside", "10.0.1.128", "////gA==", "10.0.1.128/25 lies inside our own PodCIDR 10.0.1.0/24"),
        pod_cidr(good, "default", "0.0.0.0", "AAAAAA==", "0.0.0.0/0 covers every address"),
        pod_cidr(good, "multicast", "224.1.0.0", "////AA==", "224.1.0.0/24 is in the multicast range"),
        pod_cidr(good, "mask", "10.1.9.0", "!!!!", "the mask \"!!!!\" in IPv4AllocCIDR is not standard base64"),
        Bad { key: format!("{NODES}/json"), value: "{\"Name\": \"json\",".into(), reason: "malformed JSON at line 1" },
        Bad {
            key: "cilium/state/identities/v1/id/70000".into(),
            value: "k8s:app=stolen;k8s:io.cilium.k8s.policy.cluster=east;".into(),
            reason: "identity 70000 is outside 131072 to 196607, the range of cluster id 2",
        },
        endpoint(
            "10.1.1.77",
            &json!({"IP": "10.1.1.77", "Mask": null, "HostIP": host, "ID": 70000, "Key": 0, "Metadata": ""}),
            "identity 70000 is outside 131072 to 196607, the range of cluster id 2",
        ),
        endpoint(
            "10.1.1.78",
            &json!({"IP": "10.1.1.79", "Mask": null, "HostIP": host, "ID": 131_500, "Key": 0, "Metadata": ""}),
            "the key says \"10.1.1.78\", but IP in the value is \"10.1.1.79\"",
        ),
        endpoint(
            "fd00:0::1",
            &json!({"IP": "fd00::1", "Mask": null, "HostIP": host, "ID": 131_500, "Key": 0, "Metadata": ""}),
            "the key is not in canonical form",
        ),
    ]
}

/// Refused keys with their reasons.
fn refused(mesh: &Mesh) -> BTreeMap<String, String> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let list = mesh.ask(READER, &["get", "rejected"]);
    rows(&list).iter().map(|row| (text(row, "key"), text(row, "reason"))).collect()
}

#[test]
fn bad_records_are_refused_one_by_one_and_touch_nothing_else() {
    let mesh = Mesh::up("west-east", WEST_EAST);
    let store = Admin::embedded(mesh.node("east-control-plane"));
    let good: Value = serde_json::from_str(&store.get(&format!("{NODES}/east-worker"))).expect("a node record");
    let bad = bad_records(&good);
    for record in &bad {
        store.put(&record.key, &record.value);
    }
    let complete = eventually(|| refused(&mesh).len() == bad.len());
    let found = refused(&mesh);
    assert!(complete, "{} of {} records are refused: {found:#?}", found.len(), bad.len());
    for record in &bad {
        let reason = found.get(&record.key).unwrap_or_else(|| panic!("{} is not refused: {found:#?}", record.key));
        assert!(reason.contains(record.reason), "{}: {reason:?} does not say {:?}", record.key, record.reason);
    }
    let list = mesh.ask(READER, &["get", "rejected"]);
    for row in rows(&list) {
        assert_eq!(row["cluster"], "east", "{row}");
        assert!(["node", "ip", "identity"].iter().any(|kind| row["kind"] == *kind), "{row}");
    }
    // The nodes of east trust their own store; those of west take nothing from it.
    mesh.assert_routes_of(&["west-control-plane", READER]);
    assert_eq!(mesh.ask(READER, &["get", "peers"])[0]["nodes"], 2);

    // One is mended and is a node like any other; it leaves, and the others are taken back.
    let mended = node(&good, "mask", "", |_| {});
    store.put(&mended.key, &mended.value);
    assert!(eventually(|| !refused(&mesh).contains_key(&mended.key)), "the mended record is still refused");
    let route = ("10.1.9.0/24".to_owned(), "172.18.0.200".to_owned());
    assert!(eventually(|| mesh.routes(READER).contains(&route)), "no route to the mended node");
    for record in &bad {
        store.delete(&record.key);
    }
    assert!(eventually(|| refused(&mesh).is_empty()), "still refused: {:#?}", refused(&mesh));
    mesh.wait_for_routes();
    mesh.finish();
}

#[test]
fn an_oversized_value_does_not_even_get_into_the_store() {
    let mesh = Mesh::up("west-east", WEST_EAST);
    let put = "head -c 1700000 /dev/zero | tr '\\0' x | ETCDCTL_API=3 etcdctl --endpoints=https://127.0.0.1:2379 \
               --cacert=/etc/meshd/pki/ca.crt --cert=/etc/meshd/pki/admin.crt --key=/etc/meshd/pki/admin.key \
               put cilium/state/nodes/v1/east/oversized";
    let output = mesh.node("east-control-plane").exec(&["sh", "-c", put]).expect("sh runs");
    assert!(!output.success() && output.stderr.contains("too large"), "{output:?}");
    assert_eq!(refused(&mesh), BTreeMap::new());
    mesh.assert_routes();
    mesh.finish();
}

/// The problem of a peer, as `get peers` says it.
fn problem(mesh: &Mesh, peer: &str) -> String {
    mesh.ask(READER, &["get", "peers", peer])[0]["problem"].as_str().unwrap_or_default().to_owned()
}

fn wait_for_problem(mesh: &Mesh, peer: &str, wanted: &str) {
    let mut last = String::new();
    let reached = eventually(|| {
        last = problem(mesh, peer);
        last.contains(wanted)
    });
    assert!(reached, "within {READY:?} the problem of {peer} is {last:?}, not {wanted:?}");
    let status = mesh.ask(READER, &["status"]);
    let of_peer = |row: &&Value| row["component"] == format!("peer/{peer}");
    let listed = rows(&status["problems"]).iter().find(of_peer);
    assert!(listed.is_some_and(|row| row["message"].as_str().is_some_and(|text| text.contains(wanted))), "{status}");
}

#[test]
fn a_cluster_config_that_cannot_be_is_a_problem_of_the_peer_and_keeps_the_routes() {
    let mesh = Mesh::up("west-east-etcd", WEST_EAST);
    mesh.wait_healthy(&["west-control-plane", "west-worker", "east-control-plane", "east-worker"]);
    let store = Admin::etcd(mesh.node("east-etcd"));
    // Nobody repairs what the test does to the store of east.
    for node in ["east-control-plane", "east-worker"] {
        mesh.daemon(node).stop().expect("it ends in time");
    }
    let config = store.get(CONFIG);

    let mut own_id: Value = serde_json::from_str(&config).expect("a cluster-config");
    own_id["id"] = 1.into();
    store.put(CONFIG, &own_id.to_string());
    wait_for_problem(&mesh, "east", "cluster \"east\" has cluster id 1, which is the id of our own cluster \"west\"");
    mesh.assert_routes();

    store.delete(CONFIG);
    wait_for_problem(&mesh, "east", "cluster-config of east was removed from its store");
    mesh.assert_routes();

    // A node that starts now does not find it at all, and keeps what it remembers.
    mesh.daemon(READER).restart().expect("restarted");
    wait_for_problem(&mesh, "east", "cluster-config of east absent in its store");
    mesh.assert_routes();

    // It comes back, but the nodes are no longer vouched for.
    let canary = "cilium/synced/east/cilium/state/nodes/v1";
    let vouched = store.get(canary);
    store.delete(canary);
    store.put(CONFIG, &config);
    wait_for_problem(&mesh, "east", "canary nodes/v1 of east is missing");
    mesh.assert_routes();

    store.put(canary, &vouched);
    mesh.wait_healthy(&[READER]);
    mesh.assert_routes();
    mesh.finish();
}

#[test]
fn two_remote_clusters_with_one_id_are_a_problem_of_the_second() {
    let topology = with_a_third_cluster();
    let file = topology.path().join("west-east-etcd.clab.yml");
    let mesh = Mesh::up(file.to_str().expect("a path of plain text"), WEST_EAST);
    let east = || mesh.ask(READER, &["get", "peers", "east"])[0]["ready"] == true;
    assert!(eventually(east), "east is not ready");
    let config = json!({"id": 2, "capabilities": {"syncedCanaries": true, "maxConnectedClusters": 255}});
    let admin = Admin::etcd(mesh.node("west-etcd"));
    // The role of the nodes of west covers west alone.
    let granted = admin.run(&["role", "grant-permission", "node", "read", "cilium/cluster-config/north"]);
    assert!(granted.success(), "{granted:?}");
    admin.put("cilium/cluster-config/north", &config.to_string());
    wait_for_problem(&mesh, "north", "cluster id 2 of north is already used by east");
    assert_eq!(problem(&mesh, "east"), "");
    mesh.assert_routes();
    mesh.finish();
}

/// The etcd topology, in which the reader has a third cluster that shares the store of west.
fn with_a_third_cluster() -> tempfile::TempDir {
    let (_, file) = lab::catalog::list().into_iter().find(|(name, _)| name == "west-east-etcd").expect("the topology");
    let source = file.parent().expect("a folder of topologies").to_owned();
    let folder = tempfile::tempdir().expect("a folder");
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([file.clone(), source.join("west-east-etcd")])
        .arg(folder.path())
        .status();
    assert!(copied.is_ok_and(|status| status.success()), "the topology is copied");
    let config = folder.path().join("west-east-etcd").join(READER).join("meshd.yaml");
    let text = std::fs::read_to_string(&config).expect("the configuration is read");
    let third = "peers:
  - cluster: north
    endpoints: [\"https://172.18.0.6:2379\"]
    tls: {ca: /etc/meshd/pki/ca.crt, cert: /etc/meshd/pki/node.crt, key: /etc/meshd/pki/node.key}
    accept: {pod_cidrs: [10.9.0.0/16], node_cidrs: [172.18.0.0/16]}
";
    std::fs::write(&config, text.replacen("peers:\n", third, 1)).expect("the configuration is written");
    folder
}
