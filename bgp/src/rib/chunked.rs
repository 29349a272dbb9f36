//! Arrays that grow without being copied.
//!
//! A vector that doubles holds its content twice while it grows. With a million entries that is the difference between
//! fitting into the memory budget and not, so the tables of this room grow by one chunk at a time.

/// Entries of one chunk, a power of two.
const CHUNK_ENTRIES: usize = 4_096;
const SHIFT: u32 = CHUNK_ENTRIES.trailing_zeros();

/// No entry: stands in links and identifiers.
pub(super) const NONE: u32 = u32::MAX;

/// An array addressed by `u32`.
#[derive(Debug)]
pub(super) struct Chunked<T> {
    chunks: Vec<Vec<T>>,
    length: u32,
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), length: 0 }
    }
}

impl<T> Chunked<T> {
    pub(super) const fn len(&self) -> u32 {
        self.length
    }

    /// Appends one entry and says where it is.
    pub(super) fn push(&mut self, value: T) -> u32 {
        let at = self.length;
        let chunk = at as usize >> SHIFT;
        if chunk == self.chunks.len() {
            // The first chunk of a small table stays small.
            let capacity = if chunk == 0 { 0 } else { CHUNK_ENTRIES };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        self.chunks[chunk].push(value);
        self.length += 1;
        at
    }

    /// The entry at `at`, which must exist: indices come from [`Self::push`] only.
    #[inline]
    pub(super) fn at(&self, at: u32) -> &T {
        &self.chunks[at as usize >> SHIFT][at as usize & (CHUNK_ENTRIES - 1)]
    }

    #[inline]
    pub(super) fn at_mut(&mut self, at: u32) -> &mut T {
        &mut self.chunks[at as usize >> SHIFT][at as usize & (CHUNK_ENTRIES - 1)]
    }

    pub(super) fn get(&self, at: u32) -> Option<&T> {
        self.chunks.get(at as usize >> SHIFT)?.get(at as usize & (CHUNK_ENTRIES - 1))
    }

    /// Grows to at least `length` entries.
    pub(super) fn grow(&mut self, length: u32, value: impl Fn() -> T) {
        while self.length < length {
            self.push(value());
        }
    }

    pub(super) fn clear(&mut self) {
        self.chunks = Vec::new();
        self.length = 0;
    }
}

/// One bit per entry of a [`Chunked`].
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

    #[test]
    fn entries_stay_where_they_were_put() {
        let mut array = Chunked::default();
        for value in 0..10_000_u32 {
            assert_eq!(array.push(value), value);
        }
        assert_eq!((0..10_000).map(|at| *array.at(at)).collect::<Vec<_>>(), (0..10_000).collect::<Vec<_>>());
        assert_eq!(array.get(10_000), None);
        array.grow(10_002, || 7);
        assert_eq!((array.len(), *array.at(10_001)), (10_002, 7));
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
