//! Nodes whose daemon is killed, restarted and replaced by others while they carry connections: none of them may break, and no
//! packet may be lost.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::programs::{SchedClassifier, TcAttachType};
use lab::Node;
use meshd_abi::LAYOUT_VERSION;
use tests::{
    iperf::Iperf,
    load::{HTTP_PORT, Load, STREAM_PORT},
    ping::Ping,
};

use super::{
    layout_2,
    meshes::eventually,
    service_traffic::wait_open,
    services::{ALL_BACKENDS, EAST, NODES, Services, WEST},
};

/// The node whose programs translate.
const NODE: &str = "west-worker";
/// What asks the service from inside.
const CLIENT: &str = "west-worker-client";
/// What asks the node's port from outside: of the other cluster nothing but its services is known.
const OUTSIDE: &str = "east-worker";
/// Connections that stay open, from inside and from outside.
const OPEN: [usize; 2] = [800, 200];
/// Programs on the links of a node.
const PROGRAMS: usize = 6;
/// Answers that everybody must get before the next thing happens.
const STEPS: u64 = 2;
/// The longest time for which a stream may stand still. On an idle machine it is 30 ms, on a very busy one it was a second.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// Time between two packets of ping.
const PACE: Duration = Duration::from_millis(10);
/// Port of iperf3's server, beside those of a load.
const IPERF_PORT: u16 = 5202;

/// A lab in which everybody is busy.
struct Busy {
    lab: Services,
    load: Load,
    pings: Vec<Ping>,
    iperf: Option<Iperf>,
}

impl Busy {
    /// Brings the lab up and nothing else. Answers where the service, its stream and the node's port are.
    fn up() -> (Self, [SocketAddr; 3]) {
        let lab = Services::up();
        lab.wait(&NODES, &ALL_BACKENDS);
        let stream = format!("{{name: stream, port: {STREAM_PORT}}}");
        lab.open_node_port(&WEST, &[&stream]);
        lab.add_port(&EAST, &stream);
        let load = Load::new().expect("a load");
        for (node, address) in NODES.into_iter().zip(["10.0.0.10", "10.0.1.10", "10.1.0.10", "10.1.1.10"]) {
            let address = address.parse().expect("an address");
            load.serve(&lab.mesh.node(&format!("{node}-webpod")), address).expect("servers");
        }
        let service = SocketAddr::new([10, 2, 0, 80].into(), HTTP_PORT);
        let places =
            [service, SocketAddr::new(service.ip(), STREAM_PORT), SocketAddr::new([172, 18, 0, 5].into(), 30_080)];
        for (from, to) in [CLIENT, CLIENT, OUTSIDE].into_iter().zip(places) {
            wait_open(&lab, &lab.mesh.node(from), &to.to_string());
        }
        (Self { lab, load, pings: Vec::new(), iperf: None }, places)
    }

    /// Opens everything, and has clients come and go.
    fn begin(&mut self, [service, stream, node_port]: [SocketAddr; 3]) {
        let (client, outside) = (self.lab.mesh.node(CLIENT), self.lab.mesh.node(OUTSIDE));
        self.load.come_and_go(&client, service);
        self.load.come_and_go(&outside, node_port);
        self.load.open(&client, service, OPEN[0]).expect("connections from inside");
        self.load.open(&outside, node_port, OPEN[1]).expect("connections from outside");
        self.load.stream(&client, stream).expect("a stream");
        for (pod, target) in [(CLIENT, "10.1.1.10"), ("east-worker-client", "10.0.1.10")] {
            let pod = self.lab.mesh.node(pod);
            let target = target.parse().expect("an address");
            self.pings.push(Ping::start(&pod, target, PACE).unwrap_or_else(|error| panic!("{error:#}")));
        }
        self.wait("at first");
    }

    /// Gives a service of one backend to iperf3, whose two connections must meet the same server, and lets it send through that.
    fn stream_of_iperf3(&mut self) {
        let label = ("labels: {app: webpod}", "labels: {app: webpod, streams: all}");
        self.lab.edit(&[OUTSIDE], label.0, label.1);
        for (cluster, address) in [(WEST, "10.2.0.81"), (EAST, "10.3.0.81")] {
            let service = format!(
                "  services:\n    - {{namespace: default, name: webstream, cluster_ips: [{address}], selector: {{streams: all}}, \
                 global: true, ports: [{{name: http, port: {HTTP_PORT}}}, {{name: iperf3, port: {IPERF_PORT}}}]}}\n"
            );
            self.lab.edit(&cluster, "  services:\n    -", &format!("{service}    -"));
        }
        let (from, server) = (self.lab.mesh.node(CLIENT), self.lab.mesh.node(&format!("{OUTSIDE}-webpod")));
        let [to, at] =
            ["10.2.0.81", "10.1.1.10"].map(|address| SocketAddr::new(address.parse().expect("an address"), IPERF_PORT));
        wait_open(&self.lab, &from, &SocketAddr::new(to.ip(), HTTP_PORT).to_string());
        let iperf = Iperf::start(&from, to, &server, at);
        self.iperf = Some(iperf.unwrap_or_else(|error| panic!("{error:#}: {}", self.lab.mesh.log(NODE))));
    }

    /// Waits until every connection was used again.
    fn wait(&mut self, when: &str) {
        let log = |node: &&str| format!("{node}:\n{}", self.lab.mesh.log(node));
        if let Err(error) = self.load.wait_progress(STEPS) {
            panic!("{when}: {error:#}\n{}", log(&NODE));
        }
    }

    /// Waits until a daemon that was started has taken its predecessor's programs over.
    fn wait_adopted(&self, node: &str, starts: usize) {
        let adopted = || self.lab.mesh.log(node).matches("attached=Adopted").count() == PROGRAMS * starts;
        assert!(eventually(adopted), "{}", self.lab.mesh.log(node));
    }

    /// Waits until only maps of this generation are left.
    fn wait_generation(&self, node: &str, name: &str) {
        let is = || generations(&self.lab.mesh.node(node)) == [name];
        let found = || generations(&self.lab.mesh.node(node));
        assert!(eventually(is), "{:?}: {}", found(), self.lab.mesh.log(node));
    }

    /// Ends everything in order and demands that nothing was lost.
    fn finish(mut self) {
        self.wait("at last");
        let figures = self.load.finish().unwrap_or_else(|error| panic!("{error:#}"));
        println!("{figures:?}");
        assert_eq!(figures.open, OPEN[0] + OPEN[1]);
        assert!(figures.longest_pause < PAUSE_MAX, "{figures:?}");
        if let Some(iperf) = self.iperf {
            let streamed = iperf.finish().unwrap_or_else(|error| panic!("{error:#}"));
            println!("{streamed:?}");
            assert!(streamed.longest_pause < PAUSE_MAX, "{streamed:?}");
        }
        for ping in self.pings {
            let answers = ping.finish().unwrap_or_else(|error| panic!("{error:#}"));
            assert!(answers.lost.is_empty(), "{answers:?}");
        }
        self.lab.mesh.finish();
    }
}

/// Folders of pinned maps.
fn generations(node: &Node) -> Vec<String> {
    let listed = node.exec(&["ls", meshd_abi::BPFFS_FOLDER]).and_then(lab::Output::ok).expect("listed");
    listed.lines().map(str::to_owned).collect()
}

/// Tags of the programs on the uplink of a node: the kernel's digests of their instructions.
fn tags(node: &Node) -> BTreeSet<u64> {
    let ask = || {
        let mut tags = BTreeSet::new();
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = SchedClassifier::query_tcx("eth0", direction).expect("the kernel tells");
            tags.extend(programs.iter().map(aya::programs::ProgramInfo::tag));
        }
        tags
    };
    node.within(ask).expect("inside")
}

/// A copy of the daemon whose programs have other instructions that do the same, as another compiler would have made them.
fn other_build(folder: &Path) -> PathBuf {
    let original = lab::catalog::meshd().expect("the daemon was built");
    let mut binary = fs::read(&original).expect("the daemon is read");
    let changed = other_instructions(&mut binary);
    assert!(changed > 100, "{changed} instructions of {} were changed", original.display());
    let path = folder.join("meshd");
    fs::write(&path, binary).expect("written");
    fs::set_permissions(&path, fs::metadata(&original).expect("permissions").permissions()).expect("executable");
    path
}

/// Changes instructions in every object for the kernel that is embedded in a program. Returns how many there were.
fn other_instructions(binary: &mut [u8]) -> usize {
    /// ELF of 64 bits, little-endian; relocatable, for BPF.
    const START: &[u8] = b"\x7fELF\x02\x01\x01";
    const KIND: &[u8] = &[1, 0, 0xf7, 0];
    /// `r = imm` and `w = imm`, which are the same where `imm` is not negative.
    const MOVE_64: u8 = 0xb7;
    const MOVE_32: u8 = 0xb4;
    const EXECUTABLE: u64 = 4;
    const HEADER_LEN: usize = 64;
    const INSTRUCTION_LEN: usize = 8;
    let mut changed = 0;
    // Embedded objects are aligned.
    for start in (0..binary.len().saturating_sub(HEADER_LEN)).step_by(INSTRUCTION_LEN) {
        if !binary[start..].starts_with(START) || !binary[start + 16..].starts_with(KIND) {
            continue;
        }
        let number = |at: usize, length: usize, binary: &[u8]| {
            let octets = &binary[start + at..start + at + length];
            octets.iter().rev().fold(0_u64, |number, octet| (number << 8) | u64::from(*octet))
        };
        let place = |at, binary: &[u8]| usize::try_from(number(at, 8, binary)).expect("it fits");
        let (headers, count) = (place(0x28, binary), number(0x3c, 2, binary) as usize);
        for header in (0..count).map(|index| headers + index * HEADER_LEN) {
            if number(header + 8, 8, binary) & EXECUTABLE == 0 {
                continue;
            }
            let (offset, length) = (place(header + 0x18, binary), place(header + 0x20, binary));
            let code = &mut binary[start + offset..start + offset + length];
            for instruction in code.as_chunks_mut::<INSTRUCTION_LEN>().0 {
                let is_positive = instruction[7] & 0x80 == 0;
                if instruction[0] == MOVE_64 && is_positive {
                    instruction[0] = MOVE_32;
                    changed += 1;
                }
            }
        }
    }
    changed
}

#[test]
fn kills_restarts_and_other_programs_break_no_connection() {
    let (mut busy, places) = Busy::up();
    busy.begin(places);
    busy.stream_of_iperf3();
    // Nobody runs for a while; then the next one takes over.
    busy.lab.mesh.daemon(NODE).kill9().expect("killed");
    busy.wait("while nobody runs");
    busy.lab.mesh.daemon(NODE).start().expect("started");
    busy.wait_adopted(NODE, 1);
    busy.wait("after the start");
    for node in NODES.into_iter().filter(|node| *node != NODE) {
        busy.lab.mesh.daemon(node).kill9().expect("killed");
        busy.lab.mesh.daemon(node).start().expect("started");
    }
    for node in NODES {
        busy.wait_adopted(node, 1);
    }
    busy.wait("after the start of the others");

    // Another build, on every node: first of those that the connections come from, then of those they go to.
    let folder = tempfile::tempdir().expect("a folder");
    let other = other_build(folder.path());
    let before = tags(&busy.lab.mesh.node(NODE));
    assert_eq!(before.len(), 2);
    for node in [NODE, "east-worker", "west-control-plane", "east-control-plane"] {
        busy.lab.mesh.node(node).use_meshd(&other).expect("another binary");
        busy.lab.mesh.daemon(node).restart().expect("restarted");
    }
    for node in NODES {
        busy.wait_adopted(node, 2);
        let after = tags(&busy.lab.mesh.node(node));
        assert!(after.len() == 2 && after.is_disjoint(&before), "{node} runs {after:?} after {before:?}");
    }
    busy.wait("with other programs");
    busy.finish();
}

/// Lets the node begin again with maps of other sizes, and waits until the earlier ones are gone.
fn resize(busy: &mut Busy, from: &str, to: &str, generation: u32) {
    let section = |sizes: &str| format!("services:\n  enabled: true\n{sizes}");
    busy.lab.edit(&[NODE], &section(from), &section(to));
    busy.lab.mesh.daemon(NODE).restart().expect("restarted");
    busy.wait_generation(NODE, &format!("v{LAYOUT_VERSION}-{generation}"));
    busy.wait("with maps of another size");
}

/// Changes the sizes of maps twice.
fn resize_twice([first, second]: [&str; 2]) {
    let (mut busy, places) = Busy::up();
    busy.begin(places);
    resize(&mut busy, "", first, 1);
    resize(&mut busy, first, second, 2);
    busy.finish();
}

#[test]
fn maps_of_another_size_break_no_connection() {
    let smaller = "  maps: {services: 1024, backends: 1024, identities: 4096}\n";
    resize_twice([smaller, "  maps: {services: 131072, backends: 131072}\n"]);
}

#[test]
fn a_table_of_another_size_breaks_no_connection() {
    resize_twice(["  maps: {connections: 16384}\n", "  maps: {connections: 1048576}\n"]);
}

#[test]
fn maps_of_an_earlier_layout_break_no_connection() {
    let (mut busy, places) = Busy::up();
    // A daemon of that time leaves what it had, and connections are opened while its programs are on the links.
    busy.lab.mesh.daemon(NODE).stop().expect("stopped");
    let node = busy.lab.mesh.node(NODE);
    let today = tags(&node);
    node.within(layout_2::leave).expect("inside");
    assert_eq!(generations(&node), ["v2"]);
    let before = tags(&node);
    assert!(before.len() == 2 && before.is_disjoint(&today), "{before:?}");
    busy.begin(places);

    busy.lab.mesh.daemon(NODE).start().expect("started");
    busy.wait_adopted(NODE, 1);
    busy.wait_generation(NODE, &format!("v{LAYOUT_VERSION}-1"));
    assert_eq!(tags(&node), today);
    busy.wait("with maps of today");
    busy.finish();
}
