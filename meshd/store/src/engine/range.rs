//! Reading: one key, a range, a page, a count, now or in the past.

use std::sync::Arc;

use etcd_client::proto::{PbRangeRequest, PbRangeResponse};

use super::error::EngineError;
use super::record::{Record, Revision};
use super::span::KeySpan;
use super::{Engine, header};

/// Wire values of the sort order.
mod order {
    pub(super) const NONE: i32 = 0;
    pub(super) const ASCEND: i32 = 1;
    pub(super) const DESCEND: i32 = 2;
}

/// Wire values of the sort target.
mod target {
    pub(super) const KEY: i32 = 0;
    pub(super) const VERSION: i32 = 1;
    pub(super) const CREATE: i32 = 2;
    pub(super) const MOD: i32 = 3;
    pub(super) const VALUE: i32 = 4;
}

/// What a Range found. The records are shared with the engine, so that the copy into the answer happens outside its
/// lock.
#[derive(Clone, Debug)]
pub struct RangeAnswer {
    revision: Revision,
    records: Vec<Arc<Record>>,
    count: usize,
    more: bool,
    keys_only: bool,
}

impl RangeAnswer {
    /// Memory its wire form is charged for; nothing for a count.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.answer_bytes(self.keys_only)).sum()
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> PbRangeResponse {
        PbRangeResponse {
            header: header(self.revision),
            kvs: self.records.iter().map(|record| record.to_wire(self.keys_only)).collect(),
            more: self.more,
            count: i64::try_from(self.count).unwrap_or(i64::MAX),
        }
    }
}

/// Checks what can be checked without looking at keys.
pub(super) fn check(request: &PbRangeRequest) -> Result<(), EngineError> {
    if request.key.is_empty() {
        return Err(EngineError::EmptyKey);
    }
    if !(order::NONE..=order::DESCEND).contains(&request.sort_order)
        || !(target::KEY..=target::VALUE).contains(&request.sort_target)
    {
        return Err(EngineError::InvalidSortOption);
    }
    Ok(())
}

impl Engine {
    /// Answers a Range among published revisions.
    ///
    /// # Errors
    /// If the request has no key or asks for a revision that is compacted or does not exist yet.
    pub fn range(&self, request: &PbRangeRequest) -> Result<RangeAnswer, EngineError> {
        check(request)?;
        self.range_as_of(request, self.published)
    }

    /// Answers a Range as of `newest`, the revision the reader takes for the present.
    pub(super) fn range_as_of(&self, request: &PbRangeRequest, newest: Revision) -> Result<RangeAnswer, EngineError> {
        let revision = self.readable(request.revision, newest)?;
        let span = KeySpan::from_wire(&request.key, &request.range_end);
        let mut answer =
            RangeAnswer { revision: newest, records: Vec::new(), count: 0, more: false, keys_only: request.keys_only };
        if span.is_empty() {
            return Ok(answer);
        }
        answer.count = self.index.count(&span, revision);
        if request.count_only || answer.count == 0 {
            return Ok(answer);
        }
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let fetch = if limit == 0 || needs_all(request) { usize::MAX } else { limit + 1 };
        let mut records = Vec::with_capacity(fetch.min(answer.count));
        self.index.scan(&span, revision, |record| {
            records.push(Arc::clone(record));
            records.len() < fetch
        });
        records.retain(|record| passes_filters(request, record));
        sort(request, &mut records);
        if limit > 0 && records.len() > limit {
            records.truncate(limit);
            answer.more = true;
        }
        answer.records = records;
        Ok(answer)
    }

    /// The revision to read at: an explicit one if it is in the history, the newest for 0.
    pub(super) fn readable(&self, asked: i64, newest: Revision) -> Result<Revision, EngineError> {
        if asked > newest.0 {
            return Err(EngineError::FutureRevision);
        }
        let revision = if asked <= 0 { newest } else { Revision(asked) };
        if revision < self.compacted {
            return Err(EngineError::Compacted);
        }
        Ok(revision)
    }
}

/// True if a page cannot be cut before all keys were seen. Ascending keys are the order of the index; an order without
/// a direction sorts only the page, as etcd does.
fn needs_all(request: &PbRangeRequest) -> bool {
    let by_index = request.sort_order == order::NONE
        || (request.sort_order == order::ASCEND && request.sort_target == target::KEY);
    !by_index
        || request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes_filters(request: &PbRangeRequest, record: &Record) -> bool {
    let modified = record.position.main.0;
    let created = record.create.0;
    (request.max_mod_revision == 0 || modified <= request.max_mod_revision)
        && (request.min_mod_revision == 0 || modified >= request.min_mod_revision)
        && (request.max_create_revision == 0 || created <= request.max_create_revision)
        && (request.min_create_revision == 0 || created >= request.min_create_revision)
}

/// Sorts by the target; ties stay in key order in both directions.
fn sort(request: &PbRangeRequest, records: &mut [Arc<Record>]) {
    let descending = request.sort_order == order::DESCEND;
    let compare = |a: &Arc<Record>, b: &Arc<Record>| match request.sort_target {
        target::VERSION => a.version.cmp(&b.version),
        target::CREATE => a.create.cmp(&b.create),
        target::MOD => a.position.main.cmp(&b.position.main),
        target::VALUE => a.value.cmp(&b.value),
        _ => a.key.cmp(&b.key),
    };
    if request.sort_target != target::KEY || descending {
        records.sort_by(|a, b| if descending { compare(b, a) } else { compare(a, b) });
    }
}
