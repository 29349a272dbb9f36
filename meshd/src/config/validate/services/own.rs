//! `workloads.services`: the services of this cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use meshd_core::clustermesh::export::is_identity_label;
use meshd_core::clustermesh::service::PORTS_MAX;
use meshd_core::id::ClusterName;
use meshd_core::observed::{
    Affinity, Limits, OnRemoval, OwnServicePort, OwnServiceRow, Protocol, ServiceKind, ServiceName, StaticBackend,
    Topology, TrafficPolicy, WEIGHT_DEFAULT, WEIGHT_MAX,
};

use super::super::Validator;
use super::super::workloads::{DEFAULT, is_dns_name, label_problem};
use super::mode;
use crate::config::model::NodeConfig;
use crate::config::raw::Address;
use crate::config::raw::services::{
    BackendRemoval, PortProtocol, RawService, RawServiceBackend, RawServicePort, ServiceAffinity, ServiceHash,
    ServiceTopology, ServiceTrafficPolicy, ServiceType, StaticBackendState,
};

/// Longest name of a service or port: a DNS label.
const LABEL_MAX: usize = 63;
/// Longest session affinity in seconds, as in Kubernetes.
const SESSION_AFFINITY_MAX_S: u32 = 86_400;

/// Where a service is reached; the address is `None` for a port of every node.
type Place = (Option<IpAddr>, u16, Protocol);

/// What all services are compared with.
pub(in super::super) struct ServiceRules<'a> {
    /// This node.
    pub(in super::super) node: &'a NodeConfig,
    /// Where ports of nodes may be.
    pub(in super::super) node_ports: &'a RangeInclusive<u16>,
}

impl Validator<'_> {
    pub(in super::super) fn own_services(
        &mut self,
        raw: Vec<RawService>,
        rules: &ServiceRules<'_>,
    ) -> BTreeMap<ServiceName, Arc<OwnServiceRow>> {
        let mut services = BTreeMap::new();
        let mut places: BTreeMap<Place, ServiceName> = BTreeMap::new();
        if raw.len() > Limits::SERVICES {
            let message = format!("{} services are more than {}", raw.len(), Limits::SERVICES);
            self.error("workloads.services", message, "divide them among clusters");
        }
        for (i, raw) in raw.into_iter().enumerate() {
            let key = format!("workloads.services[{i}]");
            let Some((name, row)) = self.own_service(&key, raw, rules) else { continue };
            if services.contains_key(&name) {
                self.error(
                    &format!("{key}.name"),
                    format!("service {name} is there twice"),
                    "give each service of a namespace a name of its own",
                );
                continue;
            }
            for place in places_of(&row) {
                if let Some(other) = places.insert(place, name.clone()) {
                    let (address, port, protocol) = place;
                    let at = address.map_or_else(|| "node port".to_owned(), |address| address.to_string());
                    let whose = if other == name { "twice".to_owned() } else { format!("service {other}'s already") };
                    self.error(
                        &key,
                        format!("{at} {port}/{} is {whose}", protocol_word(protocol)),
                        "give each service and port an address or a port number of its own",
                    );
                }
            }
            services.insert(name, Arc::new(row));
        }
        services
    }

    fn own_service(
        &mut self,
        key: &str,
        raw: RawService,
        rules: &ServiceRules<'_>,
    ) -> Option<(ServiceName, OwnServiceRow)> {
        let namespace = raw.namespace.as_ref().map_or(DEFAULT, |name| name.as_str()).to_owned();
        let Some(name) = raw.name.as_ref().map(|name| name.as_str().to_owned()) else {
            self.missing(&format!("{key}.name"), "name: NAME");
            return None;
        };
        for (part, text) in [("namespace", &namespace), ("name", &name)] {
            if !is_dns_name(text) || text.len() > LABEL_MAX {
                let hint = "use at most 63 of a-z, 0-9, - and ., the first and last a letter or digit";
                self.error(&format!("{key}.{part}"), format!("{text:?} is not a name"), hint);
            }
        }
        let kind = match raw.r#type.unwrap_or(ServiceType::ClusterIp) {
            ServiceType::ClusterIp => ServiceKind::ClusterIp,
            ServiceType::NodePort => ServiceKind::NodePort,
            ServiceType::LoadBalancer => ServiceKind::LoadBalancer,
            ServiceType::Headless => ServiceKind::Headless,
        };
        self.check_global(key, &raw);
        let ports = self.service_ports(key, kind, &raw.ports, rules.node_ports);
        let row = OwnServiceRow {
            kind,
            cluster_ips: self.service_addresses(&format!("{key}.cluster_ips"), &raw.cluster_ips, rules.node),
            external_ips: self.addresses(&format!("{key}.external_ips"), &raw.external_ips).into(),
            load_balancer_ips: self.service_addresses(
                &format!("{key}.load_balancer_ips"),
                &raw.load_balancer_ips,
                rules.node,
            ),
            backends: self.service_backends(key, &raw.backends, ports.len()),
            ports,
            selector: self.selector(key, &raw.selector),
            global: raw.global.unwrap_or(false),
            shared: raw.shared.unwrap_or(true),
            affinity: match raw.affinity.unwrap_or(ServiceAffinity::None) {
                ServiceAffinity::None => Affinity::None,
                ServiceAffinity::Local => Affinity::Local,
                ServiceAffinity::Remote => Affinity::Remote,
            },
            by_source: raw.hash == Some(ServiceHash::Source),
            session_affinity: self.session_affinity(key, raw.session_affinity_s),
            external_policy: policy(raw.external_traffic_policy),
            internal_policy: policy(raw.internal_traffic_policy),
            source_ranges: self.prefixes(&format!("{key}.source_ranges"), &raw.source_ranges).into(),
            mode: raw.mode.map(mode),
            on_removal: match raw.on_backend_removal.unwrap_or(BackendRemoval::Keep) {
                BackendRemoval::Keep => OnRemoval::Keep,
                BackendRemoval::Kill => OnRemoval::Kill,
            },
            topology: match raw.topology.unwrap_or(ServiceTopology::None) {
                ServiceTopology::None => Topology::None,
                ServiceTopology::Zone => Topology::Zone,
            },
            weights: self.cluster_weights(key, &raw.cluster_weights),
            local_minimum: raw.local_minimum.unwrap_or(1),
        };
        self.check_kind(key, &raw, &row);
        if row.selector.is_empty() && row.backends.is_empty() && !row.global {
            let hint = "add selector or backends, or say global: true";
            self.warn(key, format!("service {namespace}/{name} can have no backend"), hint);
        }
        Some((ServiceName { namespace: namespace.into(), name: name.into() }, row))
    }

    /// What only counts for services that are merged with those of other clusters.
    fn check_global(&mut self, key: &str, raw: &RawService) {
        let has_affinity = raw.affinity.is_some_and(|affinity| affinity != ServiceAffinity::None);
        if raw.global != Some(true) {
            for (part, is_given) in [("affinity", has_affinity), ("cluster_weights", !raw.cluster_weights.is_empty())] {
                if is_given {
                    let message = "counts only for a global service, and this one has no backends of other clusters";
                    self.error(&format!("{key}.{part}"), message, format!("add global: true, or remove {part}"));
                }
            }
        }
        if raw.local_minimum.is_some() && raw.affinity != Some(ServiceAffinity::Local) {
            let hint = "add affinity: local, or remove local_minimum";
            self.error(&format!("{key}.local_minimum"), "counts only with affinity local", hint);
        }
    }

    /// What a type of service has and has not.
    fn check_kind(&mut self, key: &str, raw: &RawService, row: &OwnServiceRow) {
        let is_balancer = row.kind == ServiceKind::LoadBalancer;
        for (part, is_given) in
            [("load_balancer_ips", !raw.load_balancer_ips.is_empty()), ("source_ranges", !raw.source_ranges.is_empty())]
        {
            if is_given && !is_balancer {
                let hint = format!("say type: load_balancer, or remove {part}");
                self.error(&format!("{key}.{part}"), "only possible with type load_balancer", hint);
            }
        }
        if row.kind == ServiceKind::Headless {
            for (part, is_given) in
                [("cluster_ips", !raw.cluster_ips.is_empty()), ("external_ips", !raw.external_ips.is_empty())]
            {
                if is_given {
                    let hint = "a headless service has no address of its own; remove it, or say another type";
                    self.error(&format!("{key}.{part}"), "not possible with type headless", hint);
                }
            }
            return;
        }
        let has_address = !raw.cluster_ips.is_empty()
            || !raw.external_ips.is_empty()
            || !raw.load_balancer_ips.is_empty()
            || raw.ports.iter().any(|port| port.node_port.is_some());
        if !has_address {
            self.missing(&format!("{key}.cluster_ips"), "cluster_ips: [ADDRESS], or say type: headless");
        }
    }

    /// Addresses that nothing else may have.
    fn service_addresses(&mut self, key: &str, raw: &[Address], node: &NodeConfig) -> Box<[IpAddr]> {
        let addresses = self.addresses(key, raw);
        for (i, address) in addresses.iter().enumerate() {
            let key = format!("{key}[{i}]");
            if let Some(prefix) = node.pod_cidrs.iter().find(|prefix| prefix.contains(address)) {
                let message = format!("{address} is inside {prefix}, where workloads are (node.pod_cidrs)");
                self.error(&key, message, "choose an address that no workload can have");
            } else if node.addresses.contains(address) {
                let message = format!("{address} is an address of this node");
                self.error(&key, message, "write it under external_ips, or choose another one");
            }
        }
        addresses.into()
    }

    fn service_ports(
        &mut self,
        key: &str,
        kind: ServiceKind,
        raw: &[RawServicePort],
        node_ports: &RangeInclusive<u16>,
    ) -> Box<[OwnServicePort]> {
        if raw.is_empty() {
            self.missing(&format!("{key}.ports"), "ports: [{name: http, port: 80}]");
        }
        if raw.len() > PORTS_MAX {
            let message = format!("{} ports are more than {PORTS_MAX}", raw.len());
            self.error(&format!("{key}.ports"), message, "divide them among several services");
        }
        let mut names = BTreeSet::new();
        let mut ports = Vec::with_capacity(raw.len());
        for (i, raw_port) in raw.iter().enumerate() {
            let key = format!("{key}.ports[{i}]");
            let name = raw_port.name.as_ref().map_or("", |name| name.as_str());
            if name.is_empty() && raw.len() > 1 {
                self.missing(&format!("{key}.name"), "name: NAME, because there are several ports");
            } else if !name.is_empty() && (!is_dns_name(name) || name.len() > LABEL_MAX || name.contains('.')) {
                let hint = "use at most 63 of a-z, 0-9 and -, the first and last a letter or digit";
                self.error(&format!("{key}.name"), format!("{name:?} is not a port name"), hint);
            } else if !names.insert(name.to_owned()) {
                self.error(
                    &format!("{key}.name"),
                    format!("port {name} is there twice"),
                    "give each a name of its own",
                );
            }
            let Some(port) = raw_port.port else {
                self.missing(&format!("{key}.port"), "port: NUMBER");
                continue;
            };
            for (part, number) in
                [("port", Some(port)), ("target_port", raw_port.target_port), ("node_port", raw_port.node_port)]
            {
                if number == Some(0) {
                    self.error(&format!("{key}.{part}"), "port 0 is not possible", "write 1 to 65535");
                }
            }
            if let Some(node_port) = raw_port.node_port.filter(|port| *port != 0) {
                self.check_node_port(&format!("{key}.node_port"), kind, node_port, node_ports);
            }
            ports.push(OwnServicePort {
                name: name.into(),
                protocol: match raw_port.protocol.unwrap_or(PortProtocol::Tcp) {
                    PortProtocol::Tcp => Protocol::Tcp,
                    PortProtocol::Udp => Protocol::Udp,
                    PortProtocol::Sctp => Protocol::Sctp,
                },
                port,
                target_port: raw_port.target_port.unwrap_or(port),
                node_port: raw_port.node_port,
            });
        }
        ports.into()
    }

    fn check_node_port(&mut self, key: &str, kind: ServiceKind, port: u16, range: &RangeInclusive<u16>) {
        match kind {
            ServiceKind::NodePort | ServiceKind::LoadBalancer => {}
            ServiceKind::ClusterIp | ServiceKind::Headless => {
                let hint = "say type: node_port, or remove node_port";
                self.error(key, "only possible with type node_port or load_balancer", hint);
            }
        }
        if !range.contains(&port) {
            let range = format!("{}-{}", range.start(), range.end());
            let hint = format!("choose one of {range}, or change services.node_port_range");
            self.error(key, format!("{port} is outside services.node_port_range ({range})"), hint);
        }
    }

    fn service_backends(&mut self, key: &str, raw: &[RawServiceBackend], ports: usize) -> Box<[StaticBackend]> {
        let mut backends: Vec<StaticBackend> = Vec::with_capacity(raw.len());
        for (i, raw) in raw.iter().enumerate() {
            let key = format!("{key}.backends[{i}]");
            let Some(text) = &raw.address else {
                self.missing(&format!("{key}.address"), "address: ADDRESS");
                continue;
            };
            let Some(address) = self.address(&format!("{key}.address"), text) else { continue };
            if backends.iter().any(|backend| backend.address == address) {
                self.error(&format!("{key}.address"), format!("{address} is there twice"), "write each address once");
            }
            if raw.port == Some(0) {
                self.error(&format!("{key}.port"), "port 0 is not possible", "write 1 to 65535");
            } else if raw.port.is_some() && ports > 1 {
                let message = "which of the several ports is meant cannot be said";
                self.error(&format!("{key}.port"), message, "remove it: the target_port of each port counts");
            }
            let weight = raw.weight.unwrap_or(WEIGHT_DEFAULT);
            if weight > WEIGHT_MAX {
                self.error(&format!("{key}.weight"), format!("{weight} is not possible"), "write 0 to 1000");
            }
            let terminating = raw.state == Some(StaticBackendState::Terminating);
            if let Some(zone) = &raw.zone {
                self.check_zone(&format!("{key}.zone"), &zone.0);
            }
            let zone = raw.zone.as_ref().map(|zone| zone.0.as_str().into());
            backends.push(StaticBackend { address, port: raw.port, weight, terminating, zone });
        }
        backends.into()
    }

    fn selector(&mut self, key: &str, raw: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        for (label, value) in raw {
            let key = format!("{key}.selector.{label}");
            if let Some((message, hint)) = label_problem(label, value) {
                self.error(&key, message, hint);
            } else if !is_identity_label(label) {
                let hint = "select by a label that workloads of one kind have in common, such as app";
                self.error(&key, "this label is no part of an identity, so no workload is found by it", hint);
            }
        }
        raw.clone()
    }

    fn session_affinity(&mut self, key: &str, seconds: Option<u32>) -> Option<u32> {
        let seconds = seconds?;
        if !(1..=SESSION_AFFINITY_MAX_S).contains(&seconds) {
            let key = format!("{key}.session_affinity_s");
            self.error(&key, format!("{seconds} is not possible"), "write 1 to 86400, or remove it for none");
        }
        Some(seconds)
    }

    fn cluster_weights(&mut self, key: &str, raw: &BTreeMap<String, u16>) -> BTreeMap<ClusterName, u16> {
        let mut weights = BTreeMap::new();
        for (name, weight) in raw {
            let key = format!("{key}.cluster_weights.{name}");
            if *weight > WEIGHT_MAX {
                self.error(&key, format!("{weight} is not possible"), "write 0 to 1000");
            }
            match name.parse::<ClusterName>() {
                Ok(name) => drop(weights.insert(name, *weight)),
                Err(error) => self.error(&key, error.to_string(), "write the name of a cluster"),
            }
        }
        weights
    }
}

fn places_of(row: &OwnServiceRow) -> Vec<Place> {
    let addresses = || row.cluster_ips.iter().chain(&row.external_ips).chain(&row.load_balancer_ips);
    let mut places = Vec::new();
    for port in &row.ports {
        places.extend(addresses().map(|address| (Some(*address), port.port, port.protocol)));
        places.extend(port.node_port.map(|node_port| (None, node_port, port.protocol)));
    }
    places
}

fn policy(raw: Option<ServiceTrafficPolicy>) -> TrafficPolicy {
    match raw.unwrap_or(ServiceTrafficPolicy::Cluster) {
        ServiceTrafficPolicy::Cluster => TrafficPolicy::Cluster,
        ServiceTrafficPolicy::Local => TrafficPolicy::Local,
    }
}

fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
        Protocol::Any => "any",
        Protocol::None => "none",
    }
}
