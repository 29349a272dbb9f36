//! Routes and the nodes they lead to.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::Serialize;

use crate::id::{ClusterName, IfIndex, NodeName};

/// One remote node seen through one address family of next hops.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TargetKey {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name.
    pub node: NodeName,
    /// True when its next hops are for IPv4 destinations.
    pub ipv4: bool,
}

impl fmt::Display for TargetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.node)
    }
}

/// One next hop: a gateway that is on-link through `dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Hop {
    /// Address of the remote node.
    pub via: IpAddr,
    /// Link it is on.
    pub dev: IfIndex,
}

/// How packets reach the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteMode {
    /// Plain forwarding to the node's own address.
    Native,
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
    /// The local routes are not known yet.
    #[error("the local links and routes have not been read yet")]
    KernelUnknown,
}

/// Where routes to one node lead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Next hops, sorted; empty exactly when `problem` is set.
    pub hops: Box<[Hop]>,
    /// Why there is no next hop.
    pub problem: Option<RouteProblem>,
    /// How packets travel.
    pub mode: RouteMode,
    /// Smallest MTU of the links in `hops`, in bytes; 0 without hops.
    pub mtu: u32,
}

/// A route we want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteRow {
    /// The node behind the prefix.
    pub target: TargetKey,
}

/// A prefix that was refused because another cluster owns it, or one that overlaps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The prefix the owner holds.
    pub owned: ipnet::IpNet,
    /// The cluster that owns it.
    pub owner: ClusterName,
    /// Since when.
    pub since: jiff::Timestamp,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "prefix overlaps {} of cluster {}, which was accepted first; give one of the two clusters another PodCIDR",
            self.owned, self.owner
        )
    }
}
