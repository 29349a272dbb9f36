//! The exporter against real stores.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use etcd_client::{Client, GetOptions, Permission, PermissionType, UserAddOptions};
use meshd::{
    lifecycle::Problems,
    pipeline::Snapshot,
    reconcilers::export::{
        ExportHandle, ExportInputs, ExportMemory, ExportStatus, ExportTimers, Exporter, Remembered, WriterRole,
    },
    sources::etcd::OwnCluster,
    store::StoreAddress,
};
use meshd_core::{
    clustermesh::{
        Accept, Key, PeerContext, endpointslice,
        export::{DATA_LEASE_TTL, LEASE_KEYS_MAX, OwnState, Workload},
    },
    desired::{Desired, ExportedBackend, ExportedPort, ExportedService, Exports},
    id::{ClusterId, MaxClusters, NumericIdentity},
    observed::{ClusterTables, Labels, NodeAddress, NodeAddressKind, NodeRow, Protocol, ServiceName},
    table::RowState,
};
use tokio::{sync::watch, task::JoinHandle};

use super::{
    relay::Relay,
    store::{Etcd, Pki, embedded, local},
    world::{DEADLINE, Node, name, nodes, own, peer, timers},
};

/// Identities and store id.
type Facts = (BTreeMap<Labels, NumericIdentity>, Option<u64>);

/// What an exporter remembered.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Facts>>);

impl ExportMemory for Memory {
    fn remember_identities(&mut self, known: &BTreeMap<Labels, NumericIdentity>) {
        self.0.lock().unwrap().0.clone_from(known);
    }
    fn remember_store(&mut self, store_id: u64) {
        self.0.lock().unwrap().1 = Some(store_id);
    }
}

impl Memory {
    fn remembered(&self) -> Remembered {
        let (identities, store_id) = self.0.lock().unwrap().clone();
        Remembered { identities, store_id, nodes: BTreeSet::new() }
    }
}

/// A running exporter of cluster `c1`; it ends with this value, as at SIGTERM.
struct Publisher {
    own: watch::Sender<Arc<OwnState>>,
    /// What its pipeline says; from the start that nothing is shared.
    snapshots: watch::Sender<Arc<Snapshot>>,
    handle: ExportHandle,
    memory: Memory,
    problems: Problems,
    task: JoinHandle<()>,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn state(node: &str, third: u8, workloads: &[(&str, &str)]) -> OwnState {
    let id = ClusterId::new(1, MaxClusters::C255).unwrap();
    let ip = format!("172.18.0.{third}").parse().unwrap();
    OwnState {
        cluster: name("c1"),
        id,
        max_clusters: MaxClusters::C255,
        node: node.parse().unwrap(),
        row: Arc::new(NodeRow {
            health: Box::default(),
            ingress: Box::default(),
            cluster_id: id,
            addresses: [NodeAddress { kind: NodeAddressKind::InternalIP, ip }].into(),
            pod_cidrs: [format!("10.1.{third}.0/24").parse().unwrap()].into(),
            labels: Labels::default(),
        }),
        workloads: workloads
            .iter()
            .map(|(app, ip)| Workload {
                namespace: "default".to_owned(),
                name: format!("{app}-1"),
                addresses: vec![ip.parse().unwrap()],
                labels: [("app".to_owned(), (*app).to_owned())].into(),
                service_account: String::new(),
            })
            .collect(),
    }
}

/// A snapshot of a cluster that shares these services.
fn sharing(services: &[(&str, &[&str])]) -> Arc<Snapshot> {
    let service = |backends: &[&str]| {
        let backend = |address: &&str| ExportedBackend {
            address: address.parse().unwrap(),
            port: 8080,
            terminating: false,
            node: address.starts_with("10.1.2.").then(|| "n1".parse().unwrap()),
            zone: None,
        };
        let backends = backends.iter().map(backend).collect();
        let port = ExportedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80, backends };
        let cluster_ips = ["10.91.0.80".parse().unwrap()].into();
        Arc::new(ExportedService {
            cluster_ips,
            selector: BTreeMap::new(),
            topology: meshd_core::observed::Topology::None,
            ports: [port].into(),
        })
    };
    let name = |name: &str| ServiceName { namespace: "default".into(), name: name.into() };
    let services = services.iter().map(|(named, backends)| (name(named), service(backends))).collect();
    let exports = Exports { complete: true, services };
    Arc::new(Snapshot { desired: Desired { exports, ..Desired::default() }, ..Snapshot::default() })
}

impl Publisher {
    fn start(state: OwnState, address: StoreAddress, role: WriterRole, remembered: Remembered) -> Self {
        let timers = ExportTimers {
            heartbeat: Duration::from_millis(500),
            retry: Duration::from_millis(300),
            collect: Duration::from_millis(300),
            ..ExportTimers::default()
        };
        Self::start_with(timers, state, address, role, remembered)
    }

    fn start_with(
        timers: ExportTimers,
        state: OwnState,
        address: StoreAddress,
        role: WriterRole,
        remembered: Remembered,
    ) -> Self {
        let (own, own_rx) = watch::channel(Arc::new(state));
        let (snapshots, snapshots_rx) = watch::channel(sharing(&[]));
        let told = ExportInputs { own: own_rx, snapshots: snapshots_rx };
        let memory = Memory::default();
        let problems = Problems::default();
        let (exporter, handle) =
            Exporter::new(told, address, role, timers, remembered, memory.clone(), problems.clone());
        let task = tokio::spawn(exporter.run());
        Self { own, snapshots, handle, memory, problems, task }
    }

    /// Shares `webpod` with these backends.
    fn share(&self, backends: &[&str]) {
        self.snapshots.send_replace(sharing(&[("webpod", backends)]));
    }

    async fn wait(&self, what: &str, is: impl Fn(&ExportStatus) -> bool) -> Arc<ExportStatus> {
        let mut status = self.handle.status();
        let found = tokio::time::timeout(DEADLINE, status.wait_for(|status| is(status))).await;
        match found {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("{what}: {:#?} {:?}", self.handle.status().borrow(), self.problems.list()),
        }
    }

    async fn done(&self) -> Arc<ExportStatus> {
        self.wait("not published", |status| {
            status.connected
                && status.waiting.is_empty()
                && !status.records.is_empty()
                && status.records.values().all(|row| row.state == RowState::Done)
        })
        .await
    }

    fn identities(&self) -> BTreeMap<Labels, NumericIdentity> {
        self.memory.0.lock().unwrap().0.clone()
    }
}

/// All keys below a prefix with their leases.
async fn keys(client: &mut Client, prefix: &str) -> BTreeMap<String, i64> {
    let answer = client.get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
    answer.kvs().iter().map(|kv| (kv.key_str().unwrap().to_owned(), kv.lease())).collect()
}

async fn wait_keys(
    client: &mut Client,
    prefix: &str,
    is: impl Fn(&BTreeMap<String, i64>) -> bool,
) -> BTreeMap<String, i64> {
    let began = Instant::now();
    loop {
        let found = keys(client, prefix).await;
        if is(&found) {
            return found;
        }
        assert!(began.elapsed() < DEADLINE, "{found:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const NODE_KEY: &str = "cilium/state/nodes/v1/c1/n1";
const WEB_KEY: &str = "cilium/state/ip/v1/default/10.1.2.10";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_what_a_reader_sees() {
    let pki = Pki::new();
    let (store, address) = embedded(&pki, "c1", &["west"], None).await;
    let own_address = StoreAddress::Local(store.local_channel());
    let workloads = [("web", "10.1.2.10"), ("web6", "fd00:1::10")];
    let publisher = Publisher::start(state("n1", 2, &workloads), own_address, WriterRole::Host, Remembered::default());
    let status = publisher.done().await;
    assert!(status.writer);
    let reader = Node::start(vec![peer("c1", address, pki.files("remote-west", "remote-west"))], timers());
    let tables = reader.ready("c1").await;
    assert_eq!(nodes(&tables), ["n1"]);
    assert_eq!(**tables.nodes.iter().next().unwrap().1, *state("n1", 2, &[]).row);
    assert_eq!((tables.endpoints.len(), tables.identities.len(), tables.services.len()), (2, 2, 0));
    assert!(tables.rejected.is_empty());
    // The heartbeat beats, and records are leased except for identities.
    let mut root = local(&store).await;
    let first = root.get("cilium/.heartbeat", None).await.unwrap().kvs()[0].mod_revision();
    let began = Instant::now();
    while root.get("cilium/.heartbeat", None).await.unwrap().kvs()[0].mod_revision() == first {
        assert!(began.elapsed() < DEADLINE, "no second heartbeat");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (key, lease) in keys(&mut root, "cilium/").await {
        assert_eq!(lease == 0, key.starts_with("cilium/state/identities/"), "{key} has lease {lease}");
    }
}

/// Keys of `webpod` in the store.
const WEBPOD: &str = "cilium/state/services/v1/c1/default/webpod";
const SLICES: &str = "cilium/state/endpointslices/v1/c1/";

/// The backends of `webpod` that a reader has.
fn backends(tables: &ClusterTables) -> Vec<String> {
    let rows = tables.services.iter().flat_map(|(_, row)| row.backends.iter());
    rows.map(|(address, ports)| format!("{address}:{}", ports["http"].port)).collect()
}

/// The endpoints of a slice with the nodes they run on.
fn nodes_of(key: &[u8], value: &[u8]) -> Vec<(String, Option<String>)> {
    let Ok(Key::EndpointSlice { namespace, name, .. }) = Key::parse(key) else { panic!("not a slice: {key:?}") };
    let state = state("n1", 2, &[]);
    let context = PeerContext {
        cluster: state.cluster,
        id: state.id,
        max_clusters: state.max_clusters,
        own: true,
        accept: Accept::default(),
        own_pod_cidrs: Vec::new(),
        own_addresses: Vec::new(),
    };
    let slice = endpointslice::accept(&context, namespace, name, value).unwrap();
    slice.endpoints.into_iter().map(|endpoint| (endpoint.addresses[0].to_string(), endpoint.node)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_services_are_read_by_others_and_follow_their_backends() {
    let pki = Pki::new();
    let etcd = Etcd::start(&pki, "c1", &["west"]).await;
    let address = pki.address(etcd.address, "node-c1");
    let start = |node: &str, third| {
        Publisher::start(state(node, third, &[]), address.clone(), WriterRole::Elected, Remembered::default())
    };
    let writer = start("n1", 2);
    writer.done().await;
    let sibling = start("n2", 3);
    sibling.done().await;
    // Somebody else's service stays whatever is shared.
    let mut root = etcd.root(&pki).await;
    let foreign = "cilium/state/services/v1/c1/other/foreign";
    root.put(foreign, r#"{"cluster":"c1","namespace":"other","name":"foreign","labels":{"app":"x"}}"#, None)
        .await
        .unwrap();
    let reader = Node::start(vec![peer("c1", etcd.address, pki.files("remote-west", "remote-west"))], timers());
    reader.ready("c1").await;
    let sees = async |wanted: &[&str]| {
        let began = Instant::now();
        while reader.tables("c1").is_none_or(|tables| backends(&tables) != wanted) {
            assert!(
                began.elapsed() < DEADLINE,
                "{wanted:?}: {:?}",
                reader.tables("c1").map(|tables| backends(&tables))
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // Every node knows the services of the cluster; only one writes them.
    for publisher in [&writer, &sibling] {
        publisher.share(&["10.1.2.10", "10.1.3.10", "fd00:1::10"]);
    }
    sees(&["10.1.2.10:8080", "10.1.3.10:8080", "fd00:1::10:8080"]).await;
    let row = reader.tables("c1").unwrap().services.iter().next().unwrap().1.clone();
    let frontend: Vec<String> = row.frontends.keys().map(ToString::to_string).collect();
    assert_eq!((frontend, row.include_external), (vec!["10.91.0.80".to_owned()], true));
    let slices = wait_keys(&mut root, SLICES, |keys| keys.len() == 2).await;
    let values = root.get(SLICES, Some(GetOptions::new().with_prefix())).await.unwrap();
    let mut running: Vec<_> = values.kvs().iter().flat_map(|slice| nodes_of(slice.key(), slice.value())).collect();
    running.sort();
    let expected = [("10.1.2.10", Some("n1")), ("10.1.3.10", None), ("fd00:1::10", None)];
    assert_eq!(running, expected.map(|(address, node)| (address.to_owned(), node.map(str::to_owned))));
    let lease = root.get(WEBPOD, None).await.unwrap().kvs()[0].lease();
    assert!(lease != 0 && slices.values().all(|held| *held == lease), "{slices:?}");
    let config = root.get("cilium/cluster-config/c1", None).await.unwrap().kvs()[0].value_str().unwrap().to_owned();
    assert!(config.contains(r#""endpointSlicesExportMode":"services-and-endpointslices""#), "{config}");
    wait_keys(&mut root, "cilium/synced/c1/", |keys| keys.len() == 5).await;
    // A sibling that has another opinion is not asked.
    sibling.share(&[]);
    writer.share(&["10.1.3.10"]);
    sees(&["10.1.3.10:8080"]).await;
    // Damage is repaired, and what is not shared any more is taken back in both forms.
    root.delete(WEBPOD, None).await.unwrap();
    sees(&["10.1.3.10:8080"]).await;
    wait_keys(&mut root, SLICES, |keys| keys.len() == 1).await;
    writer.snapshots.send_replace(sharing(&[]));
    sees(&[]).await;
    wait_keys(&mut root, "cilium/state/services/", |keys| keys.keys().eq([foreign])).await;
    wait_keys(&mut root, SLICES, BTreeMap::is_empty).await;
    assert!(reader.tables("c1").unwrap().services.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_comes_back_takes_no_service_back_before_it_knows_all_of_them() {
    let pki = Pki::new();
    let (store, _) = embedded(&pki, "c1", &[], None).await;
    let own_address = StoreAddress::Local(store.local_channel());
    let start = || Publisher::start(state("n1", 2, &[]), own_address.clone(), WriterRole::Host, Remembered::default());
    let first = start();
    first.done().await;
    first.share(&["10.1.2.10"]);
    let mut root = local(&store).await;
    let before = wait_keys(&mut root, "cilium/state/", |keys| keys.contains_key(WEBPOD) && keys.len() == 3).await;
    let revision = |answer: etcd_client::GetResponse| answer.kvs()[0].mod_revision();
    let written = revision(root.get(WEBPOD, None).await.unwrap());
    let remembered = first.memory.remembered();
    drop(first);
    let (own, own_rx) = watch::channel(Arc::new(state("n1", 2, &[])));
    let (snapshots, snapshots_rx) = watch::channel(Arc::new(Snapshot::default()));
    let (role, timers, memory) = (WriterRole::Host, ExportTimers::default(), Memory::default());
    let problems = Problems::default();
    let (exporter, handle) = Exporter::new(
        ExportInputs { own: own_rx, snapshots: snapshots_rx },
        own_address.clone(),
        role,
        timers,
        remembered,
        memory.clone(),
        problems.clone(),
    );
    let task = tokio::spawn(exporter.run());
    let second = Publisher { own, snapshots, handle, memory, problems, task };
    second.done().await;
    assert_eq!(keys(&mut root, "cilium/state/").await, before, "nothing is known yet, and nothing is taken back");
    second.share(&["10.1.2.10"]);
    second.wait("the service is not ours", |status| status.records.contains_key(WEBPOD)).await;
    second.done().await;
    assert_eq!(revision(root.get(WEBPOD, None).await.unwrap()), written, "its lease was adopted");
    second.snapshots.send_replace(sharing(&[]));
    wait_keys(&mut root, "cilium/state/", |keys| keys.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_changes_are_repaired_at_once_and_foreign_records_stay() {
    let pki = Pki::new();
    let (store, _) = embedded(&pki, "c1", &[], None).await;
    let own_address = StoreAddress::Local(store.local_channel());
    let mut root = local(&store).await;
    let foreign = "cilium/state/ip/v1/default/10.1.9.9";
    let foreign_value = r#"{"IP":"10.1.9.9","Mask":null,"HostIP":"172.18.0.9","ID":65600,"Key":0,"Metadata":""}"#;
    root.put(foreign, foreign_value, None).await.unwrap();
    let publisher =
        Publisher::start(state("n1", 2, &[("web", "10.1.2.10")]), own_address, WriterRole::Host, Remembered::default());
    publisher.done().await;
    let right =
        |answer: etcd_client::GetResponse| answer.kvs().first().map(|kv| (kv.value().to_vec(), kv.lease() != 0));
    for key in [NODE_KEY, WEB_KEY, "cilium/cluster-config/c1"] {
        let before = right(root.get(key, None).await.unwrap());
        for destroy in [true, false] {
            if destroy {
                root.delete(key, None).await.unwrap();
            } else {
                root.put(key, "{}", None).await.unwrap();
            }
            let began = Instant::now();
            while right(root.get(key, None).await.unwrap()) != before {
                assert!(began.elapsed() < Duration::from_secs(5), "{key} was not repaired");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
    // A workload that goes takes its record with it, and nothing else.
    publisher.own.send_replace(Arc::new(state("n1", 2, &[])));
    wait_keys(&mut root, "cilium/state/ip/", |keys| keys.len() == 1 && keys.contains_key(foreign)).await;
    // Its identity is nobody's any more; two rounds later it is collected. The foreign record's number never existed.
    let used = publisher.identities();
    assert_eq!(used.len(), 1);
    assert_eq!(publisher.handle.drain().await, Ok(1));
    wait_keys(&mut root, "cilium/state/nodes/", BTreeMap::is_empty).await;
    assert!(keys(&mut root, "cilium/state/ip/").await.contains_key(foreign));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_removes_nothing_and_a_restart_writes_nothing() {
    let pki = Pki::new();
    let (store, _) = embedded(&pki, "c1", &[], None).await;
    let own_address = StoreAddress::Local(store.local_channel());
    let mut root = local(&store).await;
    let workloads = [("web", "10.1.2.10"), ("db", "10.1.2.11")];
    let first =
        Publisher::start(state("n1", 2, &workloads), own_address.clone(), WriterRole::Host, Remembered::default());
    first.done().await;
    let before = keys(&mut root, "cilium/state/").await;
    let remembered = first.memory.remembered();
    let numbers = first.identities();
    assert_eq!(numbers.len(), 2);
    drop(first);
    let revision = |answer: etcd_client::GetResponse| answer.kvs()[0].mod_revision();
    let node_before = revision(root.get(NODE_KEY, None).await.unwrap());
    let second = Publisher::start(state("n1", 2, &workloads), own_address, WriterRole::Host, remembered);
    second.done().await;
    assert_eq!(keys(&mut root, "cilium/state/").await, before, "the lease was adopted");
    assert_eq!(revision(root.get(NODE_KEY, None).await.unwrap()), node_before);
    assert_eq!(second.handle.status().borrow().identities, numbers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_store_is_filled_again_with_the_same_numbers_and_canaries_wait_for_siblings() {
    let pki = Pki::new();
    let mut etcd = Etcd::start(&pki, "c1", &["west"]).await;
    let relay = Relay::start(etcd.address).await;
    let near = pki.address(relay.address, "node-c1");
    let first =
        Publisher::start(state("n1", 2, &[("web", "10.1.2.10")]), near, WriterRole::Elected, Remembered::default());
    let second_address = pki.address(etcd.address, "node-c1");
    first.done().await;
    assert!(first.handle.status().borrow().writer);
    let second = Publisher::start(
        state("n2", 3, &[("web", "10.1.3.10")]),
        second_address.clone(),
        WriterRole::Elected,
        Remembered::default(),
    );
    second.done().await;
    assert!(!second.handle.status().borrow().writer);
    assert_eq!(first.identities(), second.identities(), "one number for the same labels");
    let numbers = first.identities();
    first.wait("the sibling is not seen", |status| status.nodes == 2).await;
    // The second node is slow to come back to the new store.
    drop(second);
    etcd.replace(&pki, &["west"]).await;
    let waits = |status: &ExportStatus| status.withheld.as_ref().is_some_and(|reason| reason.ends_with(": n2"));
    first.wait("canaries are not withheld", waits).await;
    let mut root = etcd.root(&pki).await;
    wait_keys(&mut root, NODE_KEY, |keys| keys.len() == 1).await;
    wait_keys(&mut root, "cilium/cluster-config/", |keys| keys.len() == 1).await;
    assert!(keys(&mut root, "cilium/synced/").await.is_empty());
    assert_eq!(first.identities(), numbers);
    // A connection that ends meanwhile changes nothing: the store is no longer new to this node, but still not complete.
    relay.cut().await;
    first.wait("still connected", |status| !status.connected).await;
    relay.restore();
    first.wait("canaries are no longer withheld", |status| status.connected && waits(status)).await;
    first.done().await;
    assert!(keys(&mut root, "cilium/synced/").await.is_empty());
    let _second = Publisher::start(state("n2", 3, &[]), second_address, WriterRole::Elected, Remembered::default());
    wait_keys(&mut root, "cilium/synced/c1/", |keys| keys.len() == 5).await;
    first.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_share_a_store_elect_one_writer_and_replace_it() {
    let pki = Pki::new();
    let etcd = Etcd::start(&pki, "c1", &["west"]).await;
    let address = pki.address(etcd.address, "node-c1");
    let start = |node: &str, third, role| {
        Publisher::start(
            state(node, third, &[("web", &format!("10.1.{third}.10"))]),
            address.clone(),
            role,
            Remembered::default(),
        )
    };
    let first = start("n1", 2, WriterRole::Elected);
    first.done().await;
    let second = start("n2", 3, WriterRole::Elected);
    second.done().await;
    let writers = [&first, &second].map(|publisher| publisher.handle.status().borrow().writer);
    assert_eq!(writers, [true, false]);
    // Both see each other through the store they share, as the node's own cluster.
    let own = OwnCluster {
        name: name("c1"),
        id: ClusterId::new(1, MaxClusters::C255).unwrap(),
        node: "n1".parse().unwrap(),
        addresses: vec!["172.18.0.2".parse().unwrap()],
        pod_cidrs: vec!["10.1.2.0/24".parse().unwrap()],
        ..own()
    };
    let reader = Node::with_store(Vec::new(), timers(), own, address.clone());
    assert_eq!(nodes(&reader.ready("c1").await), ["n2"], "without our own node");
    drop(first);
    let began = Instant::now();
    second.wait("no new writer", |status| status.writer).await;
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    second.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_store_known_labels_keep_their_number_and_new_ones_wait() {
    let pki = Pki::new();
    let etcd = Etcd::start(&pki, "c1", &[]).await;
    let relay = Relay::start(etcd.address).await;
    let address = pki.address(relay.address, "node-c1");
    let publisher =
        Publisher::start(state("n1", 2, &[("web", "10.1.2.10")]), address, WriterRole::Elected, Remembered::default());
    publisher.done().await;
    let numbers = publisher.identities();
    relay.cut().await;
    publisher.wait("still connected", |status| !status.connected).await;
    publisher.own.send_replace(Arc::new(state("n1", 2, &[("web", "10.1.2.10"), ("db", "10.1.2.11")])));
    publisher.wait("nothing waits", |status| status.waiting.len() == 1).await;
    assert_eq!(publisher.identities(), numbers);
    assert!(!publisher.problems.list().is_empty());
    relay.restore();
    publisher.done().await;
    assert_eq!(publisher.identities().len(), 2);
    assert!(numbers.iter().all(|(labels, id)| publisher.identities().get(labels) == Some(id)));
    assert!(publisher.problems.list().is_empty(), "{:?}", publisher.problems.list());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_be_elected_says_so_until_its_role_allows_it() {
    let pki = Pki::new();
    let etcd = Etcd::start(&pki, "c1", &[]).await;
    let mut root = etcd.root(&pki).await;
    // What the guide gives a node, but for `meshd/`.
    root.role_add("blind").await.unwrap();
    for key in ["cilium/.heartbeat", "cilium/state/", "cilium/cluster-config/c1", "cilium/synced/c1/"] {
        let permission = Permission::new(PermissionType::Readwrite, key).with_prefix();
        root.role_grant_permission("blind", permission).await.unwrap();
    }
    root.user_add("blind", "", Some(UserAddOptions::new().with_no_pwd())).await.unwrap();
    root.user_grant_role("blind", "blind").await.unwrap();

    let start = |name, host, user, server| {
        let timers = ExportTimers { relist: Duration::from_millis(500), ..ExportTimers::default() };
        let address = pki.address(server, user);
        Publisher::start_with(timers, state(name, host, &[]), address, WriterRole::Elected, Remembered::default())
    };
    let first = start("n1", 2, "node-c1", etcd.address);
    first.wait("not elected", |status| status.writer).await;
    let second = start("n2", 3, "blind", etcd.address);
    let status = second.done().await;
    assert!(!status.writer && first.problems.list().is_empty());
    let [problem] = &second.problems.list()[..] else { panic!("{:?}", second.problems.list()) };
    assert_eq!(problem.component, "export");
    assert!(problem.message.contains("meshd/election/c1: permission denied"), "{problem:?}");
    assert!(problem.message.contains("readwrite on the prefix meshd/"), "{problem:?}");

    let permission = Permission::new(PermissionType::Readwrite, "meshd/").with_prefix();
    root.role_grant_permission("blind", permission).await.unwrap();
    let began = Instant::now();
    while !second.problems.list().is_empty() {
        assert!(began.elapsed() < DEADLINE, "{:?}", second.problems.list());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    first.task.abort();
    root.delete("meshd/election/c1", None).await.unwrap();
    second.wait("does not take over", |status| status.writer).await;

    // In a sibling's embedded store the host writes, and nobody needs the right.
    let (store, address) = embedded(&pki, "c1", &[], None).await;
    let guest = start("n2", 3, "node-c1", address);
    guest.done().await;
    assert!(guest.problems.list().is_empty(), "{:?}", guest.problems.list());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lease_is_replaced() {
    let pki = Pki::new();
    let (store, _) = embedded(&pki, "c1", &[], None).await;
    let own_address = StoreAddress::Local(store.local_channel());
    let mut root = local(&store).await;
    let publisher =
        Publisher::start(state("n1", 2, &[("web", "10.1.2.10")]), own_address, WriterRole::Host, Remembered::default());
    publisher.done().await;
    let lease = keys(&mut root, NODE_KEY).await[NODE_KEY];
    root.lease_revoke(lease).await.unwrap();
    let is_back = |keys: &BTreeMap<String, i64>| {
        let leased = |key: &str| keys.get(key).is_some_and(|now| *now != 0 && *now != lease);
        leased(NODE_KEY) && leased(WEB_KEY) && leased("cilium/cluster-config/c1")
    };
    wait_keys(&mut root, "cilium/", is_back).await;
    publisher.done().await;
}

/// Leases of some keys with how many of them each has.
fn per_lease(keys: &BTreeMap<String, i64>) -> BTreeMap<i64, usize> {
    keys.values().fold(BTreeMap::new(), |mut counts, lease| {
        *counts.entry(*lease).or_default() += 1;
        counts
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_records_share_a_few_leases_and_a_lost_one_takes_only_its_own() {
    const RECORDS: usize = 2_500;
    const IPS: &str = "cilium/state/ip/";
    let pki = Pki::new();
    let (store, _) = embedded(&pki, "c1", &[], None).await;
    let mut root = local(&store).await;
    let timers = ExportTimers { keepalive: Duration::from_millis(500), ..ExportTimers::default() };
    let mut own = state("n1", 2, &[("web", "10.1.2.10")]);
    let address = |n: usize| format!("fd00:1::{n:x}").parse().expect("an address");
    own.workloads[0].addresses = (1..=RECORDS).map(address).collect();
    let own_address = StoreAddress::Local(store.local_channel());
    let granted = Instant::now();
    let publisher = Publisher::start_with(timers, own, own_address, WriterRole::Host, Remembered::default());
    publisher.done().await;
    let before = keys(&mut root, IPS).await;
    assert_eq!(before.len(), RECORDS);
    let leases = per_lease(&keys(&mut root, "cilium/").await.into_iter().filter(|(_, lease)| *lease != 0).collect());
    assert_eq!(leases.len(), 3, "{leases:?}");
    assert!(leases.values().all(|count| *count <= LEASE_KEYS_MAX), "{leases:?}");

    // Each lease is kept alive: long after it was granted it has nearly all of its time left.
    const LONG: Duration = Duration::from_secs(4);
    tokio::time::sleep(LONG.saturating_sub(granted.elapsed())).await;
    let full = i64::try_from(DATA_LEASE_TTL.as_secs()).expect("a small number");
    for lease in leases.keys() {
        let answer = root.lease_time_to_live(*lease, None).await.unwrap();
        assert_eq!(answer.granted_ttl(), full);
        assert!(answer.ttl() >= full - 2, "lease {lease:x} was not kept alive: {} of {full} s left", answer.ttl());
    }

    // The one with the most records goes, and its records come back on another one; nobody else's is written.
    let answer = root.get(IPS, Some(GetOptions::new().with_prefix())).await.unwrap();
    let revisions = |answer: &etcd_client::GetResponse| -> BTreeMap<String, i64> {
        answer.kvs().iter().map(|kv| (kv.key_str().unwrap().to_owned(), kv.mod_revision())).collect()
    };
    let old = revisions(&answer);
    let (lost, count) = leases.iter().max_by_key(|(_, count)| **count).map(|(l, c)| (*l, *c)).expect("three leases");
    assert!(count > RECORDS / 4);
    root.lease_revoke(lost).await.unwrap();
    let after = wait_keys(&mut root, IPS, |now| now.len() == RECORDS && now.values().all(|lease| *lease != lost)).await;
    publisher.done().await;
    let new = revisions(&root.get(IPS, Some(GetOptions::new().with_prefix())).await.unwrap());
    let rewritten: BTreeSet<&String> = new.keys().filter(|key| new[*key] != old[*key]).collect();
    let expected: BTreeSet<&String> = before.keys().filter(|key| before[*key] == lost).collect();
    assert_eq!(rewritten, expected);
    assert!(per_lease(&after).values().all(|count| *count <= LEASE_KEYS_MAX), "{:?}", per_lease(&after));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_write_is_named() {
    let pki = Pki::new();
    let etcd = Etcd::start(&pki, "c1", &["west"]).await;
    let address = pki.address(etcd.address, "remote-west");
    let publisher = Publisher::start(state("n1", 2, &[]), address, WriterRole::Elected, Remembered::default());
    let began = Instant::now();
    while !publisher.problems.list().iter().any(|problem| problem.message.contains("permission denied")) {
        assert!(began.elapsed() < DEADLINE, "{:?}", publisher.problems.list());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = publisher
        .wait("no error", |status| status.records.values().any(|row| matches!(row.state, RowState::Error(_))))
        .await;
    assert!(!status.writer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_nobody_uses_are_collected_after_two_rounds() {
    let pki = Pki::new();
    let (store, _) = embedded(&pki, "c1", &[], None).await;
    let mut root = local(&store).await;
    let unused = "cilium/state/identities/v1/id/65999";
    root.put(unused, "k8s:io.cilium.k8s.policy.cluster=c1;", None).await.unwrap();
    let own_address = StoreAddress::Local(store.local_channel());
    let publisher =
        Publisher::start(state("n1", 2, &[("web", "10.1.2.10")]), own_address, WriterRole::Host, Remembered::default());
    publisher.done().await;
    let left = wait_keys(&mut root, "cilium/state/identities/", |keys| !keys.contains_key(unused)).await;
    assert_eq!(left.len(), 1, "the one in use stays: {left:?}");
}
