//! The echo function (RFC 5880 section 6.8.8, RFC 5881 section 4): packets to ourselves by way of the other side, whose
//! forwarding plane alone sends them back.
//!
//! Receiving needs nothing here: a packet to an address that is not ours is forwarded by the kernel like any other. This is
//! the sending half: when the next one is due, and when too many are missing.

use std::num::NonZeroU8;

use super::{jitter::Jitter, packet::Interval};
use crate::id::Moment;

/// Echo packets of one session while the function is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    interval: Interval,
    next_at: Moment,
    /// Number of the next packet.
    sequence: u32,
    /// How many of the last packets have not come back, and since when the oldest of them is missed.
    missing: u32,
    missing_since: Option<Moment>,
}

impl Echo {
    /// The first one is due at once. `sequence` is what a stranger cannot guess.
    pub(super) const fn starting(now: Moment, interval: Interval, sequence: u32) -> Self {
        Self { interval, next_at: now, sequence, missing: 0, missing_since: None }
    }

    pub(super) const fn set_interval(&mut self, interval: Interval) {
        self.interval = interval;
    }

    /// The number of the packet that is due, if one is. Sent with jitter like control packets.
    pub(super) fn due(&mut self, now: Moment, jitter: &mut Jitter) -> Option<u32> {
        if self.next_at > now {
            return None;
        }
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        self.missing = self.missing.saturating_add(1);
        self.missing_since.get_or_insert(now);
        self.next_at = now.after(jitter.shorten(self.interval, NonZeroU8::MAX).duration());
        Some(sequence)
    }

    /// A packet came back: what was sent before it counts as answered. Numbers that are not on their way are ignored.
    pub(super) const fn returned(&mut self, sequence: u32, now: Moment) {
        let newer = self.sequence.wrapping_sub(sequence).wrapping_sub(1);
        if newer < self.missing {
            self.missing = newer;
            self.missing_since = if newer == 0 { None } else { Some(now) };
        }
    }

    /// True when nothing came back for as long as `multiplier` packets take.
    pub(super) fn failed(&self, now: Moment, multiplier: NonZeroU8) -> bool {
        self.fails_at(multiplier).is_some_and(|at| at <= now)
    }

    pub(super) fn next_deadline(&self, multiplier: NonZeroU8) -> Moment {
        self.fails_at(multiplier).map_or(self.next_at, |at| at.min(self.next_at))
    }

    fn fails_at(&self, multiplier: NonZeroU8) -> Option<Moment> {
        Some(self.missing_since?.after(self.interval.duration().saturating_mul(u32::from(multiplier.get()))))
    }
}
