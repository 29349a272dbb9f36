//! What `make kernels` adds to the other tests: figures of the verifier, what the kernel's version lets expect, and devices that not every
//! kernel has. All of it is ignored elsewhere.
//!
//! A new test for those kernels is a function here with `#[ignore = "for make kernels"]`. Modules are loaded when something asks for
//! them, so `ip link add type geneve` is all it takes.

use std::{
    fmt::Write as _, fs, io::ErrorKind, net::TcpStream, path::PathBuf, process::Command, thread, time::Duration,
};

use meshd_abi::{Reason, Settings, V4};
use meshd_core::id::IfIndex;
use meshd_datapath::{Features, Program, Programs, SocketProgram, shape::Sizes, ticks};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::utsname::uname,
};

#[path = "kernels/places.rs"]
mod places;

/// Runs a test in a thread with namespaces of its own and a folder for pins: everything vanishes with the thread.
fn in_namespaces(test: impl FnOnce(PathBuf) + Send + 'static) {
    let body = move || {
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

fn shell(lines: &str) -> String {
    let output = Command::new("sh").args(["-ec", lines]).output().expect("run sh");
    assert!(output.status.success(), "{lines}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn release() -> String {
    uname().expect("uname").release().to_str().expect("text").to_owned()
}

/// Major and minor number of the running kernel.
fn version() -> (u32, u32) {
    let release = release();
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.parse().expect("a number"));
    (numbers.next().expect("major"), numbers.next().expect("minor"))
}

#[test]
#[ignore = "for make kernels"]
fn programs_load_and_their_figures_are_kept() {
    in_namespaces(|folder| {
        let programs = Programs::load(&folder, &Sizes::default()).expect("load");
        let mut rows = Vec::new();
        let packets = Program::ALL.into_iter().map(Program::name);
        for name in packets.chain(SocketProgram::ALL.into_iter().map(SocketProgram::name)) {
            let loaded = programs.object().program(name).expect("it is in the object");
            let info = loaded.info().expect("it is loaded, and the kernel describes it");
            let verified = info.verified_instruction_count().expect("kernel 5.16 and newer tell");
            println!("{} {name}: {verified} instructions verified", release());
            rows.push(format!("    \"{name}\": {verified}"));
        }
        if let Some(results) = std::env::var_os("MESHD_KERNELS_RESULTS") {
            let mut text = String::new();
            let Features { tcx, ipv6_checksum } = programs.features();
            writeln!(
                text,
                "{{\n  \"kernel\": \"{}\",\n  \"tcx\": {tcx},\n  \"ipv6_checksum\": {ipv6_checksum},",
                release()
            )
            .expect("text");
            writeln!(text, "  \"verified_instructions\": {{\n{}\n  }}\n}}", rows.join(",\n")).expect("text");
            let results = PathBuf::from(results);
            fs::write(results.join("programs.json"), text).expect("write the figures");
            let mut places: Vec<_> =
                programs.object().programs().flat_map(|(name, program)| places::left(name, program)).collect();
            places.sort();
            fs::write(results.join("places"), places.concat()).expect("write the places");
        }
        programs.remove().expect("remove");
    });
}

#[test]
#[ignore = "for make kernels"]
fn features_are_those_of_the_version() {
    in_namespaces(|_| {
        let features = Features::probe().expect("probe");
        assert_eq!(features.tcx, version() >= (6, 6), "{features:?}");
        // Stable kernels may have got the flag later, and none has lost it.
        assert!(features.ipv6_checksum || version() < (6, 16), "{features:?}");
    });
}

#[test]
#[ignore = "for make kernels"]
fn tunnel_devices_of_the_kernel_carry_packets() {
    in_namespaces(|_| {
        for (kind, port) in [("geneve", 6081), ("vxlan", 4789)] {
            shell(&format!(
                "ip link set lo up
                 ip netns add far-{kind}
                 ip link add near type veth peer name far netns far-{kind}
                 ip addr add 192.0.2.1/24 dev near; ip link set near up
                 ip -n far-{kind} addr add 192.0.2.2/24 dev far; ip -n far-{kind} link set far up
                 ip link add tunnel type {kind} id 7 remote 192.0.2.2 dstport {port}
                 ip addr add 198.51.100.1/24 dev tunnel; ip link set tunnel up
                 ip -n far-{kind} link add tunnel type {kind} id 7 remote 192.0.2.1 dstport {port}
                 ip -n far-{kind} addr add 198.51.100.2/24 dev tunnel; ip -n far-{kind} link set tunnel up
                 ping -q -n -i 0.1 -c 3 -W 5 198.51.100.2
                 ip link del tunnel; ip link del near; ip netns del far-{kind}"
            ));
        }
    });
}

/// A port that nobody listens at, so that who asks gets a reset.
const CLOSED: u16 = 9;

/// How an attempt to connect to that port ends, from a namespace or from this one.
fn connected_from(namespace: Option<&'static str>, address: [u8; 4]) -> ErrorKind {
    let connect = move || {
        if let Some(name) = namespace {
            let file = fs::File::open(format!("/run/netns/{name}")).expect("the namespace");
            setns(file, CloneFlags::CLONE_NEWNET).expect("enter it");
        }
        TcpStream::connect_timeout(&(address, CLOSED).into(), Duration::from_secs(10))
            .expect_err("nobody listens")
            .kind()
    };
    thread::spawn(connect).join().expect("it ends")
}

#[test]
#[ignore = "for make kernels"]
fn packets_of_a_vlan_are_left_to_its_own_link() {
    in_namespaces(|folder| {
        shell(
            "ip netns add far
             quiet=/proc/sys/net/ipv6/conf/default/disable_ipv6
             echo 1 >$quiet; ip netns exec far sh -c \"echo 1 >$quiet\"
             ip link add near index 77 type veth peer name far netns far
             ip link add link near name near.5 type vlan id 5
             ip -n far link add link far name far.5 type vlan id 5
             for link in near near.5; do ip link set $link up; ip -n far link set far${link#near} up; done
             ip addr add 192.0.2.1/24 dev near; ip -n far addr add 192.0.2.2/24 dev far
             ip addr add 198.51.100.1/24 dev near.5; ip -n far addr add 198.51.100.2/24 dev far.5",
        );
        let mut programs = Programs::load(&folder, &Sizes::default()).expect("load");
        for program in [Program::UplinkEgress, Program::UplinkIngress] {
            programs.attach(program, IfIndex(77)).expect("attach");
        }
        // Something that is done about packets that are ours: resets of what nobody knows are held back, for as long as this test takes.
        programs.maps.hold_resets(ticks().wrapping_add(100_000)).expect("hold resets");
        let held = || -> u64 {
            let copies = programs.maps.counters.get(Reason::ResetHeld as u32).expect("read the counters");
            copies.iter().map(|counter| counter.packets).sum()
        };
        // On the way out only those from ports that the node gives to others, which are those of the port nobody listens at.
        let own = |address: [u8; 4]| {
            let settings =
                Settings { source4: V4::from_octets(address), ports: CLOSED, port_count: 1, ..Settings::default() };
            programs.maps.settings.put(&0, &settings).expect("write the settings");
        };
        own([198, 51, 100, 1]);
        assert_eq!(connected_from(None, [198, 51, 100, 2]), ErrorKind::ConnectionRefused);
        assert_eq!(connected_from(Some("far"), [198, 51, 100, 1]), ErrorKind::ConnectionRefused);
        assert_eq!(held(), 0);
        // Without a tag they are ours, on the way in and on the way out.
        own([192, 0, 2, 1]);
        assert_eq!(connected_from(None, [192, 0, 2, 2]), ErrorKind::TimedOut);
        let on_the_way_in = held();
        assert_ne!(on_the_way_in, 0);
        assert_eq!(connected_from(Some("far"), [192, 0, 2, 1]), ErrorKind::TimedOut);
        assert!(held() > on_the_way_in, "{} and then {}", on_the_way_in, held());
        programs.remove().expect("remove");
        shell("ip link del near; ip netns del far");
    });
}
