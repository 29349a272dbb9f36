//! The state machine: every state with every received state, and administrative changes.

use super::*;

use State::{AdminDown, Down, Init, Up};

/// A session in a state, with numbers known both ways.
fn in_state(state: State) -> Session {
    let mut session = begun(settings(50, 50, 3));
    match state {
        AdminDown => {
            give(&mut session, millis(1), Event::AdminDown);
        }
        Down => {}
        Init => {
            hear(&mut session, millis(1), packet(Down));
        }
        Up => {
            hear(&mut session, millis(1), packet(Init));
        }
    }
    assert_eq!(session.state(), state);
    session
}

/// RFC 5880 section 6.8.6. The third column is what the session is in afterwards, the fourth why it fell.
const TABLE: [(State, State, State, Option<Diagnostic>); 16] = [
    (AdminDown, AdminDown, AdminDown, None),
    (AdminDown, Down, AdminDown, None),
    (AdminDown, Init, AdminDown, None),
    (AdminDown, Up, AdminDown, None),
    (Down, AdminDown, Down, None),
    (Down, Down, Init, None),
    (Down, Init, Up, None),
    (Down, Up, Down, None),
    (Init, AdminDown, Down, Some(Diagnostic::NeighborSignaledDown)),
    (Init, Down, Init, None),
    (Init, Init, Up, None),
    (Init, Up, Up, None),
    (Up, AdminDown, Down, Some(Diagnostic::NeighborSignaledDown)),
    (Up, Down, Down, Some(Diagnostic::NeighborSignaledDown)),
    (Up, Init, Up, None),
    (Up, Up, Up, None),
];

#[test]
fn every_state_with_every_received_state() {
    for (from, received, to, falls) in TABLE {
        let mut session = in_state(from);
        let outcome = hear(&mut session, millis(2), packet(received));
        let case = format!("{from} hears {received}");
        assert_eq!(session.state(), to, "{case}");
        let changes: Vec<_> = outcome.changes.iter().map(|change| (change.from, change.to)).collect();
        assert_eq!(changes, if from == to { vec![] } else { vec![(from, to)] }, "{case}");
        if let Some(diagnostic) = falls {
            assert_eq!(session.diagnostic(), diagnostic, "{case}");
        }
        // A change is told at once, and told as it is.
        let told: Vec<State> = outcome.sent.iter().map(|packet| packet.state).collect();
        assert_eq!(told, if from == to { vec![] } else { vec![to] }, "{case}");
    }
}

#[test]
fn a_silent_path_fails_with_a_diagnostic() {
    let mut session = in_state(Up);
    // Both say 50 ms, times 3, from 1 ms on; the poll that began with Up does not change the receiving side.
    let (_, changes) = run(&mut session, millis(2_000));
    let [(at, change)] = changes.as_slice() else { panic!("one change: {changes:?}") };
    assert_eq!(*at, millis(151));
    assert_eq!((change.from, change.to, change.diagnostic), (Up, Down, Diagnostic::DetectionTimeExpired));
    assert!(change.is_failure());
    assert_eq!(session.remote().discriminator, None, "after silence the other side's number is forgotten");
}

#[test]
fn init_also_falls_with_silence() {
    let mut session = in_state(Init);
    let (_, changes) = run(&mut session, millis(5_000));
    let falls: Vec<_> = changes.iter().map(|(_, change)| (change.to, change.is_failure())).collect();
    assert_eq!(falls, [(Down, false)], "it was never up, so nothing failed");
}

#[test]
fn held_down_is_told_and_ends() {
    let mut session = in_state(Up);
    let outcome = give(&mut session, millis(2), Event::AdminDown);
    assert_eq!(
        outcome.changes.iter().map(|change| (change.to, change.is_failure())).collect::<Vec<_>>(),
        [(AdminDown, false)]
    );
    let [told] = outcome.sent.as_slice() else { panic!("{outcome:?}") };
    assert_eq!((told.state, told.diagnostic), (AdminDown, Diagnostic::AdministrativelyDown));
    assert_eq!(told.desired_min_transmit, Interval::SLOW);

    let (sent, changes) = run(&mut session, millis(10_000));
    assert_eq!(changes, []);
    assert!(
        sent.len() >= 9 && sent.iter().all(|(_, packet)| packet.state == AdminDown),
        "it goes on telling: {sent:?}"
    );

    let outcome = give(&mut session, millis(10_000), Event::AdminUp);
    assert_eq!(outcome.changes.iter().map(|change| change.to).collect::<Vec<_>>(), [Down]);
    hear(&mut session, millis(10_001), packet(Init));
    assert_eq!((session.state(), session.diagnostic()), (Up, Diagnostic::None));
}

#[test]
fn admin_up_is_nothing_to_a_session_that_is_not_held_down() {
    for state in [Down, Init, Up] {
        let mut session = in_state(state);
        assert_eq!(give(&mut session, millis(2), Event::AdminUp).changes, []);
        assert_eq!(session.state(), state);
    }
}

#[test]
fn held_down_by_the_other_side_is_no_failure() {
    let mut session = in_state(Up);
    let outcome = hear(&mut session, millis(2), packet(AdminDown));
    let [change] = outcome.changes.as_slice() else { panic!("{outcome:?}") };
    assert_eq!((change.to, change.diagnostic), (Down, Diagnostic::NeighborSignaledDown));
    assert_eq!(change.remote_state, AdminDown);
    assert!(!change.is_failure());
    // What it says is down without being held is a failure.
    let mut session = in_state(Up);
    let outcome = hear(&mut session, millis(2), packet(Down));
    assert!(outcome.changes.iter().all(Change::is_failure));
}

#[test]
fn a_change_carries_what_the_other_side_said() {
    let mut session = in_state(Up);
    let said = Packet { control_plane_independent: true, diagnostic: Diagnostic::ForwardingPlaneReset, ..packet(Down) };
    let outcome = hear(&mut session, millis(2), said);
    assert!(outcome.changes.iter().all(|change| {
        change.remote_control_plane_independent && change.remote_diagnostic == Diagnostic::ForwardingPlaneReset
    }));
}

#[test]
fn passive_waits_to_be_spoken_to() {
    let mut session = begun(Settings { passive: true, ..settings(50, 50, 3) });
    assert_eq!(run(&mut session, millis(10_000)).0, []);
    let answer = hear(&mut session, millis(10_000), packet(Down));
    assert_eq!(answer.sent.iter().map(|packet| packet.state).collect::<Vec<_>>(), [Init]);
    // And falls silent again with the other side.
    let (sent, _) = run(&mut session, millis(60_000));
    assert!(sent.iter().all(|(at, _)| *at < millis(13_500)), "{sent:?}");
}
