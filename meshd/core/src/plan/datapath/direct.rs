//! Direct server return: the nodes of backends that see clients themselves, and the backends of this node that other nodes send to.
//!
//! A backend is reached this way when its service says so and it is on another node of our own cluster: the nodes of a cluster have
//! one configuration, so that node knows the service and what to do with the note of its frontend. Of nodes of other clusters nothing
//! is known, so they get translated sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use meshd_abi::{Address, Direct, ReceiverKey};

use super::{Write, ip, v4, v6};

/// A backend of this node as receivers name it: the service's number, address, port, and IP protocol number.
type Receiver = (u32, IpAddr, u16, u8);

/// Plans the maps of direct server return.
#[derive(Debug, Default)]
pub(super) struct DirectPlanner {
    /// The node of a backend and its next hop, by family and index.
    nodes: [BTreeMap<u32, (IpAddr, u32)>; 2],
    /// Backends by their node.
    behind: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// Receivers in the maps, and the index of the backend.
    receivers: BTreeMap<Receiver, u32>,
    /// Of those, receivers that this process has not planned yet.
    inherited: BTreeSet<Receiver>,
}

impl DirectPlanner {
    /// Takes over an element of the maps.
    pub(super) fn inherit<A: Address>(&mut self, index: u32, direct: &Direct<A>) {
        if direct.node != A::default() {
            let node = ip(direct.node);
            self.nodes[usize::from(!A::IS_V4)].insert(index, (node, direct.next_hop));
            self.behind.entry(node).or_default().insert(index);
        }
    }

    /// Takes over a receiver.
    pub(super) fn inherit_receiver<A: Address>(&mut self, key: &ReceiverKey<A>, index: u32) {
        let receiver = (key.service, ip(key.backend), u16::from_be(key.port), key.protocol);
        self.receivers.insert(receiver, index);
        self.inherited.insert(receiver);
    }

    /// Sets the node of a backend; `None`: it gets translated sources.
    pub(super) fn put(&mut self, ipv4: bool, index: u32, node: Option<(IpAddr, u32)>, writes: &mut Vec<Write>) {
        let nodes = &mut self.nodes[usize::from(!ipv4)];
        let before = match node {
            Some(node) => nodes.insert(index, node),
            None => nodes.remove(&index),
        };
        if before == node {
            return;
        }
        if let Some((node, _)) = before
            && let Some(indexes) = self.behind.get_mut(&node)
        {
            indexes.remove(&index);
            if indexes.is_empty() {
                self.behind.remove(&node);
            }
        }
        if let Some((node, _)) = node {
            self.behind.entry(node).or_default().insert(index);
        }
        writes.push(write(ipv4, index, node));
    }

    /// The next hop of these nodes may have changed.
    pub(super) fn rehop(&mut self, nodes: &BTreeSet<IpAddr>, hop: impl Fn(IpAddr) -> u32, writes: &mut Vec<Write>) {
        for node in nodes {
            let ipv4 = node.is_ipv4();
            let next_hop = hop(*node);
            for index in self.behind.get(node).into_iter().flatten() {
                let entry = self.nodes[usize::from(!ipv4)].get_mut(index);
                if let Some((_, known)) = entry.filter(|(_, known)| *known != next_hop) {
                    *known = next_hop;
                    writes.push(write(ipv4, *index, Some((*node, next_hop))));
                }
            }
        }
    }

    /// Nodes whose next hop is wanted.
    pub(super) fn nodes(&self) -> impl Iterator<Item = IpAddr> {
        self.behind.keys().copied()
    }

    /// Sets the backends of this node that other nodes may send to for a service: addresses and ports, and the index of each.
    pub(super) fn receive(
        &mut self,
        service: u32,
        protocol: u8,
        wanted: &BTreeMap<(IpAddr, u16), u32>,
        writes: &mut Vec<Write>,
    ) {
        let receiver = |(address, port): &(IpAddr, u16)| (service, *address, *port, protocol);
        for (at, index) in wanted {
            self.inherited.remove(&receiver(at));
            if self.receivers.insert(receiver(at), *index) != Some(*index) {
                writes.push(write_receiver(receiver(at), Some(*index)));
            }
        }
        let gone: Vec<Receiver> = self
            .of(service)
            .filter(|(_, address, port, number)| *number != protocol || !wanted.contains_key(&(*address, *port)))
            // Of what an earlier process left perhaps nobody has said anything yet.
            .filter(|receiver| !self.inherited.contains(receiver))
            .collect();
        self.remove(gone, writes);
    }

    /// Nobody may send for a service any more.
    pub(super) fn forget(&mut self, service: u32, writes: &mut Vec<Write>) {
        let gone = self.of(service).collect();
        self.remove(gone, writes);
    }

    /// Removes what an earlier process left and nobody planned since.
    pub(super) fn finish(&mut self, writes: &mut Vec<Write>) {
        let gone = std::mem::take(&mut self.inherited).into_iter().collect();
        self.remove(gone, writes);
    }

    fn of(&self, service: u32) -> impl Iterator<Item = Receiver> {
        let start: Receiver = (service, IpAddr::from([0, 0, 0, 0]), 0, 0);
        self.receivers.range(start..).map(|(receiver, _)| *receiver).take_while(move |receiver| receiver.0 == service)
    }

    fn remove(&mut self, gone: Vec<Receiver>, writes: &mut Vec<Write>) {
        for receiver in gone {
            self.inherited.remove(&receiver);
            if self.receivers.remove(&receiver).is_some() {
                writes.push(write_receiver(receiver, None));
            }
        }
    }
}

fn write(ipv4: bool, index: u32, node: Option<(IpAddr, u32)>) -> Write {
    let next_hop = node.map_or(0, |(_, next_hop)| next_hop);
    let address = node.map(|(node, _)| node);
    if ipv4 {
        Write::Direct4(index, Direct { node: address.and_then(v4).unwrap_or_default(), next_hop })
    } else {
        Write::Direct6(index, Direct { node: address.and_then(v6).unwrap_or_default(), next_hop })
    }
}

fn write_receiver((service, address, port, protocol): Receiver, index: Option<u32>) -> Write {
    macro_rules! key {
        ($address:expr) => {
            ReceiverKey { backend: $address, service, port: port.to_be(), protocol, reserved: 0 }
        };
    }
    match (v4(address), v6(address)) {
        (Some(address), _) => Write::Receiver4(key!(address), index),
        (None, address) => Write::Receiver6(key!(address.unwrap_or_default()), index),
    }
}

#[cfg(test)]
mod tests {
    use meshd_abi::{Scope, Service as Entry, V4, service_flags};

    use super::*;
    use crate::{
        desired::{self, BackendState, Frontend, FrontendKind, ServicePort},
        maglev::Slots,
        observed::{ForwardingMode, Protocol, ServiceName},
        plan::datapath::{Existing, ServicePlanner, ServiceSettings},
    };

    const SETTINGS: ServiceSettings = ServiceSettings {
        slots: Some(Slots::Normal),
        seed: 7606,
        mode: ForwardingMode::Dsr,
        backends: 64,
        members: 256,
        chunks: 8,
        ranges: 8,
    };

    fn backend(address: &str, cluster: &str, node: Option<&str>, local: bool) -> desired::Backend {
        desired::Backend {
            address: address.parse().unwrap(),
            port: 8080,
            cluster: cluster.parse().unwrap(),
            node: node.map(|node| node.parse().unwrap()),
            state: BackendState::Active,
            preferred: false,
            used: true,
            weight: 100,
            local,
            zone: None,
            near: false,
        }
    }

    fn service(mode: Option<ForwardingMode>, backends: &[desired::Backend]) -> desired::Service {
        let frontend = Frontend { address: [192, 0, 2, 80].into(), port: 80, kind: FrontendKind::ExternalIp };
        let port = ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
            frontends: [frontend].into(),
            backends: backends.into(),
        };
        desired::Service { mode, ..desired::Service::with_ports([port]) }
    }

    fn name() -> ServiceName {
        ServiceName { namespace: "default".into(), name: "webpod".into() }
    }

    /// The next hop of an address is its last octet.
    fn hop(address: IpAddr) -> u32 {
        v4(address).map_or(0, |address| u32::from(address.octets()[3]))
    }

    /// What the maps of this part hold after writes.
    #[derive(Debug, Default)]
    struct Maps {
        direct: BTreeMap<u32, Direct<V4>>,
        receivers: BTreeMap<ReceiverKey<V4>, u32>,
        backends: BTreeMap<u32, IpAddr>,
        flags: BTreeMap<u8, u16>,
    }

    impl Maps {
        fn run(&mut self, writes: Vec<Write>) {
            for write in writes {
                match write {
                    Write::Direct4(index, direct) => drop(self.direct.insert(index, direct)),
                    Write::Receiver4(key, Some(index)) => drop(self.receivers.insert(key, index)),
                    Write::Receiver4(key, None) => drop(self.receivers.remove(&key)),
                    Write::Backend4(index, backend) => drop(self.backends.insert(index, ip(backend.address))),
                    Write::Service4(key, Some(Entry { flags, .. })) => drop(self.flags.insert(key.scope, flags)),
                    _ => {}
                }
            }
        }

        /// Nodes of backends, with the next hop of each.
        fn nodes(&self) -> Vec<(IpAddr, IpAddr, u32)> {
            let direct = self.direct.iter().filter(|(_, direct)| direct.node != V4::default());
            direct.map(|(index, direct)| (self.backends[index], ip(direct.node), direct.next_hop)).collect()
        }

        fn receivers(&self) -> Vec<(IpAddr, u16)> {
            self.receivers.keys().map(|key| (ip(key.backend), u16::from_be(key.port))).collect()
        }
    }

    fn four() -> [desired::Backend; 4] {
        [
            backend("10.0.0.10", "west", Some("172.18.0.4"), true),
            backend("10.0.1.10", "west", Some("172.18.0.5"), false),
            backend("10.0.2.10", "west", None, false),
            backend("10.1.0.10", "east", Some("172.18.0.3"), false),
        ]
    }

    #[test]
    fn nodes_of_the_own_cluster_are_reached_directly_and_own_backends_receive() {
        let mut planner = ServicePlanner::new(SETTINGS, Existing::default()).of_cluster("west".parse().unwrap());
        let mut maps = Maps::default();
        maps.run(planner.plan(&name(), Some(&service(None, &four())), hop).writes);
        let (remote, node) = (IpAddr::from([10, 0, 1, 10]), IpAddr::from([172, 18, 0, 5]));
        assert_eq!(maps.nodes(), [(remote, node, 5)]);
        assert_eq!(maps.receivers(), [(IpAddr::from([10, 0, 0, 10]), 8080)]);
        assert_eq!(maps.flags[&(Scope::External as u8)] & service_flags::DSR, service_flags::DSR);
        assert_eq!(maps.flags[&(Scope::Internal as u8)] & service_flags::DSR, 0);
        assert!(planner.has_direct());
        assert!(planner.addresses().any(|address| address == node), "its next hop is wanted");

        // The same again is nothing to do.
        assert_eq!(planner.plan(&name(), Some(&service(None, &four())), hop).writes, []);
        // The next hop of the node, and of nobody else.
        maps.run(planner.rehop(&[node].into(), |_| 9).writes);
        assert_eq!(maps.nodes(), [(remote, node, 9)]);
        // Without the mode of the service nothing is left of it.
        maps.run(planner.plan(&name(), Some(&service(Some(ForwardingMode::Snat), &four())), hop).writes);
        assert_eq!((maps.nodes(), maps.receivers()), (Vec::new(), Vec::new()));
        assert!(!planner.has_direct());
    }

    #[test]
    fn what_an_earlier_process_left_stays_until_every_list_is_complete() {
        let mut planner = ServicePlanner::new(SETTINGS, Existing::default()).of_cluster("west".parse().unwrap());
        let mut maps = Maps::default();
        maps.run(planner.plan(&name(), Some(&service(None, &four())), hop).writes);
        let existing = Existing {
            receivers4: maps.receivers.iter().map(|(key, index)| (*key, *index)).collect(),
            direct4: maps.direct.iter().map(|(index, direct)| (*index, *direct)).collect(),
            ..Existing::default()
        };
        let mut planner = ServicePlanner::new(SETTINGS, existing).of_cluster("west".parse().unwrap());
        maps.run(planner.plan(&name(), Some(&service(None, &[])), hop).writes);
        assert_eq!(maps.receivers().len(), 1);
        maps.run(planner.finish().0.writes);
        assert_eq!(maps.receivers(), []);
    }

    #[test]
    fn a_service_that_goes_takes_its_receivers_along() {
        let mut planner = ServicePlanner::new(SETTINGS, Existing::default()).of_cluster("west".parse().unwrap());
        let mut maps = Maps::default();
        maps.run(planner.plan(&name(), Some(&service(None, &four())), hop).writes);
        maps.run(planner.plan(&name(), None, hop).writes);
        assert_eq!(maps.receivers(), []);
        maps.run(planner.release(|_, _| false).writes);
        assert_eq!(maps.nodes(), []);
    }
}
