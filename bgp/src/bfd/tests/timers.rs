//! Intervals: how they are agreed on, when they change, and what is sent when.

use super::*;

fn gaps(sent: &[(Moment, Packet)]) -> Vec<u64> {
    sent.windows(2).map(|pair| pair[1].0.0 - pair[0].0.0).collect()
}

/// Keeps a session up by speaking for the other side every 50 ms, and gives what it sent.
fn keep_up(session: &mut Session, from_ms: u64, until_ms: u64, said: Packet) -> Vec<(Moment, Packet)> {
    let mut sent = Vec::new();
    for at in (from_ms..until_ms).step_by(50) {
        sent.extend(hear(session, millis(at), said).sent.into_iter().map(|packet| (millis(at), packet)));
        let (more, changes) = run(session, millis(at + 50));
        assert_eq!(changes, []);
        sent.extend(more);
    }
    sent
}

#[test]
fn not_up_sends_once_a_second() {
    let mut session = begun(settings(50, 50, 3));
    let (sent, _) = run(&mut session, millis(60_000));
    assert!(gaps(&sent).iter().all(|gap| (750_000..=1_000_000).contains(gap)), "{:?}", gaps(&sent));
    assert!(sent.iter().all(|(_, packet)| packet.desired_min_transmit == Interval::SLOW));
    assert!(sent.iter().all(|(_, packet)| packet.required_min_receive == Interval::from_millis(50)));
    assert!(sent.iter().all(|(_, packet)| !packet.poll && packet.your_discriminator.is_none()));
}

#[test]
fn coming_up_asks_for_the_real_interval_until_it_is_answered() {
    let mut session = begun(settings(50, 70, 3));
    let outcome = hear(&mut session, millis(1), packet(State::Init));
    let [told] = outcome.sent.as_slice() else { panic!("{outcome:?}") };
    assert_eq!((told.state, told.poll), (State::Up, true));
    assert_eq!(told.desired_min_transmit, Interval::from_millis(50));
    let asked = keep_up(&mut session, 1, 500, packet(State::Up));
    assert!(asked.len() > 8 && asked.iter().all(|(_, packet)| packet.poll), "{asked:?}");
    hear(&mut session, millis(501), Packet { is_final: true, ..packet(State::Up) });
    let after = keep_up(&mut session, 501, 1_000, packet(State::Up));
    assert!(after.len() > 8 && after.iter().all(|(_, packet)| !packet.poll), "{after:?}");
}

#[test]
fn the_slower_of_both_sides_rules_sending() {
    for (ours, theirs, ruling) in [(50, 20, 50), (50, 90, 90), (20, 20, 20)] {
        let mut session = up(settings(ours, 50, 3));
        let said = Packet { required_min_receive: Interval::from_millis(theirs), ..packet(State::Up) };
        hear(&mut session, millis(2), said);
        assert_eq!(session.transmit_interval(), Some(Interval::from_millis(ruling)));
        let sent = keep_up(&mut session, 50, 5_000, said);
        let ruling = u64::from(ruling) * 1_000;
        assert!(
            gaps(&sent).iter().all(|gap| (ruling * 3 / 4..=ruling).contains(gap)),
            "{ours} {theirs}: {:?}",
            gaps(&sent)
        );
    }
}

#[test]
fn with_a_multiplier_of_one_packets_come_a_tenth_early() {
    let mut session = up(settings(50, 50, 1));
    let sent = keep_up(&mut session, 50, 5_000, packet(State::Up));
    assert!(sent.len() > 90 && gaps(&sent).iter().all(|gap| (37_500..=45_000).contains(gap)), "{:?}", gaps(&sent));
}

#[test]
fn detection_time_is_the_other_sides_multiplier_times_the_slower_interval() {
    for (receive, theirs, multiplier, expected_ms) in [(50, 20, 3, 150), (50, 90, 3, 270), (10, 10, 5, 50)] {
        let mut session = up(settings(50, receive, 9));
        let said = Packet {
            desired_min_transmit: Interval::from_millis(theirs),
            multiplier: NonZeroU8::new(multiplier).expect("not zero"),
            ..packet(State::Up)
        };
        hear(&mut session, millis(100), said);
        assert_eq!(session.detection_time(), Some(std::time::Duration::from_millis(expected_ms)));
        let (_, changes) = run(&mut session, millis(1_000));
        assert_eq!(changes.first().map(|(at, _)| *at), Some(millis(100 + expected_ms)));
    }
}

#[test]
fn a_new_interval_of_the_other_side_is_obeyed_at_once() {
    let mut session = up(settings(50, 50, 3));
    keep_up(&mut session, 50, 1_000, packet(State::Up));
    let slower = Packet { required_min_receive: Interval::from_millis(400), ..packet(State::Up) };
    let sent = keep_up(&mut session, 1_000, 5_000, slower);
    assert!(gaps(&sent).iter().all(|gap| (300_000..=400_000).contains(gap)), "{:?}", gaps(&sent));
    // Faster again: the next packet does not wait for the long interval.
    let sent = keep_up(&mut session, 5_000, 5_200, packet(State::Up));
    assert!(sent.len() >= 4, "{sent:?}");
}

#[test]
fn silence_can_be_asked_for() {
    let mut session = up(settings(50, 50, 3));
    let quiet = Packet { required_min_receive: Interval::NONE, ..packet(State::Up) };
    hear(&mut session, millis(10), quiet);
    assert_eq!(keep_up(&mut session, 50, 2_000, quiet), []);
}

#[test]
fn demand_is_answered_with_silence_until_there_is_something_to_ask() {
    let mut session = up(settings(50, 50, 3));
    let demand = Packet { demand: true, ..packet(State::Up) };
    hear(&mut session, millis(10), demand);
    assert_eq!(keep_up(&mut session, 50, 2_000, demand), []);
    // It checks the path by polling, and is answered at once.
    let outcome = hear(&mut session, millis(2_000), Packet { poll: true, ..demand });
    assert_eq!(outcome.sent.iter().map(|packet| (packet.is_final, packet.poll)).collect::<Vec<_>>(), [(true, false)]);
    // A poll of ours is sent in spite of demand, until it is answered.
    let outcome = give(&mut session, millis(2_001), Event::Configure(&settings(80, 80, 3)));
    assert_eq!(outcome.sent.iter().map(|packet| packet.poll).collect::<Vec<_>>(), [true]);
    assert!(keep_up(&mut session, 2_050, 2_500, demand).len() > 3);
    hear(&mut session, millis(2_500), Packet { is_final: true, ..demand });
    assert_eq!(keep_up(&mut session, 2_550, 4_000, demand), []);
    // When the other side is no longer up, demand is no longer active (section 6.6).
    let outcome = hear(&mut session, millis(4_000), Packet { demand: true, ..packet(State::Down) });
    assert_eq!(outcome.changes.len(), 1);
    assert_eq!(session.transmit_interval(), Some(Interval::SLOW));
}

#[test]
fn a_poll_is_answered_in_every_state_but_held_down() {
    for state in [State::Down, State::Init, State::Up] {
        let mut session = begun(settings(50, 50, 3));
        match state {
            State::Init => drop(hear(&mut session, millis(1), packet(State::Down))),
            State::Up => drop(hear(&mut session, millis(1), packet(State::Init))),
            State::Down | State::AdminDown => {}
        }
        let said = if state == State::Down { packet(State::Up) } else { packet(state) };
        let outcome = hear(&mut session, millis(2), Packet { poll: true, ..said });
        let answers: Vec<_> = outcome.sent.iter().filter(|packet| packet.is_final).collect();
        assert_eq!(answers.len(), 1, "{state}: {outcome:?}");
        assert!(outcome.sent.iter().all(|packet| !(packet.poll && packet.is_final)));
    }
    let mut session = begun(settings(50, 50, 3));
    give(&mut session, millis(1), Event::AdminDown);
    assert!(hear(&mut session, millis(2), Packet { poll: true, ..packet(State::Up) }).sent.is_empty());
}

/// Section 6.8.3: slower sending and faster expecting wait for F.
#[test]
fn careless_values_wait_for_the_end_of_the_poll() {
    let mut session = up(settings(50, 50, 3));
    let outcome = give(&mut session, millis(10), Event::Configure(&settings(200, 20, 3)));
    let [told] = outcome.sent.as_slice() else { panic!("{outcome:?}") };
    assert!(told.poll);
    assert_eq!(told.desired_min_transmit, Interval::from_millis(200));
    assert_eq!(told.required_min_receive, Interval::from_millis(20));
    let fast = Packet {
        desired_min_transmit: Interval::from_millis(10),
        required_min_receive: Interval(1),
        ..packet(State::Up)
    };
    hear(&mut session, millis(11), fast);
    assert_eq!(session.transmit_interval(), Some(Interval::from_millis(50)), "still as fast as before");
    assert_eq!(session.detection_time(), Some(std::time::Duration::from_millis(150)), "still as patient as before");
    hear(&mut session, millis(12), Packet { is_final: true, ..fast });
    assert_eq!(session.transmit_interval(), Some(Interval::from_millis(200)));
    assert_eq!(session.detection_time(), Some(std::time::Duration::from_millis(60)));
}

/// Faster sending and slower expecting hurt nobody and are done at once.
#[test]
fn careful_values_do_not_wait() {
    let mut session = up(settings(50, 50, 3));
    give(&mut session, millis(10), Event::Configure(&settings(20, 100, 3)));
    hear(&mut session, millis(11), Packet { required_min_receive: Interval(1), ..packet(State::Up) });
    assert_eq!(session.transmit_interval(), Some(Interval::from_millis(20)));
    assert_eq!(session.detection_time(), Some(std::time::Duration::from_millis(300)));
}

#[test]
fn a_change_during_a_poll_is_asked_about_again() {
    let mut session = up(settings(50, 50, 3));
    let quick = Packet { required_min_receive: Interval(1), ..packet(State::Up) };
    give(&mut session, millis(10), Event::Configure(&settings(100, 50, 3)));
    give(&mut session, millis(11), Event::Configure(&settings(200, 50, 3)));
    hear(&mut session, millis(12), Packet { is_final: true, ..quick });
    assert_eq!(session.transmit_interval(), Some(Interval::from_millis(50)), "that F may have been for 100 ms");
    hear(&mut session, millis(13), Packet { is_final: true, ..quick });
    assert_eq!(session.transmit_interval(), Some(Interval::from_millis(200)));
}

#[test]
fn a_new_multiplier_is_told_without_a_poll() {
    let mut session = up(settings(50, 50, 3));
    let outcome = give(&mut session, millis(10), Event::Configure(&settings(50, 50, 5)));
    assert_eq!(outcome.sent.iter().map(|p| (p.multiplier.get(), p.poll)).collect::<Vec<_>>(), [(5, false)]);
}

#[test]
fn a_farewell_is_as_long_as_the_other_sides_detection_time() {
    let mut session = up(settings(50, 50, 4));
    give(&mut session, millis(10), Event::AdminDown);
    assert_eq!(session.farewell(), std::time::Duration::from_secs(4));
}
