//! What each fuzz target does with its input.
//!
//! A target must not panic, and what it accepts must survive being written and read again. The same bodies replay the
//! committed corpus in `tests/fuzz_corpus.rs`, so that a find stays found without a fuzzer.

use std::{sync::OnceLock, time::Duration};

use meshd_core::{
    clustermesh::{
        Accept, Interner, Key, Keyspace, PeerContext, Record, accept_upsert,
        cluster_config::{self, ConfigExpectations, OwnConfig},
        endpointslice, heartbeat, identity, ip,
        node::{self, NodeExtras},
        parse_delete,
        reader::{Header, Input, Now, Output, Reader, Record as StoreRecord, Settings, Target, Timers},
        service::{self, ServiceExtras},
        service_export,
    },
    id::{ClusterId, ClusterName, MaxClusters},
    observed::{ClusterChange, Kind, ServiceName},
};

/// The body of a target, by its name.
pub(crate) type Body = fn(&[u8]);

/// Every target.
pub(crate) const ALL: [(&str, Body); 9] = [
    ("cluster_config", cluster_config),
    ("node", node),
    ("ip", ip),
    ("identity", identity),
    ("service", service),
    ("endpointslice", endpointslice),
    ("slices", slices),
    ("service_export", service_export),
    ("keys", keys),
];

fn name(text: &str) -> ClusterName {
    text.parse().expect("a valid name")
}

fn id(number: u32, max: MaxClusters) -> ClusterId {
    ClusterId::new(number, max).expect("a valid id")
}

fn nets(list: &[&str]) -> Vec<ipnet::IpNet> {
    list.iter().map(|text| text.parse().expect("a valid prefix")).collect()
}

/// Runs the target called `name`.
pub(crate) fn run(name: &str, data: &[u8]) {
    let (_, body) = ALL.iter().find(|(target, _)| *target == name).expect("a target of this name");
    body(data);
}

/// Cluster c1 as a remote cluster and as our own.
fn contexts() -> &'static [PeerContext; 2] {
    static CONTEXTS: OnceLock<[PeerContext; 2]> = OnceLock::new();
    CONTEXTS.get_or_init(|| {
        let remote = PeerContext {
            cluster: name("c1"),
            id: id(1, MaxClusters::C255),
            max_clusters: MaxClusters::C255,
            own: false,
            accept: Accept {
                pod_cidrs: nets(&["10.0.0.0/8", "fd00::/16"]),
                node_cidrs: nets(&["172.18.0.0/16", "fc00:c111::/64"]),
            },
            own_pod_cidrs: nets(&["10.200.0.0/16", "fd00:200::/64"]),
            own_addresses: vec!["172.18.0.99".parse().expect("an address")],
        };
        let own = PeerContext { own: true, accept: Accept::default(), ..remote.clone() };
        [remote, own]
    })
}

/// Reads `value` under `key` in every context and returns what was accepted.
fn accept(key: &[u8], value: &[u8]) -> Vec<Record> {
    let mut interner = Interner::default();
    let mut accepted = Vec::new();
    for ctx in contexts() {
        match accept_upsert(ctx, &mut interner, Keyspace::State, key, value) {
            Ok(record) => accepted.push(record),
            // Every message must print.
            Err(refused) => assert!(!refused.reason.to_string().is_empty()),
        }
    }
    accepted
}

/// Writes an accepted record, reads it again and expects the same.
fn again(record: &Record, key: &Key<'_>, value: &[u8]) {
    let mut interner = Interner::default();
    // Our own context accepts whatever any context does.
    let read = accept_upsert(&contexts()[1], &mut interner, Keyspace::State, key.to_string().as_bytes(), value);
    assert_eq!(read.as_ref(), Ok(record), "written as {:?}", String::from_utf8_lossy(value));
}

/// A cluster-config.
fn cluster_config(data: &[u8]) {
    for max_clusters in [MaxClusters::C255, MaxClusters::C511] {
        let expected = ConfigExpectations {
            cluster: name("c1"),
            own_cluster: name("own"),
            own_id: id(2, max_clusters),
            max_clusters,
            taken: vec![(name("c3"), id(3, max_clusters))],
        };
        match cluster_config::accept(&expected, data) {
            Ok(config) => {
                let own = OwnConfig {
                    id: config.id,
                    max_clusters,
                    cached: config.keyspace == Keyspace::Cache,
                    canaries: config.canaries,
                    service_exports: config.service_exports,
                    export_mode: config.export_mode,
                };
                let read = cluster_config::accept(&expected, &cluster_config::encode(&own));
                let said = Some(u32::from(max_clusters.get()));
                assert_eq!(read, Ok(cluster_config::AcceptedConfig { max_clusters: said, ..config }));
            }
            Err(refusal) => assert!(!refusal.to_string().is_empty()),
        }
    }
}

/// A node record, always under the key of `node-a`.
fn node(data: &[u8]) {
    for record in accept(b"cilium/state/nodes/v1/c1/node-a", data) {
        let Record::Node(node_name, row) = &record else { panic!("not a node: {record:?}") };
        let cluster = &contexts()[0].cluster;
        let value = node::encode(cluster, node_name, row, &NodeExtras::default());
        again(&record, &Key::node(Keyspace::State, cluster, node_name), &value);
    }
}

/// An address record: the end of the key up to the first line feed, then the value.
fn ip(data: &[u8]) {
    let (tail, value) = split(data);
    let key = [b"cilium/state/ip/v1/default/", tail].concat();
    for record in accept(&key, value) {
        let Record::Endpoint(prefix, row) = &record else { panic!("not an endpoint: {record:?}") };
        let cluster = &contexts()[0].cluster;
        again(&record, &Key::endpoint(Keyspace::State, cluster, *prefix), &ip::encode(*prefix, row));
    }
}

/// An identity record, always under the same number.
fn identity(data: &[u8]) {
    for record in accept(b"cilium/state/identities/v1/id/65601", data) {
        let Record::Identity(number, row) = &record else { panic!("not an identity: {record:?}") };
        let cluster = &contexts()[0].cluster;
        again(&record, &Key::identity(Keyspace::State, cluster, *number), &identity::encode(&row.labels));
    }
}

/// A service record, always under the key of `demo/echo`.
fn service(data: &[u8]) {
    for record in accept(b"cilium/state/services/v1/c1/demo/echo", data) {
        let Record::Service(service_name, row) = &record else {
            assert!(matches!(record, Record::Withdrawn(_)), "not a service: {record:?}");
            continue;
        };
        let cluster = &contexts()[0].cluster;
        let value = service::encode(cluster, service_name, row, &ServiceExtras::default());
        again(&record, &Key::service(Keyspace::State, cluster, service_name), &value);
    }
}

/// A slice: after a first byte that four divides zstd frames, else the message itself, which is faster. Frames are read
/// in one context only, and compressing what was accepted is slower still and done for one first byte only.
fn endpointslice(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let compressed = first % 4 == 0;
    for ctx in &contexts()[..if compressed { 1 } else { 2 }] {
        let read = if compressed {
            endpointslice::accept(ctx, "demo", "echo-x", data)
        } else {
            endpointslice::accept_message(ctx, "demo", "echo-x", data)
        };
        match read {
            Ok(slice) => {
                let message = endpointslice::encode_message(&ctx.cluster, &slice);
                assert_eq!(endpointslice::accept_message(ctx, "demo", "echo-x", &message).as_ref(), Ok(&slice));
                if *first == 0 {
                    let value = endpointslice::encode(&ctx.cluster, &slice);
                    assert_eq!(endpointslice::accept(ctx, "demo", "echo-x", &value), Ok(slice));
                }
            }
            Err(refusal) => assert!(!refusal.to_string().is_empty()),
        }
    }
}

/// Slices of a cluster that publishes nothing else, as they come and go: a first byte says which of four slices and whether it is
/// listed anew first, the next two how long its message is; a slice without a message is deleted.
fn slices(mut data: &[u8]) {
    let mut cluster = SliceCluster::new();
    while let [what, high, low, rest @ ..] = data {
        let length = (usize::from(*high) << 8 | usize::from(*low)).min(rest.len());
        let (message, rest) = rest.split_at(length);
        data = rest;
        if what & 4 != 0 {
            cluster.list();
        }
        cluster.tell(what & 3, (length > 0).then(|| raw_frame(message)));
    }
    cluster.list();
    // With its last slice a service goes.
    for slice in 0..4 {
        cluster.tell(slice, None);
    }
    assert!(cluster.services.is_empty(), "{:?}", cluster.services);
}

/// A zstd frame around bytes that are not compressed, with the smallest window that fits a fuzzer's.
fn raw_frame(message: &[u8]) -> Vec<u8> {
    const HEADER: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x28];
    let message = &message[..message.len().min(16 * 1024)];
    let size = u32::try_from(message.len()).expect("a short message");
    [&HEADER, &(size << 3 | 1).to_le_bytes()[..3], message].concat()
}

/// A reader of cluster c1, and the services it told.
struct SliceCluster {
    reader: Reader,
    services: std::collections::BTreeSet<ServiceName>,
}

impl SliceCluster {
    const HEADER: Header = Header { store_id: 1, revision: 1 };
    const TARGET: Target = Target::Records(Kind::Services);

    fn new() -> Self {
        let remote = &contexts()[0];
        let settings = Settings {
            cluster: remote.cluster.clone(),
            endpoints: Vec::new(),
            own_cluster: name("own"),
            own_id: id(2, MaxClusters::C255),
            max_clusters: MaxClusters::C255,
            own_node: "node".parse().expect("a name"),
            own_pod_cidrs: remote.own_pod_cidrs.clone(),
            own_addresses: remote.own_addresses.clone(),
            accept: remote.accept.clone(),
            known_id: None,
            listed_from: Default::default(),
            timers: Timers::default(),
            page_limit: 1,
            seed: 0,
        };
        let mut cluster = Self { reader: Reader::new(settings), services: Default::default() };
        cluster.reader.start(Duration::ZERO, &mut Output::default());
        cluster.give(Input::Connected);
        cluster.page(Target::Heartbeat, Vec::new());
        let config = br#"{"id":1,"capabilities":{"endpointSlicesExportMode":"endpointslices-only"}}"#;
        let key = Key::cluster_config(&remote.cluster).to_string();
        cluster.page(Target::Config, vec![StoreRecord { key: key.into(), value: Some(config.to_vec()) }]);
        cluster.give(Input::Claimed(Ok(())));
        cluster.page(Self::TARGET, Vec::new());
        cluster
    }

    fn give(&mut self, input: Input) {
        let mut out = Output::default();
        let now = Now { elapsed: Duration::ZERO, wall: jiff::Timestamp::UNIX_EPOCH };
        self.reader.handle(input, now, &mut out);
        for change in out.changes {
            match change {
                ClusterChange::Service(name, Some(row)) => {
                    assert!(row.backends.len() <= service::BACKENDS_MAX);
                    self.services.insert(name);
                }
                ClusterChange::Service(name, None) => drop(self.services.remove(&name)),
                _ => {}
            }
        }
    }

    fn page(&mut self, target: Target, records: Vec<StoreRecord>) {
        let count = records.len();
        self.give(Input::Page { target, header: Self::HEADER, records, count, more: false });
    }

    /// Lists nothing: whatever was told is gone.
    fn list(&mut self) {
        self.give(Input::WatchCompacted(Self::TARGET));
        self.page(Self::TARGET, Vec::new());
    }

    fn tell(&mut self, slice: u8, value: Option<Vec<u8>>) {
        let key = format!("cilium/state/endpointslices/v1/c1/demo/echo-{slice}");
        let records = vec![StoreRecord { key: key.into(), value }];
        self.give(Input::Events { target: Self::TARGET, header: Self::HEADER, records });
    }
}

/// A service export.
fn service_export(data: &[u8]) {
    let key = ServiceName { namespace: "demo".into(), name: "echo".into() };
    let ctx = &contexts()[0];
    match service_export::accept(ctx, &key, data) {
        Ok(export) => {
            let value = service_export::encode(&ctx.cluster, &key, &export);
            assert_eq!(service_export::accept(ctx, &key, &value), Ok(export));
        }
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
}

/// A key; and a heartbeat.
fn keys(data: &[u8]) {
    match Key::parse(data) {
        // The allocator's keys are passed over, not kept.
        Ok(Key::IdentityAllocator) => {}
        Ok(key) => assert_eq!(key.to_string().as_bytes(), data),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    for ctx in contexts() {
        for keyspace in [Keyspace::State, Keyspace::Cache] {
            let _ = parse_delete(ctx, keyspace, data);
        }
    }
    if let Some(time) = heartbeat::parse(data) {
        let written = heartbeat::encode(time);
        assert!(heartbeat::parse(&written).is_some_and(|again| again <= time), "{time}");
    }
}

fn split(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}
