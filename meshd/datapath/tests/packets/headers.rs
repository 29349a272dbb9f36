//! What packets look like: every combination of headers that is read, passed over, or left to the stack.

use meshd_abi::Reason;
use meshd_datapath::Program;

use crate::{
    case::{Case, Verdict, case},
    frame::{Body, Frame, GATEWAY, OWN, SCTP, TCP, UDP, between, packet, ping, pong, syn, tcp},
    scene::{KERNEL, Kind, NET4, NET6, NETS, Net, OTHER, backend},
};

/// IPv4 options of two words: record route with one address, end of list.
const OPTIONS: [u8; 8] = [7, 7, 4, 0, 0, 0, 0, 0];
/// Extension headers in their order.
type Headers = Vec<(u8, Vec<u8>)>;
/// Extension headers: the first octet is filled in.
const HOP_BY_HOP: (u8, [u8; 8]) = (0, [0, 0, 5, 2, 0, 0, 1, 0]);
const ROUTING: (u8, [u8; 8]) = (43, [0, 0, 4, 0, 0, 0, 0, 0]);
const DESTINATION: (u8, [u8; 16]) = (60, [0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
/// The fragment header of a datagram that is no fragment (RFC 6946).
const ATOMIC: (u8, [u8; 8]) = (44, [0, 0, 0, 0, 0, 0, 0, 7]);

pub(crate) fn for_nobody() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (client, world) = (net.client(), net.world());
        for program in Program::ALL {
            let row = |what: &str| case(format!("{} {what}, {}", net.word, program.name()));
            for (word, protocol) in [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)] {
                cases.push(row(word).passes(program, &packet(protocol, client, world)));
            }
            cases.push(row("echo request").passes(program, &ping(client.ip(), world.ip(), 7)));
            cases.push(row("echo reply").passes(program, &pong(client.ip(), world.ip(), 7)));
            let gre = Body::Raw { protocol: 47, bytes: vec![0; 24] };
            cases.push(row("gre").passes(program, &between(client.ip(), world.ip(), gre)));
            let tagged = syn(client, net.frontend(Kind::NodePort, backend::LOCAL)).tag(&[0x81, 0, 0, 5]);
            cases.push(row("vlan tag").passes_bytes(program, &tagged.bytes(), Some(Reason::Passed)));
            let twice = tcp(client, world).tag(&[0x88, 0xa8, 0, 6, 0x81, 0, 0, 5]);
            cases.push(row("two vlan tags").passes_bytes(program, &twice.bytes(), Some(Reason::Passed)));
        }
    }
    for net in NETS {
        // Frames that a promiscuous link sees of its neighbors.
        let overheard = syn(net.client(), net.frontend(Kind::NodePort, backend::LOCAL)).sent(KERNEL, GATEWAY);
        for program in [Program::XdpUplink, Program::UplinkIngress] {
            cases.push(
                case(format!("{} for another host, {}", net.word, program.name()))
                    .passes(program, &overheard)
                    .given(|scene| assert_eq!(scene.connections(), 0)),
            );
        }
    }
    for program in Program::ALL {
        let mut arp = [&[0xff; 6][..], &OWN, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        arp.extend(&[0; 32]);
        cases.push(case(format!("arp, {}", program.name())).passes_bytes(program, &arp, Some(Reason::Passed)));
    }
    cases
}

pub(crate) fn unusual() -> Vec<Case> {
    let mut cases = Vec::new();
    for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
        let options = |frame: Frame| frame.options(&OPTIONS);
        served(&mut cases, &format!("v4 {word}, options"), NET4, protocol, &options);
        let headers: [(&str, Headers); 6] = [
            ("hop-by-hop", vec![(HOP_BY_HOP.0, HOP_BY_HOP.1.to_vec())]),
            ("routing", vec![(ROUTING.0, ROUTING.1.to_vec())]),
            ("destination options", vec![(DESTINATION.0, DESTINATION.1.to_vec())]),
            ("atomic fragment", vec![(ATOMIC.0, ATOMIC.1.to_vec())]),
            ("hop-by-hop and routing", vec![(HOP_BY_HOP.0, HOP_BY_HOP.1.to_vec()), (ROUTING.0, ROUTING.1.to_vec())]),
            (
                "all four",
                vec![
                    (HOP_BY_HOP.0, HOP_BY_HOP.1.to_vec()),
                    (DESTINATION.0, DESTINATION.1.to_vec()),
                    (ROUTING.0, ROUTING.1.to_vec()),
                    (ATOMIC.0, ATOMIC.1.to_vec()),
                ],
            ),
        ];
        for (name, headers) in headers {
            let with =
                |frame: Frame| headers.iter().fold(frame, |frame, (number, octets)| frame.extension(*number, octets));
            served(&mut cases, &format!("v6 {word}, {name}"), NET6, protocol, &with);
        }
    }
    cases
}

/// A new connection to a local and to a remote backend by packets with these headers.
fn served(cases: &mut Vec<Case>, name: &str, net: Net, protocol: u8, with: &dyn Fn(Frame) -> Frame) {
    let client = net.client();
    let local = net.frontend(Kind::LoadBalancer, backend::LOCAL);
    let asked = with(packet(protocol, client, local));
    let out = with(packet(protocol, client, net.backend(backend::LOCAL)));
    cases.push(
        case(format!("{name}, local backend"))
            .passes(Program::XdpUplink, &asked)
            .becomes(Program::UplinkIngress, &asked, Verdict::Pass, &out, Reason::NewConnection)
            .becomes(Program::UplinkIngress, &asked, Verdict::Pass, &out, Reason::ToBackend),
    );
    let remote = net.frontend(Kind::LoadBalancer, backend::OTHER);
    let asked = with(packet(protocol, client, remote));
    let out = with(packet(protocol, net.node(), net.backend(backend::OTHER))).sent(OTHER, OWN);
    cases.push(case(format!("{name}, remote backend")).passes(Program::XdpUplink, &asked).becomes(
        Program::UplinkIngress,
        &asked,
        Verdict::Redirect,
        &out,
        Reason::NewConnection,
    ));
    let answer = with(packet(protocol, net.backend(backend::LOCAL), client));
    let out = with(packet(protocol, local, client));
    cases.push(
        case(format!("{name}, answer at the uplink"))
            .becomes(
                Program::UplinkIngress,
                &with(packet(protocol, client, local)),
                Verdict::Pass,
                &with(packet(protocol, client, net.backend(backend::LOCAL))),
                Reason::NewConnection,
            )
            .becomes(Program::UplinkEgress, &answer, Verdict::Pass, &out, Reason::Reply),
    );
}

pub(crate) fn not_read() -> Vec<Case> {
    let mut cases = Vec::new();
    let frontend = NET6.frontend(Kind::LoadBalancer, backend::LOCAL);
    let asked = || syn(NET6.client(), frontend);
    let ten = |frame: Frame, octets: &[u8]| (0..5).fold(frame, |frame, _| frame.extension(60, octets));
    for program in [Program::XdpUplink, Program::UplinkIngress, Program::WorkloadIngress] {
        let row = |what: &str| case(format!("v6 {what}, {}", program.name()));
        cases.push(row("five extension headers").passes(program, &ten(asked(), &DESTINATION.1)));
        let mut long = vec![0; 256];
        (long[1], long[2], long[3]) = (31, 1, 0xfa);
        cases.push(row("layer 4 beyond 255 octets").passes(program, &asked().extension(60, &long)));
        cases.push(row("authentication header").passes(program, &asked().extension(51, &[0; 16])));
        let no_next = Body::Raw { protocol: 59, bytes: vec![] };
        cases.push(row("no next header").passes(program, &between(NET6.client_ip(), frontend.ip(), no_next)));
    }
    cases
}

pub(crate) fn contradictions() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut row = |name: &str, net: Net, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = syn(net.client(), net.frontend(Kind::LoadBalancer, backend::LOCAL)).bytes();
        change(&mut bytes);
        for program in Program::ALL {
            // The kernel makes no skb of half an IP header.
            if program != Program::XdpUplink && bytes.len() < if net.is_v4() { 34 } else { 54 } {
                continue;
            }
            let counter = if program == Program::XdpUplink { Reason::Passed } else { Reason::Malformed };
            cases.push(case(format!("{name}, {}", program.name())).passes_bytes(program, &bytes, Some(counter)));
        }
    };
    row("v4, version 5", NET4, &|bytes| bytes[14] = 0x55);
    row("v4, header of four words", NET4, &|bytes| bytes[14] = 0x44);
    row("v4, total length shorter than the header", NET4, &|bytes| bytes[17] = 19);
    row("v4, options longer than the total length", NET4, &|bytes| (bytes[14], bytes[17]) = (0x4f, 40));
    row("v4, cut in the IP header", NET4, &|bytes| bytes.truncate(14 + 19));
    row("v4, cut before the ports", NET4, &|bytes| bytes.truncate(14 + 20));
    row("v4, cut in the TCP header", NET4, &|bytes| bytes.truncate(14 + 20 + 19));
    row("v6, version 4", NET6, &|bytes| bytes[14] = 0x40);
    row("v6, cut in the IP header", NET6, &|bytes| bytes.truncate(14 + 39));
    row("v6, cut before the ports", NET6, &|bytes| bytes.truncate(14 + 40));
    row("v6, cut in the TCP header", NET6, &|bytes| bytes.truncate(14 + 40 + 19));
    cases
}
