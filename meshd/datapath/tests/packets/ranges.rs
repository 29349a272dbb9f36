//! Source ranges: who may begin a connection to the address of a load balancer.

use std::net::SocketAddr;

use meshd_abi::{RangeKey, Reason, Scope, Service, V4, V6, service_flags};
use meshd_datapath::{
    Maps,
    Program::{self, UplinkIngress, WorkloadIngress, XdpUplink},
};

use crate::{
    case::{
        Case,
        Verdict::{Back, Redirect},
        case,
    },
    frame::{GATEWAY, OWN, TCP, UDP, opening, packet},
    scene::{Family, Kind, NETS, Net, POD, Scene, backend, service},
};

/// The service that has ranges, and another one.
const LIMITED: u32 = backend::REMOTE;
const OTHER: u32 = backend::OTHER;

fn put_range(scene: &Scene<'_>, id: u32, client: SocketAddr, bits: u32) {
    fn put<A: Family>(maps: &Maps, id: u32, address: A, bits: u32) {
        let key = RangeKey { length: RangeKey::<A>::SERVICE_BITS + bits, service: id, address };
        A::maps(maps).ranges.put(&key, &1).expect("a range");
    }
    if client.is_ipv4() {
        put(scene.maps, id, V4::of(client.ip()), bits);
    } else {
        put(scene.maps, id, V6::of(client.ip()), bits);
    }
}

fn forget_ranges(scene: &Scene<'_>) {
    for (key, _) in scene.maps.v4.ranges.all().expect("ranges") {
        scene.maps.v4.ranges.remove(&key).expect("removed");
    }
    for (key, _) in scene.maps.v6.ranges.all().expect("ranges") {
        scene.maps.v6.ranges.remove(&key).expect("removed");
    }
}

/// A service whose clients are looked at.
fn limit(scene: &Scene<'_>, net: Net, protocol: u8) {
    forget_ranges(scene);
    let limited = Service { flags: service_flags::SOURCE_RANGES, ..service(LIMITED, LIMITED) };
    scene.put_service(net.frontend(Kind::LoadBalancer, LIMITED), protocol, Scope::External, limited);
}

pub(crate) fn rows() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
            for program in [XdpUplink, UplinkIngress] {
                cases.extend(clients(net, word, protocol, program));
            }
        }
        cases.push(workload(net));
    }
    cases
}

fn clients(net: Net, word: &str, protocol: u8, program: Program) -> Vec<Case> {
    let name = |what: &str| format!("{} {word} {what}, {}", net.word, program.name());
    let (client, frontend) = (net.client(), net.frontend(Kind::LoadBalancer, LIMITED));
    let question = opening(protocol, client, frontend);
    let node = net.node();
    let to = net.backend(LIMITED);
    let verdict = if program == XdpUplink { Back } else { Redirect };
    let served = opening(protocol, node, to).sent(GATEWAY, OWN);
    let whole = whole_of(net);
    let let_in = |what: &str, bits: u32| {
        case(name(what))
            .given(move |scene| {
                limit(scene, net, protocol);
                put_range(scene, LIMITED, client, bits);
            })
            .becomes(program, &question, verdict, &served, Reason::NewConnection)
            .given(forget_ranges)
    };
    let refused = |what: &str, change: fn(&Scene<'_>, Net)| {
        case(name(what))
            .given(move |scene| {
                limit(scene, net, protocol);
                change(scene, net);
            })
            .drops(program, &question, Reason::SourceRange)
            .given(forget_ranges)
    };
    vec![
        let_in("the client itself", whole),
        let_in("its network", 24),
        let_in("everybody", 0),
        refused("no range", |_, _| ()),
        refused("another network", |scene, net| put_range(scene, LIMITED, net.world(), whole_of(net))),
        refused("a range of another service", |scene, net| put_range(scene, OTHER, net.client(), 0)),
        // A connection that is known goes on when the range goes.
        case(name("known before"))
            .given(move |scene| {
                limit(scene, net, protocol);
                put_range(scene, LIMITED, client, whole);
            })
            .becomes(program, &question, verdict, &served, Reason::NewConnection)
            .given(forget_ranges)
            .becomes(
                program,
                &packet(protocol, client, frontend),
                verdict,
                &packet(protocol, node, to).sent(GATEWAY, OWN),
                Reason::ToBackend,
            ),
        // The other frontends of the same service are reached as before.
        case(name("a frontend that does not ask")).given(move |scene| limit(scene, net, protocol)).becomes(
            program,
            &opening(protocol, client, net.frontend(Kind::ExternalIp, LIMITED)),
            verdict,
            &served,
            Reason::NewConnection,
        ),
    ]
}

const fn whole_of(net: Net) -> u32 {
    if net.is_v4() { 32 } else { 128 }
}

/// A workload is inside, whatever the ranges say: its scope has an entry of its own.
fn workload(net: Net) -> Case {
    let frontend = net.frontend(Kind::LoadBalancer, LIMITED);
    let source = net.workload();
    let served = opening(TCP, source, net.backend(LIMITED)).sent(GATEWAY, OWN);
    case(format!("{} a workload", net.word))
        .given(move |scene| {
            limit(scene, net, TCP);
            scene.put_service(frontend, TCP, Scope::Internal, service(LIMITED, LIMITED));
        })
        .becomes(WorkloadIngress, &opening(TCP, source, frontend).by(POD), Redirect, &served, Reason::NewConnection)
}
