//! The rows one cluster published.

use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{EndpointRow, IdentityRow, NodeRow, PeerRow, RejectedRow, ServiceName, ServiceRow};
use crate::{
    clustermesh::Accept,
    id::{NodeName, NumericIdentity},
    table::{Sync, Table},
};

/// Kinds of records a cluster publishes and we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `nodes/v1`
    Nodes,
    /// `identities/v1`
    Identities,
    /// `ip/v1`: addresses and the identity behind them.
    Endpoints,
    /// `services/v1`, or `endpointslices/v1` of clusters that publish nothing else.
    Services,
}

impl Kind {
    /// Every kind, in the order readers list them.
    pub const ALL: [Self; 4] = [Self::Nodes, Self::Identities, Self::Endpoints, Self::Services];

    /// The word used in store keys.
    #[must_use]
    pub fn key_word(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Identities => "identities",
            Self::Endpoints => "ip",
            Self::Services => "services",
        }
    }
}

/// Most rows we keep of one remote cluster; a record beyond is refused with a reason.
#[derive(Debug, Clone, Copy)]
pub struct Limits;

impl Limits {
    /// Nodes of one cluster.
    pub const NODES: usize = 10_000;
    /// Identities of one cluster (its whole number range in a mesh of 255).
    pub const IDENTITIES: usize = 65_536;
    /// Endpoints of one cluster.
    pub const ENDPOINTS: usize = 1_000_000;
    /// Services of one cluster.
    pub const SERVICES: usize = 50_000;
    /// Endpoint slices of one cluster.
    pub const SLICES: usize = 100_000;
    /// Backends in the endpoint slices of one cluster, each port of an address counted.
    pub const SLICE_BACKENDS: usize = 1_000_000;
    /// Refused records kept for `get rejected`; more are only counted.
    pub const REJECTED: usize = 1_000;
}

/// The rows one cluster published, with the state of the connection that brought them.
#[derive(Debug, Clone, Default)]
pub struct ClusterTables {
    /// Connection state as the source reports it; `None` for rows loaded from the state directory only.
    pub peer: Option<Arc<PeerRow>>,
    /// When the source lost its upstream; rows are kept and called stale (I4).
    pub stale_since: Option<Timestamp>,
    /// What the cluster may claim; `None` for our own cluster, and before its source said so in this run.
    pub accept: Option<Accept>,
    /// Nodes by name.
    pub nodes: Table<NodeName, Arc<NodeRow>>,
    /// Identities by number.
    pub identities: Table<NumericIdentity, IdentityRow>,
    /// Endpoints by address (a /32 or /128) or prefix.
    pub endpoints: Table<IpNet, EndpointRow>,
    /// Shared services by namespace and name.
    pub services: Table<ServiceName, Arc<ServiceRow>>,
    /// Refused records by store key.
    pub rejected: Table<Arc<str>, RejectedRow>,
    /// Refused records that no longer fitted [`Limits::REJECTED`].
    pub rejected_dropped: u64,
    pub(super) nodes_sync: Sync<NodeName>,
    pub(super) identities_sync: Sync<NumericIdentity>,
    pub(super) endpoints_sync: Sync<IpNet>,
    pub(super) services_sync: Sync<ServiceName>,
}

impl ClusterTables {
    /// True once the first full list of `kind` has arrived from the cluster itself.
    #[must_use]
    pub fn is_initialized(&self, kind: Kind) -> bool {
        match kind {
            Kind::Nodes => self.nodes_sync.is_initialized(),
            Kind::Identities => self.identities_sync.is_initialized(),
            Kind::Endpoints => self.endpoints_sync.is_initialized(),
            Kind::Services => self.services_sync.is_initialized(),
        }
    }

    /// Number of rows of `kind`.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Nodes => self.nodes.len(),
            Kind::Identities => self.identities.len(),
            Kind::Endpoints => self.endpoints.len(),
            Kind::Services => self.services.len(),
        }
    }
}
