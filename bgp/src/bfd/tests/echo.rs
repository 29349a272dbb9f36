//! The echo function: when packets go out, when they count, and what their absence does.

use std::{net::IpAddr, time::Duration};

use super::{
    super::{Arrival, ECHO_LEN, EchoPacket, EchoState, Hops, Path, Sessions, Unselected},
    *,
};

/// What the other side says when it loops a packet every 10 ms.
const PERMITS: Interval = Interval::from_millis(10);

fn wishing(echo_ms: u32, multiplier: u8) -> Settings {
    Settings { min_echo_transmit: Interval::from_millis(echo_ms), ..settings(50, 50, multiplier) }
}

fn permitting(interval: Interval) -> Packet {
    Packet { required_min_echo_receive: interval, ..packet(State::Up) }
}

/// Up, and the other side's permission is known. `told` is what that led to.
fn permitted(wish: Settings, permission: Interval) -> Session {
    let mut session = up(wish);
    hear(&mut session, millis(2), permitting(permission));
    session
}

/// What a while brought about.
#[derive(Debug, Default)]
struct While {
    echoes: Vec<Moment>,
    sent: Timed<Packet>,
    changes: Timed<Change>,
}

impl While {
    fn gaps(&self) -> Vec<u64> {
        self.echoes.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
    }

    fn take(&mut self, now: Moment, outcome: Outcome) -> Vec<u32> {
        self.sent.extend(outcome.sent.into_iter().map(|packet| (now, packet)));
        self.changes.extend(outcome.changes.into_iter().map(|change| (now, change)));
        self.echoes.extend(outcome.echoes.iter().map(|_| now));
        outcome.echoes
    }
}

/// Lets time pass. The other side says `said` every 40 ms, answering polls, and loops each echo packet back that `loops` says, after
/// `delay`; the first to be lost is given as `None`.
fn pass(
    session: &mut Session,
    (from, until): (Moment, Moment),
    said: Packet,
    loops: impl Fn(Moment) -> Option<Duration>,
) -> While {
    let mut passed = While::default();
    let mut under_way: Vec<(Moment, u32)> = Vec::new();
    let (mut now, mut says_at, mut asked) = (from, from, false);
    loop {
        let back = under_way.iter().map(|(at, _)| *at).min();
        let next = [session.next_deadline(), back, Some(says_at)].into_iter().flatten().min().expect("it speaks");
        if next > until {
            return passed;
        }
        now = now.max(next);
        let mut echoes = Vec::new();
        if says_at <= now {
            let outcome = hear(session, now, Packet { is_final: asked, ..said });
            echoes.extend(passed.take(now, outcome));
            says_at = now.after(Duration::from_millis(40));
        }
        for (_, sequence) in under_way.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            let outcome = give(session, now, Event::Echo { sequence });
            echoes.extend(passed.take(now, outcome));
        }
        let outcome = give(session, now, Event::Tick);
        echoes.extend(passed.take(now, outcome));
        asked = passed.sent.last().is_some_and(|(_, packet)| packet.poll);
        let looped = echoes.into_iter().filter_map(|sequence| Some((now.after(loops(now)?), sequence)));
        under_way.extend(looped);
    }
}

fn at_once(_: Moment) -> Option<Duration> {
    Some(Duration::from_micros(100))
}

fn never(_: Moment) -> Option<Duration> {
    None
}

#[test]
fn packets_go_out_when_the_session_is_up_and_both_want_them() {
    for (wish, permission, state, echoes) in [
        (wishing(20, 3), PERMITS, EchoState::Unanswered, 1),
        (wishing(20, 3), Interval::NONE, EchoState::NotPermitted, 0),
        (settings(50, 50, 3), PERMITS, EchoState::Off, 0),
    ] {
        let mut session = permitted(wish, permission);
        assert_eq!(session.echo_state(), state);
        assert_eq!(give(&mut session, millis(3), Event::Tick).echoes.len(), echoes, "{state:?}");
    }
    let mut session = begun(wishing(20, 3));
    let outcome = hear(&mut session, millis(1), Packet { state: State::Down, ..permitting(PERMITS) });
    assert_eq!((session.state(), session.echo_state()), (State::Init, EchoState::Waiting));
    assert!(outcome.echoes.is_empty() && give(&mut session, millis(2), Event::Tick).echoes.is_empty());
}

/// A permission that nothing stands behind: they are sent slowly, control packets go on as they are, and nothing happens.
#[test]
fn packets_that_never_came_back_are_no_failure() {
    let mut session = permitted(wishing(20, 3), PERMITS);
    let passed = pass(&mut session, (millis(2), millis(20_000)), permitting(PERMITS), never);
    assert_eq!((session.state(), session.echo_state()), (State::Up, EchoState::Unanswered));
    assert_eq!(passed.changes, []);
    assert!(passed.gaps().iter().all(|gap| (750_000..=1_000_000).contains(gap)), "{:?}", passed.gaps());
    assert!(passed.sent.iter().all(|(_, packet)| packet.required_min_receive == Interval::from_millis(50)));
    assert_eq!(session.detection_time(), Some(Duration::from_millis(150)));
}

#[test]
fn active_packets_keep_the_pace_of_the_slower_side_and_slow_control_packets_down() {
    for (ours, theirs, agreed) in [(20, 10, 20_000), (20, 50, 50_000), (20, 20, 20_000)] {
        let said = permitting(Interval::from_millis(theirs));
        let mut session = permitted(wishing(ours, 3), said.required_min_echo_receive);
        let passed = pass(&mut session, (millis(2), millis(5_000)), said, at_once);
        assert_eq!((session.state(), session.echo_state()), (State::Up, EchoState::Active));
        assert_eq!((passed.changes.as_slice(), session.echo_interval()), (&[][..], Some(Interval(agreed))));
        let gaps = &passed.gaps()[1..];
        let bounds = u64::from(agreed) * 3 / 4..=u64::from(agreed);
        assert!(gaps.len() > 50 && gaps.iter().all(|gap| bounds.contains(gap)), "{ours} {theirs}: {gaps:?}");
        // Sections 6.8.3 and 6.8.9, and the other side is asked before we rely on it.
        let (_, first) = passed.sent.first().expect("it is told");
        assert!(first.poll && first.required_min_receive == Interval::SLOW, "{first:?}");
        assert_eq!(session.detection_time(), Some(Duration::from_secs(3)));
    }
}

#[test]
fn missing_packets_are_a_failure_within_the_multiplier() {
    for multiplier in [1, 3, 5] {
        let mut session = permitted(wishing(20, multiplier), PERMITS);
        let cut = millis(1_000);
        let loops = |now: Moment| if now < cut { at_once(now) } else { None };
        let passed = pass(&mut session, (millis(2), millis(1_500)), permitting(PERMITS), loops);
        let (at, change) = passed.changes.first().expect("missing packets are noticed");
        assert_eq!((change.to, change.diagnostic), (State::Down, Diagnostic::EchoFailed));
        assert!(change.is_failure());
        let after = at.since(cut);
        let limit = Duration::from_millis(20) * u32::from(multiplier);
        assert!(after >= limit && after <= limit + Duration::from_millis(20), "{multiplier}: {after:?}");
        // Until it is up again, and then slowly.
        let is_silent = passed.echoes.iter().all(|echo| echo <= at);
        let comes_up = passed.changes.iter().find(|(_, change)| change.to == State::Up).map(|(at, _)| *at);
        assert!(is_silent || comes_up.is_some_and(|up| passed.echoes.iter().all(|echo| echo <= at || *echo >= up)));
        let (_, told) = passed.sent.iter().find(|(when, _)| when == at).expect("the other side is told at once");
        assert_eq!((told.state, told.required_min_receive), (State::Down, Interval::from_millis(50)));
    }
}

#[test]
fn fewer_losses_than_the_multiplier_are_nothing() {
    let mut session = permitted(wishing(20, 3), PERMITS);
    // Two in a row of each eight.
    let count = std::cell::Cell::new(0_u32);
    let loops = |now: Moment| {
        count.set(count.get() + 1);
        if count.get() % 8 < 2 { None } else { at_once(now) }
    };
    let passed = pass(&mut session, (millis(2), millis(10_000)), permitting(PERMITS), loops);
    assert_eq!((passed.changes.as_slice(), session.echo_state()), (&[][..], EchoState::Active));
}

#[test]
fn what_comes_back_too_late_or_was_not_sent_does_not_count() {
    let late = |_: Moment| Some(Duration::from_millis(60));
    let mut session = permitted(wishing(20, 3), PERMITS);
    let passed = pass(&mut session, (millis(2), millis(10_000)), permitting(PERMITS), late);
    assert_eq!((passed.changes.as_slice(), session.echo_state()), (&[][..], EchoState::Unanswered));
    // In time, though more than one is under way.
    let slow = |_: Moment| Some(Duration::from_millis(50));
    let passed = pass(&mut session, (millis(10_000), millis(20_000)), permitting(PERMITS), slow);
    assert_eq!((passed.changes.as_slice(), session.echo_state()), (&[][..], EchoState::Active));

    let mut session = permitted(wishing(20, 3), PERMITS);
    let sequence = *give(&mut session, millis(3), Event::Tick).echoes.first().expect("one is sent");
    for stranger in [sequence.wrapping_add(1), sequence.wrapping_sub(1), !sequence, 0] {
        give(&mut session, millis(4), Event::Echo { sequence: stranger });
        assert_eq!(session.echo_state(), EchoState::Unanswered);
    }
    give(&mut session, millis(4), Event::Echo { sequence });
    assert_eq!(session.echo_state(), EchoState::Active);
    // Once more is once too often: the next one is awaited.
    give(&mut session, millis(5), Event::Tick);
    give(&mut session, millis(6), Event::Echo { sequence });
    let (_, changes) = run(&mut session, millis(100));
    assert_eq!(changes.first().map(|(_, change)| change.diagnostic), Some(Diagnostic::EchoFailed));
}

#[test]
fn a_permission_that_is_taken_back_ends_it_without_a_failure() {
    let mut session = permitted(wishing(20, 3), PERMITS);
    pass(&mut session, (millis(2), millis(1_000)), permitting(PERMITS), at_once);
    assert_eq!(session.echo_state(), EchoState::Active);
    let passed = pass(&mut session, (millis(1_001), millis(3_000)), packet(State::Up), never);
    assert_eq!((passed.echoes.as_slice(), passed.changes.as_slice()), (&[][..], &[][..]));
    assert_eq!((session.state(), session.echo_state()), (State::Up, EchoState::NotPermitted));
    // Control packets have to do it again, and are asked for.
    assert_eq!(session.detection_time(), Some(Duration::from_millis(150)));
    // The same when it is our wish that changes.
    let mut session = permitted(wishing(20, 3), PERMITS);
    pass(&mut session, (millis(2), millis(1_000)), permitting(PERMITS), at_once);
    give(&mut session, millis(1_000), Event::Configure(&settings(50, 50, 3)));
    let passed = pass(&mut session, (millis(1_001), millis(3_000)), permitting(PERMITS), never);
    assert_eq!((passed.echoes.as_slice(), passed.changes.as_slice()), (&[][..], &[][..]));
    assert_eq!((session.state(), session.echo_state()), (State::Up, EchoState::Off));
}

#[test]
fn a_packet_is_read_as_it_was_written_and_nothing_else_is() {
    let echo = EchoPacket { discriminator: discriminator(LOCAL), sequence: 0xfedc_ba98 };
    let octets = echo.encode();
    assert_eq!(EchoPacket::decode(&octets), Some(echo));
    assert_eq!(EchoPacket::decode(&octets[..ECHO_LEN - 1]), None);
    assert_eq!(EchoPacket::decode(&[&octets[..], &[0]].concat()), None);
    for (place, octet) in [(0, 2), (1, 25), (3, 1), (12, 1), (23, 1)] {
        let mut wrong = octets;
        wrong[place] = octet;
        assert_eq!(EchoPacket::decode(&wrong), None, "{place}");
    }
    let mut nobody = octets;
    nobody[4..8].fill(0);
    assert_eq!(EchoPacket::decode(&nobody), None);
}

#[test]
fn a_packet_finds_its_session_when_it_was_looped_on_the_link() {
    let ip = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let mut sessions = Sessions::new(1);
    let path = |hops, device| Path { hops, remote: ip("192.0.2.2"), local: ip("192.0.2.1"), device };
    let near = sessions.insert(path(Hops::Single, Some(5)), 0, Settings::default()).expect("free");
    let far = sessions.insert(path(Hops::Multi, None), 250, Settings::default()).expect("free");
    let back =
        Arrival { hops: Hops::Single, source: ip("10.0.0.1"), destination: ip("192.0.2.1"), device: 5, ttl: 254 };
    let echo = |discriminator| EchoPacket { discriminator, sequence: 1 };
    assert_eq!(sessions.select_echo(&back, echo(near)), Ok(near));
    assert_eq!(sessions.select_echo(&Arrival { ttl: 255, ..back }, echo(near)), Ok(near));
    let too_far = Unselected::Ttl { ttl: 253, least: 254 };
    assert_eq!(sessions.select_echo(&Arrival { ttl: 253, ..back }, echo(near)), Err(too_far));
    assert_eq!(sessions.select_echo(&Arrival { device: 6, ..back }, echo(near)), Err(Unselected::Path));
    let elsewhere = Arrival { destination: ip("192.0.2.9"), ..back };
    assert_eq!(sessions.select_echo(&elsewhere, echo(near)), Err(Unselected::Path));
    assert_eq!(sessions.select_echo(&back, echo(far)), Err(Unselected::Path));
    let stranger = discriminator(7);
    assert_eq!(sessions.select_echo(&back, echo(stranger)), Err(Unselected::Discriminator(stranger)));
}
