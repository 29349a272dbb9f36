//! The echo function (RFC 5880 sections 6.4 and 6.8.9): packets that the other side's forwarding plane sends back to us, and
//! whether any are missing.
//!
//! The other side says in its control packets how often it can bear them, or that it cannot. That it permits them does not
//! mean that they come back: whether it forwards, and by which way, is another matter. So they are sent slowly until one has
//! come back in time; only from then on the function is active, its packets come at the agreed pace, and their absence takes the
//! session down. A permission that nothing stands behind costs a packet a second, and never a session.

use std::{num::NonZeroU8, time::Duration};

use serde::Serialize;

use super::{
    jitter::Jitter,
    packet::{Discriminator, Interval},
};
use crate::id::Moment;

/// The UDP port that echo packets are sent to (RFC 5881 section 4).
pub const ECHO_PORT: u16 = 3785;
/// Octets of an echo packet of ours, above UDP.
pub const ECHO_LEN: usize = 24;
/// The first octets: a version and a length, as other speakers begin theirs. Nobody but the sender reads it.
const ECHO_START: [u8; 4] = [1, ECHO_LEN as u8, 0, 0];
/// So many of the last packets may still come back.
const UNDER_WAY_MAX: u32 = 255;

/// What our echo packets carry: enough to know them again (RFC 5880 section 6.4 leaves it to the sender).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoPacket {
    /// Our number of the session.
    pub discriminator: Discriminator,
    /// Which packet it is.
    pub sequence: u32,
}

impl EchoPacket {
    /// The octets above UDP.
    #[must_use]
    pub fn encode(self) -> [u8; ECHO_LEN] {
        let mut octets = [0; ECHO_LEN];
        let fields = [ECHO_START, self.discriminator.get().to_be_bytes(), self.sequence.to_be_bytes()];
        for (place, octet) in octets.iter_mut().zip(fields.into_iter().flatten()) {
            *place = octet;
        }
        octets
    }

    /// `None` for what is none of ours.
    #[must_use]
    pub fn decode(octets: &[u8]) -> Option<Self> {
        let octets: &[u8; ECHO_LEN] = octets.try_into().ok()?;
        let (start, rest) = octets.split_first_chunk::<4>()?;
        let (discriminator, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, zeros) = rest.split_first_chunk::<4>()?;
        if *start != ECHO_START || zeros.iter().any(|octet| *octet != 0) {
            return None;
        }
        let discriminator = Discriminator::new(u32::from_be_bytes(*discriminator))?;
        Some(Self { discriminator, sequence: u32::from_be_bytes(*sequence) })
    }
}

/// How the echo function of a session does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EchoState {
    /// Nobody wants to send echo packets.
    #[default]
    Off,
    /// The session is not up.
    Waiting,
    /// The other side does not permit them.
    NotPermitted,
    /// They are sent slowly, and none has come back.
    Unanswered,
    /// They come back, and the session goes down when they do not.
    Active,
}

/// Echo packets of one session while both sides want them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    interval: Interval,
    /// One has come back in time.
    proven: bool,
    next_at: Moment,
    sent_at: Moment,
    /// Number of the next packet.
    sequence: u32,
    /// How many of the last packets have not come back, and since when the oldest of them is missed.
    missing: u32,
    missing_since: Option<Moment>,
}

impl Echo {
    /// The first one is due at once. `sequence` is what a stranger cannot guess.
    pub(super) const fn starting(now: Moment, interval: Interval, sequence: u32) -> Self {
        Self { interval, proven: false, next_at: now, sent_at: now, sequence, missing: 0, missing_since: None }
    }

    pub(super) const fn set_interval(&mut self, interval: Interval) {
        self.interval = interval;
    }

    /// They come back.
    pub(super) const fn is_proven(&self) -> bool {
        self.proven
    }

    /// The time between two packets, before jitter.
    pub(super) fn pace(&self) -> Interval {
        if self.proven { self.interval } else { self.interval.max(Interval::SLOW) }
    }

    /// The number of the packet that is due, if one is. Sent with jitter like control packets, which section 6.8.9 allows.
    pub(super) fn due(&mut self, now: Moment, jitter: &mut Jitter) -> Option<u32> {
        if self.next_at > now {
            return None;
        }
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        self.missing = self.missing.saturating_add(1).min(UNDER_WAY_MAX);
        self.missing_since.get_or_insert(now);
        self.sent_at = now;
        self.next_at = now.after(jitter.shorten(self.pace(), NonZeroU8::MAX).duration());
        Some(sequence)
    }

    /// A packet came back: what was sent before it counts as answered. Numbers that are not on their way are ignored.
    pub(super) fn returned(&mut self, sequence: u32, now: Moment, multiplier: NonZeroU8) {
        let newer = self.sequence.wrapping_sub(sequence).wrapping_sub(1);
        if newer >= self.missing {
            return;
        }
        if !self.proven {
            // What takes longer than the detection time would be missed at once.
            if newer > 0 || now.since(self.sent_at) >= self.detection_time(multiplier) {
                return;
            }
            self.proven = true;
            self.next_at = now;
        }
        self.missing = newer;
        self.missing_since = if newer == 0 { None } else { Some(now) };
    }

    /// True when nothing came back for as long as `multiplier` packets take.
    pub(super) fn failed(&self, now: Moment, multiplier: NonZeroU8) -> bool {
        self.fails_at(multiplier).is_some_and(|at| at <= now)
    }

    pub(super) fn next_deadline(&self, multiplier: NonZeroU8) -> Moment {
        self.fails_at(multiplier).map_or(self.next_at, |at| at.min(self.next_at))
    }

    fn fails_at(&self, multiplier: NonZeroU8) -> Option<Moment> {
        let missing_since = self.missing_since.filter(|_| self.proven)?;
        Some(missing_since.after(self.detection_time(multiplier)))
    }

    fn detection_time(&self, multiplier: NonZeroU8) -> Duration {
        self.interval.duration().saturating_mul(u32::from(multiplier.get()))
    }
}
