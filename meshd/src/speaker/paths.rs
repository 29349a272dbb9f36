//! What BFD knows about the paths to peers.
//!
//! A session of BFD begins when the BGP session it watches is established, because only then both addresses are known for sure, and
//! stays until the peer is removed: it then also says when the path works again. It begins earlier where BGP waits for it: where
//! it is strict, and after our own restart ([`super::restart`]). A dead path ends the BGP session, and is
//! told to the pipeline as a dead next hop, which leaves the kernel's groups before any best path is chosen again.
//!
//! With graceful restart it matters whose failure it is. BFD that shares the fate of the peer's control plane (its C bit is
//! not set) ends when that process ends, a moment after the TCP connection did. While the peer's paths are kept because it
//! may be restarting, such a failure is no news, and the path goes on being used (RFC 5882 section 4.3.2). When the peer is back
//! its BFD may begin anew and say so: as long as End-of-RIB is awaited, that is part of the restart as well. Any other failure
//! ends the use of the path.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use bgp::{
    Family,
    id::PeerId,
    session::{BfdChange, Event, Session, Stage},
};
use meshd_core::{
    id::IfIndex,
    observed::{BgpChange, BgpNextHop},
};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    bfd::{Bfd, BfdError, BfdEvent, Device, Diagnostic, Echo, Hops, Interval, NewSession, SessionId, Settings, State},
    core::{Core, Shared},
    transport::Distance,
};

/// Changes of state that wait to be heard.
pub(super) const EVENTS_MAX: usize = 256;

/// See the module.
pub(super) struct Paths {
    bfd: Option<Bfd>,
    events: mpsc::Sender<BfdEvent>,
    sessions: BTreeMap<PeerId, Running>,
    dead: BTreeSet<BgpNextHop>,
}

/// How packets of a session go.
#[derive(PartialEq, Eq)]
struct Way {
    local: IpAddr,
    link: Option<Device>,
    hops: Hops,
    ttl_min: u8,
}

struct Running {
    way: Way,
    remote: SocketAddr,
    settings: Settings,
    state: State,
    /// The peer's operator has taken BFD out: it says nothing about the path.
    remote_admin_down: bool,
    echo: Echo,
}

impl Paths {
    pub(super) fn new(events: mpsc::Sender<BfdEvent>) -> Self {
        Self { bfd: None, events, sessions: BTreeMap::new(), dead: BTreeSet::new() }
    }

    /// Watches the path of a connection, or goes on doing so.
    pub(super) fn watch(
        &mut self,
        id: PeerId,
        (local, remote): (SocketAddr, SocketAddr),
        link: Option<Device>,
        distance: Distance,
        settings: &Settings,
    ) -> Result<(), BfdError> {
        let (hops, ttl_min) = match distance {
            Distance::Adjacent | Distance::Secured(1) | Distance::Multihop(1) => (Hops::Single, 255),
            Distance::Secured(hops) | Distance::Multihop(hops) => (Hops::Multi, 255 - hops.saturating_sub(1)),
        };
        let way = Way { local: local.ip(), link, hops, ttl_min };
        if let Some(running) = self.sessions.get_mut(&id)
            && running.way == way
            && running.remote.ip() == remote.ip()
        {
            if running.settings != *settings {
                running.settings = settings.clone();
                self.started()?.configure(session_id(id), remote.ip(), hops, settings.clone())?;
            }
            return Ok(());
        }
        let session = NewSession {
            id: session_id(id),
            hops,
            remote: remote.ip(),
            local: local.ip(),
            device: way.link.clone(),
            ttl_min,
            settings: settings.clone(),
        };
        self.started()?.add(session)?;
        let (settings, state) = (settings.clone(), State::Down);
        let echo = Echo::default();
        self.sessions.insert(id, Running { way, remote, settings, state, remote_admin_down: false, echo });
        Ok(())
    }

    /// Watches no longer.
    pub(super) fn forget(&mut self, id: PeerId) -> Option<BgpChange> {
        let running = self.sessions.remove(&id)?;
        if let Some(bfd) = &self.bfd
            && let Err(error) = bfd.remove(session_id(id))
        {
            warn!(%error, "cannot end a BFD session");
        }
        let next_hop = next_hop(running.remote);
        self.dead.remove(&next_hop).then_some(BgpChange::Dead(next_hop, false))
    }

    /// The session with a peer is up, and packets of both sides get through: what BFD said before does not count any more. It
    /// may not even run again, when the peer's operator has taken it out.
    pub(super) fn revive(&mut self, id: PeerId) -> Option<BgpChange> {
        let next_hop = next_hop(self.sessions.get(&id)?.remote);
        self.dead.remove(&next_hop).then_some(BgpChange::Dead(next_hop, false))
    }

    /// Lets a passive session send although nobody was heard, until it is watched anew.
    pub(super) fn speak_first(&mut self, id: PeerId) {
        let Some(running) = self.sessions.get_mut(&id).filter(|running| running.settings.passive) else { return };
        running.settings.passive = false;
        let (remote, hops, settings) = (running.remote.ip(), running.way.hops, running.settings.clone());
        if let Err(error) = self.started().and_then(|bfd| bfd.configure(session_id(id), remote, hops, settings)) {
            warn!(%error, "cannot let a passive BFD session begin");
        }
    }

    /// The addresses between which a path is watched.
    pub(super) fn addresses(&self, id: PeerId) -> Option<[IpAddr; 2]> {
        self.sessions.get(&id).map(|running| [running.way.local, running.remote.ip()])
    }

    /// What BFD says of a path, where it watches it.
    pub(super) fn state(&self, id: PeerId) -> Option<State> {
        self.sessions.get(&id).map(|running| running.state)
    }

    /// What BFD's echo function does on a path, where it is wanted.
    pub(super) fn echo(&self, id: PeerId) -> Option<&Echo> {
        let running = self.sessions.get(&id)?;
        (running.settings.min_echo_transmit != Interval::NONE).then_some(&running.echo)
    }

    /// What a session that waits for the path is told at once, where that is known.
    pub(super) fn verdict(&self, id: PeerId) -> Option<BfdChange> {
        let running = self.sessions.get(&id)?;
        match running.state {
            State::Up => Some(BfdChange::Up),
            _ if running.remote_admin_down => Some(BfdChange::AdminDown),
            _ => None,
        }
    }

    /// The next hop is dead although the kernel has a route to it.
    pub(super) fn is_dead(&self, next_hop: &BgpNextHop) -> bool {
        self.dead.contains(next_hop)
    }

    fn started(&mut self) -> Result<&Bfd, BfdError> {
        let bfd = match self.bfd.take() {
            Some(bfd) => bfd,
            None => Bfd::start(self.events.clone(), rand::random())?,
        };
        Ok(self.bfd.insert(bfd))
    }
}

fn session_id(id: PeerId) -> SessionId {
    SessionId(id.0.into())
}

/// The next hop that a peer at this address is.
fn next_hop(remote: SocketAddr) -> BgpNextHop {
    let link = match remote {
        SocketAddr::V6(remote) if remote.scope_id() != 0 => Some(IfIndex(remote.scope_id())),
        _ => None,
    };
    BgpNextHop { address: remote.ip(), link }
}

/// Where a graceful restart of the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    /// There is none.
    None,
    /// The session is lost, and paths are kept because the peer may be restarting.
    Away,
    /// The session is up again, and End-of-RIB is awaited.
    Returned,
}

impl Restart {
    fn of(session: &Session) -> Self {
        let is_any = |is: fn(&Stage) -> bool| Family::ALL.into_iter().any(|family| is(&session.stage(family)));
        let is_kept = is_any(|stage| matches!(stage, Stage::Restarting | Stage::LongLived { .. }));
        let is_back = is_any(|stage| matches!(stage, Stage::Returned { .. }));
        match session.negotiated().is_some() {
            false if is_kept => Self::Away,
            true if is_back => Self::Returned,
            _ => Self::None,
        }
    }

    /// The failure is one of the peer's control plane, not of the path.
    const fn explains(self, event: &BfdEvent) -> bool {
        if event.remote_control_plane_independent {
            return false;
        }
        match self {
            Self::None => false,
            Self::Away => true,
            // Somebody who says so can be heard; silence is another matter.
            Self::Returned => matches!(event.diagnostic, Diagnostic::NeighborSignaledDown),
        }
    }
}

/// Does what follows from a change of state of a path.
pub(super) fn changed(core: &Shared, event: &BfdEvent) {
    let Ok(number) = u16::try_from(event.id.0) else { return };
    let id = PeerId(number);
    let said = {
        let core = &mut *core.borrow_mut();
        let Some(running) = core.paths.sessions.get_mut(&id) else { return };
        let is_news =
            event.failed || (running.state, running.remote_admin_down) != (event.state, event.remote_admin_down);
        running.state = event.state;
        running.remote_admin_down = event.remote_admin_down;
        running.echo.clone_from(&event.echo);
        core.bfd_first.look_again();
        if !is_news {
            return;
        }
        let (next_hop, is_up) = (next_hop(running.remote), event.state == State::Up);
        let peer = core.name(id);
        let restart = core.speaker.session(id).map_or(Restart::None, Restart::of);
        let failed = event.failed && !restart.explains(event);
        if failed {
            warn!(peer, diagnostic = ?event.diagnostic, "BFD: the path to a BGP peer is dead");
            if !is_up && core.paths.dead.insert(next_hop) {
                core.note(BgpChange::Dead(next_hop, true));
            }
        } else if event.failed {
            info!(peer, diagnostic = ?event.diagnostic, "BFD ended with the BGP peer that restarts");
        } else if is_up {
            info!(peer, "BFD: the path to a BGP peer works");
        }
        if is_up && core.paths.dead.remove(&next_hop) {
            core.note(BgpChange::Dead(next_hop, false));
        }
        let failed =
            failed.then_some(BfdChange::Down { control_plane_independent: event.remote_control_plane_independent });
        let admin_down = event.remote_admin_down.then_some(BfdChange::AdminDown);
        failed.or(admin_down).or(is_up.then_some(BfdChange::Up))
    };
    if let Some(said) = said {
        Core::event(core, id, Event::Bfd(said));
    }
    Core::run_commands(core);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        task::yield_now,
    };

    use super::*;
    use crate::speaker::{
        restart::accept_after_bfd,
        testing::{connection, core, key, message, on_thread, open, read_until, settings, until},
        transport::{Key, Secret},
    };

    /// A peer with BFD that connects to us.
    const PEER: &str = "{address: 127.0.0.2, remote_as: 65002, passive: true, bfd: {}}";

    /// BFD runs on the path of a connection, as far as the core can tell, and is down.
    fn watched(core: &Shared, id: PeerId, connection: &TcpStream) {
        let mut core = core.borrow_mut();
        let settings = core.known[&id].settings.bfd.clone().expect("BFD");
        let (local, remote) = (connection.local_addr().expect("ours"), connection.peer_addr().expect("theirs"));
        let way = Way { local: local.ip(), link: None, hops: Hops::Single, ttl_min: 255 };
        let (state, echo) = (State::Down, Echo::default());
        core.paths.sessions.insert(id, Running { way, remote, settings, state, remote_admin_down: false, echo });
    }

    fn news(id: PeerId, state: State) -> BfdEvent {
        BfdEvent {
            id: session_id(id),
            state,
            diagnostic: Diagnostic::None,
            failed: false,
            remote_admin_down: false,
            remote_control_plane_independent: false,
            echo: Echo::default(),
        }
    }

    /// A speaker that has restarted, its peer with BFD that is down, and a connection of that peer that is held back.
    async fn restarted() -> (Shared, PeerId, TcpStream) {
        let core = core(settings(PEER));
        let id = core.borrow().ids[&key("127.0.0.2")];
        let (client, server) = connection("127.0.0.2").await;
        watched(&core, id, &server);
        Core::begin_restart(&core, &BTreeSet::from([key("127.0.0.2")]));
        accept_after_bfd(&core, id, server);
        settled().await;
        assert_eq!(core.borrow().any_ends(id), None, "it is held back");
        (core, id, client)
    }

    /// Every task of this thread has had its turn.
    async fn settled() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    /// After our restart the peer's BFD hears of it before its BGP gets an answer; of its connections the last one counts.
    #[test]
    fn who_connects_after_our_restart_waits_for_bfd() {
        let test = async {
            let (core, id, mut first) = restarted().await;
            let (mut second, server) = connection("127.0.0.2").await;
            accept_after_bfd(&core, id, server);
            assert_eq!(first.read(&mut [0]).await.expect("closed"), 0);
            changed(&core, &news(id, State::Down));
            settled().await;
            assert_eq!(core.borrow().any_ends(id), None, "nothing was heard");
            changed(&core, &news(id, State::Init));
            read_until(&mut second, 1).await;
            assert!(core.borrow().any_ends(id).is_some());
        };
        on_thread(test);
    }

    /// What waits was judged by the settings of before: with another key it would not have come this far.
    #[test]
    fn a_connection_that_waits_for_bfd_is_closed_when_the_key_changes() {
        let test = async {
            let (core, id, mut client) = restarted().await;
            let mut changed = settings(PEER);
            let peer = changed.peers.get_mut(&key("127.0.0.2")).expect("a peer");
            peer.transport.key = Some(Key::Md5(Secret::new(b"hush".to_vec())));
            Core::settle(&core, changed);
            assert_eq!(client.read(&mut [0]).await.expect("closed"), 0);
            assert_eq!(core.borrow().any_ends(id), None);
        };
        on_thread(test);
    }

    /// Whoever connects says with it between which addresses BFD runs; without a connection that is a guess.
    #[test]
    fn the_addresses_of_a_connection_count_more_than_a_guess() {
        let test = async {
            let (core, id, _client) = restarted().await;
            let (_again, server) = connection("127.0.0.2").await;
            let right = [server.local_addr().expect("ours").ip(), server.peer_addr().expect("theirs").ip()];
            let guess = "127.0.0.9".parse().expect("an address");
            core.borrow_mut().paths.sessions.get_mut(&id).expect("watched").way.local = guess;
            accept_after_bfd(&core, id, server);
            assert_eq!(core.borrow().paths.addresses(id), Some(right));
        };
        on_thread(test);
    }

    /// Right after the start nothing is known of this node's links yet; BFD runs on the configured one all the same, and is not
    /// begun again when they are known.
    #[test]
    fn bfd_after_our_restart_runs_on_the_configured_device() {
        let test = async {
            let core = core(settings("{address: 127.0.0.2, remote_as: 65002, device: lo, bfd: {passive: true}}"));
            let id = core.borrow().ids[&key("127.0.0.2")];
            Core::begin_restart(&core, &BTreeSet::from([key("127.0.0.2")]));
            let running = |core: &Shared| {
                let core = core.borrow();
                let running = &core.paths.sessions[&id];
                (running.way.link.as_ref().map(|link| link.name.clone()), running.settings.passive)
            };
            assert_eq!(running(&core), (Some("lo".to_owned()), false));
            let ends = core.borrow().path_to(id).expect("a path");
            core.borrow_mut().watch_path_between(id, ends);
            assert_eq!(running(&core), (Some("lo".to_owned()), true), "as configured once there is a session");
        };
        on_thread(test);
    }

    /// Nor is a peer waited for whose operator has taken BFD out.
    #[test]
    fn who_connects_after_our_restart_does_not_wait_for_bfd_that_was_taken_out() {
        let test = async {
            let (core, id, mut client) = restarted().await;
            let begun = tokio::time::Instant::now();
            changed(&core, &BfdEvent { remote_admin_down: true, ..news(id, State::Down) });
            read_until(&mut client, 1).await;
            assert!(begun.elapsed() < Duration::from_secs(1));
        };
        on_thread(test);
    }

    /// A peer that has no BFD any more is waited for, and not longer than that.
    #[test]
    fn a_peer_whose_bfd_is_silent_is_taken_after_a_while() {
        let test = async {
            let (core, id, mut client) = restarted().await;
            read_until(&mut client, 1).await;
            assert_eq!(core.borrow().paths.state(id), Some(State::Down));
        };
        on_thread(test);
    }

    /// The peer's operator has taken BFD out before the session begins: it says so once, and the session that waits for BFD
    /// must not wait for it.
    #[test]
    fn a_strict_session_does_not_wait_for_bfd_that_was_taken_out_before() {
        let test = async {
            let core = core(settings("{address: 127.0.0.2, remote_as: 65002, passive: true, bfd: {strict: true}}"));
            let id = core.borrow().ids[&key("127.0.0.2")];
            let (mut client, server) = connection("127.0.0.2").await;
            watched(&core, id, &server);
            let said = BfdEvent { remote_admin_down: true, ..news(id, State::Down) };
            changed(&core, &said);
            Core::accept(&core, id, server);
            client.write_all(&open(65_002, true)).await.expect("sent");
            read_until(&mut client, 4).await;
            client.write_all(&message(4)).await.expect("sent");
            until("the session", || core.borrow().speaker.established() == 1).await;
            changed(&core, &BfdEvent { remote_admin_down: false, ..said.clone() });
            assert_eq!(core.borrow().paths.verdict(id), None, "it runs again, and is not up yet");
            changed(&core, &BfdEvent { remote_admin_down: false, state: State::Up, ..said });
            assert_eq!(core.borrow().paths.verdict(id), Some(BfdChange::Up));
        };
        on_thread(test);
    }

    #[test]
    fn bfd_that_ends_with_a_restarting_control_plane_says_nothing_about_the_path() {
        let failure = |remote_control_plane_independent, diagnostic| BfdEvent {
            id: SessionId(1),
            state: State::Down,
            diagnostic,
            failed: true,
            remote_admin_down: false,
            remote_control_plane_independent,
            echo: Echo::default(),
        };
        let (silence, word) = (Diagnostic::DetectionTimeExpired, Diagnostic::NeighborSignaledDown);
        for (restart, independent, diagnostic, explained) in [
            (Restart::None, false, silence, false),
            (Restart::None, false, word, false),
            (Restart::Away, false, silence, true),
            (Restart::Away, false, word, true),
            (Restart::Away, true, silence, false),
            (Restart::Returned, false, word, true),
            (Restart::Returned, true, word, false),
            (Restart::Returned, false, silence, false),
        ] {
            let event = failure(independent, diagnostic);
            assert_eq!(restart.explains(&event), explained, "{restart:?} {event:?}");
        }
    }
}
