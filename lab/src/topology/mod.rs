//! A containerlab topology file, read and validated before anything is created.
//!
//! The format is containerlab's, so the same file runs there too. What containers express with an image, this runner
//! expresses with what a Linux namespace has: a node is a set of namespaces, `cmd` is its main daemon, `exec` configures
//! it, `binds` puts files into it. Three things have no word in that format and travel as labels, which containerlab
//! passes through unread:
//!
//! | label | meaning |
//! |---|---|
//! | `meshd.lab/role: pod` | the node is a pod: it does not forward |
//! | `meshd.lab/daemon.NAME: COMMAND` | one more daemon beside `cmd` |
//! | `meshd.lab/cert.NAME: cn=… [server] [client] [san=…]… [days=N]` | a certificate made for this run, in the node's `pki` folder |
//!
//! Reading has two steps: `schema` checks keys and shapes and names the line of what is wrong, then `read` merges
//! `defaults`, `kinds` and `groups` into each node the way containerlab does.

mod read;
mod schema;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::yaml::{self, YamlError};

/// Why a topology file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file cannot be read.
    #[error("failed to read topology {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("the topology is not valid YAML")]
    Yaml(#[from] YamlError),
    /// A key that neither containerlab nor this runner knows.
    #[error("line {line}: unknown key {key}; the nearest known one is {nearest}")]
    UnknownKey {
        /// The key with its path from the top.
        key: String,
        /// Its line.
        line: usize,
        /// The known key at this place that is spelt most like it.
        nearest: String,
    },
    /// A known key with a value that cannot be used.
    #[error("line {line}: {key} {problem}")]
    Wrong {
        /// The key with its path from the top.
        key: String,
        /// Its line.
        line: usize,
        /// What is wrong, worded to follow the key.
        problem: String,
    },
    /// A key that must be there and is not.
    #[error("{key} is missing")]
    Missing {
        /// The key with its path from the top.
        key: &'static str,
    },
}

/// A validated topology.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Topology {
    /// The lab's name, unless the caller picks another.
    pub name: String,
    /// The folder that relative paths in the file start from.
    pub folder: PathBuf,
    /// Nodes and pods, in the order of the file.
    pub nodes: Vec<NodeSpec>,
    /// Switches, in the order of the file.
    pub bridges: Vec<String>,
    /// Links, in the order of the file.
    pub links: Vec<LinkSpec>,
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Forwards packets and runs daemons.
    Node,
    /// A workload: one link to its node and a default route.
    Pod,
}

/// A node or a pod.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeSpec {
    /// Its name, also its host name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Commands that configure it, run in order once its links are there.
    pub exec: Vec<Vec<String>>,
    /// Files and folders of the host that appear in it.
    pub binds: Vec<Bind>,
    /// Environment of everything that runs in it.
    pub env: BTreeMap<String, String>,
    /// Its daemons, the main one first.
    pub daemons: Vec<DaemonSpec>,
    /// Seconds to wait before the daemons start.
    pub startup_delay_s: u32,
    /// Nodes that must have reached a stage before the daemons start.
    pub wait_for: Vec<WaitFor>,
    /// How to tell that the node works.
    pub healthcheck: Option<Healthcheck>,
    /// Commands run once, when the node has become healthy.
    pub on_healthy: Vec<Vec<String>>,
    /// Certificates made for this run.
    pub certificates: Vec<CertificateSpec>,
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bind {
    /// The path as written, relative to the topology's folder unless absolute; may contain `__clabNodeDir__`.
    pub source: String,
    /// The path in the node.
    pub target: PathBuf,
    /// Whether the node may not write there.
    pub read_only: bool,
}

/// A program that runs as long as the lab does.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DaemonSpec {
    /// What it is called in the lab.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// A condition for starting the daemons of a node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WaitFor {
    /// The other node.
    pub node: String,
    /// What it must have reached.
    pub stage: Stage,
}

/// The stages of a node that take time; the ones before them are barriers of the whole lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Namespaces, links and `exec` are done.
    Configured,
    /// The health check passes.
    Healthy,
    /// The main daemon has ended.
    Exit,
}

/// A command that succeeds when the node works.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Healthcheck {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Seconds for one run of the command.
    pub timeout_s: u32,
}

/// A certificate for one node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CertificateSpec {
    /// Base name of its files in the `pki` folder.
    pub name: String,
    /// Common name: the store's user for a client certificate.
    pub common_name: String,
    /// Subject alternative names, DNS names and addresses.
    pub sans: Vec<String>,
    /// Usable by a server.
    pub server: bool,
    /// Usable by a client.
    pub client: bool,
    /// Days it is valid, if not the issuer's default.
    pub days: Option<u32>,
}

/// A link between two endpoints.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LinkSpec {
    /// Both ends.
    pub endpoints: [Endpoint; 2],
    /// MTU of both ends, if not the kernel's default.
    pub mtu: Option<u32>,
}

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Endpoint {
    /// A node or a bridge.
    pub node: String,
    /// Name of the link there.
    pub link: String,
    /// Its hardware address, if not a random one.
    pub mac: Option<String>,
}

impl Topology {
    /// Reads and validates a file.
    pub fn load(path: &Path) -> Result<Self, TopologyError> {
        let failed = |source| TopologyError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let absolute = std::path::absolute(path).map_err(failed)?;
        let folder = absolute.parent().map(Path::to_owned).unwrap_or_default();
        Self::parse(&text, folder)
    }

    /// Validates a text whose relative paths start from `folder`.
    pub fn parse(text: &str, folder: PathBuf) -> Result<Self, TopologyError> {
        let document = yaml::parse(text)?;
        schema::check(&document, schema::ROOT, "")?;
        read::topology(&document, folder)
    }

    /// The node or pod of that name.
    pub fn node(&self, name: &str) -> Option<&NodeSpec> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

#[cfg(test)]
mod tests;
