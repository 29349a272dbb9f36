//! The programs on real links: attach, adopt, swap, refuse, detach.
//!
//! Each test runs in a thread with a network and a mount namespace of its own: links, addresses, pins and programs vanish
//! with the thread, whatever happens to the test.

use std::{fs::File, path::PathBuf, process::Command, thread};

use aya::programs::{SchedClassifier, TcAttachType};
use meshd_abi::{Counter, LAYOUT_VERSION, Reason};
use meshd_core::id::IfIndex;
use meshd_datapath::{Attached, DatapathError, Program, Programs, shape::Sizes};
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

/// Names of the TC programs on a link of the calling thread's namespace; the kernel keeps fifteen octets of each.
fn on_link(link: &str) -> Vec<String> {
    let mut names = Vec::new();
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

/// The four programs of TC.
const TC: [Program; 4] =
    [Program::UplinkIngress, Program::UplinkEgress, Program::WorkloadIngress, Program::WorkloadEgress];

#[test]
fn tc_programs_are_attached_by_links_of_their_own_and_adopted() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        for program in TC {
            assert_eq!(programs.attach(program, LINK).expect("attach"), Attached::Tcx, "{program:?}");
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
        }
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
        assert_eq!(programs.attach(Program::UplinkIngress, LINK).expect("attach"), Attached::Tcx);
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
        assert_eq!(programs.attach(Program::UplinkIngress, LINK).expect("attach again"), Attached::Tcx);
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

#[test]
fn a_pinned_map_of_another_shape_is_refused() {
    in_namespaces(|pair| {
        drop(pair.load());
        let pin = pair.pins().join(format!("v{LAYOUT_VERSION}/COUNTERS"));
        std::fs::remove_file(&pin).expect("remove the right one");
        pair.own(&format!(
            "bpftool map create {} type percpu_array key 4 value 8 entries 4 name COUNTERS",
            pin.display()
        ));
        let refusal = Programs::load(&pair.pins(), &small()).err().expect("the shape differs");
        assert!(refusal.to_string().contains("hint: it was made by another build"), "{refusal}");
        let DatapathError::Layout { path, found, expected } = refusal else {
            panic!("{refusal:?}");
        };
        assert_eq!((path, found.value_size, expected.value_size), (pin.clone(), 8, 16));
        std::fs::remove_file(&pin).expect("clean up");
    });
}

#[test]
fn tables_of_another_size_are_refused() {
    in_namespaces(|pair| {
        drop(pair.load());
        let larger = Sizes { services: 512, ..small() };
        let refusal = Programs::load(&pair.pins(), &larger).err().expect("the size differs");
        let DatapathError::Layout { found, expected, .. } = refusal else {
            panic!("{refusal:?}");
        };
        assert_eq!((found.max_entries, expected.max_entries), (256, 512));
        pair.load().remove().expect("remove");
    });
}

#[test]
fn a_folder_elsewhere_is_refused_with_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    let refusal = Programs::load(&folder.path().join("meshd"), &small()).err().expect("not a bpf file system");
    assert!(refusal.to_string().contains("hint: mount -t bpf"), "{refusal}");
    assert!(!folder.path().join("meshd").exists());
}
