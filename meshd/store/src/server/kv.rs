//! The KV service.

use std::sync::Arc;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse,
};
use prost::Message as _;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::carry::held;
use super::user::{Peer, allow, may_write_lease};
use crate::engine::{Engine, EngineError, KeySpan, LeaseId, RangeAnswer, ReadTxnAnswer, spans_of_txn};
use crate::store::Shared;

/// Serves keys.
#[derive(Clone, Debug)]
pub(super) struct Kv {
    shared: Arc<Shared>,
}

impl Kv {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn check_size(&self, bytes: usize) -> Result<usize, EngineError> {
        if bytes > self.shared.options.limits.request_bytes_max {
            return Err(EngineError::RequestTooLarge);
        }
        Ok(bytes)
    }
}

#[tonic::async_trait]
impl PbKvService for Kv {
    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let peer = Peer::of(&request)?;
        let access = peer.access(&self.shared.auth_table())?;
        let request = request.into_inner();
        if request.key.is_empty() {
            return Err(EngineError::EmptyKey.into());
        }
        allow(access.reads(&KeySpan::from_wire(&request.key, &request.range_end)))?;
        let (answer, hold) = self.shared.read_held(&peer, |engine| engine.range(&request), RangeAnswer::bytes).await?;
        let mut response = answer.to_wire();
        self.shared.stamp(&mut response.header);
        Ok(held(response, hold))
    }

    type RangeStreamStream = BoxStream<PbRangeStreamResponse>;

    async fn range_stream(
        &self,
        _request: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("RangeStream is not part of etcd 3.5; use Range with a limit"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let peer = Peer::of(&request)?;
        let access = peer.access(&self.shared.auth_table())?;
        let request = request.into_inner();
        if request.key.is_empty() {
            return Err(EngineError::EmptyKey.into());
        }
        let span = KeySpan::single(&request.key);
        allow(access.writes(&span) && (!request.prev_kv || access.reads(&span)))?;
        let bytes = self.check_size(request.encoded_len())?;
        let answer_bytes = self.shared.engine().measure_put(&request);
        let hold = self.shared.room(&peer, answer_bytes).await?;
        let mut response = self
            .shared
            .write(bytes, |engine, _| {
                allow(may_attach(&access, engine, LeaseId(request.lease)))?;
                engine.put(&request)
            })
            .await?;
        self.shared.stamp(&mut response.header);
        Ok(held(response, hold))
    }

    async fn delete_range(&self, request: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        let peer = Peer::of(&request)?;
        let access = peer.access(&self.shared.auth_table())?;
        let request = request.into_inner();
        if request.key.is_empty() {
            return Err(EngineError::EmptyKey.into());
        }
        let span = KeySpan::from_wire(&request.key, &request.range_end);
        allow(access.writes(&span) && (!request.prev_kv || access.reads(&span)))?;
        let bytes = self.check_size(request.encoded_len())?;
        let answer_bytes = self.shared.engine().measure_delete(&request);
        let hold = self.shared.room(&peer, answer_bytes).await?;
        let mut response = self.shared.write(bytes, |engine, _| engine.delete_range(&request)).await?;
        self.shared.stamp(&mut response.header);
        Ok(held(response, hold))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let peer = Peer::of(&request)?;
        let access = peer.access(&self.shared.auth_table())?;
        let request = request.into_inner();
        let leases = if access.is_root() {
            Vec::new()
        } else {
            let (reads, writes, leases) = spans_of_txn(&request);
            allow(reads.iter().all(|span| access.reads(span)) && writes.iter().all(|span| access.writes(span)))?;
            leases
        };
        if Engine::is_read_only(&request) {
            let read = |engine: &Engine| engine.read_txn(&request);
            let (answer, hold) = self.shared.read_held(&peer, read, ReadTxnAnswer::bytes).await?;
            let mut response = answer.to_wire();
            self.shared.stamp(&mut response.header);
            return Ok(held(response, hold));
        }
        let bytes = self.check_size(request.encoded_len())?;
        let answer_bytes = self.shared.engine().measure_txn(&request)?;
        let hold = self.shared.room(&peer, answer_bytes).await?;
        let mut response = self
            .shared
            .write(bytes, |engine, _| {
                allow(leases.iter().all(|lease| may_attach(&access, engine, *lease)))?;
                engine.txn(&request)
            })
            .await?;
        self.shared.stamp(&mut response.header);
        Ok(held(response, hold))
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Result<Response<PbCompactionResponse>, Status> {
        Peer::of(&request)?.require_root(&self.shared.auth_table())?;
        let request = request.into_inner();
        let bytes = request.encoded_len();
        let mut response = self.shared.write(bytes, |engine, _| engine.compact(&request)).await?;
        self.shared.stamp(&mut response.header);
        Ok(Response::new(response))
    }
}

fn may_attach(access: &crate::auth::Access, engine: &Engine, lease: LeaseId) -> bool {
    lease == LeaseId::NONE || may_write_lease(access, engine, lease)
}
