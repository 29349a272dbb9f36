//! Through which neighbor an address is reached.
//!
//! The programs send past the routing table what has one clear next hop. Everything else (several next hops, routes over objects of others,
//! no route) is left to the kernel, which then decides for each packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    desired::{Desired, RouteMode},
    id::{IfIndex, MAIN_TABLE, Metric, TableId},
    observed::{Observed, RouteKey, RouteKind},
};

/// A neighbor: a link and an address on it; at the tunnel's link the far end.
pub type Way = (IfIndex, IpAddr);

/// Ways of the addresses somebody asked for.
#[derive(Debug, Default)]
pub struct Ways {
    ways: BTreeMap<IpAddr, Option<Way>>,
    behind: BTreeMap<Way, BTreeSet<IpAddr>>,
}

impl Ways {
    /// The way of an address, remembered until [`Ways::recheck`].
    pub fn of(&mut self, address: IpAddr, observed: &Observed, desired: &Desired) -> Option<Way> {
        if let Some(way) = self.ways.get(&address) {
            return *way;
        }
        let way = find(address, observed, desired);
        self.set(address, way);
        way
    }

    /// Looks at all routes again; returns the addresses whose way is another one now.
    pub fn recheck(&mut self, observed: &Observed, desired: &Desired) -> BTreeSet<IpAddr> {
        let addresses: Vec<IpAddr> = self.ways.keys().copied().collect();
        let mut changed = BTreeSet::new();
        for address in addresses {
            let way = find(address, observed, desired);
            if self.ways.get(&address) != Some(&way) {
                self.set(address, way);
                changed.insert(address);
            }
        }
        changed
    }

    /// Addresses that are reached through a neighbor.
    pub fn behind(&self, way: &Way) -> impl Iterator<Item = IpAddr> {
        self.behind.get(way).into_iter().flatten().copied()
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
fn find(address: IpAddr, observed: &Observed, desired: &Desired) -> Option<Way> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    for length in (0..=longest).rev() {
        let prefix = IpNet::new(address, length).ok()?.trunc();
        if let Some(way) = foreign(prefix, address, observed) {
            return way;
        }
        if let Some(way) = ours(prefix, desired) {
            return way;
        }
    }
    None
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
        ([hop], RouteKind::Unicast) if hop.via.is_none() => Some((hop.dev, address)),
        _ => None,
    };
    Some(way)
}

fn ours(prefix: IpNet, desired: &Desired) -> Option<Option<Way>> {
    let target = desired.target_of(&prefix)?;
    let target = desired.targets.get(&target)?;
    let way = match (&*target.hops, target.mode) {
        ([hop], RouteMode::Native | RouteMode::Bgp | RouteMode::Tunnel) => Some((hop.dev, hop.via)),
        _ => None,
    };
    Some(way)
}
