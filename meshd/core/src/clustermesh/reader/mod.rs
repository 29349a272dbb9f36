//! Reading one cluster from a store: what to ask, what to believe, when to give up.
//!
//! [`Reader`] is a state machine without hands. Whoever drives it (a tokio task with an etcd client, or the simulation)
//! tells it what happened as [`Input`] and carries out the [`Command`]s it gets back; rows leave as
//! [`ClusterChange`](crate::observed::ClusterChange)s. The order of things is the one of wire contract section 2.2:
//!
//! ```text
//! Connect ─► heartbeat listed = connected ─► cluster-config accepted, id claimed ─► canaries ─► list, then watch, each kind
//!    ▲                                                                                            │ all listed: fresh
//!    └── after a pause with jitter ◄── transport lost · other cluster_id · silent heartbeat · no config for 3 minutes
//! ```
//!
//! - Every answer carries the id of the store's data. The first one of a connection is latched, another one means that
//!   the store lost its history: everything is read again, behind the canaries.
//! - A list is pinned at the revision of its first page, the watch starts one revision later, so nothing is missed or
//!   told twice. A compaction in between starts that list again; rows stay until the new list is complete (I4).
//! - Rows that other data of the store told are not removed at the end of the first list, but a minute later
//!   ([`Timers::replaced_grace`]): nodes publish themselves into an empty store one after the other.
//! - Nothing is ever removed because the store is silent. Rows become stale and stay. They are dropped only when the
//!   cluster comes back under another cluster id, and by whoever removes the peer.
//! - Refused records (I12) are told as rows; the reader remembers a bounded number of them to tell when they heal. What a
//!   record said before it was refused stays, in a watch and in a list ([`ClusterChange::Kept`]).
//! - The heartbeat watchdog finds a store that answers pings but whose control plane is dead (section 2.4).
//!
//! Services are read from their JSON records, and from endpoint slices when a cluster-config says that there is nothing
//! else ([`slices`]).
//!
//! The own cluster is read the same way ([`Settings::is_own`]): siblings appear through the store they share with us.
//!
//! What is ugly: a reader cannot know whether another peer uses the same cluster id, so it asks ([`Command::Claim`])
//! and waits for [`Input::Claimed`].

mod backoff;
mod decode;
mod follow;
mod machine;
mod problem;
mod session;
mod slices;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;

pub use machine::Reader;

use ipnet::IpNet;

use super::Accept;
use crate::{
    id::{ClusterId, ClusterName, MaxClusters, NodeName},
    observed::{ClusterChange, Kind},
};

/// Records asked for in one page. etcd counts the rest of the range again for every page, so small pages cost it more than
/// their round trips. Median of 7 lists of 25,000 node records (13 MiB) over loopback, on a busy machine of two cores, with
/// pages of 100, 256, 500, 1,000, 2,000 and 5,000:
///
/// - etcd 3.4.23: 2314, 1115, 522, 362, 248 and 263 ms;
/// - the embedded store: 306, 134, 140, 128, 119 and 182 ms.
///
/// A page of 2,000 node records is 1 MiB, which is also what a reader holds of a list at one time. Cilium asks for 256.
pub const PAGE_LIMIT: u32 = 2_000;
/// Records one list may bring. Tables refuse what is over their limits, but a list that never ends also never lets its
/// cluster be complete, and nobody would be told. No honest list is longer than twice the largest table.
pub const LIST_RECORDS_MAX: usize = 2 * crate::observed::Limits::ENDPOINTS;
/// Refused records a reader remembers by key; more are told but not healed one by one.
pub const REJECTED_KEYS_MAX: usize = crate::observed::Limits::REJECTED;

/// The moment of an input. `elapsed` never goes back and drives every timer, `wall` only dates rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since some fixed start.
    pub elapsed: Duration,
    /// Time of day.
    pub wall: Timestamp,
}

impl Now {
    /// Time of day at the moment `elapsed`, now or later, if there is such a time.
    fn wall_at(self, elapsed: Duration) -> Option<Timestamp> {
        self.wall.checked_add(elapsed.saturating_sub(self.elapsed)).ok()
    }
}

/// Times of the protocol (wire contract sections 2.2 and 2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// First pause before connecting again; doubles up to `reconnect_max`.
    pub reconnect_min: Duration,
    /// Longest pause before connecting again.
    pub reconnect_max: Duration,
    /// First pause before asking for a missing or refused cluster-config again; doubles up to `config_retry_max`.
    pub config_retry_min: Duration,
    /// Longest pause between two looks at the cluster-config.
    pub config_retry_max: Duration,
    /// Without an accepted cluster-config for this long the connection is built anew.
    pub config_timeout: Duration,
    /// How long a canary may be missing before it is a problem.
    pub canary_grace: Duration,
    /// Pause between two checks of the heartbeat while it is fine.
    pub check: Duration,
    /// Pause between two checks of the heartbeat while it is silent.
    pub check_failing: Duration,
    /// A heartbeat older than this fails the check.
    pub silence: Duration,
    /// This many failing checks in a row end the connection.
    pub failing_checks: u32,
    /// A watch that is not confirmed for this long ends the connection.
    pub watch_timeout: Duration,
    /// Pause before a list or watch that the store refused is tried again.
    pub refused_retry: Duration,
    /// How long rows that the new data of a store does not have are kept after its first complete list. The store may have been lost together with
    /// all memory of who published there, so that its canaries come before the last of its nodes has come back.
    pub replaced_grace: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            reconnect_min: Duration::from_millis(200),
            reconnect_max: Duration::from_secs(30),
            config_retry_min: Duration::from_millis(500),
            config_retry_max: Duration::from_secs(30),
            config_timeout: Duration::from_secs(180),
            canary_grace: Duration::from_secs(5),
            check: Duration::from_secs(30),
            check_failing: Duration::from_secs(5),
            silence: Duration::from_secs(120),
            failing_checks: 3,
            watch_timeout: Duration::from_secs(30),
            refused_retry: Duration::from_secs(15),
            replaced_grace: Duration::from_secs(60),
        }
    }
}

/// What a reader must know about its cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the cluster to read.
    pub cluster: ClusterName,
    /// Endpoints of its store, for display.
    pub endpoints: Vec<Arc<str>>,
    /// Name of our own cluster; equal to `cluster` when it is our own cluster that is read.
    pub own_cluster: ClusterName,
    /// Id of our own cluster.
    pub own_id: ClusterId,
    /// Size of the mesh.
    pub max_clusters: MaxClusters,
    /// Our node: its record in our own cluster is passed over, because we know it better than the store.
    pub own_node: NodeName,
    /// PodCIDRs nobody else may claim.
    pub own_pod_cidrs: Vec<IpNet>,
    /// Addresses of our node.
    pub own_addresses: Vec<IpAddr>,
    /// What the cluster may claim.
    pub accept: Accept,
    /// Cluster id the kept rows belong to, when the state directory had some.
    pub known_id: Option<ClusterId>,
    /// Which data the rows of each kind are from, when a reader before this one had listed them.
    pub listed_from: BTreeMap<Kind, u64>,
    /// Times.
    pub timers: Timers,
    /// Records per page.
    pub page_limit: u32,
    /// Start value of the jitter; give every reader another one.
    pub seed: u64,
}

impl Settings {
    /// True when it is our own cluster that is read.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.cluster == self.own_cluster
    }
}

/// A range of keys that is listed, then watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// `cilium/.heartbeat`
    Heartbeat,
    /// `cilium/cluster-config/C`
    Config,
    /// `cilium/synced/C/`
    Canaries,
    /// The records of one kind.
    Records(Kind),
}

impl Target {
    /// Every target, in the order they are opened.
    pub const ALL: [Self; 7] = [
        Self::Heartbeat,
        Self::Config,
        Self::Canaries,
        Self::Records(Kind::Nodes),
        Self::Records(Kind::Identities),
        Self::Records(Kind::Endpoints),
        Self::Records(Kind::Services),
    ];
}

/// The part of a response header a reader needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// `cluster_id`: id of the store's data.
    pub store_id: u64,
    /// Revision of the store at this answer.
    pub revision: i64,
}

/// A key and its value as the store told them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Key.
    pub key: Vec<u8>,
    /// Value; `None` when the key was deleted (never in a page).
    pub value: Option<Vec<u8>>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// The transport asked for by [`Command::Connect`] is ready.
    Connected,
    /// The transport could not be built, or is gone. Answers of the lost connection must not be given any more.
    Lost(Arc<str>),
    /// A page of the list under way.
    Page {
        /// Which range.
        target: Target,
        /// Header of the answer.
        header: Header,
        /// The records in key order.
        records: Vec<Record>,
        /// How many records the store counts from the first key asked for to the end of the range.
        count: usize,
        /// There are more.
        more: bool,
    },
    /// The list asked for a revision that the store no longer has.
    ListCompacted(Target),
    /// The page was larger than the driver reads in one message.
    PageTooLarge(Target),
    /// The watch is confirmed.
    Watching(Target, Header),
    /// Events of a watch, in order.
    Events {
        /// Which range.
        target: Target,
        /// Header of the message.
        header: Header,
        /// Changed keys.
        records: Vec<Record>,
    },
    /// The watch asked for a revision that the store no longer has, or fell too far behind.
    WatchCompacted(Target),
    /// The store refused a list or a watch (for instance for want of a role); the connection goes on.
    Refused(Target, Arc<str>),
    /// Answer to [`Command::Claim`]; the error names the cluster that has the id.
    Claimed(Result<(), ClusterName>),
    /// [`Reader::deadline`] has passed.
    Tick,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Drop the connection, if there is one, with all its answers; wait; build a new one.
    Connect {
        /// How long to wait.
        after: Duration,
    },
    /// Range request: sorted by key, linearizable.
    List {
        /// Which range.
        target: Target,
        /// First key.
        from: Vec<u8>,
        /// End of the range, exclusive; empty for the single key `from`.
        end: Vec<u8>,
        /// Revision to read at; 0 is the current one.
        revision: i64,
        /// Most records to return.
        limit: u32,
    },
    /// Watch create request.
    Watch {
        /// Which range.
        target: Target,
        /// First key.
        from: Vec<u8>,
        /// End of the range, exclusive; empty for the single key `from`.
        end: Vec<u8>,
        /// First revision to tell.
        revision: i64,
    },
    /// Reserve a cluster id for this cluster (releasing the one it had) and answer with [`Input::Claimed`].
    Claim(ClusterId),
}

/// What the reader says: commands in order, and changes to the rows of its cluster in order.
#[derive(Debug, Default)]
pub struct Output {
    /// What to do.
    pub commands: Vec<Command>,
    /// What to tell the tables.
    pub changes: Vec<ClusterChange>,
}
