//! The registry of all watches and their progress.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::index::WatchIndex;
use crate::engine::{Engine, KeySpan, Record, Revision};

/// Most revisions a watch remembers as concerning it; beyond that it reads the history.
const PENDING_REVISIONS_MAX: usize = 64;
/// A batch of events is closed at the first revision boundary after this many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// A batch is closed at the first revision boundary after this many events.
const BATCH_EVENTS: usize = 1_000;
/// Most changes of the history looked at for one batch, so that a watch of rare keys does not hold the engine.
const BATCH_SCAN_MAX: usize = 10_000;

/// Bounds of what clients may hold; beyond them a stream or a watch is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WatchLimits {
    /// Watches of one stream.
    pub(crate) per_stream: usize,
    /// Watches of all streams of one user.
    pub(crate) per_user: usize,
    /// Streams of one user.
    pub(crate) streams_per_user: usize,
}

/// What the streams of one user hold.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    streams: usize,
    watches: usize,
}

/// One client stream that carries watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u64);

/// One watch of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WatchKey {
    pub(super) stream: StreamId,
    pub(super) watch: i64,
}

/// What a client asked for.
#[derive(Clone, Debug)]
pub(crate) struct WatchSpec {
    pub(crate) span: KeySpan,
    /// First revision to report; none means from now on.
    pub(crate) start: Option<Revision>,
    pub(crate) prev_kv: bool,
    pub(crate) progress: bool,
    pub(crate) fragment: bool,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
}

/// Answer to a new watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) id: i64,
    pub(crate) revision: Revision,
}

/// Why a watch was not created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cancelled {
    #[error("mvcc: watcher range is empty")]
    EmptySpan,
    #[error("mvcc: duplicate watch ID provided on the WatchStream")]
    DuplicateId,
    #[error("etcdserver: too many requests")]
    TooMany,
}

/// What a watch has to be told next.
#[derive(Debug)]
pub(crate) enum Batch {
    /// Changes, with the version before each if the watch wants it. All changes of a revision are in one batch.
    Events { watch: i64, revision: Revision, events: Vec<(Arc<Record>, Option<Arc<Record>>)>, fragment: bool },
    /// The watch fell behind the history and is gone.
    Compacted { watch: i64, revision: Revision, compacted: Revision },
}

#[derive(Debug)]
struct Watch {
    spec: WatchSpec,
    /// First revision not yet looked at.
    next: Revision,
    /// Revisions from `next` on that concern the watch, unless `scan`.
    pending: VecDeque<Revision>,
    /// The history has to be read from `next` on.
    scan: bool,
    /// Something was sent since the last progress round.
    active: bool,
}

#[derive(Debug)]
struct Stream {
    user: Arc<str>,
    watches: BTreeMap<i64, Watch>,
    /// Watches with something to tell.
    dirty: BTreeSet<i64>,
    next_id: i64,
}

/// All watches of all streams.
#[derive(Debug)]
pub(crate) struct Hub {
    limits: WatchLimits,
    streams: BTreeMap<StreamId, Stream>,
    /// Users with streams.
    users: BTreeMap<Arc<str>, Held>,
    index: WatchIndex,
    published: Revision,
    next_stream: u64,
    watches: usize,
}

impl Hub {
    /// No watches, at the published revision of the engine.
    pub(crate) fn new(published: Revision, limits: WatchLimits) -> Self {
        Self {
            limits,
            streams: BTreeMap::new(),
            users: BTreeMap::new(),
            index: WatchIndex::default(),
            published,
            next_stream: 0,
            watches: 0,
        }
    }

    /// Number of watches.
    pub(crate) fn len(&self) -> usize {
        self.watches
    }

    /// The revision up to which watches have been marked.
    pub(crate) fn published(&self) -> Revision {
        self.published
    }

    /// Opens a stream of a user.
    pub(crate) fn open(&mut self, user: &Arc<str>) -> Result<StreamId, Cancelled> {
        let held = self.users.entry(Arc::clone(user)).or_default();
        if held.streams >= self.limits.streams_per_user {
            return Err(Cancelled::TooMany);
        }
        held.streams += 1;
        let id = StreamId(self.next_stream);
        self.next_stream += 1;
        let user = Arc::clone(user);
        self.streams.insert(id, Stream { user, watches: BTreeMap::new(), dirty: BTreeSet::new(), next_id: 0 });
        Ok(id)
    }

    /// Forgets a stream with all its watches.
    pub(crate) fn close(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        if let Some(held) = self.users.get_mut(&stream.user) {
            held.streams -= 1;
            held.watches -= stream.watches.len();
            if held.streams == 0 {
                self.users.remove(&stream.user);
            }
        }
        for (watch, state) in stream.watches {
            self.index.remove(&state.spec.span, WatchKey { stream: id, watch });
            self.watches -= 1;
        }
    }

    /// Adds a watch; `id` 0 lets the store choose a number.
    pub(crate) fn create(&mut self, stream_id: StreamId, id: i64, spec: WatchSpec) -> Result<Created, Cancelled> {
        if spec.span.is_empty() {
            return Err(Cancelled::EmptySpan);
        }
        let published = self.published;
        // A stream that was closed meanwhile has nobody who could be told.
        let stream = self.streams.get_mut(&stream_id).ok_or(Cancelled::TooMany)?;
        let held = self.users.entry(Arc::clone(&stream.user)).or_default();
        if stream.watches.len() >= self.limits.per_stream || held.watches >= self.limits.per_user {
            return Err(Cancelled::TooMany);
        }
        let id = if id == 0 {
            while stream.watches.contains_key(&stream.next_id) {
                stream.next_id += 1;
            }
            stream.next_id += 1;
            stream.next_id - 1
        } else {
            id
        };
        if stream.watches.contains_key(&id) {
            return Err(Cancelled::DuplicateId);
        }
        let next = spec.start.unwrap_or_else(|| published.next());
        let scan = next <= published;
        if scan {
            stream.dirty.insert(id);
        }
        let key = WatchKey { stream: stream_id, watch: id };
        self.index.insert(&spec.span, key);
        self.watches += 1;
        held.watches += 1;
        stream.watches.insert(id, Watch { spec, next, pending: VecDeque::new(), scan, active: true });
        Ok(Created { id, revision: published })
    }

    /// Removes a watch; false if there is none with that number.
    pub(crate) fn cancel(&mut self, stream_id: StreamId, id: i64) -> bool {
        let Some(stream) = self.streams.get_mut(&stream_id) else {
            return false;
        };
        let Some(watch) = stream.watches.remove(&id) else {
            return false;
        };
        stream.dirty.remove(&id);
        if let Some(held) = self.users.get_mut(&stream.user) {
            held.watches -= 1;
        }
        let key = WatchKey { stream: stream_id, watch: id };
        self.index.remove(&watch.spec.span, key);
        self.watches -= 1;
        true
    }

    /// The watches of a stream and what they look at.
    pub(crate) fn spans(&self, stream_id: StreamId) -> Vec<(i64, KeySpan)> {
        let watches = self.streams.get(&stream_id).map(|stream| &stream.watches);
        let watches = watches.into_iter().flatten();
        watches.map(|(id, watch)| (*id, watch.spec.span.clone())).collect()
    }

    /// Marks the watches that newly published changes concern and returns the streams that have to be woken.
    pub(crate) fn publish(&mut self, engine: &Engine) -> BTreeSet<StreamId> {
        let mut woken = BTreeSet::new();
        let streams = &mut self.streams;
        let index = &self.index;
        for record in engine.changes_from(self.published.next()) {
            let revision = record.position.main;
            index.matches(&record.key, |key| {
                let Some(stream) = streams.get_mut(&key.stream) else {
                    return;
                };
                let Some(watch) = stream.watches.get_mut(&key.watch) else {
                    return;
                };
                if watch.mark(revision) {
                    stream.dirty.insert(key.watch);
                    woken.insert(key.stream);
                }
            });
        }
        self.published = engine.published();
        woken
    }

    /// The watches of a stream that have something to tell.
    pub(crate) fn dirty(&self, stream_id: StreamId) -> Vec<i64> {
        let dirty = self.streams.get(&stream_id).map(|stream| &stream.dirty);
        dirty.into_iter().flatten().copied().collect()
    }

    /// Takes the next batch of one watch. `None` if there is nothing to tell after all.
    pub(crate) fn take(&mut self, stream_id: StreamId, id: i64, engine: &Engine) -> Option<Batch> {
        let published = self.published;
        let stream = self.streams.get_mut(&stream_id)?;
        let watch = stream.watches.get_mut(&id)?;
        let compacted = engine.compacted();
        let oldest = if watch.scan { Some(watch.next) } else { watch.pending.front().copied() };
        if oldest.is_some_and(|oldest| oldest < compacted) {
            self.cancel(stream_id, id);
            return Some(Batch::Compacted { watch: id, revision: published, compacted });
        }
        let events = watch.collect(engine, published);
        if !watch.scan && watch.pending.is_empty() {
            stream.dirty.remove(&id);
        }
        if events.is_empty() {
            return None;
        }
        watch.active = true;
        Some(Batch::Events { watch: id, revision: published, events, fragment: watch.spec.fragment })
    }

    /// Watches of a stream that want progress reports and have been silent since the last call, and the revision that
    /// is true for all of them.
    pub(crate) fn silent(&mut self, stream_id: StreamId) -> (Revision, Vec<i64>) {
        let mut silent = Vec::new();
        if let Some(stream) = self.streams.get_mut(&stream_id) {
            for (id, watch) in &mut stream.watches {
                let was_active = std::mem::take(&mut watch.active);
                // A watch whose start is still to come must not be moved back by a report.
                if watch.spec.progress
                    && !was_active
                    && !stream.dirty.contains(id)
                    && watch.next <= self.published.next()
                {
                    silent.push(*id);
                }
            }
        }
        (self.published, silent)
    }
}

impl Watch {
    /// Remembers that a change at `revision` concerns this watch; false if it does not because it starts later.
    fn mark(&mut self, revision: Revision) -> bool {
        if revision < self.next {
            return false;
        }
        if self.scan || self.pending.back() == Some(&revision) {
            return true;
        }
        if self.pending.len() >= PENDING_REVISIONS_MAX {
            self.next = self.pending.front().copied().unwrap_or(revision);
            self.pending = VecDeque::new();
            self.scan = true;
        } else {
            self.pending.push_back(revision);
        }
        true
    }

    /// Takes events up to `published`, whole revisions, about a batch full.
    fn collect(&mut self, engine: &Engine, published: Revision) -> Vec<(Arc<Record>, Option<Arc<Record>>)> {
        let mut events = Vec::new();
        let mut bytes = 0;
        if !self.scan {
            while let Some(revision) = self.pending.front().copied() {
                if bytes >= BATCH_BYTES || events.len() >= BATCH_EVENTS {
                    return events;
                }
                let changes = engine.changes_from(revision);
                for record in changes.take_while(|record| record.position.main == revision) {
                    self.add(engine, record, &mut events, &mut bytes);
                }
                self.pending.pop_front();
                self.next = revision.next();
            }
            return events;
        }
        let mut last = None;
        for (scanned, record) in engine.changes_from(self.next).enumerate() {
            let revision = record.position.main;
            if revision > published {
                break;
            }
            let boundary = last != Some(revision);
            if boundary && (bytes >= BATCH_BYTES || events.len() >= BATCH_EVENTS || scanned >= BATCH_SCAN_MAX) {
                self.next = revision;
                return events;
            }
            last = Some(revision);
            self.add(engine, record, &mut events, &mut bytes);
        }
        self.next = self.next.max(published.next());
        self.scan = false;
        events
    }

    fn add(
        &self,
        engine: &Engine,
        record: &Arc<Record>,
        events: &mut Vec<(Arc<Record>, Option<Arc<Record>>)>,
        bytes: &mut usize,
    ) {
        let filtered = if record.is_tombstone() { self.spec.no_delete } else { self.spec.no_put };
        if filtered || !self.spec.span.contains(&record.key) {
            return;
        }
        let before = if self.spec.prev_kv {
            engine.version_at(&record.key, record.position.main.previous()).cloned()
        } else {
            None
        };
        *bytes += record.cost_bytes() + before.as_ref().map_or(0, |before| before.cost_bytes());
        events.push((Arc::clone(record), before));
    }
}

#[cfg(test)]
mod tests;
