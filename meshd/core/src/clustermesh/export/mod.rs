//! What our own cluster publishes, and what has to be written to get there.
//!
//! Everything here is a pure function of three things: what this node wants published ([`Desired`]), what the store holds
//! ([`Actual`], a list followed by a watch, never our memory of what we wrote) and which numbers the labels of our
//! workloads have ([`Allocator`]). [`plan`] compares the first two and gives ordered [`Op`]s.
//!
//! - A node writes and removes only what is its own: its node record, the address records that name one of its addresses
//!   as host, and identities its workloads need (I5). The *writer* of the cluster, one node, adds the
//!   cluster-config, the heartbeat, the canaries and the [services](ServiceRecords) the cluster shares, and collects
//!   identities nobody uses.
//! - Leased records must hang on a lease that lives; a record under another lease is written again.
//! - Order matters to readers: the cluster-config first, an identity before the addresses that refer to it, removals
//!   after additions, canaries only when all else is there, and those of
//!   services only when it is known which services there are.
//! - An address is published only when its identity is in the store with exactly our labels. While it is not, what is there
//!   stays as it is.
//!
//! After the store lost its data the canaries are [withheld](Withhold) until the nodes we knew are back.

mod allocate;
mod plan;
mod records;
mod services;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

pub use allocate::{Allocator, Claim};
pub use plan::{Actual, Held, Op, Scope, Withhold, plan};
pub use records::{Desired, RefusedWorkload, WantedRecord, WantedValue, is_identity_label, workload_labels};
pub use services::ServiceRecords;

use crate::{
    id::{ClusterId, ClusterName, MaxClusters, NodeName},
    observed::NodeRow,
};

/// Lifetime of a data lease; a dead node's records vanish after it (wire contract section 1.9).
pub const DATA_LEASE_TTL: Duration = Duration::from_secs(15 * 60);
/// Most keys on one lease.
pub const LEASE_KEYS_MAX: usize = 1_000;
/// How long canaries are withheld at most after the store lost its data.
pub const WITHHOLD_MAX: Duration = Duration::from_secs(120);
/// How long canaries of a store without history are withheld when we know of no other node: siblings that are up need
/// a moment to notice the new store.
pub const SETTLE: Duration = Duration::from_secs(3);
/// Most workloads of one node.
pub const WORKLOADS_MAX: usize = 10_000;

/// A workload on this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its service account.
    pub service_account: String,
}

/// What this node wants published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnState {
    /// Our cluster.
    pub cluster: ClusterName,
    /// Its id.
    pub id: ClusterId,
    /// Size of the mesh.
    pub max_clusters: MaxClusters,
    /// Our node.
    pub node: NodeName,
    /// Its row.
    pub row: Arc<NodeRow>,
    /// Its workloads.
    pub workloads: Vec<Workload>,
}
