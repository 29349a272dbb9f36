//! The configuration after every check: what the rest of the daemon works with.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use meshd_core::id::{ClusterId, ClusterName, MaxClusters, NodeName};
use meshd_core::observed::{OwnServiceRow, ServiceName};

pub mod bgp;
pub mod routing;
pub mod services;

use self::bgp::BgpConfig;
pub use self::routing::RoutingConfig;
use self::services::ServicesConfig;
use super::error::Finding;
pub use super::raw::{LogFormat, RoutingMode, UserRole};

/// Port of a store that names none.
pub const STORE_PORT: u16 = 2379;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// The own cluster.
    pub cluster: ClusterConfig,
    /// This node.
    pub node: NodeConfig,
    /// Where the own cluster publishes itself.
    pub store: StoreConfig,
    /// Remote clusters of the file and its include folder, sorted by name.
    pub peers: Vec<Peer>,
    /// Folder of remote clusters in Cilium's layout.
    pub peers_dir: Option<PathBuf>,
    /// What holds for remote clusters that do not say it themselves.
    pub peers_defaults: Accept,
    /// Folder of files merged over the main one.
    pub include: Option<PathBuf>,
    /// How packets reach other nodes.
    pub routing: RoutingConfig,
    /// Workloads on this node, sorted by namespace and name.
    pub workloads: Vec<Workload>,
    /// Services of the own cluster.
    pub own_services: BTreeMap<ServiceName, Arc<OwnServiceRow>>,
    /// How services are loaded into the kernel.
    pub services: ServicesConfig,
    /// Masquerade, when there is to be some.
    pub masquerade: Option<MasqueradeConfig>,
    /// The BGP speaker, when there is to be one.
    pub bgp: Option<BgpConfig>,
    /// How the daemon is asked.
    pub api: ApiConfig,
    /// What must survive a restart.
    pub state_dir: PathBuf,
    /// What is logged.
    pub log: LogConfig,
    /// What is accepted, but somebody should look at.
    pub warnings: Vec<Finding>,
}

/// The own cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Its name.
    pub name: ClusterName,
    /// Its number.
    pub id: ClusterId,
    /// How many clusters the mesh can have.
    pub max_clusters: MaxClusters,
}

/// This node as configured; [`super::host::resolve`] fills in what the machine knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Its name; `None` means the host name.
    pub name: Option<NodeName>,
    /// Its addresses; empty means the source addresses of the default routes.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of its workloads.
    pub pod_cidrs: Vec<IpNet>,
    /// What kind of node it is.
    pub labels: BTreeMap<String, String>,
}

/// Where the own cluster publishes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// This process serves the store.
    Embedded {
        /// Where it listens.
        listen: SocketAddr,
        /// Its certificate and the authority of its clients; `None` only on loopback.
        tls: Option<TlsFiles>,
        /// Who may use it, by the CN of the client certificate.
        users: Vec<StoreUser>,
    },
    /// A real etcd or the embedded store of another node.
    Etcd {
        /// Its members.
        endpoints: Vec<Endpoint>,
        /// The certificate to use there.
        tls: Option<TlsFiles>,
    },
}

/// A user of the embedded store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUser {
    /// CN of its certificate.
    pub name: String,
    /// What it may do.
    pub role: UserRole,
}

/// Three PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority of the other side.
    pub ca: PathBuf,
    /// The own certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A remote cluster to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub cluster: ClusterName,
    /// The members of its store.
    pub endpoints: Vec<Endpoint>,
    /// Its number, when BGP tells its prefixes and there is no store.
    pub over_bgp: Option<ClusterId>,
    /// The certificate to use there.
    pub tls: Option<TlsFiles>,
    /// What it may say.
    pub accept: Accept,
    /// Addresses of names in `endpoints`, asked before DNS.
    pub host_aliases: BTreeMap<String, Vec<IpAddr>>,
    /// How its nodes are reached, when that is its own.
    pub mode: Option<RoutingMode>,
    /// The file that names it.
    pub source: PathBuf,
}

/// What a remote cluster may say; empty lists accept nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    /// Prefixes its workloads may have.
    pub pod_cidrs: Vec<IpNet>,
    /// Prefixes its nodes' addresses may be in.
    pub node_cidrs: Vec<IpNet>,
}

/// What is masqueraded, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MasqueradeConfig {
    /// Destinations to which workloads keep their address.
    pub exclude: Vec<IpNet>,
    /// Is what goes to link-local addresses masqueraded?
    pub link_local: bool,
    /// A file of the ip-masq-agent.
    pub agent_file: Option<PathBuf>,
    /// Links that lead out of the node; empty means those that carry its addresses.
    pub uplinks: Vec<String>,
    /// Source addresses, at most one per family; the kernel chooses the others.
    pub addresses: Vec<IpAddr>,
    /// May the datapath's programs do it?
    pub by_programs: bool,
}

/// A workload on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its service account.
    pub service_account: String,
}

/// How the daemon is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiConfig {
    /// Path of the unix socket.
    pub socket: PathBuf,
    /// Where metrics are served over TCP, if anywhere.
    pub metrics: Option<SocketAddr>,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A filter as `tracing` reads it.
    pub filter: String,
    /// For people or machines.
    pub format: LogFormat,
}

/// Address of a member of a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
}

impl Endpoint {
    /// Host name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Is it `https`?
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Is the host an address of this machine's loopback?
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: http::Uri = text.parse().map_err(|error| format!("{text:?} is not a URL: {error}"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(other) => return Err(format!("{text:?} has the scheme {other}, only https and http are possible")),
            None => return Err(format!("{text:?} is not a URL: it has no scheme")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(format!("{text:?} has a path, a store has none"));
        }
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        if authority.contains('@') {
            return Err(format!("{text:?} holds a user name, a store is reached by certificate"));
        }
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_lowercase();
        if host.is_empty() {
            return Err(format!("{text:?} names no host"));
        }
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            None if authority.ends_with(':') || authority.matches(':').count() == 1 => {
                return Err(format!("{text:?} has no valid port"));
            }
            None => STORE_PORT,
        };
        if port == 0 {
            return Err(format!("{text:?} has port 0"));
        }
        Ok(Self { host, port, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls() {
        for (text, printed) in [
            ("https://172.18.0.3:2379", "https://172.18.0.3:2379"),
            ("https://East.mesh.cilium.io", "https://east.mesh.cilium.io:2379"),
            ("https://[fd00::1]:32379/", "https://[fd00::1]:32379"),
            ("https://[fd00::1]", "https://[fd00::1]:2379"),
            ("http://localhost:2379", "http://localhost:2379"),
        ] {
            assert_eq!(text.parse::<Endpoint>().map(|e| e.to_string()).as_deref(), Ok(printed), "{text}");
        }
        for bad in [
            "172.18.0.3:2379",
            "east",
            "ftp://x",
            "https://",
            "https://x:99999",
            "https://x:/",
            "https://x/y",
            "https://u@x",
            "https://x:0",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
