//! The JSON shapes of `/v1/bgp`, under the rules of [`super::view`].
//!
//! | path | answer |
//! |---|---|
//! | `GET /v1/bgp/summary` | [`BgpSummaryView`] |
//! | `GET /v1/bgp/neighbors` | list of [`BgpNeighborView`] |
//!
//! Without a `bgp` section in the configuration all of them answer 404. `?name=` is the name of a peer: an address, an
//! address with its link (`fe80::1%eth0`) or a link. Families are called `ipv4` and `ipv6`, as in the configuration.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The BGP speaker and its peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpSummaryView {
    /// Its AS.
    pub asn: u32,
    /// Its identifier, written like an address.
    pub router_id: String,
    /// Peers.
    pub peers: u64,
    /// Of these, with an established session.
    pub established: u64,
    /// What the tables hold.
    pub tables: Vec<BgpTableView>,
    /// Distinct sets of attributes.
    pub attribute_sets: u64,
    /// Their octets.
    pub attribute_bytes: u64,
    /// Connections that were closed because nobody who is a peer opened them.
    pub strangers: u64,
    /// The peers, sorted by address.
    pub neighbors: Vec<BgpNeighborRow>,
    /// BMP stations.
    #[serde(default)]
    pub stations: Vec<BgpStationView>,
    /// The MRT log of messages; `null` without one.
    #[serde(default)]
    pub mrt_log: Option<BgpMrtLogView>,
}

/// A BMP station.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpStationView {
    /// Its address.
    pub address: String,
    /// It is connected.
    pub connected: bool,
    /// Octets it was sent, over all connections.
    pub sent_bytes: u64,
    /// Octets that wait for it.
    pub waiting_bytes: u64,
    /// How often its connection was ended because it read too slowly.
    pub overflows: u64,
    /// Why it is not connected.
    pub problem: Option<String>,
}

/// The MRT log of messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpMrtLogView {
    /// Octets written.
    pub written_bytes: u64,
    /// Files finished.
    pub files: u64,
    /// Records that were lost because the disk could not follow, or failed.
    pub lost: u64,
    /// What keeps records from being written.
    pub problem: Option<String>,
}

/// An MRT table that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpDumpView {
    /// The file.
    pub file: String,
}

/// What the table of a family holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpTableView {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Prefixes with paths.
    pub prefixes: u64,
    /// Paths.
    pub paths: u64,
}

/// A peer in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpNeighborRow {
    /// What it is called: address, `address%link`, or link.
    pub peer: String,
    /// Its address; `null` for an unnumbered peer without a session.
    pub address: Option<IpAddr>,
    /// The link it is known by.
    pub interface: Option<String>,
    /// From the configuration.
    pub description: Option<String>,
    /// Its AS: the one it says it has, or the one it must have.
    pub remote_as: Option<u32>,
    /// `idle`, `connect`, `active`, `open_sent`, `open_confirm` or `established`.
    pub state: String,
    /// It is kept down by the configuration.
    pub shutdown: bool,
    /// It came by itself, from a listen range.
    pub dynamic: bool,
    /// How its packets must be signed: `tcp-md5`; `null` where they need not be.
    pub authentication: Option<String>,
    /// Since when the session is established.
    pub established_since: Option<Timestamp>,
    /// For how long.
    pub uptime_s: Option<u64>,
    /// How often an established session ended.
    pub downs: u64,
    /// The last end of an established session.
    pub last_reset: Option<BgpResetCauseView>,
    /// The last attempt at a session that failed; `null` while there is one.
    pub last_failure: Option<BgpResetCauseView>,
    /// Its connections that were not taken.
    pub connections_refused: u64,
    /// Why the last of them was not.
    pub last_refusal: Option<String>,
    /// Since when it has taken nothing of what waits to be sent.
    pub send_blocked_since: Option<Timestamp>,
    /// For how long.
    pub send_blocked_s: Option<u64>,
    /// Messages from it.
    pub messages_received: u64,
    /// Messages to it.
    pub messages_sent: u64,
    /// UPDATE messages from it.
    pub updates_received: u64,
    /// UPDATE messages to it.
    pub updates_sent: u64,
    /// Paths it sent.
    pub received: u64,
    /// Of these, accepted by policy and checks.
    pub accepted: u64,
    /// Of these, selected as best.
    pub best: u64,
    /// Paths it is told.
    pub advertised: u64,
    /// The same by family, and what was agreed for each.
    pub families: Vec<BgpFamilyView>,
}

/// Why a session ended, or did not begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpResetCauseView {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
    /// What the peer's operator had to say (RFC 9003).
    pub communication: Option<String>,
}

/// One family of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpFamilyView {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Both sides have it.
    pub negotiated: bool,
    /// Paths the peer sent.
    pub received: u64,
    /// Of these, accepted by policy and checks.
    pub accepted: u64,
    /// Of these, selected as best.
    pub best: u64,
    /// Of those received, kept although the session is down or has not sent them again.
    pub stale: u64,
    /// Paths the peer is told.
    pub advertised: u64,
    /// How many it may send before policy.
    pub received_max: Option<u64>,
    /// How many it may send after policy.
    pub accepted_max: Option<u64>,
    /// It sends several paths for a prefix.
    pub add_path_receive: bool,
    /// It is sent several paths for a prefix.
    pub add_path_send: bool,
    /// IPv6 next hops for IPv4 prefixes (RFC 8950).
    pub extended_next_hop: bool,
    /// Its paths are kept while it restarts.
    pub graceful_restart: bool,
    /// How long its paths may be long-lived stale after that; 0 for not at all.
    pub long_lived_stale_s: u32,
}

/// All about a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpNeighborView {
    /// What is in one line.
    #[serde(flatten)]
    pub row: BgpNeighborRow,
    /// `external`, `internal` or `confederation`.
    pub kind: String,
    /// The AS we are for it.
    pub local_as: u32,
    /// Its identifier.
    pub remote_router_id: Option<String>,
    /// Our end of the connection, with the port.
    pub local_address: Option<String>,
    /// Its end of the connection, with the port.
    pub remote_address: Option<String>,
    /// How often a session was established.
    pub established_count: u64,
    /// Timers.
    pub timers: BgpTimersView,
    /// Our role (RFC 9234), when it is in force.
    pub role: Option<String>,
    /// What both sides can do.
    pub capabilities: BgpCapabilitiesView,
    /// Its restarts: how long it may be away; `null` when not both sides have graceful restart.
    pub restart_time_s: Option<u16>,
    /// Longest message in octets.
    pub message_length_max: Option<u64>,
    /// Messages by type.
    pub messages: BgpMessageCountsView,
    /// UPDATE messages in which something was malformed and the session went on (RFC 7606).
    pub malformed_updates: u64,
    /// What was wrong with the last of them.
    pub last_malformed: Option<String>,
    /// `up`, `init`, `down`, `admin down`, or `waiting` for the first BGP session; `null` where BFD is not configured.
    pub bfd: Option<String>,
    /// Echo packets of BFD: `active` with their interval and source address, `unanswered` while none has come back, `waiting`, or why none
    /// are sent; `null` where they are not wanted.
    pub bfd_echo: Option<String>,
}

/// Timers of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpTimersView {
    /// The hold time in force; 0 for none, `null` without a session.
    pub hold_time_s: Option<u16>,
    /// Time between two KEEPALIVE messages; `null` without a session or a hold time.
    pub keepalive_s: Option<u16>,
    /// The hold time we offer.
    pub offered_hold_time_s: u16,
    /// The hold time the peer offered.
    pub remote_hold_time_s: Option<u16>,
    /// How long an attempt to connect may take, and the time between two.
    pub connect_retry_s: u64,
}

/// Capabilities of both sides, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpCapabilitiesView {
    /// Ours.
    pub sent: Vec<BgpCapabilityView>,
    /// Those of the peer; empty without a session.
    pub received: Vec<BgpCapabilityView>,
}

/// One capability.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BgpCapabilityView {
    /// Its code.
    pub code: u8,
    /// Its name.
    pub name: String,
    /// What it says.
    pub value: Option<String>,
}

/// Messages of both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpMessageCountsView {
    /// From the peer.
    pub received: BgpMessagesView,
    /// To the peer.
    pub sent: BgpMessagesView,
}

/// Messages by type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpMessagesView {
    /// OPEN.
    pub open: u64,
    /// UPDATE.
    pub update: u64,
    /// NOTIFICATION.
    pub notification: u64,
    /// KEEPALIVE.
    pub keepalive: u64,
    /// ROUTE-REFRESH.
    pub route_refresh: u64,
}
