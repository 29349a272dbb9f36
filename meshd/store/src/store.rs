//! The store as its host sees it: open, serve, ask, close.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

use crate::answers::{ANSWER_BYTES_MAX, ANSWER_WAIT_MAX, Answers};
use crate::auth::{AuthConfig, AuthTable};
use crate::disk::{DataFile, DiskWriter, HistoryLoss, Identity, Opened};
use crate::engine::{Engine, EngineError, LeaseId, Limits, Loaded, Revision};
use crate::server;
use crate::server::tls::{ServerTls, TlsError};
use crate::watch::{Cancelled, Hub, StreamId, WatchLimits};

/// Default bound of open connections.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Default bound of the watches of one client stream.
pub const WATCHES_PER_STREAM_MAX: usize = 10_000;
/// Default bound of the watches of one user: thousands of nodes of a remote cluster share its user.
pub const WATCHES_PER_USER_MAX: usize = 100_000;
/// Default bound of the watch streams of one user.
pub const STREAMS_PER_USER_MAX: usize = 20_000;
/// Default interval of progress reports of silent watches; etcd's.
pub const WATCH_PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// Longest sleep of the task that revokes leases, and the pause after a round that could not write.
const EXPIRY_SLEEP_MAX: Duration = Duration::from_secs(3_600);
/// Leases that run out within the same half second are revoked in one round, as in etcd.
const EXPIRY_GRANULARITY: Duration = Duration::from_millis(500);
/// Bytes a revoked lease counts for in the queue to the disk.
const EXPIRY_COST_BYTES: usize = 256;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The data file; none keeps everything in memory, and every start is a loss of history.
    pub data_file: Option<PathBuf>,
    /// Name in `member list`.
    pub member_name: String,
    /// Client URLs in `member list`.
    pub client_urls: Vec<String>,
    /// Bounds of keys and history.
    pub limits: Limits,
    /// Users and roles.
    pub auth: AuthConfig,
    /// Bound of open connections over all listeners.
    pub connections_max: usize,
    /// Bound of the watches of one stream.
    pub watches_per_stream_max: usize,
    /// Bound of the watches of one user over all streams.
    pub watches_per_user_max: usize,
    /// Bound of the watch streams of one user.
    pub streams_per_user_max: usize,
    /// Bound of the memory of answers under way.
    pub answer_bytes_max: usize,
    /// How long a request waits for room for its answer.
    pub answer_wait_max: Duration,
    /// How often silent watches that asked for it hear how far the store is.
    pub watch_progress_interval: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            data_file: None,
            member_name: "meshd".to_owned(),
            client_urls: Vec::new(),
            limits: Limits::default(),
            auth: AuthConfig::empty(),
            connections_max: CONNECTIONS_MAX,
            watches_per_stream_max: WATCHES_PER_STREAM_MAX,
            watches_per_user_max: WATCHES_PER_USER_MAX,
            streams_per_user_max: STREAMS_PER_USER_MAX,
            answer_bytes_max: ANSWER_BYTES_MAX,
            answer_wait_max: ANSWER_WAIT_MAX,
            watch_progress_interval: WATCH_PROGRESS_INTERVAL,
        }
    }
}

/// What [`Store::open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenReport {
    /// The cluster id every answer carries.
    pub cluster_id: u64,
    /// The newest revision.
    pub revision: Revision,
    /// Number of keys.
    pub keys: usize,
    /// Why the store starts empty with a new cluster id; none if it continues its history.
    pub history_lost: Option<HistoryLoss>,
}

/// Figures about a running store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStatus {
    /// The cluster id every answer carries.
    pub cluster_id: u64,
    /// The newest revision on disk.
    pub revision: Revision,
    /// The oldest readable revision; negative if nothing was ever compacted.
    pub compact_revision: Revision,
    /// Number of keys.
    pub keys: usize,
    /// Memory charged for current versions.
    pub live_bytes: usize,
    /// Memory charged for replaced versions.
    pub history_bytes: usize,
    /// Changes in the history.
    pub history_entries: usize,
    /// Open watches.
    pub watchers: usize,
    /// Memory of answers under way: not yet written to their connections.
    pub answer_bytes: usize,
    /// Requests that wait for room for their answers.
    pub answers_waiting: usize,
    /// Requests that waited in vain since the store was opened.
    pub answers_refused: u64,
    /// Leases.
    pub leases: usize,
    /// Open connections.
    pub connections: usize,
    /// True if the store is so full that large writes are refused.
    pub full: bool,
    /// Why the data file cannot be written, while that lasts. Writes time out meanwhile, reads go on.
    pub disk_error: Option<String>,
}

/// Why a store cannot be opened or served.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data file cannot be opened, created or written.
    #[error("failed to open data file {}: {reason}", path.display())]
    DataFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another process has the data file open.
    #[error("data file {} is in use by another process", path.display())]
    DataFileInUse {
        /// The file.
        path: PathBuf,
    },
    /// The thread for the data file did not start.
    #[error("failed to start the disk thread")]
    DiskThread(#[source] std::io::Error),
    /// Certificates or key do not work.
    #[error("failed to load the server certificates")]
    Tls(#[from] TlsError),
    /// Without TLS everybody is root, so the address must be a loopback one.
    #[error("refusing to serve {address} without TLS: only loopback addresses may be served in the clear")]
    PlaintextNotLoopback {
        /// The address of the listener.
        address: SocketAddr,
    },
    /// The listener is not usable.
    #[error("failed to use the listener")]
    Listener(#[source] std::io::Error),
}

/// An etcd v3 compatible store in this process. Clones are handles to the same store.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
    /// Stops tasks and connections when the last handle goes away, so that they do not keep the data file open.
    _stop: Arc<DropGuard>,
}

impl Store {
    /// Opens the store. Needs a running tokio runtime, for the task that revokes leases.
    ///
    /// # Errors
    /// If the data file is in use or cannot be opened. An unreadable file is no error: it is set aside and reported.
    pub fn open(options: StoreOptions) -> Result<(Self, OpenReport), StoreError> {
        let started = Instant::now();
        let opened = options.data_file.as_deref().map(DataFile::open).transpose()?;
        let (file, identity, loaded, mut loss) = match opened {
            Some(Opened { file, identity, loaded, loss }) => (Some(file), identity, loaded, loss),
            None => {
                let loaded = Loaded { revision: Revision::FIRST, compacted: Revision(-1), ..Loaded::default() };
                (None, Identity::random(), loaded, Some(HistoryLoss::NotPersistent))
            }
        };
        let (file, identity, engine) = match Engine::load(options.limits, loaded, started.elapsed()) {
            Ok(engine) => (file, identity, engine),
            Err(error) => {
                let (fresh, identity) = start_over(&options, file, &mut loss, &error.to_string())?;
                (fresh, identity, Engine::new(options.limits))
            }
        };
        let status = engine.status();
        let report = OpenReport {
            cluster_id: identity.cluster_id,
            revision: status.revision,
            keys: status.keys,
            history_lost: loss,
        };
        let shared = Shared::start(options, identity, engine, file, started)?;
        let stop = Arc::new(shared.stop.clone().drop_guard());
        Ok((Self { shared, _stop: stop }, report))
    }

    /// Serves clients of `listener` until `shutdown` completes, then lets running requests finish for a few seconds.
    /// With TLS a client certificate is demanded and its common name is the user. Several listeners may be served.
    ///
    /// # Errors
    /// If the certificates do not work, or without TLS on an address that is not a loopback one.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Option<ServerTls>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), StoreError> {
        server::serve(Arc::clone(&self.shared), listener, tls, shutdown).await
    }

    /// A client channel to this store inside the process, as root. Needs a running tokio runtime.
    /// Use it as `etcd_client::Client::from_channel(etcd_client::Channel::Tonic(store.local_channel()), None)`.
    #[must_use]
    pub fn local_channel(&self) -> Channel {
        server::local_channel(&self.shared)
    }

    /// New certificates for new connections of all TLS listeners; running connections stay.
    ///
    /// # Errors
    /// If the certificates do not work; the old ones stay in use then.
    pub fn reload_tls(&self, tls: &ServerTls) -> Result<(), StoreError> {
        let config = tls.to_config()?;
        *self.shared.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(config);
        Ok(())
    }

    /// New users and roles for all requests from now on. Watches that are no longer permitted are cancelled.
    pub fn reload_auth(&self, auth: AuthConfig) {
        self.shared.auth.send_modify(|table| {
            *table = Arc::new(AuthTable::new(auth, table.revision() + 1));
        });
    }

    /// Figures about the store.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        let engine = self.shared.engine().status();
        let answers = self.shared.answers.figures();
        StoreStatus {
            cluster_id: self.shared.identity.cluster_id,
            revision: engine.revision,
            compact_revision: engine.compacted,
            keys: engine.keys,
            live_bytes: engine.live_bytes,
            history_bytes: engine.history_bytes,
            history_entries: engine.history_entries,
            watchers: self.shared.watches().hub.len(),
            answer_bytes: answers.bytes,
            answers_waiting: answers.waiting,
            answers_refused: answers.refused,
            leases: engine.leases,
            connections: self.shared.connections.load(Ordering::Relaxed),
            full: engine.full,
            disk_error: self.shared.disk_failure(),
        }
    }

    /// Ends all connections and watches, writes what waits for the disk and closes the data file. No lease is
    /// revoked.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        let thread = {
            let mut disk = self.shared.disk.write().unwrap_or_else(PoisonError::into_inner);
            disk.writer = None;
            disk.thread.take()
        };
        if let Some(thread) = thread
            && tokio::task::spawn_blocking(move || thread.join()).await.is_err()
        {
            tracing::error!("store could not wait for its disk thread");
        }
    }
}

/// The records were readable one by one but are no history: sets the file aside and starts over.
fn start_over(
    options: &StoreOptions,
    file: Option<DataFile>,
    loss: &mut Option<HistoryLoss>,
    reason: &str,
) -> Result<(Option<DataFile>, Identity), StoreError> {
    drop(file);
    let Some(path) = options.data_file.as_deref() else {
        return Ok((None, Identity::random()));
    };
    let opened = DataFile::replace(path, reason)?;
    *loss = opened.loss;
    Ok((Some(opened.file), opened.identity))
}

/// What all connections, tasks and the disk thread share.
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) options: StoreOptions,
    pub(crate) auth: watch::Sender<Arc<AuthTable>>,
    pub(crate) tls: RwLock<Option<Arc<rustls::ServerConfig>>>,
    pub(crate) connections: AtomicUsize,
    pub(crate) answers: Arc<Answers>,
    pub(crate) stop: CancellationToken,
    engine: RwLock<Engine>,
    watches: Mutex<Watches>,
    disk: RwLock<Disk>,
    lease_granted: Notify,
    started: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("identity", &self.identity).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Disk {
    writer: Option<Arc<DiskWriter>>,
    thread: Option<JoinHandle<()>>,
    persistent: bool,
}

/// The watch registry and how to wake its streams.
#[derive(Debug)]
pub(crate) struct Watches {
    pub(crate) hub: Hub,
    wakers: BTreeMap<StreamId, Arc<Notify>>,
}

impl Watches {
    /// Opens a stream and returns what wakes it.
    pub(crate) fn open(&mut self, user: &Arc<str>) -> Result<(StreamId, Arc<Notify>), Cancelled> {
        let stream = self.hub.open(user)?;
        let waker = Arc::new(Notify::new());
        self.wakers.insert(stream, Arc::clone(&waker));
        Ok((stream, waker))
    }

    /// Forgets a stream.
    pub(crate) fn close(&mut self, stream: StreamId) {
        self.hub.close(stream);
        self.wakers.remove(&stream);
    }
}

impl Shared {
    fn start(
        options: StoreOptions,
        identity: Identity,
        engine: Engine,
        file: Option<DataFile>,
        started: Instant,
    ) -> Result<Arc<Self>, StoreError> {
        let (auth, _) = watch::channel(Arc::new(AuthTable::new(options.auth.clone(), 1)));
        let watch_limits = WatchLimits {
            per_stream: options.watches_per_stream_max,
            per_user: options.watches_per_user_max,
            streams_per_user: options.streams_per_user_max,
        };
        let answers = Arc::new(Answers::new(options.answer_bytes_max, options.answer_wait_max));
        let shared = Arc::new(Self {
            identity,
            options,
            auth,
            tls: RwLock::new(None),
            connections: AtomicUsize::new(0),
            answers,
            stop: CancellationToken::new(),
            watches: Mutex::new(Watches { hub: Hub::new(engine.published(), watch_limits), wakers: BTreeMap::new() }),
            engine: RwLock::new(engine),
            disk: RwLock::new(Disk::default()),
            lease_granted: Notify::new(),
            started,
        });
        if let Some(file) = file {
            let publish_to = Arc::downgrade(&shared);
            let (writer, thread) = DiskWriter::start(file, move |revision| {
                if let Some(shared) = publish_to.upgrade() {
                    shared.publish(revision);
                }
            })
            .map_err(StoreError::DiskThread)?;
            *shared.disk.write().unwrap_or_else(PoisonError::into_inner) =
                Disk { writer: Some(Arc::new(writer)), thread: Some(thread), persistent: true };
        }
        tokio::spawn(expire_leases(Arc::downgrade(&shared), shared.stop.clone()));
        Ok(shared)
    }

    /// The engine's clock.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn engine(&self) -> RwLockReadGuard<'_, Engine> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For changes that need not reach the disk.
    pub(crate) fn engine_mut(&self) -> RwLockWriteGuard<'_, Engine> {
        self.engine.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn auth_table(&self) -> Arc<AuthTable> {
        Arc::clone(&self.auth.borrow())
    }

    /// Why the disk cannot be written, while that lasts.
    pub(crate) fn disk_failure(&self) -> Option<String> {
        let disk = self.disk.read().unwrap_or_else(PoisonError::into_inner);
        disk.writer.as_ref().and_then(|writer| writer.health().failure())
    }

    /// Tells the task that revokes leases that one was granted.
    pub(crate) fn lease_granted(&self) {
        self.lease_granted.notify_one();
    }

    /// Applies a change and returns when it is on disk and visible to all. `bytes` is the size of the request.
    pub(crate) async fn write<T>(
        &self,
        bytes: usize,
        apply: impl FnOnce(&mut Engine, Duration) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let (writer, persistent) = {
            let disk = self.disk.read().unwrap_or_else(PoisonError::into_inner);
            (disk.writer.clone(), disk.persistent)
        };
        let Some(writer) = writer else {
            if persistent || self.stop.is_cancelled() {
                return Err(EngineError::Stopped);
            }
            return self.write_in_memory(apply);
        };
        let place = writer.place(bytes).await?;
        let (outcome, durable) = {
            let mut engine = self.engine_mut();
            let outcome = apply(&mut engine, self.now());
            let journal = engine.take_journal();
            if outcome.is_err() && journal.is_empty() {
                return outcome;
            }
            (outcome, place.hand_over(journal))
        };
        durable.wait().await?;
        outcome
    }

    fn write_in_memory<T>(
        &self,
        apply: impl FnOnce(&mut Engine, Duration) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let (outcome, revision) = {
            let mut engine = self.engine_mut();
            let outcome = apply(&mut engine, self.now());
            (outcome, engine.take_journal().revision)
        };
        self.publish(revision);
        outcome
    }

    /// Makes everything up to `revision` visible and wakes the watches it concerns.
    fn publish(&self, revision: Revision) {
        self.engine_mut().publish(revision);
        let mut watches = self.watches();
        let woken = {
            let engine = self.engine();
            watches.hub.publish(&engine)
        };
        for stream in woken {
            if let Some(waker) = watches.wakers.get(&stream) {
                waker.notify_one();
            }
        }
    }
}

/// Revokes leases when they run out, until the store closes or is dropped.
async fn expire_leases(store: Weak<Shared>, stop: CancellationToken) {
    loop {
        let Some(shared) = store.upgrade() else {
            return;
        };
        let sleep = match shared.engine().next_expiry() {
            Some(expiry) => expiry.saturating_sub(shared.now()).clamp(EXPIRY_GRANULARITY, EXPIRY_SLEEP_MAX),
            None => EXPIRY_SLEEP_MAX,
        };
        let granted = async {
            shared.lease_granted.notified().await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = granted => continue,
            () = tokio::time::sleep(sleep) => {}
        }
        expire_round(&shared).await;
    }
}

async fn expire_round(shared: &Shared) {
    while shared.engine().next_expiry().is_some_and(|expiry| expiry <= shared.now()) {
        let revoked = shared.write(EXPIRY_COST_BYTES, |engine, now| Ok(engine.expire_one(now))).await;
        match revoked {
            Ok(Some(LeaseId(id))) => tracing::debug!(lease = format_args!("{id:x}"), "lease ran out"),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "store could not revoke a lease that ran out");
                return;
            }
        }
    }
}
