//! Raw to validated: every check that needs more than the shape of one value.
//!
//! All findings are collected; a value that fails is left out and the rest is still looked at. Nothing is
//! built unless there are none.

mod bgp;
mod masquerade;
mod node;
mod peers;
mod routing;
mod services;
mod store;
mod values;
mod workloads;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use self::services::ServiceRules;
use super::error::Finding;
use super::model::{Accept, ApiConfig, Config, LogConfig};
use super::raw::{FilePath, LogFormat, RawConfig, RawLog, SocketText};

/// Where the state is kept unless `state_dir` says otherwise.
const STATE_DIR: &str = "/var/lib/meshd";
/// The socket of the API unless `api.socket` says otherwise.
pub const SOCKET: &str = "/run/meshd/meshd.sock";
/// The log filter unless `log.level` says otherwise.
const LOG_FILTER: &str = "info";
/// Collects what is wrong while a configuration is built.
pub(super) struct Validator<'a> {
    file: &'a Path,
    pub(super) errors: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
}

impl<'a> Validator<'a> {
    pub(super) fn new(file: &'a Path) -> Self {
        Self { file, errors: Vec::new(), warnings: Vec::new() }
    }

    /// Checks everything; `None` when there are errors.
    pub(super) fn config(&mut self, raw: RawConfig) -> Option<Config> {
        let cluster = self.cluster(raw.cluster);
        let node = self.node(raw.node);
        let own = &node.pod_cidrs;
        let peers_defaults = match &raw.peers_defaults.accept {
            Some(accept) => self.accept("peers_defaults.accept", accept, &node),
            None => Accept::default(),
        };
        let peers_dir = raw.peers_dir.map(|path| self.path(&path));
        let cluster_name = cluster.as_ref().map(|cluster| &cluster.name);
        let has_bgp_mesh =
            raw.bgp.as_ref().is_some_and(|bgp| bgp.enabled != Some(false) && bgp.mesh.enabled == Some(true));
        let peers = self.peers(raw.peers, &peers_defaults, &node, cluster.as_ref(), has_bgp_mesh);
        let store = self.store(raw.store, cluster_name, &peers);
        let workloads = self.workloads(raw.workloads.r#static, own);
        let services = self.services(raw.services);
        let rules = ServiceRules { node: &node, node_ports: &services.node_port_range };
        let own_services = self.own_services(raw.workloads.services, &rules);
        let routing = self.routing(raw.routing, raw.tunnel, &peers, services.enabled);
        let masquerade = self.masquerade(raw.masquerade, &node);
        let bgp = self.bgp(raw.bgp, &node);
        let metrics = self.metrics(raw.api.metrics.as_ref());
        let log = self.log(raw.log);
        let path_or = |validator: &Self, path: Option<FilePath>, default: &str| {
            path.map_or_else(|| PathBuf::from(default), |path| validator.path(&path))
        };
        let config = Config {
            file: self.file.to_owned(),
            cluster: cluster?,
            store: store?,
            peers,
            peers_dir,
            peers_defaults,
            include: raw.include.map(|path| self.path(&path)),
            routing,
            workloads,
            own_services,
            services,
            masquerade,
            bgp,
            api: ApiConfig { socket: path_or(self, raw.api.socket, SOCKET), metrics },
            state_dir: path_or(self, raw.state_dir, STATE_DIR),
            log,
            node,
            warnings: Vec::new(),
        };
        if self.errors.is_empty() { Some(config) } else { None }
    }

    fn error(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.errors.push(Finding::new(key, message).hint(hint));
    }

    fn warn(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.warnings.push(Finding::new(key, message).hint(hint));
    }

    fn missing(&mut self, key: &str, example: &str) {
        let variable = format!("MESHD_{}", key.to_uppercase().replace('.', "__"));
        let hint =
            if key.contains('[') { format!("add {example}") } else { format!("add {example}, or set {variable}") };
        self.error(key, "required key is missing", hint);
    }

    /// Relative paths start at the folder of the configuration file.
    fn path(&self, path: &FilePath) -> PathBuf {
        let base = self.file.parent().unwrap_or_else(|| Path::new(""));
        base.join(path.as_str())
    }

    fn metrics(&mut self, text: Option<&SocketText>) -> Option<SocketAddr> {
        let address = self.socket_address("api.metrics", text?.as_str(), "127.0.0.1:9962 or [::1]:9962")?;
        if address.port() == 0 {
            self.error("api.metrics", "port 0 is a different one at each start", "write a port such as 9962");
        } else if !address.ip().is_loopback() {
            self.warn(
                "api.metrics",
                format!("everybody who reaches {address} can read the metrics"),
                "listen on 127.0.0.1:9962, or let a firewall decide who reaches it",
            );
        }
        Some(address)
    }

    fn log(&mut self, raw: RawLog) -> LogConfig {
        let filter = raw.level.map_or_else(|| LOG_FILTER.to_owned(), |level| level.0);
        if let Err(error) = filter.parse::<tracing_subscriber::filter::Targets>() {
            self.error(
                "log.level",
                format!("{filter:?} is not a log filter: {error}"),
                "write error, warn, info, debug or trace",
            );
        }
        LogConfig { filter, format: raw.format.unwrap_or(LogFormat::Text) }
    }
}
