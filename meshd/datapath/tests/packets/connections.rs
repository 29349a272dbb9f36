//! Connections in the course of their lives, and backends that leave meanwhile.

use std::net::SocketAddr;

use meshd_abi::{BackendState, Reason, Scope, Service, connection_flags, service_flags};
use meshd_datapath::{
    Program::{self, UplinkIngress, WorkloadIngress, XdpUplink},
    ticks,
};

use crate::{
    case::{
        Case,
        Verdict::{self, Back, Redirect},
        case,
    },
    frame::{ACK, FIN, Frame, GATEWAY, OWN, RST, SYN, TCP, UDP, packet, syn, tcp, udp},
    scene::{Kind, NETS, Net, PORT, backend, service},
};

/// A service whose only member is the first of four, which a change of its members makes the second.
const FIRST: u32 = backend::FIRST_OF_FOUR;
const SECOND: u32 = backend::FIRST_OF_FOUR + 1;

/// How a program from outside sends to a remote backend.
fn back(program: Program) -> Verdict {
    if program == XdpUplink { Back } else { Redirect }
}

/// A row that begins with a connection of the client to [`FIRST`], and what continues it.
struct Talk {
    net: Net,
    protocol: u8,
    program: Program,
    row: Case,
}

impl Talk {
    fn frontend(&self) -> SocketAddr {
        self.net.frontend(Kind::LoadBalancer, 61)
    }

    fn begin(name: &str, net: Net, protocol: u8, program: Program, flags: u16) -> Self {
        let frontend = net.frontend(Kind::LoadBalancer, 61);
        let row = case(format!("{} {name}, {}", net.word, program.name())).given(move |scene| {
            scene.put_service(frontend, protocol, Scope::External, Service { flags, ..service(61, FIRST) });
        });
        let talk = Self { net, protocol, program, row };
        let asked = crate::frame::opening(protocol, net.client(), frontend);
        talk.to(&asked, FIRST, Reason::NewConnection)
    }

    /// A packet of the client that must come to a backend.
    fn to(self, asked: &Frame, index: u32, reason: Reason) -> Self {
        let mut out = asked.clone().sent(GATEWAY, OWN);
        (out.source, out.destination) = (self.net.node_ip(), self.net.backend_ip(index));
        let (from, to) = (self.net.node().port(), self.net.backend(index).port());
        match &mut out.body {
            crate::frame::Body::Tcp { ports, .. } | crate::frame::Body::Udp { ports, .. } => *ports = (from, to),
            other => unreachable!("{other:?}"),
        }
        let row = self.row.becomes(self.program, asked, back(self.program), &out, reason);
        Self { row, ..self }
    }

    fn refused(self, asked: &Frame, reason: Reason) -> Self {
        let row = self.row.drops(self.program, asked, reason);
        Self { row, ..self }
    }

    /// The first backend gets another state, and with `replaced` the second one takes its place in the service.
    fn state(self, state: BackendState, replaced: bool, flags: u16) -> Self {
        let (frontend, protocol) = (self.frontend(), self.protocol);
        let row = self.row.given(move |scene| {
            scene.put_backend_state(FIRST, state);
            if replaced {
                scene.put_service(frontend, protocol, Scope::External, Service { flags, ..service(61, SECOND) });
            }
        });
        Self { row, ..self }
    }

    fn syn(&self) -> Frame {
        syn(self.net.client(), self.frontend())
    }

    fn tcp(&self) -> Frame {
        tcp(self.net.client(), self.frontend())
    }

    fn udp(&self) -> Frame {
        udp(self.net.client(), self.frontend())
    }

    fn flags(self, wanted: u8, is_set: bool) -> Self {
        let (key, protocol) = ((self.net.client(), self.frontend()), self.protocol);
        let row = self.row.given(move |scene| {
            let flags = scene.connection_flags(protocol, key).expect("the connection is known");
            assert_eq!(flags & wanted != 0, is_set, "flags {flags:08b}");
        });
        Self { row, ..self }
    }
}

pub(crate) fn lives() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for program in [XdpUplink, UplinkIngress] {
            let tcp = |name: &str| Talk::begin(name, net, TCP, program, 0);

            let talk = tcp("a SYN that is sent again");
            let again = talk.syn();
            cases.push(talk.to(&again, FIRST, Reason::ToBackend).flags(connection_flags::ANSWERED, false).row);

            let talk = tcp("data");
            let data = talk.tcp();
            cases.push(
                talk.to(&data, FIRST, Reason::ToBackend)
                    .flags(connection_flags::ANSWERED, true)
                    .flags(connection_flags::CLOSING, false)
                    .row,
            );

            for (name, flags) in [("FIN", FIN | ACK), ("RST", RST)] {
                let talk = tcp(&format!("{name}, then the same ports anew"));
                let (end, data, begin) = (talk.tcp().flags(flags), talk.tcp(), talk.syn());
                // The members changed meanwhile: a connection of before stays, the new one does not meet it.
                cases.push(
                    talk.to(&end, FIRST, Reason::ToBackend)
                        .flags(connection_flags::CLOSING, true)
                        .state(BackendState::Terminating, true, 0)
                        .to(&data, FIRST, Reason::ToBackend)
                        .to(&begin, SECOND, Reason::NewConnection)
                        .flags(connection_flags::CLOSING, false)
                        .row,
                );
                let talk = tcp(&format!("{name}, then the same ports to the same backend"));
                let (end, begin) = (talk.tcp().flags(flags), talk.syn());
                cases.push(talk.to(&end, FIRST, Reason::ToBackend).to(&begin, FIRST, Reason::NewConnection).row);
            }

            let talk = tcp("a SYN-ACK opens nothing");
            let odd = talk.tcp().flags(SYN | ACK);
            cases.push(talk.to(&odd, FIRST, Reason::ToBackend).row);

            let name = "a connection in the middle that nobody knows";
            let frontend = net.frontend(Kind::LoadBalancer, backend::REMOTE);
            let out = packet(TCP, net.node(), net.backend(backend::REMOTE)).sent(GATEWAY, OWN);
            cases.push(case(format!("{} {name}, {}", net.word, program.name())).becomes(
                program,
                &packet(TCP, net.client(), frontend),
                back(program),
                &out,
                Reason::NewConnection,
            ));
        }
    }
    cases
}

pub(crate) fn leaving() -> Vec<Case> {
    use BackendState::{Killed, Removed, Terminating};
    const KILL: u16 = service_flags::KILL_REMOVED;
    let mut cases = Vec::new();
    for net in NETS {
        for program in [XdpUplink, UplinkIngress] {
            // Of a known TCP connection.
            for (name, state, flags) in [("terminating keeps tcp", Terminating, 0), ("removed keeps tcp", Removed, 0)] {
                let talk = Talk::begin(name, net, TCP, program, flags);
                let data = talk.tcp();
                cases.push(talk.state(state, true, flags).to(&data, FIRST, Reason::ToBackend).row);
            }
            let talk = Talk::begin("killed ends tcp", net, TCP, program, 0);
            let data = talk.tcp();
            cases.push(talk.state(Killed, true, 0).refused(&data, Reason::BackendKilled).row);
            let talk = Talk::begin("removed, to be ended, tcp", net, TCP, program, KILL);
            let data = talk.tcp();
            // The new backend knows nothing of it and resets it.
            cases.push(talk.state(Removed, true, KILL).to(&data, SECOND, Reason::NewConnection).row);

            // Of a TCP connection that is opened.
            let talk = Talk::begin("terminating keeps a SYN that is sent again", net, TCP, program, 0);
            let again = talk.syn();
            cases.push(talk.state(Terminating, true, 0).to(&again, FIRST, Reason::ToBackend).row);
            for (name, state) in [("removed", Removed), ("killed", Killed), ("free", BackendState::Free)] {
                let talk = Talk::begin(&format!("{name}, a SYN goes elsewhere"), net, TCP, program, 0);
                let again = talk.syn();
                cases.push(talk.state(state, true, 0).to(&again, SECOND, Reason::NewConnection).row);
            }

            // Of datagrams.
            let talk = Talk::begin("terminating keeps udp", net, UDP, program, 0);
            let data = talk.udp();
            cases.push(talk.state(Terminating, true, 0).to(&data, FIRST, Reason::ToBackend).row);
            for (name, state) in [("removed", Removed), ("killed", Killed), ("free", BackendState::Free)] {
                let talk = Talk::begin(&format!("{name}, udp goes elsewhere"), net, UDP, program, 0);
                let data = talk.udp();
                cases.push(talk.state(state, true, 0).to(&data, SECOND, Reason::NewConnection).row);
            }

            // Nobody takes its place.
            for (name, state) in [("terminating", Terminating), ("removed", Removed), ("killed", Killed)] {
                let frontend = net.frontend(Kind::LoadBalancer, backend::REMOTE);
                cases.push(
                    case(format!("{} {name} alone gets nothing new, {}", net.word, program.name()))
                        .given(move |scene| scene.put_backend_state(backend::REMOTE, state))
                        .drops(program, &syn(net.client(), frontend), Reason::NoBackend),
                );
            }
        }
    }
    cases
}

/// Two frontends of one backend on this node, asked from the same port: to the backend both look alike.
pub(crate) fn same_tuple() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, frontend) = (net.workload(), net.frontend(Kind::Cluster, backend::LOCAL));
        let other = net.frontend(Kind::NodePort, backend::LOCAL);
        let backend = net.backend(backend::LOCAL);
        let (key, tuple) = ((backend, workload), (other, workload));
        let reply = connection_flags::REPLY;
        let out = syn(workload, backend);
        for (name, flags, age, is_taken) in [
            ("alive", reply, 0, true),
            ("alive for a minute", reply, 59, true),
            ("silent for more than a minute", reply, 62, false),
            ("closing", reply | connection_flags::CLOSING, 0, false),
        ] {
            let row = case(format!("{} {name}", net.word)).given(move |scene| {
                scene.put_connection_at(TCP, key, tuple, (0, flags), ticks().wrapping_sub(age));
            });
            let asked = syn(workload, frontend);
            cases.push(if is_taken {
                row.drops(WorkloadIngress, &asked, Reason::NoPort)
            } else {
                row.becomes(WorkloadIngress, &asked, Verdict::Pass, &out, Reason::NewConnection)
            });
        }
        cases.push(
            case(format!("{} its own of before", net.word))
                .given(move |scene| scene.put_connection(TCP, key, (frontend, workload), 0, reply))
                .becomes(WorkloadIngress, &syn(workload, frontend), Verdict::Pass, &out, Reason::NewConnection),
        );
    }
    cases
}

pub(crate) fn exhausted() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for program in [XdpUplink, UplinkIngress] {
            for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
                let row = |what: &str| case(format!("{} {word} {what}, {}", net.word, program.name()));
                let frontend = net.frontend(Kind::NodePort, backend::REMOTE);
                let remote = net.backend(backend::REMOTE);
                let other: SocketAddr = (net.client_ip(), 50_001).into();
                let known = packet(protocol, net.client(), frontend);
                let sent = packet(protocol, net.node(), remote).sent(GATEWAY, OWN);
                let answered = packet(protocol, frontend, net.client()).sent(GATEWAY, OWN);
                cases.push(
                    row("every port taken")
                        .becomes(program, &known, back(program), &sent, Reason::NewConnection)
                        .drops(program, &packet(protocol, other, frontend), Reason::NoPort)
                        .becomes(program, &known, back(program), &sent, Reason::ToBackend)
                        .becomes(
                            program,
                            &packet(protocol, remote, net.node()),
                            back(program),
                            &answered,
                            Reason::Reply,
                        )
                        .given(|scene| assert_eq!(scene.connections(), 2)),
                );
                cases.push(
                    row("room again")
                        .given(move |scene| scene.fill_connections(net))
                        .drops(program, &known, Reason::NoConnection)
                        .given(move |scene| scene.remove_fillers(net))
                        .becomes(program, &known, back(program), &sent, Reason::NewConnection),
                );
                cases.push(
                    row("the same port to two backends")
                        .becomes(program, &known, back(program), &sent, Reason::NewConnection)
                        .given(move |scene| {
                            scene.put_service(frontend, protocol, Scope::External, service(2, FIRST));
                        })
                        .becomes(
                            program,
                            &packet(protocol, other, frontend),
                            back(program),
                            &packet(protocol, net.node(), net.backend(FIRST)).sent(GATEWAY, OWN),
                            Reason::NewConnection,
                        ),
                );
                cases.push(
                    row("no room for a connection")
                        .becomes(program, &known, back(program), &sent, Reason::NewConnection)
                        .given(move |scene| {
                            scene.put_settings(|settings| settings.port_count = 64);
                            scene.fill_connections(net);
                        })
                        .drops(program, &packet(protocol, other, frontend), Reason::NoConnection)
                        .becomes(program, &known, back(program), &sent, Reason::ToBackend)
                        .becomes(
                            program,
                            &packet(protocol, remote, net.node()),
                            back(program),
                            &answered,
                            Reason::Reply,
                        ),
                );
            }
        }
        let frontend = net.frontend(Kind::Cluster, backend::LOCAL);
        cases.push(
            case(format!("{} no room for a connection, workload", net.word))
                .given(move |scene| scene.fill_connections(net))
                .drops(WorkloadIngress, &syn(net.workload(), frontend), Reason::NoConnection),
        );
    }
    cases
}

#[test]
fn a_connection_of_which_half_finds_room_leaves_nothing() {
    crate::case::with_machine(|machine| {
        let scene = machine.scene();
        for net in NETS {
            scene.reset();
            scene.fill_connections(net);
            // Each direction has its places, and other ones than the other. They become free one after the other.
            let asks = syn(net.client(), net.frontend(Kind::NodePort, backend::REMOTE)).bytes();
            let mut refused = 0;
            loop {
                let before = scene.connections();
                let outcome = machine.run(XdpUplink, &asks);
                if outcome.verdict == Some(Back) {
                    assert_eq!(scene.connections(), before + 2);
                    break;
                }
                assert!(outcome.counted.iter().any(|(reason, ..)| *reason == Reason::NoConnection), "{outcome:?}");
                assert_eq!(scene.connections(), before, "after {refused}");
                assert!(scene.remove_filler(net), "there is room now");
                refused += 1;
            }
            assert!(refused > 0);
        }
    });
}

#[test]
fn translated_ports_are_those_of_the_node_and_never_the_same_twice() {
    crate::case::with_machine(|machine| {
        for net in NETS {
            let scene = machine.scene();
            scene.reset();
            scene.put_settings(|settings| settings.port_count = 64);
            let frontend = net.frontend(Kind::NodePort, backend::REMOTE);
            let mut seen = std::collections::BTreeSet::new();
            for number in 0..32 {
                let client: SocketAddr = (net.client_ip(), 50_000 + number).into();
                let outcome = machine.run(XdpUplink, &syn(client, frontend).bytes());
                assert_eq!(outcome.verdict, Some(Back), "connection {number}: {:?}", outcome.counted);
                let at = if net.is_v4() { 34 } else { 54 };
                let port = u16::from_be_bytes([outcome.out[at], outcome.out[at + 1]]);
                assert!((PORT..PORT + 64).contains(&port), "{port}");
                assert!(seen.insert(port), "{port} twice");
                let from = SocketAddr::from((net.node_ip(), port));
                let out = syn(from, net.backend(backend::REMOTE)).sent(GATEWAY, OWN);
                assert_eq!(outcome.out, out.bytes());
                let answer = machine.run(XdpUplink, &tcp(net.backend(backend::REMOTE), from).bytes());
                assert_eq!(answer.out, tcp(frontend, client).sent(GATEWAY, OWN).bytes());
            }
        }
    });
}

#[test]
fn a_reset_ends_both_directions_also_of_one_that_was_half_closed() {
    crate::case::with_machine(|machine| {
        let scene = machine.scene();
        for (net, program) in NETS.into_iter().flat_map(|net| [XdpUplink, UplinkIngress].map(|program| (net, program)))
        {
            let (client, node, remote) = (net.client(), net.node(), net.backend(backend::REMOTE));
            let frontend = net.frontend(Kind::NodePort, backend::REMOTE);
            // By which of the ends, and whether it has said goodbye before.
            for (by_client, says_goodbye) in [(true, true), (true, false), (false, true), (false, false)] {
                scene.reset();
                let (from, to) = if by_client { (client, frontend) } else { (remote, node) };
                let sends = |flags| tcp(from, to).flags(flags).bytes();
                machine.run(program, &syn(client, frontend).bytes());
                machine.run(program, &tcp(remote, node).bytes());
                machine.run(program, &tcp(client, frontend).bytes());
                machine.take_events();
                let mut told = 0;
                if says_goodbye {
                    told += machine.run(program, &sends(FIN | ACK)).events.len();
                    assert_eq!(scene.closing(), 1, "the other end may go on");
                }
                told += machine.run(program, &sends(RST)).events.len();
                let name = format!("{} {} {by_client} {says_goodbye}", net.word, program.name());
                assert_eq!((scene.closing(), told), (2, 1), "{name}");
                assert_eq!(machine.run(program, &sends(RST)).events, [], "{name}");
            }
        }
    });
}
