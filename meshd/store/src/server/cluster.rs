//! The Cluster service: one member, for ever.

use std::sync::Arc;

use etcd_client::proto::{
    PbClusterService, PbMember, PbMemberAddRequest, PbMemberAddResponse, PbMemberListRequest, PbMemberListResponse,
    PbMemberPromoteRequest, PbMemberPromoteResponse, PbMemberRemoveRequest, PbMemberRemoveResponse,
    PbMemberUpdateRequest, PbMemberUpdateResponse,
};
use tonic::{Request, Response, Status};

use crate::store::Shared;

/// Serves the member list.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    shared: Arc<Shared>,
}

impl Cluster {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

fn one_member() -> Status {
    Status::unimplemented("an embedded store has exactly one member; use a real etcd for a cluster of several")
}

#[tonic::async_trait]
impl PbClusterService for Cluster {
    async fn member_add(&self, _: Request<PbMemberAddRequest>) -> Result<Response<PbMemberAddResponse>, Status> {
        Err(one_member())
    }

    async fn member_remove(
        &self,
        _: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        Err(one_member())
    }

    async fn member_update(
        &self,
        _: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        Err(one_member())
    }

    async fn member_list(&self, _: Request<PbMemberListRequest>) -> Result<Response<PbMemberListResponse>, Status> {
        let revision = self.shared.engine().published();
        Ok(Response::new(PbMemberListResponse {
            header: self.shared.header(revision),
            members: vec![PbMember {
                id: self.shared.identity.member_id,
                name: self.shared.options.member_name.clone(),
                peer_ur_ls: Vec::new(),
                client_ur_ls: self.shared.options.client_urls.clone(),
                is_learner: false,
            }],
        }))
    }

    async fn member_promote(
        &self,
        _: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        Err(one_member())
    }
}
