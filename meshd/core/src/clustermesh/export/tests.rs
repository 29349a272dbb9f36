use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{
    clustermesh::{Accept, Key, Keyspace, PeerContext, Record, accept_upsert},
    id::NumericIdentity,
    observed::{Kind, Labels, NodeAddress, NodeAddressKind},
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
}

impl Store {
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
                desired.add_writer(own, true);
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
    let canary = |kind| format!("put {}", Key::canary(Keyspace::State, &own.cluster, kind));
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
    let mut canaries = Kind::ALL.map(canary);
    canaries.sort();
    assert_eq!(last, canaries, "canaries come last");
    assert!(store.converge(&own, &mut allocator, true).is_empty(), "planning again gives nothing");
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
    fn plans_converge(before in proptest::collection::vec((0u8..6, 0u8..3), 0..12), count in 0usize..4) {
        let names = ["a", "b", "c", "d"];
        let own = own((0..count).map(|n| workload(names[n], names[n % 2], &[&format!("10.0.1.{n}")])).collect());
        let (mut store, mut allocator) = (Store::default(), allocator());
        for (which, lease) in before {
            let key = match which {
                0 => "cilium/state/nodes/v1/west/west-worker".to_owned(),
                1 => "cilium/cluster-config/west".to_owned(),
                n => format!("cilium/state/ip/v1/default/10.0.1.{n}"),
            };
            let desired = Desired::of(&own, |labels| allocator.confirmed(labels, &store.actual));
            store.write(&desired, &key, b"{}", i64::from(lease) * LEASE);
        }
        store.converge(&own, &mut allocator, true);
        prop_assert!(store.converge(&own, &mut allocator, true).is_empty());
        prop_assert_eq!(store.actual.records.len(), 1 + count + 2 + 4);
    }
}
