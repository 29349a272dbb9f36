//! Desired routes from observed nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;

use prefix_trie::joint::JointPrefixMap;

use super::{Claim, OnLink, PathPolicy, PrefixOwners, Verdict, underlay::Underlay};
use crate::{
    desired::{Conflict, ConflictCause, Desired, NodeTarget, RouteRow, Target},
    id::{ClusterId, ClusterName, IfIndex, NodeName},
    observed::{KernelKind, NodeAddressKind, NodeRow, Observed, PathKey, PathRow, Touched},
    table::Table,
};

mod bgp;
mod claims;
mod ways;

use bgp::BgpTargets;
use claims::ClaimChanges;

/// Most next hops of one target; a node with more addresses is reached through the first ones.
const HOPS_MAX: usize = 16;

/// This node, as far as routes are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNode {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name.
    pub name: NodeName,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Its own PodCIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// The zone it is in.
    pub zone: Option<Arc<str>>,
}

impl LocalNode {
    /// What no other node may claim: our PodCIDRs and our addresses.
    #[must_use]
    pub fn reserved(&self) -> Vec<IpNet> {
        let hosts = self.addresses.iter().map(|address| IpNet::from(*address));
        self.pod_cidrs.iter().copied().chain(hosts).collect()
    }
}

type NodeKey = (ClusterName, NodeName);
/// An address and why it is not on-link.
type NotOnLink = (IpAddr, Arc<str>);

/// Keeps desired routes up to date with what is observed.
#[derive(Debug, Clone)]
pub struct RouteDeriver {
    local: LocalNode,
    owners: PrefixOwners,
    on_link: OnLink,
    nodes: BTreeMap<NodeKey, Arc<NodeRow>>,
    by_address: BTreeMap<IpAddr, BTreeSet<NodeKey>>,
    underlay: Underlay,
    /// Nodes by the prefixes they claim.
    claimants: JointPrefixMap<IpNet, BTreeSet<NodeKey>>,
    /// Claims that are kept from the question of owners, and why.
    barred: BTreeMap<Claim, ConflictCause>,
    kernel_known: bool,
    bgp: BgpTargets,
    policy: Arc<PathPolicy>,
    /// The policy is another one than targets were derived with.
    policy_is_new: bool,
    tunnel: Option<(IfIndex, u32)>,
    /// What probes found out.
    paths: Table<PathKey, PathRow>,
    /// Ways of their own that probes have.
    pinned: BTreeMap<NodeTarget, IpNet>,
}

impl RouteDeriver {
    /// A deriver for `local`; `remembered` are the prefix owners of the previous run.
    #[must_use]
    pub fn new(local: LocalNode, remembered: BTreeMap<IpNet, ClusterName>) -> Self {
        let owners = PrefixOwners::new(local.cluster.clone(), &local.reserved(), remembered);
        Self {
            local,
            owners,
            on_link: OnLink::default(),
            nodes: BTreeMap::new(),
            by_address: BTreeMap::new(),
            underlay: Underlay::default(),
            claimants: JointPrefixMap::new(),
            barred: BTreeMap::new(),
            kernel_known: false,
            bgp: BgpTargets::default(),
            policy: Arc::default(),
            policy_is_new: false,
            tunnel: None,
            paths: Table::default(),
            pinned: BTreeMap::new(),
        }
    }

    /// From now on nodes are reached as `policy` says.
    pub fn set_policy(&mut self, policy: Arc<PathPolicy>) {
        self.policy_is_new |= self.policy != policy;
        self.policy = policy;
    }

    /// Who owns which prefix, to be remembered across a restart.
    pub fn granted(&self) -> impl Iterator<Item = (IpNet, &ClusterName)> {
        self.owners.granted()
    }

    /// Every configured cluster has been heard, or the wait for it is over: owners are final from here on.
    pub fn settle(&mut self) {
        self.owners.settle();
    }

    /// True once [`Self::settle`] was called.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.owners.is_settled()
    }

    /// How often an address of a node was looked up in the local routes so far: the work that was done (I11).
    #[must_use]
    pub fn lookups(&self) -> u64 {
        self.on_link.lookups()
    }

    /// Brings `desired` up to date with `observed`, looking only at what was touched. `now` dates new conflicts.
    pub fn update(&mut self, observed: &Observed, touched: &Touched, now: Timestamp, desired: &mut Desired) {
        let mut changes = ClaimChanges::default();
        let mut targets = self.update_kernel(observed, touched, &mut changes);
        self.update_nodes(observed, touched, &mut targets, &mut changes);
        self.update_ways(observed, touched, &mut targets);
        changes.judge(self, observed);
        let ClaimChanges { withdrawn, claims, barred, .. } = changes;
        let verdicts = self.owners.update(&withdrawn, claims);
        let prefixes: BTreeSet<IpNet> = verdicts.keys().map(|claim| claim.prefix).collect();
        for (claim, verdict) in verdicts {
            match verdict {
                Verdict::Refused { owned, owner } => {
                    record_conflict(desired, claim, ConflictCause::Owned { owned, owner }, now);
                }
                Verdict::Granted | Verdict::Withdrawn => {
                    desired.conflicts.remove(&conflict_key(claim));
                }
            }
        }
        for (claim, cause) in barred {
            record_conflict(desired, claim, cause, now);
        }
        for prefix in prefixes {
            self.update_route(prefix, desired, &mut targets);
        }
        for node in targets {
            for ipv4 in [true, false] {
                self.update_target(&node, ipv4, desired);
            }
        }
        self.bgp.update(observed, &self.on_link, self.kernel_known, desired);
    }

    /// Takes over links, addresses and routes; returns the nodes whose addresses are affected.
    fn update_kernel(
        &mut self,
        observed: &Observed,
        touched: &Touched,
        changes: &mut ClaimChanges,
    ) -> BTreeSet<NodeKey> {
        if !touched.links && !touched.routes {
            self.bgp.watch(observed, &mut self.on_link);
            return BTreeSet::new();
        }
        let kinds = [KernelKind::Links, KernelKind::Addresses, KernelKind::Routes];
        let known = kinds.iter().all(|kind| observed.is_kernel_initialized(*kind));
        let became_known = known && !self.kernel_known;
        self.kernel_known = known;
        let networks = self.underlay.update(observed);
        let changed = self.on_link.update(observed);
        self.bgp.watch(observed, &mut self.on_link);
        self.bgp.look_again(&changed, became_known);
        if became_known {
            changes.all(self);
            return self.nodes.keys().cloned().collect();
        }
        for network in networks {
            changes.network(self, network);
        }
        for address in &changed {
            changes.address(self, *address);
        }
        changed.iter().filter_map(|address| self.by_address.get(address)).flatten().cloned().collect()
    }

    /// Takes over touched nodes.
    fn update_nodes(
        &mut self,
        observed: &Observed,
        touched: &Touched,
        targets: &mut BTreeSet<NodeKey>,
        changes: &mut ClaimChanges,
    ) {
        for key in &touched.nodes {
            if key.0 == self.local.cluster && key.1 == self.local.name {
                continue;
            }
            let new = observed.clusters.get(&key.0).and_then(|tables| tables.nodes.get(&key.1)).cloned();
            let old = match &new {
                Some(row) => self.nodes.insert(key.clone(), row.clone()),
                None => self.nodes.remove(key),
            };
            let cidrs = |row: &Option<Arc<NodeRow>>| row.as_ref().map_or(Vec::new(), |row| row.pod_cidrs.to_vec());
            changes.node(self, key, &cidrs(&old), &cidrs(&new));
            self.index_addresses(key, old.as_deref(), new.as_deref(), changes);
            targets.insert(key.clone());
        }
    }

    fn index_addresses(
        &mut self,
        key: &NodeKey,
        old: Option<&NodeRow>,
        new: Option<&NodeRow>,
        changes: &mut ClaimChanges,
    ) {
        if old.map(|row| &row.addresses) == new.map(|row| &row.addresses) {
            return;
        }
        for address in old.iter().flat_map(|row| routed_addresses(row)) {
            if let Some(nodes) = self.by_address.get_mut(&address)
                && nodes.remove(key)
            {
                if nodes.is_empty() {
                    self.by_address.remove(&address);
                }
                self.on_link.unwatch(address);
                changes.address(self, address);
            }
        }
        for address in new.iter().flat_map(|row| routed_addresses(row)) {
            if self.by_address.entry(address).or_default().insert(key.clone()) {
                self.on_link.watch(address);
                changes.address(self, address);
            }
        }
    }

    fn update_route(&self, prefix: IpNet, desired: &mut Desired, targets: &mut BTreeSet<NodeKey>) {
        let ipv4 = prefix.addr().is_ipv4();
        let holder = self.owners.holder(&prefix);
        let old = desired.routes.get(&prefix).and_then(|row| row.target.node().cloned());
        targets.extend(old.map(|target| (target.cluster, target.node)));
        match holder {
            Some((cluster, node)) => {
                targets.insert((cluster.clone(), node.clone()));
                let target = NodeTarget { cluster: cluster.clone(), node: node.clone(), ipv4 };
                desired.routes.upsert(prefix, Arc::new(RouteRow { target: target.into() }));
            }
            None => {
                desired.routes.remove(&prefix);
            }
        }
    }

    /// A target exists while its node holds a prefix of the family.
    fn update_target(&mut self, node: &NodeKey, ipv4: bool, desired: &mut Desired) {
        let name = NodeTarget { cluster: node.0.clone(), node: node.1.clone(), ipv4 };
        let key = name.clone().into();
        let row = self.nodes.get(node);
        let holds = |cidr: &IpNet| {
            cidr.addr().is_ipv4() == ipv4 && self.owners.holder(cidr).is_some_and(|(c, n)| *c == node.0 && *n == node.1)
        };
        match row {
            Some(row) if row.pod_cidrs.iter().any(holds) => {
                let target = self.target(row, node, ipv4);
                let way = self.probe_way(row, node, ipv4, &target).filter(|(cidr, ..)| holds(cidr));
                desired.targets.upsert(key, Arc::new(target));
                self.pin(name, way.map(|(_, prefix, target)| (prefix, target)), desired);
            }
            _ => {
                desired.targets.remove(&key);
                self.pin(name, None, desired);
            }
        }
    }
}

/// Addresses of a node outside the pod network.
fn routed_addresses(row: &NodeRow) -> impl Iterator<Item = IpAddr> {
    row.addresses.iter().filter(|address| address.kind != NodeAddressKind::CiliumInternalIP).map(|address| address.ip)
}

fn conflict_key(claim: Claim) -> (IpNet, NodeTarget) {
    let ipv4 = claim.prefix.addr().is_ipv4();
    (claim.prefix, NodeTarget { cluster: claim.cluster, node: claim.node, ipv4 })
}

fn record_conflict(desired: &mut Desired, claim: Claim, cause: ConflictCause, now: Timestamp) {
    let key = conflict_key(claim);
    let known = desired.conflicts.get(&key).filter(|known| known.cause.is_same_obstacle(&cause));
    let since = known.map_or(now, |known| known.since);
    desired.conflicts.upsert(key, Arc::new(Conflict { cause, since }));
}

#[cfg(test)]
mod tests;
