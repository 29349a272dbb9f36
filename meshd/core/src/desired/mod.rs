//! What we want: the rows the reconcilers read.
//!
//! A route does not carry its next hops. It names a [`Target`] (one remote node in one address family), and the target
//! carries them. A node that moves to another address changes one target row; its routes stay as they are, exactly as
//! in the kernel, where they refer to a nexthop object.

mod route;

pub use route::{Conflict, ConflictCause, Hop, RouteMode, RouteProblem, RouteRow, Target, TargetKey};

use std::sync::Arc;

use ipnet::IpNet;

use crate::table::Table;

/// All desired tables at one moment; cloning is O(1) per table.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// One row per remote prefix.
    pub routes: Table<IpNet, Arc<RouteRow>>,
    /// One row per remote node and address family.
    pub targets: Table<TargetKey, Arc<Target>>,
    /// Prefixes another cluster owns already or that would take the underlay away, by (prefix, claiming node).
    pub conflicts: Table<(IpNet, TargetKey), Arc<Conflict>>,
}
