//! What the unix-socket API answers: one struct per JSON shape.
//!
//! The daemon fills these, the command line prints them, and scripts read them, so a field that has been
//! released keeps its name and meaning. Names are `snake_case`, times RFC 3339 in UTC, durations carry the
//! suffix `_s`. A field that may be missing is an `Option` and is printed as `null`, never left out: a
//! script that asks for it gets an answer. When reading, a missing optional field is `None`, so that an
//! older daemon can be asked by a newer command line.
//!
//! | path | answer |
//! |---|---|
//! | `GET /v1/status` | [`StatusView`] |
//! | `GET /v1/get/nodes` | list of [`NodeView`] |
//! | `GET /v1/get/prefixes` | list of [`PrefixView`] |
//! | `GET /v1/get/routes` | list of [`RouteView`] |
//! | `GET /v1/get/services` | list of [`ServiceView`] |
//! | `GET /v1/get/backends` | list of [`ServiceBackendView`] |
//! | `GET /v1/get/identities` | list of [`IdentityView`] |
//! | `GET /v1/get/endpoints` | list of [`EndpointView`] |
//! | `GET /v1/get/peers` | list of [`PeerView`] |
//! | `GET /v1/get/rejected` | list of [`RejectedView`] |
//! | `GET /v1/get/exclusions` | list of [`ExclusionView`] |
//! | `GET /v1/flows` | lines of [`super::flow_view::FlowLine`] |
//! | `GET /v1/plan` | [`PlanView`] |
//! | `POST /v1/drain` | [`DrainView`] |
//! | any error | [`ErrorView`] with a 4xx or 5xx status |
//!
//! Every `get` path takes `?name=`, which keeps the rows whose name (node, prefix, service, number, cluster)
//! equals it; a service may be named with its namespace (`default/web`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The whole node in one answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// The own cluster.
    pub cluster: ClusterView,
    /// This node.
    pub node: OwnNodeView,
    /// The worst of all problems.
    pub health: Health,
    /// What is wrong now, oldest first.
    pub problems: Vec<ProblemView>,
    /// Every configured remote cluster, sorted by name.
    pub peers: Vec<PeerView>,
    /// Counts of the routes this node wants and has.
    pub routes: RouteCountsView,
    /// Counts of the BGP speaker.
    pub bgp: BgpCountsView,
    /// State of the eBPF datapath.
    pub datapath: DatapathView,
    /// State of masquerade.
    #[serde(default)]
    pub masquerade: MasqueradeView,
    /// What clients of the embedded store hold, where this node serves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreView>,
    /// Version of the daemon that answered.
    #[serde(default)]
    pub version: String,
    /// When the daemon started.
    #[serde(default)]
    pub started: Option<Timestamp>,
}

/// What the clients of the embedded store hold of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreView {
    /// Keys.
    pub keys: u64,
    /// Open connections.
    pub connections: u64,
    /// Open watches.
    pub watches: u64,
    /// Memory of answers that have not been written to their connections.
    pub answer_bytes: u64,
    /// Requests that wait for room for their answers.
    pub answers_waiting: u64,
    /// Requests that waited in vain since the store was opened.
    pub answers_refused: u64,
}

/// Name and number of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Cluster name.
    pub name: String,
    /// Cluster id, 1 to 255 or 511.
    pub id: u32,
}

/// The node that answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnNodeView {
    /// Node name.
    pub name: String,
    /// Addresses other nodes reach this one by.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of the workloads on this node.
    pub pod_cidrs: Vec<IpNet>,
}

/// Overall health. `meshd status` exits 0 only for [`Health::Ok`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing to report.
    Ok,
    /// Something needs a look; forwarding goes on.
    Degraded,
    /// The node does not do its work.
    Failed,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        })
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemView {
    /// The part concerned, for instance `config`, `store`, `routes` or `peer/east`.
    pub component: String,
    /// What is wrong, as one line.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// One remote cluster this node is configured to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// Cluster name, from the configuration.
    pub cluster: String,
    /// Cluster id, once its cluster-config was read.
    pub id: Option<u32>,
    /// Is there a live connection to its store?
    pub connected: bool,
    /// Connected, cluster-config read, and every table listed completely?
    pub ready: bool,
    /// Accepted node rows.
    pub nodes: u64,
    /// Accepted endpoint (address to identity) rows.
    pub endpoints: u64,
    /// Accepted identity rows.
    pub identities: u64,
    /// Accepted service rows.
    pub services: u64,
    /// How often the connection was built again.
    pub reconnections: u64,
    /// When it last failed.
    pub last_failure: Option<Timestamp>,
    /// What is wrong with it now.
    #[serde(default)]
    pub problem: Option<String>,
    /// Since when its rows are only remembered, not read from its store.
    #[serde(default)]
    pub stale_since: Option<Timestamp>,
    /// Its store has other data than before; until then its rows that the new data does not have are kept.
    #[serde(default)]
    pub kept_until: Option<Timestamp>,
    /// The endpoint in use.
    #[serde(default)]
    pub address: Option<String>,
    /// Cluster id of its store (changes when the store loses its history), in hexadecimal.
    #[serde(default)]
    pub store_id: Option<String>,
    /// Where it came from: the configuration file, or the file in the peers directory.
    #[serde(default)]
    pub source: Option<String>,
}

/// How many routes are wanted, done and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteCountsView {
    /// Routes this node wants.
    pub desired: u64,
    /// Routes the kernel holds as wanted.
    pub installed: u64,
    /// Routes whose row status is error.
    pub errors: u64,
}

/// Counts of the BGP speaker; all zero when it is not configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpCountsView {
    /// Configured BGP peers.
    pub peers: u64,
    /// Sessions in Established.
    pub established: u64,
    /// Paths received.
    pub received: u64,
    /// Paths accepted by import policy.
    pub accepted: u64,
    /// Routes installed from them.
    pub installed: u64,
}

/// State of the eBPF datapath; empty when it is not enabled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathView {
    /// Is it enabled?
    pub enabled: bool,
    /// Programs on links, with how each is attached.
    pub programs: Vec<ProgramView>,
    /// How full the maps are.
    pub maps: Vec<MapView>,
    /// How notes of frontends travel to backends of other nodes (`option`, `ipip`, `geneve`), where a service uses direct server
    /// return; otherwise those backends get translated sources.
    #[serde(default)]
    pub direct_return: Option<String>,
    /// What the programs write around packets that go through the tunnel (`vxlan`, `geneve`); `null` where the kernel's device does
    /// it, or there is no tunnel.
    #[serde(default)]
    pub tunnel: Option<String>,
    /// Workloads of different nodes reach each other past routing and packet filter.
    #[serde(default)]
    pub fast_path: bool,
    /// What the kernel lacks, with what follows from it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lacking: BTreeMap<String, String>,
    /// Packets by what became of them, since the maps were made; words without packets are left out.
    #[serde(default)]
    pub packets: BTreeMap<String, u64>,
    /// Flows that were told; `null` when none are read.
    #[serde(default)]
    pub flows: Option<super::flow_view::FlowCountsView>,
}

/// A program on a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramView {
    /// The program.
    pub program: String,
    /// The link.
    pub link: String,
    /// How it is attached; none when it is not.
    pub attached: Option<String>,
    /// Why it is not attached.
    pub error: Option<String>,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapView {
    /// What it holds.
    pub name: String,
    /// Elements in use.
    pub used: u64,
    /// Elements there is room for.
    pub room: u64,
}

/// State of masquerade; all zero when it is off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasqueradeView {
    /// Is it wanted?
    pub enabled: bool,
    /// Does the kernel hold the wanted rules?
    pub installed: bool,
    /// Who gives the node's address to what leaves: `nftables`, or `programs` of the datapath.
    pub by: String,
    /// Links that lead out of the node.
    pub uplinks: Vec<String>,
    /// Prefixes that are to be excluded.
    pub exclusions: u64,
    /// Of these, prefixes that the kernel excludes.
    pub exclusions_installed: u64,
    /// Prefixes that are not excluded, because there are too many.
    pub exclusions_left_out: u64,
    /// Connections that got an address of the node by nftables, since the table was put in its place. What programs translate is
    /// among the packets of the datapath.
    pub masqueraded_connections: u64,
    /// Connections that kept their source, since then.
    pub kept_connections: u64,
}

/// A prefix that is excluded from masquerade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExclusionView {
    /// The prefix. Prefixes inside it are not listed.
    pub prefix: IpNet,
    /// Why: `pods` and `nodes` of the mesh, or `configuration`, `native_cidrs`, `agent_file`, `link_local`.
    pub reason: String,
    /// Does the kernel exclude it?
    pub status: RowStatus,
}

/// A node of the own or a remote cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Cluster the node belongs to.
    pub cluster: String,
    /// Node name.
    pub name: String,
    /// Its addresses with their types.
    pub addresses: Vec<NodeAddressView>,
    /// The accepted prefixes of its workloads.
    pub pod_cidrs: Vec<IpNet>,
    /// Is it the node that answered?
    pub local: bool,
    /// What path probes found out about it, per address family; none where nothing is probed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathView>,
    /// Since when the row is only remembered.
    pub stale_since: Option<Timestamp>,
}

/// The way to a node in one address family, as probes found it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathView {
    /// `ipv4` or `ipv6`: which packets of workloads it is about.
    pub family: String,
    /// What is used: `native` or `tunnel`.
    pub mode: RouteMode,
    /// Whether probes are answered natively.
    pub native: ProbeView,
    /// The same through the tunnel.
    pub tunnel: ProbeView,
    /// Largest packet that arrives natively, when it is smaller than the links say.
    pub native_mtu: Option<u32>,
    /// The same through the tunnel.
    pub tunnel_mtu: Option<u32>,
    /// How often another way was taken.
    pub switches: u64,
}

/// What became of the probes on one way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeView {
    /// `ok`, `lost` (the last one), or `silent` (never answered: perhaps no meshd is there).
    pub state: ProbeState,
    /// Time to the last answer, in seconds.
    pub rtt_s: Option<f64>,
    /// Probes answered since the daemon started.
    pub answered: u64,
    /// Probes lost since then.
    pub lost: u64,
}

/// State of the probes on one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeState {
    /// The last one was answered.
    Ok,
    /// The last one was lost.
    Lost,
    /// None was ever answered.
    Silent,
}

impl fmt::Display for ProbeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Lost => "lost",
            Self::Silent => "silent",
        })
    }
}

/// An address of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddressView {
    /// `InternalIP`, `ExternalIP`, `CiliumInternalIP` and so on, as its cluster wrote it.
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: IpAddr,
}

/// A prefix of workloads and the node it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixView {
    /// The prefix.
    pub prefix: IpNet,
    /// Cluster that owns it.
    pub cluster: String,
    /// Node that owns it.
    pub node: String,
    /// Since when the row is only remembered.
    pub stale_since: Option<Timestamp>,
}

/// A route this node wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    /// Destination.
    pub prefix: IpNet,
    /// Where packets go; more than one for multipath.
    pub next_hops: Vec<NextHopView>,
    /// How they get there.
    pub mode: RouteMode,
    /// Path MTU set on the route, when one is.
    pub mtu: Option<u32>,
    /// Cluster of the node behind it; `null` for a route learned by BGP.
    pub cluster: Option<String>,
    /// The node behind it; `null` for a route learned by BGP.
    pub node: Option<String>,
    /// Did the kernel take it?
    pub status: RowStatus,
    /// Why not, when `status` is `error`.
    pub error: Option<String>,
}

/// One next hop of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHopView {
    /// Address of the next router; `null` when the destination is on the link itself.
    pub via: Option<IpAddr>,
    /// Link name; `null` while it is not resolved.
    pub dev: Option<String>,
}

/// How packets of a route reach the other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteMode {
    /// As they are.
    Native,
    /// Encapsulated.
    Tunnel,
    /// As they are, along a path learned from a BGP peer.
    Bgp,
}

impl fmt::Display for RouteMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Tunnel => "tunnel",
            Self::Bgp => "bgp",
        })
    }
}

/// What became of a desired row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowStatus {
    /// Not tried yet, or to be tried again.
    Pending,
    /// The target holds it.
    Done,
    /// The target refused it, or it cannot be done.
    Error,
}

impl fmt::Display for RowStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Error => "error",
        })
    }
}

/// A service and its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `address:port/protocol` of the frontend; `null` for a headless service.
    pub frontend: Option<String>,
    /// `ClusterIP`, `NodePort` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// `none`, `local` or `remote`.
    pub affinity: String,
    /// Its backends.
    pub backends: Vec<BackendView>,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Cluster it is in.
    pub cluster: String,
    /// Whether it gets connections.
    pub state: BackendState,
    /// Is it preferred by the affinity?
    pub preferred: bool,
}

/// A backend of one port of a service, and all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceBackendView {
    /// Namespace of the service.
    pub namespace: String,
    /// Name of the service.
    pub service: String,
    /// Name of the port, empty for an unnamed one.
    pub port_name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Affinity of the service: `none`, `local` or `remote`.
    pub affinity: String,
    /// Address.
    pub address: IpAddr,
    /// Port it listens on.
    pub port: u16,
    /// Cluster it is in.
    pub cluster: String,
    /// Address of the node it is on, where that is known.
    pub node_address: Option<IpAddr>,
    /// Whether it can be used.
    pub state: BackendState,
    /// Is it preferred by the affinity?
    pub preferred: bool,
    /// Does it get new connections?
    pub used: bool,
    /// Its share in the traffic.
    pub weight: u16,
    /// Is it a workload of the node that answered?
    pub local: bool,
    /// The zone it is in, where that is known.
    pub zone: Option<String>,
    /// Is it meant for the zone of the node that answered?
    pub near: bool,
}

/// Whether a backend gets connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// New and old ones.
    Active,
    /// Old ones only.
    Terminating,
    /// None: its cluster is not reachable.
    Unreachable,
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Terminating => "terminating",
            Self::Unreachable => "unreachable",
        })
    }
}

/// A number that stands for a set of labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityView {
    /// The number; `null` while the store has not confirmed one.
    pub id: Option<u32>,
    /// Cluster whose range it is in.
    pub cluster: String,
    /// The labels, key with source (`k8s:app`) to value.
    pub labels: BTreeMap<String, String>,
    /// Since when the row is only remembered.
    pub stale_since: Option<Timestamp>,
}

/// An address of a workload and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// The address, or a prefix when the record covers one.
    pub address: IpNet,
    /// Cluster it is in.
    pub cluster: String,
    /// Address of the node it is on.
    pub node_address: Option<IpAddr>,
    /// Its identity; `null` while none is allocated.
    pub identity: Option<u32>,
    /// Namespace of the workload.
    pub namespace: Option<String>,
    /// Name of the workload.
    pub name: Option<String>,
    /// Since when the row is only remembered.
    pub stale_since: Option<Timestamp>,
}

/// A record from another cluster that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedView {
    /// Cluster whose store holds it.
    pub cluster: String,
    /// Its key.
    pub key: String,
    /// What it is: `node`, `prefix`, `ip`, `identity`, `service` and so on.
    pub kind: String,
    /// Why it was refused.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// What the reconcilers would do now, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanView {
    /// The actions; empty when the kernel holds what is wanted.
    pub actions: Vec<ActionView>,
}

/// One action of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionView {
    /// `add`, `replace` or `delete`.
    pub op: String,
    /// What is touched, for instance `route 10.1.0.0/24`.
    pub object: String,
    /// The rest, for instance `via 172.18.0.3 dev eth0`.
    pub detail: String,
}

/// What a drain took back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    /// Keys removed from the own store.
    pub withdrawn_keys: u64,
    /// Routes of ours removed from the kernel.
    pub removed_routes: u64,
    /// BGP sessions that were shut down after peers had been asked to prefer other ways.
    #[serde(default)]
    pub closed_sessions: u64,
    /// What could not be withdrawn, each with its reason.
    pub errors: Vec<String>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// The chain of causes as one line.
    pub error: String,
    /// What the user can do.
    #[serde(default)]
    pub hint: Option<String>,
}
