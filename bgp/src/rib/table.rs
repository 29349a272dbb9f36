//! Destinations and the paths to them.
//!
//! ```text
//! index: hash of prefix -> destination      4 octets + 1 of control, at most 8/7 and at least 16/7 per destination
//! destinations: prefix, first path, flags   16 octets (IPv4)
//! paths: attribute sets, peer, next path    24 octets
//! ```
//!
//! The first path of a destination is the best one, if any is; the others follow in no particular order. Received
//! paths (every path), accepted ones (with a set after policy) and the Loc-RIB (the first) are three readings of this
//! one table.

use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::{
    attributes::AttrId,
    chunked::{Linked, NONE, Slab},
    reasons::Rejection,
};
use crate::{
    family::Prefix,
    id::{PathId, PeerId},
};

/// Bits of [`Destination::flags`].
pub(super) mod mark {
    /// In the list of destinations to decide.
    pub(crate) const DIRTY: u16 = 1;
    /// The best path, or what it says, is no longer what was decided on.
    pub(crate) const BEST_TOUCHED: u16 = 2;
    /// What is forwarded may have changed.
    pub(crate) const FORWARDING_TOUCHED: u16 = 4;
    /// In the list of forwarding changes.
    pub(crate) const FORWARDING_LISTED: u16 = 8;
    /// In the list of destinations that may be freed.
    pub(crate) const GRAVE: u16 = 16;
    /// Counted by the aggregates that cover it.
    pub(crate) const CONTRIBUTES: u16 = 32;
    /// The slot is in use.
    pub(crate) const LIVE: u16 = 64;
}

/// Bits of [`Path::flags`].
pub(super) mod is {
    /// Selected.
    pub(crate) const BEST: u8 = 1;
    /// Selected, or forwarded to beside the best.
    pub(crate) const FORWARDED: u8 = 2;
    /// Kept although its session is down.
    pub(crate) const STALE: u8 = 4;
    /// Kept even longer (RFC 9494).
    pub(crate) const LONG_LIVED_STALE: u8 = 8;
    /// Not seen again since the peer began to send everything once more.
    pub(crate) const AWAITS_REFRESH: u8 = 16;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Destination<P> {
    pub(super) prefix: P,
    pub(super) flags: u16,
    /// The best path, if any is.
    pub(super) head: u32,
}

/// What import made of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Imported(u32);

impl Imported {
    pub(super) const fn accepted(id: AttrId) -> Self {
        Self(id.0)
    }

    pub(super) const fn rejected(why: Rejection) -> Self {
        Self(why.to_bits())
    }

    /// The attributes after policy.
    #[inline]
    pub(super) const fn attributes(self) -> Option<AttrId> {
        if self.0 < Rejection::FIRST { Some(AttrId(self.0)) } else { None }
    }

    pub(super) const fn rejection(self) -> Option<Rejection> {
        if self.0 < Rejection::FIRST { None } else { Some(Rejection::from_bits(self.0)) }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    /// As received.
    pub(super) received: AttrId,
    /// After policy.
    pub(super) imported: Imported,
    pub(super) next: u32,
    pub(super) path_id: PathId,
    /// Seconds of [`crate::Moment`].
    pub(super) since_s: u32,
    pub(super) peer: PeerId,
    pub(super) flags: u8,
}

impl Path {
    #[inline]
    pub(super) const fn is(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

impl<P> Linked for Destination<P> {
    fn link(&self) -> u32 {
        self.head
    }

    fn set_link(&mut self, link: u32) {
        self.head = link;
    }
}

impl Linked for Path {
    fn link(&self) -> u32 {
        self.next
    }

    fn set_link(&mut self, link: u32) {
        self.next = link;
    }
}

/// An index that has room for so many times what is in it is made smaller.
const INDEX_SPARE_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Table<P> {
    index: HashTable<u32>,
    hasher: FixedState,
    destinations: Slab<Destination<P>>,
    paths: Slab<Path>,
    live_paths: u32,
}

impl<P: Prefix> Table<P> {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            index: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            destinations: Slab::default(),
            paths: Slab::default(),
            live_paths: 0,
        }
    }

    /// Destinations, those without paths that wait to be freed included.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.index.len()).unwrap_or(u32::MAX)
    }

    /// One more than the highest number of a destination, or somewhat more.
    pub(super) fn end(&self) -> u32 {
        self.destinations.end()
    }

    pub(super) const fn live_paths(&self) -> u32 {
        self.live_paths
    }

    #[inline]
    pub(super) fn destination(&self, at: u32) -> &Destination<P> {
        self.destinations.at(at)
    }

    #[inline]
    pub(super) fn destination_mut(&mut self, at: u32) -> &mut Destination<P> {
        self.destinations.at_mut(at)
    }

    /// The destination of this number, if it is in use.
    pub(super) fn get_destination(&self, at: u32) -> Option<&Destination<P>> {
        self.destinations.get(at).filter(|destination| destination.flags & mark::LIVE != 0)
    }

    #[inline]
    pub(super) fn path(&self, at: u32) -> &Path {
        self.paths.at(at)
    }

    #[inline]
    pub(super) fn path_mut(&mut self, at: u32) -> &mut Path {
        self.paths.at_mut(at)
    }

    /// The path that was selected.
    #[inline]
    pub(super) fn best(&self, destination: u32) -> Option<(u32, &Path)> {
        let head = self.destination(destination).head;
        let path = self.paths.get(head)?;
        path.is(is::BEST).then_some((head, path))
    }

    /// Numbers of the paths of a destination.
    pub(super) fn paths_of(&self, destination: u32) -> impl Iterator<Item = (u32, &Path)> {
        let mut next = self.destination(destination).head;
        std::iter::from_fn(move || {
            let at = next;
            let path = self.paths.get(at)?;
            next = path.next;
            Some((at, path))
        })
    }

    pub(super) fn find(&self, prefix: P) -> Option<u32> {
        let equal = |at: &u32| self.destinations.at(*at).prefix == prefix;
        self.index.find(self.hasher.hash_one(prefix), equal).copied()
    }

    /// Reads what the next steps will need of these prefixes, and says which attributes their first paths have. Nothing
    /// comes of it but speed: a large table lies in memory and not in caches, and here all prefixes of a step wait for memory
    /// together, where one after the other each would wait on its own. So a number may be that of another prefix.
    pub(super) fn read_ahead<const N: usize>(&self, prefixes: &[Option<(PathId, P)>; N]) -> [Option<AttrId>; N] {
        let known = prefixes.map(|entry| self.index.find(self.hasher.hash_one(entry?.1), |_| true).copied());
        let heads = known.map(|at| self.destinations.get(at?).map(|destination| destination.head));
        heads.map(|head| self.paths.get(head?).map(|path| path.received))
    }

    pub(super) fn find_or_insert(&mut self, prefix: P) -> u32 {
        let hash = self.hasher.hash_one(prefix);
        let equal = |at: &u32| self.destinations.at(*at).prefix == prefix;
        if let Some(at) = self.index.find(hash, equal) {
            return *at;
        }
        if self.index.len() == self.index.capacity() {
            self.grow();
        }
        let destination = Destination { prefix, flags: mark::LIVE, head: NONE };
        let at = self.destinations.insert(destination);
        let Self { index, destinations, hasher, .. } = self;
        index.insert_unique(hash, at, |at| hasher.hash_one(destinations.at(*at).prefix));
        at
    }

    /// The table of twice the size is filled in the order of the destinations, which lie one after the other; the table's
    /// own way would read them in the order of their hashes, one cache miss each.
    fn grow(&mut self) {
        let mut index = HashTable::with_capacity((self.index.len() * 2).max(14));
        for at in 0..self.destinations.end() {
            if let Some(destination) = self.get_destination(at) {
                let hash = |at: &u32| self.hasher.hash_one(self.destinations.at(*at).prefix);
                index.insert_unique(self.hasher.hash_one(destination.prefix), at, hash);
            }
        }
        self.index = index;
    }

    /// Frees a destination without paths.
    pub(super) fn remove(&mut self, at: u32) {
        let destination = self.destinations.at_mut(at);
        destination.flags = 0;
        let hash = self.hasher.hash_one(destination.prefix);
        if let Ok(found) = self.index.find_entry(hash, |other| *other == at) {
            found.remove();
        }
        self.destinations.remove(at);
        // Far from empty is far from being made larger again.
        if self.index.capacity() / INDEX_SPARE_MAX > self.index.len() {
            let Self { index, destinations, hasher, .. } = self;
            index.shrink_to(index.len() * 2, |at| hasher.hash_one(destinations.at(*at).prefix));
        }
    }

    /// Puts a path behind the first one of its destination: whether it is better is for later.
    pub(super) fn insert_path(&mut self, destination: u32, path: Path) -> u32 {
        let at = self.paths.insert(path);
        self.live_paths += 1;
        let head = self.destination(destination).head;
        if head == NONE {
            self.paths.at_mut(at).next = NONE;
            self.destination_mut(destination).head = at;
        } else {
            self.paths.at_mut(at).next = self.paths.at(head).next;
            self.paths.at_mut(head).next = at;
        }
        at
    }

    /// Takes a path out of its destination. What it held is the caller's to release.
    pub(super) fn remove_path(&mut self, destination: u32, at: u32) -> Path {
        self.unlink(destination, at);
        let path = *self.paths.at(at);
        self.paths.remove(at);
        self.live_paths -= 1;
        path
    }

    /// Moves a path to the front.
    pub(super) fn move_to_front(&mut self, destination: u32, at: u32) {
        if self.destination(destination).head == at {
            return;
        }
        self.unlink(destination, at);
        self.paths.at_mut(at).next = self.destination(destination).head;
        self.destination_mut(destination).head = at;
    }

    fn unlink(&mut self, destination: u32, at: u32) {
        let after = self.paths.at(at).next;
        if self.destination(destination).head == at {
            self.destination_mut(destination).head = after;
            return;
        }
        let mut before = self.destination(destination).head;
        while before != NONE {
            let next = self.paths.at(before).next;
            if next == at {
                self.paths.at_mut(before).next = after;
                return;
            }
            before = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};

    fn prefix(number: u32) -> V4 {
        V4::from_wire(24, &number.to_be_bytes()[1..]).expect("a prefix")
    }

    fn path(peer: u16) -> Path {
        Path {
            received: AttrId(0),
            imported: Imported::accepted(AttrId(0)),
            next: 0,
            path_id: PathId(0),
            since_s: 0,
            peer: PeerId(peer),
            flags: 0,
        }
    }

    #[test]
    fn entries_are_as_small_as_the_budget_says() {
        assert_eq!(size_of::<Destination<V4>>(), 16);
        assert_eq!(size_of::<Destination<V6>>(), 24);
        assert_eq!(size_of::<Path>(), 24);
    }

    #[test]
    fn prefixes_are_found_through_growth_and_removal() {
        let mut table = Table::new(3);
        for number in 0..5_000 {
            let at = table.find_or_insert(prefix(number));
            assert_eq!(table.find_or_insert(prefix(number)), at);
        }
        for number in (0..5_000).step_by(2) {
            let at = table.find(prefix(number)).expect("inserted");
            table.remove(at);
        }
        for number in 0..5_000 {
            assert_eq!(table.find(prefix(number)).is_some(), number % 2 == 1, "{number}");
        }
        let end = table.end();
        for number in 0..2_500 {
            table.find_or_insert(prefix(number * 2));
        }
        assert_eq!(table.end(), end, "freed destinations are used again");
        assert_eq!(table.len(), 5_000);
    }

    #[test]
    fn paths_are_linked_in_and_out() {
        let mut table = Table::new(3);
        let at = table.find_or_insert(prefix(1));
        let numbers: Vec<u32> = (0..4).map(|peer| table.insert_path(at, path(peer))).collect();
        let peers = |table: &Table<V4>| table.paths_of(at).map(|(_, path)| path.peer.0).collect::<Vec<_>>();
        assert_eq!(peers(&table), [0, 3, 2, 1]);
        table.move_to_front(at, numbers[2]);
        assert_eq!(peers(&table), [2, 0, 3, 1]);
        table.remove_path(at, numbers[2]);
        table.remove_path(at, numbers[1]);
        assert_eq!(peers(&table), [0, 3]);
        let again = table.insert_path(at, path(9));
        assert!(numbers.contains(&again), "freed paths are used again");
        for number in [numbers[0], numbers[3], again] {
            table.remove_path(at, number);
        }
        table.remove(at);
        assert_eq!((table.len(), table.end()), (0, 0), "an empty table gives its memory back");
    }
}
