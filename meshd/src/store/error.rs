//! What goes wrong on the way to a store, in the words of an operator.

use std::{error::Error as StdError, fmt::Write as _, io, net::SocketAddr, time::Duration};

use thiserror::Error;
use tonic::{Code, Status};

use super::tls::TlsError;

/// Longest chain of causes that is printed.
const CAUSES_MAX: usize = 8;

/// Why there is no connection. The texts of all members are joined, because each may fail for another reason.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Certificates and keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A TLS endpoint without certificate files.
    #[error("endpoint {0} is https, but no certificate files are configured")]
    NoTlsFiles(String),
    /// No member is configured.
    #[error("no endpoint is configured")]
    NoEndpoints,
    /// No member could be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The HTTP/2 connection did not come up.
    #[error("failed to speak HTTP/2 with {endpoint}: {reason}")]
    Http2 {
        /// The member.
        endpoint: String,
        /// Why not.
        reason: String,
    },
}

/// Why one member could not be reached.
#[derive(Debug, Error)]
pub(super) enum MemberError {
    #[error("name {name} cannot be resolved: {source} (is it in DNS or in host_aliases?)")]
    Resolve { name: String, source: io::Error },
    #[error("name {0} has no address")]
    NoAddress(String),
    #[error("failed to connect to {address}: {source}{}", refused_hint(.source))]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("{step} took longer than {} s", after.as_secs())]
    Timeout { step: &'static str, after: Duration },
    #[error("{0:?} cannot be the name of a certificate")]
    ServerName(String),
    #[error("TLS handshake failed: {source}{}", tls_hint(.source))]
    Handshake { source: io::Error },
}

fn refused_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => " (is the store running, and is the port right?)",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => " (is there a route to it?)",
        _ => "",
    }
}

fn tls_hint(error: &io::Error) -> &'static str {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else { return "" };
    match tls {
        rustls::Error::InvalidCertificate(reason) => match reason {
            rustls::CertificateError::UnknownIssuer => " (the store's certificate is not from the configured ca)",
            rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. } => {
                " (the store's certificate has expired)"
            }
            rustls::CertificateError::NotValidYet | rustls::CertificateError::NotValidYetContext { .. } => {
                " (the store's certificate is not valid yet: is the clock right?)"
            }
            rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. } => {
                " (the store's certificate is for another name)"
            }
            _ => "",
        },
        _ => "",
    }
}

/// A failed call, sorted by what the caller can do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RpcFailure {
    /// The revision is compacted: list again.
    Compacted,
    /// The answer is larger than we read: ask for less.
    TooLarge,
    /// The lease a record was to hang on does not exist any more: take another one.
    LeaseGone,
    /// The store answers, and says no to this one thing.
    Refused(String),
    /// The connection is of no use any more.
    Lost(String),
}

impl RpcFailure {
    /// Sorts an error of the etcd client.
    #[must_use]
    pub fn of(error: &etcd_client::Error) -> Self {
        match error {
            etcd_client::Error::GRpcStatus(status) => Self::of_status(status),
            other => Self::Lost(chain(other)),
        }
    }

    fn of_status(status: &Status) -> Self {
        let message = status.message();
        match status.code() {
            Code::OutOfRange if message.contains("has been compacted") => Self::Compacted,
            Code::OutOfRange if message.contains("message length too large") => Self::TooLarge,
            Code::NotFound if message.contains("lease not found") => Self::LeaseGone,
            Code::PermissionDenied => Self::Refused(format!(
                "{} (the user named by the CN of our certificate needs a role for this key)",
                plain(message)
            )),
            Code::InvalidArgument if message.contains("user name is empty") => Self::Refused(
                "the store has authentication on and knows no user for our certificate (is its CN right?)".to_owned(),
            ),
            Code::Unauthenticated => {
                Self::Refused(format!("{} (is there a user with the CN of our certificate?)", plain(message)))
            }
            // A store of ours that holds too much for clients that do not read: the connection is fine.
            Code::Unavailable if message.contains("no room for an answer") => Self::Refused(plain(message).to_owned()),
            code => Self::Lost(format!("the store answered {code:?}: {}", status_text(status))),
        }
    }

    /// The reason as text.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Compacted => "the revision has been compacted",
            Self::TooLarge => "the answer is too large",
            Self::LeaseGone => "the lease has run out",
            Self::Refused(reason) | Self::Lost(reason) => reason,
        }
    }
}

/// Why a server cancelled a watch, as it words it; a permission problem among other things.
#[must_use]
pub fn cancel_reason(reason: &str) -> String {
    if reason.to_lowercase().contains("permission denied") || reason.contains("PermissionDenied") {
        format!("{} (the user named by the CN of our certificate needs a role for this key)", plain(reason))
    } else {
        plain(reason).to_owned()
    }
}

/// An error with all its causes on one line, each told once.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(inner) = cause else { break };
        let more = inner.to_string();
        if !text.contains(&more) {
            let _infallible = write!(text, ": {more}");
        }
        cause = inner.source();
    }
    text
}

fn status_text(status: &Status) -> String {
    let mut text = plain(status.message()).to_owned();
    let mut cause = status.source();
    for _ in 0..CAUSES_MAX {
        let Some(inner) = cause else { break };
        let more = inner.to_string();
        if !text.contains(&more) {
            let _infallible = write!(text, ": {more}");
        }
        cause = inner.source();
    }
    text
}

/// The message without etcd's own prefix.
fn plain(message: &str) -> &str {
    let message = message.rsplit("desc = ").next().unwrap_or(message);
    message.strip_prefix("etcdserver: ").unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: Code, message: &str) -> RpcFailure {
        RpcFailure::of(&etcd_client::Error::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn failures_are_sorted_by_what_to_do() {
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(failure(Code::OutOfRange, compacted), RpcFailure::Compacted);
        let large = "Error, decoded message length too large: found 9 bytes, the limit is: 4 bytes";
        assert_eq!(failure(Code::OutOfRange, large), RpcFailure::TooLarge);
        let lease = "etcdserver: requested lease not found";
        assert_eq!(failure(Code::NotFound, lease), RpcFailure::LeaseGone);
        let denied = failure(Code::PermissionDenied, "etcdserver: permission denied");
        assert!(matches!(&denied, RpcFailure::Refused(text) if text.starts_with("permission denied (")), "{denied:?}");
        let future = "etcdserver: mvcc: required revision is a future revision";
        assert!(matches!(failure(Code::OutOfRange, future), RpcFailure::Lost(_)));
        assert!(matches!(failure(Code::Unavailable, "x"), RpcFailure::Lost(_)));
        let full = "etcdserver: no room for an answer of 9 bytes: read them";
        assert!(matches!(failure(Code::Unavailable, full), RpcFailure::Refused(_)));
    }

    #[test]
    fn cancel_reasons_lose_their_wrapping() {
        let wrapped = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
        assert!(cancel_reason(wrapped).starts_with("permission denied ("));
        assert_eq!(cancel_reason("etcdserver: no leader"), "no leader");
    }
}
