//! Netlink messages to observed rows.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use meshd_core::{
    id::{IfIndex, LINK_PREFIX, Metric, NexthopId, ROUTE_PROTOCOL, TableId},
    observed::{
        AddressKey, AddressRow, KernelChange, LinkRow, NeighborKey, NeighborRow, NextHopSpec, RouteKey, RouteKind,
        RouteRow, RuleKey, RuleRow,
    },
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType, RouteVia},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

/// The kernel's table of its own addresses (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: TableId = TableId(255);

/// The change a message states; `None` when it is about nothing we keep.
pub(super) fn change(message: &RouteNetlinkMessage) -> Option<KernelChange> {
    use RouteNetlinkMessage as M;
    match message {
        M::NewLink(link) => Some(KernelChange::Link(IfIndex(link.header.index), Some(link_row(link)?))),
        M::DelLink(link) => Some(KernelChange::Link(IfIndex(link.header.index), None)),
        M::NewAddress(address) => {
            address_key(address).map(|key| KernelChange::Address(key, Some(address_row(address))))
        }
        M::DelAddress(address) => address_key(address).map(|key| KernelChange::Address(key, None)),
        M::NewRoute(route) => route_row(route).map(|(key, row)| KernelChange::Route(key, Some(row))),
        M::DelRoute(route) => route_row(route).map(|(key, _)| KernelChange::Route(key, None)),
        M::NewRule(rule) => rule_row(rule).map(|(key, row)| KernelChange::Rule(key, Some(row))),
        M::DelRule(rule) => rule_row(rule).map(|(key, _)| KernelChange::Rule(key, None)),
        M::NewNeighbour(neighbor) => neighbor_row(neighbor).map(|(key, row)| KernelChange::Neighbor(key, Some(row))),
        M::DelNeighbour(neighbor) => neighbor_row(neighbor).map(|(key, _)| KernelChange::Neighbor(key, None)),
        _ => None,
    }
}

/// `None` for messages of a bridge about its port: they do not carry the whole link.
fn link_row(link: &LinkMessage) -> Option<LinkRow> {
    if link.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = link.header.flags;
    let mut row = LinkRow {
        name: "".into(),
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        mtu: 0,
        kind: None,
        mac: None,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => row.name = name.as_str().into(),
            LinkAttribute::Mtu(mtu) => row.mtu = *mtu,
            LinkAttribute::Address(address) => row.mac = address.as_slice().try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                row.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string().into()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(row)
}

/// The local address with the length of its connected prefix. `IFA_LOCAL` is the address itself; on a point-to-point link
/// `IFA_ADDRESS` is the far end.
fn address_key(message: &AddressMessage) -> Option<AddressKey> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Address(value) => address = Some(*value),
            // The tunnel's link carries an address of the node a second time; it leads nowhere by itself.
            AddressAttribute::Label(label) if label.starts_with(LINK_PREFIX) => return None,
            _ => {}
        }
    }
    let address = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(AddressKey { link: IfIndex(message.header.index), address })
}

/// An optimistic address is tentative and usable.
fn address_row(message: &AddressMessage) -> AddressRow {
    let wide = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let has = |wide_flag, flag| {
        wide.map_or_else(|| message.header.flags.contains(flag), |flags: AddressFlags| flags.contains(wide_flag))
    };
    let failed = has(AddressFlags::Dadfailed, AddressHeaderFlags::Dadfailed);
    let tentative = has(AddressFlags::Tentative, AddressHeaderFlags::Tentative);
    let optimistic = has(AddressFlags::Optimistic, AddressHeaderFlags::Optimistic);
    AddressRow { usable: !failed && (!tentative || optimistic) }
}

/// `None` for our own routes, the local table, broadcast and multicast, and cached routes.
fn route_row(message: &RouteMessage) -> Option<(RouteKey, RouteRow)> {
    let header = &message.header;
    let protocol = u8::from(header.protocol);
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        RouteType::Throw => RouteKind::Throw,
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => return None,
        _ => RouteKind::Other,
    };
    if protocol == ROUTE_PROTOCOL || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut parts = RouteParts::default();
    let mut table = TableId(header.table.into());
    let (mut destination, mut metric) = (unspecified(header.address_family)?, Metric(0));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(value) => destination = address(value)?,
            RouteAttribute::Table(value) => table = TableId(*value),
            RouteAttribute::Priority(value) => metric = Metric(*value),
            other => parts.take(other),
        }
    }
    let prefix = IpNet::new(destination, header.destination_prefix_length).ok()?;
    if table == LOCAL_TABLE || (prefix.addr().is_multicast() && prefix.prefix_len() > 0) {
        return None;
    }
    let hops: Arc<[NextHopSpec]> = parts.hops(kind).into();
    let key = RouteKey { table, prefix, metric, tos: header.tos, protocol, hop: hops.first().copied() };
    Some((key, RouteRow { kind, hops, nexthop: parts.nexthop }))
}

/// What a route says about where it leads.
#[derive(Debug, Default)]
struct RouteParts {
    via: Option<IpAddr>,
    dev: Option<IfIndex>,
    several: Vec<NextHopSpec>,
    nexthop: Option<NexthopId>,
}

impl RouteParts {
    fn take(&mut self, attribute: &RouteAttribute) {
        match attribute {
            RouteAttribute::Gateway(value) => self.via = address(value),
            RouteAttribute::Via(RouteVia::Inet(value)) => self.via = Some((*value).into()),
            RouteAttribute::Via(RouteVia::Inet6(value)) => self.via = Some((*value).into()),
            RouteAttribute::Oif(value) => self.dev = Some(IfIndex(*value)),
            RouteAttribute::NhId(value) => self.nexthop = Some(NexthopId(*value)),
            RouteAttribute::MultiPath(hops) => {
                self.several = hops
                    .iter()
                    .map(|hop| {
                        let mut parts = Self::default();
                        hop.attributes.iter().for_each(|attribute| parts.take(attribute));
                        NextHopSpec { via: parts.via, dev: IfIndex(hop.interface_index) }
                    })
                    .collect();
            }
            _ => {}
        }
    }

    /// None for routes that forward nothing (IPv6 names the loopback link in them) or refer to a nexthop object.
    fn hops(&self, kind: RouteKind) -> Vec<NextHopSpec> {
        if self.nexthop.is_some() || !matches!(kind, RouteKind::Unicast | RouteKind::Local) {
            return Vec::new();
        }
        match self.dev {
            _ if !self.several.is_empty() => self.several.clone(),
            Some(dev) => vec![NextHopSpec { via: self.via, dev }],
            None => Vec::new(),
        }
    }
}

fn rule_row(message: &RuleMessage) -> Option<(RuleKey, RuleRow)> {
    let header = &message.header;
    let ipv4 = match header.family {
        AddressFamily::Inet => true,
        AddressFamily::Inet6 => false,
        // Multicast routing has rules of its own.
        _ => return None,
    };
    let to_table = header.action == RuleAction::ToTable;
    let table = if to_table { TableId(header.table.into()) } else { TableId(0) };
    let mut key = RuleKey { ipv4, priority: 0, table, source: None, destination: None, mark: None };
    let mut row = RuleRow { protocol: 0 };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => key.priority = *value,
            RuleAttribute::Table(value) if to_table => key.table = TableId(*value),
            RuleAttribute::Source(value) => key.source = IpNet::new(*value, header.src_len).ok(),
            RuleAttribute::Destination(value) => key.destination = IpNet::new(*value, header.dst_len).ok(),
            RuleAttribute::FwMark(value) => key.mark = Some(*value),
            RuleAttribute::Protocol(value) => row.protocol = (*value).into(),
            _ => {}
        }
    }
    Some((key, row))
}

/// `None` for entries that are not resolved on the link (`NUD_NOARP`), such as multicast groups.
fn neighbor_row(message: &NeighbourMessage) -> Option<(NeighborKey, NeighborRow)> {
    let header = &message.header;
    if header.state == NeighbourState::Noarp {
        return None;
    }
    let mut address = None;
    let mut row = NeighborRow { mac: None, failed: header.state == NeighbourState::Failed };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(value)) => address = Some(IpAddr::from(*value)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(value)) => address = Some(IpAddr::from(*value)),
            NeighbourAttribute::LinkLayerAddress(value) => row.mac = value.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((NeighborKey { link: IfIndex(header.ifindex), address: address? }, row))
}

fn address(value: &RouteAddress) -> Option<IpAddr> {
    match value {
        RouteAddress::Inet(value) => Some((*value).into()),
        RouteAddress::Inet6(value) => Some((*value).into()),
        _ => None,
    }
}

fn unspecified(family: AddressFamily) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some([0; 4].into()),
        AddressFamily::Inet6 => Some([0; 16].into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
