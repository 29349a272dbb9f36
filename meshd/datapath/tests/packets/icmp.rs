//! ICMP errors about packets that were translated: whoever sent the packet is told about the packet he sent.

use std::net::{IpAddr, SocketAddr};

use meshd_abi::Reason;
use meshd_datapath::Program::{self, UplinkEgress, UplinkIngress, WorkloadEgress, WorkloadIngress, XdpUplink};

use crate::{
    case::{
        Case,
        Verdict::{Pass, Redirect},
        case,
    },
    frame::{Body, Frame, GATEWAY, OWN, SCTP, TCP, UDP, between, opening, packet, ping, pong, tcp, udp},
    scene::{Kind, NETS, Net, OTHER, POD, PORT, backend},
};

/// How much of the packet an error quotes.
#[derive(Clone, Copy)]
enum Quote {
    /// The network header and eight octets, which is all that RFC 792 promises.
    Eight,
    /// All of it.
    Whole,
}

const QUOTES: [(&str, Quote); 2] = [("eight octets", Quote::Eight), ("all of it", Quote::Whole)];

/// An error with type and code.
fn error(from: IpAddr, to: IpAddr, (kind, code, word): (u8, u8, u32), about: &Frame, quote: Quote) -> Frame {
    let mut quoted = about.packet();
    if let Quote::Eight = quote {
        let header = if from.is_ipv4() { 20 + about.options.len() } else { 40 };
        let extensions: usize = about.extensions.iter().map(|(_, octets)| octets.len()).sum();
        quoted.truncate(header + extensions + 8);
    }
    between(from, to, Body::Error { kind, code, word, quoted })
}

/// "Too big, here fit 1280" and its like.
fn too_big(net: Net) -> (u8, u8, u32) {
    if net.is_v4() { (3, 4, 1_280) } else { (2, 0, 1_280) }
}

fn port_unreachable(net: Net) -> (u8, u8, u32) {
    if net.is_v4() { (3, 3, 0) } else { (1, 4, 0) }
}

fn row(net: Net, word: &str, what: &str) -> Case {
    case(format!("{} {word}, {what}", net.word))
}

/// The client's connection to a frontend.
fn asked(row: Case, net: Net, protocol: u8, frontend: SocketAddr, index: u32) -> Case {
    let asked = packet(protocol, net.client(), frontend);
    let (backend, client) = (net.backend(index), net.client());
    let (verdict, out) = match index {
        backend::LOCAL => (Pass, packet(protocol, client, backend)),
        backend::POD => (Redirect, packet(protocol, client, backend).sent(POD, OWN)),
        backend::REMOTE => (Redirect, packet(protocol, net.node(), backend).sent(GATEWAY, OWN)),
        _ => (Redirect, packet(protocol, net.node(), backend).sent(OTHER, OWN)),
    };
    row.becomes(UplinkIngress, &asked, verdict, &out, Reason::NewConnection)
}

pub(crate) fn masqueraded() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, world, node, router) = (net.workload(), net.world(), net.node(), net.router_ip());
        let echo = (ping(workload.ip(), world.ip(), 7), ping(node.ip(), world.ip(), PORT));
        let echoed = (pong(world.ip(), workload.ip(), 7), pong(world.ip(), node.ip(), PORT));
        for (word, sent, left, answer, answered) in [
            ("tcp", tcp(workload, world), tcp(node, world), tcp(world, workload), tcp(world, node)),
            ("udp", udp(workload, world), udp(node, world), udp(world, workload), udp(world, node)),
            ("echo", echo.0, echo.1, echoed.0, echoed.1),
        ] {
            for (how_much, quote) in QUOTES {
                let begun = |what: &str| {
                    row(net, word, &format!("{what}, {how_much}")).becomes(
                        UplinkEgress,
                        &sent,
                        Pass,
                        &left,
                        Reason::Masqueraded,
                    )
                };
                // On the way the hop limit has become another one.
                let (left, sent) = (left.clone().ttl(3), sent.clone().ttl(3));
                let told = error(router, node.ip(), too_big(net), &left, quote);
                let out = error(router, workload.ip(), too_big(net), &sent, quote);
                cases.push(begun("by a router").passes(XdpUplink, &told).becomes(
                    UplinkIngress,
                    &told,
                    Pass,
                    &out,
                    Reason::IcmpError,
                ));
                let told = error(world.ip(), node.ip(), port_unreachable(net), &left, quote);
                let out = error(world.ip(), workload.ip(), port_unreachable(net), &sent, quote);
                cases.push(begun("by the other end").becomes(UplinkIngress, &told, Pass, &out, Reason::IcmpError));
                // The workload's own opinion of an answer.
                let told = error(workload.ip(), world.ip(), port_unreachable(net), &answer, quote);
                let out = error(node.ip(), world.ip(), port_unreachable(net), &answered, quote);
                cases.push(begun("by the workload").passes(WorkloadIngress, &told).becomes(
                    UplinkEgress,
                    &told,
                    Pass,
                    &out,
                    Reason::IcmpError,
                ));
            }
        }
    }
    cases
}

pub(crate) fn services() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
            for (how_much, quote) in QUOTES {
                for kind in [Kind::NodePort, Kind::LoadBalancer] {
                    let name = |what: &str| row(net, word, &format!("{kind:?}, {what}, {how_much}"));
                    remote_backend(&mut cases, name, net, protocol, kind, quote);
                    local_backends(&mut cases, name, net, protocol, kind, quote);
                }
            }
        }
    }
    cases
}

fn remote_backend(
    cases: &mut Vec<Case>,
    name: impl Fn(&str) -> Case,
    net: Net,
    protocol: u8,
    kind: Kind,
    quote: Quote,
) {
    let (client, node, router) = (net.client(), net.node(), net.router_ip());
    let (frontend, remote) = (net.frontend(kind, backend::REMOTE), net.backend(backend::REMOTE));
    let begun = |what: &str| asked(name(what), net, protocol, frontend, backend::REMOTE);

    let about = packet(protocol, node, remote);
    for (what, from) in [("by a router behind us", router), ("by the backend", remote.ip())] {
        let told = error(from, node.ip(), too_big(net), &about, quote);
        // To the client both are the service.
        let out = error(frontend.ip(), client.ip(), too_big(net), &packet(protocol, client, frontend), quote);
        let sent = out.sent(GATEWAY, OWN);
        cases.push(begun(what).becomes(UplinkIngress, &told, Redirect, &sent, Reason::IcmpError));
    }
    let about = packet(protocol, frontend, client);
    for (what, from) in [("by a router before us", router), ("by the client", client.ip())] {
        let told = error(from, frontend.ip(), too_big(net), &about, quote);
        // To the backend both are this node.
        let out = error(node.ip(), remote.ip(), too_big(net), &packet(protocol, remote, node), quote);
        let sent = out.sent(GATEWAY, OWN);
        cases.push(begun(what).passes(XdpUplink, &told).becomes(
            UplinkIngress,
            &told,
            Redirect,
            &sent,
            Reason::IcmpError,
        ));
    }
    let told = error(router, node.ip(), too_big(net), &packet(protocol, node, remote), quote).ttl(1);
    cases.push(begun("hop limit 1").drops(UplinkIngress, &told, Reason::TtlExpired));
}

fn local_backends(
    cases: &mut Vec<Case>,
    name: impl Fn(&str) -> Case,
    net: Net,
    protocol: u8,
    kind: Kind,
    quote: Quote,
) {
    let (client, router) = (net.client(), net.router_ip());
    for index in [backend::LOCAL, backend::POD] {
        let (frontend, local) = (net.frontend(kind, index), net.backend(index));
        let begun = |what: &str| asked(name(&format!("{what} of {index}")), net, protocol, frontend, index);
        let told = error(router, frontend.ip(), too_big(net), &packet(protocol, frontend, client), quote);
        let out = error(router, local.ip(), too_big(net), &packet(protocol, local, client), quote);
        let (verdict, out) = if index == backend::LOCAL { (Pass, out) } else { (Redirect, out.sent(POD, OWN)) };
        cases.push(begun("about an answer").becomes(UplinkIngress, &told, verdict, &out, Reason::IcmpError));

        let about = packet(protocol, client, local);
        let told = error(local.ip(), client.ip(), port_unreachable(net), &about, quote).by(POD);
        let out = error(frontend.ip(), client.ip(), port_unreachable(net), &packet(protocol, client, frontend), quote);
        let sent = out.clone().sent(GATEWAY, OWN);
        let row = begun("by the workload");
        let row = if index == backend::LOCAL {
            row.passes(WorkloadIngress, &told)
        } else {
            row.becomes(WorkloadIngress, &told, Redirect, &sent, Reason::IcmpError)
        };
        cases.push(row.becomes(UplinkEgress, &told, Pass, &out.by(POD), Reason::IcmpError));
        let told = error(net.node_ip(), client.ip(), too_big(net), &about, quote);
        let out = error(frontend.ip(), client.ip(), too_big(net), &packet(protocol, client, frontend), quote);
        cases.push(begun("by this node").becomes(UplinkEgress, &told, Pass, &out, Reason::IcmpError));
    }
}

pub(crate) fn workloads() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
            for (how_much, quote) in QUOTES {
                let (workload, router) = (net.workload(), net.router_ip());
                let (cluster, remote) = (net.frontend(Kind::Cluster, backend::FAR), net.backend(backend::FAR));
                let begun = |what: &str| {
                    row(net, word, &format!("{what}, {how_much}")).becomes(
                        WorkloadIngress,
                        &packet(protocol, workload, cluster),
                        Pass,
                        &packet(protocol, workload, remote),
                        Reason::NewConnection,
                    )
                };
                let told = error(router, workload.ip(), too_big(net), &packet(protocol, workload, remote), quote);
                let out = error(cluster.ip(), workload.ip(), too_big(net), &packet(protocol, workload, cluster), quote);
                cases.push(begun("by a router: netfilter sees it as it is").passes(UplinkIngress, &told).becomes(
                    WorkloadEgress,
                    &told,
                    Pass,
                    &out,
                    Reason::IcmpError,
                ));
                let about = packet(protocol, cluster, workload);
                let told = error(workload.ip(), cluster.ip(), port_unreachable(net), &about, quote);
                let about = packet(protocol, remote, workload);
                let out = error(workload.ip(), remote.ip(), port_unreachable(net), &about, quote);
                cases.push(begun("by the workload").becomes(WorkloadIngress, &told, Pass, &out, Reason::IcmpError));

                // To itself, by the loopback address.
                let cluster = net.frontend(Kind::Cluster, backend::LOCAL);
                let own = SocketAddr::from((workload.ip(), crate::scene::BACKEND_PORT));
                let seen = SocketAddr::from((net.loopback_ip(), workload.port()));
                let told = error(workload.ip(), seen.ip(), port_unreachable(net), &packet(protocol, seen, own), quote);
                let about = packet(protocol, workload, cluster);
                let out = error(cluster.ip(), workload.ip(), port_unreachable(net), &about, quote);
                cases.push(
                    row(net, word, &format!("hairpin, {how_much}"))
                        .given(move |scene| scene.put_backend_address(backend::LOCAL, net.workload_ip()))
                        .becomes(
                            WorkloadIngress,
                            &opening(protocol, workload, cluster).by(POD),
                            Pass,
                            &opening(protocol, seen, own).by(POD),
                            Reason::NewConnection,
                        )
                        .becomes(WorkloadIngress, &told.by(POD), Redirect, &out.sent(POD, OWN), Reason::IcmpError),
                );
            }
        }
    }
    cases
}

pub(crate) fn forms() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, world, node, router) = (net.workload(), net.world(), net.node(), net.router_ip());
        let begun = |what: &str| {
            row(net, "udp", what).becomes(
                UplinkEgress,
                &udp(workload, world),
                Pass,
                &udp(node, world),
                Reason::Masqueraded,
            )
        };
        let types: [(u8, u8, u32); 4] = if net.is_v4() {
            [(3, 1, 0), (3, 13, 0), (11, 0, 0), (12, 0, 20 << 24)]
        } else {
            [(1, 0, 0), (2, 0, 1_280), (3, 0, 0), (4, 1, 6)]
        };
        let become_same = |row: Case, about: &dyn Fn(SocketAddr) -> Frame, wrap: &dyn Fn(Frame) -> Frame, quote| {
            let told = wrap(error(router, node.ip(), too_big(net), &about(node), quote));
            let out = wrap(error(router, workload.ip(), too_big(net), &about(workload), quote));
            row.becomes(UplinkIngress, &told, Pass, &out, Reason::IcmpError)
        };
        for (kind, code, word) in types {
            let told = error(router, node.ip(), (kind, code, word), &udp(node, world), Quote::Whole);
            let out = error(router, workload.ip(), (kind, code, word), &udp(workload, world), Quote::Whole);
            cases.push(begun(&format!("type {kind}")).becomes(UplinkIngress, &told, Pass, &out, Reason::IcmpError));
        }
        let plain = |from: SocketAddr| udp(from, world);
        let same = |frame: Frame| frame;
        let unsummed = |from: SocketAddr| udp(from, world).unsummed();
        cases.push(become_same(begun("no sum inside"), &unsummed, &same, Quote::Whole));
        let zero = crate::frame::octets_for_sum_zero(&udp(workload, world));
        let to_zero = |from: SocketAddr| udp(from, world).data(&zero);
        cases.push(become_same(begun("a sum inside that comes out as zero"), &to_zero, &same, Quote::Whole));
        let first = |from: SocketAddr| udp(from, world).data(&[7; 40]).piece(9, 0, 16);
        cases.push(become_same(begun("about a first fragment"), &first, &same, Quote::Whole));
        if net.is_v4() {
            let with = |frame: Frame| frame.options(&[7, 7, 4, 0, 0, 0, 0, 0]);
            let inner = |from: SocketAddr| with(udp(from, world));
            cases.push(become_same(begun("options outside"), &plain, &with, Quote::Eight));
            cases.push(become_same(begun("options inside"), &inner, &same, Quote::Eight));
            cases.push(become_same(begun("options in both"), &inner, &with, Quote::Whole));
        } else {
            let with = |frame: Frame| frame.extension(0, &[0, 0, 5, 2, 0, 0, 1, 0]).extension(60, &[0; 8]);
            let inner = |from: SocketAddr| with(udp(from, world));
            cases.push(become_same(begun("extension headers outside"), &plain, &with, Quote::Eight));
            cases.push(become_same(begun("extension headers inside"), &inner, &same, Quote::Eight));
            cases.push(become_same(begun("extension headers in both"), &inner, &with, Quote::Whole));
        }
        // The ports of SCTP are what they were.
        let node_sctp = SocketAddr::from((node.ip(), workload.port()));
        let told = error(router, node.ip(), too_big(net), &packet(SCTP, node_sctp, world), Quote::Eight);
        let out = error(router, workload.ip(), too_big(net), &packet(SCTP, workload, world), Quote::Eight);
        cases.push(
            row(net, "sctp", "by a router")
                .becomes(
                    UplinkEgress,
                    &packet(SCTP, workload, world),
                    Pass,
                    &packet(SCTP, node_sctp, world),
                    Reason::Masqueraded,
                )
                .becomes(UplinkIngress, &told, Pass, &out, Reason::IcmpError),
        );
    }
    cases
}

pub(crate) fn not_ours() -> Vec<Case> {
    let mut cases = Vec::new();
    const TC: [Program; 4] = [UplinkIngress, UplinkEgress, WorkloadIngress, WorkloadEgress];
    for net in NETS {
        let (workload, world, node, router) = (net.workload(), net.world(), net.node(), net.router_ip());
        for program in TC {
            let row = |what: &str| row(net, what, program.name());
            let to_node = |about: &Frame| error(router, node.ip(), too_big(net), about, Quote::Whole);
            cases.push(row("nobody's connection").passes(program, &to_node(&udp(node, world))));
            let inner = to_node(&udp(node, world));
            cases.push(row("about an error").passes(program, &to_node(&inner)));
            let gre = between(node.ip(), world.ip(), Body::Raw { protocol: 47, bytes: vec![0; 16] });
            cases.push(row("about gre").passes(program, &to_node(&gre)));
            let later = udp(node, world).data(&[7; 40]).piece(9, 16, 16);
            cases.push(row("about a later fragment").passes(program, &to_node(&later)));
            let piece = to_node(&udp(node, world).data(&[7; 40])).piece(9, 0, 64);
            cases.push(row("a fragment itself").passes(program, &piece));
            let mut cut = to_node(&udp(node, world));
            let Body::Error { quoted, .. } = &mut cut.body else { unreachable!() };
            quoted.truncate(if net.is_v4() { 27 } else { 47 });
            cases.push(row("cut short inside").passes_as(program, &cut, Reason::Malformed));
        }
        // A workload that was addressed directly answers as itself, with errors too.
        let told = error(workload.ip(), world.ip(), port_unreachable(net), &udp(world, workload), Quote::Whole);
        cases.push(
            row(net, "udp", "about a packet from outside to a workload")
                .passes(UplinkIngress, &udp(world, workload))
                .passes(UplinkEgress, &told),
        );
        // An answer to a masqueraded connection is somebody else's when the ports differ.
        let other = SocketAddr::from((node.ip(), PORT + 1));
        let told = error(router, node.ip(), too_big(net), &udp(other, world), Quote::Whole);
        cases.push(
            row(net, "udp", "another port of the node")
                .becomes(UplinkEgress, &udp(workload, world), Pass, &udp(node, world), Reason::Masqueraded)
                .passes(UplinkIngress, &told),
        );
    }
    cases
}
