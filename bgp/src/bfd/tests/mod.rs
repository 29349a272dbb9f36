//! Tests of the room: packets, the state machine, timers, authentication, and two ends that talk over a bad channel.

mod authentication;
mod channel;
mod echo;
mod machine;
mod packets;
mod selection;
mod timers;

use std::num::NonZeroU8;

use super::{Action, Change, Diagnostic, Discriminator, Event, Interval, Packet, Session, Settings, State};
use crate::id::Moment;

/// The other side's number in tests with one session.
const REMOTE: u32 = 0xb0b;
/// Our number.
const LOCAL: u32 = 0xa11ce;

fn discriminator(number: u32) -> Discriminator {
    Discriminator::new(number).expect("not zero")
}

fn millis(millis: u64) -> Moment {
    Moment(millis * 1_000)
}

fn settings(transmit_ms: u32, receive_ms: u32, multiplier: u8) -> Settings {
    Settings {
        min_transmit: Interval::from_millis(transmit_ms),
        min_receive: Interval::from_millis(receive_ms),
        multiplier: NonZeroU8::new(multiplier).expect("not zero"),
        ..Settings::default()
    }
}

/// A packet of the other side: 50 ms each way, times 3, knowing our number.
fn packet(state: State) -> Packet {
    Packet {
        diagnostic: Diagnostic::None,
        state,
        poll: false,
        is_final: false,
        control_plane_independent: false,
        demand: false,
        multiplier: NonZeroU8::new(3).expect("not zero"),
        my_discriminator: discriminator(REMOTE),
        your_discriminator: Some(discriminator(LOCAL)),
        desired_min_transmit: Interval::from_millis(50),
        required_min_receive: Interval::from_millis(50),
        required_min_echo_receive: Interval::NONE,
    }
}

/// Things with the moment they happened at.
type Timed<T> = Vec<(Moment, T)>;

/// What one event led to.
#[derive(Debug, Default)]
struct Outcome {
    sent: Vec<Packet>,
    echoes: Vec<u32>,
    changes: Vec<Change>,
}

fn sort(actions: Vec<Action>) -> Outcome {
    let mut outcome = Outcome::default();
    for action in actions {
        match action {
            Action::Send(encoded) => {
                outcome.sent.push(Packet::decode(encoded.as_ref()).expect("what is sent is right").packet);
            }
            Action::SendEcho { sequence } => outcome.echoes.push(sequence),
            Action::Changed(change) => outcome.changes.push(change),
        }
    }
    outcome
}

fn give(session: &mut Session, now: Moment, event: Event<'_>) -> Outcome {
    let mut actions = Vec::new();
    session.handle(now, event, &mut actions).expect("accepted");
    sort(actions)
}

fn hear(session: &mut Session, now: Moment, packet: Packet) -> Outcome {
    let encoded = packet.encode();
    let received = Packet::decode(encoded.as_ref()).expect("a right packet");
    let mut actions = Vec::new();
    // A session that is held down drops what it hears, and tests look at the rest of it.
    let _dropped = session.handle(now, Event::Packet(&received), &mut actions);
    sort(actions)
}

/// A session that sent its first packet at moment 0.
fn begun(settings: Settings) -> Session {
    let mut session = Session::new(discriminator(LOCAL), settings, 7);
    give(&mut session, Moment(0), Event::Tick);
    session
}

/// A session that came up at 1 ms and whose poll sequence has ended.
fn up(settings: Settings) -> Session {
    let mut session = begun(settings);
    hear(&mut session, millis(1), packet(State::Init));
    hear(&mut session, millis(1), Packet { is_final: true, ..packet(State::Up) });
    assert_eq!(session.state(), State::Up);
    session
}

/// Lets time pass until `until`, tick by tick as the session asks for it. Gives the moments of what was sent.
fn run(session: &mut Session, until: Moment) -> (Timed<Packet>, Timed<Change>) {
    let (mut sent, mut changes) = (Vec::new(), Vec::new());
    while let Some(deadline) = session.next_deadline().filter(|deadline| *deadline <= until) {
        let outcome = give(session, deadline, Event::Tick);
        assert!(session.next_deadline().is_none_or(|next| next > deadline), "a tick that is due is used up");
        sent.extend(outcome.sent.into_iter().map(|packet| (deadline, packet)));
        changes.extend(outcome.changes.into_iter().map(|change| (deadline, change)));
    }
    (sent, changes)
}
