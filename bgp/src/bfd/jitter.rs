//! Random numbers from a seed: where a session's intervals vary (RFC 5880 section 6.8.7).
//!
//! Systems that were started together would otherwise send together for ever. The numbers need to differ between sessions,
//! not to be secret, so that a counter put through a mixing function is enough.

use std::num::NonZeroU8;

use super::packet::Interval;

/// The numbers of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (SplitMix64).
    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// An interval shortened by up to a quarter. With a multiplier of 1 one packet is all that the other side waits for:
    /// then it is shortened by at least a tenth, so that it arrives before the detection time ends.
    pub(super) fn shorten(&mut self, interval: Interval, multiplier: NonZeroU8) -> Interval {
        let whole = u64::from(interval.0);
        let least = if multiplier.get() == 1 { whole.div_ceil(10) } else { 0 };
        let most = whole / 4;
        let by = if most > least { least + self.next() % (most - least + 1) } else { least };
        Interval(interval.0.saturating_sub(u32::try_from(by).unwrap_or(interval.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_shortened_within_their_bounds() {
        let mut jitter = Jitter::seeded(1);
        for (multiplier, bounds) in [(3, 75_000..=100_000), (1, 75_000..=90_000)] {
            let multiplier = NonZeroU8::new(multiplier).expect("not zero");
            let drawn: Vec<u32> =
                (0..1_000).map(|_| jitter.shorten(Interval::from_millis(100), multiplier).0).collect();
            assert!(drawn.iter().all(|interval| bounds.contains(interval)), "{drawn:?}");
            let (shortest, longest) = (drawn.iter().min().expect("some"), drawn.iter().max().expect("some"));
            let spread = bounds.end() - bounds.start();
            assert!(longest - shortest > spread * 9 / 10, "{shortest} to {longest} uses little of {bounds:?}");
        }
        for tiny in 0..20 {
            assert!(jitter.shorten(Interval(tiny), NonZeroU8::MIN).0 <= tiny);
        }
    }
}
