//! A node of cluster `west` without a kernel: its etcd source and its observed tables.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use etcd_client::Client;
use jiff::Timestamp;
use meshd::{
    config::model::{Accept, Peer, TlsFiles},
    sources::{
        config::{PeerEntry, PeerSet},
        etcd::{EtcdSource, OwnCluster},
    },
    store::StoreAddress,
};
use meshd_core::{
    clustermesh::reader::Timers,
    id::{ClusterId, ClusterName, MaxClusters},
    observed::{ClusterTables, Observed, PeerRow},
};
use meshd_store::{Store, StoreOptions};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How long anything may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// A running etcd source and what it told.
pub(super) struct Node {
    observed: Arc<Mutex<Observed>>,
    pub(super) peers: watch::Sender<PeerSet>,
    stop: CancellationToken,
    /// Keeps the own store, when it is embedded.
    _own: Option<Store>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Timers for tests: everything the daemon waits for, but shorter.
pub(super) fn timers() -> Timers {
    Timers {
        reconnect_min: Duration::from_millis(50),
        reconnect_max: Duration::from_millis(500),
        config_retry_min: Duration::from_millis(100),
        config_retry_max: Duration::from_millis(500),
        canary_grace: Duration::from_millis(300),
        refused_retry: Duration::from_millis(300),
        replaced_grace: Duration::from_secs(1),
        ..Timers::default()
    }
}

pub(super) fn name(text: &str) -> ClusterName {
    text.parse().unwrap()
}

pub(super) fn own() -> OwnCluster {
    OwnCluster {
        name: name("west"),
        id: ClusterId::new(9, MaxClusters::C255).unwrap(),
        max_clusters: MaxClusters::C255,
        node: "west-worker".parse().unwrap(),
        addresses: vec!["172.18.0.99".parse().unwrap()],
        pod_cidrs: vec!["10.9.1.0/24".parse().unwrap()],
    }
}

/// A peer that may claim nearly everything.
pub(super) fn peer(cluster: &str, address: SocketAddr, tls: TlsFiles) -> PeerEntry {
    let peer = Peer {
        mode: None,
        cluster: name(cluster),
        endpoints: vec![format!("https://{address}").parse().unwrap()],
        over_bgp: None,
        tls: Some(tls),
        accept: Accept {
            pod_cidrs: ["10.1.0.0/16", "10.2.0.0/16", "10.91.0.0/16", "10.92.0.0/16", "fd00::/16"]
                .map(|prefix| prefix.parse().unwrap())
                .to_vec(),
            node_cidrs: ["172.18.0.0/16", "fc00::/16"].map(|prefix| prefix.parse().unwrap()).to_vec(),
        },
        host_aliases: BTreeMap::new(),
        source: "test".into(),
    };
    PeerEntry { peer, certificates: None }
}

impl Node {
    /// A node that reads `peers` and has a store of its own that nobody writes to.
    pub(super) fn start(peers: Vec<PeerEntry>, timers: Timers) -> Self {
        let (store, _) = Store::open(StoreOptions::default()).unwrap();
        let address = StoreAddress::Local(store.local_channel());
        let mut node = Self::with_store(peers, timers, own(), address);
        node._own = Some(store);
        node
    }

    pub(super) fn with_store(peers: Vec<PeerEntry>, timers: Timers, own: OwnCluster, own_store: StoreAddress) -> Self {
        let (changes, mut received) = mpsc::channel(64);
        let (peers, peers_rx) = watch::channel(set(peers));
        let stop = CancellationToken::new();
        let source = EtcdSource {
            own,
            own_store,
            peers: peers_rx,
            changes,
            known_ids: BTreeMap::new(),
            remembered: Default::default(),
            timers,
        };
        tokio::spawn(source.run(stop.clone()));
        let observed = Arc::new(Mutex::new(Observed::default()));
        let writer = observed.clone();
        tokio::spawn(async move {
            while let Some(change) = received.recv().await {
                writer.lock().unwrap().apply(change, Timestamp::now());
            }
        });
        Self { observed, peers, stop, _own: None }
    }

    /// The tables of a cluster.
    pub(super) fn tables(&self, cluster: &str) -> Option<ClusterTables> {
        self.observed.lock().unwrap().clusters.get(&name(cluster)).cloned()
    }

    /// The peer row of a cluster.
    pub(super) fn row(&self, cluster: &str) -> PeerRow {
        self.tables(cluster).and_then(|tables| tables.peer).map(|row| (*row).clone()).unwrap_or_default()
    }

    pub(super) fn problem(&self, cluster: &str) -> String {
        self.row(cluster).problem.map(|problem| problem.message.to_string()).unwrap_or_default()
    }

    /// Waits until the tables of `cluster` are as asked for.
    pub(super) async fn wait(&self, cluster: &str, what: &str, is: impl Fn(&ClusterTables) -> bool) -> ClusterTables {
        let began = Instant::now();
        loop {
            if let Some(tables) = self.tables(cluster).filter(&is) {
                return tables;
            }
            assert!(began.elapsed() < DEADLINE, "{what}: {:#?}", self.tables(cluster));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn ready(&self, cluster: &str) -> ClusterTables {
        let is_ready = |tables: &ClusterTables| {
            tables.peer.as_ref().is_some_and(|row| row.is_ready()) && tables.stale_since.is_none()
        };
        self.wait(cluster, "not ready", is_ready).await
    }

    pub(super) async fn wait_problem(&self, cluster: &str, part: &str) {
        self.wait(cluster, &format!("no problem {part:?}"), |tables| {
            let problem = tables.peer.as_ref().and_then(|row| row.problem.as_ref());
            problem.is_some_and(|problem| problem.message.contains(part))
        })
        .await;
    }
}

pub(super) fn set(peers: Vec<PeerEntry>) -> PeerSet {
    let peers = peers.into_iter().map(|entry| (entry.peer.cluster.clone(), entry)).collect();
    PeerSet { peers, ..PeerSet::default() }
}

/// Names of the nodes, in order.
pub(super) fn nodes(tables: &ClusterTables) -> Vec<String> {
    tables.nodes.iter().map(|(name, _)| name.to_string()).collect()
}

/// A node record of cluster `c1` (id 1).
pub(super) fn node_value(node: &str, third: u8) -> String {
    format!(
        r#"{{"Name":"{node}","Cluster":"c1","ClusterID":1,"IPAddresses":[{{"Type":"InternalIP","IP":"172.18.0.{third}"}}],
        "IPv4AllocCIDR":{{"IP":"10.1.{third}.0","Mask":"////AA=="}}}}"#
    )
}

pub(super) fn node_key(node: &str) -> String {
    format!("cilium/state/nodes/v1/c1/{node}")
}

/// Config, heartbeat and a node of cluster `c1`, without canaries.
pub(super) async fn fill(client: &mut Client) {
    for (key, value) in [
        ("cilium/.heartbeat", "2026-11-20T21:57:16Z"),
        ("cilium/cluster-config/c1", r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}"#),
    ] {
        client.put(key, value, None).await.unwrap();
    }
    client.put(node_key("node-a"), node_value("node-a", 2), None).await.unwrap();
    client.put(node_key("node-b"), node_value("node-b", 3), None).await.unwrap();
}

pub(super) async fn canaries(client: &mut Client) {
    for kind in ["nodes", "identities", "ip", "services"] {
        client.put(format!("cilium/synced/c1/cilium/state/{kind}/v1"), "2026-11-20T21:57:17Z", None).await.unwrap();
    }
}
