//! Flow events: what is told about connections and refusals, and what is not.

use meshd_abi::{
    Address, FlowEvent, Identity, LAYOUT_VERSION, Reason, V4, V6, connection_flags, event_kind, event_place,
    settings_flags,
};
use meshd_datapath::Program::{self, UplinkEgress, UplinkIngress, WorkloadEgress, WorkloadIngress, XdpUplink};
use meshd_datapath::{Events, Maps};

use crate::{
    bench::{in_namespaces, load},
    case::{Machine, with_machine},
    fast::put_ways,
    frame::{ACK, FIN, Frame, PSH, RST, SYN, TCP, UDP, syn, tcp, udp},
    scene::{Family, Kind, LINK, NETS, Net, PORT, backend, hop, service},
};

fn words(net: Net, ip: std::net::IpAddr) -> [u32; 4] {
    if net.is_v4() { V4::of(ip).words() } else { V6::of(ip).words() }
}

/// What an event says of a SYN that nobody translates, whatever became of it.
fn told(net: Net, from: std::net::SocketAddr, to: std::net::SocketAddr) -> FlowEvent {
    FlowEvent {
        source: words(net, from.ip()),
        destination: words(net, to.ip()),
        link: LINK,
        source_port: from.port().to_be(),
        destination_port: to.port().to_be(),
        protocol: TCP,
        family: if net.is_v4() { 4 } else { 6 },
        tcp_flags: SYN,
        place: event_place::FROM_NETWORK,
        ..translated(net, from, to)
    }
}

/// What it says of the packet as it leaves.
fn translated(net: Net, from: std::net::SocketAddr, to: std::net::SocketAddr) -> FlowEvent {
    FlowEvent {
        new_source: words(net, from.ip()),
        new_destination: words(net, to.ip()),
        new_source_port: from.port().to_be(),
        new_destination_port: to.port().to_be(),
        ..FlowEvent::default()
    }
}

/// Puts what [`translated`] says into an event.
fn leaving(event: FlowEvent, net: Net, from: std::net::SocketAddr, to: std::net::SocketAddr) -> FlowEvent {
    let FlowEvent { new_source, new_destination, new_source_port, new_destination_port, .. } =
        translated(net, from, to);
    FlowEvent { new_source, new_destination, new_source_port, new_destination_port, ..event }
}

fn refused(event: FlowEvent, reason: Reason) -> FlowEvent {
    FlowEvent { kind: event_kind::DROP, reason: reason as u8, ..event }
}

/// What it says of a SYN of the workload that leaves with the node's address.
fn masqueraded(net: Net) -> FlowEvent {
    let (workload, world) = (net.workload(), net.world());
    let outside = std::net::SocketAddr::new(net.node_ip(), PORT);
    FlowEvent {
        kind: event_kind::NEW,
        reason: Reason::Masqueraded as u8,
        place: event_place::TO_NETWORK,
        source_identity: 300,
        source_cluster: 1,
        connection_flags: connection_flags::MASQUERADE | connection_flags::SNAT,
        ..leaving(told(net, workload, world), net, outside, world)
    }
}

/// Runs packets in order and compares the event of each, but for its time, which must be that of the run.
fn compare(machine: &Machine, rows: Vec<(Program, Frame, Option<FlowEvent>)>) {
    for (number, (program, packet, expected)) in rows.into_iter().enumerate() {
        let before = now();
        let events = machine.run(program, &packet.bytes()).events;
        let after = now();
        let times: Vec<u64> = events.iter().map(|event| event.time).collect();
        assert!(times.iter().all(|time| (before..=after).contains(time)), "{times:?} of {before} to {after}");
        let events: Vec<FlowEvent> = events.into_iter().map(|event| FlowEvent { time: 0, ..event }).collect();
        let length = packet.bytes().len() as u32;
        let expected = expected.map(|event| FlowEvent { length, ..event });
        assert_eq!(events, Vec::from_iter(expected), "row {number}, {program:?}");
    }
}

#[test]
fn a_connection_that_begins_and_a_packet_that_is_refused_are_told() {
    with_machine(|machine| {
        for net in NETS {
            machine.scene().reset();
            let (client, workload) = (net.client(), net.workload());
            let pod = net.frontend(Kind::LoadBalancer, backend::POD);
            let cluster = net.frontend(Kind::Cluster, backend::POD);
            let gone = net.frontend(Kind::LoadBalancer, backend::REMOTE);
            machine.scene().put_backend_state(backend::REMOTE, meshd_abi::BackendState::Free);
            machine.scene().put_settings(|settings| settings.port_count = 0);
            let to_pod = net.backend(backend::POD);
            let begun = |from, to| FlowEvent {
                kind: event_kind::NEW,
                reason: Reason::NewConnection as u8,
                service: backend::POD,
                destination_identity: 300,
                destination_cluster: 1,
                connection_flags: connection_flags::LOCAL,
                ..leaving(told(net, from, to), net, from, to_pod)
            };
            let from_workload = |event| FlowEvent { source_identity: 300, source_cluster: 1, ..event };
            let no_backend =
                FlowEvent { service: backend::REMOTE, ..refused(told(net, client, gone), Reason::NoBackend) };
            compare(
                machine,
                vec![
                    (XdpUplink, syn(client, pod), Some(begun(client, pod))),
                    // It is known now.
                    (UplinkIngress, syn(client, pod), None),
                    (
                        WorkloadIngress,
                        syn(workload, cluster),
                        Some(FlowEvent {
                            place: event_place::FROM_WORKLOAD,
                            ..from_workload(begun(workload, cluster))
                        }),
                    ),
                    (XdpUplink, syn(client, gone), Some(no_backend)),
                    (UplinkIngress, syn(client, gone), Some(no_backend)),
                    (
                        UplinkEgress,
                        syn(workload, net.world()),
                        Some(FlowEvent {
                            place: event_place::TO_NETWORK,
                            ..from_workload(refused(told(net, workload, net.world()), Reason::NoSource))
                        }),
                    ),
                    (XdpUplink, tcp(client, net.world()), None),
                ],
            );
        }
    });
}

#[test]
fn what_leaves_the_mesh_and_what_comes_to_a_workload_is_told_from_its_first_packet_to_its_last() {
    with_machine(|machine| {
        for net in NETS {
            machine.scene().reset();
            let (workload, world) = (net.workload(), net.world());
            let outside = std::net::SocketAddr::new(net.node_ip(), PORT);
            let flags = connection_flags::MASQUERADE | connection_flags::SNAT;
            let begun = masqueraded(net);
            // The answer says goodbye first.
            let reply = connection_flags::REPLY | connection_flags::LOCAL;
            let ended = FlowEvent {
                kind: event_kind::CLOSE,
                reason: Reason::MasqueradeReply as u8,
                tcp_flags: FIN | ACK,
                destination_identity: 300,
                destination_cluster: 1,
                connection_flags: flags | reply | connection_flags::CLOSING | connection_flags::ANSWERED,
                ..leaving(told(net, world, outside), net, world, workload)
            };
            let admitted = FlowEvent {
                kind: event_kind::NEW,
                reason: Reason::Passed as u8,
                destination_identity: 300,
                destination_cluster: 1,
                ..told(net, net.client(), workload)
            };
            compare(
                machine,
                vec![
                    (UplinkEgress, syn(workload, world), Some(begun)),
                    (UplinkEgress, tcp(workload, world), None),
                    (UplinkIngress, tcp(world, outside).flags(FIN | ACK), Some(ended)),
                    (UplinkEgress, tcp(workload, world).flags(FIN | ACK), None),
                    (UplinkIngress, syn(net.client(), workload), Some(admitted)),
                    (UplinkIngress, tcp(net.client(), workload), None),
                ],
            );
        }
    });
}

#[test]
fn of_an_address_that_nobody_has_the_prefix_around_it_is_told_and_decides_nothing() {
    with_machine(|machine| {
        for net in NETS {
            machine.scene().reset();
            let (workload, world) = (net.workload(), net.world());
            let prefix = Identity { identity: 4_711, way: 0, flags: 0, cluster: 9 };
            let server = std::net::SocketAddr::new(workload.ip(), 81);
            let half = if world.is_ipv4() { 16 } else { 64 };
            machine.scene().put_prefix(world.ip(), half, prefix);
            // A shorter one knows less, and what is known of an address more.
            machine.scene().put_prefix(world.ip(), 8, Identity { identity: 1, ..prefix });
            machine.scene().put_prefix(workload.ip(), 8, Identity { identity: 2, ..prefix });
            let begun = FlowEvent { destination_identity: 4_711, destination_cluster: 9, ..masqueraded(net) };
            let admitted = FlowEvent {
                kind: event_kind::NEW,
                reason: Reason::Passed as u8,
                source_identity: 4_711,
                source_cluster: 9,
                destination_identity: 300,
                destination_cluster: 1,
                ..told(net, world, server)
            };
            compare(
                machine,
                vec![
                    (UplinkEgress, syn(workload, world), Some(begun)),
                    (UplinkIngress, syn(world, server), Some(admitted)),
                ],
            );
            machine.scene().forget_prefixes();
        }
    });
}

#[test]
fn the_end_of_a_connection_is_told_once_and_a_reset_ends_both_directions() {
    with_machine(|machine| {
        for net in NETS {
            let (client, frontend) = (net.client(), net.frontend(Kind::LoadBalancer, backend::POD));
            let pod = net.backend(backend::POD);
            let closed = |flags| FlowEvent {
                kind: event_kind::CLOSE,
                reason: Reason::ToBackend as u8,
                service: backend::POD,
                tcp_flags: flags,
                destination_identity: 300,
                destination_cluster: 1,
                connection_flags: connection_flags::LOCAL | connection_flags::CLOSING | connection_flags::ANSWERED,
                ..leaving(told(net, client, frontend), net, client, pod)
            };
            let answer_flags = || machine.scene().connection_flags(TCP, (pod, client)).expect("the answers' entry");
            for goodbye in [FIN | ACK, RST | ACK] {
                machine.scene().reset();
                machine.run(XdpUplink, &syn(client, frontend).bytes());
                compare(
                    machine,
                    vec![
                        (UplinkIngress, tcp(client, frontend).flags(goodbye), Some(closed(goodbye))),
                        (UplinkIngress, tcp(client, frontend).flags(goodbye), None),
                    ],
                );
                let is_closing = answer_flags() & connection_flags::CLOSING != 0;
                assert_eq!(is_closing, goodbye & RST != 0, "{goodbye:#x}");
                compare(machine, vec![(WorkloadIngress, tcp(pod, client).flags(FIN | ACK), None)]);
                assert!(answer_flags() & connection_flags::CLOSING != 0);
            }
            // Nobody has to want events for that.
            machine.scene().reset();
            machine.scene().put_settings(|settings| settings.flags &= !settings_flags::EVENTS);
            machine.run(XdpUplink, &syn(client, frontend).bytes());
            machine.run(UplinkIngress, &tcp(client, frontend).flags(RST).bytes());
            assert!(answer_flags() & connection_flags::CLOSING != 0);
        }
    });
}

#[test]
fn tcp_that_nobody_translates_is_told_at_the_link_of_a_workload() {
    with_machine(|machine| {
        for net in NETS {
            machine.scene().reset();
            let (workload, far) = (net.workload(), net.far_workload());
            let neighbor = std::net::SocketAddr::new(net.backend_ip(backend::POD), 80);
            let event = |from, to, place, kind, flags| {
                Some(FlowEvent {
                    place,
                    kind,
                    reason: Reason::Passed as u8,
                    tcp_flags: flags,
                    source_identity: 300,
                    source_cluster: 1,
                    destination_identity: 300,
                    destination_cluster: 1,
                    ..told(net, from, to)
                })
            };
            let (out, into) = (event_place::FROM_WORKLOAD, event_place::TO_WORKLOAD);
            let (new, close) = (event_kind::NEW, event_kind::CLOSE);
            let flagged = |from, to, flags| tcp(from, to).flags(flags);
            compare(
                machine,
                vec![
                    (WorkloadIngress, syn(workload, far), event(workload, far, out, new, SYN)),
                    (WorkloadEgress, flagged(far, workload, SYN | ACK), None),
                    (WorkloadIngress, tcp(workload, far), None),
                    (WorkloadIngress, flagged(workload, far, FIN | ACK), event(workload, far, out, close, FIN | ACK)),
                    (WorkloadEgress, flagged(far, workload, FIN | ACK), event(far, workload, into, close, FIN | ACK)),
                    (WorkloadEgress, flagged(far, workload, RST), event(far, workload, into, close, RST)),
                    (WorkloadEgress, syn(far, workload), event(far, workload, into, new, SYN)),
                    (WorkloadIngress, udp(workload, far), None),
                    // Between workloads of this node the one that sends tells.
                    (WorkloadIngress, syn(workload, neighbor), event(workload, neighbor, out, new, SYN)),
                    (WorkloadEgress, syn(workload, neighbor), None),
                    // What leaves the mesh is told where it does.
                    (WorkloadIngress, syn(workload, net.world()), None),
                ],
            );
            // What has an entry is told by who made it, in both directions.
            machine.run(UplinkIngress, &syn(net.client(), workload).bytes());
            compare(
                machine,
                vec![
                    (WorkloadEgress, syn(net.client(), workload), None),
                    (WorkloadIngress, flagged(workload, net.client(), SYN | ACK), None),
                    (WorkloadEgress, flagged(net.client(), workload, FIN | ACK), None),
                ],
            );
            // Nobody masquerades: it leaves as it is, and nobody else tells.
            machine.scene().put_settings(|settings| settings.flags &= !settings_flags::MASQUERADE);
            let world = event(workload, net.world(), out, new, SYN).map(|event| FlowEvent {
                destination_identity: 0,
                destination_cluster: 0,
                ..event
            });
            compare(machine, vec![(WorkloadIngress, syn(workload, net.world()), world)]);
            // As all events they have a bound, which what is told elsewhere does not use up.
            machine.scene().put_settings(|settings| settings.events_per_tick = 0);
            let counted = |packet: &Frame| {
                let outcome = machine.run(WorkloadIngress, &packet.bytes());
                assert!(outcome.events.is_empty());
                outcome.counted.into_iter().map(|(reason, ..)| reason).collect::<Vec<_>>()
            };
            assert_eq!(counted(&syn(workload, far)), [Reason::Passed, Reason::EventsLimited]);
            assert_eq!(counted(&syn(workload, net.world())), [Reason::Passed]);
            machine.scene().put_settings(|settings| settings.flags &= !settings_flags::EVENTS);
            assert_eq!(counted(&syn(workload, far)), [Reason::Passed]);
        }
    });
}

#[test]
fn what_is_dropped_on_its_way_out_is_told_and_a_connection_that_moves() {
    with_machine(|machine| {
        for net in NETS {
            machine.scene().reset();
            let (client, frontend) = (net.client(), net.frontend(Kind::LoadBalancer, backend::REMOTE));
            let remote = net.backend(backend::REMOTE);
            let node = std::net::SocketAddr::new(net.node_ip(), PORT);
            let known = |event| FlowEvent {
                service: backend::REMOTE,
                connection_flags: connection_flags::SNAT,
                ..leaving(event, net, node, remote)
            };
            let begun = known(FlowEvent {
                kind: event_kind::NEW,
                reason: Reason::NewConnection as u8,
                ..told(net, client, frontend)
            });
            let expired = known(refused(told(net, client, frontend), Reason::TtlExpired));
            compare(
                machine,
                vec![
                    (UplinkIngress, syn(client, frontend), Some(begun)),
                    (UplinkIngress, syn(client, frontend).ttl(1), Some(expired)),
                    (XdpUplink, syn(client, frontend).ttl(1), Some(expired)),
                ],
            );
            // Its backend is removed: datagrams go to another one.
            let (from, to) = (net.client(), net.frontend(Kind::LoadBalancer, backend::POD));
            machine.run(XdpUplink, &udp(from, to).bytes());
            machine.scene().put_backend_state(backend::POD, meshd_abi::BackendState::Removed);
            let other = service(backend::POD, backend::LOCAL);
            machine.scene().put_service(to, UDP, meshd_abi::Scope::External, other);
            let events = machine.run(XdpUplink, &udp(from, to).bytes()).events;
            let local = net.backend(backend::LOCAL);
            let said: Vec<_> = events.iter().map(|event| (event.kind, event.new_destination, event.service)).collect();
            assert_eq!(said, [(event_kind::CHANGE, words(net, local.ip()), backend::POD)]);
        }
    });
}

#[test]
fn pinned_maps_and_the_ring_are_opened_without_the_programs_and_others_are_refused() {
    in_namespaces(|folder| {
        let refused = |folder: &std::path::Path| Maps::existing(folder).expect_err("nothing to open").to_string();
        assert!(refused(&folder).contains("there are no maps below"), "{}", refused(&folder));
        let programs = load(&folder);
        programs.maps.members.put(&7, &77).expect("write");
        // Whoever loaded them is gone.
        drop(programs);
        let maps = Maps::existing(&folder).expect("the pinned maps");
        assert_eq!(maps.members.get(&7).expect("read"), Some(77));
        assert!(Events::open(&folder).expect("the pinned ring").take().is_none());
        drop(maps);
        // Another layout is named, and so are maps of this version that are no such maps.
        let ours = folder.join(format!("v{LAYOUT_VERSION}"));
        let array = ours.join("SETTINGS");
        std::fs::remove_file(ours.join("COUNTERS")).expect("remove");
        std::fs::rename(&array, ours.join("COUNTERS")).expect("rename");
        assert!(refused(&folder).contains("this build knows it with"), "{}", refused(&folder));
        std::fs::rename(&ours, folder.join("v99")).expect("rename");
        let said = refused(&folder);
        assert!(said.contains("layout version 99") && said.contains(&format!("version {LAYOUT_VERSION};")), "{said}");
        meshd_datapath::remove(&folder).expect("remove");
    });
}

/// The coarse monotonic clock in nanoseconds.
fn now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).expect("a clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[test]
fn events_that_nobody_wants_are_not_made_and_too_many_are_counted() {
    with_machine(|machine| {
        let net = NETS[0];
        let frontend = net.frontend(Kind::LoadBalancer, backend::LOCAL);
        let ask = |port: u16| machine.run(XdpUplink, &syn((net.client_ip(), port).into(), frontend).bytes());
        machine.scene().put_settings(|settings| settings.flags &= !settings_flags::EVENTS);
        let outcome = ask(1);
        assert_eq!((outcome.events.len(), outcome.counted.len()), (0, 1));

        machine.scene().put_settings(|settings| settings.events_per_tick = 0);
        let outcome = ask(2);
        assert!(outcome.events.is_empty());
        assert_eq!(outcome.counted, [(Reason::NewConnection, 1, 54), (Reason::EventsLimited, 1, 0)]);

        // Each kind has a bound of its own: what is dropped does not hide what begins.
        machine.scene().put_settings(|settings| settings.events_per_tick = 3);
        let pod = net.frontend(Kind::LoadBalancer, backend::POD);
        let expired = |port: u16| syn((net.client_ip(), port).into(), pod).ttl(1).bytes();
        let mut kinds = Vec::new();
        for port in 3..15 {
            kinds.extend(machine.run(UplinkIngress, &expired(port)).events.iter().map(|event| event.kind));
        }
        let count = |kind| kinds.iter().filter(|told| **told == kind).count();
        // One of the first kind is counted above, and another tick may begin in between.
        let (begun, dropped) = (count(event_kind::NEW), count(event_kind::DROP));
        assert!((2..=6).contains(&begun) && (3..=6).contains(&dropped), "{kinds:?}");

        // Nobody takes them out: the ring is full after a while, and packets go on.
        machine.scene().put_settings(|_| ());
        let frames = (1_000..2_000).map(|port| syn((net.client_ip(), port).into(), frontend).bytes());
        let mut made = 0;
        let counter = |reason: Reason| -> u64 {
            let copies = machine.programs.maps.counters.get(reason as u32).expect("a counter");
            copies.iter().map(|counter| counter.packets).sum()
        };
        let lost = counter(Reason::EventsLost);
        for (number, frame) in frames.enumerate() {
            // The table of connections is small, too.
            if number % 100 == 0 {
                let maps = &machine.programs.maps.v4.connections;
                maps.remove_if(|_, _| true).expect("remove");
            }
            let (verdict, _) = machine.run_uncounted(XdpUplink, &frame);
            assert_eq!(verdict, 2);
            made += 1;
        }
        let taken = machine.take_events().len();
        assert!(taken > 100 && taken < made, "{taken} of {made}");
        assert_eq!(counter(Reason::EventsLost) - lost, (made - taken) as u64, "what is not told is counted");
    });
}

#[test]
fn who_sends_what_is_too_long_is_told_and_the_event_has_its_own_length() {
    with_machine(|machine| {
        for net in NETS {
            machine.scene().reset();
            put_ways(&machine.scene(), hop::NARROW);
            let (here, there) = (net.workload(), net.far_workload());
            let event = FlowEvent {
                source_identity: 300,
                source_cluster: 1,
                destination_identity: 300,
                destination_cluster: 1,
                tcp_flags: PSH | ACK,
                place: event_place::FROM_WORKLOAD,
                ..refused(told(net, here, there), Reason::TooBig)
            };
            compare(machine, vec![(WorkloadIngress, tcp(here, there).data(&[7; 100]).whole(), Some(event))]);
        }
    });
}
