//! The state machine of one session.

use std::time::Duration;

use super::{
    config::SessionConfig,
    connection::{Connection, Countdown, INCOMING_OPEN_HOLD_TIME, Live, OPEN_HOLD_TIME, Phase},
    damping::{Damping, Jitter},
    ending::is_collision,
    event::{Action, BfdChange, DownCause, Event, Fact, Outgoing, Slot, State, Stop, StopReason},
    history::History,
    negotiate::{LocalRestart, our_open},
    negotiated::Negotiated,
    retention::{Retention, Stage},
};
use crate::{
    family::Family,
    id::Moment,
    wire::{
        header::MessageType,
        notification::{ErrorCode, Notification, cease},
        route_refresh::{RefreshKind, RouteRefresh},
    },
};

/// How long not to connect after a session was ended by a NOTIFICATION of ours. A peer may see a new connection before it has
/// read what came on the old one, and then takes it for a restart and never learns why.
const AFTER_NOTIFICATION: Duration = Duration::from_secs(1);

/// A session with one peer.
#[derive(Clone, Debug)]
pub struct Session {
    pub(super) config: SessionConfig,
    pub(super) run: Run,
    pub(super) connections: [Option<Connection>; 2],
    pub(super) connect_retry: Option<Moment>,
    pub(super) jitter: Jitter,
    pub(super) restart: LocalRestart,
    pub(super) probed: Option<Moment>,
    pub(super) history: History,
    damping: Damping,
    pub(super) retention: Retention,
    pub(super) established_since: Option<Moment>,
    established_count: u64,
    pub(super) last_down: Option<(Moment, DownCause)>,
    pub(super) last_failure: Option<(Moment, DownCause)>,
}

/// What the session is to do when nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run {
    /// Nothing, until somebody starts it.
    Stopped,
    /// Nothing for now (`IdleHoldTimer`); without a moment until somebody starts it.
    Waiting(Option<Moment>),
    /// Connect, listen, stay connected.
    Running,
}

/// How a connection ends.
pub(super) struct End {
    pub(super) cause: DownCause,
    /// Tell the peer.
    pub(super) notification: Option<Notification>,
}

impl Session {
    /// A session that is not started. `seed` varies its timers; it should differ between peers and between speakers.
    #[must_use]
    pub fn new(config: SessionConfig, restart: LocalRestart, seed: u64) -> Self {
        Self {
            config,
            run: Run::Stopped,
            connections: [None, None],
            connect_retry: None,
            jitter: Jitter::new(seed),
            restart,
            probed: None,
            history: History::default(),
            damping: Damping::default(),
            retention: Retention::default(),
            established_since: None,
            established_count: 0,
            last_down: None,
            last_failure: None,
        }
    }

    /// Takes one event and appends what is to be done.
    pub fn handle(&mut self, now: Moment, event: Event, actions: &mut Vec<Action>) {
        let before = self.state();
        self.dispatch(now, event, actions);
        self.release_held(now, actions);
        self.settle(now);
        let after = self.state();
        if before != after {
            self.history.change(now, before, after);
            actions.push(Action::Fact(Fact::State { from: before, to: after }));
        }
    }

    /// An UPDATE arrived: true when routes may be exchanged on this connection, and then the hold timer starts again. When
    /// false, [`Event::Update`] says what to do about it.
    pub fn on_update(&mut self, slot: Slot, now: Moment) -> bool {
        let Some(live) = self.established_mut(slot) else {
            return false;
        };
        if let Some(hold) = &mut live.hold {
            hold.restart(now);
        }
        true
    }

    /// UPDATEs were given out to be sent: the next KEEPALIVE can wait (RFC 4271 section 8.2.2).
    pub fn on_sent(&mut self, slot: Slot, now: Moment) {
        if let Some(Phase::Established(live)) = self.connections[slot.index()].as_mut().map(|it| &mut it.phase)
            && let Some(keepalive) = &mut live.keepalive
        {
            keepalive.restart_with(now, &mut self.jitter);
        }
    }

    /// The kernel took octets for this connection: the peer is reading.
    pub fn on_written(&mut self, slot: Slot, now: Moment) {
        if let Some(timer) = self.established_mut(slot).and_then(|live| live.send_hold.as_mut()) {
            timer.restart(now);
        }
    }

    /// When [`Event::Timers`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let waiting = match self.run {
            Run::Waiting(until) => until,
            Run::Stopped | Run::Running => None,
        };
        let connections = self.connections.iter().flatten().filter_map(Connection::next_deadline);
        connections.chain(waiting).chain(self.connect_retry).chain(self.retention.next_deadline()).min()
    }

    /// The state of the most advanced connection.
    #[must_use]
    pub fn state(&self) -> State {
        let connections = self.connections.iter().flatten();
        // Connect sorts below Active, but an attempt under way says more than waiting for one.
        let rank = |state: &State| match state {
            State::Active => (State::Connect, 0),
            state => (*state, 1),
        };
        match (self.run, connections.map(Connection::state).max_by_key(rank)) {
            (Run::Running, Some(state)) => state,
            (Run::Running, None) => State::Active,
            (Run::Stopped | Run::Waiting(_), _) => State::Idle,
        }
    }

    /// What was agreed, while established.
    #[must_use]
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.established().map(|(_, live)| &*live.negotiated)
    }

    /// The place of the established connection.
    #[must_use]
    pub fn established_slot(&self) -> Option<Slot> {
        self.established().map(|(slot, _)| slot)
    }

    /// The place is taken by a connection or an attempt.
    #[must_use]
    pub const fn has_connection(&self, slot: Slot) -> bool {
        self.connections[slot as usize].is_some()
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// Since when established.
    #[must_use]
    pub const fn established_since(&self) -> Option<Moment> {
        self.established_since
    }

    /// How often it was established.
    #[must_use]
    pub const fn established_count(&self) -> u64 {
        self.established_count
    }

    /// Failures that damping counts.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.damping.failures()
    }

    /// When and why an established session ended last.
    #[must_use]
    pub const fn last_down(&self) -> Option<&(Moment, DownCause)> {
        self.last_down.as_ref()
    }

    /// When and why an attempt to get a session failed last, since there was one.
    #[must_use]
    pub const fn last_failure(&self) -> Option<&(Moment, DownCause)> {
        self.last_failure.as_ref()
    }

    /// Stopped by the operator, or not started yet.
    #[must_use]
    pub const fn is_stopped(&self) -> bool {
        matches!(self.run, Run::Stopped)
    }

    /// There is no connection, no path is kept, and no failure is waited out: a peer that came by itself can be forgotten.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.run == Run::Running
            && self.connections.iter().all(Option::is_none)
            && Family::ALL.into_iter().all(|family| self.stage(family) == Stage::Fresh)
    }

    /// What became of the peer's stale paths of a family.
    #[must_use]
    pub fn stage(&self, family: Family) -> Stage {
        self.retention.stage(family)
    }

    /// The last messages and changes.
    #[must_use]
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// To record messages.
    pub const fn history_mut(&mut self) -> &mut History {
        &mut self.history
    }

    fn dispatch(&mut self, now: Moment, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Start => self.start(now, actions),
            Event::Stop(stop) => self.stop(now, &stop, actions),
            Event::Reset { communication } => {
                let notification = Notification::cease_with_communication(cease::ADMINISTRATIVE_RESET, &communication);
                self.begin_again(now, DownCause::Reset, &notification, actions);
            }
            Event::Reconfigure(config) => self.reconfigure(now, *config, actions),
            Event::Timers => self.expire(now, actions),
            Event::Reachable => self.reachable(now, actions),
            Event::LinkDown => self.end_all(now, &DownCause::LinkDown, None, actions),
            Event::Bfd(BfdChange::Up | BfdChange::AdminDown) => self.path_works(now, actions),
            Event::Bfd(BfdChange::Down { control_plane_independent }) => {
                if let Some((slot, _)) = self.established() {
                    let notification = Some(Notification::new(ErrorCode::Cease, cease::BFD_DOWN));
                    let cause = DownCause::Bfd { control_plane_independent };
                    self.fail(now, slot, End { cause, notification }, actions);
                }
            }
            Event::PrefixLimit { family, maximum } => self.prefix_limit(now, family, maximum, actions),
            Event::Accepted => self.accept(now, actions),
            Event::Connected(slot) => self.connected(now, slot, actions),
            Event::Closed(slot, words) => self.closed(now, slot, words, actions),
            Event::Open(slot, open) => self.open_received(now, slot, &open, actions),
            Event::Error(slot, notification) => self.refuse_message(now, slot, notification, actions),
            Event::Notification(slot, notification) => {
                if self.connections[slot.index()].as_ref().is_some_and(Connection::is_open) {
                    self.fail(now, slot, End { cause: DownCause::Received(notification), notification: None }, actions);
                }
            }
            Event::Keepalive(slot) => self.keepalive_received(now, slot, actions),
            Event::Update(slot) => {
                if !self.on_update(slot, now) {
                    self.unexpected(now, slot, MessageType::Update, actions);
                }
            }
            Event::Refresh(slot, refresh) => self.refresh_received(now, slot, refresh, actions),
            Event::EndOfRib(slot, family) => {
                if self.established_slot() == Some(slot) {
                    self.retention.end_of_rib(family, actions);
                }
            }
            Event::RequestRefresh(family) => self.request_refresh(family, actions),
            Event::RestartOver => self.restart.restarted = false,
        }
    }

    fn start(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.run != Run::Running {
            self.damping.forgive();
            self.begin(now, actions);
        }
    }

    fn begin(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.run = Run::Running;
        if !self.config.passive {
            self.connect(now, actions);
        }
    }

    fn stop(&mut self, now: Moment, stop: &Stop, actions: &mut Vec<Action>) {
        let with_words = |subcode| Some(Notification::cease_with_communication(subcode, &stop.communication));
        let notification = match stop.reason {
            StopReason::Shutdown => with_words(cease::ADMINISTRATIVE_SHUTDOWN),
            StopReason::Deconfigured => Some(Notification::new(ErrorCode::Cease, cease::PEER_DECONFIGURED)),
            StopReason::Restart if self.negotiated().is_some_and(|it| it.restart.is_some()) => None,
            StopReason::Restart => with_words(cease::ADMINISTRATIVE_RESET),
        };
        self.run = Run::Stopped;
        self.end_all(now, &DownCause::Stopped(stop.reason), notification.as_ref(), actions);
        self.retention.clear(stop.reason != StopReason::Restart, actions);
    }

    fn begin_again(&mut self, now: Moment, cause: DownCause, notification: &Notification, actions: &mut Vec<Action>) {
        if self.run == Run::Stopped {
            return;
        }
        let has_spoken = self.connections.iter().flatten().any(Connection::has_sent_open);
        self.end_all(now, &cause, Some(notification), actions);
        self.damping.forgive();
        if has_spoken && !self.config.passive {
            self.run = Run::Running;
            self.connect_retry = Some(now.after(AFTER_NOTIFICATION));
        } else {
            self.begin(now, actions);
        }
    }

    fn reconfigure(&mut self, now: Moment, config: SessionConfig, actions: &mut Vec<Action>) {
        let differs = self.config.wire_differs(&config);
        self.config = config;
        let Some(what) = differs else {
            return;
        };
        // A failure may be what the change mends, so a wait for the next attempt ends. One without an end is not a failure.
        let waits = matches!(self.run, Run::Waiting(Some(_)));
        if waits || self.connections.iter().flatten().any(Connection::is_open) {
            let notification = Notification::new(ErrorCode::Cease, cease::CONFIGURATION_CHANGE);
            self.begin_again(now, DownCause::Reconfigured(what), &notification, actions);
        }
    }

    fn prefix_limit(&mut self, now: Moment, family: Family, maximum: u32, actions: &mut Vec<Action>) {
        let Some((slot, _)) = self.established() else {
            return;
        };
        let mut data = family.afi().to_be_bytes().to_vec();
        data.push(family.safi());
        data.extend_from_slice(&maximum.to_be_bytes());
        let notification = Notification { code: ErrorCode::Cease, subcode: cease::MAXIMUM_PREFIXES, data };
        self.end(
            now,
            slot,
            End { cause: DownCause::PrefixLimit { family, maximum }, notification: Some(notification) },
            actions,
        );
        self.close_all(actions);
        let wait = *self.config.prefix_limit_restart.get(family);
        self.run = Run::Waiting(wait.map(|wait| now.after(wait)));
        actions.push(Action::Fact(Fact::Waiting(wait)));
    }

    fn expire(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if let Run::Waiting(Some(until)) = self.run
            && until <= now
        {
            self.begin(now, actions);
        }
        self.retention.expire(now, actions);
        for slot in Slot::ALL {
            self.expire_connection(now, slot, actions);
        }
        if self.connect_retry.is_some_and(|at| at <= now) && self.run == Run::Running {
            self.connect_retry = None;
            self.give_up_attempt(now, actions);
            self.connect(now, actions);
        }
    }

    fn expire_connection(&mut self, now: Moment, slot: Slot, actions: &mut Vec<Action>) {
        let Some(connection) = &mut self.connections[slot.index()] else {
            return;
        };
        let (hold, send_hold, held, awaits_bfd) = match &mut connection.phase {
            Phase::Connecting => return,
            Phase::Delaying { until } => {
                if *until <= now {
                    self.send_open(now, slot, actions);
                }
                return;
            }
            Phase::OpenSent { hold_until } => (Some(*hold_until), None, None, None),
            Phase::OpenConfirm(live) | Phase::Established(live) => {
                let is_held = live.is_held();
                if let Some(keepalive) = &mut live.keepalive
                    && !is_held
                    && keepalive.at <= now
                {
                    keepalive.restart_with(now, &mut self.jitter);
                    actions.push(Action::Send(slot, Outgoing::Keepalive));
                }
                let at = |timer: Option<Countdown>| timer.map(|timer| timer.at);
                (at(live.hold), at(live.send_hold), live.held_until, live.awaits_bfd_until)
            }
        };
        let due = |at: Option<Moment>| at.is_some_and(|at| at <= now);
        if due(awaits_bfd) {
            let notification = Some(Notification::new(ErrorCode::Cease, cease::BFD_DOWN));
            let cause = DownCause::Bfd { control_plane_independent: false };
            self.fail(now, slot, End { cause, notification }, actions);
        } else if due(hold) {
            let notification = Some(Notification::new(ErrorCode::HoldTimer, 0));
            self.fail(now, slot, End { cause: DownCause::HoldTimer, notification }, actions);
        } else if due(send_hold) {
            // Who does not read gets no NOTIFICATION either (RFC 9687 section 3.2).
            self.fail(now, slot, End { cause: DownCause::SendHoldTimer, notification: None }, actions);
        } else if due(held) {
            // The peer's connection has said nothing: this one is the better one.
            self.end_collided(now, slot.other(), actions);
        }
    }

    fn keepalive_received(&mut self, now: Moment, slot: Slot, actions: &mut Vec<Action>) {
        let Some(connection) = &mut self.connections[slot.index()] else {
            return;
        };
        if let Some(live) = connection.held_mut() {
            live.confirmed = true;
            if let Some(hold) = &mut live.hold {
                hold.restart(now);
            }
            return;
        }
        match &mut connection.phase {
            Phase::Established(live) => {
                if let Some(hold) = &mut live.hold {
                    hold.restart(now);
                }
            }
            Phase::OpenConfirm(_) => self.establish(now, slot, actions),
            Phase::Connecting | Phase::Delaying { .. } | Phase::OpenSent { .. } => {
                self.unexpected(now, slot, MessageType::Keepalive, actions);
            }
        }
    }

    pub(super) fn establish(&mut self, now: Moment, slot: Slot, actions: &mut Vec<Action>) {
        // Whatever else there is has lost, also when its OPEN would have decided otherwise (RFC 4271 section 6.8).
        self.end_collided(now, slot.other(), actions);
        let place = &mut self.connections[slot.index()];
        let Some(Connection { ours, since, phase: Phase::OpenConfirm(mut live) }) = place.take() else {
            return;
        };
        live.establish(now, &self.config);
        let negotiated = live.negotiated.clone();
        *place = Some(Connection { ours, since, phase: Phase::Established(live) });
        self.established_since = Some(now);
        self.last_failure = None;
        self.established_count += 1;
        for family in Family::ALL {
            *self.restart.forwarding_kept.get_mut(family) |= negotiated.families.get(family).is_some();
        }
        actions.push(Action::Up(slot, negotiated.clone()));
        let stale_path_time = self.config.graceful_restart.unwrap_or_default().stale_path_time;
        self.retention.returned(now, &negotiated, stale_path_time, actions);
    }

    fn refresh_received(&mut self, now: Moment, slot: Slot, refresh: RouteRefresh, actions: &mut Vec<Action>) {
        let Some(live) = self.established_mut(slot) else {
            self.unexpected(now, slot, MessageType::RouteRefresh, actions);
            return;
        };
        let negotiated = &live.negotiated;
        let family =
            Family::from_numbers(refresh.afi, refresh.safi).filter(|family| negotiated.families.get(*family).is_some());
        let ignored = match (family, refresh.kind) {
            (None, _) => Some("for a family that was not negotiated"),
            _ if !negotiated.route_refresh => Some("route refresh was not negotiated"),
            (Some(family), RefreshKind::Request) => {
                actions.push(Action::Resend(family));
                None
            }
            (Some(_), _) if !negotiated.enhanced_refresh => Some("enhanced route refresh was not negotiated"),
            (Some(family), RefreshKind::Begin) => {
                let begins = self.retention.refresh_begins(now, family, actions);
                (!begins).then_some("beginning of a refresh before End-of-RIB")
            }
            (Some(family), RefreshKind::End) => {
                let ends = self.retention.refresh_ends(family, actions);
                (!ends).then_some("end of a refresh that did not begin")
            }
        };
        if let Some(why) = ignored {
            actions.push(Action::Fact(Fact::Ignored(MessageType::RouteRefresh, why)));
        }
    }

    fn request_refresh(&self, family: Family, actions: &mut Vec<Action>) {
        let Some((slot, live)) = self.established() else {
            return;
        };
        if live.negotiated.route_refresh && live.negotiated.families.get(family).is_some() {
            let (afi, safi, kind) = (family.afi(), family.safi(), RefreshKind::Request);
            actions.push(Action::Send(slot, Outgoing::Refresh(RouteRefresh { afi, safi, kind })));
        } else {
            actions.push(Action::Fact(Fact::RefreshUnsupported(family)));
        }
    }

    fn refuse_message(&mut self, now: Moment, slot: Slot, notification: Notification, actions: &mut Vec<Action>) {
        if self.connections[slot.index()].as_ref().is_some_and(Connection::is_open) {
            let cause = DownCause::Sent(notification.clone());
            self.fail(now, slot, End { cause, notification: Some(notification) }, actions);
        }
    }

    pub(super) fn unexpected(&mut self, now: Moment, slot: Slot, message: MessageType, actions: &mut Vec<Action>) {
        if let Some(connection) = &self.connections[slot.index()] {
            let subcode = connection.state_machine_subcode();
            let data = vec![message as u8];
            let notification = Notification { code: ErrorCode::StateMachine, subcode, data };
            self.refuse_message(now, slot, notification, actions);
        }
    }

    pub(super) fn send_open(&mut self, now: Moment, slot: Slot, actions: &mut Vec<Action>) {
        if let Some(connection) = &mut self.connections[slot.index()] {
            let hold_time = if connection.ours { OPEN_HOLD_TIME } else { INCOMING_OPEN_HOLD_TIME };
            connection.phase = Phase::OpenSent { hold_until: now.after(hold_time) };
            actions.push(Action::Send(slot, Outgoing::Open(our_open(&self.config, &self.restart))));
        }
    }

    /// Keeps the timer of the next attempt running exactly while an attempt is wanted.
    ///
    /// A connection of the peer that has not said OPEN does not stop our own attempts: it may never say it.
    fn settle(&mut self, now: Moment) {
        let busy = |connection: &Connection| connection.live().is_some() || (connection.ours && connection.is_open());
        let wanted = self.run == Run::Running && !self.config.passive && !self.connections.iter().flatten().any(busy);
        if !wanted {
            self.connect_retry = None;
        } else if self.connect_retry.is_none() {
            self.connect_retry = Some(now.after(self.jitter.apply(self.config.connect_retry)));
        }
    }

    pub(super) fn established(&self) -> Option<(Slot, &Live)> {
        Slot::ALL.into_iter().find_map(|slot| Some((slot, self.connections[slot.index()].as_ref()?.established()?)))
    }

    fn established_mut(&mut self, slot: Slot) -> Option<&mut Live> {
        self.connections[slot.index()].as_mut().and_then(Connection::established_mut)
    }

    /// Ends a connection, and waits when that was a failure and no other connection goes on.
    ///
    /// What happens on a connection of the peer before its OPEN is no failure: anybody who can send from its address could
    /// keep the session down that way.
    pub(super) fn fail(&mut self, now: Moment, slot: Slot, end: End, actions: &mut Vec<Action>) {
        let Some(connection) = &self.connections[slot.index()] else {
            return;
        };
        let counts = match &end.cause {
            // A peer that refuses a connection is asked again after the connect retry time, without growing impatient.
            DownCause::Lost(_) => connection.live().is_some(),
            DownCause::Received(notification) | DownCause::Sent(notification) => {
                !is_collision(notification) && (connection.ours || connection.live().is_some())
            }
            DownCause::HoldTimer | DownCause::SendHoldTimer | DownCause::Bfd { .. } => {
                connection.ours || connection.live().is_some()
            }
            DownCause::Stopped(_)
            | DownCause::Reset
            | DownCause::Reconfigured(_)
            | DownCause::NoAnswer
            | DownCause::Replaced
            | DownCause::LinkDown
            | DownCause::PrefixLimit { .. } => false,
        };
        self.end(now, slot, end, actions);
        if counts && self.run == Run::Running && !self.connections.iter().flatten().any(Connection::is_open) {
            self.close_all(actions);
            let wait = self.damping.fail(now, &self.config.damping);
            let wait = self.jitter.apply(wait);
            self.run = Run::Waiting(Some(now.after(wait)));
            actions.push(Action::Fact(Fact::Waiting(Some(wait))));
        }
    }
}
