//! Services with their backends, merged over all clusters.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    id::{ClusterName, NodeName},
    observed::{Affinity, ForwardingMode, OnRemoval, Protocol, ServiceKind, ServiceName, Topology, TrafficPolicy},
    table::Table,
};

/// A service of our own cluster with the backends of all clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// How it is reached.
    pub kind: ServiceKind,
    /// Backends of other clusters are used too.
    pub global: bool,
    /// Other clusters may use our backends; false unless it is global.
    pub shared: bool,
    /// Which clusters are preferred; `None` unless it is global.
    pub affinity: Affinity,
    /// A client's address alone decides on its backend.
    pub by_source: bool,
    /// For so many seconds a client keeps its backend.
    pub session_affinity: Option<u32>,
    /// Which backends traffic from outside reaches.
    pub external_policy: TrafficPolicy,
    /// Which backends traffic of workloads and nodes reaches.
    pub internal_policy: TrafficPolicy,
    /// Who may use the addresses of the load balancer; empty for everybody.
    pub source_ranges: Box<[IpNet]>,
    /// How packets reach a backend on another node; `None` means as for all services of the node.
    pub mode: Option<ForwardingMode>,
    /// What becomes of connections to a backend that went.
    pub on_removal: OnRemoval,
    /// Whether backends of this node's zone are preferred.
    pub topology: Topology,
    /// Its ports, as many as were configured.
    pub ports: Box<[ServicePort]>,
}

impl Service {
    /// A service of our own cluster alone, with everything as it is without a word about it.
    #[must_use]
    pub fn with_ports(ports: impl Into<Box<[ServicePort]>>) -> Self {
        Self {
            kind: ServiceKind::ClusterIp,
            global: false,
            shared: false,
            affinity: Affinity::default(),
            by_source: false,
            session_affinity: None,
            external_policy: TrafficPolicy::default(),
            internal_policy: TrafficPolicy::default(),
            source_ranges: Box::default(),
            mode: None,
            on_removal: OnRemoval::default(),
            topology: Topology::default(),
            ports: ports.into(),
        }
    }
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// Its name, "" for an unnamed one.
    pub name: Arc<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Where clients connect.
    pub port: u16,
    /// The port of every node.
    pub node_port: Option<u16>,
    /// Where it is reached; empty for a headless service. A frontend is served by backends of its own family.
    pub frontends: Box<[Frontend]>,
    /// Its backends of both families, sorted by address and port.
    pub backends: Arc<[Backend]>,
}

impl ServicePort {
    /// The backends a frontend can have.
    pub fn backends_of(&self, frontend: &Frontend) -> impl Iterator<Item = &Backend> {
        let ipv4 = frontend.address.is_ipv4();
        self.backends.iter().filter(move |backend| backend.address.is_ipv4() == ipv4)
    }
}

/// An address and port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Frontend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// What kind of address it is.
    pub kind: FrontendKind,
}

/// What kind of address a frontend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FrontendKind {
    /// An address inside the mesh.
    ClusterIp,
    /// A further address.
    ExternalIp,
    /// An address of a load balancer.
    LoadBalancerIp,
    /// An address of this node.
    NodePort,
}

/// Something that answers for a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Where it listens.
    pub port: u16,
    /// Its cluster.
    pub cluster: ClusterName,
    /// The node it is on, where that is known.
    pub node: Option<IpAddr>,
    /// Whether it can be used.
    pub state: BackendState,
    /// The affinity of the service names its cluster.
    pub preferred: bool,
    /// It gets new connections: what comes out of affinity, states and weights, judged for its own family. A traffic policy
    /// may still pass it over.
    pub used: bool,
    /// Its share in the traffic.
    pub weight: u16,
    /// It is a workload of this node.
    pub local: bool,
    /// The zone it is in, where that is known.
    pub zone: Option<Arc<str>>,
    /// It is meant for the zone of this node.
    pub near: bool,
}

/// Whether a backend can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It answers.
    Active,
    /// It is shutting down: it keeps its connections and gets new ones only when nothing else is left.
    Terminating,
    /// Its cluster has not been heard for too long.
    Unreachable,
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Terminating => "terminating",
            Self::Unreachable => "unreachable",
        })
    }
}

/// What our own cluster shares with the mesh.
#[derive(Debug, Clone, Default)]
pub struct Exports {
    /// Services, and every endpoint and identity of our own cluster, have been told: what is missing here does not exist.
    pub complete: bool,
    /// Services that are global and shared.
    pub services: Table<ServiceName, Arc<ExportedService>>,
}

/// A service as our own cluster shares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedService {
    /// Its addresses inside the mesh; empty for a headless service.
    pub cluster_ips: Box<[IpAddr]>,
    /// Its selector.
    pub selector: BTreeMap<String, String>,
    /// Whether backends are meant for their own zones.
    pub topology: Topology,
    /// Its ports.
    pub ports: Box<[ExportedPort]>,
}

/// A port of a service that is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedPort {
    /// Its name, "" for an unnamed one.
    pub name: Arc<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Where clients connect.
    pub port: u16,
    /// The backends of our own cluster, sorted by address.
    pub backends: Arc<[ExportedBackend]>,
}

/// A backend of our own cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExportedBackend {
    /// Its address.
    pub address: IpAddr,
    /// Where it listens.
    pub port: u16,
    /// It is shutting down.
    pub terminating: bool,
    /// The node it runs on, where that is known.
    pub node: Option<NodeName>,
    /// The zone it is in, where that is known.
    pub zone: Option<Arc<str>>,
}
