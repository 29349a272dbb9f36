//! BIRD: one daemon, asked through `birdc`, which answers in text.

use std::collections::BTreeSet;

use anyhow::Context as _;
use lab::Node;

use super::{
    Blueprint, Kind,
    path::{Path, extended},
};

/// Lines every configuration begins with: the log where the lab finds it, and the protocol that sees the links.
const PREAMBLE: &str = "log stderr all;\nprotocol device {}\n";

impl Blueprint {
    /// BIRD with the text of its configuration, to which a log and `protocol device` are added.
    pub fn bird(name: &str, configuration: &str) -> Self {
        Self::bird_with(name, configuration, "")
    }

    /// The same with options: `-R` makes every start the end of a graceful restart.
    pub fn bird_with(name: &str, configuration: &str, options: &str) -> Self {
        Self::new(Kind::Bird, name)
            .file("/etc/bird/bird.conf", &format!("{PREAMBLE}{configuration}"))
            .run("mkdir -p /run/bird")
            .daemon("bird", &format!("bird -f -c /etc/bird/bird.conf {options}"))
    }
}

fn birdc(node: &Node, command: &str) -> anyhow::Result<String> {
    let words: Vec<&str> = ["birdc"].into_iter().chain(command.split(' ')).collect();
    Ok(node.exec(&words)?.ok()?)
}

pub(super) fn established(node: &Node) -> anyhow::Result<BTreeSet<String>> {
    let text = birdc(node, "show protocols all")?;
    let (mut found, mut is_up) = (BTreeSet::new(), false);
    for line in text.lines() {
        match line.trim().split_once(':') {
            Some(("BGP state", state)) => is_up = state.trim() == "Established",
            Some(("Neighbor address", address)) if is_up => {
                found.insert(address.trim().to_owned());
            }
            _ => {}
        }
    }
    Ok(found)
}

pub(super) fn paths(node: &Node) -> anyhow::Result<Vec<Path>> {
    parse(&birdc(node, "show route all")?)
}

/// Reads the answer to `show route all`. A line that does not begin with white space names the prefix of the paths below;
/// a path begins with the protocol in brackets, its attributes are indented by a tab.
fn parse(text: &str) -> anyhow::Result<Vec<Path>> {
    let mut paths: Vec<Path> = Vec::new();
    let mut prefix = None;
    for line in text.lines() {
        if line.starts_with("BIRD ") || line.starts_with("Table ") || line.trim().is_empty() {
            continue;
        }
        if !line.starts_with('\t') {
            if !line.starts_with(' ') {
                let word = line.split_whitespace().next().unwrap_or_default();
                prefix = Some(word.parse().with_context(|| format!("no prefix in {line:?}"))?);
            }
            let mut path = Path::to(prefix.with_context(|| format!("a path without a prefix: {line:?}"))?);
            path.best = Some(line.contains("] * "));
            path.stale = line.contains("] * (100s") || line.contains(" (100s");
            path.from = line.split_once(" from ").and_then(|(_, rest)| rest.split(']').next()).map(str::to_owned);
            paths.push(path);
        } else if let Some(path) = paths.last_mut() {
            attribute(path, line.trim())?;
        }
    }
    Ok(paths)
}

fn attribute(path: &mut Path, line: &str) -> anyhow::Result<()> {
    if let Some(via) = line.strip_prefix("via ") {
        path.other.insert("via".to_owned(), via.to_owned());
        return Ok(());
    }
    let Some((name, value)) = line.split_once(": ").or_else(|| line.split_once(':')) else {
        return Ok(());
    };
    match name {
        "BGP.origin" => path.origin = value.to_lowercase(),
        "BGP.as_path" => path.as_path = value.replace("{ ", "{").replace(" }", "}"),
        "BGP.next_hop" => path.next_hops = value.split_whitespace().map(str::to_owned).collect(),
        "BGP.med" => path.med = Some(value.parse()?),
        "BGP.local_pref" => path.local_pref = Some(value.parse()?),
        "BGP.community" => path.communities = tuples(value).map(|tuple| tuple.join(":")).collect(),
        "BGP.large_community" => path.large = tuples(value).map(|tuple| tuple.join(":")).collect(),
        "BGP.ext_community" => {
            path.extended = tuples(value)
                .filter_map(|tuple| tuple.split_first().map(|(kind, rest)| extended(kind, &rest.join(":"))))
                .collect();
        }
        _ => {
            path.other.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(())
}

/// `(65001,1) (rt, 65001, 7)` as lists of words.
fn tuples(value: &str) -> impl Iterator<Item = Vec<&str>> {
    value.split('(').skip(1).map(|tuple| tuple.trim_end().trim_end_matches(')').split(',').map(str::trim).collect())
}

/// What it says about a peer or a message: warnings, errors and remote complaints. That one of two connections goes which both ends opened at the
/// same moment is none (RFC 4271 section 6.8), once for each peer: who says it again and again has no session.
pub(super) fn complaints(log: &str) -> Vec<String> {
    const COLLISION: &str = ": Received: Connection collision resolution";
    let mut collided = BTreeSet::new();
    let complains = |line: &&str| {
        let is_first = line.strip_suffix(COLLISION).and_then(|start| start.rsplit(' ').next());
        if is_first.is_some_and(|peer| collided.insert(peer.to_owned())) {
            return false;
        }
        ["<WARN>", "<ERR>", "<AUTH>", "<BUG>"].iter().any(|class| line.contains(class))
            || (line.contains("<RMT>") && !line.contains("Connection closed"))
    };
    log.lines().filter(complains).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_say_is_a_complaint_but_for_what_is_usual() {
        let line = |words: &str| format!("2026-01-01 10:00:00.000 {words}");
        let collision = |peer: &str| line(&format!("<RMT> {peer}: Received: Connection collision resolution"));
        let usual = [line("<RMT> p: Connection closed"), collision("p"), collision("q")];
        assert_eq!(complaints(&usual.join("\n")), Vec::<String>::new());
        let bad = [
            line("<RMT> p: Received: Hold timer expired"),
            line("<RMT> p: Error: Bad peer AS"),
            line("<ERR> p: Connection closed"),
            collision("p"),
        ];
        assert_eq!(complaints(&[&usual[..], &bad].concat().join("\n")), bad);
    }

    #[test]
    fn a_table_is_read() {
        let text = "BIRD 2.0.12 ready.\nTable master4:\n\
            10.1.0.0/24          unicast [p 09:26:05.808 from 192.0.2.9] * (100) [AS65003i]\n\
            \tvia 192.0.2.2 on eth0\n\tType: BGP univ\n\tBGP.origin: IGP\n\tBGP.as_path: 65002 { 65003 65004 }\n\
            \tBGP.next_hop: 192.0.2.2\n\tBGP.med: 50\n\tBGP.local_pref: 100\n\tBGP.community: (65001,1) (65001,2)\n\
            \tBGP.ext_community: (rt, 65001, 7) (generic, 0x1, 0x2)\n\tBGP.large_community: (65001, 1, 2)\n\
            \x20                    unicast [q 09:26:05.808] (100s) [AS65003?]\n\
            \tBGP.origin: Incomplete\n\tBGP.as_path: 65003\n\
            \nTable master6:\nfd10::/64            blackhole [s6 09:26:04.235] * (200)\n\tType: static univ\n";
        let paths = parse(text).unwrap();
        assert_eq!(paths.len(), 3);
        let [one, two, six] = &paths[..] else { unreachable!("there are three") };
        assert_eq!((one.best, two.best, six.best), (Some(true), Some(false), Some(true)));
        assert_eq!((one.stale, two.stale), (false, true));
        assert_eq!(one.from.as_deref(), Some("192.0.2.9"));
        assert_eq!((one.as_path.as_str(), two.as_path.as_str()), ("65002 {65003 65004}", "65003"));
        assert_eq!((one.med, one.local_pref), (Some(50), Some(100)));
        assert_eq!(one.communities, ["65001:1".to_owned(), "65001:2".to_owned()].into());
        assert_eq!(one.extended, ["rt:65001:7".to_owned(), "generic:0x1:0x2".to_owned()].into());
        assert_eq!(one.large, ["65001:1:2".to_owned()].into());
        assert_eq!((two.prefix, &*two.origin), (one.prefix, "incomplete"));
        assert_eq!(six.prefix, "fd10::/64".parse().unwrap());
    }
}
