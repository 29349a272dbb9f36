use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::{
    desired::{Backend, BackendState, ExportedBackend, FrontendKind},
    id::{ClusterId, ClusterName, MaxClusters, NumericIdentity},
    observed::{
        BackendZone, Change, ClusterChange, EndpointRow, IdentityRow, L4Addr, Labels, NodeAddress, NodeAddressKind,
        NodeRow, OnRemoval, OwnServicePort, Protocol, ServiceKind, ServiceRow, StaticBackend, Topology, TrafficPolicy,
    },
};

const WEB: u32 = 65_537;

fn name(text: &str) -> ServiceName {
    ServiceName { namespace: "default".into(), name: text.into() }
}

fn cluster(text: &str) -> ClusterName {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// A global service `webpod` of west, selecting `app=web`.
fn webpod() -> OwnServiceRow {
    OwnServiceRow {
        kind: ServiceKind::ClusterIp,
        cluster_ips: [ip("10.2.0.80")].into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        ports: [port("http", 80)].into(),
        selector: [("app".to_owned(), "web".to_owned())].into(),
        backends: Box::default(),
        global: true,
        shared: true,
        affinity: Affinity::None,
        by_source: false,
        session_affinity: None,
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        source_ranges: Box::default(),
        mode: None,
        on_removal: OnRemoval::Keep,
        weights: BTreeMap::new(),
        local_minimum: 1,
        topology: Topology::None,
    }
}

fn port(name: &str, target_port: u16) -> OwnServicePort {
    OwnServicePort { name: name.into(), protocol: Protocol::Tcp, port: 80, target_port, node_port: None }
}

fn identity(id: u32, app: &str) -> ClusterChange {
    let labels = format!("k8s:app={app};k8s:io.kubernetes.pod.namespace=default;");
    ClusterChange::Identity(NumericIdentity(id), Some(IdentityRow { labels: Labels(labels.into()) }))
}

fn endpoint(address: &str, id: u32, host: &str) -> ClusterChange {
    let row = EndpointRow {
        identity: NumericIdentity(id),
        host: Some(ip(host)),
        encryption_key: 0,
        namespace: "default".into(),
        name: "web".into(),
    };
    ClusterChange::Endpoint(IpNet::from(ip(address)), Some(row))
}

fn no_endpoint(address: &str) -> ClusterChange {
    ClusterChange::Endpoint(IpNet::from(ip(address)), None)
}

/// `webpod` of another cluster with these backends, all with one port of this name.
fn remote(id: u32, port_name: &str, protocol: Protocol, backends: &[(&str, u16)]) -> ClusterChange {
    let ports = |port: u16| [(port_name.into(), L4Addr { protocol, port })].into();
    let row = ServiceRow {
        cluster_id: ClusterId::new(id, MaxClusters::C255).unwrap(),
        frontends: BTreeMap::new(),
        backends: backends.iter().map(|(address, port)| (ip(address), ports(*port))).collect(),
        include_external: true,
        zones: BTreeMap::new(),
    };
    ClusterChange::Service(name("webpod"), Some(Arc::new(row)))
}

struct World {
    observed: Observed,
    deriver: ServiceDeriver,
    desired: Desired,
    now: i64,
}

impl World {
    fn new() -> Self {
        let local = LocalNode {
            cluster: cluster("west"),
            name: "west-worker".parse().unwrap(),
            addresses: vec![ip("172.18.0.5")],
            pod_cidrs: vec!["10.0.1.0/24".parse().unwrap()],
            zone: Some("z1".into()),
        };
        Self {
            observed: Observed::default(),
            deriver: ServiceDeriver::new(local, Duration::from_secs(120)),
            desired: Desired::default(),
            now: 0,
        }
    }

    /// West with two workloads behind `webpod`, east (id 2) with two more.
    fn two_clusters(row: OwnServiceRow) -> Self {
        let mut world = Self::new();
        world.own(row);
        let own =
            [identity(WEB, "web"), endpoint("10.0.0.10", WEB, "172.18.0.4"), endpoint("10.0.1.10", WEB, "172.18.0.5")];
        world.told("west", own.to_vec());
        world.told("east", vec![remote(2, "http", Protocol::Tcp, &[("10.1.0.10", 8080), ("10.1.1.10", 8080)])]);
        world
    }

    fn own(&mut self, row: OwnServiceRow) {
        self.change(Change::OwnServices([(name("webpod"), Arc::new(row))].into()));
    }

    fn told(&mut self, from: &str, changes: Vec<ClusterChange>) {
        self.change(Change::Cluster(cluster(from), changes));
    }

    fn change(&mut self, change: Change) {
        self.observed.apply(change, time(self.now));
        self.derive();
    }

    fn derive(&mut self) {
        let touched = self.observed.take_touched();
        self.deriver.update(&self.observed, &touched, time(self.now), &mut self.desired);
    }

    fn service(&self) -> &Service {
        self.desired.services.get(&name("webpod")).unwrap()
    }

    fn backends(&self) -> &[Backend] {
        &self.service().ports[0].backends
    }

    /// The backends as `address:port`, with a star when they get new connections.
    fn lines(&self) -> Vec<String> {
        let line = |b: &Backend| format!("{}:{}{}", b.address, b.port, if b.used { "*" } else { "" });
        self.backends().iter().map(line).collect()
    }
}

#[test]
fn backends_of_all_clusters_are_merged() {
    let world = World::two_clusters(webpod());
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80*", "10.1.0.10:8080*", "10.1.1.10:8080*"]);
    let of = |b: &Backend| (b.cluster.to_string(), b.node.map(|node| node.to_string()), b.local, b.preferred, b.weight);
    let near = world.backends().iter().map(of).collect::<Vec<_>>();
    assert_eq!(near[0], ("west".to_owned(), Some("172.18.0.4".to_owned()), false, false, 100));
    assert_eq!(near[1], ("west".to_owned(), Some("172.18.0.5".to_owned()), true, false, 100));
    assert_eq!(near[2], ("east".to_owned(), None, false, false, 100));
    let frontends = &world.service().ports[0].frontends;
    assert_eq!(
        (frontends.len(), frontends[0].address, frontends[0].kind),
        (1, ip("10.2.0.80"), FrontendKind::ClusterIp)
    );
}

#[test]
fn a_service_that_is_not_global_has_no_backends_of_others() {
    let mut world = World::two_clusters(OwnServiceRow { global: false, affinity: Affinity::Remote, ..webpod() });
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80*"]);
    assert!(!world.service().shared && world.service().affinity == Affinity::None);
    assert!(world.desired.exports.services.is_empty());
    world.own(OwnServiceRow { shared: false, ..webpod() });
    assert_eq!(world.lines().len(), 4, "what it shares does not change what it uses");
    assert!(world.desired.exports.services.is_empty());
    world.told("east", vec![ClusterChange::Service(name("webpod"), None)]);
    assert_eq!(world.lines().len(), 2, "what others share does");
    world.change(Change::OwnServices(BTreeMap::new()));
    assert!(world.desired.services.is_empty());
}

#[test]
fn affinity_local_falls_back_below_the_minimum() {
    let mut world = World::two_clusters(OwnServiceRow { affinity: Affinity::Local, ..webpod() });
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80*", "10.1.0.10:8080", "10.1.1.10:8080"]);
    assert_eq!(world.backends().iter().map(|b| b.preferred).collect::<Vec<_>>(), [true, true, false, false]);
    world.told("west", vec![no_endpoint("10.0.0.10")]);
    assert_eq!(world.lines(), ["10.0.1.10:80*", "10.1.0.10:8080", "10.1.1.10:8080"]);
    world.told("west", vec![no_endpoint("10.0.1.10")]);
    assert_eq!(world.lines(), ["10.1.0.10:8080*", "10.1.1.10:8080*"]);
    let mut world = World::two_clusters(OwnServiceRow { affinity: Affinity::Local, local_minimum: 2, ..webpod() });
    world.told("west", vec![no_endpoint("10.0.0.10")]);
    assert_eq!(world.lines(), ["10.0.1.10:80*", "10.1.0.10:8080*", "10.1.1.10:8080*"], "one is too few");
}

#[test]
fn affinity_remote_falls_back_to_our_own() {
    let mut world = World::two_clusters(OwnServiceRow { affinity: Affinity::Remote, ..webpod() });
    assert_eq!(world.lines(), ["10.0.0.10:80", "10.0.1.10:80", "10.1.0.10:8080*", "10.1.1.10:8080*"]);
    assert_eq!(world.backends().iter().map(|b| b.preferred).collect::<Vec<_>>(), [false, false, true, true]);
    world.told("east", vec![remote(2, "http", Protocol::Tcp, &[])]);
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80*"]);
}

#[test]
fn a_silent_cluster_is_unreachable_after_the_timeout_and_stays_listed() {
    for affinity in [Affinity::None, Affinity::Remote] {
        let mut world = World::two_clusters(OwnServiceRow { affinity, ..webpod() });
        assert_eq!(world.deriver.wake_at(), None);
        world.told("east", vec![ClusterChange::Stale(time(10))]);
        // Our own store may be silent as well: our own workloads go on.
        world.told("west", vec![ClusterChange::Stale(time(10))]);
        assert_eq!(world.deriver.wake_at(), Some(time(130)));
        world.now = 129;
        world.derive();
        assert!(world.backends().iter().all(|backend| backend.state == BackendState::Active));
        world.now = 130;
        world.derive();
        assert_eq!(
            world.lines(),
            ["10.0.0.10:80*", "10.0.1.10:80*", "10.1.0.10:8080", "10.1.1.10:8080"],
            "{affinity:?}"
        );
        assert_eq!(world.backends()[3].state, BackendState::Unreachable);
        assert_eq!(world.deriver.wake_at(), None);
        world.told("east", vec![ClusterChange::Fresh]);
        assert_eq!(world.lines()[2..], ["10.1.0.10:8080*", "10.1.1.10:8080*"]);
        world.told("east", vec![ClusterChange::Drop]);
        assert_eq!(world.lines().len(), 2);
    }
}

#[test]
fn an_address_that_several_tell_is_our_own_or_that_of_the_lowest_id_that_is_heard() {
    let mut world = World::two_clusters(webpod());
    world.told("far", vec![remote(3, "http", Protocol::Tcp, &[("10.1.0.10", 3), ("10.0.0.10", 3)])]);
    world.told("near", vec![remote(1, "http", Protocol::Tcp, &[("10.1.1.10", 1)])]);
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80*", "10.1.0.10:8080*", "10.1.1.10:1*"]);
    world.told("near", vec![ClusterChange::Stale(time(0))]);
    world.now = 120;
    world.derive();
    assert_eq!(world.lines()[3], "10.1.1.10:8080*", "one that is heard comes first");
}

#[test]
fn ports_are_found_by_name_and_protocol() {
    let mut world =
        World::two_clusters(OwnServiceRow { ports: [port("", 80), port("metrics", 9090)].into(), ..webpod() });
    let backends = |world: &World, nth: usize| world.service().ports[nth].backends.len();
    assert_eq!((backends(&world, 0), backends(&world, 1)), (2, 2), "http is neither");
    world.told("east", vec![remote(2, "metrics", Protocol::Tcp, &[("10.1.0.10", 9090)])]);
    assert_eq!((backends(&world, 0), backends(&world, 1)), (2, 3));
    world.told("east", vec![remote(2, "", Protocol::None, &[("10.1.0.10", 80)])]);
    assert_eq!((backends(&world, 0), backends(&world, 1)), (3, 2));
    for (protocol, port) in [(Protocol::Udp, 80), (Protocol::Tcp, 0)] {
        world.told("east", vec![remote(2, "", protocol, &[("10.1.0.10", port)])]);
        assert_eq!(backends(&world, 0), 2, "{protocol:?} {port}");
    }
}

#[test]
fn each_family_is_judged_for_itself() {
    let dual =
        OwnServiceRow { cluster_ips: [ip("10.2.0.80"), ip("fd02::80")].into(), affinity: Affinity::Local, ..webpod() };
    let mut world = World::two_clusters(dual);
    world.told("east", vec![remote(2, "http", Protocol::Tcp, &[("10.1.0.10", 80), ("fd01::10", 80)])]);
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80*", "10.1.0.10:80", "fd01::10:80*"]);
    let port = &world.service().ports[0];
    assert_eq!(port.frontends.iter().map(|f| port.backends_of(f).count()).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn weights_are_of_clusters_and_0_keeps_new_connections_away() {
    let weights = |list: &[(&str, u16)]| list.iter().map(|(name, weight)| (cluster(name), *weight)).collect();
    let mut world = World::two_clusters(OwnServiceRow { weights: weights(&[("east", 20)]), ..webpod() });
    assert_eq!(world.backends().iter().map(|b| b.weight).collect::<Vec<_>>(), [100, 100, 20, 20]);
    world.own(OwnServiceRow { weights: weights(&[("west", 0)]), affinity: Affinity::Local, ..webpod() });
    assert_eq!(world.lines(), ["10.0.0.10:80", "10.0.1.10:80", "10.1.0.10:8080*", "10.1.1.10:8080*"]);
    assert_eq!(world.desired.exports.services.get(&name("webpod")).unwrap().ports[0].backends.len(), 2);
    world.own(OwnServiceRow { weights: weights(&[("east", 0)]), affinity: Affinity::Remote, ..webpod() });
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80*", "10.1.0.10:8080", "10.1.1.10:8080"]);
}

#[test]
fn static_backends_belong_to_our_cluster_and_terminating_ones_are_the_last_resort() {
    let fixed = |address: &str, weight, terminating| StaticBackend {
        address: ip(address),
        port: Some(81),
        weight,
        terminating,
        zone: None,
    };
    let row = OwnServiceRow {
        backends: [fixed("192.0.2.1", 50, false), fixed("192.0.2.2", 100, true), fixed("10.0.0.10", 1, false)].into(),
        weights: [(cluster("west"), 200)].into(),
        ..webpod()
    };
    let mut world = World::two_clusters(row.clone());
    assert_eq!(world.lines()[0], "10.0.0.10:80*", "a workload comes before a static backend");
    assert_eq!(world.lines()[4..], ["192.0.2.1:81*", "192.0.2.2:81"]);
    assert_eq!((world.backends()[4].weight, world.backends()[4].local), (100, false));
    let exported = &world.desired.exports.services.get(&name("webpod")).unwrap().ports[0].backends;
    let exported: Vec<_> = exported.iter().map(|b| (b.address.to_string(), b.port, b.terminating)).collect();
    assert_eq!(exported[0], ("10.0.0.10".to_owned(), 80, false));
    assert_eq!(exported[3], ("192.0.2.2".to_owned(), 81, true));
    world.own(OwnServiceRow {
        selector: BTreeMap::new(),
        global: false,
        backends: [row.backends[1].clone()].into(),
        ..row
    });
    assert_eq!(world.lines(), ["192.0.2.2:81*"], "nothing else is left");
}

#[test]
fn selectors_follow_identities_namespaces_and_moves() {
    let mut world = World::new();
    world.told("west", vec![identity(WEB, "web"), identity(WEB + 1, "db"), endpoint("10.0.0.10", WEB, "172.18.0.4")]);
    world.own(webpod());
    assert_eq!(world.lines(), ["10.0.0.10:80*"], "workloads that were there before");
    world.told("west", vec![endpoint("10.0.0.10", WEB + 1, "172.18.0.4")]);
    assert!(world.lines().is_empty(), "another identity");
    world.told("west", vec![identity(WEB + 1, "web")]);
    assert_eq!(world.lines(), ["10.0.0.10:80*"], "other labels");
    let elsewhere = "k8s:app=web;k8s:io.kubernetes.pod.namespace=other;";
    let row = IdentityRow { labels: Labels(elsewhere.into()) };
    world.told("west", vec![ClusterChange::Identity(NumericIdentity(WEB + 1), Some(row))]);
    assert!(world.lines().is_empty(), "another namespace");
    world.told("west", vec![identity(WEB + 1, "web")]);
    let stricter = [("app", "web"), ("tier", "front")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    world.own(OwnServiceRow { selector: stricter.into(), ..webpod() });
    assert!(world.lines().is_empty(), "another selector");
    world.own(webpod());
    world.told(
        "west",
        vec![ClusterChange::Endpoint("10.0.3.0/24".parse().unwrap(), None), endpoint("10.0.0.11", WEB, "172.18.0.4")],
    );
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.0.11:80*"]);
    world.told("west", vec![ClusterChange::Identity(NumericIdentity(WEB), None)]);
    assert_eq!(world.lines(), ["10.0.0.10:80*"]);
}

#[test]
fn only_services_concerned_are_derived_again() {
    let mut world = World::two_clusters(webpod());
    let many = |nth: usize| {
        let selector = [("app".to_owned(), format!("app-{nth}"))].into();
        (name(&format!("s-{nth}")), Arc::new(OwnServiceRow { selector, ..webpod() }))
    };
    let mut rows: BTreeMap<ServiceName, Arc<OwnServiceRow>> = (0..1000).map(many).collect();
    rows.insert(name("webpod"), Arc::new(webpod()));
    world.change(Change::OwnServices(rows));
    let before = world.deriver.derived();
    world.told("west", vec![endpoint("10.0.0.11", WEB, "172.18.0.4")]);
    assert_eq!(world.deriver.derived(), before + 1);
    world.told("west", vec![endpoint("10.0.0.12", WEB + 1, "172.18.0.4")]);
    world.told("west", vec![identity(WEB + 1, "nobody")]);
    assert_eq!(world.deriver.derived(), before + 1, "nobody selects it");
    world.told("east", vec![ClusterChange::Service(name("other"), None)]);
    world.told("east", vec![remote(2, "http", Protocol::Tcp, &[("10.1.0.10", 8080)])]);
    assert_eq!(world.deriver.derived(), before + 2);
    world.told("west", vec![identity(WEB + 1, "app-7")]);
    assert_eq!(world.deriver.derived(), before + 3);
}

#[test]
fn ten_thousand_backends_are_merged_again_for_one_more() {
    let mut world = World::two_clusters(webpod());
    let addresses: Vec<String> = (0..10_000).map(|n| format!("10.1.{}.{}", 2 + n / 250, 1 + n % 250)).collect();
    let backends: Vec<(&str, u16)> = addresses.iter().map(|address| (address.as_str(), 8080)).collect();
    world.told("east", vec![remote(2, "http", Protocol::Tcp, &backends)]);
    assert_eq!(world.lines().len(), 10_002);
    let before = world.deriver.derived();
    world.told("west", vec![endpoint("10.0.0.11", WEB, "172.18.0.4")]);
    assert_eq!((world.lines().len(), world.deriver.derived()), (10_003, before + 1));
}

#[test]
fn node_ports_are_on_every_address_of_the_node_and_exports_wait_for_our_own_lists() {
    let mut world = World::two_clusters(OwnServiceRow {
        ports: [OwnServicePort { node_port: Some(30_080), ..port("http", 80) }].into(),
        ..webpod()
    });
    let node = world.service().ports[0].frontends[1];
    assert_eq!((node.address, node.port, node.kind), (ip("172.18.0.5"), 30_080, FrontendKind::NodePort));
    assert!(!world.desired.exports.complete);
    for kind in [Kind::Endpoints, Kind::Identities] {
        assert!(!world.desired.exports.complete);
        world.told("west", vec![ClusterChange::ListBegin(kind), ClusterChange::ListEnd(kind)]);
    }
    assert!(world.desired.exports.complete);
    assert!(world.lines()[0].starts_with("10.1."), "what the list did not tell is gone");
}

/// Changes of a small world, some of which undo others.
fn any_change() -> impl Strategy<Value = (u8, Change)> {
    let west = |changes| Change::Cluster(cluster("west"), changes);
    let app = |n: u32| if n == 0 { "web" } else { "db" };
    prop_oneof![
        (0..3_u32, 0..2_u32).prop_map(move |(id, n)| (0, west(vec![identity(WEB + id, app(n))]))),
        (0..3_u32).prop_map(move |id| (0, west(vec![ClusterChange::Identity(NumericIdentity(WEB + id), None)]))),
        (0..4_u8, 0..3_u32)
            .prop_map(move |(n, id)| (0, west(vec![endpoint(&format!("10.0.0.{n}"), WEB + id, "172.18.0.4")]))),
        (0..4_u8).prop_map(move |n| (0, west(vec![no_endpoint(&format!("10.0.0.{n}"))]))),
        (2..4_u8, 0..4_u8).prop_map(|(id, n)| {
            let backends = [(format!("10.1.0.{n}"), 80), (format!("10.0.0.{n}"), 81)];
            let backends: Vec<(&str, u16)> = backends.iter().map(|(a, p)| (a.as_str(), *p)).collect();
            let row = remote(id.into(), "http", Protocol::Tcp, &backends);
            (id, Change::Cluster(cluster(if id == 2 { "east" } else { "north" }), vec![row]))
        }),
        (0..3_u8).prop_map(|n| {
            let affinity = [Affinity::None, Affinity::Local, Affinity::Remote][usize::from(n)];
            let row = OwnServiceRow { affinity, global: n != 1, ..webpod() };
            (1, Change::OwnServices([(name("webpod"), Arc::new(row))].into()))
        }),
        Just((2, Change::Cluster(cluster("east"), vec![ClusterChange::Stale(time(0))]))),
        Just((2, Change::Cluster(cluster("east"), vec![ClusterChange::Fresh]))),
    ]
}

proptest! {
    /// Step by step gives what all at once gives, in whatever order the sources come.
    #[test]
    fn derivation_is_a_function_of_what_is_observed(changes in prop::collection::vec(any_change(), 0..40)) {
        let mut stepwise = World::new();
        for (_, change) in changes.clone() {
            stepwise.change(change);
        }
        let mut at_once = World::new();
        // Sources keep their own order and nothing else.
        let mut sorted = changes;
        sorted.sort_by_key(|(source, _)| *source);
        for (_, change) in sorted {
            at_once.observed.apply(change, time(0));
        }
        at_once.derive();
        for world in [&mut stepwise, &mut at_once] {
            world.now = 500;
            world.derive();
        }
        prop_assert!(stepwise.desired.services.iter().eq(at_once.desired.services.iter()));
        prop_assert!(stepwise.desired.exports.services.iter().eq(at_once.desired.exports.services.iter()));
    }
}

/// A node of west in a zone.
fn node(name: &str, address: &str, zone: &str) -> ClusterChange {
    let row = NodeRow {
        health: Box::default(),
        ingress: Box::default(),
        cluster_id: ClusterId::new(1, MaxClusters::C255).unwrap(),
        addresses: [NodeAddress { kind: NodeAddressKind::InternalIP, ip: ip(address) }].into(),
        pod_cidrs: Box::default(),
        labels: Labels::of_node([(ZONE_LABEL, zone)]),
    };
    ClusterChange::Node(name.parse().unwrap(), Some(Arc::new(row)))
}

#[test]
fn backends_of_the_own_zone_come_first_and_without_one_all_serve() {
    let mut world = World::two_clusters(OwnServiceRow { topology: Topology::Zone, ..webpod() });
    // Nobody has said where anything is.
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80*", "10.1.0.10:8080*", "10.1.1.10:8080*"]);

    // This node is in z1, and so is the first workload's.
    world.told("west", vec![node("west-control", "172.18.0.4", "z1"), node("west-worker", "172.18.0.5", "z2")]);
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80", "10.1.0.10:8080", "10.1.1.10:8080"]);

    // Of another cluster, one is there and meant for elsewhere, the other one is elsewhere and meant for here.
    let zone = |zone: &str, hint: &str| BackendZone { zone: Some(zone.into()), for_zones: [hint.into()].into() };
    let ClusterChange::Service(service, Some(row)) =
        remote(2, "http", Protocol::Tcp, &[("10.1.0.10", 8080), ("10.1.1.10", 8080)])
    else {
        unreachable!("it is a service")
    };
    let zones = [(ip("10.1.0.10"), zone("z1", "z3")), (ip("10.1.1.10"), zone("z3", "z1"))].into();
    world.told("east", vec![ClusterChange::Service(service, Some(Arc::new(ServiceRow { zones, ..(*row).clone() })))]);
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80", "10.1.0.10:8080", "10.1.1.10:8080*"]);

    // Affinity first: the other cluster's is not needed.
    world.own(OwnServiceRow { topology: Topology::Zone, affinity: Affinity::Local, ..webpod() });
    assert_eq!(world.lines(), ["10.0.0.10:80*", "10.0.1.10:80", "10.1.0.10:8080", "10.1.1.10:8080"]);

    // The last one of the zone goes.
    world.told("west", vec![no_endpoint("10.0.0.10")]);
    assert_eq!(world.lines(), ["10.0.1.10:80*", "10.1.0.10:8080", "10.1.1.10:8080"]);

    // A node that moves takes its workloads along.
    world.told("west", vec![node("west-worker", "172.18.0.5", "z1"), endpoint("10.0.0.11", WEB, "172.18.0.4")]);
    assert_eq!(world.lines(), ["10.0.0.11:80*", "10.0.1.10:80*", "10.1.0.10:8080", "10.1.1.10:8080"]);
}

#[test]
fn exported_backends_say_on_which_node_they_run() {
    let mut world = World::two_clusters(webpod());
    let nodes = |world: &World| -> Vec<String> {
        let exported = world.desired.exports.services.get(&name("webpod")).unwrap();
        let of = |backend: &ExportedBackend| {
            format!("{} {}", backend.address, backend.node.as_ref().map_or("-", |node| node.as_str()))
        };
        exported.ports[0].backends.iter().map(of).collect()
    };
    assert_eq!(nodes(&world), ["10.0.0.10 -", "10.0.1.10 -"]);

    let derived = world.deriver.derived();
    world.told("west", vec![node("west-far", "172.18.0.9", "z1")]);
    assert_eq!(world.deriver.derived(), derived, "nothing runs there");

    world.told("west", vec![node("west-control", "172.18.0.4", ""), node("west-worker", "172.18.0.5", "z2")]);
    assert_eq!(nodes(&world), ["10.0.0.10 west-control", "10.0.1.10 west-worker"]);

    // While an address goes from one node to another, both have it.
    world.told("west", vec![node("west-big", "172.18.0.4", "")]);
    assert_eq!(nodes(&world)[0], "10.0.0.10 west-big");
    world.told("west", vec![node("west-big", "172.18.0.7", "")]);
    assert_eq!(nodes(&world)[0], "10.0.0.10 west-control");
    world.told("west", vec![ClusterChange::Node("west-control".parse().unwrap(), None)]);
    assert_eq!(nodes(&world), ["10.0.0.10 -", "10.0.1.10 west-worker"]);
}
