//! The JSON shapes of paths, messages and resets under `/v1/bgp`, see [`super::bgp_view`].
//!
//! | path | answer |
//! |---|---|
//! | `GET /v1/bgp/rib` | [`BgpPathsView`] of all paths; with `?name=` a prefix or an address, those to it |
//! | `GET /v1/bgp/received` | [`BgpPathsView`] of what a peer or, without `?name=`, every peer sent |
//! | `GET /v1/bgp/advertised` | [`BgpAdvertisedPageView`] of what a peer or, without `?name=`, every peer is told |
//! | `GET /v1/bgp/messages?name=` | list of [`BgpMessageView`], oldest first |
//! | `POST /v1/bgp/dump` | [`super::bgp_view::BgpDumpView`]: the MRT table that was written |
//! | `POST /v1/bgp/reset?name=` | [`BgpResetView`]; `soft=true` keeps the session, `message=` is for the peer's operator |
//!
//! A page may be short, even empty, and still have a next one: ask again with `?from=` and what `next` said until it is
//! `null`. What changes between two pages may be missed or seen twice.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A page of paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BgpPathsView {
    /// The paths.
    pub entries: Vec<BgpPathView>,
    /// Where to go on.
    pub next: Option<String>,
}

/// A page of paths that peers are told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BgpAdvertisedPageView {
    /// The paths.
    pub entries: Vec<BgpAdvertisedView>,
    /// Where to go on.
    pub next: Option<String>,
}

/// A path in the tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BgpPathView {
    /// The prefix.
    pub prefix: IpNet,
    /// Who sent it; `null` for our own.
    pub peer: Option<String>,
    /// Its identifier among the paths of one peer (RFC 7911); 0 without add-path.
    pub path_id: u32,
    /// When it came.
    pub since: Timestamp,
    /// It is selected.
    pub best: bool,
    /// Import policy and checks accepted it.
    pub accepted: bool,
    /// Kept although its session is down.
    pub stale: bool,
    /// Kept even longer (RFC 9494).
    pub long_lived_stale: bool,
    /// `best`, `multipath`, `lost`, `unresolved`, `waiting` or `rejected`.
    pub status: String,
    /// What became of it in words: at which step it lost, or why it was rejected.
    pub reason: String,
    /// The step at which it lost, for instance `as_path_length`.
    pub step: Option<String>,
    /// The rule of the import policy that rejected it.
    pub rule: Option<String>,
    /// Who is told it, and who is not and why; `null` in lists of all paths.
    #[serde(default)]
    pub exports: Option<BgpExportsView>,
    /// After policy; in `received` and for a rejected path as it was sent.
    #[serde(flatten)]
    pub attributes: BgpAttributesView,
}

/// Who is told a path, and who is not. Of a path that is not best, only peers that take several paths are named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpExportsView {
    /// Peers that are told.
    pub advertised_to: Vec<String>,
    /// Peers that are not.
    pub not_advertised_to: Vec<BgpWithheldView>,
}

/// A peer that is not told a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpWithheldView {
    /// The peer.
    pub peer: String,
    /// Why not.
    pub reason: String,
    /// The rule of its export policy that refused the path.
    pub rule: Option<String>,
}

/// A path that a peer is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BgpAdvertisedView {
    /// The prefix.
    pub prefix: IpNet,
    /// Who is told.
    pub peer: String,
    /// Who sent it to us; `null` for our own.
    pub source: Option<String>,
    /// Its identifier among the paths we tell (RFC 7911); 0 without add-path.
    pub path_id: u32,
    /// As it is told.
    #[serde(flatten)]
    pub attributes: BgpAttributesView,
}

/// Attributes of a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BgpAttributesView {
    /// The next hop; `null` for a path of our own.
    pub next_hop: Option<IpAddr>,
    /// The link-local address that came with it.
    pub next_hop_link_local: Option<IpAddr>,
    /// `igp`, `egp` or `incomplete`.
    pub origin: String,
    /// AS numbers; sets in braces, confederation segments in parentheses.
    pub as_path: String,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF, when the path has one.
    pub local_pref: Option<u32>,
    /// `65001:100` or a well-known name such as `no-export`.
    pub communities: Vec<String>,
    /// `RT:65001:7`
    pub extended_communities: Vec<String>,
    /// `65001:1:2`
    pub large_communities: Vec<String>,
    /// All others.
    pub attributes: Vec<BgpAttributeView>,
}

/// An attribute without a field of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BgpAttributeView {
    /// Its code.
    pub code: u8,
    /// Its name.
    pub name: String,
    /// Its value on one line.
    pub text: String,
    /// Its value with its structure.
    pub value: Value,
}

/// A message of the last ones, or a change of state between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpMessageView {
    /// When.
    pub at: Timestamp,
    /// `received` or `sent`; `null` for a change of state.
    pub direction: Option<String>,
    /// `open`, `update`, `notification`, `keepalive`, `route_refresh` or `state`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Octets with the header; `null` for a change of state.
    pub length: Option<u64>,
    /// What it says.
    pub text: String,
    /// The first octets behind the header in hexadecimal.
    pub octets: Option<String>,
}

/// What a reset did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpResetView {
    /// The peer.
    pub peer: String,
    /// The session went on.
    pub soft: bool,
    /// The session was established.
    pub was_established: bool,
    /// Families that the peer was asked to send again.
    pub requested: Vec<String>,
    /// Families that the peer is sent again.
    pub resent: Vec<String>,
}
