//! Plans carried out on maps in memory: what the maps hold in the end, and that no step leaves a gap.

use std::collections::{BTreeMap, BTreeSet};

use meshd_abi::{BackendState, NO_TABLE, Scope, service_flags};
use proptest::prelude::*;

use super::*;
use crate::{
    desired::{self, Frontend, FrontendKind, NodeTarget, ServicePort, Target, TargetKey},
    id::IfIndex,
    maglev::Slots,
    observed::{ForwardingMode, Protocol, ServiceName, TrafficPolicy},
};

mod room;
mod service_model;

const SETTINGS: ServiceSettings = ServiceSettings {
    slots: Some(Slots::Normal),
    seed: 7606,
    mode: ForwardingMode::Snat,
    backends: 64,
    members: 256,
    chunks: 8,
    ranges: 8,
};

/// What packets to a frontend meet.
#[derive(Debug, PartialEq)]
struct Meaning {
    slots: BTreeMap<IpAddr, usize>,
    /// Of each backend its node for direct server return, and whether other nodes may send to it.
    nodes: Vec<(IpAddr, Option<V4>, bool)>,
}

/// The maps, as far as IPv4 is concerned.
#[derive(Default)]
struct Maps {
    services: BTreeMap<(IpAddr, u16, u8), Service>,
    backends: BTreeMap<u32, Backend<V4>>,
    members: BTreeMap<u32, u32>,
    chunks: BTreeMap<u32, Box<[u16; MAGLEV_CHUNK]>>,
    ranges: BTreeSet<RangeKey<V4>>,
    direct: BTreeMap<u32, Direct<V4>>,
    receivers: BTreeMap<(IpAddr, u32), u32>,
}

impl Maps {
    /// Plans a service and carries it out.
    fn put(&mut self, planner: &mut ServicePlanner, name: &ServiceName, service: Option<&desired::Service>) {
        self.run(planner.plan(name, service, no_hop));
        planner.done(name, Carried::All);
    }

    /// Carries out writes and checks after each that every frontend leads to backends that exist.
    fn run(&mut self, plan: ServicePlan) {
        assert_eq!(plan.problems, Vec::<String>::new());
        for write in plan.writes {
            self.write(write);
            self.check();
        }
    }

    /// Carries out writes of plans of which the kernel refused a part.
    fn run_unchecked(&mut self, plan: ServicePlan) {
        for write in plan.writes {
            self.write(write);
        }
    }

    /// A frontend never leads to a backend of another service that the program would believe.
    fn check_owners(&self) {
        for ((frontend, _, _), entry) in &self.services {
            for slot in 0..entry.slots {
                let member =
                    if entry.table == NO_TABLE { slot } else { u32::from(self.chunks[&entry.table][slot as usize]) };
                let index = self.members[&(entry.members + member)];
                let backend = self.backends[&index];
                if backend.owner == entry.id && backend.state != BackendState::Free as u8 {
                    let service = v4(*frontend).unwrap_or_default().octets()[3];
                    assert_eq!(backend.address.octets()[2], service, "backends have their service's number");
                }
            }
        }
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Backend4(index, backend) => drop(self.backends.insert(index, backend)),
            Write::Members(begin, members) => self.members.extend((begin..).zip(members)),
            Write::Chunk(index, chunk) => drop(self.chunks.insert(index, chunk)),
            Write::Service4(key, entry) => {
                let key = (ip(key.address), u16::from_be(key.port), key.scope);
                match entry {
                    Some(entry) => drop(self.services.insert(key, entry)),
                    None => drop(self.services.remove(&key)),
                }
            }
            Write::Direct4(index, direct) => drop(self.direct.insert(index, direct)),
            Write::Receiver4(key, Some(index)) => drop(self.receivers.insert((ip(key.backend), key.service), index)),
            Write::Receiver4(key, None) => drop(self.receivers.remove(&(ip(key.backend), key.service))),
            Write::Range4(key, true) => drop(self.ranges.insert(key)),
            Write::Range4(key, false) => drop(self.ranges.remove(&key)),
            other => panic!("{other:?}"),
        }
    }

    fn check(&self) {
        for entry in self.services.values() {
            for at in 0..u32::from(entry.count) {
                let backend = self.backends[&self.members[&(entry.members + at)]];
                assert_ne!(backend.state, BackendState::Free as u8);
                assert_eq!(backend.owner, entry.id);
            }
            if entry.flags & service_flags::SOURCE_RANGES != 0 {
                assert!(self.ranges.iter().any(|range| range.service == entry.id), "nobody could use it");
            }
            if entry.table != NO_TABLE {
                let chunk = &self.chunks[&entry.table];
                assert!(chunk[..entry.slots as usize].iter().all(|member| *member < entry.count));
            }
        }
    }

    /// What packets of a service meet, whatever its numbers and places are.
    fn meaning(&self) -> Vec<Option<Meaning>> {
        let meaning = |(address, scope): (&str, Scope)| {
            let entry = self.services.get(&(address.parse().unwrap(), 80, scope as u8))?;
            let behind = if entry.count > 0 { self.behind(address, scope) } else { BTreeMap::new() };
            let node = |at: &IpAddr| {
                let is_own = |element: &&u32| {
                    let backend = self.backends[*element];
                    let is_active = backend.state == BackendState::Active as u8;
                    is_active && backend.owner == entry.id && ip(backend.address) == *at
                };
                let index = self.backends.keys().find(is_own).copied().expect("it is in use");
                let node = self.direct.get(&index).map(|direct| direct.node).filter(|node| *node != V4::default());
                (*at, node, self.receivers.get(&(*at, entry.id)) == Some(&index))
            };
            let nodes = behind.keys().map(node).collect();
            Some(Meaning { slots: behind, nodes })
        };
        let all = [("10.2.0.80", Scope::Internal), ("192.0.2.80", Scope::Internal), ("192.0.2.80", Scope::External)];
        all.map(meaning).into()
    }

    /// Addresses behind a frontend, by how many slots each has.
    fn behind(&self, address: &str, scope: Scope) -> BTreeMap<IpAddr, usize> {
        let entry = self.services[&(address.parse().unwrap(), 80, scope as u8)];
        let mut found = BTreeMap::new();
        for slot in 0..entry.slots {
            let member =
                if entry.table == NO_TABLE { slot } else { u32::from(self.chunks[&entry.table][slot as usize]) };
            let index = self.members[&(entry.members + member)];
            *found.entry(ip(self.backends[&index].address)).or_default() += 1;
        }
        found
    }

    /// Elements that are in use, for new connections or for those there are.
    fn live(&self) -> BTreeMap<u32, Backend<V4>> {
        let in_use = [BackendState::Active as u8, BackendState::Terminating as u8];
        let live = self.backends.iter().filter(|(_, backend)| in_use.contains(&backend.state));
        live.map(|(index, backend)| (*index, *backend)).collect()
    }

    fn index(&self, address: &str) -> u32 {
        let address: IpAddr = address.parse().unwrap();
        *self.backends.iter().find(|(_, backend)| ip(backend.address) == address).unwrap().0
    }

    fn existing(&self) -> Existing {
        let key = |(address, port, scope): &(IpAddr, u16, u8)| ServiceKey {
            address: v4(*address).unwrap(),
            port: port.to_be(),
            protocol: 6,
            scope: *scope,
        };
        let top = self.members.keys().max().map_or(0, |top| top + 1);
        Existing {
            services4: self.services.iter().map(|(at, entry)| (key(at), *entry)).collect(),
            members: (0..top).map(|at| self.members.get(&at).copied().unwrap_or(0)).collect(),
            backends4: self.backends.iter().map(|(index, backend)| (*index, *backend)).collect(),
            chunks: self.chunks.iter().map(|(index, chunk)| (*index, digest_of(chunk))).collect(),
            ranges4: self.ranges.iter().copied().collect(),
            direct4: self.direct.iter().map(|(index, direct)| (*index, *direct)).collect(),
            receivers4: self
                .receivers
                .iter()
                .map(|((backend, service), index)| (receiver(*backend, *service), *index))
                .collect(),
            ..Existing::default()
        }
    }
}

fn receiver(backend: IpAddr, service: u32) -> ReceiverKey<V4> {
    ReceiverKey { backend: v4(backend).unwrap(), service, port: 8080u16.to_be(), protocol: 6, reserved: 0 }
}

fn name() -> ServiceName {
    ServiceName { namespace: "default".into(), name: "webpod".into() }
}

fn backend(address: &str) -> desired::Backend {
    desired::Backend {
        address: address.parse().unwrap(),
        port: 8080,
        cluster: "west".parse().unwrap(),
        node: None,
        state: desired::BackendState::Active,
        preferred: false,
        used: true,
        weight: 100,
        local: address.starts_with("10.0.0."),
        zone: None,
        near: false,
    }
}

fn service(backends: &[desired::Backend]) -> desired::Service {
    let frontend = |address: &str, kind| Frontend { address: address.parse().unwrap(), port: 80, kind };
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
        node_port: None,
        frontends: [frontend("10.2.0.80", FrontendKind::ClusterIp), frontend("192.0.2.80", FrontendKind::ExternalIp)]
            .into(),
        backends: backends.into(),
    };
    desired::Service::with_ports([port])
}

fn no_hop(_: IpAddr) -> u32 {
    0
}

#[test]
fn a_service_comes_changes_and_goes_without_a_gap() {
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    let two = [backend("10.0.0.10"), backend("10.0.1.10")];
    maps.put(&mut planner, &name(), Some(&service(&two)));
    let shares = maps.behind("10.2.0.80", Scope::Internal);
    assert_eq!(shares.len(), 2);
    assert!(shares.values().all(|slots| (8_100..8_300).contains(slots)), "{shares:?}");
    assert_eq!(maps.behind("192.0.2.80", Scope::External), shares, "both policies reach everybody");
    assert!(!maps.services.contains_key(&("10.2.0.80".parse().unwrap(), 80, Scope::External as u8)));
    let kept = maps.index("10.0.0.10");

    // The same again is nothing to do.
    planner.begin_round();
    assert_eq!(planner.plan(&name(), Some(&service(&two)), no_hop), ServicePlan::default());

    let three = [backend("10.0.0.10"), backend("10.1.0.10"), backend("10.1.1.10")];
    maps.put(&mut planner, &name(), Some(&service(&three)));
    assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 3);
    assert_eq!(maps.index("10.0.0.10"), kept, "connections name it");
    let gone = maps.index("10.0.1.10");
    assert_eq!(maps.backends[&gone].state, BackendState::Removed as u8);
    planner.begin_round();
    maps.run(planner.release(|_, index| index == gone));
    assert_eq!(maps.backends[&gone].state, BackendState::Removed as u8, "a connection names it still");
    maps.run(planner.release(|_, _| false));
    assert_eq!(maps.backends[&gone].state, BackendState::Free as u8);

    maps.put(&mut planner, &name(), None);
    assert!(maps.services.is_empty());
    maps.run(planner.release(|_, _| false));
    planner.begin_round();
    assert_eq!((planner.backends(), planner.frontends()), ([0, 0], 0));
    assert_eq!(planner.room(), [256, 8]);
    assert_eq!(planner.addresses().count(), 0);
}

#[test]
fn policies_have_groups_of_their_own() {
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    let mut wanted = service(&[backend("10.0.0.10"), backend("10.0.1.10")]);
    wanted.external_policy = TrafficPolicy::Local;
    maps.put(&mut planner, &name(), Some(&wanted));
    assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 2);
    let local: Vec<IpAddr> = maps.behind("192.0.2.80", Scope::External).into_keys().collect();
    assert_eq!(local, ["10.0.0.10".parse::<IpAddr>().unwrap()]);
    wanted.external_policy = TrafficPolicy::Cluster;
    maps.put(&mut planner, &name(), Some(&wanted));
    assert_eq!(maps.behind("192.0.2.80", Scope::External).len(), 2);

    // A frontend that moves from one group to another is there all the time, also where the other one is new.
    wanted.external_policy = TrafficPolicy::Local;
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    let at_first = desired::Service { external_policy: TrafficPolicy::Cluster, ..wanted.clone() };
    maps.put(&mut planner, &name(), Some(&at_first));
    let plan = planner.plan(&name(), Some(&wanted), no_hop);
    assert!(!plan.writes.iter().any(|write| matches!(write, Write::Service4(_, None))), "{plan:?}");
    maps.run(plan);
    planner.done(&name(), Carried::All);
    assert_eq!(maps.behind("192.0.2.80", Scope::External).len(), 1);
    for (internal, behind) in [(TrafficPolicy::Local, 1), (TrafficPolicy::Cluster, 2), (TrafficPolicy::Local, 1)] {
        wanted.external_policy = TrafficPolicy::Local;
        wanted.internal_policy = internal;
        maps.put(&mut planner, &name(), Some(&wanted));
        assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), behind);
        assert_eq!(maps.behind("192.0.2.80", Scope::External).len(), 1);
    }
}

#[test]
fn a_restart_takes_over_what_connections_name() {
    let mut maps = Maps::default();
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let two = [backend("10.0.0.10"), backend("10.0.1.10")];
    maps.put(&mut planner, &name(), Some(&service(&two)));
    let other = ServiceName { name: "other".into(), ..name() };
    let mut second = service(&[backend("10.0.0.11")]);
    second.ports[0].frontends =
        [Frontend { address: "10.2.0.81".parse().unwrap(), port: 80, kind: FrontendKind::ClusterIp }].into();
    maps.put(&mut planner, &other, Some(&second));
    let before = (maps.index("10.0.0.10"), maps.index("10.0.1.10"), maps.services.clone());

    let mut planner = ServicePlanner::new(SETTINGS, maps.existing());
    let plan = planner.plan(&name(), Some(&service(&two)), no_hop);
    assert_eq!(plan, ServicePlan::default(), "everything is there already, the table too");
    planner.done(&name(), Carried::All);
    assert_eq!((maps.index("10.0.0.10"), maps.index("10.0.1.10")), (before.0, before.1));
    for (key, entry) in &before.2 {
        assert_eq!(maps.services[key].id, entry.id, "affinity names it");
    }
    // The other service is not wanted any more, which is known when everything was planned once.
    assert_eq!(maps.services.len(), 4);
    let (plan, again) = planner.finish();
    maps.run(plan);
    assert!(again.is_empty(), "nothing was held for {again:?}");
    assert_eq!(maps.services.len(), 3);
    assert_eq!(maps.backends[&maps.index("10.0.0.11")].state, BackendState::Removed as u8);
    maps.run(planner.release(|_, _| false));
    assert_eq!(planner.backends(), [2, 0]);
}

#[test]
fn source_ranges_are_there_before_a_frontend_asks_for_them_and_until_none_does() {
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    let mut wanted = service(&[backend("10.0.0.10")]);
    let mut frontends = wanted.ports[0].frontends.to_vec();
    let balancer: IpAddr = "198.51.100.80".parse().unwrap();
    frontends.push(Frontend { address: balancer, port: 80, kind: FrontendKind::LoadBalancerIp });
    wanted.ports[0].frontends = frontends.into();
    wanted.source_ranges = ["192.0.2.77/24", "2001:db8::/32"].map(|range| range.parse().unwrap()).into();
    maps.put(&mut planner, &name(), Some(&wanted));
    let flags = |maps: &Maps, address: &str, scope: Scope| {
        maps.services[&(address.parse().unwrap(), 80, scope as u8)].flags & service_flags::SOURCE_RANGES
    };
    // Only the address of the load balancer asks, and only when it is asked from outside.
    assert_ne!(flags(&maps, "198.51.100.80", Scope::External), 0);
    for (address, scope) in
        [("198.51.100.80", Scope::Internal), ("192.0.2.80", Scope::External), ("10.2.0.80", Scope::Internal)]
    {
        assert_eq!(flags(&maps, address, scope), 0, "{address}");
    }
    let service = maps.services[&(balancer, 80, Scope::External as u8)].id;
    let range = RangeKey { length: 56, service, address: V4::from_octets([192, 0, 2, 0]) };
    assert_eq!(maps.ranges, [range].into());
    planner.begin_round();
    assert_eq!(planner.plan(&name(), Some(&wanted), no_hop), ServicePlan::default());
    planner.done(&name(), Carried::All);

    // Another range takes its place, and a restart finds it.
    wanted.source_ranges = ["203.0.113.0/24".parse().unwrap()].into();
    maps.put(&mut planner, &name(), Some(&wanted));
    let range = RangeKey { length: 56, service, address: V4::from_octets([203, 0, 113, 0]) };
    assert_eq!(maps.ranges, [range].into());
    let mut planner = ServicePlanner::new(SETTINGS, maps.existing());
    let plan = planner.plan(&name(), Some(&wanted), no_hop);
    assert!(!plan.writes.iter().any(|write| matches!(write, Write::Range4(..) | Write::Service4(_, None))));
    maps.run(plan);
    planner.done(&name(), Carried::All);
    assert_eq!(planner.finish().0, ServicePlan::default());
    assert_eq!(maps.ranges, [range].into());

    // Without ranges everybody may, and with the service they go as well.
    wanted.source_ranges = Box::default();
    maps.put(&mut planner, &name(), Some(&wanted));
    assert_eq!((maps.ranges.len(), flags(&maps, "198.51.100.80", Scope::External)), (0, 0));
    wanted.source_ranges = [range_of_all()].into();
    maps.put(&mut planner, &name(), Some(&wanted));
    assert_eq!(maps.ranges.len(), 1);
    maps.put(&mut planner, &name(), None);
    assert!(maps.ranges.is_empty());
    // What nobody plans any more goes at the end of the first round.
    maps.ranges.insert(range);
    let mut planner = ServicePlanner::new(SETTINGS, maps.existing());
    maps.run(planner.finish().0);
    assert!(maps.ranges.is_empty());
}

fn range_of_all() -> ipnet::IpNet {
    "0.0.0.0/0".parse().unwrap()
}

#[test]
fn what_was_removed_is_not_taken_over() {
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    let two = [backend("10.0.0.10"), backend("10.0.1.10")];
    maps.put(&mut planner, &name(), Some(&service(&two)));
    let gone = maps.index("10.0.1.10");
    // The table was refused: members name it still.
    maps.backends.get_mut(&gone).unwrap().state = BackendState::Removed as u8;
    let mut planner = ServicePlanner::new(SETTINGS, maps.existing());
    maps.put(&mut planner, &name(), Some(&service(&two[..1])));
    maps.run_unchecked(planner.release(|_, _| false));
    assert_eq!(maps.backends[&gone].state, BackendState::Free as u8);
    // Whoever gets the element keeps it.
    let other = ServiceName { name: "other".into(), ..name() };
    let mut second = service(&[backend("10.0.0.11")]);
    second.ports[0].frontends =
        [Frontend { address: "10.2.0.81".parse().unwrap(), port: 80, kind: FrontendKind::ClusterIp }].into();
    maps.put(&mut planner, &other, Some(&second));
    assert_eq!(maps.index("10.0.0.11"), gone);
    maps.run_unchecked(planner.finish().0);
    maps.put(&mut planner, &name(), Some(&service(&two[..1])));
    assert_eq!(maps.backends[&gone].state, BackendState::Active as u8);
}

#[test]
fn a_new_next_hop_is_written_to_the_backends_behind_it() {
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    maps.put(&mut planner, &name(), Some(&service(&[backend("10.0.0.10"), backend("10.0.1.10")])));
    let changed: BTreeSet<IpAddr> = ["10.0.1.10".parse().unwrap()].into();
    let plan = planner.rehop(&changed, |_| 7);
    assert_eq!(plan.writes.len(), 1);
    maps.run(plan);
    assert_eq!(maps.backends[&maps.index("10.0.1.10")].next_hop, 7);
    assert_eq!(planner.rehop(&changed, |_| 7), ServicePlan::default());
}

#[test]
fn a_neighbor_keeps_its_element_when_its_link_layer_address_changes() {
    let mut planner = HopPlanner::new(8, &[], &BTreeMap::new());
    let link = IfIndex(3);
    let hop = |last: u8| Hop {
        destination: [2, 0, 0, 0, 0, last],
        source: [2, 0, 0, 0, 1, 0],
        mtu: 1500,
        has_peer: false,
        is_tunnel: false,
    };
    let address: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(planner.put(link, address, Some(hop(1))).len(), 2);
    let index = planner.find(link, address);
    assert_ne!(index, 0);
    assert_eq!(planner.put(link, address, Some(hop(1))), []);
    let moved = planner.put(link, address, Some(hop(2)));
    assert_eq!((moved.len(), planner.find(link, address)), (3, index));
    // A second address of the same neighbor shares the element.
    let other: IpAddr = "2001:db8::1".parse().unwrap();
    assert_eq!(planner.put(link, other, Some(hop(2))), []);
    assert_eq!(planner.find(link, other), index);
    assert_eq!(planner.put(link, address, None), []);
    assert_eq!(planner.find(link, other), index);
    let gone = planner.put(link, other, None);
    assert!(gone.contains(&Write::NextHop(index, NextHop::default())), "{gone:?}");
}

#[test]
fn an_element_takes_what_the_narrowest_route_by_its_neighbor_does() {
    let mut planner = HopPlanner::new(8, &[], &BTreeMap::new());
    let link = IfIndex(3);
    let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
    let hop = Hop { destination: [2; 6], source: [4; 6], mtu: 1500, has_peer: false, is_tunnel: false };
    let target = |via: IpAddr, mtu: u32| {
        Target::native([desired::Hop { via, dev: link, tunnel: None }].into(), 1500).narrowed(mtu)
    };
    let key = |node: &str, ipv4: bool| -> TargetKey {
        NodeTarget { cluster: "east".parse().unwrap(), node: node.parse().unwrap(), ipv4 }.into()
    };
    let (one, other) = (key("one", true), key("other", false));
    let mtu = |writes: Vec<Write>| -> Vec<u16> {
        let mtu = |write: &Write| if let Write::NextHop(_, hop) = write { Some(hop.mtu) } else { None };
        writes.iter().filter_map(mtu).collect()
    };
    // A route may be known before its neighbor. Who asks for one that takes more gets an element of its own.
    assert_eq!(planner.put_target(&one, Some(&target(v4, 1400))), []);
    assert_eq!(mtu(planner.put(link, v4, Some(hop))), [1400]);
    let fitting = |planner: &mut HopPlanner, address, mtu| {
        let mut writes = Vec::new();
        let index = planner.fitting(link, address, mtu, &mut writes);
        (index, writes.len())
    };
    assert_eq!(planner.find(link, v4), 1);
    assert_eq!((fitting(&mut planner, v4, Some(1400)), fitting(&mut planner, v4, None)), ((1, 0), (2, 1)));
    assert_eq!(fitting(&mut planner, v4, None), (2, 0));
    assert_eq!(planner.put_target(&one, Some(&target(v4, 1400))), []);
    planner.take_moved();
    assert_eq!(mtu(planner.put_target(&one, Some(&target(v4, 1300)))), [1300]);
    assert_eq!(planner.take_moved(), [(link, v4)].into());
    // The other address of the neighbor shares the elements.
    assert_eq!(planner.put_target(&other, Some(&target(v6, 1280))), []);
    assert_eq!(mtu(planner.put(link, v6, Some(hop))), [1280]);
    assert_eq!(planner.take_moved(), [(link, v4), (link, v6)].into());
    assert_eq!((fitting(&mut planner, v4, Some(1300)), fitting(&mut planner, v6, Some(1280))), ((3, 1), (1, 0)));
    // What nobody names any more has no link.
    assert_eq!(mtu(planner.release(|index| index != 2)), [0]);
    assert_eq!(planner.put_target(&one, None), []);
    assert_eq!(mtu(planner.put(link, v6, None)), [1500]);
    assert_eq!(fitting(&mut planner, v4, None), (1, 0));
    assert_eq!(planner.release(|_| false), [Write::NextHop(3, NextHop::default())]);
    assert_eq!(mtu(planner.put(link, v6, Some(hop))), [1280]);
    assert_eq!(mtu(planner.put_target(&other, Some(&target(v6, 1500)))), [1500]);
    // A far end of the tunnel has an element of its own.
    let tunnelled = Target::tunnel(desired::Hop { via: v4, dev: link, tunnel: None }, 1450).narrowed(1400);
    assert_eq!(planner.put_target(&one, Some(&tunnelled)), []);
}

/// What happens to neighbors and to the routes by them.
#[derive(Debug, Clone)]
enum Change {
    /// A neighbor has a link-layer address, or none.
    Neighbor(u8, Option<u8>),
    /// The route by a neighbor takes so much; `None`: there is none.
    Route(u8, Option<u32>),
    /// What nothing names is freed.
    Release,
    /// Another process takes over.
    Restart,
}

fn change() -> impl Strategy<Value = Change> {
    let sizes = prop::sample::select(vec![1280_u32, 1300, 1400, 1500]);
    prop_oneof![
        4 => (0..3_u8, prop::option::of(0..2_u8)).prop_map(|(at, mac)| Change::Neighbor(at, mac)),
        4 => (0..3_u8, prop::option::of(sizes)).prop_map(|(at, size)| Change::Route(at, size)),
        1 => Just(Change::Release),
        1 => Just(Change::Restart),
    ]
}

proptest! {
    /// Whatever happens, the record of an address behind a neighbor names an element that says what its route takes as long as there is room,
    /// and the neighbor's own one what the narrowest route by it does. What nothing names is free after a while.
    #[test]
    fn elements_say_what_routes_take(changes in prop::collection::vec(change(), 1..60), room in prop_oneof![Just(64_u32), Just(4)]) {
        const LINK: IfIndex = IfIndex(3);
        const MTU: u32 = 1450;
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let hop = |mac: u8| {
            Hop { destination: [2, 0, 0, 0, 0, mac], source: [4; 6], mtu: MTU, has_peer: false, is_tunnel: false }
        };
        let key = |at: u8| -> TargetKey {
            let node = format!("node-{at}").parse().unwrap();
            NodeTarget { cluster: "east".parse().unwrap(), node, ipv4: true }.into()
        };
        let target = |at: u8, size: u32| {
            Target::native([desired::Hop { via: address(at), dev: LINK, tunnel: None }].into(), 1500).narrowed(size)
        };
        let mut planner = HopPlanner::new(room, &[], &BTreeMap::new());
        let (mut elements, mut keys) = (BTreeMap::<u32, NextHop>::new(), BTreeMap::new());
        let (mut neighbors, mut routes, mut records) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::<u8, u32>::new());
        for change in changes {
            let mut asks = BTreeSet::new();
            let mut writes = match &change {
                Change::Neighbor(at, mac) => {
                    match mac {
                        Some(mac) => neighbors.insert(*at, *mac),
                        None => neighbors.remove(at),
                    };
                    asks.insert(*at);
                    planner.put(LINK, address(*at), mac.map(hop))
                }
                Change::Route(at, size) => {
                    match size {
                        Some(size) => routes.insert(*at, *size),
                        None => routes.remove(at),
                    };
                    asks.insert(*at);
                    planner.put_target(&key(*at), size.map(|size| target(*at, size)).as_ref())
                }
                Change::Release => planner.release(|index| records.values().any(|named| *named == index)),
                Change::Restart => {
                    let existing: Vec<(NeighborKey, u32)> = keys.values().copied().collect();
                    let named: BTreeMap<u32, NextHop> =
                        records.values().filter_map(|index| Some((*index, *elements.get(index)?))).collect();
                    // The rest is free, whatever it says.
                    elements.retain(|index, _| named.contains_key(index) || existing.iter().any(|(_, at)| at == index));
                    planner = HopPlanner::new(room, &existing, &named);
                    asks.extend(0..3);
                    let mut writes = Vec::new();
                    for (at, mac) in &neighbors {
                        writes.extend(planner.put(LINK, address(*at), Some(hop(*mac))));
                    }
                    for (at, size) in &routes {
                        writes.extend(planner.put_target(&key(*at), Some(&target(*at, *size))));
                    }
                    writes.extend(planner.finish());
                    writes
                }
            };
            let moved = planner.take_moved();
            asks.extend((0..3).filter(|at| moved.contains(&(LINK, address(*at)))));
            for at in asks {
                let mtu = routes.get(&at).copied().filter(|size| *size < 1500);
                records.insert(at, planner.fitting(LINK, address(at), mtu, &mut writes));
            }
            for write in writes {
                match write {
                    Write::NextHop(index, hop) => drop(elements.insert(index, hop)),
                    Write::Neighbor(key, Some(index)) => drop(keys.insert(key.address, (key, index))),
                    Write::Neighbor(key, None) => drop(keys.remove(&key.address)),
                    _ => {}
                }
            }
            // A neighbor without an element has no say.
            let known: BTreeMap<u8, u8> =
                neighbors.iter().map(|(at, mac)| (*at, *mac)).filter(|(at, _)| planner.find(LINK, address(*at)) != 0).collect();
            prop_assert!(room == 4 || known == neighbors);
            let mut in_use: BTreeSet<u32> = records.values().copied().collect();
            for (at, mac) in &known {
                let by = routes.iter().filter(|(other, _)| known.get(other) == Some(mac));
                let narrowest = by.map(|(_, size)| *size).fold(MTU, u32::min);
                let found = planner.find(LINK, address(*at));
                in_use.insert(found);
                prop_assert_eq!(u32::from(elements[&found].mtu), narrowest);
                let named = elements[&records[at]];
                prop_assert_eq!((named.link, named.destination[5]), (LINK.0, *mac));
                let taken = routes.get(at).map_or(MTU, |size| MTU.min(*size));
                prop_assert!(u32::from(named.mtu) == taken || room == 4 && u32::from(named.mtu) == narrowest);
            }
            if let Change::Release = change {
                for (index, hop) in &elements {
                    prop_assert_eq!(in_use.contains(index), hop.link != 0, "element {}", index);
                }
            }
        }
    }
}

#[test]
fn neighbors_of_an_earlier_process_keep_their_elements() {
    let key = NeighborKey { link: 3, address: [2, 0, 0, 0, 0, 1], reserved: 0 };
    let lost = NeighborKey { link: 3, address: [2, 0, 0, 0, 0, 9], reserved: 0 };
    let mut planner =
        HopPlanner::new(8, &[(key, 5), (lost, 6)], &[(5, NextHop::default()), (7, NextHop::default())].into());
    let address: IpAddr = "192.0.2.1".parse().unwrap();
    let hop = Hop { destination: key.address, source: [2; 6], mtu: 1500, has_peer: false, is_tunnel: false };
    planner.put(IfIndex(3), address, Some(hop));
    assert_eq!(planner.find(IfIndex(3), address), 5);
    assert_eq!(planner.finish(), [Write::Neighbor(lost, None), Write::NextHop(6, NextHop::default())]);
}

#[test]
fn an_element_is_not_given_away_while_connections_name_it() {
    // Five elements: one of an earlier neighbor, which a connection names.
    let mut planner = HopPlanner::new(3, &[], &[(1, NextHop::default())].into());
    let hop = |last: u8| Hop {
        destination: [2, 0, 0, 0, 0, last],
        source: [2; 6],
        mtu: 1500,
        has_peer: false,
        is_tunnel: false,
    };
    let address = |last: u8| IpAddr::from([192, 0, 2, last]);
    planner.put(IfIndex(3), address(1), Some(hop(1)));
    assert_eq!(planner.find(IfIndex(3), address(1)), 2);
    assert_eq!(planner.put(IfIndex(3), address(2), Some(hop(2))), [], "there is no room but that");
    planner.put(IfIndex(3), address(1), None);
    planner.release(|index| index == 2);
    planner.put(IfIndex(3), address(3), Some(hop(3)));
    assert_eq!(planner.find(IfIndex(3), address(3)), 1);
    planner.put(IfIndex(3), address(4), Some(hop(4)));
    assert_eq!(planner.find(IfIndex(3), address(4)), 0);
    planner.release(|_| false);
    planner.put(IfIndex(3), address(4), Some(hop(4)));
    assert_eq!(planner.find(IfIndex(3), address(4)), 2);
}

#[test]
fn backends_are_held_until_every_list_is_complete() {
    let mut maps = Maps::default();
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let two = [backend("10.0.0.10"), backend("10.1.0.10")];
    maps.put(&mut planner, &name(), Some(&service(&two)));
    let remote = maps.index("10.1.0.10");

    // The other cluster has not been heard after a restart.
    let mut planner = ServicePlanner::new(SETTINGS, maps.existing());
    maps.put(&mut planner, &name(), Some(&service(&two[..1])));
    assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 2);
    assert_eq!(maps.backends[&remote].state, BackendState::Active as u8);
    // What this process has seen goes when it is told to.
    let three = [backend("10.0.0.10"), backend("10.0.1.10")];
    maps.put(&mut planner, &name(), Some(&service(&three)));
    maps.put(&mut planner, &name(), Some(&service(&two[..1])));
    assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 2);
    assert_eq!(maps.backends[&maps.index("10.0.1.10")].state, BackendState::Removed as u8);

    let (plan, again) = planner.finish();
    maps.run(plan);
    assert_eq!(again, [name()].into());
    maps.put(&mut planner, &name(), Some(&service(&two[..1])));
    assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 1);
    assert_eq!(maps.backends[&remote].state, BackendState::Removed as u8);
}

#[test]
fn one_group_takes_over_what_two_share_now() {
    let mut maps = Maps::default();
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let two = [backend("10.0.0.10"), backend("10.0.1.10")];
    maps.put(&mut planner, &name(), Some(&service(&two)));
    let mut planner = ServicePlanner::new(SETTINGS, maps.existing());
    let mut wanted = service(&two);
    wanted.external_policy = TrafficPolicy::Local;
    maps.put(&mut planner, &name(), Some(&wanted));
    let id = |maps: &Maps, address: &str, scope: Scope| maps.services[&(address.parse().unwrap(), 80, scope as u8)].id;
    assert_ne!(id(&maps, "10.2.0.80", Scope::Internal), id(&maps, "192.0.2.80", Scope::External));
    let (plan, _) = planner.finish();
    maps.run(plan);
    maps.put(&mut planner, &name(), None);
    maps.run(planner.release(|_, _| false));
    planner.begin_round();
    assert_eq!((planner.backends(), planner.room()), ([0, 0], [256, 8]), "no range is given back twice");
}

#[test]
fn a_number_is_not_given_twice() {
    let mut maps = Maps::default();
    let mut planner = ServicePlanner::new(SETTINGS, Existing { last_id: 40, ..Existing::default() });
    let mut numbers = BTreeSet::new();
    for _ in 0..3 {
        maps.put(&mut planner, &name(), Some(&service(&[backend("10.0.0.10")])));
        assert!(maps.services.values().all(|entry| entry.id > 40));
        numbers.insert(maps.services.values().next().unwrap().id);
        maps.put(&mut planner, &name(), None);
        planner.begin_round();
    }
    assert_eq!(numbers.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// The kernel may refuse the table of any plan: its entries then stay as they were, and lead where they led.
    #[test]
    fn refused_tables_leave_what_was(steps in proptest::collection::vec((0..3u8, 0..16u8, any::<bool>()), 1..24)) {
        let names: Vec<ServiceName> =
            (0..3).map(|at| ServiceName { namespace: "default".into(), name: format!("s{at}").into() }).collect();
        let settings = ServiceSettings { backends: 4_096, members: 4_096, chunks: 4_096, ..SETTINGS };
        let mut planner = ServicePlanner::new(settings, Existing::default());
        let mut maps = Maps::default();
        let mut last: BTreeMap<u8, u8> = BTreeMap::new();
        let plan = |planner: &mut ServicePlanner, maps: &mut Maps, at: u8, bits: u8, is_refused: bool| {
            let backends: Vec<_> =
                (0..4u8).filter(|bit| bits & (1 << bit) != 0).map(|bit| backend(&format!("10.0.{at}.{bit}"))).collect();
            let mut wanted = service(&backends);
            wanted.ports[0].frontends =
                [Frontend { address: IpAddr::from([10, 2, 0, at]), port: 80, kind: FrontendKind::ClusterIp }].into();
            let mut plan = planner.plan(&names[usize::from(at)], (bits != 0).then_some(&wanted), no_hop);
            let has_table = plan.writes.iter().any(|write| matches!(write, Write::Chunk(..)));
            if is_refused && has_table {
                plan.writes.retain(|write| !matches!(write, Write::Chunk(..) | Write::Service4(_, Some(_))));
            }
            maps.run_unchecked(plan);
            let carried = if is_refused && has_table { Carried::NoTables } else { Carried::All };
            planner.done(&names[usize::from(at)], carried);
        };
        for (at, bits, is_refused) in steps {
            planner.begin_round();
            plan(&mut planner, &mut maps, at, bits, is_refused);
            last.insert(at, bits);
            maps.check_owners();
            let freed = planner.release(|_, _| false);
            maps.run_unchecked(freed);
            maps.check_owners();
        }
        // Once nothing is refused any more, everything is as wanted.
        for (at, bits) in &last {
            planner.begin_round();
            plan(&mut planner, &mut maps, *at, *bits, false);
        }
        maps.check();
        for (at, bits) in &last {
            let key = (IpAddr::from([10, 2, 0, *at]), 80, Scope::Internal as u8);
            prop_assert_eq!(maps.services.contains_key(&key), *bits != 0);
            if *bits != 0 {
                prop_assert_eq!(maps.behind(&key.0.to_string(), Scope::Internal).len() as u32, bits.count_ones());
            }
            plan(&mut planner, &mut maps, *at, 0, false);
        }
        maps.run_unchecked(planner.release(|_, _| false));
        planner.begin_round();
        prop_assert_eq!((planner.backends(), planner.room()), ([0, 0], [4_096, 4_096]));
    }
}

#[test]
fn the_source_that_stands_higher_names_an_address() {
    let mut planner = IdentityPlanner::default();
    let address: IpAddr = "10.1.0.10".parse().unwrap();
    let identity = |number| Identity { identity: number, way: 0, flags: 0, cluster: 2 };
    let standing =
        |remote, role, cluster, name: &str| Standing { remote, role, cluster, name: name.parse().unwrap(), node: None };
    let own = &standing(false, Role::Workload, 1, "west");
    let remote = &standing(true, Role::Workload, 2, "east");
    let node = &standing(true, Role::Node, 2, "east");
    assert!(planner.put(address, node, Some(identity(6))).is_some());
    assert!(planner.put(address, remote, Some(identity(131_073))).is_some());
    assert!(planner.put(address, node, Some(identity(7))).is_none());
    assert!(planner.put(address, own, Some(identity(65_537))).is_some());
    assert!(planner.put(address, remote, None).is_none());
    assert_eq!(planner.find(address), Some(identity(65_537)));
    assert!(planner.put(address, own, None).is_some());
    assert_eq!(planner.find(address), Some(identity(7)));
    let write = planner.put(address, node, None);
    assert_eq!(write, Some(Write::Identity4(V4::from_octets([10, 1, 0, 10]), None)));
    assert_eq!(planner.used(), IdentityUse::default());
}

#[test]
fn ways_of_the_fast_path_are_those_of_workloads() {
    let mut planner = IdentityPlanner::default();
    let address: IpAddr = "10.1.0.10".parse().unwrap();
    let identity = |number, way| Identity { identity: number, way, flags: 0, cluster: 2 };
    let workload =
        Standing { remote: true, role: Role::Workload, cluster: 2, name: "east".parse().unwrap(), node: None };
    let node = Standing { role: Role::Node, ..workload.clone() };
    assert_eq!(planner.set_way(address, 7), None, "nobody has it");
    planner.put(address, &node, Some(identity(6, 0)));
    assert_eq!(planner.set_way(address, 7), None, "a node's goes through the stack");
    planner.put(address, &workload, Some(identity(300, 7)));
    let write = Write::Identity4(V4::from_octets([10, 1, 0, 10]), Some(identity(300, 8)));
    assert_eq!(planner.set_way(address, 8), Some(write));
    assert_eq!(planner.set_way(address, 8), None);
    assert_eq!(planner.way(address), 8);
    assert_eq!(planner.ways(), [8].into());
    assert_eq!(planner.workloads().collect::<Vec<_>>(), [address]);
    planner.put(address, &workload, None);
    assert_eq!((planner.way(address), planner.workloads().count()), (0, 0));
    let inherited = IdentityPlanner::new(&[(V4::from_octets([10, 1, 0, 10]), identity(300, 9))], &[]);
    assert_eq!((inherited.way(address), inherited.ways()), (9, [9].into()));
}

#[test]
fn identities_of_an_earlier_process_stay_until_every_list_is_complete() {
    let identity = |number| Identity { identity: number, way: 0, flags: 0, cluster: 2 };
    let at = |last| V4::from_octets([10, 1, 0, last]);
    let existing: Vec<_> = (1..4).map(|last| (at(last), identity(last.into()))).collect();
    let mut planner = IdentityPlanner::new(&existing, &[]);
    let unheard =
        Standing { remote: true, role: Role::Workload, cluster: 0, name: "east".parse().unwrap(), node: None };
    let heard = Standing { cluster: 2, ..unheard.clone() };
    assert_eq!(planner.put(ip(at(1)), &unheard, Some(identity(1))), None, "it is there");
    assert_eq!(planner.put(ip(at(2)), &unheard, Some(identity(9))), Some(Write::Identity4(at(2), Some(identity(9)))));
    assert_eq!(planner.finish(), [Write::Identity4(at(3), None)]);
    assert_eq!(planner.finish(), []);
    // The id of the cluster was learned meanwhile.
    assert_eq!(planner.put(ip(at(1)), &heard, None), Some(Write::Identity4(at(1), None)));
    assert_eq!(planner.used(), IdentityUse { addresses: [1, 0], prefixes: [0, 0] });
}

#[test]
fn prefixes_are_known_beside_addresses_and_are_nobodys() {
    let mut planner = IdentityPlanner::default();
    let identity = |number| Identity { identity: number, way: 0, flags: 0, cluster: 2 };
    let remote = Standing { remote: true, role: Role::Workload, cluster: 2, name: "east".parse().unwrap(), node: None };
    let own = Standing { remote: false, role: Role::Workload, cluster: 1, name: "west".parse().unwrap(), node: None };
    let net: ipnet::IpNet = "10.151.0.0/16".parse().unwrap();
    let key = meshd_abi::CidrKey { length: 16, address: V4::from_octets([10, 151, 0, 0]) };
    assert_eq!(planner.put(net, &remote, Some(identity(300))), Some(Write::Cidr4(key, Some(identity(300)))));
    assert_eq!(planner.put(net, &own, Some(identity(400))), Some(Write::Cidr4(key, Some(identity(400)))));
    assert_eq!(planner.put(net, &own, None), Some(Write::Cidr4(key, Some(identity(300)))));
    let inside: IpAddr = "10.151.0.0".parse().unwrap();
    assert_eq!((planner.find(inside), planner.workloads().count()), (None, 0));
    assert!(planner.put(inside, &remote, Some(identity(301))).is_some());
    assert_eq!(planner.used(), IdentityUse { addresses: [1, 0], prefixes: [1, 0] });
    assert_eq!(planner.put(net, &remote, None), Some(Write::Cidr4(key, None)));
    assert_eq!(planner.used(), IdentityUse { addresses: [1, 0], prefixes: [0, 0] });

    let six: ipnet::IpNet = "fd10::/56".parse().unwrap();
    let mut planner = IdentityPlanner::default().with_prefixes([(net, identity(300)), (six, identity(301))]);
    assert_eq!(planner.used(), IdentityUse { addresses: [0, 0], prefixes: [1, 1] });
    assert_eq!(planner.put(net, &remote, Some(identity(300))), None, "an earlier process wrote it");
    let gone = meshd_abi::CidrKey { length: 56, address: super::v6(six.addr()).unwrap() };
    assert_eq!(planner.finish(), [Write::Cidr6(gone, None)]);
    assert_eq!(planner.used(), IdentityUse { addresses: [0, 0], prefixes: [1, 0] });
}

#[test]
fn a_service_by_source_says_so_in_its_entries() {
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    let wanted = desired::Service { by_source: true, ..service(&[backend("10.0.0.10"), backend("10.0.1.10")]) };
    maps.put(&mut planner, &name(), Some(&wanted));
    assert!(maps.services.values().all(|entry| entry.flags & meshd_abi::service_flags::BY_SOURCE != 0));
    maps.put(&mut planner, &name(), Some(&desired::Service { by_source: false, ..wanted }));
    assert_eq!(maps.services.len(), 3);
    assert!(maps.services.values().all(|entry| entry.flags & meshd_abi::service_flags::BY_SOURCE == 0));
}

#[test]
fn a_node_that_goes_leaves_its_address_to_the_one_that_has_it_now() {
    let mut planner = IdentityPlanner::default();
    let address: IpAddr = "172.18.0.5".parse().unwrap();
    let identity = |number| Identity { identity: number, way: 0, flags: 0, cluster: 2 };
    let of = |role, node: &str| Standing {
        remote: true,
        role,
        cluster: 2,
        name: "east".parse().unwrap(),
        node: Some(node.parse().unwrap()),
    };
    let (old, new) = (of(Role::Node, "b"), of(Role::Node, "a"));
    planner.put(address, &old, Some(identity(6)));
    assert_eq!(planner.put(address, &new, Some(identity(6))), None);
    assert_eq!(planner.put(address, &old, None), None);
    assert_eq!(planner.find(address), Some(identity(6)));
    // Something else on another node does not count as much.
    let health = of(Role::Health, "0");
    assert_eq!(planner.put(address, &health, Some(identity(4))), None);
    assert!(planner.put(address, &new, None).is_some());
    assert_eq!(planner.find(address), Some(identity(4)));
}
