//! Desired services from the services of our own cluster and what other clusters share.
//!
//! ```text
//! own services ──────────────┐
//! own identities, endpoints ─┼─► which services are concerned? ─► merge each of them ─► services, exports
//! services of each cluster ──┘                                        ▲
//! time ─► clusters that were not heard for too long ──────────────────┘
//! ```
//!
//! What is looked at is what differs from the tables as they were at the last look (I11): an endpoint concerns the services
//! that select its identity, a record of another cluster the service of its name. A service concerned is merged as a whole
//! ([`merge`](self::merge)), because one backend that comes or goes may change which of the others are used.
//!
//! Merging follows the wire contract (sections 5.2 and 5.3), with what it lacks: weights of clusters, a smallest number of
//! backends of our own, and clusters that are not heard. Their backends stay in the list as unreachable and get no new
//! connections; those of our own cluster are never judged that way, so a node that is cut off goes on with what is near.

mod merge;
mod places;
mod remotes;
mod workloads;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;

pub use self::places::ZONE_LABEL;
use self::{merge::Merge, places::Places, remotes::Remotes, workloads::Workloads};
use super::LocalNode;
use crate::{
    desired::{Desired, ExportedPort, ExportedService, Service},
    observed::{Affinity, Kind, Observed, OwnServiceRow, ServiceName, Touched},
    table::{RowDiff, Table},
};

/// After this long without its store a cluster's backends get no new connections.
pub const REMOTE_TIMEOUT: Duration = Duration::from_secs(120);

/// Keeps desired services up to date with what is observed.
#[derive(Debug, Clone)]
pub struct ServiceDeriver {
    local: LocalNode,
    own: Table<ServiceName, Arc<OwnServiceRow>>,
    workloads: Workloads,
    remotes: Remotes,
    places: Places,
    derived: u64,
}

impl ServiceDeriver {
    /// A deriver for `local`; clusters that are not heard for `remote_timeout` get no new connections.
    #[must_use]
    pub fn new(local: LocalNode, remote_timeout: Duration) -> Self {
        Self {
            local,
            own: Table::default(),
            workloads: Workloads::default(),
            remotes: Remotes::new(remote_timeout),
            places: Places::default(),
            derived: 0,
        }
    }

    /// How many services were merged so far: the work that was done (I11).
    #[must_use]
    pub fn derived(&self) -> u64 {
        self.derived
    }

    /// When a cluster becomes unreachable if nothing is heard of it until then.
    #[must_use]
    pub fn wake_at(&self) -> Option<Timestamp> {
        self.remotes.wake_at()
    }

    /// Brings `desired` up to date with `observed` at the time `now`, looking only at what was touched.
    pub fn update(&mut self, observed: &Observed, touched: &Touched, now: Timestamp, desired: &mut Desired) {
        let mut concerned = BTreeSet::new();
        if touched.own_services {
            self.take_own(observed, &mut concerned);
        }
        for cluster in &touched.clusters {
            let tables = observed.clusters.get(cluster);
            if *cluster == self.local.cluster {
                self.workloads.update(tables, &mut concerned);
            } else {
                self.remotes.update(cluster, tables, &mut concerned);
            }
        }
        let own = observed.clusters.get(&self.local.cluster);
        if touched.nodes.iter().any(|(cluster, _)| *cluster == self.local.cluster) {
            let moved = self.places.update(own);
            let is_there = |name: &ServiceName| {
                self.workloads.of(name).any(|(_, node)| node.is_some_and(|node| moved.contains(&node)))
            };
            if !moved.is_empty() {
                concerned.extend(self.own.iter().map(|(name, _)| name).filter(|name| is_there(name)).cloned());
            }
        }
        self.remotes.age(now, &mut concerned);
        for name in concerned {
            self.derive(&name, desired);
        }
        let is_told = |kind| own.is_some_and(|tables| tables.is_initialized(kind));
        desired.exports.complete =
            observed.are_own_services_told() && is_told(Kind::Endpoints) && is_told(Kind::Identities);
    }

    fn take_own(&mut self, observed: &Observed, concerned: &mut BTreeSet<ServiceName>) {
        for diff in observed.own_services.diff(&self.own) {
            let row = match diff {
                RowDiff::Added(_, row) | RowDiff::Changed(_, _, row) => Some(row),
                RowDiff::Removed(..) => None,
            };
            self.workloads.select(diff.key(), row.map(|row| &row.selector));
            concerned.insert(diff.key().clone());
        }
        self.own = observed.own_services.clone();
    }

    fn derive(&mut self, name: &ServiceName, desired: &mut Desired) {
        let Some(row) = self.own.get(name) else {
            desired.services.remove(name);
            desired.exports.services.remove(name);
            return;
        };
        self.derived += 1;
        let remotes = if row.global { self.remotes.of(name) } else { Vec::new() };
        let workloads = self.workloads.of(name).collect();
        let merge = Merge { local: &self.local, places: &self.places, row, workloads, remotes };
        let ports = merge.ports();
        if row.global && row.shared {
            let exported = row.ports.iter().map(|port| ExportedPort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: port.port,
                backends: merge.exported(port),
            });
            let exported = ExportedService {
                cluster_ips: row.cluster_ips.clone(),
                selector: row.selector.clone(),
                topology: row.topology,
                ports: exported.collect(),
            };
            desired.exports.services.upsert(name.clone(), Arc::new(exported));
        } else {
            desired.exports.services.remove(name);
        }
        let service = Service {
            kind: row.kind,
            global: row.global,
            shared: row.global && row.shared,
            affinity: if row.global { row.affinity } else { Affinity::None },
            by_source: row.by_source,
            session_affinity: row.session_affinity,
            external_policy: row.external_policy,
            internal_policy: row.internal_policy,
            source_ranges: row.source_ranges.clone(),
            mode: row.mode,
            on_removal: row.on_removal,
            topology: row.topology,
            ports,
        };
        desired.services.upsert(name.clone(), Arc::new(service));
    }
}
