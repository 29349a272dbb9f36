//! Remote clusters from the configuration and from the watched peers directory.
//!
//! ```text
//! Config.peers ──────────┐
//! peers_dir/*  ──────────┼─► convert (pure) ─► PeerSet ─► watch channel ─► the etcd source
//! certificate contents ──┘                                    ▲
//! inotify, timer, SIGHUP ── wake ── read everything again ────┘
//! ```
//!
//! The directory is Cilium's: every file that contains `endpoints:` is a remote cluster named like the file.
//! Whatever wakes the task, it reads everything again and compares; an event is never interpreted, so a missed
//! one costs a rescan interval and nothing else. Kubernetes swaps a symlink to replace all files of a Secret at
//! once, which is one event like any other here.
//!
//! Certificate files are part of what is compared, by digest: a renewed certificate makes a different [`PeerSet`], and
//! the reader of the channel connects anew with it.
//!
//! A file that is wrong keeps the peer of its name and becomes a problem: a typing mistake or a full disk must not take
//! a cluster's routes away. Wrong is what cannot be read or parsed, and, under the name of a cluster that was known, a
//! file without `endpoints:`. A directory that cannot be read keeps the peers of every directory before it. Removing the
//! file removes the peer.
//!
//! After a restart there is no peer from before, only rows that were remembered. A remembered cluster whose file, or the
//! whole directory, cannot be read is *kept*: it is not connected to, but nothing of it is forgotten until somebody
//! can tell that it is gone.
//!
//! Services of our own cluster come from the configuration as well: [`services`].

pub mod convert;
pub mod services;
pub mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;

use meshd_core::id::ClusterName;

use crate::config::Config;
use crate::config::model::{Accept, Peer};

pub use convert::Before;
pub use watch::run;

/// What decides which peers there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSources {
    /// Peers of the configuration file and its include folder.
    pub peers: Vec<Peer>,
    /// The watched directory.
    pub peers_dir: Option<PathBuf>,
    /// What the peers of the directory may say.
    pub accept: Accept,
    /// The own cluster; a file of its name is no peer.
    pub own: ClusterName,
}

impl From<&Config> for PeerSources {
    fn from(config: &Config) -> Self {
        Self {
            peers: config.peers.clone(),
            peers_dir: config.peers_dir.clone(),
            accept: config.peers_defaults.clone(),
            own: config.cluster.name.clone(),
        }
    }
}

/// All remote clusters, and what is wrong with the directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSet {
    /// By name.
    pub peers: BTreeMap<ClusterName, PeerEntry>,
    /// Remembered clusters that may still be configured, where that cannot be read, with the file or directory it should
    /// be in.
    pub kept: BTreeMap<ClusterName, PathBuf>,
    /// For `status`, by file.
    pub problems: Vec<PeerProblem>,
}

impl PeerSet {
    /// Every cluster whose rows stay: those to connect to and those that are only kept.
    pub fn clusters(&self) -> impl Iterator<Item = &ClusterName> {
        self.peers.keys().chain(self.kept.keys())
    }
}

/// A remote cluster and its certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEntry {
    /// The cluster.
    pub peer: Peer,
    /// Digest of its certificate files; another one means: connect anew.
    pub certificates: Option<[u8; 32]>,
}

/// Something that is wrong with a file of the directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerProblem {
    /// The file, or the directory itself.
    pub file: PathBuf,
    /// The cluster, when the file is named like one.
    pub cluster: Option<ClusterName>,
    /// What is wrong, as one line.
    pub message: String,
}
