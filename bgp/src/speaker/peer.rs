//! A peer: its session, its connections, and what has been counted.

use super::Endpoints;
use crate::{
    NextHop,
    family::PerFamily,
    id::Moment,
    rib::PeerSettings,
    session::{Negotiated, Session, SessionConfig, Slot, State},
    wire::{header::LengthLimit, update::Context},
};

/// The configuration of a peer.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// What the session needs.
    pub session: SessionConfig,
    /// What the tables need.
    pub tables: PeerSettings,
    /// Treat paths with AS sets as withdrawn (RFC 9774).
    pub refuse_as_sets: bool,
}

/// What there is to say about a peer that neither its session nor the tables know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// State of the session.
    pub state: State,
    /// UPDATEs in which something was malformed and the session went on (RFC 7606).
    pub malformed_updates: u64,
    /// Those of them whose prefixes were treated as withdrawn.
    pub updates_treated_as_withdraw: u64,
    /// What was wrong with the last of them.
    pub last_malformed: Option<String>,
}

/// One of the two places for a connection.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// What the session wants sent and nobody has taken yet. A session says little: this stays small.
    pub(super) out: Vec<u8>,
    pub(super) endpoints: Endpoints,
    pub(super) limit: LengthLimit,
}

impl Connection {
    pub(super) fn begin(&mut self, endpoints: Endpoints) {
        *self = Self { out: std::mem::take(&mut self.out), endpoints, limit: LengthLimit::Standard };
        self.out.clear();
    }

    /// Ends the connection; returns what is still to be sent.
    pub(super) fn end(&mut self) -> Vec<u8> {
        std::mem::take(self).out
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) session: Session,
    pub(super) added: Moment,
    connections: [Connection; 2],
    /// What decoding needs, while established.
    pub(super) context: Option<Context>,
    pub(super) refuse_as_sets: bool,
    pub(super) deadline: Option<Moment>,
    /// It has sent all it has, by family.
    pub(super) told: PerFamily<bool>,
    pub(super) malformed_updates: u64,
    pub(super) updates_treated_as_withdraw: u64,
    pub(super) last_malformed: Option<String>,
}

impl Peer {
    pub(super) fn new(added: Moment, session: Session, refuse_as_sets: bool) -> Self {
        Self {
            session,
            added,
            connections: Default::default(),
            context: None,
            refuse_as_sets,
            deadline: None,
            told: PerFamily::default(),
            malformed_updates: 0,
            updates_treated_as_withdraw: 0,
            last_malformed: None,
        }
    }

    pub(super) fn connection(&self, slot: Slot) -> &Connection {
        &self.connections[slot.index()]
    }

    pub(super) fn connection_mut(&mut self, slot: Slot) -> &mut Connection {
        &mut self.connections[slot.index()]
    }

    /// Takes over what was agreed; returns our next hops on the connection.
    pub(super) fn establish(&mut self, slot: Slot, negotiated: &Negotiated) -> PerFamily<Option<NextHop>> {
        self.context = Some(Context { refuse_as_sets: self.refuse_as_sets, ..Context::from(negotiated) });
        self.told = PerFamily::default();
        self.connection_mut(slot).limit = negotiated.length_limit;
        self.own_next_hops(slot, negotiated)
    }

    /// Our next hops on a connection on which this was agreed.
    pub(super) fn own_next_hops(&self, slot: Slot, negotiated: &Negotiated) -> PerFamily<Option<NextHop>> {
        let endpoints = &self.connection(slot).endpoints;
        let mut own = endpoints.own_next_hops;
        if negotiated.families.ipv4.is_some_and(|family| family.extended_next_hop) {
            own.ipv4 = endpoints.extended_next_hop.or(own.ipv4);
        }
        own
    }

    pub(super) fn status(&self) -> PeerStatus {
        PeerStatus {
            state: self.session.state(),
            malformed_updates: self.malformed_updates,
            updates_treated_as_withdraw: self.updates_treated_as_withdraw,
            last_malformed: self.last_malformed.clone(),
        }
    }
}
