//! This speaker has restarted: when it may choose best paths again.
//!
//! The restarting speaker of graceful restart (RFC 4724 section 4.1). Right after its start it knows nothing, and what it
//! would advertise then would be worse than what its peers still remember of it. So it waits, family by family, until each
//! peer with graceful restart has sent End-of-RIB, or until the selection deferral time is over.

use std::{collections::BTreeMap, time::Duration};

use super::negotiated::Negotiated;
use crate::{
    family::{Family, PerFamily},
    id::{Moment, PeerId},
};

/// How long to wait for peers by default. Their stale paths live longer than that.
pub const SELECTION_DEFERRAL: Duration = Duration::from_secs(120);

/// Whom this speaker waits for after its restart. One value for the whole speaker.
#[derive(Clone, Debug)]
pub struct Restarter {
    awaited: BTreeMap<PeerId, PerFamily<bool>>,
    deadline: Moment,
    released: PerFamily<bool>,
}

impl Restarter {
    /// Waits for these peers: all that are configured with graceful restart, with the families they have it for.
    #[must_use]
    pub fn new(now: Moment, deferral: Duration, peers: impl IntoIterator<Item = (PeerId, PerFamily<bool>)>) -> Self {
        Self { awaited: peers.into_iter().collect(), deadline: now.after(deferral), released: PerFamily::default() }
    }

    /// A session is up. Nobody waits for a peer that has no graceful restart or has restarted itself: it waits for us.
    pub fn up(&mut self, peer: PeerId, negotiated: &Negotiated) {
        let waits = negotiated.restart.is_some_and(|restart| !restart.restarted);
        if let Some(awaited) = self.awaited.get_mut(&peer) {
            for family in Family::ALL {
                *awaited.get_mut(family) &=
                    waits && negotiated.families.get(family).is_some_and(|agreed| agreed.restart);
            }
        }
    }

    /// The peer has sent all its routes of a family.
    pub fn end_of_rib(&mut self, peer: PeerId, family: Family) {
        if let Some(awaited) = self.awaited.get_mut(&peer) {
            *awaited.get_mut(family) = false;
        }
    }

    /// The peer is stopped or no longer configured. One whose session was lost is waited for: it may come back in time.
    pub fn gone(&mut self, peer: PeerId) {
        self.awaited.remove(&peer);
    }

    /// The families that need not wait any longer, each told once.
    pub fn release(&mut self, now: Moment) -> PerFamily<bool> {
        let mut newly = PerFamily::default();
        for family in Family::ALL {
            if !self.released.get(family) && !self.waits_for(now, family) {
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
        (!self.is_over()).then_some(self.deadline)
    }

    /// Who is still awaited.
    pub fn awaited(&self) -> impl Iterator<Item = (PeerId, Family)> {
        self.awaited.iter().flat_map(|(peer, families)| {
            families.iter().filter(|(_, awaited)| **awaited).map(|(family, _)| (*peer, family)).collect::<Vec<_>>()
        })
    }

    fn waits_for(&self, now: Moment, family: Family) -> bool {
        now < self.deadline && self.awaited.values().any(|awaited| *awaited.get(family))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            LocalRestart, negotiate, our_open,
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
            restarter.up(peer, &negotiated(false, true));
            restarter.end_of_rib(peer, Family::Ipv4Unicast);
        }
        assert_eq!(restarter.release(at(1)), PerFamily { ipv4: true, ipv6: false });
        assert_eq!(restarter.awaited().count(), 2);
        restarter.end_of_rib(PeerId(0), Family::Ipv6Unicast);
        assert_eq!(restarter.release(at(2)), NONE);
        assert!(!restarter.is_over());
        restarter.end_of_rib(PeerId(1), Family::Ipv6Unicast);
        assert_eq!(restarter.release(at(3)), PerFamily { ipv4: false, ipv6: true });
        assert_eq!((restarter.is_over(), restarter.next_deadline()), (true, None));
    }

    #[test]
    fn nobody_waits_for_peers_that_cannot_end_the_wait() {
        let mut restarter = restarter(4);
        restarter.up(PeerId(0), &negotiated(true, true));
        restarter.up(PeerId(1), &negotiated(false, false));
        restarter.gone(PeerId(2));
        assert_eq!(restarter.release(at(1)), NONE, "one peer is not there yet");
        restarter.gone(PeerId(3));
        assert_eq!(restarter.release(at(1)), BOTH);
    }

    #[test]
    fn two_that_restarted_do_not_wait_for_each_other() {
        let (mut one, mut other) = (restarter(1), restarter(1));
        one.up(PeerId(0), &negotiated(true, true));
        other.up(PeerId(0), &negotiated(true, true));
        assert_eq!((one.release(at(1)), other.release(at(1))), (BOTH, BOTH));
    }

    #[test]
    fn the_wait_ends() {
        let mut restarter = restarter(1);
        assert_eq!(restarter.next_deadline(), Some(at(100)));
        assert_eq!(restarter.release(at(99)), NONE);
        assert_eq!(restarter.release(at(100)), BOTH);
        assert!(restarter.is_over());
        assert_eq!(restarter.release(at(101)), NONE);
    }

    #[test]
    fn without_peers_there_is_no_wait() {
        assert_eq!(restarter(0).release(at(0)), BOTH);
    }
}
