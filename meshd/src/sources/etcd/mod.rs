//! Source: the stores of clusters, remote ones and our own.
//!
//! One task per cluster drives a [`Reader`](meshd_core::clustermesh::reader::Reader): it holds one connection with one
//! watch stream on which all watches of that cluster are multiplexed, hands what arrives to the reader, and sends the
//! rows the reader makes of it to the pipeline. Records are decoded in that task, page by page, never in the pipeline.
//!
//! ```text
//! configured peers ─► supervisor ─► task per cluster ─► bounded channel ─► pipeline
//!                        │              ▲    │ commands: connect, list, watch
//!                        └ start, stop ─┘    ▼
//!                                        store (etcd v3)
//! ```
//!
//! - The channel to the pipeline is bounded. A task that waits for room reads nothing, and HTTP/2 flow control carries
//!   that to the store; memory does not grow with a slow consumer.
//! - Hundreds of clusters start together after a restart. Connections being built and pages being read are bounded for
//!   all clusters together, so the start is a queue and not a stampede; a slow store gives its place back.
//! - A task that panics is started again after a pause, and the peer's problem says so; other clusters do not notice.
//! - A peer that is taken out of the configuration is dropped with its rows. A peer that changes is stopped and started
//!   anew and keeps its rows until it has listed again.
//! - The id of a cluster belongs to whoever claimed it first. Claims are shared by all tasks and survive a reconnect.
//!
//! - A cluster that BGP tells has no task here: its id is claimed, and its rows come from the speaker.
//!
//! Our own cluster is one more task ([`OwnCluster`]): siblings that share our store appear through it.

mod convert;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    panic::AssertUnwindSafe,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use ipnet::IpNet;
use jiff::Timestamp;
use meshd_core::{
    clustermesh::{
        Accept,
        reader::{Now, PAGE_LIMIT, Settings, Timers},
    },
    id::{ClusterId, ClusterName, MaxClusters, NodeName},
    observed::{Change, ClusterChange, Failure, Kind, PeerRow},
};
use tokio::{
    sync::{Semaphore, mpsc, watch as watch_channel},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::watch::ClusterTask;
use super::config::{PeerEntry, PeerSet};
use crate::store::{RemoteStore, StoreAddress};

/// Connections that may be under construction at once, all clusters together.
const CONNECTS_MAX: usize = 16;
/// Pages that may be read at once, all clusters together; with the size of a page this bounds the memory of a start.
const LISTS_MAX: usize = 8;
/// Pause between the first connections of two clusters.
const STAGGER: Duration = Duration::from_millis(2);
/// Pause before a task that panicked is started again.
const PANIC_PAUSE: Duration = Duration::from_secs(5);

/// Who we are, as far as readers must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCluster {
    /// Name of our cluster.
    pub name: ClusterName,
    /// Its id.
    pub id: ClusterId,
    /// Size of the mesh.
    pub max_clusters: MaxClusters,
    /// Our node.
    pub node: NodeName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its PodCIDRs.
    pub pod_cidrs: Vec<IpNet>,
}

/// The source; see the [module](self).
pub struct EtcdSource {
    /// Who we are.
    pub own: OwnCluster,
    /// Where our own cluster is read.
    pub own_store: StoreAddress,
    /// The remote clusters to read.
    pub peers: watch_channel::Receiver<PeerSet>,
    /// Where rows go.
    pub changes: mpsc::Sender<Change>,
    /// Ids that clusters of the state directory had.
    pub known_ids: BTreeMap<ClusterName, ClusterId>,
    /// Remote clusters that have rows from the state directory.
    pub remembered: BTreeSet<ClusterName>,
    /// Times of the protocol.
    pub timers: Timers,
}

/// What the tasks of all clusters share.
struct Shared {
    start: Instant,
    connects: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    claims: Mutex<BTreeMap<ClusterId, ClusterName>>,
    /// Which data of its store the rows of each cluster are from. A reader that is made anew, because the configuration
    /// or a certificate changed, must not take the nodes that are missing from a new store for removed.
    listed_from: Mutex<BTreeMap<ClusterName, BTreeMap<Kind, u64>>>,
}

impl Shared {
    fn now(&self) -> Now {
        Now { elapsed: self.start.elapsed(), wall: Timestamp::now() }
    }

    fn instant(&self, elapsed: Duration) -> Instant {
        self.start + elapsed
    }

    /// Gives `id` to `cluster`, and takes the id away that it had.
    fn claim(&self, id: ClusterId, cluster: &ClusterName) -> Result<(), ClusterName> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        match claims.entry(id) {
            Entry::Occupied(owner) if owner.get() != cluster => return Err(owner.get().clone()),
            Entry::Occupied(_) => return Ok(()),
            Entry::Vacant(free) => free.insert(cluster.clone()),
        };
        claims.retain(|of, owner| owner != cluster || *of == id);
        Ok(())
    }

    /// Gives ids to the clusters that BGP tells, because the configuration says so, and takes those away that nobody has any
    /// more. Returns who had such an id, with who has it now.
    fn claim_configured(&self, set: &PeerSet, own: &ClusterName) -> Vec<(ClusterName, ClusterName)> {
        let over_bgp = |name: &ClusterName| set.peers.get(name).and_then(|entry| entry.peer.over_bgp);
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = |name: &ClusterName| name == own || set.clusters().any(|cluster| cluster == name);
        claims.retain(|id, owner| is_there(owner) && over_bgp(owner).is_none_or(|configured| configured == *id));
        let configured = set.peers.keys().filter_map(|name| Some((name, over_bgp(name)?)));
        let displaced = configured.filter_map(|(name, id)| {
            let other = claims.insert(id, name.clone()).filter(|other| other != name)?;
            Some((other, name.clone()))
        });
        displaced.collect()
    }

    fn listed_from(&self, cluster: &ClusterName) -> BTreeMap<Kind, u64> {
        let all = self.listed_from.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(cluster).cloned().unwrap_or_default()
    }

    fn set_listed_from(&self, cluster: &ClusterName, kinds: &BTreeMap<Kind, u64>) {
        let mut all = self.listed_from.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(cluster) != Some(kinds) {
            all.insert(cluster.clone(), kinds.clone());
        }
    }

    fn release(&self, cluster: &ClusterName) {
        self.listed_from.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, owner| owner != cluster);
    }
}

/// A running task; dropping it ends the task.
struct Running {
    peer: Option<PeerEntry>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl EtcdSource {
    /// Runs until `stop`. Stopping drops no rows (I10).
    pub async fn run(mut self, stop: CancellationToken) {
        let shared = Arc::new(self.shared());
        let mut running = BTreeMap::new();
        let own = self.own.name.clone();
        running.insert(own.clone(), self.spawn(&shared, &own, None, self.own_store.clone(), Duration::ZERO));
        loop {
            let peers = self.peers.borrow_and_update().clone();
            self.reconcile(&shared, &mut running, &peers).await;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.peers.changed() => if changed.is_err() {
                    // Nobody can change the set any more; what runs goes on.
                    stop.cancelled().await;
                    return;
                },
            }
        }
    }

    fn shared(&self) -> Shared {
        let peers = self.peers.borrow();
        // Who had an id before the restart keeps it, unless it is no longer configured.
        let claims = self.known_ids.iter().filter(|(name, _)| peers.clusters().any(|cluster| cluster == *name));
        Shared {
            start: Instant::now(),
            connects: Arc::new(Semaphore::new(CONNECTS_MAX)),
            lists: Arc::new(Semaphore::new(LISTS_MAX)),
            claims: Mutex::new(claims.map(|(name, id)| (*id, name.clone())).collect()),
            listed_from: Mutex::default(),
        }
    }

    /// Starts, stops and replaces tasks until they are what `peers` says.
    async fn reconcile(&mut self, shared: &Arc<Shared>, running: &mut BTreeMap<ClusterName, Running>, set: &PeerSet) {
        let known: BTreeSet<ClusterName> = running.keys().chain(&self.remembered).cloned().collect();
        for name in known {
            if name == self.own.name || set.peers.contains_key(&name) {
                continue;
            }
            if let Some(place) = set.kept.get(&name) {
                self.tell_kept(&name, place).await;
                continue;
            }
            if let Some(old) = running.remove(&name) {
                end(old).await;
            }
            info!(cluster = %name, "the peer is no longer configured");
            shared.release(&name);
            self.known_ids.remove(&name);
            self.remembered.remove(&name);
            self.tell(&name, ClusterChange::Drop).await;
        }
        for (other, name) in shared.claim_configured(set, &self.own.name) {
            warn!(%other, cluster = %name, "a cluster over BGP is configured with the id of a cluster with a store");
            // Its reader begins again, and is refused with both names.
            if let Some(old) = running.remove(&other) {
                end(old).await;
            }
        }
        let mut after = Duration::ZERO;
        for (name, entry) in &set.peers {
            // Cilium writes an entry for every cluster of a mesh into one directory, our own included.
            if *name == self.own.name || running.get(name).is_some_and(|old| old.peer.as_ref() == Some(entry)) {
                continue;
            }
            let peer = &entry.peer;
            if let Some(id) = peer.over_bgp {
                // The speaker tells its rows and takes them away again; see `crate::speaker`.
                self.remembered.remove(name);
                if let Some(old) = running.remove(name) {
                    info!(cluster = %name, %id, "the peer is told over BGP from now on");
                    end(old).await;
                }
                continue;
            }
            if let Some(old) = running.remove(name) {
                end(old).await;
                info!(cluster = %name, "the peer's configuration changed");
                self.tell(name, ClusterChange::Stale(Timestamp::now())).await;
            }
            // Rows that were accepted under a wider list, in this run or before the restart, go now.
            self.tell(name, ClusterChange::Accept(accept(entry))).await;
            let remote = RemoteStore {
                endpoints: peer.endpoints.clone(),
                tls: peer.tls.clone(),
                host_aliases: peer.host_aliases.clone(),
            };
            let address = StoreAddress::Remote(Arc::new(remote));
            running.insert(name.clone(), self.spawn(shared, name, Some(entry), address, after));
            after += STAGGER;
        }
    }

    /// The rows of a cluster stay although nobody can say how to reach it.
    async fn tell_kept(&self, cluster: &ClusterName, place: &Path) {
        let message = format!("how to reach it cannot be read from {}; what is remembered stays", place.display());
        let problem = Failure { at: Timestamp::now(), message: message.into() };
        let id = self.known_ids.get(cluster).copied();
        let row = PeerRow { id, problem: Some(problem), ..PeerRow::default() };
        self.tell(cluster, ClusterChange::Peer(Arc::new(row))).await;
    }

    async fn tell(&self, cluster: &ClusterName, change: ClusterChange) {
        // A closed channel means that the pipeline has ended, and so will we.
        let _closed = self.changes.send(Change::Cluster(cluster.clone(), vec![change])).await;
    }

    fn spawn(
        &self,
        shared: &Arc<Shared>,
        cluster: &ClusterName,
        peer: Option<&PeerEntry>,
        address: StoreAddress,
        after: Duration,
    ) -> Running {
        let settings = self.settings(cluster, peer, &address);
        let task = tokio::spawn(keep_running(settings, address, shared.clone(), self.changes.clone(), after));
        Running { peer: peer.cloned(), task }
    }

    fn settings(&self, cluster: &ClusterName, peer: Option<&PeerEntry>, address: &StoreAddress) -> Settings {
        Settings {
            cluster: cluster.clone(),
            endpoints: address.names(),
            own_cluster: self.own.name.clone(),
            own_id: self.own.id,
            max_clusters: self.own.max_clusters,
            own_node: self.own.node.clone(),
            own_pod_cidrs: self.own.pod_cidrs.clone(),
            own_addresses: self.own.addresses.clone(),
            accept: peer.map(accept).unwrap_or_default(),
            known_id: self.known_ids.get(cluster).copied(),
            // Filled in when the reader is made: it is what the reader before it said last.
            listed_from: BTreeMap::new(),
            timers: self.timers,
            page_limit: PAGE_LIMIT,
            seed: rand::random(),
        }
    }
}

/// What the configuration lets a peer claim.
pub(crate) fn accept(entry: &PeerEntry) -> Accept {
    let accept = &entry.peer.accept;
    Accept { pod_cidrs: accept.pod_cidrs.clone(), node_cidrs: accept.node_cidrs.clone() }
}

/// Ends a task and waits until it is gone, so that nothing of it comes after what is sent next.
async fn end(mut old: Running) {
    old.task.abort();
    // The only errors are its cancellation, which was asked for, and a panic, which was logged.
    let _cancelled = (&mut old.task).await;
}

/// Runs the task of one cluster, again after a panic.
async fn keep_running(
    settings: Settings,
    address: StoreAddress,
    shared: Arc<Shared>,
    changes: mpsc::Sender<Change>,
    after: Duration,
) {
    loop {
        let task = ClusterTask::new(settings.clone(), address.clone(), shared.clone(), changes.clone());
        let Err(panic) = AssertUnwindSafe(task.run(after)).catch_unwind().await else { return };
        let text = panic_text(&*panic);
        error!(cluster = %settings.cluster, panic = text, "the reader of a cluster panicked and is started again");
        let problem = Failure {
            at: Timestamp::now(),
            message: format!("internal error while reading {}: {text} (please report it)", settings.cluster).into(),
        };
        let row = PeerRow {
            endpoints: settings.endpoints.clone(),
            problem: Some(problem.clone()),
            last_failure: Some(problem),
            ..PeerRow::default()
        };
        let told = vec![ClusterChange::Stale(Timestamp::now()), ClusterChange::Peer(Arc::new(row))];
        if changes.send(Change::Cluster(settings.cluster.clone(), told)).await.is_err() {
            return;
        }
        sleep(PANIC_PAUSE).await;
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic without a text")
}
