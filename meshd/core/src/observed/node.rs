//! Nodes and the prefixes behind them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Labels;
use crate::id::ClusterId;

/// What an address of a node is for (wire contract section 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeAddressKind {
    /// Address other nodes use.
    InternalIP,
    /// Address seen from outside.
    ExternalIP,
    /// The router address inside the pod network; never a next hop.
    CiliumInternalIP,
    /// Any other kind.
    Other,
}

/// One address of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeAddress {
    /// What it is for.
    pub kind: NodeAddressKind,
    /// The address.
    pub ip: IpAddr,
}

/// A node as its cluster published it, after every check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Id of its cluster.
    pub cluster_id: ClusterId,
    /// Its addresses in published order.
    pub addresses: Box<[NodeAddress]>,
    /// PodCIDRs, primary and secondary, both families; sorted, host bits clear, none inside another.
    pub pod_cidrs: Box<[IpNet]>,
    /// Kubernetes labels of the node.
    pub labels: Labels,
    /// Addresses of its health endpoint (Cilium's `IPv4HealthIP` and `IPv6HealthIP`), as far as the cluster may have them.
    /// Not kept across restarts: they only tell who somebody is.
    #[serde(skip)]
    pub health: Box<[IpAddr]>,
    /// Addresses of its ingress (`IPv4IngressIP`, `IPv6IngressIP`), as far as the cluster may have them.
    #[serde(skip)]
    pub ingress: Box<[IpAddr]>,
}

impl NodeRow {
    /// Addresses of one family that can be a next hop, best kind first: internal, else external, else others, never
    /// the router address (wire contract section 1.3, primary node address).
    pub fn next_hop_addresses(&self, ipv4: bool) -> impl Iterator<Item = IpAddr> {
        let best = self
            .addresses
            .iter()
            .filter(|a| a.ip.is_ipv4() == ipv4 && a.kind != NodeAddressKind::CiliumInternalIP)
            .map(|a| a.kind)
            .min();
        self.addresses.iter().filter(move |a| a.ip.is_ipv4() == ipv4 && Some(a.kind) == best).map(|a| a.ip)
    }
}
