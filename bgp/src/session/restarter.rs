//! This speaker has restarted: when it may choose best paths again.
//!
//! The restarting speaker of graceful restart (RFC 4724 section 4.1). Right after its start it knows nothing, and what it
//! would advertise then would be worse than what its peers still remember of it. So it waits, family by family, until each
//! peer with graceful restart has sent End-of-RIB and its next hops have been looked at, or until the selection deferral time
//! is over.
//!
//! The RFC says "all its peers" and leaves open who that is. A peer without a session before the restart has no path of ours
//! to keep and none in our forwarding state, so whoever starts the wait names only those that had one.
//!
//! It excludes peers that have restarted themselves, so that two do not wait for each other. FRR says of itself for two minutes
//! after every start that it has restarted, also when it has long sent and got everything; to choose without it would make
//! others drop the paths it is about to send. So such a peer is waited for as well, but only for [`RESTARTED_WAIT`].

use std::{collections::BTreeMap, time::Duration};

use super::negotiated::Negotiated;
use crate::{
    family::{Family, PerFamily},
    id::{Moment, PeerId},
};

/// How long to wait for peers by default. Their stale paths live longer than that.
pub const SELECTION_DEFERRAL: Duration = Duration::from_secs(120);

/// How long to wait for a peer that is back and says that it has restarted too.
pub const RESTARTED_WAIT: Duration = Duration::from_secs(5);

/// Whom this speaker waits for after its restart. One value for the whole speaker.
#[derive(Clone, Debug)]
pub struct Restarter {
    awaited: BTreeMap<PeerId, Awaited>,
    deadline: Moment,
    released: PerFamily<bool>,
}

/// A peer that has not told everything.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    families: PerFamily<bool>,
    /// Only until then.
    until: Option<Moment>,
}

impl Restarter {
    /// Waits for these peers: those with graceful restart that had a session before, with the families they have it for.
    #[must_use]
    pub fn new(now: Moment, deferral: Duration, peers: impl IntoIterator<Item = (PeerId, PerFamily<bool>)>) -> Self {
        let awaited = peers.into_iter().map(|(peer, families)| (peer, Awaited { families, until: None })).collect();
        Self { awaited, deadline: now.after(deferral), released: PerFamily::default() }
    }

    /// A session is up. Nobody waits for a peer that has no graceful restart. One that has the capability and names no family in
    /// it cannot restart, but keeps our paths and sends End-of-RIB all the same (RFC 4724 section 3).
    pub fn up(&mut self, now: Moment, peer: PeerId, negotiated: &Negotiated) {
        let waits = negotiated.restart.is_some();
        let restarted = negotiated.restart.is_some_and(|restart| restart.restarted);
        if let Some(Awaited { families: awaited, until }) = self.awaited.get_mut(&peer) {
            *until = restarted.then(|| now.after(RESTARTED_WAIT));
            for family in Family::ALL {
                *awaited.get_mut(family) &= waits && negotiated.families.get(family).is_some();
            }
        }
    }

    /// The peer has sent all its routes of a family.
    pub fn end_of_rib(&mut self, peer: PeerId, family: Family) {
        if let Some(awaited) = self.awaited.get_mut(&peer) {
            *awaited.families.get_mut(family) = false;
        }
    }

    /// The peer is stopped or no longer configured. One whose session was lost is waited for: it may come back in time.
    pub fn gone(&mut self, peer: PeerId) {
        self.awaited.remove(&peer);
    }

    /// The families that need not wait any longer, each told once. While it is not known of every next hop whether it can be
    /// reached (`is_judged`), a choice would leave paths out, and telling the peers so would make them drop what they keep.
    pub fn release(&mut self, now: Moment, is_judged: bool) -> PerFamily<bool> {
        let mut newly = PerFamily::default();
        for family in Family::ALL {
            let waits = now < self.deadline && !is_judged;
            if !self.released.get(family) && !waits && !self.waits_for(now, family) {
                *self.released.get_mut(family) = true;
                *newly.get_mut(family) = true;
            }
        }
        newly
    }

    /// All families were released.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.released.ipv4 && self.released.ipv6
    }

    /// When [`Self::release`] has to be asked even if nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let waits = |awaited: &&Awaited| awaited.families.ipv4 || awaited.families.ipv6;
        let earliest = self.awaited.values().filter(waits).filter_map(|awaited| awaited.until).min();
        (!self.is_over()).then(|| earliest.map_or(self.deadline, |until| until.min(self.deadline)))
    }

    /// Who is still awaited.
    pub fn awaited(&self) -> impl Iterator<Item = (PeerId, Family)> {
        self.awaited.iter().flat_map(|(peer, awaited)| {
            awaited
                .families
                .iter()
                .filter(|(_, awaited)| **awaited)
                .map(|(family, _)| (*peer, family))
                .collect::<Vec<_>>()
        })
    }

    fn waits_for(&self, now: Moment, family: Family) -> bool {
        let waits = |awaited: &Awaited| *awaited.families.get(family) && awaited.until.is_none_or(|until| now < until);
        now < self.deadline && self.awaited.values().any(waits)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            LocalRestart, RestartConfig, negotiate, our_open,
            tests::{at, config, seconds, their_config},
        },
        *,
    };

    const BOTH: PerFamily<bool> = PerFamily { ipv4: true, ipv6: true };
    const NONE: PerFamily<bool> = PerFamily { ipv4: false, ipv6: false };

    fn negotiated(restarted: bool, graceful: bool) -> Negotiated {
        let mut theirs = their_config();
        theirs.graceful_restart = theirs.graceful_restart.filter(|_| graceful);
        let open = our_open(&theirs, &LocalRestart { restarted, forwarding_kept: BOTH });
        negotiate(&config(), &open).expect("the peers fit")
    }

    fn restarter(peers: u16) -> Restarter {
        Restarter::new(at(0), seconds(100), (0..peers).map(|peer| (PeerId(peer), BOTH)))
    }

    #[test]
    fn each_family_waits_for_end_of_rib_of_every_peer() {
        let mut restarter = restarter(2);
        for peer in [PeerId(0), PeerId(1)] {
            restarter.up(at(1), peer, &negotiated(false, true));
            restarter.end_of_rib(peer, Family::Ipv4Unicast);
        }
        assert_eq!(restarter.release(at(1), true), PerFamily { ipv4: true, ipv6: false });
        assert_eq!(restarter.awaited().count(), 2);
        restarter.end_of_rib(PeerId(0), Family::Ipv6Unicast);
        assert_eq!(restarter.release(at(2), true), NONE);
        assert!(!restarter.is_over());
        restarter.end_of_rib(PeerId(1), Family::Ipv6Unicast);
        assert_eq!(restarter.release(at(3), true), PerFamily { ipv4: false, ipv6: true });
        assert_eq!((restarter.is_over(), restarter.next_deadline()), (true, None));
    }

    #[test]
    fn nobody_waits_for_peers_that_cannot_end_the_wait() {
        let mut restarter = restarter(4);
        restarter.gone(PeerId(0));
        restarter.up(at(1), PeerId(1), &negotiated(false, false));
        restarter.gone(PeerId(2));
        assert_eq!(restarter.release(at(1), true), NONE, "one peer is not there yet");
        restarter.gone(PeerId(3));
        assert_eq!(restarter.release(at(1), true), BOTH);
    }

    #[test]
    fn a_peer_that_only_helps_is_waited_for() {
        let mut theirs = their_config();
        theirs.graceful_restart = theirs.graceful_restart.map(|it| RestartConfig { helper_only: true, ..it });
        let open = our_open(&theirs, &LocalRestart::default());
        let mut restarter = restarter(1);
        restarter.up(at(1), PeerId(0), &negotiate(&config(), &open).expect("the peers fit"));
        assert_eq!(restarter.release(at(1), true), NONE);
        restarter.end_of_rib(PeerId(0), Family::Ipv4Unicast);
        restarter.end_of_rib(PeerId(0), Family::Ipv6Unicast);
        assert_eq!(restarter.release(at(2), true), BOTH);
    }

    #[test]
    fn two_that_restarted_wait_for_each_other_for_a_moment() {
        let mut one = restarter(1);
        one.up(at(1), PeerId(0), &negotiated(true, true));
        let end = at(1).after(RESTARTED_WAIT);
        assert_eq!((one.release(at(2), true), one.next_deadline()), (NONE, Some(end)));
        assert_eq!(one.release(end, true), BOTH);
        let mut told = restarter(1);
        told.up(at(1), PeerId(0), &negotiated(true, true));
        told.end_of_rib(PeerId(0), Family::Ipv4Unicast);
        told.end_of_rib(PeerId(0), Family::Ipv6Unicast);
        assert_eq!(told.release(at(2), true), BOTH);
    }

    #[test]
    fn the_wait_ends() {
        let mut restarter = restarter(1);
        assert_eq!(restarter.next_deadline(), Some(at(100)));
        assert_eq!(restarter.release(at(99), true), NONE);
        assert_eq!(restarter.release(at(100), true), BOTH);
        assert!(restarter.is_over());
        assert_eq!(restarter.release(at(101), true), NONE);
    }

    #[test]
    fn nothing_is_chosen_before_it_is_known_which_next_hops_can_be_reached() {
        let mut restarter = restarter(1);
        restarter.up(at(1), PeerId(0), &negotiated(false, true));
        restarter.end_of_rib(PeerId(0), Family::Ipv4Unicast);
        assert_eq!(restarter.release(at(1), false), NONE);
        assert_eq!(restarter.release(at(2), true), PerFamily { ipv4: true, ipv6: false });
        restarter.end_of_rib(PeerId(0), Family::Ipv6Unicast);
        assert_eq!(restarter.release(at(99), false), NONE);
        assert_eq!(restarter.release(at(100), false), PerFamily { ipv4: false, ipv6: true }, "but not for ever");
    }

    #[test]
    fn without_peers_there_is_no_wait() {
        assert_eq!(restarter(0).release(at(0), true), BOTH);
    }
}
