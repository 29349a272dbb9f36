//! Frames of the tunnel: what is taken out, what is left to the device, what is refused; and packets of services that go to the tunnel.
//!
//! Frames are built here octet by octet as the RFCs have them. What is written around packets needs a route through the tunnel's link,
//! which a test run does not have: see the tests on real links.

use std::net::IpAddr;

use meshd_abi::{NextHop, Reason, Tunnel, V4, V6, hop_flags, settings_flags};
use meshd_datapath::Program::{TunnelEgress, TunnelIngress, UplinkIngress, WorkloadIngress, XdpUplink};

use crate::{
    case::{Case, Verdict, case, with_machine},
    dsr::outer,
    frame::{Frame, GATEWAY, Mac, OWN, UDP, packet, tcp, udp},
    scene::{Kind, NET4, NETS, Net, Scene, UPLINK, backend, hop, next_hop},
};

/// The tunnel's link is a number that exists; its address is nobody's else.
pub(crate) const TUNNEL_MAC: Mac = [2, 0, 0, 0, 0, 0x77];
const PORT: u16 = 8472;
/// Number in the header of what has no identity.
pub(crate) const VNI: u32 = 2;
/// The identity that everybody in the scene has.
const IDENTITY: u32 = 300;
/// Largest packet that goes in.
pub(crate) const TUNNEL_MTU: usize = 1_350;
/// The element of the peer among the far ends.
pub(crate) const FAR: u32 = 5;

/// Eight octets behind UDP.
fn head(geneve: bool, vni: u32) -> [u8; 8] {
    let [_, a, b, c] = vni.to_be_bytes();
    if geneve { [0, 0, 0x65, 0x58, a, b, c, 0] } else { [8, 0, 0, 0, a, b, c, 0] }
}

/// A frame with this head and octets behind it, from one node to another.
fn framed(ends: (IpAddr, IpAddr), port: u16, head: [u8; 8], inside: &[u8]) -> Vec<u8> {
    let length = (16 + inside.len() as u16).to_be_bytes();
    let udp = [&50_000_u16.to_be_bytes()[..], &port.to_be_bytes(), &length, &[0, 0], &head, inside].concat();
    outer(ends.0, ends.1, (OWN, GATEWAY), UDP, &udp)
}

/// The same from the peer to this node.
pub(crate) fn tunnelled(net: Net, geneve: bool, vni: u32, inside: &Frame) -> Vec<u8> {
    framed((net.peer_ip(), net.node_ip()), PORT, head(geneve, vni), &inside.bytes())
}

/// A packet as it is handed to the tunnel's link.
fn out(inside: &Frame) -> Vec<u8> {
    inside.clone().sent(TUNNEL_MAC, Tunnel::link_address(FAR)).ttl(64).bytes()
}

fn mapped(ip: IpAddr) -> V6 {
    match ip {
        IpAddr::V4(ip) => V6::mapped(V4::from_octets(ip.octets())),
        IpAddr::V6(ip) => V6::from_octets(ip.octets()),
    }
}

pub(crate) fn put_tunnel(scene: &Scene<'_>, flags: u32) {
    scene.put_settings(|settings| {
        settings.tunnel_link = UPLINK;
        settings.tunnel_mac = TUNNEL_MAC;
        settings.tunnel_port = PORT;
        settings.tunnel_vni = VNI;
        settings.flags |= flags;
    });
    for net in NETS {
        scene.maps.far_ends.put(&mapped(net.peer_ip()), &FAR).expect("a far end");
    }
    let tunnel = Tunnel { address: mapped(NET4.peer_ip()), next_hop: 0, mtu: TUNNEL_MTU as u16, reserved: 0 };
    scene.maps.tunnels.put(&FAR, &tunnel).expect("a tunnel");
}

fn given(name: String, flags: u32) -> Case {
    case(name).given(move |scene| put_tunnel(scene, flags))
}

/// False on kernels before 6.3, where the family of a packet cannot be changed.
pub(crate) fn changes_family() -> bool {
    !nix::sys::utsname::uname().expect("uname").release().to_string_lossy().starts_with("6.1.")
}

/// A row that says that a packet of one family is taken out of a frame of another one. Where that cannot be, the frame is left to the device.
fn taken(case: Case, (net, inner): (Net, Net), frame: &[u8], inside: &Frame) -> Case {
    if net.is_v4() != inner.is_v4() && !changes_family() {
        return case.passes_bytes(UplinkIngress, frame, Some(Reason::Passed));
    }
    case.becomes_bytes(UplinkIngress, frame, Verdict::Redirect, &out(inside), Reason::Decapsulated)
}

pub(crate) fn forms() -> [(&'static str, bool, u32); 2] {
    [("vxlan", false, 0), ("geneve", true, settings_flags::TUNNEL_GENEVE)]
}

pub(crate) fn opened() -> Vec<Case> {
    let mut cases = Vec::new();
    for (net, inner) in NETS.into_iter().flat_map(|net| NETS.map(|inner| (net, inner))) {
        for (word, geneve, flag) in forms() {
            let rows = [
                ("a workload", tcp(inner.far_workload(), inner.workload())),
                ("the node", udp(inner.far_workload(), (inner.node_ip(), 53).into())),
            ];
            for (whose, inside) in rows {
                let frame = tunnelled(net, geneve, IDENTITY, &inside);
                let name = format!("{word} over {}, {} for {whose}", net.word, inner.word);
                let case = given(name, flag | settings_flags::TUNNEL_FILTER);
                cases.push(taken(case, (net, inner), &frame, &inside));
            }
            // Somebody else's frame looks like the other protocol.
            let other = tunnelled(net, !geneve, VNI, &tcp(inner.far_workload(), inner.workload()));
            let name = format!("{word} over {}, {} in the other protocol", net.word, inner.word);
            let case = given(name, flag);
            cases.push(if geneve {
                let inside = tcp(inner.far_workload(), inner.workload());
                taken(case, (net, inner), &other, &inside)
            } else {
                case.passes_bytes(UplinkIngress, &other, Some(Reason::Passed))
            });
        }
    }
    cases
}

pub(crate) fn transit() -> Vec<Case> {
    let mut cases = Vec::new();
    for (net, inner) in NETS.into_iter().flat_map(|net| NETS.map(|inner| (net, inner))) {
        let inside = tcp(inner.far_workload(), inner.backend(backend::REMOTE));
        for (word, geneve, flag) in forms() {
            let frame = tunnelled(net, geneve, VNI, &inside);
            let case = given(format!("{word} over {}, {} in transit", net.word, inner.word), flag);
            cases.push(if geneve {
                taken(case, (net, inner), &frame, &inside)
            } else {
                case.passes_bytes(UplinkIngress, &frame, Some(Reason::Passed))
            });
        }
    }
    cases
}

pub(crate) fn refused() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let inside = tcp(net.far_workload(), net.workload());
        let head = head(false, VNI);
        for (who, from) in [("a client", net.client_ip()), ("this node", net.node_ip())] {
            let frame = framed((from, net.node_ip()), PORT, head, &inside.bytes());
            let name = format!("{} of {who}", net.word);
            let filter = settings_flags::TUNNEL_FILTER;
            let refused = given(name.clone(), filter).drops_bytes(UplinkIngress, &frame, Reason::TunnelRefused);
            cases.push(refused);
            let name = format!("{name}, everybody may");
            cases.push(given(name, 0).passes_bytes(UplinkIngress, &frame, Some(Reason::Passed)));
        }
        for (who, source) in [("a workload of this node", net.workload_ip()), ("this node", net.node_ip())] {
            let inside = udp((source, 53).into(), net.workload());
            let frame = tunnelled(net, false, VNI, &inside);
            let name = format!("{} with a packet of {who}", net.word);
            cases.push(given(name, 0).drops_bytes(UplinkIngress, &frame, Reason::TunnelRefused));
        }
    }
    cases
}

pub(crate) fn not_ours() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let ends = (net.peer_ip(), net.node_ip());
        let inside = tcp(net.far_workload(), net.workload()).bytes();
        let ours = head(false, VNI);
        let arp = [&OWN[..], &GATEWAY, &[8, 6], &[0; 28]].concat();
        let rows = [
            ("another port", framed(ends, PORT + 1, ours, &inside)),
            ("for another node", framed((ends.0, net.client_ip()), PORT, ours, &inside)),
            ("without a number", framed(ends, PORT, [0, 0, 0, 0, 0, 0, 2, 0], &inside)),
            ("with more flags", framed(ends, PORT, [0x88, 0, 0, 0, 0, 0, 2, 0], &inside)),
            ("with something else inside", framed(ends, PORT, ours, &arp)),
            ("with nothing inside", framed(ends, PORT, ours, &[])),
        ];
        for (name, frame) in rows {
            for program in [UplinkIngress, XdpUplink] {
                let name = format!("{} {name}, {}", net.word, program.name());
                cases.push(given(name, 0).passes_bytes(program, &frame, Some(Reason::Passed)));
            }
        }
        let frame = framed(ends, PORT, ours, &inside);
        let name = format!("{} without a tunnel", net.word);
        cases.push(case(name).passes_bytes(UplinkIngress, &frame, Some(Reason::Passed)));
        let name = format!("{} at XDP", net.word);
        cases.push(given(name, 0).passes_bytes(XdpUplink, &frame, Some(Reason::Passed)));
        // A packet that came by the device is looked at as at an uplink, and one that leaves has no route here.
        let plain = tcp(net.far_workload(), net.workload());
        cases.push(given(format!("{} out of the tunnel", net.word), 0).passes(TunnelIngress, &plain));
        cases.push(given(format!("{} into the tunnel", net.word), 0).passes(TunnelEgress, &plain));
        // A frame inside of a frame is left to the stack.
        let nested = udp((net.peer_ip(), 50_000).into(), (net.node_ip(), PORT).into());
        cases.push(given(format!("{} twice", net.word), 0).passes(TunnelIngress, &nested));
    }
    cases
}

#[test]
fn a_frame_that_is_cut_short_or_changed_anywhere_does_no_harm() {
    with_machine(|machine| {
        for (net, inner) in NETS.into_iter().flat_map(|net| NETS.map(|inner| (net, inner))) {
            for (_, geneve, flag) in forms() {
                put_tunnel(&machine.scene(), flag | settings_flags::TUNNEL_FILTER);
                let frame = tunnelled(net, geneve, VNI, &tcp(inner.far_workload(), inner.workload()));
                for length in (if net.is_v4() { 34 } else { 54 })..frame.len() {
                    let outcome = machine.run(UplinkIngress, &frame[..length]);
                    assert!(outcome.verdict.is_some(), "{} octets", length);
                    assert!(outcome.out.len() <= length, "{} octets", length);
                }
                for at in 14..frame.len() {
                    let mut changed = frame.clone();
                    changed[at] ^= 0xff;
                    let outcome = machine.run(UplinkIngress, &changed);
                    assert!(outcome.verdict.is_some(), "octet {at}");
                    assert!(outcome.out.len() <= frame.len(), "octet {at}");
                }
            }
        }
    });
}

#[test]
fn an_identity_that_contradicts_is_counted_and_marks_of_congestion_go_on() {
    with_machine(|machine| {
        for net in NETS {
            put_tunnel(&machine.scene(), 0);
            let inside = tcp(net.far_workload(), net.workload());
            for (vni, is_counted) in [(VNI, false), (IDENTITY, false), (IDENTITY + 1, true), (0, false)] {
                let outcome = machine.run(UplinkIngress, &tunnelled(net, false, vni, &inside));
                let counted = outcome.counted.iter().any(|(reason, ..)| *reason == Reason::IdentityMismatch);
                assert_eq!((outcome.verdict, counted), (Some(Verdict::Redirect), is_counted), "{vni}");
            }
            let mut marked = tunnelled(net, false, VNI, &inside);
            if net.is_v4() {
                marked[15] |= 3;
                // The header's sum counts it, too.
                let sum = u16::from_be_bytes([marked[24], marked[25]]) - 3;
                marked[24..26].copy_from_slice(&sum.to_be_bytes());
            } else {
                marked[15] |= 0x30;
            }
            // A sender that does not understand marks gets none.
            assert_eq!(machine.run(UplinkIngress, &marked).out, out(&inside));
        }
    });
}

/// Makes the next hop of [`backend::REMOTE`] a far end.
fn put_hop(scene: &Scene<'_>, mtu: u16) {
    put_tunnel(scene, 0);
    let hop = NextHop { flags: hop_flags::TUNNEL, ..next_hop(UPLINK, mtu, Tunnel::link_address(FAR)) };
    scene.maps.next_hops.put(&hop::GATEWAY, &hop).expect("a next hop");
}

pub(crate) fn services() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let asked = net.frontend(Kind::Cluster, backend::REMOTE);
        let there = net.backend(backend::REMOTE);
        let question = packet(UDP, net.workload(), asked);
        let sent = packet(UDP, net.workload(), there).sent(Tunnel::link_address(FAR), OWN).ttl(63);
        let name = format!("{} of a workload", net.word);
        let sends = case(name).given(|scene| put_hop(scene, 1_350)).becomes(
            WorkloadIngress,
            &question,
            Verdict::Redirect,
            &sent,
            Reason::NewConnection,
        );
        cases.push(sends);
        let asked = net.frontend(Kind::NodePort, backend::REMOTE);
        let question = packet(UDP, net.client(), asked);
        let sent = packet(UDP, net.node(), there).sent(Tunnel::link_address(FAR), OWN).ttl(63);
        let name = format!("{} from outside", net.word);
        let sends = case(name).given(|scene| put_hop(scene, 1_350)).becomes(
            UplinkIngress,
            &question,
            Verdict::Redirect,
            &sent,
            Reason::NewConnection,
        );
        cases.push(sends);
        // Nobody is there any more.
        let name = format!("{} to a far end that is gone", net.word);
        let gone = case(name).given(|scene| {
            put_hop(scene, 1_350);
            scene.maps.tunnels.put(&FAR, &Tunnel::default()).expect("a tunnel");
        });
        cases.push(gone.drops(UplinkIngress, &question, Reason::NoRoute));
    }
    cases
}

#[test]
fn what_does_not_fit_into_the_tunnel_is_told_by_the_node_that_translates_it() {
    with_machine(|machine| {
        for net in NETS {
            machine.scene().reset();
            put_hop(&machine.scene(), 1_300);
            let asked = net.frontend(Kind::NodePort, backend::REMOTE);
            let question = packet(UDP, net.client(), asked).data(&[7; 1_310]).whole();
            let outcome = machine.run(UplinkIngress, &question.bytes());
            assert_eq!(outcome.verdict, Some(Verdict::Redirect), "{}: {:?}", net.word, outcome.counted);
            assert!(outcome.counted.iter().any(|(reason, ..)| *reason == Reason::TooBig), "{:?}", outcome.counted);
            let (kind, at) = if net.is_v4() { ([3, 4], 14 + 20) } else { ([2, 0], 14 + 40) };
            assert_eq!(outcome.out[at..at + 2], kind);
            assert_eq!(outcome.out[at + 6..at + 8], 1_300_u16.to_be_bytes());
            crate::frame::verify(&outcome.out).expect("sums are right");
        }
    });
}
