//! Numbers for labels.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use super::{Actual, Held};
use crate::{id::NumericIdentity, observed::Labels};

/// A number to create in the store for labels, unless somebody is faster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The labels.
    pub labels: Labels,
    /// The number.
    pub id: NumericIdentity,
}

/// Which number our workloads' labels have.
///
/// The first candidate is a hash of the labels, so that nodes that do not know of each other choose the same number
/// for the same labels; a number that other labels have is probed past. The map survives restarts: labels keep their
/// number even when the store forgot it.
#[derive(Debug, Clone)]
pub struct Allocator {
    range: RangeInclusive<u32>,
    known: BTreeMap<Labels, NumericIdentity>,
}

impl Allocator {
    /// An allocator for the numbers in `range`, with what was known before; numbers outside are forgotten (the cluster
    /// id changed).
    #[must_use]
    pub fn new(range: RangeInclusive<u32>, known: BTreeMap<Labels, NumericIdentity>) -> Self {
        let known = known.into_iter().filter(|(_, id)| range.contains(&id.0)).collect();
        Self { range, known }
    }

    /// Labels and their numbers.
    #[must_use]
    pub fn known(&self) -> &BTreeMap<Labels, NumericIdentity> {
        &self.known
    }

    /// The number of labels, with the store or without.
    #[must_use]
    pub fn number(&self, labels: &Labels) -> Option<NumericIdentity> {
        self.known.get(labels).copied()
    }

    /// The number of labels, if the store holds it for exactly these labels.
    #[must_use]
    pub fn confirmed(&self, labels: &Labels, actual: &Actual) -> Option<NumericIdentity> {
        self.number(labels).filter(|id| actual.identities.get(id).is_some_and(|held| is_of(held, labels)))
    }

    /// Compares what is known and wanted with the store: adopts numbers others created, gives up numbers other labels
    /// have taken, and says which numbers to create.
    pub fn settle(&mut self, wanted: &BTreeSet<Labels>, actual: &Actual) -> Vec<Claim> {
        self.known.retain(|labels, id| actual.identities.get(id).is_none_or(|held| is_of(held, labels)));
        let mut claims: Vec<Claim> = Vec::new();
        for labels in wanted {
            if let Some(id) = self.number(labels) {
                if !actual.identities.contains_key(&id) {
                    claims.push(Claim { labels: labels.clone(), id });
                }
                continue;
            }
            let there = actual
                .identities
                .iter()
                .find(|(id, held)| self.range.contains(&id.0) && is_of(held, labels))
                .map(|(id, _)| *id);
            if let Some(id) = there {
                self.known.insert(labels.clone(), id);
                continue;
            }
            let taken: BTreeSet<NumericIdentity> =
                self.known.values().copied().chain(claims.iter().map(|claim| claim.id)).collect();
            let free = self.candidates(labels).find(|id| !taken.contains(id) && !actual.identities.contains_key(id));
            claims.extend(free.map(|id| Claim { labels: labels.clone(), id }));
        }
        claims
    }

    /// The store created the claimed number, or held it for these labels already.
    pub fn claimed(&mut self, claim: &Claim) {
        self.known.insert(claim.labels.clone(), claim.id);
    }

    /// Every number of the range, beginning with the one the labels hash to.
    fn candidates(&self, labels: &Labels) -> impl Iterator<Item = NumericIdentity> {
        let low = *self.range.start();
        let size = u64::from(self.range.end() - low) + 1;
        let first = hash(labels.0.as_bytes()) % size;
        // The remainder is below `size`, which fits.
        (0..size).map(move |n| NumericIdentity(low + ((first + n) % size) as u32))
    }
}

fn is_of(held: &Held, labels: &Labels) -> bool {
    *held.value == *labels.0.as_bytes()
}

/// FNV-1a, 64 bit, with the halves folded so that the low bits depend on everything. The value is part of what nodes
/// agree on: it must never change.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        state ^= u64::from(*byte);
        state = state.wrapping_mul(0x0100_0000_01b3);
    }
    state ^ (state >> 32)
}
