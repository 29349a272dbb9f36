//! What is excluded from masquerade, from everything the node knows.
//!
//! Each set of exclusions counts who asks for a prefix, and holds the outermost of them only: the kernel's interval sets refuse
//! what overlaps. A change costs the prefixes that come into a set or leave it (I11). The limit is one over all sets, and
//! which prefixes it leaves out depends on the prefixes alone, not on the order in which they were told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use super::LocalNode;
use crate::{
    desired::{
        Desired, EXCLUSIONS_MAX, Exclusion, ExclusionSet, Masquerade, MasqueradeRules, MasqueradeWish, RouteRow,
    },
    id::{ClusterName, IfIndex, NodeName},
    observed::{AddressKey, AddressRow, MasqueradeRow, MasqueradeSetting, Observed, Touched},
    table::{RowDiff, Table},
};

type NodeKey = (ClusterName, NodeName);

/// Keeps desired masquerade up to date with what is observed and with the desired routes.
#[derive(Debug, Clone)]
pub struct MasqueradeDeriver {
    local: LocalNode,
    limit: usize,
    row: Option<Arc<MasqueradeRow>>,
    sets: BTreeMap<ExclusionSet, PrefixSet>,
    /// Addresses of each node as they were counted.
    nodes: BTreeMap<NodeKey, BTreeSet<IpAddr>>,
    /// The routes whose prefixes were counted.
    routes: Table<IpNet, Arc<RouteRow>>,
    /// The local addresses that were looked at.
    addresses: Table<AddressKey, AddressRow>,
    /// Links that carry an address of this node.
    carriers: BTreeSet<(IfIndex, IpAddr)>,
    /// What the limit left out.
    waiting: BTreeSet<Exclusion>,
}

impl MasqueradeDeriver {
    /// A deriver for `local`.
    #[must_use]
    pub fn new(local: LocalNode) -> Self {
        Self::with_limit(local, EXCLUSIONS_MAX)
    }

    /// One with another limit than the kernel's table has, for tests.
    #[must_use]
    pub fn with_limit(local: LocalNode, limit: usize) -> Self {
        Self {
            local,
            limit,
            row: None,
            sets: BTreeMap::new(),
            nodes: BTreeMap::new(),
            routes: Table::default(),
            addresses: Table::default(),
            carriers: BTreeSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Brings `desired.masquerade` up to date, after the routes. While masquerade is off nothing is counted.
    pub fn update(&mut self, observed: &Observed, touched: &Touched, desired: &mut Desired) {
        let row = match &observed.masquerade {
            MasqueradeSetting::On(row) => row.clone(),
            other => {
                if self.row.is_some() {
                    *self = Self::with_limit(self.local.clone(), self.limit);
                }
                let off = *other == MasqueradeSetting::Off;
                let wish = if off { MasqueradeWish::Off } else { MasqueradeWish::Unknown };
                desired.masquerade = Masquerade { wish, ..Masquerade::default() };
                return;
            }
        };
        let is_new = self.row.is_none();
        let old = self.row.replace(row.clone()).unwrap_or_default();
        let mut changes = Vec::new();
        if is_new {
            for prefix in self.local.pod_cidrs.clone() {
                changes.push((true, (ExclusionSet::Pods, prefix)));
            }
            for address in self.local.addresses.clone() {
                changes.push((true, (ExclusionSet::Nodes, address.into())));
            }
        }
        if is_new || touched.masquerade {
            let gone = old.kept.keys().filter(|prefix| !row.kept.contains_key(prefix));
            changes.extend(gone.map(|prefix| (false, (ExclusionSet::Kept, *prefix))));
            let come = row.kept.keys().filter(|prefix| !old.kept.contains_key(prefix));
            changes.extend(come.map(|prefix| (true, (ExclusionSet::Kept, *prefix))));
        }
        self.count_routes(desired, &mut changes);
        if is_new {
            for (cluster, tables) in &observed.clusters {
                for (node, _) in tables.nodes.iter() {
                    self.count_node(observed, &(cluster.clone(), node.clone()), &mut changes);
                }
            }
        } else {
            for key in &touched.nodes {
                self.count_node(observed, key, &mut changes);
            }
        }
        for (add, (set, prefix)) in changes {
            let counted = self.sets.entry(set).or_default();
            let members = if add { counted.add(prefix) } else { counted.remove(prefix) };
            for (prefix, is_member) in members {
                self.place((set, prefix), is_member, &mut desired.masquerade.exclusions);
            }
        }
        desired.masquerade.left_out = self.waiting.len();
        let is_known = matches!(desired.masquerade.wish, MasqueradeWish::On(_));
        if is_new || !is_known || touched.masquerade || touched.links {
            let rules = self.rules(&row, observed);
            if !matches!(&desired.masquerade.wish, MasqueradeWish::On(known) if **known == rules) {
                desired.masquerade.wish = MasqueradeWish::On(Arc::new(rules));
            }
        }
    }

    /// A prefix that cluster and node are agreed upon has a route, or would have one if its node could be reached.
    fn count_routes(&mut self, desired: &Desired, changes: &mut Vec<(bool, Exclusion)>) {
        if desired.routes.revision() == self.routes.revision() {
            return;
        }
        for diff in desired.routes.diff(&self.routes) {
            match diff {
                // A way for probes lies inside a prefix that is there.
                RowDiff::Added(_, row) | RowDiff::Removed(_, row) if row.target.node().is_none() => {}
                RowDiff::Added(prefix, _) => changes.push((true, (ExclusionSet::Pods, *prefix))),
                RowDiff::Removed(prefix, _) => changes.push((false, (ExclusionSet::Pods, *prefix))),
                RowDiff::Changed(..) => {}
            }
        }
        self.routes = desired.routes.clone();
    }

    fn count_node(&mut self, observed: &Observed, key: &NodeKey, changes: &mut Vec<(bool, Exclusion)>) {
        let row = observed.clusters.get(&key.0).and_then(|tables| tables.nodes.get(&key.1));
        let new: BTreeSet<IpAddr> = row.iter().flat_map(|row| row.addresses.iter()).map(|address| address.ip).collect();
        let old = if new.is_empty() { self.nodes.remove(key) } else { self.nodes.insert(key.clone(), new.clone()) };
        let old = old.unwrap_or_default();
        let of = |address: &IpAddr| (ExclusionSet::Nodes, IpNet::from(*address));
        changes.extend(old.difference(&new).map(|address| (false, of(address))));
        changes.extend(new.difference(&old).map(|address| (true, of(address))));
    }

    /// Puts a prefix into the table, or takes it out, so that the first ones are in as long as there is room.
    fn place(&mut self, exclusion: Exclusion, is_member: bool, table: &mut Table<Exclusion, ()>) {
        if is_member {
            table.upsert(exclusion, ());
            let last = table.iter().next_back().map(|(last, ())| *last);
            if let Some(last) = last.filter(|_| table.len() > self.limit) {
                table.remove(&last);
                self.waiting.insert(last);
            }
        } else if !self.waiting.remove(&exclusion)
            && table.remove(&exclusion).is_some()
            && let Some(first) = self.waiting.pop_first()
        {
            table.upsert(first, ());
        }
    }

    fn rules(&mut self, row: &MasqueradeRow, observed: &Observed) -> MasqueradeRules {
        for diff in observed.addresses.diff(&self.addresses) {
            let carrier = (diff.key().link, diff.key().address.addr());
            match diff {
                RowDiff::Added(..) if self.local.addresses.contains(&carrier.1) => {
                    self.carriers.insert(carrier);
                }
                RowDiff::Removed(..) => {
                    self.carriers.remove(&carrier);
                }
                RowDiff::Added(..) | RowDiff::Changed(..) => {}
            }
        }
        self.addresses = observed.addresses.clone();
        let configured = row.uplinks.iter().cloned().collect();
        let carriers = || {
            let links = self.carriers.iter().filter_map(|(link, _)| observed.links.get(link));
            // Nothing leaves the node through its loopback link, whose addresses are reached through all others.
            links.filter(|link| !link.loopback).map(|link| link.name.clone()).collect()
        };
        MasqueradeRules {
            sources: self.local.pod_cidrs.iter().copied().collect(),
            uplinks: if row.uplinks.is_empty() { carriers() } else { configured },
            ipv4: row.addresses.iter().find(|address| address.is_ipv4()).copied(),
            ipv6: row.addresses.iter().find(|address| address.is_ipv6()).copied(),
            by_programs: false,
        }
    }
}

/// Prefixes with the number of those who ask for them. Members are those that lie in no other.
#[derive(Debug, Clone, Default)]
struct PrefixSet {
    counts: JointPrefixMap<IpNet, usize>,
}

impl PrefixSet {
    /// Somebody asks for a prefix: which prefixes are members (`true`) from now on, or no longer.
    fn add(&mut self, prefix: IpNet) -> Vec<(IpNet, bool)> {
        if let Some(count) = self.counts.get_mut(&prefix) {
            *count += 1;
            return Vec::new();
        }
        let mut members = Vec::new();
        if !self.is_covered(&prefix) {
            members.extend(self.outermost_inside(&prefix).into_iter().map(|inside| (inside, false)));
            members.push((prefix, true));
        }
        self.counts.insert(prefix, 1);
        members
    }

    /// Somebody no longer does.
    fn remove(&mut self, prefix: IpNet) -> Vec<(IpNet, bool)> {
        match self.counts.get_mut(&prefix) {
            Some(count) if *count > 1 => {
                *count -= 1;
                return Vec::new();
            }
            Some(_) => self.counts.remove(&prefix),
            None => return Vec::new(),
        };
        if self.is_covered(&prefix) {
            return Vec::new();
        }
        let inside = self.outermost_inside(&prefix).into_iter().map(|inside| (inside, true));
        std::iter::once((prefix, false)).chain(inside).collect()
    }

    fn is_covered(&self, prefix: &IpNet) -> bool {
        self.counts.cover(prefix).next().is_some()
    }

    fn outermost_inside(&self, prefix: &IpNet) -> Vec<IpNet> {
        let mut outermost: Vec<IpNet> = Vec::new();
        // A prefix comes before those inside it.
        for (inside, _) in self.counts.children(prefix) {
            if !outermost.last().is_some_and(|last| last.contains(&inside)) {
                outermost.push(inside);
            }
        }
        outermost
    }
}

#[cfg(test)]
mod tests;
