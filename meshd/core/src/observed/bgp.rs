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

/// Number of a [`BgpTarget`]. A table of routes holds a number for each prefix and nothing that is counted or shared, so
/// that a copy of a part of it is a copy of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct BgpTargetId(pub u32);

impl fmt::Display for BgpTargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bgp#{}", self.0)
    }
}

/// Where the best paths to a prefix lead. Shared by all prefixes that have the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BgpTarget {
    /// Nowhere: packets are dropped (RFC 7999).
    Drop,
    /// To next hops.
    Via {
        /// The next hops, sorted, each once.
        hops: Arc<[BgpHop]>,
        /// True when they are for IPv4 destinations.
        ipv4: bool,
    },
}

impl BgpTarget {
    /// The next hops; none when packets are dropped.
    #[must_use]
    pub fn hops(&self) -> &[BgpHop] {
        match self {
            Self::Drop => &[],
            Self::Via { hops, .. } => hops,
        }
    }

    /// Equality that is cheap for those that share their memory.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Via { hops: a, ipv4 }, Self::Via { hops: b, ipv4: other }) if Arc::ptr_eq(a, b) => ipv4 == other,
            (a, b) => a == b,
        }
    }
}

impl fmt::Display for BgpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hops = match self {
            Self::Drop => return f.write_str("blackhole"),
            Self::Via { hops, .. } => hops,
        };
        for (i, hop) in hops.iter().enumerate() {
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
    Route(IpNet, Option<BgpTarget>),
    /// The next hop is used by a path: somebody wants to know how the kernel reaches it.
    Watch(BgpNextHop),
    /// No path uses it any more.
    Unwatch(BgpNextHop),
    /// The next hop does not answer although the kernel has a route to it (BFD), or (`false`) it does again.
    Dead(BgpNextHop, bool),
    /// So many routes are taken at most; more are refused and counted. Routes that are there stay.
    Limit(usize),
    /// No path is to be installed any more: all routes go.
    Uninstall,
    /// Every peer has told its routes once in this run, or the wait for it is over.
    Complete,
}

/// Targets in use, with the number of prefixes that have each.
#[derive(Debug, Clone, Default)]
pub(super) struct BgpTargets {
    ids: BTreeMap<BgpTarget, BgpTargetId>,
    prefixes: BTreeMap<BgpTargetId, usize>,
    /// What was asked for last: routes come in runs with the same target.
    last: Option<(BgpTarget, BgpTargetId)>,
    next: u32,
}

impl BgpTargets {
    /// Nobody has any. Numbers go on from where they were.
    pub(super) fn clear(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    /// The number of a target, for one more prefix; true when the target is new.
    pub(super) fn refer(&mut self, target: &BgpTarget) -> (BgpTargetId, bool) {
        if let Some((known, id)) = &self.last
            && known.is(target)
            && let Some(count) = self.prefixes.get_mut(id)
        {
            *count += 1;
            return (*id, false);
        }
        let (id, is_new) = match self.ids.get(target) {
            Some(id) => (*id, false),
            None => {
                while self.prefixes.contains_key(&BgpTargetId(self.next)) {
                    self.next = self.next.wrapping_add(1);
                }
                let id = BgpTargetId(self.next);
                self.next = self.next.wrapping_add(1);
                self.ids.insert(target.clone(), id);
                (id, true)
            }
        };
        *self.prefixes.entry(id).or_default() += 1;
        self.last = Some((target.clone(), id));
        (id, is_new)
    }

    /// One prefix fewer; true when it was the last. `target` is what the number stands for.
    pub(super) fn release(&mut self, id: BgpTargetId, target: Option<&BgpTarget>) -> bool {
        let Some(count) = self.prefixes.get_mut(&id) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.prefixes.remove(&id);
        if let Some(target) = target {
            self.ids.remove(target);
        }
        true
    }
}
