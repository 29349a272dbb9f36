//! Source ranges: who may use the addresses of a load balancer from outside.
//!
//! They are kept by the number of a group, because that is what a program knows of the service it has found. A frontend says in its
//! entry whether it asks for them at all, so they are written before the first entry that does, and removed after the last.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use meshd_abi::{Address, RangeKey, Scope, V4, V6};

use super::{Write, ip, services::FrontendKey, v4, v6};
use crate::desired::{FrontendKind, Service, ServicePort};

/// Ranges in the maps.
#[derive(Debug)]
pub(super) struct Ranges {
    held: BTreeMap<u32, BTreeSet<IpNet>>,
    used: [usize; 2],
    /// Room of each map.
    room: usize,
}

impl Ranges {
    /// Takes over what the maps hold.
    pub(super) fn new(room: u32, existing4: &[RangeKey<V4>], existing6: &[RangeKey<V6>]) -> Self {
        let mut ranges = Self { held: BTreeMap::new(), used: [existing4.len(), existing6.len()], room: room as usize };
        let all = existing4.iter().filter_map(range_of).chain(existing6.iter().filter_map(range_of));
        for (group, range) in all {
            ranges.held.entry(group).or_default().insert(range);
        }
        ranges
    }

    /// Ranges in the maps, those of IPv4 first.
    pub(super) const fn used(&self) -> [usize; 2] {
        self.used
    }

    /// Adds what a group has not yet; returns how many found no room.
    pub(super) fn add(&mut self, group: u32, wanted: &BTreeSet<IpNet>, writes: &mut Vec<Write>) -> usize {
        let mut refused = 0;
        for range in wanted {
            let used = &mut self.used[usize::from(range.addr().is_ipv6())];
            if self.held.get(&group).is_some_and(|held| held.contains(range)) {
                continue;
            }
            if *used >= self.room {
                refused += 1;
                continue;
            }
            *used += 1;
            self.held.entry(group).or_default().insert(*range);
            writes.push(write(group, range, true));
        }
        refused
    }

    /// Removes what a group shall not have.
    pub(super) fn trim(&mut self, group: u32, wanted: &BTreeSet<IpNet>, writes: &mut Vec<Write>) {
        let Some(held) = self.held.get_mut(&group) else { return };
        let gone: Vec<IpNet> = held.difference(wanted).copied().collect();
        for range in gone {
            held.remove(&range);
            self.used[usize::from(range.addr().is_ipv6())] -= 1;
            writes.push(write(group, &range, false));
        }
        if held.is_empty() {
            self.held.remove(&group);
        }
    }

    /// Removes the ranges of groups that nobody has.
    pub(super) fn finish(&mut self, is_used: impl Fn(u32) -> bool, writes: &mut Vec<Write>) {
        let lost: Vec<u32> = self.held.keys().copied().filter(|group| !is_used(*group)).collect();
        for group in lost {
            self.trim(group, &BTreeSet::new(), writes);
        }
    }
}

/// Who may use the frontends of a group, and which of these ask.
pub(super) struct Limits {
    /// Prefixes of the group's family.
    pub prefixes: BTreeSet<IpNet>,
    addresses: BTreeSet<IpAddr>,
}

impl Limits {
    /// As in Kubernetes, source ranges are about the addresses of the load balancer: a node port and a further address are reached
    /// without it. What workloads and nodes of the mesh ask for is none of theirs.
    pub(super) fn of(service: &Service, port: &ServicePort, frontends: &BTreeSet<FrontendKey>) -> Self {
        let mut limits = Self { prefixes: BTreeSet::new(), addresses: BTreeSet::new() };
        if service.source_ranges.is_empty() {
            return limits;
        }
        let balancers = port.frontends.iter().filter(|frontend| frontend.kind == FrontendKind::LoadBalancerIp);
        limits.addresses = balancers.map(|frontend| frontend.address).collect();
        if let Some((address, ..)) = frontends.iter().find(|frontend| limits.limits(frontend)) {
            let of_family = service.source_ranges.iter().filter(|range| range.addr().is_ipv4() == address.is_ipv4());
            limits.prefixes = of_family.map(IpNet::trunc).collect();
        }
        limits
    }

    /// True for a frontend that asks.
    pub(super) fn limits(&self, (address, _, _, scope): &FrontendKey) -> bool {
        *scope == Scope::External as u8 && self.addresses.contains(address)
    }
}

fn range_of<A: Address>(key: &RangeKey<A>) -> Option<(u32, IpNet)> {
    let length = key.length.checked_sub(RangeKey::<A>::SERVICE_BITS)?;
    Some((key.service, IpNet::new(ip(key.address), u8::try_from(length).ok()?).ok()?))
}

fn write(group: u32, range: &IpNet, is_wanted: bool) -> Write {
    let length = RangeKey::<V4>::SERVICE_BITS + u32::from(range.prefix_len());
    match (v4(range.addr()), v6(range.addr())) {
        (Some(address), _) => Write::Range4(RangeKey { length, service: group, address }, is_wanted),
        (None, address) => {
            Write::Range6(RangeKey { length, service: group, address: address.unwrap_or_default() }, is_wanted)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[&str]) -> BTreeSet<IpNet> {
        ranges.iter().map(|range| range.parse().unwrap()).collect()
    }

    /// The maps after writes, and a check that each changes something.
    fn carry_out(maps: &mut (BTreeSet<RangeKey<V4>>, BTreeSet<RangeKey<V6>>), writes: Vec<Write>) {
        for write in writes {
            let changed = match write {
                Write::Range4(key, true) => maps.0.insert(key),
                Write::Range4(key, false) => maps.0.remove(&key),
                Write::Range6(key, true) => maps.1.insert(key),
                Write::Range6(key, false) => maps.1.remove(&key),
                _ => panic!("{write:?}"),
            };
            assert!(changed);
        }
    }

    #[test]
    fn a_group_gets_what_it_lacks_and_loses_what_it_shall_not_have() {
        let mut ranges = Ranges::new(3, &[], &[]);
        let mut writes = Vec::new();
        assert_eq!(ranges.add(7, &set(&["192.0.2.0/24", "2001:db8::/32"]), &mut writes), 0);
        let address = V4::from_octets([192, 0, 2, 0]);
        assert_eq!(writes[0], Write::Range4(RangeKey { length: 56, service: 7, address }, true));
        assert!(matches!(writes[1], Write::Range6(RangeKey { length: 64, service: 7, .. }, true)));
        writes.clear();
        let other = set(&["192.0.2.0/24", "198.51.100.0/25", "0.0.0.0/0", "203.0.113.0/24"]);
        assert_eq!(ranges.add(7, &other, &mut writes), 1, "there is room for three of a family");
        assert_eq!(writes.len(), 2);
        writes.clear();
        ranges.trim(7, &set(&["0.0.0.0/0"]), &mut writes);
        assert_eq!(writes.len(), 3);
        writes.clear();
        let two = set(&["192.0.2.0/24", "198.51.100.0/25"]);
        assert_eq!(ranges.add(7, &two, &mut writes), 0, "there is room again");
    }

    #[test]
    fn what_the_maps_hold_is_taken_over() {
        let (mut maps, mut writes) = (<(BTreeSet<_>, BTreeSet<_>)>::default(), Vec::new());
        let wanted = set(&["192.0.2.0/24", "2001:db8::/32"]);
        Ranges::new(9, &[], &[]).add(7, &wanted, &mut writes);
        carry_out(&mut maps, std::mem::take(&mut writes));
        let (held4, held6): (Vec<_>, Vec<_>) = (maps.0.into_iter().collect(), maps.1.into_iter().collect());
        let mut next = Ranges::new(9, &held4, &held6);
        assert_eq!((next.add(7, &wanted, &mut writes), &writes[..]), (0, &[][..]));
        next.finish(|group| group == 7, &mut writes);
        assert!(writes.is_empty());
        next.finish(|_| false, &mut writes);
        assert_eq!(writes.len(), 2);
    }

    proptest! {
        #[test]
        fn the_order_of_changes_does_not_matter(changes: Vec<(bool, [u8; 2], u8)>) {
            let mut ranges = Ranges::new(1_000, &[], &[]);
            let mut maps = <(BTreeSet<_>, BTreeSet<_>)>::default();
            let mut wanted = BTreeMap::<u32, BTreeSet<IpNet>>::new();
            for (is_first, [a, b], length) in changes {
                let group = u32::from(is_first);
                let range = IpNet::new([a, b, 0, 0].into(), length % 33).unwrap().trunc();
                let of = wanted.entry(group).or_default();
                if !of.remove(&range) {
                    of.insert(range);
                }
                let mut writes = Vec::new();
                prop_assert_eq!(ranges.add(group, of, &mut writes), 0);
                ranges.trim(group, of, &mut writes);
                carry_out(&mut maps, writes);
            }
            let held: BTreeSet<(u32, IpNet)> = maps.0.iter().filter_map(range_of).collect();
            let expected = wanted.iter().flat_map(|(group, ranges)| ranges.iter().map(move |range| (*group, *range)));
            prop_assert_eq!(held, expected.collect::<BTreeSet<_>>());
        }
    }
}
