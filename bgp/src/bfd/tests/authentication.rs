//! Keyed SHA1.

use super::{
    super::{Authentication, Discard, Encoded, Key, authentication::Section},
    *,
};

fn keyed(meticulous: bool, key_id: u8, key: &[u8]) -> Settings {
    let key = Key::new(key).expect("a key");
    Settings { authentication: Some(Authentication { meticulous, key_id, key }), ..settings(50, 50, 3) }
}

fn packets(actions: Vec<Action>) -> Vec<Encoded> {
    actions
        .into_iter()
        .filter_map(|action| if let Action::Send(encoded) = action { Some(encoded) } else { None })
        .collect()
}

fn tick(session: &mut Session) -> Encoded {
    let now = session.next_deadline().unwrap_or_default();
    let mut actions = Vec::new();
    session.handle(now, Event::Tick, &mut actions).expect("accepted");
    packets(actions).pop().expect("a packet was due")
}

fn hear_octets(session: &mut Session, octets: &[u8]) -> Result<(), Discard> {
    let received = Packet::decode(octets).expect("a right packet");
    session.handle(millis(1), Event::Packet(&received), &mut Vec::new())
}

/// Made with another SHA1 over the octets of section 4.4: the mandatory part, then 04 1c 01 00, number 1, and "secret"
/// padded with zeros where the digest goes.
#[test]
fn the_digest_is_that_of_another_implementation() {
    let key = Key::new(b"secret").expect("a key");
    let authentication = Authentication { meticulous: false, key_id: 1, key };
    let mut sequences = super::super::authentication::Sequences::starting_at(0);
    let mut encoded =
        Packet { my_discriminator: discriminator(1), your_discriminator: None, ..packet(State::Down) }.encode();
    sequences.sign(&authentication, &mut encoded, true);
    let expected = "20 44 03 34 00000001 00000000 0000c350 0000c350 00000000 04 1c 01 00 00000001 615504e85581e276a2889b3257a9e79384334ddc";
    let expected: String = expected.split_whitespace().collect();
    let written: String = encoded.as_ref().iter().map(|octet| format!("{octet:02x}")).collect();
    assert_eq!(written, expected);
}

#[test]
fn two_ends_with_one_key_meet_and_others_do_not() {
    for meticulous in [false, true] {
        let mut one = Session::new(discriminator(1), keyed(meticulous, 7, b"secret"), 1);
        let mut other = Session::new(discriminator(2), keyed(meticulous, 7, b"secret"), 2);
        let first = tick(&mut one);
        assert_eq!(hear_octets(&mut other, first.as_ref()), Ok(()));
        assert_eq!(other.state(), State::Init);

        let refused = |settings: Settings| {
            let mut session = Session::new(discriminator(3), settings, 3);
            let outcome = hear_octets(&mut session, first.as_ref());
            assert_eq!(session.state(), State::Down);
            assert_eq!(session.remote().discriminator, None, "what is dropped leaves no trace");
            outcome
        };
        let kind = if meticulous { 5 } else { 4 };
        assert_eq!(refused(keyed(meticulous, 7, b"Secret")), Err(Discard::AuthenticationDigest));
        assert_eq!(refused(keyed(meticulous, 8, b"secret")), Err(Discard::AuthenticationKey { kind, key_id: 7 }));
        assert_eq!(refused(keyed(!meticulous, 7, b"secret")), Err(Discard::AuthenticationKey { kind, key_id: 7 }));
        assert_eq!(refused(settings(50, 50, 3)), Err(Discard::AuthenticationUnexpected));
        let unsigned = packet(State::Down).encode();
        assert_eq!(hear_octets(&mut one, unsigned.as_ref()), Err(Discard::AuthenticationMissing));

        let mut changed = first.as_ref().to_vec();
        changed[19] ^= 1;
        assert_eq!(hear_octets(&mut other, &changed), Err(Discard::AuthenticationDigest));
    }
}

#[test]
fn replayed_packets_are_dropped() {
    for meticulous in [false, true] {
        let mut one = Session::new(discriminator(1), keyed(meticulous, 7, b"secret"), 1);
        let mut other = Session::new(discriminator(2), keyed(meticulous, 7, b"secret"), 2);
        let sent: Vec<Encoded> = (0..12).map(|_| tick(&mut one)).collect();
        assert_eq!(hear_octets(&mut other, sent[1].as_ref()), Ok(()));
        // Equal content: only the meticulous form counts each packet.
        let again = hear_octets(&mut other, sent[1].as_ref());
        let older = hear_octets(&mut other, sent[0].as_ref());
        let nine_ahead = hear_octets(&mut other, sent[10].as_ref());
        assert_eq!(again.is_err(), meticulous, "{again:?}");
        assert_eq!(older.is_err(), meticulous, "{older:?}");
        assert_eq!(nine_ahead, Ok(()));
        let mut third = Session::new(discriminator(2), keyed(meticulous, 7, b"secret"), 2);
        assert_eq!(hear_octets(&mut third, sent[0].as_ref()), Ok(()));
        let ten_ahead = hear_octets(&mut third, sent[10].as_ref());
        assert_eq!(matches!(ten_ahead, Err(Discard::AuthenticationSequence { .. })), meticulous, "{ten_ahead:?}");
        // After twice the detection time the other side may have begun anew: 3 s times 2.
        third.handle(millis(6_001), Event::Tick, &mut Vec::new()).expect("accepted");
        assert_eq!(hear_octets(&mut third, sent[0].as_ref()), Ok(()));
    }
}

#[test]
fn other_kinds_are_read_and_refused_by_name() {
    let section = |octets: &[u8]| {
        let mut packet = packet(State::Down).encode().as_ref().to_vec();
        packet[1] |= 4;
        packet.extend_from_slice(octets);
        packet[3] = packet.len() as u8;
        packet
    };
    let md5 = |kind: u8| [&[kind, 24, 1, 0, 0, 0, 0, 9], [0xaa; 16].as_slice()].concat();
    for (octets, kind) in [(vec![1, 6, 1, b'a', b'b', b'c'], 1), (md5(2), 2), (md5(3), 3), (vec![9, 2], 9)] {
        let octets = section(&octets);
        let received = Packet::decode(&octets).expect("a right packet");
        assert_eq!(received.authentication.map(|section| section.kind()), Some(kind));
        let mut session = Session::new(discriminator(LOCAL), keyed(false, 1, b"abc"), 1);
        assert_eq!(hear_octets(&mut session, &octets), Err(Discard::AuthenticationUnsupported(kind)));
    }
    let octets = section(&md5(3));
    let received = Packet::decode(&octets).expect("a right packet");
    assert_eq!(
        received.authentication,
        Some(Section::Md5 { meticulous: true, key_id: 1, sequence: 9, digest: &[0xaa; 16] })
    );
    for bad in [
        vec![1, 3, 1],
        vec![1, 20, 1],
        [&[1, 20, 1][..], &[b'a'; 17]].concat(),
        vec![2, 23],
        [&[4, 27][..], &[0; 25]].concat(),
    ] {
        assert!(Packet::decode(&section(&bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn keys_have_one_to_twenty_octets_and_do_not_show() {
    assert!(Key::new(b"").is_none() && Key::new(&[1; 21]).is_none() && Key::new(&[1; 20]).is_some());
    assert_eq!(format!("{:?}", Key::new(b"secret")), "Some(Key(..))");
}
