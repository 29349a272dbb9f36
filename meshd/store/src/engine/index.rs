//! Keys in order, each with the versions that history still needs, and counts that do not need a walk.
//!
//! A sorted list of sorted chunks. Every chunk counts its live keys and remembers the last revision at which one of
//! its keys appeared or vanished. A count at a pinned revision adds up the counters of the chunks that did not change
//! since then and looks inside only the others, so paging through 350,000 keys does not cost a walk of the rest of
//! the range for each page, although every answer carries the total.

use std::sync::Arc;

use super::record::{Position, Record, Revision};
use super::span::KeySpan;

/// A chunk with more keys than this is split in two.
const CHUNK_KEYS_MAX: usize = 256;
/// A chunk with fewer keys than this is joined with its neighbour if both fit into half a chunk.
const CHUNK_KEYS_MIN: usize = 48;

/// All versions of one key, oldest first; `current` is the last.
#[derive(Debug)]
pub(super) struct Entry {
    key: Arc<[u8]>,
    current: Arc<Record>,
    older: Vec<Arc<Record>>,
}

impl Entry {
    /// The version that was the newest at `revision`, unless the key did not exist then.
    fn live_at(&self, revision: Revision) -> Option<&Arc<Record>> {
        self.at(revision).filter(|record| !record.is_tombstone())
    }

    fn at(&self, revision: Revision) -> Option<&Arc<Record>> {
        if self.current.position.main <= revision {
            return Some(&self.current);
        }
        let newer = self.older.partition_point(|record| record.position.main <= revision);
        newer.checked_sub(1).map(|last| &self.older[last])
    }
}

/// What [`KeyIndex::insert`] replaced.
pub(super) struct Replaced {
    /// The version before, a tombstone included.
    pub(super) previous: Option<Arc<Record>>,
}

#[derive(Debug, Default)]
struct Chunk {
    entries: Vec<Entry>,
    live: usize,
    /// Last revision at which a key of this chunk appeared or vanished.
    changed: Revision,
}

impl Chunk {
    fn lower_bound(&self, key: &[u8]) -> usize {
        self.entries.partition_point(|entry| &*entry.key < key)
    }

    fn recount(&mut self) {
        self.live = self.entries.iter().filter(|entry| !entry.current.is_tombstone()).count();
    }
}

/// The ordered index of all keys.
#[derive(Debug, Default)]
pub(super) struct KeyIndex {
    chunks: Vec<Chunk>,
}

impl KeyIndex {
    /// Number of keys that exist now.
    pub(super) fn live_keys(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.live).sum()
    }

    /// The version of `key` at `revision`, unless the key did not exist then.
    pub(super) fn get(&self, key: &[u8], revision: Revision) -> Option<&Arc<Record>> {
        self.entry(key)?.live_at(revision)
    }

    /// The newest version of `key`, unless the key does not exist.
    pub(super) fn current(&self, key: &[u8]) -> Option<&Arc<Record>> {
        self.entry(key).map(|entry| &entry.current).filter(|record| !record.is_tombstone())
    }

    /// The shared key bytes, so that a new version of a known key does not copy them.
    pub(super) fn shared_key(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.entry(key).map(|entry| Arc::clone(&entry.key))
    }

    /// Adds a version that is newer than all others of its key.
    pub(super) fn insert(&mut self, record: Arc<Record>) -> Replaced {
        if self.chunks.is_empty() {
            self.chunks.push(Chunk::default());
        }
        let at = self.chunk_of(&record.key);
        let chunk = &mut self.chunks[at];
        let slot = chunk.lower_bound(&record.key);
        let alive = !record.is_tombstone();
        let main = record.position.main;
        let known = chunk.entries.get(slot).is_some_and(|entry| entry.key == record.key);
        if known {
            let entry = &mut chunk.entries[slot];
            let was_alive = !entry.current.is_tombstone();
            let previous = std::mem::replace(&mut entry.current, record);
            entry.older.push(Arc::clone(&previous));
            if was_alive != alive {
                chunk.live = if alive { chunk.live + 1 } else { chunk.live - 1 };
                chunk.changed = main;
            }
            return Replaced { previous: Some(previous) };
        }
        chunk.entries.insert(slot, Entry { key: Arc::clone(&record.key), current: record, older: Vec::new() });
        chunk.live += usize::from(alive);
        chunk.changed = main;
        if chunk.entries.len() > CHUNK_KEYS_MAX {
            self.split(at);
        }
        Replaced { previous: None }
    }

    /// Drops what the version at `position` of `key` made obsolete: all older versions, and itself if it is a
    /// tombstone. Returns the dropped versions.
    pub(super) fn prune(&mut self, key: &[u8], position: Position) -> Vec<Arc<Record>> {
        let at = self.chunk_of(key);
        let Some(chunk) = self.chunks.get_mut(at) else {
            return Vec::new();
        };
        let slot = chunk.lower_bound(key);
        let Some(entry) = chunk.entries.get_mut(slot).filter(|entry| &*entry.key == key) else {
            return Vec::new();
        };
        let obsolete = entry.older.partition_point(|record| {
            record.position < position || (record.position == position && record.is_tombstone())
        });
        let mut dropped: Vec<Arc<Record>> = entry.older.drain(..obsolete).collect();
        if entry.older.is_empty() {
            entry.older = Vec::new();
            if entry.current.is_tombstone() && entry.current.position <= position {
                dropped.push(Arc::clone(&entry.current));
                chunk.entries.remove(slot);
                self.join(at);
            }
        }
        dropped
    }

    /// Visits the versions at `revision` of the keys in `span`, in key order, until `visit` says stop.
    pub(super) fn scan(&self, span: &KeySpan, revision: Revision, mut visit: impl FnMut(&Arc<Record>) -> bool) {
        let first = self.chunk_of(&span.start);
        for (offset, chunk) in self.chunks.iter().skip(first).enumerate() {
            let from = if offset == 0 { chunk.lower_bound(&span.start) } else { 0 };
            for entry in &chunk.entries[from..] {
                if span.end.as_deref().is_some_and(|end| &*entry.key >= end) {
                    return;
                }
                if let Some(record) = entry.live_at(revision)
                    && !visit(record)
                {
                    return;
                }
            }
        }
    }

    /// Number of keys in `span` that existed at `revision`.
    pub(super) fn count(&self, span: &KeySpan, revision: Revision) -> usize {
        self.count_visiting(span, revision).0
    }

    /// The count, and how many keys had to be looked at for it.
    fn count_visiting(&self, span: &KeySpan, revision: Revision) -> (usize, usize) {
        let first = self.chunk_of(&span.start);
        let (mut total, mut visited) = (0, 0);
        for (offset, chunk) in self.chunks.iter().skip(first).enumerate() {
            let from = if offset == 0 { chunk.lower_bound(&span.start) } else { 0 };
            // Only the last chunk of the span can end inside.
            let last = span.end.as_deref().filter(|end| chunk.entries.last().is_some_and(|entry| &*entry.key >= *end));
            let to = last.map_or(chunk.entries.len(), |end| chunk.lower_bound(end));
            let whole = from == 0 && last.is_none();
            total += if whole && chunk.changed <= revision {
                chunk.live
            } else {
                let inside = chunk.entries.get(from..to).unwrap_or_default();
                visited += inside.len();
                inside.iter().filter(|entry| entry.live_at(revision).is_some()).count()
            };
            if last.is_some() {
                break;
            }
        }
        (total, visited)
    }

    fn entry(&self, key: &[u8]) -> Option<&Entry> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        chunk.entries.get(chunk.lower_bound(key)).filter(|entry| &*entry.key == key)
    }

    /// The chunk that holds `key` or would hold it: the last one whose first key is not beyond it.
    fn chunk_of(&self, key: &[u8]) -> usize {
        self.chunks
            .partition_point(|chunk| chunk.entries.first().is_some_and(|entry| &*entry.key <= key))
            .saturating_sub(1)
    }

    fn split(&mut self, at: usize) {
        // Keys that arrive in order fill a chunk and leave it full instead of half empty.
        let middle = if at + 1 == self.chunks.len() { CHUNK_KEYS_MAX * 7 / 8 } else { CHUNK_KEYS_MAX / 2 };
        let chunk = &mut self.chunks[at];
        let mut upper = Chunk { entries: chunk.entries.split_off(middle), live: 0, changed: chunk.changed };
        chunk.recount();
        upper.recount();
        self.chunks.insert(at + 1, upper);
    }

    fn join(&mut self, at: usize) {
        let own = self.chunks[at].entries.len();
        if own == 0 {
            self.chunks.remove(at);
            return;
        }
        if own >= CHUNK_KEYS_MIN || at + 1 >= self.chunks.len() {
            return;
        }
        if own + self.chunks[at + 1].entries.len() <= CHUNK_KEYS_MAX / 2 {
            let upper = self.chunks.remove(at + 1);
            let chunk = &mut self.chunks[at];
            chunk.entries.extend(upper.entries);
            chunk.live += upper.live;
            chunk.changed = chunk.changed.max(upper.changed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::record::LeaseId;

    fn record(key: u32, main: i64, alive: bool) -> Arc<Record> {
        Arc::new(Record {
            key: format!("key-{key:06}").into_bytes().into(),
            value: Box::default(),
            position: Position { main: Revision(main), sub: 0 },
            create: Revision(main),
            version: i64::from(alive),
            lease: LeaseId::NONE,
        })
    }

    fn span(from: u32, to: u32) -> KeySpan {
        KeySpan { start: format!("key-{from:06}").into_bytes(), end: Some(format!("key-{to:06}").into_bytes()) }
    }

    #[test]
    fn counts_at_any_revision_agree_with_a_walk() {
        let mut index = KeyIndex::default();
        let mut state = 12345_u64;
        let mut alive = std::collections::BTreeMap::new();
        for main in 2..6000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let key = (state >> 33) as u32 % 1500;
            let was_alive = alive.get(&key).copied().unwrap_or(false);
            let put = !was_alive || state & 1 == 0;
            index.insert(record(key, main, put));
            alive.insert(key, put);
        }
        assert_eq!(index.live_keys(), alive.values().filter(|alive| **alive).count());
        for revision in [1, 2, 100, 2999, 5900, 5999, 7000] {
            for (from, to) in [(0, 2000), (10, 11), (3, 700), (700, 700), (800, 500), (1499, 1500)] {
                let mut walked = 0;
                index.scan(&span(from, to), Revision(revision), |_| {
                    walked += 1;
                    true
                });
                assert_eq!(index.count(&span(from, to), Revision(revision)), walked, "{from}..{to} at {revision}");
            }
        }
    }

    #[test]
    fn a_count_looks_only_at_what_changed_and_at_the_borders() {
        let mut index = KeyIndex::default();
        for key in 0..350_000 {
            index.insert(record(key, 2, true));
        }
        for key in (0..1_000).map(|number| number * 17) {
            index.insert(record(key, 3, true));
        }
        index.insert(record(200_000, 4, false));
        let borders = 2 * CHUNK_KEYS_MAX;
        for revision in [2, 3] {
            let (total, visited) = index.count_visiting(&span(1_234, 349_000), Revision(revision));
            assert_eq!(total, 349_000 - 1_234);
            assert!(visited <= borders + CHUNK_KEYS_MAX, "{visited} keys were looked at");
        }
        let (total, visited) = index.count_visiting(&span(1_234, 349_000), Revision(4));
        assert_eq!(total, 349_000 - 1_234 - 1);
        assert!(visited <= borders, "{visited} keys were looked at");
    }

    #[test]
    fn pruning_keeps_the_newest_and_removes_deleted_keys() {
        let mut index = KeyIndex::default();
        for main in 2..6 {
            index.insert(record(1, main, true));
        }
        let at = |main| Position { main: Revision(main), sub: 0 };
        let key = b"key-000001";
        assert_eq!(index.prune(key, at(4)).len(), 2);
        assert!(index.get(key, Revision(3)).is_none());
        assert_eq!(index.get(key, Revision(4)).map(|record| record.position.main), Some(Revision(4)));
        index.insert(record(1, 6, false));
        assert!(index.current(key).is_none());
        assert_eq!(index.prune(key, at(6)).len(), 3);
        assert!(index.chunks.is_empty());
    }

    #[test]
    fn removing_everything_leaves_nothing() {
        let mut index = KeyIndex::default();
        for key in 0..2000 {
            index.insert(record(key, 2, true));
            index.insert(record(key, 3, false));
        }
        for key in (0..2000).rev() {
            let dropped = index.prune(format!("key-{key:06}").as_bytes(), Position { main: Revision(3), sub: 0 });
            assert_eq!(dropped.len(), 2);
        }
        assert_eq!(index.live_keys(), 0);
        assert!(index.chunks.is_empty());
    }
}
