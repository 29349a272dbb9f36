//! What all tasks of the speaker's thread share.
//!
//! The thread runs one task per connection, one per listener, one for the work on the tables and one that carries routes
//! to the pipeline. They never run at the same time, so the state between them is a [`RefCell`]; no borrow is held across
//! an await.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    rc::Rc,
    sync::Arc,
};

use bgp::{
    id::{Moment, PeerId},
    policy::Vrps,
    rib::{Resolution, Scope, TrackedNextHop},
    session::{Event, Fact, IfName, PeerKey, Session, Slot, Stop, StopReason},
    speaker::{Command, Endpoints, PeerConfig, Speaker},
};
use jiff::Timestamp;
use meshd_core::{
    clustermesh::over_bgp::OverBgp,
    id::IfIndex,
    observed::{BgpChange, Change},
};
use nix::net::if_::if_nametoindex;
use socket2::Socket;
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc, watch},
    task::spawn_local,
    time::Instant,
};
use tracing::{debug, info, warn};

use super::{
    bfd::{BfdEvent, Device},
    connection::{self, Handle},
    fib::{self, Fib},
    host::Host,
    listen,
    monitor::Monitor,
    nuisance::{Refusals, Seldom},
    paths::Paths,
    restart::BfdFirst,
    services::Services,
    settings::{PeerSettings, Settings},
    transport::{self, Received},
};
use crate::{lifecycle::Problems, pipeline::Snapshot};

/// Octets read from a connection at a time; at least one message of the longest kind fits.
const READ_MAX: usize = 256 * 1024;

/// The state, as every task holds it.
pub(super) type Shared = Rc<RefCell<Core>>;

/// A peer as this room knows it.
pub(super) struct Known {
    pub(super) key: PeerKey,
    pub(super) settings: PeerSettings,
    /// The number of the range it came from; such a peer is forgotten when its session ends.
    pub(super) range: Option<usize>,
    /// Its connections that were not taken.
    pub(super) refused: Refusals,
    failed: Seldom,
}

/// See the module.
pub(super) struct Core {
    pub(super) speaker: Speaker,
    pub(super) settings: Settings,
    /// As configured, without what the running node adds.
    configured: Settings,
    services: Services,
    pub(super) ids: BTreeMap<PeerKey, PeerId>,
    pub(super) known: BTreeMap<PeerId, Known>,
    pub(super) host: Host,
    /// Wakes the task that works on the tables.
    pub(super) worker: Rc<Notify>,
    /// Wakes the task that carries routes to the pipeline.
    pub(super) fib_news: Rc<Notify>,
    /// Until when the task that works on the tables sleeps, if it sleeps and knows.
    pub(super) wake_at: Option<Moment>,
    /// Counts readings that brought something.
    pub(super) readings: u64,
    /// Connections of nobody we know.
    pub(super) strangers: Refusals,
    /// Keys that listeners have. A peer that is to be signed is accepted from where its key is among them.
    pub(super) listener_keys: listen::Keys,
    /// A peer that is configured by link has another address: listeners need its key.
    pub(super) routers_changed: Rc<Notify>,
    /// This node is being drained: peers are asked to prefer others, and no session is started any more.
    pub(super) draining: bool,
    pub(super) paths: Paths,
    pub(super) vrps: Option<Arc<Vrps>>,
    /// Who watches.
    pub(super) monitor: Monitor,
    /// Peers with a session; while a restart is not over, also those that are waited for. The next speaker will read it.
    pub(super) had_session: watch::Sender<BTreeSet<PeerKey>>,
    /// This process ends: sessions that end now are taken up again by the next one.
    stopping: bool,
    /// Peers are waited for after a restart.
    pub(super) restarting: bool,
    pub(super) bfd_first: BfdFirst,
    fib: Fib,
    /// Clusters that peers tell.
    pub(super) over_bgp: OverBgp,
    /// Changes for the pipeline that are no routes; few.
    notes: Vec<BgpChange>,
    connections: BTreeMap<(PeerId, Slot), Rc<Handle>>,
    /// Peers of ranges that lost a connection, and may be forgotten.
    ended: BTreeSet<PeerId>,
    buffer: Vec<u8>,
    origin: Instant,
}

impl Core {
    pub(super) fn new(
        speaker: Speaker,
        settings: Settings,
        path_events: mpsc::Sender<BfdEvent>,
        problems: Problems,
        had_session: watch::Sender<BTreeSet<PeerKey>>,
    ) -> Self {
        Self {
            speaker,
            configured: settings.clone(),
            settings,
            services: Services::default(),
            ids: BTreeMap::new(),
            known: BTreeMap::new(),
            host: Host::default(),
            worker: Rc::default(),
            fib_news: Rc::default(),
            wake_at: None,
            readings: 0,
            strangers: Refusals::default(),
            listener_keys: listen::Keys::new(),
            routers_changed: Rc::default(),
            draining: false,
            paths: Paths::new(path_events),
            vrps: None,
            monitor: Monitor::new(problems),
            had_session,
            stopping: false,
            restarting: false,
            bfd_first: BfdFirst::default(),
            fib: Fib::default(),
            over_bgp: OverBgp::default(),
            notes: Vec::new(),
            connections: BTreeMap::new(),
            ended: BTreeSet::new(),
            buffer: vec![0; READ_MAX],
            origin: Instant::now(),
        }
    }

    /// The time as the speaker counts it.
    pub(super) fn now(&self) -> Moment {
        Moment(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// When that is for timers of the runtime.
    pub(super) fn instant(&self, moment: Moment) -> Instant {
        self.origin + moment.since(Moment(0))
    }

    /// Both ends of a peer's established connection.
    pub(super) fn ends(&self, id: PeerId) -> Option<(SocketAddr, SocketAddr)> {
        let slot = self.speaker.session(id)?.established_slot()?;
        self.ends_of(id, slot)
    }

    /// Both ends of a connection.
    pub(super) fn ends_of(&self, id: PeerId, slot: Slot) -> Option<(SocketAddr, SocketAddr)> {
        self.connections.get(&(id, slot))?.ends()
    }

    /// Both ends of whatever connection there is to a peer.
    pub(super) fn any_ends(&self, id: PeerId) -> Option<(SocketAddr, SocketAddr)> {
        self.ends(id).or_else(|| Slot::ALL.into_iter().find_map(|slot| self.ends_of(id, slot)))
    }

    /// A socket for a connection to a peer, and where to connect it to.
    pub(super) fn outgoing(&self, id: PeerId) -> Result<(SocketAddr, Socket), String> {
        let known = self.known.get(&id).ok_or("the peer is gone")?;
        let remote = self.remote_of(known)?;
        let socket = transport::outgoing(remote, &known.settings.transport).map_err(|error| error.to_string())?;
        Ok((remote, socket))
    }

    /// Both ends that a connection to a peer would have, but for the ports.
    pub(super) fn path_to(&self, id: PeerId) -> Result<(SocketAddr, SocketAddr), String> {
        let known = self.known.get(&id).ok_or("the peer is gone")?;
        let remote = self.remote_of(known)?;
        let local = transport::local_for(remote, &known.settings.transport).map_err(|error| error.to_string())?;
        Ok((local, remote))
    }

    fn remote_of(&self, known: &Known) -> Result<SocketAddr, String> {
        let port = known.settings.port;
        match &known.key {
            PeerKey::Address(ip, None) => Ok(SocketAddr::new(*ip, port)),
            PeerKey::Address(IpAddr::V6(ip), Some(link)) => {
                let index = self.host.index(link.as_str()).ok_or_else(|| format!("there is no link {link}"))?;
                Ok(SocketAddrV6::new(*ip, port, 0, index.0).into())
            }
            PeerKey::Address(ip, Some(_)) => Ok(SocketAddr::new(*ip, port)),
            PeerKey::Interface(link) => {
                let index = self.host.index(link.as_str()).ok_or_else(|| format!("there is no link {link}"))?;
                let router = self.host.router_on(link.as_str());
                let router = router.ok_or_else(|| format!("no router was heard on link {link} yet"))?;
                Ok(SocketAddrV6::new(router, port, 0, index.0).into())
            }
        }
    }

    /// Reads once from a connection, behind the beginning of a message that came before; true when there may be more to read.
    pub(super) fn read(&mut self, id: PeerId, slot: Slot, stream: &TcpStream, begun: &mut Vec<u8>) -> io::Result<bool> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let head = begun.len();
        buffer[..head].copy_from_slice(begun);
        let result = match transport::read(stream, &mut buffer[head..]) {
            Ok(Some(Received { octets: 0, .. })) => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection"))
            }
            Ok(Some(Received { octets, more })) => {
                self.readings += 1;
                let now = self.now();
                let stream = &buffer[..head + octets];
                let used = self.speaker.receive(now, id, slot, stream);
                begun.clear();
                begun.extend_from_slice(&stream[used..]);
                Ok(more)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        self.buffer = buffer;
        result
    }

    /// Asks the speaker for something to send; true when there may be more.
    pub(super) fn fill(&mut self, id: PeerId, slot: Slot, out: &mut Vec<u8>, octets_max: usize) -> bool {
        let now = self.now();
        self.speaker.send(now, id, slot, out, octets_max)
    }

    /// The kernel took octets.
    pub(super) fn written(&mut self, id: PeerId, slot: Slot) {
        let now = self.now();
        self.speaker.written(now, id, slot);
    }

    /// A connection is open.
    pub(super) fn connected(core: &Shared, id: PeerId, slot: Slot, handle: &Rc<Handle>) {
        {
            let mut core = core.borrow_mut();
            let now = core.now();
            let endpoints = core.endpoints(id, handle);
            core.speaker.connected(now, id, slot, endpoints);
        }
        Self::run_commands(core);
    }

    /// A connection could not be opened or is gone.
    pub(super) fn closed(core: &Shared, id: PeerId, slot: Slot, handle: &Rc<Handle>, reason: &str) {
        {
            let mut core = core.borrow_mut();
            if !core.connections.get(&(id, slot)).is_some_and(|current| Rc::ptr_eq(current, handle)) {
                return;
            }
            core.connections.remove(&(id, slot));
            let now = core.now();
            core.speaker.closed(now, id, slot, reason);
        }
        Self::run_commands(core);
    }

    /// Takes a connection that somebody opened to us.
    pub(super) fn accept(core: &Shared, id: PeerId, stream: TcpStream) {
        let handle = Rc::new(Handle::default());
        if connection::remember_ends(&handle, &stream).is_err() {
            return;
        }
        let slot = {
            let mut core = core.borrow_mut();
            let now = core.now();
            let endpoints = core.endpoints(id, &handle);
            let slot = core.speaker.accept(now, id, endpoints);
            if let Some(slot) = slot {
                core.connections.insert((id, slot), handle.clone());
            }
            slot
        };
        if let Some(slot) = slot {
            spawn_local(connection::accepted(core.clone(), id, slot, handle, stream));
        }
        Self::run_commands(core);
    }

    /// Tells the speaker of something that is no message, and does what follows.
    pub(super) fn event(core: &Shared, id: PeerId, event: Event) {
        {
            let mut core = core.borrow_mut();
            let now = core.now();
            core.speaker.event(now, id, event);
        }
        Self::run_commands(core);
    }

    /// Does what the speaker asks for, and has the tables worked on when what happened concerns them.
    pub(super) fn run_commands(core: &Shared) {
        let commands: Vec<Command> = core.borrow_mut().speaker.take_commands().collect();
        for command in commands {
            match command {
                Command::Connect(id, slot) => {
                    let handle = Rc::new(Handle::default());
                    core.borrow_mut().connections.insert((id, slot), handle.clone());
                    spawn_local(connection::connect(core.clone(), id, slot, handle));
                }
                Command::Close(id, slot, last) => {
                    let handle = core.borrow_mut().connections.remove(&(id, slot));
                    if let Some(handle) = handle {
                        handle.end(last);
                    }
                    core.borrow_mut().may_have_ended(id);
                }
                Command::Write(id, slot) => {
                    if let Some(handle) = core.borrow().connections.get(&(id, slot)) {
                        handle.wake();
                    }
                }
                Command::Up(id, slot) => {
                    let mut core = core.borrow_mut();
                    core.watched_up(id, slot);
                    core.established(id);
                }
                Command::Down(id) => {
                    let mut core = core.borrow_mut();
                    core.watched_down(id);
                    core.lost(id);
                }
                Command::WatchPath(id, slot) => Self::watch_path_first(core, id, slot),
                Command::Message(message) => core.borrow_mut().mirrored(&message),
                Command::Watched(watcher) => core.borrow_mut().monitor.watched(watcher, false),
                Command::WatcherLost(watcher) => core.borrow_mut().monitor.watched(watcher, true),
                Command::NearLimit(id, family) => {
                    warn!(peer = core.borrow().name(id), %family, "the peer has sent nearly as many prefixes as it may");
                }
                Command::Fact(id, fact) => core.borrow_mut().log(id, &fact),
            }
        }
        Self::forget_ended(core);
        let core = core.borrow();
        let due = core.speaker.next_deadline();
        let is_earlier = due.is_some_and(|due| core.wake_at.is_none_or(|wake_at| due < wake_at));
        if core.speaker.has_input() || is_earlier {
            core.worker.notify_one();
        }
    }

    /// Peers of ranges may have had no session for as long as a restart took.
    pub(super) fn ranges_may_have_ended(&mut self) {
        let of_ranges = self.known.iter().filter(|(_, known)| known.range.is_some());
        self.ended.extend(of_ranges.map(|(id, _)| *id));
    }

    fn may_have_ended(&mut self, id: PeerId) {
        if self.known.get(&id).is_some_and(|known| known.range.is_some()) {
            self.ended.insert(id);
        }
    }

    /// Forgets peers of ranges of which nothing is left, so that others can have their place. Not while they are waited for
    /// after a restart: who does not answer at once may come back.
    fn forget_ended(core: &Shared) {
        let spent: Vec<PeerId> = {
            let core = &mut *core.borrow_mut();
            if core.speaker.is_restarting() {
                return;
            }
            let is_spent = |id: &PeerId| core.speaker.session(*id).is_none_or(Session::is_spent);
            core.ended.extract_if(.., is_spent).collect()
        };
        for id in spent {
            debug!(peer = core.borrow().name(id), "nothing is left of a peer that came by itself");
            Self::remove(core, id, "");
        }
    }

    /// Makes a peer known and starts its session.
    pub(super) fn add(core: &Shared, key: PeerKey, settings: PeerSettings, range: Option<usize>) {
        {
            let mut core = core.borrow_mut();
            let now = core.now();
            let config = core.with_place(&key, settings.config.clone());
            match core.speaker.add_peer(now, config) {
                Ok(id) => {
                    core.ids.insert(key.clone(), id);
                    let (refused, failed) = (Refusals::default(), Seldom::default());
                    core.known.insert(id, Known { key, settings, range, refused, failed });
                }
                Err(error) => warn!(peer = %key, %error, "cannot add a BGP peer"),
            }
        }
        Self::run_commands(core);
    }

    /// Forgets a peer, after telling it why.
    pub(super) fn remove(core: &Shared, id: PeerId, words: &str) {
        {
            let mut core = core.borrow_mut();
            let now = core.now();
            core.speaker.remove_peer(now, id, words);
        }
        Self::run_commands(core);
        let mut core = core.borrow_mut();
        if let Some(known) = core.known.remove(&id) {
            core.ids.remove(&known.key);
        }
        // The number may be another peer's from now on.
        core.ended.remove(&id);
        core.monitor.forget(id);
        core.bfd_first.close(id);
        core.watch_path_no_longer(id);
    }

    /// A configuration with what only the running node knows: the number of the link on which next hops of the peer are
    /// valid, and whether the node is being drained.
    pub(super) fn with_place(&self, key: &PeerKey, mut config: PeerConfig) -> PeerConfig {
        if let PeerKey::Interface(link) | PeerKey::Address(_, Some(link)) = key {
            config.tables.scope = Scope(self.host.index(link.as_str()).map_or(0, |index| index.0));
        }
        config.tables.graceful_shutdown |= self.draining;
        config
    }

    /// The peer a connection from `remote` belongs to.
    pub(super) fn peer_at(&self, remote: SocketAddr) -> Option<PeerId> {
        let ip = remote.ip().to_canonical();
        let link = match remote {
            SocketAddr::V6(remote) if remote.scope_id() != 0 => self.host.name(IfIndex(remote.scope_id())),
            _ => None,
        };
        let link: Option<IfName> = link.and_then(|name| name.parse().ok());
        let on_link = link.clone().and_then(|link| self.ids.get(&PeerKey::Address(ip, Some(link))));
        let on_interface = || self.ids.get(&PeerKey::Interface(link?));
        on_link.or_else(on_interface).or_else(|| self.ids.get(&PeerKey::Address(ip, None))).copied()
    }

    /// There is something that the pipeline does not know.
    pub(super) fn has_news(&self) -> bool {
        self.speaker.has_fib_changes()
            || self.fib.is_behind(self.speaker.rib())
            || ((!self.fib.is_complete() || self.over_bgp.is_listing()) && self.is_complete())
    }

    /// Every path that is there now has been judged: peers have told what they have, and it is known how each next hop is
    /// reached. Before that, a route that is not wanted may only be not wanted yet.
    fn is_complete(&self) -> bool {
        let is_judged = |tracked: TrackedNextHop| tracked.resolution != Resolution::Unknown;
        self.speaker.is_complete(self.now()) && self.speaker.rib().next_hops_to_track().all(is_judged)
    }

    /// The next changes for the pipeline, and whether there are more.
    pub(super) fn next_batch(&mut self) -> (Option<Change>, bool) {
        let mut batch = std::mem::take(&mut self.notes);
        if self.fib.is_behind(self.speaker.rib()) {
            // What is known of a next hop already is told at once.
            self.worker.notify_one();
        }
        let watched = self.fib.watch(self.speaker.rib_mut());
        let dead = |change: &BgpChange| match change {
            BgpChange::Watch(next_hop) if self.paths.is_dead(next_hop) => Some(BgpChange::Dead(*next_hop, true)),
            _ => None,
        };
        let dead: Vec<BgpChange> = watched.iter().filter_map(dead).collect();
        batch.extend(watched);
        batch.extend(dead);
        let routes = self.speaker.take_fib_changes(fib::BATCH_MAX);
        let more = routes.len() >= fib::BATCH_MAX;
        let (mut shared, now) = (BTreeMap::new(), Timestamp::now());
        for change in routes {
            let mark = change.route.as_ref().and_then(|route| route.mark);
            let told = fib::route(change, &mut shared);
            let told = fib::divert(&mut self.over_bgp, told, mark, now);
            batch.extend(self.settings.install.then_some(told));
        }
        if self.over_bgp.wants_all() {
            self.speaker.rib_mut().tell_forwarding_again();
            self.worker.notify_one();
        }
        let is_awaited = !self.fib.is_complete() || self.over_bgp.is_listing();
        let is_complete = !more && is_awaited && self.is_complete();
        if is_complete {
            self.over_bgp.all_told();
        }
        let mut changes = self.over_bgp.take_changes(now);
        if is_complete {
            batch.extend(self.fib.complete());
        }
        if changes.is_empty() {
            return ((!batch.is_empty()).then_some(Change::Bgp(batch)), more);
        }
        changes.push(Change::Bgp(batch));
        (Some(Change::All(changes)), more)
    }

    /// Takes over what the pipeline found out about next hops, and this node's links and addresses.
    pub(super) fn look(core: &Shared, snapshot: &Snapshot) {
        let (news, services) = {
            let mut core = core.borrow_mut();
            let core = &mut *core;
            if core.fib.resolve(core.speaker.rib_mut(), &snapshot.desired.next_hops) {
                core.worker.notify_one();
            }
            let services = core.services.update(&snapshot.observed, &core.configured);
            (core.host.update(&snapshot.observed), services)
        };
        if services {
            Self::complete(core);
        }
        if news.addresses {
            core.borrow_mut().addresses_changed();
        }
        if news.links {
            Self::links_changed(core);
        }
    }

    /// Gives peers the next hops that this node has now: an address may become usable after the session did.
    fn addresses_changed(&mut self) {
        let all: Vec<(PeerId, Slot, Endpoints)> =
            self.connections.iter().map(|((id, slot), handle)| (*id, *slot, self.endpoints(*id, handle))).collect();
        for (id, slot, endpoints) in all {
            self.speaker.set_endpoints(id, slot, endpoints);
        }
        self.worker.notify_one();
    }

    /// Takes over a configuration.
    pub(super) fn settle(core: &Shared, configured: Settings) {
        core.borrow_mut().configured = configured;
        Self::complete(core);
    }

    /// Takes over what the configuration and the services of our cluster make together.
    fn complete(core: &Shared) {
        let settings = {
            let core = core.borrow();
            core.services.complete(&core.configured)
        };
        Self::configure(core, settings);
    }

    /// Ends sessions whose link is down at once instead of waiting for a timer, and tries those whose link came up.
    fn links_changed(core: &Shared) {
        let events: Vec<(PeerId, Event)> = {
            let core = core.borrow();
            let link_of = |known: &Known| match &known.key {
                PeerKey::Interface(link) | PeerKey::Address(_, Some(link)) => Some(link.to_string()),
                PeerKey::Address(_, None) => known.settings.transport.device.clone(),
            };
            let event = |up: bool| if up { Event::Reachable } else { Event::LinkDown };
            let judged =
                core.known.iter().filter_map(|(id, known)| Some((*id, event(core.host.is_up(&link_of(known)?)))));
            judged.collect()
        };
        for (id, event) in events {
            Self::event(core, id, event);
        }
        Self::place_again(core, |key| matches!(key, PeerKey::Interface(_) | PeerKey::Address(_, Some(_))));
    }

    /// Tells the speaker anew what only the running node knows of some peers.
    fn place_again(core: &Shared, concerns: impl Fn(&PeerKey) -> bool) {
        {
            let mut core = core.borrow_mut();
            let now = core.now();
            let concerned = core.known.iter().filter(|(_, known)| concerns(&known.key));
            let configs: Vec<(PeerId, PeerConfig)> = concerned
                .map(|(id, known)| (*id, core.with_place(&known.key, known.settings.config.clone())))
                .collect();
            for (id, config) in configs {
                core.speaker.configure_peer(now, id, config);
            }
        }
        Self::run_commands(core);
        core.borrow().worker.notify_one();
    }

    /// Asks every peer to prefer other ways (RFC 8326), for the time until [`Self::shut_down_all`].
    pub(super) fn begin_drain(core: &Shared) {
        core.borrow_mut().draining = true;
        Self::place_again(core, |_| true);
    }

    /// Ends every session with these words for the peers' operators; returns how many were established.
    pub(super) fn shut_down_all(core: &Shared, words: &str) -> usize {
        let (ids, established) = {
            let core = core.borrow();
            (core.speaker.peers().collect::<Vec<_>>(), core.speaker.established())
        };
        for id in ids {
            let stop = Stop { reason: StopReason::Shutdown, communication: words.to_owned() };
            Self::event(core, id, Event::Stop(stop));
        }
        established
    }

    /// Ends every session without a word, so that peers with graceful restart keep our paths.
    pub(super) fn stop(core: &Shared) {
        core.borrow_mut().stopping = true;
        let ids: Vec<PeerId> = core.borrow().speaker.peers().collect();
        for id in ids {
            let stop = Stop { reason: StopReason::Restart, communication: String::new() };
            Self::event(core, id, Event::Stop(stop));
        }
    }

    fn endpoints(&self, id: PeerId, handle: &Handle) -> Endpoints {
        let Some((local, _)) = handle.ends() else { return Endpoints::default() };
        let given = self.known.get(&id).map_or([None, None], |known| known.settings.next_hop);
        self.host.endpoints(local, given)
    }

    pub(super) fn name(&self, id: PeerId) -> String {
        self.known.get(&id).map_or_else(|| format!("#{}", id.0), |known| known.key.to_string())
    }

    /// A connection of a peer was not taken.
    pub(super) fn refuse(&mut self, id: PeerId, why: &str) {
        let (peer, now) = (self.name(id), self.now());
        match self.known.get_mut(&id).and_then(|known| known.refused.add(now, why)) {
            Some(more) => info!(peer, why, more, "refused a BGP connection"),
            None => debug!(peer, why, "refused a BGP connection"),
        }
    }

    /// Since when the established connection of a peer takes nothing of what is to be sent.
    pub(super) fn send_blocked_since(&self, id: PeerId) -> Option<Instant> {
        let slot = self.speaker.session(id)?.established_slot()?;
        self.connections.get(&(id, slot))?.blocked_since()
    }

    fn established(&mut self, id: PeerId) {
        self.watch_path(id);
        let note = self.paths.revive(id);
        self.notes.extend(note);
        if let Some(known) = self.known.get(&id) {
            self.had_session.send_if_modified(|peers| peers.insert(known.key.clone()));
        }
        let asn = self.speaker.session(id).and_then(|it| it.negotiated()).map(|it| it.remote_as.0);
        info!(peer = self.name(id), asn, "BGP session established");
    }

    /// Has BFD watch the path to a peer, when it is configured to.
    pub(super) fn watch_path(&mut self, id: PeerId) {
        match self.ends(id) {
            Some(ends) => self.watch_path_between(id, ends),
            None if self.known.get(&id).is_some_and(|known| known.settings.bfd.is_none()) => {
                self.watch_path_no_longer(id)
            }
            None => {}
        }
    }

    /// Has BFD watch the path of a connection that waits for it, and says so when it is known already what BFD has to say.
    fn watch_path_first(core: &Shared, id: PeerId, slot: Slot) {
        let verdict = {
            let mut core = core.borrow_mut();
            let Some(ends) = core.ends_of(id, slot) else { return };
            core.watch_path_between(id, ends);
            core.paths.verdict(id)
        };
        if let Some(verdict) = verdict {
            Self::event(core, id, Event::Bfd(verdict));
        }
    }

    /// Ends BFD with a peer, and whatever waits for it.
    fn watch_path_no_longer(&mut self, id: PeerId) {
        self.bfd_first.forget(id);
        let note = self.paths.forget(id);
        self.notes.extend(note);
    }

    /// Has BFD watch the path between two addresses, or ends it where none is configured.
    pub(super) fn watch_path_between(&mut self, id: PeerId, (local, remote): (SocketAddr, SocketAddr)) {
        let Some(known) = self.known.get(&id) else { return };
        let Some(settings) = known.settings.bfd.clone() else {
            self.watch_path_no_longer(id);
            return;
        };
        let link = match remote {
            SocketAddr::V6(remote) if remote.scope_id() != 0 => self.host.name(IfIndex(remote.scope_id())),
            _ => known.settings.transport.device.as_deref(),
        };
        let device = link.and_then(|name| {
            // What this node has may not be known yet, right after the start.
            let index = self.host.index(name).map(|index| index.0).or_else(|| if_nametoindex(name).ok())?;
            Some(Device { index, name: name.to_owned() })
        });
        let distance = known.settings.transport.distance;
        if let Err(error) = self.paths.watch(id, (local, remote), device, distance, &settings) {
            warn!(peer = self.name(id), %error, "cannot watch the path to a BGP peer with BFD");
        }
    }

    /// Leaves a change for the pipeline.
    pub(super) fn note(&mut self, change: BgpChange) {
        self.notes.push(change);
        self.fib_news.notify_one();
    }

    fn lost(&mut self, id: PeerId) {
        if let Some(known) = self.known.get(&id).filter(|_| !self.stopping) {
            self.had_session.send_if_modified(|peers| peers.remove(&known.key));
        }
        let cause =
            self.speaker.session(id).and_then(|session| session.last_down()).map(|(_, cause)| cause.to_string());
        warn!(peer = self.name(id), cause = cause.unwrap_or_default(), "BGP session lost");
    }

    fn log(&mut self, id: PeerId, fact: &Fact) {
        let (peer, now) = (self.name(id), self.now());
        match fact {
            Fact::State { from, to } => {
                debug!(peer, %from, %to, "BGP state");
                self.log_state(id, *from, *to);
            }
            Fact::Failed(cause) => match self.known.get_mut(&id).and_then(|known| known.failed.may_say(now)) {
                Some(more) => info!(peer, %cause, more, "BGP connection failed"),
                None => debug!(peer, %cause, "BGP connection failed"),
            },
            Fact::Refused(why) => self.refuse(id, why),
            other => debug!(peer, fact = ?other, "BGP session"),
        }
    }
}
