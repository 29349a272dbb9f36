//! The receiving speaker of graceful and long-lived graceful restart, and the marks of a route refresh, over time.

use super::{super::*, *};
use crate::{
    Family, PerFamily,
    wire::{
        capability::Capability,
        open::Open,
        route_refresh::{RefreshKind, RouteRefresh},
    },
};

const SLOT: Slot = Slot::First;

/// Restart time of the peer in these tests.
const RESTART_S: u64 = 120;

fn closed() -> Event {
    Event::Closed(SLOT, "reset".to_owned())
}

/// The peer's OPEN after its restart.
fn returning(kept: PerFamily<bool>) -> Open {
    our_open(&long_lived(their_config()), &LocalRestart { restarted: true, forwarding_kept: kept })
}

/// Long-lived graceful restart for IPv4 only.
fn long_lived(mut config: SessionConfig) -> SessionConfig {
    config.families.ipv4 = config.families.ipv4.map(|family| FamilyConfig { stale_time_s: Some(1_000), ..family });
    config
}

/// Established at second 1000 with long-lived graceful restart for IPv4.
fn long_lived_session() -> Session {
    let both = PerFamily { ipv4: true, ipv6: true };
    let open = Event::Open(SLOT, returning(both));
    after(long_lived(config()), [Event::Start, Event::Connected(SLOT), open, Event::Keepalive(SLOT)])
}

/// Reconnects at this second with this OPEN and returns what the established session does.
fn come_back(session: &mut Session, second: u64, open: Open) -> String {
    give(session, at(second), Event::Start);
    give(session, at(second), Event::Timers);
    give(session, at(second), Event::Connected(SLOT));
    give(session, at(second), Event::Open(SLOT, open));
    words(&give(session, at(second), Event::Keepalive(SLOT)))
}

/// Runs the timers up to this second and returns what happened to paths.
fn until(session: &mut Session, second: u64) -> Vec<String> {
    let mut happened = Vec::new();
    while let Some(deadline) = session.next_deadline().filter(|deadline| *deadline <= at(second)) {
        for action in give(session, deadline, Event::Timers) {
            if matches!(action, Action::Sweep(_) | Action::RefreshEnded(_) | Action::LongLived(_)) {
                happened.push(format!("{}: {}", deadline.0 / 1_000_000, words(&[action])));
            }
        }
    }
    happened
}

#[test]
fn a_peer_that_stays_away_loses_its_paths_family_by_family() {
    let mut session = long_lived_session();
    assert_eq!(words(&give(&mut session, at(2_000), closed())), "close 1, DOWN keep 4 6, (wait)");
    assert_eq!([session.stage(Family::Ipv4Unicast), session.stage(Family::Ipv6Unicast)], [Stage::Restarting; 2]);
    let restart_over = 2_000 + RESTART_S;
    assert_eq!(until(&mut session, restart_over - 1), [""; 0]);
    assert_eq!(
        until(&mut session, restart_over),
        [format!("{restart_over}: long-lived 4"), format!("{restart_over}: sweep 6")]
    );
    assert_eq!(until(&mut session, 10_000), [format!("{}: sweep 4", restart_over + 1_000)]);
}

#[test]
fn a_peer_that_comes_back_is_swept_at_its_end_of_rib() {
    let mut session = long_lived_session();
    give(&mut session, at(2_000), closed());
    assert_eq!(come_back(&mut session, 2_060, returning(PerFamily { ipv4: true, ipv6: true })), "UP 1");
    let over = give(&mut session.clone(), at(2_000 + RESTART_S), Event::Timers);
    assert!(!over.contains(&Action::Fact(Fact::RestartTimeOver)), "{over:?}");
    let end = |session: &mut Session, family| words(&give(session, at(2_070), Event::EndOfRib(SLOT, family)));
    let elsewhere = Event::EndOfRib(SLOT.other(), Family::Ipv6Unicast);
    assert_eq!(words(&give(&mut session, at(2_069), elsewhere)), "-", "on a connection without a session");
    assert_eq!(end(&mut session, Family::Ipv6Unicast), "sweep 6");
    assert_eq!(end(&mut session, Family::Ipv6Unicast), "-", "once");
    assert_eq!(end(&mut session, Family::Ipv4Unicast), "sweep 4");
}

#[test]
fn a_peer_that_lost_its_forwarding_state_is_swept_at_once() {
    let mut session = long_lived_session();
    give(&mut session, at(2_000), closed());
    assert_eq!(come_back(&mut session, 2_060, returning(PerFamily { ipv4: true, ipv6: false })), "UP 1, sweep 6");
    let mut without = returning(PerFamily { ipv4: true, ipv6: true });
    without.capabilities.retain(|it| !matches!(it, Capability::GracefulRestart(_)));
    let mut session = long_lived_session();
    give(&mut session, at(2_000), closed());
    assert_eq!(come_back(&mut session, 2_060, without), "UP 1, sweep 4, sweep 6");
}

#[test]
fn end_of_rib_is_not_awaited_for_ever() {
    let mut session = established_with_send_hold_off();
    give(&mut session, at(2_000), closed());
    come_back(&mut session, 2_060, their_open());
    session_keeps_hearing(&mut session, 2_060, 2_060 + 359);
    let swept = until(&mut session, 2_060 + 360);
    assert_eq!(swept, ["2420: sweep 4", "2420: sweep 6"]);
}

fn established_with_send_hold_off() -> Session {
    after(SessionConfig { send_hold: SendHold::Off, ..config() }, established())
}

/// KEEPALIVE every 30 s.
fn session_keeps_hearing(session: &mut Session, from: u64, to: u64) {
    for second in (from..=to).step_by(30) {
        assert_eq!(until(session, second), [""; 0]);
        give(session, at(second), Event::Keepalive(SLOT));
    }
}

#[test]
fn a_second_restart_does_not_keep_paths_twice() {
    let mut session = after(config(), established());
    give(&mut session, at(2_000), closed());
    come_back(&mut session, 2_010, their_open());
    // IPv6 has said End-of-RIB: its paths are fresh and are kept; those of IPv4 are from before the first restart.
    give(&mut session, at(2_011), Event::EndOfRib(SLOT, Family::Ipv6Unicast));
    assert_eq!(words(&give(&mut session, at(2_020), closed())), "close 1, sweep 4, DOWN keep 4 6, (wait)");
}

#[test]
fn long_lived_paths_keep_their_deadline_over_sessions_that_end_too_early() {
    let mut session = long_lived_session();
    give(&mut session, at(2_000), closed());
    until(&mut session, 2_000 + RESTART_S);
    come_back(&mut session, 2_200, returning(PerFamily { ipv4: true, ipv6: true }));
    assert_eq!(words(&give(&mut session, at(2_300), closed())), "close 1, DOWN keep 4 6, long-lived 4, (wait)");
    let swept = until(&mut session, 10_000);
    assert_eq!(swept, ["2420: sweep 6", "3120: sweep 4"]);
}

#[test]
fn a_time_that_runs_out_before_end_of_rib_lets_nothing_outlive_the_session() {
    let mut session = long_lived_session();
    give(&mut session, at(2_000), closed());
    until(&mut session, 2_000 + RESTART_S);
    come_back(&mut session, 3_110, returning(PerFamily { ipv4: true, ipv6: true }));
    assert_eq!(until(&mut session, 3_125), ["3120: sweep 4"]);
    assert_eq!(session.stage(Family::Ipv4Unicast), Stage::Overdue);
    let mut told = session.clone();
    assert_eq!(words(&give(&mut session, at(3_130), closed())), "close 1, DOWN keep 4 6, sweep 4, (wait)");
    // With End-of-RIB in between, it is a session like any other.
    assert_eq!(words(&give(&mut told, at(3_126), Event::EndOfRib(SLOT, Family::Ipv4Unicast))), "-");
    assert_eq!(words(&give(&mut told, at(3_130), closed())), "close 1, DOWN keep 4 6, (wait)");
}

#[test]
fn long_lived_paths_need_the_flag_of_their_own_capability() {
    for (long_lived_kept, expected) in [(true, "UP 1"), (false, "UP 1, sweep 4")] {
        let mut open = returning(PerFamily { ipv4: true, ipv6: true });
        for capability in &mut open.capabilities {
            if let Capability::LongLivedGracefulRestart(families) = capability {
                families.iter_mut().for_each(|family| family.forwarding = long_lived_kept);
            }
        }
        let mut session = long_lived_session();
        give(&mut session, at(2_000), closed());
        until(&mut session, 2_000 + RESTART_S);
        assert_eq!(come_back(&mut session, 2_200, open), expected);
    }
}

#[test]
fn stopping_forgets_what_was_kept() {
    let mut session = after(config(), established());
    give(&mut session, at(2_000), closed());
    let stop = Event::Stop(Stop { reason: StopReason::Shutdown, communication: String::new() });
    assert_eq!(words(&give(&mut session, at(2_001), stop)), "sweep 4, sweep 6");
    assert_eq!(session.next_deadline(), None);
}

#[test]
fn without_restart_time_long_lived_begins_at_once() {
    let mut session = after(long_lived(config()), [Event::Start, Event::Connected(SLOT)]);
    let mut theirs = long_lived(their_config());
    theirs.graceful_restart = theirs.graceful_restart.map(|it| RestartConfig { restart_time_s: 0, ..it });
    give(&mut session, at(1_000), Event::Open(SLOT, our_open(&theirs, &LocalRestart::default())));
    give(&mut session, at(1_000), Event::Keepalive(SLOT));
    let actions = give(&mut session, at(2_000), closed());
    assert_eq!(words(&actions), "close 1, DOWN keep 4 6, long-lived 4, sweep 6, (wait)");
}

#[test]
fn bfd_without_c_bit_and_without_rfc_8538_says_nothing_to_the_peer() {
    let mut theirs = their_config();
    theirs.graceful_restart = theirs.graceful_restart.map(|it| RestartConfig { notification: false, ..it });
    let open = our_open(&theirs, &LocalRestart::default());
    let events = [Event::Start, Event::Connected(SLOT), Event::Open(SLOT, open), Event::Keepalive(SLOT)];
    let down = |control_plane_independent| {
        let mut session = after(config(), events.clone());
        words(&give(&mut session, at(2_000), Event::Bfd(BfdChange::Down { control_plane_independent })))
    };
    assert_eq!(down(false), "close 1, DOWN keep 4 6, (wait)");
    assert_eq!(down(true), "send 1 NOTIFICATION 6/10, close 1, DOWN drop, (wait)");
}

fn refresh(kind: RefreshKind) -> Event {
    Event::Refresh(SLOT, RouteRefresh { afi: 1, safi: 1, kind })
}

#[test]
fn a_refresh_marks_and_sweeps_and_does_not_last_for_ever() {
    let mut session = established_with_send_hold_off();
    let now = |session: &mut Session, second, kind| words(&give(session, at(second), refresh(kind)));
    assert_eq!(now(&mut session, 1_001, RefreshKind::End), "(ignored)");
    assert_eq!(now(&mut session, 1_002, RefreshKind::Begin), "mark 4");
    assert_eq!(now(&mut session, 1_003, RefreshKind::End), "sweep marked 4");
    assert_eq!(now(&mut session, 1_004, RefreshKind::Begin), "mark 4");
    session_keeps_hearing(&mut session, 1_004, 1_600);
    assert_eq!(until(&mut session, 1_604), ["1604: sweep marked 4"]);
}

#[test]
fn a_refresh_before_end_of_rib_is_ignored() {
    let mut session = after(config(), established());
    give(&mut session, at(2_000), closed());
    come_back(&mut session, 2_010, their_open());
    assert_eq!(words(&give(&mut session, at(2_011), refresh(RefreshKind::Begin))), "(ignored)");
    assert_eq!(words(&give(&mut session, at(2_012), refresh(RefreshKind::End))), "(ignored)");
    assert_eq!(words(&give(&mut session, at(2_013), Event::EndOfRib(SLOT, Family::Ipv4Unicast))), "sweep 4");
    assert_eq!(words(&give(&mut session, at(2_014), refresh(RefreshKind::Begin))), "mark 4");
}

#[test]
fn a_session_lost_during_a_refresh_keeps_only_what_was_sent_again() {
    let mut session = after(config(), established());
    give(&mut session, at(1_010), refresh(RefreshKind::Begin));
    assert_eq!(words(&give(&mut session, at(1_020), closed())), "close 1, sweep marked 4, DOWN keep 4 6, (wait)");
}

#[test]
fn refreshes_that_were_not_agreed_on_are_ignored() {
    let asked = |config: SessionConfig, afi, kind| {
        let mut session = after(config, established());
        words(&give(&mut session, at(1_001), Event::Refresh(SLOT, RouteRefresh { afi, safi: 1, kind })))
    };
    let without = SessionConfig { route_refresh: false, ..config() };
    let plain = SessionConfig { enhanced_refresh: false, ..config() };
    assert_eq!(asked(config(), 25, RefreshKind::Request), "(ignored)");
    assert_eq!(asked(without.clone(), 1, RefreshKind::Request), "(ignored)");
    assert_eq!(asked(plain.clone(), 1, RefreshKind::Request), "resend 4");
    assert_eq!(asked(plain, 1, RefreshKind::Begin), "(ignored)");
    let mut session = after(without, established());
    let actions = give(&mut session, at(1_001), Event::RequestRefresh(Family::Ipv4Unicast));
    assert_eq!(words(&actions), "(unsupported)");
}

#[test]
fn what_we_say_about_our_own_restart() {
    let said = |session: &mut Session| {
        let actions = give(session, at(5_000), Event::Accepted);
        let open = actions.iter().find_map(|action| match action {
            Action::Send(_, Outgoing::Open(open)) => Some(open.clone()),
            _ => None,
        });
        let restart = open.and_then(|open| {
            open.capabilities.into_iter().find_map(|capability| match capability {
                Capability::GracefulRestart(restart) => Some(restart),
                _ => None,
            })
        });
        restart.map(|it| (it.restarted, it.families.iter().map(|it| it.forwarding).collect::<Vec<_>>()))
    };
    let kept = LocalRestart { restarted: true, forwarding_kept: PerFamily { ipv4: true, ipv6: false } };
    let start = |restart| {
        let mut session = Session::new(SessionConfig { passive: true, ..config() }, restart, 1);
        give(&mut session, at(1_000), Event::Start);
        session
    };
    assert_eq!(said(&mut start(LocalRestart::default())), Some((false, vec![false, false])));
    assert_eq!(said(&mut start(kept)), Some((true, vec![true, false])));
    let mut over = start(kept);
    give(&mut over, at(1_000), Event::RestartOver);
    assert_eq!(said(&mut over), Some((false, vec![true, false])));
    // Once there was a session, the kernel has its routes, and a lost session does not take them away.
    let mut again = after(SessionConfig { passive: true, ..config() }, [Event::Start, Event::Accepted]);
    for event in [Event::Open(SLOT, their_open()), Event::Keepalive(SLOT), Event::LinkDown] {
        give(&mut again, at(1_000), event);
    }
    assert_eq!(said(&mut again), Some((false, vec![true, true])));
}

/// Who came by itself is forgotten when nothing is left of it, and not while its paths are kept or a failure is waited out.
#[test]
fn a_session_is_spent_when_nothing_is_left_of_it() {
    let passive = SessionConfig { passive: true, ..long_lived(config()) };
    let accepted = || {
        let open = Event::Open(SLOT, returning(PerFamily { ipv4: true, ipv6: true }));
        after(passive.clone(), [Event::Start, Event::Accepted, open, Event::Keepalive(SLOT)])
    };
    let mut session = accepted();
    assert!(session.state() == State::Established && !session.is_spent());
    give(&mut session, at(1_001), closed());
    assert!(!session.is_spent(), "its paths are kept");
    until(&mut session, 1_001 + RESTART_S + 999);
    assert!(!session.is_spent(), "they are long-lived stale");
    until(&mut session, 1_001 + RESTART_S + 1_001);
    assert!(session.is_spent());

    let mut session = accepted();
    give(&mut session, at(1_001), Event::PrefixLimit { family: Family::Ipv4Unicast, maximum: 9 });
    assert!(!session.is_spent(), "too many prefixes are remembered");
    assert!(!after(passive.clone(), []).is_spent(), "stopped");
    assert!(after(passive, [Event::Start]).is_spent());
}
