//! The engine: every key with its versions, the history of changes, and the leases. No clock, no disk, no socket.
//!
//! A write makes one revision, whatever the number of keys it touches. The newest version of each key lives in the
//! index; versions that were replaced stay there too until compaction reaches the write that replaced them. The
//! history is the list of all changes above the compacted revision, in order: watches are fed from it, so a watch
//! that lags needs no queue of its own.
//!
//! Three revisions matter. `revision` is the newest applied write. `published` is the newest one that is on disk;
//! readers and watches see nothing beyond it, because a revision that could be lost in a crash and then be given out
//! again with other content would leave a reader silently wrong. `compacted` is the oldest one that can be read.
//!
//! Whatever has to reach the disk is collected in a [`Journal`] that the caller takes after each operation.
//!
//! Not pretty: requests and answers are the generated wire types, since a second set of the same structs would only
//! be copied back and forth. Answers carry a header with nothing but the revision; the server fills in the rest.

mod error;
mod index;
mod lease;
mod measure;
mod range;
mod record;
mod span;
mod txn;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbLeaseGrantRequest, PbLeaseGrantResponse, PbResponseHeader,
};

pub use error::EngineError;
pub use lease::{LEASE_TTL_S_MAX, LEASE_TTL_S_MIN, LeaseView};
pub use range::RangeAnswer;
pub use record::{LeaseId, Position, Record, Revision};
pub use span::KeySpan;
pub use txn::{ReadTxnAnswer, spans_of_txn};

use index::KeyIndex;
use lease::Leases;

/// Default bound of the memory that replaced versions may take.
pub const HISTORY_BYTES_MAX: usize = 64 << 20;
/// Default bound of the number of changes kept for watches and reads in the past.
pub const HISTORY_ENTRIES_MAX: usize = 500_000;
/// Default bound of the memory of all current versions; writes beyond it are refused.
pub const LIVE_BYTES_MAX: usize = 1 << 30;
/// Default bound of one request, as in etcd.
pub const REQUEST_BYTES_MAX: usize = 3 << 19;
/// Default bound of the operations in one transaction, as in etcd.
pub const TXN_OPS_MAX: usize = 128;
/// Default bound of the number of leases.
pub const LEASES_MAX: usize = 100_000;

/// Automatic compaction goes down to this share of the bound (in sixteenths), so that it does not run at every write.
const HISTORY_LOW_WATER_16THS: usize = 12;
/// Most changes one write drops from the history, so that no write pays for all that came before it.
const TRIM_RECORDS_MAX: usize = 2_048;

/// Bounds of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory of replaced versions and tombstones, in bytes.
    pub history_bytes_max: usize,
    /// Changes kept in the history.
    pub history_entries_max: usize,
    /// Memory of current versions, in bytes.
    pub live_bytes_max: usize,
    /// Encoded size of one request, in bytes.
    pub request_bytes_max: usize,
    /// Operations in one transaction.
    pub txn_ops_max: usize,
    /// Leases at one time.
    pub leases_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            history_bytes_max: HISTORY_BYTES_MAX,
            history_entries_max: HISTORY_ENTRIES_MAX,
            live_bytes_max: LIVE_BYTES_MAX,
            request_bytes_max: REQUEST_BYTES_MAX,
            txn_ops_max: TXN_OPS_MAX,
            leases_max: LEASES_MAX,
        }
    }
}

/// A lease that came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// Granted for so many seconds.
    Granted(LeaseId, i64),
    /// Revoked or run out.
    Gone(LeaseId),
}

/// What has to reach the disk after an operation, all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// New versions, in order.
    pub records: Vec<Arc<Record>>,
    /// Versions compaction dropped.
    pub removed: Vec<Position>,
    /// Leases, in order.
    pub leases: Vec<LeaseChange>,
    /// The compacted revision, if it moved.
    pub compacted: Option<Revision>,
    /// The revision after the operation.
    pub revision: Revision,
}

impl Journal {
    /// True if nothing has to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.removed.is_empty() && self.leases.is_empty() && self.compacted.is_none()
    }
}

/// What was on disk.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Newest revision.
    pub revision: Revision,
    /// Compacted revision.
    pub compacted: Revision,
    /// All records, by position.
    pub records: Vec<Record>,
    /// All leases with their granted seconds.
    pub leases: Vec<(LeaseId, i64)>,
}

/// Why what was on disk cannot be a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Records out of order or beyond the newest revision.
    #[error("record at revision {0} does not fit into the history")]
    Misplaced(Revision),
    /// A revision before the first one.
    #[error("revision {0} is not a revision")]
    BadRevision(Revision),
}

/// Figures about the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// Newest revision readers see.
    pub revision: Revision,
    /// Oldest readable revision; negative if nothing was ever compacted.
    pub compacted: Revision,
    /// Keys that exist.
    pub keys: usize,
    /// Memory charged for current versions.
    pub live_bytes: usize,
    /// Memory charged for replaced versions and tombstones.
    pub history_bytes: usize,
    /// Changes in the history.
    pub history_entries: usize,
    /// Leases.
    pub leases: usize,
    /// True if the store is so full that a write of the largest size would be refused.
    pub full: bool,
}

/// Keys, history and leases.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    index: KeyIndex,
    log: VecDeque<Arc<Record>>,
    revision: Revision,
    published: Revision,
    compacted: Revision,
    leases: Leases,
    live_bytes: usize,
    history_bytes: usize,
    journal: Journal,
}

impl Engine {
    /// An empty store at revision 1.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            index: KeyIndex::default(),
            log: VecDeque::new(),
            revision: Revision::FIRST,
            published: Revision::FIRST,
            compacted: Revision(-1),
            leases: Leases::default(),
            live_bytes: 0,
            history_bytes: 0,
            journal: Journal::default(),
        }
    }

    /// Builds the engine from what was on disk. Every lease starts anew with its full time: how long the store was
    /// away is not held against the holders, who could not refresh.
    ///
    /// # Errors
    /// If the records are not a history.
    pub fn load(limits: Limits, loaded: Loaded, now: Duration) -> Result<Self, LoadError> {
        let mut engine = Self::new(limits);
        if loaded.revision < Revision::FIRST {
            return Err(LoadError::BadRevision(loaded.revision));
        }
        if loaded.compacted > loaded.revision {
            return Err(LoadError::BadRevision(loaded.compacted));
        }
        engine.compacted = loaded.compacted;
        for (id, ttl_s) in loaded.leases {
            engine.leases.grant(id, ttl_s.min(LEASE_TTL_S_MAX), now);
        }
        let mut last = Position::default();
        for record in loaded.records {
            if record.position <= last || record.position.main > loaded.revision {
                return Err(LoadError::Misplaced(record.position.main));
            }
            last = record.position;
            engine.insert(Arc::new(record));
        }
        while engine.log.front().is_some_and(|record| record.position.main < engine.compacted) {
            engine.log.pop_front();
        }
        engine.log.shrink_to_fit();
        engine.revision = loaded.revision;
        engine.published = loaded.revision;
        Ok(engine)
    }

    /// What has to reach the disk since the last call.
    pub fn take_journal(&mut self) -> Journal {
        let mut journal = std::mem::take(&mut self.journal);
        journal.revision = self.revision;
        journal
    }

    /// Makes everything up to `revision` visible to readers.
    pub fn publish(&mut self, revision: Revision) {
        self.published = self.published.max(revision.min(self.revision));
    }

    /// The newest revision readers see.
    #[must_use]
    pub fn published(&self) -> Revision {
        self.published
    }

    /// The newest applied revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The bounds in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Figures for status answers.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        EngineStatus {
            revision: self.published,
            compacted: self.compacted,
            keys: self.index.live_keys(),
            live_bytes: self.live_bytes,
            history_bytes: self.history_bytes,
            history_entries: self.log.len(),
            leases: self.leases.len(),
            full: self.live_bytes + self.limits.request_bytes_max > self.limits.live_bytes_max,
        }
    }

    /// The changes from `from` on that are published, oldest first. The caller has checked that `from` is not
    /// compacted.
    pub fn changes_from(&self, from: Revision) -> impl Iterator<Item = &Arc<Record>> {
        let first = self.log.partition_point(|record| record.position.main < from);
        let published = self.published;
        self.log.range(first..).take_while(move |record| record.position.main <= published)
    }

    /// The version of `key` at `revision`; none if the key did not exist or the revision is compacted.
    #[must_use]
    pub fn version_at(&self, key: &[u8], revision: Revision) -> Option<&Arc<Record>> {
        if revision < self.compacted {
            return None;
        }
        self.index.get(key, revision)
    }

    /// Forgets all versions that were replaced before `request.revision`.
    ///
    /// # Errors
    /// If the revision is compacted already or does not exist yet.
    pub fn compact(&mut self, request: &PbCompactionRequest) -> Result<PbCompactionResponse, EngineError> {
        let revision = Revision(request.revision);
        if revision <= self.compacted {
            return Err(EngineError::Compacted);
        }
        if revision > self.published {
            return Err(EngineError::FutureRevision);
        }
        self.compact_to(revision);
        Ok(PbCompactionResponse { header: header(self.revision) })
    }

    /// Grants a lease; `fresh` is the number to use when the client leaves the choice to the store.
    ///
    /// # Errors
    /// If the number is taken, the time is out of bounds or there are too many leases.
    pub fn lease_grant(
        &mut self,
        request: &PbLeaseGrantRequest,
        fresh: LeaseId,
        now: Duration,
    ) -> Result<PbLeaseGrantResponse, EngineError> {
        let id = if request.id == 0 { fresh } else { LeaseId(request.id) };
        if request.ttl > LEASE_TTL_S_MAX {
            return Err(EngineError::LeaseTtlTooLarge);
        }
        if self.leases.contains(id) {
            return Err(EngineError::LeaseExists);
        }
        if self.leases.len() >= self.limits.leases_max {
            return Err(EngineError::TooManyLeases);
        }
        let ttl = self.leases.grant(id, request.ttl, now);
        self.journal.leases.push(LeaseChange::Granted(id, ttl));
        Ok(PbLeaseGrantResponse { header: header(self.revision), id: id.0, ttl, error: String::new() })
    }

    /// Restarts the clock of a lease and returns its granted seconds.
    ///
    /// # Errors
    /// If there is no such lease or it has run out.
    pub fn lease_keep_alive(&mut self, id: LeaseId, now: Duration) -> Result<i64, EngineError> {
        self.leases.keep_alive(id, now)
    }

    /// Removes a lease and deletes its keys in one write.
    ///
    /// # Errors
    /// If there is no such lease.
    pub fn lease_revoke(&mut self, id: LeaseId) -> Result<Revision, EngineError> {
        self.trim_history();
        let keys = self.leases.remove(id).ok_or(EngineError::LeaseNotFound)?;
        self.journal.leases.push(LeaseChange::Gone(id));
        let mut write = self.begin_write();
        for key in keys {
            write.delete(&key);
        }
        write.finish();
        Ok(self.revision)
    }

    /// Revokes the lease that ran out longest ago, if one did.
    pub fn expire_one(&mut self, now: Duration) -> Option<LeaseId> {
        let (expires, id) = self.leases.next_expiry()?;
        if expires > now {
            return None;
        }
        self.lease_revoke(id).ok().map(|_| id)
    }

    /// When the next lease runs out.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Duration> {
        self.leases.next_expiry().map(|(expires, _)| expires)
    }

    /// What is known about a lease.
    #[must_use]
    pub fn lease_view(&self, id: LeaseId, now: Duration) -> Option<LeaseView> {
        self.leases.view(id, now)
    }

    /// The keys attached to a lease.
    pub fn lease_keys(&self, id: LeaseId) -> impl Iterator<Item = &Arc<[u8]>> {
        self.leases.keys(id)
    }

    /// All lease numbers.
    pub fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.ids()
    }

    fn compact_to(&mut self, revision: Revision) {
        self.compacted = revision;
        self.journal.compacted = Some(revision);
        while let Some(record) = self.log.pop_front_if(|record| record.position.main < revision) {
            for dropped in self.index.prune(&record.key, record.position) {
                self.history_bytes -= dropped.cost_bytes();
                self.journal.removed.push(dropped.position);
            }
        }
        if self.log.len() * 4 < self.log.capacity() {
            self.log.shrink_to(self.log.len() * 2);
        }
    }

    /// Keeps the history inside its bounds.
    fn trim_history(&mut self) {
        let bytes_max = self.limits.history_bytes_max;
        let entries_max = self.limits.history_entries_max;
        if self.history_bytes <= bytes_max && self.log.len() <= entries_max {
            return;
        }
        let entries_before = self.log.len();
        while self.history_bytes > bytes_max / 16 * HISTORY_LOW_WATER_16THS
            || self.log.len() > entries_max / 16 * HISTORY_LOW_WATER_16THS
        {
            let Some(next) = self.log.front().map(|record| record.position.main.next()) else {
                return;
            };
            if next > self.published || entries_before - self.log.len() >= TRIM_RECORDS_MAX {
                return;
            }
            self.compact_to(next);
        }
    }

    /// Takes a new version into index, history and accounts.
    fn insert(&mut self, record: Arc<Record>) {
        if record.is_tombstone() {
            self.history_bytes += record.cost_bytes();
        } else {
            self.live_bytes += record.cost_bytes();
            if record.lease != LeaseId::NONE {
                self.leases.attach(record.lease, Arc::clone(&record.key));
            }
        }
        self.log.push_back(Arc::clone(&record));
        let lease = record.lease;
        if let Some(previous) = self.index.insert(record).previous
            && !previous.is_tombstone()
        {
            self.live_bytes -= previous.cost_bytes();
            self.history_bytes += previous.cost_bytes();
            if previous.lease != LeaseId::NONE && previous.lease != lease {
                self.leases.detach(previous.lease, &previous.key);
            }
        }
    }
}

/// A header that says only the revision.
fn header(revision: Revision) -> Option<PbResponseHeader> {
    Some(PbResponseHeader { revision: revision.0, ..PbResponseHeader::default() })
}

#[cfg(test)]
mod tests;
