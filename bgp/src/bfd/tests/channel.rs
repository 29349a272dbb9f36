//! Two ends over a channel that loses, delays, reorders and repeats packets.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::{
    super::{Authentication, Encoded, Key},
    *,
};

/// Percent of packets lost, percent repeated, longest delay, and whether packets overtake each other.
///
/// In a calm they do not, as on a link: an old packet that comes after a poll sequence has ended says old intervals, and
/// without meticulous authentication nothing shows that it is old.
#[derive(Clone, Copy, Debug)]
struct Weather {
    lost: u64,
    repeated: u64,
    delay_us_max: u64,
    ordered: bool,
}

const CALM: Weather = Weather { lost: 0, repeated: 0, delay_us_max: 1_000, ordered: true };
/// Every packet arrives in the moment it is sent.
const STEADY: Weather = Weather { delay_us_max: 0, ..CALM };
const CUT: Weather = Weather { lost: 100, repeated: 0, delay_us_max: 0, ordered: true };

struct World {
    now: Moment,
    ends: [Session; 2],
    /// By arrival and order: whose, and what.
    in_flight: BTreeMap<(Moment, u64), (usize, Encoded)>,
    /// By sender: when its last packet that stays in order arrives.
    arrival: [Moment; 2],
    changes: Vec<(Moment, usize, Change)>,
    sent: [Vec<(Moment, Packet)>; 2],
    random: super::super::jitter::Jitter,
    weather: Weather,
    count: u64,
}

impl World {
    fn new(settings: [Settings; 2], seed: u64) -> Self {
        let [one, other] = settings;
        let ends = [Session::new(discriminator(1), one, seed), Session::new(discriminator(2), other, seed ^ 0xff)];
        let random = super::super::jitter::Jitter::seeded(!seed);
        let (sent, changes) = (Default::default(), Vec::new());
        let arrival = [Moment(0); 2];
        let in_flight = BTreeMap::new();
        let mut world =
            Self { now: Moment(0), ends, in_flight, arrival, changes, sent, random, weather: CALM, count: 0 };
        world.give(0, Event::Tick);
        world.give(1, Event::Tick);
        world
    }

    fn give(&mut self, end: usize, event: Event<'_>) {
        let mut actions = Vec::new();
        // Repeated and reordered packets are rightly dropped with meticulous authentication.
        let _dropped = self.ends[end].handle(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Send(encoded) => self.put(end, encoded),
                Action::Changed(change) => self.changes.push((self.now, end, change)),
                Action::SendEcho { .. } => panic!("no echo is configured"),
            }
        }
    }

    fn put(&mut self, from: usize, encoded: Encoded) {
        let packet = Packet::decode(encoded.as_ref()).expect("what is sent is right").packet;
        assert!(!(packet.poll && packet.is_final));
        self.sent[from].push((self.now, packet));
        if self.random.next() % 100 < self.weather.lost {
            return;
        }
        let copies = if self.random.next() % 100 < self.weather.repeated { 2 } else { 1 };
        for _ in 0..copies {
            self.count += 1;
            let delay = Duration::from_micros(self.random.next() % (self.weather.delay_us_max + 1));
            let mut at = self.now.after(delay);
            if self.weather.ordered {
                at = at.max(self.arrival[from]);
                self.arrival[from] = at;
            }
            self.in_flight.insert((at, self.count), (1 - from, encoded));
        }
    }

    fn run(&mut self, until: Moment) {
        loop {
            let arrival = self.in_flight.keys().next().map(|(at, _)| *at);
            let ticks = self.ends.iter().filter_map(Session::next_deadline).min();
            let Some(next) = [arrival, ticks].into_iter().flatten().min().filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (to, encoded) = entry.remove();
                let received = Packet::decode(encoded.as_ref()).expect("a right packet");
                self.give(to, Event::Packet(&received));
            }
            for end in 0..2 {
                if self.ends[end].next_deadline().is_some_and(|deadline| deadline <= self.now) {
                    self.give(end, Event::Tick);
                }
            }
        }
        self.now = until;
    }

    fn states(&self) -> [State; 2] {
        [self.ends[0].state(), self.ends[1].state()]
    }
}

/// Loses single packets of two ends, and expects that nothing happens.
///
/// With a multiplier of 2 the packet after a lost one may be sent, by section 6.8.7, exactly when the detection time of section
/// 6.8.4 ends: without jitter both are two intervals. So there the channel must take the same time for each packet; with
/// greater multipliers whole intervals are left for what varies.
fn lose_one_now_and_then(pair: [Settings; 2], seed: u64) {
    let is_tight = pair.iter().any(|settings| settings.multiplier.get() < 3);
    let calm = if is_tight { STEADY } else { CALM };
    let mut world = World::new(pair, seed);
    world.weather = calm;
    world.run(millis(10_000));
    assert_eq!(world.states(), [State::Up, State::Up]);
    let changes = world.changes.len();
    for _ in 0..20 {
        // Both ends have sent at least once after this, then one packet of each is lost.
        let next = world.now.after(Duration::from_millis(2_000));
        world.run(next);
        let shortest = [0, 1].map(|end| world.ends[end].transmit_interval().expect("up").duration() * 3 / 4);
        world.weather = CUT;
        let gust = world.now.after(shortest.into_iter().min().expect("two").saturating_sub(Duration::from_millis(1)));
        world.run(gust);
        world.weather = calm;
    }
    assert_eq!(&world.changes[changes..], &[]);
}

/// Found by the property below: a packet of which the one before is lost comes two intervals after the last, less no jitter, and the
/// channel is slower for it by a fraction of a millisecond.
#[test]
fn a_loss_with_a_multiplier_of_two_leaves_no_room() {
    let slow = settings(165, 93, 2);
    let quick = Settings { passive: true, ..settings(10, 10, 2) };
    lose_one_now_and_then([slow, quick], 10_315_502_124_928_682_156);
}

prop_compose! {
    fn any_settings()(
        transmit_ms in 10u32..400,
        receive_ms in 10u32..400,
        multiplier in 2u8..6,
        passive in any::<bool>(),
        key in prop::option::of(any::<bool>()),
    ) -> Settings {
        let authentication = |meticulous| Authentication { meticulous, key_id: 1, key: Key::new(b"k").expect("a key") };
        Settings { passive, authentication: key.map(authentication), ..settings(transmit_ms, receive_ms, multiplier) }
    }
}

prop_compose! {
    /// Two ends that can meet: one key, and not both passive.
    fn any_pair()(one in any_settings(), other in any_settings()) -> [Settings; 2] {
        let other = Settings { authentication: one.authentication.clone(), passive: other.passive && !one.passive, ..other };
        [one, other]
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever the weather was, in a calm both come up, agree, and stay up.
    #[test]
    fn a_calm_brings_both_up(pair in any_pair(), lost in 0u64..95, repeated in 0u64..50, delay_ms in 0u64..200, seed in any::<u64>()) {
        let mut world = World::new(pair.clone(), seed);
        world.weather = Weather { lost, repeated, delay_us_max: delay_ms * 1_000, ordered: false };
        world.run(millis(20_000));
        world.weather = CALM;
        // What is under way arrives, what was believed expires, and three packets at a second's interval make a session.
        world.run(millis(32_000));
        prop_assert_eq!(world.states(), [State::Up, State::Up]);
        let changes = world.changes.len();
        world.run(millis(60_000));
        prop_assert_eq!(world.changes.len(), changes, "flapped in a calm: {:?}", &world.changes[changes..]);
        for (end, other) in [(0, 1), (1, 0)] {
            let agreed = pair[end].min_transmit.max(pair[other].min_receive);
            prop_assert_eq!(world.ends[end].transmit_interval(), Some(agreed));
            let expected = agreed.duration() * u32::from(pair[end].multiplier.get());
            prop_assert_eq!(world.ends[other].detection_time(), Some(expected));
            let late: Vec<_> = world.sent[end].iter().filter(|(at, _)| *at > millis(34_000)).collect();
            prop_assert!(late.iter().all(|(_, packet)| !packet.poll && !packet.is_final), "polls end");
            let gaps: Vec<_> = late.windows(2).map(|pair| pair[1].0.since(pair[0].0)).collect();
            let bounds = agreed.duration() * 3 / 4..=agreed.duration();
            prop_assert!(gaps.iter().all(|gap| bounds.contains(gap)), "{:?} of {:?}", gaps, bounds);
        }
    }

    /// A cut is noticed by both within their detection time, and never before the last packet is that old.
    #[test]
    fn a_cut_is_noticed_in_time(pair in any_pair(), seed in any::<u64>()) {
        let mut world = World::new(pair, seed);
        world.run(millis(10_000));
        prop_assert_eq!(world.states(), [State::Up, State::Up]);
        let limits = [0, 1].map(|end| world.ends[end].detection_time().expect("heard"));
        world.weather = CUT;
        let changes = world.changes.len();
        world.run(millis(20_000));
        for (end, limit) in limits.into_iter().enumerate() {
            let fell = world.changes[changes..].iter().find(|(_, who, _)| *who == end).expect("the cut is noticed");
            prop_assert!(fell.2.is_failure());
            prop_assert_eq!(fell.2.diagnostic, Diagnostic::DetectionTimeExpired);
            let after = fell.0.since(millis(10_000));
            // The last packet was in flight for up to a millisecond.
            prop_assert!(after <= limit + Duration::from_millis(1), "{:?} of {:?}", after, limit);
        }
        prop_assert_eq!(world.ends[0].state(), State::Down);
    }

    /// Fewer losses in a row than the multiplier never take a session down.
    #[test]
    fn losses_below_the_multiplier_are_nothing(pair in any_pair(), seed in any::<u64>()) {
        lose_one_now_and_then(pair, seed);
    }

    /// Holding one end down takes the other down without a failure, and letting go brings both back.
    #[test]
    fn holding_down_is_understood(pair in any_pair(), seed in any::<u64>(), end in 0usize..2) {
        let mut world = World::new(pair, seed);
        world.run(millis(10_000));
        let changes = world.changes.len();
        world.give(end, Event::AdminDown);
        world.run(millis(20_000));
        prop_assert_eq!(world.ends[end].state(), State::AdminDown);
        prop_assert_eq!(world.ends[1 - end].state(), State::Down);
        prop_assert!(world.changes[changes..].iter().all(|(_, _, change)| !change.is_failure()));
        world.give(end, Event::AdminUp);
        world.run(millis(40_000));
        prop_assert_eq!(world.states(), [State::Up, State::Up]);
    }

    /// Intervals change under way without a flap.
    #[test]
    fn reconfiguring_does_not_flap(pair in any_pair(), news in prop::collection::vec((0usize..2, any_settings()), 1..6), seed in any::<u64>()) {
        let mut world = World::new(pair.clone(), seed);
        world.run(millis(10_000));
        let changes = world.changes.len();
        for (end, settings) in news {
            let settings = Settings { authentication: pair[0].authentication.clone(), ..settings };
            world.give(end, Event::Configure(&settings));
            let later = world.now.after(Duration::from_millis(world.random.next() % 900));
            world.run(later);
        }
        let later = world.now.after(Duration::from_secs(10));
        world.run(later);
        prop_assert_eq!(&world.changes[changes..], &[]);
        prop_assert_eq!(world.states(), [State::Up, State::Up]);
    }
}
