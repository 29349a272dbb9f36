//! This speaker is not the first one since the machine booted: whom it waits for.
//!
//! BFD of the process before this one ended with it, and begins anew. A peer that had not noticed the end takes the beginning
//! for a path that failed, and if the BGP session is back by then, it may end that, and graceful restart with it (FRR 8.4
//! does). So BFD goes first, and BGP follows when the peer's BFD has heard of it, or [`HEARD_WITHIN`] has passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bgp::{
    id::PeerId,
    session::{PeerKey, SELECTION_DEFERRAL},
};
use tokio::{
    net::TcpStream,
    sync::Notify,
    task::spawn_local,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{
    bfd::State,
    core::{Core, Shared},
    listen,
};

/// How long a peer's BFD may take to hear of ours. One that is down sends every second (RFC 5880 section 6.8.3).
const HEARD_WITHIN: Duration = Duration::from_millis(1_500);
/// How long we leave it to a peer to connect when BFD is up. FRR does so at once, and a connection of ours at that very moment
/// collides with it, of which FRR 8.4 loses both.
const THEIR_TURN: Duration = Duration::from_millis(200);

/// Peers whose BFD may still count on the process before this one.
#[derive(Default)]
pub(super) struct Unaware {
    peers: BTreeMap<PeerId, Stage>,
    /// The newest connection of each that came meanwhile.
    held: BTreeMap<PeerId, TcpStream>,
    news: Rc<Notify>,
}

/// How far a peer is.
#[derive(Clone, Copy)]
enum Stage {
    /// It was not told yet.
    Untold,
    /// It may take until then to answer.
    Told(Instant),
    /// It has answered, and may connect until then before we do.
    Heard(Instant),
}

impl Unaware {
    /// BFD has heard something.
    pub(super) fn look_again(&self) {
        self.news.notify_waiters();
    }

    pub(super) fn forget(&mut self, id: PeerId) {
        self.peers.remove(&id);
        self.held.remove(&id);
    }
}

/// Waits until a connection may be opened to the peer between these addresses.
pub(super) async fn until_our_turn(core: &Shared, id: PeerId, ends: (SocketAddr, SocketAddr)) {
    while let Some(Stage::Heard(until)) = until_aware(core, id, ends).await {
        sleep_until(until).await;
    }
}

/// Waits until the peer's BFD has heard that ours begins anew between these addresses, where it has to.
async fn until_aware(core: &Shared, id: PeerId, ends: (SocketAddr, SocketAddr)) -> Option<Stage> {
    loop {
        let (news, deadline) = {
            let mut core = core.borrow_mut();
            match core.make_aware(id, ends) {
                Some(Stage::Told(deadline)) => (core.unaware.news.clone(), deadline),
                further => return further,
            }
        };
        tokio::select! {
            () = news.notified() => {}
            () = sleep_until(deadline) => {}
        }
    }
}

/// Takes a connection of a peer, when the peer's BFD has heard of ours.
pub(super) fn accept_when_aware(core: &Shared, id: PeerId, stream: TcpStream) {
    let ends = (stream.local_addr(), stream.peer_addr());
    let (true, (Ok(local), Ok(remote))) = (core.borrow().unaware.peers.contains_key(&id), ends) else {
        Core::accept(core, id, stream);
        return;
    };
    // Of several, the peer means the last one.
    if core.borrow_mut().unaware.held.insert(id, stream).is_some() {
        return;
    }
    let core = core.clone();
    spawn_local(async move {
        until_aware(&core, id, (local, remote)).await;
        let stream = core.borrow_mut().unaware.held.remove(&id);
        if let Some(stream) = stream {
            Core::accept(&core, id, stream);
        }
    });
}

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
        let watched = known.iter().filter(|(id, known)| known.settings.bfd.is_some() && had_session(**id));
        core.unaware.peers = watched.map(|(id, _)| (*id, Stage::Untold)).collect();
        let ids: Vec<PeerId> = core.unaware.peers.keys().copied().collect();
        for id in ids {
            // Who is behind a link that is not known yet, or cannot be reached, is told when it is connected to.
            if let Ok(ends) = core.path_to(id) {
                core.make_aware(id, ends);
            }
        }
    }

    /// Starts BFD with a peer that may still count on the process before this one, or looks how far that is. Nothing comes back for
    /// a peer that is not waited for, or no longer.
    fn make_aware(&mut self, id: PeerId, ends: (SocketAddr, SocketAddr)) -> Option<Stage> {
        let (before, now) = (*self.unaware.peers.get(&id)?, Instant::now());
        let stage = match before {
            Stage::Untold => {
                self.watch_path_between(id, ends);
                Stage::Told(now + HEARD_WITHIN)
            }
            // In any state but Down we have had a packet that answers to ours.
            Stage::Told(_) if self.paths.state(id) != Some(State::Down) => Stage::Heard(now + THEIR_TURN),
            before => before,
        };
        let is_over = match stage {
            Stage::Told(until) => until <= now || self.paths.verdict(id).is_some(),
            Stage::Heard(until) => until <= now,
            Stage::Untold => false,
        };
        if is_over {
            self.unaware.peers.remove(&id);
            return None;
        }
        self.unaware.peers.insert(id, stage);
        Some(stage)
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
