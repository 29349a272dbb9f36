//! Where workloads of our own cluster are: the names of its nodes, and the zones that `topology.kubernetes.io/zone` among
//! their labels says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    clustermesh::service::ZONE_MAX,
    id::NodeName,
    observed::{ClusterTables, NodeRow},
    table::{RowDiff, Table},
};

/// The label of a node's zone, as in Kubernetes.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Nodes of our own cluster by their addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    nodes: Table<NodeName, Arc<NodeRow>>,
    /// Zones by name. When several nodes say that they have an address, the first name counts, whoever said it first.
    by_address: BTreeMap<IpAddr, BTreeMap<NodeName, Option<Arc<str>>>>,
}

impl Places {
    /// The zone of the node with this address.
    pub(super) fn zone(&self, node: Option<IpAddr>) -> Option<&Arc<str>> {
        self.at(&node?)?.1.as_ref()
    }

    /// The name of the node with this address.
    pub(super) fn name(&self, node: Option<IpAddr>) -> Option<&NodeName> {
        Some(self.at(&node?)?.0)
    }

    fn at(&self, address: &IpAddr) -> Option<(&NodeName, &Option<Arc<str>>)> {
        self.by_address.get(address)?.first_key_value()
    }

    /// Takes over the nodes of our cluster; returns the addresses of which something else is known than before.
    pub(super) fn update(&mut self, tables: Option<&ClusterTables>) -> BTreeSet<IpAddr> {
        let nodes = tables.map(|tables| tables.nodes.clone()).unwrap_or_default();
        let mut before = BTreeMap::new();
        for diff in nodes.diff(&self.nodes) {
            let (old, new) = match diff {
                RowDiff::Added(_, new) => (None, Some(new)),
                RowDiff::Changed(_, old, new) => (Some(old), Some(new)),
                RowDiff::Removed(_, old) => (Some(old), None),
            };
            for address in [old, new].into_iter().flatten().flat_map(|row| &row.addresses) {
                let at = || self.at(&address.ip).map(|(name, zone)| (name.clone(), zone.clone()));
                before.entry(address.ip).or_insert_with(at);
            }
            for address in old.iter().flat_map(|row| &row.addresses) {
                if let Some(there) = self.by_address.get_mut(&address.ip) {
                    there.remove(diff.key());
                }
            }
            if let Some(row) = new {
                let zone: Option<Arc<str>> = zone(row).map(Into::into);
                for address in &row.addresses {
                    self.by_address.entry(address.ip).or_default().insert(diff.key().clone(), zone.clone());
                }
            }
        }
        self.nodes = nodes;
        for address in before.keys() {
            if self.by_address.get(address).is_some_and(BTreeMap::is_empty) {
                self.by_address.remove(address);
            }
        }
        before.retain(|address, old| old.as_ref().map(|(name, zone)| (name, zone)) != self.at(address));
        before.into_keys().collect()
    }
}

/// The zone a node says that it is in. Readers refuse the record of a service with a longer name.
fn zone(row: &NodeRow) -> Option<&str> {
    let mut labels = row.labels.iter();
    labels
        .find(|(_, key, _)| *key == ZONE_LABEL)
        .map(|(_, _, zone)| zone)
        .filter(|zone| (1..=ZONE_MAX).contains(&zone.len()))
}
