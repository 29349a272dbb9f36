//! The speakers, the network between them, and time.
//!
//! A speaker here is the real one: octets in, octets out. This file is what its driver is in the daemon: it carries octets,
//! opens and closes connections when told, and calls the timers, late by a time of their own. Whatever a speaker asks for
//! that a driver could not do is a failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ::bgp::{
    Family, Moment, NextHop, PeerId, PerFamily, RouterId,
    policy::{LocalSource, Policy},
    rib::{LocalRoute, PeerSettings, RibConfig},
    session::{Event as SessionEvent, LocalRestart, RemoteAs, SendHold, SessionConfig, State},
    speaker::{Command, Endpoints, PeerConfig, Speaker},
    wire::attributes::{Builder, Origin},
};

use super::{
    sabotage::Sabotage,
    tcp::{Connections, End},
    topology::{
        SPEAKERS, TOPOLOGY, Topology, address, address6, asn, is_client, paths_told, prefix, prefix6, router_id,
    },
};
use crate::clock::{Agenda, Rng};

/// Longest delay of one step through the network.
const DELAY_MS_MAX: u64 = 200;
/// Of so many pieces one is lost on the way, and comes after a pause, before everything behind it.
const LOST_ONE_IN: usize = 50;
/// The longest such pause.
const RETRANSMISSION_MS_MAX: u64 = 2_000;
/// How late a timer is handled at most.
const LATE_MS_MAX: u64 = 300;
/// How long a speaker that restarted waits for what its neighbors have.
const DEFERRAL: Duration = Duration::from_secs(20);
/// Octets taken from a speaker at once.
const CHUNK: usize = 4_096;
/// Destinations a speaker works on at once.
const BUDGETS: [usize; 3] = [8, 64, 4_096];
/// More events in one second of virtual time are a loop.
const EVENTS_A_SECOND_MAX: u32 = 100_000;
/// Lines kept for the report of a failure.
const LINES_MAX: usize = 40;

#[derive(Debug)]
pub(super) enum Event {
    /// Timers may be due.
    Wake { speaker: usize, incarnation: u64 },
    /// A request for a connection is there.
    Request(u64),
    /// A request was taken by the other kernel.
    Connected(u64),
    /// Octets are there, at this end.
    Octets(u64, usize, Vec<u8>),
    /// The other end is closed, seen from this end.
    Closed(u64, usize),
    /// This end can send more.
    Writable(u64, usize),
    /// Something goes wrong.
    Fault,
    /// A link carries again.
    Mend(usize, usize),
    /// A speaker starts again.
    Start(usize),
    /// A speaker originates its prefixes again.
    Originate(usize),
}

pub(super) struct Node {
    pub(super) speaker: Option<Speaker>,
    pub(super) incarnation: u64,
    pub(super) peers: BTreeMap<usize, PeerId>,
    neighbors: BTreeMap<PeerId, usize>,
    wake: Option<Duration>,
    pub(super) originates: bool,
    /// Neighbors with a session when the speaker ended: a daemon writes that down.
    had_session: BTreeSet<usize>,
}

pub(super) struct World {
    pub(super) topology: &'static Topology,
    pub(super) sabotage: Option<Sabotage>,
    pub(super) agenda: Agenda<Event>,
    pub(super) rng: Rng,
    pub(super) nodes: Vec<Node>,
    pub(super) connections: Connections,
    /// Links that carry nothing, with the lower end first.
    pub(super) down: Vec<(usize, usize)>,
    pub(super) chaos_until: Duration,
    pub(super) failure: Option<String>,
    pub(super) established: u64,
    seed: u64,
    lines: std::collections::VecDeque<String>,
    events_in: (u64, u32),
}

impl World {
    pub(super) fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let node = || Node {
            speaker: None,
            incarnation: 0,
            peers: BTreeMap::new(),
            neighbors: BTreeMap::new(),
            wake: None,
            originates: true,
            had_session: BTreeSet::new(),
        };
        let mut world = Self {
            topology: &TOPOLOGY,
            sabotage,
            agenda: Agenda::new(),
            rng: Rng::new(seed),
            nodes: (0..SPEAKERS).map(|_| node()).collect(),
            connections: Connections::default(),
            down: Vec::new(),
            chaos_until: Duration::ZERO,
            failure: None,
            established: 0,
            seed,
            lines: std::collections::VecDeque::new(),
            events_in: (0, 0),
        };
        for speaker in 0..SPEAKERS {
            let at = world.rng.ms(0, 1_000);
            world.agenda.at(at, Event::Start(speaker));
        }
        world
    }

    pub(super) fn moment(&self) -> Moment {
        Moment(u64::try_from(self.agenda.now.as_micros()).expect("not that long"))
    }

    pub(super) fn note(&mut self, line: String) {
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>10.3} {line}", self.agenda.now.as_secs_f64()));
    }

    pub(super) fn fail(&mut self, what: String) {
        if self.failure.is_none() {
            let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
            self.failure = Some(format!(
                "seed {}: {what}\n  at {:.3} s of virtual time; the last events:\n{}",
                self.seed,
                self.agenda.now.as_secs_f64(),
                lines.join("\n")
            ));
        }
    }

    /// Runs until then, or until something is wrong.
    pub(super) fn run_until(&mut self, end: Duration) -> bool {
        while self.failure.is_none() {
            let Some(event) = self.agenda.pop(end) else {
                self.agenda.now = end;
                return true;
            };
            let second = self.agenda.now.as_secs();
            self.events_in = if self.events_in.0 == second { (second, self.events_in.1 + 1) } else { (second, 0) };
            if self.events_in.1 > EVENTS_A_SECOND_MAX {
                self.fail(format!("more than {EVENTS_A_SECOND_MAX} events in one second"));
            }
            self.happen(event);
        }
        false
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake { speaker, incarnation } => self.wake(speaker, incarnation),
            Event::Request(id) => self.request(id),
            Event::Connected(id) => self.connected(id),
            Event::Octets(id, end, octets) => self.octets(id, end, &octets),
            Event::Closed(id, end) => self.closed(id, end),
            Event::Writable(id, end) => self.write(id, end),
            Event::Fault => self.fault(),
            Event::Mend(one, other) => self.mend(one, other),
            Event::Start(speaker) => self.start(speaker),
            Event::Originate(speaker) => self.originate(speaker, true),
        }
    }

    /// Starts a speaker. One that was there before says that it has restarted.
    pub(super) fn start(&mut self, speaker: usize) {
        let now = self.moment();
        let seed = self.rng.next();
        let node = &mut self.nodes[speaker];
        if node.speaker.is_some() {
            return;
        }
        let again = node.incarnation > 0;
        let restart = LocalRestart { restarted: again, forwarding_kept: PerFamily { ipv4: again, ipv6: again } };
        let router_id = router_id(speaker);
        let router_id = self.sabotage.map_or(router_id, |sabotage| sabotage.router_id(speaker, router_id));
        let mut config = RibConfig::new(asn(speaker), router_id, seed);
        config.next_hop_tracking = false;
        let mut fresh = Speaker::new(config, restart, seed);
        node.incarnation += 1;
        node.wake = None;
        node.peers.clear();
        node.neighbors.clear();
        let neighbors: Vec<usize> = self.topology.neighbors(speaker).collect();
        for neighbor in neighbors {
            match fresh.add_peer(now, self.peer_config(speaker, neighbor, router_id)) {
                Ok(peer) => {
                    self.nodes[speaker].peers.insert(neighbor, peer);
                    self.nodes[speaker].neighbors.insert(peer, neighbor);
                }
                Err(error) => self.fail(error.to_string()),
            }
        }
        if again {
            let node = &self.nodes[speaker];
            let had_session =
                |peer| node.neighbors.get(&peer).is_some_and(|neighbor| node.had_session.contains(neighbor));
            fresh.begin_restart(now, DEFERRAL, had_session);
        }
        self.nodes[speaker].speaker = Some(fresh);
        self.note(format!("{speaker} starts"));
        if again && self.sabotage == Some(Sabotage::ForgetOrigin) {
            self.pump(speaker);
            return;
        }
        let originates = self.nodes[speaker].originates;
        self.originate(speaker, originates);
    }

    /// How a speaker sees a neighbor. Some are passive, some wait with their OPEN, some do without graceful restart.
    fn peer_config(&self, speaker: usize, neighbor: usize, router_id: RouterId) -> PeerConfig {
        let mut session = SessionConfig::new(asn(speaker), RemoteAs::Number(asn(neighbor)), router_id);
        session.hold_time_s = 30;
        session.send_hold = SendHold::After(Duration::from_secs(60));
        session.passive = speaker < neighbor && (speaker + neighbor).is_multiple_of(7);
        session.delay_open = (speaker + 2 * neighbor).is_multiple_of(11).then_some(Duration::from_secs(1));
        if (speaker * neighbor).is_multiple_of(5) {
            session.graceful_restart = None;
        }
        session.extended_message = (speaker ^ neighbor) & 4 == 0;
        let several = paths_told(speaker, neighbor).filter(|_| self.sabotage != Some(Sabotage::OnePath));
        for family in Family::ALL {
            if let Some(family) = session.families.get_mut(family) {
                family.add_path_send = several.is_some();
                family.add_path_receive = paths_told(neighbor, speaker).is_some();
            }
        }
        let all = Policy::accept_all();
        let mut tables = PeerSettings::new(IpAddr::V4(address(neighbor)), all.clone(), all);
        tables.reflector_client = is_client(speaker, neighbor) && self.sabotage != Some(Sabotage::NoReflection);
        let max = several.unwrap_or_default();
        tables.add_path_max = PerFamily { ipv4: max, ipv6: max };
        PeerConfig { session, tables, refuse_as_sets: true }
    }

    /// Ends a speaker, with or without its kernel telling the others.
    pub(super) fn kill(&mut self, speaker: usize, told: bool) {
        let node = &mut self.nodes[speaker];
        if let Some(ended) = node.speaker.take() {
            let has_session = |peer: PeerId| ended.session(peer).is_some_and(|it| it.state() == State::Established);
            node.had_session = node.peers.iter().filter(|(_, peer)| has_session(**peer)).map(|(it, _)| *it).collect();
        }
        for id in self.connections.of(speaker) {
            let Some(end) =
                self.connections.get(id).and_then(|tcp| tcp.ends.iter().position(|it| it.speaker == speaker))
            else {
                continue;
            };
            if self.sabotage == Some(Sabotage::KeepConnections) {
                continue;
            }
            if told {
                self.travel(id, 1 - end, Event::Closed(id, 1 - end));
            }
            self.connections.take(id, end);
        }
    }

    /// Originates the prefixes of a speaker, or withdraws them.
    pub(super) fn originate(&mut self, speaker: usize, originates: bool) {
        let now = self.moment();
        self.nodes[speaker].originates = originates;
        let Some(it) = &mut self.nodes[speaker].speaker else {
            return;
        };
        let rib = it.rib_mut();
        if originates {
            let attributes = Builder::default().origin(Origin::Igp).build();
            let route = LocalRoute { source: LocalSource::PodCidr, attributes, next_hop: None };
            rib.originate(prefix(speaker), &route, now);
            prefix6(speaker).into_iter().for_each(|prefix| rib.originate(prefix, &route, now));
        } else {
            rib.withdraw_local(prefix(speaker), LocalSource::PodCidr);
            prefix6(speaker).into_iter().for_each(|prefix| rib.withdraw_local(prefix, LocalSource::PodCidr));
        }
        self.pump(speaker);
    }

    /// Tells a session of a speaker something.
    pub(super) fn tell(&mut self, speaker: usize, neighbor: usize, event: SessionEvent) {
        let now = self.moment();
        let node = &mut self.nodes[speaker];
        if let (Some(it), Some(peer)) = (&mut node.speaker, node.peers.get(&neighbor)) {
            it.event(now, *peer, event);
            self.pump(speaker);
        }
    }

    fn wake(&mut self, speaker: usize, incarnation: u64) {
        let now = self.moment();
        let node = &mut self.nodes[speaker];
        if node.incarnation == incarnation
            && let Some(it) = &mut node.speaker
        {
            node.wake = None;
            if self.sabotage == Some(Sabotage::DeafTimers) {
                return;
            }
            // Sometimes one session has its timers looked at before, whether one is due or not.
            if self.rng.one_in(4) {
                let peers: Vec<PeerId> = it.peers().collect();
                it.event(now, self.rng.pick(&peers), SessionEvent::Timers);
            }
            it.timers(now);
            self.pump(speaker);
        }
    }

    /// Lets a speaker work, does what it asks, and sees to it that it is woken in time.
    pub(super) fn pump(&mut self, speaker: usize) {
        let now = self.moment();
        let budget = self.rng.pick(&BUDGETS);
        // Sometimes there is more to be read, so that exports wait.
        let idle = !self.rng.one_in(4);
        let Some(it) = &mut self.nodes[speaker].speaker else {
            return;
        };
        while it.work(now, budget, idle) {}
        let _ = it.rib_mut().take_fib_changes(usize::MAX);
        let commands: Vec<Command> = it.take_commands().collect();
        for command in commands {
            self.obey(speaker, command);
        }
        self.set_alarm(speaker);
    }

    fn set_alarm(&mut self, speaker: usize) {
        let late = self.rng.ms(0, LATE_MS_MAX);
        let node = &mut self.nodes[speaker];
        let Some(deadline) = node.speaker.as_ref().and_then(Speaker::next_deadline) else {
            return;
        };
        let at = Duration::from_micros(deadline.0).max(self.agenda.now) + late;
        if node.wake.is_none_or(|wake| at < wake) {
            node.wake = Some(at);
            let incarnation = node.incarnation;
            self.agenda.at(at, Event::Wake { speaker, incarnation });
        }
    }

    fn obey(&mut self, speaker: usize, command: Command) {
        match command {
            Command::Connect(peer, slot) => {
                let neighbor = self.nodes[speaker].neighbors[&peer];
                let incarnations = [speaker, neighbor].map(|it| self.nodes[it].incarnation);
                let id =
                    self.connections.open([End::new(speaker, incarnations[0]), End::new(neighbor, incarnations[1])]);
                if let Err(error) = self.connections.put(id, 0, (peer, slot)) {
                    self.fail(error);
                }
                self.travel(id, 1, Event::Request(id));
            }
            Command::Close(peer, slot, last) => {
                if let Some((id, end)) = self.connections.at(speaker, peer, slot) {
                    if !last.is_empty() {
                        self.travel(id, 1 - end, Event::Octets(id, 1 - end, last));
                    }
                    self.travel(id, 1 - end, Event::Closed(id, 1 - end));
                    self.connections.take(id, end);
                }
            }
            Command::Write(peer, slot) => {
                if let Some((id, end)) = self.connections.at(speaker, peer, slot) {
                    self.write(id, end);
                }
            }
            Command::Up(..) => self.established += 1,
            Command::Down(..)
            | Command::Fact(..)
            | Command::NearLimit(..)
            | Command::WatchPath(..)
            | Command::Message(_)
            | Command::Watched(_)
            | Command::WatcherLost(_) => {}
        }
    }

    /// Takes octets from a speaker and lets them travel, in pieces.
    fn write(&mut self, id: u64, end: usize) {
        let now = self.moment();
        let Some(tcp) = self.connections.get(id) else {
            return;
        };
        let (speaker, Some((peer, slot)), cut) = (tcp.ends[end].speaker, tcp.ends[end].place(), tcp.cut) else {
            return;
        };
        let Some(it) = &mut self.nodes[speaker].speaker else {
            return;
        };
        if cut {
            // The buffer of the kernel is full.
            return;
        }
        let mut out = Vec::new();
        let more = it.send(now, peer, slot, &mut out, CHUNK);
        if !out.is_empty() {
            it.written(now, peer, slot);
        }
        if let Some(sabotage) = self.sabotage {
            sabotage.spoil_octets(&mut self.rng, &mut out);
        }
        let mut pieces = Vec::new();
        while !out.is_empty() {
            let rest = out.split_off(out.len().min(1 + self.rng.below(CHUNK)));
            pieces.push(std::mem::replace(&mut out, rest));
        }
        if self.sabotage == Some(Sabotage::SwapPieces) {
            pieces.reverse();
        }
        for piece in pieces {
            self.travel(id, 1 - end, Event::Octets(id, 1 - end, piece));
        }
        if more {
            let pause = self.rng.ms(0, 50);
            self.agenda.after(pause, Event::Writable(id, end));
        }
        self.set_alarm(speaker);
    }

    /// Schedules what travels to one end of a connection, behind what travels there already.
    pub(super) fn travel(&mut self, id: u64, end: usize, event: Event) {
        let mut arrival = self.agenda.now + self.rng.ms(0, DELAY_MS_MAX);
        if self.rng.one_in(LOST_ONE_IN) {
            arrival += self.rng.ms(DELAY_MS_MAX, RETRANSMISSION_MS_MAX);
        }
        let Some(tcp) = self.connections.get_mut(id) else {
            return;
        };
        let speakers = tcp.ends.each_ref().map(|end| end.speaker);
        let link = (speakers[0].min(speakers[1]), speakers[0].max(speakers[1]));
        if tcp.cut || self.down.contains(&link) {
            tcp.cut = true;
            return;
        }
        tcp.ends[end].last = arrival.max(tcp.ends[end].last + Duration::from_micros(1));
        self.agenda.at(tcp.ends[end].last, event);
    }

    fn request(&mut self, id: u64) {
        let now = self.moment();
        let Some((from, to)) = self.connections.get(id).map(|tcp| (tcp.ends[0].speaker, tcp.ends[1].speaker)) else {
            return;
        };
        let node = &mut self.nodes[to];
        let Some((it, peer)) = node.speaker.as_mut().zip(node.peers.get(&from).copied()) else {
            // Nobody listens.
            self.travel(id, 0, Event::Closed(id, 0));
            return;
        };
        let accepted = it.accept(now, peer, endpoints(to));
        let incarnation = node.incarnation;
        match accepted {
            Some(slot) => {
                if let Some(tcp) = self.connections.get_mut(id) {
                    tcp.ends[1].incarnation = incarnation;
                }
                if let Err(error) = self.connections.put(id, 1, (peer, slot)) {
                    self.fail(error);
                }
                self.travel(id, 0, Event::Connected(id));
            }
            None => self.travel(id, 0, Event::Closed(id, 0)),
        }
        self.pump(to);
    }

    fn connected(&mut self, id: u64) {
        let now = self.moment();
        let Some((speaker, Some((peer, slot)))) =
            self.connections.get(id).map(|it| (it.ends[0].speaker, it.ends[0].place()))
        else {
            return;
        };
        if let Some(it) = &mut self.nodes[speaker].speaker {
            it.connected(now, peer, slot, endpoints(speaker));
            self.pump(speaker);
        }
    }

    fn octets(&mut self, id: u64, end: usize, octets: &[u8]) {
        let now = self.moment();
        let Some(tcp) = self.connections.get_mut(id) else {
            return;
        };
        let Some((peer, slot)) = tcp.ends[end].place() else {
            // A kernel that does not know a connection says so.
            self.travel(id, 1 - end, Event::Closed(id, 1 - end));
            return;
        };
        let speaker = tcp.ends[end].speaker;
        let mut unread = std::mem::take(&mut tcp.ends[end].unread);
        unread.extend_from_slice(octets);
        let Some(it) = &mut self.nodes[speaker].speaker else {
            return;
        };
        let used = it.receive(now, peer, slot, &unread);
        unread.drain(..used);
        self.pump(speaker);
        if let Some(tcp) = self.connections.get_mut(id)
            && tcp.ends[end].place().is_some()
        {
            tcp.ends[end].unread = unread;
        }
    }

    fn closed(&mut self, id: u64, end: usize) {
        let now = self.moment();
        let Some((speaker, Some((peer, slot)))) =
            self.connections.get(id).map(|tcp| (tcp.ends[end].speaker, tcp.ends[end].place()))
        else {
            return;
        };
        if let Some(it) = &mut self.nodes[speaker].speaker {
            it.closed(now, peer, slot, "closed by the peer");
            self.pump(speaker);
        }
    }
}

fn endpoints(speaker: usize) -> Endpoints {
    Endpoints {
        own_next_hops: PerFamily {
            ipv4: Some(NextHop::V4(address(speaker))),
            ipv6: Some(NextHop::V6(address6(speaker))),
        },
        extended_next_hop: None,
    }
}
