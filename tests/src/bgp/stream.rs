//! A routing table that looks like the Internet's: prefixes, and sets of attributes that they share.
//!
//! Real tables have about 6 attribute sets for 100 prefixes. Half of the sets have at most 5 prefixes, a tenth more than 24, a
//! hundredth more than 255, and the largest 948; 64 % of the prefixes are /24. Sets carry 0 to 18 communities, some large ones,
//! sometimes a metric or an aggregator. All of it follows from a seed, so two runs send the same octets.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::wire::{self, Attributes, Prefix};

/// Attribute sets for a hundred prefixes.
const SETS_PER_HUNDRED: usize = 6;
/// The largest set.
const SET_MAX: usize = 948;
/// Sizes of sets by quantile: up to this part of the sets, between these sizes.
const SIZES: [(f64, f64, f64); 4] = [(0.5, 1.0, 5.0), (0.9, 5.0, 24.0), (0.99, 24.0, 255.0), (1.0, 255.0, 948.0)];
/// How sizes bend inside such a part; with this the mean is right too.
const BEND: f64 = 1.5;
/// Of a hundred prefixes, so many have this length.
const LENGTHS: [(u32, u8); 9] = [(64, 24), (10, 23), (12, 22), (5, 21), (4, 20), (2, 19), (1, 18), (1, 17), (1, 16)];
/// Prefixes that stay neighbours when the table is mixed, as an operator's prefixes are.
const NEIGHBOURS: usize = 4;
/// Numbers in AS paths; those of the daemon and of our speakers are not among them, because a daemon refuses its own.
const ASN_MIN: u32 = 100_000;
const ASN_MAX: u32 = 400_000;
/// Blocks that are nobody's, as first and last address.
const LEFT_OUT: [(u32, u32); 5] = [
    (0x0a00_0000, 0x0aff_ffff),
    (0x7f00_0000, 0x7fff_ffff),
    (0xa9fe_0000, 0xa9fe_ffff),
    (0xac10_0000, 0xac1f_ffff),
    (0xc0a8_0000, 0xc0a8_ffff),
];

/// Prefixes with one set of attributes.
#[derive(Debug, Clone)]
pub struct Set {
    /// The prefixes.
    pub prefixes: Vec<Prefix>,
    /// What they share.
    pub attributes: Attributes,
}

/// A whole table.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its sets.
    pub sets: Vec<Set>,
}

impl Table {
    /// A table of so many prefixes; `seed` decides about the attributes, the prefixes depend on `count` alone.
    pub fn new(count: usize, seed: u64) -> Self {
        Self::of(&prefixes(count), seed)
    }

    /// These prefixes with other attributes.
    pub fn of(prefixes: &[Prefix], seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut rest = prefixes;
        let mut sets = Vec::new();
        for size in sizes(prefixes.len(), &mut random) {
            let (prefixes, later) = rest.split_at(size.min(rest.len()));
            rest = later;
            sets.push(Set { prefixes: prefixes.to_vec(), attributes: attributes(&mut random) });
        }
        Self { sets }
    }

    /// Every prefix once.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.sets.iter().flat_map(|set| set.prefixes.iter().copied())
    }

    /// The table as messages of a speaker of this number and address.
    pub fn encode(&self, asn: u32, next_hop: std::net::Ipv4Addr) -> Vec<u8> {
        let mut out = Vec::new();
        for set in &self.sets {
            wire::announce(&mut out, &set.attributes, asn, next_hop, &set.prefixes);
        }
        out
    }
}

/// Distinct prefixes, none inside another one, in mixed order.
pub fn prefixes(count: usize) -> Vec<Prefix> {
    let mut random = StdRng::seed_from_u64(count as u64);
    let mut next = 0x0100_0000_u32;
    let mut found = Vec::with_capacity(count);
    while found.len() < count {
        let mut pick = random.random_range(0..100);
        let fits = |(share, length): &(u32, u8)| {
            let here = pick < *share;
            pick = pick.saturating_sub(*share);
            here.then_some(*length)
        };
        let length = LENGTHS.iter().find_map(fits).unwrap_or(24);
        let size = 1_u32 << (32 - u32::from(length));
        let first = next.next_multiple_of(size);
        next = first + size;
        match LEFT_OUT.iter().find(|(low, high)| first <= *high && next > *low) {
            Some((_, high)) => next = high + 1,
            None => found.push(Prefix { address: first, length }),
        }
    }
    let mut runs: Vec<&[Prefix]> = found.chunks(NEIGHBOURS).collect();
    runs.shuffle(&mut random);
    runs.concat()
}

/// Sizes of sets that make up `count` together.
fn sizes(count: usize, random: &mut StdRng) -> Vec<usize> {
    let sets = (count * SETS_PER_HUNDRED).div_ceil(100).max(1);
    let mut sizes: Vec<usize> = (0..sets).map(|_| size(random.random())).collect();
    let mut total: usize = sizes.iter().sum();
    // What is too much or missing goes to the larger ones, one each in turn, so that the small ones keep their shape.
    let mut at = 0;
    while total != count {
        let size = &mut sizes[at % sets];
        let any = at > 1000 * sets;
        if total > count && (*size > 24 || any && *size > 1) {
            *size -= 1;
            total -= 1;
        } else if total < count && ((25..SET_MAX).contains(size) || any) {
            *size += 1;
            total += 1;
        }
        at += 1;
    }
    sizes
}

/// The size of the set at this quantile.
fn size(quantile: f64) -> usize {
    let mut from = 0.0;
    for (to, low, high) in SIZES {
        if quantile < to {
            let part: f64 = (quantile - from) / (to - from);
            let size: f64 = low * f64::powf(high / low, part.powf(BEND));
            return size.round() as usize;
        }
        from = to;
    }
    SET_MAX
}

fn attributes(random: &mut StdRng) -> Attributes {
    let hops = 1 + [1, 2, 2, 3, 3, 3, 4, 4, 5, 7][random.random_range(0..10)];
    let communities = match random.random_range(0..10) {
        0..4 => 0,
        4..8 => random.random_range(1..6),
        _ => random.random_range(6..19),
    };
    let large = if random.random_bool(0.1) { random.random_range(1..5) } else { 0 };
    Attributes {
        origin: if random.random_bool(0.9) { 0 } else { 2 },
        path: (0..hops).map(|_| random.random_range(ASN_MIN..ASN_MAX)).collect(),
        med: random.random_bool(0.2).then(|| random.random_range(0..1000)),
        communities: (0..communities)
            .map(|_| random.random_range(1000..64_000) << 16 | random.random_range(0..5000))
            .collect(),
        large: (0..large)
            .map(|_| [random.random_range(1000..400_000), random.random_range(0..10), random.random_range(0..5000)])
            .collect(),
        aggregator: random.random_bool(0.08).then(|| (random.random_range(1000..400_000), random.random())),
        atomic: random.random_bool(0.05),
    }
}
