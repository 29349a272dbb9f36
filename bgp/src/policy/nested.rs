//! A sorted list of prefixes in which each knows the one it lies in.
//!
//! Built once and then only asked. The prefixes that cover a given one are found with one binary search: what precedes it
//! in the order of (address, length) lies inside the nearest of them, so that they are all on the way up from there. No
//! allocation per question, one per family for all prefixes.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefixes of both families with a value each. Equal prefixes may be in it several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nested<T> {
    v4: Level<u32, T>,
    v6: Level<u128, T>,
}

impl<T> Nested<T> {
    /// Sorts the prefixes; equal ones stay in the given order.
    pub(super) fn build(items: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (prefix, value) in items {
            match prefix {
                IpNet::V4(net) => v4.push(Entry::new(net.network().to_bits(), net.prefix_len(), value)),
                IpNet::V6(net) => v6.push(Entry::new(net.network().to_bits(), net.prefix_len(), value)),
            }
        }
        Self { v4: Level::build(v4), v6: Level::build(v6) }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.v4.entries.len() + self.v6.entries.len()
    }

    /// Them, IPv4 first.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.entries.iter().filter_map(|it| Some(Ipv4Net::new(it.address.into(), it.length).ok()?.into()));
        let v6 = self.v6.entries.iter().filter_map(|it| Some(Ipv6Net::new(it.address.into(), it.length).ok()?.into()));
        v4.chain(v6)
    }

    /// How many there are of IPv4 and of IPv6.
    pub(super) fn lens(&self) -> (usize, usize) {
        (self.v4.entries.len(), self.v6.entries.len())
    }

    /// The values of every prefix that equals `prefix` or covers it, the longest first.
    pub(super) fn covering(&self, prefix: &IpNet) -> Covering<'_, T> {
        match prefix {
            IpNet::V4(net) => Covering::V4(self.v4.covering(net.network().to_bits(), net.prefix_len())),
            IpNet::V6(net) => Covering::V6(self.v6.covering(net.network().to_bits(), net.prefix_len())),
        }
    }

    /// True when a prefix of the list equals `prefix` or lies inside it.
    pub(super) fn any_within(&self, prefix: &IpNet) -> bool {
        match prefix {
            IpNet::V4(net) => self.v4.any_within(net.network().to_bits(), net.prefix_len()),
            IpNet::V6(net) => self.v6.any_within(net.network().to_bits(), net.prefix_len()),
        }
    }

    /// True when a prefix of the list equals `prefix` or covers it.
    pub(super) fn any_covering(&self, prefix: &IpNet) -> bool {
        self.covering(prefix).next().is_some()
    }
}

/// Values of covering prefixes, the longest first.
pub(super) enum Covering<'a, T> {
    /// Of IPv4.
    V4(Upward<'a, u32, T>),
    /// Of IPv6.
    V6(Upward<'a, u128, T>),
}

impl<'a, T> Iterator for Covering<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        match self {
            Self::V4(upward) => upward.next(),
            Self::V6(upward) => upward.next(),
        }
    }
}

/// The way up from an entry.
pub(super) struct Upward<'a, A, T> {
    entries: &'a [Entry<A, T>],
    next: u32,
}

impl<'a, A, T> Iterator for Upward<'a, A, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        let entry = self.entries.get(self.next as usize)?;
        self.next = entry.parent;
        Some(&entry.value)
    }
}

/// Stands for no parent.
const ROOT: u32 = u32::MAX;

/// The bits of an address.
pub(super) trait Bits: Copy + Ord {
    /// True when the first `length` bits are equal.
    fn shares(self, other: Self, length: u8) -> bool;
}

impl Bits for u32 {
    fn shares(self, other: Self, length: u8) -> bool {
        (self ^ other).leading_zeros() >= u32::from(length)
    }
}

impl Bits for u128 {
    fn shares(self, other: Self, length: u8) -> bool {
        (self ^ other).leading_zeros() >= u32::from(length)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry<A, T> {
    address: A,
    length: u8,
    /// Index of the nearest entry that equals or covers this one and precedes it.
    parent: u32,
    value: T,
}

impl<A: Bits, T> Entry<A, T> {
    const fn new(address: A, length: u8, value: T) -> Self {
        Self { address, length, parent: ROOT, value }
    }

    fn covers(&self, address: A, length: u8) -> bool {
        self.length <= length && self.address.shares(address, self.length)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Level<A, T> {
    entries: Vec<Entry<A, T>>,
}

impl<A: Bits, T> Level<A, T> {
    fn build(mut entries: Vec<Entry<A, T>>) -> Self {
        // More do not fit into the index; the readers' limits are far below.
        entries.truncate(ROOT as usize);
        entries.sort_by_key(|entry| (entry.address, entry.length));
        entries.shrink_to_fit();
        for index in 1..entries.len() {
            let (before, rest) = entries.split_at_mut(index);
            let Some(entry) = rest.first_mut() else { break };
            let mut up = u32::try_from(index - 1).unwrap_or(ROOT);
            while let Some(candidate) = before.get(up as usize) {
                if candidate.covers(entry.address, entry.length) {
                    break;
                }
                up = candidate.parent;
            }
            entry.parent = up;
        }
        Self { entries }
    }

    fn covering(&self, address: A, length: u8) -> Upward<'_, A, T> {
        let after = self.entries.partition_point(|entry| (entry.address, entry.length) <= (address, length));
        let mut next = after.checked_sub(1).map_or(ROOT, |index| u32::try_from(index).unwrap_or(ROOT));
        while let Some(entry) = self.entries.get(next as usize) {
            if entry.covers(address, length) {
                break;
            }
            next = entry.parent;
        }
        Upward { entries: &self.entries, next }
    }

    fn any_within(&self, address: A, length: u8) -> bool {
        let first = self.entries.partition_point(|entry| (entry.address, entry.length) < (address, length));
        self.entries.get(first).is_some_and(|entry| entry.length >= length && entry.address.shares(address, length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few addresses and all lengths, so that prefixes nest.
    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (0u32..64, 0u8..=32)
            .prop_map(|(bits, length)| IpNet::V4(Ipv4Net::new_assert((bits << 26 | bits).into(), length).trunc()));
        let v6 = (0u128..16, 0u8..=128).prop_map(|(bits, length)| {
            IpNet::V6(Ipv6Net::new_assert((bits << 124 | bits << 60 | bits).into(), length).trunc())
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn it_finds_what_a_look_at_every_prefix_finds(list in prop::collection::vec(prefix(), 0..40), asked in prefix()) {
            let nested = Nested::build(list.iter().copied().map(|prefix| (prefix, prefix)));
            let mut expected: Vec<IpNet> = list.iter().copied().filter(|prefix| prefix.contains(&asked)).collect();
            expected.sort_by_key(|prefix| std::cmp::Reverse(prefix.prefix_len()));
            let found: Vec<IpNet> = nested.covering(&asked).copied().collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(nested.any_within(&asked), list.iter().any(|prefix| asked.contains(prefix)));
            prop_assert_eq!(nested.len(), list.len());
            let mut sorted = list;
            sorted.sort_by_key(|prefix| (prefix.addr().is_ipv6(), prefix.network(), prefix.prefix_len()));
            prop_assert_eq!(nested.prefixes().collect::<Vec<_>>(), sorted);
        }
    }

    #[test]
    fn the_two_families_do_not_meet() {
        let nested = Nested::build([("::/0".parse().expect("a prefix"), ())]);
        assert!(!nested.any_covering(&"10.0.0.0/8".parse().expect("a prefix")));
        assert!(nested.any_covering(&"2001:db8::/32".parse().expect("a prefix")));
        assert_eq!(nested.lens(), (0, 1));
    }
}
