//! Direct server return: what leaves for a backend of another node, what arrives for one of this, and what is not believed.
//!
//! Packets with notes are built here octet by octet as their formats are described, and compared whole.

use std::net::{IpAddr, SocketAddr};

use etherparse::Ipv4Header;
use meshd_abi::{BackendState, Identity, Reason, Scope, connection_flags, identity_flags, settings_flags};
use meshd_datapath::Program::{self, UplinkEgress, UplinkIngress, WorkloadIngress, XdpUplink};

use crate::{
    case::{
        Case,
        Verdict::{self, Back, Pass, Redirect},
        case, with_machine,
    },
    fast::put_ways,
    frame::{
        ACK, Body, FIN, Frame, GATEWAY, Mac, OWN, SCTP, SYN, TCP, UDP, between, opening, packet, syn, tcp, udp, verify,
    },
    scene::{BACKEND_PORT, Kind, NETS, Net, OTHER, POD, backend, hop, service},
};

const PROTOCOLS: [(&str, u8); 3] = [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)];
const PROGRAMS: [Program; 2] = [XdpUplink, UplinkIngress];

/// How a note travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Option,
    Ipip,
    Geneve,
}
use Form::{Geneve, Ipip};

pub(crate) const FORMS: [Form; 3] = [Form::Option, Ipip, Geneve];

impl Form {
    pub(crate) const fn flag(self) -> u32 {
        match self {
            Self::Option => 0,
            Ipip => settings_flags::DSR_IPIP,
            Geneve => settings_flags::DSR_GENEVE,
        }
    }

    /// Octets it adds.
    fn overhead(self, net: Net) -> u32 {
        match (self, net.is_v4()) {
            (Self::Option, true) => 8,
            (Self::Option, false) => 24,
            (Ipip, true) => 28,
            (Ipip, false) => 64,
            (Geneve, true) => 20 + 8 + 8 + 12 + 14,
            (Geneve, false) => 40 + 8 + 8 + 24 + 14,
        }
    }
}

/// A frame with the note in its own header.
pub(crate) fn with_option(frame: &Frame, frontend: SocketAddr) -> Frame {
    let port = frontend.port().to_be_bytes();
    match frontend.ip() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            let mut noted = frame.clone();
            noted.options = [&[0x9a, 8, port[1], port[0], d, c, b, a], &frame.options[..]].concat();
            noted
        }
        IpAddr::V6(ip) => {
            let mut noted = frame.clone();
            let octets = [&[0, 2, 0x1b, 20][..], &ip.octets(), &port, &[0, 0]].concat();
            noted.extensions.insert(0, (60, octets));
            noted
        }
    }
}

/// A frame with an IP header of ours around octets.
pub(crate) fn outer(from: IpAddr, to: IpAddr, link: (Mac, Mac), protocol: u8, inside: &[u8]) -> Vec<u8> {
    let (mut header, ethertype) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = (20 + inside.len() as u16).to_be_bytes();
            let fixed = [0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
            ([&fixed[..], &from.octets(), &to.octets()].concat(), [8, 0])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = (inside.len() as u16).to_be_bytes();
            let fixed = [0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            ([&fixed[..], &from.octets(), &to.octets()].concat(), [0x86, 0xdd])
        }
        _ => unreachable!("one family at a time"),
    };
    if from.is_ipv4() {
        let sum = Ipv4Header::from_slice(&header).expect("a header").0.calc_header_checksum();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    [&link.0[..], &link.1, &ethertype, &header, inside].concat()
}

/// The octets of a frame that carries a note; outer headers are from one node to another. `port` is the source port of Geneve.
pub(crate) fn noted(form: Form, frame: &Frame, frontend: SocketAddr, nodes: (IpAddr, IpAddr), port: u16) -> Vec<u8> {
    let link = (frame.to, frame.from);
    let is_v4 = frontend.is_ipv4();
    match form {
        Form::Option => with_option(frame, frontend).bytes(),
        Ipip => {
            let inside = with_option(frame, frontend).packet();
            outer(nodes.0, nodes.1, link, if is_v4 { 4 } else { 41 }, &inside)
        }
        Geneve => {
            let inside = frame.packet();
            let address = match frontend.ip() {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let words = (8 + address.len() as u8) / 4;
            let ethertype: [u8; 2] = if is_v4 { [8, 0] } else { [0x86, 0xdd] };
            let geneve = [
                &[words, 0x40, 0x65, 0x58, 0, 0, 2, 0][..],
                &[0x01, 0x4b, 0x81, words - 1],
                &address,
                &frontend.port().to_be_bytes(),
                &[0, 0],
                &[0; 12],
                &ethertype,
                &inside,
            ]
            .concat();
            let length = (8 + geneve.len() as u16).to_be_bytes();
            let ports = [port.to_be_bytes(), 6_081u16.to_be_bytes()].concat();
            outer(nodes.0, nodes.1, link, UDP, &[&ports[..], &length, &[0, 0], &geneve].concat())
        }
    }
}

/// The source port of Geneve for a flow, as the host computes it.
fn entropy(from: SocketAddr, to: SocketAddr) -> u16 {
    fn folded(ip: IpAddr) -> u32 {
        use meshd_abi::{Address as _, V4, V6};
        match ip {
            IpAddr::V4(ip) => V4::from_octets(ip.octets()).folded(),
            IpAddr::V6(ip) => V6::from_octets(ip.octets()).folded(),
        }
    }
    let ports = u64::from(from.port().to_be()) << 16 | u64::from(to.port().to_be());
    let mut x = u64::from(folded(from.ip())) << 32 | ports;
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 32) as u16 | 0xc000
}

/// The backend with the frontend's port when the protocol is SCTP: its sum covers the ports, so they stay.
fn reached(net: Net, protocol: u8, index: u32, frontend: SocketAddr) -> SocketAddr {
    let port = if protocol == SCTP { frontend.port() } else { BACKEND_PORT };
    (net.backend_ip(index), port).into()
}

fn row(net: Net, form: Form, what: &str) -> Case {
    case(format!("{} {form:?}, {what}", net.word)).given(move |scene| scene.put_direct(form.flag()))
}

pub(crate) fn sent() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for form in FORMS {
            for (word, protocol) in PROTOCOLS {
                for program in PROGRAMS {
                    for (index, neighbor) in [(backend::REMOTE, GATEWAY), (backend::OTHER, OTHER)] {
                        cases.push(sent_row((net, form), (word, protocol), program, (index, neighbor)));
                    }
                }
            }
        }
    }
    cases
}

/// A connection from its first packet to one after its end.
fn sent_row(
    (net, form): (Net, Form),
    (word, protocol): (&str, u8),
    program: Program,
    (index, neighbor): (u32, Mac),
) -> Case {
    let (client, frontend) = (net.client(), net.frontend(Kind::LoadBalancer, index));
    let to = reached(net, protocol, index, frontend);
    let verdict = if program == XdpUplink && index == backend::REMOTE { Back } else { Redirect };
    let nodes = (net.node_ip(), net.peer_ip());
    let leaves = move |frame: Frame, first: bool| {
        let frame = frame.sent(neighbor, OWN);
        // A TCP connection is announced once by an option; around packets there is a note always.
        if form == Form::Option && protocol == TCP && !first {
            frame.bytes()
        } else {
            noted(form, &frame, frontend, nodes, entropy(client, frontend))
        }
    };
    let ask = |frame: Frame, out: Frame, first: bool, row: Case, counter: Reason| {
        row.becomes_bytes(program, &frame.bytes(), verdict, &leaves(out, first), counter)
    };
    let mut row = row(net, form, &format!("{word} to {index}, {}", program.name()));
    row = ask(opening(protocol, client, frontend), opening(protocol, client, to), true, row, Reason::NewConnection);
    row = ask(packet(protocol, client, frontend), packet(protocol, client, to), false, row, Reason::ToBackend);
    if protocol == TCP {
        let fin = |to: SocketAddr| tcp(client, to).flags(FIN | 0x10);
        row = ask(fin(frontend), fin(to), false, row, Reason::ToBackend);
        row = ask(tcp(client, frontend), tcp(client, to), false, row, Reason::ToBackend);
        row = ask(syn(client, frontend), syn(client, to), true, row, Reason::NewConnection);
    }
    row.given(move |scene| {
        let flags = scene.connection_flags(protocol, (client, frontend)).expect("a connection");
        assert_eq!(flags & (connection_flags::DSR | connection_flags::SNAT), connection_flags::DSR);
    })
}

pub(crate) fn not_sent() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for form in FORMS {
            let (client, to) = (net.client(), net.backend(backend::REMOTE));
            let frontend = net.frontend(Kind::LoadBalancer, backend::REMOTE);
            let nodes = (net.node_ip(), net.peer_ip());
            for (program, verdict) in [(XdpUplink, Back), (UplinkIngress, Redirect)] {
                let row = |what: &str| row(net, form, &format!("{what}, {}", program.name()));
                let translated = syn(net.node(), to).sent(GATEWAY, OWN);
                let direct =
                    noted(form, &syn(client, to).sent(GATEWAY, OWN), frontend, nodes, entropy(client, frontend));
                cases.push(
                    row("a backend whose node is not known gets a translated source")
                        .given(|scene| scene.forget_nodes())
                        .becomes(program, &syn(client, frontend), verdict, &translated, Reason::NewConnection),
                );
                cases.push(row("and so does the node of the backend itself").becomes(
                    program,
                    &syn((net.peer_ip(), 50_000).into(), frontend),
                    verdict,
                    &translated,
                    Reason::NewConnection,
                ));
                // Who is on the backend's node is not known, and that node would refuse what comes back to it.
                let far = net.far_workload();
                let known = |flags, cluster| Identity { identity: 300, way: 0, flags, cluster };
                for (whom, flags) in [("a workload", 0), ("another address of a node", identity_flags::NODE)] {
                    cases.push(
                        row(&format!("and so does {whom} of its cluster"))
                            .given(move |scene| scene.put_identity(far.ip(), known(flags, 1)))
                            .becomes(program, &syn(far, frontend), verdict, &translated, Reason::NewConnection),
                    );
                }
                let other = noted(form, &syn(far, to).sent(GATEWAY, OWN), frontend, nodes, entropy(far, frontend));
                cases.push(
                    row("a workload of another cluster is on another node")
                        .given(move |scene| scene.put_identity(far.ip(), known(0, 2)))
                        .becomes_bytes(program, &syn(far, frontend).bytes(), verdict, &other, Reason::NewConnection),
                );
                let local = net.frontend(Kind::LoadBalancer, backend::LOCAL);
                let own = syn(client, net.backend(backend::LOCAL));
                cases.push(row("a backend of this node needs no note").becomes(
                    program,
                    &syn(client, local),
                    Pass,
                    &own,
                    Reason::NewConnection,
                ));
                cases.push(
                    row("the last hop")
                        .drops(program, &syn(client, frontend).ttl(1), Reason::TtlExpired)
                        .becomes_bytes(program, &syn(client, frontend).bytes(), verdict, &direct, Reason::ToBackend),
                );
                cases.push(
                    row("a killed backend")
                        .becomes_bytes(program, &syn(client, frontend).bytes(), verdict, &direct, Reason::NewConnection)
                        .given(|scene| scene.put_backend_state(backend::REMOTE, BackendState::Killed))
                        .drops(program, &tcp(client, frontend), Reason::BackendKilled),
                );
            }
            // The neighbor is not known: XDP leaves it, TC lets the kernel find it.
            let far = net.frontend(Kind::LoadBalancer, backend::FAR);
            let mut out = syn(client, net.backend(backend::FAR));
            out.ttl -= 1;
            let out = noted(form, &out, far, nodes, entropy(client, far));
            cases.push(
                row(net, form, "a next hop for the kernel to find").passes(XdpUplink, &syn(client, far)).becomes_bytes(
                    UplinkIngress,
                    &syn(client, far).bytes(),
                    Redirect,
                    &out,
                    Reason::ToBackend,
                ),
            );
        }
    }
    cases
}

pub(crate) fn too_long() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for form in FORMS {
            let (client, frontend) = (net.client(), net.frontend(Kind::LoadBalancer, backend::NARROW));
            let overhead = form.overhead(net);
            let headers = if net.is_v4() { 28 } else { 48 };
            let fits = 1_400 - overhead - headers;
            let wide = move |row: Case| row.given(|scene| scene.put_next_hop_mtu(crate::scene::hop::NARROW, 1_400));
            let ask = |octets: u32| udp(client, frontend).data(&vec![7; octets as usize]).whole();
            let out = udp(client, net.backend(backend::NARROW)).data(&vec![7; fits as usize]).whole();
            let nodes = (net.node_ip(), net.peer_ip());
            let out = noted(form, &out.sent(GATEWAY, OWN), frontend, nodes, entropy(client, frontend));
            for (program, verdict) in [(XdpUplink, Back), (UplinkIngress, Redirect)] {
                cases.push(wide(row(net, form, &format!("the longest that fits, {}", program.name()))).becomes_bytes(
                    program,
                    &ask(fits).bytes(),
                    verdict,
                    &out,
                    Reason::NewConnection,
                ));
            }
            // What a header does not count goes along all the same.
            let trailed = [&ask(fits).bytes()[..], &[0; 1]].concat();
            let behind = wide(row(net, form, "an octet behind the packet"));
            cases.push(behind.passes_bytes(XdpUplink, &trailed, Some(Reason::Passed)));
            let long = ask(fits + 1);
            let mut quoted = long.packet();
            quoted.truncate(64);
            let (kind, code) = if net.is_v4() { (3, 4) } else { (2, 0) };
            let body = Body::Error { kind, code, word: 1_400 - overhead, quoted };
            let mut error = between(frontend.ip(), client.ip(), body);
            (error.to, error.from) = (GATEWAY, OWN);
            let mut error = error.bytes();
            if net.is_v4() {
                // Ours has no identification, and is not to be fragmented.
                error = outer(frontend.ip(), client.ip(), (GATEWAY, OWN), 1, &error[34..]);
            }
            cases.push(wide(row(net, form, "one octet more")).passes(XdpUplink, &long).becomes_bytes(
                UplinkIngress,
                &long.bytes(),
                Redirect,
                &error,
                Reason::TooBig,
            ));
            if net.is_v4() {
                let mut free = long.clone();
                free.whole = false;
                let mut trailed = ask(fits);
                trailed.whole = false;
                let trailed = [&trailed.bytes()[..], &[0; 1]].concat();
                let behind = wide(row(net, form, "the same with an octet behind the packet"));
                cases.push(behind.drops_bytes(UplinkIngress, &trailed, Reason::TooBig));
                cases.push(wide(row(net, form, "what may be fragmented")).drops(UplinkIngress, &free, Reason::TooBig));
            }
        }
    }
    cases
}

pub(crate) fn received() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for form in FORMS {
            for (word, protocol) in PROTOCOLS {
                for program in PROGRAMS {
                    for kind in [Kind::LoadBalancer, Kind::NodePort] {
                        cases.push(received_row(net, form, (word, protocol), program, kind));
                    }
                }
            }
        }
    }
    cases
}

/// The frontend of another node.
fn asked_there(net: Net, kind: Kind) -> SocketAddr {
    let frontend = net.frontend(kind, backend::LOCAL);
    if kind == Kind::NodePort { (net.peer_ip(), frontend.port()).into() } else { frontend }
}

/// What a connection has at the node of its backend.
const ANSWERING: u8 = connection_flags::REPLY | connection_flags::DSR | connection_flags::STACK;

fn received_row(net: Net, form: Form, (word, protocol): (&str, u8), program: Program, kind: Kind) -> Case {
    let (client, frontend) = (net.client(), asked_there(net, kind));
    let to = reached(net, protocol, backend::LOCAL, frontend);
    let nodes = (net.peer_ip(), net.node_ip());
    let first = opening(protocol, client, to);
    let arrived = noted(form, &first, frontend, nodes, 50_001);
    let row = row(net, form, &format!("{word} for {kind:?} of another node, {}", program.name()));
    let row = if program == XdpUplink && form == Form::Option {
        // Options are unusual and wait for TC.
        row.passes_bytes(program, &arrived, Some(Reason::Passed)).becomes_bytes(
            UplinkIngress,
            &arrived,
            Pass,
            &first.bytes(),
            Reason::DsrReceived,
        )
    } else {
        row.becomes_bytes(program, &arrived, Pass, &first.bytes(), Reason::DsrReceived)
    };
    // Netfilter saw the question, so it has to see the answer as one to it: both go through the stack, and the client is answered for
    // the frontend behind that.
    let answer = packet(protocol, to, client).by(POD);
    let answered = packet(protocol, frontend, client).by(POD);
    let row = row
        .passes(WorkloadIngress, &answer)
        .becomes(UplinkEgress, &answer, Pass, &answered, Reason::Reply)
        .given(move |scene| {
            let flags = scene.connection_flags(protocol, (to, client)).expect("an entry of answers");
            assert_eq!(flags & !connection_flags::ANSWERED, ANSWERING);
            assert_eq!(scene.connections(), 1);
        })
        // What follows of a TCP connection has no option.
        .passes(UplinkIngress, &packet(protocol, client, to))
        .becomes_bytes(UplinkIngress, &arrived, Pass, &first.bytes(), Reason::DsrReceived);
    if protocol != TCP {
        return row;
    }
    let is_closing = move |row: Case, closing: bool, why: &'static str| {
        row.given(move |scene| {
            let flags = scene.connection_flags(protocol, (to, client)).expect("an entry of answers");
            assert_eq!(flags & connection_flags::CLOSING != 0, closing, "{why}");
        })
    };
    let row = row.passes(UplinkIngress, &tcp(client, to).flags(FIN | ACK));
    let row = is_closing(row, false, "the client waits for its answer");
    let (last, told) = (tcp(to, client).flags(FIN | ACK).by(POD), tcp(frontend, client).flags(FIN | ACK).by(POD));
    let row = row.becomes(UplinkEgress, &last, Pass, &told, Reason::Reply);
    is_closing(row, true, "both have said goodbye")
        .becomes_bytes(UplinkIngress, &arrived, Pass, &first.bytes(), Reason::DsrReceived)
        .given(move |scene| {
            let flags = scene.connection_flags(protocol, (to, client)).expect("an entry of answers");
            assert_eq!(flags, ANSWERING, "a new one with the same ports");
        })
}

/// Clients and backends that have a fast path: the answer needs the note, so the question does not take it.
pub(crate) fn not_fast() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (client, to) = (net.far_workload(), net.backend(backend::LOCAL));
        let frontend = net.frontend(Kind::LoadBalancer, backend::LOCAL);
        for form in FORMS {
            for program in PROGRAMS {
                if program == XdpUplink && form == Form::Option {
                    continue;
                }
                let first = syn(client, to);
                let arrived = noted(form, &first, frontend, (net.peer_ip(), net.node_ip()), 50_001);
                let (answer, answered) = (tcp(to, client).by(POD), tcp(frontend, client).by(POD));
                let row = row(net, form, &format!("a workload with a fast path, {}", program.name()))
                    .given(move |scene| {
                        put_ways(scene, hop::GATEWAY);
                        let known = Identity { identity: 300, way: hop::POD, flags: identity_flags::LOCAL, cluster: 1 };
                        scene.put_identity(to.ip(), known);
                    })
                    .becomes_bytes(program, &arrived, Pass, &first.bytes(), Reason::DsrReceived);
                // What XDP has taken the note off comes to TC without one.
                let row = if program == XdpUplink { row.passes(UplinkIngress, &first) } else { row };
                cases.push(
                    row.passes(WorkloadIngress, &answer)
                        .becomes(UplinkEgress, &answer, Pass, &answered, Reason::Reply)
                        // Netfilter sees all of the connection.
                        .passes(UplinkIngress, &tcp(client, to)),
                );
            }
        }
    }
    cases
}

pub(crate) fn refused() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for form in FORMS {
            let client = net.client();
            let (local, pod) = (net.backend(backend::LOCAL), net.backend(backend::POD));
            let balancer = net.frontend(Kind::LoadBalancer, backend::LOCAL);
            let (own, peer) = (net.node_ip(), net.peer_ip());
            let arrives = |to, frontend, nodes| noted(form, &syn(client, to), frontend, nodes, 50_001);
            for program in PROGRAMS {
                if program == XdpUplink && form == Form::Option {
                    continue;
                }
                let row = |what: &str| row(net, form, &format!("{what}, {}", program.name()));
                let refuse = |what: &str, octets: &[u8]| {
                    row(what)
                        .drops_bytes(program, octets, Reason::DsrRefused)
                        .given(|scene| assert_eq!(scene.connections(), 0))
                };
                let world: SocketAddr = (net.world().ip(), 80).into();
                cases.push(refuse("a frontend that nobody knows", &arrives(local, world, (peer, own))));
                let far: SocketAddr =
                    (net.far_workload().ip(), net.frontend(Kind::NodePort, backend::LOCAL).port()).into();
                cases.push(refuse("a port of what is no node", &arrives(local, far, (peer, own))));
                cases.push(refuse("a workload that is no backend of it", &arrives(pod, balancer, (peer, own))));
                let other = SocketAddr::from((local.ip(), 9));
                cases.push(refuse("another port of the backend", &arrives(other, balancer, (peer, own))));
                let external = net.frontend(Kind::ExternalIp, backend::LOCAL);
                cases.push(refuse("a service that does not use it", &arrives(local, external, (peer, own))));
                let octets = arrives(local, balancer, (peer, own));
                let off = |octets: &[u8]| {
                    row("switched off")
                        .given(|scene| scene.put_settings(|settings| settings.flags &= !settings_flags::DSR))
                        .passes_bytes(program, octets, Some(Reason::Passed))
                };
                cases.push(off(&octets));
                let taken = SocketAddr::from((balancer.ip(), 99));
                cases.push(
                    row("another frontend with the client's port while that lives")
                        .given(move |scene| {
                            scene.put_service(
                                taken,
                                TCP,
                                Scope::External,
                                meshd_abi::Service {
                                    flags: meshd_abi::service_flags::DSR,
                                    ..service(backend::LOCAL, backend::LOCAL)
                                },
                            );
                        })
                        .becomes_bytes(program, &octets, Pass, &syn(client, local).bytes(), Reason::DsrReceived)
                        .drops_bytes(program, &arrives(local, taken, (peer, own)), Reason::DsrRefused)
                        .becomes_bytes(program, &octets, Pass, &syn(client, local).bytes(), Reason::DsrReceived),
                );
                if form == Form::Option {
                    let transit = arrives(net.far_workload(), balancer, (peer, own));
                    cases.push(row("an option for somebody else").passes_bytes(
                        program,
                        &transit,
                        Some(Reason::Passed),
                    ));
                    continue;
                }
                cases.push(refuse("from nobody of the mesh", &arrives(local, balancer, (client.ip(), own))));
                cases.push(refuse("from a workload", &arrives(local, balancer, (net.far_workload().ip(), own))));
                cases.push(refuse("from this node itself", &arrives(local, balancer, (own, own))));
                cases.push(refuse("for no workload of this node", &arrives(net.far_workload(), balancer, (peer, own))));
                let transit = arrives(local, balancer, (peer, net.far_workload().ip()));
                cases.push(row("for another node").passes_bytes(program, &transit, Some(Reason::Passed)));
                let plain = syn(client, local).packet();
                let number = if net.is_v4() { 4 } else { 41 };
                let tunnel = outer(peer, own, (OWN, GATEWAY), number, &plain);
                cases.push(row("a tunnel of somebody else").passes_bytes(program, &tunnel, Some(Reason::Passed)));
            }
        }
    }
    cases
}

pub(crate) fn unusual() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for form in FORMS {
            let client = net.client();
            let remote = net.backend(backend::REMOTE);
            let frontend = net.frontend(Kind::LoadBalancer, backend::REMOTE);
            let nodes = (net.node_ip(), net.peer_ip());
            let whole = |to: SocketAddr| udp(client, to).data(&[5; 40]);
            let leaves = |frame: Frame| {
                let entropy = entropy(client, frontend);
                noted(form, &frame.sent(GATEWAY, OWN), frontend, nodes, entropy)
            };
            let mut parts = row(net, form, "fragments");
            for (offset, counter) in [(0, Reason::NewConnection), (24, Reason::ToBackend)] {
                let part = |to| whole(to).piece(7, offset, 24);
                let out = leaves(part(remote));
                parts = parts.becomes_bytes(UplinkIngress, &part(frontend).bytes(), Redirect, &out, counter);
            }
            cases.push(parts);
            let local = net.backend(backend::LOCAL);
            let balancer = net.frontend(Kind::LoadBalancer, backend::LOCAL);
            let mut parts = row(net, form, "fragments from another node");
            for offset in [0, 24] {
                let part = udp(client, local).data(&[5; 40]).piece(7, offset, 24);
                let arrived = noted(form, &part, balancer, (net.peer_ip(), net.node_ip()), 50_001);
                parts = parts.becomes_bytes(UplinkIngress, &arrived, Pass, &part.bytes(), Reason::DsrReceived);
            }
            cases.push(parts);
            if net.is_v4() {
                let four = |frame: Frame| frame.options(&[1, 1, 1, 0]);
                cases.push(row(net, form, "an option more").becomes_bytes(
                    UplinkIngress,
                    &four(udp(client, frontend)).bytes(),
                    Redirect,
                    &leaves(four(udp(client, remote))),
                    Reason::NewConnection,
                ));
                let full = udp(client, frontend).options(&[1; 36]);
                if form != Geneve {
                    cases.push(row(net, form, "no room for one more").drops(
                        UplinkIngress,
                        &full,
                        Reason::RewriteFailed,
                    ));
                }
            } else if form != Geneve {
                let hops = udp(client, frontend).extension(0, &[0, 0, 5, 2, 0, 0, 1, 0]);
                cases.push(row(net, form, "hop-by-hop options must be first").drops(
                    UplinkIngress,
                    &hops,
                    Reason::RewriteFailed,
                ));
            }
            cases.extend(errors(net, form));
        }
    }
    cases
}

/// ICMP errors about what went to the backend, and about what it answered.
fn errors(net: Net, form: Form) -> Vec<Case> {
    let client = net.client();
    let (kind, code) = if net.is_v4() { (3, 3) } else { (1, 4) };
    let error = |from: IpAddr, to: IpAddr, about: Frame| {
        let mut quoted = about.packet();
        quoted.truncate(if net.is_v4() { 28 } else { 48 });
        between(from, to, Body::Error { kind, code, word: 0, quoted })
    };
    let local = net.backend(backend::LOCAL);
    let balancer = net.frontend(Kind::LoadBalancer, backend::LOCAL);
    let arrived = noted(form, &udp(client, local), balancer, (net.peer_ip(), net.node_ip()), 50_001);
    // The workload says that nobody listens; the client asked the frontend.
    let said = error(local.ip(), client.ip(), udp(client, local)).by(POD);
    let told = error(balancer.ip(), client.ip(), udp(client, balancer)).by(POD);
    let from_backend = row(net, form, "the backend says no")
        .becomes_bytes(UplinkIngress, &arrived, Pass, &udp(client, local).bytes(), Reason::DsrReceived)
        .passes(WorkloadIngress, &said)
        .becomes(UplinkEgress, &said, Pass, &told, Reason::IcmpError);
    // A router says no to an answer: that comes to the frontend, which is the node that was asked first.
    let remote = net.backend(backend::REMOTE);
    let frontend = net.frontend(Kind::LoadBalancer, backend::REMOTE);
    let out = noted(
        form,
        &udp(client, remote).sent(GATEWAY, OWN),
        frontend,
        (net.node_ip(), net.peer_ip()),
        entropy(client, frontend),
    );
    let about_answer = error(net.router_ip(), frontend.ip(), udp(frontend, client));
    let told = error(net.router_ip(), remote.ip(), udp(remote, client)).sent(GATEWAY, OWN);
    let from_router = row(net, form, "a router says no to an answer")
        .becomes_bytes(UplinkIngress, &udp(client, frontend).bytes(), Redirect, &out, Reason::NewConnection)
        .becomes(UplinkIngress, &about_answer, Redirect, &told, Reason::IcmpError);
    vec![from_backend, from_router]
}

/// Packets with notes that this node takes when they are whole, and how many octets of each are headers.
fn arriving() -> Vec<(Form, Net, Vec<u8>, usize)> {
    let mut all = Vec::new();
    for net in NETS {
        for form in FORMS {
            for protocol in [TCP, UDP] {
                let to = net.backend(backend::LOCAL);
                let frame = opening(protocol, net.client(), to);
                let nodes = (net.peer_ip(), net.node_ip());
                let octets = noted(form, &frame, net.frontend(Kind::LoadBalancer, backend::LOCAL), nodes, 50_001);
                let data = if protocol == UDP { b"datagram".len() } else { 0 };
                let headers = octets.len() - data;
                all.push((form, net, octets, headers));
            }
        }
    }
    all
}

#[test]
fn notes_cut_short_at_every_octet_do_no_harm() {
    with_machine(|machine| {
        for (form, net, whole, headers) in arriving() {
            for program in PROGRAMS {
                let least = if program == XdpUplink { 14 } else { 14 + if net.is_v4() { 20 } else { 40 } };
                for length in least..=whole.len() {
                    machine.scene().reset();
                    machine.scene().put_direct(form.flag());
                    let packet = &whole[..length];
                    let outcome = machine.run(program, packet);
                    let told = || format!("{form:?} {} {length}, {}: {outcome:02x?}", net.word, program.name());
                    let is_taken = outcome.counted.iter().any(|(reason, ..)| *reason == Reason::DsrReceived);
                    assert!(outcome.verdict.is_some(), "{}", told());
                    if length < headers {
                        assert!(!is_taken, "{}", told());
                        assert_eq!(machine.scene().connections(), 0, "{}", told());
                        let is_whole = outcome.verdict == Some(Verdict::Drop) || outcome.out == packet;
                        assert!(is_whole, "{}", told());
                    } else if !(program == XdpUplink && form == Form::Option) {
                        assert!(is_taken, "{}", told());
                    }
                }
            }
        }
    });
}

#[test]
fn a_changed_octet_of_a_note_anywhere_does_no_harm() {
    with_machine(|machine| {
        let mut state = 0x9e37_79b9_u32;
        for (form, net, whole, _) in arriving() {
            for program in PROGRAMS {
                machine.scene().reset();
                machine.scene().put_direct(form.flag());
                for at in 14..whole.len() {
                    for value in [0, 0xff, whole[at] ^ 1, whole[at] ^ 0x80, (state >> 24) as u8] {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let mut packet = whole.clone();
                        packet[at] = value;
                        let was_good = verify(&packet).is_ok();
                        let outcome = machine.run(program, &packet);
                        let told = || format!("{form:?} {} octet {at} is {value:02x}: {outcome:02x?}", net.word);
                        let verdict = outcome.verdict.unwrap_or_else(|| panic!("{}", told()));
                        let counted: Vec<_> = outcome.counted.iter().filter(|(_, _, bytes)| *bytes != 0).collect();
                        assert_eq!(counted.len(), 1, "{}", told());
                        assert_eq!(counted[0].0.is_drop(), verdict == Verdict::Drop, "{}", told());
                        if matches!(counted[0].0, Reason::Passed | Reason::Malformed | Reason::FragmentUnknown) {
                            assert_eq!(outcome.out, packet, "{}", told());
                        } else if was_good && form == Form::Option && verdict == Verdict::Pass {
                            assert!(verify(&outcome.out).is_ok(), "{}", told());
                        }
                    }
                }
            }
        }
    });
}

pub(crate) fn reopened() -> Vec<Case> {
    let net = NETS[0];
    let (client, frontend) = (net.client(), net.frontend(Kind::NodePort, backend::REMOTE));
    let again = syn(client, frontend).flags(SYN);
    let nodes = (net.node_ip(), net.peer_ip());
    let out = syn(client, net.backend(backend::REMOTE)).sent(GATEWAY, OWN);
    let out = noted(Form::Option, &out, frontend, nodes, 0);
    vec![
        row(net, Form::Option, "a repeated SYN")
            .becomes_bytes(XdpUplink, &again.bytes(), Back, &out, Reason::NewConnection)
            .becomes_bytes(XdpUplink, &again.bytes(), Back, &out, Reason::ToBackend),
    ]
}
