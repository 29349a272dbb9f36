//! What people want of masquerade: the configuration and the file of an ip-masq-agent.
//!
//! ```text
//! Config.masquerade ──┐
//! agent_file ─────────┴─► convert (pure) ─► one row ─► the pipeline
//! inotify, timer, SIGHUP ── wake ── read everything again ──┘
//! ```
//!
//! The file is that of the ip-masq-agent, which Cilium reads as well: the cluster's administrators may have one already. It is
//! read again whenever its folder changes, and every ten seconds. A file that is wrong changes nothing and becomes a problem;
//! one that is missing or empty means the agent's defaults.

pub mod convert;
pub mod watch;

use ipnet::IpNet;

use crate::config::{Config, model::MasqueradeConfig};

pub use watch::run;

/// Component of its problems.
pub const COMPONENT: &str = "masquerade/agent-file";

/// What decides what is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MasqueradeSources {
    /// The section of the configuration; `None` when masquerade is off.
    pub config: Option<MasqueradeConfig>,
    /// `routing.native_cidrs`
    pub native: Vec<IpNet>,
}

impl From<&Config> for MasqueradeSources {
    fn from(config: &Config) -> Self {
        Self { config: config.masquerade.clone(), native: config.routing.native_cidrs.clone() }
    }
}
