//! Next hops of all paths, each once, with what the caller knows about reaching them.

use std::hash::BuildHasher as _;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::chunked::{Linked, NONE, Slab};
use crate::NextHop;

/// A next hop in [`NextHops`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NextHopId(u32);

impl NextHopId {
    /// This speaker itself: the next hop of local paths, and of what is exported with the address of the session.
    pub(super) const OWN: Self = Self(NONE);
    /// Nowhere: packets are dropped.
    pub(super) const DISCARD: Self = Self(NONE - 1);

    pub(super) const fn number(self) -> u32 {
        self.0
    }

    const fn is_address(self) -> bool {
        self.0 < Self::DISCARD.0
    }
}

/// Where a next hop is valid: the interface of a link-local address, 0 for the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Scope(pub u32);

/// What is known about reaching a next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Resolution {
    /// Nobody has looked yet. Paths wait.
    #[default]
    Unknown,
    /// No route leads there.
    Unreachable,
    /// A route leads there.
    Reachable {
        /// Its metric, for step "nearest next hop" of best path selection.
        metric: u32,
    },
}

/// A next hop for which the caller is to say [`super::Rib::set_next_hop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackedNextHop {
    /// The next hop.
    pub next_hop: NextHop,
    /// Where it is valid.
    pub scope: Scope,
    /// What the caller said last.
    pub resolution: Resolution,
    /// Attribute sets that have it.
    pub references: u32,
}

/// When something was found out about a next hop. Goes round after four thousand million times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(u32);

impl Stamp {
    const fn is_before(self, other: Self) -> bool {
        (other.0.wrapping_sub(self.0) as i32) > 0
    }
}

#[derive(Debug)]
struct Entry {
    tracked: TrackedNextHop,
    resolved: Stamp,
    next_free: u32,
}

impl Linked for Entry {
    fn link(&self) -> u32 {
        self.next_free
    }

    fn set_link(&mut self, link: u32) {
        self.next_free = link;
    }
}

#[derive(Debug)]
pub(super) struct NextHops {
    entries: Slab<Entry>,
    stamp: Stamp,
    index: HashTable<u32>,
    hasher: FixedState,
    /// Without tracking every next hop counts as reachable.
    tracking: bool,
    /// Grows whenever an entry comes or goes.
    version: u64,
}

impl NextHops {
    pub(super) fn new(seed: u64, tracking: bool) -> Self {
        Self {
            entries: Slab::default(),
            stamp: Stamp::default(),
            index: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            tracking,
            version: 0,
        }
    }

    /// The entry of a next hop, made if needed. It lives as long as an attribute set holds it.
    pub(super) fn enter(&mut self, next_hop: NextHop, scope: Scope) -> NextHopId {
        if let Some(id) = self.find(next_hop, scope) {
            return id;
        }
        let tracked = TrackedNextHop { next_hop, scope, resolution: Resolution::Unknown, references: 0 };
        let at = self.entries.insert(Entry { tracked, resolved: self.stamp, next_free: NONE });
        let Self { index, entries, hasher, .. } = self;
        let hash = |at: &u32| hasher.hash_one((entries.at(*at).tracked.next_hop, entries.at(*at).tracked.scope));
        index.insert_unique(hash(&at), at, hash);
        self.version += 1;
        NextHopId(at)
    }

    pub(super) fn find(&self, next_hop: NextHop, scope: Scope) -> Option<NextHopId> {
        let equal = |at: &u32| {
            let entry = &self.entries.at(*at).tracked;
            entry.next_hop == next_hop && entry.scope == scope
        };
        self.index.find(self.hasher.hash_one((next_hop, scope)), equal).copied().map(NextHopId)
    }

    pub(super) fn hold(&mut self, id: NextHopId) {
        if id.is_address() {
            self.entries.at_mut(id.0).tracked.references += 1;
        }
    }

    pub(super) fn release(&mut self, id: NextHopId) {
        if !id.is_address() {
            return;
        }
        let entry = &mut self.entries.at_mut(id.0).tracked;
        entry.references -= 1;
        if entry.references > 0 {
            return;
        }
        let hash = self.hasher.hash_one((entry.next_hop, entry.scope));
        if let Ok(found) = self.index.find_entry(hash, |at| *at == id.0) {
            found.remove();
        }
        self.entries.remove(id.0);
        self.version += 1;
    }

    /// The next hop and its scope; `None` for ourselves and for nowhere.
    pub(super) fn get(&self, id: NextHopId) -> Option<(NextHop, Scope)> {
        self.entries.get(id.0).map(|entry| (entry.tracked.next_hop, entry.tracked.scope))
    }

    /// The metric of the way there; `None` while no way is known.
    pub(super) fn metric(&self, id: NextHopId) -> Option<u32> {
        if !id.is_address() || !self.tracking {
            return Some(0);
        }
        match self.entries.at(id.0).tracked.resolution {
            Resolution::Reachable { metric } => Some(metric),
            Resolution::Unknown | Resolution::Unreachable => None,
        }
    }

    /// Records what the caller found out; when it did, if that is news.
    pub(super) fn resolve(&mut self, next_hop: NextHop, scope: Scope, resolution: Resolution) -> Option<Stamp> {
        let id = self.find(next_hop, scope)?;
        let entry = self.entries.at_mut(id.0);
        if entry.tracked.resolution == resolution {
            return None;
        }
        self.stamp = Stamp(self.stamp.0.wrapping_add(1));
        entry.tracked.resolution = resolution;
        entry.resolved = self.stamp;
        self.tracking.then_some(self.stamp)
    }

    /// Was something found out about it then or later?
    pub(super) fn is_resolved_since(&self, id: NextHopId, stamp: Stamp) -> bool {
        self.entries.get(id.0).is_some_and(|entry| !entry.resolved.is_before(stamp))
    }

    /// All that are in use, by order of appearance.
    pub(super) fn tracked(&self) -> impl Iterator<Item = TrackedNextHop> {
        let entries = (0..self.entries.end()).filter_map(|at| self.entries.get(at));
        entries.map(|entry| entry.tracked).filter(|tracked| tracked.references > 0)
    }

    /// Some next hop has not been looked at yet, and paths through it wait.
    pub(super) fn has_unknown(&self) -> bool {
        self.tracking && self.tracked().any(|entry| entry.resolution == Resolution::Unknown)
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }
}
