//! The thread that owns the data file and commits journals in groups.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::DataFile;
use crate::engine::{EngineError, Journal, Revision};

/// Most writes that wait for the disk.
const QUEUE_WRITES_MAX: usize = 4_096;
/// Most bytes of requests that wait for the disk.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Most writes of one group.
const GROUP_WRITES_MAX: usize = 2_048;
/// How long a write waits for a place in the queue, and for the disk; etcd's request timeout.
const WRITE_TIMEOUT: Duration = Duration::from_secs(7);
/// Pause before a failed group is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often a failed group is tried again once the store is closing.
const CLOSING_TRIES_MAX: u32 = 3;

/// State of the disk, for status answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct DiskHealth(Arc<Mutex<Option<String>>>);

impl DiskHealth {
    /// The last failure, while it lasts.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, failure: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }
}

struct Write {
    journal: Journal,
    done: oneshot::Sender<()>,
    _budget: OwnedSemaphorePermit,
}

/// A place in the queue, taken before the engine is touched so that handing over cannot fail or block.
pub(crate) struct Place<'a> {
    slot: mpsc::Permit<'a, Write>,
    budget: OwnedSemaphorePermit,
}

/// Waits until a write is on disk.
pub(crate) struct Durable(oneshot::Receiver<()>);

/// The queue to the thread.
#[derive(Debug)]
pub(crate) struct DiskWriter {
    queue: mpsc::Sender<Write>,
    budget: Arc<Semaphore>,
    health: DiskHealth,
}

impl DiskWriter {
    /// Starts the thread. `publish` is called with the revision that has become durable, before its writers are told.
    pub(crate) fn start(
        file: DataFile,
        publish: impl Fn(Revision) + Send + 'static,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (queue, writes) = mpsc::channel(QUEUE_WRITES_MAX);
        let health = DiskHealth::default();
        let thread_health = health.clone();
        let thread = std::thread::Builder::new()
            .name("store-disk".to_owned())
            .spawn(move || run(file, writes, &thread_health, publish))?;
        let writer = Self { queue, budget: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)), health };
        Ok((writer, thread))
    }

    pub(crate) fn health(&self) -> &DiskHealth {
        &self.health
    }

    /// Waits for a place for a request of about `bytes`.
    pub(crate) async fn place(&self, bytes: usize) -> Result<Place<'_>, EngineError> {
        let bytes = u32::try_from(bytes.clamp(1, QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        let wait = async {
            let budget = Arc::clone(&self.budget).acquire_many_owned(bytes).await;
            let slot = self.queue.reserve().await;
            match (budget, slot) {
                (Ok(budget), Ok(slot)) => Ok(Place { slot, budget }),
                _ => Err(EngineError::Stopped),
            }
        };
        tokio::time::timeout(WRITE_TIMEOUT, wait).await.unwrap_or(Err(EngineError::TooManyRequests))
    }
}

impl Place<'_> {
    /// Hands a journal over. Must happen under the lock the journal was made under, so that the order is the same.
    pub(crate) fn hand_over(self, journal: Journal) -> Durable {
        let (done, waiter) = oneshot::channel();
        self.slot.send(Write { journal, done, _budget: self.budget });
        Durable(waiter)
    }
}

impl Durable {
    /// Waits until the write is on disk. After a timeout it may still get there.
    pub(crate) async fn wait(self) -> Result<(), EngineError> {
        match tokio::time::timeout(WRITE_TIMEOUT, self.0).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(EngineError::Stopped),
            Err(_) => Err(EngineError::Timeout),
        }
    }
}

fn run(mut file: DataFile, mut writes: mpsc::Receiver<Write>, health: &DiskHealth, publish: impl Fn(Revision)) {
    while let Some(first) = writes.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP_WRITES_MAX
            && let Ok(next) = writes.try_recv()
        {
            group.push(next);
        }
        if !commit(&mut file, &group, &writes, health) {
            return;
        }
        if let Some(last) = group.last() {
            publish(last.journal.revision);
        }
        for write in group {
            // A client that went away does not hear that its write is durable.
            let _ = write.done.send(());
        }
    }
}

/// Commits a group, trying again until it succeeds or the store is closed. False if the group is lost.
fn commit(file: &mut DataFile, group: &[Write], writes: &mpsc::Receiver<Write>, health: &DiskHealth) -> bool {
    let journals: Vec<&Journal> =
        group.iter().map(|write| &write.journal).filter(|journal| !journal.is_empty()).collect();
    if journals.is_empty() {
        return true;
    }
    let mut closing_tries = 0;
    let mut outcome = file.commit(&journals);
    while let Err(error) = outcome {
        if health.failure().is_none() {
            tracing::error!(path = %file.path().display(), %error, "store cannot write its data file");
        }
        health.set(Some(error.to_string()));
        if writes.is_closed() {
            closing_tries += 1;
            if closing_tries >= CLOSING_TRIES_MAX {
                return false;
            }
        }
        std::thread::sleep(RETRY_PAUSE);
        // Writing the same journals twice has the same effect as once: all keys of the tables are positions and ids.
        outcome = file.reopen().and_then(|()| file.commit(&journals));
    }
    if health.failure().is_some() {
        tracing::info!(path = %file.path().display(), "store writes its data file again");
        health.set(None);
    }
    true
}
