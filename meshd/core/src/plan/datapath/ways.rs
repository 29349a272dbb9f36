//! Through which neighbor an address is reached.
//!
//! The programs send past the routing table what has one clear next hop inside of the mesh. Everything else (several next hops, routes over
//! objects of others, no route) is left to the kernel, which then decides for each packet; so is what lies outside of the mesh, because
//! masquerade has a say in how it leaves, whoever does that.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr},
    ops::Bound,
};

use ipnet::IpNet;

use super::Neighbor;
use crate::{
    desired::{Desired, RouteMode, TargetKey},
    id::{ClusterName, IfIndex, MAIN_TABLE, Metric, TableId},
    observed::{ClusterTables, NodeRow, Observed, RouteKey, RouteKind},
    table::RowDiff,
};

/// With more addresses than this only those are looked at again whose prefixes changed.
const FEW: usize = if cfg!(test) { 4 } else { 4_096 };

/// A neighbor, and what a route by way of it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The link.
    pub link: IfIndex,
    /// The address on it; at the tunnel's link the far end.
    pub via: IpAddr,
    /// What the route takes; `None`: what the link does.
    pub mtu: Option<u32>,
}

/// Ways of the addresses somebody asked for.
#[derive(Debug, Default)]
pub struct Ways {
    ways: BTreeMap<IpAddr, Option<Way>>,
    behind: BTreeMap<Way, BTreeSet<IpAddr>>,
    /// What ways are found by; `None`: to be found out.
    surroundings: Option<Surroundings>,
}

/// What ways are found by, apart from the routes themselves.
#[derive(Debug, Default)]
struct Surroundings {
    /// Lengths of the prefixes that there are routes to.
    lengths: Lengths,
    /// Addresses of nodes, and prefixes of their workloads.
    mesh: HashSet<IpNet>,
    /// Lengths of these.
    mesh_lengths: Lengths,
}

/// Lengths of prefixes of IPv4 and of IPv6, the longest first.
type Lengths = [Vec<u8>; 2];

impl Surroundings {
    fn of(observed: &Observed, desired: &Desired) -> Self {
        let tables = observed.routes.iter().map(|(key, _)| key.prefix);
        let routes = tables.chain(desired.routes.iter().map(|(prefix, _)| *prefix));
        let routes = routes.chain(desired.bgp.iter().map(|(prefix, _)| *prefix));
        let rows = observed.clusters.values().flat_map(|tables| tables.nodes.iter());
        let mesh: HashSet<IpNet> = rows.flat_map(|(_, row)| prefixes_of(row)).collect();
        Self { lengths: lengths(routes), mesh_lengths: lengths(mesh.iter().copied()), mesh }
    }

    /// True for a node of the mesh, and for what is or may become one of its workloads.
    fn is_mesh(&self, address: IpAddr, observed: &Observed) -> bool {
        let is_covered = |length: &u8| IpNet::new(address, *length).is_ok_and(|net| self.mesh.contains(&net.trunc()));
        self.mesh_lengths[usize::from(address.is_ipv6())].iter().any(is_covered)
            || observed.clusters.values().any(|tables| tables.endpoints.get(&IpNet::from(address)).is_some())
    }
}

/// The addresses of a node and the prefixes of its workloads.
fn prefixes_of(row: &NodeRow) -> impl Iterator<Item = IpNet> {
    row.addresses.iter().map(|address| IpNet::from(address.ip)).chain(row.pod_cidrs.iter().copied())
}

impl Ways {
    /// The way of an address, remembered until [`Ways::recheck`].
    pub fn of(&mut self, address: IpAddr, observed: &Observed, desired: &Desired) -> Option<Way> {
        if let Some(way) = self.ways.get(&address) {
            return *way;
        }
        let surroundings = self.surroundings.get_or_insert_with(|| Surroundings::of(observed, desired));
        let way = find(address, surroundings, observed, desired);
        self.set(address, way);
        way
    }

    /// Looks again at what may be routed differently now than it was, or is part of the mesh now; returns the addresses whose way is another one.
    pub fn recheck(
        &mut self,
        (old_observed, old_desired): (&Observed, &Desired),
        (observed, desired): (&Observed, &Desired),
    ) -> BTreeSet<IpAddr> {
        let surroundings = Surroundings::of(observed, desired);
        let addresses: BTreeSet<IpAddr> = if self.ways.len() <= FEW {
            self.ways.keys().copied().collect()
        } else {
            let prefixes = rerouted((old_observed, old_desired), (observed, desired));
            prefixes
                .iter()
                .flat_map(|prefix| self.ways.range(prefix.network()..=prefix.broadcast()).map(|(address, _)| *address))
                .collect()
        };
        let mut changed = BTreeSet::new();
        for address in addresses {
            let way = find(address, &surroundings, observed, desired);
            if self.ways.get(&address) != Some(&way) {
                self.set(address, way);
                changed.insert(address);
            }
        }
        self.surroundings = Some(surroundings);
        changed
    }

    /// Addresses that are reached through a neighbor.
    pub fn behind(&self, (link, via): Neighbor) -> impl Iterator<Item = IpAddr> {
        self.from(Way { link, via, mtu: None }, move |way| way.link == link && way.via == via)
    }

    /// Addresses that are reached through a link.
    pub fn through(&self, link: IfIndex) -> impl Iterator<Item = IpAddr> {
        let first = Way { link, via: Ipv4Addr::UNSPECIFIED.into(), mtu: None };
        self.from(first, move |way| way.link == link)
    }

    /// Addresses of the ways from one on, as long as they are wanted.
    fn from(&self, first: Way, is_wanted: impl Fn(&Way) -> bool) -> impl Iterator<Item = IpAddr> {
        let all = self.behind.range((Bound::Included(first), Bound::Unbounded));
        all.take_while(move |(way, _)| is_wanted(way)).flat_map(|(_, addresses)| addresses.iter().copied())
    }

    /// Forgets addresses nobody asks for any more.
    pub fn retain(&mut self, wanted: impl Fn(IpAddr) -> bool) {
        let gone: Vec<IpAddr> = self.ways.keys().copied().filter(|address| !wanted(*address)).collect();
        for address in gone {
            self.set(address, None);
            self.ways.remove(&address);
        }
    }

    fn set(&mut self, address: IpAddr, way: Option<Way>) {
        if let Some(Some(old)) = self.ways.insert(address, way)
            && let Some(addresses) = self.behind.get_mut(&old)
        {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.behind.remove(&old);
            }
        }
        if let Some(way) = way {
            self.behind.entry(way).or_default().insert(address);
        }
    }
}

/// The way by the longest prefix among foreign routes of the main table and our own; with equal length the lower metric, which
/// is the foreign one.
fn find(address: IpAddr, surroundings: &Surroundings, observed: &Observed, desired: &Desired) -> Option<Way> {
    for length in &surroundings.lengths[usize::from(address.is_ipv6())] {
        let prefix = IpNet::new(address, *length).ok()?.trunc();
        if let Some(way) = foreign(prefix, address, observed) {
            return way.filter(|_| surroundings.is_mesh(address, observed));
        }
        if let Some(way) = ours(prefix, desired) {
            // What BGP told may lead anywhere.
            let leads_into = desired.routes.get(&prefix).is_some() || surroundings.is_mesh(address, observed);
            return way.filter(|_| leads_into);
        }
    }
    None
}

fn lengths(prefixes: impl Iterator<Item = IpNet>) -> Lengths {
    let mut lengths = [BTreeSet::new(), BTreeSet::new()];
    for prefix in prefixes {
        lengths[usize::from(prefix.addr().is_ipv6())].insert(prefix.prefix_len());
    }
    lengths.map(|lengths| lengths.into_iter().rev().collect())
}

/// Prefixes whose routes changed, or what these lead to, and those of nodes that did.
fn rerouted(
    (old_observed, old_desired): (&Observed, &Desired),
    (observed, desired): (&Observed, &Desired),
) -> BTreeSet<IpNet> {
    let mut prefixes: BTreeSet<IpNet> =
        observed.routes.diff(&old_observed.routes).map(|diff| diff.key().prefix).collect();
    prefixes.extend(desired.routes.diff(&old_desired.routes).map(|diff| *diff.key()));
    prefixes.extend(desired.bgp.diff(&old_desired.bgp).map(|diff| *diff.key()));
    let nothing = ClusterTables::default();
    let names: BTreeSet<&ClusterName> = observed.clusters.keys().chain(old_observed.clusters.keys()).collect();
    for name in names {
        let [old, new] = [old_observed, observed].map(|of| &of.clusters.get(name).unwrap_or(&nothing).nodes);
        for diff in new.diff(old) {
            let (before, after) = match diff {
                RowDiff::Added(_, row) => (None, Some(row)),
                RowDiff::Changed(_, before, after) => (Some(before), Some(after)),
                RowDiff::Removed(_, row) => (Some(row), None),
            };
            prefixes.extend(before.into_iter().chain(after).flat_map(|row| prefixes_of(row)));
        }
    }
    let targets: BTreeSet<&TargetKey> = desired.targets.diff(&old_desired.targets).map(|diff| diff.key()).collect();
    if !targets.is_empty() {
        prefixes.extend(desired.all_routes().filter(|(_, target)| targets.contains(target)).map(|(prefix, _)| prefix));
    }
    prefixes
}

/// `None` without such a route; `Some(None)` when its next hop is not clear.
fn foreign(prefix: IpNet, address: IpAddr, observed: &Observed) -> Option<Option<Way>> {
    let start = RouteKey { table: TableId(MAIN_TABLE), prefix, metric: Metric(0), tos: 0, protocol: 0, hop: None };
    let (key, row) = observed.routes.range_from(&start).next()?;
    if key.table != start.table || key.prefix != prefix {
        return None;
    }
    let way = match (&*row.hops, row.kind) {
        // What lies behind a gateway that is none of ours is outside of the mesh.
        ([hop], RouteKind::Unicast) if hop.via.is_none() => Some(Way { link: hop.dev, via: address, mtu: None }),
        _ => None,
    };
    Some(way)
}

fn ours(prefix: IpNet, desired: &Desired) -> Option<Option<Way>> {
    let target = desired.target_of(&prefix)?;
    let target = desired.targets.get(&target)?;
    let way = match (&*target.hops, target.mode) {
        ([hop], RouteMode::Native | RouteMode::Bgp) => {
            Some(Way { link: hop.dev, via: hop.via, mtu: target.narrow.then_some(target.mtu) })
        }
        // A far end says itself what it takes.
        ([hop], RouteMode::Tunnel) => Some(Way { link: hop.dev, via: hop.via, mtu: None }),
        _ => None,
    };
    Some(way)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        desired::{Hop, NodeTarget, RouteRow, Target},
        id::{ClusterId, MaxClusters, NumericIdentity},
        observed::{self, BgpTargetId, EndpointRow, NextHopSpec, NodeAddress, NodeAddressKind},
    };

    const PREFIXES: [&str; 6] =
        ["10.1.0.0/24", "10.1.0.4/32", "10.0.0.0/8", "0.0.0.0/0", "fd00:1::/64", "fd00:1::4/128"];

    #[derive(Debug, Clone)]
    enum Event {
        /// A prefix is wanted by way of a node, or no longer.
        Want(usize, Option<u8>),
        /// A node is reached by a link, where so much fits.
        Target(u8, u32, u32),
        /// Somebody's route to a prefix by a link, or none.
        Foreign(usize, Option<u32>),
        /// A node has the workloads of a prefix, or it is gone.
        Node(u8, Option<usize>),
        /// Somebody asks for an address for the first time.
        Ask(u16),
    }

    fn event() -> impl Strategy<Value = Event> {
        let prefix = 0..PREFIXES.len();
        prop_oneof![
            (prefix.clone(), proptest::option::of(0..3_u8)).prop_map(|(at, node)| Event::Want(at, node)),
            (0..3_u8, 1..4_u32, 1_399..1_401_u32).prop_map(|(node, link, mtu)| Event::Target(node, link, mtu)),
            (prefix.clone(), proptest::option::of(1..4_u32)).prop_map(|(at, link)| Event::Foreign(at, link)),
            (0..3_u8, proptest::option::of(prefix)).prop_map(|(node, at)| Event::Node(node, at)),
            (0..12_u16).prop_map(Event::Ask),
        ]
    }

    fn node(number: u8) -> TargetKey {
        let node = format!("node-{number}").parse().unwrap();
        NodeTarget { cluster: "east".parse().unwrap(), node, ipv4: true }.into()
    }

    fn apply(event: &Event, observed: &mut Observed, desired: &mut Desired) {
        let prefix = |at: usize| -> IpNet { PREFIXES[at].parse().unwrap() };
        match event {
            Event::Want(at, None) => drop(desired.routes.remove(&prefix(*at))),
            Event::Want(at, Some(number)) => {
                drop(desired.routes.put(prefix(*at), Arc::new(RouteRow { target: node(*number) })));
            }
            Event::Target(number, link, mtu) => {
                // Two of them are behind the same neighbor.
                let hop = Hop { via: [192, 0, 2, number / 2].into(), dev: IfIndex(*link), tunnel: None };
                let target = Target::native([hop].into(), 1_400).narrowed(*mtu);
                drop(desired.targets.put(node(*number), Arc::new(target)));
            }
            Event::Foreign(at, link) => {
                let (table, metric) = (TableId(MAIN_TABLE), Metric(0));
                let key = RouteKey { table, prefix: prefix(*at), metric, tos: 0, protocol: 2, hop: None };
                match link {
                    None => drop(observed.routes.remove(&key)),
                    Some(link) => {
                        let hop = NextHopSpec { via: None, dev: IfIndex(*link) };
                        let row = observed::RouteRow { kind: RouteKind::Unicast, hops: [hop].into(), nexthop: None };
                        drop(observed.routes.put(key, row));
                    }
                }
            }
            Event::Node(number, at) => {
                let name = format!("node-{number}").parse().unwrap();
                let nodes = &mut observed.clusters.entry("east".parse().unwrap()).or_default().nodes;
                match at {
                    None => drop(nodes.remove(&name)),
                    Some(at) => drop(nodes.put(name, Arc::new(node_with(*number, prefix(*at))))),
                }
            }
            Event::Ask(_) => {}
        }
    }

    fn node_with(number: u8, pods: IpNet) -> NodeRow {
        let ip = [10, 1, 0, number].into();
        NodeRow {
            cluster_id: ClusterId::new(1, MaxClusters::default()).unwrap(),
            addresses: [NodeAddress { kind: NodeAddressKind::InternalIP, ip }].into(),
            pod_cidrs: [pods].into(),
            labels: Default::default(),
            health: Box::default(),
            ingress: Box::default(),
        }
    }

    #[test]
    fn only_what_is_in_the_mesh_has_a_way() {
        let (mut observed, mut desired) = (Observed::default(), Desired::default());
        // 10.0.0.0/8 is on a link, and BGP told of a prefix.
        apply(&Event::Foreign(2, Some(1)), &mut observed, &mut desired);
        let told: IpNet = "198.51.100.0/24".parse().unwrap();
        desired.bgp.put(told, BgpTargetId(7));
        let hop = Hop { via: [192, 0, 2, 9].into(), dev: IfIndex(2), tunnel: None };
        let target = Target { mode: RouteMode::Bgp, ..Target::native([hop].into(), 1_400) };
        drop(desired.targets.put(TargetKey::Bgp(BgpTargetId(7)), Arc::new(target)));
        let mut ways = Ways::default();
        let [host, pod, workload, stranger, behind] = ["10.1.0.2", "10.1.1.9", "10.7.0.1", "10.7.0.2", "198.51.100.1"]
            .map(|text| text.parse::<IpAddr>().unwrap());
        let all = [host, pod, workload, stranger, behind];
        assert!(all.iter().all(|address| ways.of(*address, &observed, &desired).is_none()));
        let (before, wanted) = (observed.clone(), desired.clone());
        let tables = observed.clusters.entry("east".parse().unwrap()).or_default();
        drop(tables.nodes.put("node-2".parse().unwrap(), Arc::new(node_with(2, "10.1.1.0/24".parse().unwrap()))));
        assert_eq!(ways.recheck((&before, &wanted), (&observed, &desired)), [host, pod].into());
        let row = EndpointRow {
            identity: NumericIdentity(300),
            host: None,
            encryption_key: 0,
            namespace: "".into(),
            name: "".into(),
        };
        let tables = observed.clusters.entry("east".parse().unwrap()).or_default();
        drop(tables.endpoints.put(workload.into(), row.clone()));
        drop(tables.endpoints.put(behind.into(), row));
        let mut ways = Ways::default();
        let found = all.map(|address| ways.of(address, &observed, &desired).map(|way| way.link.0));
        assert_eq!(found, [Some(1), Some(1), Some(1), None, Some(2)]);
    }

    fn address(number: u16) -> IpAddr {
        match number {
            0..8 => [10, 1, (number / 6) as u8, number as u8].into(),
            _ => std::net::Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number - 6).into(),
        }
    }

    proptest! {
        /// Looking at what changed is as good as looking at everything, and tells exactly what moved.
        #[test]
        fn ways_follow_every_change(events in prop::collection::vec(event(), 1..60)) {
            let (mut observed, mut desired) = (Observed::default(), Desired::default());
            let mut ways = Ways::default();
            let mut asked = BTreeSet::new();
            for event in events {
                let (before, wanted) = (observed.clone(), desired.clone());
                let known: Vec<(IpAddr, Option<Way>)> = ways.ways.iter().map(|(address, way)| (*address, *way)).collect();
                apply(&event, &mut observed, &mut desired);
                let moved = ways.recheck((&before, &wanted), (&observed, &desired));
                if let Event::Ask(number) = event {
                    asked.insert(address(number));
                }
                let mut fresh = Ways::default();
                for address in &asked {
                    prop_assert_eq!(ways.of(*address, &observed, &desired), fresh.of(*address, &observed, &desired));
                }
                let differ: BTreeSet<IpAddr> =
                    known.iter().filter(|(address, way)| ways.ways[address] != *way).map(|(address, _)| *address).collect();
                prop_assert_eq!(moved, differ);
                for link in 1..4 {
                    let through: BTreeSet<IpAddr> = ways.through(IfIndex(link)).collect();
                    let expected: BTreeSet<IpAddr> = ways
                        .ways
                        .iter()
                        .filter(|(_, way)| way.is_some_and(|way| way.link == IfIndex(link)))
                        .map(|(address, _)| *address)
                        .collect();
                    prop_assert_eq!(through, expected);
                    for via in [0, 1].map(|last| IpAddr::from([192, 0, 2, last])) {
                        let behind: BTreeSet<IpAddr> = ways.behind((IfIndex(link), via)).collect();
                        let is_by = |way: Way| way.link == IfIndex(link) && way.via == via;
                        let by = ways.ways.iter().filter(|(_, way)| way.is_some_and(is_by));
                        prop_assert_eq!(behind, by.map(|(address, _)| *address).collect::<BTreeSet<IpAddr>>());
                    }
                }
            }
        }
    }
}
