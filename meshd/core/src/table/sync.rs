//! Initialisers and mark and sweep.
//!
//! A source lists everything it has (`begin`, rows, `end`) and then follows. Rows that existed before `begin` and were not
//! told again until `end` are swept. Until the first `end` nothing that depends on the table may be pruned (I4).
//!
//! Marks are keys of rows the table holds, never more: a source may tell keys without end, and the table's limit is the
//! only thing that stops them. Whoever writes the table marks after the row is in, and unmarks when it goes.

use std::collections::BTreeSet;

/// Progress of one source over one table.
#[derive(Debug, Clone)]
pub struct Sync<K> {
    initialized: bool,
    listing: Option<BTreeSet<K>>,
    track: bool,
}

impl<K> Default for Sync<K> {
    fn default() -> Self {
        Self { initialized: false, listing: None, track: false }
    }
}

/// What is left to remove after a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sweep<K> {
    /// No list was under way.
    NotListing,
    /// The table was empty when the list began: nothing can be left over.
    Nothing,
    /// Every row whose key is not in this set is left over.
    AllBut(BTreeSet<K>),
}

impl<K: Ord + Clone> Sync<K> {
    /// Starts a list. `rows_before` is the number of rows the table holds now; with none there is nothing to sweep and
    /// nothing is tracked. A list that was under way is forgotten: its marks are void.
    pub fn begin(&mut self, rows_before: usize) {
        self.track = rows_before > 0;
        self.listing = Some(BTreeSet::new());
    }

    /// Marks a row that the table holds as told by the list under way.
    pub fn mark(&mut self, key: &K) {
        if let (true, Some(seen)) = (self.track, &mut self.listing) {
            seen.insert(key.clone());
        }
    }

    /// Takes the mark of a row back that the table no longer holds.
    pub fn unmark(&mut self, key: &K) {
        if let Some(seen) = &mut self.listing {
            seen.remove(key);
        }
    }

    /// Number of rows that are marked.
    #[must_use]
    pub fn marked(&self) -> usize {
        self.listing.as_ref().map_or(0, BTreeSet::len)
    }

    /// Ends the list: from here on the table is initialised.
    pub fn end(&mut self) -> Sweep<K> {
        let Some(seen) = self.listing.take() else { return Sweep::NotListing };
        self.initialized = true;
        if self.track { Sweep::AllBut(seen) } else { Sweep::Nothing }
    }

    /// Gives up the list under way (connection lost); nothing is swept.
    pub fn abort(&mut self) {
        self.listing = None;
    }

    /// True once a list has been completed.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// True between `begin` and `end`.
    #[must_use]
    pub fn is_listing(&self) -> bool {
        self.listing.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relist_sweeps_what_was_not_told_again() {
        let mut sync = Sync::default();
        sync.begin(0);
        sync.mark(&1);
        assert!(!sync.is_initialized());
        assert_eq!(sync.end(), Sweep::Nothing);
        assert!(sync.is_initialized());
        sync.begin(2);
        sync.mark(&2);
        assert_eq!(sync.end(), Sweep::AllBut(BTreeSet::from([2])));
        assert_eq!(sync.end(), Sweep::NotListing);
    }

    #[test]
    fn an_aborted_list_sweeps_nothing_and_initialises_nothing() {
        let mut sync: Sync<u8> = Sync::default();
        sync.begin(3);
        sync.abort();
        assert_eq!(sync.end(), Sweep::NotListing);
        assert!(!sync.is_initialized());
    }
}
