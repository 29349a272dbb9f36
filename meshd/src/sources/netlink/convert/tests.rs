use netlink_packet_route::{
    link::InfoKind,
    route::{RouteHeader, RouteNextHop, RouteProtocol},
    rule::RuleHeader,
};

use super::*;

fn route(kind: RouteType, protocol: RouteProtocol, attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: 24,
        table: 254,
        protocol,
        kind,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet([10, 1, 0, 0].into()))];
    message.attributes.extend(attributes);
    message
}

fn gateway(last: u8) -> RouteAttribute {
    RouteAttribute::Gateway(RouteAddress::Inet([192, 0, 2, last].into()))
}

fn hop(via: Option<&str>, dev: u32) -> NextHopSpec {
    NextHopSpec { via: via.map(|via| via.parse().unwrap()), dev: IfIndex(dev) }
}

#[test]
fn a_foreign_route_keeps_what_tells_it_from_others() {
    let attributes =
        vec![gateway(1), RouteAttribute::Oif(3), RouteAttribute::Priority(100), RouteAttribute::Table(1000)];
    let (key, row) = route_row(&route(RouteType::Unicast, RouteProtocol::Static, attributes)).unwrap();
    let first = hop(Some("192.0.2.1"), 3);
    assert_eq!(
        key,
        RouteKey {
            table: TableId(1000),
            prefix: "10.1.0.0/24".parse().unwrap(),
            metric: Metric(100),
            tos: 0,
            protocol: 4,
            hop: Some(first)
        }
    );
    assert_eq!(row, RouteRow { kind: RouteKind::Unicast, hops: [first].into(), nexthop: None });
}

#[test]
fn hops_come_from_the_route_from_multipath_or_from_nowhere() {
    let several = RouteAttribute::MultiPath(
        [(1, 3), (2, 4)]
            .map(|(last, dev)| {
                let mut hop = RouteNextHop::default();
                hop.interface_index = dev;
                hop.attributes = vec![gateway(last)];
                hop
            })
            .into(),
    );
    let via6 = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()));
    for (kind, attributes, hops) in [
        (RouteType::Unicast, vec![RouteAttribute::Oif(3)], vec![hop(None, 3)]),
        (RouteType::Unicast, vec![several], vec![hop(Some("192.0.2.1"), 3), hop(Some("192.0.2.2"), 4)]),
        (RouteType::Unicast, vec![via6, RouteAttribute::Oif(3)], vec![hop(Some("fe80::1"), 3)]),
        (RouteType::Unicast, vec![RouteAttribute::NhId(7), gateway(1), RouteAttribute::Oif(3)], vec![]),
        (RouteType::BlackHole, vec![RouteAttribute::Oif(1)], vec![]),
    ] {
        let (key, row) = route_row(&route(kind, RouteProtocol::Zebra, attributes)).unwrap();
        assert_eq!(*row.hops, hops);
        assert_eq!(key.hop, hops.first().copied());
    }
}

#[test]
fn routes_that_are_ours_or_of_no_interest_are_skipped() {
    let own = route(RouteType::Unicast, RouteProtocol::Other(77), vec![]);
    let local = route(RouteType::Local, RouteProtocol::Kernel, vec![RouteAttribute::Table(255)]);
    let broadcast = route(RouteType::Broadcast, RouteProtocol::Kernel, vec![]);
    let mut cached = route(RouteType::Unicast, RouteProtocol::Unspec, vec![]);
    cached.header.flags = RouteFlags::Cloned;
    for message in [own, local, broadcast, cached] {
        assert_eq!(route_row(&message), None, "{message:?}");
    }
}

#[test]
fn a_link_tells_its_state_and_a_bridge_port_message_nothing() {
    let mut link = LinkMessage::default();
    link.header.index = 3;
    link.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    link.attributes = vec![
        LinkAttribute::IfName("eth0".into()),
        LinkAttribute::Mtu(1500),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
    ];
    let row = link_row(&link).unwrap();
    let wanted = LinkRow {
        name: "eth0".into(),
        up: true,
        running: true,
        loopback: false,
        mtu: 1500,
        kind: Some("veth".into()),
        mac: None,
    };
    assert_eq!(row, wanted);
    link.header.interface_family = AddressFamily::Bridge;
    assert_eq!(link_row(&link), None);
}

#[test]
fn an_address_is_usable_unless_its_check_runs_or_failed() {
    let mut message = AddressMessage::default();
    message.header.prefix_len = 32;
    message.attributes = vec![
        AddressAttribute::Address("192.0.2.2".parse().unwrap()),
        AddressAttribute::Local("192.0.2.1".parse().unwrap()),
    ];
    assert_eq!(address_key(&message).unwrap().address, "192.0.2.1/32".parse().unwrap());
    for (flags, usable) in [
        (AddressFlags::Permanent, true),
        (AddressFlags::Tentative, false),
        (AddressFlags::Tentative | AddressFlags::Optimistic, true),
        (AddressFlags::Dadfailed, false),
    ] {
        message.attributes.push(AddressAttribute::Flags(flags));
        assert_eq!(address_row(&message).usable, usable, "{flags:?}");
        message.attributes.pop();
    }
}

#[test]
fn rules_and_neighbors_keep_their_keys() {
    let mut rule = RuleMessage::default();
    rule.header = RuleHeader {
        family: AddressFamily::Inet,
        src_len: 8,
        action: RuleAction::ToTable,
        table: 254,
        ..RuleHeader::default()
    };
    rule.attributes = vec![
        RuleAttribute::Priority(7),
        RuleAttribute::Table(1000),
        RuleAttribute::Source("10.0.0.0".parse().unwrap()),
        RuleAttribute::Protocol(RouteProtocol::Kernel),
    ];
    let (key, row) = rule_row(&rule).unwrap();
    assert_eq!((key.priority, key.table, row.protocol), (7, TableId(1000), 2));
    assert_eq!(key.source, Some("10.0.0.0/8".parse().unwrap()));

    let mut neighbor = NeighbourMessage::default();
    neighbor.header.ifindex = 3;
    neighbor.header.state = NeighbourState::Failed;
    neighbor.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet([192, 0, 2, 1].into()))];
    let (key, row) = neighbor_row(&neighbor).unwrap();
    assert_eq!(key, NeighborKey { link: IfIndex(3), address: "192.0.2.1".parse().unwrap() });
    assert_eq!(row, NeighborRow { mac: None, failed: true });
    neighbor.header.state = NeighbourState::Noarp;
    assert_eq!(neighbor_row(&neighbor), None);
}
