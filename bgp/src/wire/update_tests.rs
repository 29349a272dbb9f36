//! Messages that are right or framed wrongly. What RFC 7606 says about each attribute is in `update_rfc7606_tests.rs`.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::{
    family::{V4, V6},
    wire::{
        attributes::{Attributes, Origin, write_attribute},
        notification::{ErrorCode, update_error},
    },
};

/// An established session with both families.
pub(super) fn context(kind: PeerKind, asn4: bool) -> Context {
    let family = FamilyContext { enabled: true, add_path: false, extended_next_hop: false };
    Context { kind, asn4, refuse_as_sets: false, families: PerFamily { ipv4: family, ipv6: family } }
}

/// A body out of its three fields.
pub(super) fn body(withdrawn: &[u8], list: &[u8], announced: &[u8]) -> Vec<u8> {
    let length = |field: &[u8]| u16::try_from(field.len()).expect("a short field").to_be_bytes();
    [&length(withdrawn), withdrawn, &length(list), list, announced].concat()
}

/// A list of attributes with exactly these flags.
pub(super) fn list(attributes: &[(u8, u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (flags, code, value) in attributes {
        write_attribute(&mut out, *flags, *code, value);
    }
    out
}

pub(super) const ORIGIN: (u8, u8, &[u8]) = (0x40, code::ORIGIN, &[0]);
pub(super) const PATH: (u8, u8, &[u8]) = (0x40, code::AS_PATH, &[2, 2, 0, 0, 0xfd, 0xe9, 0, 1, 0x86, 0xa0]);
pub(super) const NARROW_PATH: (u8, u8, &[u8]) = (0x40, code::AS_PATH, &[2, 2, 0xfd, 0xe9, 0x5b, 0xa0]);
pub(super) const NEXT_HOP: (u8, u8, &[u8]) = (0x40, code::NEXT_HOP, &[192, 0, 2, 1]);
/// 198.51.100.0/24
pub(super) const PREFIX: [u8; 4] = [24, 198, 51, 100];

#[test]
fn an_ordinary_update_is_read() {
    let octets = body(
        &[8, 10],
        &list(&[ORIGIN, PATH, NEXT_HOP, (0x80, code::MED, &[0, 0, 0, 7]), (0xc0, code::COMMUNITIES, &[0xff; 4])]),
        &PREFIX,
    );
    let mut scratch = Vec::new();
    let update = decode(&octets, &context(PeerKind::External, true), &mut scratch).expect("well-formed");
    assert!(update.problems.is_empty() && !update.treat_as_withdraw);
    let withdrawn: Vec<String> = update.withdrawn.iter::<V4>().map(|(_, prefix)| prefix.to_string()).collect();
    assert_eq!(withdrawn, ["10.0.0.0/8"]);
    let announced = update.announced.expect("prefixes");
    assert_eq!(announced.next_hop, NextHop::V4(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(announced.nlri.len(), 1);
    let attributes = Attributes(update.attributes);
    assert_eq!(attributes.origin(), Origin::Igp);
    assert_eq!(attributes.as_path().to_string(), "65001 100000");
    assert_eq!(attributes.med(), Some(7));
    assert_eq!(attributes.communities().collect::<Vec<_>>(), [u32::MAX]);
    assert_eq!(attributes.get(code::NEXT_HOP), None);
    assert_eq!((update.mp_reach, update.mp_unreach, update.end_of_rib), (None, None, None));
}

/// However a speaker orders and flags its attributes, equal paths have equal octets.
#[test]
fn the_canonical_form_does_not_depend_on_the_sender() {
    let communities: &[u8] = &[0, 1, 0, 2];
    let canonical = list(&[ORIGIN, PATH, (0xc0, code::COMMUNITIES, communities), (0xe0, 40, &[9]), (0xe0, 200, &[1])]);
    let mut long_form = vec![0x50, code::AS_PATH, 0, 10];
    long_form.extend(PATH.2);
    for octets in [
        list(&[ORIGIN, PATH, NEXT_HOP, (0xc0, code::COMMUNITIES, communities), (0xe0, 40, &[9]), (0xe0, 200, &[1])]),
        list(&[(0xc0, 200, &[1]), (0xe0, 40, &[9]), (0xc0, code::COMMUNITIES, communities), NEXT_HOP, PATH, ORIGIN]),
        // Extended length where it is not needed, Partial where it means nothing, reserved bits, a non-transitive stranger.
        [
            list(&[(0x6f, code::ORIGIN, &[0]), NEXT_HOP, (0x80, 201, &[7])]),
            long_form,
            list(&[(0xc0, code::COMMUNITIES, communities), (0xcf, 40, &[9]), (0xc0, 200, &[1])]),
        ]
        .concat(),
    ] {
        let octets = body(&[], &octets, &PREFIX);
        let mut scratch = vec![1; 100];
        let update = decode(&octets, &context(PeerKind::External, true), &mut scratch).expect("well-formed");
        assert!(update.problems.is_empty(), "{:?}", update.problems);
        assert_eq!(update.attributes, canonical);
    }
    let partial = list(&[ORIGIN, PATH, NEXT_HOP, (0xe0, code::COMMUNITIES, communities)]);
    let mut scratch = Vec::new();
    let octets = body(&[], &partial, &PREFIX);
    let update = decode(&octets, &context(PeerKind::External, true), &mut scratch).expect("well-formed");
    assert_eq!(update.attributes, list(&[ORIGIN, PATH, (0xe0, code::COMMUNITIES, communities)]), "Partial stays");
}

#[test]
fn numbers_of_two_octets_become_four() {
    let as4_path: &[u8] = &[2, 1, 0, 1, 0x86, 0xa0];
    let as4_aggregator: &[u8] = &[0, 1, 0x86, 0xa0, 10, 0, 0, 9];
    let trans_aggregator: (u8, u8, &[u8]) = (0xc0, code::AGGREGATOR, &[0x5b, 0xa0, 10, 0, 0, 9]);
    let other_aggregator: (u8, u8, &[u8]) = (0xc0, code::AGGREGATOR, &[0, 5, 10, 0, 0, 9]);
    let cases: [(Vec<u8>, &str, Option<u32>); 5] = [
        (list(&[ORIGIN, NARROW_PATH, NEXT_HOP]), "65001 23456", None),
        (list(&[ORIGIN, NARROW_PATH, NEXT_HOP, (0xc0, code::AS4_PATH, as4_path)]), "65001 100000", None),
        (
            list(&[
                ORIGIN,
                NARROW_PATH,
                NEXT_HOP,
                trans_aggregator,
                (0xc0, code::AS4_PATH, as4_path),
                (0xc0, code::AS4_AGGREGATOR, as4_aggregator),
            ]),
            "65001 100000",
            Some(100_000),
        ),
        // Somebody who knows nothing of four octets has aggregated since: what was said before counts for nothing.
        (
            list(&[
                ORIGIN,
                NARROW_PATH,
                NEXT_HOP,
                other_aggregator,
                (0xc0, code::AS4_PATH, as4_path),
                (0xc0, code::AS4_AGGREGATOR, as4_aggregator),
            ]),
            "65001 23456",
            Some(5),
        ),
        (
            list(&[ORIGIN, NARROW_PATH, NEXT_HOP, other_aggregator, (0xc0, code::AS4_PATH, as4_path)]),
            "65001 100000",
            Some(5),
        ),
    ];
    for (octets, path, aggregator) in cases {
        let octets = body(&[], &octets, &PREFIX);
        let mut scratch = Vec::new();
        let update = decode(&octets, &context(PeerKind::External, false), &mut scratch).expect("well-formed");
        assert!(update.problems.is_empty(), "{:?}", update.problems);
        let attributes = Attributes(update.attributes);
        assert_eq!(attributes.as_path().to_string(), path);
        assert_eq!(attributes.aggregator().map(|aggregator| aggregator.asn.0), aggregator);
        assert_eq!(attributes.get(code::AS4_PATH), None);
    }
    // 70 numbers need 142 octets and then 282, so that the length gets a second octet.
    let long = [&[2, 70][..], &[0, 9].repeat(70)].concat();
    let octets = body(&[], &list(&[ORIGIN, (0x40, code::AS_PATH, &long), NEXT_HOP]), &PREFIX);
    let mut scratch = Vec::new();
    let update = decode(&octets, &context(PeerKind::External, false), &mut scratch).expect("well-formed");
    assert_eq!(Attributes(update.attributes).as_path().hops(), 70);
    assert_eq!(update.attributes.len(), 4 + 4 + 282);
}

fn reach(afi: u8, next_hop: &[u8], prefixes: &[u8]) -> Vec<u8> {
    [&[0, afi, 1, u8::try_from(next_hop.len()).expect("a length")], next_hop, &[0], prefixes].concat()
}

const GLOBAL: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

#[test]
fn next_hops_of_sixteen_and_thirty_two_octets_are_read() {
    let global = Ipv6Addr::from(GLOBAL);
    let link_local = Ipv6Addr::from(LINK_LOCAL);
    for (next_hop, expected) in [
        (GLOBAL.to_vec(), NextHop::V6(global)),
        (LINK_LOCAL.to_vec(), NextHop::V6(link_local)),
        ([GLOBAL, LINK_LOCAL].concat(), NextHop::V6Pair { global, link_local }),
        // What FRR and others send on links without a global address.
        ([[0; 16], LINK_LOCAL].concat(), NextHop::V6(link_local)),
        ([LINK_LOCAL, LINK_LOCAL].concat(), NextHop::V6(link_local)),
        ([GLOBAL, GLOBAL].concat(), NextHop::V6(global)),
        ([GLOBAL, [0; 16]].concat(), NextHop::V6(global)),
    ] {
        for (afi, prefixes) in [(1, &PREFIX[..]), (2, &[32, 0x20, 1, 0xd, 0xb8])] {
            let mut context = context(PeerKind::External, true);
            context.families.ipv4.extended_next_hop = true;
            let value = reach(afi, &next_hop, prefixes);
            let octets = body(&[], &list(&[(0x80, code::MP_REACH_NLRI, &value), ORIGIN, PATH]), &[]);
            let mut scratch = Vec::new();
            let update = decode(&octets, &context, &mut scratch).expect("well-formed");
            let announced = update.mp_reach.expect("prefixes");
            assert_eq!(announced.next_hop, expected);
            assert_eq!((announced.nlri.len(), update.announced), (1, None));
            assert_eq!(update.attributes, list(&[ORIGIN, PATH]));
        }
    }
}

#[test]
fn ipv4_may_come_in_both_ways_at_once() {
    let value = reach(1, &[192, 0, 2, 2], &[8, 10]);
    let octets = body(&[], &list(&[(0x80, code::MP_REACH_NLRI, &value), ORIGIN, PATH, NEXT_HOP]), &PREFIX);
    let mut scratch = Vec::new();
    let update = decode(&octets, &context(PeerKind::External, true), &mut scratch).expect("well-formed");
    let announced: Vec<String> = update
        .announcements()
        .flat_map(|announced| {
            announced.nlri.iter::<V4>().map(move |(_, prefix)| format!("{prefix} {}", announced.next_hop))
        })
        .collect();
    assert_eq!(announced, ["198.51.100.0/24 192.0.2.1", "10.0.0.0/8 192.0.2.2"]);
}

#[test]
fn path_identifiers_are_read_where_they_were_negotiated() {
    let mut context = context(PeerKind::External, true);
    context.families.ipv6.add_path = true;
    let value = reach(2, &GLOBAL, &[0, 0, 0, 9, 16, 0x20, 1]);
    let unreach = [0, 2, 1, 0, 0, 0, 8, 16, 0x20, 1];
    let octets = body(
        &[8, 10],
        &list(&[(0x80, code::MP_REACH_NLRI, &value), ORIGIN, PATH, (0x80, code::MP_UNREACH_NLRI, &unreach)]),
        &[],
    );
    let mut scratch = Vec::new();
    let update = decode(&octets, &context, &mut scratch).expect("well-formed");
    assert_eq!(update.withdrawn.len(), 1);
    let announced: Vec<u32> = update.mp_reach.expect("prefixes").nlri.iter::<V6>().map(|(id, _)| id.0).collect();
    let withdrawn: Vec<u32> = update.mp_unreach.expect("prefixes").iter::<V6>().map(|(id, _)| id.0).collect();
    assert_eq!((announced, withdrawn), (vec![9], vec![8]));
}

#[test]
fn end_of_rib_is_recognized_in_all_its_forms() {
    let mut scratch = Vec::new();
    let context = context(PeerKind::External, true);
    for (octets, expected) in [
        (body(&[], &[], &[]), Some(Family::Ipv4Unicast)),
        (body(&[], &list(&[(0x80, code::MP_UNREACH_NLRI, &[0, 2, 1])]), &[]), Some(Family::Ipv6Unicast)),
        (body(&[], &[0x90, code::MP_UNREACH_NLRI, 0, 3, 0, 2, 1], &[]), Some(Family::Ipv6Unicast)),
        (body(&[], &list(&[(0x80, code::MP_UNREACH_NLRI, &[0, 1, 1])]), &[]), Some(Family::Ipv4Unicast)),
        (body(&[8, 10], &[], &[]), None),
        (body(&[], &list(&[(0x80, code::MP_UNREACH_NLRI, &[0, 2, 1, 0])]), &[]), None),
        (body(&[8, 10], &list(&[(0x80, code::MP_UNREACH_NLRI, &[0, 2, 1])]), &[]), None),
        (body(&[], &list(&[ORIGIN, (0x80, code::MP_UNREACH_NLRI, &[0, 2, 1])]), &[]), None),
        (body(&[], &list(&[(0x80, code::MP_UNREACH_NLRI, &[0, 2, 1]), (0xc0, 99, &[])]), &[]), None),
        (body(&[], &list(&[(0x80, code::MP_UNREACH_NLRI, &[0, 1, 128])]), &[]), None),
    ] {
        let update = decode(&octets, &context, &mut scratch).expect("well-formed");
        assert_eq!(update.end_of_rib, expected, "{octets:?}");
    }
}

#[test]
fn families_that_were_not_negotiated_are_ignored() {
    let mut context = context(PeerKind::External, true);
    context.families.ipv4.enabled = false;
    let multicast = [0, 1, 2, 4, 192, 0, 2, 1, 0, 8, 224];
    let vpn_unreach = [0, 1, 128, 1, 2, 3];
    for (octets, family) in [
        (body(&[8, 10], &list(&[ORIGIN, PATH, NEXT_HOP]), &PREFIX), (1, 1)),
        (body(&[], &list(&[(0x80, code::MP_REACH_NLRI, &multicast), ORIGIN, PATH]), &[]), (1, 2)),
        (body(&[], &list(&[(0x80, code::MP_UNREACH_NLRI, &vpn_unreach)]), &[]), (1, 128)),
        (
            body(&[], &list(&[(0x80, code::MP_REACH_NLRI, &reach(1, &[192, 0, 2, 1], &PREFIX)), ORIGIN, PATH]), &[]),
            (1, 1),
        ),
    ] {
        let mut scratch = Vec::new();
        let update = decode(&octets, &context, &mut scratch).expect("well-formed");
        let (afi, safi) = family;
        assert_eq!(update.problems.as_slice()[0].fault, Fault::Family { afi, safi });
        assert_eq!(update.announcements().count() + update.withdrawals().count(), 0);
        assert!(!update.treat_as_withdraw);
    }
}

/// RFC 4271 section 6.3 and RFC 7606 sections 3 to 5: what leaves no prefix that could be found resets the session.
#[test]
fn framing_that_contradicts_itself_resets_the_session() {
    let context = context(PeerKind::External, true);
    let mut scratch = Vec::new();
    let mut error = |octets: &[u8]| decode(octets, &context, &mut scratch).expect_err("a reset").notification();
    for octets in [
        &[][..],
        &[0],
        &[0, 0],
        &[0, 0, 0],
        &[0, 1, 0, 0],
        &[0, 5, 8, 10, 0, 0],
        &[0, 0, 0, 1],
        &[0, 0, 0, 9, 0x40, 1, 1, 0],
        &[0, 0, 0xff, 0xff, 0],
    ] {
        let notification = error(octets);
        assert_eq!((notification.code, notification.subcode), (ErrorCode::Update, update_error::MALFORMED_LIST));
        assert!(notification.data.is_empty());
    }
    let mut unread = Vec::new();
    let text = decode(&[0], &context, &mut unread).expect_err("a reset").to_string();
    assert_eq!(text, "UPDATE: lengths of the fields contradict each other");
    for octets in [
        body(&[33, 1, 2, 3, 4, 5], &[], &[]),
        body(&[24, 1, 2], &[], &[]),
        body(&[], &list(&[ORIGIN, PATH, NEXT_HOP]), &[33, 1, 2, 3, 4, 5]),
        body(&[], &list(&[ORIGIN, PATH, NEXT_HOP]), &[24, 1]),
    ] {
        assert_eq!(error(&octets).subcode, update_error::INVALID_NETWORK);
    }
}

#[test]
fn what_is_kept_of_many_problems_is_bounded() {
    let mut octets = list(&[ORIGIN, PATH, NEXT_HOP]);
    for _ in 0..1_000 {
        octets.extend(list(&[ORIGIN]));
    }
    let octets = body(&[], &octets, &PREFIX);
    let mut scratch = Vec::new();
    let update = decode(&octets, &context(PeerKind::External, true), &mut scratch).expect("well-formed");
    assert_eq!((update.problems.as_slice().len(), update.problems.more()), (PROBLEMS_MAX, 1_000 - PROBLEMS_MAX));
    assert!(!update.treat_as_withdraw);
    assert_eq!(update.problems.as_slice()[0].to_string(), "ORIGIN: it is there twice: it is ignored");
}

#[test]
fn repeated_large_communities_are_dropped() {
    let community = |index: u8| [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, index];
    let short = [community(3), community(1), community(3), community(2)];
    let long: Vec<[u8; 12]> = (0..100).map(|index| community(index % 50)).collect();
    for (values, expected) in [
        (&short[..], vec![community(3), community(1), community(2)]),
        (&long, (0..50).map(community).collect()),
        (&long[..50], (0..50).map(community).collect()),
    ] {
        let octets = body(
            &[],
            &list(&[ORIGIN, PATH, NEXT_HOP, (0xc0, code::LARGE_COMMUNITIES, values.as_flattened())]),
            &PREFIX,
        );
        let mut scratch = Vec::new();
        let update = decode(&octets, &context(PeerKind::External, true), &mut scratch).expect("well-formed");
        assert!(update.problems.is_empty());
        assert_eq!(Attributes(update.attributes).get(code::LARGE_COMMUNITIES), Some(expected.as_flattened()));
    }
}

proptest! {
    /// Nothing panics, and what comes out is consistent, whatever comes in.
    #[test]
    fn any_octets_have_an_outcome(octets in prop::collection::vec(any::<u8>(), 0..300), asn4: bool, kind in 0..3) {
        let kind = [PeerKind::External, PeerKind::Internal, PeerKind::Confederation][kind as usize];
        let mut scratch = Vec::new();
        if let Ok(update) = decode(&octets, &context(kind, asn4), &mut scratch) {
            prop_assert_eq!(update.treat_as_withdraw, update.problems.worst().is_some());
            prop_assert!(!update.treat_as_withdraw || update.announcements().count() == 0);
        }
    }
}
