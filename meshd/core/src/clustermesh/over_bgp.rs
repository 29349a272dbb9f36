//! Clusters that are told over BGP and not by a store: from marked best paths to rows.
//!
//! A path says by a large community whose prefix it is. The prefix is a PodCIDR of that cluster, and the next hops are the
//! node it is behind: prefixes with the same next hops make one node. From there on everything is as with a store: the same
//! accept lists and checks, the same rows, owners, conflicts and routes. What differs is the end: a path that is withdrawn
//! is gone, as with any path of BGP; who wants it to outlive a session asks for graceful restart there. And while not
//! everything has been told (after a restart, or when what a cluster may say changed), what was known stays.
//!
//! Paths marked with a number that is no such cluster's (our own included) are ordinary paths of BGP.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;

use super::{PeerContext, Rejection};
use crate::{
    id::{ClusterName, NodeName},
    observed::{
        Change, ClusterChange, Failure, Kind, Labels, Limits, NodeAddress, NodeAddressKind, NodeRow, PeerRow,
        RejectedRow,
    },
};

/// Most prefixes of one cluster; those beyond are refused, and the cluster has a problem.
pub const PREFIXES_MAX: usize = 65_536;
/// Prefixes that were refused for want of room are asked for again when there is room for so many.
const ROOM_WANTED: usize = PREFIXES_MAX / 8;
/// Longest name of a node that is spelled out; the names of longer lists of next hops end with a number made of them.
const NAME_MAX: usize = 120;

/// Turns marked paths into changes of cluster rows. It has no clock and no connection of its own.
#[derive(Debug, Default)]
pub struct OverBgp {
    function: u32,
    clusters: BTreeMap<u32, Told>,
    /// Rows of the previous run, until their cluster is configured.
    remembered: BTreeMap<ClusterName, Vec<(NodeName, Arc<NodeRow>)>>,
    places: BTreeMap<IpNet, Place>,
    changes: Vec<(ClusterName, ClusterChange)>,
    /// Clusters that nobody tells any more. They go when their prefixes have been told again: some may stay as ordinary routes.
    leaving: BTreeSet<ClusterName>,
    /// Somebody said less than it wanted, and there is room now.
    wants_all: bool,
}

/// What became of a marked path.
#[derive(Debug, Clone)]
enum Place {
    Node(u32, NodeName),
    Refused(u32),
    /// Refused because there is no room.
    Beyond(u32),
}

impl Place {
    fn cluster(&self) -> u32 {
        match self {
            Self::Node(id, _) | Self::Refused(id) | Self::Beyond(id) => *id,
        }
    }
}

/// A cluster and what was told of it.
#[derive(Debug)]
struct Told {
    context: PeerContext,
    nodes: BTreeMap<NodeName, Node>,
    touched: BTreeSet<NodeName>,
    /// Prefixes that were known before and have not been told yet, with the node they are behind.
    unconfirmed: BTreeMap<IpNet, NodeName>,
    prefixes: usize,
    /// Prefixes that were refused because there was no room.
    beyond: usize,
    /// Not everything that is there has been told since the cluster or what it may say changed.
    is_listing: bool,
    /// What it may say is to be told, behind the rows that are left of it.
    accept_is_due: bool,
    row: Arc<PeerRow>,
}

#[derive(Debug, Default)]
struct Node {
    next_hops: Vec<IpAddr>,
    prefixes: BTreeSet<IpNet>,
}

impl OverBgp {
    /// Starts with what the previous run knew of clusters.
    #[must_use]
    pub fn new(remembered: BTreeMap<ClusterName, Vec<(NodeName, Arc<NodeRow>)>>) -> Self {
        Self { remembered, ..Self::default() }
    }

    /// Takes over which clusters are told over BGP with which `function`; `by_store` are those that a store tells. All
    /// paths must be told again afterwards, and then [`Self::all_told`].
    pub fn configure(&mut self, function: u32, clusters: Vec<PeerContext>, by_store: &BTreeSet<ClusterName>) {
        let same_mark = self.function == function;
        self.function = function;
        let mut old = std::mem::take(&mut self.clusters);
        for told in old.values() {
            let row_of = |(name, node): (&NodeName, &Node)| (name.clone(), told.row_of(node));
            self.remembered.insert(told.context.cluster.clone(), told.nodes.iter().map(row_of).collect());
        }
        let names: BTreeSet<ClusterName> = clusters.iter().map(|context| context.cluster.clone()).collect();
        let mut kept = BTreeSet::new();
        for context in clusters {
            let id = u32::from(context.id.get());
            let known = old.remove(&id).filter(|told| same_mark && told.context == context);
            kept.extend(known.is_some().then_some(id));
            let told = known.unwrap_or_else(|| {
                self.changes.push((context.cluster.clone(), ClusterChange::ListBegin(Kind::Nodes)));
                let known = self.remembered.remove(&context.cluster).unwrap_or_default();
                Told::new(context, &known)
            });
            self.clusters.insert(id, told);
        }
        self.remembered.clear();
        for (_, told) in old {
            self.leaving.insert(told.context.cluster);
        }
        self.leaving.retain(|name| !names.contains(name) && !by_store.contains(name));
        // What is listed anew finds its place again.
        self.places.retain(|_, place| kept.contains(&place.cluster()));
    }

    /// No cluster is told over BGP.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.clusters.is_empty() && self.leaving.is_empty() && self.changes.is_empty()
    }

    /// Takes over the best path to a prefix; `None` when there is none. True when the prefix is a cluster's, or claimed for
    /// one and refused: then it is no ordinary route.
    pub fn path(&mut self, prefix: IpNet, path: Option<(u32, &[IpAddr])>, now: Timestamp) -> bool {
        self.clusters.values_mut().for_each(|told| told.confirm(&prefix));
        let refused_before = self.forget(&prefix);
        let told = path.and_then(|(mark, next_hops)| Some((mark, next_hops, self.clusters.get_mut(&mark)?)));
        self.changes.extend(refused_before.map(|name| (name, ClusterChange::Rejected(key(&prefix), None))));
        let Some((id, next_hops, told)) = told else { return false };
        let verdict = told.judge(prefix, next_hops);
        if next_hops.is_empty() && verdict.is_ok() {
            // Packets are to be dropped, which is no business of a node.
            return false;
        }
        let place = match verdict {
            Ok(()) => {
                told.prefixes += 1;
                Place::Node(id, told.put(prefix, next_hops))
            }
            Err(reason) => {
                let place = if matches!(reason, Rejection::TooMany { .. }) {
                    // Twice the limit is all that is remembered; nobody can tell a difference beyond.
                    if told.beyond >= PREFIXES_MAX {
                        return true;
                    }
                    told.beyond += 1;
                    Place::Beyond(id)
                } else {
                    told.prefixes += 1;
                    Place::Refused(id)
                };
                let row = RejectedRow { kind: Some(Kind::Nodes), reason, since: now };
                self.changes.push((told.context.cluster.clone(), ClusterChange::Rejected(key(&prefix), Some(row))));
                place
            }
        };
        self.places.insert(prefix, place);
        true
    }

    /// Not everything has been told since something changed.
    #[must_use]
    pub fn is_listing(&self) -> bool {
        !self.leaving.is_empty() || self.clusters.values().any(|told| told.is_listing)
    }

    /// Every path there is has been told: what is remembered of a cluster and was not told is gone.
    pub fn all_told(&mut self) {
        let leaving = std::mem::take(&mut self.leaving);
        self.changes.extend(leaving.into_iter().map(|name| (name, ClusterChange::Drop)));
        for told in self.clusters.values_mut().filter(|told| told.is_listing) {
            told.is_listing = false;
            let gone: Vec<IpNet> = told.unconfirmed.keys().copied().collect();
            gone.iter().for_each(|prefix| told.confirm(prefix));
            self.changes.extend(told.take_nodes());
            let name = &told.context.cluster;
            let end = |kind: &Kind| match kind {
                Kind::Nodes => vec![ClusterChange::ListEnd(*kind)],
                // Nothing of these can be told over BGP.
                _ => vec![ClusterChange::ListBegin(*kind), ClusterChange::ListEnd(*kind)],
            };
            let ends = Kind::ALL.iter().flat_map(end).chain([ClusterChange::Fresh]);
            self.changes.extend(ends.map(|change| (name.clone(), change)));
        }
    }

    /// True once when prefixes were refused for want of room that could be taken now: everything should be told again.
    pub fn wants_all(&mut self) -> bool {
        std::mem::take(&mut self.wants_all)
    }

    /// The changes that follow, by cluster, in order. They are to be applied together.
    pub fn take_changes(&mut self, now: Timestamp) -> Vec<Change> {
        let mut changes = std::mem::take(&mut self.changes);
        for told in self.clusters.values_mut() {
            changes.extend(told.take_nodes());
            if std::mem::take(&mut told.accept_is_due) {
                let accept = told.context.accept.clone();
                changes.push((told.context.cluster.clone(), ClusterChange::Accept(accept)));
            }
            let row = told.peer_row(self.function, now);
            if *told.row != row {
                told.row = Arc::new(row);
                changes.push((told.context.cluster.clone(), ClusterChange::Peer(told.row.clone())));
            }
        }
        let mut by_cluster: Vec<(ClusterName, Vec<ClusterChange>)> = Vec::new();
        for (cluster, change) in changes {
            match by_cluster.iter_mut().find(|(name, _)| *name == cluster) {
                Some((_, list)) => list.push(change),
                None => by_cluster.push((cluster, vec![change])),
            }
        }
        by_cluster.into_iter().map(|(cluster, changes)| Change::Cluster(cluster, changes)).collect()
    }

    /// Takes a prefix out of where it is; returns the cluster that lists it as refused.
    fn forget(&mut self, prefix: &IpNet) -> Option<ClusterName> {
        let place = self.places.remove(prefix)?;
        let told = self.clusters.get_mut(&place.cluster())?;
        if let Place::Beyond(_) = place {
            told.beyond = told.beyond.saturating_sub(1);
        } else {
            told.prefixes = told.prefixes.saturating_sub(1);
            self.wants_all |= told.beyond > 0 && told.prefixes + ROOM_WANTED == PREFIXES_MAX;
        }
        match place {
            Place::Node(_, name) => {
                if let Some(node) = told.nodes.get_mut(&name) {
                    node.prefixes.remove(prefix);
                }
                told.touched.insert(name);
                None
            }
            Place::Refused(_) | Place::Beyond(_) => Some(told.context.cluster.clone()),
        }
    }
}

impl Told {
    /// A cluster of which so much is `known` from before.
    fn new(context: PeerContext, known: &[(NodeName, Arc<NodeRow>)]) -> Self {
        let mut told = Self {
            context,
            nodes: BTreeMap::new(),
            touched: BTreeSet::new(),
            unconfirmed: BTreeMap::new(),
            prefixes: 0,
            beyond: 0,
            is_listing: true,
            accept_is_due: true,
            row: Arc::default(),
        };
        for (name, row) in known {
            let next_hops: Vec<IpAddr> = row.addresses.iter().map(|address| address.ip).collect();
            let accepted = row.pod_cidrs.iter().filter(|prefix| told.judge(**prefix, &next_hops).is_ok());
            let prefixes: BTreeSet<IpNet> = accepted.copied().collect();
            told.unconfirmed.extend(prefixes.iter().map(|prefix| (*prefix, name.clone())));
            told.touched.insert(name.clone());
            told.nodes.insert(name.clone(), Node { next_hops, prefixes });
        }
        told
    }

    /// What was known of the prefix before does not count any more.
    fn confirm(&mut self, prefix: &IpNet) {
        if let Some(name) = self.unconfirmed.remove(prefix) {
            if let Some(node) = self.nodes.get_mut(&name) {
                node.prefixes.remove(prefix);
            }
            self.touched.insert(name);
        }
    }

    /// The checks a node record goes through.
    fn judge(&self, prefix: IpNet, next_hops: &[IpAddr]) -> Result<(), Rejection> {
        self.context.check_pod_cidr("prefix", prefix)?;
        next_hops.iter().try_for_each(|next_hop| self.context.check_node_address("next hop", *next_hop))?;
        if self.prefixes >= PREFIXES_MAX {
            return Err(Rejection::TooMany { limit: PREFIXES_MAX });
        }
        if self.nodes.len() >= Limits::NODES && !self.nodes.contains_key(&node_name(next_hops)) {
            return Err(Rejection::TooMany { limit: Limits::NODES });
        }
        Ok(())
    }

    fn put(&mut self, prefix: IpNet, next_hops: &[IpAddr]) -> NodeName {
        let name = node_name(next_hops);
        let node = self.nodes.entry(name.clone()).or_default();
        if node.next_hops.is_empty() {
            node.next_hops = next_hops.to_vec();
        }
        node.prefixes.insert(prefix);
        self.touched.insert(name.clone());
        name
    }

    /// Rows of the nodes that changed.
    fn take_nodes(&mut self) -> Vec<(ClusterName, ClusterChange)> {
        let mut changes = Vec::new();
        for name in std::mem::take(&mut self.touched) {
            let row = self.nodes.get(&name).filter(|node| !node.prefixes.is_empty()).map(|node| self.row_of(node));
            if row.is_none() {
                self.nodes.remove(&name);
            }
            changes.push((self.context.cluster.clone(), ClusterChange::Node(name, row)));
        }
        changes
    }

    fn row_of(&self, node: &Node) -> Arc<NodeRow> {
        let address = |ip: &IpAddr| NodeAddress { kind: NodeAddressKind::InternalIP, ip: *ip };
        let mut pod_cidrs: Vec<IpNet> = Vec::with_capacity(node.prefixes.len());
        for prefix in &node.prefixes {
            // In order, so a prefix inside another one follows it. Packets to both go the same way.
            if !pod_cidrs.last().is_some_and(|last| last.contains(prefix)) {
                pod_cidrs.push(*prefix);
            }
        }
        Arc::new(NodeRow {
            health: Box::default(),
            ingress: Box::default(),
            cluster_id: self.context.id,
            addresses: node.next_hops.iter().map(address).collect(),
            pod_cidrs: pod_cidrs.into(),
            labels: Labels::default(),
        })
    }

    fn peer_row(&self, function: u32, now: Timestamp) -> PeerRow {
        let has_nodes = !self.nodes.is_empty();
        let id = self.context.id;
        let problem = match (self.is_listing, has_nodes, self.beyond) {
            (_, _, 1..) => Some(format!("more than {PREFIXES_MAX} prefixes are told over BGP; the rest is refused")),
            (false, false, _) => Some(format!(
                "no accepted BGP path has a large community *:{function}:{id}; see `meshd bgp summary` and `meshd get rejected`"
            )),
            _ => None,
        };
        let known = self.row.problem.as_ref().filter(|known| problem.as_deref() == Some(&*known.message)).cloned();
        let problem = known.or_else(|| problem.map(|message| Failure { at: now, message: message.into() }));
        PeerRow {
            endpoints: vec![format!("BGP *:{function}:{id}").into()],
            connected: has_nodes,
            id: Some(id),
            synced: if self.is_listing { Vec::new() } else { Kind::ALL.to_vec() },
            last_failure: problem.clone().or_else(|| self.row.last_failure.clone()),
            problem,
            ..PeerRow::default()
        }
    }
}

fn key(prefix: &IpNet) -> Arc<str> {
    format!("bgp/{prefix}").into()
}

/// A name for whoever is behind these next hops, the same in every run.
fn node_name(next_hops: &[IpAddr]) -> NodeName {
    let mut name = "bgp".to_owned();
    for next_hop in next_hops {
        // Infallible: it is written to a string.
        let _written = match next_hop {
            IpAddr::V4(address) => write!(name, "-{}", address.to_string().replace('.', "-")),
            IpAddr::V6(address) => address.segments().iter().try_for_each(|part| write!(name, "-{part:x}")),
        };
    }
    if name.len() > NAME_MAX {
        let number = fnv1a(name.as_bytes());
        name.truncate(NAME_MAX);
        let _written = write!(name, "-{number:016x}");
    }
    // Letters, digits and `-`, and shorter than the longest name of a node.
    name.parse().unwrap_or_else(|_| unreachable!("{name}"))
}

/// FNV-1a with 64 bits: the standard library's hash may differ from release to release.
fn fnv1a(octets: &[u8]) -> u64 {
    octets.iter().fold(0xcbf2_9ce4_8422_2325, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests;
