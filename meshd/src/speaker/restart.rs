//! This speaker is not the first one since the machine booted: whom it waits for.

use std::collections::BTreeSet;

use bgp::{
    id::PeerId,
    session::{PeerKey, SELECTION_DEFERRAL},
};
use tracing::{info, warn};

use super::{
    core::{Core, Shared},
    listen,
};

impl Core {
    /// This speaker has restarted: waits for those peers with which its predecessor had a session. The ones that came from
    /// a range are made known, so that they are waited for like all others.
    pub(super) fn begin_restart(core: &Shared, had_session: &BTreeSet<PeerKey>) {
        for key in had_session {
            if let PeerKey::Address(ip, None) = key
                && !core.borrow().ids.contains_key(key)
            {
                listen::admit(core, *ip);
            }
        }
        let mut core = core.borrow_mut();
        let core = &mut *core;
        let now = core.now();
        let known = &core.known;
        let had_session = |id: PeerId| known.get(&id).is_some_and(|known| had_session.contains(&known.key));
        core.speaker.begin_restart(now, SELECTION_DEFERRAL, had_session);
        core.restarting = true;
    }

    /// Says once that nobody is waited for any more after a restart. Who has not come back is not waited for by the next
    /// speaker either.
    pub(super) fn note_end_of_restart(&mut self) {
        if !self.restarting || self.speaker.is_restarting() {
            return;
        }
        self.restarting = false;
        let is_up = |key: &PeerKey| {
            let session = self.ids.get(key).and_then(|id| self.speaker.session(*id));
            session.is_some_and(|session| session.negotiated().is_some())
        };
        let absent: Vec<String> =
            self.had_session.borrow().iter().filter(|key| !is_up(key)).map(ToString::to_string).collect();
        if absent.is_empty() {
            info!("BGP restart is over: every peer of before has said what it has");
        } else {
            warn!(absent = absent.join(", "), "BGP restart is over: some peers of before are not back");
        }
        self.had_session.send_modify(|peers| peers.retain(is_up));
        self.ranges_may_have_ended();
    }
}
