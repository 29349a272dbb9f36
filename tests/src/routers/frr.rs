//! FRR: zebra and bgpd, with bfdd where a configuration asks for it; asked through `vtysh`, which answers in JSON.

use std::collections::BTreeSet;

use anyhow::Context as _;
use lab::Node;
use serde_json::Value;

use super::{
    Blueprint, Kind,
    path::{Path, community, extended},
};

/// The folder of the daemons; it is in nobody's search path.
const DAEMONS: &str = "/usr/lib/frr";
/// A daemon that finds no zebra tries again only after ten seconds, so it is started when zebra listens.
const ZEBRA_SOCKET: &str = "/run/frr/zserv.api";

impl Blueprint {
    /// FRR with the configuration of bgpd; zebra has none.
    pub fn frr(name: &str, bgpd: &str) -> Self {
        Self::frr_with(name, bgpd, "")
    }

    /// The same with options of bgpd: `-n` keeps its routes out of the kernel.
    pub fn frr_with(name: &str, bgpd: &str, options: &str) -> Self {
        let router = Self::new(Kind::Frr, name)
            .run("install -d -o frr -g frr -m 775 /run/frr")
            // Named, so that vtysh does not say that there is none.
            .file("/etc/frr/vtysh.conf", "no service integrated-vtysh-config\n")
            .file("/etc/frr/zebra.conf", "")
            .file("/etc/frr/bgpd.conf", bgpd)
            .daemon("zebra", &format!("{DAEMONS}/zebra -f /etc/frr/zebra.conf --log stdout --log-level info"));
        router.frr_daemon("bgpd", options)
    }

    /// Gives zebra a configuration, for instance for router advertisements.
    #[must_use]
    pub fn zebra(mut self, configuration: &str) -> Self {
        for (path, text) in &mut self.files {
            if path == "/etc/frr/zebra.conf" {
                configuration.clone_into(text);
            }
        }
        self
    }

    /// Runs FRR's BFD daemon with this configuration.
    #[must_use]
    pub fn bfdd(self, configuration: &str) -> Self {
        self.file("/etc/frr/bfdd.conf", configuration).frr_daemon("bfdd", "")
    }

    fn frr_daemon(self, name: &str, options: &str) -> Self {
        let command = format!(
            "sh -c 'until [ -S {ZEBRA_SOCKET} ]; do sleep 0.01; done; \
             exec {DAEMONS}/{name} -f /etc/frr/{name}.conf --log stdout --log-level debug {options}'"
        );
        self.daemon(name, &command)
    }
}

pub(super) fn vtysh(node: &Node, command: &str) -> anyhow::Result<Value> {
    let text = node.exec(&["vtysh", "-c", command])?.ok()?;
    serde_json::from_str(&text).with_context(|| format!("vtysh -c {command:?} says {text}"))
}

pub(super) fn established(node: &Node) -> anyhow::Result<BTreeSet<String>> {
    let peers = vtysh(node, "show bgp neighbors json")?;
    let peers = peers.as_object().context("bgpd lists no neighbors")?;
    Ok(peers.iter().filter(|(_, peer)| peer["bgpState"] == "Established").map(|(name, _)| name.clone()).collect())
}

pub(super) fn paths(node: &Node) -> anyhow::Result<Vec<Path>> {
    let mut paths = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let table = vtysh(node, &format!("show bgp {family} unicast json detail"))?;
        let Some(routes) = table["routes"].as_object() else { continue };
        for (prefix, entries) in routes {
            let entries = entries.as_array().context("a prefix without a list")?;
            // The first entry is about the prefix, the rest are paths.
            for entry in entries.iter().filter(|entry| entry["nexthops"].is_array()) {
                paths.push(path(prefix, entry)?);
            }
        }
    }
    Ok(paths)
}

fn path(prefix: &str, entry: &Value) -> anyhow::Result<Path> {
    let mut path = Path::to(prefix.parse()?);
    let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let words = |value: &Value| -> BTreeSet<String> {
        value.as_str().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    path.path_id = number(&entry["addpathRxId"]);
    path.from = entry["peer"]["peerId"].as_str().filter(|_| entry["local"] != true).map(str::to_owned);
    let hops = entry["nexthops"].as_array().map(Vec::as_slice).unwrap_or_default();
    path.next_hops = hops.iter().filter_map(|hop| hop["ip"].as_str()).map(str::to_owned).collect();
    path.origin = entry["origin"].as_str().unwrap_or_default().to_lowercase();
    let as_path = entry["aspath"]["string"].as_str().unwrap_or_default();
    path.as_path = if as_path == "Local" { String::new() } else { as_path.replace(',', " ") };
    path.med = number(&entry["metric"]);
    path.local_pref = number(&entry["locPrf"]);
    path.communities = words(&entry["community"]["string"]).iter().map(|written| community(written)).collect();
    path.large = words(&entry["largeCommunity"]["string"]);
    path.extended = words(&entry["extendedCommunity"]["string"])
        .iter()
        .map(|written| {
            written.split_once(':').map_or_else(|| written.to_lowercase(), |(kind, rest)| extended(kind, rest))
        })
        .collect();
    path.best = Some(entry["bestpath"]["overall"] == true);
    path.stale = entry["stale"] == true;
    for name in ["aggregatorAs", "aggregatorId", "atomicAggregate", "originatorId", "clusterList", "multipath", "otc"] {
        if !entry[name].is_null() {
            path.other.insert(name.to_owned(), entry[name].to_string());
        }
    }
    Ok(path)
}

/// What it says about a peer or a message. Error codes (`EC`) mark them; the ones of a start and of a closing zebra are no complaints.
pub(super) fn complains(line: &str) -> bool {
    let harmless = [
        "MPLS",
        "zclient",
        "buffer_write",
        "vty_read_config",
        "EC 100663300",
        "Can't open configuration",
        "waiting until one is created",
    ];
    line.contains("[EC ") && !harmless.iter().any(|word| line.contains(word))
}
