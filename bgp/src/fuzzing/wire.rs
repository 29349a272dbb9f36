//! The messages of [`crate::wire`].

use crate::{
    family::{Family, PerFamily, Prefix, V4, V6},
    id::PathId,
    session::PeerKind,
    wire::{
        attributes::{Attributes, code, flag, known_flags},
        capability::Capability,
        encode::{self, EncodeError, Target},
        header::{HEADER_LEN, LengthLimit},
        nlri::Nlri,
        notification::Notification,
        open::Open,
        route_refresh::RouteRefresh,
        update::{self, Announced, Context, FamilyContext, PROBLEMS_MAX, Update},
    },
};

/// Longest body of an UPDATE.
const BODY_MAX: usize = 65_535 - HEADER_LEN;
/// A message may make the buffer of its attributes grow this much: numbers of two octets get four.
const SCRATCH_MAX: usize = 2 * BODY_MAX;

/// Reads `data` as the body of an OPEN.
///
/// # Panics
///
/// When what was read is written in a way that reads differently.
pub fn open(data: &[u8]) {
    match Open::decode(data) {
        Ok(open) => {
            assert!(open.router_id.0 != 0 && open.asn.0 != 0 && !matches!(open.hold_time_s, 1 | 2));
            // One parameter instead of many can be a few octets longer than the longest message.
            if let Ok(message) = open.encode() {
                let mut again = Open::decode(&message[HEADER_LEN..]).expect("our own message");
                // Without the capability, a number of four octets cannot be said; there was none then.
                again.asn = open.asn;
                assert_eq!(again, open);
            }
        }
        Err(error) => assert!(error.notification().data.len() <= 2),
    }
}

/// Reads `data` as a capability: its code, then its value.
///
/// # Panics
///
/// When what was read is written in a way that reads differently.
pub fn capability(data: &[u8]) {
    let Some((code, value)) = data.split_first() else {
        return;
    };
    let value = &value[..value.len().min(255)];
    let capability = Capability::decode(*code, value);
    let mut octets = Vec::new();
    capability.encode(&mut octets).expect("as long as it was");
    assert_eq!(octets.len(), value.len() + 2);
    assert_eq!(Capability::decode(octets[0], &octets[2..]), capability);
}

/// Reads `data` as the body of a NOTIFICATION.
///
/// # Panics
///
/// When it is written differently, or when what people see of it has control characters.
pub fn notification(data: &[u8]) {
    let data = &data[..data.len().min(BODY_MAX)];
    if let Ok(notification) = Notification::decode(data) {
        let mut message = Vec::new();
        notification.encode(LengthLimit::Extended, &mut message);
        assert_eq!(&message[HEADER_LEN..], data);
        assert!(!notification.to_string().chars().any(char::is_control));
        assert_eq!(notification.clone().into_hard_reset().hard_reset_cause(), Some(notification));
    }
}

/// Reads `data` as the body of a ROUTE-REFRESH. The first octet says whether subtypes count.
///
/// # Panics
///
/// When what was read is written in a way that reads differently.
pub fn route_refresh(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else {
        return;
    };
    match RouteRefresh::decode(body, choice & 1 != 0) {
        Ok(Some(refresh)) => {
            let mut message = Vec::new();
            refresh.encode(&mut message);
            assert_eq!(RouteRefresh::decode(&message[HEADER_LEN..], true), Ok(Some(refresh)));
        }
        Ok(None) => {}
        Err(error) => assert!(error.notification().data.ends_with(body)),
    }
}

/// The context that the first two octets of an input choose.
#[must_use]
pub const fn context(choice: [u8; 2]) -> Context {
    let [session, families] = choice;
    let kind = match session & 3 {
        0 | 3 => PeerKind::External,
        1 => PeerKind::Internal,
        _ => PeerKind::Confederation,
    };
    Context {
        kind,
        asn4: session & 4 == 0,
        refuse_as_sets: session & 8 != 0,
        families: PerFamily {
            ipv4: FamilyContext {
                enabled: families & 1 == 0,
                add_path: families & 2 != 0,
                extended_next_hop: families & 4 != 0,
            },
            ipv6: FamilyContext { enabled: families & 8 == 0, add_path: families & 16 != 0, extended_next_hop: false },
        },
    }
}

/// Reads `data` as the body of an UPDATE. The first two octets choose the context.
///
/// # Panics
///
/// When attributes are not in canonical form, when what was read is written in a way that reads differently, or when a
/// message costs more memory than it should.
pub fn update(data: &[u8]) {
    let Some((choice, body)) = data.split_first_chunk::<2>() else {
        return;
    };
    let context = context(*choice);
    let body = &body[..body.len().min(BODY_MAX)];
    let mut scratch = Vec::new();
    match update::decode(body, &context, &mut scratch) {
        Ok(update) => {
            assert!(update.attributes.len() <= SCRATCH_MAX);
            assert!(update.problems.as_slice().len() <= PROBLEMS_MAX);
            assert_eq!(update.treat_as_withdraw, update.problems.worst().is_some());
            assert!(update.end_of_rib.is_none() || update.withdrawals().count() + update.announcements().count() == 0);
            assert_canonical(update.attributes);
            for nlri in update.withdrawals() {
                assert!(context.families.get(nlri.family()).enabled);
                assert_withdrawn_again(&context, nlri);
            }
            for announced in update.announcements() {
                assert!(context.families.get(announced.nlri.family()).enabled);
                assert_announced_again(&context, &update, announced);
            }
        }
        Err(error) => assert!(error.notification().data.len() <= body.len()),
    }
    assert!(scratch.len() <= SCRATCH_MAX);
}

fn assert_canonical(octets: &[u8]) {
    let mut walked = 0;
    let mut last = None;
    for attribute in Attributes(octets).iter() {
        walked += attribute.octets.len();
        assert!(last < Some(attribute.code), "codes ascend");
        last = Some(attribute.code);
        assert_eq!(attribute.flags & flag::EXTENDED_LENGTH != 0, attribute.value.len() > 255);
        let flags = attribute.flags & !flag::EXTENDED_LENGTH;
        match known_flags(attribute.code) {
            Some(known) => assert_eq!(flags & !flag::PARTIAL, known),
            None => assert_eq!(flags, flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL),
        }
        assert!(
            !matches!(
                attribute.code,
                code::NEXT_HOP | code::MP_REACH_NLRI | code::MP_UNREACH_NLRI | code::AS4_PATH | code::AS4_AGGREGATOR
            ),
            "{} is not part of the form",
            attribute.code
        );
    }
    assert_eq!(walked, octets.len());
}

/// The target whose receiver has this context.
fn target(context: &Context) -> Target {
    Target {
        asn4: context.asn4,
        length_limit: LengthLimit::Extended,
        add_path: PerFamily { ipv4: context.families.ipv4.add_path, ipv6: context.families.ipv6.add_path },
    }
}

fn assert_withdrawn_again(context: &Context, nlri: Nlri<'_>) {
    match nlri.family() {
        Family::Ipv4Unicast => withdrawn_again::<V4>(context, nlri),
        Family::Ipv6Unicast => withdrawn_again::<V6>(context, nlri),
    }
}

fn withdrawn_again<P: Prefix>(context: &Context, nlri: Nlri<'_>) {
    let prefixes: Vec<(PathId, P)> = nlri.iter().collect();
    assert_eq!(prefixes.len(), nlri.len());
    let (mut message, mut rest, mut seen) = (Vec::new(), prefixes.iter().copied().peekable(), Vec::new());
    let mut scratch = Vec::new();
    while rest.peek().is_some() {
        message.clear();
        encode::withdraw(&mut message, &target(context), &mut rest).expect("prefixes fit");
        let again = update::decode(&message[HEADER_LEN..], context, &mut scratch).expect("our own message");
        assert!(again.problems.is_empty());
        seen.extend(again.withdrawals().flat_map(|nlri| nlri.iter::<P>()));
    }
    assert_eq!(seen, prefixes);
}

fn assert_announced_again(context: &Context, update: &Update<'_>, announced: Announced<'_>) {
    match announced.nlri.family() {
        Family::Ipv4Unicast => announced_again::<V4>(context, update, announced),
        Family::Ipv6Unicast => announced_again::<V6>(context, update, announced),
    }
}

fn announced_again<P: Prefix>(context: &Context, update: &Update<'_>, announced: Announced<'_>) {
    let prefixes: Vec<(PathId, P)> = announced.nlri.iter().collect();
    assert_eq!(prefixes.len(), announced.nlri.len());
    // Through AS4_PATH, a segment of a confederation between others gets lost (RFC 6793 section 4.2.3); with four octets
    // nothing does.
    let has_confederation =
        Attributes(update.attributes).as_path().segments().any(|segment| segment.kind.is_confederation());
    let context = Context { asn4: context.asn4 || has_confederation, ..*context };
    let (mut message, mut rest, mut seen) = (Vec::new(), prefixes.iter().copied().peekable(), Vec::new());
    let mut scratch = Vec::new();
    while rest.peek().is_some() {
        message.clear();
        let attributes = Attributes(update.attributes);
        let packed = encode::announce(&mut message, &target(&context), attributes, announced.next_hop, &mut rest);
        match packed {
            Ok(packed) => {
                let mut next_hop = Vec::new();
                announced.next_hop.write(&mut next_hop);
                assert_eq!(message.len(), packed.length);
                assert_eq!(message[packed.next_hop_at..][..next_hop.len()], next_hop);
            }
            // Wide numbers, and room for one more head, can be too much.
            Err(EncodeError::AttributesTooLong(_)) => return,
            Err(error) => panic!("{error}"),
        }
        let again = update::decode(&message[HEADER_LEN..], &context, &mut scratch).expect("our own message");
        assert!(again.problems.is_empty(), "{:?}", again.problems);
        assert_eq!(again.attributes, update.attributes);
        for again in again.announcements() {
            assert_eq!(again.next_hop, announced.next_hop);
            seen.extend(again.nlri.iter::<P>());
        }
    }
    assert_eq!(seen, prefixes);
}
