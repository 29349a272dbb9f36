//! The fast path between workloads of two nodes: what takes it, and what is left to the stack.

use meshd_abi::{Identity, NextHop, Reason, Tunnel, hop_flags, identity_flags, settings_flags};
use meshd_datapath::Program::{self, TunnelIngress, UplinkIngress, WorkloadIngress};

use crate::{
    case::{Case, Verdict, case, with_machine},
    dsr::with_option,
    frame::{Body, Frame, GATEWAY, OWN, SCTP, TCP, UDP, between, packet, ping, tcp},
    hops::too_big,
    scene::{Kind, NETS, Net, POD, Scene, backend, hop},
    tunnels::{FAR, TUNNEL_MAC, VNI, changes_family, forms, put_tunnel, tunnelled},
};

/// Gives the workload of this node and that of another one a way: by the pod's link, and by one of the next hops.
pub(crate) fn put_ways(scene: &Scene<'_>, far: u32) {
    let settings = scene.maps.settings.get(&0).expect("read").expect("settings");
    let flags = settings.flags | settings_flags::FAST_PATH;
    scene.maps.settings.put(&0, &meshd_abi::Settings { flags, ..settings }).expect("settings");
    for net in NETS {
        let known = |way, flags| Identity { identity: 300, way, flags, cluster: 1 };
        scene.put_identity(net.workload_ip(), known(hop::POD, identity_flags::LOCAL));
        scene.put_identity(net.far_workload().ip(), known(far, 0));
    }
}

fn given(name: String) -> Case {
    case(name).given(|scene| put_ways(scene, hop::GATEWAY))
}

/// A packet as it goes to the other node.
fn out(inside: &Frame) -> Frame {
    inside.clone().sent(GATEWAY, OWN).ttl(63)
}

/// A packet as it comes to the workload.
fn home(inside: &Frame) -> Frame {
    inside.clone().sent(POD, OWN).ttl(63)
}

fn goes(case: Case, program: Program, inside: &Frame, out: &Frame) -> Case {
    case.becomes(program, inside, Verdict::Redirect, out, Reason::Forwarded)
}

/// An error of a router about a packet that went from one to the other.
fn error(net: Net, to: std::net::IpAddr, quoted: Vec<u8>) -> Frame {
    let (kind, code) = if net.is_v4() { (3, 4) } else { (2, 0) };
    between(net.router_ip(), to, Body::Error { kind, code, word: 1_280, quoted })
}

pub(crate) fn taken() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (here, there) = (net.workload(), net.far_workload());
        for (word, protocol) in [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)] {
            let (there_to, here_to) = (packet(protocol, here, there), packet(protocol, there, here));
            let name = |way: &str| format!("{} {word} {way}", net.word);
            cases.push(goes(given(name("leaves")), WorkloadIngress, &there_to, &out(&there_to)));
            cases.push(goes(given(name("arrives")), UplinkIngress, &here_to, &home(&here_to)));
            cases.push(goes(given(name("arrives from the tunnel")), TunnelIngress, &here_to, &home(&here_to)));
        }
        let echo = ping(here.ip(), there.ip(), 7);
        cases.push(goes(given(format!("{} echo", net.word)), WorkloadIngress, &echo, &out(&echo)));
        let piece = packet(UDP, there, here).data(&[1; 40]).piece(5, 0, 24);
        let later = packet(UDP, there, here).data(&[1; 40]).piece(5, 24, 24);
        let pieces = goes(given(format!("{} fragments", net.word)), UplinkIngress, &piece, &home(&piece));
        cases.push(goes(pieces, UplinkIngress, &later, &home(&later)));
        // Netfilter knows nothing of what they are about.
        let told = error(net, here.ip(), tcp(here, there).packet());
        cases.push(goes(given(format!("{} error", net.word)), UplinkIngress, &told, &home(&told)));
        let told = between(
            here.ip(),
            there.ip(),
            Body::Error {
                kind: if net.is_v4() { 3 } else { 1 },
                code: if net.is_v4() { 3 } else { 4 },
                word: 0,
                quoted: packet(UDP, there, here).packet(),
            },
        );
        cases.push(goes(given(format!("{} error of a workload", net.word)), WorkloadIngress, &told, &out(&told)));
    }
    cases
}

pub(crate) fn not_taken() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (here, there) = (net.workload(), net.far_workload());
        let (leaves, arrives) = (tcp(here, there), tcp(there, here));
        let name = |what: &str| format!("{} {what}", net.word);
        let both = |case: Case| case.passes(WorkloadIngress, &leaves).passes(UplinkIngress, &arrives);
        cases.push(both(case(name("switched off")).given(|scene| {
            put_ways(scene, hop::GATEWAY);
            scene.put_settings(|_| {});
        })));
        cases.push(both(case(name("without a way there")).given(|scene| put_ways(scene, 0))));
        cases.push(both(given(name("without a way here")).given(move |scene| {
            let known = Identity { identity: 300, way: 0, flags: identity_flags::LOCAL, cluster: 1 };
            scene.put_identity(net.workload_ip(), known);
        })));
        cases.push(both(given(name("with a node")).given(move |scene| {
            let known = Identity { identity: 6, way: hop::GATEWAY, flags: identity_flags::NODE, cluster: 1 };
            scene.put_identity(net.far_workload().ip(), known);
        })));
        cases.push(both(given(name("of one node")).given(move |scene| {
            let known = Identity { identity: 6, way: hop::POD, flags: identity_flags::LOCAL, cluster: 1 };
            scene.put_identity(net.far_workload().ip(), known);
        })));
        // Somebody outside who says that he is a workload of this node.
        cases.push(given(name("that comes back")).passes(UplinkIngress, &leaves).passes(WorkloadIngress, &arrives));
        let known = case(name("of a service's connection")).given(move |scene| {
            put_ways(scene, hop::GATEWAY);
            let flags = meshd_abi::connection_flags::STACK | meshd_abi::connection_flags::REPLY;
            scene.put_connection(TCP, (there, here), (there, here), 0, flags);
        });
        cases.push(known.passes(UplinkIngress, &arrives));
        // The stack tells the sender.
        let old = leaves.clone().ttl(1);
        cases.push(given(name("with its last hop")).passes(WorkloadIngress, &old));
        let gone = case(name("whose neighbor is gone")).given(|scene| put_ways(scene, hop::UNRESOLVED));
        cases.push(gone.passes(WorkloadIngress, &leaves));
        let optional = if net.is_v4() {
            leaves.clone().options(&[1, 1, 1, 0])
        } else {
            leaves.clone().extension(0, &[0, 0, 5, 2, 0, 0, 1, 0])
        };
        cases.push(given(name("with options")).passes(WorkloadIngress, &optional));
        let stranger = error(net, here.ip(), tcp(here, net.world()).packet());
        cases.push(given(name("error about something else")).passes(UplinkIngress, &stranger));
    }
    cases
}

/// [`hop::NARROW`] takes 100 octets.
pub(crate) fn too_long() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (here, there) = (net.workload(), net.far_workload());
        let narrow =
            |what: &str| case(format!("{} too long, {what}", net.word)).given(|scene| put_ways(scene, hop::NARROW));
        let headers: usize = if net.is_v4() { 28 } else { 48 };
        let filled = |length: usize| packet(UDP, here, there).data(&vec![7; length - headers]).whole();
        let fits = filled(100);
        cases.push(goes(narrow("but for an octet"), WorkloadIngress, &fits, &out(&fits)));
        // Told from here: the stack's route may be another one meanwhile.
        let long = filled(101);
        let filled = |packet: Frame| packet.data(&[7; 100]).whole();
        for (word, long) in [
            ("whole", long.clone()),
            ("TCP", filled(tcp(here, there))),
            ("SCTP", filled(packet(SCTP, here, there))),
            ("an echo", filled(ping(here.ip(), there.ip(), 7))),
        ] {
            let told = too_big(&long, if net.is_v4() { 100 } else { 1_280 });
            let row = narrow(word);
            cases.push(row.becomes_bytes(WorkloadIngress, &long.bytes(), Verdict::Redirect, &told, Reason::TooBig));
        }
        if net.is_v4() {
            let free = packet(UDP, here, there).data(&[7; 100]);
            cases.push(narrow("may be fragmented").passes(WorkloadIngress, &free));
        }
        let piece = packet(UDP, here, there).data(&[7; 200]).piece(5, 0, 120);
        cases.push(narrow("a fragment").passes(WorkloadIngress, &piece));
        // No error is about an error.
        let quoted = packet(UDP, there, here).data(&[7; 100]).packet();
        let error = Body::Error { kind: if net.is_v4() { 3 } else { 1 }, code: 3, word: 0, quoted };
        let error = between(here.ip(), there.ip(), error).whole();
        cases.push(narrow("an error").passes(WorkloadIngress, &error));
        let last = long.clone().ttl(1);
        cases.push(narrow("at its last hop").passes(WorkloadIngress, &last));
        let arrives = packet(UDP, there, here).data(&[7; 100]).whole();
        let pod = given(format!("{} too long, for the link of a workload", net.word)).given(|scene| {
            let old = scene.maps.next_hops.get(&hop::POD).expect("read").expect("a next hop");
            scene.maps.next_hops.put(&hop::POD, &NextHop { mtu: 100, ..old }).expect("a next hop");
        });
        cases.push(pod.passes(UplinkIngress, &arrives));
    }
    cases
}

#[test]
fn the_fast_path_goes_into_the_tunnel_and_out_of_it() {
    with_machine(|machine| {
        for net in NETS {
            let scene = machine.scene();
            scene.reset();
            put_tunnel(&scene, 0);
            put_ways(&scene, hop::GATEWAY);
            let old = scene.maps.next_hops.get(&hop::GATEWAY).expect("read").expect("a next hop");
            let far = NextHop { flags: hop_flags::TUNNEL, destination: Tunnel::link_address(FAR), ..old };
            scene.maps.next_hops.put(&hop::GATEWAY, &far).expect("a next hop");
            let leaves = tcp(net.workload(), net.far_workload());
            let inside = leaves.clone().sent(Tunnel::link_address(FAR), OWN).ttl(63).bytes();
            let outcome = machine.run(WorkloadIngress, &leaves.bytes());
            assert_eq!(outcome.verdict, Some(Verdict::Redirect), "{}: {:?}", net.word, outcome.counted);
            let counted: Vec<_> = outcome.counted.iter().map(|(reason, ..)| *reason).collect();
            assert_eq!(counted, [Reason::Encapsulated, Reason::Forwarded], "{}", net.word);
            // Ethernet, IPv4, UDP and eight octets, the last four of which begin with who sends.
            let (frame, packet) = outcome.out.split_at(14 + 20 + 8 + 8);
            assert_eq!(packet, inside, "{}", net.word);
            assert_eq!(frame[46..49], 300_u32.to_be_bytes()[1..], "{}", net.word);
            crate::frame::verify(&outcome.out).expect("sums are right");
            // The kernel's device does it where the programs are not told of the tunnel.
            scene.put_settings(|settings| settings.flags |= settings_flags::FAST_PATH);
            let outcome = machine.run(WorkloadIngress, &leaves.bytes());
            assert_eq!((outcome.verdict, outcome.out), (Some(Verdict::Redirect), inside));
            put_tunnel(&scene, settings_flags::FAST_PATH);

            let arrives = tcp(net.far_workload(), net.workload());
            let outcome = machine.run(UplinkIngress, &tunnelled(net, false, VNI, &arrives));
            let counted: Vec<_> = outcome.counted.iter().map(|(reason, ..)| *reason).collect();
            assert_eq!(counted, [Reason::Decapsulated, Reason::Forwarded], "{}", net.word);
            assert_eq!(outcome.verdict, Some(Verdict::Redirect));
            assert_eq!(outcome.out, home(&arrives).bytes());

            // Nobody writes that a workload of this node is behind the tunnel; it would not be believed.
            let old = scene.maps.next_hops.get(&hop::POD).expect("read").expect("a next hop");
            let flags = hop_flags::TUNNEL;
            scene.maps.next_hops.put(&hop::POD, &NextHop { flags, ..old }).expect("a next hop");
            let outcome = machine.run(UplinkIngress, &arrives.bytes());
            assert_eq!((outcome.verdict, outcome.out), (Some(Verdict::Redirect), home(&arrives).bytes()));
        }
    });
}

#[test]
fn what_comes_out_of_a_frame_goes_to_its_workload_or_to_the_tunnels_link() {
    with_machine(|machine| {
        let scene = machine.scene();
        let ends = NETS.into_iter().flat_map(|net| NETS.map(|inner| (net, inner)));
        for (net, inner) in ends.filter(|(net, inner)| net.is_v4() == inner.is_v4() || changes_family()) {
            for (word, geneve, flag) in forms() {
                scene.reset();
                put_tunnel(&scene, flag);
                put_ways(&scene, hop::GATEWAY);
                let (there, here) = (inner.far_workload(), inner.workload());
                let run = |inside: &Frame, what: &str| {
                    let outcome = machine.run(UplinkIngress, &tunnelled(net, geneve, VNI, inside));
                    let name = format!("{} in {} by {word}, {what}: {:?}", inner.word, net.word, outcome.counted);
                    assert_eq!(outcome.verdict, Some(Verdict::Redirect), "{name}");
                    let counted: Vec<_> = outcome.counted.iter().map(|(reason, ..)| *reason).collect();
                    (outcome.out, counted, name)
                };
                let plain = tcp(there, here);
                let (out, counted, name) = run(&plain, "fast");
                assert_eq!(counted, [Reason::Decapsulated, Reason::Forwarded], "{name}");
                assert_eq!(out, home(&plain).bytes(), "{name}");

                let to_link = |inside: &Frame, what: &str| {
                    let (out, _, name) = run(inside, what);
                    let mut expected = inside.bytes();
                    expected[..12].copy_from_slice(&[TUNNEL_MAC, Tunnel::link_address(FAR)].concat());
                    assert_eq!(out, expected, "{name}");
                };
                to_link(&plain.clone().ttl(1), "at its last hop");
                put_tunnel(&scene, flag | settings_flags::DSR);
                put_ways(&scene, hop::GATEWAY);
                let noted = with_option(&plain, inner.frontend(Kind::LoadBalancer, backend::LOCAL));
                to_link(&noted, "with a note of direct server return");
                let known = meshd_abi::connection_flags::STACK | meshd_abi::connection_flags::REPLY;
                scene.put_connection(TCP, (there, here), (there, here), 0, known);
                to_link(&plain, "of a service's connection");
                let old = scene.maps.next_hops.get(&hop::POD).expect("read").expect("a next hop");
                scene.maps.next_hops.put(&hop::POD, &NextHop { mtu: 100, ..old }).expect("a next hop");
                to_link(&packet(UDP, there, here).data(&[7; 100]), "too long for the link of the workload");
            }
        }
    });
}
