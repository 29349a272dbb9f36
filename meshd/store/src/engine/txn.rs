//! Put, DeleteRange and Txn: what is refused, and what is then done in one write.

use std::collections::BTreeSet;
use std::sync::Arc;

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbPutRequest, PbPutResponse, PbResponseHeader, PbResponseOp,
    PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};

use super::error::EngineError;
use super::record::{LeaseId, Record, Revision};
use super::span::KeySpan;
use super::write::Write;
use super::{Engine, RangeAnswer, header, range};

/// How deep transactions may be nested. etcd is bounded by its operation limit; a bound of our own keeps the recursion
/// shallow whatever that limit is set to.
const TXN_DEPTH_MAX: usize = 16;

/// Wire values of the comparison.
mod comparison {
    pub(super) const EQUAL: i32 = 0;
    pub(super) const GREATER: i32 = 1;
    pub(super) const LESS: i32 = 2;
    pub(super) const NOT_EQUAL: i32 = 3;
}

/// Wire values of what is compared.
mod compared {
    pub(super) const VERSION: i32 = 0;
    pub(super) const CREATE: i32 = 1;
    pub(super) const MOD: i32 = 2;
    pub(super) const VALUE: i32 = 3;
    pub(super) const LEASE: i32 = 4;
}

/// What a transaction of reads found; like [`RangeAnswer`].
#[derive(Clone, Debug)]
pub struct ReadTxnAnswer {
    revision: Revision,
    succeeded: bool,
    answers: Vec<RangeAnswer>,
    bytes: usize,
}

impl ReadTxnAnswer {
    /// Memory its wire form is charged for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The wire form.
    #[must_use]
    pub fn to_wire(&self) -> PbTxnResponse {
        let answers = self.answers.iter().map(|answer| response_op(PbTxnOpResponse::ResponseRange(answer.to_wire())));
        PbTxnResponse { header: header(self.revision), succeeded: self.succeeded, responses: answers.collect() }
    }
}

impl Engine {
    /// Writes one key.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing changes then.
    pub fn put(&mut self, request: &PbPutRequest) -> Result<PbPutResponse, EngineError> {
        check_put(request)?;
        self.check_space(put_cost(request))?;
        if request.lease != 0 && !self.leases.contains(LeaseId(request.lease)) {
            return Err(EngineError::LeaseNotFound);
        }
        if (request.ignore_value || request.ignore_lease) && self.index.current(&request.key).is_none() {
            return Err(EngineError::KeyNotFound);
        }
        self.trim_history();
        let mut write = self.begin_write();
        let response = apply_put(&mut write, request);
        write.finish();
        Ok(response)
    }

    /// Deletes a range of keys.
    ///
    /// # Errors
    /// If the request has no key.
    pub fn delete_range(&mut self, request: &PbDeleteRequest) -> Result<PbDeleteResponse, EngineError> {
        check_delete(request)?;
        self.trim_history();
        let mut write = self.begin_write();
        let response = apply_delete(&mut write, request);
        write.finish();
        Ok(response)
    }

    /// True if no branch of the transaction can write, so that [`Self::read_txn`] may answer it.
    #[must_use]
    pub fn is_read_only(request: &PbTxnRequest) -> bool {
        request
            .success
            .iter()
            .chain(&request.failure)
            .all(|op| matches!(op.request, Some(PbTxnOpRequest::RequestRange(_))))
    }

    /// Answers a transaction of reads as of the published revision.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn read_txn(&self, request: &PbTxnRequest) -> Result<ReadTxnAnswer, EngineError> {
        check_txn(request, self.limits.txn_ops_max, 0)?;
        check_intervals(&request.success)?;
        check_intervals(&request.failure)?;
        let newest = self.published;
        let succeeded = self.compares_hold(&request.compare, newest);
        let mut answers = Vec::new();
        let mut bytes = 0;
        for op in branch(request, succeeded) {
            if let Some(PbTxnOpRequest::RequestRange(range)) = &op.request {
                self.check_txn_revision(range.revision, newest)?;
                let answer = self.range_as_of(range, newest)?;
                bytes += answer.bytes();
                self.check_answer(bytes)?;
                answers.push(answer);
            }
        }
        Ok(ReadTxnAnswer { revision: newest, succeeded, answers, bytes })
    }

    /// Compares, then does one of the two lists of operations, in one write.
    ///
    /// # Errors
    /// See [`EngineError`]; nothing changes then.
    pub fn txn(&mut self, request: &PbTxnRequest) -> Result<PbTxnResponse, EngineError> {
        check_txn(request, self.limits.txn_ops_max, 0)?;
        check_intervals(&request.success)?;
        check_intervals(&request.failure)?;
        let cost = txn_cost(request);
        if cost > 0 {
            self.check_space(cost)?;
        }
        // First, because it moves the compacted revision, which the checks below look at.
        self.trim_history();
        let mut path = Vec::new();
        self.decide(request, &mut path);
        self.check_puts(request, &mut path.iter().copied())?;
        self.check_ranges(request, &mut path.iter().copied())?;
        let mut write = self.begin_write();
        let mut response = apply_txn(&mut write, request, &mut path.into_iter())?;
        response.header = header(write.revision());
        write.finish();
        Ok(response)
    }

    fn check_space(&self, cost: usize) -> Result<(), EngineError> {
        if self.live_bytes + cost > self.limits.live_bytes_max {
            return Err(EngineError::NoSpace);
        }
        Ok(())
    }

    /// Evaluates all compares of the branches that will run, before anything is written: depth first, in order.
    pub(super) fn decide(&self, request: &PbTxnRequest, path: &mut Vec<bool>) {
        let succeeded = self.compares_hold(&request.compare, self.revision);
        path.push(succeeded);
        for op in branch(request, succeeded) {
            if let Some(PbTxnOpRequest::RequestTxn(nested)) = &op.request {
                self.decide(nested, path);
            }
        }
    }

    fn compares_hold(&self, compares: &[PbCompare], revision: Revision) -> bool {
        compares.iter().all(|compare| {
            let span = KeySpan::from_wire(&compare.key, &compare.range_end);
            let mut any = false;
            let mut all = true;
            if !span.is_empty() {
                self.index.scan(&span, revision, |record| {
                    any = true;
                    all = holds(compare, Some(record));
                    all
                });
            }
            if any { all } else { holds(compare, None) }
        })
    }

    fn check_puts(&self, request: &PbTxnRequest, path: &mut impl Iterator<Item = bool>) -> Result<(), EngineError> {
        for op in branch(request, path.next().unwrap_or(false)) {
            match &op.request {
                Some(PbTxnOpRequest::RequestTxn(nested)) => self.check_puts(nested, path)?,
                Some(PbTxnOpRequest::RequestPut(put)) => {
                    if (put.ignore_value || put.ignore_lease) && self.index.current(&put.key).is_none() {
                        return Err(EngineError::KeyNotFound);
                    }
                    if put.lease != 0 && !self.leases.contains(LeaseId(put.lease)) {
                        return Err(EngineError::LeaseNotFound);
                    }
                }
                Some(PbTxnOpRequest::RequestRange(_) | PbTxnOpRequest::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    /// Inside a transaction a negative revision is one from before the history, while a Range alone takes it for "now".
    fn check_txn_revision(&self, asked: i64, newest: Revision) -> Result<(), EngineError> {
        if asked != 0 && asked < self.compacted.0 {
            return Err(EngineError::Compacted);
        }
        self.readable(asked, newest).map(|_| ())
    }

    fn check_ranges(&self, request: &PbTxnRequest, path: &mut impl Iterator<Item = bool>) -> Result<(), EngineError> {
        for op in branch(request, path.next().unwrap_or(false)) {
            match &op.request {
                Some(PbTxnOpRequest::RequestTxn(nested)) => self.check_ranges(nested, path)?,
                Some(PbTxnOpRequest::RequestRange(range)) => {
                    self.check_txn_revision(range.revision, self.revision)?;
                }
                Some(PbTxnOpRequest::RequestPut(_) | PbTxnOpRequest::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }
}

/// What a transaction touches, for authorisation: spans it reads, spans it writes, and leases it attaches keys to,
/// in either branch and at any depth.
#[must_use]
pub fn spans_of_txn(request: &PbTxnRequest) -> (Vec<KeySpan>, Vec<KeySpan>, Vec<LeaseId>) {
    let (mut reads, mut writes, mut leases) = (Vec::new(), Vec::new(), Vec::new());
    collect_spans(request, &mut reads, &mut writes, &mut leases);
    (reads, writes, leases)
}

fn collect_spans(
    request: &PbTxnRequest,
    reads: &mut Vec<KeySpan>,
    writes: &mut Vec<KeySpan>,
    leases: &mut Vec<LeaseId>,
) {
    for compare in &request.compare {
        reads.push(KeySpan::from_wire(&compare.key, &compare.range_end));
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(PbTxnOpRequest::RequestRange(range)) => {
                reads.push(KeySpan::from_wire(&range.key, &range.range_end));
            }
            Some(PbTxnOpRequest::RequestPut(put)) => {
                let span = KeySpan::single(&put.key);
                if put.prev_kv {
                    reads.push(span.clone());
                }
                writes.push(span);
                if put.lease != 0 {
                    leases.push(LeaseId(put.lease));
                }
            }
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
                let span = KeySpan::from_wire(&delete.key, &delete.range_end);
                if delete.prev_kv {
                    reads.push(span.clone());
                }
                writes.push(span);
            }
            Some(PbTxnOpRequest::RequestTxn(nested)) => collect_spans(nested, reads, writes, leases),
            None => {}
        }
    }
}

pub(super) fn branch(request: &PbTxnRequest, succeeded: bool) -> &[PbTxnRequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn check_put(request: &PbPutRequest) -> Result<(), EngineError> {
    if request.key.is_empty() {
        return Err(EngineError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(EngineError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(EngineError::LeaseProvided);
    }
    Ok(())
}

fn check_delete(request: &PbDeleteRequest) -> Result<(), EngineError> {
    if request.key.is_empty() {
        return Err(EngineError::EmptyKey);
    }
    Ok(())
}

/// The checks that need no keys. A nested transaction may have as many operations as its parent left over.
pub(super) fn check_txn(request: &PbTxnRequest, ops_max: usize, depth: usize) -> Result<(), EngineError> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > ops_max || depth >= TXN_DEPTH_MAX {
        return Err(EngineError::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(EngineError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(PbTxnOpRequest::RequestRange(range)) => range::check(range)?,
            Some(PbTxnOpRequest::RequestPut(put)) => check_put(put)?,
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(PbTxnOpRequest::RequestTxn(nested)) => check_txn(nested, ops_max - ops, depth + 1)?,
            None => return Err(EngineError::KeyNotFound),
        }
    }
    Ok(())
}

/// Keys that are put and intervals that are deleted by a list of operations.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Touched<'a> {
    fn deletes_key(&self, key: &[u8]) -> bool {
        // The end is compared as it is written, "\0" included: etcd does so too, and accepts what that misses.
        self.deletes.iter().any(|(start, end)| if end.is_empty() { *start == key } else { *start <= key && key < *end })
    }

    fn put(&mut self, key: &'a [u8]) -> Result<(), EngineError> {
        if self.deletes_key(key) || !self.puts.insert(key) {
            return Err(EngineError::DuplicateKey);
        }
        Ok(())
    }
}

/// No key may be put twice, or put and deleted, by operations that can run together.
fn check_intervals(ops: &[PbTxnRequestOp]) -> Result<Touched<'_>, EngineError> {
    let mut touched = Touched::default();
    for op in ops {
        if let Some(PbTxnOpRequest::RequestDeleteRange(delete)) = &op.request {
            touched.deletes.push((&delete.key, &delete.range_end));
        }
    }
    for op in ops {
        let Some(PbTxnOpRequest::RequestTxn(nested)) = &op.request else {
            continue;
        };
        let then = check_intervals(&nested.success)?;
        let otherwise = check_intervals(&nested.failure)?;
        for key in &then.puts {
            touched.put(key)?;
        }
        for key in &otherwise.puts {
            // Only one of the two branches runs, so both may put the same key.
            if then.puts.contains(key) {
                continue;
            }
            touched.put(key)?;
        }
        touched.deletes.extend(then.deletes);
        touched.deletes.extend(otherwise.deletes);
    }
    for op in ops {
        if let Some(PbTxnOpRequest::RequestPut(put)) = &op.request {
            touched.put(&put.key)?;
        }
    }
    Ok(touched)
}

fn put_cost(request: &PbPutRequest) -> usize {
    request.key.len() + request.value.len() + Record::OVERHEAD_BYTES
}

/// The larger of what the two branches could add.
fn txn_cost(request: &PbTxnRequest) -> usize {
    let cost = |ops: &[PbTxnRequestOp]| -> usize {
        ops.iter()
            .map(|op| match &op.request {
                Some(PbTxnOpRequest::RequestPut(put)) => put_cost(put),
                Some(PbTxnOpRequest::RequestTxn(nested)) => txn_cost(nested),
                Some(PbTxnOpRequest::RequestRange(_) | PbTxnOpRequest::RequestDeleteRange(_)) | None => 0,
            })
            .sum()
    };
    cost(&request.success).max(cost(&request.failure))
}

fn holds(compare: &PbCompare, record: Option<&Record>) -> bool {
    let ordering = match compare.target {
        compared::VALUE => {
            // A missing key has no value, and the wire cannot tell that from an empty one: never true.
            let Some(record) = record else {
                return false;
            };
            let value = match &compare.target_union {
                Some(PbTargetUnion::Value(value)) => value.as_slice(),
                _ => &[],
            };
            (*record.value).cmp(value)
        }
        compared::VERSION | compared::CREATE | compared::MOD | compared::LEASE => {
            let (own, asked) = numbers(compare, record);
            own.cmp(&asked)
        }
        _ => std::cmp::Ordering::Equal,
    };
    match compare.result {
        comparison::EQUAL => ordering.is_eq(),
        comparison::NOT_EQUAL => ordering.is_ne(),
        comparison::GREATER => ordering.is_gt(),
        comparison::LESS => ordering.is_lt(),
        _ => true,
    }
}

/// The number of the record and the number it is compared with. A union that does not fit the target counts as 0.
fn numbers(compare: &PbCompare, record: Option<&Record>) -> (i64, i64) {
    let union = &compare.target_union;
    match compare.target {
        compared::VERSION => (
            record.map_or(0, |record| record.version),
            if let Some(PbTargetUnion::Version(version)) = union { *version } else { 0 },
        ),
        compared::CREATE => (
            record.map_or(0, |record| record.create.0),
            if let Some(PbTargetUnion::CreateRevision(revision)) = union { *revision } else { 0 },
        ),
        compared::MOD => (
            record.map_or(0, |record| record.position.main.0),
            if let Some(PbTargetUnion::ModRevision(revision)) = union { *revision } else { 0 },
        ),
        _ => (
            record.map_or(0, |record| record.lease.0),
            if let Some(PbTargetUnion::Lease(lease)) = union { *lease } else { 0 },
        ),
    }
}

fn apply_put(write: &mut Write<'_>, request: &PbPutRequest) -> PbPutResponse {
    let previous = write.current(&request.key).map(Arc::clone);
    let value: &[u8] = match &previous {
        Some(previous) if request.ignore_value => &previous.value,
        _ => &request.value,
    };
    let lease = match &previous {
        Some(previous) if request.ignore_lease => previous.lease,
        _ => LeaseId(request.lease),
    };
    write.put(&request.key, value, lease);
    PbPutResponse {
        header: header(write.target()),
        prev_kv: previous.filter(|_| request.prev_kv).map(|previous| previous.to_wire(false)),
    }
}

fn apply_delete(write: &mut Write<'_>, request: &PbDeleteRequest) -> PbDeleteResponse {
    let span = KeySpan::from_wire(&request.key, &request.range_end);
    let deleted = if span.is_empty() { Vec::new() } else { write.delete_span(&span) };
    PbDeleteResponse {
        header: header(write.revision()),
        deleted: i64::try_from(deleted.len()).unwrap_or(i64::MAX),
        prev_kvs: if request.prev_kv {
            deleted.iter().map(|record| record.to_wire(false)).collect()
        } else {
            Vec::new()
        },
    }
}

fn apply_txn(
    write: &mut Write<'_>,
    request: &PbTxnRequest,
    path: &mut impl Iterator<Item = bool>,
) -> Result<PbTxnResponse, EngineError> {
    let succeeded = path.next().unwrap_or(false);
    let ops = branch(request, succeeded);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match &op.request {
            Some(PbTxnOpRequest::RequestRange(range)) => {
                let newest = write.revision();
                PbTxnOpResponse::ResponseRange(write.engine().range_as_of(range, newest)?.to_wire())
            }
            Some(PbTxnOpRequest::RequestPut(put)) => PbTxnOpResponse::ResponsePut(apply_put(write, put)),
            Some(PbTxnOpRequest::RequestDeleteRange(delete)) => {
                PbTxnOpResponse::ResponseDeleteRange(apply_delete(write, delete))
            }
            Some(PbTxnOpRequest::RequestTxn(nested)) => PbTxnOpResponse::ResponseTxn(apply_txn(write, nested, path)?),
            None => continue,
        };
        responses.push(response_op(response));
    }
    Ok(PbTxnResponse { header: Some(PbResponseHeader::default()), succeeded, responses })
}

fn response_op(response: PbTxnOpResponse) -> PbResponseOp {
    PbResponseOp { response: Some(response) }
}
