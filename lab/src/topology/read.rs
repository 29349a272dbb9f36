//! From a checked tree to a [`Topology`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::schema::{entries, integer, items, join, pairs, text, texts, wrong};
use super::{
    Bind, CertificateSpec, DaemonSpec, Endpoint, Healthcheck, LinkSpec, NodeSpec, Role, Stage, Topology, TopologyError,
    WaitFor,
};
use crate::command_line;
use crate::yaml::{Data, Entry, Value};

/// What the kernel allows for the name of a link, without its terminating zero.
const LINK_NAME_LEN_MAX: usize = 15;
/// Names of nodes become host names and folder names.
const NODE_NAME_LEN_MAX: usize = 63;
/// Seconds for one health check when the file does not say.
const HEALTHCHECK_TIMEOUT_S: u32 = 10;
/// Labels of this runner start with this.
const LABEL_PREFIX: &str = "meshd.lab/";

pub(super) fn topology(document: &Value, folder: PathBuf) -> Result<Topology, TopologyError> {
    let name_value = document.get("name").ok_or(TopologyError::Missing { key: "name" })?;
    let name = text(name_value, "name")?.to_owned();
    check_name(name_value, "name", &name)?;
    let body = document.get("topology").ok_or(TopologyError::Missing { key: "topology" })?;
    let nodes_value = body.get("nodes").ok_or(TopologyError::Missing { key: "topology.nodes" })?;

    let mut topology = Topology { name, folder, nodes: Vec::new(), bridges: Vec::new(), links: Vec::new() };
    for entry in entries(nodes_value, "topology.nodes")? {
        check_name(&entry.value, "topology.nodes", &entry.key)?;
        let layers = Layers::of(body, entry)?;
        match layers.kind()? {
            Kind::Linux => topology.nodes.push(layers.node()?),
            Kind::Bridge => topology.bridges.push(entry.key.clone()),
        }
    }
    if let Some(links) = body.get("links") {
        for link in items(links, "topology.links")? {
            topology.links.push(read_link(link, &topology)?);
        }
    }
    check_links_unique(body, &topology)?;
    check_waits(nodes_value, &topology)?;
    Ok(topology)
}

enum Kind {
    Linux,
    Bridge,
}

/// A node with the layers it inherits from, the weakest first.
struct Layers<'v> {
    name: &'v str,
    path: String,
    line: usize,
    layers: Vec<&'v Value>,
}

impl<'v> Layers<'v> {
    fn of(body: &'v Value, entry: &'v Entry) -> Result<Self, TopologyError> {
        let own = &entry.value;
        let defaults = body.get("defaults");
        let group = inherited(own, defaults, "group")?.and_then(|group| body.get("groups")?.get(group));
        let kind = match own.get("kind") {
            Some(kind) => Some(text(kind, "kind")?),
            None => inherited(group.unwrap_or(own), defaults, "kind")?,
        };
        let kind = kind.and_then(|kind| body.get("kinds")?.get(kind));
        let layers = [defaults, kind, group, Some(own)].into_iter().flatten().collect();
        Ok(Self { name: &entry.key, path: format!("topology.nodes.{}", entry.key), line: entry.line, layers })
    }

    /// The strongest value of a key.
    fn get(&self, key: &str) -> Option<&'v Value> {
        self.layers.iter().rev().find_map(|layer| layer.get(key))
    }

    /// Every value of a key, the weakest first.
    fn all(&self, key: &'static str) -> impl Iterator<Item = &'v Value> + '_ {
        self.layers.iter().filter_map(move |layer| layer.get(key))
    }

    fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    fn kind(&self) -> Result<Kind, TopologyError> {
        let Some(value) = self.get("kind") else {
            let problem = "has no kind, neither of its own nor from defaults".to_owned();
            return Err(TopologyError::Wrong { key: self.path.clone(), line: self.line, problem });
        };
        match text(value, "kind")? {
            "linux" => Ok(Kind::Linux),
            "bridge" => Ok(Kind::Bridge),
            other => {
                let problem = format!("is {other:?}, but only linux and bridge run in plain namespaces");
                Err(wrong(value, &self.path("kind"), problem))
            }
        }
    }

    fn pairs(&self, key: &'static str) -> Result<BTreeMap<String, String>, TopologyError> {
        let mut merged = BTreeMap::new();
        for value in self.all(key) {
            merged.extend(pairs(value, &self.path(key))?);
        }
        Ok(merged)
    }

    fn node(&self) -> Result<NodeSpec, TopologyError> {
        let labels = Labels::read(self)?;
        let mut daemons: Vec<DaemonSpec> = self.main_daemon()?.into_iter().collect();
        daemons.extend(labels.daemons);
        Ok(NodeSpec {
            name: self.name.to_owned(),
            role: labels.role,
            exec: self.commands("exec")?,
            binds: self.binds()?,
            env: self.pairs("env")?,
            daemons,
            startup_delay_s: match self.get("startup-delay") {
                Some(delay) => integer(delay, &self.path("startup-delay"))?,
                None => 0,
            },
            wait_for: self.waits()?,
            healthcheck: self.healthcheck()?,
            on_healthy: self.on_healthy()?,
            certificates: labels.certificates,
        })
    }

    fn main_daemon(&self) -> Result<Option<DaemonSpec>, TopologyError> {
        let mut command = Vec::new();
        for key in ["entrypoint", "cmd"] {
            if let Some(value) = self.get(key) {
                command.extend(self.words(value, key)?);
            }
        }
        let Some(program) = command.first() else {
            return Ok(None);
        };
        let name = program.rsplit('/').next().unwrap_or(program).to_owned();
        Ok(Some(DaemonSpec { name, command }))
    }

    fn words(&self, value: &Value, key: &str) -> Result<Vec<String>, TopologyError> {
        let line = text(value, key)?.replace("__clabNodeName__", self.name);
        command_line::split(&line).map_err(|problem| wrong(value, &self.path(key), problem.to_string()))
    }

    fn commands(&self, key: &'static str) -> Result<Vec<Vec<String>>, TopologyError> {
        let mut commands = Vec::new();
        for value in self.all(key) {
            for item in items(value, key)? {
                commands.push(self.words(item, key)?);
            }
        }
        Ok(commands)
    }

    fn binds(&self) -> Result<Vec<Bind>, TopologyError> {
        let mut binds: Vec<Bind> = Vec::new();
        for value in self.all("binds") {
            for item in items(value, "binds")? {
                let bind = read_bind(item, &self.path("binds"), self.name)?;
                binds.retain(|earlier| earlier.target != bind.target);
                binds.push(bind);
            }
        }
        Ok(binds)
    }

    fn waits(&self) -> Result<Vec<WaitFor>, TopologyError> {
        let mut waits = Vec::new();
        let Some(stages) = self.get("stages") else {
            return Ok(waits);
        };
        for stage in entries(stages, "stages")? {
            let Some(list) = stage.value.get("wait-for") else {
                continue;
            };
            for item in items(list, "wait-for")? {
                let path = self.path("stages.wait-for");
                let (Some(node), Some(stage)) = (item.get("node"), item.get("stage")) else {
                    return Err(wrong(item, &path, "needs node and stage".to_owned()));
                };
                let stage = match text(stage, &path)? {
                    "healthy" => Stage::Healthy,
                    "exit" => Stage::Exit,
                    _ => Stage::Configured,
                };
                waits.push(WaitFor { node: text(node, &path)?.to_owned(), stage });
            }
        }
        Ok(waits)
    }

    fn on_healthy(&self) -> Result<Vec<Vec<String>>, TopologyError> {
        let mut commands = Vec::new();
        let Some(stages) = self.get("stages") else {
            return Ok(commands);
        };
        for stage in entries(stages, "stages")? {
            let Some(exec) = stage.value.get("exec") else {
                continue;
            };
            let path = self.path(&format!("stages.{}.exec", stage.key));
            for moment in entries(exec, &path)? {
                if (stage.key.as_str(), moment.key.as_str()) != ("healthy", "on-exit") {
                    let problem = "is not run in plain namespaces; use exec, or stages.healthy.exec.on-exit";
                    return Err(wrong(&moment.value, &join(&path, &moment.key), problem.to_owned()));
                }
                for item in items(&moment.value, &path)? {
                    commands.push(self.words(item, "stages.healthy.exec.on-exit")?);
                }
            }
        }
        Ok(commands)
    }

    fn healthcheck(&self) -> Result<Option<Healthcheck>, TopologyError> {
        let Some(check) = self.get("healthcheck") else {
            return Ok(None);
        };
        let path = self.path("healthcheck.test");
        let Some(test) = check.get("test") else {
            return Err(wrong(check, &path, "is missing".to_owned()));
        };
        let words = texts(test, &path)?;
        let command = match words.split_first() {
            Some((first, rest)) if first == "CMD" => rest.to_vec(),
            Some((first, rest)) if first == "CMD-SHELL" => {
                vec!["sh".to_owned(), "-c".to_owned(), rest.join(" ")]
            }
            _ => {
                return Err(wrong(test, &path, "must start with CMD or CMD-SHELL".to_owned()));
            }
        };
        if command.is_empty() {
            return Err(wrong(test, &path, "has no command".to_owned()));
        }
        let timeout_s = match check.get("timeout") {
            Some(timeout) => integer(timeout, &self.path("healthcheck.timeout"))?,
            None => HEALTHCHECK_TIMEOUT_S,
        };
        Ok(Some(Healthcheck { command, timeout_s }))
    }
}

/// What the labels of this runner say about a node.
struct Labels {
    role: Role,
    daemons: Vec<DaemonSpec>,
    certificates: Vec<CertificateSpec>,
}

impl Labels {
    fn read(layers: &Layers<'_>) -> Result<Self, TopologyError> {
        let mut labels = Self { role: Role::Node, daemons: Vec::new(), certificates: Vec::new() };
        let mut merged: BTreeMap<&str, &Value> = BTreeMap::new();
        for value in layers.all("labels") {
            merged.extend(entries(value, "labels")?.iter().map(|entry| (entry.key.as_str(), &entry.value)));
        }
        for (key, value) in merged {
            let Some(key) = key.strip_prefix(LABEL_PREFIX) else {
                continue;
            };
            let path = layers.path(&format!("labels.{LABEL_PREFIX}{key}"));
            if key == "role" {
                labels.role = match text(value, &path)? {
                    "node" => Role::Node,
                    "pod" => Role::Pod,
                    other => {
                        return Err(wrong(value, &path, format!("is {other:?}, allowed are node and pod")));
                    }
                };
            } else if let Some(name) = key.strip_prefix("daemon.") {
                check_name(value, &path, name)?;
                let command = layers.words(value, &path)?;
                if command.is_empty() {
                    return Err(wrong(value, &path, "has no command".to_owned()));
                }
                labels.daemons.push(DaemonSpec { name: name.to_owned(), command });
            } else if let Some(name) = key.strip_prefix("cert.") {
                check_name(value, &path, name)?;
                labels.certificates.push(read_certificate(value, &path, name)?);
            } else {
                let problem = "is no label of the lab; known are role, daemon.NAME and cert.NAME".to_owned();
                return Err(wrong(value, &path, problem));
            }
        }
        Ok(labels)
    }
}

fn inherited<'v>(own: &'v Value, defaults: Option<&'v Value>, key: &str) -> Result<Option<&'v str>, TopologyError> {
    own.get(key).or_else(|| defaults?.get(key)).map(|value| text(value, key)).transpose()
}

fn check_name(value: &Value, path: &str, name: &str) -> Result<(), TopologyError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.chars().all(allowed) && name.len() <= NODE_NAME_LEN_MAX {
        return Ok(());
    }
    let problem =
        format!("has the name {name:?}; allowed are letters, digits, '-', '_' and '.', at most {NODE_NAME_LEN_MAX}");
    Err(wrong(value, path, problem))
}

fn read_certificate(value: &Value, path: &str, name: &str) -> Result<CertificateSpec, TopologyError> {
    let mut certificate = CertificateSpec {
        name: name.to_owned(),
        common_name: String::new(),
        sans: Vec::new(),
        server: false,
        client: false,
        days: None,
    };
    for word in text(value, path)?.split_whitespace() {
        match word.split_once('=') {
            None if word == "server" => certificate.server = true,
            None if word == "client" => certificate.client = true,
            Some(("cn", cn)) => certificate.common_name = cn.to_owned(),
            Some(("san", san)) => certificate.sans.push(san.to_owned()),
            Some(("days", days)) => {
                let days = days.parse().map_err(|_| wrong(value, path, format!("has days={days}, no number")))?;
                certificate.days = Some(days);
            }
            _ => {
                let problem = format!("has the word {word:?}; known are cn=, san=, days=, server and client");
                return Err(wrong(value, path, problem));
            }
        }
    }
    if certificate.common_name.is_empty() {
        return Err(wrong(value, path, "needs cn=".to_owned()));
    }
    Ok(certificate)
}

fn read_bind(item: &Value, path: &str, node: &str) -> Result<Bind, TopologyError> {
    let written = text(item, path)?.replace("__clabNodeName__", node);
    let mut parts = written.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(wrong(item, path, format!("has {written:?}, which is not source:target")));
    };
    let target = PathBuf::from(target);
    if source.is_empty() || !target.is_absolute() {
        return Err(wrong(item, path, format!("has {written:?}, whose target must be an absolute path")));
    }
    let options: Vec<&str> = parts.flat_map(|options| options.split(',')).collect();
    Ok(Bind { source: source.to_owned(), target, read_only: options.contains(&"ro") })
}

fn read_link(link: &Value, topology: &Topology) -> Result<LinkSpec, TopologyError> {
    let path = "topology.links";
    let Some(endpoints) = link.get("endpoints") else {
        return Err(wrong(link, path, "has a link without endpoints".to_owned()));
    };
    let ends: Vec<Endpoint> =
        items(endpoints, path)?.iter().map(|end| read_endpoint(end, topology)).collect::<Result<_, _>>()?;
    let endpoints: [Endpoint; 2] = ends
        .try_into()
        .map_err(|ends: Vec<_>| wrong(endpoints, path, format!("has a link with {} endpoints, not 2", ends.len())))?;
    let mtu = link.get("mtu").map(|mtu| integer(mtu, "topology.links.mtu")).transpose()?;
    Ok(LinkSpec { endpoints, mtu })
}

fn read_endpoint(end: &Value, topology: &Topology) -> Result<Endpoint, TopologyError> {
    let path = "topology.links.endpoints";
    let (node, link, mac) = match &end.data {
        Data::Map(_) => {
            let part = |key: &str| end.get(key).map(|value| text(value, path)).transpose();
            match (part("node")?, part("interface")?) {
                (Some(node), Some(link)) => (node, link, part("mac")?),
                _ => return Err(wrong(end, path, "needs node and interface".to_owned())),
            }
        }
        _ => match text(end, path)?.split_once(':') {
            Some((node, link)) => (node, link, None),
            None => return Err(wrong(end, path, "must be node:link".to_owned())),
        },
    };
    if topology.node(node).is_none() && !topology.bridges.iter().any(|bridge| bridge == node) {
        return Err(wrong(end, path, format!("names {node:?}, which is no node of this topology")));
    }
    let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    if link.is_empty() || link.len() > LINK_NAME_LEN_MAX || !link.chars().all(allowed) || link == "lo" {
        return Err(wrong(end, path, format!("has {link:?}, which the kernel does not take as a link name")));
    }
    Ok(Endpoint { node: node.to_owned(), link: link.to_owned(), mac: mac.map(str::to_owned) })
}

/// Links of one node need different names; all bridges live in one namespace and count as one node, as on a host.
fn check_links_unique(body: &Value, topology: &Topology) -> Result<(), TopologyError> {
    let mut seen: Vec<(Option<&str>, &str)> = topology.bridges.iter().map(|name| (None, name.as_str())).collect();
    for (index, link) in topology.links.iter().enumerate() {
        for end in &link.endpoints {
            let node = topology.node(&end.node).map(|node| node.name.as_str());
            let place = (node, end.link.as_str());
            if seen.contains(&place) {
                let problem =
                    format!("has two links called {} in {}", end.link, node.unwrap_or("the bridges' namespace"));
                let line = match body.get("links").map(|links| &links.data) {
                    Some(Data::List(links)) => links.get(index).map_or(0, |link| link.line),
                    _ => 0,
                };
                return Err(TopologyError::Wrong { key: "topology.links".to_owned(), line, problem });
            }
            seen.push(place);
        }
    }
    Ok(())
}

/// Every awaited node exists, and nobody waits for itself through others.
fn check_waits(nodes: &Value, topology: &Topology) -> Result<(), TopologyError> {
    for node in &topology.nodes {
        let refuse = |problem: String| {
            let line = nodes.get(&node.name).map_or(0, |value| value.line);
            Err(TopologyError::Wrong { key: format!("topology.nodes.{}.stages.wait-for", node.name), line, problem })
        };
        let mut pending: Vec<&str> = node.wait_for.iter().map(|wait| wait.node.as_str()).collect();
        let mut visited: Vec<&str> = Vec::new();
        while let Some(name) = pending.pop() {
            let Some(awaited) = topology.node(name) else {
                return refuse(format!("names {name:?}, which is no node of this topology"));
            };
            if awaited.name == node.name {
                return refuse(format!("makes {name} wait for itself"));
            }
            if !visited.contains(&name) {
                visited.push(name);
                pending.extend(awaited.wait_for.iter().map(|wait| wait.node.as_str()));
            }
        }
    }
    Ok(())
}
