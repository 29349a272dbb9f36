//! One service: its backends from all clusters, and which of them are used.

use std::{net::IpAddr, sync::Arc};

use super::{places::Places, remotes::Remote};
use crate::{
    derive::LocalNode,
    desired::{Backend, BackendState, ExportedBackend, Frontend, FrontendKind, ServicePort},
    id::ClusterName,
    observed::{Affinity, OwnServicePort, OwnServiceRow, Protocol, StaticBackend, Topology, WEIGHT_DEFAULT},
};

/// A workload of our cluster that a service selects: its address and the node it is on.
pub(super) type Member = (IpAddr, Option<IpAddr>);

/// What a service is merged from.
pub(super) struct Merge<'a> {
    pub(super) local: &'a LocalNode,
    pub(super) places: &'a Places,
    pub(super) row: &'a OwnServiceRow,
    pub(super) workloads: Vec<Member>,
    /// In the order in which clusters may have an address that several tell.
    pub(super) remotes: Vec<Remote<'a>>,
}

impl Merge<'_> {
    /// Every port with its frontends and backends.
    pub(super) fn ports(&self) -> Box<[ServicePort]> {
        let port = |port: &OwnServicePort| {
            let mut backends = self.backends(port);
            for ipv4 in [true, false] {
                self.choose(ipv4, &mut backends);
            }
            ServicePort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: port.port,
                node_port: port.node_port,
                frontends: self.frontends(port),
                backends: backends.into(),
            }
        };
        self.row.ports.iter().map(port).collect()
    }

    /// The backends of our own cluster, whatever they weigh here.
    pub(super) fn exported(&self, port: &OwnServicePort) -> Arc<[ExportedBackend]> {
        let workloads = self.workloads.iter().map(|(address, node)| ExportedBackend {
            address: *address,
            port: port.target_port,
            terminating: false,
            node: self.places.name(*node).cloned(),
            zone: self.places.zone(*node).cloned(),
        });
        let fixed = self.row.backends.iter().map(|backend| ExportedBackend {
            address: backend.address,
            port: backend.port.unwrap_or(port.target_port),
            terminating: backend.terminating,
            node: None,
            zone: backend.zone.clone(),
        });
        let mut all: Vec<ExportedBackend> = workloads.chain(fixed).collect();
        // Stable: a workload comes before a static backend of the same address.
        all.sort_by_key(|backend| backend.address);
        all.dedup_by_key(|backend| backend.address);
        all.into()
    }

    fn frontends(&self, port: &OwnServicePort) -> Box<[Frontend]> {
        let of = |addresses: &[IpAddr], port: u16, kind| {
            addresses.iter().map(move |address| Frontend { address: *address, port, kind }).collect::<Vec<_>>()
        };
        let row = self.row;
        let mut frontends = of(&row.cluster_ips, port.port, FrontendKind::ClusterIp);
        frontends.extend(of(&row.external_ips, port.port, FrontendKind::ExternalIp));
        frontends.extend(of(&row.load_balancer_ips, port.port, FrontendKind::LoadBalancerIp));
        let node_ports = port.node_port.iter();
        frontends.extend(node_ports.flat_map(|port| of(&self.local.addresses, *port, FrontendKind::NodePort)));
        frontends.into()
    }

    /// Every backend of a port, one per address.
    fn backends(&self, port: &OwnServicePort) -> Vec<Backend> {
        let own = &self.local.cluster;
        let workloads = self.workloads.iter().map(|(address, node)| Backend {
            address: *address,
            port: port.target_port,
            cluster: own.clone(),
            node: *node,
            state: BackendState::Active,
            preferred: self.is_preferred(own),
            used: false,
            weight: self.weight(own),
            local: self.is_local(*address, *node),
            zone: self.places.zone(*node).cloned(),
            near: self.is_near(self.places.zone(*node), &[]),
        });
        let fixed = self.row.backends.iter().map(|backend| self.fixed(backend, port));
        let mut all: Vec<Backend> = workloads.chain(fixed).collect();
        for remote in &self.remotes {
            let state = if remote.unreachable { BackendState::Unreachable } else { BackendState::Active };
            let told = remote.row.backends.iter().filter_map(|(address, ports)| {
                let target = ports.get(&port.name).filter(|target| is_same(target.protocol, port.protocol))?;
                Some((*address, target.port))
            });
            // Port 0 cannot be connected to.
            all.extend(
                told.filter(|(_, port)| *port != 0).map(|(address, port)| Backend {
                    address,
                    port,
                    cluster: remote.cluster.clone(),
                    node: None,
                    state,
                    preferred: self.is_preferred(remote.cluster),
                    used: false,
                    weight: self.weight(remote.cluster),
                    local: false,
                    zone: remote.row.zones.get(&address).and_then(|told| told.zone.clone()),
                    near: remote
                        .row
                        .zones
                        .get(&address)
                        .is_some_and(|told| self.is_near(told.zone.as_ref(), &told.for_zones)),
                }),
            );
        }
        // Stable: of several with one address the first stays, which is our own or that of the first cluster.
        all.sort_by_key(|backend| backend.address);
        all.dedup_by_key(|backend| backend.address);
        all
    }

    fn fixed(&self, backend: &StaticBackend, port: &OwnServicePort) -> Backend {
        let own = &self.local.cluster;
        let share = u32::from(backend.weight) * u32::from(self.weight(own)) / u32::from(WEIGHT_DEFAULT);
        let is_none = backend.weight == 0 || self.weight(own) == 0;
        Backend {
            address: backend.address,
            port: backend.port.unwrap_or(port.target_port),
            cluster: own.clone(),
            node: None,
            state: if backend.terminating { BackendState::Terminating } else { BackendState::Active },
            preferred: self.is_preferred(own),
            used: false,
            // A small share is a share.
            weight: if is_none { 0 } else { u16::try_from(share.max(1)).unwrap_or(u16::MAX) },
            local: false,
            zone: backend.zone.clone(),
            near: self.is_near(backend.zone.as_ref(), &[]),
        }
    }

    /// True for a backend that is meant for the zone of this node: by its hints, or without any by where it is.
    fn is_near(&self, zone: Option<&Arc<str>>, hints: &[Arc<str>]) -> bool {
        let Some(own) = &self.local.zone else { return false };
        if hints.is_empty() { zone == Some(own) } else { hints.contains(own) }
    }

    /// Decides which backends of one family get new connections.
    fn choose(&self, ipv4: bool, backends: &mut [Backend]) {
        let own = &self.local.cluster;
        let is_healthy = |backend: &Backend| {
            backend.address.is_ipv4() == ipv4 && backend.state != BackendState::Unreachable && backend.weight > 0
        };
        let is_own = |backend: &Backend| backend.cluster == *own;
        let affinity = if self.row.global { self.row.affinity } else { Affinity::None };
        let (own_serve, others_serve) = match affinity {
            Affinity::None => (true, true),
            Affinity::Local => {
                let is_near = |b: &&Backend| is_healthy(b) && is_own(b) && b.state == BackendState::Active;
                (true, backends.iter().filter(is_near).count() < usize::from(self.row.local_minimum))
            }
            Affinity::Remote => (!backends.iter().any(|backend| is_healthy(backend) && !is_own(backend)), true),
        };
        let may_serve =
            |backend: &Backend| is_healthy(backend) && if is_own(backend) { own_serve } else { others_serve };
        // What is shutting down gets new connections only when nothing else is left.
        let has_active = backends.iter().any(|b| may_serve(b) && b.state == BackendState::Active);
        for backend in backends.iter_mut().filter(|backend| backend.address.is_ipv4() == ipv4) {
            backend.used = may_serve(backend) && (backend.state == BackendState::Active || !has_active);
        }
        let is_first = |b: &Backend| b.used && b.near && b.state == BackendState::Active && b.address.is_ipv4() == ipv4;
        if self.row.topology == Topology::Zone && backends.iter().any(is_first) {
            // Without one in this zone, all zones serve.
            for backend in backends.iter_mut().filter(|backend| backend.address.is_ipv4() == ipv4) {
                backend.used &= backend.near;
            }
        }
    }

    fn is_preferred(&self, cluster: &ClusterName) -> bool {
        let is_own = *cluster == self.local.cluster;
        self.row.global
            && match self.row.affinity {
                Affinity::None => false,
                Affinity::Local => is_own,
                Affinity::Remote => !is_own,
            }
    }

    fn weight(&self, cluster: &ClusterName) -> u16 {
        self.row.weights.get(cluster).copied().unwrap_or(WEIGHT_DEFAULT)
    }

    fn is_local(&self, address: IpAddr, node: Option<IpAddr>) -> bool {
        match node {
            Some(node) => self.local.addresses.contains(&node),
            None => self.local.pod_cidrs.iter().any(|prefix| prefix.contains(&address)),
        }
    }
}

/// A remote port without a protocol is of any.
fn is_same(told: Protocol, wanted: Protocol) -> bool {
    match told {
        Protocol::Any | Protocol::None => true,
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => told == wanted,
    }
}
