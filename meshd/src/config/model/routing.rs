//! How packets reach other nodes.

use std::collections::BTreeMap;

use ipnet::IpNet;
use meshd_core::{
    derive::{PathMode, PathPolicy, TunnelSettings},
    id::{ClusterName, Metric, NodeName},
    probe::ProbeSettings,
};

use super::Config;
use crate::config::raw::RoutingMode;

/// The sections `routing` and `tunnel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingConfig {
    /// Natively or not.
    pub mode: RoutingMode,
    /// Nodes that are reached in another way.
    pub nodes: BTreeMap<(ClusterName, NodeName), RoutingMode>,
    /// Prefixes that are reached natively.
    pub native_cidrs: Vec<IpNet>,
    /// One kernel nexthop object per remote node?
    pub nexthop_objects: bool,
    /// Metric of the routes.
    pub metric: Metric,
    /// How paths are probed.
    pub probe: ProbeSettings,
    /// The tunnel, if one is allowed.
    pub tunnel: Option<TunnelSettings>,
    /// Segments of TCP that are forwarded are made to fit their route.
    pub mss_clamp: bool,
    /// Packets between workloads of different nodes go past the stack.
    pub fast_path: bool,
}

impl Config {
    /// How each node is to be reached.
    #[must_use]
    pub fn path_policy(&self) -> PathPolicy {
        let clusters = self.peers.iter().filter_map(|peer| Some((peer.cluster.clone(), path_mode(peer.mode?))));
        PathPolicy {
            mode: path_mode(self.routing.mode),
            clusters: clusters.collect(),
            nodes: self.routing.nodes.iter().map(|(node, mode)| (node.clone(), path_mode(*mode))).collect(),
            native_cidrs: self.routing.native_cidrs.clone(),
            tunnel: self.routing.tunnel,
            mss_clamp: self.routing.mss_clamp,
        }
    }
}

fn path_mode(mode: RoutingMode) -> PathMode {
    match mode {
        RoutingMode::Auto => PathMode::Auto,
        RoutingMode::Native => PathMode::Native,
        RoutingMode::Tunnel => PathMode::Tunnel,
    }
}
