//! How services are loaded into the kernel, after every check.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use meshd_core::observed::ForwardingMode;

pub use crate::config::raw::services::{BackendAlgorithm, DsrKind, XdpUse};

/// How services are loaded into the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicesConfig {
    /// Are they?
    pub enabled: bool,
    /// How packets reach backends on other nodes, unless the service says otherwise.
    pub mode: ForwardingMode,
    /// How packets carry the service address with direct return.
    pub dsr: DsrKind,
    /// How a backend is chosen.
    pub algorithm: BackendAlgorithm,
    /// Entries of a Maglev table.
    pub table_size: u32,
    /// Links traffic from outside comes in by; empty means those that carry the node's addresses.
    pub uplinks: Vec<LinkPattern>,
    /// Below this cgroup sockets are translated when they connect.
    pub cgroup: Option<PathBuf>,
    /// Links of workloads; empty means those that routes to this node's workloads name.
    pub workload_links: Vec<LinkPattern>,
    /// Where packets from outside are taken over.
    pub xdp: XdpUse,
    /// Where ports of nodes may be.
    pub node_port_range: RangeInclusive<u16>,
    /// Source ports for translation.
    pub snat_ports: RangeInclusive<u16>,
    /// After this long without its store a cluster's backends get no new connections.
    pub remote_timeout: Duration,
    /// How much the kernel can hold.
    pub maps: ServiceMaps,
}

/// A link by its name, or links by how their names begin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkPattern {
    /// This one.
    Name(String),
    /// All whose names begin so.
    Prefix(String),
}

impl LinkPattern {
    /// Is this link meant?
    #[must_use]
    pub fn matches(&self, link: &str) -> bool {
        match self {
            Self::Name(name) => link == name,
            Self::Prefix(start) => link.starts_with(start.as_str()),
        }
    }
}

/// Entries of the maps in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceMaps {
    /// Frontends of services.
    pub services: u32,
    /// Backends of services.
    pub backends: u32,
    /// Connections through services.
    pub connections: u32,
    /// Clients that keep their backend.
    pub affinity: u32,
    /// Addresses and the identity behind them.
    pub identities: u32,
    /// Sockets that asked for a service.
    pub sockets: u32,
    /// Members of all services together.
    pub members: u32,
    /// Pieces of Maglev tables.
    pub maglev: u32,
    /// Datagrams in fragments.
    pub fragments: u32,
    /// Prefixes, for masquerade and with an identity.
    pub prefixes: u32,
    /// Source ranges of all services together.
    pub source_ranges: u32,
    /// Neighbors, and other ends of tunnels.
    pub next_hops: u32,
    /// Entries of policies.
    pub policy: u32,
}

impl Default for ServiceMaps {
    fn default() -> Self {
        Self {
            services: 65_536,
            backends: 65_536,
            connections: 524_288,
            affinity: 65_536,
            identities: 524_288,
            sockets: 65_536,
            members: 262_144,
            maglev: 4_096,
            fragments: 8_192,
            prefixes: 65_536,
            source_ranges: 65_536,
            next_hops: 4_096,
            policy: 65_536,
        }
    }
}
