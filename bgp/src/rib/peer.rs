//! What the tables know of a BGP peer.

use std::net::IpAddr;

use super::{decision::Origination, next_hops::Scope};
use crate::{
    NextHop,
    family::{Family, PerFamily},
    id::{Asn, PeerId, RouterId},
    policy::{PeerSource, Policy},
    session::{Negotiated, PeerKind},
    wire::{
        capability::{Capability, Role},
        header::LengthLimit,
    },
};

/// What the configuration says of a peer, as far as the tables care.
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// Its address: the last but one word of best path selection, and what policies are told.
    pub address: IpAddr,
    /// The interface on which its link-local next hops are valid.
    pub scope: Scope,
    /// Judges what it sends.
    pub import: Policy,
    /// Judges what it is sent.
    pub export: Policy,
    /// How many prefixes it may send.
    pub limits: PerFamily<Limits>,
    /// It is a client of this route reflector.
    pub reflector_client: bool,
    /// It is a client of this route server: neither AS path nor next hop nor MED is changed (RFC 7947).
    pub route_server_client: bool,
    /// The next hop of what it is sent.
    pub next_hop: PerFamily<NextHopMode>,
    /// How often our AS may be in the AS paths it sends.
    pub own_as_max: u8,
    /// Refuse AS paths of an external peer that do not begin with its AS.
    pub enforce_first_as: bool,
    /// Take private AS numbers out of what it is sent.
    pub remove_private_as: bool,
    /// With add-path: the best so many paths of a prefix; 0 for all.
    pub add_path_max: PerFamily<u16>,
    /// Mark everything it is sent with the community of RFC 8326.
    pub graceful_shutdown: bool,
    /// It is no router but somebody who watches: it is told what is selected, as it is.
    pub watches: bool,
}

impl PeerSettings {
    /// Settings that let everything through and change what RFC 4271 changes.
    #[must_use]
    pub fn new(address: IpAddr, import: Policy, export: Policy) -> Self {
        Self {
            address,
            scope: Scope::default(),
            import,
            export,
            limits: PerFamily::default(),
            reflector_client: false,
            route_server_client: false,
            next_hop: PerFamily::default(),
            own_as_max: 0,
            enforce_first_as: true,
            remove_private_as: false,
            add_path_max: PerFamily::default(),
            graceful_shutdown: false,
            watches: false,
        }
    }
}

/// How many prefixes a peer may send for one family. A peer that sends several paths for a prefix (RFC 7911) is counted
/// for each of them, as BIRD, FRR and GoBGP do it: what a limit protects is memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Before policy.
    pub received_max: Option<u32>,
    /// After policy.
    pub accepted_max: Option<u32>,
    /// Warn at this part of a limit; 0 for no warning.
    pub warning_percent: u8,
    /// Only warn: more prefixes are taken.
    pub warns_only: bool,
}

/// The next hop of what a peer is sent. A policy may say otherwise for single paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHopMode {
    /// Ours towards external peers; unchanged towards internal ones.
    #[default]
    Default,
    /// Ours.
    Own,
    /// Unchanged.
    Unchanged,
}

/// What became of the prefixes of a peer, for one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Paths it sent.
    pub received: u32,
    /// Of these, after policy and checks.
    pub accepted: u32,
    /// Of these, selected as best.
    pub best: u32,
    /// Of those received, kept although the session is down or has not sent them again.
    pub stale: u32,
}

/// An established session, as far as the tables care.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) local_as: Asn,
    pub(super) asn4: bool,
    pub(super) length_limit: LengthLimit,
    pub(super) role: Option<Role>,
    /// The peer knows RFC 9494.
    pub(super) long_lived: bool,
    pub(super) enhanced_refresh: bool,
    pub(super) families: PerFamily<Option<SessionFamily>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SessionFamily {
    pub(super) add_path_send: bool,
    pub(super) extended_next_hop: bool,
    /// What we say when we are the next hop.
    pub(super) own_next_hop: Option<NextHop>,
}

impl Session {
    pub(super) fn new(negotiated: &Negotiated, own: &PerFamily<Option<NextHop>>) -> Self {
        let family = |family: Family| {
            negotiated.families.get(family).map(|agreed| SessionFamily {
                add_path_send: agreed.add_path_send,
                extended_next_hop: agreed.extended_next_hop,
                own_next_hop: *own.get(family),
            })
        };
        let knows_rfc_9494 = |c: &Capability| matches!(c, Capability::LongLivedGracefulRestart(_));
        Self {
            local_as: negotiated.local_as,
            asn4: negotiated.asn4,
            length_limit: negotiated.length_limit,
            role: negotiated.role,
            long_lived: negotiated.remote_open.capabilities.iter().any(knows_rfc_9494),
            enhanced_refresh: negotiated.enhanced_refresh,
            families: PerFamily { ipv4: family(Family::Ipv4Unicast), ipv6: family(Family::Ipv6Unicast) },
        }
    }
}

/// A peer whose paths may be in the tables. What paths need of it outlives its session, for graceful restart.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) settings: PeerSettings,
    /// The import policy as it is for each family.
    pub(super) import: PerFamily<Policy>,
    /// The export policy as it is for each family.
    pub(super) export: PerFamily<Policy>,
    pub(super) session: Option<Session>,
    /// Of the last session.
    pub(super) kind: PeerKind,
    /// Of the last session.
    pub(super) remote_as: Asn,
    /// Of the last session.
    pub(super) router_id: RouterId,
    pub(super) counts: PerFamily<Counts>,
    /// A warning about the number of prefixes was given.
    pub(super) warned: PerFamily<bool>,
    /// The number of its update group.
    pub(super) group: PerFamily<Option<usize>>,
    /// The family that was polled last.
    pub(super) polled: Family,
    /// It was taken out of the configuration.
    pub(super) is_leaving: bool,
}

impl Peer {
    pub(super) fn new(settings: PeerSettings) -> Self {
        let (import, export) = policies(&settings);
        Self {
            settings,
            import,
            export,
            session: None,
            kind: PeerKind::External,
            remote_as: Asn(0),
            router_id: RouterId(0),
            counts: PerFamily::default(),
            warned: PerFamily::default(),
            group: PerFamily::default(),
            polled: Family::Ipv4Unicast,
            is_leaving: false,
        }
    }

    pub(super) fn set_settings(&mut self, settings: PeerSettings) {
        (self.import, self.export) = policies(&settings);
        self.settings = settings;
    }

    pub(super) fn origination(&self) -> Origination {
        Origination { kind: Some(self.kind), router_id: self.router_id, address: self.settings.address }
    }

    pub(super) fn source(&self) -> PeerSource {
        PeerSource { kind: self.kind, asn: self.remote_as, address: self.settings.address }
    }

    pub(super) fn session_family(&self, family: Family) -> Option<(&Session, &SessionFamily)> {
        let session = self.session.as_ref()?;
        Some((session, session.families.get(family).as_ref()?))
    }
}

fn policies(settings: &PeerSettings) -> (PerFamily<Policy>, PerFamily<Policy>) {
    let by_family = |policy: &Policy| PerFamily {
        ipv4: policy.for_family(Family::Ipv4Unicast),
        ipv6: policy.for_family(Family::Ipv6Unicast),
    };
    let export = match settings.graceful_shutdown {
        true => settings.export.with_graceful_shutdown(),
        false => settings.export.clone(),
    };
    (by_family(&settings.import), by_family(&export))
}

/// Peers by number.
#[derive(Debug, Default)]
pub(super) struct Peers(Vec<Option<Peer>>);

impl Peers {
    pub(super) fn insert(&mut self, id: PeerId, peer: Peer) {
        if self.0.len() <= id.index() {
            self.0.resize_with(id.index() + 1, || None);
        }
        self.0[id.index()] = Some(peer);
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        self.0.get_mut(id.index())?.take()
    }

    #[inline]
    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.0.get(id.index())?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.0.get_mut(id.index())?.as_mut()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = PeerId> {
        let is_there = |(index, peer): (usize, &Option<Peer>)| peer.as_ref().and(u16::try_from(index).ok());
        self.0.iter().enumerate().filter_map(is_there).map(PeerId)
    }
}
