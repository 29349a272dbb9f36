//! What the BGP speaker says: best paths, and the next hops they lead to.

use std::{fmt, net::IpAddr, sync::Arc};

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

/// The next hops of the best paths to a prefix, sorted, each once, at least one. Shared by all prefixes that have the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct BgpHops {
    /// The next hops.
    pub hops: Arc<[BgpHop]>,
    /// True when they are for IPv4 destinations.
    pub ipv4: bool,
}

impl fmt::Display for BgpHops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// Every peer has told its routes once in this run, or the wait for it is over.
    Complete,
}
