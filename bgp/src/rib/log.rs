//! Encoded messages of an update group, for all members to read at their own pace.
//!
//! Records are numbered from 0 for as long as the group lives. The oldest are forgotten when everybody has read them, and
//! beyond [`super::LOG_OCTETS_MAX`] whether everybody has or not.

use std::collections::VecDeque;

use super::sizes::Sizes;
use crate::id::PeerId;

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    All,
    Except(PeerId),
    Only(PeerId),
}

impl Audience {
    pub(super) fn includes(self, peer: PeerId) -> bool {
        match self {
            Self::All => true,
            Self::Except(other) => other != peer,
            Self::Only(one) => one == peer,
        }
    }
}

/// What is known of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Where it ends in its chunk.
    end: u32,
    /// When it was written.
    pub(super) epoch: u32,
    pub(super) audience: Audience,
    /// Where each member's own next hop is to be written; 0 for nowhere.
    pub(super) next_hop_at: u16,
}

#[derive(Debug, Default)]
struct Chunk {
    first: u64,
    octets: Vec<u8>,
    records: Vec<Record>,
}

#[derive(Debug)]
pub(super) struct Log {
    sizes: Sizes,
    chunks: VecDeque<Chunk>,
    head: u64,
    octets: usize,
    /// A chunk that was forgotten, for its memory.
    spare: Option<Chunk>,
}

impl Log {
    pub(super) const fn new(sizes: Sizes) -> Self {
        Self { sizes, chunks: VecDeque::new(), head: 0, octets: 0, spare: None }
    }

    /// The number of the next record.
    pub(super) const fn head(&self) -> u64 {
        self.head
    }

    /// The number of the oldest record, or of the next one when there is none.
    pub(super) fn first(&self) -> u64 {
        self.chunks.front().map_or(self.head, |chunk| chunk.first)
    }

    /// Where to append messages; each is then made a record with [`Self::commit`].
    pub(super) fn open(&mut self) -> &mut Vec<u8> {
        if self.chunks.back().is_none_or(|chunk| chunk.octets.len() >= self.sizes.log_chunk_octets) {
            let mut chunk = self.spare.take().unwrap_or_default();
            chunk.octets.clear();
            chunk.records.clear();
            chunk.first = self.head;
            self.chunks.push_back(chunk);
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last].octets
    }

    /// Makes the last `length` appended octets a record.
    pub(super) fn commit(&mut self, length: usize, epoch: u32, audience: Audience, next_hop_at: u16) {
        if let Some(chunk) = self.chunks.back_mut() {
            let end = u32::try_from(chunk.octets.len()).unwrap_or(u32::MAX);
            chunk.records.push(Record { end, epoch, audience, next_hop_at });
            self.head += 1;
            self.octets += length;
        }
    }

    /// Records from `cursor` on; none when that is no longer, or not yet, there.
    pub(super) fn read(&self, cursor: u64) -> impl Iterator<Item = (&Record, &[u8])> {
        let after = self.chunks.partition_point(|chunk| chunk.first <= cursor);
        let from = after.checked_sub(1).unwrap_or(self.chunks.len());
        let skip = self.chunks.get(from).map_or(0, |chunk| cursor - chunk.first);
        let records = self.chunks.range(from..).flat_map(|chunk| {
            let starts = std::iter::once(0).chain(chunk.records.iter().map(|record| record.end as usize));
            chunk.records.iter().zip(starts).map(|(record, start)| (record, &chunk.octets[start..record.end as usize]))
        });
        records.skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }

    /// Forgets what lies before `cursor`, and what is too much.
    pub(super) fn trim(&mut self, cursor: u64) {
        while self.chunks.front().is_some_and(|chunk| {
            chunk.first + chunk.records.len() as u64 <= cursor
                || self.octets > self.sizes.log_octets_max && self.chunks.len() > 1
        }) {
            if let Some(chunk) = self.chunks.pop_front() {
                self.octets -= chunk.octets.len();
                self.spare = Some(chunk);
            }
        }
        if self.chunks.is_empty()
            && self.spare.as_ref().is_some_and(|chunk| chunk.octets.capacity() > 2 * self.sizes.log_chunk_octets)
        {
            self.spare = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(log: &mut Log, octets: &[u8], epoch: u32) {
        log.open().extend_from_slice(octets);
        log.commit(octets.len(), epoch, Audience::All, 0);
    }

    fn read(log: &Log, cursor: u64) -> Vec<Vec<u8>> {
        log.read(cursor).map(|(_, octets)| octets.to_vec()).collect()
    }

    #[test]
    fn records_are_read_from_any_place() {
        let mut log = Log::new(Sizes::default());
        let big = vec![7; 40_000];
        for number in 0..5_u8 {
            write(&mut log, &[number], 0);
            write(&mut log, &big, 0);
        }
        assert_eq!((log.first(), log.head()), (0, 10));
        assert_eq!(read(&log, 8), [vec![4], big.clone()]);
        assert_eq!(read(&log, 3)[0], big);
        assert!(read(&log, 10).is_empty() && read(&log, 11).is_empty());
        log.trim(5);
        assert!(log.first() <= 5 && log.first() > 0);
        assert!(read(&log, 0).is_empty(), "forgotten");
        log.trim(10);
        assert_eq!((log.first(), log.octets), (10, 0));
        write(&mut log, &[9], 0);
        assert_eq!(read(&log, 10), [vec![9]]);
    }

    #[test]
    fn a_log_does_not_outgrow_its_limit() {
        let mut log = Log::new(Sizes::default());
        for _ in 0..1_000 {
            write(&mut log, &[0; 4_096], 0);
            log.trim(0);
            assert!(log.octets <= crate::rib::LOG_OCTETS_MAX + (64 << 10) + 4_096);
        }
        assert!(log.first() > 500);
    }

    #[test]
    fn an_audience_is_all_all_but_one_or_one() {
        let (a, b) = (PeerId(1), PeerId(2));
        assert!(Audience::All.includes(a));
        assert!(!Audience::Except(a).includes(a) && Audience::Except(a).includes(b));
        assert!(Audience::Only(a).includes(a) && !Audience::Only(a).includes(b));
    }
}
