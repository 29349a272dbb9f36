//! Which workloads of our own cluster a service selects.
//!
//! Labels belong to identities, so a selector is compared with identities, of which there are few, and never with
//! endpoints, of which there are many. A new identity is compared only with selectors that begin with one of its labels.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::merge::Member;
use crate::{
    id::NumericIdentity,
    observed::{ClusterTables, EndpointRow, IdentityRow, Labels, ServiceName},
    table::{RowDiff, Table},
};

/// The label of a workload's namespace.
const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// Source of the labels a selector speaks of.
const LABEL_SOURCE: &str = "k8s";

/// A namespace, and the first label of a selector in it with its value.
type SelectorKey = (Arc<str>, String, String);

/// Workloads by what selects them.
#[derive(Debug, Clone, Default)]
pub(super) struct Workloads {
    identities: Table<NumericIdentity, IdentityRow>,
    endpoints: Table<IpNet, EndpointRow>,
    addresses: BTreeMap<NumericIdentity, BTreeMap<IpAddr, Option<IpAddr>>>,
    by_namespace: BTreeMap<Arc<str>, BTreeSet<NumericIdentity>>,
    selectors: BTreeMap<ServiceName, BTreeMap<String, String>>,
    by_label: BTreeMap<SelectorKey, BTreeSet<ServiceName>>,
    /// Identities a service selects, and the other way round.
    members: BTreeMap<ServiceName, BTreeSet<NumericIdentity>>,
    services: BTreeMap<NumericIdentity, BTreeSet<ServiceName>>,
}

impl Workloads {
    /// The workloads a service selects.
    pub(super) fn of(&self, name: &ServiceName) -> impl Iterator<Item = Member> {
        let identities = self.members.get(name).into_iter().flatten();
        let addresses = identities.filter_map(|identity| self.addresses.get(identity));
        addresses.flatten().map(|(address, node)| (*address, *node))
    }

    /// Takes over the selector of a service; `None` once the service is gone.
    pub(super) fn select(&mut self, name: &ServiceName, selector: Option<&BTreeMap<String, String>>) {
        // Nothing is selected by nothing.
        let selector = selector.filter(|selector| !selector.is_empty());
        if self.selectors.get(name) == selector {
            return;
        }
        if let Some(old) = self.selectors.remove(name) {
            let key = selector_key(name, &old);
            if let Some(services) = key.as_ref().and_then(|key| self.by_label.get_mut(key)) {
                services.remove(name);
                if services.is_empty() {
                    key.map(|key| self.by_label.remove(&key));
                }
            }
        }
        for identity in self.members.remove(name).into_iter().flatten() {
            unlink(&mut self.services, &identity, name);
        }
        let Some(selector) = selector else { return };
        self.selectors.insert(name.clone(), selector.clone());
        if let Some(key) = selector_key(name, selector) {
            self.by_label.entry(key).or_default().insert(name.clone());
        }
        for identity in self.by_namespace.get(&name.namespace).into_iter().flatten() {
            if self.identities.get(identity).is_some_and(|row| is_selected(selector, &row.labels)) {
                self.members.entry(name.clone()).or_default().insert(*identity);
                self.services.entry(*identity).or_default().insert(name.clone());
            }
        }
    }

    /// Takes over the identities and endpoints of our cluster.
    pub(super) fn update(&mut self, tables: Option<&ClusterTables>, concerned: &mut BTreeSet<ServiceName>) {
        let (identities, endpoints) =
            tables.map(|tables| (tables.identities.clone(), tables.endpoints.clone())).unwrap_or_default();
        let before = std::mem::replace(&mut self.identities, identities.clone());
        for diff in identities.diff(&before) {
            match diff {
                RowDiff::Added(id, new) => self.add_identity(*id, new, concerned),
                RowDiff::Changed(id, old, new) => {
                    self.remove_identity(*id, old, concerned);
                    self.add_identity(*id, new, concerned);
                }
                RowDiff::Removed(id, old) => self.remove_identity(*id, old, concerned),
            }
        }
        let before = std::mem::replace(&mut self.endpoints, endpoints.clone());
        for diff in endpoints.diff(&before) {
            let (old, new) = match diff {
                RowDiff::Added(_, new) => (None, Some(new)),
                RowDiff::Changed(_, old, new) => (Some(old), Some(new)),
                RowDiff::Removed(_, old) => (Some(old), None),
            };
            self.move_endpoint(diff.key(), old, new, concerned);
        }
    }

    fn add_identity(&mut self, id: NumericIdentity, row: &IdentityRow, concerned: &mut BTreeSet<ServiceName>) {
        let Some(namespace) = namespace(&row.labels) else { return };
        let namespace: Arc<str> = namespace.into();
        self.by_namespace.entry(namespace.clone()).or_default().insert(id);
        for (_, key, value) in row.labels.iter().filter(|(source, ..)| *source == LABEL_SOURCE) {
            let candidates = self.by_label.get(&(namespace.clone(), key.to_owned(), value.to_owned()));
            for name in candidates.into_iter().flatten() {
                if self.selectors.get(name).is_some_and(|selector| is_selected(selector, &row.labels)) {
                    self.members.entry(name.clone()).or_default().insert(id);
                    self.services.entry(id).or_default().insert(name.clone());
                }
            }
        }
        self.concern(id, concerned);
    }

    fn remove_identity(&mut self, id: NumericIdentity, row: &IdentityRow, concerned: &mut BTreeSet<ServiceName>) {
        self.concern(id, concerned);
        if let Some(namespace) = namespace(&row.labels) {
            let namespace: Arc<str> = namespace.into();
            unlink(&mut self.by_namespace, &namespace, &id);
        }
        for name in self.services.remove(&id).into_iter().flatten() {
            unlink(&mut self.members, &name, &id);
        }
    }

    fn move_endpoint(
        &mut self,
        prefix: &IpNet,
        old: Option<&EndpointRow>,
        new: Option<&EndpointRow>,
        concerned: &mut BTreeSet<ServiceName>,
    ) {
        // A prefix is no backend: nobody can connect to it.
        if prefix.prefix_len() != prefix.max_prefix_len() {
            return;
        }
        let address = prefix.addr();
        if let Some(old) = old
            && let Some(addresses) = self.addresses.get_mut(&old.identity)
        {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.addresses.remove(&old.identity);
            }
            self.concern(old.identity, concerned);
        }
        if let Some(new) = new {
            self.addresses.entry(new.identity).or_default().insert(address, new.host);
            self.concern(new.identity, concerned);
        }
    }

    fn concern(&self, id: NumericIdentity, concerned: &mut BTreeSet<ServiceName>) {
        concerned.extend(self.services.get(&id).into_iter().flatten().cloned());
    }
}

fn selector_key(name: &ServiceName, selector: &BTreeMap<String, String>) -> Option<SelectorKey> {
    let (key, value) = selector.first_key_value()?;
    Some((name.namespace.clone(), key.clone(), value.clone()))
}

/// True when the labels have everything the selector asks for.
fn is_selected(selector: &BTreeMap<String, String>, labels: &Labels) -> bool {
    let has = |(wanted, value): (&String, &String)| {
        labels.iter().any(|(source, key, found)| source == LABEL_SOURCE && key == wanted && found == value)
    };
    selector.iter().all(has)
}

fn namespace(labels: &Labels) -> Option<&str> {
    let is_namespace = |(source, key, _): &(&str, &str, &str)| *source == LABEL_SOURCE && *key == NAMESPACE_LABEL;
    labels.iter().find(is_namespace).map(|(_, _, value)| value)
}

fn unlink<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
