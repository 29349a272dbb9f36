//! Answers for people: every path to a prefix and why it lost, what a peer sent, what it is told and why not more.

use ipnet::IpNet;

use super::{
    Core, FamilyTable, Rejection, Rib, Standing, Stored,
    attributes::AttrId,
    decision,
    group::Out,
    run::contender,
    table::{Path, is},
};
use crate::{
    NextHop,
    family::{PerFamily, Prefix},
    id::{Moment, PathId, PeerId},
    wire::attributes::Attributes,
};

/// Where the next page begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u32);

/// Destinations looked at for one page at most, whether anything of them is on it or not: a page of a peer that sent little
/// must not cost a walk over a full table.
pub const PAGE_DESTINATIONS_MAX: u32 = 16_384;

impl Cursor {
    /// For whoever has to write it down.
    #[must_use]
    pub const fn to_number(self) -> u32 {
        self.0
    }

    /// What was written down. Any number is a place, at worst behind the end.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// A part of a long answer; it may be empty and still have a next one. Entries are in no particular order, and what changes between two pages may be missed or seen
/// twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// Its entries.
    pub entries: Vec<T>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// A path and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathView {
    /// The prefix.
    pub prefix: IpNet,
    /// Who sent it; [`PeerId::LOCAL`] for our own.
    pub peer: PeerId,
    /// Its identifier among the paths of one peer.
    pub path_id: PathId,
    /// As received, in canonical form.
    pub received: Vec<u8>,
    /// As received; `None` for our own.
    pub received_next_hop: Option<NextHop>,
    /// After policy, in canonical form, if accepted.
    pub accepted: Option<Vec<u8>>,
    /// After policy.
    pub next_hop: Option<NextHop>,
    /// When it came, to the second.
    pub since: Moment,
    /// Kept although its session is down.
    pub stale: bool,
    /// Kept even longer (RFC 9494).
    pub long_lived_stale: bool,
    /// What became of it.
    pub standing: Standing,
    /// The rule of the import policy that refused it.
    pub rule: Option<String>,
}

/// The best path to a prefix, without what [`PathView`] explains and copies.
#[derive(Clone, Copy, Debug)]
pub struct BestPath<'a> {
    /// Who sent it; [`PeerId::LOCAL`] for our own.
    pub peer: PeerId,
    /// As received.
    pub received: Attributes<'a>,
}

/// A path that a peer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvertisedView {
    /// The prefix.
    pub prefix: IpNet,
    /// Its identifier among the paths we tell.
    pub path_id: PathId,
    /// In canonical form.
    pub attributes: Vec<u8>,
    /// The next hop that is said.
    pub next_hop: NextHop,
    /// Who sent it to us.
    pub source: PeerId,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// By family.
    pub families: PerFamily<FamilyTotals>,
    /// Distinct sets of attributes.
    pub attribute_sets: u32,
    /// Their octets.
    pub attribute_octets: usize,
}

/// How much of one family there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyTotals {
    /// Prefixes with paths.
    pub destinations: u32,
    /// Prefixes without, whose withdrawal somebody has yet to hear of.
    pub tombstones: u32,
    /// Paths.
    pub paths: u32,
}

impl Rib {
    /// Every path to a prefix, the best first.
    #[must_use]
    pub fn explain<P: Stored>(&self, prefix: P) -> Vec<PathView> {
        let table = P::of(&self.tables);
        let Some(at) = table.table.find(prefix) else {
            return Vec::new();
        };
        table.views(&self.core, at)
    }

    /// The longest prefix with a best path that has this address, as `/32` or `/128`, in it.
    #[must_use]
    pub fn longest_match<P: Stored>(&self, address: P) -> Option<P> {
        let table = P::of(&self.tables);
        let mut octets = Vec::new();
        address.write(&mut octets);
        (0..=address.length()).rev().find_map(|length| {
            let octets = octets.get(1..1 + crate::family::wire_octets(length))?;
            let prefix = P::from_wire(length, octets)?;
            let at = table.table.find(prefix)?;
            table.table.best(at).map(|_| prefix)
        })
    }

    /// Attributes and next hop of an accepted path, after policy.
    #[must_use]
    pub fn accepted_path<P: Stored>(&self, peer: PeerId, path_id: PathId, prefix: P) -> Option<(&[u8], NextHop)> {
        let (core, table) = (&self.core, P::of(&self.tables));
        let path = table.table.path(table.find_path(table.table.find(prefix)?, peer, path_id)?);
        let set = path.imported.attributes()?;
        let via = [set, path.received].into_iter().find_map(|set| core.next_hops.get(core.sets.next_hop(set)));
        Some((core.sets.octets(set), via?.0))
    }

    /// All paths of all prefixes.
    #[must_use]
    pub fn paths<P: Stored>(&self, from: Cursor, max: usize) -> Page<PathView> {
        P::of(&self.tables).page(&self.core, from, max, |_| true)
    }

    /// The path that was selected.
    #[must_use]
    pub fn best<P: Stored>(&self, prefix: P) -> Option<BestPath<'_>> {
        let table = &P::of(&self.tables).table;
        let (_, path) = table.best(table.find(prefix)?)?;
        Some(BestPath { peer: path.peer, received: self.core.sets.attributes(path.received) })
    }

    /// What a peer sent.
    #[must_use]
    pub fn received<P: Stored>(&self, peer: PeerId, from: Cursor, max: usize) -> Page<PathView> {
        P::of(&self.tables).page(&self.core, from, max, |path| path.peer == peer)
    }

    /// Of what a peer sent, what passed policy and checks.
    #[must_use]
    pub fn accepted<P: Stored>(&self, peer: PeerId, from: Cursor, max: usize) -> Page<PathView> {
        let is_it = |path: &Path| path.peer == peer && path.imported.attributes().is_some();
        P::of(&self.tables).page(&self.core, from, max, is_it)
    }

    /// What a peer is told, as soon as it has read everything.
    #[must_use]
    pub fn advertised<P: Stored>(&self, peer: PeerId, from: Cursor, max: usize) -> Page<AdvertisedView> {
        P::of(&self.tables).advertised(&self.core, peer, from, max)
    }

    /// How many paths a peer is told.
    #[must_use]
    pub fn advertised_count<P: Stored>(&self, peer: PeerId) -> u32 {
        P::of(&self.tables).group_of(&self.core, peer).map_or(0, |group| group.advertised(peer))
    }
}

impl<P: Prefix> FamilyTable<P> {
    fn views(&self, core: &Core, at: u32) -> Vec<PathView> {
        let contenders = self.contenders(core, at);
        let best = self.table.best(at).and_then(|(number, _)| contenders.iter().find(|c| c.at == number));
        let view = |(number, path): (u32, &Path)| {
            let standing = match (path.imported.rejection(), contender(core, number, path), best) {
                (Some(why), ..) => Standing::Rejected(why),
                (None, None, _) => Standing::UnresolvedNextHop,
                (None, Some(_), _) if path.is(is::BEST) => Standing::Best,
                (None, Some(_), _) if path.is(is::FORWARDED) => Standing::Multipath,
                (None, Some(other), Some(best)) => {
                    Standing::Lost(decision::lost_at(best, &other, &core.config.decision))
                }
                // It was not decided yet.
                (None, Some(_), None) => Standing::Waiting,
            };
            self.view(core, at, path, standing)
        };
        self.table.paths_of(at).map(view).collect()
    }

    fn view(&self, core: &Core, at: u32, path: &Path, standing: Standing) -> PathView {
        let next_hop = |set: AttrId| core.next_hops.get(core.sets.next_hop(set)).map(|(next_hop, _)| next_hop);
        let accepted = path.imported.attributes();
        let rule = match standing {
            Standing::Rejected(Rejection::Policy(rule)) => {
                let policy = core.peers.get(path.peer).map(|peer| peer.import.get(P::FAMILY));
                policy.map(|policy| policy.rule_name(rule).to_owned())
            }
            _ => None,
        };
        PathView {
            prefix: self.table.destination(at).prefix.to_net(),
            peer: path.peer,
            path_id: path.path_id,
            received: core.sets.octets(path.received).to_vec(),
            received_next_hop: next_hop(path.received),
            accepted: accepted.map(|set| core.sets.octets(set).to_vec()),
            next_hop: accepted.and_then(next_hop),
            since: Moment(u64::from(path.since_s) * 1_000_000),
            stale: path.is(is::STALE),
            long_lived_stale: path.is(is::LONG_LIVED_STALE),
            standing,
            rule,
        }
    }

    /// Paths of destinations from a cursor on, until there are `max`; those of one destination stay together.
    fn page(&self, core: &Core, from: Cursor, max: usize, wanted: impl Fn(&Path) -> bool) -> Page<PathView> {
        let mut entries = Vec::new();
        let mut at = from.0;
        let end = self.table.end();
        let stop = end.min(at.saturating_add(PAGE_DESTINATIONS_MAX));
        while at < stop && entries.len() < max {
            if self.table.get_destination(at).is_some() && self.table.paths_of(at).any(|(_, path)| wanted(path)) {
                let chosen: Vec<bool> = self.table.paths_of(at).map(|(_, path)| wanted(path)).collect();
                let views = self.views(core, at).into_iter().zip(chosen);
                entries.extend(views.filter(|(_, chosen)| *chosen).map(|(view, _)| view));
            }
            at += 1;
        }
        Page { entries, next: (at < end).then_some(Cursor(at)) }
    }

    fn advertised(&self, core: &Core, peer: PeerId, from: Cursor, max: usize) -> Page<AdvertisedView> {
        let mut entries = Vec::new();
        let Some((group, member)) = self.group_of(core, peer).and_then(|group| Some((group, group.member(peer)?)))
        else {
            return Page { entries, next: None };
        };
        let end = self.table.end();
        let mut at = from.0;
        let stop = end.min(at.saturating_add(PAGE_DESTINATIONS_MAX));
        while at < stop && entries.len() < max {
            if let Some(destination) = self.table.get_destination(at) {
                let prefix = destination.prefix.to_net();
                let mut add = |told: &super::group::Told, path_id: PathId| {
                    if told.is_announced() && told.source != peer {
                        let via = core.next_hops.get(core.sets.next_hop(told.attributes));
                        let next_hop = via.map_or(member.own_next_hop, |(next_hop, _)| next_hop);
                        let attributes = core.sets.octets(told.attributes).to_vec();
                        entries.push(AdvertisedView { prefix, path_id, attributes, next_hop, source: told.source });
                    }
                };
                match &group.out {
                    Out::Single(out) => add(&out.get(at), PathId(0)),
                    Out::Several(out) => out.of(at).for_each(|(_, path)| add(&path.told, path.path_id)),
                }
            }
            at += 1;
        }
        Page { entries, next: (at < end).then_some(Cursor(at)) }
    }
}
