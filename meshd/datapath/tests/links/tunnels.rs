//! The tunnel between a node with the programs and one with the kernel's device alone: each reads what the other writes, in both
//! families inside and outside, with segments of many packets, and whichever of a node's two does it.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
};

use meshd_abi::{Identity, NextHop, Reason, Settings, Tunnel, V4, V6, identity_flags, settings_flags};
use meshd_core::id::IfIndex;
use meshd_datapath::{Program, Programs};
use nix::sched::{CloneFlags, setns};

use super::{LINK, Pair, in_namespaces};

/// The tunnel's link.
const TUNNEL: IfIndex = IfIndex(80);
const TUNNEL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
/// The identity of the workload of the node with the programs.
const IDENTITY: u32 = 70_000;
const FAR: u32 = 5;
/// Octets that a connection carries: many segments of the largest size.
const AMOUNT: usize = 8 << 20;

const PROGRAMS: [(Program, IfIndex); 4] = [
    (Program::UplinkEgress, LINK),
    (Program::UplinkIngress, LINK),
    (Program::TunnelEgress, TUNNEL),
    (Program::TunnelIngress, TUNNEL),
];

/// Ends of one family: own and the peer's.
type Ends = (IpAddr, IpAddr);
const NODES4: Ends = (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)));
const NODES6: Ends = (node6(1), node6(2));
const PODS4: Ends = (IpAddr::V4(Ipv4Addr::new(10, 1, 0, 9)), IpAddr::V4(Ipv4Addr::new(10, 2, 0, 9)));
const PODS6: Ends = (pod6(1), pod6(2));

const fn node6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last))
}

const fn pod6(node: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, node, 0, 0, 0, 0, 0, 9))
}

fn mapped(ip: IpAddr) -> V6 {
    match ip {
        IpAddr::V4(ip) => V6::mapped(V4::from_octets(ip.octets())),
        IpAddr::V6(ip) => V6::from_octets(ip.octets()),
    }
}

/// What is around packets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Vxlan,
    Geneve,
}

impl Protocol {
    const fn port(self) -> u16 {
        match self {
            Self::Vxlan => 8472,
            Self::Geneve => 6081,
        }
    }

    const fn flag(self) -> u32 {
        match self {
            Self::Vxlan => 0,
            Self::Geneve => settings_flags::TUNNEL_GENEVE,
        }
    }
}

/// Makes both nodes: a workload is an address of the loopback, and routes lead to the other one's through the tunnel.
fn add_tunnel(pair: &Pair, outer: Ends, protocol: Protocol) {
    let port = protocol.port();
    let make = |link: &str,
                index: u32,
                (name, device): (&str, &str),
                last: u8,
                own: Ends,
                nodes: Ends,
                pods: [Ends; 2]| {
        let (kind, ttl) = if nodes.1.is_ipv4() { ("ip", "ttl") } else { ("ip6", "hoplimit") };
        let mut lines = format!(
            "set -e; ip link set lo up; cd /proc/sys/net
             for key in ipv4/conf/all/rp_filter ipv4/conf/default/rp_filter ipv6/conf/default/disable_ipv6 ipv6/conf/{link}/disable_ipv6 ipv6/conf/lo/disable_ipv6; do echo 0 >$key; done
             echo 1 >ipv4/ip_forward; echo 1 >ipv6/conf/all/forwarding
             ip -6 addr add {}/64 dev {link} nodad
             ip link add {name} index {index} address 02:00:00:00:00:{last:02x} mtu 1430 type {device} external dstport {port} udp6zerocsumrx udp6zerocsumtx
             ip link set {name} arp off up; echo 0 >ipv4/conf/{name}/rp_filter
             nft 'table netdev taken {{ chain arrivals {{ type filter hook ingress device \"{name}\" priority 0; policy accept; meta pkttype set host
             }}
             }}'\n",
            own.0
        );
        for (mine, others) in pods {
            // An address that may still turn out to be another host's is no source.
            let (prefix, usable) = if others.is_ipv4() { (32, "") } else { (128, " nodad") };
            lines += &format!(
                "ip addr add {mine}/{prefix} dev lo{usable}\nip route add {others}/{prefix} encap {kind} id 2 dst {} {ttl} 64 dev {name} src {mine}\n",
                nodes.1
            );
        }
        lines
    };
    let device = if protocol == Protocol::Vxlan { "vxlan" } else { "geneve" };
    let swap = |(own, peer): Ends| (peer, own);
    pair.own(&make("own", TUNNEL.0, ("meshd_vxlan", "vxlan"), 0x77, NODES6, outer, [PODS4, PODS6]));
    pair.peer(&make("peer", 81, ("device", device), 0x78, swap(NODES6), swap(outer), [swap(PODS4), swap(PODS6)]));
    // A look at the numbers in the headers.
    pair.peer(&format!(
        "nft -f - <<'END'
table inet seen {{
chain numbers {{ type filter hook prerouting priority -300; policy accept; udp dport {port} @th,96,24 {IDENTITY} counter comment \"named\"; udp dport {port} @th,96,24 != {IDENTITY} counter comment \"other\"; }}
}}
END"
    ));
}

/// Packets with the workload's identity in their header, and with another number, that the peer has seen.
fn numbers(pair: &Pair) -> [u64; 2] {
    let listed = pair.peer("nft list table inet seen");
    ["named", "other"].map(|word| {
        let line = listed.lines().find(|line| line.contains(word)).expect("the rule");
        let packets = line.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
        packets.expect("a counter").parse().expect("a number")
    })
}

/// Tells the programs what a daemon would.
fn fill(programs: &Programs, outer: Ends, next_hop: u32, protocol: Protocol) {
    let maps = &programs.maps;
    let (IpAddr::V4(own4), IpAddr::V6(own6)) = (NODES4.0, NODES6.0) else { unreachable!("constants") };
    let settings = Settings {
        source4: V4::from_octets(own4.octets()),
        source6: V6::from_octets(own6.octets()),
        flags: settings_flags::TUNNEL_FILTER | protocol.flag(),
        tunnel_link: TUNNEL.0,
        tunnel_mac: TUNNEL_MAC,
        tunnel_port: protocol.port(),
        tunnel_vni: 2,
        ..Settings::default()
    };
    maps.settings.put(&0, &settings).expect("settings");
    let identity = |identity, flags| Identity { identity, way: 0, flags, cluster: 1 };
    for (ip, value) in [
        (NODES4.0, identity(1, identity_flags::NODE | identity_flags::THIS_NODE)),
        (NODES6.0, identity(1, identity_flags::NODE | identity_flags::THIS_NODE)),
        (NODES4.1, identity(6, identity_flags::NODE)),
        (NODES6.1, identity(6, identity_flags::NODE)),
        (PODS4.0, identity(IDENTITY, identity_flags::LOCAL)),
        (PODS6.0, identity(IDENTITY, identity_flags::LOCAL)),
    ] {
        match ip {
            IpAddr::V4(ip) => maps.v4.identities.put(&V4::from_octets(ip.octets()), &value),
            IpAddr::V6(ip) => maps.v6.identities.put(&V6::from_octets(ip.octets()), &value),
        }
        .expect("an identity");
    }
    let hop =
        NextHop { link: LINK.0, mtu: 1_500, destination: [2, 0, 0, 0, 0, 2], source: [2, 0, 0, 0, 0, 1], flags: 0 };
    maps.next_hops.put(&1, &hop).expect("a next hop");
    let tunnel = Tunnel { address: mapped(outer.1), next_hop, mtu: 1_430, reserved: 0 };
    maps.tunnels.put(&FAR, &tunnel).expect("a tunnel");
    maps.far_ends.put(&mapped(outer.1), &FAR).expect("a far end");
}

/// Can a program take a packet of one family out of a frame of the other? Kernels since 6.3 can.
fn can_change_family() -> bool {
    let release = Command::new("uname").arg("-r").output().expect("uname");
    !String::from_utf8_lossy(&release.stdout).starts_with("6.1.")
}

fn count(programs: &Programs, reason: Reason) -> u64 {
    let copies = programs.maps.counters.get(reason as u32).expect("read the counters");
    copies.iter().map(|counter| counter.packets).sum()
}

/// Carries octets from one workload to the other and back.
fn carry(pair: &Pair, (own, peer): Ends) {
    let namespace = pair.peer.try_clone().expect("a descriptor");
    let (ready, is_ready) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).expect("enter the peer's namespace");
        let listener = TcpListener::bind(SocketAddr::new(peer, 7_000)).expect("listen");
        ready.send(()).expect("somebody waits");
        let (mut stream, client) = listener.accept().expect("a client");
        assert_eq!(client.ip(), own);
        let mut octets = vec![0; AMOUNT];
        stream.read_exact(&mut octets).expect("all of it");
        stream.write_all(&octets).expect("all of it");
    });
    is_ready.recv().expect("it listens");
    let mut stream = TcpStream::connect((peer, 7_000)).expect("connect");
    let octets: Vec<u8> = (0..AMOUNT).map(|at| (at / 251) as u8).collect();
    let (mut back, sent) = (stream.try_clone().expect("a descriptor"), octets.clone());
    let sender = thread::spawn(move || stream.write_all(&sent).expect("all of it"));
    let mut echoed = vec![0; AMOUNT];
    back.read_exact(&mut echoed).expect("all of it");
    sender.join().expect("sent");
    server.join().expect("served");
    assert!(octets == echoed, "the octets that came back are others");
}

fn ping(pair: &Pair, count: u64) {
    for (own, peer) in [PODS4, PODS6] {
        pair.own(&format!("ping -q -n -i 0.01 -W 5 -c {count} -I {own} {peer}"));
        pair.peer(&format!("ping -q -n -i 0.01 -W 5 -c {count} -I {peer} {own}"));
    }
}

/// Pings and connections through the tunnel, with the programs on some of the links.
fn all_ways(outer: Ends, next_hop: u32) {
    in_namespaces(move |pair| {
        add_tunnel(pair, outer, Protocol::Vxlan);
        let mut programs = pair.load();
        fill(&programs, outer, next_hop, Protocol::Vxlan);
        // The devices alone.
        ping(pair, 2);
        let [named, before] = numbers(pair);
        assert_eq!(named, 0);
        for (program, link) in PROGRAMS {
            programs.attach(program, link).expect("attach");
        }
        ping(pair, 5);
        let [named, other] = numbers(pair);
        assert_eq!((named, other), (20, before), "each echo and each answer says who sends");
        // What programs cannot take out, the device does.
        let taken = if can_change_family() { 20 } else { 10 };
        assert_eq!((count(&programs, Reason::Encapsulated), count(&programs, Reason::Decapsulated)), (20, taken));
        assert_eq!(count(&programs, Reason::TunnelRefused), 0);
        for pods in [PODS4, PODS6] {
            carry(pair, pods);
        }
        assert_eq!(numbers(pair)[1], before, "nothing is left to the device");
        // The device writes, and the programs read.
        programs.detach(Program::TunnelEgress, TUNNEL).expect("detach");
        let [_, before] = numbers(pair);
        ping(pair, 5);
        carry(pair, PODS4);
        assert!(numbers(pair)[1] >= before + 20);
        // And the other way round.
        programs.attach(Program::TunnelEgress, TUNNEL).expect("attach");
        programs.detach(Program::UplinkIngress, LINK).expect("detach");
        let decapsulated = count(&programs, Reason::Decapsulated);
        ping(pair, 5);
        carry(pair, PODS6);
        assert_eq!(count(&programs, Reason::Decapsulated), decapsulated);
        programs.remove().expect("remove");
    });
}

#[test]
fn a_tunnel_between_ipv4_nodes() {
    all_ways(NODES4, 1);
}

#[test]
fn a_tunnel_between_ipv6_nodes() {
    all_ways(NODES6, 1);
}

#[test]
fn a_tunnel_whose_next_hop_the_kernel_knows() {
    all_ways(NODES4, 0);
}

/// The kernel that tests run on may have no Geneve.
#[test]
#[ignore = "for make kernels"]
fn geneve_is_understood_by_the_kernels_device_and_its_frames_by_programs() {
    in_namespaces(move |pair| {
        add_tunnel(pair, NODES4, Protocol::Geneve);
        let mut programs = pair.load();
        fill(&programs, NODES4, 1, Protocol::Geneve);
        for (program, link) in PROGRAMS {
            programs.attach(program, link).expect("attach");
        }
        let families: &[Ends] = if can_change_family() { &[PODS4, PODS6] } else { &[PODS4] };
        for pods in families {
            pair.own(&format!("ping -q -n -i 0.01 -W 5 -c 5 -I {} {}", pods.0, pods.1));
            pair.peer(&format!("ping -q -n -i 0.01 -W 5 -c 5 -I {} {}", pods.1, pods.0));
            carry(pair, *pods);
        }
        let [named, other] = numbers(pair);
        assert!(named >= 10 && other == 0, "{named} and {other}");
        assert!(count(&programs, Reason::Decapsulated) >= 10);
        programs.remove().expect("remove");
    });
}

#[test]
fn frames_of_strangers_end_at_the_uplink() {
    in_namespaces(|pair| {
        add_tunnel(pair, NODES4, Protocol::Vxlan);
        let mut programs = pair.load();
        fill(&programs, NODES4, 1, Protocol::Vxlan);
        for (program, link) in PROGRAMS {
            programs.attach(program, link).expect("attach");
        }
        ping(pair, 1);
        let IpAddr::V4(peer) = NODES4.1 else { unreachable!("a constant") };
        programs.maps.v4.identities.remove(&V4::from_octets(peer.octets())).expect("remove");
        let before = count(&programs, Reason::TunnelRefused);
        pair.peer(&format!("! ping -q -n -i 0.01 -W 1 -c 3 -I {} {}", PODS4.1, PODS4.0));
        assert_eq!(count(&programs, Reason::TunnelRefused), before + 3);
        programs.remove().expect("remove");
    });
}
