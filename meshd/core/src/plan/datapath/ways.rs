//! Through which neighbor an address is reached.
//!
//! The programs send past the routing table what has one clear next hop. Everything else (several next hops, routes over objects of others,
//! no route) is left to the kernel, which then decides for each packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    ops::Bound,
};

use ipnet::IpNet;

use super::Neighbor;
use crate::{
    desired::{Desired, RouteMode, TargetKey},
    id::{IfIndex, MAIN_TABLE, Metric, TableId},
    observed::{Observed, RouteKey, RouteKind},
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
    /// Lengths of the prefixes that there are routes to; `None`: to be found out.
    lengths: Option<Lengths>,
}

/// Lengths of prefixes of IPv4 and of IPv6, the longest first.
type Lengths = [Vec<u8>; 2];

impl Ways {
    /// The way of an address, remembered until [`Ways::recheck`].
    pub fn of(&mut self, address: IpAddr, observed: &Observed, desired: &Desired) -> Option<Way> {
        if let Some(way) = self.ways.get(&address) {
            return *way;
        }
        let lengths = self.lengths.get_or_insert_with(|| lengths(observed, desired));
        let way = find(address, lengths, observed, desired);
        self.set(address, way);
        way
    }

    /// Looks again at what may be routed differently now than it was; returns the addresses whose way is another one.
    pub fn recheck(
        &mut self,
        (old_observed, old_desired): (&Observed, &Desired),
        (observed, desired): (&Observed, &Desired),
    ) -> BTreeSet<IpAddr> {
        let lengths = lengths(observed, desired);
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
            let way = find(address, &lengths, observed, desired);
            if self.ways.get(&address) != Some(&way) {
                self.set(address, way);
                changed.insert(address);
            }
        }
        self.lengths = Some(lengths);
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
fn find(address: IpAddr, lengths: &Lengths, observed: &Observed, desired: &Desired) -> Option<Way> {
    for length in &lengths[usize::from(address.is_ipv6())] {
        let prefix = IpNet::new(address, *length).ok()?.trunc();
        if let Some(way) = foreign(prefix, address, observed) {
            return way;
        }
        if let Some(way) = ours(prefix, desired) {
            return way;
        }
    }
    None
}

/// Lengths of all prefixes with a route.
fn lengths(observed: &Observed, desired: &Desired) -> Lengths {
    let mut lengths = [BTreeSet::new(), BTreeSet::new()];
    let mut add = |prefix: &IpNet| lengths[usize::from(prefix.addr().is_ipv6())].insert(prefix.prefix_len());
    for (key, _) in observed.routes.iter() {
        add(&key.prefix);
    }
    for (prefix, _) in desired.routes.iter() {
        add(prefix);
    }
    for (prefix, _) in desired.bgp.iter() {
        add(prefix);
    }
    lengths.map(|lengths| lengths.into_iter().rev().collect())
}

/// Prefixes whose routes changed, or what these lead to.
fn rerouted(
    (old_observed, old_desired): (&Observed, &Desired),
    (observed, desired): (&Observed, &Desired),
) -> BTreeSet<IpNet> {
    let mut prefixes: BTreeSet<IpNet> =
        observed.routes.diff(&old_observed.routes).map(|diff| diff.key().prefix).collect();
    prefixes.extend(desired.routes.diff(&old_desired.routes).map(|diff| *diff.key()));
    prefixes.extend(desired.bgp.diff(&old_desired.bgp).map(|diff| *diff.key()));
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
        // What lies behind a gateway that is none of ours is outside of the mesh: netfilter has a say in how it leaves.
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
        observed::{self, NextHopSpec},
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
        /// Somebody asks for an address for the first time.
        Ask(u16),
    }

    fn event() -> impl Strategy<Value = Event> {
        let prefix = 0..PREFIXES.len();
        prop_oneof![
            (prefix.clone(), proptest::option::of(0..3_u8)).prop_map(|(at, node)| Event::Want(at, node)),
            (0..3_u8, 1..4_u32, 1_399..1_401_u32).prop_map(|(node, link, mtu)| Event::Target(node, link, mtu)),
            (prefix, proptest::option::of(1..4_u32)).prop_map(|(at, link)| Event::Foreign(at, link)),
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
            Event::Ask(_) => {}
        }
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
