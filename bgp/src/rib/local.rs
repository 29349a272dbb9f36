//! Paths of this speaker itself: what it originates, and aggregates.
//!
//! An aggregate is originated while at least one more specific prefix inside of it has a best path. Its AS path is empty,
//! ATOMIC_AGGREGATE and AGGREGATOR say that something was left out, and there is never an AS_SET (RFC 9774).

use super::{
    Core, FamilyTable, Rib, Stored,
    import::seconds,
    next_hops::{NextHopId, Scope},
    table::{Imported, Path, is, mark},
};
use crate::{
    NextHop,
    family::Prefix,
    id::{Moment, PathId, PeerId},
    policy::LocalSource,
    wire::attributes::{Attributes, Builder, code},
};

/// A path of this speaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    /// What for; policies ask.
    pub source: LocalSource,
    /// Attributes in canonical form.
    pub attributes: Vec<u8>,
    /// Where packets are to go when it is not this speaker.
    pub next_hop: Option<NextHop>,
}

/// A prefix that stands for more specific ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregate {
    /// Attributes beside those that make it an aggregate: ORIGIN, communities.
    pub attributes: Vec<u8>,
    /// Do not advertise the more specific ones.
    pub summary_only: bool,
}

#[derive(Debug)]
struct ActiveAggregate<P> {
    prefix: P,
    aggregate: Aggregate,
    contributors: u32,
}

/// What is configured, by family.
#[derive(Debug)]
pub(super) struct Locals<P> {
    aggregates: Vec<ActiveAggregate<P>>,
    /// What the local paths are for, by path identifier.
    sources: [LocalSource; 5],
}

impl<P> Default for Locals<P> {
    fn default() -> Self {
        let sources = [
            LocalSource::PodCidr,
            LocalSource::Service,
            LocalSource::NodeAddress,
            LocalSource::Static,
            LocalSource::Aggregate,
        ];
        Self { aggregates: Vec::new(), sources }
    }
}

/// Local paths of one prefix are told apart by what they are for.
const fn path_id(source: LocalSource) -> PathId {
    PathId(source as u32)
}

impl<P: Prefix> Locals<P> {
    pub(super) fn has_aggregates(&self) -> bool {
        !self.aggregates.is_empty()
    }

    /// Does an aggregate stand for this prefix towards all peers?
    pub(super) fn is_summarized(&self, prefix: P) -> bool {
        let stands_for = |a: &ActiveAggregate<P>| a.aggregate.summary_only && covers(a.prefix, prefix);
        self.aggregates.iter().any(stands_for)
    }

    pub(super) fn source(&self, path_id: PathId) -> LocalSource {
        self.sources.get(path_id.0 as usize).copied().unwrap_or(LocalSource::Static)
    }
}

impl Rib {
    /// Originates a prefix, or writes over what was originated for the same purpose.
    pub fn originate<P: Stored>(&mut self, prefix: P, route: &LocalRoute, now: Moment) {
        P::of_mut(&mut self.tables).originate(&mut self.core, prefix, route, seconds(now));
    }

    /// Takes a prefix back.
    pub fn withdraw_local<P: Stored>(&mut self, prefix: P, source: LocalSource) {
        P::of_mut(&mut self.tables).withdraw_local(&mut self.core, prefix, source);
    }

    /// Configures an aggregate.
    pub fn add_aggregate<P: Stored>(&mut self, prefix: P, aggregate: Aggregate) {
        self.remove_aggregate(prefix);
        P::of_mut(&mut self.tables).add_aggregate(&mut self.core, prefix, aggregate);
    }

    /// Takes an aggregate back.
    pub fn remove_aggregate<P: Stored>(&mut self, prefix: P) {
        P::of_mut(&mut self.tables).remove_aggregate(&mut self.core, prefix);
    }
}

impl<P: Prefix> FamilyTable<P> {
    fn originate(&mut self, core: &mut Core, prefix: P, route: &LocalRoute, since_s: u32) {
        let via = route.next_hop.map_or(NextHopId::OWN, |next_hop| core.next_hops.enter(next_hop, Scope::default()));
        let set = core.sets.intern(&route.attributes, via, &mut core.next_hops);
        core.sets.hold(set);
        let at = self.table.find_or_insert(prefix);
        let path_id = path_id(route.source);
        if let Some(known) = self.find_path(at, PeerId::LOCAL, path_id) {
            let entry = self.table.path_mut(known);
            let old = *entry;
            entry.received = set;
            entry.imported = Imported::accepted(set);
            if old.received != set {
                let best = if old.is(is::BEST) { mark::BEST_TOUCHED } else { 0 };
                let forwarding = if old.is(is::FORWARDED) { mark::FORWARDING_TOUCHED } else { 0 };
                self.touch(at, best | forwarding);
            }
            core.release(old.received);
            super::import::release_imported(core, old.imported);
            return;
        }
        let (received, imported) = (set, Imported::accepted(set));
        let path = Path { received, imported, next: 0, path_id, since_s, peer: PeerId::LOCAL, flags: 0 };
        self.table.insert_path(at, path);
        self.touch(at, 0);
    }

    fn withdraw_local(&mut self, core: &mut Core, prefix: P, source: LocalSource) {
        if let Some(at) = self.table.find(prefix)
            && let Some(path) = self.find_path(at, PeerId::LOCAL, path_id(source))
        {
            self.remove_path(core, at, path);
        }
    }

    fn add_aggregate(&mut self, core: &mut Core, prefix: P, aggregate: Aggregate) {
        let first = self.locals.aggregates.is_empty();
        let mut contributors = 0;
        for at in 0..self.table.end() {
            let Some(destination) = self.table.get_destination(at).copied() else {
                continue;
            };
            // While there was no aggregate, nobody kept the mark.
            if first && (destination.flags & mark::CONTRIBUTES != 0) != self.contributes(at) {
                self.table.destination_mut(at).flags ^= mark::CONTRIBUTES;
            }
            if covers(prefix, destination.prefix) {
                contributors += u32::from(self.table.destination(at).flags & mark::CONTRIBUTES != 0);
                self.touch(at, mark::BEST_TOUCHED);
            }
        }
        self.locals.aggregates.push(ActiveAggregate { prefix, aggregate, contributors });
        if contributors > 0 {
            self.originate_aggregate(core, self.locals.aggregates.len() - 1);
        }
    }

    fn remove_aggregate(&mut self, core: &mut Core, prefix: P) {
        let Some(found) = self.locals.aggregates.iter().position(|aggregate| aggregate.prefix == prefix) else {
            return;
        };
        self.locals.aggregates.remove(found);
        self.withdraw_local(core, prefix, LocalSource::Aggregate);
        for at in 0..self.table.end() {
            if self.table.get_destination(at).is_some_and(|destination| covers(prefix, destination.prefix)) {
                self.touch(at, mark::BEST_TOUCHED);
            }
        }
    }

    fn originate_aggregate(&mut self, core: &mut Core, index: usize) {
        let entry = &self.locals.aggregates[index];
        let prefix = entry.prefix;
        let mut value = core.config.confederation.unwrap_or(core.config.local_as).0.to_be_bytes().to_vec();
        value.extend_from_slice(&core.config.router_id.0.to_be_bytes());
        let mut builder = Builder::of(Attributes(&entry.aggregate.attributes));
        builder.set(code::AS_PATH, Vec::new()).set(code::ATOMIC_AGGREGATE, Vec::new()).set(code::AGGREGATOR, value);
        if Attributes(&entry.aggregate.attributes).get(code::ORIGIN).is_none() {
            builder.set(code::ORIGIN, vec![0]);
        }
        let route = LocalRoute { source: LocalSource::Aggregate, attributes: builder.build(), next_hop: None };
        self.originate(core, prefix, &route, 0);
    }

    /// Does a destination have what an aggregate over it asks for?
    fn contributes(&self, at: u32) -> bool {
        self.table.best(at).is_some()
    }

    /// Counts a destination in or out of the aggregates that cover it.
    pub(super) fn follow_contributor(&mut self, core: &mut Core, at: u32) {
        if self.locals.aggregates.is_empty() {
            return;
        }
        let destination = *self.table.destination(at);
        let (did, does) = (destination.flags & mark::CONTRIBUTES != 0, self.contributes(at));
        if did == does {
            return;
        }
        self.table.destination_mut(at).flags ^= mark::CONTRIBUTES;
        for index in 0..self.locals.aggregates.len() {
            let entry = &mut self.locals.aggregates[index];
            if !covers(entry.prefix, destination.prefix) {
                continue;
            }
            entry.contributors = entry.contributors.saturating_add_signed(if does { 1 } else { -1 });
            let (contributors, prefix) = (entry.contributors, entry.prefix);
            if does && contributors == 1 {
                self.originate_aggregate(core, index);
            } else if !does && contributors == 0 {
                self.withdraw_local(core, prefix, LocalSource::Aggregate);
            }
        }
    }
}

/// Is `inner` a more specific prefix of `outer`?
fn covers<P: Prefix>(outer: P, inner: P) -> bool {
    outer != inner && outer.to_net().contains(&inner.to_net())
}
