//! From destinations that may have changed to messages in the log.

use std::cmp::Reverse;

use super::{
    Core, FamilyTable,
    attributes::AttrId,
    export::{From, export},
    group::{Group, Out, Remembered, Told, ToldPath, is_over},
    local::Locals,
    log::Audience,
    next_hops::NextHopId,
    reasons::NotAdvertised,
    run::contender,
    table::{Path, Table},
};
use crate::{
    family::Prefix,
    id::{PathId, PeerId},
    policy::LocalSource,
    wire::encode,
};

/// Prefixes that go into the next message, one run of announcements and one of withdrawals.
#[derive(Debug)]
pub(super) struct Lanes<P> {
    announced: Vec<(PathId, P)>,
    announce_key: (AttrId, Audience),
    withdrawn: Vec<(PathId, P)>,
    withdraw_key: Audience,
}

impl<P> Default for Lanes<P> {
    fn default() -> Self {
        Self {
            announced: Vec::new(),
            announce_key: (AttrId::NONE, Audience::All),
            withdrawn: Vec::new(),
            withdraw_key: Audience::All,
        }
    }
}

/// Where a group looks for what it is to say.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a, P> {
    pub(super) table: &'a Table<P>,
    pub(super) locals: &'a Locals<P>,
}

impl<P: Prefix> FamilyTable<P> {
    /// Lets every group pack what is pending.
    pub(super) fn flush(&mut self) {
        for group in self.groups.iter_mut().flatten() {
            group.flush |= !group.pending.is_empty();
        }
    }
}

impl<'a, P: Prefix> Reading<'a, P> {
    pub(super) fn from(self, path: &Path) -> From {
        From { peer: path.peer, local: self.locals.source(path.path_id) }
    }

    /// Attributes and source of the best path, for sorting.
    fn sort_key(self, at: u32) -> (u32, u16) {
        let key = |(_, path): (u32, &Path)| (path.imported.attributes().unwrap_or(AttrId::NONE).0, path.peer.0);
        self.table.best(at).map_or((0, 0), key)
    }
}

impl<P: Prefix> Group<P> {
    /// Begins with what is pending, if the owner said so; true when there is something in hand.
    fn seal(&mut self, reading: Reading<'_, P>) -> bool {
        if !self.batch.is_empty() {
            return true;
        }
        if !self.flush {
            return false;
        }
        self.flush = false;
        let pending = std::mem::take(&mut self.pending);
        // Prefixes with equal attributes mostly lie together already, because they came together.
        let mut runs: Vec<((u32, u16), &[u32])> = pending
            .chunk_by(|a, b| reading.sort_key(*a) == reading.sort_key(*b))
            .filter_map(|run| Some((reading.sort_key(*run.first()?), run)))
            .collect();
        runs.sort_by_key(|(key, _)| Reverse(*key));
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        batch.reserve_exact(pending.len());
        batch.extend(runs.into_iter().flat_map(|(_, run)| run.iter().rev().copied()));
        self.batch = batch;
        self.next_epoch();
        self.batches += 1;
        !self.batch.is_empty()
    }

    /// Packs the next slice into the log; false when there was nothing to look at.
    pub(super) fn pack(&mut self, core: &mut Core, reading: Reading<'_, P>) -> bool {
        if !self.seal(reading) {
            return false;
        }
        self.refresh_needs();
        let sizes = self.sizes;
        let before = self.log.open().len();
        let mut key = None;
        let mut looked_at = 0;
        while let Some(at) = self.batch.last().copied() {
            let next_key = Some(reading.sort_key(at));
            let octets = self.log.open().len();
            let is_full =
                looked_at >= sizes.slice_destinations_max || octets.saturating_sub(before) >= sizes.slice_octets;
            if is_full || looked_at >= sizes.slice_destinations && key != next_key {
                break;
            }
            key = next_key;
            self.batch.pop();
            looked_at += 1;
            self.is_pending.clear(at);
            if self.sends_several() {
                self.compare_several(core, reading, at);
            } else {
                self.compare_single(core, reading, at);
            }
        }
        self.write_withdrawn();
        self.write_announced(core);
        self.last_export = None;
        if self.batch.is_empty() {
            self.batch = Vec::new();
            self.forget_exports_from(core.sets.end() as usize);
        }
        true
    }

    /// Says what changed for a destination of which one path is told.
    fn compare_single(&mut self, core: &mut Core, reading: Reading<'_, P>, at: u32) {
        let prefix = reading.table.destination(at).prefix;
        let wanted = reading.table.best(at).and_then(|(_, path)| {
            let set = path.imported.attributes()?;
            let out = self.exported(core, reading, prefix, set, reading.from(path)).ok()?;
            Some((out, path.peer))
        });
        let Out::Single(out) = &mut self.out else {
            return;
        };
        let told = out.get(at);
        let Some(new) = self.change(core, prefix, PathId(0), told, wanted) else {
            return;
        };
        if let Out::Single(out) = &mut self.out {
            out.set(at, new);
        }
    }

    /// Says what changed for a destination of which several paths are told.
    fn compare_several(&mut self, core: &mut Core, reading: Reading<'_, P>, at: u32) {
        let prefix = reading.table.destination(at).prefix;
        let wanted = self.wanted_paths(core, reading, at, prefix);
        let Out::Several(out) = &self.out else {
            return;
        };
        let told: Vec<(u32, ToldPath)> = out.of(at).map(|(number, path)| (number, *path)).collect();
        for (number, path) in &told {
            let wanted = wanted.iter().find(|(id, ..)| *id == path.path_id).map(|(_, set, source)| (*set, *source));
            if let Some(new) = self.change(core, prefix, path.path_id, path.told, wanted)
                && let Out::Several(out) = &mut self.out
            {
                out.paths.at_mut(*number).told = new;
            }
        }
        for (id, set, source) in wanted {
            if told.iter().any(|(_, path)| path.path_id == id) {
                continue;
            }
            if let Some(new) = self.change(core, prefix, id, Told::NOTHING, Some((set, source)))
                && let Out::Several(out) = &mut self.out
            {
                out.insert(at, id, new);
            }
        }
        let needs = self.needs;
        if let Out::Several(out) = &mut self.out {
            // What was withdrawn in this epoch is in the log only now.
            out.drop_where(at, |path| path.told.generation != self.epoch && is_over(&path.told, needs));
        }
    }

    /// The paths to tell, best first. Each is held.
    fn wanted_paths(
        &mut self,
        core: &mut Core,
        reading: Reading<'_, P>,
        at: u32,
        prefix: P,
    ) -> Vec<(PathId, AttrId, PeerId)> {
        let mut contenders: Vec<_> =
            reading.table.paths_of(at).filter_map(|(number, path)| contender(core, number, path)).collect();
        let max = match self.key.add_path_max {
            0 => usize::MAX,
            max => usize::from(max),
        };
        if contenders.len() > max {
            super::decision::rank(&mut contenders, &core.config.decision);
        }
        let mut wanted = Vec::new();
        for contender in contenders.into_iter().take(max) {
            let path = reading.table.path(contender.at);
            let from = reading.from(path);
            if let Ok(out) = self.exported(core, reading, prefix, contender.attributes, from) {
                // A path keeps its place in the table for as long as it is there.
                wanted.push((PathId(contender.at + 1), out, path.peer));
            }
        }
        wanted
    }

    /// What the group is told of a path, from memory if possible. Held by the caller.
    pub(super) fn exported(
        &mut self,
        core: &mut Core,
        reading: Reading<'_, P>,
        prefix: P,
        set: AttrId,
        from: From,
    ) -> Result<AttrId, NotAdvertised> {
        if reading.locals.has_aggregates() && !self.key.watches && reading.is_summarized(prefix) {
            return Err(NotAdvertised::Summarized);
        }
        if self.key.policy.depends_on_prefix() {
            return export(core, &self.key, prefix, set, from);
        }
        let source = source_key(from);
        if let Some((last_set, last_source, out)) = self.last_export
            && (last_set, last_source) == (set, source)
        {
            core.sets.hold(out);
            return Ok(out);
        }
        let result = self.exported_before(core, prefix, set, from, source);
        // Until the end of the slice whoever was told it holds it.
        self.last_export = result.ok().map(|out| (set, source, out));
        result
    }

    /// What the group was told of a path before, or else what it is told now.
    fn exported_before(
        &mut self,
        core: &mut Core,
        prefix: P,
        set: AttrId,
        from: From,
        source: u16,
    ) -> Result<AttrId, NotAdvertised> {
        let set_epoch = core.sets.epoch(set);
        if let Some(known) = self.remembered.get(set.0 as usize)
            && (known.set_epoch, known.source) == (set_epoch, source)
        {
            if known.out == AttrId::NONE {
                return Err(NotAdvertised::NoBestPath);
            }
            if core.sets.is_of_epoch(known.out, known.out_epoch) {
                core.sets.hold(known.out);
                return Ok(known.out);
            }
        }
        let result = export(core, &self.key, prefix, set, from);
        let (out, out_epoch) = result.map_or((AttrId::NONE, 0), |out| (out, core.sets.epoch(out)));
        let at = set.0 as usize;
        if self.remembered.len() <= at {
            let nothing = Remembered { set_epoch: 0, out: AttrId::NONE, out_epoch: 0, source: 0 };
            self.remembered.resize(at + 1, nothing);
        }
        self.remembered[at] = Remembered { set_epoch, out, out_epoch, source };
        result
    }

    /// Compares what is wanted, which is held, with what was told, and puts the difference into the lanes. The new entry,
    /// if it is another one.
    fn change(
        &mut self,
        core: &mut Core,
        prefix: P,
        path_id: PathId,
        told: Told,
        wanted: Option<(AttrId, PeerId)>,
    ) -> Option<Told> {
        let generation = self.epoch;
        let was = told.is_announced().then_some((told.attributes, told.source));
        match (was, wanted) {
            (None, None) => None,
            (Some(old), Some(new)) if old == new => {
                core.release(new.0);
                None
            }
            (Some((old, source)), None) => {
                self.withdraw(self.all_but(source), path_id, prefix);
                core.release(old);
                self.count(source, -1);
                Some(Told { attributes: AttrId::NONE, generation, source })
            }
            (None, Some((attributes, source))) => {
                self.announce(core, attributes, self.all_but(source), path_id, prefix);
                self.count(source, 1);
                Some(Told { attributes, generation, source })
            }
            (Some((old, old_source)), Some((attributes, source))) => {
                let is_member = |peer: PeerId| self.is_member.get(u32::from(peer.0));
                // The same from somebody else: nobody has to be told, unless one of both is told other things than the rest.
                let silent = old == attributes && !is_member(old_source) && !is_member(source);
                if old_source != source && is_member(source) {
                    self.withdraw(Audience::Only(source), path_id, prefix);
                }
                if !silent {
                    self.announce(core, attributes, self.all_but(source), path_id, prefix);
                }
                core.release(old);
                self.count(old_source, -1);
                self.count(source, 1);
                // What is not in the log has to look old to those who walk.
                let generation = if silent { told.generation } else { generation };
                Some(Told { attributes, generation, source })
            }
        }
    }

    /// Nobody is told what came from it.
    fn all_but(&self, source: PeerId) -> Audience {
        if self.is_member.get(u32::from(source.0)) { Audience::Except(source) } else { Audience::All }
    }

    fn announce(&mut self, core: &Core, attributes: AttrId, audience: Audience, path_id: PathId, prefix: P) {
        if self.lanes.announce_key != (attributes, audience) {
            self.write_announced(core);
            self.lanes.announce_key = (attributes, audience);
        }
        self.lanes.announced.push((path_id, prefix));
    }

    fn withdraw(&mut self, audience: Audience, path_id: PathId, prefix: P) {
        if self.lanes.withdraw_key != audience {
            self.write_withdrawn();
            self.lanes.withdraw_key = audience;
        }
        self.lanes.withdrawn.push((path_id, prefix));
    }

    fn write_announced(&mut self, core: &Core) {
        if self.lanes.announced.is_empty() {
            return;
        }
        let (set, audience) = self.lanes.announce_key;
        let via = core.sets.next_hop(set);
        let next_hop = match via {
            NextHopId::OWN => self.key.own_form,
            via => core.next_hops.get(via).map_or(self.key.own_form, |(next_hop, _)| next_hop),
        };
        let mut prefixes = self.lanes.announced.drain(..).peekable();
        while prefixes.peek().is_some() {
            let out = self.log.open();
            let attributes = core.sets.attributes(set);
            let Ok(packed) = encode::announce(out, &self.target, attributes, next_hop, &mut prefixes) else {
                // Export has checked that one prefix fits.
                break;
            };
            let next_hop_at = if via == NextHopId::OWN { u16::try_from(packed.next_hop_at).unwrap_or(0) } else { 0 };
            self.log.commit(packed.length, self.epoch, audience, next_hop_at);
        }
    }

    fn write_withdrawn(&mut self) {
        let mut prefixes = self.lanes.withdrawn.drain(..).peekable();
        while prefixes.peek().is_some() {
            let Ok(packed) = encode::withdraw(self.log.open(), &self.target, &mut prefixes) else {
                break;
            };
            self.log.commit(packed.length, self.epoch, self.lanes.withdraw_key, 0);
        }
    }

    /// There are no sets of these numbers any more.
    fn forget_exports_from(&mut self, end: usize) {
        self.remembered.truncate(end);
        if self.remembered.capacity() / 4 > self.remembered.len() {
            self.remembered.shrink_to_fit();
        }
    }

    /// What was remembered of exports no longer holds.
    pub(super) fn forget_exports(&mut self) {
        self.remembered = Vec::new();
    }
}

impl<P: Prefix> Reading<'_, P> {
    fn is_summarized(self, prefix: P) -> bool {
        self.locals.is_summarized(prefix)
    }
}

/// A number for where a path comes from.
fn source_key(from: From) -> u16 {
    let local = match from.local {
        LocalSource::PodCidr => 0,
        LocalSource::Service => 1,
        LocalSource::NodeAddress => 2,
        LocalSource::Static => 3,
        LocalSource::Aggregate => 4,
    };
    if from.peer == PeerId::LOCAL { u16::MAX - local } else { from.peer.0 }
}
