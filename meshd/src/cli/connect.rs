//! `meshd connect` and `meshd disconnect`: remote clusters without an editor.
//!
//! A peer is written as one file of its own, into the include folder (`peer-NAME.yaml`) or into the peers directory in
//! Cilium's layout, whole or not at all, and only after the configuration with it was checked as `run` would.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use meshd_core::id::ClusterName;
use serde_json::{Map, Value, json};

use super::failure::{Failure, print_finding};
use super::options::ConfigOptions;
use super::output;
use crate::config::model::{Endpoint, TlsFiles};
use crate::config::{Config, cilium, file, tls};

/// Mode of the files: they say where stores are.
const FILE_MODE: u32 = 0o600;

/// Where a peer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Place {
    /// The include folder of the configuration
    Include,
    /// The peers directory, in Cilium's layout
    PeersDir,
}

/// Add a remote cluster
#[derive(Debug, Args)]
pub(super) struct Connect {
    /// Name of the remote cluster
    cluster: String,
    /// Address of its store, e.g. https://172.18.0.3:2379 (repeatable)
    #[arg(long, value_name = "URL", required = true)]
    endpoint: Vec<String>,
    /// Authority of its store, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["cert", "key"])]
    ca: Option<PathBuf>,
    /// Certificate to use there
    #[arg(long, value_name = "FILE", requires_all = ["ca", "key"])]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires_all = ["ca", "cert"])]
    key: Option<PathBuf>,
    /// Prefix its workloads may have (repeatable) [default: peers_defaults]
    #[arg(long, value_name = "PREFIX")]
    accept_pod_cidr: Vec<String>,
    /// Prefix its nodes may be in (repeatable) [default: peers_defaults]
    #[arg(long, value_name = "PREFIX")]
    accept_node_cidr: Vec<String>,
    /// Where to write it [default: the include folder if there is one]
    #[arg(long, value_enum)]
    to: Option<Place>,
    /// Replace a peer that was written before
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    options: ConfigOptions,
}

/// Remove a remote cluster that `connect` (or Cilium's tools) added
#[derive(Debug, Args)]
pub(super) struct Disconnect {
    /// Name of the remote cluster
    cluster: String,
    #[command(flatten)]
    options: ConfigOptions,
}

impl Connect {
    pub(super) fn run(self) -> Result<(), Failure> {
        let cluster = cluster_name(&self.cluster)?;
        let mut source = self.options.source()?;
        source.makes_include = true;
        let config = source.load()?;
        let place = place(self.to, &config)?;
        let path = match &place {
            (Place::Include, folder) => include_file(folder, &cluster),
            (Place::PeersDir, folder) => folder.join(cluster.as_str()),
        };
        if let Some(peer) = config.peers.iter().find(|peer| peer.cluster == cluster)
            && peer.source != path
        {
            return Err(Failure::usage(
                format!("cluster {cluster} is configured in {}", peer.source.display()),
                "edit it there, or remove it there first",
            ));
        }
        if fs::symlink_metadata(&path).is_ok() && !self.force {
            return Err(Failure::message(format!("{} exists", path.display())).hint("replace it with --force"));
        }
        let tls = match (&self.ca, &self.cert, &self.key) {
            (Some(ca), Some(cert), Some(key)) => {
                Some(TlsFiles { ca: absolute(ca)?, cert: absolute(cert)?, key: absolute(key)? })
            }
            (_, _, _) => None,
        };
        let text = match place.0 {
            Place::Include => {
                let text = self.include_text(&cluster, tls.as_ref())?;
                source.extra = Some((path.clone(), text.clone()));
                let checked = source.load()?;
                for warning in checked.warnings.iter().filter(|warning| warning.key.starts_with("peers[")) {
                    print_finding("warning", warning);
                }
                text
            }
            Place::PeersDir => self.cilium_text(&cluster, &config, tls.as_ref(), &path)?,
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| {
                Failure::message(format!("failed to make the folder {}: {error}", folder.display()))
            })?;
        }
        file::replace(&path, &text, FILE_MODE)
            .map_err(|error| Failure::message(format!("failed to write {}: {error}", path.display())))?;
        output::text(&format!("wrote {}{}\n", path.display(), taken_up(place.0)))
    }

    /// The peer as a file of the include folder.
    fn include_text(&self, cluster: &ClusterName, tls: Option<&TlsFiles>) -> Result<String, Failure> {
        let mut peer = Map::new();
        peer.insert("cluster".to_owned(), json!(cluster.as_str()));
        peer.insert("endpoints".to_owned(), json!(self.endpoint));
        if let Some(tls) = tls {
            peer.insert("tls".to_owned(), json!({"ca": tls.ca, "cert": tls.cert, "key": tls.key}));
        }
        if !self.accept_pod_cidr.is_empty() || !self.accept_node_cidr.is_empty() {
            let accept = json!({"pod_cidrs": self.accept_pod_cidr, "node_cidrs": self.accept_node_cidr});
            peer.insert("accept".to_owned(), accept);
        }
        output::yaml_text(&json!({"peers": [Value::Object(peer)]})).map_err(Failure::message)
    }

    /// The peer as a file of Cilium's layout, checked as the daemon reads it.
    fn cilium_text(
        &self,
        cluster: &ClusterName,
        config: &Config,
        files: Option<&TlsFiles>,
        path: &Path,
    ) -> Result<String, Failure> {
        if !self.accept_pod_cidr.is_empty() || !self.accept_node_cidr.is_empty() {
            return Err(Failure::usage(
                "the peers directory cannot say what a cluster may announce",
                "set peers_defaults.accept in the configuration, or use --to include",
            ));
        }
        if *cluster == config.cluster.name {
            return Err(Failure::usage(
                format!("{cluster} is this cluster's own name"),
                "connect remote clusters; two clusters need two names",
            ));
        }
        let endpoints: Result<Vec<Endpoint>, String> = self.endpoint.iter().map(|text| text.parse()).collect();
        let endpoints =
            endpoints.map_err(|message| Failure::usage(message, "write a URL such as https://172.18.0.3:2379"))?;
        let text = cilium::print(&endpoints, files);
        if let Err(findings) = cilium::parse(path, &text) {
            let lines: Vec<String> =
                findings.iter().map(|finding| format!("{}: {}", finding.key, finding.message)).collect();
            return Err(Failure::usage(lines.join("; "), "give --ca, --cert and --key for an https endpoint"));
        }
        if let Some(files) = files {
            tls::read_certificates(&files.ca, "certificate authority").map_err(|error| Failure::new(&error))?;
            tls::check_pair(files).map_err(|error| Failure::new(&error))?;
        }
        Ok(text)
    }
}

impl Disconnect {
    pub(super) fn run(self) -> Result<(), Failure> {
        let cluster = cluster_name(&self.cluster)?;
        let config = self.options.source()?.load()?;
        let (place, path) = find(&config, &cluster)?;
        fs::remove_file(&path)
            .map_err(|error| Failure::message(format!("failed to remove {}: {error}", path.display())))?;
        output::text(&format!("removed {}{}\n", path.display(), taken_up(place)))
    }
}

/// The file that holds this peer and nothing else.
fn find(config: &Config, cluster: &ClusterName) -> Result<(Place, PathBuf), Failure> {
    if let Some(peer) = config.peers.iter().find(|peer| peer.cluster == *cluster) {
        let own = config.include.as_ref().map(|folder| include_file(folder, cluster));
        if own.as_ref() == Some(&peer.source) {
            return Ok((Place::Include, peer.source.clone()));
        }
        return Err(Failure::usage(
            format!("cluster {cluster} is configured in {}, which holds more than this peer", peer.source.display()),
            "remove it there with an editor, then `systemctl reload meshd`",
        ));
    }
    if let Some(folder) = &config.peers_dir {
        let path = folder.join(cluster.as_str());
        if fs::read_to_string(&path).is_ok_and(|content| cilium::is_client(&content)) {
            return Ok((Place::PeersDir, path));
        }
    }
    let known: Vec<&str> = config.peers.iter().map(|peer| peer.cluster.as_str()).collect();
    let known = if known.is_empty() { "none in the configuration".to_owned() } else { known.join(", ") };
    Err(Failure::usage(format!("cluster {cluster} is not configured"), format!("known: {known}")))
}

fn place(wanted: Option<Place>, config: &Config) -> Result<(Place, PathBuf), Failure> {
    let missing = |key: &str, example: &str| {
        Failure::usage(
            format!("the configuration has no {key}"),
            format!("add {key}: {example} to {}", config.file.display()),
        )
    };
    match (wanted, &config.include, &config.peers_dir) {
        (Some(Place::Include) | None, Some(folder), _) => Ok((Place::Include, folder.clone())),
        (Some(Place::PeersDir) | None, _, Some(folder)) => Ok((Place::PeersDir, folder.clone())),
        (Some(Place::PeersDir), _, None) => Err(missing("peers_dir", "/var/lib/cilium/clustermesh")),
        (Some(Place::Include), None, _) | (None, None, None) => Err(missing("include", "/etc/meshd/conf.d")),
    }
}

fn include_file(folder: &Path, cluster: &ClusterName) -> PathBuf {
    folder.join(format!("peer-{cluster}.yaml"))
}

fn taken_up(place: Place) -> &'static str {
    match place {
        Place::Include => "; a running daemon reads it with `systemctl reload meshd`",
        Place::PeersDir => "; a running daemon reads it by itself",
    }
}

fn cluster_name(text: &str) -> Result<ClusterName, Failure> {
    text.parse().map_err(|error: meshd_core::id::IdError| Failure::usage(error.to_string(), "for instance east"))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::message(format!("{}: {error}", path.display())))
}
