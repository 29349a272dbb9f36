//! Routes and the nodes they lead to.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    id::{ClusterName, IfIndex, NodeName},
    observed::BgpTargetId,
};

/// One remote node seen through one address family of next hops.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NodeTarget {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name.
    pub node: NodeName,
    /// True when its next hops are for IPv4 destinations.
    pub ipv4: bool,
}

impl fmt::Display for NodeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.node)
    }
}

/// What stands behind a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKey {
    /// A node of the mesh.
    Node(NodeTarget),
    /// The next hops that BGP chose, by the number of their set.
    Bgp(BgpTargetId),
    /// The native way to a node for path probes, while workloads' packets go another way.
    Probe(NodeTarget),
}

impl TargetKey {
    /// The node, when it is one.
    #[must_use]
    pub fn node(&self) -> Option<&NodeTarget> {
        match self {
            Self::Node(node) => Some(node),
            Self::Bgp(_) | Self::Probe(_) => None,
        }
    }
}

impl From<NodeTarget> for TargetKey {
    fn from(node: NodeTarget) -> Self {
        Self::Node(node)
    }
}

impl fmt::Display for TargetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Probe(node) => write!(f, "probes of {node}"),
            Self::Bgp(id) => id.fmt(f),
        }
    }
}

/// One next hop: a gateway that is on-link through `dev`, or the far end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Hop {
    /// Address of the remote node.
    pub via: IpAddr,
    /// Link it is on, or the tunnel's link.
    pub dev: IfIndex,
    /// Packets are encapsulated and sent to `via`, which need not be on-link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Encap>,
}

/// How packets are encapsulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Encap {
    /// The number in the tunnel's header (VNI).
    pub vni: u32,
    /// True when what is encapsulated is IPv4.
    pub ipv4: bool,
}

impl Hop {
    /// Routes of IPv6 cannot use it. Without a gateway the family is the one of the packets.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.tunnel.map_or(self.via.is_ipv4(), |encap| encap.ipv4)
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tunnel {
            None => write!(f, "via {} dev {}", self.via, self.dev),
            Some(Encap { vni, .. }) => write!(f, "encap {} id {vni} dev {}", self.via, self.dev),
        }
    }
}

/// How packets reach the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteMode {
    /// Plain forwarding to the node's own address.
    Native,
    /// Plain forwarding to the next hops of the best BGP paths.
    Bgp,
    /// Encapsulated to the node's own address.
    Tunnel,
}

/// Why a desired row cannot become a kernel route now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum RouteProblem {
    /// The node published no usable address of this family.
    #[error("node {node} has published no {family} address")]
    NoAddress {
        /// The node.
        node: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// No address of the node is directly reachable.
    #[error("{address} is not on-link: {reason}; a direct route needs the node in a connected network")]
    NotOnLink {
        /// First address tried.
        address: IpAddr,
        /// What the kernel's routes say instead.
        reason: Arc<str>,
    },
    /// No next hop of the best BGP paths can be used.
    #[error("no next hop can be used: {reason}")]
    NoNextHop {
        /// What is wrong with the first of them.
        reason: Arc<str>,
    },
    /// Packets would have to be encapsulated, and the tunnel's link is not there.
    #[error("the tunnel's link {link} is not up; see the problems of `tunnel` in meshd status")]
    NoTunnel {
        /// Its name.
        link: &'static str,
    },
    /// No address of the node can be the far end of a tunnel.
    #[error("{address} cannot be the far end of a tunnel: {reason}")]
    NoUnderlay {
        /// First address tried.
        address: IpAddr,
        /// What the kernel's routes say.
        reason: Arc<str>,
    },
    /// The local routes are not known yet.
    #[error("the local links and routes have not been read yet")]
    KernelUnknown,
}

/// Where routes to one node lead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Next hops, sorted; empty exactly when `problem` or `drops` is set.
    pub hops: Box<[Hop]>,
    /// Packets are dropped (RFC 7999).
    pub drops: bool,
    /// The share of each of `hops` in the traffic, as many as there are hops; empty means equal shares.
    pub weights: Box<[u8]>,
    /// Routes lead to a group even when one next hop is left of it: those that come and go then cost one message each,
    /// however many routes there are.
    pub grouped: bool,
    /// Why there is no next hop.
    pub problem: Option<RouteProblem>,
    /// How packets travel.
    pub mode: RouteMode,
    /// Largest packet that can go there, in bytes; 0 without hops.
    pub mtu: u32,
    /// It is smaller than the links in `hops` take, so routes have to say it.
    pub narrow: bool,
}

impl Target {
    /// A target reached through these next hops of a node in equal shares.
    #[must_use]
    pub fn native(hops: Box<[Hop]>, mtu: u32) -> Self {
        Self {
            hops,
            drops: false,
            weights: Box::default(),
            grouped: false,
            problem: None,
            mode: RouteMode::Native,
            mtu,
            narrow: false,
        }
    }

    /// The same with packets of at most `mtu` bytes.
    #[must_use]
    pub fn narrowed(self, mtu: u32) -> Self {
        if self.problem.is_some() || mtu >= self.mtu { self } else { Self { mtu, narrow: true, ..self } }
    }

    /// A target reached through a tunnel to a node.
    #[must_use]
    pub fn tunnel(hop: Hop, mtu: u32) -> Self {
        Self { mode: RouteMode::Tunnel, ..Self::native([hop].into(), mtu) }
    }

    /// A target without a next hop.
    #[must_use]
    pub fn unreachable(problem: RouteProblem, mode: RouteMode) -> Self {
        Self { problem: Some(problem), drops: false, ..Self::blackhole(mode) }
    }

    /// A target that drops packets.
    #[must_use]
    pub fn blackhole(mode: RouteMode) -> Self {
        let (hops, weights) = (Box::default(), Box::default());
        Self { hops, drops: true, weights, grouped: false, problem: None, mode, mtu: 0, narrow: false }
    }

    /// True when routes lead to a group of next hops.
    #[must_use]
    pub fn uses_group(&self) -> bool {
        self.grouped || self.hops.len() > 1
    }
}

/// A route we want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteRow {
    /// What is behind the prefix.
    pub target: TargetKey,
}

/// Why a prefix of a node that is otherwise fine was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictCause {
    /// Another cluster owns it, or one that overlaps it.
    #[error(
        "prefix overlaps {owned} of cluster {owner}, which was accepted first; give one of the two clusters another PodCIDR"
    )]
    Owned {
        /// The prefix the owner holds.
        owned: IpNet,
        /// The cluster that owns it.
        owner: ClusterName,
    },
    /// It is a network this node is connected to.
    #[error("prefix is {network}, a network this node is connected to; give the cluster another PodCIDR")]
    Network {
        /// The network.
        network: IpNet,
    },
    /// It is a part of such a network.
    #[error(
        "prefix lies inside {network}, a network this node is connected to; give the cluster another PodCIDR or, where \
         workloads do share the network of the nodes, write an entry of accept.pod_cidrs that lies inside {network} too"
    )]
    InsideNetwork {
        /// The network.
        network: IpNet,
    },
    /// It would take the traffic to a gateway of this node.
    #[error("prefix contains {address}, a gateway of this node; give the cluster another PodCIDR")]
    Gateway {
        /// The gateway.
        address: IpAddr,
    },
    /// It would take the traffic to a node.
    #[error("prefix contains {address}, the address of node {node}; give the cluster another PodCIDR")]
    Node {
        /// The address.
        address: IpAddr,
        /// Cluster and name of the node.
        node: Arc<str>,
    },
}

impl ConflictCause {
    /// True when the same cluster, or the underlay, is in the way: the conflict goes on.
    #[must_use]
    pub fn is_same_obstacle(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Owned { owner, .. }, Self::Owned { owner: other, .. }) => owner == other,
            (Self::Owned { .. }, _) | (_, Self::Owned { .. }) => false,
            (
                Self::Network { .. } | Self::InsideNetwork { .. } | Self::Gateway { .. } | Self::Node { .. },
                Self::Network { .. } | Self::InsideNetwork { .. } | Self::Gateway { .. } | Self::Node { .. },
            ) => true,
        }
    }
}

/// A prefix that was refused although its record is fine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// Why.
    pub cause: ConflictCause,
    /// Since when.
    pub since: jiff::Timestamp,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}
