//! Ranges of a map's indexes: given out, taken over, and given back.

use std::collections::BTreeMap;

/// Indexes from `first` on, of which ranges are in use.
#[derive(Debug)]
pub(super) struct Space {
    /// Free ranges: begin and length. Neighbors are joined.
    free: BTreeMap<u32, u32>,
}

impl Space {
    /// All of `first..end` is free.
    pub(super) fn new(first: u32, end: u32) -> Self {
        Self { free: [(first, end.saturating_sub(first))].into_iter().filter(|(_, length)| *length > 0).collect() }
    }

    /// Takes the first range that is long enough.
    pub(super) fn take(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let (begin, room) = self.free.iter().find(|(_, room)| **room >= length).map(|(begin, room)| (*begin, *room))?;
        self.free.remove(&begin);
        if room > length {
            self.free.insert(begin + length, room - length);
        }
        Some(begin)
    }

    /// Takes this very range; false when a part of it is not free.
    pub(super) fn claim(&mut self, begin: u32, length: u32) -> bool {
        if length == 0 {
            return true;
        }
        let Some((free, room)) = self.free.range(..=begin).next_back().map(|(free, room)| (*free, *room)) else {
            return false;
        };
        let Some(end) = begin.checked_add(length) else { return false };
        if end > free + room {
            return false;
        }
        self.free.remove(&free);
        if begin > free {
            self.free.insert(free, begin - free);
        }
        if free + room > end {
            self.free.insert(end, free + room - end);
        }
        true
    }

    /// Gives a range back.
    pub(super) fn give(&mut self, begin: u32, length: u32) {
        if length == 0 {
            return;
        }
        let (mut begin, mut length) = (begin, length);
        if let Some((before, room)) = self.free.range(..begin).next_back().map(|(at, room)| (*at, *room))
            && before + room == begin
        {
            self.free.remove(&before);
            begin = before;
            length += room;
        }
        if let Some(room) = self.free.remove(&(begin + length)) {
            length += room;
        }
        self.free.insert(begin, length);
    }

    /// How many indexes are free.
    pub(super) fn left(&self) -> u64 {
        self.free.values().map(|room| u64::from(*room)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_when_they_come_back() {
        let mut space = Space::new(1, 11);
        let ranges: Vec<u32> = [4, 3, 3].map(|length| space.take(length).unwrap()).into();
        assert_eq!((ranges.clone(), space.take(1)), (vec![1, 5, 8], None));
        space.give(1, 4);
        space.give(8, 3);
        assert_eq!(space.take(5), None);
        space.give(5, 3);
        assert_eq!((space.left(), space.take(10)), (10, Some(1)));
    }

    #[test]
    fn a_range_that_is_in_use_already_can_be_claimed_once() {
        let mut space = Space::new(0, 10);
        assert!(space.claim(3, 4));
        assert!(!space.claim(6, 2) && !space.claim(2, 2) && !space.claim(9, 2));
        assert!(space.claim(0, 3) && space.claim(7, 3));
        assert_eq!((space.left(), space.take(1)), (0, None));
    }
}
