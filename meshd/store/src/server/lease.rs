//! The Lease service.

use std::sync::Arc;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse, PbLeaseLeasesRequest,
    PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService, PbLeaseStatus,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use futures_util::stream;
use prost::Message as _;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::carry::held;
use super::user::{Peer, allow, may_write_lease};
use crate::engine::{Engine, EngineError, KeySpan, LeaseId, LeaseView, Revision};
use crate::store::Shared;

/// Memory an answer is charged for each lease or key in it, beside the key.
const ANSWER_ITEM_BYTES: usize = 48;

/// Serves leases.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    shared: Arc<Shared>,
}

impl Lease {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl PbLeaseService for Lease {
    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        Peer::of(&request)?.require_writer(&self.shared.auth_table())?;
        let request = request.into_inner();
        let bytes = request.encoded_len();
        let fresh = LeaseId(fresh_lease_id());
        let granted = self.shared.write(bytes, |engine, now| engine.lease_grant(&request, fresh, now));
        let mut response = granted.await?;
        self.shared.lease_granted();
        self.shared.stamp(&mut response.header);
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        let table = self.shared.auth_table();
        let peer = Peer::of(&request)?;
        peer.require_writer(&table)?;
        let access = peer.access(&table)?;
        let request = request.into_inner();
        let id = LeaseId(request.id);
        let revision = self
            .shared
            .write(request.encoded_len(), |engine, _| {
                allow(may_write_lease(&access, engine, id))?;
                engine.lease_revoke(id)
            })
            .await?;
        Ok(Response::new(PbLeaseRevokeResponse { header: self.shared.header(revision) }))
    }

    type LeaseKeepAliveStream = BoxStream<PbLeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let peer = Peer::of(&request)?;
        let state = (request.into_inner(), Arc::clone(&self.shared), peer);
        let answers = stream::try_unfold(state, |(mut requests, shared, peer)| async move {
            let message = tokio::select! {
                () = shared.stop.cancelled() => return Err(EngineError::Stopped.into()),
                message = requests.message() => message?,
            };
            let Some(request) = message else {
                return Ok(None);
            };
            peer.require_writer(&shared.auth_table())?;
            let answer = keep_alive(&shared, request.id);
            Ok(Some((answer, (requests, shared, peer))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let peer = Peer::of(&request)?;
        let access = peer.access(&self.shared.auth_table())?;
        let request = request.into_inner();
        let read = |engine: &Engine| {
            let view = engine.lease_view(LeaseId(request.id), self.shared.now());
            let keys = view.iter().filter(|_| request.keys).flat_map(|view| &view.keys);
            allow(keys.into_iter().all(|key| access.reads(&KeySpan::single(key))))?;
            Ok((engine.published(), view))
        };
        let bytes = |(_, view): &(Revision, Option<LeaseView>)| {
            let keys = view.iter().filter(|_| request.keys).flat_map(|view| &view.keys);
            keys.map(|key| key.len() + ANSWER_ITEM_BYTES).sum()
        };
        let ((revision, view), hold) = self.shared.read_held(&peer, read, bytes).await?;
        let header = self.shared.header(revision);
        let Some(view) = view else {
            return Ok(Response::new(PbLeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: -1,
                ..PbLeaseTimeToLiveResponse::default()
            }));
        };
        let response = PbLeaseTimeToLiveResponse {
            header,
            id: request.id,
            ttl: view.remaining_s,
            granted_ttl: view.granted_s,
            keys: if request.keys { view.keys.iter().map(|key| key.to_vec()).collect() } else { Vec::new() },
        };
        Ok(held(response, hold))
    }

    async fn lease_leases(
        &self,
        request: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let peer = Peer::of(&request)?;
        peer.require_writer(&self.shared.auth_table())?;
        let read = |engine: &Engine| Ok((engine.published(), engine.leases().collect::<Vec<_>>()));
        let bytes = |(_, leases): &(Revision, Vec<LeaseId>)| leases.len() * ANSWER_ITEM_BYTES;
        let ((revision, leases), hold) = self.shared.read_held(&peer, read, bytes).await?;
        let response = PbLeaseLeasesResponse {
            header: self.shared.header(revision),
            leases: leases.into_iter().map(|id| PbLeaseStatus { id: id.0 }).collect(),
        };
        Ok(held(response, hold))
    }
}

/// A lease that is gone is answered with 0 seconds, which ends the client's loop.
fn keep_alive(shared: &Shared, id: i64) -> PbLeaseKeepAliveResponse {
    let (ttl, revision) = {
        let mut engine = shared.engine_mut();
        let ttl = engine.lease_keep_alive(LeaseId(id), shared.now()).unwrap_or(0);
        (ttl, engine.published())
    };
    PbLeaseKeepAliveResponse { header: shared.header(revision), id, ttl }
}

/// A random positive number, as etcd gives out.
fn fresh_lease_id() -> i64 {
    (rand::random::<i64>() & i64::MAX).max(1)
}
