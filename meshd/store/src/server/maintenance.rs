//! The Maintenance service: status and alarms; the rest of it manages a disk format that is not ours.

use std::sync::Arc;

use etcd_client::proto::{
    PbAlarmMember, PbAlarmRequest, PbAlarmResponse, PbDefragmentRequest, PbDefragmentResponse, PbDowngradeRequest,
    PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest, PbHashResponse, PbMaintenanceService,
    PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest,
    PbStatusResponse,
};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::user::Peer;
use crate::store::Shared;

/// The etcd release whose API this is.
pub(super) const ETCD_VERSION: &str = "3.5.0";

/// Wire value of the alarm "no space".
const ALARM_NOSPACE: i32 = 1;
/// Wire value of the action "list".
const ALARM_ACTION_GET: i32 = 0;

/// Serves status.
#[derive(Clone, Debug)]
pub(super) struct Maintenance {
    shared: Arc<Shared>,
}

impl Maintenance {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

fn not_ours(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not supported by an embedded store; copy its data file instead"))
}

#[tonic::async_trait]
impl PbMaintenanceService for Maintenance {
    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        let peer = Peer::of(&request)?;
        if request.into_inner().action != ALARM_ACTION_GET {
            peer.require_root(&self.shared.auth_table())?;
            return Err(Status::unimplemented(
                "alarms of an embedded store come and go with their cause and cannot be set or cleared",
            ));
        }
        let engine = self.shared.engine().status();
        let alarms = if engine.full {
            vec![PbAlarmMember { member_id: self.shared.identity.member_id, alarm: ALARM_NOSPACE }]
        } else {
            Vec::new()
        };
        Ok(Response::new(PbAlarmResponse { header: self.shared.header(engine.revision), alarms }))
    }

    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        let engine = self.shared.engine().status();
        let mut errors = Vec::new();
        if engine.full {
            errors.push(format!("memberID:{} alarm:NOSPACE ", self.shared.identity.member_id));
        }
        errors.extend(self.shared.disk_failure());
        let bytes = i64::try_from(engine.live_bytes + engine.history_bytes).unwrap_or(i64::MAX);
        let index = engine.revision.0.unsigned_abs();
        Ok(Response::new(PbStatusResponse {
            header: self.shared.header(engine.revision),
            version: ETCD_VERSION.to_owned(),
            db_size: bytes,
            leader: self.shared.identity.member_id,
            raft_index: index,
            raft_term: self.shared.identity.term,
            raft_applied_index: index,
            errors,
            db_size_in_use: i64::try_from(engine.live_bytes).unwrap_or(i64::MAX),
            is_learner: false,
            storage_version: String::new(),
            db_size_quota: i64::try_from(self.shared.options.limits.live_bytes_max).unwrap_or(i64::MAX),
            downgrade_info: None,
        }))
    }

    async fn defragment(
        &self,
        request: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        Peer::of(&request)?.require_root(&self.shared.auth_table())?;
        // The data file reuses its free pages; there is nothing to do.
        let revision = self.shared.engine().published();
        Ok(Response::new(PbDefragmentResponse { header: self.shared.header(revision) }))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(not_ours("Hash"))
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(not_ours("HashKV"))
    }

    type SnapshotStream = BoxStream<PbSnapshotResponse>;

    async fn snapshot(&self, _: Request<PbSnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(not_ours("Snapshot"))
    }

    async fn move_leader(&self, _: Request<PbMoveLeaderRequest>) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(Status::unimplemented("an embedded store has exactly one member"))
    }

    async fn downgrade(&self, _: Request<PbDowngradeRequest>) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(not_ours("Downgrade"))
    }
}
