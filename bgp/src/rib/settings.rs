//! Sessions come and go, and the configuration changes.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    DecisionOptions, Peer, PeerSettings, Rib,
    jobs::{Job, JobKind},
    peer::Session,
    with_table,
};
use crate::{
    NextHop,
    family::{Family, PerFamily},
    id::PeerId,
    policy::Vrps,
    session::Negotiated,
};

/// Addresses that may begin or cease to be our own at once before the whole table is walked for their sake.
const ADDRESSES_CHANGED_MAX: usize = 1_024;

/// Which paths of a peer a change of its settings may judge differently.
enum JudgedAgain {
    /// Any.
    All,
    /// Those to these addresses and to what covers them. Services come and go all the time, and a table is large: the few
    /// prefixes that cover an address are asked for by name.
    Around(Vec<IpNet>),
}

impl JudgedAgain {
    fn after(old: &PeerSettings, new: &PeerSettings) -> Self {
        let others = |it: &PeerSettings| (it.own_as_max, it.enforce_first_as, it.scope);
        if others(old) != others(new) {
            return Self::All;
        }
        if old.import == new.import {
            return Self::Around(Vec::new());
        }
        let is_address = |prefix: &IpNet| prefix.prefix_len() == prefix.max_prefix_len();
        match old.import.own_difference(&new.import) {
            Some(own) if own.len() <= ADDRESSES_CHANGED_MAX && own.iter().all(is_address) => Self::Around(own),
            Some(_) | None => Self::All,
        }
    }
}

impl Rib {
    /// Makes a peer known. Its paths come with its session.
    pub fn add_peer(&mut self, id: PeerId, settings: PeerSettings) {
        self.core.peers.insert(id, Peer::new(settings));
    }

    /// Changes what the configuration says of a peer: what it sent is judged again, and what it was told is made good.
    pub fn set_peer_settings(&mut self, id: PeerId, settings: PeerSettings) {
        let Some(peer) = self.core.peers.get_mut(id) else {
            return;
        };
        let old = std::mem::replace(&mut peer.settings, settings.clone());
        peer.set_settings(settings);
        let new = &peer.settings;
        let again = JudgedAgain::after(&old, new);
        let same_source = (old.reflector_client, old.address) == (new.reflector_client, new.address);
        for family in Family::ALL {
            with_table!(self.tables, family, table => {
                match &again {
                    JudgedAgain::All => table.add_job(Job::new(JobKind::Reimport(id))),
                    JudgedAgain::Around(addresses) => {
                        for address in addresses {
                            table.reimport_around(&mut self.core, id, *address);
                        }
                    }
                }
                if !same_source {
                    table.source_changed(None);
                }
                table.join(&mut self.core, id);
            });
        }
    }

    /// A session is up. `own` is what we say for each family when we are the next hop.
    pub fn peer_up(&mut self, id: PeerId, negotiated: &Negotiated, own: PerFamily<Option<NextHop>>) {
        for family in Family::ALL {
            with_table!(self.tables, family, table => {
                // A member of before would not hear what a new session has to hear.
                table.leave(&mut self.core, id);
                table.finish_jobs_of(&mut self.core, id);
            });
        }
        let Some(peer) = self.core.peers.get_mut(id) else {
            return;
        };
        let changed = (peer.kind, peer.router_id) != (negotiated.kind, negotiated.router_id);
        peer.session = Some(Session::new(negotiated, &own));
        (peer.kind, peer.remote_as, peer.router_id) = (negotiated.kind, negotiated.remote_as, negotiated.router_id);
        peer.warned = PerFamily::default();
        for family in Family::ALL {
            let is_agreed = negotiated.families.get(family).is_some();
            with_table!(self.tables, family, table => {
                if !is_agreed {
                    table.add_job(Job::new(JobKind::Remove(id)));
                }
                if changed {
                    table.source_changed(Some(id));
                }
                table.join(&mut self.core, id);
            });
        }
    }

    /// What we say when we are the next hop is something else for a peer with a session. A family without one keeps what it
    /// had.
    pub fn set_own_next_hops(&mut self, id: PeerId, own: PerFamily<Option<NextHop>>) {
        for family in Family::ALL {
            let agreed = self.core.peers.get_mut(id).and_then(|peer| peer.session.as_mut());
            let agreed = agreed.and_then(|session| session.families.get_mut(family).as_mut());
            let (Some(agreed), Some(new)) = (agreed, *own.get(family)) else {
                continue;
            };
            if agreed.own_next_hop.replace(new) != Some(new) {
                with_table!(self.tables, family, table => table.join(&mut self.core, id));
            }
        }
    }

    /// A session is down. Paths of families for which `retain` says so stay, as stale ones (RFC 4724 section 4.2).
    pub fn peer_down(&mut self, id: PeerId, retain: PerFamily<bool>) {
        for family in Family::ALL {
            let kind = if *retain.get(family) { JobKind::MarkStale(id) } else { JobKind::Remove(id) };
            with_table!(self.tables, family, table => {
                table.leave(&mut self.core, id);
                table.add_job(Job::new(kind));
            });
        }
        if let Some(peer) = self.core.peers.get_mut(id) {
            peer.session = None;
        }
    }

    /// Takes a peer out with all its paths. Its number is free once [`Self::knows`] says no.
    pub fn remove_peer(&mut self, id: PeerId) {
        self.peer_down(id, PerFamily::default());
        if let Some(peer) = self.core.peers.get_mut(id) {
            peer.is_leaving = true;
        }
        self.drop_leaving();
    }

    /// Is the peer, or any of its paths, still there?
    #[must_use]
    pub fn knows(&self, id: PeerId) -> bool {
        self.core.peers.get(id).is_some()
    }

    /// Forgets peers that were taken out and have no path left.
    pub(super) fn drop_leaving(&mut self) {
        let is_gone = |id: &PeerId| {
            self.core
                .peers
                .get(*id)
                .is_some_and(|peer| peer.is_leaving && peer.counts.ipv4.received == 0 && peer.counts.ipv6.received == 0)
        };
        let gone: Vec<PeerId> = self.core.peers.ids().filter(is_gone).collect();
        for id in gone {
            self.core.peers.remove(id);
        }
    }

    /// The peer has sent all it has: what is still stale goes (RFC 4724 section 4.2).
    pub fn end_of_rib(&mut self, id: PeerId, family: Family) {
        self.sweep_stale(id, family);
    }

    /// Stale paths of the peer go: a timer ran out, or its forwarding state is lost.
    pub fn sweep_stale(&mut self, id: PeerId, family: Family) {
        with_table!(self.tables, family, table => table.add_job(Job::new(JobKind::SweepStale(id))));
    }

    /// The restart time ran out, and the long-lived stale time begins (RFC 9494 section 4.2).
    pub fn mark_long_lived_stale(&mut self, id: PeerId, family: Family) {
        with_table!(self.tables, family, table => table.add_job(Job::new(JobKind::MarkLongLived(id))));
    }

    /// The peer begins to send everything again (RFC 7313 section 4). Whatever it sends from now on counts, so this is not
    /// put off.
    pub fn refresh_began(&mut self, id: PeerId, family: Family) {
        with_table!(self.tables, family, table => {
            table.finish_jobs_of(&mut self.core, id);
            table.add_job(Job::new(JobKind::BeginRefresh(id)));
            table.finish_jobs_of(&mut self.core, id);
        });
    }

    /// The peer has sent everything again: what it did not send goes.
    pub fn refresh_ended(&mut self, id: PeerId, family: Family) {
        with_table!(self.tables, family, table => table.add_job(Job::new(JobKind::EndRefresh(id))));
    }

    /// Changes best path selection; everything is decided again.
    pub fn set_decision(&mut self, options: DecisionOptions) {
        self.core.config.decision = options;
        for family in Family::ALL {
            with_table!(self.tables, family, table => table.add_job(Job::new(JobKind::Redecide)));
        }
    }

    /// Changes which large communities are marks for whoever forwards: those with this number in the middle; the last number of
    /// the first one is [`FibRoute::mark`](super::FibRoute::mark). How everything is forwarded is told again.
    pub fn set_mark(&mut self, function: Option<u32>) {
        if self.core.mark != function {
            self.core.mark = function;
            self.tell_forwarding_again();
        }
    }

    /// Turns the list of forwarding changes ([`RibConfig::forwarding`](super::RibConfig::forwarding)) on, and tells how
    /// everything is forwarded, or off. Nothing that was told before is taken back: who forwards no more drops all of it.
    pub fn set_forwarding(&mut self, forwarding: bool) {
        if std::mem::replace(&mut self.core.config.forwarding, forwarding) == forwarding {
            return;
        }
        if forwarding {
            self.tell_forwarding_again();
        } else {
            for family in Family::ALL {
                with_table!(self.tables, family, table => table.forget_forwarding());
            }
        }
    }

    /// Tells again how everything is forwarded, if anybody wants to know.
    pub fn tell_forwarding_again(&mut self) {
        if !self.core.config.forwarding {
            return;
        }
        for family in Family::ALL {
            with_table!(self.tables, family, table => table.add_job(Job::new(JobKind::Reforward)));
        }
    }

    /// Changes who may originate what. What policies decided with it is decided again.
    pub fn set_vrps(&mut self, vrps: Option<Arc<Vrps>>) {
        self.core.vrps = vrps;
        for family in Family::ALL {
            let depends =
                |id: &PeerId| self.core.peers.get(*id).is_some_and(|peer| peer.import.get(family).depends_on_rpki());
            let affected: Vec<PeerId> = self.core.peers.ids().filter(depends).collect();
            with_table!(self.tables, family, table => {
                for id in affected {
                    table.add_job(Job::new(JobKind::Reimport(id)));
                }
                if table.groups.iter().flatten().any(|group| group.key.policy.depends_on_rpki()) {
                    table.source_changed(None);
                }
            });
        }
    }
}
