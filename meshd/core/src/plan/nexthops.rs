//! Ids of our kernel nexthop objects.
//!
//! An id belongs to a (target, slot) as long as the target is wanted, so that a node that changes its address keeps its
//! object and all its routes follow one replacement. After a restart an object the kernel already holds with the wanted
//! content is taken over. An id the kernel still holds is never given to somebody else: routes may refer to it, or the
//! object is not ours.

use std::collections::{BTreeMap, BTreeSet};

use super::ActualNexthop;
use crate::{
    desired::TargetKey,
    id::{NEXTHOP_IDS, NexthopId},
};

/// What an object is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Slot {
    /// The n-th next hop of the target.
    Hop(usize),
    /// The group of all of them.
    Group,
}

#[derive(Debug, Clone, Default)]
pub(super) struct NexthopIds {
    by_target: BTreeMap<TargetKey, BTreeMap<Slot, NexthopId>>,
    owner: BTreeMap<NexthopId, TargetKey>,
    /// Content of the actual objects when an id was last looked for, so that taking over costs one lookup.
    adoptable: BTreeMap<Vec<u8>, BTreeSet<NexthopId>>,
    adoption_done: bool,
    next: u32,
}

impl NexthopIds {
    pub(super) fn get(&self, target: &TargetKey, slot: Slot) -> Option<NexthopId> {
        self.by_target.get(target)?.get(&slot).copied()
    }

    /// The target an id belongs to.
    pub(super) fn target(&self, id: NexthopId) -> Option<&TargetKey> {
        self.owner.get(&id)
    }

    /// The id for a slot: the one it has, one the kernel holds with this content already, or a free one. `None` when the
    /// range is used up.
    pub(super) fn assign(
        &mut self,
        target: &TargetKey,
        slot: Slot,
        content: &ActualNexthop,
        actual: &BTreeMap<NexthopId, ActualNexthop>,
    ) -> Option<NexthopId> {
        if let Some(id) = self.get(target, slot) {
            return Some(id);
        }
        if !self.adoption_done {
            self.adoption_done = true;
            for (id, nexthop) in actual.iter().filter(|(_, nexthop)| **nexthop != ActualNexthop::Foreign) {
                self.adoptable.entry(content_key(nexthop)).or_default().insert(*id);
            }
        }
        let id = self.adopt(content, actual).or_else(|| self.allocate(actual))?;
        self.by_target.entry(target.clone()).or_default().insert(slot, id);
        self.owner.insert(id, target.clone());
        Some(id)
    }

    /// Gives up every id of a target; returns them.
    pub(super) fn release(&mut self, target: &TargetKey) -> Vec<NexthopId> {
        let freed: Vec<NexthopId> = self.by_target.remove(target).into_iter().flat_map(BTreeMap::into_values).collect();
        for id in &freed {
            self.owner.remove(id);
        }
        freed
    }

    /// Gives up the slots a target with `hops` next hops, in a group or not, does not need; returns their ids.
    pub(super) fn shrink(&mut self, target: &TargetKey, hops: usize, grouped: bool) -> Vec<NexthopId> {
        let Some(slots) = self.by_target.get_mut(target) else { return Vec::new() };
        let unneeded = |slot: &Slot| match slot {
            Slot::Hop(n) => *n >= hops,
            Slot::Group => !grouped,
        };
        let gone: Vec<Slot> = slots.keys().filter(|slot| unneeded(slot)).copied().collect();
        let freed: Vec<NexthopId> = gone.iter().filter_map(|slot| slots.remove(slot)).collect();
        for id in &freed {
            self.owner.remove(id);
        }
        freed
    }

    /// Gives up one id, which turned out not to be ours; the next [`Self::assign`] of its slot takes another.
    pub(super) fn give_up(&mut self, id: NexthopId) {
        if let Some(target) = self.owner.remove(&id)
            && let Some(slots) = self.by_target.get_mut(&target)
        {
            slots.retain(|_, slot| *slot != id);
        }
    }

    fn adopt(&mut self, content: &ActualNexthop, actual: &BTreeMap<NexthopId, ActualNexthop>) -> Option<NexthopId> {
        let ids = self.adoptable.get_mut(&content_key(content))?;
        while let Some(id) = ids.pop_first() {
            if !self.owner.contains_key(&id) && actual.get(&id) == Some(content) {
                return Some(id);
            }
        }
        None
    }

    fn allocate(&mut self, actual: &BTreeMap<NexthopId, ActualNexthop>) -> Option<NexthopId> {
        let (first, size) = (*NEXTHOP_IDS.start(), NEXTHOP_IDS.end() - NEXTHOP_IDS.start() + 1);
        for _ in 0..size {
            let id = NexthopId(first + self.next % size);
            self.next = (self.next + 1) % size;
            if !self.owner.contains_key(&id) && !actual.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }
}

fn content_key(nexthop: &ActualNexthop) -> Vec<u8> {
    match nexthop {
        ActualNexthop::Hop(hop) => hop.to_string().into_bytes(),
        ActualNexthop::Group(members) => members
            .iter()
            .flat_map(|member| [member.id.0, u32::from(member.weight)])
            .flat_map(u32::to_be_bytes)
            .collect(),
        ActualNexthop::Irregular => b"?".to_vec(),
        ActualNexthop::Foreign => b"!".to_vec(),
    }
}
