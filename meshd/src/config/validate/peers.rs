//! Remote clusters and what they may say.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use meshd_core::id::{ClusterId, MaxClusters};

use super::Validator;
use crate::config::model::{Accept, ClusterConfig, Endpoint, NodeConfig, Peer};
use crate::config::raw::{RawAccept, RawPeer};

impl Validator<'_> {
    pub(super) fn peers(
        &mut self,
        raw: Vec<RawPeer>,
        defaults: &Accept,
        own: &NodeConfig,
        cluster: Option<&ClusterConfig>,
        has_bgp_mesh: bool,
    ) -> Vec<Peer> {
        let own_name = cluster.map(|cluster| &cluster.name);
        let max_clusters = cluster.map_or(MaxClusters::C511, |cluster| cluster.max_clusters);
        let mut taken: BTreeMap<ClusterId, String> =
            cluster.map(|cluster| (cluster.id, "this cluster".to_owned())).into_iter().collect();
        let mut peers = BTreeMap::new();
        for (i, raw) in raw.into_iter().enumerate() {
            let key = format!("peers[{i}]");
            let Some(peer) = self.peer(&key, raw, defaults, own, max_clusters) else { continue };
            let name_key = format!("{key}.cluster");
            if own_name == Some(&peer.cluster) {
                self.error(
                    &name_key,
                    format!("{} is this cluster's own name", peer.cluster),
                    "list remote clusters only; two clusters need two names",
                );
            }
            if let Some(id) = peer.over_bgp {
                self.over_bgp(&format!("{key}.id"), id, &mut taken, &peer, has_bgp_mesh);
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

    /// Checks a cluster that BGP tells.
    fn over_bgp(
        &mut self,
        key: &str,
        id: ClusterId,
        taken: &mut BTreeMap<ClusterId, String>,
        peer: &Peer,
        has_bgp_mesh: bool,
    ) {
        if !has_bgp_mesh {
            let hint = "add bgp: {mesh: {enabled: true}}, or `endpoints` in place of `id`";
            self.error(key, "a cluster without `endpoints` is told over BGP, and the mesh over BGP is off", hint);
        }
        if let Some(owner) = taken.insert(id, format!("cluster {}", peer.cluster)) {
            self.error(
                key,
                format!("{owner} has the id {id} already"),
                "every cluster of a mesh has a number of its own",
            );
        }
    }

    fn peer(
        &mut self,
        key: &str,
        raw: RawPeer,
        defaults: &Accept,
        own: &NodeConfig,
        max_clusters: MaxClusters,
    ) -> Option<Peer> {
        let cluster = match &raw.cluster {
            Some(name) => self.cluster_name(&format!("{key}.cluster"), name),
            None => {
                self.missing(&format!("{key}.cluster"), "cluster: NAME");
                None
            }
        };
        let tls = raw.tls.as_ref().and_then(|tls| self.tls(&format!("{key}.tls"), tls));
        let endpoints_key = format!("{key}.endpoints");
        let id_key = format!("{key}.id");
        let over_bgp = raw.id.and_then(|id| match ClusterId::new(id, max_clusters) {
            Ok(id) => Some(id),
            Err(error) => {
                self.error(&id_key, error.to_string(), "write the `cluster.id` of that cluster");
                None
            }
        });
        if raw.id.is_none() && raw.endpoints.is_empty() {
            self.missing(&endpoints_key, "endpoints: [\"https://ADDRESS:2379\"]");
        }
        let has_store_keys = !raw.endpoints.is_empty() || raw.tls.is_some() || !raw.host_aliases.is_empty();
        if raw.id.is_some() && has_store_keys {
            let hint = "take out `id`, or take out `endpoints`, `tls` and `host_aliases` to learn the cluster over BGP";
            self.error(&id_key, "a cluster that has a store says its id there", hint);
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
        let source = self.file.to_owned();
        Some(Peer { cluster: cluster?, endpoints, over_bgp, tls, accept, host_aliases, mode: raw.routing.mode, source })
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
