//! GoBGP: one daemon, asked through `gobgp`, which answers in JSON. It installs no routes.

use std::collections::BTreeSet;

use anyhow::Context as _;
use lab::Node;
use serde_json::Value;

use super::{
    Blueprint, Kind,
    path::{Path, extended},
};

/// Path attribute types that the harness understands.
mod kind {
    pub(super) const ORIGIN: u64 = 1;
    pub(super) const AS_PATH: u64 = 2;
    pub(super) const NEXT_HOP: u64 = 3;
    pub(super) const MED: u64 = 4;
    pub(super) const LOCAL_PREF: u64 = 5;
    pub(super) const COMMUNITIES: u64 = 8;
    pub(super) const MP_REACH: u64 = 14;
    pub(super) const EXTENDED: u64 = 16;
    pub(super) const LARGE: u64 = 32;
}

impl Blueprint {
    /// GoBGP with its configuration in YAML.
    pub fn gobgp(name: &str, configuration: &str) -> Self {
        Self::new(Kind::GoBgp, name)
            .file("/etc/gobgp/gobgpd.yaml", configuration)
            .daemon("gobgpd", "gobgpd -t yaml -f /etc/gobgp/gobgpd.yaml --api-hosts 127.0.0.1:50051 --log-plain")
    }
}

pub(super) fn gobgp(node: &Node, command: &str) -> anyhow::Result<Value> {
    let words: Vec<&str> = ["gobgp", "-j"].into_iter().chain(command.split(' ')).collect();
    let text = node.exec(&words)?.ok()?;
    serde_json::from_str(&text).with_context(|| format!("gobgp {command} says {text}"))
}

pub(super) fn established(node: &Node) -> anyhow::Result<BTreeSet<String>> {
    const ESTABLISHED: u64 = 6;
    let peers = gobgp(node, "neighbor")?;
    let peers = peers.as_array().map(Vec::as_slice).unwrap_or_default();
    let up = peers.iter().filter(|peer| peer["state"]["session_state"] == ESTABLISHED);
    Ok(up.filter_map(|peer| peer["state"]["neighbor_address"].as_str().map(str::to_owned)).collect())
}

pub(super) fn paths(node: &Node) -> anyhow::Result<Vec<Path>> {
    let mut paths = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let table = gobgp(node, &format!("global rib -a {family}"))?;
        let destinations = table.as_object().into_iter().flatten();
        for (prefix, entries) in destinations {
            for (index, entry) in entries.as_array().into_iter().flatten().enumerate() {
                paths.push(path(prefix, entry, index == 0)?);
            }
        }
    }
    Ok(paths)
}

fn path(prefix: &str, entry: &Value, first: bool) -> anyhow::Result<Path> {
    let mut path = Path::to(prefix.parse()?);
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    path.best = Some(first);
    path.stale = entry["stale"] == true;
    path.path_id = number(&entry["nlri"]["id"]);
    path.from = entry["source-id"].as_str().filter(|from| *from != "<nil>").map(str::to_owned);
    for attribute in entry["attrs"].as_array().into_iter().flatten() {
        let value = &attribute["value"];
        match attribute["type"].as_u64().unwrap_or_default() {
            kind::ORIGIN => {
                path.origin = match value.as_u64() {
                    Some(0) => "igp".to_owned(),
                    Some(1) => "egp".to_owned(),
                    _ => "incomplete".to_owned(),
                };
            }
            kind::AS_PATH => path.as_path = as_path(&attribute["as_paths"]),
            kind::NEXT_HOP | kind::MP_REACH => {
                path.next_hops = attribute["nexthop"].as_str().map(str::to_owned).into_iter().collect();
            }
            kind::MED => path.med = number(&attribute["metric"]),
            kind::LOCAL_PREF => path.local_pref = number(value),
            kind::COMMUNITIES => {
                let numbers = attribute["communities"].as_array().into_iter().flatten().filter_map(Value::as_u64);
                path.communities = numbers.map(|number| format!("{}:{}", number >> 16, number & 0xffff)).collect();
            }
            kind::EXTENDED => path.extended = value.as_array().into_iter().flatten().map(extended_community).collect(),
            kind::LARGE => path.large = value.as_array().into_iter().flatten().map(large_community).collect(),
            other => {
                path.other.insert(other.to_string(), attribute.to_string());
            }
        }
    }
    Ok(path)
}

fn as_path(segments: &Value) -> String {
    let words = segments.as_array().into_iter().flatten().map(|segment| {
        let numbers =
            segment["asns"].as_array().into_iter().flatten().map(Value::to_string).collect::<Vec<_>>().join(" ");
        match segment["segment_type"].as_u64() {
            Some(1) => format!("{{{numbers}}}"),
            Some(3) => format!("({numbers})"),
            _ => numbers,
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn extended_community(value: &Value) -> String {
    const TARGET: u64 = 2;
    const ORIGIN: u64 = 3;
    let rest = value["value"].as_str().map_or_else(|| value["value"].to_string(), str::to_owned);
    match value["subtype"].as_u64() {
        Some(TARGET) => extended("rt", &rest),
        Some(ORIGIN) => extended("soo", &rest),
        other => extended(&format!("{:?}", other.unwrap_or_default()), &rest),
    }
}

fn large_community(value: &Value) -> String {
    format!("{}:{}:{}", value["ASN"], value["LocalData1"], value["LocalData2"])
}

/// What it says about a peer or a message. It listens before its peers are started, and closes what comes for them until then:
/// that is not about us.
pub(super) fn complaints(log: &str) -> Vec<String> {
    let complains = |line: &str| {
        ["level=warn", "level=error", "level=fatal", "WARN", "ERRO"].iter().any(|level| line.contains(level))
    };
    let key = |line: &str| line.split(' ').find(|word| word.starts_with("Key=")).map(str::to_owned);
    let is_early = |line: &str| line.contains("Closed an accepted connection") && line.contains("State=BGP_FSM_IDLE");
    let mut were_up = BTreeSet::new();
    let mut complaints = Vec::new();
    for line in log.lines() {
        if line.contains("Peer Up") {
            were_up.extend(key(line));
        }
        let is_started = key(line).is_none_or(|key| were_up.contains(&key));
        if complains(line) && (is_started || !is_early(line)) {
            complaints.push(line.to_owned());
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_closed_before_a_peer_is_started_is_no_complaint() {
        let closed = |key: &str, state: &str| {
            format!("time=\"x\" level=warning msg=\"Closed an accepted connection\" Key={key} State={state} Topic=Peer")
        };
        let up = "time=\"x\" level=info msg=\"Peer Up\" Key=192.0.2.10 State=BGP_FSM_OPENCONFIRM Topic=Peer";
        let (idle, open) = ("BGP_FSM_IDLE", "BGP_FSM_OPENSENT");
        let log = [closed("192.0.2.10", idle), up.to_owned()].join("\n");
        assert_eq!(complaints(&log), Vec::<String>::new());
        let bad = [closed("192.0.2.10", idle), closed("192.0.2.10", open)];
        let log = [up.to_owned(), bad[0].clone(), bad[1].clone(), closed("192.0.2.11", idle)].join("\n");
        assert_eq!(complaints(&log), bad);
    }
}
