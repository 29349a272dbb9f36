//! Flow events: what is told about connections and refusals, and what is not.

use meshd_abi::{Address, FlowEvent, Reason, V4, V6, event_kind, settings_flags};
use meshd_datapath::Program::{UplinkEgress, UplinkIngress, WorkloadIngress, XdpUplink};

use crate::{
    case::with_machine,
    frame::{SYN, TCP, syn, tcp},
    scene::{Family, Kind, LINK, NETS, Net, backend},
};

fn words(net: Net, ip: std::net::IpAddr) -> [u32; 4] {
    if net.is_v4() { V4::of(ip).words() } else { V6::of(ip).words() }
}

/// What an event says of a SYN, whatever became of it.
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
        length: if net.is_v4() { 54 } else { 74 },
        ..FlowEvent::default()
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
            let begun = |event: FlowEvent| FlowEvent {
                kind: event_kind::NEW,
                reason: Reason::NewConnection as u8,
                backend: words(net, to_pod.ip()),
                backend_port: to_pod.port().to_be(),
                destination_identity: 300,
                ..event
            };
            let refused =
                |event: FlowEvent, reason: Reason| FlowEvent { kind: event_kind::DROP, reason: reason as u8, ..event };
            let rows = [
                (XdpUplink, syn(client, pod), Some(begun(told(net, client, pod)))),
                // It is known now.
                (UplinkIngress, syn(client, pod), None),
                (
                    WorkloadIngress,
                    syn(workload, cluster),
                    Some(FlowEvent { source_identity: 300, ..begun(told(net, workload, cluster)) }),
                ),
                (XdpUplink, syn(client, gone), Some(refused(told(net, client, gone), Reason::NoBackend))),
                (UplinkIngress, syn(client, gone), Some(refused(told(net, client, gone), Reason::NoBackend))),
                (
                    UplinkEgress,
                    syn(workload, net.world()),
                    Some(FlowEvent {
                        source_identity: 300,
                        direction: 1,
                        ..refused(told(net, workload, net.world()), Reason::NoSource)
                    }),
                ),
                (XdpUplink, tcp(client, net.world()), None),
            ];
            for (program, packet, expected) in rows {
                let before = now();
                let events = machine.run(program, &packet.bytes()).events;
                let after = now();
                let times: Vec<u64> = events.iter().map(|event| event.time).collect();
                assert!(times.iter().all(|time| (before..=after).contains(time)), "{times:?} of {before} to {after}");
                let events: Vec<FlowEvent> = events.into_iter().map(|event| FlowEvent { time: 0, ..event }).collect();
                assert_eq!(events, Vec::from_iter(expected), "{program:?}");
            }
        }
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
        assert_eq!(outcome.counted, [(Reason::NewConnection, 1, 54), (Reason::EventsLost, 1, 0)]);

        // Nobody takes them out: the ring is full after a while, and packets go on.
        machine.scene().put_settings(|_| ());
        let frames = (1_000..2_000).map(|port| syn((net.client_ip(), port).into(), frontend).bytes());
        let mut made = 0;
        for (number, frame) in frames.enumerate() {
            // The table of connections is small, too.
            if number % 100 == 0 {
                let maps = &machine.programs.maps.v4.connections;
                let keys: Vec<_> = maps.all().expect("read").into_iter().map(|(key, _)| key).collect();
                maps.remove_all(&keys).expect("remove");
            }
            let (verdict, _) = machine.run_uncounted(XdpUplink, &frame);
            assert_eq!(verdict, 2);
            made += 1;
        }
        let taken = machine.take_events().len();
        assert!(taken > 100 && taken < made, "{taken} of {made}");
    });
}
