//! One BGP speaker: sessions and tables in one value, still without a socket or a clock.
//!
//! ```text
//!  octets of a connection ─► receive ─► frames ─► session (OPEN, KEEPALIVE, NOTIFICATION, ROUTE-REFRESH)
//!                                          └────► UPDATE ─► tables ─► work: best paths, then exports
//!  octets for a connection ◄─ send ◄─ what the session says, then the messages of the peer's update group
//!                                                    └────► FIB changes for whoever installs routes
//! ```
//!
//! The owner carries octets, says what time it is, and does what [`Speaker::take_commands`] asks: open or close a
//! connection, write. It pulls everything that can be much (octets for a peer, FIB changes, views), so a peer that does
//! not read and a kernel that is slow hold up nobody and cost no memory. Work on tables comes in slices with a budget,
//! so timers of sessions never wait for a full table.
//!
//! Exports are held back for a moment while input keeps coming ([`FLUSH_AFTER`]): a prefix whose best path changes many
//! times in a burst is sent about once.
//!
//! What is ugly: an event of a session can ask for something that leads to the next event (a limit of prefixes ends the
//! session). Those wait in a queue and are handled before anything else is, so no function calls itself.

mod input;
mod output;
mod peer;
mod watch;

pub use peer::{PeerConfig, PeerStatus};

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use peer::Peer;

use crate::{
    NextHop,
    family::{Family, PerFamily},
    id::{Moment, PeerId},
    rib::{FibChange, Rib, RibConfig},
    session::{
        Action, Direction, Event, Fact, LocalRestart, NegotiatedFamily, Restarter, Retain, Session, Slot, State, Stop,
        StopReason,
    },
    wire::{
        encode,
        notification::{Notification, cease},
    },
};

/// How long exports wait for more input at most.
pub const FLUSH_AFTER: Duration = Duration::from_millis(50);
/// A peer that is established for so long and sends no End-of-RIB is taken to have sent all it has.
pub const TOLD_AFTER: Duration = Duration::from_secs(10);
/// Peers at most; the number of a peer has 16 bits, and the last one is this speaker itself.
pub const PEERS_MAX: usize = 10_000;

/// What the owner is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Open a connection to the peer; answer with [`Speaker::connected`] or [`Speaker::closed`].
    Connect(PeerId, Slot),
    /// Close the connection, after these octets and what was taken before have been handed to the kernel.
    Close(PeerId, Slot, Vec<u8>),
    /// There is something to send on this connection.
    Write(PeerId, Slot),
    /// Something an operator may want to know.
    Fact(PeerId, Fact),
    /// The session was established on this connection.
    Up(PeerId, Slot),
    /// The session is no longer established.
    Down(PeerId),
    /// The peer has sent nearly as many prefixes of a family as it may.
    NearLimit(PeerId, Family),
    /// The session waits for BFD: see [`Action::WatchPath`].
    WatchPath(PeerId, Slot),
    /// A message went over a connection; only when asked for with [`Speaker::mirror`].
    Message(Box<Mirrored>),
    /// There is something for a watcher: see [`Speaker::watch`].
    Watched(PeerId),
    /// A watcher reads so slowly that the tables were kept too large for its sake. It has been removed.
    WatcherLost(PeerId),
}

/// A message as it went over a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// The peer.
    pub peer: PeerId,
    /// The connection.
    pub slot: Slot,
    /// Which way.
    pub direction: Direction,
    /// The whole message.
    pub octets: Vec<u8>,
}

/// No more peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {PEERS_MAX} BGP peers already")]
pub struct TooManyPeers;

/// What the ends of a connection mean for next hops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Our next hop in each family, as the peer can reach it; a family without one is told nothing that needs it.
    pub own_next_hops: PerFamily<Option<NextHop>>,
    /// Our next hop for IPv4 where IPv6 next hops are agreed on (RFC 8950).
    pub extended_next_hop: Option<NextHop>,
}

/// Sessions and tables.
pub struct Speaker {
    rib: Rib,
    peers: Vec<Option<Peer>>,
    deadlines: BTreeSet<(Moment, PeerId)>,
    commands: VecDeque<Command>,
    events: VecDeque<(PeerId, Event)>,
    actions: Vec<Action>,
    scratch: Vec<u8>,
    restart: LocalRestart,
    restarter: Option<Restarter>,
    seed: u64,
    /// Since when exports wait.
    waiting_since: Option<Moment>,
    /// Input came since the tables were looked at last.
    has_input: bool,
    /// A peer is to be told something that no flush leads to.
    has_told: bool,
    /// Who was not told the end of its first table.
    untold: BTreeSet<PeerId>,
    accepted: Option<Slot>,
    mirrors: bool,
    watchers: BTreeSet<PeerId>,
}

impl Speaker {
    /// A speaker without peers. `seed` varies timers and hashes and should be random.
    #[must_use]
    pub fn new(config: RibConfig, restart: LocalRestart, seed: u64) -> Self {
        Self {
            rib: Rib::new(config),
            peers: Vec::new(),
            deadlines: BTreeSet::new(),
            commands: VecDeque::new(),
            events: VecDeque::new(),
            actions: Vec::new(),
            scratch: Vec::new(),
            restart,
            restarter: None,
            seed,
            waiting_since: None,
            has_input: false,
            has_told: false,
            untold: BTreeSet::new(),
            accepted: None,
            mirrors: false,
            watchers: BTreeSet::new(),
        }
    }

    /// Adds a peer and starts its session.
    ///
    /// # Errors
    /// When there are [`PEERS_MAX`] already.
    pub fn add_peer(&mut self, now: Moment, config: PeerConfig) -> Result<PeerId, TooManyPeers> {
        let id = self.free_number()?;
        let seed = self.seed ^ (u64::from(id.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let session = Session::new(config.session, self.restart, seed);
        let peer = Peer::new(now, session, config.refuse_as_sets);
        self.peers[id.index()] = Some(peer);
        self.rib.add_peer(id, config.tables);
        self.handle(now, id, Event::Start);
        Ok(id)
    }

    /// A number that no peer has. It is free once nothing of the peer that had it is in the tables any more.
    fn free_number(&mut self) -> Result<PeerId, TooManyPeers> {
        let number = |index: usize| u16::try_from(index).ok().map(PeerId);
        let is_free = |index: usize| self.peers[index].is_none() && number(index).is_some_and(|id| !self.rib.knows(id));
        let index = (0..self.peers.len()).find(|index| is_free(*index)).unwrap_or(self.peers.len());
        if index >= PEERS_MAX {
            return Err(TooManyPeers);
        }
        if index == self.peers.len() {
            self.peers.push(None);
        }
        number(index).ok_or(TooManyPeers)
    }

    /// Another configuration for a peer. The session ends only when the peer has to learn of the change.
    pub fn configure_peer(&mut self, now: Moment, id: PeerId, config: PeerConfig) {
        let Some(peer) = self.peer_mut(id) else { return };
        peer.refuse_as_sets = config.refuse_as_sets;
        self.rib.set_peer_settings(id, config.tables);
        self.has_input = true;
        self.has_told = true;
        self.handle(now, id, Event::Reconfigure(Box::new(config.session)));
    }

    /// Ends the session of a peer and forgets the peer.
    pub fn remove_peer(&mut self, now: Moment, id: PeerId, communication: &str) {
        let stop = Stop { reason: StopReason::Deconfigured, communication: communication.to_owned() };
        self.handle(now, id, Event::Stop(stop));
        self.rib.remove_peer(id);
        self.has_input = true;
        if let Some(restarter) = &mut self.restarter {
            restarter.gone(id);
        }
        if let Some(peer) = self.peers.get_mut(id.index()).and_then(Option::take)
            && let Some(deadline) = peer.deadline
        {
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// Something happened to a session that is no message: see [`Event`].
    pub fn event(&mut self, now: Moment, id: PeerId, event: Event) {
        self.handle(now, id, event);
    }

    /// The peer opened a connection: its place, when it is wanted. The connection is to be closed otherwise.
    pub fn accept(&mut self, now: Moment, id: PeerId, endpoints: Endpoints) -> Option<Slot> {
        self.accepted = None;
        let free = {
            let peer = self.peer(id)?;
            Slot::ALL.into_iter().find(|slot| !peer.session.has_connection(*slot))
        };
        if let Some(slot) = free
            && let Some(peer) = self.peer_mut(id)
        {
            peer.connection_mut(slot).begin(endpoints);
        }
        self.handle(now, id, Event::Accepted);
        let slot = self.accepted.take()?;
        if free != Some(slot)
            && let Some(peer) = self.peer_mut(id)
        {
            peer.connection_mut(slot).endpoints = endpoints;
        }
        Some(slot)
    }

    /// The connection that [`Command::Connect`] asked for is open.
    pub fn connected(&mut self, now: Moment, id: PeerId, slot: Slot, endpoints: Endpoints) {
        let Some(peer) = self.peer_mut(id) else { return };
        peer.connection_mut(slot).begin(endpoints);
        self.handle(now, id, Event::Connected(slot));
    }

    /// What the ends of a connection mean for next hops is something else now: paths that name us are told again. A family
    /// that has no next hop any more keeps the one it had; the link that went with it ends the session soon enough.
    pub fn set_endpoints(&mut self, id: PeerId, slot: Slot, endpoints: Endpoints) {
        let Some(peer) = self.peer_mut(id).filter(|peer| peer.connection(slot).endpoints != endpoints) else { return };
        peer.connection_mut(slot).endpoints = endpoints;
        if peer.session.established_slot() != Some(slot) {
            return;
        }
        let Some(own) = peer.session.negotiated().map(|negotiated| peer.own_next_hops(slot, negotiated)) else {
            return;
        };
        self.rib.set_own_next_hops(id, own);
        self.has_input = true;
        self.has_told = true;
    }

    /// Tells a peer everything of a family again.
    pub fn resend(&mut self, id: PeerId, family: Family) {
        self.rib.refresh_requested(id, family);
        self.has_input = true;
        self.has_told = true;
    }

    /// A connection could not be opened, or has gone; `reason` is what the system said.
    pub fn closed(&mut self, now: Moment, id: PeerId, slot: Slot, reason: &str) {
        self.handle(now, id, Event::Closed(slot, reason.to_owned()));
    }

    /// When [`Self::timers`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let sessions = self.deadlines.first().map(|(deadline, _)| *deadline);
        let flush = self.waiting_since.map(|since| since.after(FLUSH_AFTER));
        let restart = self.restarter.as_ref().and_then(Restarter::next_deadline);
        sessions.into_iter().chain(flush).chain(restart).min()
    }

    /// Handles every session whose deadline has passed.
    pub fn timers(&mut self, now: Moment) {
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.deadlines.remove(&(deadline, id));
            if let Some(peer) = self.peer_mut(id) {
                peer.deadline = None;
            }
            self.handle(now, id, Event::Timers);
        }
    }

    /// Does a slice of what is due at the tables: about `budget` destinations. Returns true while there is more to do at
    /// once; call it again after a look at the connections. `idle` says that no connection has anything to read.
    pub fn work(&mut self, now: Moment, budget: usize, idle: bool) -> bool {
        self.release(now);
        self.has_input = false;
        let more = self.rib.run(budget);
        if std::mem::take(&mut self.has_told) {
            self.wake_writers();
        }
        if self.rib.wants_flush() {
            self.waiting_since.get_or_insert(now);
        }
        if let Some(since) = self.waiting_since
            && ((idle && self.rib.is_idle()) || now.since(since) >= FLUSH_AFTER)
        {
            self.waiting_since = None;
            self.rib.flush_exports();
            self.wake_writers();
            self.end_laggards(now);
        }
        if !more {
            self.wake_untold();
        }
        more
    }

    /// Exports wait for more input.
    #[must_use]
    pub fn has_waiting_exports(&self) -> bool {
        self.waiting_since.is_some()
    }

    /// Changes for whoever writes routes, at most so many.
    pub fn take_fib_changes(&mut self, max: usize) -> Vec<FibChange> {
        self.rib.take_fib_changes(max)
    }

    /// There are such changes.
    #[must_use]
    pub fn has_fib_changes(&self) -> bool {
        self.rib.fib_changes() > 0
    }

    /// This speaker has restarted: nothing is selected before those peers that keep our paths have sent all they have, or
    /// `deferral` is over (RFC 4724 section 4.1). Only peers that `had_session` before are waited for: nobody else keeps
    /// paths of ours. Call it once, after the peers were added.
    pub fn begin_restart(&mut self, now: Moment, deferral: Duration, had_session: impl Fn(PeerId) -> bool) {
        let awaited = self.peers.iter().enumerate().filter_map(|(index, peer)| {
            let id = PeerId(u16::try_from(index).ok()?);
            let session = &peer.as_ref()?.session;
            let config = session.config();
            config.graceful_restart.as_ref()?;
            let restarts = |family: Family| config.families.get(family).is_some_and(|family| family.restart);
            let families = PerFamily { ipv4: restarts(Family::Ipv4Unicast), ipv6: restarts(Family::Ipv6Unicast) };
            (had_session(id) && !session.is_stopped()).then_some((id, families))
        });
        self.restarter = Some(Restarter::new(now, deferral, awaited.collect::<Vec<_>>()));
        for family in Family::ALL {
            self.rib.defer_selection(family, true);
        }
        self.release(now);
    }

    /// Peers are still waited for after a restart: see [`Self::begin_restart`].
    #[must_use]
    pub fn is_restarting(&self) -> bool {
        self.restarter.is_some()
    }

    /// Every peer has sent all it has, as far as can be known, and nothing is left to be decided. A peer that does not come
    /// up is given [`TOLD_AFTER`], unless it is waited for after a restart.
    #[must_use]
    pub fn is_complete(&self, now: Moment) -> bool {
        let told = |peer: &Peer| match (peer.session.negotiated(), peer.session.established_since()) {
            (Some(agreed), Some(since)) => {
                let is_told =
                    |(family, agreed): (Family, &Option<NegotiatedFamily>)| agreed.is_none() || *peer.told.get(family);
                agreed.families.iter().all(is_told) || now.since(since) >= TOLD_AFTER
            }
            _ => peer.session.is_stopped() || now.since(peer.added) >= TOLD_AFTER,
        };
        self.restarter.is_none() && self.rib.is_idle() && self.peers.iter().flatten().all(told)
    }

    fn release(&mut self, now: Moment) {
        let Some(restarter) = &mut self.restarter else { return };
        let released = restarter.release(now, !self.rib.has_unknown_next_hops());
        let is_over = restarter.is_over();
        for (family, released) in released.iter() {
            if *released {
                self.rib.defer_selection(family, false);
                self.has_input = true;
            }
        }
        if is_over {
            self.restarter = None;
            self.restart.restarted = false;
            for id in self.peers().collect::<Vec<_>>() {
                self.handle(now, id, Event::RestartOver);
            }
        }
    }

    /// Ends sessions of peers that read so slowly that the tables are kept too large for their sake.
    fn end_laggards(&mut self, now: Moment) {
        for id in self.rib.laggards() {
            if self.watchers.contains(&id) {
                self.forget_watcher(id);
                self.commands.push_back(Command::WatcherLost(id));
                continue;
            }
            let notification = Notification::cease_with_communication(cease::OUT_OF_RESOURCES, "reads too slowly");
            if let Some(slot) = self.session(id).and_then(Session::established_slot) {
                self.handle(now, id, Event::Error(slot, notification));
            }
        }
    }

    /// What the owner is to do, in order.
    pub fn take_commands(&mut self) -> impl Iterator<Item = Command> {
        self.commands.drain(..)
    }

    /// The tables.
    #[must_use]
    pub fn rib(&self) -> &Rib {
        &self.rib
    }

    /// The tables, for what is no business of a session: local paths, next hops, FIB changes. Call [`Self::work`] afterwards.
    pub fn rib_mut(&mut self) -> &mut Rib {
        self.has_input = true;
        &mut self.rib
    }

    /// There may be something for [`Self::work`].
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.has_input
    }

    /// Every peer there is.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> {
        let id =
            |(index, peer): (usize, &Option<Peer>)| peer.as_ref().and_then(|_| u16::try_from(index).ok()).map(PeerId);
        self.peers.iter().enumerate().filter_map(id)
    }

    /// The session of a peer.
    #[must_use]
    pub fn session(&self, id: PeerId) -> Option<&Session> {
        self.peer(id).map(|peer| &peer.session)
    }

    /// What there is to say about a peer.
    #[must_use]
    pub fn status(&self, id: PeerId) -> Option<PeerStatus> {
        self.peer(id).map(Peer::status)
    }

    /// Sessions that are established.
    #[must_use]
    pub fn established(&self) -> usize {
        self.peers.iter().flatten().filter(|peer| peer.session.state() == State::Established).count()
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.index())?.as_ref()
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(id.index())?.as_mut()
    }

    /// Hands an event to its session and does what follows, to the end.
    fn handle(&mut self, now: Moment, id: PeerId, event: Event) {
        self.events.push_back((id, event));
        let mut actions = std::mem::take(&mut self.actions);
        while let Some((id, event)) = self.events.pop_front() {
            let Some(peer) = self.peers.get_mut(id.index()).and_then(Option::as_mut) else { continue };
            peer.session.handle(now, event, &mut actions);
            for action in actions.drain(..) {
                self.act(now, id, action);
            }
            self.schedule(id);
        }
        self.actions = actions;
    }

    /// Takes over the next deadline of a session.
    fn schedule(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id.index()).and_then(Option::as_mut) else { return };
        let deadline = peer.session.next_deadline();
        if peer.deadline == deadline {
            return;
        }
        if let Some(old) = std::mem::replace(&mut peer.deadline, deadline) {
            self.deadlines.remove(&(old, id));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, id));
        }
    }

    fn act(&mut self, now: Moment, id: PeerId, action: Action) {
        match action {
            Action::Connect(slot) => self.commands.push_back(Command::Connect(id, slot)),
            Action::Accept(slot) => self.accepted = Some(slot),
            Action::Refuse => self.accepted = None,
            Action::Send(slot, message) => self.queue(now, id, slot, &message),
            Action::Close(slot) => {
                let last = self.peer_mut(id).map(|peer| peer.connection_mut(slot).end()).unwrap_or_default();
                self.commands.push_back(Command::Close(id, slot, last));
            }
            Action::WatchPath(slot) => self.commands.push_back(Command::WatchPath(id, slot)),
            Action::Up(slot, negotiated) => {
                let Some(peer) = self.peers.get_mut(id.index()).and_then(Option::as_mut) else { return };
                let own = peer.establish(slot, &negotiated);
                self.rib.peer_up(id, &negotiated, own);
                self.untold.insert(id);
                if let Some(restarter) = &mut self.restarter {
                    restarter.up(now, id, &negotiated);
                }
                // The tables say nothing of a family for which this side has no next hop, not even that this was all.
                for (family, agreed) in negotiated.families.iter() {
                    if let Some(agreed) = agreed
                        && !fits(*own.get(family), family, agreed.extended_next_hop)
                        && let Some(peer) = self.peers.get_mut(id.index()).and_then(Option::as_mut)
                    {
                        encode::end_of_rib(&mut peer.connection_mut(slot).out, family);
                    }
                }
                self.has_input = true;
                self.commands.push_back(Command::Up(id, slot));
                self.commands.push_back(Command::Write(id, slot));
            }
            Action::Down(down) => {
                if let Some(peer) = self.peer_mut(id) {
                    peer.context = None;
                }
                let retain = match down.retain {
                    Retain::Drop => PerFamily::default(),
                    Retain::Stale(families) => families,
                };
                self.rib.peer_down(id, retain);
                self.has_input = true;
                self.commands.push_back(Command::Down(id));
            }
            Action::Resend(family) => self.resend(id, family),
            Action::RefreshBegan(family) => self.rib.refresh_began(id, family),
            Action::RefreshEnded(family) => {
                self.rib.refresh_ended(id, family);
                self.has_input = true;
            }
            Action::Sweep(family) => {
                self.rib.sweep_stale(id, family);
                self.has_input = true;
            }
            Action::LongLived(family) => {
                self.rib.mark_long_lived_stale(id, family);
                self.has_input = true;
            }
            Action::Fact(fact) => self.commands.push_back(Command::Fact(id, fact)),
        }
    }

    /// Tells the owner about every established peer that has messages of its group to take.
    fn wake_writers(&mut self) {
        for (index, peer) in self.peers.iter().enumerate() {
            let Some((peer, id)) = peer.as_ref().zip(u16::try_from(index).ok().map(PeerId)) else { continue };
            if let Some(slot) = peer.session.established_slot()
                && self.rib.has_exports(id)
            {
                self.commands.push_back(Command::Write(id, slot));
            }
        }
        let watchers = self.watchers.iter().filter(|id| self.rib.has_exports(**id));
        self.commands.extend(watchers.map(|id| Command::Watched(*id)));
    }

    /// Nothing more may come to tell some peers, not even that this was all: what was decided last means nothing to them.
    fn wake_untold(&mut self) {
        self.untold.retain(|id| self.rib.owes_end_of_rib(*id));
        for id in self.untold.iter().filter(|id| self.rib.has_end_of_rib(**id)) {
            if self.watchers.contains(id) {
                self.commands.push_back(Command::Watched(*id));
            } else if let Some(slot) = self.peers.get(id.index()).and_then(|it| it.as_ref()?.session.established_slot())
            {
                self.commands.push_back(Command::Write(*id, slot));
            }
        }
    }

    /// The tables changed in a way that concerns the messages of one family of a peer.
    #[must_use]
    pub fn family_is_up(&self, id: PeerId, family: Family) -> bool {
        self.session(id).and_then(Session::negotiated).is_some_and(|it| it.families.get(family).is_some())
    }
}

/// Can this be the next hop of paths of the family?
fn fits(own: Option<NextHop>, family: Family, extended: bool) -> bool {
    match (own, family) {
        (None, _) | (Some(NextHop::V4(_)), Family::Ipv6Unicast) => false,
        (Some(NextHop::V4(_)), Family::Ipv4Unicast) => true,
        (Some(NextHop::V6(_) | NextHop::V6Pair { .. }), Family::Ipv4Unicast) => extended,
        (Some(NextHop::V6(_) | NextHop::V6Pair { .. }), Family::Ipv6Unicast) => true,
    }
}

#[cfg(test)]
mod tests;
