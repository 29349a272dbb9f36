//! From what the sources say to what the reconcilers read.
//!
//! One task owns the observed and the desired tables. It takes the sources' [`Change`]s from a bounded queue, applies all
//! that are waiting, derives once, and publishes a [`Snapshot`]. Publishing is a pointer in a `watch` channel: a slow
//! reader sees the newest snapshot, never a queue of old ones, and a full change queue holds back the source that
//! fills it (I9).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use imbl::OrdMap;
use jiff::Timestamp;
use meshd_core::{
    derive::{MasqueradeDeriver, PathPolicy, RouteDeriver, ServiceDeriver},
    desired::Desired,
    id::ClusterName,
    observed::{Change, KernelKind, Kind, Observed},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::info;

/// Most messages of sources that wait for the pipeline.
pub const CHANGES_MAX: usize = 256;
/// Most messages applied before a derivation, so that a flood cannot postpone it for ever.
const ROUND_MAX: usize = 64;
/// How long a cold start waits for every configured cluster before prefix owners become final.
const SETTLE_AFTER: Duration = Duration::from_secs(30);

/// All tables at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// What the sources said.
    pub observed: Observed,
    /// What we want.
    pub desired: Desired,
    /// Every configured cluster, the own one included, has told its nodes once, and every BGP peer its routes: nothing wanted
    /// is missing any more.
    pub complete: bool,
    /// The same of everything that clusters tell, and our own services have been read.
    pub listed: bool,
    /// Every configured cluster has told its nodes, in this run or in the one before it, or the wait for it is over.
    pub known: bool,
    /// The links, addresses and routes of this node have been read: what is desired has next hops, as far as there are any.
    pub local_known: bool,
}

/// The pipeline's inputs and outputs.
pub struct Pipeline {
    /// Rows remembered from before the restart.
    pub remembered: Observed,
    /// Messages of all sources.
    pub changes: mpsc::Receiver<Change>,
    /// Clusters that are configured now, the own one included.
    pub clusters: watch::Receiver<BTreeSet<ClusterName>>,
    /// How nodes are to be reached.
    pub policies: watch::Receiver<Arc<PathPolicy>>,
    /// Where snapshots go.
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    /// A BGP speaker runs: its routes are among what is wanted.
    pub has_speaker: bool,
    /// Observed to desired routes.
    pub deriver: RouteDeriver,
    /// Observed to desired services.
    pub services: ServiceDeriver,
    /// The same for masquerade.
    pub masquerade: MasqueradeDeriver,
}

impl Pipeline {
    /// Runs until every source is gone.
    pub async fn run(mut self) {
        let mut current = Snapshot { observed: std::mem::take(&mut self.remembered), ..Snapshot::default() };
        let mut batch = Vec::with_capacity(ROUND_MAX);
        let settle_at = Instant::now() + SETTLE_AFTER;
        loop {
            self.derive(&mut current);
            self.snapshots.send_replace(Arc::new(current.clone()));
            let settled = self.deriver.is_settled();
            let services_at = self.services.wake_at();
            tokio::select! {
                count = self.changes.recv_many(&mut batch, ROUND_MAX) => if count == 0 { return },
                changed = self.clusters.changed() => if changed.is_err() { return },
                changed = self.policies.changed() => if changed.is_err() { return },
                () = sleep_until(settle_at), if !settled => {
                    info!("prefix owners are final: the wait for silent clusters is over");
                    self.deriver.settle();
                }
                // A cluster may be unreachable by now; the derivation above looks.
                () = until(services_at) => {}
            }
            for change in batch.drain(..) {
                current.observed.apply(change, Timestamp::now());
            }
        }
    }

    fn derive(&mut self, current: &mut Snapshot) {
        let configured = self.clusters.borrow_and_update().clone();
        let told = have_told(&current.observed.clusters, &configured, &[Kind::Nodes]);
        current.complete = told && (!self.has_speaker || current.observed.is_bgp_complete());
        current.listed = current.complete
            && current.observed.are_own_services_told()
            && have_told(&current.observed.clusters, &configured, &Kind::ALL);
        if told && !self.deriver.is_settled() {
            info!("every configured cluster has been heard");
            self.deriver.settle();
        }
        current.known = self.deriver.is_settled() || is_known(&current.observed.clusters, &configured);
        let local = [KernelKind::Links, KernelKind::Addresses, KernelKind::Routes];
        current.local_known = local.iter().all(|kind| current.observed.is_kernel_initialized(*kind));
        self.deriver.set_policy(self.policies.borrow_and_update().clone());
        let touched = current.observed.take_touched();
        let now = Timestamp::now();
        self.deriver.update(&current.observed, &touched, now, &mut current.desired);
        self.services.update(&current.observed, &touched, now, &mut current.desired);
        self.masquerade.update(&current.observed, &touched, &mut current.desired);
    }
}

/// Waits for a time of the wall clock; for ever without one.
async fn until(time: Option<Timestamp>) {
    match time {
        // A clock that was set meanwhile is looked at again when the time is over.
        Some(time) => sleep(Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default()).await,
        None => std::future::pending().await,
    }
}

/// True when every configured cluster has told all it has of these kinds at least once in this run.
fn have_told(
    clusters: &OrdMap<ClusterName, meshd_core::observed::ClusterTables>,
    configured: &BTreeSet<ClusterName>,
    kinds: &[Kind],
) -> bool {
    let has_told =
        |name| clusters.get(name).is_some_and(|tables| kinds.iter().all(|kind| tables.is_initialized(*kind)));
    !configured.is_empty() && configured.iter().all(has_told)
}

/// True when of every configured cluster the nodes are known, if only from memory.
fn is_known(
    clusters: &OrdMap<ClusterName, meshd_core::observed::ClusterTables>,
    configured: &BTreeSet<ClusterName>,
) -> bool {
    let knows =
        |name| clusters.get(name).is_some_and(|tables| tables.is_initialized(Kind::Nodes) || !tables.nodes.is_empty());
    !configured.is_empty() && configured.iter().all(knows)
}

#[cfg(test)]
mod tests {
    use meshd_core::observed::ClusterChange;

    use super::*;

    #[test]
    fn nodes_are_told_before_the_rest_is() {
        let mut observed = Observed::default();
        let configured: BTreeSet<ClusterName> = ["east".parse().unwrap()].into();
        assert!(!have_told(&observed.clusters, &configured, &[Kind::Nodes]), "nothing is known of it");
        for told in Kind::ALL {
            assert!(!have_told(&observed.clusters, &configured, &Kind::ALL), "not yet {told:?}");
            let changes = vec![ClusterChange::ListBegin(told), ClusterChange::ListEnd(told)];
            observed.apply(Change::Cluster("east".parse().unwrap(), changes), Timestamp::UNIX_EPOCH);
            assert!(have_told(&observed.clusters, &configured, &[told]));
        }
        assert!(have_told(&observed.clusters, &configured, &Kind::ALL));
        assert!(!have_told(&observed.clusters, &BTreeSet::new(), &[]), "nobody was asked");
    }
}
