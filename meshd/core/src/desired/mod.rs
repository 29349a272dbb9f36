//! What we want: the rows the reconcilers read.
//!
//! A route does not carry its next hops. It names a [`Target`] (one remote node in one address family), and the target
//! carries them. A node that moves to another address changes one target row; its routes stay as they are, exactly as
//! in the kernel, where they refer to a nexthop object.

mod next_hop;
mod route;

pub use next_hop::Resolution;
pub use route::{Conflict, ConflictCause, Hop, NodeTarget, RouteMode, RouteProblem, RouteRow, Target, TargetKey};

use std::sync::Arc;

use ipnet::IpNet;

use crate::{observed::BgpNextHop, table::Table};

/// All desired tables at one moment; cloning is O(1) per table.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// One row per prefix.
    pub routes: Table<IpNet, Arc<RouteRow>>,
    /// One row per remote node and address family, and per set of BGP next hops.
    pub targets: Table<TargetKey, Arc<Target>>,
    /// Prefixes another cluster owns already or that would take the underlay away, by (prefix, claiming node).
    pub conflicts: Table<(IpNet, NodeTarget), Arc<Conflict>>,
    /// What became of the BGP next hops somebody asked for.
    pub next_hops: Table<BgpNextHop, Resolution>,
}
