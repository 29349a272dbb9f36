//! This speaker is not the first one since the machine booted: whom it waits for.
//!
//! BFD of the process before this one ended with it, and begins anew. A peer that had not noticed the end takes the beginning
//! for a path that failed, and if the BGP session is back by then, it may end that, and graceful restart with it (FRR 8.4
//! does). So BFD goes first, and BGP follows when the peer's BFD has answered, or [`ANSWER_WITHIN`] has passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bgp::{
    id::PeerId,
    session::{BfdChange, PeerKey, SELECTION_DEFERRAL},
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

/// How long a peer's BFD may take to answer. One that is down sends every second (RFC 5880 section 6.8.3).
const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);
/// How long the peer's BFD may take to tell the peer's BGP what it has heard.
const PASSED_ON_WITHIN: Duration = Duration::from_millis(100);
/// How long after the answer we leave it to the peer to connect. FRR does so when BFD is up, and a connection of ours at that very
/// moment collides with it, of which FRR 8.4 loses both.
const THEIR_TURN: Duration = Duration::from_millis(200);

/// Peers whose BFD has to know of our restart before BGP begins.
#[derive(Default)]
pub(super) struct BfdFirst {
    peers: BTreeMap<PeerId, Stage>,
    /// The newest connection of each that came meanwhile.
    held: BTreeMap<PeerId, TcpStream>,
    news: Rc<Notify>,
}

/// How far the BFD of a peer is.
#[derive(Clone, Copy)]
enum Stage {
    /// Ours has not begun.
    Untold,
    /// It may take until then to answer.
    Told(Instant),
    /// It no longer counts on our predecessor, since then.
    Knows(Instant),
}

impl BfdFirst {
    /// BFD has heard something.
    pub(super) fn look_again(&self) {
        self.news.notify_waiters();
    }

    /// Nobody waits for the BFD of this peer any more.
    pub(super) fn forget(&mut self, id: PeerId) {
        self.peers.remove(&id);
        self.news.notify_waiters();
    }

    /// Closes the connection that waits: the peer is gone, or demands something else of its connections.
    pub(super) fn close(&mut self, id: PeerId) {
        self.held.remove(&id);
    }
}

/// Waits until a connection may be opened to the peer between these addresses.
pub(super) async fn until_our_turn(core: &Shared, id: PeerId, ends: (SocketAddr, SocketAddr)) {
    until_known(core, id, ends, THEIR_TURN).await;
}

/// Waits until the peer's BFD knows of our restart, and so much longer.
async fn until_known(core: &Shared, id: PeerId, ends: (SocketAddr, SocketAddr), pause: Duration) {
    loop {
        let (news, until) = {
            let mut core = core.borrow_mut();
            let until = match core.advance(id, ends) {
                Some(Stage::Knows(since)) => since + pause,
                Some(Stage::Told(deadline)) => deadline,
                Some(Stage::Untold) | None => return,
            };
            if until <= Instant::now() {
                return;
            }
            (core.bfd_first.news.clone(), until)
        };
        tokio::select! {
            () = news.notified() => {}
            () = sleep_until(until) => {}
        }
    }
}

/// Takes a connection of a peer, once the peer's BFD knows of our restart.
pub(super) fn accept_after_bfd(core: &Shared, id: PeerId, stream: TcpStream) {
    let ends = (stream.local_addr(), stream.peer_addr());
    let (true, (Ok(local), Ok(remote))) = (core.borrow().bfd_first.peers.contains_key(&id), ends) else {
        Core::accept(core, id, stream);
        return;
    };
    let is_first = {
        let mut core = core.borrow_mut();
        // The peer knows its BFD's addresses, where we could only guess.
        if core.paths.addresses(id).is_some_and(|guess| guess != [local.ip(), remote.ip()]) {
            core.bfd_first.peers.insert(id, Stage::Untold);
        }
        core.advance(id, (local, remote));
        // Of several connections, the peer means the last one.
        core.bfd_first.held.insert(id, stream).is_none()
    };
    if is_first {
        let core = core.clone();
        spawn_local(async move {
            until_known(&core, id, (local, remote), PASSED_ON_WITHIN).await;
            let stream = core.borrow_mut().bfd_first.held.remove(&id);
            if let Some(stream) = stream {
                Core::accept(&core, id, stream);
            }
        });
    }
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
        core.bfd_first.peers = watched.map(|(id, _)| (*id, Stage::Untold)).collect();
        let ids: Vec<PeerId> = core.bfd_first.peers.keys().copied().collect();
        for id in ids {
            // Who is behind a link that is not known yet, or cannot be reached, is told when there is a connection.
            if let Ok(ends) = core.path_to(id) {
                core.advance(id, ends);
            }
        }
    }

    /// Starts BFD with a peer that may still count on the process before this one, or looks how far that is. Nothing comes back for
    /// a peer that is not waited for, or no longer.
    fn advance(&mut self, id: PeerId, ends: (SocketAddr, SocketAddr)) -> Option<Stage> {
        let (before, now) = (*self.bfd_first.peers.get(&id)?, Instant::now());
        let stage = match before {
            Stage::Untold => {
                self.watch_path_between(id, ends);
                // A passive peer of ours would wait for us to wait for it.
                self.paths.speak_first(id);
                Some(Stage::Told(now + ANSWER_WITHIN))
            }
            Stage::Told(deadline) => match self.paths.state(id) {
                _ if self.paths.verdict(id) == Some(BfdChange::AdminDown) => None,
                // It could not be started, which was said.
                None => None,
                Some(State::Down) => (now < deadline).then_some(before),
                Some(_) => Some(Stage::Knows(now)),
            },
            Stage::Knows(since) => (now < since + THEIR_TURN).then_some(before),
        };
        match stage {
            Some(stage) => self.bfd_first.peers.insert(id, stage),
            None => self.bfd_first.peers.remove(&id),
        };
        stage
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
