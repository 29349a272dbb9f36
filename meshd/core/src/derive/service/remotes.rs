//! What other clusters share, and whether they are heard.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    id::ClusterName,
    observed::{ClusterTables, ServiceName, ServiceRow},
    table::{RowDiff, Table},
};

/// A service as another cluster shares it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remote<'a> {
    pub(super) cluster: &'a ClusterName,
    pub(super) row: &'a ServiceRow,
    pub(super) unreachable: bool,
}

/// Services of other clusters by name.
#[derive(Debug, Clone)]
pub(super) struct Remotes {
    timeout: SignedDuration,
    clusters: BTreeMap<ClusterName, Seen>,
    by_service: BTreeMap<ServiceName, BTreeMap<ClusterName, Arc<ServiceRow>>>,
}

/// A cluster at the last look.
#[derive(Debug, Clone, Default)]
struct Seen {
    services: Table<ServiceName, Arc<ServiceRow>>,
    stale_since: Option<Timestamp>,
    unreachable: bool,
}

impl Seen {
    /// When the cluster is unreachable; `None` while it is heard.
    fn deadline(&self, timeout: SignedDuration) -> Option<Timestamp> {
        Some(self.stale_since?.checked_add(timeout).unwrap_or(Timestamp::MAX))
    }
}

impl Remotes {
    pub(super) fn new(timeout: Duration) -> Self {
        let timeout = SignedDuration::try_from(timeout).unwrap_or(SignedDuration::MAX);
        Self { timeout, clusters: BTreeMap::new(), by_service: BTreeMap::new() }
    }

    /// Takes over what a cluster shares now; nothing once it is gone.
    pub(super) fn update(
        &mut self,
        cluster: &ClusterName,
        tables: Option<&ClusterTables>,
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        let seen = self.clusters.entry(cluster.clone()).or_default();
        let services = tables.map(|tables| tables.services.clone()).unwrap_or_default();
        for diff in services.diff(&seen.services) {
            let name = diff.key();
            match diff {
                RowDiff::Added(_, row) | RowDiff::Changed(_, _, row) => {
                    self.by_service.entry(name.clone()).or_default().insert(cluster.clone(), row.clone());
                }
                RowDiff::Removed(..) => {
                    if let Some(rows) = self.by_service.get_mut(name) {
                        rows.remove(cluster);
                        if rows.is_empty() {
                            self.by_service.remove(name);
                        }
                    }
                }
            }
            concerned.insert(name.clone());
        }
        match tables {
            Some(tables) => (seen.services, seen.stale_since) = (services, tables.stale_since),
            None => drop(self.clusters.remove(cluster)),
        }
    }

    /// Looks which clusters became unreachable, or are heard again.
    pub(super) fn age(&mut self, now: Timestamp, concerned: &mut BTreeSet<ServiceName>) {
        for seen in self.clusters.values_mut() {
            let unreachable = seen.deadline(self.timeout).is_some_and(|deadline| now >= deadline);
            if unreachable != seen.unreachable {
                seen.unreachable = unreachable;
                concerned.extend(seen.services.iter().map(|(name, _)| name.clone()));
            }
        }
    }

    /// When the next cluster becomes unreachable.
    pub(super) fn wake_at(&self) -> Option<Timestamp> {
        let waiting = self.clusters.values().filter(|seen| !seen.unreachable);
        waiting.filter_map(|seen| seen.deadline(self.timeout)).min()
    }

    /// Who shares a service. Of several that tell one address, the first has it: those that are heard before those that
    /// are not, then the lower cluster id.
    pub(super) fn of(&self, name: &ServiceName) -> Vec<Remote<'_>> {
        let rows = self.by_service.get(name).into_iter().flatten();
        let mut remotes: Vec<Remote<'_>> = rows
            .map(|(cluster, row)| {
                let unreachable = self.clusters.get(cluster).is_some_and(|seen| seen.unreachable);
                Remote { cluster, row, unreachable }
            })
            .collect();
        remotes.sort_by_key(|remote| (remote.unreachable, remote.row.cluster_id));
        remotes
    }
}
