//! Node records (wire contract section 1.3).
//!
//! The writer is a Go struct without JSON tags: Go field names, every field always present. `NodeIdentity`, which
//! releases up to 1.17 still wrote, is accepted and not written.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::Serialize;

use super::{
    address,
    context::PeerContext,
    go_json::{self, Entries, List, Text, go_record},
    labels,
    rejection::{Excerpt, Rejection},
};
use crate::{
    id::{ClusterName, NodeName},
    observed::{NodeAddress, NodeAddressKind, NodeRow},
};

/// Most addresses of one node.
pub const NODE_ADDRESSES_MAX: usize = 64;
/// Most PodCIDRs of one node and family beside the primary one.
pub const SECONDARY_POD_CIDRS_MAX: usize = 256;
/// Most labels of one node.
pub const NODE_LABELS_MAX: usize = 512;

go_record! {
    /// An address as Go writes it.
    WireAddress {
        kind: Text<'de> = "Type",
        ip: Text<'de> = "IP",
    }
}

go_record! {
    /// A prefix as Go writes a `net.IPNet`.
    WirePrefix {
        ip: Text<'de> = "IP",
        mask: Text<'de> = "Mask",
    }
}

go_record! {
    /// The fields of a node that we read.
    WireNode {
        name: Text<'de> = "Name",
        cluster: Text<'de> = "Cluster",
        addresses: List<WireAddress<'de>, NODE_ADDRESSES_MAX> = "IPAddresses",
        ipv4_cidr: WirePrefix<'de> = "IPv4AllocCIDR",
        ipv4_secondary: List<WirePrefix<'de>, SECONDARY_POD_CIDRS_MAX> = "IPv4SecondaryAllocCIDRs",
        ipv6_cidr: WirePrefix<'de> = "IPv6AllocCIDR",
        ipv6_secondary: List<WirePrefix<'de>, SECONDARY_POD_CIDRS_MAX> = "IPv6SecondaryAllocCIDRs",
        cluster_id: u32 = "ClusterID",
        encryption_key: u8 = "EncryptionKey",
        ipv4_health: Text<'de> = "IPv4HealthIP",
        ipv6_health: Text<'de> = "IPv6HealthIP",
        ipv4_ingress: Text<'de> = "IPv4IngressIP",
        ipv6_ingress: Text<'de> = "IPv6IngressIP",
        labels: Entries<'de, Text<'de>, NODE_LABELS_MAX> = "Labels",
    }
}

/// Reads and checks a node record.
///
/// # Errors
/// The first check it fails. One bad address or PodCIDR refuses the whole record.
pub(super) fn accept(ctx: &PeerContext, name: &NodeName, value: &[u8]) -> Result<NodeRow, Rejection> {
    let node: WireNode<'_> = go_json::read(value)?;
    if *node.name != *name.as_str() {
        let (key, value) = (Excerpt::new(name.as_str()), Excerpt::new(&node.name));
        return Err(Rejection::KeyMismatch { field: "Name", key, value });
    }
    ctx.check_cluster(&node.cluster)?;
    ctx.check_cluster_id(node.cluster_id)?;
    Ok(NodeRow {
        health: endpoints(ctx, [&node.ipv4_health, &node.ipv6_health]),
        ingress: endpoints(ctx, [&node.ipv4_ingress, &node.ipv6_ingress]),
        cluster_id: ctx.id,
        addresses: addresses(ctx, node.addresses.bounded("IPAddresses")?)?,
        pod_cidrs: pod_cidrs(ctx, &node)?,
        labels: labels::from_map(node.labels.bounded("Labels")?.iter().map(|(key, value)| (&**key, &**value)))?,
    })
}

fn addresses(ctx: &PeerContext, found: &[WireAddress<'_>]) -> Result<Box<[NodeAddress]>, Rejection> {
    const FIELD: &str = "IPAddresses";
    let mut addresses = Vec::with_capacity(found.len());
    for wire in found {
        let ip = address::parse_address(FIELD, &wire.ip)?;
        let kind = match &*wire.kind {
            "InternalIP" => NodeAddressKind::InternalIP,
            "ExternalIP" => NodeAddressKind::ExternalIP,
            "CiliumInternalIP" => NodeAddressKind::CiliumInternalIP,
            _ => NodeAddressKind::Other,
        };
        match kind {
            NodeAddressKind::InternalIP | NodeAddressKind::ExternalIP | NodeAddressKind::Other => {
                ctx.check_node_address(FIELD, ip)?;
            }
            // The router address lives among the pods and is never a next hop.
            NodeAddressKind::CiliumInternalIP => ctx.check_endpoint(FIELD, IpNet::from(ip))?,
        }
        addresses.push(NodeAddress { kind, ip });
    }
    Ok(addresses.into())
}

/// Addresses among the workloads that a node has for itself. One that the cluster may not have is left out: it would only be told who that is,
/// and that is no reason to lose the node.
fn endpoints(ctx: &PeerContext, found: [&str; 2]) -> Box<[IpAddr]> {
    const FIELD: &str = "HealthIP";
    let accepted = |text: &&str| {
        let ip = address::parse_address(FIELD, text).ok()?;
        ctx.check_endpoint(FIELD, IpNet::from(ip)).ok()?;
        Some(ip)
    };
    found.iter().filter_map(accepted).collect()
}

fn pod_cidrs(ctx: &PeerContext, node: &WireNode<'_>) -> Result<Box<[IpNet]>, Rejection> {
    let mut prefixes = Vec::new();
    let ipv4 = std::slice::from_ref(&node.ipv4_cidr);
    let ipv6 = std::slice::from_ref(&node.ipv6_cidr);
    let lists = [
        ("IPv4AllocCIDR", true, ipv4),
        ("IPv4SecondaryAllocCIDRs", true, node.ipv4_secondary.bounded("IPv4SecondaryAllocCIDRs")?),
        ("IPv6AllocCIDR", false, ipv6),
        ("IPv6SecondaryAllocCIDRs", false, node.ipv6_secondary.bounded("IPv6SecondaryAllocCIDRs")?),
    ];
    for (field, is_ipv4, list) in lists {
        for wire in list {
            // Go writes an unset prefix as null, as {} or with both fields empty.
            if wire.ip.is_empty() && wire.mask.is_empty() {
                continue;
            }
            let ip = address::parse_address(field, &wire.ip)?;
            if ip.is_ipv4() != is_ipv4 {
                return Err(Rejection::Family { field, found: ip });
            }
            let prefix = address::prefix_from_mask(field, ip, &wire.mask)?;
            ctx.check_pod_cidr(field, prefix)?;
            prefixes.push(prefix);
        }
    }
    prefixes.sort_unstable();
    // Sorted by address, then length: a prefix inside another one directly follows one that holds it.
    for pair in prefixes.windows(2) {
        if pair[0] == pair[1] {
            return Err(Rejection::DuplicatePodCidr { found: pair[0] });
        }
        if pair[0].contains(&pair[1]) {
            return Err(Rejection::NestedPodCidr { inner: pair[1], outer: pair[0] });
        }
    }
    Ok(prefixes.into())
}

/// What a node record says beyond its row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeExtras {
    /// Who wrote it (`Source`); readers ignore it.
    pub source: String,
    /// Encryption key index; 255 with WireGuard, 0 for none.
    pub encryption_key: u8,
    /// Annotations of the node; `None` writes `null`.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Public key of WireGuard, base64.
    pub wireguard_key: String,
    /// Boot id of the node.
    pub boot_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct OutNode<'a> {
    name: &'a str,
    cluster: &'a str,
    #[serde(rename = "IPAddresses")]
    addresses: Option<Vec<OutAddress>>,
    #[serde(rename = "IPv4AllocCIDR")]
    ipv4_cidr: Option<OutPrefix>,
    #[serde(rename = "IPv4SecondaryAllocCIDRs")]
    ipv4_secondary: Option<Vec<OutPrefix>>,
    #[serde(rename = "IPv6AllocCIDR")]
    ipv6_cidr: Option<OutPrefix>,
    #[serde(rename = "IPv6SecondaryAllocCIDRs")]
    ipv6_secondary: Option<Vec<OutPrefix>>,
    #[serde(rename = "IPv4HealthIP")]
    ipv4_health: String,
    #[serde(rename = "IPv6HealthIP")]
    ipv6_health: String,
    #[serde(rename = "IPv4IngressIP")]
    ipv4_ingress: String,
    #[serde(rename = "IPv6IngressIP")]
    ipv6_ingress: String,
    #[serde(rename = "ClusterID")]
    cluster_id: u16,
    source: &'a str,
    encryption_key: u8,
    labels: Option<BTreeMap<&'a str, &'a str>>,
    annotations: Option<&'a BTreeMap<String, String>>,
    wireguard_pub_key: &'a str,
    #[serde(rename = "BootID")]
    boot_id: &'a str,
}

#[derive(Serialize)]
struct OutAddress {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "IP")]
    ip: IpAddr,
}

#[derive(Serialize)]
struct OutPrefix {
    #[serde(rename = "IP")]
    ip: IpAddr,
    #[serde(rename = "Mask")]
    mask: String,
}

/// Writes a node record. The first PodCIDR of each family is the primary one.
#[must_use]
pub fn encode(cluster: &ClusterName, name: &NodeName, row: &NodeRow, extras: &NodeExtras) -> Vec<u8> {
    let (ipv4_cidr, ipv4_secondary) = split(row, true);
    let (ipv6_cidr, ipv6_secondary) = split(row, false);
    let text = |all: &[IpAddr], ipv4: bool| {
        all.iter().find(|ip| ip.is_ipv4() == ipv4).map(IpAddr::to_string).unwrap_or_default()
    };
    let addresses: Vec<_> =
        row.addresses.iter().map(|address| OutAddress { kind: kind_text(address.kind), ip: address.ip }).collect();
    let labels: BTreeMap<_, _> = row.labels.iter().map(|(_, key, value)| (key, value)).collect();
    go_json::write(&OutNode {
        name: name.as_str(),
        cluster: cluster.as_str(),
        addresses: (!addresses.is_empty()).then_some(addresses),
        ipv4_cidr,
        ipv4_secondary,
        ipv6_cidr,
        ipv6_secondary,
        ipv4_health: text(&row.health, true),
        ipv6_health: text(&row.health, false),
        ipv4_ingress: text(&row.ingress, true),
        ipv6_ingress: text(&row.ingress, false),
        cluster_id: row.cluster_id.get(),
        source: &extras.source,
        encryption_key: extras.encryption_key,
        labels: (!labels.is_empty()).then_some(labels),
        annotations: extras.annotations.as_ref(),
        wireguard_pub_key: &extras.wireguard_key,
        boot_id: &extras.boot_id,
    })
}

fn split(row: &NodeRow, ipv4: bool) -> (Option<OutPrefix>, Option<Vec<OutPrefix>>) {
    let mut prefixes = row
        .pod_cidrs
        .iter()
        .filter(|prefix| prefix.addr().is_ipv4() == ipv4)
        .map(|prefix| OutPrefix { ip: prefix.network(), mask: address::mask_text(*prefix) });
    let primary = prefixes.next();
    let secondary: Vec<_> = prefixes.collect();
    (primary, (!secondary.is_empty()).then_some(secondary))
}

fn kind_text(kind: NodeAddressKind) -> &'static str {
    match kind {
        NodeAddressKind::InternalIP => "InternalIP",
        NodeAddressKind::ExternalIP => "ExternalIP",
        NodeAddressKind::CiliumInternalIP => "CiliumInternalIP",
        // What kind it was is not kept; readers treat every other kind alike.
        NodeAddressKind::Other => "Hostname",
    }
}
