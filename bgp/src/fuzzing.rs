//! What the fuzz targets run, as ordinary functions.
//!
//! A target in `fuzz/` only calls one of these, and the test below feeds the committed corpus to the same functions on the
//! stable toolchain. Each returns normally for every input or panics on a broken promise.

mod policy;
mod wire;

pub use policy::{as_path_pattern, vrps};
pub use wire::{capability, context, notification, open, route_refresh, update};

use crate::{
    bfd::{Action, Discriminator, Event, Interval, Packet, Session, Settings, State},
    id::Moment,
    wire::header::{HEADER_LEN, LengthLimit, next_frame},
};

/// Cuts `data` into messages until it is incomplete or refused. The first octet chooses the length limit.
///
/// # Panics
///
/// When the parts of a frame are not the octets it was cut from, or when a refusal has no NOTIFICATION of at most two
/// data octets.
pub fn header(data: &[u8]) {
    let Some((choice, mut stream)) = data.split_first() else {
        return;
    };
    let limit = if choice & 1 == 0 { LengthLimit::Standard } else { LengthLimit::Extended };
    loop {
        match next_frame(stream, limit) {
            Ok(Some(frame)) => {
                let (header, after) = stream.split_at(HEADER_LEN);
                assert_eq!(frame.header.encode().as_slice(), header);
                assert_eq!(frame.body.len() + frame.rest.len(), after.len());
                stream = frame.rest;
            }
            Ok(None) => return,
            Err(error) => {
                assert!(error.notification().data.len() <= 2);
                return;
            }
        }
    }
}

/// Plays `data` to a BFD session: pieces of an octet that says what happens, an octet that says how much time has passed,
/// and where it is a packet, a length and the packet.
///
/// # Panics
///
/// When a packet without authentication is not written as it was read, when the session says something that its own
/// decoder refuses, when it is not up and sends faster than once a second, or when a tick leaves its deadline in the past.
pub fn bfd(data: &[u8]) {
    let Some((choice, mut script)) = data.split_first() else {
        return;
    };
    let interval = Interval::from_millis(1 + u32::from(choice & 0x3f));
    let settings = Settings {
        min_transmit: interval,
        min_receive: interval,
        passive: choice & 0x40 != 0,
        min_echo_transmit: if choice & 0x80 == 0 { Interval::NONE } else { interval },
        ..Settings::default()
    };
    let Some(number) = Discriminator::new(1) else { return };
    let mut session = Session::new(number, settings.clone(), u64::from(*choice));
    let mut now = Moment(0);
    while let Some((&[what, time], rest)) = script.split_first_chunk::<2>() {
        script = rest;
        now = now.after(Interval(1 << (time & 0x1f)).duration());
        let event = match what & 7 {
            0..=2 => {
                let Some((&length, rest)) = script.split_first() else { return };
                let (payload, rest) = rest.split_at(rest.len().min(usize::from(length)));
                script = rest;
                match Packet::decode(payload) {
                    Ok(received) => {
                        if received.authentication.is_none() {
                            // The length field may count more than the mandatory part.
                            let encoded = received.packet.encode();
                            let (written, read) = (encoded.as_ref(), received.octets);
                            assert!(written[..3] == read[..3] && written[4..] == read[4..written.len()]);
                        }
                        play(&mut session, now, Event::Packet(&received));
                    }
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
                continue;
            }
            3 => Event::AdminDown,
            4 => Event::AdminUp,
            5 => Event::Echo { sequence: u32::from(what) },
            6 => {
                let faster = Settings { min_transmit: Interval::from_millis(1 + u32::from(what)), ..settings.clone() };
                play(&mut session, now, Event::Configure(&faster));
                continue;
            }
            _ => Event::Tick,
        };
        play(&mut session, now, event);
    }
}

fn play(session: &mut Session, now: Moment, event: Event<'_>) {
    let mut actions = Vec::new();
    for event in [event, Event::Tick] {
        let (before, until) = (session.state(), actions.len());
        let _dropped = session.handle(now, event, &mut actions);
        let changes = actions[until..].iter().filter(|action| matches!(action, Action::Changed(_))).count();
        assert_eq!(changes, usize::from(session.state() != before));
    }
    assert!(session.next_deadline().is_none_or(|deadline| deadline > now));
    assert!(actions.len() <= 8, "one event led to {} actions", actions.len());
    for action in actions {
        if let Action::Send(encoded) = action {
            let packet = Packet::decode(encoded.as_ref()).expect("what is sent is right").packet;
            assert!(packet.state == State::Up || packet.desired_min_transmit >= Interval::SLOW);
            assert!(!(packet.poll && packet.is_final));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Feeds every file of a target's corpus to its function.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).expect("the corpus is committed") {
            let path = entry.expect("a folder entry").path();
            run(&fs::read(&path).expect("a readable input"));
            inputs += 1;
        }
        assert!(inputs > 0, "{} is empty", folder.display());
    }

    #[test]
    fn corpus_of_bfd() {
        replay("bfd", super::bfd);
    }

    #[test]
    fn corpus_of_open() {
        replay("open", super::open);
    }

    #[test]
    fn corpus_of_capability() {
        replay("capability", super::capability);
    }

    #[test]
    fn corpus_of_notification() {
        replay("notification", super::notification);
    }

    #[test]
    fn corpus_of_route_refresh() {
        replay("route_refresh", super::route_refresh);
    }

    #[test]
    fn corpus_of_update() {
        replay("update", super::update);
    }

    #[test]
    fn corpus_of_header() {
        replay("header", super::header);
    }

    #[test]
    fn corpus_of_vrps() {
        replay("vrps", super::vrps);
    }

    #[test]
    fn corpus_of_as_path_pattern() {
        replay("as_path_pattern", super::as_path_pattern);
    }
}
