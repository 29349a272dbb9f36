//! Raw to validated: every check that needs more than the shape of one value.
//!
//! All findings are collected; a value that fails is left out and the rest is still looked at. Nothing is
//! built unless there are none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use meshd_core::id::{ClusterId, ClusterName, MaxClusters, Metric, NodeName, ROUTE_METRIC};

use super::error::Finding;
use super::model::{
    Accept, ApiConfig, ClusterConfig, Config, Endpoint, LogConfig, NodeConfig, Peer, RoutingConfig, StoreConfig,
    StoreUser, TlsFiles, UserRole, Workload,
};
use super::raw::{
    Address, FilePath, LogFormat, Name, PrefixText, RawAccept, RawCluster, RawConfig, RawLog, RawNode, RawPeer,
    RawRouting, RawStore, RawTls, RawWorkload, RoutingMode, StoreMode,
};
use super::tls;

/// Where the state is kept unless `state_dir` says otherwise.
pub(super) const STATE_DIR: &str = "/var/lib/meshd";
/// The socket of the API unless `api.socket` says otherwise.
pub const SOCKET: &str = "/run/meshd/meshd.sock";
/// The log filter unless `log.level` says otherwise.
pub(super) const LOG_FILTER: &str = "info";
/// Where the embedded store listens unless `store.listen` says otherwise.
pub(super) const LISTEN: &str = "0.0.0.0:2379";
/// Namespace and service account of a workload that names none.
pub(super) const DEFAULT: &str = "default";

/// Highest cluster id that every network mode of Cilium can carry.
const CLUSTER_ID_SAFE: u16 = 127;
/// Longest label value and workload name.
const NAME_MAX: usize = 253;
/// The label meshd writes itself.
const CLUSTER_LABEL: &str = "io.cilium.k8s.policy.cluster";

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
            Some(accept) => self.accept("peers_defaults.accept", accept, own),
            None => Accept::default(),
        };
        let peers_dir = raw.peers_dir.map(|path| self.path(&path));
        let cluster_name = cluster.as_ref().map(|cluster| &cluster.name);
        let peers = self.peers(raw.peers, &peers_defaults, own, cluster_name);
        let store = self.store(raw.store, cluster_name, &peers);
        let workloads = self.workloads(raw.workloads.r#static, own);
        let routing = self.routing(raw.routing);
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
            api: ApiConfig { socket: path_or(self, raw.api.socket, SOCKET) },
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

    fn cluster(&mut self, raw: RawCluster) -> Option<ClusterConfig> {
        let max = raw.max_clusters.unwrap_or(255);
        let max_clusters = match MaxClusters::try_from(max) {
            Ok(max) => max,
            Err(error) => {
                self.error(
                    "cluster.max_clusters",
                    error.to_string(),
                    "write 255, or 511 when every cluster of the mesh does",
                );
                MaxClusters::C511
            }
        };
        let name = match raw.name {
            Some(name) => self.cluster_name("cluster.name", &name),
            None => {
                self.missing("cluster.name", "cluster: {name: NAME}");
                None
            }
        };
        let id = match raw.id {
            Some(id) => match ClusterId::new(id, max_clusters) {
                Ok(id) => Some(id),
                Err(error) => {
                    self.error("cluster.id", error.to_string(), "choose a number no other cluster of the mesh has");
                    None
                }
            },
            None => {
                self.missing("cluster.id", "cluster: {id: NUMBER}");
                None
            }
        };
        if let Some(id) = id.filter(|id| id.get() > CLUSTER_ID_SAFE) {
            self.warn(
                "cluster.id",
                format!("cluster id {id} is above {CLUSTER_ID_SAFE}"),
                "Cilium nodes in some cloud network modes cannot carry such ids; prefer 1 to 127",
            );
        }
        Some(ClusterConfig { name: name?, id: id?, max_clusters })
    }

    fn cluster_name(&mut self, key: &str, name: &Name) -> Option<ClusterName> {
        match name.as_str().parse() {
            Ok(name) => Some(name),
            Err(error) => {
                let fixed: String = name
                    .as_str()
                    .to_lowercase()
                    .chars()
                    .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                    .collect();
                let fixed: String = fixed.trim_matches('-').chars().take(32).collect();
                let hint = match fixed.trim_end_matches('-').parse::<ClusterName>() {
                    Ok(fixed) => format!("for instance {fixed}"),
                    Err(_) => "for instance west".to_owned(),
                };
                self.error(key, error.to_string(), hint);
                None
            }
        }
    }

    fn node(&mut self, raw: RawNode) -> NodeConfig {
        let name = raw.name.and_then(|name| match name.as_str().parse::<NodeName>() {
            Ok(name) => Some(name),
            Err(error) => {
                self.error("node.name", error.to_string(), "use the host name, or leave it out");
                None
            }
        });
        let addresses = self.addresses("node.addresses", &raw.addresses);
        for (i, address) in addresses.iter().enumerate() {
            let link_local = match address {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            if link_local {
                let key = format!("node.addresses[{i}]");
                self.error(&key, format!("{address} is link-local"), "use an address other nodes can reach");
            }
        }
        let pod_cidrs = self.prefixes("node.pod_cidrs", &raw.pod_cidrs);
        for (i, prefix) in pod_cidrs.iter().enumerate() {
            let key = format!("node.pod_cidrs[{i}]");
            if prefix.prefix_len() == 0 {
                self.error(&key, format!("{prefix} covers every address"), "write the prefix of this node's workloads");
            }
            if let Some(other) = pod_cidrs[..i].iter().find(|other| overlap(other, prefix)) {
                self.error(&key, format!("{prefix} overlaps {other}"), "write each prefix once");
            }
            if let Some(address) = addresses.iter().find(|address| prefix.contains(*address)) {
                self.warn(
                    &key,
                    format!("{prefix} holds this node's address {address}"),
                    "nodes and workloads usually have prefixes of their own",
                );
            }
        }
        NodeConfig { name, addresses, pod_cidrs }
    }

    fn address(&mut self, key: &str, text: &Address) -> Option<IpAddr> {
        let address = match text.as_str().parse::<IpAddr>() {
            Ok(address) => address,
            Err(_) => {
                let hint = match text.as_str().parse::<IpNet>() {
                    Ok(prefix) => format!("write {}, without prefix length", prefix.addr()),
                    Err(_) => "write an address such as 172.18.0.5 or fd00::5".to_owned(),
                };
                self.error(key, format!("{:?} is not an address", text.as_str()), hint);
                return None;
            }
        };
        if let Some(what) = unusable(address) {
            self.error(key, format!("{address} is {what}"), "write an address of one machine");
            return None;
        }
        Some(address)
    }

    fn addresses(&mut self, key: &str, texts: &[Address]) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let key = format!("{key}[{i}]");
            let Some(address) = self.address(&key, text) else { continue };
            if addresses.contains(&address) {
                self.error(&key, format!("{address} is there twice"), "write each address once");
            } else {
                addresses.push(address);
            }
        }
        addresses
    }

    fn prefix(&mut self, key: &str, text: &PrefixText) -> Option<IpNet> {
        let prefix = match text.as_str().parse::<IpNet>() {
            Ok(prefix) => prefix,
            Err(_) => {
                let hint = match text.as_str().parse::<IpAddr>() {
                    Ok(address) => format!("add a length; one address alone is {}", IpNet::from(address)),
                    Err(_) => "write address/length such as 10.0.1.0/24 or fd00:1::/64".to_owned(),
                };
                self.error(key, format!("{:?} is not a prefix", text.as_str()), hint);
                return None;
            }
        };
        if prefix != prefix.trunc() {
            self.error(key, format!("{prefix} has host bits set"), format!("write {}", prefix.trunc()));
            return None;
        }
        if prefix.prefix_len() > 0
            && let Some(what) = unusable(prefix.addr())
        {
            self.error(key, format!("{prefix} is {what}"), "write a unicast prefix");
            return None;
        }
        Some(prefix)
    }

    fn prefixes(&mut self, key: &str, texts: &[PrefixText]) -> Vec<IpNet> {
        let mut prefixes = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            prefixes.extend(self.prefix(&format!("{key}[{i}]"), text));
        }
        prefixes
    }

    /// Checks an accept list against the own prefixes: broader is fine, equal or inside is a mistake.
    fn accept(&mut self, key: &str, raw: &RawAccept, own: &[IpNet]) -> Accept {
        let mut accept = Accept::default();
        for (i, text) in raw.pod_cidrs.iter().enumerate() {
            let key = format!("{key}.pod_cidrs[{i}]");
            let Some(prefix) = self.prefix(&key, text) else { continue };
            if let Some(own) = own.iter().find(|own| own.contains(&prefix)) {
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
        accept
    }

    fn tls(&mut self, key: &str, raw: &RawTls) -> Option<TlsFiles> {
        let parts = [("ca", &raw.ca), ("cert", &raw.cert), ("key", &raw.key)];
        for (name, part) in parts {
            if part.is_none() {
                self.error(&format!("{key}.{name}"), "required key is missing", "give ca, cert and key, all three");
            }
        }
        let files = TlsFiles {
            ca: self.path(raw.ca.as_ref()?),
            cert: self.path(raw.cert.as_ref()?),
            key: self.path(raw.key.as_ref()?),
        };
        self.errors.extend(tls::check_files(key, &files));
        Some(files)
    }

    fn endpoints(&mut self, key: &str, raw: &[super::raw::EndpointText], has_tls: bool) -> Vec<Endpoint> {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for (i, text) in raw.iter().enumerate() {
            let key = format!("{key}[{i}]");
            match text.as_str().parse::<Endpoint>() {
                Ok(endpoint) if endpoints.contains(&endpoint) => {
                    self.error(&key, format!("{endpoint} is there twice"), "write each endpoint once");
                }
                Ok(endpoint) => {
                    if !endpoint.is_tls() && has_tls {
                        self.error(&key, format!("{endpoint} is not encrypted, but tls is given"), "write https://");
                    } else if !endpoint.is_tls() && !endpoint.is_loopback() {
                        self.warn(
                            &key,
                            format!("{endpoint} is neither encrypted nor authenticated"),
                            "use https and certificates (`meshd cert init`)",
                        );
                    }
                    endpoints.push(endpoint);
                }
                Err(message) => self.error(&key, message, "write a URL such as https://172.18.0.3:2379"),
            }
        }
        endpoints
    }

    fn peers(
        &mut self,
        raw: Vec<RawPeer>,
        defaults: &Accept,
        own: &[IpNet],
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

    fn peer(&mut self, key: &str, raw: RawPeer, defaults: &Accept, own: &[IpNet]) -> Option<Peer> {
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

    fn store(&mut self, raw: RawStore, own: Option<&ClusterName>, peers: &[Peer]) -> Option<StoreConfig> {
        let Some(mode) = raw.mode else {
            self.missing("store.mode", "store: {mode: embedded} (or mode: etcd with endpoints)");
            return None;
        };
        let tls = raw.tls.as_ref().and_then(|tls| self.tls("store.tls", tls));
        match mode {
            StoreMode::Etcd => {
                if raw.endpoints.is_empty() {
                    self.missing("store.endpoints", "endpoints: [\"https://ADDRESS:2379\"]");
                }
                self.only_with("store.listen", raw.listen.is_some(), "embedded");
                self.only_with("store.users", !raw.users.is_empty(), "embedded");
                let endpoints = self.endpoints("store.endpoints", &raw.endpoints, raw.tls.is_some());
                if raw.tls.is_none() && endpoints.iter().any(Endpoint::is_tls) {
                    self.error("store.tls", "https needs certificates", "add tls: {ca: FILE, cert: FILE, key: FILE}");
                }
                Some(StoreConfig::Etcd { endpoints, tls })
            }
            StoreMode::Embedded => {
                self.only_with("store.endpoints", !raw.endpoints.is_empty(), "etcd");
                let text = raw.listen.as_ref().map_or(LISTEN, super::raw::SocketText::as_str);
                let listen = match text.parse::<std::net::SocketAddr>() {
                    Ok(listen) => listen,
                    Err(_) => {
                        self.error(
                            "store.listen",
                            format!("{text:?} is not an address with a port"),
                            "write for instance 0.0.0.0:2379 or [::]:2379",
                        );
                        return None;
                    }
                };
                if raw.tls.is_none() && !listen.ip().is_loopback() {
                    self.error(
                        "store.tls",
                        format!("a store on {listen} needs certificates"),
                        "make some with `meshd cert init` and `meshd cert issue`, or listen on 127.0.0.1:2379",
                    );
                }
                let users = self.users(raw.users, own, peers);
                Some(StoreConfig::Embedded { listen, tls, users })
            }
        }
    }

    fn only_with(&mut self, key: &str, given: bool, mode: &str) {
        if given {
            self.error(
                key,
                format!("only possible with store.mode: {mode}"),
                format!("remove {key}, or set store.mode: {mode}"),
            );
        }
    }

    fn users(&mut self, raw: Vec<super::raw::RawUser>, own: Option<&ClusterName>, peers: &[Peer]) -> Vec<StoreUser> {
        let mut users: BTreeMap<String, UserRole> = BTreeMap::new();
        if let Some(own) = own {
            users.insert(format!("admin-{own}"), UserRole::Root);
            users.insert(format!("node-{own}"), UserRole::Node);
            users.insert(format!("local-{own}"), UserRole::Local);
        }
        users.insert("remote".to_owned(), UserRole::Remote);
        users.extend(peers.iter().map(|peer| (format!("remote-{}", peer.cluster), UserRole::Remote)));
        let mut seen = BTreeSet::new();
        for (i, user) in raw.into_iter().enumerate() {
            let key = format!("store.users[{i}]");
            let (Some(name), Some(role)) = (user.name, user.role) else {
                self.error(&key, "a user needs name and role", "write {name: remote-east, role: remote}");
                continue;
            };
            if name.as_str().is_empty() {
                self.error(&format!("{key}.name"), "the name is empty", "write the CN of the certificate");
            } else if !seen.insert(name.0.clone()) {
                self.error(
                    &format!("{key}.name"),
                    format!("user {} is there twice", name.as_str()),
                    "write each user once",
                );
            } else {
                users.insert(name.0, role);
            }
        }
        users.into_iter().map(|(name, role)| StoreUser { name, role }).collect()
    }

    fn workloads(&mut self, raw: Vec<RawWorkload>, own: &[IpNet]) -> Vec<Workload> {
        let mut workloads = BTreeMap::new();
        let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
        for (i, raw) in raw.into_iter().enumerate() {
            let key = format!("workloads.static[{i}]");
            let Some(workload) = self.workload(&key, raw, own) else { continue };
            let name = format!("{}/{}", workload.namespace, workload.name);
            for (j, address) in workload.addresses.iter().enumerate() {
                if let Some(other) = owners.insert(*address, name.clone()).filter(|other| *other != name) {
                    self.error(
                        &format!("{key}.addresses[{j}]"),
                        format!("{address} belongs to workload {other} already"),
                        "give each workload addresses of its own",
                    );
                }
            }
            if workloads.contains_key(&name) {
                self.error(
                    &format!("{key}.name"),
                    format!("workload {name} is there twice"),
                    "give each workload of a namespace a name of its own",
                );
            } else {
                workloads.insert(name, workload);
            }
        }
        workloads.into_values().collect()
    }

    fn workload(&mut self, key: &str, raw: RawWorkload, own: &[IpNet]) -> Option<Workload> {
        let namespace = raw.namespace.map_or_else(|| DEFAULT.to_owned(), |name| name.0);
        let service_account = raw.service_account.map_or_else(|| DEFAULT.to_owned(), |name| name.0);
        let Some(name) = raw.name else {
            self.missing(&format!("{key}.name"), "name: NAME");
            return None;
        };
        for (part, text) in [("namespace", &namespace), ("name", &name.0), ("service_account", &service_account)] {
            if !is_dns_name(text) {
                self.error(
                    &format!("{key}.{part}"),
                    format!("{text:?} is not a name"),
                    "use a-z, 0-9, - and ., the first and last a letter or digit",
                );
            }
        }
        if raw.addresses.is_empty() {
            self.missing(&format!("{key}.addresses"), "addresses: [ADDRESS]");
        }
        let addresses_key = format!("{key}.addresses");
        let addresses = self.addresses(&addresses_key, &raw.addresses);
        for (i, address) in addresses.iter().enumerate() {
            if !own.iter().any(|prefix| prefix.contains(address)) {
                let hint = if own.is_empty() {
                    "add node: {pod_cidrs: [PREFIX]}".to_owned()
                } else {
                    format!("node.pod_cidrs: {}", own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
                };
                self.error(&format!("{addresses_key}[{i}]"), format!("{address} is outside node.pod_cidrs"), hint);
            }
        }
        for (label, value) in &raw.labels {
            let key = format!("{key}.labels.{label}");
            if label.is_empty()
                || label.contains([';', '=', ':'])
                || label.len() > NAME_MAX
                || label.contains(char::is_whitespace)
            {
                self.error(&key, format!("{label:?} is not a label key"), "use letters, digits and -._/");
            } else if label == CLUSTER_LABEL {
                self.error(&key, "this label is written by meshd", "remove it");
            }
            if value.contains(';') || value.len() > NAME_MAX || value.chars().any(char::is_control) {
                self.error(&key, format!("{value:?} is not a label value"), "use letters, digits and -._");
            }
        }
        Some(Workload { namespace, name: name.0, addresses, labels: raw.labels, service_account })
    }

    fn routing(&mut self, raw: RawRouting) -> RoutingConfig {
        let mode = raw.mode.unwrap_or(RoutingMode::Auto);
        if mode == RoutingMode::Tunnel {
            self.error("routing.mode", "tunnel is not supported by this version", "write auto or native");
        }
        let metric = raw.metric.unwrap_or(ROUTE_METRIC);
        if metric == 0 {
            // The kernel turns metric 0 of an IPv6 route into 1024, so what we read back would differ.
            self.error("routing.metric", "metric 0 is not possible", "write 1 or more; the default is 77");
        }
        RoutingConfig {
            mode,
            native_cidrs: self.prefixes("routing.native_cidrs", &raw.native_cidrs),
            nexthop_objects: raw.nexthop_objects.unwrap_or(true),
            metric: Metric(metric),
        }
    }

    fn log(&mut self, raw: RawLog) -> LogConfig {
        let filter = raw.level.map_or_else(|| LOG_FILTER.to_owned(), |level| level.0);
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&filter) {
            self.error(
                "log.level",
                format!("{filter:?} is not a log filter: {error}"),
                "write error, warn, info, debug or trace",
            );
        }
        LogConfig { filter, format: raw.format.unwrap_or(LogFormat::Text) }
    }
}

/// Why an address cannot be one machine's.
fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("the unspecified address");
    }
    if address.is_multicast() {
        return Some("multicast");
    }
    if address.is_loopback() {
        return Some("loopback");
    }
    match address {
        IpAddr::V4(address) if address.is_broadcast() => Some("broadcast"),
        IpAddr::V4(address) if address.octets()[0] == 0 || address.octets()[0] >= 240 => Some("reserved"),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => Some("an IPv4 address in IPv6 form"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn is_dns_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= NAME_MAX
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
}
