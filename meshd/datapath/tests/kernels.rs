//! What `make kernels` adds to the other tests: figures of the verifier, what the kernel's version lets expect, and devices that not every
//! kernel has. All of it is ignored elsewhere.
//!
//! A new test for those kernels is a function here with `#[ignore = "for make kernels"]`. Modules are loaded when something asks for
//! them, so `ip link add type geneve` is all it takes.

use std::{
    fmt::Write as _,
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use meshd_abi::{Connection, ConnectionKey, Link, NextHop, Reason, Settings, Tuple, V4, connection_flags, link_flags};
use meshd_core::id::IfIndex;
use meshd_datapath::{Attached, Features, Program, Programs, SocketProgram, shape::Sizes, ticks};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::utsname::uname,
};

#[path = "kernels/places.rs"]
mod places;

/// Where ip(8) keeps names of namespaces.
const NAMES: &str = "/run/netns";

/// Runs a test in a thread with namespaces of its own and a folder for pins: everything vanishes with the thread.
fn in_namespaces(test: impl FnOnce(PathBuf) + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare");
        let folder = tempfile::tempdir().expect("a folder");
        let nothing: Option<&str> = None;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("make mounts private");
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), nothing).expect("mount a bpf file system");
        // Names of namespaces, too: tests run beside each other.
        fs::create_dir_all(NAMES).expect("the folder of names");
        mount(Some("tmpfs"), NAMES, Some("tmpfs"), MsFlags::empty(), nothing).expect("mount a file system for names");
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

/// A socket in the namespace at the other end.
fn far_socket(at: &'static str) -> UdpSocket {
    let bind = move || {
        setns(fs::File::open("/run/netns/far").expect("the namespace"), CloneFlags::CLONE_NEWNET).expect("enter it");
        let socket = UdpSocket::bind(at).expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket
    };
    thread::spawn(bind).join().expect("it ends")
}

#[test]
#[ignore = "for make kernels"]
fn xdp_of_a_vlan_sends_and_that_of_the_link_below_leaves_its_frames_alone() {
    const NEAR: u32 = 77;
    const VLAN: u32 = 78;
    const ASKS: &str = "198.51.100.2:4000";
    const ASKED: &str = "198.51.100.1:40000";
    const TRANSLATED: &str = "198.51.100.1:50000";
    const GETS: &str = "198.51.100.3:9000";
    in_namespaces(|folder| {
        // What is told to a device about sums and tags is lost on the way to XDP, so nothing is.
        shell(&format!(
            "ip netns add far
             quiet=/proc/sys/net/ipv6/conf/default/disable_ipv6
             echo 1 >$quiet; ip netns exec far sh -c \"echo 1 >$quiet\"
             ip link add near index {NEAR} address 02:00:00:00:00:04 type veth peer name far netns far
             ip netns exec far ethtool -K far tx off
             ip link add link near name near.5 index {VLAN} type vlan id 5
             ip -n far link add link far name far.5 address 02:00:00:00:00:05 type vlan id 5
             for link in near near.5; do ip link set $link up; ip -n far link set far${{link#near}} up; done
             ip addr add 198.51.100.1/24 dev near.5
             ip -n far addr add 198.51.100.2/24 dev far.5; ip -n far addr add 198.51.100.3/24 dev far.5"
        ));
        let mut programs = Programs::load(&folder, &Sizes::default()).expect("load");
        let [asks, asked, translated, gets] =
            [ASKS, ASKED, TRANSLATED, GETS].map(|text| text.parse::<SocketAddr>().expect("an address"));
        let v4 = |place: SocketAddr| match place {
            SocketAddr::V4(place) => V4::from_octets(place.ip().octets()),
            SocketAddr::V6(_) => unreachable!("all are of IPv4"),
        };
        let maps = &programs.maps;
        let settings = Settings { source4: v4(asked), ports: asked.port(), port_count: 1, ..Settings::default() };
        maps.settings.put(&0, &settings).expect("write the settings");
        let key = ConnectionKey {
            source: v4(asks),
            destination: v4(asked),
            source_port: asks.port().to_be(),
            destination_port: asked.port().to_be(),
            protocol: 17,
            reserved: [0; 3],
        };
        let tuple = Tuple {
            source: v4(translated),
            destination: v4(gets),
            source_port: translated.port().to_be(),
            destination_port: gets.port().to_be(),
        };
        let now = ticks();
        let flags = connection_flags::REPLY;
        let connection =
            Connection { tuple, to: 1, service: 0, used: now, began: now, flags, closed_by: 0, reserved: [0; 2] };
        maps.v4.connections.put(&key, &connection).expect("a connection");
        // A VLAN has the address of the link below.
        let own = [2, 0, 0, 0, 0, 4];
        let hop = NextHop { link: VLAN, mtu: 1_500, destination: [2, 0, 0, 0, 0, 5], source: own, flags: 0 };
        maps.next_hops.put(&1, &hop).expect("a next hop");
        for (index, flags) in [(NEAR, link_flags::RETURNS), (VLAN, link_flags::GENERIC)] {
            maps.links.put(&index, &Link { index, address: own, flags }).expect("a link");
        }
        let (asks, gets) = (far_socket(ASKS), far_socket(GETS));
        let arrives = || {
            asks.send_to(b"?", asked).expect("sent");
            gets.recv_from(&mut [0; 8]).is_ok_and(|(_, from)| from == translated)
        };
        let taken = |programs: &Programs| -> u64 {
            let copies = programs.maps.counters.get(Reason::Reply as u32).expect("read the counters");
            copies.iter().map(|counter| counter.packets).sum()
        };
        // Frames with a tag are none of the link below, where the tag is in the frame and where it is beside it.
        programs.attach(Program::XdpUplink, IfIndex(NEAR)).expect("attach");
        for beside in ["on", "off"] {
            shell(&format!("ip netns exec far ethtool -K far txvlan {beside}"));
            assert!(!arrives(), "nobody translates: {beside}");
            assert_eq!(taken(&programs), 0, "{beside}");
        }
        programs.detach(Program::XdpUplink, IfIndex(NEAR)).expect("detach");
        // At the VLAN's own link they have none, and no other program is there.
        assert_eq!(programs.attach(Program::XdpUplink, IfIndex(VLAN)).expect("attach"), Attached::Generic);
        assert!((0..5).any(|_| arrives()), "XDP does not send");
        programs.detach(Program::XdpUplink, IfIndex(VLAN)).expect("detach");
        // The link below would have taken the same packets without a tag. (The veth at the other end does not wait for what it sends.)
        shell(
            "ip addr flush dev near.5; ip addr add 198.51.100.1/24 dev near
             ip -n far addr flush dev far.5
             for last in 2 3; do ip -n far addr add 198.51.100.$last/24 dev far; done",
        );
        programs.maps.next_hops.put(&1, &NextHop { link: NEAR, ..hop }).expect("a next hop");
        let before = taken(&programs);
        assert_ne!(before, 0);
        programs.attach(Program::XdpUplink, IfIndex(NEAR)).expect("attach");
        assert!((0..5).any(|_| arrives() || taken(&programs) > before), "the link below takes nothing");
        programs.remove().expect("remove");
        shell("ip link del near; ip netns del far");
    });
}
