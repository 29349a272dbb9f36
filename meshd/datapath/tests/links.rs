//! The programs on real links: attach, adopt, swap, refuse, detach.
//!
//! Each test runs in a thread with a network and a mount namespace of its own: links, addresses, pins and programs vanish
//! with the thread, whatever happens to the test.

#[path = "links/handover.rs"]
mod handover;
#[path = "links/layouts.rs"]
mod layouts;
#[path = "links/tunnels.rs"]
mod tunnels;

use std::{fs::File, path::PathBuf, process::Command, thread};

use aya::programs::{SchedClassifier, TcAttachType};
use meshd_abi::{
    Backend, CidrKey, Connection, ConnectionKey, Counter, Identity, LAYOUT_VERSION, MAGLEV_CHUNK, NextHop, Policy,
    PolicyKey, Reason, Service, ServiceKey, Tuple, V4, policy_direction, policy_verdict,
};
use meshd_core::id::IfIndex;
use meshd_datapath::{Attached, DatapathError, Features, Maps, Program, Programs, shape::Sizes};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// Octets of an echo request as `ping` makes it, in its frame: Ethernet, IPv4, ICMP, data.
const ECHO_FRAME_LEN: u64 = 14 + 20 + 8 + 56;
/// The index that the test's links get; the two namespaces of a pair have separate numbers.
const LINK: IfIndex = IfIndex(77);

/// A namespace with one end of a veth pair, a peer namespace with the other, and a bpf file system.
struct Pair {
    own: File,
    peer: File,
    folder: tempfile::TempDir,
}

impl Pair {
    /// Where the programs keep their pins.
    fn pins(&self) -> PathBuf {
        self.folder.path().join("meshd")
    }

    fn load(&self) -> Programs {
        Programs::load(&self.pins(), &small()).expect("load")
    }

    /// Runs a command in the namespace with the programs.
    fn own(&self, command: &str) -> String {
        shell(command)
    }

    /// Runs a command in the peer's namespace.
    fn peer(&self, command: &str) -> String {
        setns(&self.peer, CloneFlags::CLONE_NEWNET).expect("enter the peer's namespace");
        let output = shell(command);
        setns(&self.own, CloneFlags::CLONE_NEWNET).expect("return to the own namespace");
        output
    }

    fn add_links(&self) {
        let pid = std::process::id();
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&self.peer);
        // Neighbors are known and IPv6 is silent, so that echoes are the only frames.
        let quiet = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6";
        self.peer(quiet);
        self.own(&format!(
            "{quiet} && ip link add own index {LINK} address 02:00:00:00:00:01 type veth \
               peer name peer address 02:00:00:00:00:02 netns /proc/{pid}/fd/{descriptor} && \
             ip addr add 192.0.2.1/24 dev own && ip link set own up && \
             ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev own nud permanent"
        ));
        self.peer(
            "ip addr add 192.0.2.2/24 dev peer && ip link set peer up && \
             ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev peer nud permanent",
        );
    }

    /// Sends this many echo requests from the peer and fails when one stays without an answer.
    fn ping(&self, count: u64) {
        self.peer(&format!("ping -q -n -i 0.01 -W 5 -c {count} 192.0.2.1"));
    }
}

/// Small tables: a test needs hardly any.
fn small() -> Sizes {
    Sizes {
        connections: 1_024,
        recent: 256,
        services: 256,
        backends: 256,
        members: 256,
        maglev: 16,
        identities: 256,
        ..Sizes::default()
    }
}

/// Runs a line of shell in the namespaces of the calling thread and fails the test when it fails.
fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("run sh");
    assert!(output.status.success(), "{line}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn thread_namespace() -> File {
    File::open("/proc/thread-self/ns/net").expect("open the namespace")
}

/// Runs a test in namespaces of its own.
fn in_namespaces(test: impl FnOnce(&Pair) + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test loads programs into the kernel and needs root; without it: cargo nextest run --profile unprivileged"
    );
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare");
        let peer = thread_namespace();
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
        let own = thread_namespace();
        let folder = tempfile::tempdir().expect("a folder");
        let nothing: Option<&str> = None;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("make mounts private");
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), nothing).expect("mount a bpf file system");
        let pair = Pair { own, peer, folder };
        pair.add_links();
        test(&pair);
        nix::mount::umount(pair.folder.path()).expect("unmount the bpf file system");
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// How TC programs are attached by the kernel that the test runs on.
fn by_tc() -> Attached {
    let features = Features::probe().expect("probe");
    if features.tcx { Attached::Tcx } else { Attached::Classifier }
}

/// Names of the TC programs on a link of the calling thread's namespace; the kernel keeps fifteen octets of each.
fn on_link(link: &str) -> Vec<String> {
    let mut names = Vec::new();
    if by_tc() == Attached::Classifier {
        for direction in ["ingress", "egress"] {
            let listed = shell(&format!("tc filter show dev {link} {direction}"));
            let ours = listed
                .lines()
                .filter_map(|line| line.split_once(" meshd "))
                .filter_map(|(_, name)| name.split(' ').nth(1).map(|name| name.chars().take(15).collect::<String>()));
            names.extend(ours);
        }
        names.sort();
        return names;
    }
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, programs) = SchedClassifier::query_tcx(link, hook).expect("ask the kernel");
        names.extend(programs.iter().map(|program| program.name_as_str().expect("text").to_owned()));
    }
    names.sort();
    names
}

fn short(programs: &[Program]) -> Vec<String> {
    let mut names: Vec<String> = programs.iter().map(|program| program.name().chars().take(15).collect()).collect();
    names.sort();
    names
}

fn passed(programs: &Programs) -> Counter {
    let copies = programs.maps.counters.get(Reason::Passed as u32).expect("read the counters");
    copies.into_iter().fold(Counter::default(), Counter::plus)
}

/// Asserts that programs passed this many echoes while something happened, and nothing else.
fn assert_seen(programs: &Programs, before: Counter, echoes: u64) {
    let after = passed(programs);
    let seen = (after.packets - before.packets, after.bytes - before.bytes);
    assert_eq!(seen, (echoes, echoes * ECHO_FRAME_LEN));
}

#[test]
fn packets_are_counted_across_a_restart_until_the_program_is_detached() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        assert_eq!(programs.attach(Program::XdpUplink, LINK).expect("attach"), Attached::Native);
        let before = passed(&programs);
        pair.ping(5);
        assert_seen(&programs, before, 5);

        // The process is gone: its program stays on the link and goes on counting.
        let before = passed(&programs);
        drop(programs);
        pair.ping(7);
        let mut programs = pair.load();
        assert_seen(&programs, before, 7);
        assert_eq!(programs.attach(Program::XdpUplink, LINK).expect("adopt"), Attached::Adopted);
        let before = passed(&programs);
        pair.ping(3);
        assert_seen(&programs, before, 3);

        assert!(programs.detach(Program::XdpUplink, LINK).expect("detach"));
        assert!(!programs.detach(Program::XdpUplink, LINK).expect("nothing to detach"));
        let before = passed(&programs);
        pair.ping(2);
        assert_eq!(passed(&programs), before);
        assert!(!pair.own("ip -d link show own").contains("xdp"));

        programs.remove().expect("remove");
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn xdp_is_left_to_tc_where_the_driver_has_none() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        pair.own("ip link add name plain index 99 type bridge && ip link set plain up");
        let plain = IfIndex(99);
        assert_eq!(programs.attach_where_it_pays(Program::XdpUplink, plain).expect("left"), Attached::Left);
        assert!(programs.attached().expect("list").is_empty());
        // Who wants it there gets it, until nobody wants it any more.
        assert_eq!(programs.attach(Program::XdpUplink, plain).expect("attach"), Attached::Generic);
        assert_eq!(programs.attach_where_it_pays(Program::XdpUplink, plain).expect("left"), Attached::Left);
        assert!(!pair.own("ip -d link show plain").contains("xdp"));
        // What a driver does with frames of XDP is the kernel's answer: a veth sends them when its other end waits for them.
        pair.own("ip link add name near index 91 type veth peer name far index 92 && ip link set near up && ip link set far up");
        let (near, far) = (IfIndex(91), IfIndex(92));
        assert!(!programs.transmits(far).expect("an answer") && !programs.transmits(plain).expect("an answer"));
        assert_eq!(programs.attach_where_it_pays(Program::XdpUplink, near).expect("attach"), Attached::Native);
        // The kernels that tell are older than TCX by three releases.
        assert_eq!(programs.transmits(far).expect("an answer"), Features::probe().expect("probe").tcx);
        assert!(!programs.transmits(IfIndex(93)).expect("an answer"), "there is no such link");
        programs.remove().expect("remove");
    });
}

/// The four programs of TC.
const TC: [Program; 4] =
    [Program::UplinkIngress, Program::UplinkEgress, Program::WorkloadIngress, Program::WorkloadEgress];

#[test]
fn tc_programs_are_attached_and_adopted() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        for program in TC {
            assert_eq!(programs.attach(program, LINK).expect("attach"), by_tc(), "{program:?}");
        }
        assert_eq!(on_link("own"), short(&TC));
        let before = passed(&programs);
        pair.ping(4);
        // Every echo passes two programs, and so does its answer.
        assert_seen(&programs, before, 16);
        drop(programs);

        let mut programs = pair.load();
        for program in TC {
            assert_eq!(programs.attach(program, LINK).expect("adopt"), Attached::Adopted, "{program:?}");
            assert_eq!(programs.mode(program, LINK).expect("the mode"), by_tc());
        }
        let mut listed = programs.attached().expect("list");
        listed.sort();
        assert_eq!(listed, TC.map(|program| (program, LINK)));
        // Replaced and not added: each is there once.
        assert_eq!(on_link("own"), short(&TC));
        let before = passed(&programs);
        pair.ping(4);
        assert_seen(&programs, before, 16);

        assert!(programs.detach(Program::UplinkEgress, LINK).expect("detach"));
        assert_eq!(on_link("own"), short(&[Program::UplinkIngress, Program::WorkloadIngress, Program::WorkloadEgress]));
        programs.remove().expect("remove");
        assert!(on_link("own").is_empty());
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn removing_everything_detaches() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        for program in Program::ALL {
            programs.attach(program, LINK).expect("attach");
        }
        assert!(pair.own("ip -d link show own").contains("xdp"));
        programs.remove().expect("remove");
        assert!(!pair.own("ip -d link show own").contains("xdp"));
        assert!(on_link("own").is_empty());
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn a_link_without_native_xdp_gets_the_generic_mode() {
    in_namespaces(|pair| {
        pair.own("ip link add switch index 78 type bridge && ip link set switch up");
        let mut programs = pair.load();
        assert_eq!(programs.attach(Program::XdpUplink, IfIndex(78)).expect("attach"), Attached::Generic);
        assert!(pair.own("ip -d link show switch").contains("xdpgeneric"), "not in the generic mode");
        drop(programs);
        let mut programs = pair.load();
        assert_eq!(programs.attach(Program::XdpUplink, IfIndex(78)).expect("adopt"), Attached::Adopted);
        assert!(pair.own("ip -d link show switch").contains("xdpgeneric"), "not in the generic mode any more");
        assert_eq!(programs.mode(Program::XdpUplink, IfIndex(78)).expect("the mode"), Attached::Generic);
        programs.remove().expect("remove");
    });
}

#[test]
fn a_driver_that_refuses_the_mtu_leaves_the_generic_mode() {
    in_namespaces(|pair| {
        pair.own("ip link set own mtu 9000");
        pair.peer("ip link set peer mtu 9000");
        let mut programs = pair.load();
        assert_eq!(programs.attach(Program::XdpUplink, LINK).expect("attach"), Attached::Generic);
        programs.remove().expect("remove");
        pair.own("ip link set own mtu 1500");
        pair.peer("ip link set peer mtu 1500");
        let mut programs = pair.load();
        assert_eq!(programs.attach(Program::XdpUplink, LINK).expect("attach"), Attached::Native);
        drop(programs);
        let mut programs = pair.load();
        assert_eq!(programs.attach(Program::XdpUplink, LINK).expect("adopt"), Attached::Adopted);
        assert_eq!(programs.mode(Program::XdpUplink, LINK).expect("the mode"), Attached::Native);
        programs.remove().expect("remove");
    });
}

#[test]
fn foreign_filters_and_their_qdisc_stay() {
    in_namespaces(|pair| {
        // On every kernel: what is there may be older than TCX.
        pair.own(
            "tc qdisc add dev own clsact &&
             tc filter add dev own ingress pref 1 protocol ip u32 match ip protocol 253 0xff classid 1:1 &&
             tc filter add dev own egress pref 77 protocol all u32 match ip protocol 253 0xff classid 1:1",
        );
        let foreign = || {
            ["ingress", "egress"]
                .map(|way| pair.own(&format!("tc filter show dev own {way} | grep -v bpf | grep -v meshd")))
        };
        let before = foreign();
        let mut programs = pair.load();
        programs.attach(Program::UplinkIngress, LINK).expect("attach");
        // A foreign filter of another kind has the place of ours in the other direction.
        let other = programs.attach(Program::UplinkEgress, LINK);
        assert_eq!(other.is_ok(), by_tc() == Attached::Tcx, "{other:?}");
        let counted = passed(&programs);
        pair.ping(2);
        assert!(passed(&programs).packets > counted.packets);
        assert_eq!(foreign(), before);
        programs.remove().expect("remove");
        assert_eq!(foreign(), before);
        assert!(on_link("own").is_empty());
        assert!(pair.own("tc qdisc show dev own").contains("clsact"));
    });
}

#[test]
fn a_foreign_ingress_qdisc_is_left_alone() {
    in_namespaces(|pair| {
        pair.own("tc qdisc add dev own ingress");
        let mut programs = pair.load();
        let outcome = programs.attach(Program::UplinkEgress, LINK);
        // TCX does not need the qdisc.
        assert_eq!(outcome.is_ok(), by_tc() == Attached::Tcx, "{outcome:?}");
        if let Err(error) = outcome {
            let cause = std::error::Error::source(&error).expect("a cause").to_string();
            assert!(cause.contains("hint: tc qdisc del"), "{cause}");
        }
        assert!(pair.own("tc qdisc show dev own").contains("ingress"));
        programs.remove().expect("remove");
    });
}

#[test]
fn a_foreign_program_is_left_alone() {
    in_namespaces(|pair| {
        let mut foreign = Programs::load(&pair.folder.path().join("foreign"), &small()).expect("load");
        foreign.attach(Program::XdpUplink, LINK).expect("attach");
        let link = pair.own("ip -d link show own");

        let mut programs = pair.load();
        let refusal = programs.attach(Program::XdpUplink, LINK).expect_err("the link is taken");
        assert!(matches!(refusal, DatapathError::Attach { link: LINK, .. }), "{refusal:?}");
        assert_eq!(pair.own("ip -d link show own"), link);
        let (before, ours) = (passed(&foreign), passed(&programs));
        pair.ping(4);
        assert_seen(&foreign, before, 4);
        assert_eq!(passed(&programs), ours);
        // In TC there is room for both.
        foreign.attach(Program::UplinkIngress, LINK).expect("attach");
        assert_eq!(programs.attach(Program::UplinkIngress, LINK).expect("attach"), by_tc());
        assert_eq!(on_link("own"), short(&[Program::UplinkIngress; 2]));
        programs.remove().expect("remove ours");
        assert_eq!(on_link("own"), short(&[Program::UplinkIngress]));
        foreign.remove().expect("remove the foreign one");
    });
}

#[test]
fn a_link_that_came_back_with_the_same_index_gets_a_new_attachment() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        programs.attach(Program::XdpUplink, LINK).expect("attach");
        programs.attach(Program::UplinkIngress, LINK).expect("attach");
        pair.own("ip link del own");
        pair.add_links();
        assert_eq!(programs.attach(Program::XdpUplink, LINK).expect("attach again"), Attached::Native);
        assert_eq!(programs.attach(Program::UplinkIngress, LINK).expect("attach again"), by_tc());
        let before = passed(&programs);
        pair.ping(3);
        // In the driver, and again in the stack.
        assert_seen(&programs, before, 6);
        programs.remove().expect("remove");
    });
}

#[test]
fn a_link_that_does_not_exist_is_refused() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        for program in Program::ALL {
            let refusal = programs.attach(program, IfIndex(4_444)).expect_err("no such link");
            let is_told = matches!(refusal, DatapathError::Attach { .. } | DatapathError::NoLink { .. });
            assert!(is_told, "{program:?}: {refusal:?}");
        }
        programs.remove().expect("remove");
        assert!(!pair.pins().exists(), "pins remain");
    });
}

/// Names of the folders below that of pins.
fn generations(pair: &Pair) -> Vec<String> {
    let entries = std::fs::read_dir(pair.pins()).expect("list the pins");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn connection_key(port: u16) -> ConnectionKey<V4> {
    ConnectionKey {
        source: V4::from_octets([192, 0, 2, 2]),
        destination: V4::from_octets([10, 96, 0, 10]),
        source_port: port.to_be(),
        destination_port: 80u16.to_be(),
        protocol: 6,
        reserved: [0; 3],
    }
}

fn connection(used: u32) -> Connection<V4> {
    let tuple = Tuple {
        source: V4::from_octets([192, 0, 2, 2]),
        destination: V4::from_octets([10, 1, 0, 9]),
        source_port: 1_000u16.to_be(),
        destination_port: 8_080u16.to_be(),
    };
    Connection { tuple, to: 5, service: 7, used, began: 3, flags: 0, closed_by: 0, reserved: [0; 2] }
}

const FRONTEND: ServiceKey<V4> =
    ServiceKey { address: V4::from_octets([10, 96, 0, 10]), port: 80u16.to_be(), protocol: 6, scope: 1 };
const SERVICE: Service = Service { id: 7, table: 3, slots: 16_381, members: 40, affinity: 9, count: 2, flags: 0 };
const IDENTITY: Identity = Identity { identity: 300, way: 0, flags: 1, cluster: 2 };
const PREFIX: CidrKey<V4> = CidrKey { length: 16, address: V4::from_octets([10, 1, 0, 0]) };
const RULE: PolicyKey =
    PolicyKey { policy: 3, identity: 300, port: 80u16.to_be(), protocol: 6, direction: policy_direction::INGRESS };
const ALLOWED: Policy = Policy { rule: 12, verdict: policy_verdict::ALLOW, reserved: [0; 3] };
const NEXT_HOP: NextHop = NextHop { link: 77, mtu: 1_500, destination: [2; 6], source: [4; 6], flags: 0 };
const BACKEND: Backend<V4> = Backend {
    address: V4::from_octets([10, 1, 0, 9]),
    next_hop: 2,
    port: 8_080u16.to_be(),
    state: 1,
    local: 0,
    owner: 7,
};

/// What is not a table of its own size but of the node, written where an earlier process would have.
fn fill(programs: &Programs) {
    let maps = &programs.maps;
    maps.v4.connections.put(&connection_key(1_000), &connection(50)).expect("a connection");
    maps.v4.services.put(&FRONTEND, &SERVICE).expect("a service");
    maps.v4.backends.put(&5, &BACKEND).expect("a backend");
    maps.v4.identities.put(&V4::from_octets([10, 1, 0, 9]), &IDENTITY).expect("an identity");
    maps.v4.cidrs.put(&PREFIX, &IDENTITY).expect("a prefix");
    maps.policy.put(&RULE, &ALLOWED).expect("an entry of a policy");
    maps.members.put_all(&[40, 41], &[5, 6]).expect("members");
    maps.next_hops.put(&2, &NEXT_HOP).expect("a next hop");
    maps.put_chunk(3, &[1; MAGLEV_CHUNK]).expect("a chunk");
}

/// Asserts that the maps hold what [`fill`] has put there.
fn assert_filled(programs: &Programs) {
    let maps = &programs.maps;
    let service = maps.v4.services.get(&FRONTEND).expect("read");
    assert_eq!(service, Some(SERVICE));
    assert_eq!(maps.v4.backends.get(&5).expect("read"), Some(BACKEND));
    assert_eq!(maps.v4.identities.get(&V4::from_octets([10, 1, 0, 9])).expect("read"), Some(IDENTITY));
    assert_eq!(maps.v4.cidrs.get(&PREFIX).expect("read"), Some(IDENTITY));
    assert_eq!(maps.policy.get(&RULE).expect("read"), Some(ALLOWED));
    assert_eq!([40, 41].map(|at| maps.members.get(&at).expect("read")), [Some(5), Some(6)]);
    assert_eq!(maps.next_hops.get(&2).expect("read"), Some(NEXT_HOP));
    let mut chunks = Vec::new();
    maps.walk_chunks(|index, chunk| chunks.push((index, chunk.iter().all(|slot| *slot == 1)))).expect("read");
    assert_eq!(chunks, [(3, true)]);
    let found = maps.v4.connections.get(&connection_key(1_000)).expect("read").expect("a connection");
    assert_eq!((found.tuple, found.to, found.used), (connection(50).tuple, 5, 50));
}

#[test]
fn maps_of_another_size_are_taken_over_with_their_attachments() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        for program in TC {
            programs.attach(program, LINK).expect("attach");
        }
        fill(&programs);
        let old = programs;

        // The new process begins while the old programs go on.
        let larger = Sizes { connections: 4_096, services: 512, ..small() };
        let mut programs = Programs::load(&pair.pins(), &larger).expect("load");
        assert_eq!(generations(pair), [format!("v{LAYOUT_VERSION}"), format!("v{LAYOUT_VERSION}-1")]);
        assert_filled(&programs);
        old.maps.v4.connections.put(&connection_key(2_000), &connection(51)).expect("a connection meanwhile");
        old.maps.v4.connections.put(&connection_key(1_000), &connection(52)).expect("a packet meanwhile");
        assert_eq!(programs.attached().expect("list").len(), TC.len());
        for program in TC {
            assert_eq!(programs.attach(program, LINK).expect("adopt"), Attached::Adopted, "{program:?}");
        }
        assert_eq!(on_link("own"), short(&TC), "each is there once");
        programs.settle().expect("settle");
        assert_eq!(generations(pair), [format!("v{LAYOUT_VERSION}-1")]);
        let used =
            |port| programs.maps.v4.connections.get(&connection_key(port)).expect("read").map(|known| known.used);
        assert_eq!((used(1_000), used(2_000)), (Some(52), Some(51)));
        let before = passed(&programs);
        pair.ping(4);
        assert_seen(&programs, before, 16);
        drop((old, programs));

        // Again with these sizes: nothing is to be taken over.
        let mut programs = Programs::load(&pair.pins(), &larger).expect("load");
        assert_eq!(programs.attach(Program::UplinkIngress, LINK).expect("adopt"), Attached::Adopted);
        assert_eq!(generations(pair), [format!("v{LAYOUT_VERSION}-1")]);
        programs.remove().expect("remove");
        assert!(on_link("own").is_empty());
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn old_and_new_programs_share_their_connections() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        programs.attach(Program::UplinkEgress, LINK).expect("attach");
        fill(&programs);
        let old = programs;
        // Connections need no other table, only services do.
        let larger = Sizes { services: 512, ..small() };
        let programs = Programs::load(&pair.pins(), &larger).expect("load");
        assert_filled(&programs);
        let used = |of: &Programs, port| {
            of.maps.v4.connections.get(&connection_key(port)).expect("read").map(|known| known.used)
        };
        old.maps.v4.connections.put(&connection_key(2_000), &connection(51)).expect("by an old program");
        programs.maps.v4.connections.put(&connection_key(3_000), &connection(52)).expect("by a new program");
        assert_eq!((used(&programs, 2_000), used(&old, 3_000)), (Some(51), Some(52)));
        // Killed here: the next process knows that they are shared.
        drop(programs);
        let mut programs = Programs::load(&pair.pins(), &larger).expect("load");
        old.maps.v4.connections.put(&connection_key(2_000), &connection(53)).expect("by an old program");
        programs.attach(Program::UplinkEgress, LINK).expect("adopt");
        programs.settle().expect("settle");
        assert_eq!((used(&programs, 2_000), used(&programs, 3_000)), (Some(53), Some(52)));
        assert_eq!(generations(pair), [format!("v{LAYOUT_VERSION}-1")]);
        programs.remove().expect("remove");
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn a_takeover_that_ended_half_way_is_taken_up_again() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        for program in TC {
            programs.attach(program, LINK).expect("attach");
        }
        fill(&programs);
        drop(programs);
        // Killed before it had taken over anything: as a build leaves it that made the folder and a map.
        let larger = Sizes { connections: 4_096, ..small() };
        std::fs::create_dir(pair.pins().join(format!("v{LAYOUT_VERSION}-1"))).expect("a folder");
        pair.own(&format!(
            "bpftool map create {}/v{LAYOUT_VERSION}-1/MEMBERS type array key 4 value 4 entries {} name MEMBERS",
            pair.pins().display(),
            larger.members
        ));
        // Killed with half of the programs moved.
        let mut programs = Programs::load(&pair.pins(), &larger).expect("load");
        assert_filled(&programs);
        for program in [Program::UplinkIngress, Program::WorkloadEgress] {
            assert_eq!(programs.attach(program, LINK).expect("adopt"), Attached::Adopted);
        }
        programs.maps.v4.connections.put(&connection_key(1_000), &connection(60)).expect("a packet meanwhile");
        programs.maps.members.put(&40, &77).expect("a change of the new process");
        drop(programs);
        assert_eq!(on_link("own"), short(&TC), "none of them is gone");

        let mut programs = Programs::load(&pair.pins(), &larger).expect("load");
        assert_eq!(programs.maps.members.get(&40).expect("read"), Some(77), "the latest tables count");
        for program in TC {
            assert_eq!(programs.attach(program, LINK).expect("adopt"), Attached::Adopted, "{program:?}");
        }
        programs.settle().expect("settle");
        let known = programs.maps.v4.connections.get(&connection_key(1_000)).expect("read").expect("a connection");
        assert_eq!(known.used, 60, "the later packet counts");
        assert_eq!(generations(pair), [format!("v{LAYOUT_VERSION}-1")]);

        // Back to the sizes before, and smaller than what is there.
        let mut programs = Programs::load(&pair.pins(), &Sizes { members: 41, ..small() }).expect("load");
        assert_eq!(programs.maps.members.get(&40).expect("read"), Some(77));
        assert_eq!(programs.attach(Program::UplinkEgress, LINK).expect("adopt"), Attached::Adopted);
        programs.settle().expect("settle");
        programs.remove().expect("remove");
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn what_a_process_left_that_was_refused_is_no_source() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        for program in TC {
            programs.attach(program, LINK).expect("attach");
        }
        fill(&programs);
        drop(programs);
        // A later build made its maps and had its programs refused; this one is put back, and finds those maps of no use.
        let left = pair.pins().join(format!("v{}-1", LAYOUT_VERSION + 1));
        std::fs::create_dir(&left).expect("a folder");
        for (name, key, value, room) in
            [("MEMBERS", 4, 4, 1_000), ("SERVICES4", 8, 24, 1_000), ("BACKENDS4", 4, 16, 1_000)]
        {
            let kind = if name == "SERVICES4" { "hash" } else { "array" };
            pair.own(&format!(
                "bpftool map create {}/{name} type {kind} key {key} value {value} entries {room} name {name}",
                left.display()
            ));
        }
        let existing = Maps::existing(&pair.pins()).expect("who looks at the maps finds those in use");
        assert_eq!(existing.v4.services.get(&FRONTEND).expect("read"), Some(SERVICE));
        let mut programs = pair.load();
        assert_filled(&programs);
        for program in TC {
            assert_eq!(programs.attach(program, LINK).expect("adopt"), Attached::Adopted, "{program:?}");
        }
        programs.settle().expect("settle");
        assert_eq!(generations(pair), [format!("v{LAYOUT_VERSION}-2")]);
        assert_filled(&programs);
        programs.remove().expect("remove");
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn a_folder_elsewhere_is_refused_with_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    let refusal = Programs::load(&folder.path().join("meshd"), &small()).err().expect("not a bpf file system");
    assert!(refusal.to_string().contains("hint: mount -t bpf"), "{refusal}");
    assert!(!folder.path().join("meshd").exists());
}

/// The capabilities that the shipped unit leaves the daemon, as a mask.
fn unit_capabilities() -> u64 {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/systemd/meshd.service");
    let text = std::fs::read_to_string(unit).expect("the unit");
    let line = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("the capabilities");
    // Numbers of <linux/capability.h>.
    let number = |name: &str| match name {
        "CAP_DAC_READ_SEARCH" => 2,
        "CAP_NET_ADMIN" => 12,
        "CAP_NET_RAW" => 13,
        "CAP_SYS_ADMIN" => 21,
        "CAP_SYS_NICE" => 23,
        "CAP_PERFMON" => 38,
        "CAP_BPF" => 39,
        other => panic!("{other} has no number here yet"),
    };
    line.split_whitespace().map(|name| 1_u64 << number(name)).sum()
}

/// Takes every other capability from the calling thread.
fn keep_capabilities(mask: u64) {
    /// `_LINUX_CAPABILITY_VERSION_3`
    const VERSION: u32 = 0x2008_0522;
    let [low, high] = [mask as u32, (mask >> 32) as u32];
    let header = [VERSION, 0];
    // Effective, permitted, inheritable, of the lower half and of the upper one.
    let data = [low, low, 0, high, high, 0];
    // SAFETY: both are as long as the kernel reads them.
    let answer = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn the_capabilities_of_the_unit_are_enough() {
    in_namespaces(|pair| {
        let work = || {
            keep_capabilities(unit_capabilities());
            let slots = [7; meshd_abi::MAGLEV_CHUNK];
            let mut programs = pair.load();
            for program in Program::ALL {
                programs.attach(program, LINK).expect("attach");
            }
            programs.maps.put_chunk(1, &slots).expect("a new chunk");
            programs.maps.put_chunk(1, &slots).expect("a chunk in place");
            drop(programs);

            let mut programs = pair.load();
            for program in Program::ALL {
                assert_eq!(programs.attach(program, LINK).expect("adopt"), Attached::Adopted);
                programs.mode(program, LINK).expect("the mode");
            }
            assert_eq!(programs.attached().expect("list").len(), Program::ALL.len());
            let mut seen = Vec::new();
            programs.maps.walk_chunks(|index, chunk| seen.push((index, chunk[0]))).expect("the chunks");
            assert_eq!(seen, [(1, 7)]);
            programs.maps.put_chunk(1, &slots).expect("a chunk of an earlier process");
            programs.remove().expect("remove");
        };
        thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
