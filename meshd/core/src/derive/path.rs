//! Natively or through a tunnel?
//!
//! Who runs the mesh says it for all nodes, for one cluster or for one node; the closest word counts. With `auto` a node is
//! reached natively as long as that works. What works is not guessed: probes tell when packets of workloads do not arrive
//! natively although they do through the tunnel ([`PathRow::broken`](crate::observed::PathRow)), and a node that is not on-link
//! has no native way at all. Where no tunnel is allowed, every node is reached natively.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::{
    id::{ClusterName, NodeName},
    observed::NodeRow,
};

/// Octets a tunnel adds to a packet between IPv4 nodes: IPv4, UDP, VXLAN and Ethernet headers.
pub const OVERHEAD_V4: u32 = 20 + 8 + 8 + 14;
/// The same between IPv6 nodes.
pub const OVERHEAD_V6: u32 = 40 + 8 + 8 + 14;

/// How a node is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathMode {
    /// Natively while that works.
    Auto,
    /// Natively.
    #[default]
    Native,
    /// Through the tunnel.
    Tunnel,
}

/// The tunnel, where one is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelSettings {
    /// UDP port of both ends.
    pub port: u16,
    /// Number in the header of packets whose source has no identity, and of those that the kernel's device encapsulates.
    pub vni: u32,
    /// Frames are written as Geneve, otherwise as VXLAN.
    pub geneve: bool,
    /// Frames are taken from everybody, and not only from nodes of the mesh.
    pub any_source: bool,
}

/// How each node is to be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathPolicy {
    /// Where nobody says anything else.
    pub mode: PathMode,
    /// For the nodes of a cluster.
    pub clusters: BTreeMap<ClusterName, PathMode>,
    /// For single nodes.
    pub nodes: BTreeMap<(ClusterName, NodeName), PathMode>,
    /// Prefixes that `mode: tunnel` leaves native.
    pub native_cidrs: Vec<IpNet>,
    /// The tunnel, if one is allowed.
    pub tunnel: Option<TunnelSettings>,
    /// Segments of TCP that are forwarded are made to fit their route.
    pub mss_clamp: bool,
}

impl PathPolicy {
    /// How `node` is to be reached.
    #[must_use]
    pub fn mode_of(&self, cluster: &ClusterName, name: &NodeName, node: &NodeRow) -> PathMode {
        if self.tunnel.is_none() {
            return PathMode::Native;
        }
        let key = (cluster.clone(), name.clone());
        if let Some(mode) = self.nodes.get(&key).or_else(|| self.clusters.get(cluster)) {
            return *mode;
        }
        let is_native = |cidr: &IpNet| self.native_cidrs.iter().any(|native| native.contains(cidr));
        let all_native = !node.pod_cidrs.is_empty() && node.pod_cidrs.iter().all(is_native);
        if self.mode == PathMode::Tunnel && all_native { PathMode::Native } else { self.mode }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ClusterId, MaxClusters};

    fn row(cidrs: &[&str]) -> NodeRow {
        NodeRow {
            health: Box::default(),
            ingress: Box::default(),
            cluster_id: ClusterId::new(2, MaxClusters::C255).unwrap(),
            addresses: Box::default(),
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            labels: Default::default(),
        }
    }

    #[test]
    fn the_closest_word_counts() {
        let (east, a, b) = ("east".parse::<ClusterName>().unwrap(), "a".parse().unwrap(), "b".parse().unwrap());
        let policy = PathPolicy {
            mode: PathMode::Tunnel,
            clusters: BTreeMap::from([(east.clone(), PathMode::Native)]),
            nodes: BTreeMap::from([((east.clone(), a), PathMode::Auto)]),
            native_cidrs: vec!["10.2.0.0/16".parse().unwrap()],
            tunnel: Some(TunnelSettings { port: 8472, vni: 2, geneve: false, any_source: false }),
            mss_clamp: false,
        };
        let mode = |policy: &PathPolicy, cluster: &str, node: &str, cidrs: &[&str]| {
            policy.mode_of(&cluster.parse().unwrap(), &node.parse().unwrap(), &row(cidrs))
        };
        assert_eq!(mode(&policy, "east", "a", &["10.1.0.0/24"]), PathMode::Auto);
        assert_eq!(policy.mode_of(&east, &b, &row(&["10.1.1.0/24"])), PathMode::Native);
        assert_eq!(mode(&policy, "north", "a", &["10.3.0.0/24"]), PathMode::Tunnel);
        assert_eq!(mode(&policy, "north", "a", &["10.2.9.0/24"]), PathMode::Native, "inside native_cidrs");
        assert_eq!(mode(&policy, "north", "a", &["10.2.9.0/24", "10.3.0.0/24"]), PathMode::Tunnel, "not all of it");
        let without = PathPolicy { tunnel: None, ..policy };
        assert_eq!(mode(&without, "north", "a", &["10.3.0.0/24"]), PathMode::Native, "no tunnel is allowed");
    }
}
