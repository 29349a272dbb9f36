//! Messages about our own routes and nexthop objects to [`ActualChange`]s.
//!
//! A dump of a million routes must not cost more than the kernel's part of it, so this reads attributes in place. It is
//! strict about ownership and tolerant about content: whatever carries our mark is reported, and what is not exactly of
//! the form we install is reported as irregular.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use meshd_core::{
    desired::{Encap, Hop},
    id::{IfIndex, Metric, NexthopId, ROUTE_PROTOCOL, TableId},
    plan::{ActualChange, ActualKey, ActualNexthop, ActualRoute, GroupMember, RouteVia},
};

use super::{
    encode::TUNNEL_TTL,
    socket::{Frame, align, attributes, u16_at, u32_at, u32_value},
    wire::*,
};

/// What a route or nexthop message says about our objects; `None` when it is about something else.
pub(crate) fn change(frame: &Frame<'_>) -> Option<ActualChange> {
    match frame.kind {
        RTM_NEWROUTE => {
            let (key, owned, route) = route(frame.payload)?;
            // A foreign protocol passes the filter only when the route replaced one with our metric.
            Some(ActualChange::Route(key, owned.then_some(route)))
        }
        RTM_DELROUTE => {
            let (key, owned, _) = route(frame.payload)?;
            owned.then_some(ActualChange::Route(key, None))
        }
        RTM_NEWNEXTHOP => {
            let (id, owned, nexthop) = nexthop(frame.payload)?;
            Some(ActualChange::Nexthop(id, Some(if owned { nexthop } else { ActualNexthop::Foreign })))
        }
        RTM_DELNEXTHOP => Some(ActualChange::Nexthop(nexthop(frame.payload)?.0, None)),
        _ => None,
    }
}

/// Key, whether it is ours, and content.
fn route(payload: &[u8]) -> Option<(ActualKey, bool, ActualRoute)> {
    let header = payload.first_chunk::<12>()?;
    let [family, length, source_length, tos, table, protocol, scope, kind, ..] = *header;
    let flags = u32_at(header, 8);
    // A type of service or a source prefix belongs to the kernel's key and never to ours.
    if tos != 0 || source_length != 0 {
        return None;
    }
    let v4 = match family {
        AF_INET => true,
        AF_INET6 => false,
        _ => return None,
    };
    let mut destination = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let (mut table, mut metric) = (TableId(table.into()), Metric(0));
    let (mut object, mut gateway, mut link, mut hops) = (None, None, None, None);
    let (mut encap_type, mut encap, mut mtu) = (None, None, None);
    let drops = kind == RTN_BLACKHOLE;
    let mut regular =
        (drops || kind == RTN_UNICAST) && scope == RT_SCOPE_UNIVERSE && flags & u32::from(RTNH_F_ONLINK) == 0;
    for (kind, value) in attributes(&payload[12..]) {
        match kind {
            RTA_DST => destination = address(v4, value)?,
            RTA_TABLE => table = TableId(u32_value(value)?),
            RTA_PRIORITY => metric = Metric(u32_value(value)?),
            RTA_NH_ID => object = Some(NexthopId(u32_value(value)?)),
            RTA_GATEWAY => gateway = address(v4, value),
            RTA_VIA => gateway = via(value),
            RTA_OIF => link = Some(IfIndex(u32_value(value)?)),
            RTA_MULTIPATH => hops = multipath(v4, value),
            RTA_ENCAP_TYPE => encap_type = u16_value(value),
            RTA_ENCAP => encap = Some(value),
            RTA_METRICS => (mtu, regular) = (narrow(value), regular && narrow(value).is_some()),
            RTA_PREFSRC | RTA_FLOW | RTA_NEWDST => regular = false,
            _ => {}
        }
    }
    // With a nexthop object the kernel also writes out its hops (`net.ipv4.nexthop_compat_mode`).
    let via = match (object, hops, gateway, link) {
        (Some(id), ..) => RouteVia::Object(id),
        // The kernel says that an IPv6 route that drops is over the loopback link.
        (None, None, None, _) if drops => RouteVia::Blackhole,
        (None, Some(mut hops), ..) => {
            hops.sort_unstable();
            RouteVia::Hops(hops.into())
        }
        (None, None, Some(via), Some(dev)) if encap_type.is_none() => {
            RouteVia::Hops([Hop { via, dev, tunnel: None }].into())
        }
        (None, None, gateway, dev) => {
            let tunnel = dev.filter(|_| gateway.is_none()).and_then(|dev| tunnel(encap_type?, encap?, v4, dev));
            regular &= tunnel.is_some();
            RouteVia::Hops(tunnel.into_iter().collect())
        }
    };
    let via = mtu.map_or(via.clone(), |mtu| RouteVia::Narrow(Box::new(via), mtu));
    let key = ActualKey { prefix: IpNet::new(destination, length).ok()?, table, metric };
    Some((key, protocol == ROUTE_PROTOCOL, ActualRoute { via, regular }))
}

/// Hops of `RTA_MULTIPATH`; `None` when one is not as we install it.
fn multipath(v4: bool, mut bytes: &[u8]) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    while let Some(header) = bytes.first_chunk::<8>() {
        let length = usize::from(u16_at(header, 0));
        let (flags, weight) = (header[2], header[3]);
        let mut gateway = None;
        for (kind, value) in attributes(bytes.get(8..length)?) {
            match kind {
                RTA_GATEWAY => gateway = address(v4, value),
                RTA_VIA => gateway = via(value),
                _ => return None,
            }
        }
        if weight != 0 || flags & RTNH_F_ONLINK != 0 {
            return None;
        }
        hops.push(Hop { via: gateway?, dev: IfIndex(u32_at(header, 4)), tunnel: None });
        bytes = bytes.get(align(length)..).unwrap_or_default();
    }
    Some(hops)
}

/// Id, whether it is ours, and content; `None` for ids outside our range.
fn nexthop(payload: &[u8]) -> Option<(NexthopId, bool, ActualNexthop)> {
    let header = payload.first_chunk::<8>()?;
    let [family, _, protocol, ..] = *header;
    let flags = u32_at(header, 4);
    let (mut id, mut link, mut gateway, mut group) = (None, None, None, None);
    let mut regular = flags & u32::from(RTNH_F_ONLINK) == 0;
    let (mut encap_type, mut encap) = (None, None);
    for (kind, value) in attributes(&payload[8..]) {
        match kind {
            NHA_ID => id = u32_value(value).map(NexthopId),
            NHA_OIF => link = u32_value(value).map(IfIndex),
            NHA_GATEWAY => gateway = address(family == AF_INET, value),
            NHA_GROUP => group = members(value),
            NHA_ENCAP_TYPE => encap_type = u16_value(value),
            NHA_ENCAP => encap = Some(value),
            NHA_BLACKHOLE | NHA_FDB => regular = false,
            _ => {}
        }
    }
    let nexthop = match (regular, group, gateway, link) {
        (true, Some(members), ..) => ActualNexthop::Group(members.into()),
        (true, None, Some(via), Some(dev)) if encap_type.is_none() => {
            ActualNexthop::Hop(Hop { via, dev, tunnel: None })
        }
        (true, None, None, Some(dev)) => {
            let tunnel = encap_type.zip(encap).and_then(|(kind, value)| tunnel(kind, value, family == AF_INET, dev));
            tunnel.map_or(ActualNexthop::Irregular, ActualNexthop::Hop)
        }
        (_, _, _, _) => ActualNexthop::Irregular,
    };
    let id = id.filter(|id| id.is_owned())?;
    Some((id, protocol == ROUTE_PROTOCOL, nexthop))
}

/// The far end of a tunnel; `None` when it says anything else than we write.
fn tunnel(kind: u16, value: &[u8], ipv4: bool, dev: IfIndex) -> Option<Hop> {
    let (outer_v4, wanted_flags) = match kind {
        LWTUNNEL_ENCAP_IP => (true, 0),
        LWTUNNEL_ENCAP_IP6 => (false, TUNNEL_CSUM),
        _ => return None,
    };
    let (mut vni, mut far_end, mut ttl) = (None, None, 0);
    for (kind, value) in attributes(value) {
        match kind {
            LWTUNNEL_IP_ID => vni = u32::try_from(u64::from_be_bytes(*value.first_chunk()?)).ok(),
            LWTUNNEL_IP_DST => far_end = address(outer_v4, value),
            LWTUNNEL_IP_TTL => ttl = *value.first()?,
            LWTUNNEL_IP_SRC | LWTUNNEL_IP_TOS if value.iter().any(|octet| *octet != 0) => return None,
            LWTUNNEL_IP_FLAGS if u16::from_be_bytes(*value.first_chunk()?) & TUNNEL_CSUM != wanted_flags => {
                return None;
            }
            _ => {}
        }
    }
    let via = far_end.filter(|_| ttl == TUNNEL_TTL)?;
    Some(Hop { via, dev, tunnel: Some(Encap { vni: vni?, ipv4 }) })
}

/// The MTU in `RTA_METRICS`; `None` when there is anything else.
fn narrow(value: &[u8]) -> Option<u32> {
    let mut metrics = attributes(value);
    let (kind, mtu) = metrics.next()?;
    (kind == RTAX_MTU && metrics.next().is_none()).then(|| u32_value(mtu))?
}

/// Members of `NHA_GROUP`, sorted; `None` when they say more than we write. The kernel writes a weight of one as zero.
fn members(value: &[u8]) -> Option<Vec<GroupMember>> {
    let (entries, _) = value.as_chunks::<8>();
    let member = |entry: &[u8; 8]| {
        let weight = entry[4].checked_add(1)?;
        (entry[5..] == [0; 3]).then(|| GroupMember { id: NexthopId(u32_at(entry, 0)), weight })
    };
    let mut members: Vec<_> = entries.iter().map(member).collect::<Option<_>>()?;
    members.sort_unstable();
    Some(members)
}

fn address(v4: bool, value: &[u8]) -> Option<IpAddr> {
    if v4 {
        value.first_chunk::<4>().map(|octets| IpAddr::from(*octets))
    } else {
        value.first_chunk::<16>().map(|octets| IpAddr::from(*octets))
    }
}

fn u16_value(value: &[u8]) -> Option<u16> {
    value.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// `struct rtvia`: a family and an address.
fn via(value: &[u8]) -> Option<IpAddr> {
    let family = u16::from_ne_bytes(*value.first_chunk::<2>()?);
    address(family == u16::from(AF_INET), &value[2..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_payload_is_read_without_panic(kind in prop::sample::select(vec![24u16, 25, 104, 105]), payload: Vec<u8>) {
            change(&Frame { kind, flags: 0, seq: 0, port: 0, payload: &payload, whole: &payload });
        }
    }
}
