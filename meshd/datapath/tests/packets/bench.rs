//! A place to run programs in: namespaces of their own, loaded programs, one node's tables.

use std::{fs::File, path::PathBuf, process::Command, thread};

use meshd_datapath::{Programs, shape::Sizes};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Addresses of a family whose identity may be known.
pub(crate) const IDENTITIES: u32 = 256;

/// Small tables, so that a test can fill them.
pub(crate) fn small() -> Sizes {
    Sizes {
        services: 256,
        backends: 256,
        members: 1_024,
        maglev: 16,
        connections: 1_024,
        recent: 256,
        affinity: 64,
        fragments: 64,
        identities: IDENTITIES,
        prefixes: 64,
        policy: 64,
        ranges: 64,
        sockets: 64,
        next_hops: 64,
        events: 1 << 16,
    }
}

/// Runs a test in a thread with network and mount namespaces of its own and an empty folder for pins on a bpf file system:
/// everything vanishes with the thread, whatever happens to the test.
pub(crate) fn in_namespaces(test: impl FnOnce(PathBuf) + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test loads programs into the kernel and needs root; without it: cargo nextest run --profile unprivileged"
    );
    let body = move || {
        let _outer = File::open("/proc/thread-self/ns/net").expect("open the namespace");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare");
        let folder = tempfile::tempdir().expect("a folder");
        let nothing: Option<&str> = None;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("make mounts private");
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), nothing).expect("mount a bpf file system");
        test(folder.path().join("meshd"));
        nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH).expect("unmount the bpf file system");
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// The link-layer address of the uplink that [`links`] makes.
pub(crate) const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x14];

/// Makes the links that test runs of packets need: the loopback they arrive at, and an uplink with routes and one neighbor.
pub(crate) fn links() {
    shell(
        "ip link set lo address 02:00:00:00:00:01 && ip link set lo up && ip link add uplink index 20 address 02:00:00:00:00:14 mtu 1400 type veth peer name outside mtu 1400
         ip link set uplink up && ip link set outside up
         for key in ipv4.ip_forward ipv4.conf.lo.forwarding ipv6.conf.all.forwarding; do
           echo 1 > /proc/sys/net/$(echo $key | tr . /)
         done
         ip addr add 192.0.2.1/24 dev uplink && ip -6 addr add 2001:db8::1/64 dev uplink nodad
         ip neigh add 192.0.2.254 lladdr 02:00:00:00:00:dd dev uplink nud permanent
         ip neigh add 2001:db8::254 lladdr 02:00:00:00:00:dd dev uplink nud permanent
         for prefix in 10.2.0.0/16 10.3.0.0/16 198.51.100.0/24; do ip route add $prefix via 192.0.2.254; done
         for prefix in fd00:2::/32 fd00:3::/32 2001:db8:100::/48; do ip -6 route add $prefix via 2001:db8::254; done",
    );
}

/// Runs lines of shell in the namespaces of the calling thread and fails the test when one fails.
pub(crate) fn shell(lines: &str) -> String {
    let output = Command::new("sh").args(["-ec", lines]).output().expect("run sh");
    assert!(output.status.success(), "{lines}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Loads the programs with small tables.
pub(crate) fn load(folder: &std::path::Path) -> Programs {
    Programs::load(folder, &small()).unwrap_or_else(|error| {
        let mut text = error.to_string();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!("\n  {error}"));
            cause = error.source();
        }
        panic!("{text}")
    })
}
