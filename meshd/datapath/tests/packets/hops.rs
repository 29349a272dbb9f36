//! The way a packet leaves: hop limits, next hops that are known or not, paths that are too narrow.

use std::net::SocketAddr;

use meshd_abi::{LINKS, Reason, link_flags};
use meshd_datapath::Program::{UplinkEgress, UplinkIngress, WorkloadEgress, WorkloadIngress, XdpUplink};

use crate::{
    case::{
        Case,
        Verdict::{Back, Pass, Redirect},
        case,
    },
    dsr::outer,
    frame::{Body, Frame, GATEWAY, Mac, OWN, TCP, UDP, between, packet, syn, tcp, udp},
    scene::{BACKEND_PORT, KERNEL, Kind, LINK, NETS, OTHER, POD, UPLINK, backend, hop},
};

pub(crate) fn hop_limits() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
            let row = |what: &str| case(format!("{} {word}, {what}", net.word));
            let ask =
                |index: u32, ttl: u8| packet(protocol, net.client(), net.frontend(Kind::NodePort, index)).ttl(ttl);
            let sent = |ttl: u8| packet(protocol, net.node(), net.backend(backend::REMOTE)).ttl(ttl).sent(GATEWAY, OWN);
            for (program, verdict) in [(XdpUplink, Back), (UplinkIngress, Redirect)] {
                for ttl in [0, 1] {
                    let name = format!("hop limit {ttl} to a remote backend, {}", program.name());
                    cases.push(row(&name).drops(program, &ask(backend::REMOTE, ttl), Reason::TtlExpired));
                }
                for ttl in [2, 255] {
                    let name = format!("hop limit {ttl} to a remote backend, {}", program.name());
                    let asked = ask(backend::REMOTE, ttl);
                    cases.push(row(&name).becomes(program, &asked, verdict, &sent(ttl), Reason::NewConnection));
                }
                let out = packet(protocol, net.client(), net.backend(backend::LOCAL)).ttl(1);
                let name = format!("hop limit 1 to a local backend, {}", program.name());
                let asked = ask(backend::LOCAL, 1);
                cases.push(row(&name).becomes(program, &asked, Pass, &out, Reason::NewConnection));
            }
            let name = "hop limit 1 to a local backend past the stack";
            cases.push(row(name).drops(UplinkIngress, &ask(backend::POD, 1), Reason::TtlExpired));
            let out = packet(protocol, net.client(), net.backend(backend::POD)).ttl(2).sent(POD, OWN);
            let asked = ask(backend::POD, 2);
            cases.push(row("hop limit 2 past the stack").becomes(
                UplinkIngress,
                &asked,
                Redirect,
                &out,
                Reason::NewConnection,
            ));
            // On the way out the stack has counted the hop.
            let local = net.backend(backend::LOCAL);
            let frontend = net.frontend(Kind::NodePort, backend::LOCAL);
            for program in [UplinkEgress, WorkloadEgress] {
                let answer = packet(protocol, local, net.client()).ttl(1);
                let out = packet(protocol, frontend, net.client()).ttl(1);
                let to_local = packet(protocol, net.client(), local);
                cases.push(
                    row(&format!("answer with hop limit 1, {}", program.name()))
                        .becomes(XdpUplink, &ask(backend::LOCAL, 64), Pass, &to_local, Reason::NewConnection)
                        .becomes(program, &answer, Pass, &out, Reason::Reply),
                );
            }
            let answer = packet(protocol, net.backend(backend::REMOTE), net.node()).ttl(1);
            cases.push(
                row("answer with hop limit 1, xdp_uplink")
                    .becomes(XdpUplink, &ask(backend::REMOTE, 64), Back, &sent(64), Reason::NewConnection)
                    .drops(XdpUplink, &answer, Reason::TtlExpired)
                    .drops(UplinkIngress, &answer, Reason::TtlExpired),
            );
        }
    }
    cases
}

/// What XDP may not send is left to TC as it came.
pub(crate) fn by_xdp() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (index, to, may, back) in [
            (backend::REMOTE, GATEWAY, link_flags::RETURNS, true),
            (backend::OTHER, OTHER, link_flags::TRANSMITS, false),
        ] {
            let asked = syn(net.client(), net.frontend(Kind::NodePort, index));
            let sent = syn(net.node(), net.backend(index)).sent(to, OWN);
            let verdict = if back { Back } else { Redirect };
            let all = link_flags::RETURNS | link_flags::TRANSMITS;
            let (at, other) = if back { (LINK, UPLINK) } else { (UPLINK, LINK) };
            let row = |what: &str| case(format!("{} backend {index}, {what}", net.word));
            cases.push(
                row("the link does not take it")
                    .given(move |scene| scene.put_link(at, all & !may))
                    .passes(XdpUplink, &asked)
                    .becomes(UplinkIngress, &asked, Redirect, &sent, Reason::ToBackend),
            );
            cases.push(
                row("the link takes it, and what others take does not matter")
                    .given(move |scene| {
                        scene.put_link(other, 0);
                        scene.put_link(at, may);
                    })
                    .becomes(XdpUplink, &asked, verdict, &sent, Reason::NewConnection),
            );
            cases.push(
                row("XDP in the stack")
                    .given(|scene| {
                        scene.put_link(UPLINK, 0);
                        scene.put_link(LINK, link_flags::GENERIC);
                    })
                    .becomes(XdpUplink, &asked, verdict, &sent, Reason::NewConnection),
            );
            cases.push(
                row("nothing known of the link it arrived at")
                    .given(|scene| scene.forget_link(LINK))
                    .passes(XdpUplink, &asked)
                    .given(|scene| assert_eq!(scene.connections(), 0)),
            );
            cases.push(
                row("another link has its element")
                    .given(move |scene| scene.put_link(LINK + LINKS, all))
                    .passes(XdpUplink, &asked)
                    .given(|scene| assert_eq!(scene.connections(), 0))
                    .becomes(UplinkIngress, &asked, Redirect, &sent, Reason::NewConnection),
            );
        }
        // By the kernel's route, too.
        let asked = syn(net.client(), net.frontend(Kind::LoadBalancer, backend::FAR));
        cases.push(
            case(format!("{} by a route to a link that does not take it", net.word))
                .given(|scene| scene.put_link(UPLINK, link_flags::RETURNS))
                .passes(XdpUplink, &asked),
        );
    }
    cases
}

/// The link-layer address of the uplink, which `case::with_machine` gave it.
const UPLINK_MAC: Mac = crate::bench::UPLINK_MAC;

pub(crate) fn by_kernel() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let word = net.word;
        let far = net.frontend(Kind::LoadBalancer, backend::FAR);
        let out = syn(net.node(), net.backend(backend::FAR));
        // XDP writes the addresses itself, in TC the kernel does after the program.
        let written = out.clone().sent(KERNEL, UPLINK_MAC);
        let by_neighbor = out.clone().sent(OWN, GATEWAY);
        let asked = syn(net.client(), far);
        cases.push(
            case(format!("{word} a route and a neighbor, xdp_uplink"))
                .becomes(XdpUplink, &asked, Redirect, &written, Reason::NewConnection)
                .becomes(XdpUplink, &asked, Redirect, &written, Reason::ToBackend),
        );
        cases.push(
            case(format!("{word} a route and a neighbor, uplink_ingress"))
                .becomes(UplinkIngress, &asked, Redirect, &by_neighbor, Reason::NewConnection)
                .becomes(UplinkIngress, &asked, Redirect, &by_neighbor, Reason::ToBackend),
        );
        cases.push(case(format!("{word} hop limit 1, uplink_ingress")).drops(
            UplinkIngress,
            &asked.clone().ttl(1),
            Reason::TtlExpired,
        ));
        cases.push(case(format!("{word} hop limit 1, xdp_uplink")).drops(
            XdpUplink,
            &asked.clone().ttl(1),
            Reason::TtlExpired,
        ));
        // XDP leaves what it cannot finish, unchanged, and TC finds the connection known.
        let at_silent = SocketAddr::from((net.silent_ip(), BACKEND_PORT));
        let to_silent = syn(net.node(), at_silent).sent(OWN, GATEWAY);
        cases.push(
            case(format!("{word} a route and no neighbor"))
                .given(move |scene| scene.put_backend_address(backend::FAR, net.silent_ip()))
                .passes(XdpUplink, &asked)
                .becomes(UplinkIngress, &asked, Redirect, &to_silent, Reason::ToBackend),
        );
        let nowhere = syn(net.client(), net.frontend(Kind::LoadBalancer, backend::NOWHERE));
        cases.push(case(format!("{word} an unresolved next hop and no route")).passes(XdpUplink, &nowhere).drops(
            UplinkIngress,
            &nowhere,
            Reason::NoRoute,
        ));
        // From a workload the stack has the last word.
        let cluster = net.frontend(Kind::Cluster, backend::NOWHERE);
        cases.push(case(format!("{word} an unresolved next hop, workload_ingress")).becomes(
            WorkloadIngress,
            &syn(net.workload(), cluster),
            Pass,
            &syn(net.workload(), net.backend(backend::NOWHERE)),
            Reason::NewConnection,
        ));
        // The answer goes to a neighbor that nobody knows by its address: the kernel is asked.
        let remote = net.frontend(Kind::LoadBalancer, backend::OTHER);
        let stranger: Mac = [2, 0, 0, 0, 0, 0x77];
        let sent = syn(net.node(), net.backend(backend::OTHER)).sent(OTHER, OWN);
        let answer = tcp(net.backend(backend::OTHER), net.node());
        let answered = tcp(remote, net.client());
        cases.push(
            case(format!("{word} asked by a neighbor that is not known"))
                .becomes(XdpUplink, &syn(net.client(), remote).by(stranger), Redirect, &sent, Reason::NewConnection)
                .becomes(XdpUplink, &answer, Redirect, &answered.clone().sent(KERNEL, UPLINK_MAC), Reason::Reply)
                .becomes(UplinkIngress, &answer, Redirect, &answered.sent(OWN, GATEWAY), Reason::Reply),
        );
    }
    cases
}

pub(crate) fn narrow() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let frontend = net.frontend(Kind::LoadBalancer, backend::NARROW);
        let header = if net.is_v4() { 20 } else { 40 };
        let filled = |frame: Frame, length: usize| frame.data(&vec![7; length - header - 8]);
        let asked = |length| filled(udp(net.client(), frontend), length);
        let out = |length| filled(udp(net.node(), net.backend(backend::NARROW)), length).sent(GATEWAY, OWN);
        let row = |what: &str| case(format!("{} {what}", net.word));
        cases.push(
            row("as long as the link takes, xdp_uplink")
                .becomes(XdpUplink, &asked(100), Back, &out(100), Reason::NewConnection)
                .passes(XdpUplink, &asked(101)),
        );
        cases.push(row("as long as the link takes, uplink_ingress").becomes(
            UplinkIngress,
            &asked(100),
            Redirect,
            &out(100),
            Reason::NewConnection,
        ));
        // The kernel's own route to the backend is by a link that takes it.
        cases.push(row("one octet more, uplink_ingress").becomes(
            UplinkIngress,
            &asked(101),
            Redirect,
            &filled(udp(net.node(), net.backend(backend::NARROW)), 101).sent(OWN, GATEWAY),
            Reason::NewConnection,
        ));
        cases.push(
            row("a next hop that changes its link")
                .becomes(XdpUplink, &asked(100), Back, &out(100), Reason::NewConnection)
                .given(move |scene| {
                    let moved = crate::scene::next_hop(UPLINK, 1_500, OTHER);
                    scene.maps.next_hops.put(&hop::NARROW, &moved).expect("a next hop");
                })
                .becomes(
                    XdpUplink,
                    &asked(101),
                    Redirect,
                    &filled(udp(net.node(), net.backend(backend::NARROW)), 101).sent(OTHER, OWN),
                    Reason::ToBackend,
                ),
        );
        // By the kernel's route: what is longer than its link takes is left to TC.
        let far = net.frontend(Kind::LoadBalancer, backend::FAR);
        let long = |length| filled(udp(net.client(), far), length);
        let sent = filled(udp(net.node(), net.backend(backend::FAR)), 1_400).sent(KERNEL, UPLINK_MAC);
        cases.push(
            row("the kernel's route, as long as it takes and one octet more")
                .becomes(XdpUplink, &long(1_400), Redirect, &sent, Reason::NewConnection)
                .passes(XdpUplink, &long(1_401)),
        );
        // Who sent what must not be fragmented is told, from the address it was sent to; whatever is not told ends all the same.
        let whole = long(1_401).whole();
        let told = too_big(&whole, 1_400);
        cases.push(row("one octet more by the kernel's route, not to be fragmented").becomes_bytes(
            UplinkIngress,
            &whole.bytes(),
            Redirect,
            &told,
            Reason::TooBig,
        ));
        if net.is_v4() {
            cases.push(row("one octet more, may be fragmented").drops(UplinkIngress, &long(1_401), Reason::TooBig));
        }
    }
    cases
}

/// The error about a frame that is too long, as it goes back to who sent that.
pub(crate) fn too_big(about: &Frame, mtu: u16) -> Vec<u8> {
    let is_v4 = about.source.is_ipv4();
    let (kind, code) = if is_v4 { (3, 4) } else { (2, 0) };
    let mut quoted = about.packet();
    // What errors made here quote.
    quoted.truncate(64);
    let body = Body::Error { kind, code, word: mtu.into(), quoted };
    let mut error = between(about.destination, about.source, body);
    (error.to, error.from) = (about.from, about.to);
    let bytes = error.bytes();
    if is_v4 {
        // Ours has no identification, and is not to be fragmented.
        return outer(about.destination, about.source, (about.from, about.to), 1, &bytes[34..]);
    }
    bytes
}
