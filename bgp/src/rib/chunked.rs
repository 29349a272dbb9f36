//! Arrays that grow without being copied, and give back what they no longer need.
//!
//! A vector that doubles holds its content twice while it grows. With a million entries that is the difference between
//! fitting into the memory budget and not, so the tables of this room grow by one chunk at a time. A chunk in which nothing
//! is left is given back; what comes next fills the first chunks, so that the last ones become empty.

use std::collections::BTreeSet;

/// Entries of one chunk, a power of two.
const CHUNK_ENTRIES: usize = 4_096;
const SHIFT: u32 = CHUNK_ENTRIES.trailing_zeros();

/// No entry: stands in links and identifiers.
pub(super) const NONE: u32 = u32::MAX;

const fn split(at: u32) -> (usize, usize) {
    (at as usize >> SHIFT, at as usize & (CHUNK_ENTRIES - 1))
}

const fn join(chunk: usize, offset: usize) -> u32 {
    // There are fewer entries than addresses of IPv4.
    (chunk << SHIFT | offset) as u32
}

/// Memory for one chunk. The first chunk of a small table stays small.
fn reserve<T>(entries: &mut Vec<T>, chunk: usize) {
    if entries.capacity() == 0 && chunk > 0 {
        entries.reserve_exact(CHUNK_ENTRIES);
    }
}

/// An entry of a [`Slab`]: while it is free, one of its fields is a link.
pub(super) trait Linked {
    /// The link.
    fn link(&self) -> u32;
    /// Sets it.
    fn set_link(&mut self, link: u32);
}

/// Entries that keep their numbers until they are removed.
#[derive(Debug)]
pub(super) struct Slab<T> {
    chunks: Vec<SlabChunk<T>>,
    /// Chunks with room.
    roomy: BTreeSet<usize>,
}

#[derive(Debug)]
struct SlabChunk<T> {
    entries: Vec<T>,
    /// The first free entry, by its place in the chunk.
    free: u32,
    used: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), roomy: BTreeSet::new() }
    }
}

impl<T: Linked> Slab<T> {
    /// One more than the highest number in use, or somewhat more.
    pub(super) fn end(&self) -> u32 {
        let last = self.chunks.len().checked_sub(1);
        last.map_or(0, |last| join(last, 0) + self.chunks[last].entries.len() as u32)
    }

    /// Enters a value and says where it is.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        let number = self.roomy.first().copied().unwrap_or(self.chunks.len());
        if number == self.chunks.len() {
            self.chunks.push(SlabChunk { entries: Vec::new(), free: NONE, used: 0 });
            self.roomy.insert(number);
        }
        let chunk = &mut self.chunks[number];
        chunk.used += 1;
        if chunk.used == CHUNK_ENTRIES {
            self.roomy.remove(&number);
        }
        let offset = if chunk.free == NONE {
            reserve(&mut chunk.entries, number);
            chunk.entries.push(value);
            chunk.entries.len() - 1
        } else {
            let offset = chunk.free as usize;
            chunk.free = chunk.entries[offset].link();
            chunk.entries[offset] = value;
            offset
        };
        join(number, offset)
    }

    /// Frees an entry, which must be in use.
    pub(super) fn remove(&mut self, at: u32) {
        let (number, offset) = split(at);
        let chunk = &mut self.chunks[number];
        chunk.entries[offset].set_link(chunk.free);
        chunk.free = offset as u32;
        if chunk.used == CHUNK_ENTRIES {
            self.roomy.insert(number);
        }
        chunk.used -= 1;
        if chunk.used == 0 {
            (chunk.entries, chunk.free) = (Vec::new(), NONE);
            while self.chunks.last().is_some_and(|chunk| chunk.used == 0) {
                self.chunks.pop();
                self.roomy.remove(&self.chunks.len());
            }
        }
    }

    /// The entry at `at`, which must be in use: numbers come from [`Self::insert`] only.
    #[inline]
    pub(super) fn at(&self, at: u32) -> &T {
        let (chunk, offset) = split(at);
        &self.chunks[chunk].entries[offset]
    }

    #[inline]
    pub(super) fn at_mut(&mut self, at: u32) -> &mut T {
        let (chunk, offset) = split(at);
        &mut self.chunks[chunk].entries[offset]
    }

    /// The entry at `at`; a free one, too.
    pub(super) fn get(&self, at: u32) -> Option<&T> {
        let (chunk, offset) = split(at);
        self.chunks.get(chunk)?.entries.get(offset)
    }
}

/// A value for every number, of which most that are far apart are nothing.
#[derive(Debug)]
pub(super) struct Sparse<T> {
    chunks: Vec<SparseChunk<T>>,
    nothing: T,
}

#[derive(Debug)]
struct SparseChunk<T> {
    entries: Vec<T>,
    /// Entries that are something.
    used: usize,
}

impl<T: Copy + PartialEq> Sparse<T> {
    pub(super) const fn new(nothing: T) -> Self {
        Self { chunks: Vec::new(), nothing }
    }

    /// One more than the highest number that is something, or somewhat more.
    pub(super) fn end(&self) -> u32 {
        let last = self.chunks.len().checked_sub(1);
        last.map_or(0, |last| join(last, 0) + self.chunks[last].entries.len() as u32)
    }

    #[inline]
    pub(super) fn get(&self, at: u32) -> T {
        let (chunk, offset) = split(at);
        self.chunks.get(chunk).and_then(|chunk| chunk.entries.get(offset)).copied().unwrap_or(self.nothing)
    }

    pub(super) fn set(&mut self, at: u32, value: T) {
        let nothing = self.nothing;
        let (number, offset) = split(at);
        if value != nothing {
            while self.chunks.len() <= number {
                self.chunks.push(SparseChunk { entries: Vec::new(), used: 0 });
            }
            let entries = &mut self.chunks[number].entries;
            if entries.len() <= offset {
                reserve(entries, number);
                entries.resize(offset + 1, nothing);
            }
        }
        let Some(entry) = self.chunks.get_mut(number).and_then(|chunk| chunk.entries.get_mut(offset)) else {
            return;
        };
        let before = std::mem::replace(entry, value);
        let chunk = &mut self.chunks[number];
        chunk.used = chunk.used + usize::from(before == nothing) - usize::from(value == nothing);
        if chunk.used == 0 {
            chunk.entries = Vec::new();
            while self.chunks.last().is_some_and(|chunk| chunk.used == 0) {
                self.chunks.pop();
            }
        }
    }
}

/// One bit per destination.
#[derive(Debug, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// Sets a bit; true when it was not set before.
    pub(super) fn set(&mut self, at: u32) -> bool {
        let word = at as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1 + word / 8, 0);
        }
        let mask = 1 << (at % 64);
        let new = self.words[word] & mask == 0;
        self.words[word] |= mask;
        new
    }

    /// Takes a bit back; true when it was set.
    pub(super) fn clear(&mut self, at: u32) -> bool {
        let mask = 1 << (at % 64);
        let Some(word) = self.words.get_mut(at as usize / 64) else {
            return false;
        };
        let was = *word & mask != 0;
        *word &= !mask;
        was
    }

    pub(super) fn get(&self, at: u32) -> bool {
        self.words.get(at as usize / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Entry(u32);

    impl Linked for Entry {
        fn link(&self) -> u32 {
            self.0
        }

        fn set_link(&mut self, link: u32) {
            self.0 = link;
        }
    }

    fn memory<T>(slab: &Slab<T>) -> usize {
        slab.chunks.iter().map(|chunk| chunk.entries.capacity()).sum()
    }

    #[test]
    fn entries_stay_where_they_were_put() {
        let mut slab = Slab::default();
        for value in 0..10_000 {
            assert_eq!(slab.insert(Entry(value)), value);
        }
        assert!((0..10_000).all(|at| *slab.at(at) == Entry(at)));
        assert_eq!((slab.end(), slab.get(10_000)), (10_000, None));
        for at in [9_000, 5, 7_777, 3] {
            slab.remove(at);
        }
        // The first chunk is filled first.
        let again: Vec<u32> = (0..5).map(|_| slab.insert(Entry(1))).collect();
        assert_eq!(again, [3, 5, 7_777, 9_000, 10_000]);
    }

    #[test]
    fn a_chunk_without_entries_is_given_back_and_used_again() {
        let mut slab = Slab::default();
        for value in 0..4 * CHUNK_ENTRIES as u32 {
            slab.insert(Entry(value));
        }
        let full = memory(&slab);
        let chunk = CHUNK_ENTRIES as u32;
        (chunk..2 * chunk).for_each(|at| slab.remove(at));
        assert_eq!(memory(&slab), full - CHUNK_ENTRIES, "one in the middle");
        assert_eq!((slab.get(chunk), slab.end()), (None, 4 * chunk));
        (2 * chunk + 1..4 * chunk).for_each(|at| slab.remove(at));
        assert_eq!(slab.end(), 3 * chunk);
        assert_eq!(*slab.at(2 * chunk), Entry(2 * chunk));
        assert_eq!((slab.insert(Entry(7)), slab.insert(Entry(8))), (chunk, chunk + 1));
        slab.remove(2 * chunk);
        assert_eq!(slab.end(), chunk + 2, "empty ones at the end are forgotten");
        (0..chunk + 2).for_each(|at| slab.remove(at));
        assert_eq!((slab.end(), memory(&slab)), (0, 0));
    }

    #[test]
    fn what_was_not_set_is_nothing_and_costs_nothing() {
        let mut array = Sparse::new(NONE);
        array.set(3 * CHUNK_ENTRIES as u32, 7);
        array.set(5, 6);
        assert_eq!([5, 4, 9_000, 3 * CHUNK_ENTRIES as u32].map(|at| array.get(at)), [6, NONE, NONE, 7]);
        assert_eq!(array.chunks.iter().filter(|chunk| chunk.entries.capacity() > 0).count(), 2);
        array.set(9_000, NONE);
        array.set(1_000_000, NONE);
        assert_eq!(array.end(), 3 * CHUNK_ENTRIES as u32 + 1);
        array.set(3 * CHUNK_ENTRIES as u32, NONE);
        assert_eq!((array.end(), array.get(5)), (6, 6));
        array.set(5, 8);
        array.set(5, NONE);
        assert_eq!((array.end(), array.chunks.len()), (0, 0));
    }

    #[test]
    fn bits_tell_whether_they_changed() {
        let mut bits = Bits::default();
        assert!(bits.set(100));
        assert!(!bits.set(100));
        assert!(bits.get(100) && !bits.get(99) && !bits.get(1_000_000));
        assert!(bits.clear(100));
        assert!(!bits.clear(100));
        assert!(!bits.clear(1_000_000));
    }
}
