//! Saving what changed, once a second at most.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use imbl::OrdMap;
use ipnet::IpNet;
use meshd_core::{
    desired::RouteRow,
    id::{ClusterId, ClusterName, NumericIdentity},
    observed::{ClusterTables, Labels},
    table::{RowDiff, Table},
};
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    Loaded, StateError,
    disk::{Changes, Disk},
};
use crate::{lifecycle::Problems, pipeline::Snapshot, reconcilers::export::ExportMemory};

/// Component name in `status` problems.
const COMPONENT: &str = "state";
/// Shortest time between two transactions.
const SAVE_PERIOD: Duration = Duration::from_secs(1);
/// Pause after a transaction that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Facts that come from elsewhere than the tables. Cheap to clone: all clones are the same facts.
#[derive(Debug, Clone, Default)]
pub struct Facts(Arc<FactsInner>);

#[derive(Debug, Default)]
struct FactsInner {
    changed: Notify,
    values: Mutex<Values>,
}

/// What is to be saved; `None` when it is saved.
#[derive(Debug, Clone, Default)]
struct Values {
    identities: Option<BTreeMap<Labels, NumericIdentity>>,
    store_id: Option<u64>,
}

impl ExportMemory for Facts {
    fn remember_identities(&mut self, known: &BTreeMap<Labels, NumericIdentity>) {
        self.values(|values| values.identities = Some(known.clone()));
        self.0.changed.notify_one();
    }

    fn remember_store(&mut self, store_id: u64) {
        self.values(|values| values.store_id = Some(store_id));
        self.0.changed.notify_one();
    }
}

impl Facts {
    fn values<T>(&self, access: impl FnOnce(&mut Values) -> T) -> T {
        access(&mut self.0.values.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self) -> Values {
        self.values(std::mem::take)
    }

    /// Puts back what could not be saved, unless there is something newer.
    fn put_back(&self, unsaved: Values) {
        self.values(|values| {
            values.identities = values.identities.take().or(unsaved.identities);
            values.store_id = values.store_id.or(unsaved.store_id);
        });
    }
}

/// The state file and what is saved in it.
pub struct State {
    disk: Arc<Disk>,
    /// The clusters that were configured at the start, until the others are out of the file. That happens with the first
    /// save: a start that fails must find again which routes were of clusters that are no longer configured.
    configured: Option<BTreeSet<ClusterName>>,
    saved: OrdMap<ClusterName, ClusterTables>,
    owners: Owners,
    ids: BTreeMap<ClusterName, ClusterId>,
    facts: Facts,
}

/// Prefix owners as saved.
#[derive(Debug, Clone)]
enum Owners {
    /// As loaded.
    Loaded(BTreeMap<IpNet, ClusterName>),
    /// Those of the routes of a snapshot.
    Routes(Table<IpNet, Arc<RouteRow>>),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("clusters", &self.saved.len()).finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn new(disk: Arc<Disk>, loaded: &Loaded, configured: BTreeSet<ClusterName>) -> Self {
        Self {
            disk,
            configured: Some(configured),
            saved: loaded.observed.clusters.clone(),
            owners: Owners::Loaded(loaded.owners.clone()),
            ids: loaded.known_ids.clone(),
            facts: Facts::default(),
        }
    }

    /// Where the exporter puts what it wants remembered.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.facts.clone()
    }

    /// Saves what the snapshots bring until `stop`, and once more then.
    pub async fn run(
        mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        problems: Problems,
        stop: CancellationToken,
    ) {
        loop {
            let facts = self.facts.clone();
            let ended = tokio::select! {
                changed = snapshots.changed() => changed.is_err(),
                () = facts.0.changed.notified() => false,
                () = stop.cancelled() => true,
            };
            let snapshot = snapshots.borrow_and_update().clone();
            let outcome;
            (self, outcome) = self.save_in_background(snapshot).await;
            match &outcome {
                Ok(0) => {}
                Ok(rows) => debug!(rows, "saved"),
                Err(error) => {
                    problems.set(COMPONENT, format!("{error}; what is not saved is not known after a restart"))
                }
            }
            if ended {
                return;
            }
            let pause = if outcome.is_ok() {
                problems.clear(COMPONENT);
                SAVE_PERIOD
            } else {
                RETRY_PAUSE
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Writing waits for the disk, so it has a thread of its own.
    async fn save_in_background(mut self, snapshot: Arc<Snapshot>) -> (Self, Result<usize, StateError>) {
        let disk = self.disk.clone();
        let configured = self.configured.clone();
        let (saved, owners, ids, facts) =
            (self.saved.clone(), self.owners.clone(), self.ids.clone(), self.facts.clone());
        let done = spawn_blocking(move || {
            let mut copy = Self { disk, configured, saved, owners, ids, facts };
            let outcome = copy.save(&snapshot);
            (copy, outcome)
        })
        .await;
        match done {
            Ok((copy, outcome)) => {
                self = copy;
                (self, outcome)
            }
            Err(error) => (self, Err(StateError::Rows { action: "write", reason: error.to_string() })),
        }
    }

    /// Writes the difference between what is saved and `snapshot` in one transaction; returns how many rows changed.
    ///
    /// # Errors
    /// [`StateError`] when the transaction failed; nothing of it is saved then.
    pub fn save(&mut self, snapshot: &Snapshot) -> Result<usize, StateError> {
        if let Some(configured) = &self.configured {
            self.disk.forget_others(configured)?;
            self.configured = None;
        }
        let clusters = &snapshot.observed.clusters;
        let mut ids = self.ids.clone();
        ids.retain(|name, _| clusters.contains_key(name));
        for (name, tables) in clusters {
            if let Some(id) = tables.peer.as_ref().and_then(|peer| peer.id) {
                ids.insert(name.clone(), id);
            }
        }
        let owner_changes = self.owners.changes(&snapshot.desired.routes);
        let facts = self.facts.take();
        let is_same = owner_changes.is_empty()
            && ids == self.ids
            && facts.identities.is_none()
            && facts.store_id.is_none()
            && same_rows(&self.saved, clusters);
        if is_same {
            return Ok(0);
        }
        let changes = Changes {
            clusters: (&self.saved, clusters),
            owners: owner_changes,
            ids: &ids,
            labels: facts.identities.as_ref(),
            store_id: facts.store_id,
        };
        match self.disk.save(&changes) {
            Ok(count) => {
                self.saved = clusters.clone();
                self.owners = Owners::Routes(snapshot.desired.routes.clone());
                self.ids = ids;
                Ok(count)
            }
            Err(error) => {
                self.facts.put_back(facts);
                Err(error)
            }
        }
    }
}

impl Owners {
    /// What the owners of the prefixes that have a route differ in from what is saved.
    fn changes(&self, routes: &Table<IpNet, Arc<RouteRow>>) -> Vec<(IpNet, Option<ClusterName>)> {
        let owner = |row: &Arc<RouteRow>| row.target.node().map(|target| target.cluster.clone());
        match self {
            Self::Routes(saved) => routes
                .diff(saved)
                .filter_map(|diff| match diff {
                    RowDiff::Added(prefix, row) => owner(row).map(|owner| (*prefix, Some(owner))),
                    RowDiff::Changed(_, old, new) if owner(old) == owner(new) => None,
                    RowDiff::Changed(prefix, _, row) => Some((*prefix, owner(row))),
                    RowDiff::Removed(prefix, row) => owner(row).map(|_| (*prefix, None)),
                })
                .collect(),
            Self::Loaded(saved) => {
                let owned = |prefix: &IpNet| routes.get(prefix).and_then(owner);
                let gone = saved.keys().filter(|prefix| owned(prefix).is_none()).map(|prefix| (*prefix, None));
                let owners = routes.iter().filter_map(|(prefix, row)| Some((*prefix, owner(row)?)));
                let new = owners.filter(|(prefix, owner)| saved.get(prefix) != Some(owner));
                gone.chain(new.map(|(prefix, owner)| (prefix, Some(owner)))).collect()
            }
        }
    }
}

/// Equal rows; what two snapshots share is not looked at.
fn same_rows(old: &OrdMap<ClusterName, ClusterTables>, new: &OrdMap<ClusterName, ClusterTables>) -> bool {
    old.len() == new.len()
        && old.iter().zip(new.iter()).all(|((old_name, old), (new_name, new))| {
            old_name == new_name
                && new.nodes.diff(&old.nodes).next().is_none()
                && new.endpoints.diff(&old.endpoints).next().is_none()
                && new.services.diff(&old.services).next().is_none()
                && new.identities.diff(&old.identities).next().is_none()
        })
}
