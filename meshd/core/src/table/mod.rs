//! Rows with revisions: the in-memory state every stage reads and writes.
//!
//! A [`Table`] is a persistent ordered map. Cloning it is O(1) and gives a snapshot that never changes; two versions of
//! the same table are compared with [`Table::diff`], which skips what they share, so that cost follows the change
//! (invariant I11). [`Sync`] remembers which part of a table its source has completely told once (initialised) and does
//! the mark and sweep of a relist. [`RowStatus`] is what a reconciler says about a desired row.

mod status;
mod sync;

pub use status::{RowState, RowStatus};
pub use sync::{Sweep, Sync};

use std::{fmt, ops::Bound};

use imbl::{OrdMap, ordmap};

use crate::id::Revision;

/// A persistent ordered map with a revision that grows at every change.
#[derive(Clone)]
pub struct Table<K, V> {
    rows: OrdMap<K, V>,
    revision: Revision,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: OrdMap::new(), revision: Revision(0) }
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.rows.iter()).finish()
    }
}

/// How one row differs between two versions of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowDiff<'a, K, V> {
    /// The row exists only in the newer version.
    Added(&'a K, &'a V),
    /// The row exists in both with different values (old, new).
    Changed(&'a K, &'a V, &'a V),
    /// The row exists only in the older version.
    Removed(&'a K, &'a V),
}

impl<'a, K, V> RowDiff<'a, K, V> {
    /// The key of the row that differs.
    #[must_use]
    pub fn key(&self) -> &'a K {
        match self {
            Self::Added(key, _) | Self::Changed(key, _, _) | Self::Removed(key, _) => key,
        }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Table<K, V> {
    /// Writes a row and returns the previous value; the revision stays when nothing changed.
    pub fn upsert(&mut self, key: K, value: V) -> Upsert<V> {
        match self.rows.get(&key) {
            Some(old) if *old == value => Upsert::Unchanged,
            _ => {
                self.revision.0 += 1;
                match self.rows.insert(key, value) {
                    Some(old) => Upsert::Changed(old),
                    None => Upsert::Added,
                }
            }
        }
    }

    /// Writes a row without a look at what is there first, for tables where nearly every write is a change; returns the
    /// previous value.
    pub fn put(&mut self, key: K, value: V) -> Option<V> {
        self.revision.0 += 1;
        self.rows.insert(key, value)
    }

    /// Removes a row and returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let old = self.rows.remove(key)?;
        self.revision.0 += 1;
        Some(old)
    }

    /// Rows that differ between `older` and this version, in key order. Cost follows the difference when both descend
    /// from the same table.
    pub fn diff<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = RowDiff<'a, K, V>> {
        older.rows.diff(&self.rows).map(|item| match item {
            ordmap::DiffItem::Add(key, value) => RowDiff::Added(key, value),
            ordmap::DiffItem::Update { old, new } => RowDiff::Changed(new.0, old.1, new.1),
            ordmap::DiffItem::Remove(key, value) => RowDiff::Removed(key, value),
        })
    }

    /// The value of a row.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    /// True when the row exists.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    /// All rows in key order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.rows.iter()
    }

    /// Rows from `start` on, in key order.
    pub fn range_from<'a>(&'a self, start: &'a K) -> impl Iterator<Item = (&'a K, &'a V)> {
        self.rows.range::<(Bound<&K>, Bound<&K>), K>((Bound::Included(start), Bound::Unbounded))
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True without rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Version of the table.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }
}

/// What an upsert did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upsert<V> {
    /// The row is new.
    Added,
    /// The row had this other value.
    Changed(V),
    /// The row had the same value already.
    Unchanged,
}

impl<K: Ord + Clone, V: Clone + PartialEq> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(rows: I) -> Self {
        let rows: OrdMap<K, V> = rows.into_iter().collect();
        let revision = Revision(u64::from(!rows.is_empty()));
        Self { rows, revision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_upsert_keeps_the_revision() {
        let mut table = Table::default();
        assert_eq!(table.upsert(1, "a"), Upsert::Added);
        let revision = table.revision();
        assert_eq!(table.upsert(1, "a"), Upsert::Unchanged);
        assert_eq!(table.revision(), revision);
        assert_eq!(table.upsert(1, "b"), Upsert::Changed("a"));
        assert!(table.revision() > revision);
    }

    #[test]
    fn diff_lists_exactly_what_differs_and_snapshots_stay() {
        let mut table: Table<u32, u32> = (0..1000).map(|i| (i, i)).collect();
        let before = table.clone();
        table.upsert(5, 50);
        table.upsert(2000, 1);
        table.remove(&999);
        let diff: Vec<_> = table.diff(&before).collect();
        assert_eq!(diff, [RowDiff::Changed(&5, &5, &50), RowDiff::Removed(&999, &999), RowDiff::Added(&2000, &1)]);
        assert_eq!(before.get(&5), Some(&5));
        assert_eq!(table.diff(&table).count(), 0);
    }
}
