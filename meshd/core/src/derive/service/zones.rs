//! Zones of the nodes of our own cluster: what `topology.kubernetes.io/zone` among their labels says.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    clustermesh::service::ZONE_MAX,
    id::NodeName,
    observed::{ClusterTables, NodeRow},
    table::{RowDiff, Table},
};

/// The label of a node's zone, as in Kubernetes.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Zones of nodes by their addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Zones {
    nodes: Table<NodeName, Arc<NodeRow>>,
    by_address: BTreeMap<IpAddr, Arc<str>>,
}

impl Zones {
    /// The zone of the node with this address.
    pub(super) fn of(&self, node: Option<IpAddr>) -> Option<&Arc<str>> {
        self.by_address.get(&node?)
    }

    /// Takes over the nodes of our cluster; true when the zone of any address is another than before.
    pub(super) fn update(&mut self, tables: Option<&ClusterTables>) -> bool {
        let nodes = tables.map(|tables| tables.nodes.clone()).unwrap_or_default();
        let mut is_other = false;
        for diff in nodes.diff(&self.nodes) {
            let (old, new) = match diff {
                RowDiff::Added(_, new) => (None, Some(new)),
                RowDiff::Changed(_, old, new) => (Some(old), Some(new)),
                RowDiff::Removed(_, old) => (Some(old), None),
            };
            let old = old.and_then(|row| Some((row, zone(row)?)));
            let new = new.and_then(|row| Some((row, zone(row)?)));
            if old.map(|(row, zone)| (&row.addresses, zone)) == new.map(|(row, zone)| (&row.addresses, zone)) {
                continue;
            }
            is_other = true;
            for address in old.iter().flat_map(|(row, _)| &row.addresses) {
                self.by_address.remove(&address.ip);
            }
            if let Some((row, zone)) = new {
                let zone: Arc<str> = zone.into();
                self.by_address.extend(row.addresses.iter().map(|address| (address.ip, zone.clone())));
            }
        }
        self.nodes = nodes;
        is_other
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
