//! One write: one revision, any number of changes.

use std::sync::Arc;

use super::Engine;
use super::record::{LeaseId, Position, Record, Revision};
use super::span::KeySpan;

/// A write in progress. It sees its own changes.
pub(super) struct Write<'a> {
    engine: &'a mut Engine,
    changes: u32,
}

impl Engine {
    pub(super) fn begin_write(&mut self) -> Write<'_> {
        Write { engine: self, changes: 0 }
    }
}

impl Write<'_> {
    /// The revision the changes of this write carry.
    pub(super) fn target(&self) -> Revision {
        self.engine.revision.next()
    }

    /// The revision as seen from inside: the target once something changed.
    pub(super) fn revision(&self) -> Revision {
        if self.changes > 0 { self.target() } else { self.engine.revision }
    }

    pub(super) fn engine(&self) -> &Engine {
        self.engine
    }

    pub(super) fn current(&self, key: &[u8]) -> Option<&Arc<Record>> {
        self.engine.index.current(key)
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8], lease: LeaseId) {
        let previous = self.current(key);
        let (create, version) = previous.map_or((self.target(), 1), |record| (record.create, record.version + 1));
        let record = Record {
            key: self.engine.index.shared_key(key).unwrap_or_else(|| key.into()),
            value: value.into(),
            position: self.next_position(),
            create,
            version,
            lease,
        };
        self.add(record);
    }

    /// Deletes a key if it exists.
    pub(super) fn delete(&mut self, key: &[u8]) {
        let Some(previous) = self.current(key) else {
            return;
        };
        let record = Record {
            key: Arc::clone(&previous.key),
            value: Box::default(),
            position: self.next_position(),
            create: Revision(0),
            version: 0,
            lease: LeaseId::NONE,
        };
        self.add(record);
    }

    /// Deletes all keys of a span and returns their last versions, in order.
    pub(super) fn delete_span(&mut self, span: &KeySpan) -> Vec<Arc<Record>> {
        let mut deleted = Vec::new();
        self.engine.index.scan(span, self.target(), |record| {
            deleted.push(Arc::clone(record));
            true
        });
        for record in &deleted {
            self.delete(&record.key);
        }
        deleted
    }

    /// Ends the write; see the `Drop` implementation.
    pub(super) fn finish(self) {}

    fn next_position(&self) -> Position {
        Position { main: self.target(), sub: self.changes }
    }

    fn add(&mut self, record: Record) {
        let record = Arc::new(record);
        self.changes += 1;
        self.engine.journal.records.push(Arc::clone(&record));
        self.engine.insert(record);
    }
}

/// The revision moves if something changed, on whatever path the write ends: no later write may carry the same one.
impl Drop for Write<'_> {
    fn drop(&mut self) {
        if self.changes > 0 {
            self.engine.revision = self.target();
        }
    }
}
