//! Services a cluster shares with the mesh.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::id::ClusterId;

/// Namespace and name of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Service name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Layer 4 protocol of a port (wire contract section 1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
    /// Any protocol
    Any,
    /// No protocol given
    None,
}

/// Protocol and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct L4Addr {
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// Ports of one address by port name; the unnamed port has the name "".
pub type Ports = BTreeMap<Arc<str>, L4Addr>;

/// A shared service as its cluster published it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Id of its cluster.
    pub cluster_id: ClusterId,
    /// Frontend addresses; empty for a headless service.
    pub frontends: BTreeMap<IpAddr, Ports>,
    /// Backend addresses.
    pub backends: BTreeMap<IpAddr, Ports>,
    /// Whether the cluster merges backends of other clusters into its own service.
    pub include_external: bool,
    /// Zones of its backends, as far as they are told. Written beside the row: what is kept across restarts has no names of fields, so one
    /// more of them would make rows unreadable that earlier releases have kept.
    #[serde(skip)]
    pub zones: BTreeMap<IpAddr, BackendZone>,
}

/// Where a backend is, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendZone {
    /// The zone it is in.
    pub zone: Option<Arc<str>>,
    /// Zones that should prefer it; empty when nothing is said about that.
    pub for_zones: Box<[Arc<str>]>,
}
