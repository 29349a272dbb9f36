//! Desired against actual.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::{Desired, SETTLE, WITHHOLD_MAX, WantedValue, services::is_marked};
use crate::{
    clustermesh::{Interner, Key, Keyspace, PeerContext, Record, accept_upsert},
    id::{ClusterName, NodeName, NumericIdentity},
};

/// A record the store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Value.
    pub value: Arc<[u8]>,
    /// Lease, 0 for none.
    pub lease: i64,
    /// Revision of its last change.
    pub revision: i64,
}

/// Whose records are ours.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Checks of our own records.
    pub context: PeerContext,
    /// Our node.
    pub node: NodeName,
    /// Its addresses: an address record with one of them as host is ours.
    pub addresses: Vec<IpAddr>,
}

/// What the store holds of our cluster, as far as this node must know.
#[derive(Debug, Clone, Default)]
pub struct Actual {
    /// Our records, and those of the writer.
    pub records: BTreeMap<Arc<str>, Held>,
    /// All identities of the cluster.
    pub identities: BTreeMap<NumericIdentity, Held>,
    /// Names of all nodes of the cluster that have a record.
    pub nodes: BTreeSet<NodeName>,
}

impl Actual {
    /// Takes in a key as listed or watched; `None` when it was deleted, with the revision of the deletion. Late news about
    /// a record that was changed since are passed over. True when something that matters here changed.
    pub fn observe(&mut self, scope: &Scope, desired: &Desired, key: &str, held: Result<Held, i64>) -> bool {
        let revision = match &held {
            Ok(held) => held.revision,
            Err(deleted) => *deleted,
        };
        match Key::parse(key.as_bytes()) {
            Ok(Key::Identity { cluster: None, id }) => {
                if self.identities.get(&id).is_some_and(|known| known.revision > revision) {
                    return false;
                }
                return match held {
                    Ok(held) => self.identities.insert(id, held.clone()) != Some(held),
                    Err(_) => self.identities.remove(&id).is_some(),
                };
            }
            Ok(Key::Node { keyspace: Keyspace::State, cluster, node }) => {
                if cluster != scope.context.cluster.as_str() {
                    return false;
                }
                let Ok(node) = node.parse::<NodeName>() else { return false };
                let is_own = node == scope.node;
                let changed = if held.is_ok() { self.nodes.insert(node) } else { self.nodes.remove(&node) };
                if !is_own {
                    return changed;
                }
            }
            Ok(Key::Endpoint { cluster: None, prefix }) => {
                if let Ok(held) = &held
                    && !desired.records.contains_key(key)
                    && !desired.waiting.contains(key)
                    && !scope.is_ours(prefix, key, &held.value)
                {
                    // If it was ours, another node has it now.
                    return self.records.remove(key).is_some();
                }
            }
            Ok(
                parsed @ (Key::Service { keyspace: Keyspace::State, cluster, .. }
                | Key::EndpointSlice { keyspace: Keyspace::State, cluster, .. }),
            ) => {
                if cluster != scope.context.cluster.as_str() {
                    return false;
                }
                if let Ok(held) = &held
                    && !desired.records.contains_key(key)
                    && !is_marked(&scope.context, &parsed, &held.value)
                {
                    // If it was ours, somebody else writes it now.
                    return self.records.remove(key).is_some();
                }
            }
            Ok(Key::Heartbeat | Key::ClusterConfig { .. } | Key::Canary { .. }) => {}
            Ok(
                Key::Node { .. }
                | Key::Endpoint { .. }
                | Key::Identity { .. }
                | Key::IdentityAllocator
                | Key::Service { .. }
                | Key::ServiceExport { .. }
                | Key::EndpointSlice { .. },
            )
            | Err(_) => return false,
        }
        if self.records.get(key).is_some_and(|known| known.revision > revision) {
            return false;
        }
        match held {
            Ok(held) => self.records.insert(key.into(), held.clone()) != Some(held),
            Err(_) => self.records.remove(key).is_some(),
        }
    }

    /// Records of services that the cluster shares, as far as they are ours.
    pub fn services(&self) -> impl Iterator<Item = (&Arc<str>, &Held)> {
        let is_service =
            |key: &str| matches!(Key::parse(key.as_bytes()), Ok(Key::Service { .. } | Key::EndpointSlice { .. }));
        self.records.iter().filter(move |(key, _)| is_service(key))
    }

    /// How many of our records hang on each lease.
    #[must_use]
    pub fn keys_per_lease(&self) -> BTreeMap<i64, usize> {
        let mut counts = BTreeMap::new();
        for held in self.records.values().filter(|held| held.lease != 0) {
            *counts.entry(held.lease).or_default() += 1;
        }
        counts
    }
}

impl Scope {
    /// True when the address record names one of our addresses as host.
    fn is_ours(&self, prefix: IpNet, key: &str, value: &[u8]) -> bool {
        let accepted = accept_upsert(&self.context, &mut Interner::default(), Keyspace::State, key.as_bytes(), value);
        matches!(accepted, Ok(Record::Endpoint(of, row))
            if of == prefix && row.host.is_some_and(|host| self.addresses.contains(&host)))
    }

    /// Keys a node may remove: its node record and the address records it holds.
    #[must_use]
    pub fn removable<'a>(&self, actual: &'a Actual) -> Vec<(&'a Arc<str>, &'a Held)> {
        let own_node = Key::node(Keyspace::State, &self.context.cluster, &self.node).to_string();
        let is_endpoint = |key: &str| matches!(Key::parse(key.as_bytes()), Ok(Key::Endpoint { .. }));
        actual.records.iter().filter(|(key, _)| ***key == *own_node || is_endpoint(key)).collect()
    }
}

/// One change to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Write a leased record.
    Put(Arc<str>),
    /// Remove a record, if it is still the one we saw.
    Delete {
        /// Its key.
        key: Arc<str>,
        /// Its revision when we saw it.
        revision: i64,
    },
}

/// What must change so that the store holds `desired`: rounds that are carried out one after the other, each in any order.
/// `leases` are the leases that live and are ours.
#[must_use]
pub fn plan(desired: &Desired, actual: &Actual, scope: &Scope, leases: &BTreeSet<i64>) -> Vec<Vec<Op>> {
    let mut rounds: BTreeMap<u8, Vec<Op>> = BTreeMap::new();
    for (key, wanted) in &desired.records {
        let is_right = actual.records.get(key).is_some_and(|held| {
            let same = match &wanted.value {
                WantedValue::Bytes(bytes) => *held.value == **bytes,
                WantedValue::Time => true,
            };
            same && leases.contains(&held.lease)
        });
        if !is_right {
            rounds.entry(wanted.phase).or_default().push(Op::Put(key.clone()));
        }
    }
    let mut removals = Vec::new();
    let services = actual.services().filter(|_| desired.has_services);
    for (key, held) in scope.removable(actual).into_iter().chain(services) {
        if !desired.records.contains_key(key) && !desired.waiting.contains(key) {
            removals.push(Op::Delete { key: key.clone(), revision: held.revision });
        }
    }
    rounds.into_values().chain((!removals.is_empty()).then_some(removals)).collect()
}

/// Whether canaries must wait after the store lost its data: a canary says that the first list is complete, and readers
/// remove what a complete list does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withhold {
    awaited: BTreeSet<NodeName>,
    until: Duration,
}

impl Withhold {
    /// Waits for `known` nodes of `cluster` from `now` on; with none known, for a moment.
    #[must_use]
    pub fn new(known: BTreeSet<NodeName>, now: Duration) -> Self {
        let until = now + if known.is_empty() { SETTLE } else { WITHHOLD_MAX };
        Self { awaited: known, until }
    }

    /// True once every awaited node is back or the time is over.
    #[must_use]
    pub fn is_over(&self, actual: &Actual, now: Duration) -> bool {
        now >= self.until || (!self.awaited.is_empty() && self.awaited.is_subset(&actual.nodes))
    }

    /// True when it is nodes that are waited for, not only a moment.
    #[must_use]
    pub fn awaits_nodes(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// When the time is over.
    #[must_use]
    pub fn until(&self) -> Duration {
        self.until
    }

    /// What is waited for, as text for `status`.
    #[must_use]
    pub fn reason(&self, cluster: &ClusterName, actual: &Actual) -> String {
        let missing: Vec<&str> = self.awaited.difference(&actual.nodes).map(NodeName::as_str).collect();
        if missing.is_empty() {
            return format!("canaries of {cluster} are withheld: the store is new, other nodes may still be coming");
        }
        format!(
            "canaries of {cluster} are withheld until these nodes have published themselves again: {}",
            missing.join(", ")
        )
    }
}
