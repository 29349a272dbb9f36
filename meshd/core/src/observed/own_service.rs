//! Services of our own cluster, as its source describes them.
//!
//! A service names no backends of the mesh: it selects them by their labels. What it is merged with from other clusters,
//! and where its traffic goes, is derived ([`crate::derive::ServiceDeriver`]).

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;

use super::Protocol;
use crate::id::ClusterName;

/// The weight of a backend whose cluster has no other.
pub const WEIGHT_DEFAULT: u16 = 100;
/// The largest weight of a cluster or of a static backend.
pub const WEIGHT_MAX: u16 = 1_000;

/// A service of our own cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnServiceRow {
    /// How it is reached.
    pub kind: ServiceKind,
    /// Addresses inside the mesh; empty for a headless service.
    pub cluster_ips: Box<[IpAddr]>,
    /// Further addresses, for instance of a router.
    pub external_ips: Box<[IpAddr]>,
    /// Addresses a load balancer gave it.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Its ports.
    pub ports: Box<[OwnServicePort]>,
    /// Labels (of source `k8s`) that the workloads of its namespace have which are its backends; empty selects nothing.
    pub selector: BTreeMap<String, String>,
    /// Backends that are no workload of the mesh.
    pub backends: Box<[StaticBackend]>,
    /// Backends of other clusters are used too.
    pub global: bool,
    /// Other clusters may use our backends; counts only when it is global.
    pub shared: bool,
    /// Which clusters are preferred; counts only when it is global.
    pub affinity: Affinity,
    /// A client's address alone decides on its backend.
    pub by_source: bool,
    /// For so many seconds a client keeps its backend; `None` for no such thing.
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
    /// Whether backends of the zone a node is in are preferred there.
    pub topology: Topology,
    /// Weight of each backend of a cluster, where it is not [`WEIGHT_DEFAULT`]; 0 keeps new connections away.
    pub weights: BTreeMap<ClusterName, u16>,
    /// With affinity `local`: with fewer active backends of our cluster than this, those of others join in.
    pub local_minimum: u16,
}

/// How a service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum ServiceKind {
    /// By addresses inside the mesh.
    ClusterIp,
    /// By a port of every node as well.
    NodePort,
    /// By addresses of a load balancer as well.
    LoadBalancer,
    /// By its backends' own addresses only.
    Headless,
}

impl ServiceKind {
    /// The word Kubernetes has for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::Headless => "Headless",
        }
    }
}

/// A port of a service of our own cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnServicePort {
    /// Its name, "" for an unnamed one; other clusters' backends are found by it.
    pub name: Arc<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Where clients connect.
    pub port: u16,
    /// Where our own backends listen.
    pub target_port: u16,
    /// The port of every node.
    pub node_port: Option<u16>,
}

/// A backend that is no workload of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StaticBackend {
    /// Its address.
    pub address: IpAddr,
    /// Where it listens, when that is not the target port.
    pub port: Option<u16>,
    /// Its share in the traffic, in hundredths of what a backend of our cluster gets.
    pub weight: u16,
    /// It is shutting down.
    pub terminating: bool,
    /// The zone it is in.
    pub zone: Option<Arc<str>>,
}

/// Which clusters' backends a global service prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// All the same.
    #[default]
    None,
    /// Our own.
    Local,
    /// Those of other clusters.
    Remote,
}

impl Affinity {
    /// The word of annotations and of the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// Which backends traffic reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TrafficPolicy {
    /// Those of every node.
    #[default]
    Cluster,
    /// Those of the node it meets first.
    Local,
}

/// Whether zones count when a backend is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// They do not.
    #[default]
    None,
    /// Backends that are meant for the node's zone come first, and all others only while there is none.
    Zone,
}

/// How packets reach a backend on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardingMode {
    /// With the node's own source address; answers come back through the node.
    Snat,
    /// With the client's source address; the backend's node answers the client.
    Dsr,
}

/// What becomes of connections to a backend that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRemoval {
    /// They go on as long as they can.
    #[default]
    Keep,
    /// They end at once.
    Kill,
}
