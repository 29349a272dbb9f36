use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{
    clustermesh::{Accept, Interner, Key, KeyKind, Keyspace, PeerContext, Record, accept_upsert, endpointslice},
    desired::{ExportedBackend, ExportedPort, ExportedService, Exports},
    id::NumericIdentity,
    observed::{BackendZone, Kind, Labels, NodeAddress, NodeAddressKind, Protocol, ServiceName, Topology},
};

const LEASE: i64 = 77;

fn own(workloads: Vec<Workload>) -> OwnState {
    let id = ClusterId::new(1, MaxClusters::C255).unwrap();
    let address = |ip: &str| NodeAddress { kind: NodeAddressKind::InternalIP, ip: ip.parse().unwrap() };
    OwnState {
        cluster: "west".parse().unwrap(),
        id,
        max_clusters: MaxClusters::C255,
        node: "west-worker".parse().unwrap(),
        row: Arc::new(NodeRow {
            health: Box::default(),
            ingress: Box::default(),
            cluster_id: id,
            addresses: [address("172.18.0.5"), address("fc00::5")].into(),
            pod_cidrs: ["10.0.1.0/24".parse().unwrap()].into(),
            labels: Labels::default(),
        }),
        workloads,
    }
}

fn workload(name: &str, app: &str, addresses: &[&str]) -> Workload {
    Workload {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        service_account: String::new(),
    }
}

fn scope() -> Scope {
    let own = own(Vec::new());
    Scope {
        context: PeerContext {
            cluster: own.cluster,
            id: own.id,
            max_clusters: own.max_clusters,
            own: true,
            accept: Accept::default(),
            own_pod_cidrs: Vec::new(),
            own_addresses: Vec::new(),
        },
        node: own.node,
        addresses: own.row.addresses.iter().map(|address| address.ip).collect(),
    }
}

fn allocator() -> Allocator {
    Allocator::new(65_536..=131_071, BTreeMap::new())
}

/// A store that does what it is told.
#[derive(Default)]
struct Store {
    actual: Actual,
    revision: i64,
    services: ServiceRecords,
}

fn service(name: &str) -> ServiceName {
    ServiceName { namespace: "default".into(), name: name.into() }
}

/// A shared service with these backends; a minus in front says that one shuts down.
fn shared(addresses: &[&str]) -> Arc<ExportedService> {
    let backend = |text: &&str| ExportedBackend {
        address: text.trim_start_matches('-').parse().unwrap(),
        port: 8080,
        terminating: text.starts_with('-'),
        node: None,
        zone: None,
    };
    let port = ExportedPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        backends: addresses.iter().map(backend).collect(),
    };
    let selector = [("app".to_owned(), "webpod".to_owned())].into();
    Arc::new(ExportedService {
        cluster_ips: ["10.2.0.80".parse().unwrap()].into(),
        selector,
        topology: Topology::None,
        ports: [port].into(),
    })
}

impl Store {
    /// Shares these services and no others; returns the keys of their records.
    fn share(&mut self, own: &OwnState, complete: bool, services: &[(&str, Arc<ExportedService>)]) -> Vec<Arc<str>> {
        let services = services.iter().map(|(name, row)| (service(name), row.clone())).collect();
        self.services.update(own, &Exports { complete, services });
        self.services.records().map(|(key, _)| key.clone()).collect()
    }

    fn write(&mut self, desired: &Desired, key: &str, value: &[u8], lease: i64) {
        self.revision += 1;
        let held = Held { value: value.into(), lease, revision: self.revision };
        self.actual.observe(&scope(), desired, key, Ok(held));
    }

    fn delete(&mut self, desired: &Desired, key: &str) {
        self.revision += 1;
        self.actual.observe(&scope(), desired, key, Err(self.revision));
    }

    /// Rounds until nothing is left to do; returns what was done in order.
    fn converge(&mut self, own: &OwnState, allocator: &mut Allocator, writer: bool) -> Vec<String> {
        let mut done = Vec::new();
        for _ in 0..5 {
            let wanted = Desired::of(own, |_| None).labels;
            for claim in allocator.settle(&wanted, &self.actual) {
                let key = Key::identity(Keyspace::State, &own.cluster, claim.id).to_string();
                self.write(&Desired::default(), &key, claim.labels.0.as_bytes(), 0);
                allocator.claimed(&claim);
                done.push(format!("create {key}"));
            }
            let mut desired = Desired::of(own, |labels| allocator.confirmed(labels, &self.actual));
            if writer {
                desired.add_writer(own, true, &self.services);
            }
            let rounds = plan(&desired, &self.actual, &scope(), &[LEASE].into());
            if rounds.is_empty() {
                return done;
            }
            for op in rounds.into_iter().flatten() {
                match op {
                    Op::Put(key) => {
                        self.write(&desired, &key, &desired.records[&key].bytes(jiff::Timestamp::UNIX_EPOCH), LEASE);
                        done.push(format!("put {key}"));
                    }
                    Op::Delete { key, .. } => {
                        self.delete(&desired, &key);
                        done.push(format!("delete {key}"));
                    }
                }
            }
        }
        panic!("does not converge: {done:?}");
    }
}

#[test]
fn everything_is_published_in_the_order_readers_need() {
    let own = own(vec![workload("web-1", "web", &["10.0.1.10", "fd00:1::10"])]);
    let (mut store, mut allocator) = (Store::default(), allocator());
    let done = store.converge(&own, &mut allocator, true);
    let id = allocator.known().values().next().unwrap();
    let canary = |kind: KeyKind| format!("put {}", Key::canary(Keyspace::State, &own.cluster, kind));
    assert_eq!(
        done[..6],
        [
            format!("create cilium/state/identities/v1/id/{id}"),
            "put cilium/.heartbeat".to_owned(),
            "put cilium/cluster-config/west".to_owned(),
            "put cilium/state/nodes/v1/west/west-worker".to_owned(),
            "put cilium/state/ip/v1/default/10.0.1.10".to_owned(),
            "put cilium/state/ip/v1/default/fd00:1::10".to_owned(),
        ]
    );
    let mut last = done[6..].to_vec();
    last.sort();
    let mut canaries = Kind::ALL.map(|kind| canary(kind.into())).to_vec();
    canaries.sort();
    canaries.retain(|key| !key.contains("/services/"));
    assert_eq!(last, canaries, "canaries come last");
    let after = store.share(&own, true, &[]);
    assert!(after.is_empty(), "nothing is shared");
    let mut last = store.converge(&own, &mut allocator, true);
    last.sort();
    assert_eq!(last, [canary(KeyKind::EndpointSlices), canary(KeyKind::Services)], "once it is known which there are");
    assert!(store.converge(&own, &mut allocator, true).is_empty(), "planning again gives nothing");
}

#[test]
fn shared_services_are_written_in_both_forms_and_taken_back() {
    let own = own(Vec::new());
    let (mut store, mut allocator) = (Store::default(), allocator());
    store.share(&own, false, &[("webpod", shared(&["10.0.0.10"]))]);
    let done = store.converge(&own, &mut allocator, true);
    assert!(
        done.iter().all(|line| !line.contains("services/v1/") && !line.contains("slices")),
        "not complete: {done:?}"
    );
    let keys = store.share(&own, true, &[("webpod", shared(&["10.0.0.10", "10.0.1.10", "-10.0.2.10", "fd00::10"]))]);
    let done = store.converge(&own, &mut allocator, true);
    assert_eq!(keys.len(), 3, "one value, and a slice for each family: {keys:?}");
    assert!(done[..keys.len()].iter().all(|line| line.contains("/v1/west/default/webpod")), "{done:?}");
    assert!(done[keys.len()..].iter().all(|line| line.contains("synced")), "canaries come after: {done:?}");
    let json =
        String::from_utf8(store.actual.records["cilium/state/services/v1/west/default/webpod"].value.to_vec()).unwrap();
    let expected = concat!(
        r#"{"cluster":"west","namespace":"default","name":"webpod","frontends":{"10.2.0.80":{"http":{"Protocol":"TCP","Port":80}}},"#,
        r#""backends":{"10.0.0.10":{"http":{"Protocol":"TCP","Port":8080}},"10.0.1.10":{"http":{"Protocol":"TCP","Port":8080}},"#,
        r#""fd00::10":{"http":{"Protocol":"TCP","Port":8080}}},"labels":{"app.kubernetes.io/managed-by":"meshd"},"#,
        r#""selector":{"app":"webpod"},"includeExternal":true,"shared":true,"clusterID":1}"#
    );
    assert_eq!(json, expected);
    // Another run of the writer finds them, and takes back what is not shared any more.
    assert!(store.converge(&own, &mut allocator, false).is_empty(), "a node that is not the writer leaves them alone");
    store.share(&own, false, &[]);
    assert!(
        store.converge(&own, &mut allocator, true).is_empty(),
        "nothing is taken back before it is known what there is"
    );
    store.share(&own, true, &[]);
    let done = store.converge(&own, &mut allocator, true);
    let mut removed: Vec<String> = keys.iter().map(|key| format!("delete {key}")).collect();
    removed.sort();
    assert_eq!(done, removed);
}

#[test]
fn a_reader_sees_the_services_that_were_shared() {
    let own = own(Vec::new());
    let (mut store, mut allocator) = (Store::default(), allocator());
    let row = shared(&["10.0.0.10", "-10.0.1.10"]);
    store.share(&own, true, &[("webpod", row)]);
    store.converge(&own, &mut allocator, true);
    let context = PeerContext {
        own: false,
        accept: Accept { pod_cidrs: vec!["10.0.0.0/16".parse().unwrap()], node_cidrs: Vec::new() },
        ..scope().context
    };
    let mut endpoints = Vec::new();
    for (key, held) in store.actual.services() {
        match Key::parse(key.as_bytes()).unwrap() {
            Key::EndpointSlice { namespace, name, .. } => {
                let slice = endpointslice::accept(&context, namespace, name, &held.value).unwrap();
                assert!(slice.labels.0.contains("kubernetes.io/service-name=webpod;"), "{:?}", slice.labels);
                assert_eq!((&*slice.ports[0].name, slice.ports[0].port, slice.ipv4), ("http", Some(8080), true));
                endpoints
                    .extend(slice.endpoints.into_iter().map(|e| (e.addresses[0].to_string(), e.ready, e.terminating)));
            }
            _ => {
                let mut interner = Interner::default();
                let read = accept_upsert(&context, &mut interner, Keyspace::State, key.as_bytes(), &held.value);
                let Ok(Record::Service(name, row)) = read else { panic!("{read:?}") };
                assert_eq!((name, row.backends.len(), row.include_external), (service("webpod"), 1, true));
            }
        }
    }
    endpoints.sort();
    let slices = [("10.0.0.10", true, false), ("10.0.1.10", false, true)];
    assert_eq!(endpoints, slices.map(|(address, ready, gone)| (address.to_owned(), Some(ready), Some(gone))));
}

#[test]
fn zones_and_nodes_are_told_and_hints_where_zones_count() {
    let own = own(Vec::new());
    for (topology, hints) in [(Topology::None, vec![]), (Topology::Zone, vec!["z1".to_owned()])] {
        let (mut store, mut allocator) = (Store::default(), allocator());
        let mut row = (*shared(&["10.0.0.10", "10.0.1.10"])).clone();
        row.topology = topology;
        let backend = |backend: &ExportedBackend| ExportedBackend {
            node: (backend.address.to_string() == "10.0.0.10").then(|| "west-control".parse().unwrap()),
            zone: (backend.address.to_string() == "10.0.0.10").then(|| "z1".into()),
            ..backend.clone()
        };
        row.ports[0].backends = row.ports[0].backends.iter().map(backend).collect();
        store.share(&own, true, &[("webpod", Arc::new(row))]);
        store.converge(&own, &mut allocator, true);
        let context = PeerContext {
            own: false,
            accept: Accept { pod_cidrs: vec!["10.0.0.0/16".parse().unwrap()], node_cidrs: Vec::new() },
            ..scope().context
        };
        let mut forms = 0;
        for (key, held) in store.actual.services() {
            forms += 1;
            if let Key::EndpointSlice { namespace, name, .. } = Key::parse(key.as_bytes()).unwrap() {
                let slice = endpointslice::accept(&context, namespace, name, &held.value).unwrap();
                let told = slice.endpoints.iter().find(|endpoint| endpoint.zone.is_some()).unwrap();
                assert_eq!((told.addresses[0].to_string().as_str(), &told.hints), ("10.0.0.10", &hints));
                assert_eq!(told.node.as_deref(), Some("west-control"));
                let unknown = slice.endpoints.iter().filter(|endpoint| endpoint.node.is_none()).count();
                assert_eq!(unknown, slice.endpoints.len() - 1, "a backend of which nobody says where it runs");
            } else {
                let mut interner = Interner::default();
                let read = accept_upsert(&context, &mut interner, Keyspace::State, key.as_bytes(), &held.value);
                let Ok(Record::Service(_, row)) = read else { panic!("{read:?}") };
                let zones: Vec<_> = row.zones.iter().map(|(ip, told)| (ip.to_string(), told.clone())).collect();
                let for_zones = hints.iter().map(|hint| hint.as_str().into()).collect();
                assert_eq!(zones, [("10.0.0.10".to_owned(), BackendZone { zone: Some("z1".into()), for_zones })]);
            }
        }
        assert!(forms >= 2, "a value and a slice");
    }
}

#[test]
fn foreign_services_stay_and_one_more_backend_changes_one_slice() {
    let own = own(Vec::new());
    let (mut store, mut allocator) = (Store::default(), allocator());
    let foreign = "cilium/state/services/v1/west/kube-system/dns";
    store.write(&Desired::default(), foreign, br#"{"cluster":"west","namespace":"kube-system","name":"dns"}"#, 5);
    assert!(!store.actual.records.contains_key(foreign), "it is none of ours");
    let addresses: Vec<String> = (0..1000).map(|n| format!("10.0.{}.{}", n / 250, 1 + n % 250)).collect();
    let all: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let keys = store.share(&own, true, &[("webpod", shared(&all[1..]))]);
    assert!((12..=17).contains(&keys.len()), "16 slices at most: {}", keys.len());
    store.converge(&own, &mut allocator, true);
    store.share(&own, true, &[("webpod", shared(&all))]);
    let done = store.converge(&own, &mut allocator, true);
    assert_eq!(done.len(), 2, "the value and one slice: {done:?}");
    let too_many: Vec<String> =
        (0..17_000).map(|n| format!("10.{}.{}.{}", n / 62_500, n / 250 % 250, n % 250)).collect();
    let too_many: Vec<&str> = too_many.iter().map(String::as_str).collect();
    let keys = store.share(&own, true, &[("webpod", shared(&too_many)), ("other", shared(&["10.0.0.10"]))]);
    assert!(keys.iter().all(|key| key.contains("/other")), "{keys:?}");
    let refused: Vec<String> = store.services.refused().map(ToString::to_string).collect();
    assert!(refused.len() == 1 && refused[0].contains("17000 backends"), "{refused:?}");
}

#[test]
fn published_records_pass_the_checks_of_a_reader() {
    let own = own(vec![workload("web-1", "web", &["10.0.1.10", "fd00:1::10"])]);
    let (mut store, mut allocator) = (Store::default(), allocator());
    store.converge(&own, &mut allocator, true);
    let context = PeerContext {
        own: false,
        accept: Accept {
            pod_cidrs: vec!["10.0.0.0/16".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
            node_cidrs: vec!["172.18.0.0/16".parse().unwrap(), "fc00::/16".parse().unwrap()],
        },
        ..scope().context
    };
    let mut rows = 0;
    let identities = store
        .actual
        .identities
        .iter()
        .map(|(id, held)| (Arc::from(Key::identity(Keyspace::State, &own.cluster, *id).to_string()), held.clone()));
    for (key, held) in store.actual.records.clone().into_iter().chain(identities) {
        let record = accept_upsert(&context, &mut Default::default(), Keyspace::State, key.as_bytes(), &held.value);
        match record.unwrap_or_else(|refused| panic!("{key}: {}", refused.reason)) {
            Record::Ignored => {}
            Record::Node(_, row) => {
                assert_eq!(row, *own.row);
                rows += 1;
            }
            _ => rows += 1,
        }
    }
    assert_eq!(rows, 4);
}

#[test]
fn a_foreign_change_or_removal_of_our_record_is_repaired() {
    let own = own(vec![workload("web-1", "web", &["10.0.1.10"])]);
    let (mut store, mut allocator) = (Store::default(), allocator());
    store.converge(&own, &mut allocator, true);
    let id = *allocator.known().values().next().unwrap();
    let desired = Desired::of(&own, |labels| allocator.number(labels));
    for key in
        ["cilium/state/nodes/v1/west/west-worker", "cilium/state/ip/v1/default/10.0.1.10", "cilium/cluster-config/west"]
    {
        store.write(&desired, key, b"x", LEASE);
        assert_eq!(store.converge(&own, &mut allocator, true), [format!("put {key}")]);
        store.delete(&desired, key);
        assert_eq!(store.converge(&own, &mut allocator, true), [format!("put {key}")]);
        let value = store.actual.records[key].value.clone();
        store.write(&desired, key, &value, 5);
        assert_eq!(
            store.converge(&own, &mut allocator, true),
            [format!("put {key}")],
            "under a lease that is not ours"
        );
    }
    let key = Key::identity(Keyspace::State, &own.cluster, id).to_string();
    store.delete(&desired, &key);
    assert_eq!(store.converge(&own, &mut allocator, true), [format!("create {key}")], "the same number again");
}

#[test]
fn only_our_own_records_are_removed() {
    let with = own(vec![workload("web-1", "web", &["10.0.1.10"]), workload("db-1", "db", &["10.0.1.11"])]);
    let without = own(vec![workload("web-1", "web", &["10.0.1.10"])]);
    let (mut store, mut allocator) = (Store::default(), allocator());
    store.converge(&with, &mut allocator, false);
    let none = Desired::default();
    let ip = |ip: &str, host: &str| {
        format!(r#"{{"IP":"{ip}","Mask":null,"HostIP":"{host}","ID":65600,"Key":0,"Metadata":""}}"#).into_bytes()
    };
    // Of another node, of ours from before a restart, and one nobody can read.
    store.write(&none, "cilium/state/ip/v1/default/10.0.0.9", &ip("10.0.0.9", "172.18.0.4"), 3);
    store.write(&none, "cilium/state/ip/v1/default/10.0.1.99", &ip("10.0.1.99", "172.18.0.5"), 3);
    store.write(&none, "cilium/state/ip/v1/default/10.0.0.8", b"{", 3);
    store.write(&none, "cilium/state/nodes/v1/west/west-control", b"{}", 3);
    let mut done = store.converge(&without, &mut allocator, false);
    done.sort();
    assert_eq!(done, ["delete cilium/state/ip/v1/default/10.0.1.11", "delete cilium/state/ip/v1/default/10.0.1.99"]);
    assert_eq!(store.actual.nodes.len(), 2);
    let removable: Vec<String> = scope().removable(&store.actual).iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(removable, ["cilium/state/ip/v1/default/10.0.1.10", "cilium/state/nodes/v1/west/west-worker"]);
}

#[test]
fn an_address_waits_for_its_number_and_what_is_there_stays() {
    let own = own(vec![workload("web-1", "web", &["10.0.1.10"])]);
    let (mut store, mut allocator) = (Store::default(), allocator());
    store.converge(&own, &mut allocator, false);
    let desired = Desired::of(&own, |_| None);
    assert_eq!(desired.waiting.len(), 1);
    assert!(plan(&desired, &store.actual, &scope(), &[LEASE].into()).is_empty());
}

#[test]
fn numbers_are_the_same_on_every_node_and_after_losing_everything() {
    let own = own(vec![workload("web-1", "web", &["10.0.1.10"]), workload("db-1", "db", &["10.0.1.11"])]);
    let (mut store, mut first) = (Store::default(), allocator());
    store.converge(&own, &mut first, false);
    let mut second = allocator();
    Store::default().converge(&own, &mut second, false);
    assert_eq!(first.known(), second.known(), "the hash decides");
    let mut third = allocator();
    store.converge(&own, &mut third, false);
    assert_eq!(first.known(), third.known(), "the store decides");
    let mut kept = Allocator::new(65_536..=131_071, first.known().clone());
    let done = Store::default().converge(&own, &mut kept, false);
    assert_eq!(done.iter().filter(|op| op.starts_with("create")).count(), 2);
    assert_eq!(first.known(), kept.known(), "our memory decides");
}

#[test]
fn collisions_are_probed_and_a_taken_number_is_given_up() {
    let own = own(vec![workload("web-1", "web", &["10.0.1.10"])]);
    let mut reference = allocator();
    Store::default().converge(&own, &mut reference, false);
    let (labels, first) = reference.known().iter().next().map(|(labels, id)| (labels.clone(), *id)).unwrap();
    let mut store = Store::default();
    let key = Key::identity(Keyspace::State, &own.cluster, first).to_string();
    store.write(&Desired::default(), &key, b"k8s:other=1;", 0);
    let mut probing = allocator();
    store.converge(&own, &mut probing, false);
    let second = probing.number(&labels).unwrap();
    assert_eq!(second.0, if first.0 == 131_071 { 65_536 } else { first.0 + 1 });
    let mut remembering = reference.clone();
    store.converge(&own, &mut remembering, false);
    assert_eq!(remembering.number(&labels), Some(second), "the lowest number with our labels");
    // Numbers of another range are forgotten.
    let moved = Allocator::new(131_072..=196_607, reference.known().clone());
    assert!(moved.known().is_empty());
}

#[test]
fn a_full_range_gives_no_number() {
    let mut small = Allocator::new(65_536..=65_537, BTreeMap::new());
    let mut store = Store::default();
    for id in [65_536, 65_537] {
        let key = Key::identity(Keyspace::State, &"west".parse().unwrap(), NumericIdentity(id)).to_string();
        store.write(&Desired::default(), &key, b"k8s:other=1;", 0);
    }
    assert!(small.settle(&[Labels("k8s:a=b;".into())].into(), &store.actual).is_empty());
}

#[test]
fn labels_are_those_of_a_pod_and_cannot_be_forged() {
    let cluster = "west".parse().unwrap();
    let mut web = workload("web-1", "web", &[]);
    web.labels.insert("io.cilium.k8s.policy.cluster".to_owned(), "east".to_owned());
    assert_eq!(
        &*workload_labels(&cluster, &web).unwrap().0,
        "k8s:app=web;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=default;\
         k8s:io.cilium.k8s.policy.cluster=west;k8s:io.cilium.k8s.policy.serviceaccount=default;\
         k8s:io.kubernetes.pod.namespace=default;"
    );
    for (key, value) in [("a;b", "1"), ("a:b", "1"), ("a=b", "1"), ("", "1"), ("a", "1;k8s:x=y"), ("a", "\n")] {
        let mut bad = workload("web-1", "web", &[]);
        bad.labels.insert(key.to_owned(), value.to_owned());
        assert!(workload_labels(&cluster, &bad).is_err(), "{key}={value}");
    }
}

#[test]
fn labels_that_say_which_pod_it_is_make_no_identity() {
    let cluster = "west".parse().unwrap();
    let with = |pairs: &[(&str, &str)]| {
        let mut pod = workload("web-1", "web", &[]);
        pod.labels.extend(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        workload_labels(&cluster, &pod).unwrap()
    };
    let plain = with(&[]);
    for key in [
        "pod-template-hash",
        "pod-template-generation",
        "controller-revision-hash",
        "controller-uid",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "io.kubernetes.container.name",
        "kubernetes.io/hostname",
        "beta.kubernetes.io/arch",
        "node.beta.kubernetes.io/instance-type",
        "k8s.io/cluster-service",
        "annotation.checksum",
        "etcd_node",
    ] {
        assert_eq!(with(&[(key, "1")]), plain, "{key}");
    }
    for key in ["version", "app.kubernetes.io/name", "statefulset.kubernetes.io/tier", "example.io/annotation"] {
        let labels = with(&[(key, "1")]);
        assert!(labels.0.contains(&format!("k8s:{key}=1;")), "{key}: {}", labels.0);
    }
}

#[test]
fn workloads_that_cannot_be_published_are_named() {
    let mut bad = workload("bad", "x", &["10.0.1.12"]);
    bad.labels.insert("a;".to_owned(), String::new());
    let own = own(vec![workload("a", "x", &["10.0.1.10"]), workload("b", "y", &["10.0.1.10"]), bad]);
    let desired = Desired::of(&own, |_| Some(NumericIdentity(65_600)));
    let refused: Vec<String> = desired.refused.iter().map(ToString::to_string).collect();
    assert_eq!(refused.len(), 2);
    assert!(refused[0].contains("default/b") && refused[1].contains("default/bad"), "{refused:?}");
}

#[test]
fn late_news_are_passed_over() {
    let none = Desired::default();
    let mut actual = Actual::default();
    let held = |revision| Held { value: b"v".as_slice().into(), lease: 0, revision };
    for key in ["cilium/state/nodes/v1/west/west-worker", "cilium/state/identities/v1/id/65600"] {
        actual.observe(&scope(), &none, key, Ok(held(5)));
        actual.observe(&scope(), &none, key, Ok(held(4)));
        actual.observe(&scope(), &none, key, Err(4));
    }
    assert_eq!(actual.records.values().next().map(|held| held.revision), Some(5));
    assert_eq!(actual.identities.values().next().map(|held| held.revision), Some(5));
}

#[test]
fn canaries_wait_for_the_nodes_we_knew() {
    let at = Duration::from_secs;
    let known: BTreeSet<NodeName> = ["a".parse().unwrap(), "b".parse().unwrap()].into();
    let withhold = Withhold::new(known, at(10));
    let mut actual = Actual::default();
    actual.nodes.insert("a".parse().unwrap());
    assert!(!withhold.is_over(&actual, at(11)));
    assert!(withhold.reason(&"west".parse().unwrap(), &actual).ends_with(": b"));
    assert!(withhold.is_over(&actual, at(10) + WITHHOLD_MAX));
    actual.nodes.insert("b".parse().unwrap());
    assert!(withhold.is_over(&actual, at(11)));
    let nobody = Withhold::new(BTreeSet::new(), at(10));
    assert!(!nobody.is_over(&actual, at(11)));
    assert!(nobody.is_over(&actual, at(10) + SETTLE));
}

proptest! {
    /// Whatever the store holds, a plan carried out gives what is desired, and a second plan nothing.
    #[test]
    fn plans_converge(before in proptest::collection::vec((0u8..8, 0u8..3), 0..12), count in 0usize..4) {
        let names = ["a", "b", "c", "d"];
        let own = own((0..count).map(|n| workload(names[n], names[n % 2], &[&format!("10.0.1.{n}")])).collect());
        let (mut store, mut allocator) = (Store::default(), allocator());
        for (which, lease) in before {
            let key = match which {
                0 => "cilium/state/nodes/v1/west/west-worker".to_owned(),
                1 => "cilium/cluster-config/west".to_owned(),
                6 => "cilium/state/services/v1/west/default/webpod".to_owned(),
                7 => "cilium/state/services/v1/west/default/foreign".to_owned(),
                n => format!("cilium/state/ip/v1/default/10.0.1.{n}"),
            };
            let desired = Desired::of(&own, |labels| allocator.confirmed(labels, &store.actual));
            store.write(&desired, &key, b"{}", i64::from(lease) * LEASE);
        }
        store.share(&own, true, &[("webpod", shared(&["10.0.0.10"]))]);
        store.converge(&own, &mut allocator, true);
        prop_assert!(store.converge(&own, &mut allocator, true).is_empty());
        prop_assert_eq!(store.actual.records.len(), 1 + count + 2 + 2 + 5);
    }
}
