//! How large a packet arrives?
//!
//! A path may take small packets and lose large ones without a word (a black hole). Now and then a packet of the full size is tried; when
//! three in a row get lost while small ones arrive, the size is narrowed to one that every path takes at once, and then the
//! largest one that arrives is searched for.

use std::time::Duration;

/// What every path takes (RFC 8200).
pub const SIZE_MIN: u16 = 1_280;
/// How often the size in use is tried.
const CHECK: Duration = Duration::from_secs(5);
/// How often the full size is tried while a smaller one is in use.
const RETRY: Duration = Duration::from_secs(60);
/// Losses in a row that mean something.
const LOSSES: u8 = 3;
/// The search ends within so many octets.
const STEP: u16 = 8;

/// Another size from now on; the full one when `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeStep(pub Option<u16>);

/// The size of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeProbe {
    full: u16,
    known: u16,
    /// Too large, while it is searched for.
    above: Option<u16>,
    lost: u8,
    check_at: Duration,
    retry_at: Duration,
    waiting: bool,
}

impl SizeProbe {
    /// A path whose links take `full` octets.
    #[must_use]
    pub fn new(full: u16) -> Self {
        let full = full.max(SIZE_MIN);
        let zero = Duration::ZERO;
        Self { full, known: full, above: None, lost: 0, check_at: zero, retry_at: zero, waiting: false }
    }

    /// The links take another size.
    pub fn set_full(&mut self, full: u16) {
        if full.max(SIZE_MIN) != self.full {
            *self = Self::new(full);
        }
    }

    /// The size that arrives, when it is smaller than the links say.
    #[must_use]
    pub fn narrowed(&self) -> Option<u16> {
        (self.known < self.full).then_some(self.known)
    }

    /// The size to try now, if one is due.
    pub fn next(&mut self, now: Duration) -> Option<u16> {
        if self.waiting || self.full <= SIZE_MIN {
            return None;
        }
        let size = if let Some(above) = self.above {
            self.known + (above - self.known) / 2
        } else if self.known < self.full && now >= self.retry_at {
            self.retry_at = now + RETRY;
            self.full
        } else if self.lost > 0 || now >= self.check_at {
            self.check_at = now + CHECK;
            self.known
        } else {
            return None;
        };
        self.waiting = true;
        Some(size)
    }

    /// What became of a try. `small_arrives` tells whether small packets do: without them a loss says nothing about the size.
    pub fn take(&mut self, size: u16, answered: bool, small_arrives: bool, now: Duration) -> Option<SizeStep> {
        self.waiting = false;
        if answered {
            self.lost = 0;
            if size >= self.full && self.known < self.full {
                (self.known, self.above) = (self.full, None);
                return Some(SizeStep(None));
            }
            if self.above.is_some() && size > self.known {
                self.known = size;
                return self.end_search(now);
            }
            return None;
        }
        // A try of the full size while a smaller one is in use costs nothing.
        if !small_arrives || (self.above.is_none() && size > self.known) {
            return None;
        }
        self.lost += 1;
        if self.above.is_some() {
            if self.lost < LOSSES - 1 {
                return None;
            }
            self.lost = 0;
            self.above = Some(size);
            return self.end_search(now);
        }
        if self.lost < LOSSES || size <= SIZE_MIN {
            return None;
        }
        (self.lost, self.above, self.known) = (0, Some(size), SIZE_MIN);
        Some(SizeStep(Some(SIZE_MIN)))
    }

    fn end_search(&mut self, now: Duration) -> Option<SizeStep> {
        let above = self.above?;
        if above - self.known > STEP {
            return None;
        }
        self.above = None;
        (self.check_at, self.retry_at) = (now + CHECK, now + RETRY);
        Some(SizeStep(Some(self.known)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs for `seconds` over a path that takes `most` octets; what changed, and when.
    fn run(probe: &mut SizeProbe, now: &mut Duration, seconds: u64, most: u16) -> Vec<Option<u16>> {
        let end = *now + Duration::from_secs(seconds);
        let mut steps = Vec::new();
        while *now < end {
            *now += Duration::from_millis(200);
            if let Some(size) = probe.next(*now) {
                steps.extend(probe.take(size, size <= most, true, *now).map(|SizeStep(size)| size));
            }
        }
        steps
    }

    #[test]
    fn a_black_hole_is_found_and_left_again() {
        let (mut probe, mut now) = (SizeProbe::new(1500), Duration::ZERO);
        assert_eq!(run(&mut probe, &mut now, 30, 1500), []);
        let steps = run(&mut probe, &mut now, 15, 1400);
        assert_eq!(steps.len(), 2);
        assert_eq!(steps[0], Some(SIZE_MIN), "at once");
        let found = probe.narrowed().unwrap();
        assert!((1400 - STEP..=1400).contains(&found), "{found}");
        assert_eq!(run(&mut probe, &mut now, 50, 1400), []);
        assert_eq!(run(&mut probe, &mut now, 70, 1500), [None], "the full size is tried again");
    }

    #[test]
    fn a_path_that_takes_nothing_says_nothing_about_sizes() {
        let mut probe = SizeProbe::new(1500);
        for second in 0..100 {
            let now = Duration::from_secs(second);
            if let Some(size) = probe.next(now) {
                assert_eq!(probe.take(size, false, false, now), None);
            }
        }
        assert_eq!(probe.narrowed(), None);
    }

    proptest! {
        #[test]
        fn the_size_found_arrives_and_hardly_more_does(full in 1280u16..9000, most in 1280u16..9000) {
            let (mut probe, mut now) = (SizeProbe::new(full), Duration::ZERO);
            run(&mut probe, &mut now, 60, most);
            let found = probe.narrowed().unwrap_or(full);
            prop_assert!(found <= most, "{found} of {most}");
            prop_assert!(found + STEP >= most.min(full), "{found} of {most}");
        }
    }
}
