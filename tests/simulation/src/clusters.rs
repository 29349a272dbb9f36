//! What writes to the stores: nodes publish themselves, and a control plane looks after each store.

use std::{collections::BTreeSet, net::IpAddr, rc::Rc, time::Duration};

use ipnet::IpNet;
use meshd_core::{
    clustermesh::{Key, Keyspace, cluster_config, heartbeat, identity, ip, keys, node as node_record},
    id::{MaxClusters, NumericIdentity},
    observed::{EndpointRow, Kind, Labels, NodeAddress, NodeAddressKind, NodeRow},
};

use super::{
    connections::Answer,
    node::{cluster_id, cluster_name, steady},
    store::{Good, Row, Store, Value},
    world::World,
};

/// How long a record outlives the last sign of its node.
const LEASE: Duration = Duration::from_secs(120);
/// How long a store that lost its data waits for the nodes it knew.
pub(crate) const CANARY_DEADLINE: Duration = Duration::from_secs(120);
const HEARTBEAT: Duration = Duration::from_secs(60);

/// The control plane of a cluster: writes cluster-config, heartbeat and canaries.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// What stands in place of the cluster-config; the inner `None` is nothing.
    pub(crate) bad_config: Option<Option<&'static [u8]>>,
    pub(crate) silent: bool,
    pub(crate) waits_for: BTreeSet<usize>,
    pub(crate) canaries_at: Option<Duration>,
    last_beat: Option<Duration>,
}

impl World {
    /// Writes to a store and tells everybody who watches.
    pub(crate) fn put(&mut self, cluster: usize, key: &str, value: Option<Value>, lease: Option<Duration>) {
        let old = self.stores[cluster].get(key.as_bytes()).and_then(|value| value.good.clone());
        let new = value.as_ref().and_then(|value| value.good.clone());
        if let Some(good) = &new {
            self.ever_good.insert((good.node, good.pod_cidrs.clone()));
        }
        // A record that a hostile value took the place of is not withdrawn: readers keep what they had.
        if let (Some(old), true) = (&old, new.is_some() || value.is_none()) {
            let kept = |prefix: &&IpNet| new.as_ref().is_some_and(|new| new.pod_cidrs.contains(prefix));
            let gone: Vec<_> = old.pod_cidrs.iter().filter(|prefix| !kept(prefix)).map(|p| (old.node, *p)).collect();
            self.withdrawn.extend(gone);
        }
        // A damaged record that goes takes along what readers had kept of it.
        if value.is_none()
            && old.is_none()
            && let Some(owner) = self.node_of(cluster, key.as_bytes())
        {
            let prefixes = self.ever_of(owner);
            self.withdrawn.extend(prefixes.into_iter().map(|prefix| (owner, prefix)));
        }
        let lease = lease.map(|lease| self.agenda.now + lease);
        let told = self.stores[cluster].put(key.as_bytes(), value.clone(), lease);
        let header = self.header(cluster);
        let row: Row = (key.as_bytes().into(), value);
        for (line, target) in told {
            self.stream(line, Answer::Events { target, header, rows: vec![row.clone()] });
        }
    }

    fn record_of(&self, node: usize) -> (String, Value) {
        let node = &self.nodes[node];
        let cluster = cluster_name(node.cluster);
        let address = |ip: &IpAddr| NodeAddress { kind: NodeAddressKind::InternalIP, ip: *ip };
        let mut pod_cidrs = node.pod_cidrs.clone();
        pod_cidrs.sort_unstable();
        let row = NodeRow {
            health: Box::default(),
            ingress: Box::default(),
            cluster_id: cluster_id(node.cluster),
            addresses: node.addresses.iter().map(address).collect(),
            pod_cidrs: pod_cidrs.clone().into(),
            labels: Labels::default(),
        };
        let bytes = node_record::encode(&cluster, &node.name, &row, &node_record::NodeExtras::default());
        let key = Key::node(Keyspace::State, &cluster, &node.name).to_string();
        (key, Value { bytes: bytes.into(), good: Some(Rc::new(Good { node: node.index, pod_cidrs })) })
    }

    /// A node writes its own records, or keeps their lease.
    pub(crate) fn publish(&mut self, node: usize) {
        let cluster = self.nodes[node].cluster;
        if !self.reaches(node, cluster) || !self.nodes[node].member {
            return;
        }
        let (key, value) = self.record_of(node);
        let until = self.agenda.now + LEASE;
        self.controls[cluster].waits_for.remove(&node);
        if self.stores[cluster].get(key.as_bytes()).is_some_and(|old| old.bytes == value.bytes) {
            self.stores[cluster].keep_alive(key.as_bytes(), until);
            return;
        }
        self.put(cluster, &key, Some(value), Some(LEASE));
        let id = NumericIdentity((u32::from(cluster_id(cluster).get()) << 16) + 1 + node as u32);
        let name = cluster_name(cluster);
        let labels = Labels(format!("k8s:app=n{node};k8s:{}={name};", identity::CLUSTER_LABEL).into());
        let plain = |bytes: Vec<u8>| Some(Value { bytes: bytes.into(), good: None });
        let key = Key::identity(Keyspace::State, &name, id).to_string();
        self.put(cluster, &key, plain(identity::encode(&labels)), None);
        let pod: IpNet = format!("10.{}.{}.9/32", 10 + cluster, node % 10).parse().expect("a prefix");
        let row = EndpointRow {
            identity: id,
            host: Some(self.nodes[node].addresses[0]),
            encryption_key: 0,
            namespace: "default".into(),
            name: format!("pod-{node}").into(),
        };
        let key = Key::endpoint(Keyspace::State, &name, pod).to_string();
        self.put(cluster, &key, plain(ip::encode(pod, &row)), Some(LEASE));
    }

    /// The control plane of a cluster looks after its store.
    pub(crate) fn control(&mut self, cluster: usize) {
        if !self.stores[cluster].up {
            return;
        }
        let now = self.agenda.now;
        for key in self.stores[cluster].expired(now) {
            let key = String::from_utf8_lossy(&key).into_owned();
            self.note(|| format!("lease of {key} expired"));
            self.put(cluster, &key, None, None);
        }
        let name = cluster_name(cluster);
        let config = match self.controls[cluster].bad_config {
            Some(bad) => bad.map(<[u8]>::to_vec),
            None => Some(cluster_config::encode(&cluster_config::OwnConfig {
                id: cluster_id(cluster),
                max_clusters: MaxClusters::C255,
                cached: false,
                canaries: true,
                service_exports: None,
                export_mode: cluster_config::ExportMode::Services,
            })),
        };
        let key = Key::cluster_config(&name).to_string();
        if self.stores[cluster].get(key.as_bytes()).map(|value| value.bytes.to_vec()) != config {
            self.put(cluster, &key, config.map(|bytes| Value { bytes: bytes.into(), good: None }), None);
        }
        let beat = Value { bytes: heartbeat::encode(steady(now)).into(), good: None };
        let due = self.controls[cluster].last_beat.is_none_or(|last| now >= last + HEARTBEAT);
        if due && !self.controls[cluster].silent {
            self.controls[cluster].last_beat = Some(now);
            self.put(cluster, keys::HEARTBEAT, Some(beat.clone()), None);
        }
        let control = &self.controls[cluster];
        if control.canaries_at.is_some_and(|deadline| control.waits_for.is_empty() || now >= deadline) {
            self.note(|| format!("canaries of cluster {cluster}"));
            self.controls[cluster].canaries_at = None;
            // Whoever has not come back until now is told as gone.
            for node in std::mem::take(&mut self.controls[cluster].waits_for) {
                let prefixes: Vec<IpNet> = self.ever_of(node);
                self.withdrawn.extend(prefixes.into_iter().map(|prefix| (node, prefix)));
            }
            for kind in Kind::ALL {
                let key = Key::canary(Keyspace::State, &name, kind).to_string();
                self.put(cluster, &key, Some(beat.clone()), None);
            }
        }
    }

    /// The store comes back empty, under another id.
    pub(crate) fn lose_store(&mut self, cluster: usize) {
        let now = self.agenda.now;
        let name = cluster_name(cluster);
        let prefix = keys::prefix(Keyspace::State, &name, Kind::Nodes);
        let end = keys::range_end(prefix.as_bytes());
        let known = self.stores[cluster].list(prefix.as_bytes(), &end, 0, usize::MAX).map(|page| page.rows);
        let known = known.unwrap_or_default();
        let known: BTreeSet<usize> = known.iter().filter_map(|(key, _)| self.node_of(cluster, key)).collect();
        self.next_store_id += 1;
        self.stores[cluster] = Store::new(self.next_store_id);
        let control = &mut self.controls[cluster];
        control.waits_for.extend(known);
        control.canaries_at = Some(now + CANARY_DEADLINE);
        control.last_beat = None;
    }

    /// After a crash of a store its leases start anew.
    pub(crate) fn restart_store(&mut self, cluster: usize) {
        self.stores[cluster].up = true;
        self.stores[cluster].renew_leases(self.agenda.now + LEASE);
    }

    fn ever_of(&self, node: usize) -> Vec<IpNet> {
        self.ever_good.iter().filter(|(of, _)| *of == node).flat_map(|(_, prefixes)| prefixes.clone()).collect()
    }
}
