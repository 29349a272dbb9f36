//! What the configuration says about masquerade.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

/// Whether workload traffic that leaves the mesh gets an address of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MasqueradeSetting {
    /// Nobody has said so yet.
    #[default]
    Untold,
    /// It does not.
    Off,
    /// It does.
    On(Arc<MasqueradeRow>),
}

/// What is to be masqueraded, as far as people say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MasqueradeRow {
    /// Destinations to which workloads keep their address, and who said so.
    pub kept: BTreeMap<IpNet, KeptBy>,
    /// Links that lead out of the node; empty means those that carry an address of the node.
    pub uplinks: Vec<Arc<str>>,
    /// Source addresses to use, at most one per family; a family without one uses what the kernel chooses.
    pub addresses: Vec<IpAddr>,
}

/// Who said that workloads keep their address to a destination. Of several the first one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeptBy {
    /// `masquerade.exclude`
    Configuration,
    /// `routing.native_cidrs`
    Native,
    /// `nonMasqueradeCIDRs` of the agent's file, or its defaults.
    AgentFile,
    /// Link-local addresses mean nothing behind another address.
    LinkLocal,
}

impl KeptBy {
    /// The word for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Native => "native_cidrs",
            Self::AgentFile => "agent_file",
            Self::LinkLocal => "link_local",
        }
    }
}
