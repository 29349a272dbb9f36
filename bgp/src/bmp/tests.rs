//! Octets against what the RFCs draw. An independent reader, tshark, is asked by the interoperability tests.

use super::*;
use crate::family::Family;

const TIME: Timestamp = Timestamp { seconds: 0x0102_0304, micros: 5 };

fn peer(table: Table, address: &str) -> Peer {
    Peer {
        table,
        distinguisher: 0,
        address: address.parse().expect("an address"),
        asn: Asn(65_001),
        router_id: RouterId(0xc000_0201),
        two_octet_as: false,
        time: TIME,
    }
}

fn made(make: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    // Messages are appended: what is there already is left alone.
    let mut out = vec![0xee; 3];
    make(&mut out);
    assert_eq!(out[..3], [0xee; 3]);
    let message = out.split_off(3);
    assert_eq!(u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize, message.len());
    assert_eq!(message[0], 3);
    message
}

#[test]
fn a_per_peer_header_is_as_it_is_drawn() {
    let header = made(|out| route_monitoring(out, &peer(Table::AdjRibIn { post_policy: false }, "192.0.2.1"), &[]));
    let mut expected = vec![3, 0, 0, 0, 48, 0, 0, 0];
    expected.extend([0; 8 + 12]);
    expected.extend([192, 0, 2, 1, 0, 0, 0xfd, 0xe9, 192, 0, 2, 1, 1, 2, 3, 4, 0, 0, 0, 5]);
    assert_eq!(header, expected);
    assert_eq!(header.len(), 6 + PEER_HEADER_LEN);
}

#[test]
fn tables_are_told_apart_by_type_and_flags() {
    for (table, address, two_octet_as, expected) in [
        (Table::AdjRibIn { post_policy: false }, "192.0.2.1", false, [0, 0x00]),
        (Table::AdjRibIn { post_policy: true }, "192.0.2.1", false, [0, 0x40]),
        (Table::AdjRibIn { post_policy: true }, "2001:db8::1", true, [0, 0xe0]),
        (Table::AdjRibOut { post_policy: false }, "192.0.2.1", false, [0, 0x10]),
        (Table::AdjRibOut { post_policy: true }, "2001:db8::1", false, [0, 0xd0]),
        // For a Loc-RIB the same bits mean other things, and there is no address.
        (Table::LocRib { filtered: false }, "2001:db8::1", true, [3, 0x00]),
        (Table::LocRib { filtered: true }, "192.0.2.1", false, [3, 0x80]),
    ] {
        let of = Peer { two_octet_as, ..peer(table, address) };
        let message = made(|out| route_monitoring(out, &of, &[]));
        assert_eq!(message[6..8], expected, "{table:?}");
        assert_eq!(message[16..32].iter().all(|octet| *octet == 0), matches!(table, Table::LocRib { .. }));
    }
}

#[test]
fn the_end_of_a_peer_says_why() {
    let of = peer(Table::AdjRibIn { post_policy: false }, "192.0.2.1");
    for (down, expected) in [
        (PeerDown::LocalNotification(&[0xaa, 0xbb]), vec![1, 0xaa, 0xbb]),
        (PeerDown::LocalEvent(10), vec![2, 0, 10]),
        (PeerDown::RemoteNotification(&[0xcc]), vec![3, 0xcc]),
        (PeerDown::RemoteClosed, vec![4]),
        (PeerDown::Unmonitored, vec![5]),
        (PeerDown::LocRib("main"), vec![6, 0, 3, 0, 4, b'm', b'a', b'i', b'n']),
    ] {
        let message = made(|out| peer_down(out, &of, down));
        assert_eq!((message[5], &message[48..]), (2, expected.as_slice()), "{down:?}");
    }
}

#[test]
fn the_begin_of_a_peer_has_addresses_ports_and_opens() {
    let up = PeerUp {
        local: "2001:db8::2".parse().expect("an address"),
        local_port: 179,
        remote_port: 40_000,
        sent_open: &[1],
        received_open: &[2, 2],
        table_name: None,
    };
    let message = made(|out| peer_up(out, &peer(Table::AdjRibIn { post_policy: false }, "2001:db8::1"), &up));
    let mut expected = vec![0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 179, 0x9c, 0x40, 1, 2, 2];
    assert_eq!((message[5], &message[48..]), (3, expected.as_slice()));
    let local = PeerUp { table_name: Some("main"), ..up };
    let message = made(|out| peer_up(out, &peer(Table::LocRib { filtered: false }, "::"), &local));
    expected = [&[0; 20][..], &[1, 2, 2, 0, 3, 0, 4], b"main"].concat();
    assert_eq!(message[48..], expected);
}

#[test]
fn numbers_have_the_width_of_their_type() {
    let numbers =
        [Statistic::Rejected(7), Statistic::LocRib(8), Statistic::AdjRibOutPostPolicyOf(Family::Ipv6Unicast, 9)];
    let message = made(|out| statistics(out, &peer(Table::AdjRibIn { post_policy: false }, "192.0.2.1"), &numbers));
    let expected = [
        &[0, 0, 0, 3][..],
        &[0, 0, 0, 4, 0, 0, 0, 7],
        &[0, 8, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8],
        &[0, 17, 0, 11, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 9],
    ]
    .concat();
    assert_eq!((message[5], &message[48..]), (1, expected.as_slice()));
}

#[test]
fn the_stream_begins_and_ends_with_words() {
    assert_eq!(
        made(|out| initiation(out, "n", "meshd", &["x"])),
        [&[3, 0, 0, 0, 25, 4, 0, 1, 0, 5][..], b"meshd", &[0, 2, 0, 1, b'n', 0, 0, 0, 1, b'x']].concat()
    );
    assert_eq!(
        made(|out| termination(out, Termination::OutOfResources, Some("slow"))),
        [&[3, 0, 0, 0, 20, 5, 0, 1, 0, 2, 0, 2, 0, 0, 0, 4][..], b"slow"].concat()
    );
}

#[test]
fn mirrored_messages_are_wrapped() {
    let of = peer(Table::AdjRibIn { post_policy: false }, "192.0.2.1");
    let message =
        made(|out| route_mirroring(out, &of, &[Mirrored::Lost, Mirrored::Errored, Mirrored::Message(&[9, 9])]));
    assert_eq!(message[5], 6);
    assert_eq!(message[48..], [0, 1, 0, 2, 0, 1, 0, 1, 0, 2, 0, 0, 0, 0, 0, 2, 9, 9]);
}
