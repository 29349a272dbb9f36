//! Which paths work: probes to other nodes, and answers to theirs.
//!
//! ```text
//!   tick ── question ──► meshd_probe ══ forwarded like a workload's packet ══► their meshd_probe ──► their meshd ─┐
//!        └─ question in a tunnel's header ─ UDP ─► their meshd_vxlan ══ forwarded ══► their meshd_probe ──────────┤
//!   Prober ◄── answer ◄─────────────────── UDP between the nodes ◄──────────────────────────────────────────────┘
//!      └──► observed.paths
//! ```
//!
//! The link `meshd_probe` is a workload of our own as far as the kernel can tell: what is written to it is forwarded, with everything that
//! rules, filters and programs of this node have to say about it, and the same on the other side. No workload's address is used, no
//! address is added to the node, and nothing listens at the PodCIDR: the far side of the link is this process.
//!
//! Only known nodes are answered, at the address their cluster published and never at one from the packet, once for each question and
//! with fewer octets. What an answer must know is a random number that went the way in question.

mod convert;
pub mod memory;
mod watch;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use meshd_core::{
    derive::{LocalNode, PathPolicy},
    observed::{Change, PathKey},
    probe::{PathReport, ProbeSettings},
};
use tokio::sync::{mpsc, watch as tokio_watch};

use crate::{lifecycle::Problems, pipeline::Snapshot};

/// What is known of every path, for people.
#[derive(Debug, Clone, Default)]
pub struct PathReports(Arc<RwLock<Arc<Vec<PathReport>>>>);

impl PathReports {
    /// As of the last second.
    #[must_use]
    pub fn get(&self) -> Arc<Vec<PathReport>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, reports: Vec<PathReport>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(reports);
    }
}

/// What the source works with.
pub struct ProbeSource {
    /// This node.
    pub local: Arc<LocalNode>,
    /// How paths are judged.
    pub settings: ProbeSettings,
    /// How nodes are to be reached.
    pub policies: tokio_watch::Receiver<Arc<PathPolicy>>,
    /// All tables.
    pub snapshots: tokio_watch::Receiver<Arc<Snapshot>>,
    /// Where rows go.
    pub changes: mpsc::Sender<Change>,
    /// Where problems go.
    pub problems: Problems,
    /// Where it is written down which paths are broken.
    pub state_dir: PathBuf,
    /// What the previous run wrote there.
    pub remembered: Vec<PathKey>,
    /// Where people look.
    pub reports: PathReports,
}
