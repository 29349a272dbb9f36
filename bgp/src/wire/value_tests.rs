use proptest::prelude::*;

use super::*;
use crate::{
    family::{Family, V4},
    id::Asn,
    session::PeerKind,
    wire::{
        as_path::write_segments,
        attributes::{Builder, Origin},
        nlri::Nlri,
        update::{self, Context},
    },
};

#[test]
fn attributes_are_shown_as_operators_know_them() {
    let path = write_segments([
        (SegmentKind::ConfedSequence, [Asn(65_100)].as_slice()),
        (SegmentKind::Sequence, &[Asn(65_001), Asn(65_536), Asn(131_072)]),
        (SegmentKind::Set, &[Asn(7)]),
    ]);
    let attributes = Builder::new()
        .origin(Origin::Incomplete)
        .set(code::AS_PATH, path)
        .number(code::MED, 5)
        .number(code::LOCAL_PREF, 200)
        .set(code::ATOMIC_AGGREGATE, vec![])
        .set(code::AGGREGATOR, vec![0, 1, 0, 0, 192, 0, 2, 1])
        .communities([0xffff_0000, 65_001 << 16 | 100, 0xffff_ff01])
        .number(code::ORIGINATOR_ID, 0x0a00_0001)
        .set(code::CLUSTER_LIST, vec![10, 0, 0, 2, 10, 0, 0, 3])
        .extended_communities([[0, 2, 0xfd, 0xe9, 0, 0, 0, 7], [1, 3, 192, 0, 2, 1, 0, 7], [2, 2, 0, 1, 0, 0, 0, 9]])
        .large_communities([LargeCommunity { global: 65_536, local_1: 1, local_2: 2 }])
        .number(code::OTC, 65_536)
        .set(99, vec![0xab, 0])
        .build();
    let described = describe(Attributes(&attributes));
    let shown: Vec<String> = described.iter().map(|one| format!("{} {}", one.name, one.text)).collect();
    assert_eq!(
        shown,
        [
            "origin incomplete",
            "as-path (65100) 65001 65536 131072 {7}",
            "med 5",
            "local-pref 200",
            "atomic-aggregate ",
            "aggregator 65536 192.0.2.1",
            "communities graceful-shutdown 65001:100 no-export",
            "originator-id 10.0.0.1",
            "cluster-list 10.0.0.2 10.0.0.3",
            "extended-communities RT:65001:7 SoO:192.0.2.1:7 RT:65536:9",
            "large-communities 65536:1:2",
            "only-to-customer 65536",
            "attribute-99 ab00",
        ]
    );
    let json: Vec<&Value> = described.iter().map(|one| &one.json).collect();
    assert_eq!(
        *json[1],
        json!([
            { "kind": "confederation-sequence", "numbers": [65_100] },
            { "kind": "sequence", "numbers": [65_001, 65_536, 131_072] },
            { "kind": "set", "numbers": [7] },
        ])
    );
    assert_eq!(*json[5], json!({ "asn": 65_536, "router-id": "192.0.2.1" }));
    assert_eq!(*json[6], json!(["graceful-shutdown", "65001:100", "no-export"]));
    assert_eq!(*json[12], json!({ "flags": 0xe0, "value": "ab00" }));
}

#[test]
fn communities_have_their_names() {
    for (value, name) in WELL_KNOWN_COMMUNITIES {
        assert_eq!(community(value), name);
    }
    assert_eq!(community(0), "0:0");
    assert_eq!(community(u32::MAX), "65535:65535");
    let bandwidth = [0x40, 4, 0xfd, 0xe9, 0x4c, 0xee, 0x6b, 0x28];
    assert_eq!(extended_community(bandwidth), "link-bandwidth:65001:1.25e8");
    assert_eq!(extended_community([3, 12, 0, 0, 0, 0, 0, 8]), "encapsulation:0x8");
    assert_eq!(extended_community([0x99, 1, 0, 0, 0, 0, 0, 8]), "ext-unknown:0x99:0x01:0x0:0x8");
}

proptest! {
    /// Whatever is described, in canonical form or not.
    #[test]
    fn describing_never_fails(octets: Vec<u8>) {
        let _ = describe(Attributes(&octets));
    }

    /// zettabgp reads the same prefixes, where it may be asked.
    #[test]
    fn prefixes_are_those_that_zettabgp_reads(octets in prop::collection::vec(0_u8..=34, 0..200)) {
        if let Ok(nlri) = Nlri::decode(Family::Ipv4Unicast, false, &octets) {
            let ours: Vec<String> = nlri.iter::<V4>().map(|(_, prefix)| prefix.to_string()).collect();
            let (theirs, read) = zettabgp::afi::decode_bgpitems_from::<zettabgp::afi::BgpAddrV4>(&octets).expect("well-formed");
            prop_assert_eq!(read, octets.len());
            // It keeps the bits behind the length.
            let network = |theirs: &zettabgp::afi::BgpAddrV4| {
                ipnet::Ipv4Net::new(theirs.addr, theirs.prefixlen).expect("a length").trunc().to_string()
            };
            prop_assert_eq!(ours, theirs.iter().map(network).collect::<Vec<_>>());
        }
    }

    /// zettabgp reads the same values from attributes that passed.
    #[test]
    fn values_are_those_that_zettabgp_reads(
        origin in 0_u8..3,
        path in prop::collection::vec(1_u32.., 1..20),
        med: u32,
        aggregator in 1_u32..,
        communities in prop::collection::vec(any::<u32>(), 1..20),
        large in prop::collection::vec(any::<[u32; 3]>(), 1..20),
    ) {
        let path: Vec<Asn> = path.into_iter().map(Asn).collect();
        let mut by = aggregator.to_be_bytes().to_vec();
        by.extend([10, 0, 0, 1]);
        let large = large.iter().map(|&[global, local_1, local_2]| LargeCommunity { global, local_1, local_2 });
        let list = Builder::new()
            .set(code::ORIGIN, vec![origin])
            .set(code::AS_PATH, write_segments([(SegmentKind::Sequence, path.as_slice())]))
            .number(code::MED, med)
            .set(code::AGGREGATOR, by)
            .communities(communities.iter().copied())
            .large_communities(large)
            .build();
        let length = u16::try_from(list.len()).expect("short").to_be_bytes();
        let reach = [0x80, code::MP_REACH_NLRI, 10, 0, 1, 1, 4, 192, 0, 2, 1, 0, 0];
        let body = [&[0, 0][..], &(u16::from_be_bytes(length) + 13).to_be_bytes(), &reach, &list].concat();
        let context = Context { families: crate::PerFamily {
            ipv4: update::FamilyContext { enabled: true, ..Default::default() }, ..Default::default()
        }, kind: PeerKind::External, asn4: true, refuse_as_sets: false };
        let mut scratch = Vec::new();
        let update = update::decode(&body, &context, &mut scratch).expect("well-formed");
        prop_assert!(update.problems.is_empty());
        let attributes = Attributes(update.attributes);
        for attribute in attributes.iter() {
            let theirs = BgpAttrItem::decode_from(&session(), attribute.code, attribute.flags, attribute.value.len(), attribute.value);
            match theirs.expect("a shape that was checked") {
                BgpAttrItem::Origin(theirs) => prop_assert_eq!(theirs.value as u8, attributes.origin() as u8),
                BgpAttrItem::MED(theirs) => prop_assert_eq!(Some(theirs.value), attributes.med()),
                BgpAttrItem::AggregatorAS(theirs) => {
                    let ours = attributes.aggregator().expect("one");
                    prop_assert_eq!((theirs.asn, theirs.addr.to_bits()), (ours.asn.0, ours.router_id.0));
                }
                BgpAttrItem::ASPath(theirs) => {
                    let [zettabgp::message::attributes::aspath::BgpASitem::Seq(theirs)] = theirs.value.as_slice() else {
                        panic!("one sequence");
                    };
                    let theirs: Vec<Asn> = theirs.value.iter().map(|asn| Asn(asn.value)).collect();
                    prop_assert_eq!(theirs, attributes.as_path().numbers().collect::<Vec<_>>());
                }
                BgpAttrItem::CommunityList(theirs) => {
                    let mut ours: Vec<u32> = attributes.communities().collect();
                    ours.sort_unstable();
                    ours.dedup();
                    prop_assert_eq!(theirs.value.iter().map(|community| community.value).collect::<Vec<_>>(), ours);
                }
                BgpAttrItem::LargeCommunityList(theirs) => {
                    let mut ours: Vec<LargeCommunity> = attributes.large_communities().collect();
                    ours.sort_unstable();
                    let theirs = theirs.value.iter();
                    let theirs: Vec<LargeCommunity> = theirs
                        .map(|c| LargeCommunity { global: c.ga, local_1: c.ldp1, local_2: c.ldp2 })
                        .collect();
                    prop_assert_eq!(theirs, ours);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
