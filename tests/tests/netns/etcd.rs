//! The clusters publish themselves through real etcd servers with TLS, client certificates and roles.

use std::{collections::BTreeSet, time::Duration};

use super::{
    meshes::{Admin, Mesh, WEST_EAST, eventually, eventually_within, ping},
    service_traffic::{WEST_SERVICE, Webpods, ask, backends, wait_open},
    services::{ALL_BACKENDS, NODES, Services},
};

const EAST: [&str; 2] = ["east-control-plane", "east-worker"];
const ELECTION: &str = "meshd/election/east";
const ELECTED: &str = "this node writes cluster-config, heartbeat and canaries";
/// The election lease of a killed writer lives 25 s, and the others look every 8 s.
const TAKEOVER: Duration = Duration::from_secs(60);
/// What the writer alone writes.
const DUTIES: [&str; 7] = [
    "cilium/.heartbeat",
    "cilium/cluster-config/east",
    "cilium/synced/east/cilium/state/nodes/v1",
    "cilium/synced/east/cilium/state/services/v1",
    "cilium/synced/east/cilium/state/identities/v1",
    "cilium/synced/east/cilium/state/ip/v1",
    "cilium/synced/east/cilium/state/endpointslices/v1",
];

#[test]
fn real_etcd_gives_the_same_routes() {
    let mesh = Mesh::up("west-east-etcd", WEST_EAST);
    mesh.wait_healthy(&["west-control-plane", "west-worker", "east-control-plane", "east-worker"]);
    assert_eq!(ping(&mesh.node("west-worker-client"), "10.1.1.10"), 62);
    assert_eq!(mesh.ask("west-worker", &["plan"]), serde_json::json!({"actions": []}));
    assert_eq!(mesh.ask("west-worker", &["get", "rejected"]), serde_json::json!([]));
    mesh.assert_routes();
    mesh.finish();
}

#[test]
fn a_service_of_both_clusters_is_reached() {
    let lab = Services::of("west-east-etcd", WEST_EAST);
    lab.wait(&NODES, &ALL_BACKENDS);
    let webpods = Webpods::start(&lab);
    let client = lab.mesh.node("west-worker-client");
    let meets_all = || backends(&ask(&client, WEST_SERVICE, 60)) == ALL_BACKENDS;
    wait_open(&lab, &client, WEST_SERVICE);
    assert!(eventually(meets_all), "{:?}", ask(&client, WEST_SERVICE, 60));
    webpods.stop();
    lab.mesh.finish();
}

#[test]
fn one_node_writes_for_the_cluster_and_another_follows_it() {
    let mesh = Mesh::up("west-east-etcd", WEST_EAST);
    mesh.wait_healthy(&EAST);
    let store = Admin::etcd(mesh.node("east-etcd"));
    let writer = store.get(ELECTION);
    let elected = || -> BTreeSet<&str> { EAST.into_iter().filter(|node| mesh.log(node).contains(ELECTED)).collect() };
    assert_eq!(elected(), BTreeSet::from([writer.as_str()]), "one node is elected, and the store agrees");
    let heir = EAST.into_iter().find(|node| *node != writer).expect("there are two nodes");
    let mut before = DUTIES.map(|_| 0);
    let are_done = eventually(|| {
        before = DUTIES.map(|key| store.revision(key));
        before.iter().all(|revision| *revision > 0)
    });
    assert!(are_done, "all duties are done: {before:?}");

    mesh.daemon(&writer).kill9().expect("killed");
    assert!(
        eventually_within(TAKEOVER, || store.get(ELECTION) == heir),
        "nobody took over; {heir}:\n{}",
        mesh.log(heir)
    );
    assert_eq!(elected(), EAST.into_iter().collect());
    // The records of the dead writer hang on its lease: its heir writes them again on a lease of its own.
    let mut after = before;
    let renewed = eventually(|| {
        after = DUTIES.map(|key| store.revision(key));
        after.iter().zip(&before).all(|(after, before)| after > before)
    });
    assert!(renewed, "revisions of {DUTIES:?} were {before:?} and are {after:?}");
    mesh.assert_routes();

    mesh.daemon(&writer).start().expect("started");
    mesh.wait_healthy(&EAST);
    assert_eq!(store.get(ELECTION), heir, "a writer that comes back does not take over");
    mesh.wait_for_routes();
    mesh.finish();
}
