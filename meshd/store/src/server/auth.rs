//! The Auth service: questions only.
//!
//! Dispatched by hand: the message types of `AuthStatus` are not exported by the crate that generates the others, so
//! the generated service cannot be implemented.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use etcd_client::proto::{
    PbAuthRoleGetRequest, PbAuthRoleGetResponse, PbAuthRoleListRequest, PbAuthRoleListResponse, PbAuthUserGetRequest,
    PbAuthUserGetResponse, PbAuthUserListRequest, PbAuthUserListResponse, PbResponseHeader,
};
use prost::Message;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::user::{Peer, allow};
use crate::auth::{PermissionKind, ROOT_ROLE};
use crate::engine::{EngineError, KeySpan};
use crate::store::Shared;

/// Wire values of a permission's kind.
const PERMISSION_READ: i32 = 0;
const PERMISSION_WRITE: i32 = 1;
const PERMISSION_READ_WRITE: i32 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct AuthStatusRequest {}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct AuthStatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<PbResponseHeader>,
    #[prost(bool, tag = "2")]
    enabled: bool,
    #[prost(uint64, tag = "3")]
    auth_revision: u64,
}

/// Serves users and roles.
#[derive(Clone, Debug)]
pub(super) struct Auth {
    shared: Arc<Shared>,
}

impl Auth {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn header(&self) -> Option<PbResponseHeader> {
        self.shared.header(self.shared.engine().published())
    }

    fn status(&self, request: &Request<AuthStatusRequest>) -> Result<AuthStatusResponse, Status> {
        Ok(AuthStatusResponse {
            header: self.header(),
            enabled: Peer::of(request)? != Peer::Root,
            auth_revision: self.shared.auth_table().revision(),
        })
    }

    fn user_list(&self, request: &Request<PbAuthUserListRequest>) -> Result<PbAuthUserListResponse, Status> {
        let table = self.shared.auth_table();
        Peer::of(request)?.require_root(&table)?;
        Ok(PbAuthUserListResponse { header: self.header(), users: table.config().users.keys().cloned().collect() })
    }

    fn user_get(&self, request: &Request<PbAuthUserGetRequest>) -> Result<PbAuthUserGetResponse, Status> {
        let table = self.shared.auth_table();
        let peer = Peer::of(request)?;
        let name = &request.get_ref().name;
        let own = matches!(&peer, Peer::User(user) if **user == **name);
        allow(own || peer.access(&table)?.is_root())?;
        let user = table.config().users.get(name).ok_or(EngineError::UserNotFound)?;
        Ok(PbAuthUserGetResponse { header: self.header(), roles: user.roles.clone() })
    }

    fn role_list(&self, request: &Request<PbAuthRoleListRequest>) -> Result<PbAuthRoleListResponse, Status> {
        let table = self.shared.auth_table();
        Peer::of(request)?.require_root(&table)?;
        Ok(PbAuthRoleListResponse { header: self.header(), roles: table.config().roles.keys().cloned().collect() })
    }

    fn role_get(&self, request: &Request<PbAuthRoleGetRequest>) -> Result<PbAuthRoleGetResponse, Status> {
        let table = self.shared.auth_table();
        let peer = Peer::of(request)?;
        let name = &request.get_ref().role;
        let own = match &peer {
            Peer::Root => true,
            Peer::User(user) => {
                let user = table.config().users.get(&**user);
                user.is_some_and(|user| user.roles.contains(name))
            }
        };
        allow(own || peer.access(&table)?.is_root())?;
        let role = table.config().roles.get(name).ok_or(EngineError::RoleNotFound)?;
        let mut response = PbAuthRoleGetResponse { header: self.header(), perm: Vec::new() };
        let everything = [(KeySpan::all(), PermissionKind::ReadWrite)];
        let spans: Vec<(KeySpan, PermissionKind)> = if role.name == ROOT_ROLE {
            everything.to_vec()
        } else {
            let permissions = role.permissions.iter();
            permissions.map(|permission| (permission.span.clone(), permission.kind)).collect()
        };
        // The type of a permission has no public name; the list makes the values.
        response.perm.resize_with(spans.len(), Default::default);
        for (permission, (span, kind)) in response.perm.iter_mut().zip(spans) {
            (permission.key, permission.range_end) = span.to_wire();
            permission.perm_type = match kind {
                PermissionKind::Read => PERMISSION_READ,
                PermissionKind::Write => PERMISSION_WRITE,
                PermissionKind::ReadWrite => PERMISSION_READ_WRITE,
            };
        }
        Ok(response)
    }

    async fn dispatch(self, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            "/etcdserverpb.Auth/AuthStatus" => unary(request, move |request| self.status(request)).await,
            "/etcdserverpb.Auth/UserList" => unary(request, move |request| self.user_list(request)).await,
            "/etcdserverpb.Auth/UserGet" => unary(request, move |request| self.user_get(request)).await,
            "/etcdserverpb.Auth/RoleList" => unary(request, move |request| self.role_list(request)).await,
            "/etcdserverpb.Auth/RoleGet" => unary(request, move |request| self.role_get(request)).await,
            "/etcdserverpb.Auth/Authenticate" => {
                Status::failed_precondition("an embedded store has no passwords; users are client certificates")
                    .into_http()
            }
            _ => Status::failed_precondition(
                "users and roles of an embedded store come from its configuration and cannot be changed here",
            )
            .into_http(),
        }
    }
}

impl NamedService for Auth {
    const NAME: &'static str = "etcdserverpb.Auth";
}

impl Service<http::Request<Body>> for Auth {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(service.dispatch(request).await) })
    }
}

async fn unary<Asked, Answered>(
    request: http::Request<Body>,
    answer: impl Fn(&Request<Asked>) -> Result<Answered, Status> + Send + Sync + 'static,
) -> http::Response<Body>
where
    Asked: Message + Default + Send + Sync + 'static,
    Answered: Message + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let service = service_fn(move |request: Request<Asked>| {
        let answer = Arc::clone(&answer);
        async move { answer(&request).map(Response::new) }
    });
    Grpc::new(ProstCodec::default()).unary(service, request).await
}
