use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::{
    family::{V4, V6},
    session::PeerKind,
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::{Builder, Origin},
        header::next_frame,
        update::{self, Context, FamilyContext, Update},
    },
};

/// The context of a receiver that mirrors a target.
fn context(target: &Target) -> Context {
    let of = |family| FamilyContext { enabled: true, add_path: *target.add_path.get(family), extended_next_hop: true };
    Context {
        kind: PeerKind::Internal,
        asn4: target.asn4,
        refuse_as_sets: false,
        families: PerFamily { ipv4: of(Family::Ipv4Unicast), ipv6: of(Family::Ipv6Unicast) },
    }
}

/// Cuts a buffer into messages, decodes each, and hands it to `see` with its octets.
fn for_each(octets: &[u8], target: &Target, mut see: impl FnMut(&Update<'_>, &[u8])) {
    let mut rest = octets;
    let mut scratch = Vec::new();
    while let Some(frame) = next_frame(rest, target.length_limit).expect("our own header") {
        let message = &rest[..HEADER_LEN + frame.body.len()];
        let update = update::decode(frame.body, &context(target), &mut scratch).expect("our own message");
        assert!(update.problems.is_empty(), "{:?}", update.problems);
        see(&update, message);
        rest = frame.rest;
    }
    assert!(rest.is_empty());
}

fn attributes(path: &[(SegmentKind, &[u32])], aggregator: u32) -> Vec<u8> {
    let path: Vec<(SegmentKind, Vec<Asn>)> =
        path.iter().map(|(kind, numbers)| (*kind, numbers.iter().copied().map(Asn).collect())).collect();
    let mut aggregator = aggregator.to_be_bytes().to_vec();
    aggregator.extend([192, 0, 2, 9]);
    Builder::new()
        .origin(Origin::Egp)
        .set(code::AS_PATH, write_segments(path.iter().map(|(kind, numbers)| (*kind, numbers.as_slice()))))
        .set(code::AGGREGATOR, aggregator)
        .number(code::MED, 7)
        .communities([0xffff_ff01, 65_001 << 16 | 5])
        .build()
}

fn v4(count: u32) -> impl Iterator<Item = (PathId, V4)> {
    (0..count).map(|index| {
        let [a, b, c, d] = (0x0a00_0000 | index << 4).to_be_bytes();
        (PathId(index), V4::from_wire(28, &[a, b, c, d]).expect("a prefix"))
    })
}

fn v6(count: u32) -> impl Iterator<Item = (PathId, V6)> {
    (0..count).map(|index| {
        let [a, b, c, d] = index.to_be_bytes();
        (PathId(index), V6::from_wire(64, &[0x20, 1, 0xd, 0xb8, a, b, c, d]).expect("a prefix"))
    })
}

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
const GLOBAL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

/// Announces prefixes with every next hop to every target, and reads all of it back.
fn announced<P: Prefix, I: Iterator<Item = (PathId, P)>>(target: &Target, next_hop: NextHop, prefixes: impl Fn() -> I) {
    use SegmentKind::{ConfedSequence, Sequence, Set};
    let attributes =
        attributes(&[(ConfedSequence, &[7]), (Sequence, &[65_001, 100_000]), (Set, &[9, 200_000])], 300_000);
    let (mut out, mut rest, mut packed) = (Vec::new(), prefixes().peekable(), Vec::new());
    while rest.peek().is_some() {
        packed.push(announce(&mut out, target, Attributes(&attributes), next_hop, &mut rest).expect("it fits"));
    }
    let (mut seen, mut packed) = (Vec::new(), packed.into_iter());
    for_each(&out, target, |update, message| {
        let packed = packed.next().expect("one for each message");
        let announced = update.announcements().next().expect("prefixes");
        assert_eq!(announced.next_hop, next_hop);
        assert_eq!(update.attributes, attributes);
        assert_eq!((packed.length, packed.prefixes), (message.len(), announced.nlri.len()));
        assert!(message.len() <= usize::from(target.length_limit.octets()));
        let mut next_hop_octets = Vec::new();
        next_hop.write(&mut next_hop_octets);
        assert_eq!(message[packed.next_hop_at..][..next_hop_octets.len()], next_hop_octets);
        let in_base_fields = P::FAMILY == Family::Ipv4Unicast && matches!(next_hop, NextHop::V4(_));
        assert_eq!(update.announced.is_some(), in_base_fields);
        let list_octets = usize::from(u16::from_be_bytes([message[HEADER_LEN + 2], message[HEADER_LEN + 3]]));
        let list = Attributes(&message[HEADER_LEN + LENGTHS_LEN..][..list_octets]);
        let codes: Vec<u8> =
            list.iter().map(|attribute| attribute.code).take_while(|code| *code != code::AS4_PATH).collect();
        if in_base_fields {
            assert!(codes.is_sorted(), "RFC 4271 section 5 wants ascending codes: {codes:?}");
        } else {
            assert_eq!(codes[0], code::MP_REACH_NLRI, "RFC 7606 section 5.1 wants it first");
        }
        seen.extend(announced.nlri.iter::<P>());
    });
    let with_ids = *target.add_path.get(P::FAMILY);
    let expected: Vec<(PathId, P)> =
        prefixes().map(|(id, prefix)| (if with_ids { id } else { PathId(0) }, prefix)).collect();
    assert_eq!(seen, expected);
}

fn targets() -> impl Iterator<Item = Target> {
    [(true, true), (true, false), (false, true), (false, false)].into_iter().flat_map(|(asn4, with_ids)| {
        [LengthLimit::Standard, LengthLimit::Extended].map(|length_limit| Target {
            asn4,
            length_limit,
            add_path: PerFamily { ipv4: with_ids, ipv6: with_ids },
        })
    })
}

#[test]
fn what_is_announced_is_read_again() {
    for target in targets() {
        for next_hop in [
            NextHop::V4(Ipv4Addr::new(192, 0, 2, 1)),
            NextHop::V6(LINK_LOCAL),
            NextHop::V6Pair { global: GLOBAL, link_local: LINK_LOCAL },
        ] {
            announced::<V4, _>(&target, next_hop, || v4(3_000));
        }
        announced::<V6, _>(&target, NextHop::V6(GLOBAL), || v6(3_000));
        announced::<V6, _>(&target, NextHop::V6Pair { global: GLOBAL, link_local: LINK_LOCAL }, || v6(1));
    }
}

#[test]
fn what_is_withdrawn_is_read_again() {
    for target in targets() {
        let (mut out, mut rest) = (Vec::new(), v4(3_000).peekable());
        while rest.peek().is_some() {
            withdraw(&mut out, &target, &mut rest).expect("it fits");
        }
        let mut count = 0;
        for_each(&out, &target, |update, _| count += update.withdrawn.len());
        assert_eq!(count, 3_000);
        out.clear();
        let mut rest = v6(3_000).peekable();
        while rest.peek().is_some() {
            withdraw(&mut out, &target, &mut rest).expect("it fits");
        }
        let mut seen = Vec::new();
        for_each(&out, &target, |update, _| {
            seen.extend(update.withdrawals().flat_map(|nlri| nlri.iter::<V6>()).map(|(_, prefix)| prefix));
            assert_eq!(update.end_of_rib, None);
        });
        assert_eq!(seen, v6(3_000).map(|(_, prefix)| prefix).collect::<Vec<_>>());
    }
}

/// As many prefixes as fit: the next one would not.
#[test]
fn messages_are_full() {
    let target = Target { asn4: true, ..Target::default() };
    let attributes = attributes(&[(SegmentKind::Sequence, &[65_001])], 65_001);
    let mut out = Vec::new();
    let next_hop = NextHop::V4(Ipv4Addr::new(192, 0, 2, 1));
    let packed =
        announce(&mut out, &target, Attributes(&attributes), next_hop, &mut v4(2_000).peekable()).expect("it fits");
    assert!((4_092..=4_096).contains(&packed.length), "{packed:?}");
    out.clear();
    let packed = announce(&mut out, &target, Attributes(&attributes), NextHop::V6(GLOBAL), &mut v6(2_000).peekable());
    assert!((4_088..=4_096).contains(&packed.expect("it fits").length));
    out.clear();
    let packed = withdraw(&mut out, &target, &mut v4(2_000).peekable()).expect("it fits");
    assert!((4_092..=4_096).contains(&packed.length), "{packed:?}");
}

#[test]
fn what_cannot_be_said_leaves_nothing_behind() {
    let target = Target::default();
    let next_hop = NextHop::V4(Ipv4Addr::new(192, 0, 2, 1));
    let long = Builder::new().communities((0..1_100).map(|index| index + 1)).build();
    let mut out = vec![9];
    let error = announce(&mut out, &target, Attributes(&long), next_hop, &mut v4(1).peekable());
    assert!(matches!(error, Err(EncodeError::AttributesTooLong(4_400..))), "{error:?}");
    let error = announce(&mut out, &target, Attributes(&long), NextHop::V6(GLOBAL), &mut v6(1).peekable());
    assert!(matches!(error, Err(EncodeError::AttributesTooLong(4_400..))), "{error:?}");
    let error = announce(&mut out, &target, Attributes(&[]), next_hop, &mut v4(0).peekable());
    assert_eq!(error, Err(EncodeError::NoPrefix));
    let error = announce(&mut out, &target, Attributes(&[]), next_hop, &mut v6(1).peekable());
    assert_eq!(error, Err(EncodeError::NextHopFamily));
    assert_eq!(withdraw(&mut out, &target, &mut v6(0).peekable()), Err(EncodeError::NoPrefix));
    assert_eq!(out, [9]);
}

#[test]
fn the_end_of_the_rib_is_recognized() {
    for family in Family::ALL {
        let mut out = Vec::new();
        end_of_rib(&mut out, family);
        let mut seen = None;
        for_each(&out, &Target { asn4: true, ..Target::default() }, |update, _| seen = update.end_of_rib);
        assert_eq!(seen, Some(family));
    }
    let mut out = Vec::new();
    keepalive(&mut out);
    assert_eq!(
        next_frame(&out, LengthLimit::Standard).expect("ours").expect("whole").header.message_type(),
        MessageType::Keepalive
    );
}

/// RFC 6793 section 4.2.2: AS4_PATH only where it says something, and never with confederations.
#[test]
fn four_octet_numbers_are_told_to_those_who_do_not_know_them() {
    use SegmentKind::{ConfedSequence, Sequence};
    for (path, aggregator, as4_path, as4_aggregator) in [
        (&[(Sequence, &[1_u32, 2][..])][..], 3, false, false),
        (&[(Sequence, &[1, 100_000])], 3, true, false),
        (&[(Sequence, &[1])], 100_000, false, true),
        (&[(ConfedSequence, &[100_000]), (Sequence, &[1])], 3, false, false),
    ] {
        let attributes = attributes(path, aggregator);
        let mut out = Vec::new();
        let target = Target::default();
        let next_hop = NextHop::V4(Ipv4Addr::new(192, 0, 2, 1));
        announce(&mut out, &target, Attributes(&attributes), next_hop, &mut v4(1).peekable()).expect("it fits");
        let list = Attributes(&out[HEADER_LEN + LENGTHS_LEN..out.len() - 5]);
        assert_eq!(list.get(code::AS4_PATH).is_some(), as4_path, "{path:?}");
        assert_eq!(list.get(code::AS4_AGGREGATOR).is_some(), as4_aggregator, "{path:?}");
        assert_eq!(list.get(code::AGGREGATOR).map(<[u8]>::len), Some(6));
    }
}

proptest! {
    #[test]
    fn any_lengths_of_prefixes_are_packed_and_read_again(
        lengths in prop::collection::vec(0_u8..=128, 1..600),
        asn4: bool,
        with_ids: bool,
    ) {
        let target = Target { asn4, add_path: PerFamily { ipv4: with_ids, ipv6: with_ids }, ..Target::default() };
        let prefixes: Vec<(PathId, V6)> = lengths
            .iter()
            .map(|length| {
                let octets = [0xff; 16];
                let octets = &octets[..crate::family::wire_octets(*length)];
                (PathId(0), V6::from_wire(*length, octets).expect("a prefix"))
            })
            .collect();
        let attributes = attributes(&[(SegmentKind::Sequence, &[65_001, 70_000])], 70_000);
        let (mut out, mut rest) = (Vec::new(), prefixes.iter().copied().peekable());
        while rest.peek().is_some() {
            announce(&mut out, &target, Attributes(&attributes), NextHop::V6(GLOBAL), &mut rest).expect("it fits");
        }
        let mut seen = Vec::new();
        for_each(&out, &target, |update, _| {
            seen.extend(update.announcements().flat_map(|announced| announced.nlri.iter::<V6>()));
        });
        prop_assert_eq!(seen, prefixes);
    }
}
