//! The log: records as they happen, in files that follow each other.

use std::{
    fmt,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{MrtError, create, make_folder, name_now, prune};
use crate::config::error::chain;

/// The kind in names.
const KIND: &str = "updates";
/// What a file that is being written ends with, after its final name.
const OPEN: &str = "open";
/// Octets that may wait for the disk. The thread holds as many again while it writes.
pub(super) const BUFFER_OCTETS_MAX: usize = 4 * 1024 * 1024;
/// Records wait this long at most before they are written.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// As many octets are written without waiting.
const FLUSH_OCTETS: usize = 256 * 1024;
/// After a failure the disk is left alone for this long.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Where the log goes and how large it may grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The folder; it is made if it is missing.
    pub folder: PathBuf,
    /// A file that would grow beyond this is followed by another.
    pub rotate_octets: u64,
    /// So is one that is this old.
    pub rotate_after: Duration,
    /// Finished files that are kept.
    pub files_max: usize,
}

/// The log for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LogStatus {
    /// Octets written.
    pub written_octets: u64,
    /// Files finished.
    pub files: u64,
    /// Records that were lost because the disk could not follow, or failed.
    pub lost: u64,
    /// What keeps records from being written.
    pub problem: Option<String>,
}

#[derive(Default)]
struct Inner {
    buffer: Vec<u8>,
    /// Records in it.
    waiting: u64,
    stopping: bool,
    status: LogStatus,
}

struct Shared {
    inner: Mutex<Inner>,
    wake: Condvar,
}

impl Shared {
    /// Nobody panics while holding it but a caller's `write`, whose half record is cut off again by the next one's length.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log. Dropped, what waits is written and the file gets its final name.
pub struct Log {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl Log {
    /// Starts the thread. Once the log `before` this one has written what it had, the thread makes the folder and gives what a
    /// crash left behind its final name; until then records wait.
    pub fn start(settings: LogSettings, before: Option<Self>) -> Result<Self, MrtError> {
        let writer = Writer::new(settings);
        let shared = Arc::clone(&writer.shared);
        let thread = std::thread::Builder::new()
            .name("mrt-log".to_owned())
            .spawn(move || {
                drop(before);
                writer.run();
            })
            .map_err(MrtError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has the thread write what waits and end, without waiting for that.
    pub fn stop(&self) {
        self.shared.lock().stopping = true;
        self.shared.wake.notify_one();
    }

    /// Queues the record that `write` appends; false when it was lost for want of room.
    pub fn record(&self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut inner = self.shared.lock();
        let before = inner.buffer.len();
        write(&mut inner.buffer);
        let fits = inner.buffer.len() <= BUFFER_OCTETS_MAX;
        if fits {
            inner.waiting += 1;
        } else {
            inner.buffer.truncate(before);
            inner.status.lost += 1;
        }
        let worth_writing = before < FLUSH_OCTETS && inner.buffer.len() >= FLUSH_OCTETS;
        drop(inner);
        if worth_writing {
            self.shared.wake.notify_one();
        }
        fits
    }

    /// How it goes.
    #[must_use]
    pub fn status(&self) -> LogStatus {
        self.shared.lock().status.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!(?panic, "MRT thread panicked");
        }
    }
}

/// The name of a file while it is being written.
fn open_name(finished: &Path) -> PathBuf {
    let mut name = finished.as_os_str().to_owned();
    name.push(".");
    name.push(OPEN);
    PathBuf::from(name)
}

/// A file that is being written.
struct Current {
    file: File,
    finished: PathBuf,
    octets: u64,
    since: Instant,
}

/// The thread's side.
pub(super) struct Writer {
    settings: LogSettings,
    shared: Arc<Shared>,
    file: Option<Current>,
    /// The folder is there, and nothing in it is left over.
    is_prepared: bool,
}

impl Writer {
    pub(super) fn new(settings: LogSettings) -> Self {
        let shared = Arc::new(Shared { inner: Mutex::default(), wake: Condvar::new() });
        Self { settings, shared, file: None, is_prepared: false }
    }

    fn run(mut self) {
        let mut writing = Vec::new();
        loop {
            let (count, stopping) = {
                let inner = self.shared.lock();
                let ready = |inner: &mut Inner| inner.buffer.len() < FLUSH_OCTETS && !inner.stopping;
                let waited = self.shared.wake.wait_timeout_while(inner, FLUSH_INTERVAL, ready);
                let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
                writing.clear();
                std::mem::swap(&mut writing, &mut inner.buffer);
                (std::mem::take(&mut inner.waiting), inner.stopping)
            };
            let outcome = self.write(&writing);
            let failed = outcome.is_err();
            self.note(outcome, writing.len() as u64, count);
            if stopping {
                let outcome = if failed { self.give_up() } else { self.finish() };
                self.note(outcome, 0, 0);
                return;
            }
            if failed {
                let outcome = self.give_up();
                self.note(outcome, 0, 0);
                self.rest();
            }
        }
    }

    /// Waits before the next try, and no longer than we are wanted.
    fn rest(&self) {
        let inner = self.shared.lock();
        // Poisoned or not, the time is over or we are stopping.
        let _waited = self.shared.wake.wait_timeout_while(inner, RETRY_INTERVAL, |inner| !inner.stopping);
    }

    fn note(&self, outcome: Result<(), MrtError>, octets: u64, records: u64) {
        let mut inner = self.shared.lock();
        match outcome {
            Ok(()) => {
                inner.status.written_octets += octets;
                if octets > 0 {
                    inner.status.problem = None;
                }
            }
            Err(error) => {
                inner.status.lost += records;
                let problem = chain(&error);
                if inner.status.problem.as_deref() != Some(&problem) {
                    tracing::warn!(problem, "MRT log is not written");
                }
                inner.status.problem = Some(problem);
            }
        }
    }

    pub(super) fn write(&mut self, records: &[u8]) -> Result<(), MrtError> {
        if !self.is_prepared {
            self.prepare()?;
            self.shared.lock().status.problem = None;
        }
        let length = records.len() as u64;
        let full = |file: &Current| {
            file.octets > 0
                && (file.octets + length > self.settings.rotate_octets
                    || file.since.elapsed() >= self.settings.rotate_after)
        };
        if self.file.as_ref().is_some_and(full) {
            self.finish()?;
        }
        if records.is_empty() {
            return Ok(());
        }
        let current = match &mut self.file {
            Some(current) => current,
            none => {
                let finished = name_now(&self.settings.folder, KIND);
                let open = open_name(&finished);
                let file = create(&open)?;
                none.insert(Current { file, finished, octets: 0, since: Instant::now() })
            }
        };
        current.file.write_all(records).map_err(MrtError::file("write to", &open_name(&current.finished)))?;
        current.octets += length;
        Ok(())
    }

    /// Makes the folder, gives what was left in it its final name, and removes what is too much.
    fn prepare(&mut self) -> Result<(), MrtError> {
        let folder = &self.settings.folder;
        make_folder(folder)?;
        for entry in fs::read_dir(folder).map_err(MrtError::file("list", folder))? {
            let path = entry.map_err(MrtError::file("list", folder))?.path();
            let left_over = path.extension().is_some_and(|extension| extension == OPEN)
                && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(KIND));
            if !left_over {
                continue;
            }
            if fs::metadata(&path).map_err(MrtError::file("look at", &path))?.len() == 0 {
                fs::remove_file(&path).map_err(MrtError::file("remove", &path))?;
            } else {
                fs::rename(&path, path.with_extension("")).map_err(MrtError::file("rename", &path))?;
            }
        }
        prune(folder, KIND, self.settings.files_max)?;
        self.is_prepared = true;
        Ok(())
    }

    /// After a failure: keeps the records that were written whole, so that trying again leaves no more files than a log that
    /// does not fail.
    pub(super) fn give_up(&mut self) -> Result<(), MrtError> {
        self.is_prepared = false;
        if let Some(Current { file, finished, octets, .. }) = self.file.take() {
            file.set_len(octets).map_err(MrtError::file("shorten", &open_name(&finished)))?;
        }
        self.prepare()
    }

    /// A write that fails half way.
    #[cfg(test)]
    pub(super) fn tear(&mut self, octets: &[u8]) {
        self.file.as_mut().expect("a file").file.write_all(octets).expect("written");
    }

    fn finish(&mut self) -> Result<(), MrtError> {
        let Some(current) = self.file.take() else { return Ok(()) };
        let open = open_name(&current.finished);
        current.file.sync_all().map_err(MrtError::file("write to", &open))?;
        fs::rename(&open, &current.finished).map_err(MrtError::file("rename", &open))?;
        self.shared.lock().status.files += 1;
        prune(&self.settings.folder, KIND, self.settings.files_max)
    }
}
