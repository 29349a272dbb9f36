//! What the local kernel says: links, addresses, foreign routes, rules, neighbors.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;

use crate::id::{IfIndex, Metric, NexthopId, TableId};

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkRow {
    /// Name, as in `ip link`.
    pub name: Arc<str>,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Has carrier (`IFF_LOWER_UP`).
    pub running: bool,
    /// The loopback link.
    pub loopback: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Driver kind (`veth`, `bridge`, …) when the kernel says one.
    pub kind: Option<Arc<str>>,
    /// Link-layer address, when it is one of Ethernet.
    pub mac: Option<[u8; 6]>,
}

/// Key of an address row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct AddressKey {
    /// Link that carries it.
    pub link: IfIndex,
    /// Address with the length of its connected prefix.
    pub address: IpNet,
}

/// An address of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AddressRow {
    /// False while duplicate address detection runs or after it failed.
    pub usable: bool,
}

/// What a route does with a packet (`rtm_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// Forward.
    Unicast,
    /// Deliver here.
    Local,
    /// Drop in silence.
    Blackhole,
    /// Drop with an ICMP error.
    Unreachable,
    /// Drop with an ICMP administrative error.
    Prohibit,
    /// Go on with the next rule.
    Throw,
    /// Broadcast, multicast, anycast and the rest.
    Other,
}

/// One next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NextHopSpec {
    /// Gateway; `None` for a directly connected prefix.
    pub via: Option<IpAddr>,
    /// Link the packet leaves through.
    pub dev: IfIndex,
}

/// Key of a foreign route. Several routes may share prefix and metric (`ip route append`), so the protocol and the first
/// hop belong to the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RouteKey {
    /// Route table.
    pub table: TableId,
    /// Destination.
    pub prefix: IpNet,
    /// Metric.
    pub metric: Metric,
    /// Type of service (IPv4).
    pub tos: u8,
    /// Who installed it (`rtm_protocol`).
    pub protocol: u8,
    /// First next hop.
    pub hop: Option<NextHopSpec>,
}

/// A foreign route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteRow {
    /// What it does.
    pub kind: RouteKind,
    /// Its next hops; empty for kinds that forward nothing and for routes that refer to a nexthop object.
    pub hops: Arc<[NextHopSpec]>,
    /// Nexthop object it refers to.
    pub nexthop: Option<NexthopId>,
}

/// Key of a policy rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RuleKey {
    /// True for IPv4.
    pub ipv4: bool,
    /// Priority; lower is looked at first.
    pub priority: u32,
    /// Table it sends to; 0 for other actions.
    pub table: TableId,
    /// Source selector.
    pub source: Option<IpNet>,
    /// Destination selector.
    pub destination: Option<IpNet>,
    /// Packet mark selector.
    pub mark: Option<u32>,
}

/// A policy rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RuleRow {
    /// Who installed it.
    pub protocol: u8,
}

/// Key of a neighbor entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NeighborKey {
    /// Link.
    pub link: IfIndex,
    /// Address.
    pub address: IpAddr,
}

/// A neighbor entry (ARP or NDP).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NeighborRow {
    /// Link-layer address, when resolved.
    pub mac: Option<[u8; 6]>,
    /// True when the kernel could not resolve it (`NUD_FAILED`).
    pub failed: bool,
}
