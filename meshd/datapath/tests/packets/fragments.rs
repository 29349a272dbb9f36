//! Fragments: the first one has the ports, the others follow it.

use std::net::SocketAddr;

use meshd_abi::Reason;
use meshd_datapath::Program::{self, UplinkEgress, UplinkIngress, WorkloadEgress, WorkloadIngress, XdpUplink};

use crate::{
    case::{
        Case,
        Verdict::{Pass, Redirect},
        case,
    },
    frame::{Frame, GATEWAY, OWN, TCP, UDP, packet, ping, pong},
    scene::{Kind, NETS, PORT, backend},
};

/// The identification of the datagrams.
const ID: u32 = 0x4242;
/// Octets of a datagram's data: three fragments of 40, 40 and what is left.
const DATA: [u8; 80] = [0x5a; 80];

/// The three fragments of a datagram.
fn pieces(frame: &Frame, id: u32) -> [Frame; 3] {
    let frame = frame.clone().data(&DATA);
    let header = match frame.body {
        crate::frame::Body::Tcp { .. } => 20,
        _ => 8,
    };
    [(0, 40), (40, 40), (80, header)].map(|(offset, length)| frame.clone().piece(id, offset, length))
}

/// A row in which all three come in order.
fn in_order(
    row: Case,
    program: Program,
    asked: &Frame,
    out: &Frame,
    how: impl Fn(Frame) -> Frame,
    (first, later): (Reason, Reason),
) -> Case {
    let verdict = if how(out.clone()).ttl == out.ttl { Pass } else { Redirect };
    let mut row = row;
    for (number, (asked, out)) in pieces(asked, ID).iter().zip(pieces(out, ID)).enumerate() {
        row = row.becomes(program, asked, verdict, &how(out), if number == 0 { first } else { later });
    }
    row
}

pub(crate) fn followed() -> Vec<Case> {
    let mut cases = Vec::new();
    let new = (Reason::NewConnection, Reason::ToBackend);
    for net in NETS {
        for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
            let row = |what: &str| case(format!("{} {word} {what}", net.word));
            let (client, workload, world) = (net.client(), net.workload(), net.world());
            let local = net.frontend(Kind::LoadBalancer, backend::LOCAL);
            let (asked, out) = (packet(protocol, client, local), packet(protocol, client, net.backend(backend::LOCAL)));
            cases.push(in_order(row("to a local backend"), UplinkIngress, &asked, &out, |frame| frame, new));

            let remote = net.frontend(Kind::LoadBalancer, backend::REMOTE);
            let sent = |frame: Frame| frame.sent(GATEWAY, OWN);
            let asked = packet(protocol, client, remote);
            let out = packet(protocol, net.node(), net.backend(backend::REMOTE));
            let there = in_order(row("to a remote backend and back"), UplinkIngress, &asked, &out, sent, new);
            let answer = packet(protocol, net.backend(backend::REMOTE), net.node());
            let answered = packet(protocol, remote, client);
            let reply = (Reason::Reply, Reason::Reply);
            cases.push(in_order(there, UplinkIngress, &answer, &answered, sent, reply));

            let cluster = net.frontend(Kind::Cluster, backend::FAR);
            let asked = packet(protocol, workload, cluster);
            let out = packet(protocol, workload, net.backend(backend::FAR));
            let there = in_order(row("of a workload and back"), WorkloadIngress, &asked, &out, |frame| frame, new);
            let answer = packet(protocol, net.backend(backend::FAR), workload);
            let answered = packet(protocol, cluster, workload);
            cases.push(in_order(there, WorkloadEgress, &answer, &answered, |frame| frame, reply));

            let masqueraded = (Reason::Masqueraded, Reason::Masqueraded);
            let (asked, out) = (packet(protocol, workload, world), packet(protocol, net.node(), world));
            let there = in_order(row("to the world and back"), UplinkEgress, &asked, &out, |frame| frame, masqueraded);
            let (answer, answered) = (packet(protocol, world, net.node()), packet(protocol, world, workload));
            let reply = (Reason::MasqueradeReply, Reason::MasqueradeReply);
            cases.push(in_order(there, UplinkIngress, &answer, &answered, |frame| frame, reply));
        }
        let (workload, world) = (net.workload_ip(), net.world().ip());
        let row = case(format!("{} echo to the world and back", net.word));
        let masqueraded = (Reason::Masqueraded, Reason::Masqueraded);
        let (asked, out) = (ping(workload, world, 7), ping(net.node_ip(), world, PORT));
        let there = in_order(row, UplinkEgress, &asked, &out, |frame| frame, masqueraded);
        let (answer, answered) = (pong(world, net.node_ip(), PORT), pong(world, workload, 7));
        let reply = (Reason::MasqueradeReply, Reason::MasqueradeReply);
        cases.push(in_order(there, UplinkIngress, &answer, &answered, |frame| frame, reply));
    }
    cases
}

pub(crate) fn unknown() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
            let frontend = net.frontend(Kind::LoadBalancer, backend::LOCAL);
            let asked = packet(protocol, net.client(), frontend);
            let out = packet(protocol, net.client(), net.backend(backend::LOCAL));
            let [first, later, _] = pieces(&asked, ID);
            let [first_out, later_out, _] = pieces(&out, ID);
            for program in [UplinkIngress, UplinkEgress, WorkloadIngress, WorkloadEgress] {
                let row = case(format!("{} {word} the first was not seen, {}", net.word, program.name()));
                cases.push(row.passes_as(program, &later, Reason::FragmentUnknown));
            }
            cases.push(
                case(format!("{} {word} not XDP's, whichever", net.word))
                    .passes(XdpUplink, &first)
                    .passes(XdpUplink, &later),
            );
            let row = |what: &str| {
                case(format!("{} {word} {what}", net.word)).becomes(
                    UplinkIngress,
                    &first,
                    Pass,
                    &first_out,
                    Reason::NewConnection,
                )
            };
            let [_, other_id, _] = pieces(&asked, ID + 1);
            cases.push(row("of another datagram").passes_as(UplinkIngress, &other_id, Reason::FragmentUnknown));
            let other = packet(protocol, (net.router_ip(), 50_000).into(), frontend);
            let [_, other_source, _] = pieces(&other, ID);
            cases.push(row("of another sender").passes_as(UplinkIngress, &other_source, Reason::FragmentUnknown));
            cases.push(
                row("the later one before the first")
                    .given(|scene| scene.reset())
                    .passes_as(UplinkIngress, &later, Reason::FragmentUnknown)
                    .becomes(UplinkIngress, &first, Pass, &first_out, Reason::NewConnection)
                    .becomes(UplinkIngress, &later, Pass, &later_out, Reason::ToBackend),
            );
            // The identification is used again by a datagram with other ports.
            let again: SocketAddr = (net.client_ip(), 50_009).into();
            let [first_again, later_again, _] = pieces(&packet(protocol, again, frontend), ID);
            let [first_again_out, later_again_out, _] =
                pieces(&packet(protocol, again, net.backend(backend::LOCAL)), ID);
            cases.push(
                row("an identification that is used again")
                    .becomes(UplinkIngress, &first_again, Pass, &first_again_out, Reason::NewConnection)
                    .becomes(UplinkIngress, &later_again, Pass, &later_again_out, Reason::ToBackend),
            );
            // All of them are for nobody.
            let [first, later, last] = pieces(&packet(protocol, net.client(), net.world()), ID);
            cases.push(
                case(format!("{} {word} for nobody", net.word))
                    .passes(UplinkIngress, &first)
                    .passes(UplinkIngress, &later)
                    .passes(UplinkIngress, &last),
            );
        }
    }
    cases
}
