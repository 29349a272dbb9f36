//! Attribute sets, each kept once.
//!
//! A full table has about one set of attributes for seventeen prefixes, so a path holds a number of four octets and the
//! set is here: its canonical octets, its next hop, and a [`View`] of what best path selection asks for. Sets are counted;
//! the last path that lets go frees the set at once, and its number is used again.

use std::hash::{BuildHasher as _, Hasher as _};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::{
    chunked::{Linked, NONE, Slab},
    next_hops::{NextHopId, NextHops},
};
use crate::{
    id::{Asn, RouterId},
    wire::attributes::{Attributes, Origin, code},
};

/// Well-known communities this room acts on.
pub(super) mod community {
    /// RFC 9494.
    pub(crate) const LLGR_STALE: u32 = 0xffff_0006;
    /// RFC 9494.
    pub(crate) const NO_LLGR: u32 = 0xffff_0007;
    /// RFC 1997.
    pub(crate) const NO_EXPORT: u32 = 0xffff_ff01;
    /// RFC 1997.
    pub(crate) const NO_ADVERTISE: u32 = 0xffff_ff02;
    /// RFC 1997.
    pub(crate) const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;
}

/// A set of attributes in [`AttributeSets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AttrId(pub(super) u32);

impl AttrId {
    pub(super) const NONE: Self = Self(NONE);
}

/// Bits of [`View::flags`].
pub(super) mod has {
    pub(crate) const NO_EXPORT: u8 = 1;
    pub(crate) const NO_ADVERTISE: u8 = 2;
    pub(crate) const NO_EXPORT_SUBCONFED: u8 = 4;
    pub(crate) const LLGR_STALE: u8 = 8;
    pub(crate) const NO_LLGR: u8 = 16;
    pub(crate) const OTC: u8 = 32;
    pub(crate) const MED: u8 = 64;
    pub(crate) const ORIGINATOR: u8 = 128;
}

/// What best path selection asks for, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// LOCAL_PREF or the default.
    pub(super) local_pref: u32,
    /// 0 when there is none.
    pub(super) med: u32,
    /// The AS it came from; 0 when the path is empty or begins with a set.
    pub(super) neighbor: Asn,
    /// Meaningful with [`has::ORIGINATOR`].
    pub(super) originator: RouterId,
    pub(super) hops: u16,
    pub(super) clusters: u8,
    pub(super) origin: Origin,
    pub(super) flags: u8,
}

impl View {
    fn of(attributes: Attributes<'_>, local_pref_default: u32) -> Self {
        let path = attributes.as_path();
        let mut view = Self {
            local_pref: local_pref_default,
            med: 0,
            neighbor: path.neighbor().unwrap_or(Asn(0)),
            originator: RouterId(0),
            hops: u16::try_from(path.hops()).unwrap_or(u16::MAX),
            clusters: 0,
            origin: attributes.origin(),
            flags: 0,
        };
        for attribute in attributes.iter() {
            let number = || attribute.value.first_chunk().map_or(0, |octets| u32::from_be_bytes(*octets));
            match attribute.code {
                code::MED => {
                    view.med = number();
                    view.flags |= has::MED;
                }
                code::LOCAL_PREF => view.local_pref = number(),
                code::ORIGINATOR_ID => {
                    view.originator = RouterId(number());
                    view.flags |= has::ORIGINATOR;
                }
                code::CLUSTER_LIST => view.clusters = u8::try_from(attribute.value.len() / 4).unwrap_or(u8::MAX),
                code::OTC => view.flags |= has::OTC,
                code::COMMUNITIES => view.flags |= flags_of_communities(attribute.value),
                _ => {}
            }
        }
        view
    }

    pub(super) const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

fn flags_of_communities(value: &[u8]) -> u8 {
    let mut flags = 0;
    for octets in value.as_chunks::<4>().0 {
        flags |= match u32::from_be_bytes(*octets) {
            community::NO_EXPORT => has::NO_EXPORT,
            community::NO_ADVERTISE => has::NO_ADVERTISE,
            community::NO_EXPORT_SUBCONFED => has::NO_EXPORT_SUBCONFED,
            community::LLGR_STALE => has::LLGR_STALE,
            community::NO_LLGR => has::NO_LLGR,
            _ => 0,
        };
    }
    flags
}

#[derive(Debug)]
struct Slot {
    octets: Box<[u8]>,
    view: View,
    next_hop: NextHopId,
    hash: u32,
    /// How many hold it; the next free slot while none does.
    references: u32,
    /// Says which of the sets that had this number one after the other this is; 0 for none.
    epoch: u32,
}

impl Linked for Slot {
    fn link(&self) -> u32 {
        self.references
    }

    fn set_link(&mut self, link: u32) {
        self.references = link;
    }
}

#[derive(Debug)]
pub(super) struct AttributeSets {
    slots: Slab<Slot>,
    live: u32,
    octets: usize,
    epochs: u32,
    index: HashTable<u32>,
    hasher: FixedState,
    local_pref_default: u32,
}

impl AttributeSets {
    pub(super) fn new(seed: u64, local_pref_default: u32) -> Self {
        Self {
            slots: Slab::default(),
            live: 0,
            octets: 0,
            epochs: 0,
            index: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            local_pref_default,
        }
    }

    /// The number of this set, which the caller now holds once more and gives back with [`Self::release`].
    pub(super) fn intern(&mut self, octets: &[u8], next_hop: NextHopId, next_hops: &mut NextHops) -> AttrId {
        let hash = self.hash(octets, next_hop);
        let Self { index, slots, .. } = self;
        let equal = |at: &u32| {
            let slot = slots.at(*at);
            slot.hash == hash && slot.next_hop == next_hop && *slot.octets == *octets
        };
        if let Some(&at) = index.find(spread(hash), equal) {
            slots.at_mut(at).references += 1;
            return AttrId(at);
        }
        next_hops.hold(next_hop);
        self.epochs = self.epochs.wrapping_add(1).max(1);
        let slot = Slot {
            octets: octets.into(),
            view: View::of(Attributes(octets), self.local_pref_default),
            next_hop,
            hash,
            references: 1,
            epoch: self.epochs,
        };
        let at = self.slots.insert(slot);
        self.live += 1;
        self.octets += octets.len();
        let Self { index, slots, .. } = self;
        index.insert_unique(spread(hash), at, |at| spread(slots.at(*at).hash));
        AttrId(at)
    }

    /// Reads sets that will be needed, all at once; see [`super::table::Table::read_ahead`].
    pub(super) fn read_ahead<const N: usize>(&self, ids: [Option<AttrId>; N]) {
        for id in ids.into_iter().flatten() {
            std::hint::black_box(self.slots.get(id.0).map(|slot| slot.references));
        }
    }

    #[inline]
    pub(super) fn hold(&mut self, id: AttrId) {
        self.slots.at_mut(id.0).references += 1;
    }

    #[inline]
    pub(super) fn release(&mut self, id: AttrId, next_hops: &mut NextHops) {
        let slot = self.slots.at_mut(id.0);
        slot.references -= 1;
        if slot.references == 0 {
            self.remove(id, next_hops);
        }
    }

    fn remove(&mut self, id: AttrId, next_hops: &mut NextHops) {
        let slot = self.slots.at_mut(id.0);
        slot.epoch = 0;
        let octets = std::mem::take(&mut slot.octets);
        let (hash, next_hop) = (slot.hash, slot.next_hop);
        self.live -= 1;
        self.octets -= octets.len();
        if let Ok(found) = self.index.find_entry(spread(hash), |at| *at == id.0) {
            found.remove();
        }
        self.slots.remove(id.0);
        if self.index.capacity() / INDEX_SPARE_MAX > self.index.len() {
            let Self { index, slots, .. } = self;
            index.shrink_to(index.len() * 2, |at| spread(slots.at(*at).hash));
        }
        next_hops.release(next_hop);
    }

    pub(super) fn octets(&self, id: AttrId) -> &[u8] {
        &self.slots.at(id.0).octets
    }

    pub(super) fn attributes(&self, id: AttrId) -> Attributes<'_> {
        Attributes(self.octets(id))
    }

    #[inline]
    pub(super) fn view(&self, id: AttrId) -> &View {
        &self.slots.at(id.0).view
    }

    #[inline]
    pub(super) fn next_hop(&self, id: AttrId) -> NextHopId {
        self.slots.at(id.0).next_hop
    }

    /// With its number the name of a set for all time.
    #[inline]
    pub(super) fn epoch(&self, id: AttrId) -> u32 {
        self.slots.at(id.0).epoch
    }

    /// Is this number still that of the set it had in this epoch?
    #[inline]
    pub(super) fn is_of_epoch(&self, id: AttrId, epoch: u32) -> bool {
        self.slots.get(id.0).is_some_and(|slot| slot.epoch == epoch)
    }

    /// One more than the highest number of a set, or somewhat more.
    pub(super) fn end(&self) -> u32 {
        self.slots.end()
    }

    /// Sets in use.
    pub(super) const fn live(&self) -> u32 {
        self.live
    }

    /// Octets of their attributes.
    pub(super) const fn total_octets(&self) -> usize {
        self.octets
    }

    fn hash(&self, octets: &[u8], next_hop: NextHopId) -> u32 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u32(next_hop.number());
        hasher.write(octets);
        let hash = hasher.finish();
        (hash ^ (hash >> 32)) as u32
    }
}

/// An index that has room for so many times what is in it is made smaller.
const INDEX_SPARE_MAX: usize = 8;

/// The table wants 64 bits; 32 are kept.
const fn spread(hash: u32) -> u64 {
    (hash as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NextHop,
        wire::{
            as_path::{SegmentKind, write_segments},
            attributes::Builder,
        },
    };

    fn sets() -> (AttributeSets, NextHops) {
        (AttributeSets::new(7, 100), NextHops::new(7, true))
    }

    fn octets(med: u32) -> Vec<u8> {
        let path = write_segments([(SegmentKind::Sequence, [Asn(65_001), Asn(2)].as_slice())]);
        let mut builder = Builder::new();
        builder.origin(Origin::Egp).set(code::AS_PATH, path).number(code::MED, med);
        builder.communities([community::NO_EXPORT, 5]).build()
    }

    #[test]
    fn equal_sets_share_a_number_until_the_last_one_lets_go() {
        let (mut sets, mut next_hops) = sets();
        let via = next_hops.enter(NextHop::V4([192, 0, 2, 1].into()), Scope::default());
        let first = sets.intern(&octets(1), via, &mut next_hops);
        assert_eq!(sets.intern(&octets(1), via, &mut next_hops), first);
        assert_ne!(sets.intern(&octets(2), via, &mut next_hops), first);
        assert_ne!(sets.intern(&octets(1), NextHopId::OWN, &mut next_hops), first);
        assert_eq!(sets.live(), 3);
        let epoch = sets.epoch(first);
        sets.release(first, &mut next_hops);
        assert!(sets.is_of_epoch(first, epoch));
        sets.release(first, &mut next_hops);
        assert!(!sets.is_of_epoch(first, epoch));
        let third = sets.intern(&octets(3), via, &mut next_hops);
        assert_eq!(third, first, "the number is used again");
        assert!(!sets.is_of_epoch(third, epoch));
        assert_eq!(next_hops.tracked().map(|entry| entry.references).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_next_hop_goes_with_its_last_set() {
        let (mut sets, mut next_hops) = sets();
        let via = next_hops.enter(NextHop::V4([192, 0, 2, 1].into()), Scope::default());
        let id = sets.intern(&octets(1), via, &mut next_hops);
        assert_eq!(next_hops.tracked().count(), 1);
        sets.release(id, &mut next_hops);
        assert_eq!(next_hops.tracked().count(), 0);
        assert_eq!((sets.live(), sets.total_octets()), (0, 0));
    }

    #[test]
    fn the_view_says_what_the_octets_say() {
        let (mut sets, mut next_hops) = sets();
        let id = sets.intern(&octets(9), NextHopId::OWN, &mut next_hops);
        let view = sets.view(id);
        assert_eq!((view.local_pref, view.med, view.neighbor, view.hops), (100, 9, Asn(65_001), 2));
        assert_eq!((view.origin, view.flags), (Origin::Egp, has::NO_EXPORT | has::MED));
    }

    use super::super::next_hops::Scope;
}
