//! The only writer of observed tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    AddressKey, AddressRow, BgpChange, BgpTargetId, ClusterTables, EndpointRow, IdentityRow, Kind, Limits, LinkRow,
    MasqueradeSetting, NeighborKey, NeighborRow, NodeAddress, NodeAddressKind, NodeRow, Observed, OwnServiceRow,
    PathKey, PathRow, PeerRow, RejectedRow, Rejection, RouteKey, RouteRow, RuleKey, RuleRow, ServiceName, ServiceRow,
};
use crate::{
    clustermesh::{Accept, RecordKey},
    id::{ClusterName, IfIndex, NodeName, NumericIdentity},
    table::{Sweep, Sync, Table, Upsert},
};

/// One message of a source.
#[derive(Debug, Clone)]
pub enum Change {
    /// Rows of one cluster, in the order its source told them.
    Cluster(ClusterName, Vec<ClusterChange>),
    /// Rows of the local kernel.
    Kernel(Vec<KernelChange>),
    /// Rows of the BGP speaker.
    Bgp(Vec<BgpChange>),
    /// Every service of our own cluster: one that is not among them is removed.
    OwnServices(BTreeMap<ServiceName, Arc<OwnServiceRow>>),

    /// What probes found out; `None` when nothing is known of the way any more.
    Paths(Vec<(PathKey, Option<PathRow>)>),
    /// What people want of masquerade.
    Masquerade(MasqueradeSetting),
    /// Changes of which nobody must see only some: what is added for what is removed.
    All(Vec<Change>),
}

/// A change to the rows of one cluster. `None` as a value removes the row.
#[derive(Debug, Clone)]
pub enum ClusterChange {
    /// State of the connection.
    Peer(Arc<PeerRow>),
    /// The source lost its upstream at this time; rows stay and are stale.
    Stale(Timestamp),
    /// The source has its upstream again.
    Fresh,
    /// A list of this kind begins.
    ListBegin(Kind),
    /// The list under way was broken off.
    ListAbort(Kind),
    /// The list is complete: what it did not tell is removed.
    ListEnd(Kind),
    /// A node.
    Node(NodeName, Option<Arc<NodeRow>>),
    /// An identity.
    Identity(NumericIdentity, Option<IdentityRow>),
    /// An endpoint.
    Endpoint(IpNet, Option<EndpointRow>),
    /// A shared service.
    Service(ServiceName, Option<Arc<ServiceRow>>),
    /// What the cluster may claim from now on: rows that were accepted under a wider list are dropped.
    Accept(Accept),
    /// The record of this row is there but was refused: what an earlier record said stays, also at the end of a list.
    Kept(RecordKey),
    /// A refused record by store key, or (`None`) the key is fine or gone now.
    Rejected(Arc<str>, Option<RejectedRow>),
    /// The cluster is no longer configured: forget all of it.
    Drop,
}

impl ClusterChange {
    /// True when nothing but nodes and what is told about the records changes with it.
    fn is_about_nodes(&self) -> bool {
        match self {
            Self::Node(..) | Self::Peer(_) | Self::Kept(_) | Self::Rejected(..) => true,
            Self::ListBegin(kind) | Self::ListAbort(kind) | Self::ListEnd(kind) => *kind == Kind::Nodes,
            Self::Stale(_)
            | Self::Fresh
            | Self::Identity(..)
            | Self::Endpoint(..)
            | Self::Service(..)
            | Self::Accept(_)
            | Self::Drop => false,
        }
    }
}

/// Kinds of kernel rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KernelKind {
    /// `ip link`
    Links,
    /// `ip address`
    Addresses,
    /// `ip route`, foreign ones only
    Routes,
    /// `ip rule`
    Rules,
    /// `ip neighbor`
    Neighbors,
}

impl KernelKind {
    /// Every kind, in the order the source dumps them.
    pub const ALL: [Self; 5] = [Self::Links, Self::Addresses, Self::Routes, Self::Rules, Self::Neighbors];
}

/// A change to the rows of the local kernel. `None` as a value removes the row.
#[derive(Debug, Clone)]
pub enum KernelChange {
    /// A dump begins.
    ListBegin(KernelKind),
    /// A dump was broken off.
    ListAbort(KernelKind),
    /// A dump is complete.
    ListEnd(KernelKind),
    /// A link.
    Link(IfIndex, Option<LinkRow>),
    /// An address.
    Address(AddressKey, Option<AddressRow>),
    /// A foreign route.
    Route(RouteKey, Option<RouteRow>),
    /// A rule.
    Rule(RuleKey, Option<RuleRow>),
    /// A neighbor.
    Neighbor(NeighborKey, Option<NeighborRow>),
}

/// Progress of the kernel source.
#[derive(Debug, Clone, Default)]
pub(super) struct KernelSync {
    links: Sync<IfIndex>,
    addresses: Sync<AddressKey>,
    routes: Sync<RouteKey>,
    rules: Sync<RuleKey>,
    neighbors: Sync<NeighborKey>,
}

/// What changed since the last derivation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Nodes that came, changed or went.
    pub nodes: BTreeSet<(ClusterName, NodeName)>,
    /// Clusters of which an identity, an endpoint, a service or the connection changed.
    pub clusters: BTreeSet<ClusterName>,
    /// Services of our own cluster were told.
    pub own_services: bool,
    /// Links or addresses changed.
    pub links: bool,
    /// Foreign routes changed.
    pub routes: bool,
    /// Ways to nodes of which something else is known.
    pub paths: BTreeSet<PathKey>,
    /// What people want of masquerade changed.
    pub masquerade: bool,
    /// Anything at all changed.
    pub any: bool,
}

impl Observed {
    /// Applies one message. `now` dates refusals for want of room.
    pub fn apply(&mut self, change: Change, now: Timestamp) {
        self.touched.any = true;
        match change {
            Change::Cluster(cluster, changes) => self.apply_cluster(&cluster, changes, now),
            Change::Kernel(changes) => {
                for change in changes {
                    self.apply_kernel(change);
                }
            }
            Change::Bgp(changes) => {
                for change in changes {
                    self.apply_bgp(change);
                }
            }
            Change::OwnServices(rows) => self.apply_own_services(rows),

            Change::Paths(paths) => self.apply_paths(paths),
            Change::Masquerade(setting) => {
                self.touched.masquerade |= self.masquerade != setting;
                self.masquerade = setting;
            }
            Change::All(changes) => {
                for change in changes {
                    self.apply(change, now);
                }
            }
        }
    }

    /// True once the services of our own cluster have been told in this run.
    #[must_use]
    pub fn are_own_services_told(&self) -> bool {
        self.own_services_told
    }

    fn apply_own_services(&mut self, rows: BTreeMap<ServiceName, Arc<OwnServiceRow>>) {
        self.touched.own_services = true;
        self.own_services_told = true;
        let gone: Vec<ServiceName> =
            self.own_services.iter().map(|(name, _)| name).filter(|name| !rows.contains_key(*name)).cloned().collect();
        for name in gone {
            self.own_services.remove(&name);
        }
        for (name, row) in rows {
            self.own_services.upsert(name, row);
        }
    }

    /// True when every BGP peer has told its routes once in this run, or the wait for it is over.
    #[must_use]
    pub fn is_bgp_complete(&self) -> bool {
        self.bgp_complete
    }

    fn release_bgp_target(&mut self, id: BgpTargetId) {
        if self.bgp_references.release(id, self.bgp_targets.get(&id)) {
            self.bgp_targets.remove(&id);
        }
    }

    fn apply_bgp(&mut self, change: BgpChange) {
        match change {
            BgpChange::Limit(limit) => {
                // With more room every route is told again.
                if self.bgp_limit.is_none_or(|old| limit > old) {
                    self.bgp_refused = 0;
                }
                self.bgp_limit = Some(limit);
            }
            BgpChange::Route(prefix, Some(_))
                if self.bgp_limit.is_some_and(|limit| self.bgp.len() >= limit) && !self.bgp.contains(&prefix) =>
            {
                self.bgp_refused += 1;
            }
            BgpChange::Route(prefix, Some(target)) => {
                let (id, is_new) = self.bgp_references.refer(&target);
                if is_new {
                    self.bgp_targets.upsert(id, target);
                }
                if let Some(old) = self.bgp.put(prefix, id) {
                    self.release_bgp_target(old);
                }
            }
            BgpChange::Route(prefix, None) => {
                if let Some(old) = self.bgp.remove(&prefix) {
                    self.release_bgp_target(old);
                }
            }
            BgpChange::Watch(next_hop) => {
                if !self.bgp_next_hops.contains(&next_hop) {
                    self.bgp_next_hops.upsert(next_hop, false);
                }
            }
            BgpChange::Unwatch(next_hop) => {
                self.bgp_next_hops.remove(&next_hop);
            }
            BgpChange::Dead(next_hop, dead) => {
                if self.bgp_next_hops.contains(&next_hop) {
                    self.bgp_next_hops.upsert(next_hop, dead);
                }
            }
            BgpChange::Uninstall => {
                self.bgp = Table::default();
                self.bgp_targets = Table::default();
                self.bgp_references.clear();
                self.bgp_refused = 0;
            }
            BgpChange::Complete => self.bgp_complete = true,
        }
    }

    /// Takes what changed since the last call.
    pub fn take_touched(&mut self) -> Touched {
        mem::take(&mut self.touched)
    }

    /// True once the first dump of `kind` is complete.
    #[must_use]
    pub fn is_kernel_initialized(&self, kind: KernelKind) -> bool {
        match kind {
            KernelKind::Links => self.sync.links.is_initialized(),
            KernelKind::Addresses => self.sync.addresses.is_initialized(),
            KernelKind::Routes => self.sync.routes.is_initialized(),
            KernelKind::Rules => self.sync.rules.is_initialized(),
            KernelKind::Neighbors => self.sync.neighbors.is_initialized(),
        }
    }

    fn apply_paths(&mut self, paths: Vec<(PathKey, Option<PathRow>)>) {
        for (key, row) in paths {
            match row {
                Some(row) => drop(self.paths.upsert(key.clone(), row)),
                None => drop(self.paths.remove(&key)),
            }
            self.touched.paths.insert(key);
        }
    }

    fn apply_cluster(&mut self, cluster: &ClusterName, changes: Vec<ClusterChange>, now: Timestamp) {
        let tables = self.clusters.entry(cluster.clone()).or_default();
        let touched = &mut self.touched.nodes;
        let mut dropped = false;
        if !changes.iter().all(ClusterChange::is_about_nodes) {
            self.touched.clusters.insert(cluster.clone());
        }
        for change in changes {
            dropped = false;
            match change {
                ClusterChange::Peer(row) => tables.peer = Some(row),
                ClusterChange::Stale(since) => {
                    tables.stale_since.get_or_insert(since);
                }
                ClusterChange::Fresh => tables.stale_since = None,
                ClusterChange::ListBegin(kind) => tables.begin(kind),
                ClusterChange::ListAbort(kind) => tables.abort(kind),
                ClusterChange::ListEnd(kind) => {
                    let gone = tables.end(kind);
                    touched.extend(gone.into_iter().map(|node| (cluster.clone(), node)));
                }
                ClusterChange::Node(name, row) => {
                    let key = || format!("{}/{name}", Kind::Nodes.key_word());
                    if put(&mut tables.nodes, &mut tables.nodes_sync, &name, row, Limits::NODES).is_full() {
                        tables.refuse_for_room(Kind::Nodes, key(), Limits::NODES, now);
                    } else {
                        touched.insert((cluster.clone(), name));
                    }
                }
                ClusterChange::Identity(id, row) => {
                    if put(&mut tables.identities, &mut tables.identities_sync, &id, row, Limits::IDENTITIES).is_full()
                    {
                        let key = format!("{}/{id}", Kind::Identities.key_word());
                        tables.refuse_for_room(Kind::Identities, key, Limits::IDENTITIES, now);
                    }
                }
                ClusterChange::Endpoint(prefix, row) => {
                    if put(&mut tables.endpoints, &mut tables.endpoints_sync, &prefix, row, Limits::ENDPOINTS).is_full()
                    {
                        let key = format!("{}/{prefix}", Kind::Endpoints.key_word());
                        tables.refuse_for_room(Kind::Endpoints, key, Limits::ENDPOINTS, now);
                    }
                }
                ClusterChange::Service(name, row) => {
                    if put(&mut tables.services, &mut tables.services_sync, &name, row, Limits::SERVICES).is_full() {
                        let key = format!("{}/{name}", Kind::Services.key_word());
                        tables.refuse_for_room(Kind::Services, key, Limits::SERVICES, now);
                    }
                }
                ClusterChange::Accept(accept) => {
                    let gone = tables.narrow(&accept);
                    touched.extend(gone.into_iter().map(|node| (cluster.clone(), node)));
                    if tables.accept.as_ref() != Some(&accept) {
                        // What a list says of the node network is judged with the local addresses.
                        touched.extend(tables.nodes.iter().map(|(node, _)| (cluster.clone(), node.clone())));
                        tables.accept = Some(accept);
                    }
                }
                ClusterChange::Kept(key) => tables.mark(&key),
                ClusterChange::Rejected(key, Some(row)) => tables.refuse(key, row),
                ClusterChange::Rejected(key, None) => {
                    tables.rejected.remove(&key);
                }
                ClusterChange::Drop => {
                    touched.extend(tables.nodes.iter().map(|(node, _)| (cluster.clone(), node.clone())));
                    *tables = ClusterTables::default();
                    dropped = true;
                }
            }
        }
        if dropped {
            self.clusters.remove(cluster);
        }
    }

    fn apply_kernel(&mut self, change: KernelChange) {
        let (sync, touched) = (&mut self.sync, &mut self.touched);
        match change {
            KernelChange::ListBegin(kind) => match kind {
                KernelKind::Links => sync.links.begin(self.links.len()),
                KernelKind::Addresses => sync.addresses.begin(self.addresses.len()),
                KernelKind::Routes => sync.routes.begin(self.routes.len()),
                KernelKind::Rules => sync.rules.begin(self.rules.len()),
                KernelKind::Neighbors => sync.neighbors.begin(self.neighbors.len()),
            },
            KernelChange::ListAbort(kind) => match kind {
                KernelKind::Links => sync.links.abort(),
                KernelKind::Addresses => sync.addresses.abort(),
                KernelKind::Routes => sync.routes.abort(),
                KernelKind::Rules => sync.rules.abort(),
                KernelKind::Neighbors => sync.neighbors.abort(),
            },
            KernelChange::ListEnd(kind) => match kind {
                // The first dump counts as a change: what was unknown is known now.
                KernelKind::Links => touched.links |= finish(&mut sync.links, &mut self.links),
                KernelKind::Addresses => touched.links |= finish(&mut sync.addresses, &mut self.addresses),
                KernelKind::Routes => touched.routes |= finish(&mut sync.routes, &mut self.routes),
                KernelKind::Rules => {
                    finish(&mut sync.rules, &mut self.rules);
                }
                KernelKind::Neighbors => {
                    finish(&mut sync.neighbors, &mut self.neighbors);
                }
            },
            KernelChange::Link(key, row) => {
                touched.links |= put(&mut self.links, &mut sync.links, &key, row, usize::MAX).is_change();
            }
            KernelChange::Address(key, row) => {
                touched.links |= put(&mut self.addresses, &mut sync.addresses, &key, row, usize::MAX).is_change();
            }
            KernelChange::Route(key, row) => {
                touched.routes |= put(&mut self.routes, &mut sync.routes, &key, row, usize::MAX).is_change();
            }
            KernelChange::Rule(key, row) => {
                put(&mut self.rules, &mut sync.rules, &key, row, usize::MAX);
            }
            KernelChange::Neighbor(key, row) => {
                put(&mut self.neighbors, &mut sync.neighbors, &key, row, usize::MAX);
            }
        }
    }
}

impl ClusterTables {
    fn begin(&mut self, kind: Kind) {
        match kind {
            Kind::Nodes => self.nodes_sync.begin(self.nodes.len()),
            Kind::Identities => self.identities_sync.begin(self.identities.len()),
            Kind::Endpoints => self.endpoints_sync.begin(self.endpoints.len()),
            Kind::Services => self.services_sync.begin(self.services.len()),
        }
        // Refusals are told again by the list.
        let told_again: Vec<Arc<str>> =
            self.rejected.iter().filter(|(_, row)| row.kind == Some(kind)).map(|(key, _)| key.clone()).collect();
        for key in told_again {
            self.rejected.remove(&key);
        }
    }

    fn abort(&mut self, kind: Kind) {
        match kind {
            Kind::Nodes => self.nodes_sync.abort(),
            Kind::Identities => self.identities_sync.abort(),
            Kind::Endpoints => self.endpoints_sync.abort(),
            Kind::Services => self.services_sync.abort(),
        }
    }

    /// Ends a list and returns the nodes it swept.
    fn end(&mut self, kind: Kind) -> Vec<NodeName> {
        match kind {
            Kind::Nodes => return sweep(&mut self.nodes_sync, &mut self.nodes),
            Kind::Identities => {
                sweep(&mut self.identities_sync, &mut self.identities);
            }
            Kind::Endpoints => {
                sweep(&mut self.endpoints_sync, &mut self.endpoints);
            }
            Kind::Services => {
                sweep(&mut self.services_sync, &mut self.services);
            }
        }
        Vec::new()
    }

    /// Marks a row, if there is one, as told by the list under way, whatever its value.
    fn mark(&mut self, key: &RecordKey) {
        match key {
            RecordKey::Node(name) => mark(&self.nodes, &mut self.nodes_sync, name),
            RecordKey::Identity(id) => mark(&self.identities, &mut self.identities_sync, id),
            RecordKey::Endpoint(prefix) => mark(&self.endpoints, &mut self.endpoints_sync, prefix),
            RecordKey::Service(name) => mark(&self.services, &mut self.services_sync, name),
        }
    }

    /// Removes rows outside `accept`; returns the nodes among them.
    fn narrow(&mut self, accept: &Accept) -> Vec<NodeName> {
        let pod = |prefix: &IpNet| accept.pod_cidrs.iter().any(|accepted| accepted.contains(prefix));
        let node = |prefix: &IpNet| accept.node_cidrs.iter().any(|accepted| accepted.contains(prefix));
        let node_fits = |row: &NodeRow| {
            let routed = |address: &&NodeAddress| address.kind != NodeAddressKind::CiliumInternalIP;
            row.pod_cidrs.iter().all(pod) && row.addresses.iter().filter(routed).all(|a| node(&IpNet::from(a.ip)))
        };
        let nodes: Vec<NodeName> =
            self.nodes.iter().filter(|(_, row)| !node_fits(row)).map(|(name, _)| name.clone()).collect();
        for name in &nodes {
            self.nodes.remove(name);
            self.nodes_sync.unmark(name);
        }
        let endpoints = self.endpoints.iter().map(|(prefix, _)| *prefix).filter(|prefix| !pod(prefix) && !node(prefix));
        for prefix in endpoints.collect::<Vec<_>>() {
            self.endpoints.remove(&prefix);
            self.endpoints_sync.unmark(&prefix);
        }
        // One backend outside refuses a service as a whole, as it would if the record came now.
        let fits = |row: &ServiceRow| row.backends.keys().map(|ip| IpNet::from(*ip)).all(|ip| pod(&ip) || node(&ip));
        let services: Vec<ServiceName> =
            self.services.iter().filter(|(_, row)| !fits(row)).map(|(name, _)| name.clone()).collect();
        for name in services {
            self.services.remove(&name);
            self.services_sync.unmark(&name);
        }
        nodes
    }

    fn refuse(&mut self, key: Arc<str>, row: RejectedRow) {
        if self.rejected.len() >= Limits::REJECTED && !self.rejected.contains(&key) {
            self.rejected_dropped += 1;
        } else {
            self.rejected.upsert(key, row);
        }
    }

    fn refuse_for_room(&mut self, kind: Kind, key: String, limit: usize, now: Timestamp) {
        self.refuse(key.into(), RejectedRow { kind: Some(kind), reason: Rejection::TooMany { limit }, since: now });
    }
}

/// What [`put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    Same,
    Change,
    Full,
}

impl Put {
    fn is_full(self) -> bool {
        self == Self::Full
    }
    fn is_change(self) -> bool {
        self == Self::Change
    }
}

/// Writes a row and its mark. A row there is no room for gets no mark, so that marks cannot outgrow the table.
fn put<K: Ord + Clone, V: Clone + PartialEq>(
    table: &mut Table<K, V>,
    sync: &mut Sync<K>,
    key: &K,
    row: Option<V>,
    limit: usize,
) -> Put {
    let Some(row) = row else {
        sync.unmark(key);
        return if table.remove(key).is_some() { Put::Change } else { Put::Same };
    };
    if table.len() >= limit && !table.contains(key) {
        return Put::Full;
    }
    sync.mark(key);
    match table.upsert(key.clone(), row) {
        Upsert::Unchanged => Put::Same,
        Upsert::Added | Upsert::Changed(_) => Put::Change,
    }
}

fn mark<K: Ord + Clone, V: Clone + PartialEq>(table: &Table<K, V>, sync: &mut Sync<K>, key: &K) {
    if table.contains(key) {
        sync.mark(key);
    }
}

fn sweep<K: Ord + Clone, V: Clone + PartialEq>(sync: &mut Sync<K>, table: &mut Table<K, V>) -> Vec<K> {
    let Sweep::AllBut(told) = sync.end() else { return Vec::new() };
    let gone: Vec<K> = table.iter().map(|(key, _)| key).filter(|key| !told.contains(key)).cloned().collect();
    for key in &gone {
        table.remove(key);
    }
    gone
}

fn finish<K: Ord + Clone, V: Clone + PartialEq>(sync: &mut Sync<K>, table: &mut Table<K, V>) -> bool {
    let first = !sync.is_initialized();
    !sweep(sync, table).is_empty() || (first && sync.is_initialized())
}

#[cfg(test)]
mod tests;
