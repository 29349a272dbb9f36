//! Neighbors of this node, so that a program needs not ask the routing table.
//!
//! An element is a link-layer address on a link, because that is what a packet arrives from. A neighbor whose link-layer address changes
//! keeps its element: known connections refer to it.
//!
//! An element says what its link takes, or less where a route by way of the neighbor does because large packets vanish further on: programs
//! leave what is longer to the kernel, which knows each route and tells senders. The fast path tells senders itself, so it has to know what
//! the route at hand takes: who asks for a route that takes more than the narrowest one by its neighbor gets an element of its own for that
//! size ([`HopPlanner::fitting`]), for as long as somebody names it. Connections keep the element they began with, and are not given those.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use meshd_abi::{NeighborKey, NextHop, hop_flags};

use super::{Write, space::Space};
use crate::{
    desired::{RouteMode, Target, TargetKey},
    id::IfIndex,
};

/// A neighbor as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Its link-layer address.
    pub destination: [u8; 6],
    /// That of the link.
    pub source: [u8; 6],
    /// MTU of the link.
    pub mtu: u32,
    /// The link has another end that takes packets at once.
    pub has_peer: bool,
    /// It is a far end of the tunnel.
    pub is_tunnel: bool,
}

/// A link and an address on it.
pub type Neighbor = (IfIndex, IpAddr);

#[derive(Debug)]
struct Element {
    index: u32,
    hop: Option<Hop>,
    /// `hop` as it is written: what routes take may be less.
    written: Option<Hop>,
    addresses: BTreeSet<IpAddr>,
    /// By what they take, the elements of routes that take more than the narrowest, and how they are written. There are no more than there
    /// are different sizes of routes by the neighbor that somebody has asked for.
    wider: BTreeMap<u32, (u32, Hop)>,
}

impl Element {
    fn new(index: u32) -> Self {
        Self { index, hop: None, written: None, addresses: BTreeSet::new(), wider: BTreeMap::new() }
    }
}

/// Plans `NEXT_HOPS` and `NEIGHBORS`.
#[derive(Debug)]
pub struct HopPlanner {
    elements: BTreeMap<(IfIndex, [u8; 6]), Element>,
    by_address: BTreeMap<(IfIndex, IpAddr), [u8; 6]>,
    space: Space,
    /// Elements there are in all; the first one is nobody's.
    room: u64,
    /// Elements of neighbors that are gone, until nothing names them.
    gone: BTreeSet<u32>,
    /// What targets take whose way takes less than its link.
    narrow: BTreeMap<Neighbor, BTreeMap<TargetKey, u32>>,
    /// The neighbors of these targets.
    narrow_targets: BTreeMap<TargetKey, Vec<Neighbor>>,
    /// Neighbors whose narrowest route is another one: who asked for an element that fits has to ask again.
    moved: BTreeSet<Neighbor>,
}

impl HopPlanner {
    /// Takes over what the map of neighbors held; `room` is the size of both maps, `named` what known connections and records of addresses
    /// refer to, as it is written.
    #[must_use]
    pub fn new(room: u32, existing: &[(NeighborKey, u32)], named: &BTreeMap<u32, NextHop>) -> Self {
        let mut planner = Self {
            elements: BTreeMap::new(),
            by_address: BTreeMap::new(),
            space: Space::new(1, room),
            room: room.saturating_sub(1).into(),
            gone: BTreeSet::new(),
            narrow: BTreeMap::new(),
            narrow_targets: BTreeMap::new(),
            moved: BTreeSet::new(),
        };
        for (key, index) in existing {
            if planner.space.claim(*index, 1) {
                planner.elements.insert((IfIndex(key.link), key.address), Element::new(*index));
            }
        }
        for (index, hop) in named {
            // Those of neighbors are claimed already.
            if !planner.space.claim(*index, 1) {
                continue;
            }
            let element = planner.elements.get_mut(&(IfIndex(hop.link), hop.destination));
            let wider = element.map(|element| element.wider.entry(hop.mtu.into()));
            if let Some(Entry::Vacant(vacant)) = wider {
                vacant.insert((*index, read_hop(hop)));
            } else {
                planner.gone.insert(*index);
            }
        }
        planner
    }

    /// Elements of `NEXT_HOPS` that are in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.room.saturating_sub(self.space.left())
    }

    /// The element of a neighbor; 0 without one.
    #[must_use]
    pub fn find(&self, link: IfIndex, address: IpAddr) -> u32 {
        let Some(mac) = self.by_address.get(&(link, address)) else { return 0 };
        self.elements.get(&(link, *mac)).map_or(0, |element| element.index)
    }

    /// The element of a neighbor for a route that takes `mtu`, or what the link does; 0 without one. One that there is not yet is written.
    /// Without room for it that of the narrowest has to do.
    pub fn fitting(&mut self, link: IfIndex, address: IpAddr, mtu: Option<u32>, writes: &mut Vec<Write>) -> u32 {
        let Some(mac) = self.by_address.get(&(link, address)) else { return 0 };
        let Some(element) = self.elements.get_mut(&(link, *mac)) else { return 0 };
        let (Some(hop), Some(narrowest)) = (element.hop, element.written) else { return element.index };
        let mtu = mtu.map_or(hop.mtu, |mtu| mtu.min(hop.mtu));
        if mtu <= narrowest.mtu {
            return element.index;
        }
        if let Some((index, _)) = element.wider.get(&mtu) {
            return *index;
        }
        let Some(index) = self.space.take(1) else { return element.index };
        let wide = Hop { mtu, ..hop };
        element.wider.insert(mtu, (index, wide));
        writes.push(write_hop(link, index, &wide));
        index
    }

    /// Neighbors for which [`HopPlanner::fitting`] may answer something else since this was asked the last time, beside those that were put.
    pub fn take_moved(&mut self) -> BTreeSet<Neighbor> {
        std::mem::take(&mut self.moved)
    }

    /// A neighbor came or changed; `None` when it went or is not resolved. Nothing happens without room: the programs ask the
    /// routing table then.
    pub fn put(&mut self, link: IfIndex, address: IpAddr, hop: Option<Hop>) -> Vec<Write> {
        let mut writes = Vec::new();
        let old = self.by_address.get(&(link, address)).copied();
        if let (Some(old), Some(hop)) = (old, hop)
            && old != hop.destination
            && self.move_alone(link, address, old, hop, &mut writes)
        {
            return writes;
        }
        if let Some(old) = old.filter(|old| hop.is_none_or(|hop| hop.destination != *old)) {
            self.leave(link, address, old, &mut writes);
        }
        if let Some(hop) = hop {
            self.join(link, address, hop, &mut writes);
        }
        writes
    }

    /// A target came, changed or went: what it takes counts for its neighbors where that is less than their links take. A far end of the
    /// tunnel has an element of its own, which says so already.
    pub fn put_target(&mut self, key: &TargetKey, target: Option<&Target>) -> Vec<Write> {
        let is_narrow = |target: &&Target| target.narrow && target.mode != RouteMode::Tunnel;
        let mut changed = self.narrow_targets.remove(key).unwrap_or_default();
        for way in &changed {
            if let Some(targets) = self.narrow.get_mut(way) {
                targets.remove(key);
                if targets.is_empty() {
                    self.narrow.remove(way);
                }
            }
        }
        if let Some(target) = target.filter(is_narrow) {
            let ways: Vec<Neighbor> = target.hops.iter().map(|hop| (hop.dev, hop.via)).collect();
            for way in &ways {
                self.narrow.entry(*way).or_default().insert(key.clone(), target.mtu);
            }
            changed.extend(&ways);
            self.narrow_targets.insert(key.clone(), ways);
        }
        let mut writes = Vec::new();
        for (link, address) in changed {
            if let Some(mac) = self.by_address.get(&(link, address)).copied() {
                self.write((link, mac), &mut writes);
            }
        }
        writes
    }

    /// Removes what an earlier process wrote and nobody named since.
    pub fn finish(&mut self) -> Vec<Write> {
        let lost: Vec<(IfIndex, [u8; 6])> =
            self.elements.iter().filter(|(_, element)| element.addresses.is_empty()).map(|(key, _)| *key).collect();
        let mut writes = Vec::new();
        for key in lost {
            self.remove(key, &mut writes);
        }
        writes
    }

    /// Frees elements of neighbors that are gone, and those of sizes; `named` tells whether a connection or a record refers to one still.
    pub fn release(&mut self, named: impl Fn(u32) -> bool) -> Vec<Write> {
        let mut writes = Vec::new();
        let space = &mut self.space;
        for element in self.elements.values_mut() {
            element.wider.retain(|_, (index, _)| {
                let is_named = named(*index);
                if !is_named {
                    space.give(*index, 1);
                    writes.push(Write::NextHop(*index, NextHop::default()));
                }
                is_named
            });
        }
        self.gone.retain(|index| {
            let is_named = named(*index);
            if !is_named {
                space.give(*index, 1);
            }
            is_named
        });
        writes
    }

    /// The only neighbor with a link-layer address has another one now: the element goes with it.
    fn move_alone(&mut self, link: IfIndex, address: IpAddr, old: [u8; 6], hop: Hop, writes: &mut Vec<Write>) -> bool {
        let alone = self.elements.get(&(link, old)).is_some_and(|element| element.addresses.len() == 1);
        if !alone || self.elements.contains_key(&(link, hop.destination)) {
            return false;
        }
        let Some(mut element) = self.elements.remove(&(link, old)) else { return false };
        element.hop = Some(hop);
        let index = element.index;
        self.elements.insert((link, hop.destination), element);
        self.write((link, hop.destination), writes);
        writes.push(Write::Neighbor(neighbor_key(link, hop.destination), Some(index)));
        writes.push(Write::Neighbor(neighbor_key(link, old), None));
        self.by_address.insert((link, address), hop.destination);
        true
    }

    fn join(&mut self, link: IfIndex, address: IpAddr, hop: Hop, writes: &mut Vec<Write>) {
        let key = (link, hop.destination);
        if !self.elements.contains_key(&key) {
            let Some(index) = self.space.take(1) else { return };
            self.elements.insert(key, Element::new(index));
        }
        let Some(element) = self.elements.get_mut(&key) else { return };
        element.addresses.insert(address);
        let (index, is_other) = (element.index, element.hop != Some(hop));
        element.hop = Some(hop);
        self.write(key, writes);
        if is_other {
            writes.push(Write::Neighbor(neighbor_key(link, hop.destination), Some(index)));
        }
        self.by_address.insert((link, address), hop.destination);
    }

    fn leave(&mut self, link: IfIndex, address: IpAddr, old: [u8; 6], writes: &mut Vec<Write>) {
        self.by_address.remove(&(link, address));
        let Some(element) = self.elements.get_mut(&(link, old)) else { return };
        element.addresses.remove(&address);
        if element.addresses.is_empty() {
            self.remove((link, old), writes);
        } else {
            self.write((link, old), writes);
        }
    }

    /// Writes the elements of a neighbor, when they are not written like that.
    fn write(&mut self, key: (IfIndex, [u8; 6]), writes: &mut Vec<Write>) {
        let Some(element) = self.elements.get_mut(&key) else { return };
        let Some(hop) = element.hop else { return };
        let narrow = element.addresses.iter().filter_map(|address| self.narrow.get(&(key.0, *address)));
        let fitted = Hop { mtu: narrow.flat_map(BTreeMap::values).copied().fold(hop.mtu, u32::min), ..hop };
        let before = element.written.replace(fitted);
        if before != Some(fitted) {
            writes.push(write_hop(key.0, element.index, &fitted));
        }
        if before.is_none_or(|before| before.mtu != fitted.mtu) {
            self.moved.extend(element.addresses.iter().map(|address| (key.0, *address)));
        }
        for (mtu, (index, written)) in &mut element.wider {
            let wide = Hop { mtu: hop.mtu.min(*mtu), ..hop };
            if *written != wide {
                *written = wide;
                writes.push(write_hop(key.0, *index, &wide));
            }
        }
    }

    fn remove(&mut self, key: (IfIndex, [u8; 6]), writes: &mut Vec<Write>) {
        let Some(element) = self.elements.remove(&key) else { return };
        writes.push(Write::Neighbor(neighbor_key(key.0, key.1), None));
        // Connections may still name it. An element without a link makes programs ask the routing table.
        for index in element.wider.values().map(|(index, _)| *index).chain([element.index]) {
            writes.push(Write::NextHop(index, NextHop::default()));
            self.gone.insert(index);
        }
    }
}

fn neighbor_key(link: IfIndex, address: [u8; 6]) -> NeighborKey {
    NeighborKey { link: link.0, address, reserved: 0 }
}

fn write_hop(link: IfIndex, index: u32, hop: &Hop) -> Write {
    let mtu = u16::try_from(hop.mtu).unwrap_or(u16::MAX);
    let flags = [(hop.has_peer, hop_flags::PEER), (hop.is_tunnel, hop_flags::TUNNEL)];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag);
    let Hop { destination, source, .. } = *hop;
    Write::NextHop(index, NextHop { link: link.0, mtu, destination, source, flags })
}

fn read_hop(hop: &NextHop) -> Hop {
    let NextHop { mtu, destination, source, flags, .. } = *hop;
    let has = |flag| flags & flag != 0;
    let (has_peer, is_tunnel) = (has(hop_flags::PEER), has(hop_flags::TUNNEL));
    Hop { destination, source, mtu: mtu.into(), has_peer, is_tunnel }
}
