//! Uplinks that lie on another link and have no XDP of a driver, as that of a VLAN does: XDP runs in the stack there, and sends.
//!
//! A macvlan stands for them, because not every kernel has VLANs; `make kernels` runs on some that do.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    path::Path,
};

use nix::sys::signal::Signal;

use super::{
    direct_return::{ASKED, CAPTURED, CLIENT, REMOTE, capture, reach, read},
    meshes::{WEST_EAST, eventually},
    service_traffic::{PATIENCE, Webpods, ask, backends, echo, open},
    services::{ALL_BACKENDS, EAST, NODES, Services, WEST},
};

/// The node that is asked.
const NODE: &str = "west-worker";
/// What it sends another client's packet as when it translates the source.
const OWN: &str = "172.18.0.5";
/// A port at which nobody listens.
const CLOSED: u16 = 9;
/// Connections of a round.
const TIMES: usize = 40;

/// The west/east lab with the nodes' addresses on links `up0` above their `eth0`.
fn up() -> (Services, Webpods) {
    let lab = Services::of_changed("west-east", WEST_EAST, |text| {
        let mut lines = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.split_once("- ip address add 172.18.0.") {
                // XDP cannot see that a sum is left to a device, and there is none in a network of namespaces.
                for command in [
                    "ethtool -K eth0 tx off",
                    "ip link add link eth0 name up0 type macvlan mode bridge",
                    "ip link set up0 up",
                ] {
                    lines.push(format!("{}- {command}", rest.0));
                }
                lines.push(line.replace("dev eth0", "dev up0"));
            } else {
                lines.push(line.to_owned());
            }
        }
        lines.join("\n")
    });
    lab.wait(&NODES, &ALL_BACKENDS);
    let webpods = Webpods::start(&lab);
    lab.open_node_port(&WEST, &[]);
    // One backend only, on west's other node.
    lab.edit(&EAST, "labels: {app: webpod}", "labels: {app: other}");
    lab.edit(&[NODE], "labels: {app: webpod}", "labels: {app: other}");
    lab.wait_used(&[NODE], &[REMOTE]);
    (lab, webpods)
}

/// How a program is attached to a node's links, by program and link.
fn attached(lab: &Services, node: &str) -> BTreeMap<(String, String), String> {
    let status = lab.mesh.ask(node, &["status"]);
    let programs = status["datapath"]["programs"].as_array().cloned().unwrap_or_default();
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    programs.iter().map(|row| ((word(&row["program"]), word(&row["link"])), word(&row["attached"]))).collect()
}

/// Asks again and again, and returns how many of the packets between client, node and backend the stack of the node that was asked has
/// seen at its uplink. A capture is behind XDP on the way in, and what XDP sends in the stack goes to the driver without it.
fn seen(lab: &Services, client: &str, file: &Path) -> usize {
    let (outside, to): (_, SocketAddr) = (lab.mesh.node("east-worker"), ASKED.parse().expect("an address"));
    let capture = capture(&lab.mesh.node(NODE), "up0", file);
    for _ in 0..TIMES {
        let (mut stream, own, seen) = open(&outside, ASKED);
        assert_eq!((own.to_string().as_str(), seen.to_string().as_str()), (REMOTE, client));
        echo(&mut stream, b"what follows the first packets").expect("it goes on");
    }
    // What nobody takes over comes last, so that the capture is known to be whole.
    let closed = SocketAddr::new(to.ip(), CLOSED);
    let refused = outside.within(|| TcpStream::connect_timeout(&closed, PATIENCE)).expect("inside");
    assert_eq!(refused.expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);
    let is_whole = || !read(file, &format!("tcp.dstport == {CLOSED}"), &["ip.src"]).is_empty();
    assert!(eventually(is_whole), "the capture does not end");
    capture.stop(Signal::SIGINT, CAPTURED).expect("tcpdump ends");
    let passing = format!("(ip.addr == {CLIENT} && tcp.port == 30080) || (ip.addr == {REMOTE} && tcp.port == 80)");
    read(file, &passing, &["ip.src"]).len()
}

#[test]
fn xdp_sends_by_an_uplink_whose_driver_has_none_and_tc_does_where_it_is_off() {
    let (lab, webpods) = up();
    let outside = lab.mesh.node("east-worker");
    let folder = tempfile::tempdir().expect("a folder");
    let mut last = "  enabled: true\n".to_owned();
    for (xdp, form) in
        [("off", None), ("on", None), ("on", Some("option")), ("on", Some("ipip")), ("on", Some("geneve"))]
    {
        let mode = form.map_or(String::new(), |form| format!("  mode: dsr\n  dsr: {form}\n"));
        let section = format!("  enabled: true\n  xdp: {xdp}\n{mode}");
        lab.edit(&WEST, &last, &section);
        last = section;
        for node in WEST {
            lab.mesh.daemon(node).restart().expect("restarted");
        }
        let when = format!("xdp {xdp}, {}", form.unwrap_or("snat"));
        lab.wait_used(&WEST, &[REMOTE]);
        reach(&lab, &outside);
        let at = |program: &str| attached(&lab, NODE).remove(&(program.to_owned(), "up0".to_owned()));
        let is =
            || at("xdp_uplink").as_deref() == (xdp == "on").then_some("xdp generic") && at("uplink_ingress").is_some();
        assert!(eventually(is), "{when}: {:?}", attached(&lab, NODE));
        let client = if form.is_some() { CLIENT } else { OWN };
        let is = || {
            backends(&ask(&outside, ASKED, 1)) == [REMOTE]
                && ask(&outside, ASKED, 1).keys().all(|(_, seen)| seen == client)
        };
        assert!(eventually(is), "{when}: {:?}", ask(&outside, ASKED, TIMES));
        let (mut count, mut round) = (0, 0);
        let mut holds = || {
            round += 1;
            let file = folder.path().join(format!("{when} {round}.pcap"));
            count = seen(&lab, client, &file);
            println!("{when}: {count} packets at the stack");
            if xdp == "on" { count == 0 } else { count > 2 * TIMES }
        };
        assert!(eventually(&mut holds), "{when}: {count} packets");
    }
    webpods.stop();
    lab.mesh.finish();
}
