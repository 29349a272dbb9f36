use super::*;
use crate::{
    id::{ClusterId, IfIndex, MAIN_TABLE, MaxClusters, Metric, TableId},
    observed::{
        Change, ClusterChange, KernelChange, LinkRow, NextHopSpec, NodeAddress, NodeAddressKind, RouteKey, RouteKind,
        RouteRow as ForeignRoute,
    },
};

struct World {
    observed: Observed,
    desired: Desired,
    deriver: RouteDeriver,
}

fn connected(prefix: &str, dev: u32) -> KernelChange {
    let hop = NextHopSpec { via: None, dev: IfIndex(dev) };
    let key = RouteKey {
        table: TableId(MAIN_TABLE),
        prefix: prefix.parse().unwrap(),
        metric: Metric(0),
        tos: 0,
        protocol: 2,
        hop: Some(hop),
    };
    KernelChange::Route(key, Some(ForeignRoute { kind: RouteKind::Unicast, hops: [hop].into(), nexthop: None }))
}

fn link(index: u32, up: bool, mtu: u32) -> KernelChange {
    let row = LinkRow { name: format!("eth{index}").into(), up, running: up, loopback: false, mtu, kind: None };
    KernelChange::Link(IfIndex(index), Some(row))
}

fn node(cluster: u32, addresses: &[&str], cidrs: &[&str]) -> Option<Arc<NodeRow>> {
    let address = |ip: &&str| NodeAddress { kind: NodeAddressKind::InternalIP, ip: ip.parse().unwrap() };
    Some(Arc::new(NodeRow {
        cluster_id: ClusterId::new(cluster, MaxClusters::C255).unwrap(),
        addresses: addresses.iter().map(address).collect(),
        pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        labels: Default::default(),
    }))
}

impl World {
    fn new() -> Self {
        let local = LocalNode {
            cluster: "west".parse().unwrap(),
            name: "me".parse().unwrap(),
            addresses: vec!["172.18.0.5".parse().unwrap()],
            pod_cidrs: vec!["10.0.1.0/24".parse().unwrap()],
        };
        let mut world = Self {
            observed: Observed::default(),
            desired: Desired::default(),
            deriver: RouteDeriver::new(local, BTreeMap::new()),
        };
        let list = |kind, rows: Vec<KernelChange>| {
            [vec![KernelChange::ListBegin(kind)], rows, vec![KernelChange::ListEnd(kind)]].concat()
        };
        world.kernel(list(KernelKind::Links, vec![link(2, true, 1500), link(3, true, 9000)]));
        world.kernel(list(KernelKind::Routes, vec![connected("172.18.0.0/16", 2), connected("fd00::/64", 3)]));
        world
    }

    fn kernel(&mut self, changes: Vec<KernelChange>) {
        self.observed.apply(Change::Kernel(changes), Timestamp::UNIX_EPOCH);
        self.derive();
    }

    fn node(&mut self, cluster: &str, name: &str, row: Option<Arc<NodeRow>>) {
        let change = ClusterChange::Node(name.parse().unwrap(), row);
        self.observed.apply(Change::Cluster(cluster.parse().unwrap(), vec![change]), Timestamp::UNIX_EPOCH);
        self.derive();
    }

    fn derive(&mut self) {
        let touched = self.observed.take_touched();
        self.deriver.update(&self.observed, &touched, Timestamp::UNIX_EPOCH, &mut self.desired);
    }

    /// Routes as `prefix via hop,hop` or `prefix ! problem`.
    fn routes(&self) -> Vec<String> {
        let line = |(prefix, row): (&IpNet, &Arc<RouteRow>)| {
            let target = self.desired.targets.get(&row.target).expect("every route has a target");
            match &target.problem {
                Some(problem) => format!("{prefix} ! {problem}"),
                None => {
                    let hops: Vec<_> = target.hops.iter().map(|hop| format!("{}%{}", hop.via, hop.dev)).collect();
                    format!("{prefix} via {}", hops.join(","))
                }
            }
        };
        self.desired.routes.iter().map(line).collect()
    }
}

#[test]
fn nodes_of_both_clusters_become_routes_and_our_own_does_not() {
    let mut world = World::new();
    world.node("west", "me", node(1, &["172.18.0.5"], &["10.0.1.0/24"]));
    world.node("west", "cp", node(1, &["172.18.0.4"], &["10.0.0.0/24"]));
    world.node("east", "cp", node(2, &["172.18.0.3"], &["10.1.0.0/24"]));
    assert_eq!(world.routes(), ["10.0.0.0/24 via 172.18.0.4%2", "10.1.0.0/24 via 172.18.0.3%2"]);
    world.node("east", "cp", None);
    assert_eq!(world.routes(), ["10.0.0.0/24 via 172.18.0.4%2"]);
    assert_eq!(world.desired.targets.len(), 1);
}

#[test]
fn a_moved_node_changes_one_target_and_no_route_row() {
    let mut world = World::new();
    world.node("east", "cp", node(2, &["172.18.0.3"], &["10.1.0.0/24", "10.1.9.0/24"]));
    let before = world.desired.clone();
    world.node("east", "cp", node(2, &["172.18.0.9"], &["10.1.0.0/24", "10.1.9.0/24"]));
    assert_eq!(world.desired.routes.diff(&before.routes).count(), 0);
    assert_eq!(world.desired.targets.diff(&before.targets).count(), 1);
    assert_eq!(world.routes()[0], "10.1.0.0/24 via 172.18.0.9%2");
}

#[test]
fn several_on_link_addresses_are_several_hops_and_families_do_not_mix() {
    let mut world = World::new();
    world.node("east", "cp", node(2, &["172.18.0.9", "172.18.0.3", "fd00::3"], &["10.1.0.0/24", "fd01::/64"]));
    assert_eq!(world.routes(), ["10.1.0.0/24 via 172.18.0.3%2,172.18.0.9%2", "fd01::/64 via fd00::3%3"]);
    let mtu = |ipv4| {
        let key = TargetKey { cluster: "east".parse().unwrap(), node: "cp".parse().unwrap(), ipv4 };
        world.desired.targets.get(&key).unwrap().mtu
    };
    assert_eq!((mtu(true), mtu(false)), (1500, 9000));
}

#[test]
fn ipv4_prefixes_can_use_an_ipv6_hop_but_not_the_other_way() {
    let mut world = World::new();
    world.node("east", "v6", node(2, &["fd00::3"], &["10.1.0.0/24"]));
    world.node("east", "v4", node(2, &["172.18.0.3"], &["fd01::/64"]));
    assert_eq!(world.routes(), ["10.1.0.0/24 via fd00::3%3", "fd01::/64 ! node east/v4 has published no IPv6 address"]);
}

#[test]
fn a_node_behind_a_router_is_an_error_with_the_reason_until_it_is_on_link() {
    let mut world = World::new();
    world.node("east", "far", node(2, &["192.168.7.3"], &["10.1.0.0/24"]));
    assert_eq!(
        world.routes(),
        [
            "10.1.0.0/24 ! 192.168.7.3 is not on-link: no route leads to it; a direct route needs the node in a connected \
          network"
        ]
    );
    world.kernel(vec![connected("192.168.7.0/24", 3)]);
    assert_eq!(world.routes(), ["10.1.0.0/24 via 192.168.7.3%3"]);
    world.kernel(vec![link(3, false, 9000)]);
    assert!(world.routes()[0].contains("link eth3 of route 192.168.7.0/24 is down"), "{:?}", world.routes());
}

#[test]
fn nothing_is_decided_before_the_kernel_was_read() {
    let mut world = World::new();
    world.observed = Observed::default();
    world.deriver = RouteDeriver::new(world.deriver.local.clone(), BTreeMap::new());
    world.desired = Desired::default();
    world.node("east", "cp", node(2, &["172.18.0.3"], &["10.1.0.0/24"]));
    assert_eq!(world.routes(), ["10.1.0.0/24 ! the local links and routes have not been read yet"]);
}

#[test]
fn a_prefix_of_two_clusters_is_a_conflict_until_the_owner_leaves() {
    let mut world = World::new();
    world.deriver.settle();
    world.node("south", "a", node(3, &["172.18.0.7"], &["10.1.0.0/24"]));
    world.node("east", "b", node(2, &["172.18.0.3"], &["10.1.0.0/16"]));
    assert_eq!(world.routes(), ["10.1.0.0/24 via 172.18.0.7%2"]);
    let (key, conflict) = world.desired.conflicts.iter().next().unwrap();
    assert_eq!((key.1.to_string().as_str(), conflict.owner.as_str()), ("east/b", "south"));
    world.node("south", "a", None);
    assert_eq!(world.routes(), ["10.1.0.0/16 via 172.18.0.3%2"]);
    assert!(world.desired.conflicts.is_empty());
}

#[test]
fn our_own_address_is_never_a_next_hop() {
    let mut world = World::new();
    world.node("east", "liar", node(2, &["172.18.0.5"], &["10.1.0.0/24"]));
    assert!(world.routes()[0].contains("it is an address of this node"));
}

#[test]
fn a_link_or_route_nobody_is_behind_visits_no_node() {
    let mut world = World::new();
    for place in 1..100 {
        let (address, cidr) = (format!("172.18.1.{place}"), format!("10.1.{place}.0/24"));
        world.node("east", &format!("n{place}"), node(2, &[&address], &[&cidr]));
    }
    let before = world.deriver.lookups();
    world.kernel(vec![link(7, true, 1500), link(3, false, 9000), connected("192.168.7.0/24", 7)]);
    assert_eq!(world.deriver.lookups(), before);
    world.kernel(vec![connected("172.18.1.7/32", 7)]);
    assert_eq!(world.deriver.lookups(), before + 1);
    assert!(world.routes().contains(&"10.1.7.0/24 via 172.18.1.7%7".to_owned()));
}
