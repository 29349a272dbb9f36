//! Ours: asked through `meshd bgp`, which answers in JSON.

use std::collections::BTreeSet;

use anyhow::Context as _;
use lab::Node;
use serde_json::Value;

use super::path::{Path, community, extended};

pub(super) fn meshd(node: &Node, command: &str) -> anyhow::Result<Value> {
    let words: Vec<&str> = ["meshd"].into_iter().chain(command.split(' ')).chain(["-o", "json"]).collect();
    let text = node.exec(&words)?.ok()?;
    serde_json::from_str(&text).with_context(|| format!("meshd {command} says {text}"))
}

pub(super) fn established(node: &Node) -> anyhow::Result<BTreeSet<String>> {
    let peers = meshd(node, "bgp neighbors")?;
    let peers = peers.as_array().context("meshd lists no neighbors")?;
    let up = peers.iter().filter(|peer| peer["state"] == "established");
    let name = |peer: &Value| peer["interface"].as_str().or(peer["address"].as_str()).map(str::to_owned);
    Ok(up.filter_map(name).collect())
}

pub(super) fn paths(node: &Node) -> anyhow::Result<Vec<Path>> {
    let rib = meshd(node, "bgp rib")?;
    rib.as_array().context("meshd lists no paths")?.iter().map(path).collect()
}

fn path(entry: &Value) -> anyhow::Result<Path> {
    let mut path = Path::to(entry["prefix"].as_str().context("a path without a prefix")?.parse()?);
    let number = |name: &str| entry[name].as_u64().and_then(|number| u32::try_from(number).ok());
    let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let words = |name: &str| -> BTreeSet<String> {
        let list = entry[name].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    path.path_id = number("path_id");
    path.from = entry["peer"].as_str().map(str::to_owned);
    let next_hops = ["next_hop", "next_hop_link_local"].into_iter().filter_map(|name| entry[name].as_str());
    path.next_hops = next_hops.map(str::to_owned).collect();
    path.origin = text("origin");
    path.as_path = text("as_path");
    path.med = number("med");
    path.local_pref = number("local_pref");
    path.communities = words("communities").iter().map(|written| community(written)).collect();
    path.large = words("large_communities");
    path.extended = words("extended_communities")
        .iter()
        .map(|written| written.split_once(':').map_or_else(|| written.clone(), |(kind, rest)| extended(kind, rest)))
        .collect();
    path.best = Some(entry["best"] == true);
    path.stale = entry["stale"] == true;
    Ok(path)
}

/// What it says about a peer or a message; what a first start says about its configuration and its empty store is none of that.
pub(super) fn complains(line: &str) -> bool {
    let harmless = ["configuration warning=", "the embedded store starts without history"];
    [" WARN ", " ERROR "].iter().any(|level| line.contains(level)) && !harmless.iter().any(|words| line.contains(words))
}
