//! What is to be forwarded, for whoever writes it into the kernel.
//!
//! There is a list of destinations whose forwarding changed, each at most once; what to forward is read from the table when
//! the list is taken. A slow writer therefore costs four octets per destination and never sees what is outdated already.

use ipnet::IpNet;

use super::{
    Core, FamilyTable, Rib,
    attributes::AttrId,
    chunked::NONE,
    decision::link_bandwidth,
    next_hops::{NextHopId, Scope},
    table::{is, mark},
};
use crate::{NextHop, family::Prefix, id::PeerId, session::PeerKind};

/// Weights of next hops are whole numbers up to this.
const WEIGHT_MAX: f32 = 255.0;

/// A change of forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FibChange {
    /// The prefix.
    pub prefix: IpNet,
    /// How to forward; `None` when nothing learned leads there any more.
    pub route: Option<FibRoute>,
}

/// How to forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FibRoute {
    /// Where to.
    pub to: FibTarget,
    /// The peer of the best path.
    pub peer: PeerId,
    /// How the peer of the best path is related to us.
    pub kind: PeerKind,
    /// What the best path is marked with, when marks are asked for ([`Rib::set_mark`]).
    pub mark: Option<u32>,
}

impl FibRoute {
    /// The next hops; none when packets are dropped.
    #[must_use]
    pub fn next_hops(&self) -> &[FibNextHop] {
        match &self.to {
            FibTarget::Drop => &[],
            FibTarget::Via(next_hops) => next_hops,
        }
    }
}

/// Where packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FibTarget {
    /// Nowhere: the best path says that they are to be dropped (RFC 7999), and no other path is asked.
    Drop,
    /// To these next hops, at least one; that of the best path first.
    Via(Vec<FibNextHop>),
}

/// One of the next hops of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FibNextHop {
    /// Its address.
    pub next_hop: NextHop,
    /// The interface of a link-local address.
    pub scope: Scope,
    /// Its share of the packets, 1 to 255.
    pub weight: u8,
}

impl Rib {
    /// Destinations whose forwarding changed since they were taken last, `max` at most.
    pub fn take_fib_changes(&mut self, max: usize) -> Vec<FibChange> {
        let mut changes = Vec::with_capacity(max.min(self.fib_changes()));
        self.tables.ipv4.take_fib_changes(&self.core, max, &mut changes);
        self.tables.ipv6.take_fib_changes(&self.core, max, &mut changes);
        changes
    }

    /// How many there are to take.
    #[must_use]
    pub fn fib_changes(&self) -> usize {
        self.tables.ipv4.forwarding.len() + self.tables.ipv6.forwarding.len()
    }
}

impl<P: Prefix> FamilyTable<P> {
    fn take_fib_changes(&mut self, core: &Core, max: usize, changes: &mut Vec<FibChange>) {
        while changes.len() < max
            && let Some(at) = self.forwarding.pop_front()
        {
            self.table.destination_mut(at).flags &= !mark::FORWARDING_LISTED;
            let prefix = self.table.destination(at).prefix.to_net();
            changes.push(FibChange { prefix, route: self.fib_route(core, at) });
        }
        if self.forwarding.is_empty() {
            self.forwarding = std::collections::VecDeque::new();
        }
    }

    /// Nobody wants to know of the changes.
    pub(super) fn forget_forwarding(&mut self) {
        for at in std::mem::take(&mut self.forwarding) {
            self.table.destination_mut(at).flags &= !mark::FORWARDING_LISTED;
        }
    }

    /// How packets to a destination are to be forwarded now.
    pub(super) fn fib_route(&self, core: &Core, at: u32) -> Option<FibRoute> {
        let (_, best) = self.table.best(at)?;
        let peer = core.peers.get(best.peer)?;
        let set = best.imported.attributes()?;
        let to = if core.sets.next_hop(set) == NextHopId::DISCARD {
            FibTarget::Drop
        } else if best.next == NONE {
            FibTarget::Via(vec![fib_next_hop(core, set, 1)?])
        } else {
            FibTarget::Via(self.fib_next_hops(core, at, mark(core, set))?)
        };
        Some(FibRoute { to, peer: best.peer, kind: peer.kind, mark: mark(core, set) })
    }

    /// The next hops of all paths that packets are sent along, with their shares, as far as they are marked like the best one.
    fn fib_next_hops(&self, core: &Core, at: u32, mark: Option<u32>) -> Option<Vec<FibNextHop>> {
        let forwarded = self.table.paths_of(at).filter(|(_, path)| path.is(is::FORWARDED));
        let sets = forwarded.filter_map(|(_, path)| path.imported.attributes());
        // Those with another mark lead elsewhere.
        let sets: Vec<_> = sets.filter(|set| core.mark.is_none() || self::mark(core, *set) == mark).collect();
        let bandwidths: Option<Vec<f32>> = sets
            .iter()
            .map(|set| link_bandwidth(core.sets.attributes(*set).extended_communities()))
            .collect::<Option<_>>()
            .filter(|_| core.config.decision.weighted && sets.len() > 1);
        let largest = bandwidths.iter().flatten().copied().fold(0.0, f32::max);
        let weight = |index: usize| match &bandwidths {
            Some(all) => {
                let share = all.get(index).copied().unwrap_or(largest) / largest * WEIGHT_MAX;
                // Between 1 and 255 by construction.
                share.round().clamp(1.0, WEIGHT_MAX) as u8
            }
            None => 1,
        };
        sets.iter().enumerate().map(|(index, set)| fib_next_hop(core, *set, weight(index))).collect()
    }
}

/// What a set is marked with, when marks are asked for.
pub(super) fn mark(core: &Core, set: AttrId) -> Option<u32> {
    let function = core.mark?;
    let marks = core.sets.attributes(set).large_communities().filter(|community| community.local_1 == function);
    marks.map(|community| community.local_2).next()
}

/// The next hop of a set; `None` when that is ourselves.
fn fib_next_hop(core: &Core, set: AttrId, weight: u8) -> Option<FibNextHop> {
    let (next_hop, scope) = core.next_hops.get(core.sets.next_hop(set))?;
    Some(FibNextHop { next_hop, scope, weight })
}
