//! The own cluster and this node.

use std::net::IpAddr;

use ipnet::IpNet;
use meshd_core::clustermesh::service::ZONE_MAX;
use meshd_core::derive::ZONE_LABEL;
use meshd_core::id::{ClusterId, ClusterName, MaxClusters, NodeName};

use super::Validator;
use crate::config::model::{ClusterConfig, NodeConfig};
use crate::config::raw::{Name, RawCluster, RawNode};

/// Highest cluster id that every network mode of Cilium can carry.
const CLUSTER_ID_SAFE: u16 = 127;

impl Validator<'_> {
    pub(super) fn cluster(&mut self, raw: RawCluster) -> Option<ClusterConfig> {
        let max = raw.max_clusters.unwrap_or(255);
        let max_clusters = match MaxClusters::try_from(max) {
            Ok(max) => max,
            Err(error) => {
                self.error(
                    "cluster.max_clusters",
                    error.to_string(),
                    "write 255, or 511 when every cluster of the mesh does",
                );
                MaxClusters::C511
            }
        };
        let name = match raw.name {
            Some(name) => self.cluster_name("cluster.name", &name),
            None => {
                self.missing("cluster.name", "cluster: {name: NAME}");
                None
            }
        };
        let id = match raw.id {
            Some(id) => match ClusterId::new(id, max_clusters) {
                Ok(id) => Some(id),
                Err(error) => {
                    self.error("cluster.id", error.to_string(), "choose a number no other cluster of the mesh has");
                    None
                }
            },
            None => {
                self.missing("cluster.id", "cluster: {id: NUMBER}");
                None
            }
        };
        if let Some(id) = id.filter(|id| id.get() > CLUSTER_ID_SAFE) {
            self.warn(
                "cluster.id",
                format!("cluster id {id} is above {CLUSTER_ID_SAFE}"),
                "Cilium nodes in some cloud network modes cannot carry such ids; prefer 1 to 127",
            );
        }
        Some(ClusterConfig { name: name?, id: id?, max_clusters })
    }

    pub(super) fn cluster_name(&mut self, key: &str, name: &Name) -> Option<ClusterName> {
        match name.as_str().parse() {
            Ok(name) => Some(name),
            Err(error) => {
                let fixed: String = name
                    .as_str()
                    .to_lowercase()
                    .chars()
                    .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                    .collect();
                let fixed: String = fixed.trim_matches('-').chars().take(32).collect();
                let hint = match fixed.trim_end_matches('-').parse::<ClusterName>() {
                    Ok(fixed) => format!("for instance {fixed}"),
                    Err(_) => "for instance west".to_owned(),
                };
                self.error(key, error.to_string(), hint);
                None
            }
        }
    }

    pub(super) fn node(&mut self, raw: RawNode) -> NodeConfig {
        let name = raw.name.and_then(|name| match name.as_str().parse::<NodeName>() {
            Ok(name) => Some(name),
            Err(error) => {
                self.error("node.name", error.to_string(), "use the host name, or leave it out");
                None
            }
        });
        let addresses = self.addresses("node.addresses", &raw.addresses);
        for (i, address) in addresses.iter().enumerate() {
            let link_local = match address {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            if link_local {
                let key = format!("node.addresses[{i}]");
                self.error(&key, format!("{address} is link-local"), "use an address other nodes can reach");
            }
        }
        let pod_cidrs = self.prefixes("node.pod_cidrs", &raw.pod_cidrs);
        for (i, prefix) in pod_cidrs.iter().enumerate() {
            let key = format!("node.pod_cidrs[{i}]");
            if prefix.prefix_len() == 0 {
                self.error(&key, format!("{prefix} covers every address"), "write the prefix of this node's workloads");
            }
            if let Some(other) = pod_cidrs[..i].iter().find(|other| overlap(other, prefix)) {
                self.error(&key, format!("{prefix} overlaps {other}"), "write each prefix once");
            }
            if let Some(address) = addresses.iter().find(|address| prefix.contains(*address)) {
                self.warn(
                    &key,
                    format!("{prefix} holds this node's address {address}"),
                    "nodes and workloads usually have prefixes of their own",
                );
            }
        }
        if let Some(zone) = raw.labels.get(ZONE_LABEL) {
            self.check_zone(&format!("node.labels.{ZONE_LABEL}"), zone);
        }
        NodeConfig { name, addresses, pod_cidrs, labels: raw.labels }
    }

    /// A zone is the value of a label, which other clusters read: they refuse records with anything else.
    pub(super) fn check_zone(&mut self, key: &str, zone: &str) {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let is_zone = zone.len() <= ZONE_MAX
            && zone.chars().all(is_part)
            && edge(zone.chars().next())
            && edge(zone.chars().last());
        if !is_zone {
            let hint = "use at most 63 of letters, digits, - _ and ., the first and last a letter or digit";
            self.error(key, format!("{zone:?} is not the name of a zone"), hint);
        }
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
