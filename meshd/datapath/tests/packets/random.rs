//! Packets of anything, through every program, while the maps hold anything: verdicts the hook knows, nothing longer than its way
//! takes, sums that stay right, and counters that add up.
//!
//! `MESHD_HOSTILE_PACKETS` is how many go through each program, and `MESHD_HOSTILE_SEED` chooses others. `make hostile` sends ten
//! million. The programs of sockets have no test run in the kernel; `tests/sockets.rs` asks them with real sockets.

use std::env;

use meshd_abi::{Counter, NO_TABLE, NextHop, Reason, Scope, Tunnel, hop_flags, settings_flags};
use meshd_datapath::{Program, ticks};

use crate::{
    buckets::in_buckets,
    case::{Machine, Outcome, Verdict, with_machine},
    dsr::{FORMS, noted},
    fast::put_ways,
    frame::{Body, GATEWAY, Mac, OWN, TCP, UDP, between, ping, pong, sctp, syn, tcp, udp, verify},
    hostile::{check, know, least},
    identities,
    scene::{Kind, NETS, Net, PORT, backend, service, settings},
    tunnels::{FAR, TUNNEL_MAC, TUNNEL_MTU, VNI, put_tunnel, tunnelled},
};

/// Packets for each program when nobody asks for more.
const PACKETS: u64 = 20_000;
/// Packets between two changes of what the maps hold.
const BLOCK: u64 = 500;
/// Octets of the longest packet behind the link that the kernel's routes lead to.
const UPLINK_MTU: usize = 1_400;
/// The same of an error that is made here, whatever its way takes.
const ERROR_MAX: usize = 1_280;
/// Neighbors whose way is anything.
const HOPS: std::ops::RangeInclusive<u32> = 1..=5;

/// Programs and the number of each among them, which is its generator's as well.
macro_rules! programs {
    ($($test:ident = $program:ident;)*) => {
        const TESTED: &[Program] = &[$(Program::$program),*];
        $(
            #[test]
            fn $test() {
                anything_through(Program::$program);
            }
        )*
    };
}

programs! {
    packets_of_anything_through_xdp_uplink = XdpUplink;
    packets_of_anything_through_uplink_ingress = UplinkIngress;
    packets_of_anything_through_uplink_egress = UplinkEgress;
    packets_of_anything_through_workload_ingress = WorkloadIngress;
    packets_of_anything_through_workload_egress = WorkloadEgress;
    packets_of_anything_through_tunnel_ingress = TunnelIngress;
    packets_of_anything_through_tunnel_egress = TunnelEgress;
}

#[test]
fn no_program_is_left_out() {
    for program in Program::ALL {
        assert!(TESTED.contains(&program), "{program:?} has no test in this file");
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}")))
}

fn anything_through(program: Program) {
    let (wanted, seed) = (number("MESHD_HOSTILE_PACKETS", PACKETS), number("MESHD_HOSTILE_SEED", 7_606));
    with_machine(move |machine| {
        let mut random = Random::new(seed << 8 | program as u64);
        let (mut sent, mut octets) = (0, 0);
        let mut world = World::default();
        let before = machine.counters();
        while sent < wanted {
            if sent % BLOCK == 0 {
                world = disturb(machine, &mut random);
            }
            let (packet, is_v4) = anything(&mut random);
            if packet.len() < least(program, is_v4) {
                continue;
            }
            let outcome = machine.run(program, &packet);
            // The sums of a packet in another one are not those of the packet around it.
            let is_out = |reason: &Reason| matches!(reason, Reason::DsrReceived | Reason::Decapsulated);
            let is_unpacked = outcome.counted.iter().any(|(reason, ..)| is_out(reason));
            let was_good = !is_unpacked && verify(&packet).is_ok();
            let told = || format!("seed {seed}, packet {sent}, {} on {packet:02x?}: {outcome:02x?}", program.name());
            check(&outcome, program, &packet);
            let is_good = outcome.verdict == Some(Verdict::Drop) || verify(&outcome.out).is_ok();
            assert!(!was_good || is_good, "{}", told());
            let is_framed = outcome.counted.iter().any(|(reason, ..)| *reason == Reason::Encapsulated);
            assert!(is_framed && packet.len() - 14 <= TUNNEL_MTU || !is_framed && world.takes(&outcome), "{}", told());
            sent += 1;
            octets += packet.len() as u64;
        }
        assert_add_up(&before, &machine.counters(), (sent, octets));
        println!("{}: {sent} packets, {octets} octets, seed {seed}", program.name());
    });
}

/// What all counters of packets went up by is what was sent. Those of events and of sockets count no octets.
fn assert_add_up(before: &[Counter], after: &[Counter], sent: (u64, u64)) {
    let mut all = (0, 0);
    for ((before, after), reason) in before.iter().zip(after).zip(Reason::ALL) {
        let (packets, octets) = (after.packets - before.packets, after.bytes - before.bytes);
        if packets != 0 {
            println!("  {}: {packets}", reason.word());
        }
        // Besides a packet's own counter it is also noted when there is no room for its connection.
        all = (all.0 + if octets == 0 { 0 } else { packets }, all.1 + octets);
    }
    assert_eq!(all.1, sent.1, "octets");
    assert!(all.0 >= sent.0, "{} of {} packets are counted", all.0, sent.0);
}

/// What a way takes.
#[derive(Debug, Default)]
struct World {
    ways: Vec<(Mac, usize)>,
}

impl World {
    /// True when what leaves past the stack is no longer than its way takes.
    fn takes(&self, outcome: &Outcome) -> bool {
        if !matches!(outcome.verdict, Some(Verdict::Redirect | Verdict::Back)) {
            return true;
        }
        let (to, from) = (&outcome.out[..6], &outcome.out[6..12]);
        // Out of a frame and to the tunnel's link, which it is shorter for.
        if to == TUNNEL_MAC {
            return true;
        }
        // A far end may be behind several.
        let known = self.ways.iter().filter(|(mac, _)| mac == to).map(|(_, mtu)| *mtu).max();
        // Back where it came from: an error about the packet itself.
        let is_error = to == GATEWAY && from == OWN;
        outcome.out.len() - 14 <= known.unwrap_or(if is_error { ERROR_MAX } else { UPLINK_MTU })
    }
}

/// Makes the maps hold anything: services whose tables and members are anywhere, backends in any state, neighbors of any link and
/// MTU, settings of any kind.
fn disturb(machine: &Machine, random: &mut Random) -> World {
    let scene = machine.scene();
    in_buckets(&scene.maps.v4.connections, |bucket| bucket.fill(0));
    in_buckets(&scene.maps.v6.connections, |bucket| bucket.fill(0));
    scene.reset();
    scene.maps.v4.identities.rebuild().expect("rebuilt");
    know(&scene);
    if let Some(form) = FORMS.get(random.below(4) as usize) {
        scene.put_direct(form.flag());
    }
    let mut changed = scene.maps.settings.get(&0).expect("read").unwrap_or_else(settings);
    changed.flags ^= random.next() & settings_flags::MASQUERADE;
    if random.below(4) == 0 {
        (changed.ports, changed.port_count) = (random.next() as u16, random.next() as u16 >> random.below(16));
    }
    scene.maps.settings.put(&0, &changed).expect("settings");
    let has_tunnel = random.below(2) == 0;
    if has_tunnel {
        put_tunnel(&scene, random.next() & (settings_flags::TUNNEL_GENEVE | settings_flags::TUNNEL_FILTER));
    }
    if random.below(2) == 0 {
        put_ways(&scene, random.below(6));
    }
    for net in NETS {
        disturb_family(machine, net, random);
    }
    let share = [0, 0, 2, 8][random.below(4) as usize];
    in_buckets(&scene.maps.v4.connections, |bucket| scribble(bucket, random, share));
    in_buckets(&scene.maps.v6.connections, |bucket| scribble(bucket, random, share));
    let mut lines = identities::lines(machine);
    for index in (0..lines.len()).filter(|_| share > 0) {
        let mut line = lines.get(&index, 0).expect("a line");
        scribble(&mut line, random, share);
        lines.set(index, line, 0).expect("written");
    }
    scene.maps.hold_resets(ticks().wrapping_add(random.below(3))).expect("written");
    let mut world = World::default();
    for index in HOPS {
        let link = if random.below(4) == 0 { random.next() } else { [1, 20, 21][random.below(3) as usize] };
        let mtu = [1_500, 1_400, 1_280, 576, 68, random.next() as u16][random.below(6) as usize];
        // A far end of the tunnel, or one that is gone.
        let far = if has_tunnel && random.below(3) == 0 { random.below(2) + FAR } else { 0 };
        let flags = if far == 0 { 0 } else { hop_flags::TUNNEL };
        let destination = if far == 0 { [2, 0, 0, 0, 9, index as u8] } else { Tunnel::link_address(far) };
        scene.maps.next_hops.put(&index, &NextHop { link, mtu, destination, source: OWN, flags }).expect("a hop");
        world.ways.push((destination, mtu.into()));
    }
    let states = scene.maps.v4.backends.all().expect("backends");
    for (index, mut value) in states.into_iter().filter(|(index, _)| (1..12).contains(index)) {
        (value.state, value.local) = (random.below(6) as u8, random.below(2) as u8);
        value.next_hop = random.below(7);
        scene.maps.v4.backends.put(&index, &value).expect("a backend");
    }
    world
}

/// Writes anything into some buckets: words of entries that are somebody else's or nobody's, and counts of entries that are nowhere.
fn scribble(bucket: &mut [u64], random: &mut Random, share: u32) {
    if random.below(8) < share {
        bucket.fill_with(|| {
            let [low, high] = [random.next() & random.next(), random.next()];
            u64::from(low) | u64::from(high) << 32
        });
    }
}

fn disturb_family(machine: &Machine, net: Net, random: &mut Random) {
    let scene = machine.scene();
    for index in backend::ALL {
        if random.below(2) == 0 {
            continue;
        }
        let kind = [Kind::Cluster, Kind::NodePort, Kind::LoadBalancer][random.below(3) as usize];
        let mut changed = service(random.next(), random.below(70));
        changed.table = if random.below(2) == 0 { NO_TABLE } else { random.next() };
        changed.slots = random.next() >> random.below(32);
        changed.count = random.below(3) as u16;
        changed.affinity = random.below(2) * 1_000;
        changed.flags = random.next() as u16;
        let scope = if kind == Kind::Cluster { Scope::Internal } else { Scope::External };
        for protocol in [TCP, UDP] {
            scene.put_service(net.frontend(kind, index), protocol, scope, changed);
        }
    }
    let (from, to) = (net.client(), net.frontend(Kind::LoadBalancer, backend::REMOTE));
    let tuple = (net.workload(), net.backend(backend::POD));
    scene.put_connection(TCP, (from, to), tuple, random.next(), random.next() as u8);
}

/// A packet between addresses that mean something, with headers of any kind, any length and some octets changed.
fn anything(random: &mut Random) -> (Vec<u8>, bool) {
    let net = NETS[random.below(2) as usize];
    let some = |random: &mut Random| backend::ALL[random.below(7) as usize];
    let pick = |random: &mut Random| match random.below(10) {
        0 => net.client(),
        1 => net.workload(),
        2 => net.world(),
        3 => net.node(),
        4 => net.far_workload(),
        5 => (net.router_ip(), PORT).into(),
        6 => net.frontend(Kind::Cluster, some(random)),
        7 => net.frontend(Kind::NodePort, some(random)),
        8 => net.frontend(Kind::LoadBalancer, some(random)),
        _ => net.backend(some(random)),
    };
    let (from, to) = (pick(random), pick(random));
    let mut frame = match random.below(7) {
        0 => syn(from, to),
        1 => udp(from, to),
        2 => sctp(from, to),
        3 => ping(from.ip(), to.ip(), PORT),
        4 => pong(from.ip(), to.ip(), PORT),
        5 => {
            let mut quoted = udp(to, from).packet();
            quoted.truncate(quoted.len().min(random.below(80) as usize));
            let kind = [1, 2, 3, 4, 11, 12][random.below(6) as usize];
            between(from.ip(), to.ip(), Body::Error { kind, code: 0, word: 0, quoted })
        }
        _ => tcp(from, to).flags(random.next() as u8),
    };
    if random.below(8) == 0 {
        frame = frame.data(&vec![random.next() as u8; random.below(1_500) as usize]);
    }
    frame.whole = random.below(2) == 0;
    frame.ttl = random.below(4) as u8 * 60;
    if random.below(4) == 0 {
        frame = if net.is_v4() { frame.options(&[1, 1, 1, 0]) } else { frame.extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]) };
    }
    if random.below(32) == 0 {
        frame = frame.tag(&[0x81, 0, 0, random.below(3) as u8]);
    }
    let mut bytes = if random.below(8) == 0 {
        // A frame of a tunnel, with what this node or anybody else may be sent.
        let outer = NETS[random.below(2) as usize];
        let geneve = random.below(2) == 0;
        let vni = if random.below(2) == 0 { VNI } else { random.next() };
        tunnelled(outer, geneve, vni, &frame)
    } else if random.below(8) == 0 {
        // What another node sends here for a service, or somebody who pretends to be one.
        let frontend = net.frontend(Kind::LoadBalancer, some(random));
        let nodes = if random.below(4) == 0 { (from.ip(), to.ip()) } else { (net.peer_ip(), net.node_ip()) };
        let inside = if random.below(4) == 0 { frame } else { syn(net.client(), net.backend(backend::LOCAL)) };
        noted(FORMS[random.below(3) as usize], &inside, frontend, nodes, random.next() as u16)
    } else {
        frame.bytes()
    };
    for _ in 0..random.below(4).saturating_sub(1) {
        let at = 14 + random.below(bytes.len() as u32 - 14) as usize;
        bytes[at] = random.next() as u8;
    }
    if random.below(8) == 0 {
        bytes.truncate(14 + random.below(bytes.len() as u32 - 14) as usize);
    }
    let is_v4 = bytes[12..14] != [0x86, 0xdd];
    (bytes, is_v4)
}

/// The generator of Marsaglia's xorshift: the same packets in every run.
pub(crate) struct Random(u64);

impl Random {
    /// A generator that begins with this number.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    pub(crate) fn below(&mut self, count: u32) -> u32 {
        self.next() % count
    }
}
