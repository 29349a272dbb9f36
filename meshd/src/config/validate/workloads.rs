//! Workloads of nodes without Kubernetes.

use std::collections::{BTreeMap, btree_map::Entry};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Validator;
use crate::config::model::Workload;
use crate::config::raw::RawWorkload;

/// Namespace and service account of a workload that names none.
pub(super) const DEFAULT: &str = "default";
/// Longest label and workload name.
const NAME_MAX: usize = 253;
/// The label meshd writes itself.
const CLUSTER_LABEL: &str = "io.cilium.k8s.policy.cluster";

impl Validator<'_> {
    pub(super) fn workloads(&mut self, raw: Vec<RawWorkload>, own: &[IpNet]) -> Vec<Workload> {
        let mut workloads = BTreeMap::new();
        let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
        for (i, raw) in raw.into_iter().enumerate() {
            let key = format!("workloads.static[{i}]");
            let Some(workload) = self.workload(&key, raw, own) else { continue };
            let name = format!("{}/{}", workload.namespace, workload.name);
            for (j, address) in workload.addresses.iter().enumerate() {
                if let Some(other) = owners.insert(*address, name.clone()).filter(|other| *other != name) {
                    self.error(
                        &format!("{key}.addresses[{j}]"),
                        format!("{address} belongs to workload {other} already"),
                        "give each workload addresses of its own",
                    );
                }
            }
            match workloads.entry(name) {
                Entry::Vacant(free) => {
                    free.insert(workload);
                }
                Entry::Occupied(taken) => self.error(
                    &format!("{key}.name"),
                    format!("workload {} is there twice", taken.key()),
                    "give each workload of a namespace a name of its own",
                ),
            }
        }
        workloads.into_values().collect()
    }

    pub(super) fn workload(&mut self, key: &str, raw: RawWorkload, own: &[IpNet]) -> Option<Workload> {
        let namespace = raw.namespace.map_or_else(|| DEFAULT.to_owned(), |name| name.0);
        let service_account = raw.service_account.map_or_else(|| DEFAULT.to_owned(), |name| name.0);
        let Some(name) = raw.name else {
            self.missing(&format!("{key}.name"), "name: NAME");
            return None;
        };
        for (part, text) in [("namespace", &namespace), ("name", &name.0), ("service_account", &service_account)] {
            if !is_dns_name(text) {
                self.error(
                    &format!("{key}.{part}"),
                    format!("{text:?} is not a name"),
                    "use a-z, 0-9, - and ., the first and last a letter or digit",
                );
            }
        }
        if raw.addresses.is_empty() {
            self.missing(&format!("{key}.addresses"), "addresses: [ADDRESS]");
        }
        let addresses_key = format!("{key}.addresses");
        let addresses = self.addresses(&addresses_key, &raw.addresses);
        for (i, address) in addresses.iter().enumerate() {
            if !own.iter().any(|prefix| prefix.contains(address)) {
                let hint = if own.is_empty() {
                    "add node: {pod_cidrs: [PREFIX]}".to_owned()
                } else {
                    format!("node.pod_cidrs: {}", own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
                };
                self.error(&format!("{addresses_key}[{i}]"), format!("{address} is outside node.pod_cidrs"), hint);
            }
        }
        for (label, value) in &raw.labels {
            let key = format!("{key}.labels.{label}");
            if label == CLUSTER_LABEL {
                self.error(&key, "this label is written by meshd", "remove it");
            } else if let Some((message, hint)) = label_problem(label, value) {
                self.error(&key, message, hint);
            }
        }
        Some(Workload { namespace, name: name.0, addresses, labels: raw.labels, service_account })
    }
}

/// What is wrong with a label, and what to do about it.
pub(super) fn label_problem(label: &str, value: &str) -> Option<(String, &'static str)> {
    if label.is_empty()
        || label.contains([';', '=', ':'])
        || label.len() > NAME_MAX
        || label.contains(char::is_whitespace)
    {
        return Some((format!("{label:?} is not a label key"), "use letters, digits and -._/"));
    }
    let is_value = !value.contains(';') && value.len() <= NAME_MAX && !value.chars().any(char::is_control);
    (!is_value).then(|| (format!("{value:?} is not a label value"), "use letters, digits and -._"))
}

pub(super) fn is_dns_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= NAME_MAX
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
}
