//! Packets of anything, through every program, while the maps hold anything: verdicts the hook knows, nothing longer than its way
//! takes, sums that stay right, and counters that add up.
//!
//! `MESHD_HOSTILE_PACKETS` is how many go through each program, and `MESHD_HOSTILE_SEED` chooses others. `make hostile` sends ten
//! million. The programs of sockets have no test run in the kernel; `tests/sockets.rs` asks them with real sockets.

use std::env;

use meshd_abi::{Counter, Reason};
use meshd_datapath::Program;

use crate::{
    case::{Verdict, with_machine},
    disturb::{DATAGRAMS, World, disturb},
    dsr::{FORMS, noted},
    frame::{Body, between, ping, pong, sctp, syn, tcp, udp, verify},
    hostile::{check, least},
    scene::{Kind, NETS, PORT, backend},
    tunnels::{TUNNEL_MTU, VNI, tunnelled},
};

/// Packets for each program when nobody asks for more.
const PACKETS: u64 = 20_000;
/// Packets between two changes of what the maps hold.
const BLOCK: u64 = 500;

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
    if random.below(16) == 0 {
        // Any part of a datagram, of which the first one may be known.
        let length = frame.body_len();
        let offset = random.below(3) as usize * 8;
        let rest = length.saturating_sub(offset);
        frame = frame.piece(random.below(DATAGRAMS), length - rest, rest.min(8 + random.below(64) as usize));
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
