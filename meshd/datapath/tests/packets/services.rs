//! Services: every kind of frontend, with backends on this node and on others.

use std::net::SocketAddr;

use meshd_abi::{Reason, Scope};
use meshd_datapath::Program::{self, UplinkEgress, UplinkIngress, WorkloadEgress, WorkloadIngress, XdpUplink};

use crate::{
    case::{
        Case,
        Verdict::{self, Back, Pass, Redirect},
        case,
    },
    frame::{FIN, Frame, GATEWAY, OWN, SCTP, TCP, UDP, opening, packet, ping, syn, tcp},
    scene::{Kind, NETS, Net, OTHER, POD, backend, service},
};

const PROTOCOLS: [(&str, u8); 3] = [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)];

/// The same address with the other's port when the protocol is SCTP: its sum covers the ports, so they stay.
fn port_of(protocol: u8, address: SocketAddr, other: SocketAddr) -> SocketAddr {
    if protocol == SCTP { (address.ip(), other.port()).into() } else { address }
}

/// Asked from outside: the tuple after translation, how the packet leaves, and by which neighbor.
fn way_from_outside(program: Program, frame: Frame, index: u32) -> (Verdict, Frame) {
    match (program, index) {
        // The stack brings it, and counts the hop.
        (_, backend::LOCAL) => (Pass, frame),
        (_, backend::POD) => (Redirect, frame.sent(POD, OWN)),
        (XdpUplink, backend::REMOTE) => (Back, frame.sent(GATEWAY, OWN)),
        (_, backend::REMOTE) => (Redirect, frame.sent(GATEWAY, OWN)),
        _ => (Redirect, frame.sent(OTHER, OWN)),
    }
}

pub(crate) fn from_outside() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in PROTOCOLS {
            for kind in [Kind::NodePort, Kind::LoadBalancer, Kind::ExternalIp] {
                for index in [backend::LOCAL, backend::POD, backend::REMOTE, backend::OTHER] {
                    for program in [XdpUplink, UplinkIngress] {
                        let name = format!("{} {word} {kind:?} to {index}, {}", net.word, program.name());
                        cases.push(outside_row(name, net, protocol, kind, index, program));
                    }
                }
            }
        }
    }
    cases
}

/// A new connection, its second packet, an answer.
fn outside_row(name: String, net: Net, protocol: u8, kind: Kind, index: u32, program: Program) -> Case {
    let (client, frontend) = (net.client(), net.frontend(kind, index));
    let is_local = matches!(index, backend::LOCAL | backend::POD);
    // A backend of this node sees the client, another node's sees this node, so that the answer comes back here.
    let source = if is_local { client } else { port_of(protocol, net.node(), client) };
    let destination = port_of(protocol, net.backend(index), frontend);
    let (verdict, first) = way_from_outside(program, opening(protocol, source, destination), index);
    let (_, second) = way_from_outside(program, packet(protocol, source, destination), index);
    // What is for the node's own address may be an answer or a question in SCTP: the TC program finds out.
    if program == XdpUplink && protocol == SCTP && kind == Kind::NodePort {
        return case(name).passes(program, &opening(protocol, client, frontend));
    }
    let (asks, goes_on) = (opening(protocol, client, frontend), packet(protocol, client, frontend));
    let row = if program == XdpUplink && index == backend::POD {
        // Past the stack to a workload is for TC, which finds the connection known.
        case(name)
            .passes(XdpUplink, &asks)
            .becomes(UplinkIngress, &asks, verdict, &first, Reason::ToBackend)
            .passes(XdpUplink, &goes_on)
            .becomes(UplinkIngress, &goes_on, verdict, &second, Reason::ToBackend)
    } else {
        case(name).becomes(program, &asks, verdict, &first, Reason::NewConnection).becomes(
            program,
            &goes_on,
            verdict,
            &second,
            Reason::ToBackend,
        )
    };
    let answer = packet(protocol, destination, source);
    let answered = packet(protocol, frontend, client);
    if is_local {
        // By the stack as the question came, or straight from the workload's link to the neighbor that the question came from.
        let (from_workload, sent) = (answer.clone().by(POD), answered.clone().sent(GATEWAY, OWN));
        let row = if index == backend::LOCAL {
            row.passes(WorkloadIngress, &from_workload)
        } else {
            row.becomes(WorkloadIngress, &from_workload, Redirect, &sent, Reason::Reply)
        };
        return row.becomes(UplinkEgress, &answer, Pass, &answered, Reason::Reply);
    }
    if program == XdpUplink && protocol == SCTP {
        let sent = answered.sent(GATEWAY, OWN);
        return row.passes(program, &answer).becomes(UplinkIngress, &answer, Redirect, &sent, Reason::Reply);
    }
    let verdict = if program == XdpUplink { Back } else { Redirect };
    row.becomes(program, &answer, verdict, &answered.sent(GATEWAY, OWN), Reason::Reply)
}

pub(crate) fn from_workloads() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in PROTOCOLS {
            for kind in [Kind::Cluster, Kind::NodePort] {
                for index in [backend::LOCAL, backend::POD, backend::REMOTE, backend::OTHER, backend::FAR] {
                    let name = format!("{} {word} {kind:?} to {index}, workload", net.word);
                    cases.push(workload_row(name, net, protocol, kind, index));
                }
            }
        }
    }
    cases
}

fn workload_row(name: String, net: Net, protocol: u8, kind: Kind, index: u32) -> Case {
    let (workload, frontend) = (net.workload(), net.frontend(kind, index));
    let destination = port_of(protocol, net.backend(index), frontend);
    let way = |frame: Frame| match index {
        // To the stack: the workload's own source is no martian.
        backend::LOCAL | backend::FAR => (Pass, frame.by(POD)),
        backend::POD => (Redirect, frame.sent(POD, OWN)),
        backend::REMOTE => (Redirect, frame.sent(GATEWAY, OWN)),
        _ => (Redirect, frame.sent(OTHER, OWN)),
    };
    let (verdict, first) = way(opening(protocol, workload, destination));
    let (_, second) = way(packet(protocol, workload, destination));
    let row = case(name)
        .becomes(
            WorkloadIngress,
            &opening(protocol, workload, frontend).by(POD),
            verdict,
            &first,
            Reason::NewConnection,
        )
        .becomes(WorkloadIngress, &packet(protocol, workload, frontend).by(POD), verdict, &second, Reason::ToBackend);
    let answer = packet(protocol, destination, workload);
    let answered = packet(protocol, frontend, workload);
    let sent = answered.clone().sent(POD, OWN);
    match index {
        backend::POD => row.becomes(WorkloadIngress, &answer, Redirect, &sent, Reason::Reply),
        backend::REMOTE | backend::OTHER => {
            row.passes(XdpUplink, &answer).becomes(UplinkIngress, &answer, Redirect, &sent, Reason::Reply)
        }
        // The question went through the stack. So does the answer, as what it is, and gets the service's address behind it.
        _ => {
            let row = if index == backend::LOCAL {
                row.passes(WorkloadIngress, &answer)
            } else {
                row.passes(XdpUplink, &answer).passes(UplinkIngress, &answer)
            };
            row.becomes(WorkloadEgress, &answer, Pass, &answered, Reason::Reply)
        }
    }
}

pub(crate) fn hairpin() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in PROTOCOLS {
            for (index, is_direct) in [(backend::LOCAL, false), (backend::POD, true)] {
                let frontend = net.frontend(Kind::Cluster, index);
                let own = port_of(protocol, (net.workload_ip(), 8_080).into(), frontend);
                // Its own address as source would never leave it again.
                let seen = SocketAddr::from((net.loopback_ip(), net.workload().port()));
                let asked = opening(protocol, net.workload(), frontend).by(POD);
                let out = opening(protocol, seen, own);
                let (verdict, out) = if is_direct { (Redirect, out.sent(POD, OWN)) } else { (Pass, out.by(POD)) };
                let answer = packet(protocol, own, seen).by(POD);
                let answered = packet(protocol, frontend, net.workload()).sent(POD, OWN);
                cases.push(
                    case(format!("{} {word} hairpin, past the stack: {is_direct}", net.word))
                        .given(move |scene| scene.put_backend_address(index, net.workload_ip()))
                        .becomes(WorkloadIngress, &asked, verdict, &out, Reason::NewConnection)
                        .becomes(WorkloadIngress, &answer, Redirect, &answered, Reason::Reply),
                );
            }
        }
    }
    cases
}

pub(crate) fn misses() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let word = net.word;
        let (client, workload) = (net.client(), net.workload());
        let cluster = net.frontend(Kind::Cluster, backend::REMOTE);
        let balancer = net.frontend(Kind::LoadBalancer, backend::REMOTE);
        let other_port = SocketAddr::from((balancer.ip(), 9));
        for program in [XdpUplink, UplinkIngress] {
            let row = |what: &str| case(format!("{word} {what}, {}", program.name()));
            cases.push(row("cluster address asked from outside").passes(program, &syn(client, cluster)));
            cases.push(row("another port").passes(program, &syn(client, other_port)));
            cases.push(row("ping of a frontend").passes(program, &ping(client.ip(), balancer.ip(), 9)));
            cases.push(
                row("an answer nobody waits for").passes(program, &tcp(net.backend(backend::REMOTE), net.node())),
            );
        }
        let row = |what: &str| case(format!("{word} {what}"));
        cases.push(
            row("a frontend for the outside, asked by a workload")
                .passes(WorkloadIngress, &syn(workload, balancer).by(POD)),
        );
        cases.push(row("a frontend on the way out").passes(UplinkEgress, &syn(client, balancer)));
        cases.push(row("a frontend on the way to a workload").passes(WorkloadEgress, &syn(client, balancer)));
    }
    cases
}

pub(crate) fn without_backends() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in PROTOCOLS {
            for (program, scope) in
                [(XdpUplink, Scope::External), (UplinkIngress, Scope::External), (WorkloadIngress, Scope::Internal)]
            {
                let frontend = net.frontend(Kind::ExternalIp, 60);
                cases.push(
                    case(format!("{} {word} without backends, {}", net.word, program.name()))
                        .given(move |scene| {
                            let empty = meshd_abi::Service { count: 0, slots: 0, ..service(60, 0) };
                            scene.put_service(frontend, protocol, scope, empty);
                        })
                        .drops(program, &opening(protocol, net.client(), frontend), Reason::NoBackend)
                        .given(|scene| assert_eq!(scene.connections(), 0)),
                );
            }
        }
    }
    cases
}

pub(crate) fn without_source() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let client = net.client();
        for program in [XdpUplink, UplinkIngress] {
            let remote = syn(client, net.frontend(Kind::LoadBalancer, backend::REMOTE));
            let local = net.frontend(Kind::LoadBalancer, backend::LOCAL);
            let out = syn(client, net.backend(backend::LOCAL));
            let row = |what: &str| case(format!("{} {what}, {}", net.word, program.name()));
            cases.push(
                row("no source")
                    .given(|scene| {
                        scene.put_settings(|settings| {
                            settings.source4 = meshd_abi::V4::default();
                            settings.source6 = meshd_abi::V6::default();
                        });
                    })
                    .drops(program, &remote, Reason::NoSource)
                    .becomes(program, &syn(client, local), Pass, &out, Reason::NewConnection),
            );
            cases.push(row("no ports").given(|scene| scene.put_settings(|settings| settings.port_count = 0)).drops(
                program,
                &remote,
                Reason::NoSource,
            ));
        }
    }
    cases
}

pub(crate) fn closing() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let frontend = net.frontend(Kind::NodePort, backend::REMOTE);
        let (client, node, remote) = (net.client(), net.node(), net.backend(backend::REMOTE));
        let out = |frame: Frame| frame.sent(GATEWAY, OWN);
        cases.push(
            case(format!("{} FIN in both directions", net.word))
                .becomes(XdpUplink, &syn(client, frontend), Back, &out(syn(node, remote)), Reason::NewConnection)
                .becomes(
                    XdpUplink,
                    &tcp(client, frontend).flags(FIN),
                    Back,
                    &out(tcp(node, remote).flags(FIN)),
                    Reason::ToBackend,
                )
                .becomes(XdpUplink, &tcp(remote, node), Back, &out(tcp(frontend, client)), Reason::Reply)
                .becomes(
                    XdpUplink,
                    &tcp(remote, node).flags(FIN),
                    Back,
                    &out(tcp(frontend, client).flags(FIN)),
                    Reason::Reply,
                )
                .becomes(XdpUplink, &tcp(client, frontend), Back, &out(tcp(node, remote)), Reason::ToBackend),
        );
    }
    cases
}
