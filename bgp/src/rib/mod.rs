//! The tables: what peers sent, what of it is best, and what each peer is told.
//!
//! # How a prefix passes through
//!
//! ```text
//! announce ──► attribute set, once per message ──► path in the table ──► destination is dirty
//!                                                                             │ run
//!                                                                             ▼
//!                           take_fib_changes ◄── list of destinations ◄── best path
//!                                                                             │ bit and list, per update group
//!                                                                             ▼ flush_exports: sort by attributes
//! poll_export ◄── log of encoded messages ◄── pack ◄── what the group was told last
//!    (one cursor per member)
//! ```
//!
//! Nothing happens per prefix at once. A change marks a destination, and whoever owns the [`Rib`] says when marked
//! destinations are decided ([`Rib::run`]) and when what came of it may be packed into messages ([`Rib::flush_exports`]): at
//! once when the input is idle, a little later while it is not. A prefix whose best path changes sixteen times in between is
//! sent once. All work is in bounded slices.
//!
//! # Why so
//!
//! A full table is a million prefixes and has to stay within a hundred octets each. So a path holds numbers, not attributes
//! ([`attributes`](self), counted and shared); tables are arrays in chunks under one hash index; there is no allocation per
//! prefix; and the three RIBs of RFC 4271 are one list of paths per destination, read in three ways.
//!
//! Peers of equal export behaviour form a group with one Adj-RIB-Out and one log of encoded messages. Members differ in the
//! octets of the next hop, which are patched while a message is copied, and in what they sent themselves, for which a
//! message can be meant for one member only or for all but one. A member that is new, or so slow that the log has gone on
//! without it, walks the Adj-RIB-Out once and joins again; it holds no queue and delays nobody. What is withdrawn in the
//! meantime stays known until everybody has heard of it, up to [`TOMBSTONES_MAX`]; beyond, [`Rib::laggards`] names the peers
//! whose sessions have to end.
//!
//! # What is ugly
//!
//! - Counting references by hand: whoever stores an attribute set's number takes it and gives it back. The tests of this
//!   room check that nothing is held when all is gone.
//! - A change of the next hop's reachability, a policy, or a peer that leaves walks the whole table of a family. Such walks
//!   are jobs in slices; a second job waits for the first.
//! - A peer that changes its group hears withdrawals of everything that the new group does not advertise, also of what it
//!   never heard of.
//!
//! RFCs: 4271 (sections 9 and 3.2), 1997, 4456, 4724, 5004, 5065, 7606 (what the decoder leaves to us), 7911, 7947, 8212,
//! 8326, 9234, 9494.

mod attributes;
mod chunked;
mod decision;
mod end_of_rib;
mod explain;
mod explain_exports;
mod export;
mod fib;
mod group;
mod import;
mod jobs;
mod local;
mod log;
mod member;
mod membership;
mod next_hops;
mod pack;
mod peer;
mod reasons;
mod run;
mod settings;
mod sizes;
mod table;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, fmt, sync::Arc};

use attributes::AttributeSets;
pub use decision::DecisionOptions;
pub use explain::{AdvertisedView, BestPath, Cursor, PAGE_DESTINATIONS_MAX, Page, PathView, Totals};
pub use explain_exports::{ExportsView, Withheld};
pub use fib::{FibChange, FibNextHop, FibRoute, FibTarget};
use group::Group;
pub use import::{AnnounceError, Announced, LimitKind, LimitReached};
use jobs::Job;
use local::Locals;
pub use local::{Aggregate, LocalRoute};
use next_hops::NextHops;
pub use next_hops::{Resolution, Scope, TrackedNextHop};
pub use peer::{Counts, Limits, NextHopMode, PeerSettings};
use peer::{Peer, Peers};
pub use reasons::{NotAdvertised, Rejection, Standing, Step};
pub use sizes::{LOG_OCTETS_MAX, TOMBSTONES_MAX};
use table::{Table, mark};

use crate::{
    family::{Family, PerFamily, Prefix, V4, V6},
    id::{Asn, RouterId},
    policy::Vrps,
};

/// What a [`Rib`] is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RibConfig {
    /// Our AS; inside of a confederation the member AS.
    pub local_as: Asn,
    /// Our identifier.
    pub router_id: RouterId,
    /// The cluster we reflect for; our identifier unless several reflectors share one.
    pub cluster_id: RouterId,
    /// The AS as which our confederation is known outside (RFC 5065).
    pub confederation: Option<Asn>,
    /// Makes hashes of this speaker unlike those of any other: draw it at random.
    pub seed: u64,
    /// Best path selection.
    pub decision: DecisionOptions,
    /// LOCAL_PREF of paths without one.
    pub local_pref_default: u32,
    /// What is selected is to be forwarded: [`Rib::take_fib_changes`] says what changed. A speaker that only passes paths on
    /// does without the list. [`Rib::set_forwarding`] changes it.
    pub forwarding: bool,
    /// Paths wait for [`Rib::set_next_hop`]. Otherwise every next hop counts as reachable.
    pub next_hop_tracking: bool,
}

impl RibConfig {
    /// The usual: forwarding, tracking, LOCAL_PREF 100.
    #[must_use]
    pub fn new(local_as: Asn, router_id: RouterId, seed: u64) -> Self {
        Self {
            local_as,
            router_id,
            cluster_id: router_id,
            confederation: None,
            seed,
            decision: DecisionOptions::default(),
            local_pref_default: 100,
            forwarding: true,
            next_hop_tracking: true,
        }
    }
}

/// All tables of one speaker.
pub struct Rib {
    core: Core,
    tables: Tables,
}

/// What both families share.
#[derive(Debug)]
struct Core {
    config: RibConfig,
    sets: AttributeSets,
    next_hops: NextHops,
    peers: Peers,
    /// Who may originate what.
    vrps: Option<Arc<Vrps>>,
    /// See [`Rib::set_mark`].
    mark: Option<u32>,
    sizes: sizes::Sizes,
    /// Attributes being edited; kept for its memory.
    scratch: Vec<u8>,
    /// See [`Rib::judged_again`].
    judged_again: u64,
}

impl Core {
    /// Lets go of a set.
    #[inline]
    fn release(&mut self, id: attributes::AttrId) {
        self.sets.release(id, &mut self.next_hops);
    }
}

/// One table per family.
#[derive(Debug)]
pub struct Tables {
    ipv4: FamilyTable<V4>,
    ipv6: FamilyTable<V6>,
}

/// A prefix that has a table.
pub trait Stored: Prefix + sealed::Sealed {
    #[doc(hidden)]
    fn of(tables: &Tables) -> &FamilyTable<Self>;
    #[doc(hidden)]
    fn of_mut(tables: &mut Tables) -> &mut FamilyTable<Self>;
}

mod sealed {
    /// Nobody else implements [`super::Stored`].
    pub trait Sealed {}
    impl Sealed for crate::family::V4 {}
    impl Sealed for crate::family::V6 {}
}

impl Stored for V4 {
    fn of(tables: &Tables) -> &FamilyTable<Self> {
        &tables.ipv4
    }

    fn of_mut(tables: &mut Tables) -> &mut FamilyTable<Self> {
        &mut tables.ipv4
    }
}

impl Stored for V6 {
    fn of(tables: &Tables) -> &FamilyTable<Self> {
        &tables.ipv6
    }

    fn of_mut(tables: &mut Tables) -> &mut FamilyTable<Self> {
        &mut tables.ipv6
    }
}

/// Calls a generic function with the table of a family that is known at run time only.
macro_rules! with_table {
    ($tables:expr, $family:expr, $table:ident => $body:expr) => {
        match $family {
            $crate::family::Family::Ipv4Unicast => {
                let $table = &mut $tables.ipv4;
                $body
            }
            $crate::family::Family::Ipv6Unicast => {
                let $table = &mut $tables.ipv6;
                $body
            }
        }
    };
}
use with_table;

/// The table of one family with all that follows its changes.
#[derive(Debug)]
pub struct FamilyTable<P> {
    table: Table<P>,
    /// Destinations to decide.
    dirty: VecDeque<u32>,
    /// How often one was.
    decided: u64,
    /// Destinations whose forwarding changed.
    forwarding: VecDeque<u32>,
    /// Destinations without paths.
    graves: VecDeque<u32>,
    jobs: VecDeque<Job>,
    groups: Vec<Option<Group<P>>>,
    groups_made: u64,
    /// Groups without members, and how far they are taken apart.
    dying: VecDeque<(Group<P>, u32)>,
    locals: Locals<P>,
    /// Nothing is selected before the peers have sent what they have (RFC 4724 section 4.1).
    deferred: bool,
    /// Most destinations with paths there ever were.
    high_water: u32,
    /// Peers for whose sake too many destinations are kept.
    laggards: Vec<crate::PeerId>,
}

impl<P: Prefix> FamilyTable<P> {
    fn new(seed: u64) -> Self {
        Self {
            table: Table::new(seed),
            dirty: VecDeque::new(),
            decided: 0,
            forwarding: VecDeque::new(),
            graves: VecDeque::new(),
            jobs: VecDeque::new(),
            groups: Vec::new(),
            groups_made: 0,
            dying: VecDeque::new(),
            locals: Locals::default(),
            deferred: false,
            high_water: 0,
            laggards: Vec::new(),
        }
    }

    /// Has a destination decided again.
    #[inline]
    fn touch(&mut self, at: u32, marks: u16) {
        let destination = self.table.destination_mut(at);
        let was_dirty = destination.flags & mark::DIRTY != 0;
        destination.flags |= mark::DIRTY | marks;
        if !was_dirty {
            self.dirty.push_back(at);
        }
    }
}

impl Rib {
    /// Empty tables.
    #[must_use]
    pub fn new(config: RibConfig) -> Self {
        let seed = config.seed;
        let next_hops = NextHops::new(seed, config.next_hop_tracking);
        let sets = AttributeSets::new(seed.rotate_left(17), config.local_pref_default);
        let core = Core {
            config,
            sets,
            next_hops,
            peers: Peers::default(),
            vrps: None,
            mark: None,
            sizes: sizes::Sizes::default(),
            scratch: Vec::new(),
            judged_again: 0,
        };
        let tables =
            Tables { ipv4: FamilyTable::new(seed.rotate_left(31)), ipv6: FamilyTable::new(seed.rotate_left(47)) };
        Self { core, tables }
    }

    /// The same tables in steps of a few destinations, so that what takes a full table happens with twenty.
    #[cfg(test)]
    pub(crate) fn in_small_steps(&mut self) {
        self.core.sizes = sizes::Sizes::SMALL;
    }

    /// What it was told.
    #[must_use]
    pub const fn config(&self) -> &RibConfig {
        &self.core.config
    }

    /// Counts of a peer for a family.
    #[must_use]
    pub fn counts(&self, peer: crate::PeerId, family: Family) -> Counts {
        self.core.peers.get(peer).map_or_else(Counts::default, |peer| *peer.counts.get(family))
    }

    /// Paths that import judged again after they were received, because the configuration or the VRPs changed.
    #[must_use]
    pub const fn judged_again(&self) -> u64 {
        self.core.judged_again
    }

    /// Next hops of all attribute sets. See [`Self::next_hops_version`].
    pub fn next_hops_to_track(&self) -> impl Iterator<Item = TrackedNextHop> {
        self.core.next_hops.tracked()
    }

    /// Nothing is known yet about the next hop of some path. What would be chosen now leaves that path out.
    #[must_use]
    pub fn has_unknown_next_hops(&self) -> bool {
        self.core.next_hops.has_unknown()
    }

    /// Differs whenever [`Self::next_hops_to_track`] has other next hops than before.
    #[must_use]
    pub const fn next_hops_version(&self) -> u64 {
        self.core.next_hops.version()
    }

    /// Records what was found out about a next hop. Paths through it are decided again.
    pub fn set_next_hop(&mut self, next_hop: crate::NextHop, scope: Scope, resolution: Resolution) {
        let Some(stamp) = self.core.next_hops.resolve(next_hop, scope, resolution) else {
            return;
        };
        self.tables.ipv4.follow_next_hops(stamp);
        self.tables.ipv6.follow_next_hops(stamp);
    }

    /// While deferred, nothing of the family is selected, forwarded or advertised: this speaker has just restarted and
    /// waits for what its peers have (RFC 4724 section 4.1).
    pub fn defer_selection(&mut self, family: Family, deferred: bool) {
        with_table!(self.tables, family, table => table.deferred = deferred);
    }

    /// Has the peer's paths of this family or none at all been decided upon, so that nothing is left to do?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tables.ipv4.is_idle() && self.tables.ipv6.is_idle()
    }

    /// Peers for whose sake more than [`TOMBSTONES_MAX`] destinations are kept. Their sessions have to end.
    pub fn laggards(&mut self) -> Vec<crate::PeerId> {
        let mut all = std::mem::take(&mut self.tables.ipv4.laggards);
        all.append(&mut self.tables.ipv6.laggards);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// How much there is.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let of = |destinations: u32, graves: usize, paths: u32| explain::FamilyTotals {
            destinations: destinations.saturating_sub(u32::try_from(graves).unwrap_or(u32::MAX)),
            tombstones: u32::try_from(graves).unwrap_or(u32::MAX),
            paths,
        };
        let (v4, v6) = (&self.tables.ipv4, &self.tables.ipv6);
        Totals {
            families: PerFamily {
                ipv4: of(v4.table.len(), v4.graves.len(), v4.table.live_paths()),
                ipv6: of(v6.table.len(), v6.graves.len(), v6.table.live_paths()),
            },
            attribute_sets: self.core.sets.live(),
            attribute_octets: self.core.sets.total_octets(),
        }
    }
}

impl fmt::Debug for Rib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rib").field("totals", &self.totals()).finish_non_exhaustive()
    }
}
