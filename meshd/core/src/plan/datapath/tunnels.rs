//! Far ends of the tunnel: where the programs write frames to.
//!
//! Which packets go there is the routing table's business; here is only how: the next hop of a far end, and what fits. A far end is
//! also a next hop itself, for packets that go past the stack ([`super::HopPlanner`] holds those).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use meshd_abi::{Tunnel, V6};

use super::{Write, ip, space::Space, v4, v6};
use crate::desired::TargetKey;

#[derive(Debug)]
struct Element {
    /// Its place; 0: there was no room.
    index: u32,
    /// Who is reached there, and what fits.
    claims: BTreeMap<TargetKey, u32>,
    written: Option<Tunnel>,
}

/// Plans `TUNNELS` and `FAR_ENDS`.
#[derive(Debug)]
pub struct TunnelPlanner {
    elements: BTreeMap<IpAddr, Element>,
    of: BTreeMap<TargetKey, IpAddr>,
    space: Space,
    /// Elements that were given up in this round: their removal may be carried out after everything else.
    freed: Vec<u32>,
}

/// What became of a far end.
#[derive(Debug, PartialEq, Eq)]
pub struct TunnelPlan {
    /// Changes of the maps, in order.
    pub writes: Vec<Write>,
    /// Its element and the largest packet that goes in, to be a next hop by; `None`: nobody is reached there.
    pub hop: Option<(u16, u32)>,
}

impl TunnelPlanner {
    /// Takes over what the map holds; `room` is its size.
    #[must_use]
    pub fn new(room: u32, existing: &[(u32, Tunnel)]) -> Self {
        // A next hop has sixteen bits for it.
        let mut space = Space::new(1, room.min(1 << 16));
        let mut elements = BTreeMap::new();
        for (index, tunnel) in existing.iter().filter(|(_, tunnel)| tunnel.address != V6::default()) {
            if space.claim(*index, 1) {
                let address = tunnel.address.unmapped().map_or_else(|| ip(tunnel.address), ip);
                let element = Element { index: *index, claims: BTreeMap::new(), written: Some(*tunnel) };
                elements.insert(address, element);
            }
        }
        Self { elements, of: BTreeMap::new(), space, freed: Vec::new() }
    }

    /// What was planned so far has been carried out: its elements can be used again.
    pub fn begin_round(&mut self) {
        for index in self.freed.drain(..) {
            self.space.give(index, 1);
        }
    }

    /// A target is reached at a far end, where packets of so many bytes fit; `None`: at none. Adds far ends that are to be planned.
    pub fn claim(&mut self, key: &TargetKey, far: Option<(IpAddr, u32)>, changed: &mut BTreeSet<IpAddr>) {
        let before = match far {
            Some((address, _)) => self.of.insert(key.clone(), address),
            None => self.of.remove(key),
        };
        if let Some(before) = before.filter(|before| far.is_none_or(|(address, _)| address != *before))
            && let Some(element) = self.elements.get_mut(&before)
        {
            element.claims.remove(key);
            changed.insert(before);
        }
        if let Some((address, mtu)) = far {
            let element = self.elements.entry(address);
            let element = element.or_insert_with(|| Element { index: 0, claims: BTreeMap::new(), written: None });
            if element.claims.insert(key.clone(), mtu) != Some(mtu) {
                changed.insert(address);
            }
        }
    }

    /// Brings one far end into the maps; `next_hop` is the element of its neighbor, 0 without one.
    pub fn plan(&mut self, address: IpAddr, next_hop: u32) -> TunnelPlan {
        let mut writes = Vec::new();
        let Some(element) = self.elements.get_mut(&address) else { return TunnelPlan { writes, hop: None } };
        let key = v4(address).map_or_else(|| v6(address).unwrap_or_default(), V6::mapped);
        let Some(mtu) = element.claims.values().min().copied() else {
            if element.index != 0 {
                writes.push(Write::FarEnd(key, None));
                writes.push(Write::Tunnel(element.index, Tunnel::default()));
                self.freed.push(element.index);
            }
            self.elements.remove(&address);
            return TunnelPlan { writes, hop: None };
        };
        if element.index == 0 {
            match self.space.take(1) {
                Some(index) => element.index = index,
                None => return TunnelPlan { writes, hop: None },
            }
        }
        let tunnel = Tunnel { address: key, next_hop, mtu: u16::try_from(mtu).unwrap_or(u16::MAX), reserved: 0 };
        if element.written != Some(tunnel) {
            writes.push(Write::Tunnel(element.index, tunnel));
            if element.written.is_none() {
                writes.push(Write::FarEnd(key, Some(element.index)));
            }
            element.written = Some(tunnel);
        }
        let hop = u16::try_from(element.index).ok().map(|index| (index, mtu));
        TunnelPlan { writes, hop }
    }

    /// Far ends that an earlier process wrote and nobody has claimed: to be planned when every list is complete.
    pub fn unclaimed(&self) -> impl Iterator<Item = IpAddr> {
        self.elements.iter().filter(|(_, element)| element.claims.is_empty()).map(|(address, _)| *address)
    }

    /// Every far end.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.elements.keys().copied()
    }

    /// True for a far end.
    #[must_use]
    pub fn contains(&self, address: &IpAddr) -> bool {
        self.elements.contains_key(address)
    }

    /// How many far ends have an element.
    #[must_use]
    pub fn len(&self) -> usize {
        self.elements.values().filter(|element| element.index != 0).count()
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::desired::NodeTarget;

    fn target(node: u8, ipv4: bool) -> TargetKey {
        let node = format!("node-{node}").parse().unwrap();
        NodeTarget { cluster: "east".parse().unwrap(), node, ipv4 }.into()
    }

    fn far(last: u8) -> IpAddr {
        if last.is_multiple_of(2) { [192, 0, 2, last].into() } else { std::net::Ipv6Addr::from([last; 16]).into() }
    }

    /// What the maps hold after writes.
    #[derive(Debug, Default, Clone, PartialEq, Eq)]
    struct Maps {
        tunnels: BTreeMap<u32, Tunnel>,
        far_ends: BTreeMap<V6, u32>,
    }

    impl Maps {
        fn run(&mut self, writes: Vec<Write>) {
            for write in writes {
                match write {
                    Write::Tunnel(index, tunnel) if tunnel == Tunnel::default() => {
                        assert!(self.far_ends.values().all(|named| *named != index), "it is named no more");
                        self.tunnels.remove(&index);
                    }
                    Write::Tunnel(index, tunnel) => drop(self.tunnels.insert(index, tunnel)),
                    Write::FarEnd(address, Some(index)) => {
                        assert!(self.tunnels.contains_key(&index), "it is there before it is named");
                        self.far_ends.insert(address, index);
                    }
                    Write::FarEnd(address, None) => drop(self.far_ends.remove(&address)),
                    other => panic!("{other:?}"),
                }
            }
        }

        /// Far ends with what is written of them.
        fn ends(&self) -> BTreeMap<V6, (u32, u16)> {
            let all = self.far_ends.iter().map(|(address, index)| (*address, self.tunnels[index]));
            all.inspect(|(address, tunnel)| assert_eq!(tunnel.address, *address))
                .map(|(address, tunnel)| (address, (tunnel.next_hop, tunnel.mtu)))
                .collect()
        }
    }

    fn apply(planner: &mut TunnelPlanner, maps: &mut Maps, key: &TargetKey, end: Option<(IpAddr, u32)>) {
        let mut changed = BTreeSet::new();
        planner.begin_round();
        planner.claim(key, end, &mut changed);
        for address in changed {
            maps.run(planner.plan(address, 7).writes);
        }
    }

    #[test]
    fn a_far_end_is_there_as_long_as_somebody_is_reached_at_it_and_takes_what_fits_all() {
        let (mut planner, mut maps) = (TunnelPlanner::new(4, &[]), Maps::default());
        apply(&mut planner, &mut maps, &target(1, true), Some((far(2), 1450)));
        apply(&mut planner, &mut maps, &target(1, false), Some((far(2), 1350)));
        let address = V6::mapped(v4(far(2)).unwrap());
        assert_eq!(maps.ends(), [(address, (7, 1350))].into());
        assert_eq!(planner.plan(far(2), 9).hop, Some((1, 1350)));
        apply(&mut planner, &mut maps, &target(1, false), None);
        assert_eq!(maps.ends(), [(address, (7, 1450))].into());
        apply(&mut planner, &mut maps, &target(1, true), None);
        assert_eq!((maps, planner.is_empty()), (Maps::default(), true));
    }

    #[test]
    fn a_restart_changes_nothing_and_what_nobody_claims_goes() {
        let (mut planner, mut maps) = (TunnelPlanner::new(4, &[]), Maps::default());
        for node in [2, 3] {
            apply(&mut planner, &mut maps, &target(node, true), Some((far(node), 1400)));
        }
        let existing: Vec<(u32, Tunnel)> = maps.tunnels.iter().map(|(index, tunnel)| (*index, *tunnel)).collect();
        let mut planner = TunnelPlanner::new(4, &existing);
        let mut changed = BTreeSet::new();
        planner.claim(&target(2, true), Some((far(2), 1400)), &mut changed);
        assert_eq!(planner.plan(far(2), 7).writes, []);
        let unclaimed: Vec<IpAddr> = planner.unclaimed().collect();
        assert_eq!(unclaimed, [far(3)]);
        maps.run(planner.plan(far(3), 7).writes);
        assert_eq!(maps.far_ends.len(), 1);
    }

    #[test]
    fn without_room_a_far_end_is_left_to_the_device() {
        let mut planner = TunnelPlanner::new(2, &[]);
        let mut maps = Maps::default();
        apply(&mut planner, &mut maps, &target(1, true), Some((far(1), 1400)));
        apply(&mut planner, &mut maps, &target(2, true), Some((far(2), 1400)));
        assert_eq!((maps.far_ends.len(), planner.len()), (1, 1));
        assert_eq!(planner.plan(far(2), 7), TunnelPlan { writes: Vec::new(), hop: None });
    }

    proptest! {
        /// Only what was said last of each target counts.
        #[test]
        fn the_order_of_changes_does_not_matter(
            changes in prop::collection::vec((0u8..4, any::<bool>(), prop::option::of((0u8..5, 1300u32..1303))), 0..40),
        ) {
            let (mut planner, mut maps) = (TunnelPlanner::new(64, &[]), Maps::default());
            let mut last = BTreeMap::new();
            for (node, ipv4, end) in changes {
                let end = end.map(|(address, mtu)| (far(address), mtu));
                apply(&mut planner, &mut maps, &target(node, ipv4), end);
                last.insert(target(node, ipv4), end);
            }
            let (mut fresh, mut expected) = (TunnelPlanner::new(64, &[]), Maps::default());
            for (key, end) in last {
                apply(&mut fresh, &mut expected, &key, end);
            }
            prop_assert_eq!(maps.ends(), expected.ends());
            prop_assert_eq!(maps.tunnels.len(), maps.far_ends.len());
        }
    }
}
