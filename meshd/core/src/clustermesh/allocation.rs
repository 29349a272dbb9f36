//! Which labels a workload has, and which number they should get: the pure part of identity allocation.
//!
//! Equal labels must get the same number on every node without asking anybody first. The hash of the canonical label text
//! therefore names the first candidate, and the rest of the cluster's range follows in order until a free number is found.
//! The caller takes a number with a create-only transaction, so two nodes never take the same one for different labels.

use std::collections::BTreeMap;

use super::{
    identity::{CLUSTER_LABEL, CLUSTER_LABEL_SOURCE, IDENTITY_LABELS_MAX},
    labels,
    rejection::Rejection,
};
use crate::{
    id::{ClusterId, ClusterName, MaxClusters, NumericIdentity},
    observed::Labels,
};

/// Label with the namespace of a workload.
pub const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// Label with the service account of a workload.
pub const SERVICE_ACCOUNT_LABEL: &str = "io.cilium.k8s.policy.serviceaccount";
/// What precedes the key of a namespace's own label.
pub const NAMESPACE_LABELS_PREFIX: &str = "io.cilium.k8s.namespace.labels.";
/// The label every namespace carries with its own name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Service account of a workload that names none.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// Keys that begin like this are no part of an identity: they differ between pods of one workload.
const EXCLUDED_PREFIXES: [&str; 13] = [
    "annotation.",
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
/// Keys that contain this are no part of an identity either.
const EXCLUDED_PART: &str = "beta.kubernetes.io";

/// Numbers at the low end of a cluster's range that are never allocated: their local part looks like a reserved identity.
const LOCAL_MIN: u32 = 256;

/// What is known about a workload.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// Cluster it runs in.
    pub cluster: &'a ClusterName,
    /// Its namespace.
    pub namespace: &'a str,
    /// Labels of the namespace; its name label is added when missing.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Its service account.
    pub service_account: Option<&'a str>,
    /// Its own labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// The canonical labels of a workload's identity.
///
/// # Errors
/// [`Rejection::Label`] when a label cannot be written in label text, [`Rejection::TooManyEntries`] or
/// [`Rejection::Oversized`] when there are too many.
pub fn workload_labels(workload: &Workload<'_>) -> Result<Labels, Rejection> {
    let own = workload.labels.iter().filter(|(key, _)| is_identity_label(key));
    let mut set: BTreeMap<String, &str> = own.map(|(key, value)| (key.clone(), &**value)).collect();
    set.insert(format!("{NAMESPACE_LABELS_PREFIX}{NAMESPACE_NAME_LABEL}"), workload.namespace);
    for (key, value) in workload.namespace_labels {
        set.insert(format!("{NAMESPACE_LABELS_PREFIX}{key}"), value);
    }
    set.insert(NAMESPACE_LABEL.to_owned(), workload.namespace);
    set.insert(SERVICE_ACCOUNT_LABEL.to_owned(), workload.service_account.unwrap_or(DEFAULT_SERVICE_ACCOUNT));
    set.insert(CLUSTER_LABEL.to_owned(), workload.cluster.as_str());
    labels::from_workload(CLUSTER_LABEL_SOURCE, &set, IDENTITY_LABELS_MAX)
}

/// True when a label of a pod is part of its identity.
#[must_use]
pub fn is_identity_label(key: &str) -> bool {
    // What is under io.cilium.k8s is said by the cluster, not by the pod.
    let reserved = key.starts_with("io.cilium.k8s.");
    !reserved && !key.contains(EXCLUDED_PART) && !EXCLUDED_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// The numbers `labels` may get, best first: every allocatable number of the cluster once.
pub fn candidates(labels: &Labels, id: ClusterId, max: MaxClusters) -> impl Iterator<Item = NumericIdentity> {
    let range = id.identity_range(max);
    let low = range.start() + LOCAL_MIN;
    let size = range.end() - low + 1;
    let hash = fnv1a(labels.0.as_bytes());
    // Both halves, because FNV mixes upwards.
    let folded = (hash >> 32) ^ hash;
    let first = u32::try_from(folded % u64::from(size)).unwrap_or(0);
    (0..size).map(move |probe| NumericIdentity(low + (first + probe) % size))
}

/// FNV-1a with 64 bits. Part of the contract between our own nodes: changing it renumbers every identity.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
