//! Workloads that talk to the world get the node's address, and nobody else does.

use std::net::SocketAddr;

use meshd_abi::{Reason, connection_flags, mesh_flags};
use meshd_datapath::Program::{UplinkEgress, UplinkIngress, WorkloadIngress, XdpUplink};

use crate::{
    case::{Case, Verdict::Pass, case},
    frame::{ACK, FIN, RST, SCTP, SYN, TCP, UDP, opening, packet, ping, pong, sctp, syn, tcp, udp},
    scene::{Kind, NETS, Net, PORT, backend, hop},
};

/// The identifier of a workload's echo.
const ID: u16 = 0x1234;

fn row(net: Net, what: &str) -> Case {
    case(format!("{} {what}", net.word))
}

pub(crate) fn translated() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, world, node) = (net.workload(), net.world(), net.node());
        for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
            let answer = packet(protocol, world, node);
            let answered = packet(protocol, world, workload);
            let to_node = row(net, &format!("{word}: new, known, answer"))
                .becomes(
                    UplinkEgress,
                    &opening(protocol, workload, world),
                    Pass,
                    &opening(protocol, node, world),
                    Reason::Masqueraded,
                )
                .becomes(
                    UplinkEgress,
                    &packet(protocol, workload, world),
                    Pass,
                    &packet(protocol, node, world),
                    Reason::Masqueraded,
                )
                // XDP hands it to the stack, which counts the hop; what TC then sees is the workload's own packet.
                .becomes(XdpUplink, &answer, Pass, &answered, Reason::MasqueradeReply)
                .passes(UplinkIngress, &answered)
                .becomes(UplinkIngress, &answer, Pass, &answered, Reason::MasqueradeReply)
                .given(|scene| assert_eq!(scene.connections(), 2));
            cases.push(to_node);
            cases.push(
                row(net, &format!("{word}: hop limits are the stack's"))
                    .becomes(
                        UplinkEgress,
                        &packet(protocol, workload, world).ttl(1),
                        Pass,
                        &packet(protocol, node, world).ttl(1),
                        Reason::Masqueraded,
                    )
                    .becomes(
                        XdpUplink,
                        &answer.clone().ttl(1),
                        Pass,
                        &answered.clone().ttl(1),
                        Reason::MasqueradeReply,
                    ),
            );
            cases.push(
                row(net, &format!("{word}: an answer from somebody else"))
                    .passes(XdpUplink, &answer)
                    .becomes(
                        UplinkEgress,
                        &packet(protocol, workload, world),
                        Pass,
                        &packet(protocol, node, world),
                        Reason::Masqueraded,
                    )
                    .passes(XdpUplink, &packet(protocol, (world.ip(), 9).into(), node)),
            );
        }
        // The ports of SCTP stay.
        let node_sctp = SocketAddr::from((node.ip(), workload.port()));
        cases.push(
            row(net, "sctp: new and answer")
                .becomes(UplinkEgress, &sctp(workload, world), Pass, &sctp(node_sctp, world), Reason::Masqueraded)
                .passes(XdpUplink, &sctp(world, node_sctp))
                .becomes(UplinkIngress, &sctp(world, node_sctp), Pass, &sctp(world, workload), Reason::MasqueradeReply),
        );
        // One identifier of the node is one of its ports.
        cases.push(
            row(net, "echo: the identifier there and back")
                .becomes(
                    UplinkEgress,
                    &ping(workload.ip(), world.ip(), ID),
                    Pass,
                    &ping(node.ip(), world.ip(), PORT),
                    Reason::Masqueraded,
                )
                .becomes(
                    UplinkEgress,
                    &ping(workload.ip(), world.ip(), ID).data(b"another"),
                    Pass,
                    &ping(node.ip(), world.ip(), PORT).data(b"another"),
                    Reason::Masqueraded,
                )
                .passes(XdpUplink, &pong(world.ip(), node.ip(), PORT))
                .becomes(
                    UplinkIngress,
                    &pong(world.ip(), node.ip(), PORT),
                    Pass,
                    &pong(world.ip(), workload.ip(), ID),
                    Reason::MasqueradeReply,
                )
                .passes(UplinkIngress, &pong(world.ip(), node.ip(), PORT + 1)),
        );
        cases.push(
            row(net, "FIN and RST mark both directions")
                .becomes(UplinkEgress, &syn(workload, world), Pass, &syn(node, world), Reason::Masqueraded)
                .becomes(
                    UplinkEgress,
                    &tcp(workload, world).flags(FIN | ACK),
                    Pass,
                    &tcp(node, world).flags(FIN | ACK),
                    Reason::Masqueraded,
                )
                .becomes(
                    XdpUplink,
                    &tcp(world, node).flags(RST),
                    Pass,
                    &tcp(world, workload).flags(RST),
                    Reason::MasqueradeReply,
                )
                .given(move |scene| {
                    for key in [(workload, world), (world, node)] {
                        let flags = scene.connection_flags(TCP, key).expect("known");
                        assert_ne!(flags & connection_flags::CLOSING, 0);
                    }
                }),
        );
    }
    cases
}

pub(crate) fn excluded() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, world, node) = (net.workload(), net.world(), net.node());
        for (word, protocol) in [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)] {
            let row = |what: &str| row(net, &format!("{word}: {what}"));
            let to = |to: SocketAddr| opening(protocol, workload, to);
            let far = net.far_workload();
            cases.push(row("to a workload of another node").passes(UplinkEgress, &to(far)));
            // Its exact address is enough, whatever the prefixes say.
            cases.push(
                row("to a workload of another node, known by its identity only")
                    .given(move |scene| scene.remove_mesh(net.mesh_prefix(), 8))
                    .passes(UplinkEgress, &to(far)),
            );
            let stranger = SocketAddr::from((net.backend_ip(7), 5));
            cases.push(row("to an address of the mesh that nobody has").passes(UplinkEgress, &to(stranger)));
            cases.push(row("to a node").passes(UplinkEgress, &to((node.ip(), 22).into())));
            cases.push(
                row("to a prefix that is excluded")
                    .given(move |scene| scene.put_mesh(world.ip(), 24, mesh_flags::KEEP_SOURCE))
                    .passes(UplinkEgress, &to(world))
                    .given(move |scene| scene.remove_mesh(world.ip(), 24)),
            );
            let from = |from: SocketAddr| opening(protocol, from, world);
            cases.push(row("from the node itself").passes(UplinkEgress, &from(net.node())));
            cases.push(row("from a workload of another node").passes(UplinkEgress, &from(far)));
            cases.push(row("from somebody outside").passes(UplinkEgress, &from(net.client())));
            cases.push(
                row("masquerade is off")
                    .given(|scene| scene.put_settings(|settings| settings.flags = 0))
                    .passes(UplinkEgress, &to(world)),
            );
            cases.push(row("at the workload's link").passes(WorkloadIngress, &to(world)));
        }
        // A prefix of this node's workloads stands for those without an identity.
        let nameless = SocketAddr::from((net.nameless_ip(), 5_000));
        cases.push(
            row(net, "an address of this node without identity")
                .given(move |scene| scene.put_mesh(nameless.ip(), if net.is_v4() { 30 } else { 126 }, 3))
                .becomes(UplinkEgress, &udp(nameless, world), Pass, &udp(node, world), Reason::Masqueraded)
                .given(move |scene| scene.remove_mesh(nameless.ip(), if net.is_v4() { 30 } else { 126 })),
        );
    }
    cases
}

pub(crate) fn answers() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, world) = (net.workload(), net.world());
        let none = |row: Case| row.given(|scene| assert_eq!(scene.connections(), 0));
        let answer = tcp(workload, world).flags(SYN | ACK).data(b"");
        cases.push(none(row(net, "SYN-ACK").passes(UplinkEgress, &answer)));
        cases.push(none(row(net, "echo reply").passes(UplinkEgress, &pong(workload.ip(), world.ip(), ID))));

        for (word, protocol) in [("tcp", TCP), ("udp", UDP), ("sctp", SCTP)] {
            // Somebody outside of the mesh asks a workload by its own address.
            let asked = opening(protocol, world, workload);
            let answer = packet(protocol, workload, world);
            cases.push(
                row(net, &format!("{word}: a connection from outside"))
                    .passes(UplinkIngress, &asked)
                    .given(|scene| assert_eq!(scene.connections(), 1))
                    .passes_as(UplinkEgress, &answer, Reason::MasqueradeReply)
                    .passes(UplinkIngress, &packet(protocol, world, workload))
                    .passes_as(UplinkEgress, &answer, Reason::MasqueradeReply)
                    .given(|scene| assert_eq!(scene.connections(), 1)),
            );
            cases.push(none(
                row(net, &format!("{word}: a connection from the mesh needs no note"))
                    .passes(UplinkIngress, &opening(protocol, net.far_workload(), workload)),
            ));
            cases.push(none(
                row(net, &format!("{word}: one to somebody else neither"))
                    .passes(UplinkIngress, &opening(protocol, world, net.far_workload())),
            ));
        }
        cases.push(
            row(net, "echo: asked from outside").passes(UplinkIngress, &ping(world.ip(), workload.ip(), ID)).passes_as(
                UplinkEgress,
                &pong(workload.ip(), world.ip(), ID),
                Reason::MasqueradeReply,
            ),
        );
        cases.push(none(
            row(net, "echo reply from outside").passes(UplinkIngress, &pong(world.ip(), workload.ip(), ID)),
        ));
        cases.push(none(
            row(net, "SYN-ACK from outside").passes(UplinkIngress, &tcp(world, workload).flags(SYN | ACK).data(b"")),
        ));
        cases.push(
            row(net, "no room to note a connection from outside")
                .given(move |scene| scene.fill_connections(net))
                .passes_noting(UplinkIngress, &syn(world, workload), Reason::NoConnection),
        );
    }
    cases
}

/// A connection is asked for its flags.
fn flags_are(row: Case, key: (SocketAddr, SocketAddr), flags: u8, wanted: bool, why: &'static str) -> Case {
    row.given(move |scene| {
        let known = scene.connection_flags(TCP, key).expect("known");
        assert_eq!(known & flags != 0, wanted, "{why}: {known:#x}");
    })
}

pub(crate) fn goodbyes() -> Vec<Case> {
    const CLOSING: u8 = connection_flags::CLOSING;
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, world, node) = (net.workload(), net.world(), net.node());
        // Of what the outside opens to a workload there is one entry for both ends.
        let answers = (workload, world);
        let is_closing = |row: Case, wanted, why| flags_are(row, answers, CLOSING, wanted, why);
        let from_client = |row: Case, flags| row.passes(UplinkIngress, &tcp(world, workload).flags(flags));
        let from_workload =
            |row: Case, flags| row.passes_as(UplinkEgress, &tcp(workload, world).flags(flags), Reason::MasqueradeReply);
        let admitted =
            |what: &str| from_workload(row(net, what).passes(UplinkIngress, &syn(world, workload)), SYN | ACK);
        let last = FIN | ACK;

        let client = from_client(from_client(admitted("the client says goodbye first"), last), last);
        let client = from_workload(is_closing(client, false, "it waits for its answer"), ACK);
        let both = is_closing(from_workload(client, last), true, "both have said goodbye");
        // The same ports again.
        let again = is_closing(from_client(both, SYN), false, "a new one lives");
        let again = from_workload(from_workload(again, SYN | ACK), last);
        cases.push(is_closing(again, false, "and nobody is asked what was said before"));

        let workload_first = from_workload(from_workload(admitted("the workload says goodbye first"), last), last);
        let workload_first = is_closing(workload_first, false, "the client may have more to say");
        cases.push(is_closing(from_client(workload_first, last), true, "both have said goodbye"));

        let half = from_client(from_client(admitted("the same ports after one goodbye"), last), SYN);
        let half = from_workload(from_workload(half, SYN | ACK), last);
        cases.push(is_closing(half, false, "the client of the new one has said nothing"));

        let reset = from_client(admitted("the client resets"), RST);
        cases.push(is_closing(reset, true, "nothing comes after a reset"));
        let reset = from_workload(from_client(admitted("the workload resets what the client ended"), last), RST);
        cases.push(is_closing(reset, true, "nothing comes after a reset"));

        // A workload that asks the world has an entry for each direction.
        let out = |row: Case, flags| {
            let (asks, asked) = (tcp(workload, world).flags(flags), tcp(node, world).flags(flags));
            row.becomes(UplinkEgress, &asks, Pass, &asked, Reason::Masqueraded)
        };
        let back = |row: Case, flags| {
            let (comes, came) = (tcp(world, node).flags(flags), tcp(world, workload).flags(flags));
            // XDP hands it to the stack, where TC sees what the workload gets.
            row.becomes(XdpUplink, &comes, Pass, &came, Reason::MasqueradeReply).passes(UplinkIngress, &came)
        };
        let asked = back(back(out(row(net, "who was asked says goodbye first"), SYN), SYN | ACK), last);
        let asked = flags_are(asked, (workload, world), CLOSING, false, "the workload may have more to say");
        let over = flags_are(out(asked, last), (workload, world), CLOSING, true, "it has said goodbye");
        let again = flags_are(out(over, SYN), (workload, world), CLOSING, false, "the same ports again");
        cases.push(flags_are(again, (world, node), CLOSING, false, "in both directions"));

        // The same of who asks a service whose backend is here.
        let (frontend, backend) = (net.frontend(Kind::LoadBalancer, backend::LOCAL), net.backend(backend::LOCAL));
        let ask = |row: Case, flags, counter| {
            let (asks, asked) = (tcp(world, frontend).flags(flags), tcp(world, backend).flags(flags));
            row.becomes(XdpUplink, &asks, Pass, &asked, counter).passes(UplinkIngress, &asked)
        };
        let served = ask(row(net, "the client of a service says goodbye first"), SYN, Reason::NewConnection);
        let served = ask(served, last, Reason::ToBackend);
        cases.push(flags_are(served, (backend, world), CLOSING, false, "the answer comes later"));
    }
    cases
}

pub(crate) fn exhausted() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, world, node) = (net.workload(), net.world(), net.node());
        let other = SocketAddr::from((workload.ip(), 33_001));
        for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
            let row = |what: &str| row(net, &format!("{word}: {what}"));
            let known = packet(protocol, workload, world);
            let out = packet(protocol, node, world);
            cases.push(
                row("every port taken")
                    .becomes(UplinkEgress, &known, Pass, &out, Reason::Masqueraded)
                    .drops(UplinkEgress, &packet(protocol, other, world), Reason::NoPort)
                    .becomes(UplinkEgress, &known, Pass, &out, Reason::Masqueraded),
            );
            // A port serves once for each destination.
            let elsewhere = SocketAddr::from((world.ip(), 80));
            cases.push(
                row("another destination").becomes(UplinkEgress, &known, Pass, &out, Reason::Masqueraded).becomes(
                    UplinkEgress,
                    &packet(protocol, other, elsewhere),
                    Pass,
                    &packet(protocol, node, elsewhere),
                    Reason::Masqueraded,
                ),
            );
            cases.push(
                row("no room for a connection")
                    .becomes(UplinkEgress, &known, Pass, &out, Reason::Masqueraded)
                    .given(move |scene| {
                        scene.put_settings(|settings| settings.port_count = 64);
                        scene.fill_connections(net);
                    })
                    .drops(UplinkEgress, &packet(protocol, other, world), Reason::NoConnection)
                    .becomes(UplinkEgress, &known, Pass, &out, Reason::Masqueraded)
                    .becomes(
                        XdpUplink,
                        &packet(protocol, world, node),
                        Pass,
                        &packet(protocol, world, workload),
                        Reason::MasqueradeReply,
                    ),
            );
            cases.push(
                row("no source of the family")
                    .given(|scene| {
                        scene.put_settings(|settings| {
                            settings.source4 = meshd_abi::V4::default();
                            settings.source6 = meshd_abi::V6::default();
                        });
                    })
                    .drops(UplinkEgress, &known, Reason::NoSource),
            );
        }
        let known_hop = hop::GATEWAY;
        let key = (world, node);
        cases.push(
            row(net, "an answer whose way is known goes by the stack all the same")
                .given(move |scene| {
                    let flags = connection_flags::REPLY | connection_flags::MASQUERADE | connection_flags::LOCAL;
                    scene.put_connection(UDP, key, (world, workload), known_hop, flags);
                })
                .becomes(XdpUplink, &udp(world, node), Pass, &udp(world, workload), Reason::MasqueradeReply),
        );
    }
    cases
}

pub(crate) fn sums() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let (workload, world, node) = (net.workload(), net.world(), net.node());
        // The octets that make the sum of what leaves come out as zero, which means "none" and is written as 0xffff.
        let zero = crate::frame::octets_for_sum_zero(&udp(node, world));
        let out = udp(node, world).data(&zero);
        assert_eq!(out.bytes()[out.bytes().len() - 4..][..2], [0xff, 0xff]);
        cases.push(row(net, "a sum that comes out as zero").becomes(
            UplinkEgress,
            &udp(workload, world).data(&zero),
            Pass,
            &out,
            Reason::Masqueraded,
        ));
        let zero = crate::frame::octets_for_sum_zero(&udp(world, workload));
        for program in [XdpUplink, UplinkIngress] {
            cases.push(
                row(net, &format!("a sum that comes out as zero on the way back, {}", program.name()))
                    .becomes(UplinkEgress, &udp(workload, world), Pass, &udp(node, world), Reason::Masqueraded)
                    .becomes(
                        program,
                        &udp(world, node).data(&zero),
                        Pass,
                        &udp(world, workload).data(&zero),
                        Reason::MasqueradeReply,
                    ),
            );
            cases.push(
                row(net, &format!("no sum stays no sum, {}", program.name()))
                    .becomes(
                        UplinkEgress,
                        &udp(workload, world).unsummed(),
                        Pass,
                        &udp(node, world).unsummed(),
                        Reason::Masqueraded,
                    )
                    .becomes(
                        program,
                        &udp(world, node).unsummed(),
                        Pass,
                        &udp(world, workload).unsummed(),
                        Reason::MasqueradeReply,
                    ),
            );
        }
    }
    cases
}
