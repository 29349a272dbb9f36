//! What masquerade thinks of a prefix: is it one of our workloads', does the source stay for it?
//!
//! The tries answer by the longest prefix alone, so each element says all that holds for its addresses, also what a shorter prefix
//! says: an own prefix inside of an excluded one is both.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use meshd_abi::{CidrKey, V4, V6, mesh_flags};

use super::{Write, v4, v6};
use crate::{
    desired::{Exclusion, ExclusionSet, Masquerade, MasqueradeWish},
    table::Table,
};

/// Plans `MESH4` and `MESH6`.
#[derive(Debug, Default)]
pub struct ExclusionPlanner {
    sources: BTreeSet<IpNet>,
    exclusions: Table<Exclusion, ()>,
    written: BTreeMap<IpNet, u32>,
    /// What an earlier process wrote and nobody has named yet.
    inherited: BTreeMap<IpNet, u32>,
    /// Elements of each map.
    used: [usize; 2],
}

impl ExclusionPlanner {
    /// Takes over what the maps hold.
    #[must_use]
    pub fn new(existing: impl Iterator<Item = (IpNet, u32)>) -> Self {
        let mut planner = Self { inherited: existing.collect(), ..Self::default() };
        for prefix in planner.inherited.keys() {
            planner.used[usize::from(prefix.addr().is_ipv6())] += 1;
        }
        planner
    }

    /// Brings the maps up to date with what is desired. Without masquerade nothing is changed: the programs are told not to look.
    pub fn update(&mut self, desired: &Masquerade) -> Vec<Write> {
        let MasqueradeWish::On(rules) = &desired.wish else { return Vec::new() };
        let last = std::mem::replace(&mut self.exclusions, desired.exclusions.clone());
        let mut changed: BTreeSet<IpNet> = self.exclusions.diff(&last).map(|diff| diff.key().1).collect();
        // Own prefixes are few, and what holds for them depends on all others.
        changed.extend(&self.sources);
        changed.extend(&rules.sources);
        if self.sources != rules.sources {
            self.sources.clone_from(&rules.sources);
            changed.extend(self.exclusions.iter().map(|((_, prefix), ())| *prefix));
        }
        changed.into_iter().filter_map(|prefix| self.put(prefix)).collect()
    }

    /// Removes what an earlier process wrote and nobody has named since: to be called when every list is complete (I4).
    pub fn finish(&mut self) -> Vec<Write> {
        let inherited = std::mem::take(&mut self.inherited);
        for prefix in inherited.keys() {
            self.used[usize::from(prefix.addr().is_ipv6())] -= 1;
        }
        inherited.into_keys().map(|prefix| write(prefix, None)).collect()
    }

    /// Prefixes in the maps, those of IPv4 first.
    #[must_use]
    pub const fn used(&self) -> [usize; 2] {
        self.used
    }

    fn put(&mut self, prefix: IpNet) -> Option<Write> {
        let flags = self.flags(&prefix);
        let inherited = self.inherited.remove(&prefix);
        let before = if flags == 0 { self.written.remove(&prefix) } else { self.written.insert(prefix, flags) };
        let after = (flags != 0).then_some(flags);
        let before = before.or(inherited);
        let used = &mut self.used[usize::from(prefix.addr().is_ipv6())];
        *used = *used + usize::from(after.is_some()) - usize::from(before.is_some());
        (before != after).then(|| write(prefix, after))
    }

    /// What holds for a prefix; 0 when it need not be in the map.
    fn flags(&self, prefix: &IpNet) -> u32 {
        let is_source = self.sources.contains(prefix);
        let is_excluded = self.is_excluded(*prefix);
        if !is_source && !is_excluded {
            return 0;
        }
        let is_own = self.sources.iter().any(|source| source.contains(prefix));
        let is_kept = is_excluded
            || (0..prefix.prefix_len())
                .filter_map(|length| IpNet::new(prefix.addr(), length).ok())
                .any(|shorter| self.is_excluded(shorter.trunc()));
        let flag = |holds: bool, flag: u32| if holds { flag } else { 0 };
        flag(is_own, mesh_flags::OWN) | flag(is_kept, mesh_flags::KEEP_SOURCE)
    }

    fn is_excluded(&self, prefix: IpNet) -> bool {
        ExclusionSet::ALL.iter().any(|set| self.exclusions.get(&(*set, prefix)).is_some())
    }
}

fn write(prefix: IpNet, flags: Option<u32>) -> Write {
    let length = prefix.prefix_len().into();
    match (v4(prefix.addr()), v6(prefix.addr())) {
        (Some(address), _) => Write::Mesh4(CidrKey { length, address }, flags),
        (None, address) => Write::Mesh6(CidrKey { length, address: address.unwrap_or_default() }, flags),
    }
}

/// The prefix that a key of `MESH4` is; `None` when it is none.
#[must_use]
pub fn prefix4(key: &CidrKey<V4>) -> Option<IpNet> {
    IpNet::new(super::ip(key.address), u8::try_from(key.length).ok()?).ok()
}

/// The prefix that a key of `MESH6` is; `None` when it is none.
#[must_use]
pub fn prefix6(key: &CidrKey<V6>) -> Option<IpNet> {
    IpNet::new(super::ip(key.address), u8::try_from(key.length).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::desired::MasqueradeRules;

    fn desired(sources: &[&str], exclusions: &[(ExclusionSet, &str)]) -> Masquerade {
        let sources = sources.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let mut table = Table::default();
        for (set, prefix) in exclusions {
            table.upsert((*set, prefix.parse().unwrap()), ());
        }
        let rules = MasqueradeRules { sources, ..MasqueradeRules::default() };
        Masquerade { wish: MasqueradeWish::On(Arc::new(rules)), exclusions: table, left_out: 0 }
    }

    fn apply(map: &mut BTreeMap<IpNet, u32>, writes: Vec<Write>) {
        for write in writes {
            let (prefix, flags) = match write {
                Write::Mesh4(key, flags) => (prefix4(&key).unwrap(), flags),
                Write::Mesh6(key, flags) => (prefix6(&key).unwrap(), flags),
                other => panic!("{other:?}"),
            };
            match flags {
                Some(flags) => drop(map.insert(prefix, flags)),
                None => assert!(map.remove(&prefix).is_some(), "{prefix} is not there"),
            }
        }
    }

    /// What the program finds.
    fn lookup(map: &BTreeMap<IpNet, u32>, address: &str) -> u32 {
        let address: IpAddr = address.parse().unwrap();
        let covering = map.iter().filter(|(prefix, _)| prefix.contains(&address));
        covering.max_by_key(|(prefix, _)| prefix.prefix_len()).map_or(0, |(_, flags)| *flags)
    }

    const OWN: u32 = mesh_flags::OWN;
    const KEEP: u32 = mesh_flags::KEEP_SOURCE;

    #[test]
    fn the_longest_prefix_says_all_that_holds() {
        let mut planner = ExclusionPlanner::default();
        let mut map = BTreeMap::new();
        let all = [
            (ExclusionSet::Kept, "10.0.0.0/8"),
            (ExclusionSet::Kept, "10.0.1.128/25"),
            (ExclusionSet::Nodes, "172.18.0.5/32"),
            (ExclusionSet::Pods, "fd10:1::/64"),
        ];
        apply(&mut map, planner.update(&desired(&["10.0.1.0/24", "fd10:1::/64"], &all)));
        assert_eq!(lookup(&map, "10.9.9.9"), KEEP);
        assert_eq!(lookup(&map, "10.0.1.7"), OWN | KEEP);
        assert_eq!(lookup(&map, "10.0.1.200"), OWN | KEEP);
        assert_eq!(lookup(&map, "172.18.0.5"), KEEP);
        assert_eq!(lookup(&map, "172.18.0.6"), 0);
        assert_eq!(lookup(&map, "fd10:1::7"), OWN | KEEP);
        assert_eq!(planner.update(&desired(&["10.0.1.0/24", "fd10:1::/64"], &all)), []);
        // What covers the own prefix goes.
        apply(&mut map, planner.update(&desired(&["10.0.1.0/24"], &all[1..3])));
        assert_eq!(lookup(&map, "10.0.1.7"), OWN);
        assert_eq!(lookup(&map, "10.0.1.200"), OWN | KEEP);
        assert_eq!((lookup(&map, "10.9.9.9"), lookup(&map, "fd10:1::7")), (0, 0));
        assert_eq!(planner.used(), [map.len(), 0]);
    }

    #[test]
    fn what_an_earlier_process_excluded_stays_until_every_list_is_complete() {
        let prefix = |text: &str| text.parse::<IpNet>().unwrap();
        let mut map: BTreeMap<IpNet, u32> =
            [(prefix("10.0.1.0/24"), OWN | KEEP), (prefix("10.1.0.0/24"), KEEP), (prefix("10.2.0.0/24"), KEEP)].into();
        let mut planner = ExclusionPlanner::new(map.clone().into_iter());
        let writes = planner.update(&desired(&["10.0.1.0/24"], &[(ExclusionSet::Pods, "10.1.0.0/24")]));
        assert_eq!(writes.len(), 1, "the own prefix is not excluded any more: {writes:?}");
        apply(&mut map, writes);
        assert_eq!(lookup(&map, "10.2.0.1"), KEEP);
        apply(&mut map, planner.finish());
        assert_eq!((lookup(&map, "10.2.0.1"), lookup(&map, "10.1.0.1")), (0, KEEP));
    }

    proptest! {
        /// Whatever came and went in between, the maps are those of the last wish.
        #[test]
        fn the_way_there_does_not_matter(
            steps in proptest::collection::vec((0u8..16, proptest::collection::btree_set((0usize..3, 0u8..16), 0..6)), 1..6)
        ) {
            let prefix = |number: u8| {
                let length = 8 + (number % 4) * 8;
                IpNet::new(IpAddr::from([10, number / 4 % 2, 0, number / 8]), length).unwrap().trunc()
            };
            let mut planner = ExclusionPlanner::default();
            let mut map = BTreeMap::new();
            let mut fresh = BTreeMap::new();
            for (sources, exclusions) in steps {
                let sources: Vec<String> =
                    (0..4).filter(|bit| sources & (1 << bit) != 0).map(|bit| prefix(bit * 3 + 1).to_string()).collect();
                let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
                let exclusions: Vec<(ExclusionSet, String)> = exclusions
                    .into_iter()
                    .map(|(set, number)| (ExclusionSet::ALL[set], prefix(number).to_string()))
                    .collect();
                let exclusions: Vec<_> = exclusions.iter().map(|(set, prefix)| (*set, prefix.as_str())).collect();
                let wish = desired(&sources, &exclusions);
                apply(&mut map, planner.update(&wish));
                fresh.clear();
                apply(&mut fresh, ExclusionPlanner::default().update(&wish));
            }
            prop_assert_eq!(planner.used(), [map.len(), 0]);
            prop_assert_eq!(map, fresh);
        }
    }
}
