//! One connection of a session, and its timers.

use std::time::Duration;

use super::{
    config::{SendHold, SessionConfig},
    damping::Jitter,
    event::State,
    negotiated::Negotiated,
};
use crate::{
    id::{Asn, Moment, RouterId},
    wire::notification::state_machine_error,
};

/// Hold time until the peer's OPEN is there, on a connection of ours (RFC 4271 section 8.2.2 suggests four minutes).
pub const OPEN_HOLD_TIME: Duration = Duration::from_secs(240);
/// The same on a connection of the peer. Who opens a connection speaks first, or answers our OPEN; while one stays silent
/// another one is refused.
pub const INCOMING_OPEN_HOLD_TIME: Duration = Duration::from_secs(15);
/// How long a session waits for BFD with its connection open (the BGP BFD hold time of the draft).
pub(super) const BFD_HOLD_TIME: Duration = Duration::from_secs(30);
/// Send hold time by default, when twice the hold time is less (RFC 9687 section 3.1).
pub const SEND_HOLD_TIME: Duration = Duration::from_secs(480);

/// A connection, or the attempt to open one.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// We opened it.
    pub(super) ours: bool,
    /// When it began.
    pub(super) since: Moment,
    pub(super) phase: Phase,
}

/// How far it is. What exists only after OPEN is only in the phases after OPEN.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    Connecting,
    /// Open, and waiting for the peer to speak first.
    Delaying {
        until: Moment,
    },
    OpenSent {
        hold_until: Moment,
    },
    OpenConfirm(Live),
    Established(Live),
}

/// After both OPENs.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) negotiated: Box<Negotiated>,
    /// Absent without a hold time.
    pub(super) hold: Option<Countdown>,
    /// Absent without a hold time.
    pub(super) keepalive: Option<Countdown>,
    /// Absent before the session is established, without a hold time, and when switched off.
    pub(super) send_hold: Option<Countdown>,
    /// No KEEPALIVE has answered the peer's OPEN yet: the other connection decides, at the latest then.
    pub(super) held_until: Option<Moment>,
    /// Nor because of BFD, which has to say that the path works, at the latest then.
    pub(super) awaits_bfd_until: Option<Moment>,
    /// The peer's KEEPALIVE came while ours was kept back.
    pub(super) confirmed: bool,
}

/// A timer that is started again and again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Countdown {
    pub(super) interval: Duration,
    pub(super) at: Moment,
}

impl Countdown {
    fn start(now: Moment, interval: Duration) -> Self {
        Self { interval, at: now.after(interval) }
    }

    pub(super) fn restart(&mut self, now: Moment) {
        self.at = now.after(self.interval);
    }

    pub(super) fn restart_with(&mut self, now: Moment, jitter: &mut Jitter) {
        self.at = now.after(jitter.apply(self.interval));
    }
}

impl Live {
    pub(super) fn new(now: Moment, config: &SessionConfig, negotiated: Negotiated, jitter: &mut Jitter) -> Self {
        let hold_time = Duration::from_secs(negotiated.hold_time_s.into());
        let counted = !hold_time.is_zero();
        let keepalive =
            config.keepalive_s.map_or(hold_time / 3, |seconds| Duration::from_secs(seconds.into()).min(hold_time / 3));
        let mut live = Self {
            negotiated: Box::new(negotiated),
            hold: counted.then(|| Countdown::start(now, hold_time)),
            keepalive: (counted && !keepalive.is_zero()).then(|| Countdown::start(now, keepalive)),
            send_hold: None,
            held_until: None,
            awaits_bfd_until: None,
            confirmed: false,
        };
        if let Some(timer) = &mut live.keepalive {
            timer.restart_with(now, jitter);
        }
        live
    }

    /// Starts what runs in Established only.
    pub(super) fn establish(&mut self, now: Moment, config: &SessionConfig) {
        let Some(hold) = &mut self.hold else {
            return;
        };
        hold.restart(now);
        let send_hold = match config.send_hold {
            SendHold::Default => Some(SEND_HOLD_TIME.max(hold.interval * 2)),
            SendHold::Off => None,
            SendHold::After(time) => Some(time),
        };
        self.send_hold = send_hold.map(|interval| Countdown::start(now, interval));
    }

    fn next_deadline(&self) -> Option<Moment> {
        let keepalive = self.keepalive.filter(|_| !self.is_held());
        let timers = [self.hold, keepalive, self.send_hold].into_iter().flatten().map(|timer| timer.at);
        timers.chain(self.held_until).chain(self.awaits_bfd_until).min()
    }

    /// Our KEEPALIVE is kept back.
    pub(super) const fn is_held(&self) -> bool {
        self.held_until.is_some() || self.awaits_bfd_until.is_some()
    }
}

impl Connection {
    pub(super) const fn state(&self) -> State {
        match &self.phase {
            Phase::Connecting => State::Connect,
            // RFC 4271 stays in the state it was in until OPEN is sent.
            Phase::Delaying { .. } if self.ours => State::Connect,
            Phase::Delaying { .. } => State::Active,
            Phase::OpenSent { .. } => State::OpenSent,
            Phase::OpenConfirm(_) => State::OpenConfirm,
            Phase::Established(_) => State::Established,
        }
    }

    /// After both OPENs.
    pub(super) const fn live(&self) -> Option<&Live> {
        match &self.phase {
            Phase::OpenConfirm(live) | Phase::Established(live) => Some(live),
            Phase::Connecting | Phase::Delaying { .. } | Phase::OpenSent { .. } => None,
        }
    }

    pub(super) const fn held_mut(&mut self) -> Option<&mut Live> {
        match &mut self.phase {
            Phase::OpenConfirm(live) if live.is_held() => Some(live),
            Phase::OpenConfirm(_) => None,
            Phase::Connecting | Phase::Delaying { .. } | Phase::OpenSent { .. } | Phase::Established(_) => None,
        }
    }

    pub(super) const fn established(&self) -> Option<&Live> {
        match &self.phase {
            Phase::Established(live) => Some(live),
            Phase::Connecting | Phase::Delaying { .. } | Phase::OpenSent { .. } | Phase::OpenConfirm(_) => None,
        }
    }

    pub(super) const fn established_mut(&mut self) -> Option<&mut Live> {
        match &mut self.phase {
            Phase::Established(live) => Some(live),
            Phase::Connecting | Phase::Delaying { .. } | Phase::OpenSent { .. } | Phase::OpenConfirm(_) => None,
        }
    }

    /// There is a transport connection.
    pub(super) const fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Connecting)
    }

    /// Our OPEN is out, so that the peer understands a NOTIFICATION.
    pub(super) const fn has_sent_open(&self) -> bool {
        !matches!(self.phase, Phase::Connecting | Phase::Delaying { .. })
    }

    /// The subcode of a state machine error here (RFC 6608 section 3); it has none for the time before OPEN.
    pub(super) const fn state_machine_subcode(&self) -> u8 {
        match self.phase {
            Phase::Connecting | Phase::Delaying { .. } => 0,
            Phase::OpenSent { .. } => state_machine_error::IN_OPEN_SENT,
            Phase::OpenConfirm(_) => state_machine_error::IN_OPEN_CONFIRM,
            Phase::Established(_) => state_machine_error::IN_ESTABLISHED,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Moment> {
        match &self.phase {
            Phase::Connecting => None,
            Phase::Delaying { until } => Some(*until),
            Phase::OpenSent { hold_until } => Some(*hold_until),
            Phase::OpenConfirm(live) | Phase::Established(live) => live.next_deadline(),
        }
    }
}

/// Which of two colliding connections stays (RFC 4271 section 6.8, RFC 6286 section 2.3): the one opened by the speaker with
/// the higher identifier, and with equal identifiers by the one with the higher AS number. True: the one we opened.
pub(super) fn ours_wins(router_id: RouterId, negotiated: &Negotiated) -> bool {
    let ours: (RouterId, Asn) = (router_id, negotiated.local_as);
    ours > (negotiated.router_id, negotiated.remote_as)
}
