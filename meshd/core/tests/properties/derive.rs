//! Derivation does not depend on the order in which sources told things, nor on how often it was asked meanwhile.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use meshd_core::{
    clustermesh::Accept,
    derive::{LocalNode, RouteDeriver},
    desired::{Conflict, Desired, NodeTarget, RouteRow, Target, TargetKey},
    id::{ClusterId, ClusterName, IfIndex, MAIN_TABLE, MaxClusters, Metric, NodeName, TableId},
    observed::{
        AddressKey, AddressRow, Change, ClusterChange, KernelChange, KernelKind, LinkRow, NextHopSpec, NodeAddress,
        NodeAddressKind, NodeRow, Observed, RouteKey, RouteKind, RouteRow as ForeignRoute, Touched,
    },
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    /// Cluster, node, and its row: address on one of three networks, number of PodCIDRs; `None` removes it.
    Node(u8, u8, Option<(u8, u8)>),
    Link(u8, bool),
    /// A row of [`NETWORKS`] comes or goes.
    Network(usize, bool),
    /// A row of [`ADDRESSES`] comes or goes.
    Address(usize, bool),
    /// A cluster is given a row of [`ACCEPTS`].
    Accept(u8, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1u8..4, 0u8..4, prop::option::weighted(0.8, (0u8..3, 0u8..3))).prop_map(|(c, n, row)| Step::Node(c, n, row)),
        1 => (2u8..4, any::<bool>()).prop_map(|(link, up)| Step::Link(link, up)),
        2 => (0..NETWORKS.len(), any::<bool>()).prop_map(|(network, there)| Step::Network(network, there)),
        1 => (0..ADDRESSES.len(), any::<bool>()).prop_map(|(address, there)| Step::Address(address, there)),
        1 => (2u8..4, 0..ACCEPTS.len()).prop_map(|(cluster, list)| Step::Accept(cluster, list)),
    ]
}

fn cluster(number: u8) -> ClusterName {
    format!("c{number}").parse().expect("a name")
}

fn node(number: u8) -> NodeName {
    format!("n{number}").parse().expect("a name")
}

/// PodCIDRs of different nodes never overlap, and contain no node and no gateway: who was first matters there, and that is
/// another property.
fn row(cluster: u8, node: u8, network: u8, cidrs: u8) -> Arc<NodeRow> {
    let address = format!("172.{}.{cluster}.{node}", 18 + network).parse().expect("an address");
    // The last one of node 3 lies among the nodes.
    let cidr = |i: u8| -> IpNet {
        let text = match (node, i) {
            (3, 1) => format!("172.18.{}.0/24", 100 + cluster),
            _ => format!("10.{cluster}.{}.0/24", node * 16 + i),
        };
        text.parse().expect("a prefix")
    };
    Arc::new(NodeRow {
        health: Box::default(),
        ingress: Box::default(),
        cluster_id: ClusterId::new(cluster.into(), MaxClusters::C255).expect("an id"),
        addresses: Box::new([NodeAddress { kind: NodeAddressKind::InternalIP, ip: address }]),
        pod_cidrs: (0..cidrs).map(cidr).collect(),
        labels: Default::default(),
    })
}

/// Networks around the nodes, around and inside the PodCIDRs.
const ADDRESSES: [&str; 5] = ["172.18.1.0/16", "172.20.2.9/24", "10.2.0.7/16", "10.3.16.1/24", "10.0.0.1/8"];

fn address(number: usize, there: bool) -> KernelChange {
    let key = AddressKey { link: IfIndex(2), address: ADDRESSES[number].parse().expect("an address") };
    KernelChange::Address(key, there.then_some(AddressRow { usable: true }))
}

/// Everything, as a list that says nothing of the node network; and lists that name parts of some.
const ACCEPTS: [&[&str]; 3] =
    [&["0.0.0.0/0"], &["0.0.0.0/0", "10.2.0.0/17"], &["10.0.0.0/9", "172.18.102.0/24", "172.18.103.0/24", "0.0.0.0/0"]];

/// A route of somebody else: what it is for, its gateway, its link and its metric.
struct Foreign(&'static str, Option<&'static str>, u32, u32, RouteKind);

/// Connected networks, parts of them that lead elsewhere or nowhere, a host route, and two ways out.
const NETWORKS: [Foreign; 10] = [
    Foreign("172.18.0.0/16", None, 2, 0, RouteKind::Unicast),
    Foreign("172.19.0.0/16", None, 3, 0, RouteKind::Unicast),
    Foreign("172.18.2.0/24", None, 3, 0, RouteKind::Unicast),
    Foreign("172.18.2.0/24", Some("172.18.0.1"), 2, 50, RouteKind::Unicast),
    Foreign("172.19.1.0/24", None, 1, 0, RouteKind::Blackhole),
    Foreign("172.18.1.1/32", None, 3, 0, RouteKind::Unicast),
    Foreign("0.0.0.0/0", Some("172.18.0.1"), 2, 0, RouteKind::Unicast),
    Foreign("0.0.0.0/0", None, 3, 100, RouteKind::Unicast),
    Foreign("192.0.2.0/24", Some("172.18.0.9"), 2, 0, RouteKind::Unicast),
    Foreign("10.2.16.0/24", Some("172.18.0.9"), 2, 0, RouteKind::Unicast),
];

fn network(number: usize, there: bool) -> KernelChange {
    let Foreign(prefix, via, dev, metric, kind) = NETWORKS[number];
    let hop = NextHopSpec { via: via.map(|via| via.parse().expect("an address")), dev: IfIndex(dev) };
    let prefix = prefix.parse().expect("a prefix");
    let (table, metric) = (TableId(MAIN_TABLE), Metric(metric));
    let key = RouteKey { table, prefix, metric, tos: 0, protocol: 2, hop: Some(hop) };
    let hops: &[NextHopSpec] = if kind == RouteKind::Unicast { &[hop] } else { &[] };
    KernelChange::Route(key, there.then(|| ForeignRoute { kind, hops: hops.into(), nexthop: None }))
}

fn link(number: u8, up: bool) -> KernelChange {
    let name = format!("eth{number}").into();
    let row = LinkRow { name, up, running: up, loopback: false, mtu: 1400 + u32::from(number), kind: None, mac: None };
    KernelChange::Link(IfIndex(number.into()), Some(row))
}

fn change(step: &Step) -> Change {
    match step {
        Step::Node(c, n, of) => {
            let row = of.map(|(network, cidrs)| row(*c, *n, network, cidrs));
            Change::Cluster(cluster(*c), vec![ClusterChange::Node(node(*n), row)])
        }
        Step::Link(number, up) => Change::Kernel(vec![link(*number, *up)]),
        Step::Network(number, there) => Change::Kernel(vec![network(*number, *there)]),
        Step::Address(number, there) => Change::Kernel(vec![address(*number, *there)]),
        Step::Accept(number, list) => {
            let all: IpNet = "0.0.0.0/0".parse().expect("a prefix");
            let pod_cidrs = ACCEPTS[*list].iter().map(|text| text.parse().expect("a prefix")).collect();
            Change::Cluster(cluster(*number), vec![ClusterChange::Accept(Accept { pod_cidrs, node_cidrs: vec![all] })])
        }
    }
}

fn kernel() -> Change {
    let list = |kind, rows: Vec<KernelChange>| {
        [vec![KernelChange::ListBegin(kind)], rows, vec![KernelChange::ListEnd(kind)]].concat()
    };
    let links = list(KernelKind::Links, vec![link(2, true), link(3, true)]);
    let addresses = list(KernelKind::Addresses, vec![address(0, true)]);
    let routes = list(KernelKind::Routes, vec![network(0, true), network(1, true)]);
    Change::Kernel([links, addresses, routes].concat())
}

fn deriver() -> RouteDeriver {
    let local = LocalNode {
        cluster: cluster(1),
        name: node(0),
        addresses: vec!["172.18.1.0".parse().expect("an address")],
        pod_cidrs: vec!["10.1.0.0/24".parse().expect("a prefix")],
        zone: None,
    };
    let mut deriver = RouteDeriver::new(local, BTreeMap::new());
    deriver.settle();
    deriver
}

type Rows = (Vec<(IpNet, Arc<RouteRow>)>, Vec<(TargetKey, Arc<Target>)>, Vec<((IpNet, NodeTarget), Arc<Conflict>)>);

fn rows(desired: &Desired) -> Rows {
    let routes = desired.routes.iter().map(|(key, row)| (*key, row.clone())).collect();
    let targets = desired.targets.iter().map(|(key, row)| (key.clone(), row.clone())).collect();
    (routes, targets, desired.conflicts.iter().map(|(key, row)| (key.clone(), row.clone())).collect())
}

/// Derives after each change, or (`once`) only at the end.
fn derive(changes: &[Change], once: bool) -> Rows {
    let (mut observed, mut desired, mut deriver) = (Observed::default(), Desired::default(), deriver());
    let now = Timestamp::UNIX_EPOCH;
    for change in changes {
        observed.apply(change.clone(), now);
        if !once {
            let touched: Touched = observed.take_touched();
            deriver.update(&observed, &touched, now, &mut desired);
        }
    }
    let touched = observed.take_touched();
    deriver.update(&observed, &touched, now, &mut desired);
    rows(&desired)
}

proptest! {
    #[test]
    fn step_by_step_and_at_once_are_the_same(steps in prop::collection::vec(step(), 1..60)) {
        let changes: Vec<Change> = std::iter::once(kernel()).chain(steps.iter().map(change)).collect();
        prop_assert_eq!(derive(&changes, false), derive(&changes, true));
    }

    #[test]
    fn the_order_of_independent_rows_does_not_matter(
        steps in prop::collection::vec(step(), 1..30),
        order in prop::collection::vec(any::<prop::sample::Index>(), 30),
    ) {
        // The last word about each row, so that any order tells the same story.
        let mut last: BTreeMap<String, Change> = BTreeMap::new();
        for step in &steps {
            let about = match step {
                Step::Node(c, n, _) => format!("node {c} {n}"),
                Step::Link(link, _) => format!("link {link}"),
                Step::Network(network, _) => format!("network {network}"),
                Step::Address(address, _) => format!("address {address}"),
                Step::Accept(cluster, _) => format!("accept {cluster}"),
            };
            last.insert(about, change(step));
        }
        let changes: Vec<Change> = last.into_values().collect();
        let mut shuffled = changes.clone();
        for (at, index) in order.iter().enumerate().take(shuffled.len()) {
            let other = index.index(shuffled.len());
            shuffled.swap(at, other);
        }
        let first = |rest: Vec<Change>| [vec![kernel()], rest].concat();
        let expected = derive(&first(changes), false);
        prop_assert_eq!(&derive(&first(shuffled.clone()), false), &expected);
        prop_assert_eq!(&derive(&first(shuffled), true), &expected);
    }
}
