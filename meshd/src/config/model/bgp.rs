//! The BGP speaker after every check.
//!
//! Nothing here knows how sessions and tables are run: whoever runs them takes these values over. Policies are those of the
//! crate `bgp`, without the guard, which needs to know the prefixes of the node while it runs.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ::bgp::policy::{GuardSettings, Policy};
use ::bgp::session::PeerKind;
use ::bgp::wire::capability::Role;
use ::bgp::{Asn, PerFamily, RouterId};
use ipnet::IpNet;
use meshd_core::id::Metric;

/// The BGP speaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpConfig {
    /// The AS; inside a confederation the one of the member.
    pub asn: Asn,
    /// The identifier; `None` means the first IPv4 address of the node.
    pub router_id: Option<RouterId>,
    /// Where to listen; empty for nowhere.
    pub listen: Vec<SocketAddr>,
    /// Port of peers that name none.
    pub port: u16,
    /// Graceful restart, when it is on.
    pub restart: Option<BgpRestart>,
    /// Multipath.
    pub multipath: BgpMultipath,
    /// Best path selection.
    pub decision: BgpDecision,
    /// The cluster routes are reflected for; `None` means the identifier.
    pub cluster_id: Option<RouterId>,
    /// The confederation.
    pub confederation: Option<BgpConfederation>,
    /// Peers that apply on this node, in the order of the files.
    pub peers: Vec<BgpPeer>,
    /// What this node advertises. To whom, the export policies of the peers say.
    pub originate: BgpOriginate,
    /// What becomes of accepted paths.
    pub import: BgpImport,
    /// The file of VRPs.
    pub vrps: Option<PathBuf>,
    /// The number in the middle of the large community that says whose a prefix is, when the mesh is over BGP.
    pub mesh_function: Option<u32>,
    /// Monitoring stations.
    pub stations: Vec<BmpStation>,
    /// MRT files.
    pub mrt: Option<MrtConfig>,
}

/// Graceful restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BgpRestart {
    /// How long peers may wait for us, 12 bits.
    pub restart_time_s: u16,
    /// How long routes of a peer that is back wait for its End-of-RIB.
    pub stale_time: Duration,
    /// How long they may be the last choice after that, 24 bits; 0 for not at all.
    pub long_lived_s: u32,
}

/// Multipath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BgpMultipath {
    /// External paths at once.
    pub external: u16,
    /// Internal paths at once.
    pub internal: u16,
    /// Whatever AS they cross.
    pub relax: bool,
    /// In proportion to link bandwidth.
    pub weighted: bool,
}

/// Best path selection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BgpDecision {
    /// Compare MED between AS.
    pub always_compare_med: bool,
    /// No MED is the worst.
    pub missing_med_is_worst: bool,
    /// RFC 5004.
    pub prefer_oldest: bool,
}

/// The confederation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpConfederation {
    /// What the world sees.
    pub id: Asn,
    /// All members, the own one too; sorted.
    pub members: Vec<Asn>,
}

/// What this node advertises of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BgpOriginate {
    /// The prefixes of its workloads.
    pub pod_cidrs: bool,
    /// Addresses of services.
    pub service_vips: bool,
    /// Its addresses.
    pub node_addresses: bool,
    /// These, sorted.
    pub prefixes: Vec<IpNet>,
    /// These while there is a more specific one, with whether that one is kept back; sorted.
    pub aggregates: Vec<(IpNet, bool)>,
}

/// What becomes of accepted paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BgpImport {
    /// Checks in front of every policy.
    pub guard: GuardSettings,
    /// Do they become routes?
    pub install: bool,
    /// Metric of the routes.
    pub metric: Metric,
    /// Routes at most.
    pub routes_max: u32,
}

/// A peer, or all that connect from a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpPeer {
    /// How it is found.
    pub place: PeerPlace,
    /// The group it belongs to.
    pub group: Option<String>,
    /// Which AS it may be.
    pub remote_as: RemoteAs,
    /// How it is related to us.
    pub kind: PeerKind,
    /// The AS we claim to be instead of our own.
    pub local_as: Option<Asn>,
    /// For people.
    pub description: String,
    /// Why the session is kept down.
    pub shutdown: Option<String>,
    /// Its port.
    pub port: u16,
    /// Wait for its connection.
    pub passive: bool,
    /// The address to connect from.
    pub source: Option<IpAddr>,
    /// The link or VRF to connect through.
    pub device: Option<String>,
    /// How its packets are signed.
    pub authentication: PeerAuthentication,
    /// How far away it may be.
    pub distance: PeerDistance,
    /// Timers.
    pub timers: PeerTimers,
    /// BFD, when it is on.
    pub bfd: Option<PeerBfd>,
    /// Families; `None` where one is off.
    pub families: PerFamily<Option<PeerFamily>>,
    /// Our role, and whether the peer must say its own.
    pub role: Option<(Role, bool)>,
    /// For what it sends, without guard.
    pub import: Policy,
    /// For what it is sent.
    pub export: Policy,
    /// Reflect for it.
    pub route_reflector_client: bool,
    /// Serve routes to it.
    pub route_server_client: bool,
    /// How often our AS may be in its AS paths.
    pub own_as_max: u8,
    /// Its AS must be the first of its AS paths.
    pub enforce_first_as: bool,
    /// Take private AS out of what it is sent.
    pub remove_private_as: bool,
    /// Graceful restart with it.
    pub graceful_restart: bool,
    /// Offer long messages.
    pub extended_messages: bool,
}

/// How a peer is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerPlace {
    /// By its address.
    Address(IpAddr),
    /// By the router advertisements on a link.
    Interface(String),
    /// It connects from this prefix; so many at most.
    Range(IpNet, u32),
}

impl std::fmt::Display for PeerPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Interface(name) => f.write_str(name),
            Self::Range(prefix, _) => prefix.fmt(f),
        }
    }
}

/// Which AS a peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteAs {
    /// This one.
    Number(Asn),
    /// Any but ours.
    External,
    /// Ours.
    Internal,
}

/// How packets of a peer are signed. Files were there, fit and private when the configuration was read; they are read
/// again with [`crate::config::secret::read`] when a session is made, which fails closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAuthentication {
    /// Not at all.
    None,
    /// TCP-MD5 with the password of this file.
    Md5(PathBuf),
    /// TCP-AO.
    Ao {
        /// The file of the key.
        key_file: PathBuf,
        /// Its number in what we send.
        send_id: u8,
        /// Its number in what we receive.
        receive_id: u8,
        /// The algorithm.
        algorithm: AoAlgorithm,
    },
}

/// Algorithms of TCP-AO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AoAlgorithm {
    /// HMAC-SHA-1-96.
    HmacSha1,
    /// AES-128-CMAC-96.
    AesCmac,
    /// HMAC-SHA-256.
    HmacSha256,
}

/// How far away a peer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerDistance {
    /// On the link, by the hop limit we send with.
    Adjacent,
    /// At most so many hops, proved by its hop limit (RFC 5082).
    Secured(u8),
    /// At most so many hops, not proved.
    Multihop(u8),
}

/// Timers of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerTimers {
    /// Hold time offered.
    pub hold_time_s: u16,
    /// Longest time between two KEEPALIVE messages; a third of the hold time when absent.
    pub keepalive_s: Option<u16>,
    /// Between two attempts to connect.
    pub connect_retry: Duration,
    /// Wait for the peer's OPEN.
    pub delay_open: Option<Duration>,
}

/// BFD towards a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerBfd {
    /// Wanted interval of sending.
    pub transmit: Duration,
    /// Interval that can be received.
    pub receive: Duration,
    /// Intervals without a packet.
    pub multiplier: u8,
    /// Echo packets of the peer that are permitted.
    pub echo: Option<Duration>,
    /// Echo packets of our own.
    pub echo_transmit: Option<Duration>,
    /// Wait for the other side.
    pub passive: bool,
    /// No BGP session without.
    pub strict: bool,
}

/// One family of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFamily {
    /// Send the best so many paths: 0 for all; `None` for the best only.
    pub add_path_send: Option<u16>,
    /// Take several.
    pub add_path_receive: bool,
    /// The limit.
    pub prefixes_max: Option<PrefixLimit>,
    /// The next hop it is told.
    pub next_hop: PeerNextHop,
    /// The address told as ours.
    pub next_hop_address: Option<IpAddr>,
    /// IPv6 next hops for IPv4.
    pub extended_next_hop: bool,
}

/// How many prefixes a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixLimit {
    /// So many.
    pub limit: u32,
    /// Told to people at this part of it, in percent.
    pub warn_percent: u8,
    /// What happens beyond it.
    pub action: LimitAction,
}

/// What happens to a peer that sends too many prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitAction {
    /// The session ends and begins again after this time.
    Restart(Duration),
    /// It ends until somebody resets it.
    Teardown,
    /// People are told.
    Warn,
}

/// The next hop a peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerNextHop {
    /// As its kind has it.
    Auto,
    /// Ours.
    Own,
    /// As received.
    Unchanged,
}

/// A monitoring station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BmpStation {
    /// Where it is.
    pub address: SocketAddr,
    /// What peers sent.
    pub adj_rib_in_pre_policy: bool,
    /// What was accepted.
    pub adj_rib_in_post_policy: bool,
    /// What was chosen.
    pub loc_rib: bool,
    /// What peers are sent.
    pub adj_rib_out: bool,
    /// Between two reports of counts.
    pub statistics: Option<Duration>,
}

/// MRT files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MrtConfig {
    /// The folder.
    pub folder: PathBuf,
    /// Between two tables.
    pub table_interval: Option<Duration>,
    /// Messages go into a new file every so often; `None` when they are not written.
    pub updates_rotate: Option<Duration>,
    /// Files to keep of each kind.
    pub keep: u32,
}
