//! The embedded eBPF programs on real links.
//!
//! Each test runs in a thread with a network and a mount namespace of its own: links, addresses, pins and programs vanish
//! with the thread, whatever happens to the test.

use std::{fs::File, path::Path, process::Command, thread};

use meshd::kernel::ebpf::{Attached, Programs, ProgramsError};
use meshd_abi::{Counter, ProtocolClass};
use meshd_core::id::IfIndex;
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
    fn pins(&self) -> std::path::PathBuf {
        self.folder.path().join("meshd")
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
        let peer = self.peer.try_clone().expect("a second descriptor");
        let pid = std::process::id();
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&peer);
        self.own(&format!(
            "ip link add own index {LINK} type veth peer name peer netns /proc/{pid}/fd/{descriptor} && \
             ip addr add 192.0.2.1/24 dev own && ip -6 addr add 2001:db8::1/64 dev own nodad && ip link set own up"
        ));
        self.peer(
            "ip addr add 192.0.2.2/24 dev peer && ip -6 addr add 2001:db8::2/64 dev peer nodad && ip link set peer up",
        );
    }

    /// Sends this many echo requests from the peer and fails when one stays without an answer.
    fn ping(&self, count: u64) {
        self.peer(&format!("ping -q -n -i 0.01 -W 5 -c {count} 192.0.2.1"));
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
    tests::need_root();
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

fn counter(programs: &Programs, class: ProtocolClass) -> Counter {
    programs.counters().expect("read the counters")[&class]
}

fn echoes(count: u64) -> Counter {
    Counter { packets: count, bytes: count * ECHO_FRAME_LEN }
}

#[test]
fn packets_are_counted_across_a_restart_until_the_program_is_detached() {
    in_namespaces(|pair| {
        let mut programs = Programs::load(&pair.pins()).expect("load");
        assert_eq!(programs.attach_count(LINK).expect("attach"), Attached::Native);
        assert_eq!(counter(&programs, ProtocolClass::Ipv4), Counter::default());

        pair.ping(5);
        assert_eq!(counter(&programs, ProtocolClass::Ipv4), echoes(5));
        assert!(counter(&programs, ProtocolClass::Arp).packets >= 1);
        let before = counter(&programs, ProtocolClass::Ipv6).packets;
        pair.peer("ping -6 -q -n -i 0.01 -W 5 -c 3 2001:db8::1");
        assert!(counter(&programs, ProtocolClass::Ipv6).packets >= before + 3);

        // The process is gone: its program stays on the link and goes on counting.
        drop(programs);
        pair.ping(7);

        let mut programs = Programs::load(&pair.pins()).expect("load again");
        assert_eq!(counter(&programs, ProtocolClass::Ipv4), echoes(12));
        assert_eq!(programs.attach_count(LINK).expect("adopt"), Attached::Adopted);
        pair.ping(3);
        assert_eq!(counter(&programs, ProtocolClass::Ipv4), echoes(15));

        assert!(programs.detach_count(LINK).expect("detach"));
        assert!(!programs.detach_count(LINK).expect("nothing to detach"));
        pair.ping(2);
        assert_eq!(counter(&programs, ProtocolClass::Ipv4), echoes(15));
        assert!(!pair.own("ip -d link show own").contains("xdp"));

        programs.remove().expect("remove");
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn removing_everything_detaches() {
    in_namespaces(|pair| {
        let mut programs = Programs::load(&pair.pins()).expect("load");
        programs.attach_count(LINK).expect("attach");
        assert!(pair.own("ip -d link show own").contains("xdp"));
        programs.remove().expect("remove");
        assert!(!pair.own("ip -d link show own").contains("xdp"));
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn a_link_without_native_xdp_gets_the_generic_mode() {
    in_namespaces(|pair| {
        pair.own("ip link add switch index 78 type bridge && ip link set switch up");
        let mut programs = Programs::load(&pair.pins()).expect("load");
        assert_eq!(programs.attach_count(IfIndex(78)).expect("attach"), Attached::Generic);
        assert!(pair.own("ip -d link show switch").contains("xdpgeneric"), "not in the generic mode");
        programs.remove().expect("remove");
    });
}

#[test]
fn a_foreign_program_is_left_alone() {
    in_namespaces(|pair| {
        let mut foreign = Programs::load(&pair.folder.path().join("foreign")).expect("load");
        foreign.attach_count(LINK).expect("attach");
        let before = pair.own("ip -d link show own");

        let mut programs = Programs::load(&pair.pins()).expect("load");
        let refusal = programs.attach_count(LINK).expect_err("the link is taken");
        assert!(matches!(refusal, ProgramsError::Program { link: LINK, .. }), "{refusal:?}");
        assert_eq!(pair.own("ip -d link show own"), before);
        pair.ping(4);
        assert_eq!(counter(&foreign, ProtocolClass::Ipv4), echoes(4));
        assert_eq!(counter(&programs, ProtocolClass::Ipv4), Counter::default());
        programs.remove().expect("remove ours");
        foreign.remove().expect("remove the foreign one");
    });
}

#[test]
fn a_link_that_came_back_with_the_same_index_gets_a_new_attachment() {
    in_namespaces(|pair| {
        let mut programs = Programs::load(&pair.pins()).expect("load");
        programs.attach_count(LINK).expect("attach");
        pair.own("ip link del own");
        pair.add_links();
        assert_eq!(programs.attach_count(LINK).expect("attach again"), Attached::Native);
        pair.ping(3);
        assert_eq!(counter(&programs, ProtocolClass::Ipv4), echoes(3));
        programs.remove().expect("remove");
    });
}

#[test]
fn a_pinned_map_of_another_shape_is_refused() {
    in_namespaces(|pair| {
        Programs::load(&pair.pins()).expect("load");
        let pin = pair.pins().join(format!("v{}/packets", meshd_abi::LAYOUT_VERSION));
        std::fs::remove_file(&pin).expect("remove the right one");
        pair.own(&format!(
            "bpftool map create {} type percpu_array key 4 value 8 entries 4 name packets",
            pin.display()
        ));
        let refusal = Programs::load(&pair.pins()).err().expect("the shape differs");
        let ProgramsError::Layout { path, found, expected } = refusal else {
            panic!("{refusal:?}");
        };
        assert_eq!((path, found.value_size, expected.value_size), (pin.clone(), 8, 16));
        std::fs::remove_file(&pin).expect("clean up");
    });
}

#[test]
fn a_folder_elsewhere_is_refused_with_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    let refusal = Programs::load(&folder.path().join("meshd")).err().expect("not a bpf file system");
    assert!(refusal.to_string().contains("hint: mount -t bpf"), "{refusal}");
    assert!(!Path::new(&folder.path().join("meshd")).exists());
}
