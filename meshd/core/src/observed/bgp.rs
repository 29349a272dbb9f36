//! What the BGP speaker says: best paths, and the next hops they lead to.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;

use crate::id::IfIndex;

/// A next hop of a BGP path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct BgpNextHop {
    /// Its address.
    pub address: IpAddr,
    /// The link it is on, for link-local addresses and peers that are bound to a link.
    pub link: Option<IfIndex>,
}

impl fmt::Display for BgpNextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.link {
            Some(link) => write!(f, "{}%{link}", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// A next hop with its share of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct BgpHop {
    /// The next hop.
    pub next_hop: BgpNextHop,
    /// Its share, at least 1.
    pub weight: u8,
}

/// Number of a set of next hops. A table of routes holds a number for each prefix and nothing that is counted or shared, so
/// that a copy of a part of it is a copy of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct BgpTargetId(pub u32);

impl fmt::Display for BgpTargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bgp#{}", self.0)
    }
}

/// The next hops of the best paths to a prefix, sorted, each once; none at all when packets are to be dropped (RFC 7999). Shared by all prefixes that have the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct BgpHops {
    /// The next hops.
    pub hops: Arc<[BgpHop]>,
    /// True when they are for IPv4 destinations.
    pub ipv4: bool,
}

impl fmt::Display for BgpHops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hops.is_empty() {
            return f.write_str("blackhole");
        }
        for (i, hop) in self.hops.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{}", hop.next_hop)?;
        }
        Ok(())
    }
}

/// A change of the speaker's rows.
#[derive(Debug, Clone)]
pub enum BgpChange {
    /// The best paths to a prefix, or (`None`) there are none any more.
    Route(IpNet, Option<BgpHops>),
    /// The next hop is used by a path: somebody wants to know how the kernel reaches it.
    Watch(BgpNextHop),
    /// No path uses it any more.
    Unwatch(BgpNextHop),
    /// The next hop does not answer although the kernel has a route to it (BFD), or (`false`) it does again.
    Dead(BgpNextHop, bool),
    /// So many routes are taken at most; more are refused and counted. Routes that are there stay.
    Limit(usize),
    /// Every peer has told its routes once in this run, or the wait for it is over.
    Complete,
}

/// Sets of next hops in use, with the number of prefixes that have each.
#[derive(Debug, Clone, Default)]
pub(super) struct BgpTargets {
    by_hops: BTreeMap<BgpHops, BgpTargetId>,
    prefixes: BTreeMap<BgpTargetId, usize>,
    /// What was asked for last: routes come in runs with the same next hops.
    last: Option<(BgpHops, BgpTargetId)>,
    next: u32,
}

impl BgpTargets {
    /// The number for a set, for one more prefix; true when the set is new.
    pub(super) fn refer(&mut self, hops: &BgpHops) -> (BgpTargetId, bool) {
        if let Some((known, id)) = &self.last
            && (Arc::ptr_eq(&known.hops, &hops.hops) || known.hops == hops.hops)
            && known.ipv4 == hops.ipv4
            && let Some(count) = self.prefixes.get_mut(id)
        {
            *count += 1;
            return (*id, false);
        }
        let (id, is_new) = match self.by_hops.get(hops) {
            Some(id) => (*id, false),
            None => {
                while self.prefixes.contains_key(&BgpTargetId(self.next)) {
                    self.next = self.next.wrapping_add(1);
                }
                let id = BgpTargetId(self.next);
                self.next = self.next.wrapping_add(1);
                self.by_hops.insert(hops.clone(), id);
                (id, true)
            }
        };
        *self.prefixes.entry(id).or_default() += 1;
        self.last = Some((hops.clone(), id));
        (id, is_new)
    }

    /// One prefix fewer; true when it was the last. `hops` is what the number stands for.
    pub(super) fn release(&mut self, id: BgpTargetId, hops: Option<&BgpHops>) -> bool {
        let Some(count) = self.prefixes.get_mut(&id) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.prefixes.remove(&id);
        if let Some(hops) = hops {
            self.by_hops.remove(hops);
        }
        true
    }
}
