//! Which destinations may be frontends: a filter in front of `services4` and `services6`.
//!
//! A bit for each of 131,072 slots, and all frontends, of both families and scopes, have a slot by their address and port. What it
//! says of a destination may be too much, never too little: most packets are for no service, and find that out by one load. With ten
//! thousand frontends it is mistaken about seven destinations in a hundred, with a hundred thousand about half of them.

use crate::Address;

/// Elements of `frontends`, of 64 slots each.
pub const FRONTEND_WORDS: u32 = 1 << 11;

/// Where the bit of a destination is: the element, below [`FRONTEND_WORDS`], and the bit.
#[must_use]
#[inline(always)]
pub fn frontend_slot<A: Address>(address: &A, port: u16) -> (u32, u64) {
    // The upper bits of a product depend on all bits of both factors.
    let mixed = (u64::from(address.folded()) << 16 | u64::from(port)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 53) as u32, 1 << (mixed >> 47 & 63))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{V4, V6};

    #[test]
    fn slots_are_inside_and_spread() {
        let mut hits = [0_u8; FRONTEND_WORDS as usize];
        let mut taken = [0_u64; FRONTEND_WORDS as usize];
        for number in 0..4_096_u32 {
            let (word, bit) = frontend_slot(&V4::from_octets((0x0a60_0000 + number).to_be_bytes()), 80_u16.to_be());
            hits[word as usize] += 1;
            taken[word as usize] |= bit;
        }
        assert!(hits.iter().all(|hits| *hits < 12));
        let slots: u32 = taken.iter().map(|word| word.count_ones()).sum();
        assert!(slots > 3_900, "{slots}");
        assert!(frontend_slot(&V6::from_octets([0xff; 16]), u16::MAX).0 < FRONTEND_WORDS);
    }
}
