//! What survives a restart: the accepted rows of every cluster, prefix owners, identity numbers.
//!
//! A node that starts while a peer is down must keep that peer's routes, and a route in the kernel does not say whose it
//! is. So the rows are kept in one file, `state.redb`, and are loaded at start as what they are: stale.
//!
//! ```text
//! start:  file ─► Loaded (observed tables, owners, identities) ─► pipeline, exporter
//! run:    snapshots of the pipeline ─► difference to what is saved ─► one transaction a second
//! ```
//!
//! Nothing is queued for the disk. The writer holds the last snapshot it saved and compares it with the newest one; tables
//! share what did not change, so that the comparison costs what changed and the memory of the saved snapshot is
//! nearly free. A burst of changes becomes one transaction, and a slow disk saves less often instead of holding
//! anything up.
//!
//! The file can always be lost: the rows come again from their stores. A file that cannot be read to its last row, or
//! that a newer meshd wrote, is renamed and told, never removed. A disk that is full or fails is no such file: it is an
//! error, and the file stays where it is.

mod disk;
mod saver;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use meshd_core::{
    clustermesh::Accept,
    id::{ClusterId, ClusterName, NodeName, NumericIdentity},
    observed::{Change, ClusterChange, Labels, Observed},
};
use thiserror::Error;

pub use disk::StateError;
pub use saver::{Facts, State};

use crate::reconcilers::export::Remembered;

/// Name of the file in the state directory.
const FILE: &str = "state.redb";

/// What was found at start.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Rows of the configured clusters, stale.
    pub observed: Observed,
    /// Which cluster owns which prefix.
    pub owners: BTreeMap<IpNet, ClusterName>,
    /// Prefixes whose owner is no longer configured: nobody will say any more that they are gone.
    pub left_over: BTreeSet<IpNet>,
    /// Id of each cluster.
    pub known_ids: BTreeMap<ClusterName, ClusterId>,
    /// Labels and their numbers.
    pub identities: BTreeMap<Labels, NumericIdentity>,
    /// Id of the store we published into.
    pub store_id: Option<u64>,
    /// Where a file that could not be used was put, and why.
    pub set_aside: Option<SetAside>,
}

impl Loaded {
    /// Holds what is remembered of `cluster` to what it may claim now. Without it a prefix that its list had refused before
    /// the restart would be believed until the source says the list again.
    pub fn limit(&mut self, cluster: &ClusterName, accept: Accept, now: Timestamp) {
        // A cluster nothing is remembered of must not seem to be.
        if self.observed.clusters.contains_key(cluster) {
            let change = Change::Cluster(cluster.clone(), vec![ClusterChange::Accept(accept)]);
            self.observed.apply(change, now);
        }
    }
}

/// A file that could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the state file could not be used and is now {}: {reason}; rows of clusters that are down are not known until they are back", path.display())]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// Why it could not be used.
    pub reason: String,
}

impl Loaded {
    /// What the exporter needs of it. `own` is our cluster, `node` this node.
    #[must_use]
    pub fn remembered(&self, own: &ClusterName, node: &NodeName) -> Remembered {
        let nodes: BTreeSet<NodeName> = self
            .observed
            .clusters
            .get(own)
            .map(|tables| tables.nodes.iter().map(|(name, _)| name.clone()).filter(|name| name != node).collect())
            .unwrap_or_default();
        Remembered { identities: self.identities.clone(), store_id: self.store_id, nodes }
    }
}

impl State {
    /// Opens the file in `dir`, or creates it, and loads what it holds of the clusters that are configured; rows of others
    /// are removed. `configured` answers which those are, and is told which clusters the file knows. `now` is since when
    /// the rows are stale.
    ///
    /// # Errors
    /// [`StateError`] when the file is in use, or cannot be created, read or renamed.
    pub fn open(
        dir: &Path,
        configured: impl FnOnce(&BTreeSet<ClusterName>) -> BTreeSet<ClusterName>,
        now: Timestamp,
    ) -> Result<(Self, Loaded), StateError> {
        let path = dir.join(FILE);
        let (disk, content, set_aside) = disk::Disk::open(&path)?;
        let configured = configured(&content.clusters);
        let mut loaded = disk::Disk::keep(content, &configured, now);
        loaded.set_aside = set_aside;
        let saver = Self::new(Arc::new(disk), &loaded, configured);
        Ok((saver, loaded))
    }
}
