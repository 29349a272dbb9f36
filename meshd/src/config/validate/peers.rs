//! Remote clusters and what they may say.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use meshd_core::id::ClusterName;

use super::Validator;
use crate::config::model::{Accept, Endpoint, NodeConfig, Peer};
use crate::config::raw::{RawAccept, RawPeer};

impl Validator<'_> {
    pub(super) fn peers(
        &mut self,
        raw: Vec<RawPeer>,
        defaults: &Accept,
        own: &NodeConfig,
        own_name: Option<&ClusterName>,
    ) -> Vec<Peer> {
        let mut peers = BTreeMap::new();
        for (i, raw) in raw.into_iter().enumerate() {
            let key = format!("peers[{i}]");
            let Some(peer) = self.peer(&key, raw, defaults, own) else { continue };
            let name_key = format!("{key}.cluster");
            if own_name == Some(&peer.cluster) {
                self.error(
                    &name_key,
                    format!("{} is this cluster's own name", peer.cluster),
                    "list remote clusters only; two clusters need two names",
                );
            }
            if peers.contains_key(&peer.cluster) {
                self.error(
                    &name_key,
                    format!("cluster {} is configured twice", peer.cluster),
                    "remove one of the two; several addresses go into one list `endpoints`",
                );
            } else {
                peers.insert(peer.cluster.clone(), peer);
            }
        }
        peers.into_values().collect()
    }

    pub(super) fn peer(&mut self, key: &str, raw: RawPeer, defaults: &Accept, own: &NodeConfig) -> Option<Peer> {
        let cluster = match &raw.cluster {
            Some(name) => self.cluster_name(&format!("{key}.cluster"), name),
            None => {
                self.missing(&format!("{key}.cluster"), "cluster: NAME");
                None
            }
        };
        let tls = raw.tls.as_ref().and_then(|tls| self.tls(&format!("{key}.tls"), tls));
        let endpoints_key = format!("{key}.endpoints");
        if raw.endpoints.is_empty() {
            self.missing(&endpoints_key, "endpoints: [\"https://ADDRESS:2379\"]");
        }
        let endpoints = self.endpoints(&endpoints_key, &raw.endpoints, raw.tls.is_some());
        if raw.tls.is_none() && endpoints.iter().any(Endpoint::is_tls) {
            self.error(&format!("{key}.tls"), "https needs certificates", "add tls: {ca: FILE, cert: FILE, key: FILE}");
        }
        let accept = match &raw.accept {
            Some(accept) => self.accept(&format!("{key}.accept"), accept, own),
            None => defaults.clone(),
        };
        if accept.pod_cidrs.is_empty() || accept.node_cidrs.is_empty() {
            let missing = if accept.pod_cidrs.is_empty() { "pod_cidrs" } else { "node_cidrs" };
            self.warn(
                &format!("{key}.accept"),
                format!("no {missing}: nothing this cluster says can become a route"),
                format!("add accept: {{{missing}: [PREFIX]}} here or in peers_defaults"),
            );
        }
        let stores = endpoints.iter().filter_map(|endpoint| Some(IpNet::from(endpoint.host().parse::<IpAddr>().ok()?)));
        let stores: Vec<_> = stores.map(|store| (store, "an address of its store")).collect();
        self.overlaps(&format!("{key}.accept.pod_cidrs"), &accept.pod_cidrs, &stores);
        let mut host_aliases = BTreeMap::new();
        for (i, alias) in raw.host_aliases.iter().enumerate() {
            let ips = self.addresses(&format!("{key}.host_aliases[{i}].ips"), &alias.ips);
            match &alias.hostname {
                Some(name) => {
                    host_aliases.insert(name.as_str().to_lowercase(), ips);
                }
                None => self.missing(&format!("{key}.host_aliases[{i}].hostname"), "hostname: NAME"),
            }
        }
        Some(Peer { cluster: cluster?, endpoints, tls, accept, host_aliases, source: self.file.to_owned() })
    }

    /// Checks an accept list against the own prefixes: broader is fine, equal or inside is a mistake.
    pub(super) fn accept(&mut self, key: &str, raw: &RawAccept, own: &NodeConfig) -> Accept {
        let mut accept = Accept::default();
        for (i, text) in raw.pod_cidrs.iter().enumerate() {
            let key = format!("{key}.pod_cidrs[{i}]");
            let Some(prefix) = self.prefix(&key, text) else { continue };
            if let Some(own) = own.pod_cidrs.iter().find(|own| own.contains(&prefix)) {
                let relation = if *own == prefix { "is" } else { "is inside" };
                self.error(
                    &key,
                    format!("{prefix} {relation} this node's own pod_cidrs {own}; a remote cluster can never own it"),
                    "write the pod_cidrs of the remote cluster; a broader prefix such as 10.0.0.0/8 is fine",
                );
            }
            if prefix.prefix_len() == 0 {
                self.warn(&key, format!("{prefix} accepts every workload prefix"), "write the prefixes the mesh uses");
            }
            accept.pod_cidrs.push(prefix);
        }
        accept.node_cidrs = self.prefixes(&format!("{key}.node_cidrs"), &raw.node_cidrs);
        let ours = own.addresses.iter().map(|address| (IpNet::from(*address), "an address of this node"));
        let nodes = accept.node_cidrs.iter().map(|prefix| (*prefix, "which is in node_cidrs"));
        let underlay: Vec<_> = ours.chain(nodes).collect();
        self.overlaps(&format!("{key}.pod_cidrs"), &accept.pod_cidrs, &underlay);
        accept
    }

    /// Warns of the first thing of the underlay that the workloads of a cluster could be given by `accept`.
    fn overlaps(&mut self, key: &str, accept: &[IpNet], underlay: &[(IpNet, &str)]) {
        let within =
            |entry: &IpNet| underlay.iter().find(|(part, _)| entry.contains(part)).map(|found| (*entry, *found));
        let Some((entry, (part, what))) = accept.iter().find_map(within) else { return };
        let part = if part.prefix_len() == part.max_prefix_len() { part.addr().to_string() } else { part.to_string() };
        self.warn(
            key,
            format!("{entry} contains {part}, {what}: no workload can have that"),
            "write the prefixes of the cluster's workloads only",
        );
    }
}
