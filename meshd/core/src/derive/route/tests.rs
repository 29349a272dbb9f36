use super::*;
use crate::{
    clustermesh::Accept,
    id::{ClusterId, IfIndex, MAIN_TABLE, MaxClusters, Metric, TableId},
    observed::{
        AddressKey, AddressRow, Change, ClusterChange, KernelChange, LinkRow, NextHopSpec, NodeAddress,
        NodeAddressKind, RouteKey, RouteKind, RouteRow as ForeignRoute,
    },
};

pub(super) struct World {
    observed: Observed,
    pub(super) desired: Desired,
    deriver: RouteDeriver,
    now: Timestamp,
}

pub(super) fn connected(prefix: &str, dev: u32) -> KernelChange {
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

fn address(text: &str, link: u32) -> KernelChange {
    KernelChange::Address(
        AddressKey { link: IfIndex(link), address: text.parse().unwrap() },
        Some(AddressRow { usable: true }),
    )
}

pub(super) fn without(change: KernelChange) -> KernelChange {
    match change {
        KernelChange::Address(key, _) => KernelChange::Address(key, None),
        KernelChange::Route(key, _) => KernelChange::Route(key, None),
        other => other,
    }
}

pub(super) fn via(prefix: &str, gateway: &str, dev: u32) -> KernelChange {
    let hop = NextHopSpec { via: Some(gateway.parse().unwrap()), dev: IfIndex(dev) };
    let KernelChange::Route(key, Some(row)) = connected(prefix, dev) else { unreachable!("a route") };
    KernelChange::Route(RouteKey { hop: Some(hop), ..key }, Some(ForeignRoute { hops: [hop].into(), ..row }))
}

pub(super) fn link(index: u32, up: bool, mtu: u32) -> KernelChange {
    let row =
        LinkRow { name: format!("eth{index}").into(), up, running: up, loopback: false, mtu, kind: None, mac: None };
    KernelChange::Link(IfIndex(index), Some(row))
}

pub(super) fn node(cluster: u32, addresses: &[&str], cidrs: &[&str]) -> Option<Arc<NodeRow>> {
    let address = |ip: &&str| NodeAddress { kind: NodeAddressKind::InternalIP, ip: ip.parse().unwrap() };
    Some(Arc::new(NodeRow {
        health: Box::default(),
        ingress: Box::default(),
        cluster_id: ClusterId::new(cluster, MaxClusters::C255).unwrap(),
        addresses: addresses.iter().map(address).collect(),
        pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        labels: Default::default(),
    }))
}

impl World {
    pub(super) fn new() -> Self {
        let local = LocalNode {
            cluster: "west".parse().unwrap(),
            name: "me".parse().unwrap(),
            addresses: vec!["172.18.0.5".parse().unwrap()],
            pod_cidrs: vec!["10.0.1.0/24".parse().unwrap()],
            zone: None,
        };
        let mut world = Self {
            observed: Observed::default(),
            desired: Desired::default(),
            deriver: RouteDeriver::new(local, BTreeMap::new()),
            now: Timestamp::UNIX_EPOCH,
        };
        let list = |kind, rows: Vec<KernelChange>| {
            [vec![KernelChange::ListBegin(kind)], rows, vec![KernelChange::ListEnd(kind)]].concat()
        };
        world.kernel(list(KernelKind::Links, vec![link(2, true, 1500), link(3, true, 9000)]));
        world.kernel(list(KernelKind::Addresses, vec![address("172.18.0.5/16", 2), address("fd00::5/64", 3)]));
        world.kernel(list(KernelKind::Routes, vec![connected("172.18.0.0/16", 2), connected("fd00::/64", 3)]));
        world
    }

    pub(super) fn kernel(&mut self, changes: Vec<KernelChange>) {
        self.observed.apply(Change::Kernel(changes), Timestamp::UNIX_EPOCH);
        self.derive();
    }

    pub(super) fn node(&mut self, cluster: &str, name: &str, row: Option<Arc<NodeRow>>) {
        let change = ClusterChange::Node(name.parse().unwrap(), row);
        self.observed.apply(Change::Cluster(cluster.parse().unwrap(), vec![change]), Timestamp::UNIX_EPOCH);
        self.derive();
    }

    pub(super) fn tell(&mut self, change: Change) {
        self.observed.apply(change, Timestamp::UNIX_EPOCH);
        self.derive();
    }

    pub(super) fn policy(&mut self, policy: PathPolicy) {
        self.deriver.set_policy(Arc::new(policy));
        self.derive();
    }

    fn accept(&mut self, cluster: &str, pod_cidrs: &[&str]) {
        let pod_cidrs = pod_cidrs.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let accept = Accept { pod_cidrs, node_cidrs: vec!["0.0.0.0/0".parse().unwrap()] };
        let change = Change::Cluster(cluster.parse().unwrap(), vec![ClusterChange::Accept(accept)]);
        self.observed.apply(change, Timestamp::UNIX_EPOCH);
        self.derive();
    }

    /// Refused prefixes as `prefix of cluster/node: reason`, the reason up to its advice.
    fn conflicts(&self) -> Vec<String> {
        let line = |((prefix, node), conflict): (&(IpNet, NodeTarget), &Arc<Conflict>)| {
            let text = conflict.to_string();
            format!("{prefix} of {node}: {}", text.split(';').next().unwrap_or_default())
        };
        self.desired.conflicts.iter().map(line).collect()
    }

    fn derive(&mut self) {
        let touched = self.observed.take_touched();
        self.deriver.update(&self.observed, &touched, self.now, &mut self.desired);
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
        let key = NodeTarget { cluster: "east".parse().unwrap(), node: "cp".parse().unwrap(), ipv4 }.into();
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
    assert_eq!(key.1.to_string(), "east/b");
    assert!(matches!(&conflict.cause, ConflictCause::Owned { owner, .. } if owner.as_str() == "south"), "{conflict}");
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

#[test]
fn a_prefix_that_would_take_the_underlay_away_is_refused() {
    let inside = "lies inside 172.18.0.0/16, a network this node is connected to";
    let cases = [
        ("172.18.0.0/16", "is 172.18.0.0/16, a network this node is connected to"),
        ("172.18.128.0/17", inside),
        ("172.18.0.3/32", inside),
        // Beyond the connected networks: reached by the default route, which is less specific.
        ("192.168.7.0/24", "contains 192.168.7.1, a gateway of this node"),
        ("192.168.8.0/24", "contains 192.168.8.4, the address of node west/far"),
        ("192.168.9.0/24", "contains 192.168.9.3, the address of node east/beyond"),
        ("192.168.0.0/16", "contains 192.168.7.1, a gateway of this node"),
        // The network's own route is more specific.
        ("192.168.192.0/19", ""),
        // A host route to the node is as well.
        ("198.51.100.0/24", ""),
        // Of another remote cluster, which could otherwise have any prefix refused.
        ("203.0.113.0/24", ""),
        ("10.1.0.0/24", ""),
        ("fd00::/64", "is fd00::/64, a network this node is connected to"),
        ("fd00:0:0:0:8000::/65", "lies inside fd00::/64, a network this node is connected to"),
        ("fd00::/16", ""),
    ];
    for (prefix, reason) in cases {
        let mut world = World::new();
        world.kernel(vec![via("0.0.0.0/0", "172.18.0.1", 2), via("10.9.0.0/16", "192.168.7.1", 2)]);
        world.kernel(vec![via("198.51.100.7/32", "172.18.0.1", 2)]);
        world.kernel(vec![address("192.168.200.5/24", 3), connected("192.168.200.0/24", 3)]);
        world.accept("east", &["0.0.0.0/0", "::/0"]);
        world.node("west", "far", node(1, &["192.168.8.4", "198.51.100.7"], &[]));
        world.node("east", "beyond", node(2, &["192.168.9.3"], &[]));
        world.node("south", "a", node(3, &["203.0.113.5"], &[]));
        world.node("east", "cp", node(2, &["172.18.0.3", "fd00::3"], &[prefix, "10.7.0.0/24"]));
        let (route, refused) = (world.routes(), world.conflicts());
        assert!(route.contains(&"10.7.0.0/24 via 172.18.0.3%2".to_owned()), "{prefix}: {route:?}");
        let prefix: IpNet = prefix.parse().unwrap();
        if reason.is_empty() {
            assert_eq!((route.len(), refused.len()), (2, 0), "{prefix}: {refused:?}");
        } else {
            assert_eq!((route.len(), refused), (1, vec![format!("{prefix} of east/cp: prefix {reason}")]));
        }
    }
}

#[test]
fn a_prefix_recovers_with_the_reason_of_its_refusal() {
    let mut world = World::new();
    world.deriver.settle();
    world.node("east", "cp", node(2, &["172.18.0.3"], &["192.168.7.0/24"]));
    let route = ["192.168.7.0/24 via 172.18.0.3%2"];
    assert_eq!(world.routes(), route);

    world.kernel(vec![address("192.168.0.4/16", 3)]);
    // The network is on two links: it is there until both have lost it.
    world.kernel(vec![address("192.168.0.5/16", 2)]);
    world.accept("east", &["0.0.0.0/0"]);
    assert_eq!(world.conflicts().len(), 1);
    assert_eq!((world.routes().len(), world.desired.targets.len()), (0, 0));
    world.kernel(vec![without(address("192.168.0.4/16", 3))]);
    assert_eq!(world.conflicts().len(), 1);
    world.kernel(vec![without(address("192.168.0.5/16", 2))]);
    assert_eq!((world.conflicts().len(), world.routes()), (0, route.map(str::to_owned).to_vec()));

    world.node("east", "cp", None);
    world.kernel(vec![via("0.0.0.0/0", "192.168.7.1", 2)]);
    world.node("east", "cp", node(2, &["172.18.0.3"], &["192.168.7.0/24"]));
    assert!(world.conflicts()[0].contains("192.168.7.1, a gateway"), "{:?}", world.conflicts());
    world.kernel(vec![connected("192.168.7.1/32", 2)]);
    assert_eq!((world.conflicts().len(), world.routes()), (0, route.map(str::to_owned).to_vec()));
    // A route that works outlives what made room for it.
    world.kernel(vec![without(connected("192.168.7.1/32", 2))]);
    assert_eq!((world.conflicts().len(), world.routes()), (0, route.map(str::to_owned).to_vec()));
    world.kernel(vec![without(via("0.0.0.0/0", "192.168.7.1", 2))]);

    world.node("east", "cp", None);
    world.kernel(vec![via("0.0.0.0/0", "172.18.0.1", 2)]);
    world.node("west", "n", node(1, &["192.168.7.9"], &[]));
    world.node("east", "cp", node(2, &["172.18.0.3"], &["192.168.7.0/24"]));
    assert!(world.conflicts()[0].contains("node west/n"), "{:?}", world.conflicts());
    // What is refused stands in nobody's way.
    world.node("south", "a", node(3, &["172.18.0.7"], &["192.168.7.128/25"]));
    assert_eq!(world.routes(), ["192.168.7.128/25 via 172.18.0.7%2"]);
    world.node("south", "a", None);
    world.node("west", "n", node(1, &["172.18.0.9"], &[]));
    assert_eq!((world.conflicts().len(), world.routes()), (0, route.map(str::to_owned).to_vec()));
    world.node("east", "cp", None);
    assert!(world.deriver.claimants.iter().next().is_none() && world.deriver.barred.is_empty());
}

#[test]
fn a_refusal_is_as_old_as_its_first_cause() {
    let mut world = World::new();
    world.kernel(vec![via("0.0.0.0/0", "192.168.7.1", 2)]);
    world.accept("east", &["0.0.0.0/0"]);
    world.node("east", "cp", node(2, &["172.18.0.3"], &["192.168.7.0/24"]));
    let since = |world: &World| world.desired.conflicts.iter().map(|(_, conflict)| conflict.since).collect::<Vec<_>>();
    assert_eq!(since(&world), [Timestamp::UNIX_EPOCH]);
    world.now = Timestamp::from_second(60).unwrap();
    world.kernel(vec![address("192.168.0.4/16", 3)]);
    assert!(world.conflicts()[0].contains("lies inside 192.168.0.0/16"), "{:?}", world.conflicts());
    assert_eq!(since(&world), [Timestamp::UNIX_EPOCH]);
}

#[test]
fn workloads_in_the_node_network_need_an_entry_that_names_a_part_of_it() {
    let mut world = World::new();
    world.node("east", "cp", node(2, &["172.18.0.3"], &["172.18.64.0/24"]));
    let route = ["172.18.64.0/24 via 172.18.0.3%2"].map(str::to_owned).to_vec();
    assert_eq!(world.routes(), route, "remembered, and its list is not known yet");
    for (list, fine) in [
        (["172.18.64.0/18"], true),
        (["172.16.0.0/12"], false),
        (["172.18.64.0/24"], true),
        (["172.18.0.0/16"], false),
        (["172.18.0.0/17"], true),
    ] {
        world.accept("east", &list);
        assert_eq!(world.routes() == route, fine, "{list:?}: {:?}", world.conflicts());
    }
    // A third cluster cannot take away what works by publishing an address in it.
    world.accept("east", &["172.18.0.0/17"]);
    world.node("south", "a", node(3, &["172.18.64.7"], &[]));
    assert_eq!((world.conflicts().len(), world.routes()), (0, route.clone()));
    // What is in use by nodes when it is claimed is no PodCIDR.
    world.node("east", "cp", None);
    world.node("east", "cp", node(2, &["172.18.0.3"], &["172.18.64.0/24"]));
    assert!(world.conflicts()[0].contains("contains 172.18.64.7, the address of node south/a"));
    world.node("south", "a", None);
    assert_eq!((world.conflicts().len(), world.routes()), (0, route));
    // Our own cluster has no list.
    world.node("west", "n", node(1, &["172.18.0.9"], &["172.18.65.0/24", "172.18.66.0/24"]));
    assert_eq!(world.routes().len(), 3);
}

#[test]
fn a_route_of_a_tunnel_through_the_prefix_itself_is_no_reason() {
    let mut world = World::new();
    world.kernel(vec![via("10.42.1.0/24", "10.42.1.0", 2)]);
    world.node("west", "n", node(1, &["172.18.0.9"], &["10.42.1.0/24"]));
    assert_eq!((world.routes().len(), world.conflicts().len()), (1, 0));
}
