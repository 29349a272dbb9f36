//! Growing pauses with jitter, from a seed.

use std::time::Duration;

/// Doublings after which the pause no longer grows.
const DOUBLINGS_MAX: u32 = 16;

/// Pauses that double from `min` to `max`, each between half and all of its nominal length, so that many readers that
/// lost the same store do not come back at once.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    tries: u32,
    state: u64,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, tries: 0, state: seed }
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        let nominal = self.min.saturating_mul(1 << self.tries.min(DOUBLINGS_MAX)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        let half = nominal / 2;
        half + half.mul_f64(self.fraction())
    }

    /// The next pause is the shortest again.
    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }

    /// SplitMix64, as a number from 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        f64::from((z >> 32) as u32) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds_and_start_again() {
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(30));
        let mut backoff = Backoff::new(min, max, 7);
        let mut nominal = min;
        for _ in 0..40 {
            let pause = backoff.next();
            assert!(pause >= nominal / 2 && pause <= nominal, "{pause:?} for {nominal:?}");
            nominal = (nominal * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.next() <= min);
    }

    #[test]
    fn another_seed_gives_other_pauses() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30), seed);
            (0..4).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
    }
}
