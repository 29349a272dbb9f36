//! What holds after every event, whatever came before.

use proptest::prelude::*;

use super::{super::*, *};
use crate::{
    Asn, Family, RouterId,
    id::Moment,
    wire::{
        notification::{ErrorCode, Notification, cease},
        open::Open,
        route_refresh::{RefreshKind, RouteRefresh},
    },
};

/// Watches a session from outside and knows what a driver would know.
struct Watched {
    session: Session,
    now: Moment,
    open: [bool; 2],
    up: Option<Slot>,
}

impl Watched {
    fn give(&mut self, event: Event) {
        let stops = matches!(event, Event::Stop(_));
        let timers = event == Event::Timers;
        let offered = event == Event::Accepted;
        let actions = give(&mut self.session, self.now, event);
        let mut answers = 0;
        for action in &actions {
            match action {
                Action::Connect(slot) | Action::Accept(slot) => {
                    assert!(!self.open[slot.index()], "{slot:?} is taken: {actions:?}");
                    self.open[slot.index()] = true;
                    answers += usize::from(matches!(action, Action::Accept(_)));
                }
                Action::Refuse => answers += 1,
                Action::Close(slot) => {
                    assert!(self.open[slot.index()], "{slot:?} is not open: {actions:?}");
                    assert!(!offered, "a new connection would be mixed up with an old one: {actions:?}");
                    self.open[slot.index()] = false;
                }
                Action::Send(slot, _) => assert!(self.open[slot.index()], "{slot:?} is not open: {actions:?}"),
                Action::WatchPath(slot) => assert!(self.open[slot.index()], "{slot:?} is not open: {actions:?}"),
                Action::Up(slot, _) => {
                    assert!(self.open[slot.index()]);
                    assert_eq!(self.up.replace(*slot), None, "twice established: {actions:?}");
                }
                Action::Down(_) => assert!(self.up.take().is_some(), "down without up: {actions:?}"),
                Action::Resend(_) | Action::RefreshBegan(_) => assert!(self.up.is_some()),
                Action::RefreshEnded(_) | Action::Sweep(_) | Action::LongLived(_) | Action::Fact(_) => {}
            }
        }
        assert_eq!(answers, usize::from(offered), "one answer for one connection offered: {actions:?}");
        for slot in Slot::ALL {
            assert_eq!(self.session.has_connection(slot), self.open[slot.index()], "{slot:?} after {actions:?}");
        }
        assert_eq!(self.session.established_slot(), self.up);
        assert_eq!(self.session.state() == State::Established, self.up.is_some());
        let deadline = self.session.next_deadline();
        if stops {
            assert_eq!((deadline, self.session.state(), self.open), (None, State::Idle, [false; 2]));
        }
        if timers {
            assert!(deadline.is_none_or(|deadline| deadline >= self.now), "a timer in the past");
        }
        if matches!(self.session.state(), State::Connect | State::Active) && !self.session.config().passive {
            assert!(deadline.is_some(), "nothing would ever happen again");
        }
    }

    /// Handles all timers that are due; that ends.
    fn settle(&mut self) {
        for _ in 0..4 {
            if self.session.next_deadline().is_none_or(|deadline| deadline > self.now) {
                return;
            }
            self.give(Event::Timers);
        }
        panic!("timers are due without end at {:?}", self.now);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Give(Event),
    Wait(u32),
    /// To the next deadline.
    Wake,
    Update(Slot),
    Written(Slot),
}

fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![Just(Slot::First), Just(Slot::Second)]
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ipv4Unicast), Just(Family::Ipv6Unicast)]
}

fn open() -> impl Strategy<Value = Open> {
    let asn = prop_oneof![9 => Just(THEIRS), 1 => Just(OURS), 1 => Just(Asn(0))];
    let id = prop_oneof![5 => Just(THEIR_ID), 5 => Just(RouterId(1)), 1 => Just(OUR_ID)];
    let hold = prop_oneof![5 => Just(90), 2 => Just(0), 1 => Just(2), 1 => Just(3)];
    (asn, id, hold, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(asn, router_id, hold_time_s, restart, notification, kept)| {
            let mut theirs = SessionConfig { hold_time_s, ..their_config() };
            theirs.graceful_restart = restart.then_some(RestartConfig { notification, ..RestartConfig::default() });
            let forwarding_kept = crate::PerFamily { ipv4: kept, ipv6: true };
            Open { asn, router_id, ..our_open(&theirs, &LocalRestart { restarted: kept, forwarding_kept }) }
        },
    )
}

fn notification() -> impl Strategy<Value = Notification> {
    prop_oneof![
        Just(Notification::new(ErrorCode::Cease, cease::CONNECTION_COLLISION)),
        Just(Notification::new(ErrorCode::Cease, cease::ADMINISTRATIVE_RESET)),
        Just(Notification::new(ErrorCode::Cease, cease::ADMINISTRATIVE_RESET).into_hard_reset()),
        Just(Notification::new(ErrorCode::Update, 1)),
    ]
}

fn configuration() -> impl Strategy<Value = SessionConfig> {
    (any::<[bool; 6]>(), prop_oneof![Just(90_u16), Just(0), Just(3)]).prop_map(
        |([passive, delay, restart, damped, long_lived, comes_back], hold_time_s)| {
            let mut config = SessionConfig { passive, hold_time_s, ..config() };
            config.delay_open = delay.then_some(seconds(3));
            config.graceful_restart = config.graceful_restart.filter(|_| restart);
            config.damping.enabled = damped;
            let wait = comes_back.then_some(seconds(30));
            config.prefix_limit_restart = PerFamily { ipv4: wait, ipv6: wait };
            if let Some(ipv4) = &mut config.families.ipv4 {
                ipv4.stale_time_s = long_lived.then_some(1_000);
            }
            config
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let refresh = prop_oneof![Just(RefreshKind::Request), Just(RefreshKind::Begin), Just(RefreshKind::End)];
    let refresh = (slot(), 1_u16..4, refresh)
        .prop_map(|(slot, afi, kind)| Event::Refresh(slot, RouteRefresh { afi, safi: 1, kind }));
    let reason = prop_oneof![Just(StopReason::Shutdown), Just(StopReason::Deconfigured), Just(StopReason::Restart)];
    prop_oneof![
        8 => Just(Event::Start),
        1 => reason.prop_map(|reason| Event::Stop(Stop { reason, communication: "bye".to_owned() })),
        1 => Just(Event::Reset { communication: String::new() }),
        1 => configuration().prop_map(|config| Event::Reconfigure(Box::new(config))),
        4 => Just(Event::Timers),
        2 => Just(Event::Reachable),
        1 => Just(Event::LinkDown),
        1 => any::<bool>().prop_map(|independent| Event::Bfd(BfdChange::Down { control_plane_independent: independent })),
        1 => (family(), any::<u32>()).prop_map(|(family, maximum)| Event::PrefixLimit { family, maximum }),
        6 => Just(Event::Accepted),
        12 => slot().prop_map(Event::Connected),
        2 => slot().prop_map(|slot| Event::Closed(slot, String::new())),
        20 => (slot(), open()).prop_map(|(slot, open)| Event::Open(slot, open)),
        1 => (slot(), notification()).prop_map(|(slot, it)| Event::Error(slot, it)),
        1 => (slot(), notification()).prop_map(|(slot, it)| Event::Notification(slot, it)),
        20 => slot().prop_map(Event::Keepalive),
        1 => slot().prop_map(Event::Update),
        2 => refresh,
        2 => (slot(), family()).prop_map(|(slot, family)| Event::EndOfRib(slot, family)),
        1 => family().prop_map(Event::RequestRefresh),
        1 => Just(Event::RestartOver),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => event().prop_map(Step::Give),
        3 => (0_u32..20_000_000).prop_map(Step::Wait),
        1 => (0_u32..600_000_000).prop_map(Step::Wait),
        5 => Just(Step::Wake),
        2 => slot().prop_map(Step::Update),
        2 => slot().prop_map(Step::Written),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_events_leaves_a_session_in_order(
        config in configuration(),
        seed: u64,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let session = Session::new(config, LocalRestart::default(), seed);
        let mut watched = Watched { session, now: at(1), open: [false; 2], up: None };
        for step in steps {
            match step {
                Step::Give(event) => watched.give(event),
                Step::Wait(micros) => {
                    watched.now = Moment(watched.now.0 + u64::from(micros));
                    watched.settle();
                }
                Step::Wake => {
                    watched.now = watched.session.next_deadline().unwrap_or(watched.now).max(watched.now);
                    watched.settle();
                }
                Step::Update(slot) => {
                    let established = watched.session.on_update(slot, watched.now);
                    prop_assert_eq!(established, watched.up == Some(slot));
                }
                Step::Written(slot) => {
                    watched.session.on_written(slot, watched.now);
                    watched.session.on_sent(slot, watched.now);
                }
            }
        }
        watched.give(Event::Stop(Stop { reason: StopReason::Shutdown, communication: String::new() }));
    }
}
