//! Internet checksums changed by what changed (RFC 1624).

/// What a change of some words does to a one's complement sum. Sums are kept in the byte order of the machine: the sum of
/// swapped words is the swapped sum (RFC 1071 section 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u32);

impl Difference {
    /// Adds the replacement of one 16-bit word, both as they lie in the packet.
    #[must_use]
    #[inline(always)]
    pub const fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u32 + new as u32)
    }

    /// Adds the replacement of 32 bits.
    #[must_use]
    #[inline(always)]
    pub const fn double(self, old: u32, new: u32) -> Self {
        let old = !old;
        Self(self.0 + (old & 0xffff) + (old >> 16) + (new & 0xffff) + (new >> 16))
    }

    /// Adds the replacement of an address as [`meshd_abi::Address::words`] gives it.
    #[must_use]
    #[inline(always)]
    pub fn address<A: meshd_abi::Address>(self, old: &A, new: &A) -> Self {
        let (old, new): (*const A, *const A) = (old, new);
        let (old, new) = (old.cast::<u32>(), new.cast::<u32>());
        let words = size_of::<A>() / size_of::<u32>();
        let mut sum = self;
        let mut at = 0;
        while at < words {
            // SAFETY: an address is an array of that many words. The reads are volatile so that they stay where they are.
            let (old, new) = unsafe { (old.add(at).read_volatile(), new.add(at).read_volatile()) };
            sum = sum.double(old, new);
            // The compiler would read all sixteen words of two addresses first and sum them up later, and the stack of a program
            // has no room for them.
            if words > 1 {
                sum = Self(core::hint::black_box(sum.0));
            }
            at += 1;
        }
        sum
    }

    /// Adds another difference.
    #[must_use]
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// True when nothing was replaced.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The difference as helpers take it (`to` of `bpf_l4_csum_replace` with `from` 0 and size 0).
    #[must_use]
    #[inline(always)]
    pub const fn helper_value(self) -> u64 {
        self.0 as u64
    }

    /// The checksum field after the change.
    #[must_use]
    #[inline(always)]
    pub const fn apply(self, field: u16) -> u16 {
        !fold(self.0 + (!field) as u32)
    }
}

/// Folds the carries of a sum of 16-bit words into 16 bits.
#[must_use]
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, word by word over everything.
    fn whole(words: &[u16]) -> u16 {
        let sum = words.iter().fold(0u64, |sum, word| sum + u64::from(*word));
        let mut sum = sum;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn a_changed_sum_is_the_sum_of_what_changed(
            mut words in prop::collection::vec(any::<u16>(), 4..40),
            at in any::<prop::sample::Index>(),
            new in any::<u32>(),
        ) {
            // All words zero has no sum of its own: RFC 1624 section 3.
            words.push(1);
            let before = whole(&words);
            let at = at.index(words.len() - 2);
            let mut after: Vec<u16> = words.clone();
            let halves = [(new & 0xffff) as u16, (new >> 16) as u16];
            after[at] = halves[0];
            after[at + 1] = halves[1];
            prop_assume!(after.iter().any(|word| *word != 0));
            let old = u32::from(words[at]) | u32::from(words[at + 1]) << 16;
            prop_assert_eq!(Difference::default().double(old, new).apply(before), whole(&after));
            let by_words = Difference::default().word(words[at], halves[0]).word(words[at + 1], halves[1]);
            prop_assert_eq!(by_words.apply(before), whole(&after));
        }
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: old header checksum 0xDD2F, a field changes from 0x5555 to 0x3285.
        assert_eq!(Difference::default().word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }
}
