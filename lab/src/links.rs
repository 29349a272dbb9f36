//! Links between the namespaces of a lab.
//!
//! All links are made from inside the namespace of the switches, with both ends placed by process number, so that no
//! link ever exists in the host's namespace. One `ip -batch` makes them all, one more per node brings its ends up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::topology::{Endpoint, LinkSpec, Topology};

/// The commands that create every bridge and link, for the namespace of the switches.
///
/// `holders` gives the process that holds the namespaces of each node; bridges are not in it.
pub(crate) fn wiring(topology: &Topology, holders: &BTreeMap<String, i32>) -> String {
    let mut batch = String::from("link set dev lo up\n");
    for bridge in &topology.bridges {
        // Snooping without a querier would drop neighbor solicitations of IPv6.
        put(&mut batch, format_args!("link add name {bridge} type bridge mcast_snooping 0"));
        put(&mut batch, format_args!("link set dev {bridge} up"));
    }
    for link in &topology.links {
        let [a, b] = &link.endpoints;
        let (a, b) = (end(a, link, holders), end(b, link, holders));
        put(&mut batch, format_args!("link add {a} type veth peer {b}"));
    }
    for port in topology.links.iter().flat_map(|link| &link.endpoints) {
        if !holders.contains_key(&port.node) {
            put(&mut batch, format_args!("link set dev {} master {} up", port.link, port.node));
        }
    }
    batch
}

/// The commands that bring the links of one node up.
pub(crate) fn up(topology: &Topology, node: &str) -> String {
    let mut batch = String::from("link set dev lo up\n");
    for end in topology.links.iter().flat_map(|link| &link.endpoints).filter(|end| end.node == node) {
        put(&mut batch, format_args!("link set dev {} up", end.link));
    }
    batch
}

/// Runs commands of `ip` in the namespaces of the calling thread.
pub(crate) fn run_batch(batch: &str, node: &str) -> Result<()> {
    let start = |source| Error::Start { command: "ip -batch".to_owned(), node: node.to_owned(), source };
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(batch.as_bytes()).map_err(start)?;
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Error::Command {
        command: failed_line(batch, &stderr),
        node: node.to_owned(),
        status: output.status.to_string(),
        stderr: stderr.trim().replace('\n', ", "),
    })
}

fn end(end: &Endpoint, link: &LinkSpec, holders: &BTreeMap<String, i32>) -> String {
    let mut text = format!("name {}", end.link);
    if let Some(mac) = &end.mac {
        put_word(&mut text, format_args!(" address {mac}"));
    }
    if let Some(mtu) = link.mtu {
        put_word(&mut text, format_args!(" mtu {mtu}"));
    }
    if let Some(pid) = holders.get(&end.node) {
        put_word(&mut text, format_args!(" netns {pid}"));
    }
    text
}

/// The command that `ip` complains about with "Command failed -:LINE".
fn failed_line(batch: &str, stderr: &str) -> String {
    let number = stderr.rsplit_once("-:").and_then(|(_, line)| line.trim().parse::<usize>().ok());
    let line = number.and_then(|number| batch.lines().nth(number.saturating_sub(1)));
    line.map_or_else(|| "ip -batch".to_owned(), |line| format!("ip {line}"))
}

fn put(batch: &mut String, line: std::fmt::Arguments<'_>) {
    put_word(batch, line);
    batch.push('\n');
}

fn put_word(text: &mut String, word: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = text.write_fmt(word);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
name: two
topology:
  nodes:
    sw: {kind: bridge}
    a: {kind: linux}
    b: {kind: linux}
  links:
    - endpoints: [\"a:eth0\", \"sw:p1\"]
    - {type: veth, mtu: 1400, endpoints: [{node: a, interface: eth1, mac: \"02:00:00:00:00:01\"}, {node: b, interface: eth0}]}
";

    #[test]
    fn both_ends_are_placed_by_process() {
        let topology = Topology::parse(TEXT, "/".into()).unwrap();
        let holders = BTreeMap::from([("a".to_owned(), 10), ("b".to_owned(), 11)]);
        assert_eq!(
            wiring(&topology, &holders),
            "link set dev lo up
link add name sw type bridge mcast_snooping 0
link set dev sw up
link add name eth0 netns 10 type veth peer name p1
link add name eth1 address 02:00:00:00:00:01 mtu 1400 netns 10 type veth peer name eth0 mtu 1400 netns 11
link set dev p1 master sw up
"
        );
        assert_eq!(up(&topology, "a"), "link set dev lo up\nlink set dev eth0 up\nlink set dev eth1 up\n");
    }

    #[test]
    fn a_failed_command_is_named() {
        assert_eq!(failed_line("a\nb\nc\n", "RTNETLINK answers: File exists\nCommand failed -:2"), "ip b");
        assert_eq!(failed_line("a\n", "out of memory"), "ip -batch");
    }
}
