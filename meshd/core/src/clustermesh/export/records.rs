//! Desired records.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use thiserror::Error;

use super::{OwnState, ServiceRecords, WORKLOADS_MAX, Workload};
use crate::{
    clustermesh::{
        Key, KeyKind, Keyspace, LABELS_TEXT_MAX,
        cluster_config::{self, ExportMode, OwnConfig},
        heartbeat,
        identity::{CLUSTER_LABEL, CLUSTER_LABEL_SOURCE, IDENTITY_LABELS_MAX},
        ip, node,
    },
    id::{ClusterName, NumericIdentity},
    observed::{EndpointRow, Kind, Labels},
};

/// Label of the namespace.
const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// Label by which policies select a namespace by its name.
const NAMESPACE_NAME_LABEL: &str = "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name";
/// Label of the service account.
const SERVICE_ACCOUNT_LABEL: &str = "io.cilium.k8s.policy.serviceaccount";
/// Service account of a workload that names none.
const SERVICE_ACCOUNT: &str = "default";
/// `Source` of our node record; readers ignore it.
const NODE_SOURCE: &str = "custom-resource";

/// What the value of a record must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedValue {
    /// Exactly these bytes.
    Bytes(Arc<[u8]>),
    /// A time: whatever is there is right.
    Time,
}

/// A record that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedRecord {
    /// Its value.
    pub value: WantedValue,
    /// Place in the order of writing; lower first.
    pub(super) phase: u8,
}

impl WantedRecord {
    /// Bytes to write now.
    #[must_use]
    pub fn bytes(&self, now: Timestamp) -> Vec<u8> {
        match &self.value {
            WantedValue::Bytes(bytes) => bytes.to_vec(),
            WantedValue::Time => heartbeat::encode(now),
        }
    }
}

/// A workload or service that cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RefusedWorkload {
    /// A label would change the meaning of the label text.
    #[error("workload {workload} has label {label:?}, which has a character that labels cannot have")]
    Label {
        /// Namespace and name.
        workload: String,
        /// The label.
        label: String,
    },
    /// Too many or too long labels.
    #[error("workload {workload} has {count} labels of {size} bytes, more than readers accept")]
    Labels {
        /// Namespace and name.
        workload: String,
        /// How many.
        count: usize,
        /// How long.
        size: usize,
    },
    /// An address that another workload of this node has.
    #[error("workload {workload} has address {address}, which another workload of this node has already")]
    DuplicateAddress {
        /// Namespace and name.
        workload: String,
        /// The address.
        address: IpAddr,
    },
    /// Too many workloads.
    #[error("workload {workload} is one of more than {limit} on this node")]
    TooMany {
        /// Namespace and name.
        workload: String,
        /// The limit.
        limit: usize,
    },
    /// A service that readers would refuse.
    #[error("service {service} has {backends} backends, whose record of {size} bytes is more than readers accept")]
    Service {
        /// Namespace and name.
        service: String,
        /// How many.
        backends: usize,
        /// How long.
        size: usize,
    },
}

/// Everything this node wants in the store, by key; identities are the [`Allocator`](super::Allocator)'s.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Leased records.
    pub records: BTreeMap<Arc<str>, WantedRecord>,
    /// Keys that wait for the number of their labels: neither written nor removed.
    pub waiting: BTreeSet<Arc<str>>,
    /// Labels the workloads need a number for.
    pub labels: BTreeSet<Labels>,
    /// Workloads and services that cannot be published.
    pub refused: Vec<RefusedWorkload>,
    /// Every service that is shared is among the records: marked ones that are not may be removed.
    pub(super) has_services: bool,
}

impl Desired {
    /// Node and workload records. `number` gives the number of labels whose identity is in the store.
    #[must_use]
    pub fn of(own: &OwnState, number: impl Fn(&Labels) -> Option<NumericIdentity>) -> Self {
        let mut desired = Self::default();
        let key = Key::node(Keyspace::State, &own.cluster, &own.node).to_string().into();
        let extras = node::NodeExtras { source: NODE_SOURCE.to_owned(), ..node::NodeExtras::default() };
        let value = node::encode(&own.cluster, &own.node, &own.row, &extras);
        desired.records.insert(key, WantedRecord { value: WantedValue::Bytes(value.into()), phase: 1 });
        for (nth, workload) in own.workloads.iter().enumerate() {
            if nth >= WORKLOADS_MAX {
                let refused = RefusedWorkload::TooMany { workload: name(workload), limit: WORKLOADS_MAX };
                desired.refused.push(refused);
                break;
            }
            match workload_labels(&own.cluster, workload) {
                Ok(labels) => desired.add_workload(own, workload, labels, &number),
                Err(refused) => desired.refused.push(refused),
            }
        }
        desired
    }

    fn add_workload(
        &mut self,
        own: &OwnState,
        workload: &Workload,
        labels: Labels,
        number: impl Fn(&Labels) -> Option<NumericIdentity>,
    ) {
        let identity = number(&labels);
        self.labels.insert(labels);
        let namespace: Arc<str> = workload.namespace.as_str().into();
        for address in &workload.addresses {
            let prefix = IpNet::from(*address);
            let key: Arc<str> = Key::endpoint(Keyspace::State, &own.cluster, prefix).to_string().into();
            if self.records.contains_key(&key) || self.waiting.contains(&key) {
                let refused = RefusedWorkload::DuplicateAddress { workload: name(workload), address: *address };
                self.refused.push(refused);
                continue;
            }
            let Some(identity) = identity else {
                self.waiting.insert(key);
                continue;
            };
            let host = own.row.next_hop_addresses(address.is_ipv4()).next();
            let row = EndpointRow {
                identity,
                // A node without an address of that family is still reached by its other one.
                host: host.or_else(|| own.row.next_hop_addresses(!address.is_ipv4()).next()),
                encryption_key: 0,
                namespace: namespace.clone(),
                name: workload.name.as_str().into(),
            };
            self.records
                .insert(key, WantedRecord { value: WantedValue::Bytes(ip::encode(prefix, &row).into()), phase: 2 });
        }
    }

    /// Adds what only the writer of the cluster writes; the canaries only when they may be, and nothing of services before
    /// it is known which there are.
    pub fn add_writer(&mut self, own: &OwnState, canaries: bool, services: &ServiceRecords) {
        let config = cluster_config::encode(&OwnConfig {
            id: own.id,
            max_clusters: own.max_clusters,
            cached: false,
            canaries: true,
            service_exports: None,
            export_mode: ExportMode::ServicesAndEndpointSlices,
        });
        let config = WantedRecord { value: WantedValue::Bytes(config.into()), phase: 0 };
        self.records.insert(Key::cluster_config(&own.cluster).to_string().into(), config);
        let time = |phase| WantedRecord { value: WantedValue::Time, phase };
        self.records.insert(Key::Heartbeat.to_string().into(), time(0));
        if services.is_complete() {
            self.has_services = true;
            let record = |value: &Arc<[u8]>| WantedRecord { value: WantedValue::Bytes(value.clone()), phase: 3 };
            self.records.extend(services.records().map(|(key, value)| (key.clone(), record(value))));
            self.refused.extend(services.refused().cloned());
        }
        if canaries {
            let of_services = [KeyKind::Services, KeyKind::EndpointSlices];
            let others = Kind::ALL.map(KeyKind::from).into_iter().filter(|kind| !of_services.contains(kind));
            for kind in others.chain(of_services.into_iter().filter(|_| services.is_complete())) {
                let key = Key::canary(Keyspace::State, &own.cluster, kind).to_string();
                self.records.insert(key.into(), time(4));
            }
        }
    }
}

/// The labels of a workload as Cilium would give them to a pod, in canonical text form: without those that say which pod
/// of many it is, and with cluster, namespace and service account.
///
/// # Errors
/// [`RefusedWorkload`] when the labels cannot be written as text or readers would refuse them.
pub fn workload_labels(cluster: &ClusterName, workload: &Workload) -> Result<Labels, RefusedWorkload> {
    let account = Some(workload.service_account.as_str()).filter(|account| !account.is_empty());
    let own = workload.labels.iter().filter(|(key, _)| is_identity_label(key));
    let mut labels: BTreeMap<&str, &str> = own.map(|(key, value)| (key.as_str(), value.as_str())).collect();
    // Ours win: nobody chooses a cluster or namespace by a label.
    labels.extend([
        (CLUSTER_LABEL, cluster.as_str()),
        (NAMESPACE_LABEL, &workload.namespace),
        (NAMESPACE_NAME_LABEL, &workload.namespace),
        (SERVICE_ACCOUNT_LABEL, account.unwrap_or(SERVICE_ACCOUNT)),
    ]);
    let mut text = String::new();
    for (key, value) in &labels {
        let breaks = |c: char| c == ';' || c.is_control();
        if key.is_empty() || key.contains([':', '=']) || key.contains(breaks) || value.contains(breaks) {
            return Err(RefusedWorkload::Label { workload: name(workload), label: format!("{key}={value}") });
        }
        text.extend([CLUSTER_LABEL_SOURCE, ":", key, "=", value, ";"]);
    }
    if labels.len() > IDENTITY_LABELS_MAX || text.len() > LABELS_TEXT_MAX {
        let (count, size) = (labels.len(), text.len());
        return Err(RefusedWorkload::Labels { workload: name(workload), count, size });
    }
    Ok(Labels(text.into()))
}

/// Whether a label of a workload is part of its identity, and workloads are found by it.
///
/// Those that orchestrators write differ from pod to pod or from one rollout to the next, and would make an identity
/// for each of them. The list is what Cilium leaves out unless it is told otherwise, each entry the beginning of a key:
/// its default label filter, and its rules for stateful sets and jobs.
#[must_use]
pub fn is_identity_label(key: &str) -> bool {
    const LEFT_OUT: [&str; 13] = [
        "annotation",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "controller-revision-hash",
        "controller-uid",
        "etcd_node",
        "io.kubernetes",
        "k8s.io",
        "kubernetes.io",
        "pod-template-generation",
        "pod-template-hash",
        "statefulset.kubernetes.io/pod-name",
    ];
    // Labels of unfinished features stand below many names (`node.beta.kubernetes.io`).
    !LEFT_OUT.iter().any(|start| key.starts_with(start)) && !key.contains("beta.kubernetes.io")
}

fn name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}
