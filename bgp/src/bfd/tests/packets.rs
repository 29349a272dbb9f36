//! Octets to packets and back.

use std::num::NonZeroU8;

use proptest::prelude::*;

use super::{super::packet::DecodeError, *};

/// RFC 5880 section 4.1 written down by hand: Up, P and C, multiplier 3, numbers 1 and 2, 50 ms, 60 ms, 70 ms.
const BY_HAND: [u8; 24] =
    [0x23, 0xe8, 3, 24, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0xc3, 0x50, 0, 0, 0xea, 0x60, 0, 1, 0x11, 0x70];

fn changed(place: usize, octet: u8) -> Vec<u8> {
    let mut octets = BY_HAND.to_vec();
    octets[place] = octet;
    octets
}

#[test]
fn a_packet_written_by_hand_is_read_and_written() {
    let received = Packet::decode(&BY_HAND).expect("a right packet");
    let expected = Packet {
        diagnostic: Diagnostic::NeighborSignaledDown,
        state: State::Up,
        poll: true,
        is_final: false,
        control_plane_independent: true,
        demand: false,
        multiplier: NonZeroU8::new(3).expect("not zero"),
        my_discriminator: discriminator(1),
        your_discriminator: Some(discriminator(2)),
        desired_min_transmit: Interval::from_millis(50),
        required_min_receive: Interval::from_millis(60),
        required_min_echo_receive: Interval::from_millis(70),
    };
    assert_eq!(received.packet, expected);
    assert_eq!(received.authentication, None);
    assert_eq!(expected.encode().as_ref(), BY_HAND);
}

#[test]
fn what_follows_the_length_is_not_looked_at() {
    let mut longer = BY_HAND.to_vec();
    longer.extend([0xff; 40]);
    assert_eq!(Packet::decode(&longer).expect("a right packet").octets, BY_HAND);
}

/// Section 6.8.6, in its order: where two things are wrong, the first is named.
#[test]
fn wrong_packets_are_refused() {
    let mut zeroed = changed(7, 0);
    zeroed[2] = 0;
    let cases: [(&str, Vec<u8>, DecodeError); 13] = [
        ("nothing", Vec::new(), DecodeError::Payload(0)),
        ("one octet short", BY_HAND[..23].to_vec(), DecodeError::Payload(23)),
        ("version 0", changed(0, 0x03), DecodeError::Version(0)),
        ("version 2", changed(0, 0x43), DecodeError::Version(2)),
        ("length 23", changed(3, 23), DecodeError::LengthTooSmall(23)),
        ("length 25 with A", [&[0x23, 0xec, 3, 25], &BY_HAND[4..], &[1]].concat(), DecodeError::LengthTooSmall(25)),
        ("length 25 of 24", changed(3, 25), DecodeError::LengthOverPayload { length: 25, payload: 24 }),
        ("multiplier 0", changed(2, 0), DecodeError::MultiplierZero),
        ("multiplier and discriminator 0", zeroed, DecodeError::MultiplierZero),
        ("multipoint", changed(1, 0xe9), DecodeError::Multipoint),
        ("my discriminator 0", changed(7, 0), DecodeError::MyDiscriminatorZero),
        ("up without our number", changed(11, 0), DecodeError::YourDiscriminatorZero(State::Up)),
        (
            "section of one octet",
            [&[0x23, 0xec, 3, 26], &BY_HAND[4..], &[4, 1]].concat(),
            DecodeError::AuthenticationLength { kind: 4, length: 1 },
        ),
    ];
    for (name, octets, expected) in cases {
        assert_eq!(Packet::decode(&octets).map(|received| received.packet), Err(expected), "{name}");
    }
    let mut unknown = changed(11, 0);
    for (state, allowed) in [(0x00, true), (0x40, true), (0x80, false), (0xc0, false)] {
        unknown[1] = state;
        assert_eq!(Packet::decode(&unknown).is_ok(), allowed, "state {state:#x} without our number");
    }
}

#[test]
fn numbers_of_diagnostics_are_those_of_the_rfc() {
    for number in 0..32 {
        let octets = changed(0, 0x20 | number);
        let diagnostic = Packet::decode(&octets).expect("a right packet").packet.diagnostic;
        assert_eq!(diagnostic.number(), number);
        assert_eq!(matches!(diagnostic, Diagnostic::Other(_)), number > 8, "{diagnostic}");
    }
}

prop_compose! {
    fn any_packet()(
        number in 0u8..32,
        state in prop::sample::select(State::ALL.to_vec()),
        flags in prop::array::uniform4(any::<bool>()),
        multiplier in 1u8..,
        my in 1u32..,
        your in any::<u32>(),
        intervals in prop::array::uniform3(any::<u32>()),
    ) -> Packet {
        let your = if matches!(state, State::Init | State::Up) { your.max(1) } else { your };
        let first = Packet::decode(&changed(0, 0x20 | number)).expect("a right packet").packet;
        Packet {
            state,
            poll: flags[0],
            is_final: flags[1],
            control_plane_independent: flags[2],
            demand: flags[3],
            multiplier: NonZeroU8::new(multiplier).expect("not zero"),
            my_discriminator: discriminator(my),
            your_discriminator: Discriminator::new(your),
            desired_min_transmit: Interval(intervals[0]),
            required_min_receive: Interval(intervals[1]),
            required_min_echo_receive: Interval(intervals[2]),
            ..first
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(packet in any_packet()) {
        let encoded = packet.encode();
        prop_assert_eq!(Packet::decode(encoded.as_ref()).expect("what we write is right").packet, packet);
    }

    #[test]
    fn what_is_read_is_written_again(octets in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut octets = octets;
        // Most random octets are refused for their version or length at once.
        if let [first, flags, _, length, ..] = octets.as_mut_slice() {
            *first = *first & 0x1f | 0x20;
            *flags &= !0x05;
            *length = 24;
        }
        if let Ok(received) = Packet::decode(&octets) {
            let encoded = received.packet.encode();
            prop_assert_eq!(encoded.as_ref(), received.octets);
        }
    }
}
