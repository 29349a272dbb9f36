//! The state of our connection to a cluster's store.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::Kind;
use crate::id::ClusterId;

/// The last thing that went wrong with a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// What, with the hint for the operator.
    pub message: Arc<str>,
}

/// Connection to the store of one cluster, as its source reports it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PeerRow {
    /// Endpoints we try.
    pub endpoints: Vec<Arc<str>>,
    /// True while the store answers.
    pub connected: bool,
    /// Cluster id from its cluster-config, once read and accepted.
    pub id: Option<ClusterId>,
    /// The store's data is a cached copy (`cilium/cache`).
    pub cached: bool,
    /// Kinds whose canary was seen (or that need none).
    pub canaries: Vec<Kind>,
    /// Kinds whose list is complete on this connection.
    pub synced: Vec<Kind>,
    /// etcd cluster id the store answered with.
    pub store_id: Option<u64>,
    /// The store has other data than before: until then rows are kept that it does not have.
    pub kept_until: Option<Timestamp>,
    /// How often the connection was built anew.
    pub reconnections: u64,
    /// What is wrong now; `None` when nothing is.
    pub problem: Option<Failure>,
    /// The last failure, also after it healed.
    pub last_failure: Option<Failure>,
}

impl PeerRow {
    /// Connected, configured and every kind listed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.connected && self.id.is_some() && Kind::ALL.iter().all(|kind| self.synced.contains(kind))
    }
}
