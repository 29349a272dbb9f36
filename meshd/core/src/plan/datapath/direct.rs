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
