//! Two sessions and a network between them that delays, cuts and forgets.
//!
//! The network keeps the order of messages in one direction of one connection, as TCP does, and nothing else: the delay of
//! every step is drawn from a seed. While there is trouble, connections are cut with or without anybody being told, and
//! speakers restart, also by loss of power. Then trouble ends, and both have to be established on the same connection.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::{super::*, *};
use crate::id::Moment;

/// Longest delay of one step, in microseconds.
const DELAY_MAX: u64 = 300_000;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Arrival {
    /// A connection request, at the node that did not open it.
    Request(u64),
    /// The kernel of the other side has taken the request.
    Connected(u64),
    /// A message, at this node.
    Message(u64, usize, Outgoing),
    /// The other end is closed.
    Closed(u64, usize),
}

struct Tcp {
    /// Places of both nodes; `None` when that end is closed, or not yet accepted.
    ends: [Option<Slot>; 2],
    opener: usize,
    /// Nobody answers any more, and nobody is told.
    cut: bool,
    /// When the last message of each direction arrives.
    last: [Moment; 2],
}

struct World {
    now: Moment,
    random: u64,
    sessions: [Session; 2],
    configs: [SessionConfig; 2],
    tcp: BTreeMap<u64, Tcp>,
    arrivals: BinaryHeap<Reverse<(Moment, u64)>>,
    pending: BTreeMap<u64, Arrival>,
    sequence: u64,
    /// The connection on which a node is established.
    up: [Option<u64>; 2],
    changes: usize,
}

impl World {
    fn new(configs: [SessionConfig; 2], seed: u64) -> Self {
        let sessions = [0, 1].map(|node| {
            Session::new(configs[node].clone(), LocalRestart::default(), seed.wrapping_mul(31) + node as u64)
        });
        let mut world = Self {
            now: at(1),
            random: seed,
            sessions,
            configs,
            tcp: BTreeMap::new(),
            arrivals: BinaryHeap::new(),
            pending: BTreeMap::new(),
            sequence: 0,
            up: [None; 2],
            changes: 0,
        };
        for node in [0, 1] {
            world.give(node, Event::Start, None);
        }
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn schedule(&mut self, at: Moment, arrival: Arrival) {
        self.sequence += 1;
        self.arrivals.push(Reverse((at, self.sequence)));
        self.pending.insert(self.sequence, arrival);
    }

    fn soon(&mut self) -> Moment {
        Moment(self.now.0 + 1 + self.below(DELAY_MAX))
    }

    /// Schedules what travels to `node` in the order of the connection.
    fn travel(&mut self, id: u64, node: usize, arrival: Arrival) {
        let soon = self.soon();
        if let Some(tcp) = self.tcp.get_mut(&id).filter(|tcp| !tcp.cut) {
            tcp.last[node] = soon.max(Moment(tcp.last[node].0 + 1));
            let at = tcp.last[node];
            self.schedule(at, arrival);
        }
    }

    fn connection_at(&self, node: usize, slot: Slot) -> Option<u64> {
        self.tcp.iter().find(|(_, tcp)| tcp.ends[node] == Some(slot)).map(|(id, _)| *id)
    }

    fn give(&mut self, node: usize, event: Event, offered: Option<u64>) {
        let mut actions = Vec::new();
        self.sessions[node].handle(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Connect(slot) => {
                    self.sequence += 1;
                    let id = self.sequence;
                    let mut ends = [None; 2];
                    ends[node] = Some(slot);
                    self.tcp.insert(id, Tcp { ends, opener: node, cut: false, last: [self.now; 2] });
                    self.travel(id, 1 - node, Arrival::Request(id));
                }
                Action::Accept(slot) => {
                    let id = offered.expect("a connection was offered");
                    self.tcp.get_mut(&id).expect("it exists").ends[node] = Some(slot);
                }
                Action::Refuse => {
                    let id = offered.expect("a connection was offered");
                    self.travel(id, 1 - node, Arrival::Closed(id, 1 - node));
                }
                Action::Send(slot, message) => {
                    let id = self.connection_at(node, slot).expect("the place has a connection");
                    self.travel(id, 1 - node, Arrival::Message(id, 1 - node, message));
                    if !self.tcp.get(&id).is_none_or(|tcp| tcp.cut) {
                        self.sessions[node].on_written(slot, self.now);
                    }
                }
                Action::Close(slot) => {
                    if let Some(id) = self.connection_at(node, slot) {
                        self.tcp.get_mut(&id).expect("it exists").ends[node] = None;
                        self.travel(id, 1 - node, Arrival::Closed(id, 1 - node));
                    }
                }
                Action::WatchPath(_) => {}
                Action::Up(slot, _) => {
                    let id = self.connection_at(node, slot).expect("the place has a connection");
                    assert_eq!(self.up[node].replace(id), None, "established twice");
                    self.changes += 1;
                }
                Action::Down(_) => {
                    assert!(self.up[node].take().is_some(), "down without up");
                    self.changes += 1;
                }
                Action::Resend(_)
                | Action::RefreshBegan(_)
                | Action::RefreshEnded(_)
                | Action::Sweep(_)
                | Action::LongLived(_)
                | Action::Fact(_) => {}
            }
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Request(id) => {
                if let Some(Tcp { opener, .. }) =
                    self.tcp.get(&id).filter(|tcp| !tcp.cut && tcp.ends[tcp.opener].is_some())
                {
                    let opener = *opener;
                    self.travel(id, opener, Arrival::Connected(id));
                    self.give(1 - opener, Event::Accepted, Some(id));
                }
            }
            Arrival::Connected(id) => {
                if let Some((node, slot)) = self.tcp.get(&id).and_then(|tcp| Some((tcp.opener, tcp.ends[tcp.opener]?)))
                {
                    self.give(node, Event::Connected(slot), None);
                }
            }
            Arrival::Message(id, node, message) => {
                match self.tcp.get(&id).filter(|tcp| !tcp.cut).map(|tcp| tcp.ends[node]) {
                    None => {}
                    // Whoever sends to a closed end is told so by that end's kernel.
                    Some(None) => self.travel(id, 1 - node, Arrival::Closed(id, 1 - node)),
                    Some(Some(slot)) => {
                        let event = match message {
                            Outgoing::Open(open) => Event::Open(slot, open),
                            Outgoing::Keepalive => Event::Keepalive(slot),
                            Outgoing::Notification(notification) => Event::Notification(slot, notification),
                            Outgoing::Refresh(refresh) => Event::Refresh(slot, refresh),
                        };
                        self.give(node, event, None);
                    }
                }
            }
            Arrival::Closed(id, node) => {
                if let Some(slot) = self.tcp.get(&id).filter(|tcp| !tcp.cut).and_then(|tcp| tcp.ends[node]) {
                    self.give(node, Event::Closed(slot, "closed by the peer".to_owned()), None);
                }
            }
        }
        self.tcp.retain(|_, tcp| tcp.ends.iter().any(Option::is_some));
    }

    /// Runs until then.
    fn run(&mut self, until: Moment) {
        loop {
            let timer = [0, 1].into_iter().filter_map(|node| Some((self.sessions[node].next_deadline()?, node))).min();
            let arrival = self.arrivals.peek().map(|Reverse((at, _))| *at);
            let next = [timer.map(|(at, _)| at), arrival].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            if let Some((_, node)) = timer.filter(|(at, _)| *at <= self.now) {
                self.give(node, Event::Timers, None);
            } else if let Some(Reverse((_, sequence))) = self.arrivals.pop() {
                let arrival = self.pending.remove(&sequence).expect("what was scheduled is pending");
                self.arrive(arrival);
            }
        }
    }

    fn trouble(&mut self, silent: bool) {
        let node = usize::from(self.below(2) == 1);
        match self.below(if silent { 6 } else { 4 }) {
            0 => self.reset_connections(),
            1 => self.give(node, Event::Reset { communication: String::new() }, None),
            2 => self.restart(node, true),
            3 => self.give(node, Event::Reachable, None),
            4 => self.tcp.values_mut().for_each(|tcp| tcp.cut = true),
            _ => self.restart(node, false),
        }
    }

    fn reset_connections(&mut self) {
        let ids: Vec<u64> = self.tcp.keys().copied().collect();
        for id in ids {
            for node in [0, 1] {
                self.travel(id, node, Arrival::Closed(id, node));
            }
        }
    }

    /// A new process takes over. With `told` its kernel closes its connections, without it nobody knows of them any more.
    fn restart(&mut self, node: usize, told: bool) {
        let ids: Vec<u64> = self.tcp.keys().copied().collect();
        for id in ids {
            self.tcp.get_mut(&id).expect("it exists").ends[node] = None;
            if told {
                self.travel(id, 1 - node, Arrival::Closed(id, 1 - node));
            }
        }
        self.up[node] = None;
        let seed = self.below(u64::MAX);
        self.sessions[node] = Session::new(self.configs[node].clone(), LocalRestart::default(), seed);
        self.give(node, Event::Start, None);
    }

    fn assert_converged(&self, seed: u64) {
        let states = [self.sessions[0].state(), self.sessions[1].state()];
        assert_eq!(states, [State::Established; 2], "seed {seed}");
        assert!(self.up[0].is_some() && self.up[0] == self.up[1], "seed {seed}: on different connections");
        let ends = self.tcp.values().filter(|tcp| tcp.ends.iter().any(Option::is_some)).count();
        assert_eq!(ends, 1, "seed {seed}: connections that nobody uses");
    }
}

fn ebgp() -> [SessionConfig; 2] {
    [config(), their_config()]
}

/// Starts both, lets them meet, and says how long that took at most, in seconds.
fn meet(configs: &[SessionConfig; 2], seeds: u64, limit_s: u64) {
    for seed in 0..seeds {
        let mut world = World::new(configs.clone(), seed);
        world.run(at(1 + limit_s));
        world.assert_converged(seed);
        let changes = world.changes;
        world.run(at(1_000));
        world.assert_converged(seed);
        assert_eq!(world.changes, changes, "seed {seed}: not stable");
    }
}

fn recover(configs: &[SessionConfig; 2], seeds: u64, silent: bool) {
    for seed in 0..seeds {
        let mut world = World::new(configs.clone(), seed);
        let mut end = 1;
        for _ in 0..world.below(20) {
            end += world.below(30);
            world.run(at(end));
            world.trouble(silent);
        }
        // The longest that anybody waits: four minutes for an OPEN, two for damping.
        world.run(at(end + 600));
        world.assert_converged(seed);
        let changes = world.changes;
        world.run(at(end + 2_000));
        world.assert_converged(seed);
        assert_eq!(world.changes, changes, "seed {seed}: not stable");
    }
}

#[test]
fn two_that_start_at_once_meet_in_two_seconds() {
    meet(&ebgp(), 500, 2);
}

#[test]
fn a_passive_side_meets_an_active_one() {
    let [one, other] = ebgp();
    meet(&[SessionConfig { passive: true, ..one }, other], 100, 2);
}

#[test]
fn delayed_opens_meet() {
    let delay = |config| SessionConfig { delay_open: Some(seconds(2)), ..config };
    meet(&ebgp().map(delay), 200, 12);
    let [one, other] = ebgp();
    meet(&[delay(one), other], 200, 12);
}

#[test]
fn equal_identifiers_in_two_ases_meet() {
    let [one, other] = ebgp();
    meet(&[one, SessionConfig { router_id: OUR_ID, ..other }], 200, 2);
}

#[test]
fn one_as_meets() {
    let [one, other] = ebgp();
    let internal =
        |config, id| SessionConfig { local_as: OURS, remote_as: RemoteAs::Internal, router_id: id, ..config };
    meet(&[internal(one, OUR_ID), internal(other, THEIR_ID)], 200, 2);
}

#[test]
fn without_hold_time_they_meet_and_recover_from_what_they_are_told() {
    let configs = ebgp().map(|config| SessionConfig { hold_time_s: 0, ..config });
    meet(&configs, 100, 2);
    recover(&configs, 100, false);
}

#[test]
fn whatever_happened_they_meet_again() {
    recover(&ebgp(), 400, true);
}

#[test]
fn without_graceful_restart_they_meet_again() {
    recover(&ebgp().map(|config| SessionConfig { graceful_restart: None, ..config }), 200, true);
}

#[test]
fn with_one_side_passive_they_meet_again() {
    let [one, other] = ebgp();
    recover(&[SessionConfig { passive: true, ..one }, other], 200, true);
}

#[test]
fn a_peer_that_lost_power_is_back_before_the_hold_time_is_over() {
    let plain = ebgp().map(|config| SessionConfig { graceful_restart: None, ..config });
    for (name, configs) in [("graceful restart", ebgp()), ("probe", plain)] {
        for seed in 0..100 {
            let mut world = World::new(configs.clone(), seed);
            world.run(at(20));
            world.restart(0, false);
            world.run(at(40));
            assert_eq!(world.sessions[0].state(), State::Established, "{name}, seed {seed}");
            world.assert_converged(seed);
        }
    }
}
