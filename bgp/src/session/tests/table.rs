//! Every state with every event: one table, `table.txt`, that people read and this test checks line by line.

use std::fmt::Write as _;

use super::{super::*, *};
use crate::{
    Family,
    id::Moment,
    wire::{
        notification::{ErrorCode, Notification, cease, open_error},
        route_refresh::{RefreshKind, RouteRefresh},
    },
};

const TABLE: &str = include_str!("table.txt");

/// States with what leads to them. The connection in question is in the first place; in the last three rows a second one is in
/// the other.
fn states() -> Vec<(&'static str, Session)> {
    let slot = Slot::First;
    let delaying = || SessionConfig { delay_open: Some(seconds(10)), ..config() };
    let opened = || [Event::Start, Event::Connected(slot)];
    let confirmed = || [Event::Start, Event::Connected(slot), Event::Open(slot, their_open())];
    let confirmed_twice = || opened().into_iter().chain([Event::Accepted, Event::Open(slot, their_open())]);
    let accepted = || [Event::Start, Event::Closed(slot, "refused".to_owned()), Event::Accepted];
    let failed = || established().into_iter().chain([Event::Closed(slot, "reset".to_owned())]);
    let passive = SessionConfig { passive: true, ..config() };
    vec![
        ("Idle (stopped)", after(config(), [])),
        ("Idle (waiting)", after(config(), failed())),
        ("Connect", after(config(), [Event::Start])),
        ("Connect (delay)", after(delaying(), opened())),
        ("Active", after(config(), [Event::Start, Event::Closed(slot, "refused".to_owned())])),
        ("Active (passive)", after(passive, [Event::Start])),
        ("Active (delay)", after(delaying(), accepted())),
        ("OpenSent", after(config(), opened())),
        ("OpenSent (theirs)", after(config(), accepted())),
        ("OpenConfirm", after(config(), confirmed())),
        ("Established", after(config(), established())),
        ("OpenSent twice", after(config(), opened().into_iter().chain([Event::Accepted]))),
        ("OpenConfirm (held)", after(config(), confirmed_twice())),
        ("Established, again", after(config(), established().into_iter().chain([Event::Accepted]))),
    ]
}

fn events(session: &Session) -> Vec<(&'static str, Moment, Event)> {
    let slot = Slot::First;
    let now = at(1_001);
    let cause = |subcode| Notification::new(ErrorCode::Cease, subcode);
    let refresh = |kind| Event::Refresh(slot, RouteRefresh { afi: 1, safi: 1, kind });
    let stop = |reason| Event::Stop(Stop { reason, communication: String::new() });
    let wire_change = SessionConfig { hold_time_s: 30, ..session.config().clone() };
    let local_change = SessionConfig { keepalive_s: Some(1), ..session.config().clone() };
    let wrong = crate::wire::open::Open { asn: crate::Asn(65_099), ..their_open() };
    let deadline = session.next_deadline().unwrap_or(now);
    let bad = |code, subcode| Event::Error(slot, Notification::new(code, subcode));
    vec![
        ("start", now, Event::Start),
        ("stop", now, stop(StopReason::Shutdown)),
        ("stop: deconfigured", now, stop(StopReason::Deconfigured)),
        ("stop: we restart", now, stop(StopReason::Restart)),
        ("reset", now, Event::Reset { communication: "try again".to_owned() }),
        ("wire change", now, Event::Reconfigure(Box::new(wire_change))),
        ("local change", now, Event::Reconfigure(Box::new(local_change))),
        ("first timer", deadline, Event::Timers),
        ("4 minutes later", at(1_240), Event::Timers),
        ("9 minutes later", at(1_540), Event::Timers),
        ("reachable", now, Event::Reachable),
        ("link down", now, Event::LinkDown),
        ("BFD down", now, Event::Bfd(BfdChange::Down { control_plane_independent: false })),
        ("BFD down, C", now, Event::Bfd(BfdChange::Down { control_plane_independent: true })),
        ("BFD admin down", now, Event::Bfd(BfdChange::AdminDown)),
        ("prefix limit", now, Event::PrefixLimit { family: Family::Ipv4Unicast, maximum: 9 }),
        ("accepted", now, Event::Accepted),
        ("16 s later", at(1_016), Event::Timers),
        ("connected", now, Event::Connected(slot)),
        ("closed", now, Event::Closed(slot, "reset".to_owned())),
        ("OPEN", now, Event::Open(slot, their_open())),
        ("OPEN, 2nd place", now, Event::Open(Slot::Second, their_open())),
        ("OPEN, wrong AS", now, Event::Open(slot, wrong)),
        ("bad header", now, bad(ErrorCode::MessageHeader, 1)),
        ("bad UPDATE", now, bad(ErrorCode::Update, 1)),
        (
            "NOTIFICATION version",
            now,
            Event::Notification(slot, Notification::new(ErrorCode::Open, open_error::UNSUPPORTED_VERSION)),
        ),
        ("NOTIFICATION cease", now, Event::Notification(slot, cause(cease::ADMINISTRATIVE_SHUTDOWN))),
        ("NOTIFICATION hard", now, Event::Notification(slot, cause(cease::ADMINISTRATIVE_SHUTDOWN).into_hard_reset())),
        ("NOTIFICATION lost", now, Event::Notification(slot, cause(cease::CONNECTION_COLLISION))),
        ("KEEPALIVE", now, Event::Keepalive(slot)),
        ("UPDATE", now, Event::Update(slot)),
        ("REFRESH", now, refresh(RefreshKind::Request)),
        ("REFRESH begins", now, refresh(RefreshKind::Begin)),
        ("REFRESH ends", now, refresh(RefreshKind::End)),
        ("End-of-RIB", now, Event::EndOfRib(slot, Family::Ipv4Unicast)),
        ("ask for refresh", now, Event::RequestRefresh(Family::Ipv6Unicast)),
        ("restart over", now, Event::RestartOver),
    ]
}

fn table() -> String {
    let mut text = String::from("# state | event | state after | actions\n");
    for (name, session) in states() {
        let state = name.split([' ', ',']).next().unwrap_or_default();
        assert_eq!(session.state().to_string(), state, "{name}");
        for (event_name, now, event) in events(&session) {
            let mut session = session.clone();
            let actions = give(&mut session, now, event);
            let waits = if session.is_stopped() { " (stopped)" } else { "" };
            let after = format!("{}{waits}", session.state());
            writeln!(text, "{name:<18} | {event_name:<20} | {after:<14} | {}", words(&actions))
                .expect("a string takes it");
        }
    }
    text
}

#[test]
fn every_state_answers_every_event_as_the_table_says() {
    let table = table();
    if std::env::var_os("BGP_TABLE_PRINT").is_some() {
        println!("{table}");
    }
    for (number, (expected, found)) in TABLE.lines().zip(table.lines()).enumerate() {
        assert_eq!(found, expected, "line {} of table.txt", number + 1);
    }
    assert_eq!(table.lines().count(), TABLE.lines().count(), "number of lines");
}
