//! What probes found out about the way to a node.

use serde::Serialize;

use crate::id::{ClusterName, NodeName};

/// The way to one node in one address family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PathKey {
    /// Cluster of the node.
    pub cluster: ClusterName,
    /// The node.
    pub node: NodeName,
    /// True for packets of IPv4 workloads.
    pub ipv4: bool,
}

/// What was found out, as far as routes depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PathRow {
    /// Workloads' packets do not arrive natively, and do through the tunnel.
    pub broken: bool,
    /// Largest packet that arrives natively, in bytes, when it is smaller than the links say.
    pub native_mtu: Option<u32>,
    /// The same through the tunnel.
    pub tunnel_mtu: Option<u32>,
}
