//! For those who watch: messages as they go by, and what is selected.

use std::net::{IpAddr, Ipv4Addr};

use super::{Command, Mirrored, Speaker, TooManyPeers};
use crate::{
    NextHop,
    family::PerFamily,
    id::PeerId,
    policy::Policy,
    rib::PeerSettings,
    session::{Direction, Negotiated, NegotiatedFamily, PeerKind, Slot},
    wire::header::LengthLimit,
};

impl Speaker {
    /// From now on every message is also given to the owner, as [`Command::Message`], or no longer.
    pub fn mirror(&mut self, on: bool) {
        self.mirrors = on;
    }

    /// Somebody wants to know what is selected: [`Self::watched`] gives it as UPDATEs, whole table first, an End-of-RIB for
    /// each family behind that, then what changes. AS numbers have four octets, messages up to 65,535; paths of this speaker
    /// have the next hop 0.0.0.0 or `::`.
    ///
    /// # Errors
    /// When there are as many peers as there can be.
    pub fn watch(&mut self) -> Result<PeerId, TooManyPeers> {
        let id = self.free_number()?;
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let settings = PeerSettings::new(nowhere, Policy::reject_all(), Policy::accept_all());
        self.rib.add_peer(id, PeerSettings { watches: true, ..settings });
        let config = self.rib.config();
        let (asn, router_id) = (config.local_as, config.router_id);
        let family = Some(NegotiatedFamily { extended_next_hop: true, ..NegotiatedFamily::default() });
        let families = PerFamily { ipv4: family, ipv6: family };
        let negotiated = Negotiated {
            length_limit: LengthLimit::Extended,
            ..Negotiated::plain(PeerKind::Internal, asn, asn, router_id, families)
        };
        let own = PerFamily {
            ipv4: Some(NextHop::V4(Ipv4Addr::UNSPECIFIED)),
            ipv6: Some(NextHop::V6(std::net::Ipv6Addr::UNSPECIFIED)),
        };
        self.rib.peer_up(id, &negotiated, own);
        self.watchers.insert(id);
        self.untold.insert(id);
        self.has_input = true;
        Ok(id)
    }

    /// Appends UPDATEs for a watcher, at most about `octets_max`. Returns true when there may be more.
    pub fn watched(&mut self, id: PeerId, out: &mut Vec<u8>, octets_max: usize) -> bool {
        self.watchers.contains(&id) && self.rib.poll_export(id, out, octets_max)
    }

    /// Nobody wants to know any more.
    pub fn unwatch(&mut self, id: PeerId) {
        if self.watchers.contains(&id) {
            self.forget_watcher(id);
        }
    }

    pub(super) fn forget_watcher(&mut self, id: PeerId) {
        self.watchers.remove(&id);
        self.rib.remove_peer(id);
        self.has_input = true;
    }

    pub(super) fn note_message(&mut self, peer: PeerId, slot: Slot, direction: Direction, octets: &[u8]) {
        if self.mirrors {
            let octets = octets.to_vec();
            self.commands.push_back(Command::Message(Box::new(Mirrored { peer, slot, direction, octets })));
        }
    }
}
