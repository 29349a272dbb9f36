//! Waiting after failures, and the small random variation of every timer.

use std::time::Duration;

use crate::id::Moment;

/// How long to stay idle after a failure (`DampPeerOscillations` of RFC 4271 section 8.1.1).
///
/// The first failure after a quiet time costs nothing: most sessions end because the peer restarts, and it is back at once.
/// Each further one doubles the wait, and each `forget` that passes takes one failure off again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DampingConfig {
    /// Double the wait with each failure. Without it every failure costs `initial`.
    pub enabled: bool,
    /// The wait after the second failure.
    pub initial: Duration,
    /// The longest wait.
    pub maximum: Duration,
    /// One failure is forgotten in this time.
    pub forget: Duration,
}

impl Default for DampingConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            initial: Duration::from_secs(1),
            maximum: Duration::from_secs(120),
            forget: Duration::from_secs(60),
        }
    }
}

/// Failures of one peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Damping {
    failures: u32,
    last: Moment,
}

impl Damping {
    /// Counts a failure and says how long to stay idle.
    pub(super) fn fail(&mut self, now: Moment, config: &DampingConfig) -> Duration {
        if !config.enabled {
            return config.initial;
        }
        let forgotten = now.since(self.last).as_micros().checked_div(config.forget.as_micros()).unwrap_or(u128::MAX);
        let before = self.failures.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        self.failures = before.saturating_add(1);
        self.last = now;
        match before.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => config.initial.saturating_mul(1 << doublings.min(30)).min(config.maximum),
        }
    }

    /// Forgets everything: somebody asked for a start.
    pub(super) fn forgive(&mut self) {
        *self = Self::default();
    }

    /// Failures that count now.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }
}

/// A stream of numbers from a seed, to keep the timers of many peers from running in step (RFC 4271 section 10).
#[derive(Clone, Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Three to four quarters of `duration`, evenly distributed.
    pub(super) fn apply(&mut self, duration: Duration) -> Duration {
        // SplitMix64: any seed is good, also 0.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let variable = micros / 4;
        let part = u64::try_from((u128::from(mixed) * (u128::from(variable) + 1)) >> 64).unwrap_or(variable);
        Duration::from_micros(micros - variable + part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_the_maximum_and_are_forgotten() {
        let config = DampingConfig::default();
        let mut damping = Damping::default();
        let now = Moment::default().after(SECOND * 1_000);
        let waits: Vec<u64> = (0..10).map(|_| damping.fail(now, &config).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 120, 120]);
        assert_eq!(damping.failures(), 10);
        // Seven minutes take seven of the ten failures off.
        assert_eq!(damping.fail(now.after(SECOND * 420), &config), SECOND * 4);
        assert_eq!(damping.fail(now.after(SECOND * 4_000), &config), Duration::ZERO);
        damping.fail(now.after(SECOND * 4_000), &config);
        damping.forgive();
        assert_eq!(damping.fail(now.after(SECOND * 4_000), &config), Duration::ZERO);
    }

    #[test]
    fn without_damping_each_failure_costs_the_same() {
        let config = DampingConfig { enabled: false, ..DampingConfig::default() };
        let mut damping = Damping::default();
        assert_eq!([0, 0, 0].map(|_: i32| damping.fail(Moment(5), &config)), [SECOND; 3]);
    }

    #[test]
    fn a_forget_time_of_zero_forgets_at_once() {
        let config = DampingConfig { forget: Duration::ZERO, ..DampingConfig::default() };
        let mut damping = Damping::default();
        assert_eq!([0, 0].map(|_: i32| damping.fail(Moment(5), &config)), [Duration::ZERO; 2]);
    }

    #[test]
    fn jitter_stays_in_its_quarter_and_uses_all_of_it() {
        for seed in [0, 1, u64::MAX] {
            let mut jitter = Jitter::new(seed);
            let values: Vec<u128> = (0..1_000).map(|_| jitter.apply(SECOND * 4).as_micros()).collect();
            assert!(values.iter().all(|value| (3_000_000..=4_000_000).contains(value)));
            assert!(values.iter().any(|value| *value < 3_050_000) && values.iter().any(|value| *value > 3_950_000));
        }
        let mut jitter = Jitter::new(1);
        assert_eq!(jitter.apply(Duration::ZERO), Duration::ZERO);
        assert!(jitter.apply(Duration::MAX) > SECOND);
    }
}
