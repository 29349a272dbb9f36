//! Plans carried out on maps in memory: what the maps hold in the end, and that no step leaves a gap.

use std::collections::{BTreeMap, BTreeSet};

use meshd_abi::{BackendState, NO_TABLE, Scope};

use super::*;
use crate::{
    desired::{self, Frontend, FrontendKind, ServicePort},
    id::IfIndex,
    maglev::Slots,
    observed::{Affinity, ForwardingMode, OnRemoval, Protocol, ServiceKind, ServiceName, TrafficPolicy},
};

const SETTINGS: ServiceSettings = ServiceSettings {
    slots: Some(Slots::Normal),
    seed: 7606,
    mode: ForwardingMode::Snat,
    backends: 64,
    members: 256,
    chunks: 8,
};

/// The maps, as far as IPv4 is concerned.
#[derive(Default)]
struct Maps {
    services: BTreeMap<(IpAddr, u16, u8), Service>,
    backends: BTreeMap<u32, Backend<V4>>,
    members: BTreeMap<u32, u32>,
    chunks: BTreeMap<u32, Box<[u16; MAGLEV_CHUNK]>>,
}

impl Maps {
    /// Carries out writes and checks after each that every frontend leads to backends that exist.
    fn run(&mut self, plan: ServicePlan) {
        assert_eq!(plan.problems, Vec::<String>::new());
        for write in plan.writes {
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
                other => panic!("{other:?}"),
            }
            self.check();
        }
    }

    fn check(&self) {
        for entry in self.services.values() {
            for at in 0..u32::from(entry.count) {
                let backend = self.backends[&self.members[&(entry.members + at)]];
                assert_ne!(backend.state, BackendState::Free as u8);
            }
            if entry.table != NO_TABLE {
                let chunk = &self.chunks[&entry.table];
                assert!(chunk[..entry.slots as usize].iter().all(|member| *member < entry.count));
            }
        }
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
            ..Existing::default()
        }
    }
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
    desired::Service {
        kind: ServiceKind::ClusterIp,
        global: false,
        shared: false,
        affinity: Affinity::None,
        session_affinity: None,
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        source_ranges: Box::default(),
        mode: None,
        on_removal: OnRemoval::Keep,
        ports: [port].into(),
    }
}

fn no_hop(_: IpAddr) -> u32 {
    0
}

#[test]
fn a_service_comes_changes_and_goes_without_a_gap() {
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    let two = [backend("10.0.0.10"), backend("10.0.1.10")];
    maps.run(planner.plan(&name(), Some(&service(&two)), no_hop));
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
    maps.run(planner.plan(&name(), Some(&service(&three)), no_hop));
    assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 3);
    assert_eq!(maps.index("10.0.0.10"), kept, "connections name it");
    let gone = maps.index("10.0.1.10");
    assert_eq!(maps.backends[&gone].state, BackendState::Removed as u8);
    planner.begin_round();
    maps.run(planner.release(|_, index| index == gone));
    assert_eq!(maps.backends[&gone].state, BackendState::Removed as u8, "a connection names it still");
    maps.run(planner.release(|_, _| false));
    assert_eq!(maps.backends[&gone].state, BackendState::Free as u8);

    maps.run(planner.plan(&name(), None, no_hop));
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
    maps.run(planner.plan(&name(), Some(&wanted), no_hop));
    assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), 2);
    let local: Vec<IpAddr> = maps.behind("192.0.2.80", Scope::External).into_keys().collect();
    assert_eq!(local, ["10.0.0.10".parse::<IpAddr>().unwrap()]);
    wanted.external_policy = TrafficPolicy::Cluster;
    maps.run(planner.plan(&name(), Some(&wanted), no_hop));
    assert_eq!(maps.behind("192.0.2.80", Scope::External).len(), 2);

    // A frontend that moves from one group to another, while both go on, is there all the time.
    for (internal, behind) in [(TrafficPolicy::Local, 1), (TrafficPolicy::Cluster, 2), (TrafficPolicy::Local, 1)] {
        wanted.external_policy = TrafficPolicy::Local;
        wanted.internal_policy = internal;
        maps.run(planner.plan(&name(), Some(&wanted), no_hop));
        assert_eq!(maps.behind("10.2.0.80", Scope::Internal).len(), behind);
        assert_eq!(maps.behind("192.0.2.80", Scope::External).len(), 1);
    }
}

#[test]
fn a_restart_takes_over_what_connections_name() {
    let mut maps = Maps::default();
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let two = [backend("10.0.0.10"), backend("10.0.1.10")];
    maps.run(planner.plan(&name(), Some(&service(&two)), no_hop));
    let other = ServiceName { name: "other".into(), ..name() };
    let mut second = service(&[backend("10.0.0.11")]);
    second.ports[0].frontends =
        [Frontend { address: "10.2.0.81".parse().unwrap(), port: 80, kind: FrontendKind::ClusterIp }].into();
    maps.run(planner.plan(&other, Some(&second), no_hop));
    let before = (maps.index("10.0.0.10"), maps.index("10.0.1.10"), maps.services.clone());

    let mut planner = ServicePlanner::new(SETTINGS, maps.existing());
    maps.run(planner.plan(&name(), Some(&service(&two)), no_hop));
    assert_eq!((maps.index("10.0.0.10"), maps.index("10.0.1.10")), (before.0, before.1));
    for (key, entry) in &before.2 {
        assert_eq!(maps.services[key].id, entry.id, "affinity names it");
    }
    // The other service is not wanted any more, which is known when everything was planned once.
    assert_eq!(maps.services.len(), 4);
    maps.run(planner.finish());
    assert_eq!(maps.services.len(), 3);
    assert_eq!(maps.backends[&maps.index("10.0.0.11")].state, BackendState::Removed as u8);
    maps.run(planner.release(|_, _| false));
    assert_eq!(planner.backends(), [2, 0]);
}

#[test]
fn without_room_the_old_state_stays_and_a_problem_says_so() {
    let mut planner = ServicePlanner::new(ServiceSettings { backends: 3, ..SETTINGS }, Existing::default());
    let three = [backend("10.0.0.10"), backend("10.0.1.10"), backend("10.0.2.10")];
    let plan = planner.plan(&name(), Some(&service(&three)), no_hop);
    assert_eq!(plan.problems.len(), 1, "{:?}", plan.problems);
    assert!(plan.problems[0].contains("services.maps.backends is 3"), "{:?}", plan.problems);
    let members = plan.writes.iter().find_map(|write| match write {
        Write::Members(_, members) => Some(members.len()),
        _ => None,
    });
    assert_eq!(members, Some(2), "those there is room for are used");
}

#[test]
fn a_new_next_hop_is_written_to_the_backends_behind_it() {
    let mut planner = ServicePlanner::new(SETTINGS, Existing::default());
    let mut maps = Maps::default();
    maps.run(planner.plan(&name(), Some(&service(&[backend("10.0.0.10"), backend("10.0.1.10")])), no_hop));
    let changed: BTreeSet<IpAddr> = ["10.0.1.10".parse().unwrap()].into();
    let plan = planner.rehop(&changed, |_| 7);
    assert_eq!(plan.writes.len(), 1);
    maps.run(plan);
    assert_eq!(maps.backends[&maps.index("10.0.1.10")].next_hop, 7);
    assert_eq!(planner.rehop(&changed, |_| 7), ServicePlan::default());
}

#[test]
fn a_neighbor_keeps_its_element_when_its_link_layer_address_changes() {
    let mut planner = HopPlanner::new(8, &[]);
    let link = IfIndex(3);
    let hop = |last: u8| Hop { destination: [2, 0, 0, 0, 0, last], source: [2, 0, 0, 0, 1, 0], mtu: 1500 };
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
fn neighbors_of_an_earlier_process_keep_their_elements() {
    let key = NeighborKey { link: 3, address: [2, 0, 0, 0, 0, 1], reserved: 0 };
    let lost = NeighborKey { link: 3, address: [2, 0, 0, 0, 0, 9], reserved: 0 };
    let mut planner = HopPlanner::new(8, &[(key, 5), (lost, 6)]);
    let address: IpAddr = "192.0.2.1".parse().unwrap();
    let hop = Hop { destination: key.address, source: [2; 6], mtu: 1500 };
    planner.put(IfIndex(3), address, Some(hop));
    assert_eq!(planner.find(IfIndex(3), address), 5);
    assert_eq!(planner.finish(), [Write::Neighbor(lost, None), Write::NextHop(6, NextHop::default())]);
}

#[test]
fn the_source_that_stands_higher_names_an_address() {
    let mut planner = IdentityPlanner::default();
    let address: IpAddr = "10.1.0.10".parse().unwrap();
    let identity = |number| Identity { identity: number, way: 0, flags: 0, cluster: 2 };
    let own = Standing { remote: false, node: false, cluster: 1 };
    let remote = Standing { remote: true, node: false, cluster: 2 };
    let node = Standing { remote: true, node: true, cluster: 2 };
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
    assert!(planner.is_empty());
}
