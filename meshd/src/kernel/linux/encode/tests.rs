use meshd_core::{
    id::{IfIndex, Metric, TableId},
    plan::{ActualChange, ActualNexthop},
};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteProtocol, RouteScope, RouteType,
        RouteVia as Via,
    },
};

use super::*;

fn key(prefix: &str, table: u32) -> ActualKey {
    ActualKey { prefix: prefix.parse().unwrap(), table: TableId(table), metric: Metric(77) }
}

fn hop(via: &str, dev: u32) -> Hop {
    Hop { via: via.parse().unwrap(), dev: IfIndex(dev), tunnel: None }
}

fn encode(actions: &[Action]) -> Vec<u8> {
    let mut batch = Batch::default();
    for (seq, action) in (1..).zip(actions) {
        batch.push(action, seq).unwrap();
    }
    batch.finish().to_vec()
}

/// What `netlink-packet-route` makes of a route.
fn foreign(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn route(prefix: &str, table: u8, scope: RouteScope, kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let prefix: IpNet = prefix.parse().unwrap();
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if prefix.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
        destination_prefix_length: prefix.prefix_len(),
        table,
        protocol: RouteProtocol::Other(77),
        scope,
        kind,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Destination(prefix.addr().into())];
    message.attributes.extend(attributes);
    message
}

#[test]
fn routes_are_byte_for_byte_what_netlink_packet_route_emits() {
    let metric = RouteAttribute::Priority(77);
    let gateway = |via: &str| RouteAttribute::Gateway(RouteAddress::from(via.parse::<IpAddr>().unwrap()));
    let via6 = || RouteAttribute::Via(Via::Inet6("2001:db8::9".parse().unwrap()));
    let path = |attribute, dev| {
        let mut hop = RouteNextHop::default();
        hop.interface_index = dev;
        hop.attributes = vec![attribute];
        hop
    };
    let object = RouteVia::Object(NexthopId(77_000_001));
    let single = |via, dev| RouteVia::Hops([hop(via, dev)].into());
    let double = RouteVia::Hops([hop("192.0.2.9", 3), hop("2001:db8::9", 4)].into());
    for (prefix, table, via, attributes) in [
        ("10.1.0.0/24", 254, object.clone(), vec![metric.clone(), RouteAttribute::NhId(77_000_001)]),
        ("fd00::/64", 77, object, vec![metric.clone(), RouteAttribute::NhId(77_000_001)]),
        (
            "10.1.0.0/24",
            1000,
            single("192.0.2.9", 3),
            vec![RouteAttribute::Table(1000), metric.clone(), gateway("192.0.2.9"), RouteAttribute::Oif(3)],
        ),
        ("10.1.0.0/24", 254, single("2001:db8::9", 3), vec![metric.clone(), via6(), RouteAttribute::Oif(3)]),
        (
            "fd00::/64",
            254,
            single("2001:db8::9", 3),
            vec![metric.clone(), gateway("2001:db8::9"), RouteAttribute::Oif(3)],
        ),
        (
            "10.1.0.0/24",
            254,
            double,
            vec![metric.clone(), RouteAttribute::MultiPath(vec![path(gateway("192.0.2.9"), 3), path(via6(), 4)])],
        ),
    ] {
        let header_table = u8::try_from(table).unwrap_or(0);
        for (replace, flags) in [(false, 0x1 | 0x4 | 0x400 | 0x200), (true, 0x1 | 0x4 | 0x400 | 0x100)] {
            let ours = encode(&[Action::PutRoute { key: key(prefix, table), via: via.clone(), replace }]);
            let message = route(prefix, header_table, RouteScope::Universe, RouteType::Unicast, attributes.clone());
            assert_eq!(ours, foreign(RouteNetlinkMessage::NewRoute(message), flags), "{prefix} {table} {via}");
        }
    }
    let ours = encode(&[Action::DeleteRoute { key: key("fd00::/64", 254) }]);
    let message = route("fd00::/64", 254, RouteScope::NoWhere, RouteType::Unspec, vec![metric]);
    assert_eq!(ours, foreign(RouteNetlinkMessage::DelRoute(message), 0x1 | 0x4));
}

#[test]
fn nexthop_objects_follow_linux_nexthop_h() {
    let bytes = encode(&[Action::PutNexthop { id: NexthopId(77_000_001), hop: hop("192.0.2.9", 3), replace: false }]);
    let mut wanted: Vec<u8> = Vec::new();
    wanted.extend(48u32.to_ne_bytes());
    wanted.extend(104u16.to_ne_bytes());
    wanted.extend((0x1u16 | 0x4 | 0x400 | 0x200).to_ne_bytes());
    wanted.extend(1u32.to_ne_bytes());
    wanted.extend(0u32.to_ne_bytes());
    wanted.extend([2, 0, 77, 0, 0, 0, 0, 0]);
    for (kind, value) in [(1u16, 77_000_001u32.to_ne_bytes()), (5, 3u32.to_ne_bytes()), (6, [192, 0, 2, 9])] {
        wanted.extend(8u16.to_ne_bytes());
        wanted.extend(kind.to_ne_bytes());
        wanted.extend(value);
    }
    assert_eq!(bytes, wanted);

    let members =
        [GroupMember { id: NexthopId(77_000_001), weight: 1 }, GroupMember { id: NexthopId(77_000_002), weight: 3 }];
    let bytes = encode(&[Action::PutGroup { id: NexthopId(77_000_003), members: members.into(), replace: true }]);
    assert_eq!(bytes[16..24], [0, 0, 77, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[32..36], [[20, 0], [2, 0]].concat());
    assert_eq!(bytes[36..44], [77_000_001u32.to_ne_bytes(), [0; 4]].concat());
    assert_eq!(
        bytes[44..52],
        [77_000_002u32.to_ne_bytes(), [2, 0, 0, 0]].concat(),
        "the wire has the weight minus one"
    );

    let bytes = encode(&[Action::DeleteNexthop { id: NexthopId(77_000_001), routes: 0 }]);
    assert_eq!(bytes[16..24], [0; 8], "the kernel refuses a deletion with anything in its header");
}

#[test]
fn only_the_last_message_asks_for_an_answer() {
    let action = Action::DeleteRoute { key: key("10.1.0.0/24", 254) };
    let bytes = encode(&[action.clone(), action.clone(), action]);
    let flags: Vec<u16> = super::super::socket::frames(&bytes).map(|frame| frame.flags).collect();
    assert_eq!(flags, [0x1, 0x1, 0x1 | 0x4]);
}

#[test]
fn what_cannot_be_sent_leaves_the_batch_as_it_was() {
    let mut batch = Batch::default();
    batch.push(&Action::DeleteRoute { key: key("10.1.0.0/24", 254) }, 1).unwrap();
    let before = batch.finish().to_vec();
    let foreign_id = NexthopId(5);
    let many: Box<[GroupMember]> = (0..10_000).map(|n| NexthopId(77_000_000 + n).into()).collect();
    for (action, refusal) in [
        (Action::DeleteNexthop { id: foreign_id, routes: 0 }, Refusal::NotOwned(5)),
        (Action::PutGroup { id: foreign_id, members: [].into(), replace: false }, Refusal::NotOwned(5)),
        (Action::PutGroup { id: NexthopId(77_000_000), members: many, replace: false }, Refusal::TooManyHops(10_000)),
        (
            Action::PutRoute {
                key: key("fd00::/64", 254),
                via: RouteVia::Hops([hop("192.0.2.9", 3)].into()),
                replace: false,
            },
            Refusal::HopFamily,
        ),
    ] {
        assert_eq!(batch.push(&action, 2), Err(refusal));
        assert_eq!(batch.finish(), before);
        assert_eq!(batch.last_seq(), Some(1));
    }
}

#[test]
fn a_message_is_read_as_it_was_written() {
    let payload: NetlinkMessage<RouteNetlinkMessage> =
        NetlinkMessage::deserialize(&encode(&[Action::DeleteRoute { key: key("10.1.0.0/24", 254) }])).unwrap();
    assert!(matches!(payload.payload, NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(_))));
}

#[test]
fn tunnels_follow_linux_lwtunnel_h() {
    let encap = |ipv4| Some(meshd_core::desired::Encap { vni: 2, ipv4 });
    let over_v4 = Hop { tunnel: encap(false), ..hop("192.0.2.9", 7) };
    let bytes = encode(&[Action::PutNexthop { id: NexthopId(77_000_001), hop: over_v4, replace: true }]);
    assert_eq!(bytes[16], 10, "the family is that of the packets");
    let attributes: Vec<(u16, Vec<u8>)> =
        super::super::socket::attributes(&bytes[24..]).map(|(kind, value)| (kind, value.to_vec())).collect();
    assert_eq!(attributes[1], (5, 7u32.to_ne_bytes().to_vec()));
    assert_eq!(attributes[2], (7, 2u16.to_ne_bytes().to_vec()), "LWTUNNEL_ENCAP_IP");
    let inner: Vec<(u16, Vec<u8>)> =
        super::super::socket::attributes(&attributes[3].1).map(|(kind, value)| (kind, value.to_vec())).collect();
    let wanted = [(1, 2u64.to_be_bytes().to_vec()), (2, vec![192, 0, 2, 9]), (4, vec![TUNNEL_TTL]), (6, vec![0, 0])];
    assert_eq!((attributes[3].0, inner), (8, wanted.to_vec()));

    // What is written is read back as the same.
    for wanted in [over_v4, Hop { tunnel: encap(true), ..hop("fd00::9", 7) }] {
        let bytes = encode(&[Action::PutNexthop { id: NexthopId(77_000_001), hop: wanted, replace: true }]);
        let frame = super::super::socket::frames(&bytes).next().unwrap();
        let read = super::super::decode::change(&frame);
        let expected = ActualChange::Nexthop(NexthopId(77_000_001), Some(ActualNexthop::Hop(wanted)));
        assert_eq!(read, Some(expected));
    }
    let mut batch = Batch::default();
    let via = RouteVia::Hops([over_v4].into());
    let refused = batch.push(&Action::PutRoute { key: key("10.1.0.0/24", 254), via, replace: false }, 1);
    assert_eq!(refused, Err(Refusal::HopFamily));
}
