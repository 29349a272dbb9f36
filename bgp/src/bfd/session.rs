//! One session: the state variables of RFC 5880 section 6.8.1 and the rules that move them.

use std::time::Duration;

use thiserror::Error;

use super::{
    authentication::{Authentication, Sequences},
    echo::{Echo, EchoState},
    jitter::Jitter,
    packet::{Diagnostic, Discriminator, Interval, Packet, Received, State},
    settings::{Action, Change, Settings},
};
use crate::id::Moment;

/// What happens to a session.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A packet that was selected for this session, see [`super::Sessions`].
    Packet(&'a Received<'a>),
    /// An echo packet of ours came back.
    Echo {
        /// Its number.
        sequence: u32,
    },
    /// Time has passed; harmless when it comes early.
    Tick,
    /// Hold the session down.
    AdminDown,
    /// Let it come up again.
    AdminUp,
    /// Behave differently from now on.
    Configure(&'a Settings),
}

/// Why a packet was dropped after its session was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Discard {
    /// It is signed, and we have no key.
    #[error("packet is authenticated and no key is configured")]
    AuthenticationUnexpected,
    /// It is not signed, and we have a key.
    #[error("packet is not authenticated")]
    AuthenticationMissing,
    /// It is signed in a way that is not keyed SHA1.
    #[error("authentication type {0} is not supported")]
    AuthenticationUnsupported(u8),
    /// It is signed with another key or in the other form of keyed SHA1.
    #[error("authentication type {kind} with key {key_id} is not configured")]
    AuthenticationKey {
        /// Type of the section.
        kind: u8,
        /// Key of the section.
        key_id: u8,
    },
    /// The signature is wrong.
    #[error("authentication digest is wrong")]
    AuthenticationDigest,
    /// The signature is right and old.
    #[error("authentication sequence number {sequence} does not follow {heard}")]
    AuthenticationSequence {
        /// The last number.
        heard: u32,
        /// The number of this packet.
        sequence: u32,
    },
    /// The session is held down, and what is heard does not matter.
    #[error("session is administratively down")]
    AdminDown,
}

/// What the other side said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its number of the session; `None` after a detection time of silence.
    pub discriminator: Option<Discriminator>,
    /// Its state.
    pub state: State,
    /// Why its state changed last.
    pub diagnostic: Diagnostic,
    /// How often it would like to send.
    pub min_transmit: Interval,
    /// How often it can receive.
    pub min_receive: Interval,
    /// How often it loops our echo packets back.
    pub min_echo_receive: Interval,
    /// After how many of its intervals we take the path for dead.
    pub multiplier: u8,
    /// It does not want periodic packets while both are up.
    pub demand: bool,
    /// Its BFD outlives its control plane.
    pub control_plane_independent: bool,
}

impl Remote {
    /// Nothing was ever heard, or not for too long. The values are those of section 6.8.1.
    const UNHEARD: Self = Self {
        discriminator: None,
        state: State::Down,
        diagnostic: Diagnostic::None,
        min_transmit: Interval::NONE,
        min_receive: Interval(1),
        min_echo_receive: Interval::NONE,
        multiplier: 0,
        demand: false,
        control_plane_independent: false,
    };
}

/// Our two intervals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Intervals {
    transmit: Interval,
    receive: Interval,
}

/// The poll sequence by which both sides agree on new intervals (section 6.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Poll {
    #[default]
    Idle,
    /// P is sent until F comes.
    Asking,
    /// Values changed again meanwhile: the F to come may answer the older ones, so another sequence follows.
    AskingTwice,
}

/// When the next periodic packet goes out, and by which interval that was reckoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    at: Moment,
    interval: Interval,
}

/// One session.
#[derive(Clone, Debug)]
pub struct Session {
    discriminator: Discriminator,
    settings: Settings,
    state: State,
    diagnostic: Diagnostic,
    remote: Remote,
    /// What our packets say.
    advertised: Intervals,
    /// What we go by: during a poll sequence the more careful of old and new.
    in_use: Intervals,
    poll: Poll,
    echo: Option<Echo>,
    schedule: Option<Schedule>,
    sent_at: Option<Moment>,
    /// Without P, F and the other side's number: what is worth a packet out of turn.
    sent: Option<Packet>,
    heard_at: Option<Moment>,
    /// When the other side may begin with any sequence number again: after twice the detection time of silence.
    forget_at: Option<Moment>,
    sequences: Sequences,
    jitter: Jitter,
}

impl Session {
    /// A session that is down and sends its first packet at the next [`Event::Tick`], unless it is passive.
    #[must_use]
    pub fn new(discriminator: Discriminator, settings: Settings, seed: u64) -> Self {
        let mut jitter = Jitter::seeded(seed);
        let sequences = Sequences::starting_at(jitter.next() as u32);
        let intervals =
            Intervals { transmit: settings.min_transmit.max(Interval::SLOW), receive: settings.min_receive };
        Self {
            discriminator,
            settings,
            state: State::Down,
            diagnostic: Diagnostic::None,
            remote: Remote::UNHEARD,
            advertised: intervals,
            in_use: intervals,
            poll: Poll::Idle,
            echo: None,
            schedule: None,
            sent_at: None,
            sent: None,
            heard_at: None,
            forget_at: None,
            sequences,
            jitter,
        }
    }

    /// Takes an event in and appends what is to be done. An error is a packet that was dropped; also then actions may
    /// have been appended.
    pub fn handle(&mut self, now: Moment, event: Event<'_>, actions: &mut Vec<Action>) -> Result<(), Discard> {
        let before = self.state;
        let mut answer = false;
        let outcome = match event {
            Event::Packet(received) => self.receive(now, received, &mut answer),
            Event::Echo { sequence } => {
                if let Some(echo) = &mut self.echo {
                    echo.returned(sequence, now, self.settings.multiplier);
                }
                Ok(())
            }
            Event::Tick => {
                self.expire(now, actions);
                Ok(())
            }
            Event::AdminDown => {
                self.enter(State::AdminDown, Diagnostic::AdministrativelyDown);
                Ok(())
            }
            Event::AdminUp => {
                if self.state == State::AdminDown {
                    self.enter(State::Down, self.diagnostic);
                }
                Ok(())
            }
            Event::Configure(settings) => {
                self.configure(settings);
                Ok(())
            }
        };
        if self.state != before {
            actions.push(Action::Changed(self.change(before)));
        }
        self.advertise();
        self.switch_echo(now);
        if answer {
            self.send(now, true, actions);
        }
        self.send_when_due(now, actions);
        outcome
    }

    /// When [`Event::Tick`] is due next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let transmit = self.schedule.map(|schedule| schedule.at);
        let echo = self.echo.as_ref().map(|echo| echo.next_deadline(self.settings.multiplier));
        [transmit, self.detection_deadline(), self.forget_at, echo].into_iter().flatten().min()
    }

    /// Our number of the session.
    #[must_use]
    pub const fn discriminator(&self) -> Discriminator {
        self.discriminator
    }

    /// What it is configured with.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Our state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Why our state changed last.
    #[must_use]
    pub const fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    /// What the other side said last.
    #[must_use]
    pub const fn remote(&self) -> &Remote {
        &self.remote
    }

    /// The interval at which packets go out, before jitter; `None` while none do (sections 6.8.2 and 6.8.7).
    #[must_use]
    pub fn transmit_interval(&self) -> Option<Interval> {
        let unheard_and_passive = self.settings.passive && self.remote.discriminator.is_none();
        let unwanted = self.remote.min_receive == Interval::NONE;
        let on_demand =
            self.remote.demand && self.state == State::Up && self.remote.state == State::Up && self.poll == Poll::Idle;
        if unheard_and_passive || unwanted || on_demand {
            return None;
        }
        Some(self.in_use.transmit.max(self.remote.min_receive))
    }

    /// After how long without a packet the path is dead (section 6.8.4); `None` before anything was heard.
    #[must_use]
    pub fn detection_time(&self) -> Option<Duration> {
        self.remote.discriminator?;
        let interval = self.in_use.receive.max(self.remote.min_transmit);
        Some(interval.duration().saturating_mul(u32::from(self.remote.multiplier)))
    }

    /// How the echo function does.
    #[must_use]
    pub fn echo_state(&self) -> EchoState {
        match &self.echo {
            _ if self.settings.min_echo_transmit == Interval::NONE => EchoState::Off,
            _ if self.state != State::Up => EchoState::Waiting,
            _ if self.remote.min_echo_receive == Interval::NONE => EchoState::NotPermitted,
            Some(echo) if echo.is_proven() => EchoState::Active,
            Some(_) | None => EchoState::Unanswered,
        }
    }

    /// The interval at which echo packets go out, before jitter; `None` while none do.
    #[must_use]
    pub fn echo_interval(&self) -> Option<Interval> {
        self.echo.as_ref().map(Echo::pace)
    }

    /// How long a session that is to vanish must go on telling that it is administratively down, so that the other side
    /// cannot miss it (section 6.8.16).
    #[must_use]
    pub fn farewell(&self) -> Duration {
        let interval = self.in_use.transmit.max(self.remote.min_receive);
        interval.duration().saturating_mul(u32::from(self.settings.multiplier.get()))
    }

    const fn change(&self, from: State) -> Change {
        Change {
            from,
            to: self.state,
            diagnostic: self.diagnostic,
            remote_state: self.remote.state,
            remote_diagnostic: self.remote.diagnostic,
            remote_control_plane_independent: self.remote.control_plane_independent,
        }
    }

    /// Section 6.8.6, from where the session was selected. `answer` says that the packet asks for one with F.
    fn receive(&mut self, now: Moment, received: &Received<'_>, answer: &mut bool) -> Result<(), Discard> {
        let authentication: Option<&Authentication> = self.settings.authentication.as_ref();
        self.sequences.verify(authentication, received)?;
        let packet = &received.packet;
        self.remote = Remote {
            discriminator: Some(packet.my_discriminator),
            state: packet.state,
            diagnostic: packet.diagnostic,
            min_transmit: packet.desired_min_transmit,
            min_receive: packet.required_min_receive,
            min_echo_receive: packet.required_min_echo_receive,
            multiplier: packet.multiplier.get(),
            demand: packet.demand,
            control_plane_independent: packet.control_plane_independent,
        };
        self.heard_at = Some(now);
        if packet.is_final {
            self.finish_poll();
        }
        let silence = self.detection_time().unwrap_or_default().saturating_mul(2);
        self.forget_at = self.sequences.known().then(|| now.after(silence));
        if self.state == State::AdminDown {
            return Err(Discard::AdminDown);
        }
        if let Some((state, diagnostic)) = next_state(self.state, packet.state) {
            self.enter(state, diagnostic.unwrap_or(self.diagnostic));
        }
        *answer = packet.poll;
        Ok(())
    }

    fn finish_poll(&mut self) {
        self.poll = match self.poll {
            Poll::Idle => return,
            Poll::Asking => {
                self.in_use = self.advertised;
                Poll::Idle
            }
            Poll::AskingTwice => Poll::Asking,
        };
    }

    fn configure(&mut self, settings: &Settings) {
        if self.settings.authentication != settings.authentication {
            self.sequences.forget();
        }
        self.settings = settings.clone();
    }

    /// What time does: silence, missing echoes, and echo packets that are due.
    fn expire(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if let Some(echo) = &mut self.echo {
            if echo.failed(now, self.settings.multiplier) {
                self.enter(State::Down, Diagnostic::EchoFailed);
                // Without echoes control packets are expected more often again, and silence may be too long already.
                self.advertise();
            } else if let Some(sequence) = echo.due(now, &mut self.jitter) {
                actions.push(Action::SendEcho { sequence });
            }
        }
        if self.detection_deadline().is_some_and(|deadline| deadline <= now) {
            self.remote = Remote::UNHEARD;
            if matches!(self.state, State::Init | State::Up) {
                self.enter(State::Down, Diagnostic::DetectionTimeExpired);
            }
        }
        if self.forget_at.is_some_and(|at| at <= now) {
            self.forget_at = None;
            self.sequences.forget();
        }
    }

    fn enter(&mut self, state: State, diagnostic: Diagnostic) {
        if self.state == state {
            return;
        }
        self.state = state;
        self.diagnostic = if state == State::Up { Diagnostic::None } else { diagnostic };
        if state != State::Up {
            self.poll = Poll::Idle;
        }
    }

    /// Brings what our packets say in line with settings and state (section 6.8.3).
    ///
    /// A session that is not up takes new values at once: each of its packets carries them, at intervals of a second or
    /// more. One that is up asks the other side first, and until F comes it neither sends more slowly than before, nor
    /// expects packets more often.
    fn advertise(&mut self) {
        let up = self.state == State::Up;
        let slow = |interval: Interval, slow: bool| if slow { interval.max(Interval::SLOW) } else { interval };
        let wanted = Intervals {
            transmit: slow(self.settings.min_transmit, !up),
            // With echoes the control packets only keep the session, section 6.8.9.
            receive: slow(
                self.settings.min_receive,
                self.echo_is_active() && self.settings.min_receive != Interval::NONE,
            ),
        };
        let changed = wanted != self.advertised;
        self.advertised = wanted;
        if !up {
            self.in_use = wanted;
        } else if changed {
            self.in_use = Intervals {
                transmit: wanted.transmit.min(self.in_use.transmit),
                receive: wanted.receive.max(self.in_use.receive),
            };
            self.poll = if self.poll == Poll::Idle { Poll::Asking } else { Poll::AskingTwice };
        }
    }

    /// Echo packets may be sent (section 6.8.9).
    fn may_echo(&self) -> bool {
        self.state == State::Up
            && self.settings.min_echo_transmit != Interval::NONE
            && self.remote.min_echo_receive != Interval::NONE
    }

    fn echo_is_active(&self) -> bool {
        self.may_echo() && self.echo.as_ref().is_some_and(Echo::is_proven)
    }

    fn switch_echo(&mut self, now: Moment) {
        if !self.may_echo() {
            self.echo = None;
            return;
        }
        let interval = self.settings.min_echo_transmit.max(self.remote.min_echo_receive);
        match &mut self.echo {
            Some(echo) => echo.set_interval(interval),
            None => self.echo = Some(Echo::starting(now, interval, self.jitter.next() as u32)),
        }
    }

    /// Sends out of turn when there is news, else when the interval says so (section 6.8.7).
    fn send_when_due(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let may_send = !(self.settings.passive && self.remote.discriminator.is_none());
        if may_send && self.sent.is_some() && self.sent != Some(self.news()) {
            self.send(now, false, actions);
        }
        let Some(interval) = self.transmit_interval() else {
            self.schedule = None;
            return;
        };
        let schedule = match self.schedule {
            Some(schedule) if schedule.interval == interval => schedule,
            _ => match self.sent_at {
                Some(sent_at) => self.schedule_after(sent_at, interval),
                None => Schedule { at: now, interval },
            },
        };
        self.schedule = Some(schedule);
        if schedule.at <= now {
            self.send(now, false, actions);
            self.schedule = Some(self.schedule_after(now, interval));
        }
    }

    fn schedule_after(&mut self, sent_at: Moment, interval: Interval) -> Schedule {
        let shortened = self.jitter.shorten(interval, self.settings.multiplier);
        Schedule { at: sent_at.after(shortened.duration()), interval }
    }

    /// Sends a packet. One with F answers at once and does not stand for a periodic one.
    fn send(&mut self, now: Moment, is_final: bool, actions: &mut Vec<Action>) {
        let news = self.news();
        let packet = Packet {
            poll: self.poll != Poll::Idle && !is_final,
            is_final,
            your_discriminator: self.remote.discriminator,
            ..news
        };
        let mut encoded = packet.encode();
        if let Some(authentication) = &self.settings.authentication {
            self.sequences.sign(authentication, &mut encoded, self.sent != Some(news));
        }
        actions.push(Action::Send(encoded));
        self.sent = Some(news);
        if !is_final {
            self.sent_at = Some(now);
            self.schedule = self.transmit_interval().map(|interval| self.schedule_after(now, interval));
        }
    }

    /// The packet as far as a change of it is worth sending at once.
    fn news(&self) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: false,
            is_final: false,
            control_plane_independent: self.settings.control_plane_independent,
            demand: false,
            multiplier: self.settings.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: None,
            desired_min_transmit: self.advertised.transmit,
            required_min_receive: self.advertised.receive,
            required_min_echo_receive: self.settings.min_echo_receive,
        }
    }

    fn detection_deadline(&self) -> Option<Moment> {
        Some(self.heard_at?.after(self.detection_time()?))
    }
}

/// The state machine of section 6.2 as section 6.8.6 writes it: from our state and the received one to a new state and,
/// when the session falls, the reason. `None` for no change. A session that is held down is not asked.
#[must_use]
pub const fn next_state(state: State, received: State) -> Option<(State, Option<Diagnostic>)> {
    const FALLS: Option<(State, Option<Diagnostic>)> = Some((State::Down, Some(Diagnostic::NeighborSignaledDown)));
    match (state, received) {
        (State::AdminDown, _)
        | (State::Down, State::AdminDown | State::Up)
        | (State::Init, State::Down)
        | (State::Up, State::Init | State::Up) => None,
        (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => FALLS,
        (State::Down, State::Down) => Some((State::Init, None)),
        (State::Down, State::Init) | (State::Init, State::Init | State::Up) => Some((State::Up, None)),
    }
}
