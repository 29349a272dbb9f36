//! Publishing our own cluster: desired records into the store.
//!
//! One task owns the connection to our own store. What this node wants published comes as an [`OwnState`], and the services
//! its cluster shares in the pipeline's snapshots. What the store holds is listed and watched ([`actual`]), so that
//! whatever somebody else does to a record of ours is seen and repaired at once; the pure planner of `meshd_core` compares the two, and [`ops`] writes. A full list every five minutes
//! finds what a watch might have missed (I6). The duties of the cluster's one writer are in [`writer`].
//!
//! - A new store (another cluster id) is published into from the start; its canaries are withheld until the nodes we
//!   knew are back, so that no reader takes a half-filled store for the whole cluster.
//! - Leases outlive a connection and, by adoption, a restart: a node that comes back within 15 minutes finds its
//!   records and writes nothing.
//! - While the store is away nothing is lost: labels that have a number keep it, new ones wait, the kernel is not touched.
//! - Services are the whole cluster's: the writer alone writes them, and takes one back only once the pipeline has read
//!   everything of our own cluster.
//! - Stopping removes nothing (I10); [`ExportHandle::drain`] removes what is ours at once.

mod actual;
mod ops;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use etcd_client::Client;
use jiff::Timestamp;
use meshd_core::{
    clustermesh::{
        Accept, Key, Keyspace, PeerContext,
        export::{Actual, Allocator, Desired, Op, OwnState, Scope, ServiceRecords, Withhold, plan},
        identity,
    },
    id::{NodeName, NumericIdentity},
    observed::Labels,
    table::{RowState, RowStatus},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

pub use self::writer::{ELECTION_PREFIX, WriterRole};
use self::{
    actual::Follower,
    ops::{Leases, Write},
    writer::{Collector, Election},
};
use crate::{
    lifecycle::Problems,
    pipeline::Snapshot,
    store::{RpcFailure, StoreAddress, chain},
};

/// Component name in `status` problems.
const COMPONENT: &str = "export";
/// Questions that may wait.
const QUESTIONS_MAX: usize = 8;
/// Attempts to create identities before the round goes on without the rest.
const CLAIM_ROUNDS_MAX: usize = 8;
/// Attempts to write with new leases within one round.
const LEASE_ATTEMPTS_MAX: usize = 3;
/// First and longest pause before connecting again. Short, because siblings that see a new store late delay its canaries.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Periods of the exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportTimers {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Between two signs of life of the data leases.
    pub keepalive: Duration,
    /// Between two full lists, after which every record is asserted again.
    pub relist: Duration,
    /// Between two searches for unused identities.
    pub collect: Duration,
    /// Before a refused write is tried again.
    pub retry: Duration,
}

impl Default for ExportTimers {
    fn default() -> Self {
        Self {
            heartbeat: meshd_core::clustermesh::heartbeat::HEARTBEAT_PERIOD,
            keepalive: Duration::from_secs(60),
            relist: Duration::from_secs(300),
            collect: Duration::from_secs(600),
            retry: Duration::from_secs(15),
        }
    }
}

/// What says what is to be published.
#[derive(Debug)]
pub struct ExportInputs {
    /// This node and its workloads.
    pub own: watch::Receiver<Arc<OwnState>>,
    /// The pipeline's tables, with the services the cluster shares.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// What must survive a restart.
pub trait ExportMemory: Send + 'static {
    /// Labels and their numbers, all of them.
    fn remember_identities(&mut self, known: &BTreeMap<Labels, NumericIdentity>);
    /// Id of the store we publish into.
    fn remember_store(&mut self, store_id: u64);
}

/// What was remembered.
#[derive(Debug, Clone, Default)]
pub struct Remembered {
    /// Labels and their numbers.
    pub identities: BTreeMap<Labels, NumericIdentity>,
    /// Id of the store we published into.
    pub store_id: Option<u64>,
    /// Nodes of our cluster.
    pub nodes: BTreeSet<NodeName>,
}

/// What `status` says about the exporter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExportStatus {
    /// The store answers.
    pub connected: bool,
    /// This node writes for the cluster.
    pub writer: bool,
    /// Nodes of our cluster that have a record.
    pub nodes: usize,
    /// Every record we want in the store.
    pub records: BTreeMap<Arc<str>, RowStatus>,
    /// Numbers of our workloads' labels.
    pub identities: BTreeMap<Labels, NumericIdentity>,
    /// Labels that wait for a number.
    pub waiting: Vec<Labels>,
    /// Workloads that cannot be published, and why.
    pub refused: Vec<String>,
    /// Why canaries are withheld.
    pub withheld: Option<String>,
}

enum Question {
    Drain(oneshot::Sender<Result<usize, String>>),
}

/// Asks the exporter.
#[derive(Debug, Clone)]
pub struct ExportHandle {
    questions: mpsc::Sender<Question>,
    status: watch::Receiver<Arc<ExportStatus>>,
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Drain(_) => f.write_str("Drain"),
        }
    }
}

impl ExportHandle {
    /// Removes this node's records from the store and publishes them no more; returns how many went.
    ///
    /// # Errors
    /// Why they could not be removed, for instance because the store is away.
    pub async fn drain(&self) -> Result<usize, String> {
        let ended = || "the exporter has ended".to_owned();
        let (tx, rx) = oneshot::channel();
        self.questions.send(Question::Drain(tx)).await.map_err(|_| ended())?;
        rx.await.map_err(|_| ended())?
    }

    /// The state of every record, now and as it changes.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Arc<ExportStatus>> {
        self.status.clone()
    }
}

/// Why a session with the store ended.
#[derive(Debug)]
enum SessionEnd {
    /// The connection, or trust in what was listed, is gone.
    Lost(String),
    /// The store refuses something we cannot do without.
    Refused(String),
    /// The daemon stops.
    Stopped,
}

impl SessionEnd {
    fn lost(reason: &str) -> Self {
        Self::Lost(reason.to_owned())
    }
}

impl From<RpcFailure> for SessionEnd {
    fn from(failure: RpcFailure) -> Self {
        match failure {
            RpcFailure::Refused(reason) => Self::Refused(reason),
            RpcFailure::Compacted | RpcFailure::TooLarge | RpcFailure::LeaseGone => {
                Self::Lost(failure.text().to_owned())
            }
            RpcFailure::Lost(reason) => Self::Lost(reason),
        }
    }
}

/// The reconciler; see the [module](self).
pub struct Exporter<M> {
    own: watch::Receiver<Arc<OwnState>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Records of what the last snapshot says the cluster shares.
    services: ServiceRecords,
    address: StoreAddress,
    role: WriterRole,
    timers: ExportTimers,
    memory: M,
    problems: Problems,
    questions: mpsc::Receiver<Question>,
    status: watch::Sender<Arc<ExportStatus>>,
    allocator: Allocator,
    known_nodes: BTreeSet<NodeName>,
    /// Why no canaries are written, and into which store; outlives a connection.
    withhold: Option<(u64, Withhold)>,
    store_id: Option<u64>,
    leases: Leases,
    drained: bool,
    start: Instant,
}

/// What exists while the store answers.
struct Session {
    client: Client,
    scope: Scope,
    follower: Follower,
    actual: Actual,
    election: Election,
    /// The host of the store writes for the cluster; nobody is elected.
    is_hosted: bool,
    collector: Collector,
    due: Due,
}

/// When the periodic duties are due.
#[derive(Debug, Clone, Copy)]
struct Due {
    heartbeat: Instant,
    keepalive: Instant,
    relist: Instant,
    collect: Instant,
    election: Option<Instant>,
    retry: Option<Instant>,
}

impl<M: ExportMemory> Exporter<M> {
    /// An exporter and the handle to ask it.
    #[must_use]
    pub fn new(
        told: ExportInputs,
        address: StoreAddress,
        role: WriterRole,
        timers: ExportTimers,
        remembered: Remembered,
        memory: M,
        problems: Problems,
    ) -> (Self, ExportHandle) {
        let ExportInputs { own, snapshots } = told;
        let (tx, questions) = mpsc::channel(QUESTIONS_MAX);
        let (status, status_rx) = watch::channel(Arc::default());
        let allocator = {
            let own = own.borrow();
            Allocator::new(identity::allocatable(own.id, own.max_clusters), remembered.identities)
        };
        let exporter = Self {
            own,
            snapshots,
            services: ServiceRecords::default(),
            address,
            role,
            timers,
            memory,
            problems,
            questions,
            status,
            allocator,
            known_nodes: remembered.nodes,
            withhold: None,
            store_id: remembered.store_id,
            leases: Leases::default(),
            drained: false,
            start: Instant::now(),
        };
        (exporter, ExportHandle { questions: tx, status: status_rx })
    }

    /// Runs until nobody tells what to publish any more. Removes nothing at its end.
    pub async fn run(mut self) {
        let mut pause = RECONNECT.0;
        loop {
            let began = Instant::now();
            let reason = match self.session().await {
                SessionEnd::Stopped => return,
                SessionEnd::Lost(reason) => format!("failed to publish into the own store: {reason}"),
                SessionEnd::Refused(reason) => {
                    format!("the own store refuses what this node must read or write: {reason}")
                }
            };
            self.problems.set(COMPONENT, reason);
            self.publish_away();
            if began.elapsed() > RECONNECT.1 * 4 {
                pause = RECONNECT.0;
            }
            // Between half and all of the pause, so that the nodes of a cluster do not come back at once.
            let jittered = pause.mul_f64(rand::random_range(0.5..=1.0));
            if self.wait_away(jittered).await.is_err() {
                return;
            }
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    /// Waits without a store; questions get an answer all the same.
    async fn wait_away(&mut self, pause: Duration) -> Result<(), ()> {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                Some(Question::Drain(answer)) = self.questions.recv() => {
                    self.drained = true;
                    let _gone = answer
                        .send(Err("the own store does not answer; its leases end within 15 minutes".to_owned()));
                }
                changed = self.own.changed() => changed.map_err(drop)?,
            }
        }
    }

    async fn session(&mut self) -> SessionEnd {
        match self.session_inner().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn session_inner(&mut self) -> Result<Infallible, SessionEnd> {
        let mut session = self.open().await?;
        self.take_services();
        loop {
            self.duties(&mut session).await?;
            self.round(&mut session).await?;
            let desired = self.desired(&session);
            while !self.wait(&mut session, &desired).await? {}
        }
    }

    /// Waits for the next thing to happen; false when it changes nothing, as when records of other nodes come and go.
    async fn wait(&mut self, session: &mut Session, desired: &Desired) -> Result<bool, SessionEnd> {
        let wake = session.due.next(self.withhold.as_ref().map(|(_, withhold)| self.start + withhold.until()));
        tokio::select! {
            news = session.follower.news(&mut session.actual, &session.scope, desired) => {
                let changed = news?;
                if !session.follower.is_open() {
                    return Err(SessionEnd::lost("the watch stream was closed"));
                }
                return Ok(changed);
            }
            changed = self.own.changed() => {
                if changed.is_err() {
                    return Err(SessionEnd::Stopped);
                }
                let own = self.own.borrow_and_update().clone();
                if session.scope.addresses != scope(&own).addresses {
                    // Which address records are ours changed with them.
                    session.scope = scope(&own);
                    session.actual = session.follower.relist(&session.scope, desired).await?;
                }
            }
            changed = self.snapshots.changed() => {
                if changed.is_err() {
                    return Err(SessionEnd::Stopped);
                }
                return Ok(self.take_services());
            }
            // Without anybody left to ask, the branch is off.
            Some(Question::Drain(answer)) = self.questions.recv() => {
                let outcome = self.drain(session).await;
                let _gone = answer.send(outcome);
            }
            () = sleep_until(wake) => {}
        }
        Ok(true)
    }

    /// Takes over what the cluster shares; false when that is as before.
    fn take_services(&mut self) -> bool {
        let snapshot = self.snapshots.borrow_and_update().clone();
        self.services.update(&self.own.borrow(), &snapshot.desired.exports)
    }

    async fn open(&mut self) -> Result<Session, SessionEnd> {
        let client = self.address.connect().await.map_err(|error| SessionEnd::Lost(chain(&error)))?;
        let own = self.own.borrow_and_update().clone();
        let scope = scope(&own);
        let desired = Desired::of(&own, |labels| self.allocator.number(labels));
        let election_key = self.role.election_key(&own.cluster);
        let (follower, actual) = Follower::start(client.clone(), &scope, &desired, election_key).await?;
        let store_id = follower.store_id();
        let is_new = self.store_id != Some(store_id);
        if is_new {
            info!(store = format_args!("{store_id:x}"), "publishing into a store we did not know");
            self.leases = Leases::default();
            self.store_id = Some(store_id);
            self.memory.remember_store(store_id);
        }
        self.withhold = self.withhold(&own, &actual, store_id, is_new);
        self.leases.keep(&client).await?;
        // Those of the cluster's services are ours for certain only where nobody else can have been the writer.
        let services = actual.services().filter(|_| self.role == WriterRole::Host);
        let held = scope.removable(&actual).into_iter().chain(services);
        for lease in held.map(|(_, held)| held.lease).collect::<BTreeSet<_>>() {
            self.leases.adopt(&client, lease).await?;
        }
        self.problems.clear(COMPONENT);
        let is_hosted = follower.election_refused.is_some() && writer::is_embedded(&client).await;
        let election = Election::new(self.role, &own.cluster);
        let due = Due::new(&self.timers, self.role);
        Ok(Session { client, scope, follower, actual, election, is_hosted, collector: Collector::default(), due })
    }

    /// Whether canaries must wait in this store.
    fn withhold(&mut self, own: &OwnState, actual: &Actual, store_id: u64, is_new: bool) -> Option<(u64, Withhold)> {
        // Canaries that are there have been seen by readers already: withholding them would change nothing.
        if actual.records.keys().any(|key| matches!(Key::parse(key.as_bytes()), Ok(Key::Canary { .. }))) {
            return None;
        }
        // A connection that ends does not start the time again.
        if let Some(waiting) = self.withhold.take().filter(|(store, _)| *store == store_id) {
            return Some(waiting);
        }
        let mut others = self.known_nodes.clone();
        others.remove(&own.node);
        let is_needed = is_new || !others.is_subset(&actual.nodes);
        is_needed.then(|| (store_id, Withhold::new(others, self.start.elapsed())))
    }

    /// Carries out the periodic duties that are due.
    async fn duties(&mut self, session: &mut Session) -> Result<(), SessionEnd> {
        let now = Instant::now();
        let own = self.own.borrow().clone();
        if session.due.election.is_some_and(|due| now >= due)
            || (session.due.election.is_some() && session.follower.elected.is_none())
        {
            session.election.step(&session.client, &own.node, &mut session.follower).await?;
            session.due.election = Some(now + writer::ELECTION_PERIOD);
        }
        if now >= session.due.keepalive {
            self.leases.keep(&session.client).await?;
            session.due.keepalive = now + self.timers.keepalive;
        }
        if now >= session.due.relist {
            let desired = self.desired(session);
            session.actual = session.follower.relist(&session.scope, &desired).await?;
            session.due.relist = now + self.timers.relist;
        }
        let is_writer = session.election.is_writer(&own.node, &session.follower);
        if now >= session.due.heartbeat {
            if is_writer {
                // Forgotten, so that the next round writes it again.
                session.actual.records.remove(&*Key::Heartbeat.to_string());
            }
            session.due.heartbeat = now + self.timers.heartbeat;
        }
        if now >= session.due.collect {
            if is_writer {
                let needed = self.allocator.known().values().copied().collect();
                let removed = session.collector.round(&session.client, &own.cluster, &session.actual, &needed).await?;
                if removed > 0 {
                    info!(removed, "removed identities that nobody uses");
                }
            }
            session.due.collect = now + self.timers.collect;
        }
        Ok(())
    }

    fn desired(&self, session: &Session) -> Desired {
        let own = self.own.borrow().clone();
        let mut desired = if self.drained {
            Desired::default()
        } else {
            Desired::of(&own, |labels| self.allocator.confirmed(labels, &session.actual))
        };
        if session.election.is_writer(&own.node, &session.follower) {
            desired.add_writer(&own, self.withhold.is_none(), &self.services);
        }
        desired
    }

    /// Brings the store to what is desired, as far as it goes now.
    async fn round(&mut self, session: &mut Session) -> Result<(), SessionEnd> {
        if self.withhold.as_ref().is_some_and(|(_, withhold)| withhold.is_over(&session.actual, self.start.elapsed())) {
            self.withhold = None;
        }
        if self.withhold.is_none() {
            self.known_nodes.clone_from(&session.actual.nodes);
        } else {
            // Nodes that are still awaited stay known.
            self.known_nodes.extend(session.actual.nodes.iter().cloned());
        }
        if session.due.retry.is_some_and(|due| Instant::now() < due) {
            return Ok(());
        }
        session.due.retry = None;
        let mut errors = self.claim_identities(session).await?;
        let desired = self.desired(session);
        for _ in 0..LEASE_ATTEMPTS_MAX {
            let alive: BTreeSet<i64> = self.leases.alive().collect();
            let mut lease_gone = false;
            for ops in plan(&desired, &session.actual, &session.scope, &alive) {
                debug!(ops = ops.len(), "changing the own store");
                lease_gone = self.carry_out(session, &desired, ops, &mut errors).await?;
                if lease_gone || !errors.is_empty() {
                    // What comes later must not be there without what comes before.
                    break;
                }
            }
            if !lease_gone {
                break;
            }
            self.leases.keep(&session.client).await?;
        }
        if !errors.is_empty() {
            session.due.retry = Some(Instant::now() + self.timers.retry);
        }
        self.problems.report(COMPONENT, self.problem(session, &desired, &errors));
        self.publish_status(session, &desired, &errors);
        Ok(())
    }

    /// Creates the identities our workloads need.
    async fn claim_identities(&mut self, session: &mut Session) -> Result<BTreeMap<Arc<str>, String>, SessionEnd> {
        let mut errors = BTreeMap::new();
        let own = self.own.borrow().clone();
        let wanted = if self.drained { BTreeSet::new() } else { Desired::of(&own, |_| None).labels };
        let before = self.allocator.known().clone();
        for _ in 0..CLAIM_ROUNDS_MAX {
            let claims = self.allocator.settle(&wanted, &session.actual);
            if claims.is_empty() {
                break;
            }
            for claim in claims {
                let key: Arc<str> = Key::identity(Keyspace::State, &own.cluster, claim.id).to_string().into();
                match ops::create(&session.client, &key, claim.labels.0.as_bytes(), 0).await {
                    Ok(Some(held)) => {
                        if *held.value == *claim.labels.0.as_bytes() {
                            self.allocator.claimed(&claim);
                        }
                        session.actual.observe(&session.scope, &Desired::default(), &key, Ok(held));
                    }
                    // Created and removed by somebody in between: the next attempt sees.
                    Ok(None) => {}
                    Err(RpcFailure::Lost(reason)) => return Err(SessionEnd::Lost(reason)),
                    Err(failure) => {
                        errors.insert(key, failure.text().to_owned());
                    }
                }
            }
            if !errors.is_empty() {
                break;
            }
        }
        if before != *self.allocator.known() {
            self.memory.remember_identities(self.allocator.known());
        }
        Ok(errors)
    }

    /// Carries out one part of a plan; true when a lease turned out to be gone.
    async fn carry_out(
        &mut self,
        session: &mut Session,
        desired: &Desired,
        ops: Vec<Op>,
        errors: &mut BTreeMap<Arc<str>, String>,
    ) -> Result<bool, SessionEnd> {
        let puts = ops.iter().filter(|op| matches!(op, Op::Put(_))).count();
        let held = session.actual.keys_per_lease();
        let mut leases = self.leases.assign(&session.client, &held, puts).await?.into_iter();
        let now = Timestamp::now();
        let writes = ops
            .into_iter()
            .filter_map(|op| match op {
                Op::Put(key) => {
                    let value = desired.records.get(&key)?.bytes(now);
                    Some(Write::Put { value, lease: leases.next()?, key })
                }
                Op::Delete { key, revision } => Some(Write::Delete { key, revision }),
            })
            .collect();
        let mut lease_gone = false;
        for (key, outcome) in ops::write_all(&session.client, writes).await {
            match outcome {
                Ok(held) => drop::<bool>(session.actual.observe(&session.scope, desired, &key, held)),
                Err(RpcFailure::Lost(reason)) => return Err(SessionEnd::Lost(reason)),
                Err(RpcFailure::LeaseGone) => lease_gone = true,
                Err(failure) => {
                    warn!(%key, reason = failure.text(), "failed to write a record");
                    errors.insert(key, failure.text().to_owned());
                }
            }
        }
        Ok(lease_gone)
    }

    async fn drain(&mut self, session: &mut Session) -> Result<usize, String> {
        self.drained = true;
        let writes: Vec<Write> = session
            .scope
            .removable(&session.actual)
            .into_iter()
            .map(|(key, held)| Write::Delete { key: key.clone(), revision: held.revision })
            .collect();
        let mut removed = 0;
        for (key, outcome) in ops::write_all(&session.client, writes).await {
            match outcome {
                Ok(held) => {
                    removed += usize::from(held.is_err());
                    session.actual.observe(&session.scope, &Desired::default(), &key, held);
                }
                Err(failure) => return Err(format!("failed to remove {key}: {}", failure.text())),
            }
        }
        Ok(removed)
    }

    fn problem(&self, session: &Session, desired: &Desired, errors: &BTreeMap<Arc<str>, String>) -> Option<String> {
        if let Some((key, reason)) = errors.iter().next() {
            return Some(format!("failed to write {key}: {reason}"));
        }
        if let Some(refused) = desired.refused.first() {
            return Some(refused.to_string());
        }
        let own = self.own.borrow();
        if let Some(reason) = session.follower.election_refused.as_ref().filter(|_| !session.is_hosted) {
            return Some(writer::not_electable(&own.cluster, reason));
        }
        // Settling for a moment is no problem; missing nodes are.
        let (_, withhold) = self.withhold.as_ref().filter(|(_, withhold)| withhold.awaits_nodes())?;
        let is_writer = session.election.is_writer(&own.node, &session.follower);
        is_writer.then(|| withhold.reason(&own.cluster, &session.actual))
    }

    fn publish_status(&self, session: &Session, desired: &Desired, errors: &BTreeMap<Arc<str>, String>) {
        let before = self.status.borrow().clone();
        let now = Timestamp::now();
        let alive: BTreeSet<i64> = self.leases.alive().collect();
        let undone: BTreeSet<Arc<str>> = plan(desired, &session.actual, &session.scope, &alive)
            .into_iter()
            .flatten()
            .filter_map(|op| match op {
                Op::Put(key) => Some(key),
                Op::Delete { .. } => None,
            })
            .collect();
        let row = |key: &Arc<str>| {
            let state = match errors.get(key) {
                Some(reason) => RowState::Error(reason.as_str().into()),
                None if undone.contains(key) || desired.waiting.contains(key) => RowState::Pending,
                None => RowState::Done,
            };
            match before.records.get(key) {
                Some(old) if old.state == state => old.clone(),
                Some(_) | None => RowStatus { state, since: now },
            }
        };
        let keys = desired.records.keys().chain(&desired.waiting).chain(errors.keys());
        let own = self.own.borrow().clone();
        let status = ExportStatus {
            connected: true,
            writer: session.election.is_writer(&own.node, &session.follower),
            nodes: session.actual.nodes.len(),
            records: keys.map(|key| (key.clone(), row(key))).collect(),
            identities: self.allocator.known().clone(),
            waiting: desired.labels.iter().filter(|labels| self.allocator.number(labels).is_none()).cloned().collect(),
            refused: desired.refused.iter().map(ToString::to_string).collect(),
            withheld: self.withhold.as_ref().map(|(_, withhold)| withhold.reason(&own.cluster, &session.actual)),
        };
        if status != *before {
            self.status.send_replace(Arc::new(status));
        }
    }

    /// The store is away: what was done stays done there, new labels wait.
    fn publish_away(&self) {
        let own = self.own.borrow().clone();
        let desired = Desired::of(&own, |labels| self.allocator.number(labels));
        let mut status = (**self.status.borrow()).clone();
        status.connected = false;
        status.writer = false;
        status.waiting =
            desired.labels.iter().filter(|labels| self.allocator.number(labels).is_none()).cloned().collect();
        let pending = RowStatus { state: RowState::Pending, since: Timestamp::now() };
        for key in desired.records.keys().chain(&desired.waiting) {
            status.records.entry(key.clone()).or_insert_with(|| pending.clone());
        }
        self.status.send_replace(Arc::new(status));
    }
}

impl Due {
    fn new(timers: &ExportTimers, role: WriterRole) -> Self {
        let now = Instant::now();
        Self {
            heartbeat: now,
            keepalive: now + timers.keepalive,
            relist: now + timers.relist,
            collect: now + timers.collect,
            election: (role == WriterRole::Elected).then_some(now),
            retry: None,
        }
    }

    fn next(&self, withheld: Option<Instant>) -> Instant {
        let others = [self.keepalive, self.relist, self.collect].into_iter();
        others.chain(self.election).chain(self.retry).chain(withheld).fold(self.heartbeat, Instant::min)
    }
}

fn scope(own: &OwnState) -> Scope {
    Scope {
        context: PeerContext {
            cluster: own.cluster.clone(),
            id: own.id,
            max_clusters: own.max_clusters,
            own: true,
            accept: Accept::default(),
            own_pod_cidrs: Vec::new(),
            own_addresses: Vec::new(),
        },
        node: own.node.clone(),
        addresses: own.row.addresses.iter().map(|address| address.ip).collect(),
    }
}
