//! Which backend a new connection gets: by hash, by table, by what the client had before. The host computes the same with
//! `meshd-steps`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use meshd_abi::{AffinityValue, BackendState, MAGLEV_CHUNK, Reason, Scope, Service, V4, V6, service_flags};
use meshd_datapath::{
    Program::{UplinkIngress, XdpUplink},
    ticks,
};
use meshd_steps::choose::{client_hash, flow_hash, reduce};

use crate::{
    case::{
        Case,
        Verdict::{Back, Redirect},
        case,
    },
    frame::{GATEWAY, OWN, TCP, UDP, opening},
    scene::{Family, Kind, NETS, Net, SEED, Scene, backend, service},
};

const FIRST: u32 = backend::FIRST_OF_FOUR;
/// Slots of a small and of a large table.
const SMALL: u32 = 16_381;
const LARGE: u32 = 65_521;
/// Where the tables begin in `maglev`.
const SMALL_AT: u32 = 3;
const LARGE_AT: u32 = 8;

/// Which of four members a slot has: neighbors differ, and so do the chunks.
fn member_of(slot: u32) -> u32 {
    (slot + slot / 16_384 + slot / 64) % 4
}

fn put_table(scene: &Scene<'_>, first: u32, slots: u32, member_of: impl Fn(u32) -> u32) {
    for chunk in 0..slots.div_ceil(MAGLEV_CHUNK as u32) {
        let mut table = [0; MAGLEV_CHUNK];
        for (at, slot) in table.iter_mut().enumerate() {
            *slot = member_of(chunk * MAGLEV_CHUNK as u32 + at as u32) as u16;
        }
        scene.maps.put_chunk(first + chunk, &table).expect("a chunk");
    }
}

fn hash(client: SocketAddr, frontend: SocketAddr, protocol: u8) -> u32 {
    let (from, to) = (client.port().to_be(), frontend.port().to_be());
    match client.ip() {
        ip @ IpAddr::V4(_) => flow_hash(SEED, &V4::of(ip), from, to, protocol),
        ip @ IpAddr::V6(_) => flow_hash(SEED, &V6::of(ip), from, to, protocol),
    }
}

fn hash_of_client(client: IpAddr) -> u32 {
    if client.is_ipv4() { client_hash(SEED, &V4::of(client)) } else { client_hash(SEED, &V6::of(client)) }
}

/// Clients of which every bit matters.
fn client(net: Net, number: u16) -> SocketAddr {
    let ip: IpAddr = if net.is_v4() {
        Ipv4Addr::from([198, 51, (number * 7) as u8, number as u8]).into()
    } else {
        Ipv6Addr::from([0x2001, 0xdb8, number, number * 7, number * 11, 0, number * 13, number]).into()
    };
    (ip, 1_024 + number * 1_009).into()
}

fn frontend(net: Net) -> SocketAddr {
    net.frontend(Kind::LoadBalancer, 62)
}

fn four(table: u32, slots: u32, flags: u16) -> Service {
    Service { table, slots, count: 4, flags, ..service(62, FIRST) }
}

/// A row: this client's new connection comes to the first of four plus `member`.
fn chosen(row: Case, net: Net, client: SocketAddr, protocol: u8, member: u32) -> Case {
    let out = opening(protocol, net.node(), net.backend(FIRST + member)).sent(GATEWAY, OWN);
    row.becomes(XdpUplink, &opening(protocol, client, frontend(net)), Back, &out, Reason::NewConnection)
}

pub(crate) fn by_hash() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for (word, protocol) in [("tcp", TCP), ("udp", UDP)] {
            for number in 1..9 {
                let client = client(net, number);
                let hash = hash(client, frontend(net), protocol);
                for (name, table, slots) in [
                    ("no table", meshd_abi::NO_TABLE, 4),
                    ("small table", SMALL_AT, SMALL),
                    ("large table", LARGE_AT, LARGE),
                ] {
                    let row = case(format!("{} {word} client {number}, {name}", net.word)).given(move |scene| {
                        if slots > 4 {
                            put_table(scene, table, slots, member_of);
                        }
                        scene.put_service(frontend(net), protocol, Scope::External, four(table, slots, 0));
                    });
                    let slot = reduce(hash, slots);
                    let member = if slots == 4 { slot } else { member_of(slot) };
                    cases.push(chosen(row, net, client, protocol, member));
                }
            }
        }
    }
    cases
}

pub(crate) fn by_source() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        for number in 1..5 {
            let first = client(net, number);
            let member = member_of(reduce(hash_of_client(first.ip()), SMALL));
            let mut row = case(format!("{} client {number} by source", net.word)).given(move |scene| {
                put_table(scene, SMALL_AT, SMALL, member_of);
                for protocol in [TCP, UDP] {
                    let service = four(SMALL_AT, SMALL, service_flags::BY_SOURCE);
                    scene.put_service(frontend(net), protocol, Scope::External, service);
                }
            });
            // Another protocol and then another port: a port of this node is free for one connection per protocol.
            row = chosen(row, net, first, TCP, member);
            row = chosen(row, net, (first.ip(), 9).into(), UDP, member);
            cases.push(row);
        }
    }
    cases
}

pub(crate) fn lacking() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let asked = opening(TCP, net.client(), frontend(net));
        let mut row = |name: &str, change: fn(&Scene<'_>) -> Service| {
            cases.push(
                case(format!("{} {name}", net.word))
                    .given(move |scene| {
                        let service = change(scene);
                        scene.put_service(frontend(net), TCP, Scope::External, service);
                    })
                    .drops(XdpUplink, &asked, Reason::NoBackend)
                    .given(|scene| assert_eq!(scene.connections(), 0)),
            );
        };
        row("no such chunk", |scene| {
            scene.maps.remove_chunk(SMALL_AT).expect("remove");
            four(SMALL_AT, SMALL, 0)
        });
        row("a chunk beyond the map", |_| four(u32::MAX - 1, SMALL, 0));
        row("members beyond the map", |_| Service { members: u32::MAX - 1, ..four(meshd_abi::NO_TABLE, 4, 0) });
        row("a slot beyond the members", |scene| {
            put_table(scene, SMALL_AT, SMALL, |_| 65_535);
            four(SMALL_AT, SMALL, 0)
        });
        row("a member beyond the backends", |scene| {
            scene.maps.members.put(&63, &u32::MAX).expect("a member");
            service(62, 63)
        });
        row("a member that is free", |_| service(62, 63));
        let row = case(format!("{} a member that serves another service now", net.word)).given(move |scene| {
            scene.put_service(frontend(net), TCP, Scope::External, service(62, FIRST));
            scene.put_backend_owner(FIRST, 63);
        });
        cases.push(row.drops(XdpUplink, &asked, Reason::NoBackend));
    }
    cases
}

pub(crate) fn drained() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let client = client(net, 3);
        let member = member_of(reduce(hash(client, frontend(net), TCP), SMALL));
        let other = (member + 1) % 4;
        let row = case(format!("{} the backend of a connection drains", net.word)).given(move |scene| {
            put_table(scene, SMALL_AT, SMALL, member_of);
            scene.put_service(frontend(net), TCP, Scope::External, four(SMALL_AT, SMALL, 0));
        });
        let row = chosen(row, net, client, TCP, member).given(move |scene| {
            scene.put_backend_state(FIRST + member, BackendState::Terminating);
            put_table(scene, SMALL_AT, SMALL, |_| other);
        });
        let data = crate::frame::tcp(client, frontend(net));
        let out = crate::frame::tcp(net.node(), net.backend(FIRST + member)).sent(GATEWAY, OWN);
        let row = row.becomes(XdpUplink, &data, Back, &out, Reason::ToBackend);
        let later = SocketAddr::from((client.ip(), client.port() + 1));
        cases.push(chosen(row, net, later, TCP, other));
    }
    cases
}

pub(crate) fn affinity() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in NETS {
        let client = net.client();
        // By hash this client comes to `member`; what it had before was another one.
        let member = reduce(hash(client, frontend(net), TCP), 4);
        let last = (member + 2) % 4;
        let row = |name: &str, age: u32, index: u32, seconds: u32| {
            case(format!("{} affinity, {name}", net.word)).given(move |scene| {
                let service = Service { affinity: seconds, ..four(meshd_abi::NO_TABLE, 4, 0) };
                scene.put_service(frontend(net), TCP, Scope::External, service);
                let used = ticks().wrapping_sub(age);
                scene.put_affinity(client.ip(), 62, AffinityValue { backend: FIRST + index, used });
            })
        };
        cases.push(chosen(row("sticks", 0, last, 100), net, client, TCP, last));
        cases.push(chosen(row("sticks almost to its end", 98, last, 100), net, client, TCP, last));
        cases.push(chosen(row("expired", 102, last, 100), net, client, TCP, member));
        cases.push(chosen(row("of a service without affinity", 0, last, 0), net, client, TCP, member));
        for state in [BackendState::Terminating, BackendState::Removed, BackendState::Killed, BackendState::Free] {
            let row = row(&format!("backend is {state:?}"), 0, last, 100)
                .given(move |scene| scene.put_backend_state(FIRST + last, state));
            cases.push(chosen(row, net, client, TCP, member));
        }
        let other = row("backend serves another service now", 0, last, 100)
            .given(move |scene| scene.put_backend_owner(FIRST + last, 63));
        cases.push(chosen(other, net, client, TCP, member));
        let row = row("of another client", 0, last, 100);
        let neighbor = SocketAddr::from((net.router_ip(), client.port()));
        let by_hash = reduce(hash(neighbor, frontend(net), TCP), 4);
        cases.push(chosen(row, net, neighbor, TCP, by_hash));

        // The first connection is remembered, whatever the second one's hash says.
        let second = (1..).map(|number| SocketAddr::from((client.ip(), number)));
        let mut second = second.filter(|second| reduce(hash(*second, frontend(net), TCP), 4) != member);
        let second = second.next().expect("a port with another hash");
        let both =
            case(format!("{} affinity, the second connection follows the first", net.word)).given(move |scene| {
                let service = Service { affinity: 100, ..four(meshd_abi::NO_TABLE, 4, 0) };
                scene.put_service(frontend(net), TCP, Scope::External, service);
            });
        let both = chosen(both, net, client, TCP, member).drops(
            XdpUplink,
            &opening(TCP, second, frontend(net)),
            // The only port is taken by the first connection to the same backend: that is how it shows.
            Reason::NoPort,
        );
        let both = both.given(move |scene| scene.put_settings(|settings| settings.ports += 1));
        let from = SocketAddr::from((net.node_ip(), crate::scene::PORT + 1));
        let out = opening(TCP, from, net.backend(FIRST + member)).sent(GATEWAY, OWN);
        let asked = opening(TCP, second, frontend(net));
        cases.push(both.becomes(UplinkIngress, &asked, Redirect, &out, Reason::NewConnection));
    }
    cases
}
