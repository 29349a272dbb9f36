//! Who sent a request, and what etcd's services check before they act.

use std::sync::Arc;

use tonic::{Request, Status};

use crate::auth::{Access, AuthTable};
use crate::engine::{Engine, EngineError, KeySpan, LeaseId};

/// The user of a connection; every request carries it as an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// In this process, or on a loopback address without TLS.
    Root,
    /// The common name of the client certificate.
    User(Arc<str>),
}

impl Peer {
    /// The sender of a request. A request that passed no connection of ours is refused.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let peer = request.extensions().get::<Self>().cloned();
        peer.ok_or_else(|| Status::internal("request has no sender"))
    }

    /// By whose name limits count.
    pub(super) fn name(&self) -> Arc<str> {
        match self {
            Self::Root => "root".into(),
            Self::User(name) => Arc::clone(name),
        }
    }

    /// What the sender may do.
    pub(super) fn access(&self, table: &AuthTable) -> Result<Access, EngineError> {
        match self {
            Self::Root => Ok(Access::root()),
            Self::User(name) => table.access(name).cloned(),
        }
    }

    /// Fails unless the sender is root.
    pub(super) fn require_root(&self, table: &AuthTable) -> Result<(), EngineError> {
        allow(self.access(table)?.is_root())
    }

    /// Fails unless the sender may write something: leases cost memory and are of no use to readers.
    pub(super) fn require_writer(&self, table: &AuthTable) -> Result<(), EngineError> {
        allow(self.access(table)?.writes_anything())
    }
}

/// Turns a refusal into etcd's error.
pub(super) fn allow(allowed: bool) -> Result<(), EngineError> {
    if allowed { Ok(()) } else { Err(EngineError::PermissionDenied) }
}

/// Attaching a key to a lease lets the holder delete all its keys, so all of them must be writable.
pub(super) fn may_write_lease(access: &Access, engine: &Engine, lease: LeaseId) -> bool {
    access.is_root() || engine.lease_keys(lease).all(|key| access.writes(&KeySpan::single(key)))
}
