//! A member of an update group: how far it is.

use super::end_of_rib::EndOfRib;
use crate::{NextHop, id::PeerId};

/// How far a member has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It reads the log; this record is next.
    Reading(u64),
    /// It walks the Adj-RIB-Out.
    Scanning(Scan),
}

/// A walk through the Adj-RIB-Out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// The destination that is next.
    pub(super) at: u32,
    /// Which prefixes are announced.
    pub(super) announce: Extent,
    /// Which absent prefixes are withdrawn.
    pub(super) withdraw: Extent,
    /// Where to read on in the log afterwards.
    pub(super) resume: u64,
    /// What is younger will be found in the log.
    pub(super) resume_epoch: u32,
    /// The end of this walk is told (RFC 7313).
    pub(super) bracket: bool,
}

/// A part of the Adj-RIB-Out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// No prefix.
    Nothing,
    /// What changed in this epoch or later.
    Since(u32),
    /// All prefixes.
    Everything,
}

impl Extent {
    pub(super) fn includes(self, generation: u32) -> bool {
        match self {
            Self::Nothing => false,
            Self::Since(epoch) => !is_before(generation, epoch),
            Self::Everything => true,
        }
    }

    /// The part that has all of both.
    pub(super) fn union(self, other: Self) -> Self {
        match (self, other) {
            (Self::Everything, _) | (_, Self::Everything) => Self::Everything,
            (Self::Nothing, part) | (part, Self::Nothing) => part,
            (Self::Since(a), Self::Since(b)) => Self::Since(if is_before(a, b) { a } else { b }),
        }
    }
}

/// Epochs go round; what lies apart by less than half a round is compared rightly. What is older seems young, and is sent
/// once more than needed.
pub(super) const fn is_before(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) > 0
}

#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) peer: PeerId,
    pub(super) own_next_hop: NextHop,
    pub(super) progress: Progress,
    /// The epoch of what it read last.
    pub(super) read_epoch: u32,
    pub(super) end_of_rib: EndOfRib,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_go_round() {
        assert!(is_before(1, 2) && !is_before(2, 2) && !is_before(3, 2));
        assert!(is_before(u32::MAX, 1) && !is_before(1, u32::MAX));
        assert!(Extent::Since(5).includes(5) && Extent::Since(5).includes(6) && !Extent::Since(5).includes(4));
        assert_eq!(Extent::Since(5).union(Extent::Since(4)), Extent::Since(4));
        assert_eq!(Extent::Nothing.union(Extent::Since(4)), Extent::Since(4));
        assert_eq!(Extent::Since(4).union(Extent::Everything), Extent::Everything);
    }
}
