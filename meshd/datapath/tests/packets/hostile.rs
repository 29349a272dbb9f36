//! Packets that are cut short at every octet, and packets of anything: verdicts the hook knows, packets that pass as they came,
//! counters that add up.

use meshd_abi::{Reason, Scope, connection_flags, settings_flags};
use meshd_datapath::Program;

use crate::{
    case::{Machine, Outcome, Verdict, with_machine},
    frame::{Body, Frame, TCP, UDP, between, ping, syn, tcp, udp, verify},
    scene::{Kind, NET4, NET6, NETS, Net, PORT, Scene, backend, service},
};

/// Octets of a header that the kernel asks for before it makes an skb of a test run.
const fn least(program: Program, is_v4: bool) -> usize {
    match program {
        Program::XdpUplink => 14,
        _ if is_v4 => 14 + 20,
        _ => 14 + 40,
    }
}

/// Octets of what may be put around a packet: Geneve over IPv6.
const LONGEST_NOTE: usize = 94;

/// What must hold for any packet.
fn check(outcome: &Outcome, program: Program, packet: &[u8]) {
    let told = || format!("{} on {packet:02x?}: {outcome:02x?}", program.name());
    let verdict = outcome.verdict.unwrap_or_else(|| panic!("{}", told()));
    // One counter for the packet; a lost event or a connection that was not noted comes besides, without octets.
    let counted: Vec<_> = outcome.counted.iter().filter(|(_, _, bytes)| *bytes != 0).collect();
    assert!(counted.len() <= 1, "{}", told());
    for (reason, packets, bytes) in &counted {
        assert_eq!((*packets, *bytes), (1, packet.len() as u64), "{}", told());
        // Who sent what is too long is told by the packet itself.
        let is_told = *reason == Reason::TooBig && verdict == Verdict::Redirect;
        assert_eq!(reason.is_drop() && !is_told, verdict == Verdict::Drop, "{}", told());
    }
    // A note comes or goes with packets of services only.
    let may_differ = |reason| {
        matches!(reason, Reason::NewConnection | Reason::ToBackend | Reason::DsrReceived | Reason::TooBig)
            || matches!(reason, Reason::RewriteFailed)
    };
    let is_noted = counted.iter().any(|(reason, ..)| may_differ(*reason));
    assert!(outcome.out.len() == packet.len() || is_noted, "{}", told());
    assert!(outcome.out.len() <= packet.len() + LONGEST_NOTE, "{}", told());
    let is_unclaimed = counted
        .iter()
        .all(|(reason, _, _)| matches!(reason, Reason::Passed | Reason::Malformed | Reason::FragmentUnknown));
    if is_unclaimed {
        assert!(verdict == Verdict::Pass, "{}", told());
        assert_eq!(outcome.out, packet, "{}", told());
    }
}

/// The packets that are cut: each is one that programs claim when it is whole.
fn claimed() -> Vec<(&'static str, bool, Frame)> {
    let mut all = Vec::new();
    let balancer = |net: Net| net.frontend(Kind::LoadBalancer, backend::LOCAL);
    all.push(("v4 tcp", true, tcp(NET4.client(), balancer(NET4))));
    let extended = tcp(NET6.client(), balancer(NET6)).extension(0, &[0, 0, 5, 2, 0, 0, 1, 0]).extension(43, &[0; 8]);
    all.push(("v6 tcp, extension headers", false, extended));
    all.push(("v4 fragment", true, udp(NET4.client(), balancer(NET4)).data(&[1; 40]).piece(5, 0, 24)));
    all.push(("v4 later fragment", true, udp(NET4.client(), balancer(NET4)).data(&[1; 40]).piece(5, 24, 24)));
    all.push(("v6 fragment", false, udp(NET6.client(), balancer(NET6)).data(&[1; 40]).piece(5, 0, 24)));
    all.push(("v4 options", true, tcp(NET4.client(), balancer(NET4)).options(&[1, 1, 1, 0])));
    for (net, echo, error) in [(NET4, "v4 echo", "v4 error"), (NET6, "v6 echo", "v6 error")] {
        all.push((echo, net.is_v4(), ping(net.workload_ip(), net.world().ip(), 7)));
        let quoted = udp(net.node(), net.world()).packet();
        let (kind, code) = if net.is_v4() { (3, 4) } else { (2, 0) };
        let body = Body::Error { kind, code, word: 1_280, quoted };
        all.push((error, net.is_v4(), between(net.router_ip(), net.node_ip(), body)));
    }
    all
}

#[test]
fn packets_cut_short_at_every_octet_do_no_harm() {
    with_machine(|machine| {
        for (name, is_v4, frame) in claimed() {
            let whole = frame.bytes();
            for program in Program::ALL {
                for length in least(program, is_v4)..=whole.len() {
                    machine.scene().reset();
                    know(&machine.scene());
                    let packet = &whole[..length];
                    let outcome = machine.run(program, packet);
                    check(&outcome, program, packet);
                    let headers = whole.len() - data_of(&frame);
                    // Nothing is claimed before all of its headers are there.
                    if length < headers && !matches!(frame.body, Body::Error { .. }) {
                        assert_eq!(outcome.out, packet, "{name}, {} of {length} octets", program.name());
                        assert_eq!(outcome.verdict, Some(Verdict::Pass), "{name}");
                    }
                }
            }
        }
    });
}

/// Octets behind the last header of a frame.
fn data_of(frame: &Frame) -> usize {
    if let Some(piece) = frame.piece {
        return if piece.offset == 0 { piece.length - 8 } else { piece.length };
    }
    match &frame.body {
        Body::Tcp { data, .. } | Body::Udp { data, .. } | Body::Sctp { data, .. } | Body::Echo { data, .. } => {
            data.len()
        }
        Body::Error { quoted, .. } => quoted.len(),
        Body::Raw { .. } => 0,
    }
}

/// A masqueraded connection of each family, so that an error has something to be about.
fn know(scene: &Scene<'_>) {
    for net in NETS {
        let flags = connection_flags::REPLY | connection_flags::MASQUERADE | connection_flags::LOCAL;
        for protocol in [TCP, UDP] {
            scene.put_connection(protocol, (net.world(), net.node()), (net.world(), net.workload()), 0, flags);
            let flags = connection_flags::MASQUERADE | connection_flags::SNAT;
            scene.put_connection(protocol, (net.workload(), net.world()), (net.node(), net.world()), 0, flags);
        }
    }
}

#[test]
fn a_changed_octet_anywhere_does_no_harm() {
    with_machine(|machine| {
        let mut random = Random(0x1234_5678);
        for (_, is_v4, frame) in claimed() {
            let whole = frame.bytes();
            for program in Program::ALL {
                machine.scene().reset();
                know(&machine.scene());
                // The Ethernet type decides what the kernel asks of an skb.
                for at in 14..whole.len() {
                    for value in [0, 0xff, whole[at] ^ (1 << random.below(8)), random.below(256) as u8] {
                        let mut packet = whole.clone();
                        packet[at] = value;
                        if packet.len() >= least(program, is_v4) {
                            check(&machine.run(program, &packet), program, &packet);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn packets_of_anything_do_no_harm() {
    with_machine(|machine| {
        let mut random = Random(7_606);
        machine.scene().reset();
        for round in 0..40_000 {
            if round % 500 == 0 {
                machine.scene().reset();
                know(&machine.scene());
                let forms = [0, settings_flags::DSR_IPIP, settings_flags::DSR_GENEVE];
                if let Some(form) = forms.get(random.below(4) as usize) {
                    machine.scene().put_direct(*form);
                }
                disturb(machine, &mut random);
            }
            let (packet, is_v4) = anything(&mut random);
            let program = Program::ALL[random.below(5) as usize];
            if packet.len() >= least(program, is_v4) {
                let was_good = verify(&packet).is_ok();
                let outcome = machine.run(program, &packet);
                check(&outcome, program, &packet);
                let is_good = outcome.verdict == Some(Verdict::Drop) || verify(&outcome.out).is_ok();
                assert!(!was_good || is_good, "{} on {packet:02x?}: {outcome:02x?}", program.name());
            }
        }
    });
}

/// Services whose tables and members are anywhere, and backends in any state.
fn disturb(machine: &Machine, random: &mut Random) {
    let scene = machine.scene();
    for net in NETS {
        for index in backend::ALL {
            let kind = [Kind::Cluster, Kind::NodePort, Kind::LoadBalancer][random.below(3) as usize];
            let mut changed = service(random.next(), random.below(70));
            changed.table = if random.below(2) == 0 { meshd_abi::NO_TABLE } else { random.next() };
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
    for (index, value) in [(2, random.next()), (3, random.next())] {
        let mut hop = scene.maps.next_hops.get(&index).expect("read").expect("an element");
        hop.link = value;
        hop.mtu = random.next() as u16;
        scene.maps.next_hops.put(&index, &hop).expect("a next hop");
    }
    let states = scene.maps.v4.backends.all().expect("backends");
    for (index, mut value) in states.into_iter().filter(|(index, _)| (1..12).contains(index)) {
        (value.state, value.local) = (random.below(6) as u8, random.below(2) as u8);
        value.next_hop = random.below(7);
        scene.maps.v4.backends.put(&index, &value).expect("a backend");
    }
}

/// A packet between addresses that mean something, with headers of any kind and some octets changed.
fn anything(random: &mut Random) -> (Vec<u8>, bool) {
    let net = NETS[random.below(2) as usize];
    let addresses = [
        net.client(),
        net.workload(),
        net.world(),
        net.node(),
        net.far_workload(),
        (net.router_ip(), PORT).into(),
        net.frontend(Kind::Cluster, backend::ALL[random.below(7) as usize]),
        net.frontend(Kind::NodePort, backend::ALL[random.below(7) as usize]),
        net.frontend(Kind::LoadBalancer, backend::ALL[random.below(7) as usize]),
        net.backend(backend::ALL[random.below(7) as usize]),
    ];
    let mut pick = || addresses[random.below(addresses.len() as u32) as usize];
    let (from, to) = (pick(), pick());
    let mut frame = match random.below(7) {
        0 => syn(from, to),
        1 => udp(from, to),
        2 => crate::frame::sctp(from, to),
        3 => ping(from.ip(), to.ip(), PORT),
        4 => crate::frame::pong(from.ip(), to.ip(), PORT),
        5 => {
            let mut quoted = udp(to, from).packet();
            quoted.truncate(quoted.len().min(random.below(80) as usize));
            let kind = [1, 2, 3, 4, 11, 12][random.below(6) as usize];
            between(from.ip(), to.ip(), Body::Error { kind, code: 0, word: 0, quoted })
        }
        _ => tcp(from, to).flags(random.next() as u8),
    };
    frame.ttl = random.below(4) as u8 * 60;
    if random.below(4) == 0 {
        frame = if net.is_v4() { frame.options(&[1, 1, 1, 0]) } else { frame.extension(60, &[0, 0, 1, 4, 0, 0, 0, 0]) };
    }
    let mut bytes = frame.bytes();
    for _ in 0..random.below(4).saturating_sub(1) {
        let at = 14 + random.below(bytes.len() as u32 - 14) as usize;
        bytes[at] = random.next() as u8;
    }
    if random.below(8) == 0 {
        bytes.truncate(14 + random.below(bytes.len() as u32 - 14) as usize);
    }
    (bytes, net.is_v4())
}

/// The generator of Marsaglia's xorshift: the same packets in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    fn below(&mut self, count: u32) -> u32 {
        self.next() % count
    }
}

#[test]
fn the_tables_have_two_hundred_cases_and_more() {
    use crate::{choices, connections, dsr, fragments, headers, hops, icmp, masquerade, services};
    let tables = [
        choices::affinity,
        choices::by_hash,
        choices::by_source,
        choices::drained,
        choices::lacking,
        connections::exhausted,
        connections::leaving,
        connections::lives,
        connections::same_tuple,
        dsr::not_sent,
        dsr::received,
        dsr::refused,
        dsr::sent,
        dsr::too_long,
        dsr::unusual,
        fragments::followed,
        fragments::unknown,
        headers::contradictions,
        headers::for_nobody,
        headers::not_read,
        headers::unusual,
        hops::by_kernel,
        hops::hop_limits,
        hops::narrow,
        icmp::forms,
        icmp::masqueraded,
        icmp::not_ours,
        icmp::services,
        icmp::workloads,
        masquerade::answers,
        masquerade::excluded,
        masquerade::exhausted,
        masquerade::sums,
        masquerade::translated,
        services::closing,
        services::from_outside,
        services::from_workloads,
        services::hairpin,
        services::misses,
        services::without_backends,
        services::without_source,
    ];
    let cases: usize = tables.iter().map(|table| table().len()).sum();
    println!("{cases} cases");
    assert!(cases >= 200, "{cases}");
}
