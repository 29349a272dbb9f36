//! The etcd source against real stores.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use meshd_core::{
    clustermesh::reader::Timers,
    id::NumericIdentity,
    observed::{ClusterTables, Kind, ServiceName, ServiceRow},
};
use serde::Deserialize;

use super::{
    relay::Relay,
    store::{Etcd, Pki, embedded, local},
    world::{DEADLINE, Node, canaries, fill, name, node_key, node_value, nodes, peer, set, timers},
};

/// A key and its value as a Cilium control plane wrote them.
#[derive(Deserialize)]
struct Vector {
    key: String,
    value: String,
}

fn vectors(form: &str) -> Vec<Vector> {
    let path = format!("{}/../meshd/core/tests/vectors/clustermesh-{form}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A store of `c1` with TLS and users, its data, and a node of `west` that reads it through a relay.
struct Pair {
    pki: Pki,
    etcd: Etcd,
    relay: Relay,
    node: Node,
}

impl Pair {
    async fn start(timers: Timers) -> Self {
        let pki = Pki::new();
        let etcd = Etcd::start(&pki, "c1", &["west"]).await;
        let relay = Relay::start(etcd.address).await;
        let tls = pki.files("remote-west", "remote-west");
        let node = Node::start(vec![peer("c1", relay.address, tls)], timers);
        Self { pki, etcd, relay, node }
    }

    async fn ready() -> Self {
        let pair = Self::start(timers()).await;
        let mut root = pair.etcd.root(&pair.pki).await;
        fill(&mut root).await;
        canaries(&mut root).await;
        assert_eq!(nodes(&pair.node.ready("c1").await), ["node-a", "node-b"]);
        pair
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_form_of_a_real_control_plane_is_read() {
    let pair = Pair::start(timers()).await;
    let mut root = pair.etcd.root(&pair.pki).await;
    for vector in vectors("state") {
        root.put(vector.key, vector.value, None).await.unwrap();
    }
    let tables = pair.node.ready("c1").await;
    assert_eq!(nodes(&tables), ["node-a"]);
    assert_eq!((tables.endpoints.len(), tables.identities.len(), tables.services.len()), (2, 1, 4));
    assert!(tables.identities.contains(&NumericIdentity(65_601)));
    assert!(tables.rejected.is_empty(), "{:?}", tables.rejected);
    assert_eq!(pair.node.problem("c1"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_form_of_a_real_control_plane_is_read() {
    let pki = Pki::new();
    let etcd = Etcd::start(&pki, "c1", &[]).await;
    let mut root = etcd.root(&pki).await;
    for vector in vectors("cache") {
        root.put(vector.key, vector.value, None).await.unwrap();
    }
    let node = Node::start(vec![peer("c2", etcd.address, pki.files("local-c1", "local-c1"))], timers());
    let tables = node.ready("c2").await;
    assert_eq!(nodes(&tables), ["node-b"]);
    assert_eq!((tables.endpoints.len(), tables.identities.len()), (2, 1));
    assert!(node.row("c2").cached);
    assert!(tables.rejected.is_empty(), "{:?}", tables.rejected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_of_a_cluster_without_json_are_read_from_slices() {
    const SLICE: &str = "cilium/state/endpointslices/v1/c1/demo/echo-x7k2p";
    let pair = Pair::start(timers()).await;
    let mut root = pair.etcd.root(&pair.pki).await;
    fill(&mut root).await;
    let config = r#"{"id":1,"capabilities":{"syncedCanaries":true,"endpointSlicesExportMode":"endpointslices-only"}}"#;
    root.put("cilium/cluster-config/c1", config, None).await.unwrap();
    let path = format!("{}/../meshd/core/tests/vectors/endpointslice.zst", env!("CARGO_MANIFEST_DIR"));
    let slice = std::fs::read(path).unwrap();
    root.put(SLICE, slice.clone(), None).await.unwrap();
    for kind in ["nodes", "identities", "ip"] {
        root.put(format!("cilium/synced/c1/cilium/state/{kind}/v1"), "2026-11-20T21:57:17Z", None).await.unwrap();
    }
    pair.node.wait_problem("c1", "canary endpointslices/v1 of c1 is missing").await;
    root.put("cilium/synced/c1/cilium/state/endpointslices/v1", "2026-11-20T21:57:17Z", None).await.unwrap();
    let tables = pair.node.ready("c1").await;
    let backends = |tables: &ClusterTables| -> Vec<String> {
        let of = |(name, row): (&ServiceName, &Arc<ServiceRow>)| {
            let addresses: Vec<String> = row.backends.keys().map(ToString::to_string).collect();
            format!("{name} {}", addresses.join(","))
        };
        tables.services.iter().map(of).collect()
    };
    assert_eq!(backends(&tables), ["demo/echo 10.1.0.10"], "the other endpoint is not ready");
    // A damaged slice is named and takes nothing back.
    root.put(SLICE, "damaged", None).await.unwrap();
    let tables = pair.node.wait("c1", "not refused", |tables| tables.rejected.len() == 1).await;
    assert_eq!(backends(&tables), ["demo/echo 10.1.0.10"]);
    root.put(SLICE, slice, None).await.unwrap();
    pair.node.wait("c1", "not healed", |tables| tables.rejected.is_empty()).await;
    root.delete(SLICE, None).await.unwrap();
    pair.node.wait("c1", "still there", |tables| tables.services.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_before_its_canary() {
    let pair = Pair::start(timers()).await;
    pair.node.wait_problem("c1", "cluster-config of c1 absent").await;
    let mut root = pair.etcd.root(&pair.pki).await;
    fill(&mut root).await;
    pair.node.wait_problem("c1", "canaries nodes/v1, identities/v1, ip/v1, services/v1 of c1 are missing").await;
    assert!(pair.node.tables("c1").unwrap().nodes.is_empty());
    canaries(&mut root).await;
    assert_eq!(nodes(&pair.node.ready("c1").await), ["node-a", "node-b"]);
    assert_eq!(pair.node.problem("c1"), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_went_while_the_store_was_away_is_swept_and_not_before() {
    let pair = Pair::ready().await;
    pair.relay.cut().await;
    pair.node.wait("c1", "not stale", |tables| tables.stale_since.is_some()).await;
    let mut root = pair.etcd.root(&pair.pki).await;
    root.delete(node_key("node-a"), None).await.unwrap();
    root.put(node_key("node-c"), node_value("node-c", 4), None).await.unwrap();
    let stale = pair.node.tables("c1").unwrap();
    assert_eq!(nodes(&stale), ["node-a", "node-b"], "rows stay while the store is silent");
    pair.relay.restore();
    let tables = pair.node.ready("c1").await;
    assert_eq!(nodes(&tables), ["node-b", "node-c"]);
    assert!(pair.node.row("c1").reconnections >= 1);
    assert!(pair.node.row("c1").last_failure.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_and_restarted_store_is_followed_again() {
    let mut pair = Pair::ready().await;
    pair.etcd.kill();
    pair.node.wait("c1", "not stale", |tables| tables.stale_since.is_some()).await;
    pair.etcd.run(&pair.pki).await;
    pair.node.ready("c1").await;
    let mut root = pair.etcd.root(&pair.pki).await;
    root.put(node_key("node-c"), node_value("node-c", 4), None).await.unwrap();
    pair.node.wait("c1", "no event", |tables| nodes(tables).len() == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_its_data_sweeps_nothing_until_its_canaries_are_back() {
    let mut pair = Pair::ready().await;
    let old = pair.node.row("c1").store_id;
    pair.etcd.replace(&pair.pki, &["west"]).await;
    let mut root = pair.etcd.root(&pair.pki).await;
    pair.node.wait_problem("c1", "cluster-config of c1 absent").await;
    fill(&mut root).await;
    root.delete(node_key("node-b"), None).await.unwrap();
    pair.node.wait_problem("c1", "are missing").await;
    assert_eq!(nodes(&pair.node.tables("c1").unwrap()), ["node-a", "node-b"]);
    assert!(pair.node.tables("c1").unwrap().stale_since.is_some());
    canaries(&mut root).await;
    // The list is complete, and what it lacks goes a grace later.
    assert_eq!(nodes(&pair.node.ready("c1").await), ["node-a", "node-b"]);
    assert!(pair.node.row("c1").kept_until.is_some());
    assert_ne!(pair.node.row("c1").store_id, old);
    let tables = pair.node.wait("c1", "still kept", |tables| tables.nodes.len() == 1).await;
    assert_eq!(nodes(&tables), ["node-a"]);
    assert_eq!(pair.node.row("c1").kept_until, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_under_another_id_is_read_anew() {
    let pair = Pair::ready().await;
    let mut root = pair.etcd.root(&pair.pki).await;
    let config = r#"{"id":5,"capabilities":{"syncedCanaries":true}}"#;
    root.put("cilium/cluster-config/c1", config, None).await.unwrap();
    // Its records still say 1: they are refused now.
    let tables =
        pair.node.wait("c1", "still there", |tables| tables.nodes.is_empty() && tables.rejected.len() == 2).await;
    let reason = tables.rejected.iter().next().unwrap().1.reason.to_string();
    assert!(reason.contains("cluster id 1"), "{reason}");
    for (node, third) in [("node-a", 2), ("node-b", 3)] {
        let value = node_value(node, third).replace(r#""ClusterID":1"#, r#""ClusterID":5"#);
        root.put(node_key(node), value, None).await.unwrap();
    }
    let tables = pair.node.wait("c1", "not healed", |tables| tables.nodes.len() == 2).await;
    assert!(tables.rejected.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_are_compacted_away_are_started_again() {
    let pki = Pki::new();
    let etcd = Etcd::start(&pki, "c1", &["west"]).await;
    let mut root = etcd.root(&pki).await;
    fill(&mut root).await;
    canaries(&mut root).await;
    let identity = "k8s:io.cilium.k8s.policy.cluster=c1;";
    let mut last = 0;
    for chunk in 0..60 {
        let puts: Vec<_> = (0..100)
            .map(|n| format!("cilium/state/identities/v1/id/{}", 65_600 + chunk * 100 + n))
            .map(|key| etcd_client::TxnOp::put(key, identity, None))
            .collect();
        let answer = root.txn(etcd_client::Txn::new().and_then(puts)).await.unwrap();
        last = answer.header().unwrap().revision();
    }
    // Compaction runs against the lists until the reader has met it or was faster.
    let compacting = tokio::spawn({
        let mut root = etcd.root(&pki).await;
        async move {
            for _ in 0..200 {
                let put = root.put(node_key("node-b"), node_value("node-b", 3), None).await.unwrap();
                let revision = put.header().unwrap().revision();
                root.compact(revision, None).await.unwrap();
            }
        }
    });
    let node = Node::start(vec![peer("c1", etcd.address, pki.files("remote-west", "remote-west"))], timers());
    compacting.await.unwrap();
    let tables = node.wait("c1", "not all", |tables| tables.identities.len() == 6_000).await;
    assert!(last > 0 && tables.rejected.is_empty());
    node.ready("c1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_heartbeat_builds_the_connection_anew_and_keeps_rows() {
    let short = Timers {
        check: Duration::from_millis(100),
        check_failing: Duration::from_millis(50),
        silence: Duration::from_secs(1),
        ..timers()
    };
    let pair = Pair::start(short).await;
    let mut root = pair.etcd.root(&pair.pki).await;
    fill(&mut root).await;
    canaries(&mut root).await;
    pair.node.ready("c1").await;
    pair.node
        .wait("c1", "no reconnection", |tables| tables.peer.as_ref().is_some_and(|row| row.reconnections > 0))
        .await;
    let row = pair.node.row("c1");
    assert!(row.last_failure.unwrap().message.contains("heartbeat of c1 has been silent"));
    assert_eq!(pair.node.tables("c1").unwrap().nodes.len(), 2);
    // With a beat in time the connection stays.
    let beating = tokio::spawn(async move {
        loop {
            root.put("cilium/.heartbeat", "2026-11-20T21:57:16Z", None).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    pair.node.ready("c1").await;
    let before = pair.node.row("c1").reconnections;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert!(pair.node.row("c1").reconnections <= before + 1, "the heartbeat was not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    beating.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_records_are_visible_and_disturb_nobody() {
    let pair = Pair::ready().await;
    let mut root = pair.etcd.root(&pair.pki).await;
    let endpoint = "cilium/state/ip/v1/default/";
    let good = node_value("x", 9);
    let refused = [
        (
            node_key("wrong-cluster"),
            good.replace(r#""c1""#, r#""c9""#).replace(r#""x""#, r#""wrong-cluster""#),
            "cluster",
        ),
        (node_key("wrong-name"), good.clone(), "key says"),
        (node_key("own"), node_value("own", 9).replace("10.1.9.0", "10.9.1.0"), "our own PodCIDR"),
        (node_key("far"), node_value("far", 9).replace("10.1.9.0", "192.168.9.0"), "accept.pod_cidrs"),
        (
            node_key("world"),
            node_value("world", 9).replace("10.1.9.0", "0.0.0.0").replace("////AA==", "AAAAAA=="),
            "default route",
        ),
        (node_key("json"), "{".to_owned(), "malformed JSON"),
        (node_key("mask"), node_value("mask", 9).replace("////AA==", "no"), "mask"),
        (node_key("huge"), format!("{{\"Name\":\"{}\"}}", "x".repeat(1_400_000)), ""),
        (format!("{endpoint}FD00::1"), r#"{"IP":"fd00::1","ID":65601}"#.to_owned(), "canonical"),
        ("cilium/state/identities/v1/id/70000".to_owned(), "k8s:a=b;".to_owned(), "io.cilium.k8s.policy.cluster"),
        ("cilium/state/identities/v1/id/7".to_owned(), "k8s:a=b;".to_owned(), "65536"),
    ];
    for (key, value, _) in &refused {
        root.put(key.as_str(), value.as_str(), None).await.unwrap();
    }
    let tables = pair.node.wait("c1", "not refused", |tables| tables.rejected.len() == refused.len()).await;
    for (key, _, part) in &refused {
        let row = tables.rejected.get(&key.as_str().into()).unwrap_or_else(|| panic!("{key} was not refused"));
        assert!(row.reason.to_string().contains(part), "{key}: {}", row.reason);
    }
    assert_eq!(nodes(&tables), ["node-a", "node-b"]);
    assert!(pair.node.row("c1").is_ready());
    for (key, ..) in &refused {
        root.delete(key.as_str(), None).await.unwrap();
    }
    pair.node.wait("c1", "not healed", |tables| tables.rejected.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_certificate_is_used_at_the_next_connection() {
    let pki = Pki::new();
    let etcd = Etcd::start(&pki, "c1", &["west"]).await;
    let mut root = etcd.root(&pki).await;
    fill(&mut root).await;
    canaries(&mut root).await;
    let relay = Relay::start(etcd.address).await;
    let node = Node::start(vec![peer("c1", relay.address, pki.files("client", "nobody"))], timers());
    node.wait_problem("c1", "CN of our certificate").await;
    pki.files("client", "remote-west");
    relay.cut().await;
    relay.restore();
    node.ready("c1").await;
    // Files that are broken while they are replaced are a problem, not an end.
    std::fs::write(pki.path("client.key"), "half a key").unwrap();
    relay.cut().await;
    node.wait_problem("c1", "client.key").await;
    pki.files("client", "remote-west");
    relay.restore();
    node.ready("c1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_read_is_named_and_the_rest_is_read() {
    let pair = Pair::ready().await;
    let mut root = pair.etcd.root(&pair.pki).await;
    // Revoked as a whole and granted again without the services.
    let options = etcd_client::RoleRevokePermissionOptions::new().with_prefix();
    root.role_revoke_permission("remote", "cilium/state/", Some(options)).await.unwrap();
    for kind in ["nodes", "ip", "identities"] {
        let permission = etcd_client::Permission::read(format!("cilium/state/{kind}/")).with_prefix();
        root.role_grant_permission("remote", permission).await.unwrap();
    }
    pair.relay.cut().await;
    pair.relay.restore();
    pair.node.wait_problem("c1", "failed to read services of c1: permission denied").await;
    let is_read = |tables: &ClusterTables| tables.peer.as_ref().is_some_and(|row| row.synced.contains(&Kind::Nodes));
    pair.node.wait("c1", "nodes not read", is_read).await;
    let permission = etcd_client::Permission::read("cilium/state/services/").with_prefix();
    root.role_grant_permission("remote", permission).await.unwrap();
    pair.node.ready("c1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_come_change_and_go_while_running() {
    let pair = Pair::ready().await;
    let mut narrow = pair.node.peers.borrow().peers[&name("c1")].clone();
    narrow.peer.accept.pod_cidrs = vec!["10.1.2.0/24".parse().unwrap()];
    pair.node.peers.send_replace(set(vec![narrow]));
    let tables = pair
        .node
        .wait("c1", "list not in force", |tables| tables.nodes.len() == 1 && !tables.rejected.is_empty())
        .await;
    assert_eq!(nodes(&tables), ["node-a"]);
    pair.node.peers.send_replace(set(Vec::new()));
    let began = Instant::now();
    while pair.node.tables("c1").is_some() {
        assert!(began.elapsed() < DEADLINE, "the cluster was not dropped");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_with_one_id_are_told_apart_by_who_came_first() {
    let pair = Pair::ready().await;
    let pki = Pki::new();
    let (store, address) = embedded(&pki, "c9", &["west"], None).await;
    let mut root = local(&store).await;
    let config = r#"{"id":1,"capabilities":{"syncedCanaries":true}}"#;
    root.put("cilium/cluster-config/c9", config, None).await.unwrap();
    let first = pair.node.peers.borrow().peers[&name("c1")].clone();
    let second = peer("c9", address, pki.files("remote-west", "remote-west"));
    pair.node.peers.send_replace(set(vec![first, second.clone()]));
    pair.node.wait_problem("c9", "cluster id 1 of c9 is already used by c1").await;
    assert!(pair.node.row("c1").is_ready());
    // When the first one goes, its id is free.
    pair.node.peers.send_replace(set(vec![second]));
    pair.node.wait_problem("c9", "canaries").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_is_read_like_a_real_one_and_quickly() {
    let pki = Pki::new();
    let (store, address) = embedded(&pki, "c1", &["west"], None).await;
    let mut root = local(&store).await;
    for vector in vectors("state") {
        root.put(vector.key, vector.value, None).await.unwrap();
    }
    let node = Node::start(vec![peer("c1", address, pki.files("remote-west", "remote-west"))], timers());
    let tables = node.ready("c1").await;
    assert_eq!((tables.nodes.len(), tables.endpoints.len(), tables.services.len()), (1, 2, 4));
    let began = Instant::now();
    for third in 2..52 {
        root.put(node_key(&format!("n{third}")), node_value(&format!("n{third}"), third), None).await.unwrap();
    }
    node.wait("c1", "not all", |tables| tables.nodes.len() == 51).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    store.close().await;
    node.wait("c1", "not stale", |tables| tables.stale_since.is_some()).await;
    assert_eq!(node.tables("c1").unwrap().nodes.len(), 51);
}
