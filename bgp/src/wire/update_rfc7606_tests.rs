//! One row for each attribute and each way in which it can be malformed, with what RFC 7606 (or the attribute's own RFC) says
//! must follow.

use super::{
    tests::{NARROW_PATH, NEXT_HOP, ORIGIN, PATH, PREFIX, body, context, list},
    *,
};
use crate::{
    family::V4,
    wire::{attributes::Attributes, notification::update_error},
};

/// What a row expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing is wrong.
    Used,
    /// The attribute is ignored.
    Discard,
    /// Prefixes are treated as withdrawn.
    Withdraw,
    /// NOTIFICATION with this subcode.
    Reset(u8),
}

use Outcome::{Discard, Reset, Used, Withdraw};
use PeerKind::{Confederation, External, Internal};

/// Decodes a message with one prefix and says what became of it; `code` is the attribute that is to be blamed.
fn outcome(context: &Context, octets: &[u8], code: u8) -> Outcome {
    let mut scratch = Vec::new();
    let update = match decode(octets, context, &mut scratch) {
        Ok(update) => update,
        Err(error) => {
            assert_eq!(error.code, code, "{error}");
            return Reset(error.notification().subcode);
        }
    };
    let prefixes = |nlri: Nlri<'_>| nlri.iter::<V4>().map(|(_, prefix)| prefix.to_string()).collect::<Vec<_>>();
    if update.treat_as_withdraw {
        assert_eq!(update.problems.worst().map(|problem| problem.code), Some(code), "{:?}", update.problems);
        assert_eq!(update.withdrawals().flat_map(prefixes).collect::<Vec<_>>(), ["198.51.100.0/24"]);
        assert!(update.announcements().next().is_none() && update.attributes.is_empty());
        return Withdraw;
    }
    assert_eq!(update.announcements().flat_map(|a| prefixes(a.nlri)).collect::<Vec<_>>(), ["198.51.100.0/24"]);
    match update.problems.as_slice() {
        [] => Used,
        [problem] => {
            assert_eq!((problem.code, problem.disposition), (code, Disposition::Discard));
            Discard
        }
        more => panic!("more than one problem: {more:?}"),
    }
}

/// The mandatory attributes with this one added or put in the place of the one with its code.
fn with(asn4: bool, attribute: (u8, u8, &[u8])) -> Vec<u8> {
    let mut attributes = vec![ORIGIN, if asn4 { PATH } else { NARROW_PATH }, NEXT_HOP];
    attributes.retain(|(_, code, _)| *code != attribute.1);
    attributes.push(attribute);
    attributes.sort_by_key(|(_, code, _)| *code);
    body(&[], &list(&attributes), &PREFIX)
}

type Row<'a> = (&'a str, PeerKind, bool, (u8, u8, &'a [u8]), Outcome);

fn check(rows: &[Row<'_>]) {
    for (name, kind, asn4, attribute, expected) in rows {
        let octets = with(*asn4, *attribute);
        assert_eq!(outcome(&context(*kind, *asn4), &octets, attribute.1), *expected, "{name}: {attribute:02x?}");
    }
}

/// Sections 7.1 to 7.7.
#[test]
fn attributes_of_rfc_4271() {
    check(&[
        ("7.1 origin", External, true, (0x40, 1, &[2]), Used),
        ("7.1 origin: length", External, true, (0x40, 1, &[]), Withdraw),
        ("7.1 origin: length", External, true, (0x40, 1, &[0, 0]), Withdraw),
        ("7.1 origin: value", External, true, (0x40, 1, &[3]), Withdraw),
        ("7.2 path", External, true, (0x40, 2, &[]), Used),
        ("7.2 path: kind", External, true, (0x40, 2, &[0, 1, 0, 0, 0, 1]), Withdraw),
        ("7.2 path: kind", External, true, (0x40, 2, &[5, 1, 0, 0, 0, 1]), Withdraw),
        ("7.2 path: overrun", External, true, (0x40, 2, &[2, 2, 0, 0, 0, 1]), Withdraw),
        ("7.2 path: underrun", External, true, (0x40, 2, &[2, 1, 0, 0, 0, 1, 2]), Withdraw),
        ("7.2 path: empty segment", External, true, (0x40, 2, &[2, 0]), Withdraw),
        ("7.2 path: two octets instead of four", External, true, (0x40, 2, &[2, 1, 0, 1]), Withdraw),
        ("7.2 path: four octets instead of two", External, false, (0x40, 2, &[2, 1, 0, 0, 0, 1]), Withdraw),
        ("RFC 7607", External, true, (0x40, 2, &[2, 2, 0, 0, 0, 1, 0, 0, 0, 0]), Withdraw),
        ("RFC 7607", External, false, (0x40, 2, &[2, 1, 0, 0]), Withdraw),
        ("RFC 5065 5.3: confederation from outside", External, true, (0x40, 2, &[3, 1, 0, 0, 0, 1]), Withdraw),
        ("RFC 5065 5.3: confederation from outside", External, true, (0x40, 2, &[4, 1, 0, 0, 0, 1]), Withdraw),
        ("RFC 5065 5.3: from our AS", Internal, true, (0x40, 2, &[3, 1, 0, 0, 0, 1]), Used),
        ("RFC 5065 5.3: from a member", Confederation, true, (0x40, 2, &[3, 1, 0, 0, 0, 1]), Used),
        ("RFC 5065 5.3: a member not in the path", Confederation, true, (0x40, 2, &[2, 1, 0, 0, 0, 1]), Withdraw),
        ("RFC 5065 5.3: a member not in the path", Confederation, true, (0x40, 2, &[]), Withdraw),
        ("set", External, true, (0x40, 2, &[1, 1, 0, 0, 0, 1]), Used),
        ("7.3 next hop: length", External, true, (0x40, 3, &[]), Withdraw),
        ("7.3 next hop: length", External, true, (0x40, 3, &[192, 0, 2]), Withdraw),
        ("7.3 next hop: length", External, true, (0x40, 3, &[0x20; 16]), Withdraw),
        ("7.3 next hop: no host", External, true, (0x40, 3, &[0, 0, 0, 0]), Withdraw),
        ("7.3 next hop: no host", External, true, (0x40, 3, &[224, 0, 0, 1]), Withdraw),
        ("7.3 next hop: no host", External, true, (0x40, 3, &[255, 255, 255, 255]), Withdraw),
        ("7.4 MED", External, true, (0x80, 4, &[0; 4]), Used),
        ("7.4 MED: length", External, true, (0x80, 4, &[0; 3]), Withdraw),
        ("7.4 MED: length", External, true, (0x80, 4, &[0; 5]), Withdraw),
        ("7.5 local pref", Internal, true, (0x40, 5, &[0; 4]), Used),
        ("7.5 local pref: length", Internal, true, (0x40, 5, &[0; 5]), Withdraw),
        ("7.5 local pref: from outside", External, true, (0x40, 5, &[0; 4]), Discard),
        ("7.5 local pref: from outside, malformed", External, true, (0xc0, 5, &[0; 3]), Discard),
        ("7.6 atomic aggregate", External, true, (0x40, 6, &[]), Used),
        ("7.6 atomic aggregate: length", External, true, (0x40, 6, &[0]), Discard),
        ("7.7 aggregator", External, true, (0xc0, 7, &[0, 0, 0, 1, 10, 0, 0, 1]), Used),
        ("7.7 aggregator", External, false, (0xc0, 7, &[0, 1, 10, 0, 0, 1]), Used),
        ("7.7 aggregator: length", External, true, (0xc0, 7, &[0, 1, 10, 0, 0, 1]), Discard),
        ("7.7 aggregator: length", External, false, (0xc0, 7, &[0, 0, 0, 1, 10, 0, 0, 1]), Discard),
        ("RFC 7607 aggregator", External, true, (0xc0, 7, &[0, 0, 0, 0, 10, 0, 0, 1]), Discard),
        ("RFC 7607 aggregator", External, false, (0xc0, 7, &[0, 0, 10, 0, 0, 1]), Discard),
    ]);
}

/// RFC 5065 section 4: LOCAL_PREF goes everywhere inside a confederation; what RFC 4456 adds does not.
#[test]
fn attributes_inside_a_confederation() {
    let path = (0x40, code::AS_PATH, &[3, 1, 0, 0, 0, 1][..]);
    for (attribute, expected) in [
        ((0x40, code::LOCAL_PREF, &[0; 4][..]), Used),
        ((0x40, code::LOCAL_PREF, &[0; 3]), Withdraw),
        ((0x80, code::ORIGINATOR_ID, &[1; 4]), Discard),
        ((0x80, code::CLUSTER_LIST, &[1; 4]), Discard),
    ] {
        let octets = body(&[], &list(&[ORIGIN, path, NEXT_HOP, attribute]), &PREFIX);
        assert_eq!(outcome(&context(Confederation, true), &octets, attribute.1), expected, "{attribute:?}");
    }
}

/// Sections 7.8 to 7.14, and the RFCs of the younger ones.
#[test]
fn attributes_of_other_rfcs() {
    check(&[
        ("7.8 communities", External, true, (0xc0, 8, &[1; 8]), Used),
        ("7.8 communities: length", External, true, (0xc0, 8, &[]), Withdraw),
        ("7.8 communities: length", External, true, (0xc0, 8, &[1; 5]), Withdraw),
        ("7.9 originator", Internal, true, (0x80, 9, &[1; 4]), Used),
        ("7.9 originator: length", Internal, true, (0x80, 9, &[1; 3]), Withdraw),
        ("7.9 originator: from outside", External, true, (0x80, 9, &[1; 4]), Discard),
        ("7.9 originator: from outside, malformed", External, true, (0x40, 9, &[]), Discard),
        ("7.10 cluster list", Internal, true, (0x80, 10, &[1; 8]), Used),
        ("7.10 cluster list: length", Internal, true, (0x80, 10, &[]), Withdraw),
        ("7.10 cluster list: length", Internal, true, (0x80, 10, &[1; 6]), Withdraw),
        ("7.10 cluster list: from outside", External, true, (0x80, 10, &[1; 4]), Discard),
        ("7.14 extended communities", External, true, (0xc0, 16, &[1; 16]), Used),
        ("7.14 extended communities: length", External, true, (0xc0, 16, &[]), Withdraw),
        ("7.14 extended communities: length", External, true, (0xc0, 16, &[1; 12]), Withdraw),
        ("RFC 6793 4.1: AS4_PATH", External, true, (0xc0, 17, &[2, 1, 0, 0, 0, 1]), Discard),
        ("RFC 6793 6: AS4_PATH", External, false, (0xc0, 17, &[2, 1, 0, 0, 0, 1]), Used),
        ("RFC 6793 6: AS4_PATH: length", External, false, (0xc0, 17, &[]), Discard),
        ("RFC 6793 6: AS4_PATH: overrun", External, false, (0xc0, 17, &[2, 2, 0, 0, 0, 1]), Discard),
        ("RFC 6793 6: AS4_PATH: underrun", External, false, (0xc0, 17, &[2, 1, 0, 0, 0, 1, 2]), Discard),
        ("RFC 6793 6: AS4_PATH: kind", External, false, (0xc0, 17, &[9, 1, 0, 0, 0, 1]), Discard),
        ("RFC 7607: AS4_PATH", External, false, (0xc0, 17, &[2, 1, 0, 0, 0, 0]), Discard),
        ("RFC 6793 4.1: AS4_AGGREGATOR", External, true, (0xc0, 18, &[1; 8]), Discard),
        ("RFC 6793 6: AS4_AGGREGATOR", External, false, (0xc0, 18, &[1; 8]), Used),
        ("RFC 6793 6: AS4_AGGREGATOR: length", External, false, (0xc0, 18, &[1; 6]), Discard),
        ("RFC 7607: AS4_AGGREGATOR", External, false, (0xc0, 18, &[0, 0, 0, 0, 10, 0, 0, 1]), Discard),
        ("RFC 8092 6: large communities", External, true, (0xc0, 32, &[1; 12]), Used),
        ("RFC 8092 6: large communities: length", External, true, (0xc0, 32, &[]), Withdraw),
        ("RFC 8092 6: large communities: length", External, true, (0xc0, 32, &[1; 16]), Withdraw),
        ("RFC 9234 5: OTC", External, true, (0xc0, 35, &[1; 4]), Used),
        ("RFC 9234 5: OTC: length", External, true, (0xc0, 35, &[1; 2]), Withdraw),
        ("RFC 4271 5: unknown, passed on", External, true, (0xc0, 99, &[1; 3]), Used),
        ("RFC 4271 5: unknown, not passed on", External, true, (0x80, 99, &[]), Used),
        ("RFC 4271 6.3: unknown well-known", External, true, (0x40, 99, &[1]), Reset(2)),
        ("RFC 4271 6.3: unknown well-known", External, true, (0x00, 30, &[]), Reset(2)),
    ]);
}

/// What every known code looks like when nothing is wrong with it: flags and value, for an internal peer of two-octet numbers.
const KNOWN: [(u8, u8, &[u8]); 15] = [
    ORIGIN,
    NARROW_PATH,
    NEXT_HOP,
    (0x80, code::MED, &[1; 4]),
    (0x40, code::LOCAL_PREF, &[1; 4]),
    (0x40, code::ATOMIC_AGGREGATE, &[]),
    (0xc0, code::AGGREGATOR, &[1; 6]),
    (0xc0, code::COMMUNITIES, &[1; 4]),
    (0x80, code::ORIGINATOR_ID, &[1; 4]),
    (0x80, code::CLUSTER_LIST, &[1; 4]),
    (0xc0, code::EXTENDED_COMMUNITIES, &[1; 8]),
    (0xc0, code::AS4_PATH, &[2, 1, 0, 0, 0, 1]),
    (0xc0, code::AS4_AGGREGATOR, &[1; 8]),
    (0xc0, code::LARGE_COMMUNITIES, &[1; 12]),
    (0xc0, code::OTC, &[1; 4]),
];

/// Section 3 c: Optional and Transitive must be right; the other bits do not matter.
#[test]
fn flags_are_checked_for_every_attribute() {
    for (flags, code, value) in KNOWN {
        for wrong in [0x00, 0x40, 0x80, 0xc0].into_iter().filter(|wrong| *wrong != flags) {
            check(&[("3 c", Internal, false, (wrong, code, value), Withdraw)]);
        }
        for bits in [0x20, 0x01, 0x2f] {
            check(&[("3 c", Internal, false, (flags | bits, code, value), Used)]);
        }
    }
}

/// Section 3 g: of two, the first one counts.
#[test]
fn duplicates_are_dropped() {
    for (flags, code, value) in KNOWN {
        let mut attributes = list(&[ORIGIN, NARROW_PATH, NEXT_HOP]);
        if code > code::NEXT_HOP {
            attributes.extend(list(&[(flags, code, value)]));
        }
        let mut scratch = Vec::new();
        let once = body(&[], &attributes, &PREFIX);
        let context = context(Internal, false);
        let expected = decode(&once, &context, &mut scratch).expect("well-formed").attributes.to_vec();
        // The second one is malformed, and nobody looks.
        attributes.extend(list(&[(0x00, code, &[1, 2, 3])]));
        let twice = body(&[], &attributes, &PREFIX);
        assert_eq!(outcome(&context, &twice, code), Discard, "{code}");
        assert_eq!(decode(&twice, &context, &mut scratch).expect("well-formed").attributes, expected);
    }
}

/// Section 3 d.
#[test]
fn missing_attributes_make_a_withdrawal() {
    let context = context(External, true);
    for (missing, code) in [(0, code::ORIGIN), (1, code::AS_PATH), (2, code::NEXT_HOP)] {
        let mut attributes = vec![ORIGIN, PATH, NEXT_HOP];
        attributes.remove(missing);
        assert_eq!(outcome(&context, &body(&[], &list(&attributes), &PREFIX), code), Withdraw);
    }
    assert_eq!(outcome(&context, &body(&[], &[], &PREFIX), code::ORIGIN), Withdraw);
    // Withdrawals need none.
    let mut scratch = Vec::new();
    let octets = body(&PREFIX, &[], &[]);
    assert!(decode(&octets, &context, &mut scratch).expect("well-formed").problems.is_empty());
}

/// Section 4: a list that ends inside an attribute.
#[test]
fn a_list_that_ends_too_early_makes_a_withdrawal() {
    let context = context(External, true);
    let whole = list(&[ORIGIN, PATH, NEXT_HOP]);
    for rest in [&[0x40][..], &[0x40, 6], &[0x50, 6, 0], &[0x40, 4, 4, 0, 0, 0], &[0x50, 4, 0xff, 0xff, 0]] {
        let octets = body(&[], &[&whole, rest].concat(), &PREFIX);
        assert_eq!(outcome(&context, &octets, 0), Withdraw, "{rest:?}");
    }
}

const REACH_V4: [u8; 13] = [0, 1, 1, 4, 192, 0, 2, 1, 0, 24, 198, 51, 100];

fn reach(value: &[u8]) -> Vec<u8> {
    body(&[], &list(&[(0x80, code::MP_REACH_NLRI, value), ORIGIN, PATH]), &[])
}

/// Sections 3 g, 5.3, 7.11 and 7.12, and RFC 4760 section 7.
#[test]
fn attributes_with_prefixes() {
    const OPTIONAL: Outcome = Reset(update_error::OPTIONAL_ATTRIBUTE);
    let context = context(External, true);
    let changed = |at: usize, octet: u8| {
        let mut value = REACH_V4;
        value[at] = octet;
        reach(&value)
    };
    let wrong_flags = body(&[], &list(&[(0xc0, code::MP_REACH_NLRI, &REACH_V4), ORIGIN, PATH]), &[]);
    let unused_next_hop =
        list(&[ORIGIN, PATH, (0x40, code::NEXT_HOP, &[0; 4]), (0x80, code::MP_REACH_NLRI, &REACH_V4)]);
    let twice = list(&[(0x80, code::MP_REACH_NLRI, &REACH_V4), ORIGIN, PATH, (0x80, code::MP_REACH_NLRI, &REACH_V4)]);
    let v6 = |length: u8| {
        let next_hop = [0x20; 48];
        reach(&[&[0, 2, 1, length], &next_hop[..usize::from(length)], &[0, 16, 0x20, 1]].concat())
    };
    for (name, octets, expected) in [
        ("right", reach(&REACH_V4), Used),
        ("the reserved octet", changed(8, 9), Used),
        ("RFC 4760 3: a NEXT_HOP that means nothing", body(&[], &unused_next_hop, &[]), Used),
        ("flags", wrong_flags, Withdraw),
        ("next hop: no host", changed(4, 224), Withdraw),
        ("length", reach(&[]), OPTIONAL),
        ("length", reach(&REACH_V4[..3]), OPTIONAL),
        ("length", reach(&REACH_V4[..7]), OPTIONAL),
        ("length", reach(&REACH_V4[..8]), OPTIONAL),
        ("next hop: length", changed(3, 0), OPTIONAL),
        ("next hop: length", changed(3, 5), OPTIONAL),
        ("next hop: length", changed(3, 255), OPTIONAL),
        (
            "next hop: sixteen octets, not negotiated",
            reach(&[&[0, 1, 1, 16], &[0x20; 17][..], &PREFIX].concat()),
            OPTIONAL,
        ),
        ("next hop: four octets for IPv6", v6(4), OPTIONAL),
        ("next hop: with a route distinguisher", v6(24), OPTIONAL),
        ("next hop: with a route distinguisher", v6(48), OPTIONAL),
        ("prefix too long", changed(9, 33), OPTIONAL),
        ("prefix cut", changed(9, 32), OPTIONAL),
        ("twice", body(&[], &twice, &[]), Reset(update_error::MALFORMED_LIST)),
    ] {
        assert_eq!(outcome(&context, &octets, code::MP_REACH_NLRI), expected, "{name}");
    }
    let unreach = |value: &[u8]| list(&[(0x80, code::MP_UNREACH_NLRI, value)]);
    for (name, octets, expected) in [
        ("length", unreach(&[]), OPTIONAL),
        ("length", unreach(&[0, 1]), OPTIONAL),
        ("prefix too long", unreach(&[0, 1, 1, 33, 1, 2, 3, 4, 5]), OPTIONAL),
        ("prefix cut", unreach(&[0, 2, 1, 32, 1, 2, 3]), OPTIONAL),
        ("twice", [unreach(&[0, 2, 1]), unreach(&[0, 2, 1])].concat(), Reset(update_error::MALFORMED_LIST)),
        // The prefixes are withdrawn either way.
        ("flags", list(&[(0x40, code::MP_UNREACH_NLRI, &[0, 1, 1, 24, 198, 51, 100])]), Withdraw),
    ] {
        assert_eq!(outcome(&context, &body(&[], &octets, &[]), code::MP_UNREACH_NLRI), expected, "{name}");
    }
}

/// Section 5.2: attributes that ask for a withdrawal, and no prefix to withdraw. The subcode is that of the attribute.
#[test]
fn malformed_attributes_without_prefixes_reset_the_session() {
    let context = context(External, true);
    for (attribute, subcode) in [
        ((0x40, 1, &[9][..]), update_error::INVALID_ORIGIN),
        ((0xc0, 1, &[0]), update_error::FLAGS),
        ((0x40, 2, &[2]), update_error::MALFORMED_AS_PATH),
        ((0x40, 3, &[0; 4]), update_error::INVALID_NEXT_HOP),
        ((0x80, 4, &[0]), update_error::LENGTH),
        ((0xc0, 8, &[0]), update_error::LENGTH),
    ] {
        let octets = body(&PREFIX, &list(&[attribute]), &[]);
        assert_eq!(outcome(&context, &octets, attribute.1), Reset(subcode), "{attribute:?}");
        let mut scratch = Vec::new();
        let notification = decode(&octets, &context, &mut scratch).expect_err("a reset").notification();
        let quoted = if subcode == update_error::MALFORMED_AS_PATH { Vec::new() } else { list(&[attribute]) };
        assert_eq!(notification.data, quoted);
    }
    assert_eq!(outcome(&context, &body(&PREFIX, &[0x40], &[]), 0), Reset(update_error::MALFORMED_LIST));
    // What is only to be discarded is no reason.
    let mut scratch = Vec::new();
    let octets = body(&PREFIX, &list(&[(0x40, code::LOCAL_PREF, &[0; 4])]), &[]);
    assert_eq!(decode(&octets, &context, &mut scratch).expect("no reset").withdrawals().count(), 1);
}

/// RFC 9774, where it is asked for.
#[test]
fn sets_are_refused_on_request() {
    let refusing = |asn4| Context { refuse_as_sets: true, ..context(External, asn4) };
    for value in [&[1, 1, 0, 0, 0, 1][..], &[2, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 2]] {
        assert_eq!(outcome(&refusing(true), &with(true, (0x40, code::AS_PATH, value)), code::AS_PATH), Withdraw);
    }
    let in_as4_path = with(false, (0xc0, code::AS4_PATH, &[1, 1, 0, 0, 0, 1]));
    assert_eq!(outcome(&refusing(false), &in_as4_path, code::AS4_PATH), Withdraw);
    assert_eq!(Attributes(&list(&[PATH])).as_path().to_string(), "65001 100000");
    assert_eq!(outcome(&refusing(true), &with(true, PATH), code::AS_PATH), Used);
}
