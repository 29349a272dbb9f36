use std::{
    io,
    net::Ipv4Addr,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::sync_channel,
    },
};

use nix::sys::eventfd::EfdFlags;

use super::*;
use crate::speaker::bfd::addresses::Own;

/// More than one pass adds.
const SESSIONS: u8 = 100;

/// How often the addresses were listed. Nobody else of this process counts here.
static READINGS: AtomicU32 = AtomicU32::new(0);

/// A node that has nothing to send echo packets from.
fn nothing_to_send_from() -> io::Result<Vec<Own>> {
    READINGS.fetch_add(1, Ordering::Relaxed);
    let net = "127.0.0.1/8".parse().map_err(io::Error::other)?;
    Ok(vec![Own { link: "lo".to_owned(), is_loopback: true, net }])
}

fn thread(events: mpsc::Sender<BfdEvent>) -> Thread {
    let (_commands, queue) = sync_channel(1);
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd"));
    let mut thread = Thread::new(queue, wake, events, 1);
    thread.addresses = Addresses::new(nothing_to_send_from);
    thread
}

fn session(number: u8, settings: Settings) -> NewSession {
    NewSession {
        id: SessionId(number.into()),
        hops: Hops::Single,
        remote: Ipv4Addr::new(127, 77, 0, number + 1).into(),
        local: Ipv4Addr::new(127, 0, 0, 1).into(),
        device: Some(Device { index: 1, name: "lo".to_owned() }),
        ttl_min: 255,
        settings,
    }
}

/// A peer that was taken out before the session came up leaves it down, as it was; whoever waits for it is told.
#[test]
fn a_peer_that_is_taken_out_is_told_of_although_the_session_was_down_already() {
    let (events, mut told) = mpsc::channel(4);
    let mut thread = thread(events);
    thread.add(session(1, Settings::default()));
    let (number, now) = (thread.by_id[&SessionId(1)], thread.now());
    let mut hear = |state| {
        let mine = Discriminator::new(77).expect("not zero");
        let packet = Packet {
            diagnostic: Diagnostic::None,
            state,
            poll: false,
            is_final: false,
            control_plane_independent: false,
            demand: false,
            multiplier: std::num::NonZeroU8::MIN,
            my_discriminator: mine,
            your_discriminator: Some(number),
            desired_min_transmit: Interval::from_millis(50),
            required_min_receive: Interval::from_millis(50),
            required_min_echo_receive: Interval::NONE,
        };
        let octets = packet.encode();
        let received = Packet::decode(octets.as_ref()).expect("a packet");
        thread.give_at(now, number, Event::Packet(&received));
        thread.tell();
        told.try_recv().ok().map(|event| (event.state, event.remote_admin_down))
    };
    assert_eq!(hear(State::AdminDown), Some((State::Down, true)));
    assert_eq!(hear(State::AdminDown), None);
    assert_eq!(hear(State::Down), Some((State::Init, false)));
}

/// Every session that wants echo packets asks for the addresses of the node, when it begins and again while it does not find
/// what it needs.
#[test]
fn sessions_share_one_reading_of_the_addresses() {
    let (events, _heard) = mpsc::channel(1);
    let mut thread = thread(events);
    let settings = Settings {
        min_transmit: Interval::from_millis(50),
        min_receive: Interval::from_millis(50),
        min_echo_transmit: Interval::from_millis(50),
        ..Settings::default()
    };
    for number in 0..SESSIONS {
        thread.add(session(number, settings.clone()));
    }
    let problems = |thread: &Thread| {
        let sessions = thread.status().sessions;
        sessions.iter().filter(|it| it.echo.problem.as_deref().is_some_and(|why| why.contains("to send from"))).count()
    };
    assert_eq!((problems(&thread), READINGS.load(Ordering::Relaxed)), (SESSIONS.into(), 1));
    // Whoever has no address looks again, all with the same reading.
    for readings in 2..5 {
        thread.origin -= Duration::from_secs(5);
        let now = thread.now();
        thread.run_timers(now);
        assert_eq!((problems(&thread), READINGS.load(Ordering::Relaxed)), (SESSIONS.into(), readings));
    }
}
