//! What the engine refuses, in etcd's words: clients compare these strings and codes.

use tonic::{Code, Status};

/// A request the engine refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The request has no key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist, or a transaction operation without content.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// More operations in a transaction than the limit.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A transaction writes a key twice.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// A sort order or a sort target this version does not know.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// The revision is no longer in the history.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision does not exist yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// The store holds as much as it may.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// No such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// A lease with the asked-for number exists.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A time to live beyond what etcd accepts.
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    /// More leases than the store keeps.
    #[error("etcdserver: too many leases")]
    TooManyLeases,
    /// The encoded request is beyond the limit.
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// A transaction reads more than fits into one answer.
    #[error("etcdserver: answer is too large: read less in one transaction, or with a limit")]
    AnswerTooLarge,
    /// The user of the connection may not do this.
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    /// The client certificate has no common name.
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    /// No such user.
    #[error("etcdserver: user name not found")]
    UserNotFound,
    /// No such role.
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    /// More requests in flight than the store accepts.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// The write was not on disk in time; it may still become durable.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// The store is closing.
    #[error("etcdserver: server stopped")]
    Stopped,
}

impl EngineError {
    /// The gRPC code etcd answers with.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::InvalidSortOption
            | Self::RequestTooLarge
            | Self::UserEmpty => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::NoSpace | Self::TooManyLeases | Self::AnswerTooLarge | Self::TooManyRequests => {
                Code::ResourceExhausted
            }
            Self::LeaseNotFound => Code::NotFound,
            Self::LeaseExists | Self::UserNotFound | Self::RoleNotFound => Code::FailedPrecondition,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::Timeout | Self::Stopped => Code::Unavailable,
        }
    }
}

impl From<EngineError> for Status {
    fn from(error: EngineError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
