//! The duties of the one node that writes for the whole cluster.
//!
//! The host of the embedded store is the writer and needs no election. With a store of its own the nodes elect one: who
//! holds the key below [`ELECTION_PREFIX`], on a lease of 25 seconds, is the writer. A node whose role may not write that key
//! never is: with a sibling's embedded store that is as it should be, with any other store it is a problem to be told, because
//! nobody takes over when the others are gone.

use std::{collections::BTreeSet, time::Duration};

use etcd_client::Client;
use meshd_core::{
    clustermesh::{Key, Keyspace, export::Actual},
    id::{ClusterName, NodeName, NumericIdentity},
};
use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    actual::{CALL_TIMEOUT, Follower, used_identities},
    ops::{self, Write},
};
use crate::store::RpcFailure;

/// Prefix of the election keys; the nodes' role on a real etcd needs read and write on it.
pub const ELECTION_PREFIX: &str = "meshd/election/";
/// Lifetime of the election lease.
const ELECTION_TTL_S: u64 = 25;
/// Pause between two signs of life of the election lease.
pub(super) const ELECTION_PERIOD: Duration = Duration::from_secs(8);

/// Who writes for the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriterRole {
    /// This node: it hosts the store.
    Host,
    /// Whoever is elected.
    Elected,
}

impl WriterRole {
    /// The election key, where one is needed.
    pub(super) fn election_key(self, cluster: &ClusterName) -> Option<String> {
        match self {
            Self::Host => None,
            Self::Elected => Some(format!("{ELECTION_PREFIX}{cluster}")),
        }
    }
}

/// True for a sibling's embedded store, whose host writes without an election. Its member has no peer URLs, which a member of
/// an etcd cannot be without; a store that does not answer the question is no sibling's.
pub(super) async fn is_embedded(client: &Client) -> bool {
    let mut cluster = client.cluster_client();
    match timeout(CALL_TIMEOUT, cluster.member_list()).await {
        Ok(Ok(answer)) => !answer.members().is_empty() && answer.members().iter().all(|m| m.peer_urls().is_empty()),
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Why a node that cannot be elected is a problem, and what to do.
pub(super) fn not_electable(cluster: &ClusterName, reason: &str) -> String {
    format!(
        "this node cannot be elected to write heartbeat, cluster-config and canaries when the others are gone: \
         {ELECTION_PREFIX}{cluster}: {reason}; give the role readwrite on the prefix meshd/, see the guide for a real etcd"
    )
}

/// Our part in the election.
#[derive(Debug)]
pub(super) struct Election {
    role: WriterRole,
    key: Option<String>,
    lease: i64,
    refused: bool,
}

impl Election {
    pub(super) fn new(role: WriterRole, cluster: &ClusterName) -> Self {
        Self { role, key: role.election_key(cluster), lease: 0, refused: false }
    }

    /// Whether this node is the writer now.
    pub(super) fn is_writer(&self, node: &NodeName, follower: &Follower) -> bool {
        match self.role {
            WriterRole::Host => true,
            WriterRole::Elected => {
                self.lease != 0
                    && follower
                        .elected
                        .as_ref()
                        .is_some_and(|(name, lease)| name == node.as_str() && *lease == self.lease)
            }
        }
    }

    /// Keeps our lease and, when nobody is elected, tries to be.
    pub(super) async fn step(
        &mut self,
        client: &Client,
        node: &NodeName,
        follower: &mut Follower,
    ) -> Result<(), RpcFailure> {
        let Some(key) = self.key.clone() else { return Ok(()) };
        if follower.election_refused.is_some() {
            return Ok(());
        }
        if self.lease != 0 && !ops::keep_alive(client, self.lease).await? {
            self.lease = 0;
        }
        if follower.elected.is_some() {
            return Ok(());
        }
        if self.lease == 0 {
            self.lease = ops::grant(client, ELECTION_TTL_S).await?;
        }
        match ops::create(client, &key, node.as_str().as_bytes(), self.lease).await {
            Ok(Some(held)) => {
                if held.lease == self.lease {
                    info!("this node writes cluster-config, heartbeat and canaries");
                }
                follower.elected = Some((String::from_utf8_lossy(&held.value).into_owned(), held.lease));
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(RpcFailure::Refused(reason)) => {
                if !std::mem::replace(&mut self.refused, true) {
                    info!(reason, "this node may not be elected");
                }
                follower.election_refused = Some(reason);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Finds identities that nobody uses.
#[derive(Debug, Default)]
pub(super) struct Collector {
    unused: BTreeSet<NumericIdentity>,
}

impl Collector {
    /// Removes the identities that were unused in the last round and still are; `needed` are those of our own workloads.
    /// Returns how many went.
    pub(super) async fn round(
        &mut self,
        client: &Client,
        cluster: &ClusterName,
        actual: &Actual,
        needed: &BTreeSet<NumericIdentity>,
    ) -> Result<usize, RpcFailure> {
        let used = used_identities(client).await?;
        let unused: BTreeSet<NumericIdentity> =
            actual.identities.keys().filter(|id| !used.contains(&id.0) && !needed.contains(id)).copied().collect();
        let twice: Vec<NumericIdentity> = unused.intersection(&self.unused).copied().collect();
        let writes = twice
            .iter()
            .filter_map(|id| {
                let key = Key::identity(Keyspace::State, cluster, *id).to_string().into();
                Some(Write::Delete { key, revision: actual.identities.get(id)?.revision })
            })
            .collect();
        let mut removed = 0;
        for (key, outcome) in ops::write_all(client, writes).await {
            match outcome {
                Ok(Err(_)) => removed += 1,
                // Somebody wrote it meanwhile: it is in use.
                Ok(Ok(_)) => {}
                Err(RpcFailure::Lost(reason)) => return Err(RpcFailure::Lost(reason)),
                Err(failure) => warn!(%key, reason = failure.text(), "failed to remove an unused identity"),
            }
        }
        self.unused = unused;
        self.unused.retain(|id| !twice.contains(id));
        Ok(removed)
    }
}
