//! A difference between two versions of a table is exactly what turns one into the other.

use std::collections::BTreeMap;

use meshd_core::table::{RowDiff, Table};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_diff_applied_to_the_old_version_gives_the_new_one(
        start in prop::collection::btree_map(0u8..40, 0u8..4, 0..40),
        changes in prop::collection::vec((0u8..40, prop::option::of(0u8..4)), 0..60),
    ) {
        let old: Table<u8, u8> = start.clone().into_iter().collect();
        let mut new = old.clone();
        for (key, value) in changes {
            let before = new.revision();
            let changed = new.get(&key) != value.as_ref();
            match value {
                Some(value) => drop(new.upsert(key, value)),
                None => drop(new.remove(&key)),
            }
            prop_assert_eq!(new.revision() > before, changed, "the revision grows with every change and with nothing else");
        }
        let mut rebuilt = start.clone();
        let mut keys = Vec::new();
        for diff in new.diff(&old) {
            keys.push(*diff.key());
            match diff {
                RowDiff::Added(key, value) => prop_assert_eq!(rebuilt.insert(*key, *value), None),
                RowDiff::Changed(key, was, is) => {
                    prop_assert_ne!(was, is);
                    prop_assert_eq!(rebuilt.insert(*key, *is), Some(*was));
                }
                RowDiff::Removed(key, was) => prop_assert_eq!(rebuilt.remove(key), Some(*was)),
            }
        }
        prop_assert!(keys.is_sorted_by(|a, b| a < b), "each key once, in order");
        let end: BTreeMap<u8, u8> = new.iter().map(|(key, value)| (*key, *value)).collect();
        prop_assert_eq!(rebuilt, end);
        prop_assert_eq!(new.diff(&new).count(), 0);
        prop_assert_eq!(old.iter().map(|(key, value)| (*key, *value)).collect::<BTreeMap<_, _>>(), start);
    }
}
