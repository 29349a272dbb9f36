//! The same UPDATE to our decoder and to that of rustbgpd, which follows RFC 7606 as well and shares no code with ours.
//!
//! What we use without a fault it must read, without a fault, as the same prefixes and values, and so must it what we make of
//! it for the next peer; what it reads without a fault we must not reset the session for. Where the two are known to differ on purpose, the input is left out; each case says why.

#![no_main]

use bgp::{
    Family, PerFamily, Prefix,
    family::{V4, V6},
    fuzzing,
    wire::{
        attributes::{Attributes, code, flag},
        encode::{self, Target},
        header::{HEADER_LEN, LengthLimit},
        nlri::Nlri,
        update::{self, Announced, Context, Fault, Update},
    },
};
use rustbgpd_wire::{
    Afi, AsPathSegment, ErrorDisposition, MpReachNlri, NlriEntry, PathAttribute, RevisedParsedUpdate, Safi,
    UpdateMessage,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&[session, families], body)) = data.split_first_chunk::<2>() else {
        return;
    };
    // External or internal, four octets, both families; it always refuses sets (RFC 9774).
    let context = fuzzing::context([session & 1 | 8, families & !9]);
    let body = &body[..body.len().min(65_516)];
    let mut scratch = Vec::new();
    let ours = update::decode(body, &context, &mut scratch);
    let theirs = parse(body, &context);
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            if ours.problems.is_empty() {
                compare(&ours, &theirs);
                for announced in ours.announcements() {
                    match announced.nlri.family() {
                        Family::Ipv4Unicast => told::<V4>(&context, &ours, announced),
                        Family::Ipv6Unicast => told::<V6>(&context, &ours, announced),
                    }
                }
            }
        }
        (Ok(ours), Err(error)) => {
            // Families that were not negotiated are none of our business; it takes some of them apart.
            // Partial where it means nothing is an error for it; RFC 7606 section 3 c only names the other two bits.
            let flags = format!("{error:?}").contains("flags");
            assert!(
                flags || !ours.problems.is_empty() || has_unknown_code(body),
                "clean for us, and {error:?} for them"
            );
        }
        (Err(error), Ok(theirs)) => {
            let stricter = matches!(
                error.fault,
                // It resets for these when the message is checked as a whole, which is not asked for here.
                Fault::Unrecognized | Fault::Duplicate | Fault::NextHop(_) | Fault::NextHopLength(_)
            );
            assert!(stricter || !theirs.malformed.is_empty(), "{error} for us, and clean for them");
        }
        (Err(_), Err(_)) => {}
    }
});

fn parse(body: &[u8], context: &Context) -> Result<RevisedParsedUpdate, rustbgpd_wire::DecodeError> {
    let mut octets = body;
    let message = UpdateMessage::decode(&mut octets, body.len())?;
    let families = [(Afi::Ipv4, context.families.ipv4), (Afi::Ipv6, context.families.ipv6)];
    let add_path: Vec<(Afi, Safi)> =
        families.iter().filter(|(_, family)| family.add_path).map(|(afi, _)| (*afi, Safi::Unicast)).collect();
    let internal = context.kind == bgp::session::PeerKind::Internal;
    message.parse_revised(context.asn4, internal, context.families.ipv4.add_path, &add_path)
}

/// What we would send on, read by the other decoder.
fn told<P: Prefix>(context: &Context, ours: &Update<'_>, announced: Announced<'_>) {
    let target = Target {
        asn4: true,
        length_limit: LengthLimit::Extended,
        add_path: PerFamily { ipv4: context.families.ipv4.add_path, ipv6: context.families.ipv6.add_path },
    };
    let (mut message, mut rest) = (Vec::new(), announced.nlri.iter::<P>().peekable());
    let attributes = Attributes(ours.attributes);
    if encode::announce(&mut message, &target, attributes, announced.next_hop, &mut rest).is_err() {
        // One head more can be too much.
        return;
    }
    let mut scratch = Vec::new();
    let body = &message[HEADER_LEN..];
    let again = update::decode(body, context, &mut scratch).expect("our own message");
    match parse(body, context) {
        Ok(theirs) => compare(&again, &theirs),
        Err(error) => assert!(has_unknown_code(body), "our own message, and {error:?} for them"),
    }
}

/// It knows more codes than we do, and checks what we pass on.
fn has_unknown_code(body: &[u8]) -> bool {
    let field = |octets: &[u8]| usize::from(u16::from_be_bytes([octets[0], octets[1]]));
    let rest = &body[2 + field(body)..];
    let list = &rest[2..2 + field(rest)];
    Attributes(list).iter().any(|attribute| bgp::wire::attributes::known_flags(attribute.code).is_none())
}

fn compare(ours: &Update<'_>, theirs: &RevisedParsedUpdate) {
    let known = |code: u8| bgp::wire::attributes::known_flags(code).is_some();
    let malformed = theirs.malformed.iter().filter(|malformed| known(malformed.type_code));
    for malformed in malformed {
        // It wants no Partial on what is not transitive, and knows no confederations.
        assert!(
            malformed.disposition == ErrorDisposition::AttributeDiscard || is_known_difference(malformed),
            "clean for us, and {malformed:?} for them"
        );
    }
    let update = &theirs.update;
    let v4 = |entries: &[rustbgpd_wire::Ipv4NlriEntry]| {
        entries.iter().map(|entry| format!("{} {}/{}", entry.path_id, entry.prefix.addr, entry.prefix.len)).collect()
    };
    let their_announced: Vec<String> = v4(&update.announced);
    let their_withdrawn: Vec<String> = v4(&update.withdrawn);
    assert_eq!(shown(ours.withdrawn), their_withdrawn);
    if let Some(announced) = ours.announced {
        assert_eq!(shown(announced.nlri), their_announced);
    }
    let attributes = Attributes(ours.attributes);
    for theirs in &update.attributes {
        match theirs {
            PathAttribute::MpReachNlri(reach) => compare_reach(ours, reach),
            PathAttribute::MpUnreachNlri(unreach) => {
                if let Some(nlri) = ours.mp_unreach {
                    assert_eq!(shown(nlri), entries(&unreach.withdrawn));
                }
            }
            // Without announced prefixes nobody needs the rest.
            _ if ours.attributes.is_empty() => {}
            theirs => compare_value(attributes, theirs),
        }
    }
}

fn is_known_difference(malformed: &rustbgpd_wire::MalformedAttribute) -> bool {
    let error = format!("{:?}", malformed.error);
    error.contains("flags") || error.contains("segment type 3") || error.contains("segment type 4")
}

fn compare_reach(ours: &Update<'_>, theirs: &MpReachNlri) {
    let Some(announced) = ours.mp_reach else {
        return;
    };
    assert_eq!(shown(announced.nlri), entries(&theirs.announced));
    // A pair of next hops is tidied up by us.
    if theirs.link_local_next_hop.is_none() {
        assert_eq!(announced.next_hop.address(), theirs.next_hop);
    }
}

fn compare_value(ours: Attributes<'_>, theirs: &PathAttribute) {
    let octets = |code| ours.get(code).unwrap_or_default();
    match theirs {
        PathAttribute::Origin(origin) => assert_eq!(octets(code::ORIGIN), [*origin as u8]),
        PathAttribute::AsPath(path) => {
            let segments = path.segments.iter().map(|segment| match segment {
                AsPathSegment::AsSet(numbers) => (1, numbers),
                AsPathSegment::AsSequence(numbers) => (2, numbers),
            });
            let expected: Vec<u8> = segments
                .flat_map(|(kind, numbers)| {
                    let head = [kind, numbers.len() as u8];
                    head.into_iter().chain(numbers.iter().flat_map(|number| number.to_be_bytes())).collect::<Vec<u8>>()
                })
                .collect();
            let confederation = ours.as_path().segments().any(|segment| segment.kind.is_confederation());
            assert!(confederation || octets(code::AS_PATH) == expected, "{path:?}");
        }
        PathAttribute::Aggregator(theirs) => {
            let ours = ours.aggregator().expect("the same");
            assert_eq!((ours.asn.0, ours.router_id.0), (theirs.asn, theirs.router_id.to_bits()));
        }
        PathAttribute::AtomicAggregate => assert!(ours.is_atomic_aggregate()),
        PathAttribute::LocalPref(number) => assert_eq!(ours.local_pref(), Some(*number)),
        PathAttribute::Med(number) => assert_eq!(ours.med(), Some(*number)),
        PathAttribute::Communities(values) | PathAttribute::CommunitiesPartial(values) => {
            assert_eq!(&ours.communities().collect::<Vec<_>>(), values);
        }
        PathAttribute::LargeCommunities(values) | PathAttribute::LargeCommunitiesPartial(values) => {
            let values: Vec<_> = values.iter().map(|v| (v.global_admin, v.local_data1, v.local_data2)).collect();
            assert_eq!(ours.large_communities().map(|c| (c.global, c.local_1, c.local_2)).collect::<Vec<_>>(), values);
        }
        PathAttribute::OriginatorId(id) => assert_eq!(ours.originator_id().map(|id| id.0), Some(id.to_bits())),
        PathAttribute::ClusterList(ids) => {
            let ids: Vec<u32> = ids.iter().map(|id| id.to_bits()).collect();
            assert_eq!(ours.cluster_list().map(|id| id.0).collect::<Vec<_>>(), ids);
        }
        PathAttribute::OnlyToCustomer(asn) | PathAttribute::OnlyToCustomerPartial(asn) => {
            assert_eq!(ours.otc().map(|asn| asn.0), Some(*asn));
        }
        PathAttribute::Unknown(raw) if raw.flags & flag::TRANSITIVE != 0 && raw.type_code != code::NEXT_HOP => {
            let passed_on = octets(raw.type_code);
            assert!(passed_on == raw.data || bgp::wire::attributes::known_flags(raw.type_code).is_some());
        }
        _ => {}
    }
}

fn shown(nlri: Nlri<'_>) -> Vec<String> {
    fn of<P: Prefix>(nlri: Nlri<'_>) -> Vec<String> {
        nlri.iter::<P>().map(|(id, prefix)| format!("{} {prefix}", id.0)).collect()
    }
    match nlri.family() {
        Family::Ipv4Unicast => of::<V4>(nlri),
        Family::Ipv6Unicast => of::<V6>(nlri),
    }
}

fn entries(entries: &[NlriEntry]) -> Vec<String> {
    let shown = |entry: &NlriEntry| match entry.prefix {
        rustbgpd_wire::Prefix::V4(prefix) => format!("{} {}/{}", entry.path_id, prefix.addr, prefix.len),
        rustbgpd_wire::Prefix::V6(prefix) => format!("{} {}/{}", entry.path_id, prefix.addr, prefix.len),
    };
    entries.iter().map(shown).collect()
}
