//! Octets against what the RFCs draw. An independent reader, bgpdump, is asked by the interoperability tests.

use super::*;
use crate::{
    family::{V4, V6},
    wire::attributes::{Builder, Origin},
};

const TIME: Timestamp = Timestamp { seconds: 0x0102_0304, micros: 0x0005_0607 };

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn made(make: impl FnOnce(&mut Vec<u8>)) -> (u16, u16, Vec<u8>) {
    let mut out = vec![0xee; 3];
    make(&mut out);
    assert_eq!(out[..3], [0xee; 3]);
    let record = out.split_off(3);
    assert_eq!(record[..4], [1, 2, 3, 4]);
    assert_eq!(u32::from_be_bytes([record[8], record[9], record[10], record[11]]) as usize, record.len() - 12);
    (u16::from_be_bytes([record[4], record[5]]), u16::from_be_bytes([record[6], record[7]]), record[12..].to_vec())
}

#[test]
fn peers_are_listed_first() {
    let peers = [
        IndexedPeer { router_id: RouterId(1), address: ip("192.0.2.1"), asn: Asn(65_001) },
        IndexedPeer { router_id: RouterId(2), address: ip("2001:db8::1"), asn: Asn(4_200_000_001) },
    ];
    let (kind, subtype, body) = made(|out| peer_index_table(out, TIME, RouterId(9), "main", &peers));
    assert_eq!((kind, subtype), (13, 1));
    let expected = [
        &[0, 0, 0, 9, 0, 4][..],
        b"main",
        &[0, 2, 2, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0xfd, 0xe9],
        &[3, 0, 0, 0, 2, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xfa, 0x56, 0xea, 1],
    ]
    .concat();
    assert_eq!(body, expected);
}

#[test]
fn the_next_hop_lies_where_its_code_belongs() {
    let attributes =
        Builder::new().origin(Origin::Igp).number(code::MED, 7).communities([1]).number(code::OTC, 3).build();
    let codes = |family, next_hop: NextHop| {
        let entry =
            RibEntry { peer: 0, learned_at: 0, path_id: PathId(0), attributes: Attributes(&attributes), next_hop };
        let mut out = Vec::new();
        write_attributes(&mut out, &entry, family);
        let codes: Vec<(u8, Vec<u8>)> = Attributes(&out).iter().map(|a| (a.code, a.value.to_vec())).collect();
        codes
    };
    let v4 = codes(Family::Ipv4Unicast, ip("192.0.2.9").into());
    assert_eq!(v4.iter().map(|(code, _)| *code).collect::<Vec<_>>(), [1, 3, 4, 8, 35]);
    assert_eq!(v4[1].1, [192, 0, 2, 9]);
    for (family, next_hop, length) in [
        (Family::Ipv6Unicast, NextHop::from(ip("2001:db8::9")), 16),
        (Family::Ipv4Unicast, NextHop::from(ip("2001:db8::9")), 16),
        (
            Family::Ipv6Unicast,
            NextHop::V6Pair {
                global: "2001:db8::9".parse().expect("an address"),
                link_local: "fe80::9".parse().expect("an address"),
            },
            32,
        ),
    ] {
        let codes = codes(family, next_hop);
        assert_eq!(codes.iter().map(|(code, _)| *code).collect::<Vec<_>>(), [1, 4, 8, 14, 35]);
        assert_eq!((codes[3].1[0], codes[3].1.len()), (length, usize::from(length) + 1));
    }
    // Behind all others when nothing follows.
    let only = Builder::new().origin(Origin::Egp).build();
    let entry = RibEntry {
        peer: 0,
        learned_at: 0,
        path_id: PathId(0),
        attributes: Attributes(&only),
        next_hop: ip("192.0.2.9").into(),
    };
    let mut out = Vec::new();
    write_attributes(&mut out, &entry, Family::Ipv4Unicast);
    assert_eq!(out, [0x40, 1, 1, 1, 0x40, 3, 4, 192, 0, 2, 9]);
}

#[test]
fn a_prefix_has_its_paths() {
    let attributes = Builder::new().origin(Origin::Igp).build();
    let entry = |peer, id| RibEntry {
        peer,
        learned_at: 0x0a0b_0c0d,
        path_id: PathId(id),
        attributes: Attributes(&attributes),
        next_hop: ip("192.0.2.9").into(),
    };
    let prefix = V4::from_net(&"10.1.0.0/16".parse().expect("a prefix")).expect("IPv4");
    let written = [0x40, 1, 1, 0, 0x40, 3, 4, 192, 0, 2, 9];
    let mut scratch = vec![1, 2, 3];
    let plain = made(|out| rib(out, &mut scratch, TIME, 5, prefix, false, &[entry(0, 8), entry(1, 9)]));
    let mut expected = vec![0, 0, 0, 5, 16, 10, 1, 0, 2];
    for peer in [0, 1] {
        expected.extend([0, peer, 0xa, 0xb, 0xc, 0xd, 0, 11]);
        expected.extend(written);
    }
    assert_eq!(plain, (13, 2, expected));
    let with_ids = made(|out| rib(out, &mut scratch, TIME, 5, prefix, true, &[entry(0, 8)]));
    let expected = [&[0, 0, 0, 5, 16, 10, 1, 0, 1, 0, 0, 0xa, 0xb, 0xc, 0xd, 0, 0, 0, 8, 0, 11][..], &written].concat();
    assert_eq!(with_ids, (13, 8, expected));
    let prefix = V6::from_net(&"2001:db8::/32".parse().expect("a prefix")).expect("IPv6");
    assert_eq!(made(|out| rib(out, &mut scratch, TIME, 5, prefix, false, &[])).1, 4);
    assert_eq!(made(|out| rib(out, &mut scratch, TIME, 5, prefix, true, &[])).1, 10);
}

#[test]
fn messages_say_which_way_they_went() {
    let ends = Ends {
        remote_as: Asn(70_000),
        local_as: Asn(65_002),
        link: 3,
        remote: ip("192.0.2.1"),
        local: ip("192.0.2.2"),
    };
    let form = |sent, asn4, add_path| MessageForm { sent, asn4, add_path };
    let (kind, subtype, body) = made(|out| message(out, TIME, &ends, form(false, true, false), &[0xff, 0xfe]));
    assert_eq!((kind, subtype), (17, 4));
    let expected = [0, 5, 6, 7, 0, 1, 0x11, 0x70, 0, 0, 0xfd, 0xea, 0, 3, 0, 1, 192, 0, 2, 1, 192, 0, 2, 2, 0xff, 0xfe];
    assert_eq!(body, expected);
    // AS_TRANS stands for what has no room.
    let (_, subtype, body) = made(|out| message(out, TIME, &ends, form(false, false, false), &[]));
    assert_eq!((subtype, &body[4..8]), (1, &[0x5b, 0xa0, 0xfd, 0xea][..]));
    for (form, expected) in [
        (form(true, false, false), 6),
        (form(true, true, false), 7),
        (form(false, false, true), 8),
        (form(false, true, true), 9),
        (form(true, false, true), 10),
        (form(true, true, true), 11),
    ] {
        assert_eq!(made(|out| message(out, TIME, &ends, form, &[])).1, expected);
    }
}

#[test]
fn changes_of_state_are_recorded() {
    let ends =
        Ends { remote_as: Asn(1), local_as: Asn(2), link: 0, remote: ip("2001:db8::1"), local: ip("2001:db8::2") };
    let change = |precise| {
        made(|out| state_change(out, TIME, precise, &ends, SessionState::OpenConfirm, SessionState::Established))
    };
    let (kind, subtype, body) = change(false);
    assert_eq!((kind, subtype, body.len()), (16, 5, 4 + 4 + 2 + 2 + 32 + 4));
    assert_eq!(body[44..], [0, 5, 0, 6]);
    let (kind, subtype, precise) = change(true);
    assert_eq!((kind, subtype, &precise[4..]), (17, 5, body.as_slice()));
    let mixed = Ends { local: ip("192.0.2.1"), ..ends };
    assert_eq!(
        made(|out| state_change(out, TIME, false, &mixed, SessionState::Idle, SessionState::Connect)).2.len(),
        48
    );
}
