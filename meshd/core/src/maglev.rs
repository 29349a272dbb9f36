//! Which backend is in which slot: tables after Maglev (Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4).
//!
//! Each backend has a permutation of all slots, given by its address, and they take turns: whoever's turn it is takes the first
//! slot of its permutation that is free. The outcome depends on the set of backends and on nothing else, so that all nodes of the
//! mesh agree, and a backend that goes leaves most slots of the others where they are.
//!
//! The last free slots are what costs: half of all looks at slots are for the last few hundred, each found after walking through
//! thousands that are taken. From [`TAIL`] on the walk is turned around: how many steps away is each free slot in this
//! permutation? That is a multiplication by the inverse of the step, and the table is the same.

use std::net::SocketAddr;

use meshd_abi::MAGLEV_CHUNK;

/// Number of slots of a table, a prime number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slots {
    /// 16,381, enough for 100 backends: one chunk.
    #[default]
    Normal,
    /// 65,521, for more: four chunks.
    Large,
}

impl Slots {
    /// The number.
    #[must_use]
    pub const fn count(self) -> u32 {
        match self {
            Self::Normal => NORMAL,
            Self::Large => LARGE,
        }
    }
}

const NORMAL: u32 = 16_381;
const LARGE: u32 = 65_521;
/// Free slots from which on their distance is computed. At this number both ways cost the same.
const TAIL: usize = 256;

/// The backends of a service that take new connections, and what the table is built from.
#[derive(Clone, Debug)]
pub struct Maglev {
    slots: Slots,
    seed: u32,
    /// In the order of the keys, which is the order of turns.
    seats: Vec<Seat>,
}

/// A backend and its permutation.
#[derive(Clone, Copy, Debug)]
struct Seat {
    key: SocketAddr,
    member: u16,
    weight: u16,
    offset: u16,
    skip: u16,
}

impl Maglev {
    /// No backends yet. All nodes must have the same seed.
    #[must_use]
    pub const fn new(slots: Slots, seed: u32) -> Self {
        Self { slots, seed, seats: Vec::new() }
    }

    /// Adds or replaces a backend. `member` is what its slots hold: its place among the members of the service, which may differ
    /// from node to node. A weight of 0 takes the backend out.
    pub fn put(&mut self, key: SocketAddr, member: u16, weight: u16) {
        if weight == 0 {
            self.remove(&key);
            return;
        }
        match self.seats.binary_search_by_key(&key, |seat| seat.key) {
            Ok(at) => {
                if let Some(seat) = self.seats.get_mut(at) {
                    (seat.member, seat.weight) = (member, weight);
                }
            }
            Err(at) => {
                let (first, second) = hashes(&key, self.seed);
                let slots = u64::from(self.slots.count());
                let offset = (first % slots) as u16;
                let skip = (second % (slots - 1)) as u16 + 1;
                self.seats.insert(at, Seat { key, member, weight, offset, skip });
            }
        }
    }

    /// Removes a backend; false when it was not there.
    pub fn remove(&mut self, key: &SocketAddr) -> bool {
        match self.seats.binary_search_by_key(key, |seat| seat.key) {
            Ok(at) => {
                self.seats.remove(at);
                true
            }
            Err(_) => false,
        }
    }

    /// The table; `None` without any backend.
    #[must_use]
    pub fn table(&self) -> Option<Table> {
        if self.seats.is_empty() {
            return None;
        }
        let count = self.slots.count() as usize;
        let mut slots = vec![0; count.next_multiple_of(MAGLEV_CHUNK)];
        let table = slots.get_mut(..count)?;
        // The number of slots as a constant makes the remainder a multiplication.
        match self.slots {
            Slots::Normal => fill::<NORMAL>(&self.seats, table),
            Slots::Large => fill::<LARGE>(&self.seats, table),
        }
        Some(Table { count, slots })
    }
}

/// A filled table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    count: usize,
    slots: Vec<u16>,
}

impl Table {
    /// What each slot holds.
    #[must_use]
    pub fn slots(&self) -> &[u16] {
        self.slots.get(..self.count).unwrap_or_default()
    }

    /// The same in pieces as the kernel's maps hold it, the last one filled up with zeroes.
    pub fn chunks(&self) -> impl Iterator<Item = &[u16; MAGLEV_CHUNK]> {
        self.slots.as_chunks().0.iter()
    }
}

/// Two independent hashes of a key.
fn hashes(key: &SocketAddr, seed: u32) -> (u64, u64) {
    let bits = match key {
        SocketAddr::V4(key) => u128::from(key.ip().to_bits()),
        SocketAddr::V6(key) => key.ip().to_bits(),
    };
    let rest = u64::from(key.port()) | u64::from(key.is_ipv6()) << 16 | u64::from(seed) << 32;
    let first = mix(mix(mix(rest) ^ (bits >> 64) as u64) ^ bits as u64);
    (first, mix(first ^ 0x9e37_79b9_7f4a_7c15))
}

/// Mixes 64 bits so that every bit of the result depends on all of them (the finaliser of splitmix64).
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A backend while the table is filled.
///
/// Small numbers, because ten thousand of them are walked through a few times.
struct Turn {
    /// The next slot of its permutation.
    at: u16,
    skip: u16,
    weight: u16,
    member: u16,
    /// What it is due, in parts of the largest weight: a whole one is a slot.
    due: u32,
}

/// Fills a table of `M` slots.
fn fill<const M: u32>(seats: &[Seat], table: &mut [u16]) {
    let heaviest = seats.iter().map(|seat| u32::from(seat.weight)).max().unwrap_or(1);
    let turn = |seat: &Seat| {
        let Seat { offset, skip, weight, member, .. } = *seat;
        Turn { at: offset, skip, weight, member, due: 0 }
    };
    let mut turns: Vec<Turn> = seats.iter().map(turn).collect();
    let mut taken = vec![0u64; (M as usize).div_ceil(64)];
    let mut last = Vec::new();
    let mut left = M as usize;
    loop {
        for turn in &mut turns {
            turn.due += u32::from(turn.weight);
            if turn.due < heaviest {
                continue;
            }
            turn.due -= heaviest;
            let slot = if left > TAIL { walk::<M>(turn, &mut taken) } else { nearest::<M>(turn, &mut last) };
            if let Some(entry) = table.get_mut(slot as usize) {
                *entry = turn.member;
            }
            left -= 1;
            if left == TAIL {
                last = free::<M>(&taken);
            }
            if left == 0 {
                return;
            }
        }
    }
}

/// Takes the next free slot of a permutation by looking at one after the other. There must be one.
fn walk<const M: u32>(turn: &mut Turn, taken: &mut [u64]) -> u32 {
    let (mut at, skip) = (u32::from(turn.at), u32::from(turn.skip));
    loop {
        let slot = at;
        at += skip;
        if at >= M {
            at -= M;
        }
        let Some(word) = taken.get_mut((slot / 64) as usize) else { return slot };
        let bit = 1 << (slot % 64);
        if *word & bit == 0 {
            *word |= bit;
            turn.at = at as u16;
            return slot;
        }
    }
}

/// The slots that are free.
fn free<const M: u32>(taken: &[u64]) -> Vec<u32> {
    let is_free = |slot: &u32| taken.get((*slot / 64) as usize).is_some_and(|word| word & 1 << (*slot % 64) == 0);
    (0..M).filter(is_free).collect()
}

/// Takes the next free slot of a permutation by asking each of the last ones how far away it is. There must be one.
fn nearest<const M: u32>(turn: &mut Turn, last: &mut Vec<u32>) -> u32 {
    // Steps from `at` to `slot` are (slot - at) / skip in the field of M elements.
    let (at, skip) = (u32::from(turn.at), u32::from(turn.skip));
    let inverse = inverse::<M>(skip);
    let (mut nearest, mut fewest) = (0, M);
    for (index, slot) in last.iter().enumerate() {
        let steps = (slot + M - at) % M * inverse % M;
        if steps < fewest {
            (nearest, fewest) = (index, steps);
        }
    }
    let slot = last.swap_remove(nearest);
    turn.at = ((slot + skip) % M) as u16;
    slot
}

/// The inverse of a number modulo a prime number below 2^16, by Fermat's little theorem.
const fn inverse<const M: u32>(number: u32) -> u32 {
    let (mut result, mut power, mut exponent) = (1, number, M - 2);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result * power % M;
        }
        power = power * power % M;
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use meshd_abi::V4;
    use meshd_steps::choose::{flow_hash, reduce};
    use proptest::prelude::*;

    use super::*;

    fn key(number: u16) -> SocketAddr {
        let address = Ipv4Addr::from_bits(0x0a01_0000 + u32::from(number));
        SocketAddr::new(address.into(), 8_080)
    }

    fn of(count: u16, slots: Slots) -> Maglev {
        let mut maglev = Maglev::new(slots, 7_606);
        for number in 0..count {
            maglev.put(key(number), number, 1);
        }
        maglev
    }

    fn weighted(weights: &[u16], slots: Slots) -> Table {
        let mut maglev = Maglev::new(slots, 1);
        for (number, weight) in (0..).zip(weights) {
            maglev.put(key(number), number, *weight);
        }
        maglev.table().expect("there are backends")
    }

    fn shares(table: &Table, members: usize) -> Vec<usize> {
        let mut shares = vec![0; members];
        for member in table.slots() {
            shares[usize::from(*member)] += 1;
        }
        shares
    }

    /// Flows of other backends that get another one when one goes, as a part of those flows. A flow is the slot that its hash is
    /// reduced to.
    struct Moved {
        /// On average over which one goes.
        mean: f64,
        /// When it is one of the first ten, at worst.
        first_ten: f64,
        /// Whichever it is, at worst.
        worst: f64,
    }

    fn moved(count: u16, slots: Slots, flows: &[u32]) -> Moved {
        let all = of(count, slots);
        let before = all.table().expect("there are backends");
        let moved = |gone: u16| {
            let mut rest = all.clone();
            assert!(rest.remove(&key(gone)));
            let after = rest.table().expect("there are backends");
            assert!(!after.slots().contains(&gone));
            let (before, after) = (before.slots(), after.slots());
            let (mut others, mut moved) = (0_u32, 0_u32);
            for at in flows.iter().map(|slot| *slot as usize).filter(|at| before[*at] != gone) {
                others += 1;
                moved += u32::from(before[at] != after[at]);
            }
            f64::from(moved) / f64::from(others)
        };
        let all: Vec<f64> = (0..count).map(moved).collect();
        let worst = |parts: &[f64]| parts.iter().copied().fold(0.0, f64::max);
        Moved { mean: all.iter().sum::<f64>() / f64::from(count), first_ten: worst(&all[..10]), worst: worst(&all) }
    }

    /// The slots of flows of many clients, as the programs find them.
    fn flows(count: u32, slots: Slots) -> Vec<u32> {
        let slot = |number: u32| {
            let client = V4::from_octets((0xc633_0000 + number % 251 * 257).to_be_bytes());
            let port = (32_768 + number / 251) as u16;
            reduce(flow_hash(7_606, &client, port.to_be(), 443_u16.to_be(), 6), slots.count())
        };
        (0..count).map(slot).collect()
    }

    /// The paper's pseudo code, one look at a slot after the other.
    fn plainly(maglev: &Maglev) -> Vec<u16> {
        let slots = maglev.slots.count();
        let heaviest = maglev.seats.iter().map(|seat| seat.weight).max().expect("there are backends");
        let mut table = vec![None; slots as usize];
        let mut next = vec![0u64; maglev.seats.len()];
        let mut due = vec![0; maglev.seats.len()];
        let mut left = slots;
        loop {
            for (number, seat) in maglev.seats.iter().enumerate() {
                due[number] += seat.weight;
                if due[number] < heaviest {
                    continue;
                }
                due[number] -= heaviest;
                loop {
                    let slot = (u64::from(seat.offset) + next[number] * u64::from(seat.skip)) % u64::from(slots);
                    next[number] += 1;
                    if table[slot as usize].is_none() {
                        table[slot as usize] = Some(seat.member);
                        break;
                    }
                }
                left -= 1;
                if left == 0 {
                    return table.into_iter().flatten().collect();
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_table_is_the_one_of_the_paper_whatever_the_order_of_changes(
            backends in prop::collection::btree_map(any::<u16>(), (any::<u16>(), 1u16..50), 1..400),
            gone in prop::collection::vec(any::<u16>(), 0..20),
            seed in any::<u32>(),
        ) {
            let mut forward = Maglev::new(Slots::Normal, seed);
            for (number, (member, weight)) in &backends {
                forward.put(key(*number), *member, *weight);
            }
            let mut backward = Maglev::new(Slots::Normal, seed);
            for number in &gone {
                backward.put(key(*number), 1, 1);
            }
            for (number, (member, weight)) in backends.iter().rev() {
                backward.put(key(*number), 0, 77);
                backward.put(key(*number), *member, *weight);
            }
            for number in gone.iter().filter(|number| !backends.contains_key(number)) {
                backward.put(key(*number), 1, 0);
            }
            let table = forward.table().expect("there are backends");
            prop_assert_eq!(table.slots(), plainly(&forward));
            prop_assert_eq!(Some(table), backward.table());
        }
    }

    #[test]
    fn a_backend_that_goes_moves_few_slots_and_flows_of_the_others() {
        for (slots, most) in [(Slots::Normal, 0.015), (Slots::Large, 0.006)] {
            let every: Vec<u32> = (0..slots.count()).collect();
            for (what, flows, exact) in [("slots", every, true), ("flows", flows(100_000, slots), false)] {
                let Moved { mean, first_ten, worst } = moved(100, slots, &flows);
                println!(
                    "moved of {} other {what}: {mean:.4}, {first_ten:.4} of the first ten, {worst:.4} at worst",
                    flows.len()
                );
                assert!(mean < most, "{slots:?}, {what}: {mean}");
                // Flows are drawn: a few hundred of them move, give or take their root.
                assert!(first_ten < most || !exact, "{slots:?}, {what}: {first_ten}");
                // Which one goes is a matter of luck: of these hundred three move more than the average may.
                assert!(worst < most * 1.2, "{slots:?}, {what}: {worst}");
            }
        }
    }

    #[test]
    fn flows_are_spread_by_weight() {
        const FLOWS: u32 = 200_000;
        let weights = [1, 2, 5, 10, 50, 100_u16];
        let sum = weights.map(f64::from).iter().sum::<f64>();
        for slots in [Slots::Normal, Slots::Large] {
            let table = weighted(&weights, slots);
            let mut hits = [0_u32; 6];
            for slot in flows(FLOWS, slots) {
                hits[usize::from(table.slots()[slot as usize])] += 1;
            }
            for (hits, weight) in hits.iter().zip(weights) {
                let part = f64::from(weight) / sum;
                let ideal = f64::from(FLOWS) * part;
                // A hundredth for the table, and six standard deviations of flows that are drawn.
                let most = ideal / 100.0 + 6.0 * (ideal * (1.0 - part)).sqrt();
                assert!((f64::from(*hits) - ideal).abs() <= most, "{slots:?} {weight}: {hits} of {ideal} ± {most}");
            }
        }
    }

    #[test]
    fn shares_follow_weights_within_a_hundredth() {
        let few = [1, 2, 5, 10, 50, 100].to_vec();
        let uneven = (0..100).map(|number| 1 + number * 37 % 1_000).collect();
        for (weights, slots) in [few, uneven, (1..=100).collect(), vec![1_000, 1], vec![1; 100]]
            .iter()
            .flat_map(|weights: &Vec<u16>| [(weights, Slots::Normal), (weights, Slots::Large)])
        {
            let sum = weights.iter().copied().map(f64::from).sum::<f64>();
            let shares = shares(&weighted(weights, slots), weights.len());
            for (share, weight) in shares.iter().zip(weights) {
                let ideal = f64::from(slots.count()) * f64::from(*weight) / sum;
                // Slots are whole: where a hundredth is less than one, one.
                let most = (ideal / 100.0).max(1.0);
                assert!((*share as f64 - ideal).abs() <= most, "{slots:?} {weight} of {sum}: {share}, not {ideal}");
            }
        }
    }

    #[test]
    fn nodes_with_other_numbers_for_members_choose_the_same_backends() {
        let here = of(50, Slots::Normal).table().expect("there are backends");
        let mut other = Maglev::new(Slots::Normal, 7_606);
        for number in (0..50).rev() {
            other.put(key(number), 1_000 - number, 1);
        }
        let there = other.table().expect("there are backends");
        assert!(here.slots().iter().zip(there.slots()).all(|(here, there)| *here == 1_000 - there));
    }

    #[test]
    fn chunks_are_the_slots_and_zeroes() {
        assert_eq!(Maglev::new(Slots::Normal, 1).table(), None);
        for (slots, chunks) in [(Slots::Normal, 1), (Slots::Large, 4)] {
            let mut maglev = Maglev::new(slots, 1);
            maglev.put(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 53), 9, 3);
            let table = maglev.table().expect("there is a backend");
            let all: Vec<u16> = table.chunks().flatten().copied().collect();
            assert_eq!(all.len(), chunks * MAGLEV_CHUNK);
            let (used, rest) = all.split_at(slots.count() as usize);
            assert!(used.iter().all(|slot| *slot == 9) && rest.iter().all(|slot| *slot == 0));
        }
    }

    #[test]
    fn the_table_is_a_contract_between_nodes() {
        // Another value here means that nodes of two versions send the same flow to different backends.
        let table = of(10, Slots::Normal).table().expect("there are backends");
        assert_eq!(table.slots()[..16], [0, 7, 1, 8, 0, 4, 9, 8, 2, 8, 7, 3, 3, 0, 0, 5]);
    }
}
