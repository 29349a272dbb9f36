//! Packets that are cut short at every octet, and packets with octets changed: verdicts the hook knows, packets that pass as they
//! came, counters that add up. Packets of anything are in [`crate::random`].

use meshd_abi::{Reason, connection_flags};
use meshd_datapath::Program;

use crate::{
    case::{Outcome, Verdict, with_machine},
    frame::{Body, Frame, TCP, UDP, between, ping, tcp, udp},
    random::Random,
    scene::{Kind, NET4, NET6, NETS, Net, Scene, backend},
};

/// Octets of a header that the kernel asks for before it makes an skb of a test run.
pub(crate) const fn least(program: Program, is_v4: bool) -> usize {
    match program {
        Program::XdpUplink => 14,
        _ if is_v4 => 14 + 20,
        _ => 14 + 40,
    }
}

/// Octets of what may be put around a packet: Geneve over IPv6.
const LONGEST_NOTE: usize = 94;

/// What must hold for any packet.
pub(crate) fn check(outcome: &Outcome, program: Program, packet: &[u8]) {
    let told = || format!("{} on {packet:02x?}: {outcome:02x?}", program.name());
    let verdict = outcome.verdict.unwrap_or_else(|| panic!("{}", told()));
    // One counter for the packet; a lost event or a connection that was not noted comes besides, without octets.
    let counted: Vec<_> = outcome.counted.iter().filter(|(_, _, bytes)| *bytes != 0).collect();
    let [(reason, packets, bytes)] = counted[..] else { panic!("{}", told()) };
    assert_eq!((*packets, *bytes), (1, packet.len() as u64), "{}", told());
    // Who sent what is too long is told by the packet itself.
    let is_told = *reason == Reason::TooBig && verdict == Verdict::Redirect;
    assert_eq!(reason.is_drop() && !is_told, verdict == Verdict::Drop, "{}", told());
    // A note comes or goes with packets of services only.
    let may_differ = matches!(reason, Reason::NewConnection | Reason::ToBackend | Reason::DsrReceived | Reason::TooBig)
        || matches!(reason, Reason::RewriteFailed | Reason::Decapsulated | Reason::Encapsulated);
    assert!(outcome.out.len() == packet.len() || may_differ, "{}", told());
    assert!(outcome.out.len() <= packet.len() + LONGEST_NOTE, "{}", told());
    if matches!(reason, Reason::Passed | Reason::Malformed | Reason::FragmentUnknown) {
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
pub(crate) fn know(scene: &Scene<'_>) {
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
        let mut random = Random::new(0x1234_5678);
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
