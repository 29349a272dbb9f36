//! How large the answer to a write will be, so that room for it is there before anything is written.

use etcd_client::proto::{PbDeleteRequest, PbPutRequest, PbTxnOpRequest, PbTxnRequest};

use super::error::EngineError;
use super::span::KeySpan;
use super::{Engine, txn};

impl Engine {
    /// Memory of the answer to a Put, were it done now.
    #[must_use]
    pub fn measure_put(&self, request: &PbPutRequest) -> usize {
        let previous = request.prev_kv.then(|| self.index.current(&request.key)).flatten();
        previous.map_or(0, |record| record.cost_bytes())
    }

    /// Memory of the answer to a DeleteRange, were it done now.
    #[must_use]
    pub fn measure_delete(&self, request: &PbDeleteRequest) -> usize {
        let mut bytes = 0;
        let span = KeySpan::from_wire(&request.key, &request.range_end);
        if request.prev_kv && !span.is_empty() {
            self.index.scan(&span, self.revision, |record| {
                bytes += record.cost_bytes();
                true
            });
        }
        bytes
    }

    /// Memory of the answer to a transaction, were it done now. What its own operations write is not in it, which is
    /// less than the request times the number of its reads.
    ///
    /// # Errors
    /// If the answer is larger than an answer may be. What the transaction itself will refuse counts as nothing.
    pub fn measure_txn(&self, request: &PbTxnRequest) -> Result<usize, EngineError> {
        if txn::check_txn(request, self.limits.txn_ops_max, 0).is_err() {
            return Ok(0);
        }
        let mut path = Vec::new();
        self.decide(request, &mut path);
        let mut bytes = 0;
        self.measure_branch(request, &mut path.into_iter(), &mut bytes)?;
        Ok(bytes)
    }

    fn measure_branch(
        &self,
        request: &PbTxnRequest,
        path: &mut impl Iterator<Item = bool>,
        bytes: &mut usize,
    ) -> Result<(), EngineError> {
        for op in txn::branch(request, path.next().unwrap_or(false)) {
            *bytes += match &op.request {
                Some(PbTxnOpRequest::RequestRange(range)) => {
                    self.range_as_of(range, self.revision).map_or(0, |answer| answer.bytes())
                }
                Some(PbTxnOpRequest::RequestPut(put)) => self.measure_put(put),
                Some(PbTxnOpRequest::RequestDeleteRange(delete)) => self.measure_delete(delete),
                Some(PbTxnOpRequest::RequestTxn(nested)) => {
                    self.measure_branch(nested, path, bytes)?;
                    0
                }
                None => 0,
            };
            self.check_answer(*bytes)?;
        }
        Ok(())
    }

    /// No answer is larger than all keys together may be: only a transaction that reads the same more than once.
    pub(super) fn check_answer(&self, bytes: usize) -> Result<(), EngineError> {
        if bytes > self.limits.live_bytes_max.max(self.live_bytes) {
            return Err(EngineError::AnswerTooLarge);
        }
        Ok(())
    }
}
