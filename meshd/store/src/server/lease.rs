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

use super::user::{Peer, allow, may_write_lease};
use crate::engine::{EngineError, KeySpan, LeaseId};
use crate::store::Shared;

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
        let access = Peer::of(&request)?.access(&self.shared.auth_table())?;
        let request = request.into_inner();
        let engine = self.shared.engine();
        let header = self.shared.header(engine.published());
        let Some(view) = engine.lease_view(LeaseId(request.id), self.shared.now()) else {
            return Ok(Response::new(PbLeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: -1,
                ..PbLeaseTimeToLiveResponse::default()
            }));
        };
        if request.keys {
            allow(view.keys.iter().all(|key| access.reads(&KeySpan::single(key))))?;
        }
        Ok(Response::new(PbLeaseTimeToLiveResponse {
            header,
            id: request.id,
            ttl: view.remaining_s,
            granted_ttl: view.granted_s,
            keys: if request.keys { view.keys.iter().map(|key| key.to_vec()).collect() } else { Vec::new() },
        }))
    }

    async fn lease_leases(
        &self,
        request: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        Peer::of(&request)?.require_writer(&self.shared.auth_table())?;
        let engine = self.shared.engine();
        Ok(Response::new(PbLeaseLeasesResponse {
            header: self.shared.header(engine.published()),
            leases: engine.leases().map(|id| PbLeaseStatus { id: id.0 }).collect(),
        }))
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
