//! Choices by hash, the same on every node with the same seed.

use meshd_abi::{Address, MAGLEV_CHUNK, MAGLEV_CHUNK_BITS};

/// The hash of a flow as services see it: who asks, from which port, for which port. The address of the frontend is left out, so that
/// nodes that announce the service under addresses of their own agree.
#[must_use]
#[inline(always)]
pub fn flow_hash<A: Address>(seed: u32, client: &A, client_port: u16, port: u16, protocol: u8) -> u32 {
    let ports = (client_port as u32) << 16 | port as u32;
    mix((client.folded() as u64) << 32 | ports as u64, seed ^ (protocol as u32) << 24)
}

/// The hash of a client for services that keep all its connections together.
#[must_use]
#[inline(always)]
pub fn client_hash<A: Address>(seed: u32, client: &A) -> u32 {
    mix((client.folded() as u64) << 32, seed)
}

/// Mixes 64 bits so that every bit of the result depends on all of them (the finaliser of splitmix64).
#[must_use]
#[inline(always)]
pub const fn mix(value: u64, seed: u32) -> u32 {
    let mut x = value ^ (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 32) as u32
}

/// Ports that are tried for a translated source, in a sequence that differs from flow to flow.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    state: u64,
    tries: u32,
}

impl Ports {
    /// Those of a flow: its client, that one's port, and the port it asked.
    #[must_use]
    #[inline(always)]
    pub fn of<A: Address>(client: &A, client_port: u16, port: u16) -> Self {
        let ports = u64::from(client_port) << 16 | u64::from(port);
        Self { state: u64::from(client.folded()) << 32 | ports, tries: 0 }
    }

    /// The next one, network byte order, of `count` from `first` on, which is host byte order.
    #[must_use]
    #[inline(always)]
    pub const fn next(&mut self, first: u16, count: u16) -> u16 {
        let hash = mix(self.state, self.tries);
        self.state = self.state.rotate_left(17) ^ hash as u64;
        self.tries += 1;
        first.wrapping_add(reduce(hash, count as u32) as u16).to_be()
    }
}

/// A number below `count` from a hash, each equally often (multiply and shift).
#[must_use]
#[inline(always)]
pub const fn reduce(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

/// Chunk and index in it of a slot of a Maglev table. The index is below [`MAGLEV_CHUNK`] whatever the slot.
#[must_use]
#[inline(always)]
pub const fn chunk_of(slot: u32) -> (u32, usize) {
    (slot >> MAGLEV_CHUNK_BITS, slot as usize & (MAGLEV_CHUNK - 1))
}

#[cfg(test)]
mod tests {
    use meshd_abi::{V4, V6};

    use super::*;

    #[test]
    fn the_hash_is_a_contract_between_nodes() {
        // Another value here means that nodes of two versions send the same flow to different backends.
        let client = V4::from_octets([192, 0, 2, 7]);
        assert_eq!(flow_hash(7606, &client, 40_000u16.to_be(), 80u16.to_be(), 6), FIXED);
    }
    const FIXED: u32 = 1_280_592_688;

    #[test]
    fn ports_are_of_the_range_and_differ() {
        let client = V4::from_octets([192, 0, 2, 7]);
        let mut ports = Ports::of(&client, 40_000_u16.to_be(), 80_u16.to_be());
        let first: [u16; 4] = core::array::from_fn(|_| u16::from_be(ports.next(32_768, 28_000)));
        assert!(first.iter().all(|port| (32_768..60_768).contains(port)), "{first:?}");
        assert!(first.windows(2).all(|two| two[0] != two[1]), "{first:?}");
        let mut others = Ports::of(&client, 40_001_u16.to_be(), 80_u16.to_be());
        assert_ne!(u16::from_be(others.next(32_768, 28_000)), first[0]);
    }

    #[test]
    fn reduction_stays_below_the_count_and_is_even() {
        let mut hits = [0u32; 10];
        for port in 0..20_000u16 {
            let hash = flow_hash(1, &V6::from_octets([7; 16]), port, 443, 17);
            hits[reduce(hash, 10) as usize] += 1;
        }
        assert!(hits.iter().all(|hits| (1_800..2_200).contains(hits)), "{hits:?}");
        assert_eq!(reduce(u32::MAX, 65_521), 65_520);
        assert_eq!(chunk_of(65_520), (3, 65_520 - 3 * 16_384));
    }
}
