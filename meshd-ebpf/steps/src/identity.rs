//! Lines of identities: where an address of IPv4 is.
//!
//! A hash table of the kernel takes two cache lines for a lookup, a bucket and an element, each on a page of its own. Here an address and
//! what is known of it are in one line with three others ([`meshd_abi::IdentityLine`]), beside the kernel's table, which has all of them. A line
//! says when addresses of it are in that table only (`identity_flags::MORE`).

use meshd_abi::{IDENTITY_WAYS, V4};

use crate::choose::reduce;

/// The line of an address, of so many.
#[must_use]
#[inline(always)]
pub const fn home(address: V4, lines: u32) -> u32 {
    // Neighbors are far apart, as evenly as numbers can be (Fibonacci hashing).
    reduce(u32::from_be(address.0).wrapping_mul(0x9e37_79b1), lines)
}

/// The way of an address in its line, given the addresses that are there; `None`: in none. Without a branch for each, which the
/// verifier would follow to the end of the packet.
#[must_use]
#[inline(always)]
pub const fn way_of(there: [u32; IDENTITY_WAYS], address: V4) -> Option<usize> {
    let [a, b, c, d] = [
        differ(there[0], address.0),
        differ(there[1], address.0),
        differ(there[2], address.0),
        differ(there[3], address.0),
    ];
    let way = a + (a & b) + (a & b & c) + (a & b & c & d);
    if way < IDENTITY_WAYS as u64 { Some(way as usize) } else { None }
}

/// 0 for the same, otherwise 1.
#[inline(always)]
const fn differ(one: u32, other: u32) -> u64 {
    // What is not 0 has a bit above all others when 0 is taken from it as if it were longer.
    ((one ^ other) as u64).wrapping_neg() >> 63
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn an_address_is_found_in_the_way_where_it_is() {
        let there = [7, u32::MAX, 0x8000_0000, 1];
        for (way, address) in there.into_iter().enumerate() {
            assert_eq!(way_of(there, V4(address)), Some(way));
        }
        for absent in [0, 2, 6, 0x7fff_ffff, 0x8000_0001] {
            assert_eq!(way_of(there, V4(absent)), None);
        }
        assert_eq!(way_of([5; 4], V4(5)), Some(0), "the first");
    }

    #[test]
    fn neighbors_are_spread_evenly() {
        for (lines, counts_of) in [(1, 65_536..=65_536), (3, 21_840..=21_850), (16_384, 3..=6), (131_072, 0..=2)] {
            let mut counts = std::vec![0; lines as usize];
            for address in 0x0a00_0000..0x0a00_0000 + 65_536_u32 {
                counts[home(V4(address.to_be()), lines) as usize] += 1;
            }
            assert!(counts.iter().all(|count| counts_of.contains(count)), "{lines}");
        }
    }
}
