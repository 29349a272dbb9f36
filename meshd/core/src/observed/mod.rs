//! What the sources said: one table per kind of row.
//!
//! Rows of clusters (our own included) live in [`ClusterTables`], one set per cluster, so that a whole cluster can be
//! looked at, swept or dropped without touching the others. Rows of the local kernel live beside them. A source never
//! writes here itself: it sends [`Change`]s, and [`Observed::apply`] is the only writer (invariant I2). What changed since
//! the last derivation is collected in [`Touched`].

mod apply;
mod bgp;
mod cluster;
mod endpoint;
mod identity;
mod kernel;
mod masquerade;
mod node;
mod own_service;
mod path;
mod peer;
mod rejected;
mod service;

pub use apply::{Change, ClusterChange, KernelChange, KernelKind, Touched};
pub use bgp::{BgpChange, BgpHop, BgpNextHop, BgpTarget, BgpTargetId};
pub use cluster::{ClusterTables, Kind, Limits};
pub use endpoint::EndpointRow;
pub use identity::{IdentityRow, Labels};
pub use kernel::{
    AddressKey, AddressRow, LinkRow, NeighborKey, NeighborRow, NextHopSpec, RouteKey, RouteKind, RouteRow, RuleKey,
    RuleRow,
};
pub use masquerade::{KeptBy, MasqueradeRow, MasqueradeSetting};
pub use node::{NodeAddress, NodeAddressKind, NodeRow};
pub use own_service::{
    Affinity, ForwardingMode, OnRemoval, OwnServicePort, OwnServiceRow, ServiceKind, StaticBackend, Topology,
    TrafficPolicy, WEIGHT_DEFAULT, WEIGHT_MAX,
};
pub use path::{PathKey, PathRow};
pub use peer::{Failure, PeerRow};
pub use rejected::{RejectedRow, Rejection};
pub use service::{BackendZone, L4Addr, Ports, Protocol, ServiceName, ServiceRow};

use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use crate::{
    id::{ClusterName, IfIndex},
    table::Table,
};

/// All observed tables at one moment; cloning is O(1) per table.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Rows of every cluster we know, our own included.
    pub clusters: OrdMap<ClusterName, ClusterTables>,
    /// Services of our own cluster, as its source describes them.
    pub own_services: Table<ServiceName, Arc<OwnServiceRow>>,
    /// Links of this node.
    pub links: Table<IfIndex, LinkRow>,
    /// Addresses of this node.
    pub addresses: Table<AddressKey, AddressRow>,
    /// Routes of this node that do not carry our mark (foreign ones).
    pub routes: Table<RouteKey, RouteRow>,
    /// Policy rules of this node.
    pub rules: Table<RuleKey, RuleRow>,
    /// ARP and NDP entries of this node.
    pub neighbors: Table<NeighborKey, NeighborRow>,
    /// Best BGP paths of accepted prefixes.
    pub bgp: Table<IpNet, BgpTargetId>,
    /// What their numbers stand for.
    pub bgp_targets: Table<BgpTargetId, BgpTarget>,
    /// BGP next hops in use, and whether each is known to be dead although the kernel has a route to it.
    pub bgp_next_hops: Table<BgpNextHop, bool>,
    /// What probes found out about the ways to nodes.
    pub paths: Table<PathKey, PathRow>,
    /// Whether and what to masquerade.
    pub masquerade: MasqueradeSetting,
    bgp_limit: Option<usize>,
    /// Prefixes that were refused because there are as many as there may be, counted each time they were told.
    pub bgp_refused: u64,
    bgp_references: bgp::BgpTargets,
    bgp_complete: bool,
    own_services_told: bool,
    sync: apply::KernelSync,
    touched: Touched,
}
