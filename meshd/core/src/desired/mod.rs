//! What we want: the rows the reconcilers read.
//!
//! A route does not carry its next hops. It names a [`Target`] (one remote node in one address family), and the target
//! carries them. A node that moves to another address changes one target row; its routes stay as they are, exactly as
//! in the kernel, where they refer to a nexthop object.

mod masquerade;
mod next_hop;
mod route;
mod service;

pub use masquerade::{EXCLUSIONS_MAX, Exclusion, ExclusionSet, Masquerade, MasqueradeRules, MasqueradeWish};
pub use next_hop::Resolution;
pub use route::{
    Conflict, ConflictCause, Encap, Hop, NodeTarget, RouteMode, RouteProblem, RouteRow, Target, TargetKey,
};
pub use service::{
    Backend, BackendState, ExportedBackend, ExportedPort, ExportedService, Exports, Frontend, FrontendKind, Service,
    ServicePort,
};

use std::sync::Arc;

use ipnet::IpNet;

use crate::{
    observed::{BgpNextHop, BgpTargetId, ServiceName},
    table::Table,
};

/// All desired tables at one moment; cloning is O(1) per table.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// One row per prefix of a node.
    pub routes: Table<IpNet, Arc<RouteRow>>,
    /// One row per prefix learned by BGP: the very table that was observed. Where a node holds the prefix, too, that counts.
    pub bgp: Table<IpNet, BgpTargetId>,
    /// One row per remote node and address family, and per set of BGP next hops.
    pub targets: Table<TargetKey, Arc<Target>>,
    /// Prefixes another cluster owns already or that would take the underlay away, by (prefix, claiming node).
    pub conflicts: Table<(IpNet, NodeTarget), Arc<Conflict>>,
    /// What became of the BGP next hops somebody asked for.
    pub next_hops: Table<BgpNextHop, Resolution>,
    /// Services of our own cluster with the backends of all clusters.
    pub services: Table<ServiceName, Arc<Service>>,
    /// What our own cluster shares with the mesh.
    pub exports: Exports,

    /// What workload traffic that leaves the mesh is to look like.
    pub masquerade: Masquerade,
}

impl Desired {
    /// What the route to a prefix leads to, if one is wanted.
    #[must_use]
    pub fn target_of(&self, prefix: &IpNet) -> Option<TargetKey> {
        let node = self.routes.get(prefix).map(|row| row.target.clone());
        node.or_else(|| self.bgp.get(prefix).copied().map(TargetKey::Bgp))
    }

    /// Is a route to this prefix wanted?
    #[must_use]
    pub fn wants(&self, prefix: &IpNet) -> bool {
        self.routes.contains(prefix) || self.bgp.contains(prefix)
    }

    /// Every route that is wanted: those of nodes, then those learned by BGP.
    pub fn all_routes(&self) -> impl Iterator<Item = (IpNet, TargetKey)> {
        let nodes = self.routes.iter().map(|(prefix, row)| (*prefix, row.target.clone()));
        let displaced = |prefix: &IpNet| !self.routes.is_empty() && self.routes.contains(prefix);
        let learned = self.bgp.iter().filter(move |(prefix, _)| !displaced(prefix));
        nodes.chain(learned.map(|(prefix, id)| (*prefix, TargetKey::Bgp(*id))))
    }
}
