//! What two OPEN messages agreed on.

use crate::{
    family::PerFamily,
    id::{Asn, RouterId},
    wire::{capability::Role, header::LengthLimit, open::Open},
};

/// How a peer is related to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerKind {
    /// Another AS.
    External,
    /// Our AS.
    Internal,
    /// Another member AS of our confederation.
    Confederation,
}

/// An established session: fixed until it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// How the peer is related to us.
    pub kind: PeerKind,
    /// The AS we said we are.
    pub local_as: Asn,
    /// The AS the peer said it is.
    pub remote_as: Asn,
    /// The peer's identifier.
    pub router_id: RouterId,
    /// The smaller of both hold times; 0 for none.
    pub hold_time_s: u16,
    /// Both know four-octet AS numbers.
    pub asn4: bool,
    /// Longest message, both directions.
    pub length_limit: LengthLimit,
    /// The peer understands ROUTE-REFRESH.
    pub route_refresh: bool,
    /// Both know the beginning and the end of a route refresh.
    pub enhanced_refresh: bool,
    /// Our role, when both said theirs and they fit, or ours alone when that is allowed.
    pub role: Option<Role>,
    /// By family; `None` when not both have it.
    pub families: PerFamily<Option<NegotiatedFamily>>,
    /// The peer's graceful restart, when both have it.
    pub restart: Option<PeerRestart>,
    /// The peer's OPEN, for people.
    pub remote_open: Open,
}

impl Negotiated {
    /// A session in which both know four-octet AS numbers and the families, and agreed on nothing else: nobody says that it is
    /// there, and messages have the standard length.
    pub fn plain(
        kind: PeerKind,
        local_as: Asn,
        remote_as: Asn,
        router_id: RouterId,
        families: PerFamily<Option<NegotiatedFamily>>,
    ) -> Self {
        Self {
            kind,
            local_as,
            remote_as,
            router_id,
            hold_time_s: 0,
            asn4: true,
            length_limit: LengthLimit::Standard,
            route_refresh: false,
            enhanced_refresh: false,
            role: None,
            families,
            restart: None,
            remote_open: Open { asn: remote_as, hold_time_s: 0, router_id, capabilities: Vec::new() },
        }
    }
}

/// What holds for one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NegotiatedFamily {
    /// The peer sends path identifiers.
    pub add_path_receive: bool,
    /// We send path identifiers.
    pub add_path_send: bool,
    /// Both know IPv6 next hops for this (IPv4) family.
    pub extended_next_hop: bool,
    /// The peer takes part in graceful restart for it.
    pub restart: bool,
    /// The peer kept its forwarding state over its restart.
    pub forwarding_kept: bool,
    /// How long paths of the peer may stay long-lived stale; 0 without RFC 9494 on both sides.
    pub stale_time_s: u32,
    /// The peer kept its forwarding state over a long restart.
    pub long_lived_forwarding_kept: bool,
}

/// What the peer said about its restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRestart {
    /// It has just restarted and waits for our End-of-RIB.
    pub restarted: bool,
    /// Also after NOTIFICATION and hold time (both sides said so).
    pub notification: bool,
    /// How long it may be away.
    pub restart_time_s: u16,
}
