//! Direct server return between the nodes of the west/east lab: the backend sees the client, its node answers, and the node that was
//! asked sees no answer.

use std::{path::Path, process::Command, time::Duration};

use lab::Node;
use nix::sys::signal::Signal;

use super::{
    meshes::eventually,
    netfilter::judge,
    service_traffic::{Webpods, ask, assert_seen, backends, echo, open, packets},
    services::{ALL_BACKENDS, EAST, NODES, Services, WEST},
};

/// The node port of `webpod` at west-worker.
pub(super) const ASKED: &str = "172.18.0.5:30080";
/// Who asks: a node of the other cluster, which is outside as far as west is concerned.
pub(super) const CLIENT: &str = "172.18.0.2";
/// The backend on west's other node.
pub(super) const REMOTE: &str = "10.0.0.10";
/// How long a capture may take to write what it has.
pub(super) const CAPTURED: Duration = Duration::from_secs(20);
/// Connections of a round.
const TIMES: usize = 40;

pub(super) fn reach(lab: &Services, outside: &Node) {
    let to = ASKED.parse().expect("an address");
    let is_open = || {
        outside.within(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()).expect("inside")
    };
    assert!(eventually(is_open), "{}", lab.mesh.log("west-worker"));
}

/// Packets that `tshark` finds in a capture, each as the fields asked for.
pub(super) fn read(capture: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-d", "udp.port==8472,vxlan", "-r"]).arg(capture).args([
        "-Y",
        filter,
        "-T",
        "fields",
        "-E",
        "occurrence=a",
    ]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// Starts to capture what a node sends and receives by a link, and returns when it does.
pub(super) fn capture(node: &Node, link: &str, file: &Path) -> lab::Running {
    let file = file.to_str().expect("a path of plain text");
    let running = node.spawn(&[
        "tcpdump",
        "-Z",
        "root",
        "-i",
        link,
        "-U",
        "-s",
        "200",
        "-w",
        file,
        "tcp or proto 4 or udp port 6081 or udp port 8472",
    ]);
    let running = running.expect("tcpdump runs");
    assert!(eventually(|| std::fs::metadata(file).is_ok_and(|file| file.len() > 0)), "no capture");
    running
}

#[test]
fn a_backend_behind_direct_return_sees_the_client_and_answers_it_directly() {
    let lab = Services::up();
    lab.wait(&NODES, &ALL_BACKENDS);
    let webpods = Webpods::start(&lab);
    lab.open_node_port(&WEST, &[]);
    // A node whose netfilter sees questions and no answers lets nothing through that follows.
    for node in WEST {
        judge(&lab.mesh.node(node));
    }
    let outside = lab.mesh.node("east-worker");
    reach(&lab, &outside);
    // Translated sources: the backend sees the node that was asked, and its answers come back there.
    let answers = ask(&outside, ASKED, 100);
    assert_eq!(backends(&answers), ALL_BACKENDS, "{answers:?}");
    assert!(answers.contains_key(&(REMOTE.to_owned(), "172.18.0.5".to_owned())), "{answers:?}");

    let folder = tempfile::tempdir().expect("a folder");
    lab.with_each_form(&WEST, &ALL_BACKENDS, |form| {
        // Connections of before keep their translation; whoever comes now is sent on as it is.
        let is_direct = || ask(&outside, ASKED, TIMES).contains_key(&(REMOTE.to_owned(), CLIENT.to_owned()));
        assert!(eventually(is_direct), "{form}: {:?}", ask(&outside, ASKED, TIMES));
        // A cluster of which nothing is known gets translated sources.
        let client_of = |own: &str| if own.starts_with("10.0.") { CLIENT } else { "172.18.0.5" };
        assert_seen(form, &ask(&outside, ASKED, 100), &ALL_BACKENDS, client_of);
        answered_directly(&lab, &outside, form, folder.path());
        last(&outside, form);
    });
    webpods.stop();
    lab.mesh.finish();
}

/// Connections go on behind their first packets.
fn last(outside: &Node, form: &str) {
    for _ in 0..TIMES {
        let mut stream = open(outside, ASKED).0;
        echo(&mut stream, b"what follows the first packets").unwrap_or_else(|error| panic!("{form}: {error}"));
    }
}

/// Asks while only the backend of the other node is there, and looks at what passes where.
fn answered_directly(lab: &Services, outside: &Node, form: &str, folder: &Path) {
    lab.edit(&EAST, "labels: {app: webpod}", "labels: {app: other}");
    lab.edit(&["west-worker"], "labels: {app: webpod}", "labels: {app: other}");
    lab.wait_used(&["west-worker"], &[REMOTE]);
    let only = || backends(&ask(outside, ASKED, TIMES)) == [REMOTE];
    assert!(eventually(only), "{form}: {:?}", ask(outside, ASKED, TIMES));
    let received = packets(lab, "west-control-plane", "dsr_received");
    let files = ["asked", "backend"].map(|name| folder.join(format!("{form}-{name}.pcap")));
    let captures = [
        capture(&lab.mesh.node("west-worker"), "any", &files[0]),
        capture(&lab.mesh.node("west-control-plane"), "any", &files[1]),
    ];
    let answers = ask(outside, ASKED, TIMES);
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), [((REMOTE.to_owned(), CLIENT.to_owned()), TIMES)], "{form}");
    let came = || packets(lab, "west-control-plane", "dsr_received") >= received + TIMES as u64;
    assert!(eventually(came), "{form}: {}", lab.mesh.ask("west-control-plane", &["status"])["datapath"]);
    let openings = "tcp.flags.syn == 1 && tcp.flags.ack == 0 && tcp.dstport == 80";
    let whole = || {
        let noted = read(&files[1], openings, &["ip.src"]);
        noted.len() >= TIMES
    };
    assert!(eventually(whole), "{form}: {:?}", read(&files[1], "tcp", &["ip.src", "tcp.dstport"]));
    for capture in captures {
        capture.stop(Signal::SIGINT, CAPTURED).expect("tcpdump ends");
    }
    // Not one answer passes the node that was asked, neither as the backend's nor as its own.
    let back = format!("ip.dst == {CLIENT} && (tcp.srcport == 30080 || tcp.srcport == 80)");
    assert_eq!(read(&files[0], &back, &["ip.src"]), Vec::<Vec<String>>::new(), "{form}");
    // The other node sends them in the name of the first.
    let answered = read(&files[1], &format!("ip.src == 172.18.0.5 && {back}"), &["ip.src"]);
    assert!(answered.len() >= 2 * TIMES, "{form}: {} answers", answered.len());
    // A program that is not ours reads what is around and Geneve's note; of the option, which is nobody's, it knows the length.
    let fields =
        ["ip.src", "ip.dst", "ip.proto", "ip.hdr_len", "geneve.vni", "geneve.option.class", "geneve.option.type"];
    let seen = read(&files[1], openings, &fields);
    let expected = match form {
        "option" => format!("{CLIENT}|{REMOTE}|6|28|||"),
        "ipip" => format!("172.18.0.5,{CLIENT}|172.18.0.4,{REMOTE}|4,6|20,28|||"),
        _ => format!("172.18.0.5,{CLIENT}|172.18.0.4,{REMOTE}|17,6|20,20|0x000002|0x014b|0x81"),
    };
    let matching = seen.iter().filter(|row| row.join("|") == expected).count();
    assert!(matching >= TIMES, "{form}: {matching} of {:?}, not {expected}", seen.first());
    lab.edit(&EAST, "labels: {app: other}", "labels: {app: webpod}");
    lab.edit(&["west-worker"], "labels: {app: other}", "labels: {app: webpod}");
    lab.wait(&WEST, &ALL_BACKENDS);
}
