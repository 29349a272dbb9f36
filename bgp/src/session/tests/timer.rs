//! Timers: which run when, and for how long.

use std::time::Duration;

use super::{super::*, *};
use crate::{
    id::Moment,
    wire::{
        notification::{ErrorCode, Notification},
        open::Open,
    },
};

const SLOT: Slot = Slot::First;

fn connected(config: SessionConfig, open: Open) -> Session {
    after(config, [Event::Start, Event::Connected(SLOT), Event::Open(SLOT, open), Event::Keepalive(SLOT)])
}

/// Lets time pass up to this moment and returns when what was done.
fn run(session: &mut Session, until: Moment) -> Vec<(Duration, String)> {
    let mut done = Vec::new();
    while let Some(deadline) = session.next_deadline().filter(|deadline| *deadline <= until) {
        let actions = give(session, deadline, Event::Timers);
        done.push((deadline.since(at(1_000)), words(&actions)));
    }
    done
}

#[test]
fn keepalives_come_at_three_to_four_quarters_of_a_third_of_the_hold_time() {
    let mut session = connected(config(), their_open());
    let mut last = Duration::ZERO;
    for _ in 0..20 {
        let deadline = session.next_deadline().expect("a timer runs");
        assert_eq!(words(&give(&mut session, deadline, Event::Timers)), "send 1 KEEPALIVE");
        let pause = deadline.since(at(1_000)).saturating_sub(last);
        assert!((Duration::from_millis(22_500)..=seconds(30)).contains(&pause), "{pause:?}");
        last = deadline.since(at(1_000));
        session.on_update(SLOT, deadline);
        session.on_written(SLOT, deadline);
    }
}

#[test]
fn keepalives_come_as_often_as_configured_and_never_more_rarely_than_a_third() {
    for (configured, longest) in [(Some(5), 5), (Some(80), 30), (None, 30)] {
        let mut session = connected(SessionConfig { keepalive_s: configured, ..config() }, their_open());
        let done = run(&mut session, at(1_000 + longest));
        assert!(done.iter().any(|(_, what)| what == "send 1 KEEPALIVE"), "{configured:?}");
    }
}

#[test]
fn an_update_puts_the_next_keepalive_off() {
    let mut session = connected(config(), their_open());
    let first = session.next_deadline().expect("a timer runs");
    session.on_sent(SLOT, at(1_020));
    let next = session.next_deadline().expect("a timer runs");
    assert!(next >= Moment(at(1_020).0 + 22_500_000) && next > first);
}

/// A KEEPALIVE that waited for a collision starts the time anew: a second one does not follow at once.
#[test]
fn a_keepalive_that_was_kept_back_puts_the_next_one_off() {
    let theirs = Open { hold_time_s: 9, ..their_open() };
    let twice = [Event::Start, Event::Accepted, Event::Connected(SLOT), Event::Open(SLOT, theirs)];
    let mut session = after(config(), twice);
    let done = run(&mut session, at(1_009));
    let keepalives: Vec<_> =
        done.iter().filter(|(_, what)| what.contains("KEEPALIVE")).map(|(when, _)| *when).collect();
    let [first, second, ..] = keepalives[..] else { panic!("{done:?}") };
    assert_eq!(first, COLLISION_TIME);
    assert!((Duration::from_millis(2_250)..=seconds(3)).contains(&(second - first)), "{done:?}");
}

#[test]
fn silence_for_the_hold_time_ends_the_session() {
    let mut session = connected(config(), Open { hold_time_s: 9, ..their_open() });
    assert!(session.on_update(SLOT, at(1_005)));
    assert!(!session.on_update(SLOT.other(), at(1_005)));
    let done = run(&mut session, at(1_014));
    let (when, what) = done.iter().find(|(_, what)| what.contains("DOWN")).expect("the session ends");
    assert_eq!(*when, seconds(14));
    assert!(what.starts_with("send 1 NOTIFICATION 4/0, close 1, DOWN"), "{what}");
    assert_eq!(session.last_down().map(|(_, cause)| cause), Some(&DownCause::HoldTimer));
}

#[test]
fn an_attempt_without_an_answer_is_a_failure_with_a_name() {
    let mut session = after(config(), [Event::Start]);
    let done = run(&mut session, at(1_005));
    assert_eq!(done.first().map(|(_, what)| what.as_str()), Some("close 1, (failed), connect 1"));
    assert_eq!(session.last_failure().map(|(_, cause)| cause), Some(&DownCause::NoAnswer));
    assert_eq!((session.last_down(), session.state()), (None, State::Connect));
}

/// Why a session ended is not forgotten when attempts at the next one fail, and those are when there is one.
#[test]
fn the_end_of_a_session_and_failed_attempts_are_told_apart() {
    let mut session = connected(config(), their_open());
    give(&mut session, at(1_001), Event::Closed(SLOT, "reset".to_owned()));
    let lost = (at(1_001), DownCause::Lost("reset".to_owned()));
    run(&mut session, at(1_002));
    give(&mut session, at(1_002), Event::Closed(SLOT, "refused".to_owned()));
    assert_eq!(session.last_failure(), Some(&(at(1_002), DownCause::Lost("refused".to_owned()))));
    assert_eq!(session.last_down(), Some(&lost));
    run(&mut session, at(1_008));
    for event in [Event::Connected(SLOT), Event::Open(SLOT, their_open()), Event::Keepalive(SLOT)] {
        give(&mut session, at(1_008), event);
    }
    assert_eq!((session.state(), session.last_failure()), (State::Established, None));
    assert_eq!(session.last_down(), Some(&lost));
}

#[test]
fn hold_time_zero_means_no_timers_at_all() {
    let mut session = connected(config(), Open { hold_time_s: 0, ..their_open() });
    assert_eq!(session.next_deadline(), None);
    assert!(session.on_update(SLOT, at(9_000)));
    session.on_sent(SLOT, at(9_000));
    session.on_written(SLOT, at(9_000));
    assert_eq!((session.state(), session.next_deadline()), (State::Established, None));
}

#[test]
fn a_peer_that_does_not_read_is_given_up_without_a_word() {
    for (send_hold, hold_time_s, expected) in [
        (SendHold::Default, 90, Some(480)),
        (SendHold::Default, 300, Some(600)),
        (SendHold::After(seconds(20)), 90, Some(20)),
        (SendHold::Off, 90, None),
    ] {
        let open = Open { hold_time_s: 300, ..their_open() };
        let mut session = connected(SessionConfig { send_hold, hold_time_s, ..config() }, open);
        session.on_written(SLOT, at(1_005));
        for second in 1_000..2_000 {
            session.on_update(SLOT, at(second));
            run(&mut session, at(second));
            let ended = session.last_down().map(|(when, cause)| (when.since(at(1_005)).as_secs(), cause.clone()));
            if let Some(ended) = ended {
                assert_eq!(Some(ended), expected.map(|seconds| (seconds, DownCause::SendHoldTimer)));
                break;
            }
        }
        assert_eq!(session.state() == State::Established, expected.is_none(), "{send_hold:?}");
    }
}

#[test]
fn the_end_for_a_peer_that_does_not_read_says_nothing_to_it() {
    let mut session = connected(SessionConfig { send_hold: SendHold::After(seconds(1)), ..config() }, their_open());
    assert_eq!(words(&give(&mut session, at(1_001), Event::Timers)), "close 1, DOWN keep 4 6, (wait)");
}

/// The peer's KEEPALIVE starts the hold timer again, and the end of the session the time since when it was established.
#[test]
fn the_hold_time_runs_from_the_keepalive_that_established() {
    let mut session = after(config(), [Event::Start, Event::Connected(SLOT), Event::Open(SLOT, their_open())]);
    give(&mut session, at(1_050), Event::Keepalive(SLOT));
    assert_eq!(session.established_since(), Some(at(1_050)));
    run(&mut session, at(1_139));
    assert_eq!(session.state(), State::Established);
    run(&mut session, at(1_140));
    assert_eq!((session.last_down().map(|(when, _)| *when), session.established_since()), (Some(at(1_140)), None));
}

#[test]
fn an_open_is_awaited_for_four_minutes() {
    let mut session = after(config(), [Event::Start, Event::Connected(SLOT)]);
    let done = run(&mut session, at(1_240));
    let end = (seconds(240), "send 1 NOTIFICATION 4/0, close 1, (failed), (wait)".to_owned());
    assert_eq!(done, [end, (seconds(240), "connect 1".to_owned())]);
}

#[test]
fn what_anybody_could_send_from_the_peers_address_costs_no_waiting() {
    let garbage = Notification::new(ErrorCode::MessageHeader, 1);
    let mut session = after(config(), [Event::Start, Event::Closed(SLOT, "refused".to_owned())]);
    for _ in 0..100 {
        give(&mut session, at(1_000), Event::Accepted);
        give(&mut session, at(1_000), Event::Error(SLOT, garbage.clone()));
        assert_eq!(session.state(), State::Active);
    }
    give(&mut session, at(1_000), Event::Accepted);
    let wrong = Open { asn: crate::Asn(1), ..their_open() };
    give(&mut session, at(1_000), Event::Open(SLOT, wrong));
    give(&mut session, at(1_000), Event::Accepted);
    assert_eq!((session.state(), session.failures()), (State::OpenSent, 0));
    run(&mut session, at(1_015));
    assert_eq!(session.failures(), 0, "silence");
}

/// A new connection must not overtake the words that ended the last one.
#[test]
fn a_reset_is_given_time_to_be_read() {
    let mut session = connected(config(), their_open());
    let reset = || Event::Reset { communication: "once more".to_owned() };
    assert_eq!(words(&give(&mut session, at(1_001), reset())), "send 1 NOTIFICATION 6/4, close 1, DOWN keep 4 6");
    assert_eq!(session.state(), State::Active);
    let done = run(&mut session, at(1_002));
    assert_eq!(done, [(seconds(2), "connect 1".to_owned())]);
    // Where nothing was said there is nothing to wait for.
    assert_eq!(words(&give(&mut session, at(1_002), reset())), "close 1, connect 1");
}

/// A connection that is further than another one takes all there is.
#[test]
fn whoever_is_established_ends_what_else_was_begun() {
    let mut session = after(config(), [Event::Start, Event::Connected(SLOT), Event::Open(SLOT, their_open())]);
    assert_eq!(words(&give(&mut session, at(1_001), Event::Accepted)), "accept 2, send 2 OPEN");
    let actions = words(&give(&mut session, at(1_002), Event::Keepalive(SLOT)));
    assert_eq!(actions, "send 2 NOTIFICATION 6/7, close 2, (failed), UP 1");
    assert_eq!((session.has_connection(SLOT.other()), session.last_failure()), (false, None));

    // A connection of the peer that has said OPEN is not disturbed by its next one.
    let passive = SessionConfig { passive: true, ..config() };
    let mut session = after(passive, [Event::Start, Event::Accepted, Event::Open(SLOT, their_open())]);
    assert_eq!(words(&give(&mut session, at(1_001), Event::Accepted)), "refuse, (refused)");

    // And to have lost against a better connection is no failure.
    let theirs = Slot::Second;
    let mut session = after(config(), [Event::Start, Event::Connected(SLOT), Event::Accepted]);
    let actions = words(&give(&mut session, at(1_001), Event::Open(theirs, their_open())));
    assert!(actions.contains("close 1") && actions.contains("send 2 KEEPALIVE"), "{actions}");
    assert_eq!((session.state(), session.last_failure()), (State::OpenConfirm, None));
}

#[test]
fn attempts_are_repeated_with_jitter() {
    let mut session = after(config(), [Event::Start]);
    let attempts = run(&mut session, at(1_060));
    assert!((12..=16).contains(&attempts.len()), "{}", attempts.len());
    assert!(attempts.iter().all(|(_, what)| what == "close 1, (failed), connect 1"));
    let pauses: Vec<Duration> = attempts.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(pauses.iter().all(|pause| (Duration::from_millis(3_750)..=seconds(5)).contains(pause)), "{pauses:?}");
    assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]), "always the same pause");
}

#[test]
fn two_seeds_do_not_run_in_step() {
    let first = |seed| {
        let mut session = Session::new(config(), LocalRestart::default(), seed);
        give(&mut session, at(1_000), Event::Start);
        session.next_deadline()
    };
    assert_ne!(first(1), first(2));
    assert_eq!(first(1), first(1));
}

#[test]
fn failures_cost_more_and_more_and_a_start_forgives() {
    let mut session = after(config(), [Event::Start]);
    let wrong = Open { asn: crate::Asn(1), ..their_open() };
    let mut waits = Vec::new();
    let mut now = at(1_000);
    for _ in 0..6 {
        give(&mut session, now, Event::Connected(SLOT));
        let actions = give(&mut session, now, Event::Open(SLOT, wrong.clone()));
        let wait = actions.iter().find_map(|action| match action {
            Action::Fact(Fact::Waiting(Some(wait))) => Some(*wait),
            _ => None,
        });
        let wait = wait.expect("a failure is waited for");
        waits.push(wait);
        assert_eq!(words(&give(&mut session, now, Event::Accepted)), "refuse, (refused)");
        now = now.after(wait);
        assert_eq!(words(&give(&mut session, now, Event::Timers)), "connect 1");
    }
    for (wait, most) in waits.into_iter().zip([0, 1, 2, 4, 8, 16].map(seconds)) {
        assert!((most * 3 / 4..=most).contains(&wait), "{wait:?} of {most:?}");
    }
    assert_eq!(session.failures(), 6);
    give(&mut session, now, Event::Connected(SLOT));
    give(&mut session, now, Event::Open(SLOT, wrong));
    let mut reset = session.clone();
    assert_eq!(words(&give(&mut session, now, Event::Start)), "connect 1");
    assert_eq!(session.failures(), 0);
    assert_eq!(words(&give(&mut reset, now, Event::Reset { communication: String::new() })), "connect 1");
    assert_eq!(reset.failures(), 0, "who resets a session wants it at once");
}

#[test]
fn too_many_prefixes_keep_a_session_down_as_configured() {
    let limit = Event::PrefixLimit { family: crate::Family::Ipv6Unicast, maximum: 1_000 };
    let mut session = after(config(), established());
    let actions = give(&mut session, at(1_001), limit.clone());
    let Action::Send(_, Outgoing::Notification(sent)) = &actions[0] else { panic!("{actions:?}") };
    let inner = sent.hard_reset_cause().expect("a hard reset");
    assert_eq!((inner.code, inner.subcode, inner.data), (ErrorCode::Cease, 1, vec![0, 2, 1, 0, 0, 3, 232]));
    assert_eq!((session.state(), session.next_deadline()), (State::Idle, None), "until somebody starts it");
    let other = SessionConfig { hold_time_s: 30, ..config() };
    assert_eq!(words(&give(&mut session, at(2_000), Event::Reconfigure(Box::new(other)))), "-");
    assert_eq!(session.state(), State::Idle, "another hold time sends no fewer prefixes");
    assert_eq!(words(&give(&mut session, at(9_000), Event::Start)), "connect 1");

    let wait = crate::PerFamily { ipv4: Some(seconds(20)), ipv6: Some(seconds(300)) };
    let mut session = after(SessionConfig { prefix_limit_restart: wait, ..config() }, established());
    give(&mut session, at(1_001), limit);
    assert_eq!(session.next_deadline(), Some(at(1_301)));
    assert_eq!(words(&give(&mut session, at(1_301), Event::Timers)), "connect 1");
}

#[test]
fn a_strict_session_waits_for_bfd() {
    let strict = || SessionConfig { bfd_strict: true, ..config() };
    let mut session = after(strict(), [Event::Start, Event::Connected(SLOT)]);
    let open = Event::Open(SLOT, their_open());
    assert_eq!(words(&give(&mut session, at(1_001), open.clone())), "watch 1");
    assert_eq!(words(&give(&mut session, at(1_002), Event::Keepalive(SLOT))), "-");
    assert_eq!(session.state(), State::OpenConfirm);
    let actions = words(&give(&mut session, at(1_003), Event::Bfd(BfdChange::Up)));
    assert!(actions.starts_with("send 1 KEEPALIVE") && actions.contains("UP 1"), "{actions}");
    assert_eq!(session.state(), State::Established);

    // BFD first, then the peer's KEEPALIVE; a peer that switched BFD off is as good.
    let mut session = after(strict(), [Event::Start, Event::Connected(SLOT), open.clone()]);
    assert_eq!(words(&give(&mut session, at(1_002), Event::Bfd(BfdChange::AdminDown))), "send 1 KEEPALIVE");
    give(&mut session, at(1_003), Event::Keepalive(SLOT));
    assert_eq!(session.state(), State::Established);

    // Never: Cease with "BFD Down" when the wait is over, and not a second later.
    let mut session = after(strict(), [Event::Start, Event::Connected(SLOT)]);
    give(&mut session, at(1_001), open);
    assert_eq!(session.next_deadline(), Some(at(1_031)));
    let actions = words(&give(&mut session, at(1_031), Event::Timers));
    assert!(actions.starts_with("send 1 NOTIFICATION 6/10"), "{actions}");
}

#[test]
fn words_for_the_operator_of_the_other_side_are_sent() {
    let mut session = after(config(), established());
    let stop = Stop { reason: StopReason::Shutdown, communication: "rack 7 is moved".to_owned() };
    let actions = give(&mut session, at(1_001), Event::Stop(stop));
    let Action::Send(_, Outgoing::Notification(sent)) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(sent.communication().as_deref(), Some("rack 7 is moved"));
    // And those of the peer are kept with the reason.
    let mut session = after(config(), established());
    give(&mut session, at(1_001), Event::Notification(SLOT, sent.clone()));
    let (_, cause) = session.last_down().expect("a reason");
    assert!(cause.to_string().contains("rack 7 is moved"), "{cause}");
}

#[test]
fn a_peer_that_opens_connections_without_end_disturbs_nobody() {
    let mut session = after(config(), established());
    let mut accepted = 0;
    for milli in 0..20_000 {
        let now = Moment(at(1_001).0 + milli * 1_000);
        run(&mut session, now);
        let actions = give(&mut session, now, Event::Accepted);
        accepted += actions.iter().filter(|action| matches!(action, Action::Accept(_))).count();
        assert_eq!(session.established_slot(), Some(SLOT));
    }
    assert_eq!(accepted, 2, "the first, and one when that had been silent for 15 s");
    let plain = SessionConfig { graceful_restart: None, ..config() };
    let mut session = after(plain, established());
    let probes = (0..=9_000)
        .map(|milli| give(&mut session, Moment(at(1_001).0 + milli * 1_000), Event::Accepted))
        .filter(|actions| actions.contains(&Action::Send(SLOT, Outgoing::Keepalive)))
        .count();
    assert_eq!(probes, 10, "one a second");
}
