//! ExaBGP: sends what it is told and tells what it receives, and chooses nothing. Commands go through a file that it follows, what it receives
//! is appended to another one as JSON, one message a line.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use ipnet::IpNet;
use lab::Node;
use serde_json::Value;

use super::{
    Blueprint, Kind, Router,
    path::{Path, community, extended},
};

const COMMANDS: &str = "/run/exabgp/commands";
const RECEIVED: &str = "/run/exabgp/received";

/// What a `neighbor` section has to contain so that its messages are written down and commands reach it.
pub const EXABGP_API: &str = "api commands { processes [ commands ]; } \
    api received { processes [ received ]; neighbor-changes; receive { parsed; update; notification; } }";

/// The two programs behind that: ExaBGP talks to programs only.
const PROCESSES: &str = "\
process commands { run /usr/bin/tail -n +1 -f /run/exabgp/commands; encoder json; }
process received { run /bin/sh /etc/exabgp/received.sh; encoder json; }
";
/// The shell stays: a program that closes its standard output has died, as far as ExaBGP knows.
const RECEIVER: &str = "cat >> /run/exabgp/received\nexit\n";

impl Blueprint {
    /// ExaBGP with its configuration, to which the programs that [`EXABGP_API`] names are added.
    pub fn exabgp(name: &str, configuration: &str) -> Self {
        let settings = "exabgp.daemon.user=root exabgp.daemon.drop=false exabgp.log.destination=stdout exabgp.log.level=INFO \
                        exabgp.api.cli=false exabgp.api.ack=false exabgp.daemon.daemonize=false";
        Self::new(Kind::ExaBgp, name)
            .file("/etc/exabgp/exabgp.conf", &format!("{PROCESSES}{configuration}"))
            .file("/etc/exabgp/received.sh", RECEIVER)
            .run("mkdir -p /run/exabgp")
            .run(&format!("touch {COMMANDS} {RECEIVED}"))
            .daemon("exabgp", &format!("env {settings} exabgp /etc/exabgp/exabgp.conf"))
    }
}

impl Router {
    /// Tells an ExaBGP to do something: `announce route 10.0.0.0/24 next-hop self`.
    pub fn tell(&self, command: &str) -> anyhow::Result<()> {
        self.run(&["sh", "-c", "echo \"$1\" >> \"$2\"", "sh", command, COMMANDS]).map(drop)
    }

    /// The messages an ExaBGP has received, in order.
    pub fn received(&self) -> anyhow::Result<Vec<Value>> {
        messages(&self.node)
    }
}

fn messages(node: &Node) -> anyhow::Result<Vec<Value>> {
    let text = node.exec(&["cat", RECEIVED])?.ok()?;
    // The last line may still be on its way.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
}

pub(super) fn established(node: &Node) -> anyhow::Result<BTreeSet<String>> {
    let mut up = BTreeSet::new();
    for message in messages(node)?.iter().filter(|message| message["type"] == "state") {
        let peer = message["neighbor"]["address"]["peer"].as_str().unwrap_or_default().to_owned();
        match message["neighbor"]["state"].as_str() {
            Some("up") => drop(up.insert(peer)),
            Some("down") => drop(up.remove(&peer)),
            _ => {}
        }
    }
    Ok(up)
}

/// What the updates so far amount to.
pub(super) fn paths(node: &Node) -> anyhow::Result<Vec<Path>> {
    let mut held: BTreeMap<(String, IpNet, Option<u32>), Path> = BTreeMap::new();
    for message in messages(node)? {
        let peer = message["neighbor"]["address"]["peer"].as_str().unwrap_or_default().to_owned();
        if message["neighbor"]["state"] == "down" {
            held.retain(|(from, ..), _| *from != peer);
        }
        let update = &message["neighbor"]["message"]["update"];
        for entry in
            update["withdraw"].as_object().into_iter().flatten().flat_map(|(_, nlri)| nlri.as_array()).flatten()
        {
            if let Some((prefix, id)) = nlri(entry)? {
                held.remove(&(peer.clone(), prefix, id));
            }
        }
        let families = update["announce"].as_object().into_iter().flatten();
        for (next_hop, entries) in families.filter_map(|(_, hops)| hops.as_object()).flatten() {
            for entry in entries.as_array().into_iter().flatten() {
                if let Some((prefix, id)) = nlri(entry)? {
                    let mut path = attributes(prefix, &update["attribute"]);
                    path.path_id = id;
                    path.from = Some(peer.clone());
                    path.next_hops = vec![next_hop.clone()];
                    let key = (peer.clone(), prefix, id);
                    // A link-local next hop beside the global one is told like a second announcement.
                    if next_hop.starts_with("fe80:")
                        && let Some(told) = held.get_mut(&key)
                        && told.as_path == path.as_path
                    {
                        told.next_hops.truncate(1);
                        told.next_hops.push(next_hop.clone());
                        continue;
                    }
                    held.insert(key, path);
                }
            }
        }
    }
    Ok(held.into_values().collect())
}

/// A prefix with its path identifier, which ExaBGP writes like an address; End-of-RIB has none.
fn nlri(entry: &Value) -> anyhow::Result<Option<(IpNet, Option<u32>)>> {
    let Some(prefix) = entry["nlri"].as_str() else { return Ok(None) };
    let id = entry["path-information"].as_str().and_then(|id| id.parse::<std::net::Ipv4Addr>().ok()).map(u32::from);
    Ok(Some((prefix.parse().with_context(|| format!("no prefix: {prefix}"))?, id)))
}

fn attributes(prefix: IpNet, attributes: &Value) -> Path {
    let mut path = Path::to(prefix);
    let number = |name: &str| attributes[name].as_u64().and_then(|number| u32::try_from(number).ok());
    let list = |name: &str| attributes[name].as_array().cloned().unwrap_or_default();
    let numbers = |value: &Value| {
        let parts = value
            .as_array()
            .into_iter()
            .flatten()
            .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned));
        parts.collect::<Vec<_>>().join(":")
    };
    path.origin = attributes["origin"].as_str().unwrap_or_default().to_owned();
    path.as_path = list("as-path").iter().map(segment).collect::<Vec<_>>().join(" ");
    path.med = number("med");
    path.local_pref = number("local-preference");
    path.communities =
        list("community").iter().map(|value| value.as_str().map_or_else(|| numbers(value), community)).collect();
    path.large = list("large-community").iter().map(numbers).collect();
    path.extended = list("extended-community")
        .iter()
        .filter_map(|value| value["string"].as_str())
        .map(|written| written.split_once(':').map_or_else(|| written.to_owned(), |(kind, rest)| extended(kind, rest)))
        .collect();
    for (name, value) in attributes.as_object().into_iter().flatten() {
        path.other.insert(name.clone(), value.to_string());
    }
    path
}

/// A number of a sequence, or a whole set.
fn segment(value: &Value) -> String {
    match value.as_array() {
        Some(set) => format!("{{{}}}", set.iter().map(Value::to_string).collect::<Vec<_>>().join(" ")),
        None => value.to_string(),
    }
}

/// What it says about a peer or a message.
pub(super) fn complains(line: &str) -> bool {
    ["WARNING", "ERROR", "CRITICAL"].iter().any(|level| line.contains(level))
}
