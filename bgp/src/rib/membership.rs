//! Members come, read, fall behind, ask again and go.

use super::{
    Core, FamilyTable, Rib,
    attributes::AttrId,
    end_of_rib::{Decisions, EndOfRib},
    group::{Group, GroupKey, Out, Told},
    jobs::{Job, JobKind},
    member::{Extent, Member, Progress, Scan, is_before},
    next_hops::NextHopId,
    pack::Reading,
    sizes::Sizes,
    with_table,
};
use crate::{
    NextHop,
    family::{Family, Prefix},
    id::{PathId, PeerId},
    wire::{
        encode,
        route_refresh::{RefreshKind, RouteRefresh},
    },
};

impl Rib {
    /// Lets what was decided since the last call be packed into messages. Call it when the input is idle or a short time
    /// has passed: until then, changes of one prefix become one.
    pub fn flush_exports(&mut self) {
        self.tables.ipv4.flush();
        self.tables.ipv6.flush();
    }

    /// Is there anything that [`Self::flush_exports`] would let be packed?
    #[must_use]
    pub fn wants_flush(&self) -> bool {
        self.tables.ipv4.wants_flush() || self.tables.ipv6.wants_flush()
    }

    /// Appends the next messages for a peer, until `out` is `max_octets` long or there are none. One message, or what one
    /// slice of a walk gives, may go beyond. True when there is more.
    pub fn poll_export(&mut self, peer: PeerId, out: &mut Vec<u8>, max_octets: usize) -> bool {
        let Some(state) = self.core.peers.get_mut(peer) else {
            return false;
        };
        // Take turns, so that one family does not starve the other.
        let first = if state.polled == Family::Ipv4Unicast { Family::Ipv6Unicast } else { Family::Ipv4Unicast };
        state.polled = first;
        let [ipv4, ipv6] = Family::ALL;
        let order = if first == ipv4 { [ipv4, ipv6] } else { [ipv6, ipv4] };
        let mut more = false;
        for family in order {
            more |= with_table!(self.tables, family, table => table.poll(&mut self.core, peer, out, max_octets));
        }
        more
    }

    /// Has the peer anything to be told, or to be looked at for it?
    #[must_use]
    pub fn has_exports(&self, peer: PeerId) -> bool {
        self.tables.ipv4.has_exports(&self.core, peer) || self.tables.ipv6.has_exports(&self.core, peer)
    }

    /// How far a peer is behind: messages it has not read, and destinations that were not packed or walked yet.
    #[must_use]
    pub fn export_lag(&self, peer: PeerId) -> u64 {
        self.tables.ipv4.lag(&self.core, peer) + self.tables.ipv6.lag(&self.core, peer)
    }

    /// The peer asked for everything again (RFC 2918).
    pub fn refresh_requested(&mut self, peer: PeerId, family: Family) {
        with_table!(self.tables, family, table => table.refresh(&self.core, peer));
    }
}

impl<P: Prefix> FamilyTable<P> {
    fn poll(&mut self, core: &mut Core, peer: PeerId, out: &mut Vec<u8>, max_octets: usize) -> bool {
        let Some(number) = core.peers.get(peer).and_then(|peer| *peer.group.get(P::FAMILY)) else {
            return false;
        };
        let decisions = self.decisions();
        let Self { table, locals, groups, deferred, .. } = self;
        let Some(Some(group)) = groups.get_mut(number) else {
            return false;
        };
        if *deferred {
            return false;
        }
        group.poll(core, Reading { table, locals }, peer, out, max_octets, decisions)
    }

    pub(super) fn group_of(&self, core: &Core, peer: PeerId) -> Option<&Group<P>> {
        let number = (*core.peers.get(peer)?.group.get(P::FAMILY))?;
        self.groups.get(number)?.as_ref()
    }

    fn wants_flush(&self) -> bool {
        self.groups.iter().flatten().any(|group| !group.pending.is_empty() && !group.flush)
    }

    fn has_exports(&self, core: &Core, peer: PeerId) -> bool {
        let Some((group, member)) = self.group_of(core, peer).and_then(|group| Some((group, group.member(peer)?)))
        else {
            return false;
        };
        let reads = member.progress == Progress::Reading(group.log.head());
        !self.deferred && (!reads || member.owes_end_of_rib() || group.flush || !group.batch.is_empty())
    }

    fn lag(&self, core: &Core, peer: PeerId) -> u64 {
        let Some((group, member)) = self.group_of(core, peer).and_then(|group| Some((group, group.member(peer)?)))
        else {
            return 0;
        };
        let packed = match member.progress {
            Progress::Reading(cursor) => group.log.head().saturating_sub(cursor),
            Progress::Scanning(scan) => u64::from(group.out_end().saturating_sub(scan.at)),
        };
        packed + (group.batch.len() + group.pending.len()) as u64
    }

    /// Puts a peer into the group where it belongs; into another one when its key changed.
    pub(super) fn join(&mut self, core: &mut Core, peer: PeerId) {
        let wanted = core.peers.get(peer).and_then(|state| GroupKey::of(state, P::FAMILY));
        let current = core.peers.get(peer).and_then(|state| *state.group.get(P::FAMILY));
        let Some((key, own)) = wanted else {
            self.leave(core, peer);
            return;
        };
        if let Some(Some(group)) = current.and_then(|number| self.groups.get_mut(number))
            && group.key == key
        {
            group.set_own_next_hop(peer, own);
            return;
        }
        let was_member = current.is_some();
        let owes = self.group_of(core, peer).and_then(|group| group.member(peer)).is_none_or(Member::owes_end_of_rib);
        let number = self.find_or_make_group(core.sizes, key);
        if let Some(current) = current
            && let Ok([Some(old), Some(new)]) = self.groups.get_disjoint_mut([current, number])
        {
            new.take_over(old);
        }
        self.leave(core, peer);
        if let Some(state) = core.peers.get_mut(peer) {
            *state.group.get_mut(P::FAMILY) = Some(number);
        }
        if let Some(Some(group)) = self.groups.get_mut(number) {
            group.add_member(peer, own, if was_member { Extent::Everything } else { Extent::Nothing }, owes);
        }
    }

    fn find_or_make_group(&mut self, sizes: Sizes, key: GroupKey) -> usize {
        if let Some(found) = self.groups.iter().position(|group| group.as_ref().is_some_and(|group| group.key == key)) {
            return found;
        }
        self.groups_made += 1;
        let mut group = Group::new(self.groups_made, key, sizes);
        for at in 0..self.table.end() {
            if self.table.get_destination(at).is_some() && self.table.best(at).is_some() {
                group.mark_pending(at);
            }
        }
        group.flush = !group.pending.is_empty();
        match self.groups.iter().position(Option::is_none) {
            Some(free) => {
                self.groups[free] = Some(group);
                free
            }
            None => {
                self.groups.push(Some(group));
                self.groups.len() - 1
            }
        }
    }

    /// Takes a peer out of its group; a group without members goes.
    pub(super) fn leave(&mut self, core: &mut Core, peer: PeerId) {
        let Some(number) = core.peers.get_mut(peer).and_then(|state| state.group.get_mut(P::FAMILY).take()) else {
            return;
        };
        let Some(slot) = self.groups.get_mut(number) else {
            return;
        };
        if let Some(group) = slot {
            group.members.retain(|member| member.peer != peer);
            group.is_member.clear(u32::from(peer.0));
            if group.members.is_empty()
                && let Some(group) = slot.take()
            {
                self.dying.push_back((group, 0));
            }
        }
    }

    /// Gives back what groups without members held.
    pub(super) fn dismantle(&mut self, core: &mut Core, left: &mut usize) {
        while *left > 0
            && let Some((mut group, from)) = self.dying.pop_front()
        {
            if let Some(next) = group.dismantle(core, from, left) {
                self.dying.push_front((group, next));
            }
        }
    }

    fn refresh(&mut self, core: &Core, peer: PeerId) {
        let Some(state) = core.peers.get(peer) else {
            return;
        };
        let bracket = state.session.as_ref().is_some_and(|session| session.enhanced_refresh);
        if let Some(Some(group)) = state.group.get(P::FAMILY).and_then(|number| self.groups.get_mut(number)) {
            group.rescan(peer, Extent::Everything, bracket);
        }
    }

    /// What a peer says of its paths may mean something else to others now.
    pub(super) fn source_changed(&mut self, peer: Option<PeerId>) {
        for group in self.groups.iter_mut().flatten() {
            group.forget_exports();
        }
        if peer.is_none() {
            self.add_job(Job::new(JobKind::Reexport));
        }
    }
}

impl<P: Prefix> Group<P> {
    fn out_end(&self) -> u32 {
        match &self.out {
            Out::Single(out) => out.end(),
            Out::Several(out) => out.heads.end(),
        }
    }

    fn add_member(&mut self, peer: PeerId, own_next_hop: NextHop, withdraw: Extent, owes_end_of_rib: bool) {
        self.is_member.set(u32::from(peer.0));
        let scan = self.begin_scan(Extent::Everything, withdraw, false);
        let progress = Progress::Scanning(scan);
        self.members.push(Member {
            peer,
            own_next_hop,
            progress,
            read_epoch: scan.resume_epoch,
            end_of_rib: if owes_end_of_rib { EndOfRib::Due } else { EndOfRib::Told },
        });
    }

    /// A member that names itself otherwise than before tells everything again.
    fn set_own_next_hop(&mut self, peer: PeerId, own: NextHop) {
        let Some(member) = self.member_mut(peer).filter(|member| member.own_next_hop != own) else {
            return;
        };
        member.own_next_hop = own;
        self.rescan(peer, Extent::Everything, false);
    }

    fn begin_scan(&mut self, announce: Extent, withdraw: Extent, bracket: bool) -> Scan {
        let resume_epoch = self.next_epoch();
        Scan { at: 0, announce, withdraw, resume: self.log.head(), resume_epoch, bracket }
    }

    /// Has a member walk again for `announce` and for what it had not heard.
    fn rescan(&mut self, peer: PeerId, announce: Extent, bracket: bool) {
        let Some(member) = self.member(peer) else {
            return;
        };
        let mut missed = self.need_of(member);
        let mut announce = announce.union(missed);
        let mut bracket = bracket;
        if let Progress::Scanning(scan) = member.progress {
            missed = missed.union(scan.withdraw);
            announce = announce.union(scan.announce);
            bracket |= scan.bracket;
        }
        let scan = self.begin_scan(announce, missed, bracket);
        if let Some(member) = self.member_mut(peer) {
            member.progress = Progress::Scanning(scan);
        }
    }

    fn poll(
        &mut self,
        core: &mut Core,
        reading: Reading<'_, P>,
        peer: PeerId,
        out: &mut Vec<u8>,
        max_octets: usize,
        decisions: Decisions,
    ) -> bool {
        let mut more = true;
        for _ in 0..self.sizes.slices_max {
            if out.len() >= max_octets {
                break;
            }
            self.end_of_rib(peer, out, decisions);
            let Some(member) = self.member(peer) else {
                return false;
            };
            match member.progress {
                Progress::Scanning(scan) if self.must_pack_before(scan) => self.pack_before(core, reading, peer, scan),
                Progress::Scanning(scan) => self.scan(core, reading, peer, scan, out),
                Progress::Reading(cursor) if cursor < self.log.first() => self.fall_behind(peer),
                Progress::Reading(cursor) if cursor < self.log.head() => self.copy(peer, cursor, out, max_octets),
                Progress::Reading(_) => {
                    if !self.pack(core, reading) {
                        more = false;
                        break;
                    }
                    self.trim();
                }
            }
        }
        self.trim();
        more
    }

    /// Forgets what all who read have read.
    fn trim(&mut self) {
        let cursors = self.members.iter().map(|member| match member.progress {
            Progress::Reading(cursor) => cursor,
            Progress::Scanning(scan) => scan.resume,
        });
        self.log.trim(cursors.min().unwrap_or(u64::MAX));
    }

    /// The log has gone on without this member.
    fn fall_behind(&mut self, peer: PeerId) {
        let since = self.member(peer).map_or(Extent::Nothing, |member| match member.progress {
            // Nobody knows when the next record was written: the epoch in which it had read everything before.
            Progress::Reading(_) => Extent::Since(member.read_epoch),
            Progress::Scanning(scan) => Extent::Since(scan.resume_epoch),
        });
        let scan = self.begin_scan(since, since, false);
        if let Some(member) = self.member_mut(peer) {
            member.progress = Progress::Scanning(scan);
        }
    }

    /// Copies messages from the log.
    fn copy(&mut self, peer: PeerId, cursor: u64, out: &mut Vec<u8>, max_octets: usize) {
        let Self { log, members, .. } = self;
        let Some(member) = members.iter_mut().find(|member| member.peer == peer) else {
            return;
        };
        let mut next = cursor;
        let mut own = Vec::with_capacity(32);
        member.own_next_hop.write(&mut own);
        for (record, octets) in log.read(cursor) {
            if out.len() >= max_octets {
                break;
            }
            next += 1;
            member.read_epoch = record.epoch;
            if !record.audience.includes(peer) {
                continue;
            }
            let start = out.len();
            out.extend_from_slice(octets);
            let at = start + usize::from(record.next_hop_at);
            if record.next_hop_at != 0
                && let Some(field) = out.get_mut(at..at + own.len())
            {
                field.copy_from_slice(&own);
            }
        }
        member.progress = Progress::Reading(next);
    }

    /// A member that was told things by another group is told by the walk what is no longer so. What the group has not looked
    /// at yet is no reason for that: it would be withdrawn and announced again a moment later.
    fn must_pack_before(&self, scan: Scan) -> bool {
        let is_new_here = scan.at == 0 && scan.withdraw == Extent::Everything;
        is_new_here && !(self.pending.is_empty() && self.batch.is_empty())
    }

    /// Packs a slice, and lets the walk begin behind it.
    fn pack_before(&mut self, core: &mut Core, reading: Reading<'_, P>, peer: PeerId, scan: Scan) {
        self.flush |= !self.pending.is_empty();
        self.pack(core, reading);
        let resume_epoch = self.next_epoch();
        let scan = Scan { resume: self.log.head(), resume_epoch, ..scan };
        if let Some(member) = self.member_mut(peer) {
            member.progress = Progress::Scanning(scan);
        }
        self.trim();
    }

    /// One window of a member's walk.
    fn scan(&mut self, core: &mut Core, reading: Reading<'_, P>, peer: PeerId, scan: Scan, out: &mut Vec<u8>) {
        if scan.at == 0 && scan.bracket {
            RouteRefresh::new(P::FAMILY, RefreshKind::Begin).encode(out);
        }
        let Some(own) = self.member(peer).map(|member| member.own_next_hop) else {
            return;
        };
        // With withdrawals of everything, what the group never knew is withdrawn too.
        let end = if scan.withdraw == Extent::Everything { reading.table.end() } else { self.out_end() };
        let until = end.min(scan.at.saturating_add(self.sizes.scan_window));
        let mut window = Window::default();
        for at in scan.at..until {
            self.look(&mut window, reading, peer, scan, at);
        }
        window.write(core, self, own, out);
        if scan.withdraw == Extent::Everything {
            self.drop_over(peer, scan.resume_epoch, scan.at..until);
        }
        let progress = if until < end {
            Progress::Scanning(Scan { at: until.max(1), ..scan })
        } else {
            if scan.bracket {
                RouteRefresh::new(P::FAMILY, RefreshKind::End).encode(out);
            }
            Progress::Reading(scan.resume)
        };
        if let Some(member) = self.member_mut(peer) {
            member.progress = progress;
            member.read_epoch = scan.resume_epoch;
        }
    }

    /// Notes what a member is to be told of one destination.
    fn look(&self, window: &mut Window<P>, reading: Reading<'_, P>, peer: PeerId, scan: Scan, at: u32) {
        let Some(destination) = reading.table.get_destination(at) else {
            return;
        };
        let prefix = destination.prefix;
        let mut note = |told: &Told, path_id: PathId| {
            if told.is_announced() && told.source != peer {
                // What is younger than the walk will be read in the log.
                if scan.announce.includes(told.generation) && !is_before(scan.resume_epoch, told.generation) {
                    window.announced.push((told.attributes, path_id, prefix));
                }
            } else if told.generation != 0 && scan.withdraw.includes(told.generation)
                || scan.withdraw == Extent::Everything
            {
                // However young: the log may tell this to others only, who heard of what this member missed.
                window.withdrawn.push((path_id, prefix));
            }
        };
        match &self.out {
            Out::Single(told) => note(&told.get(at), PathId(0)),
            // What another group told is here since the member came from there.
            Out::Several(told) => told.of(at).for_each(|(_, path)| note(&path.told, path.path_id)),
        }
    }
}

/// What one window of a walk found.
struct Window<P> {
    announced: Vec<(AttrId, PathId, P)>,
    withdrawn: Vec<(PathId, P)>,
}

impl<P> Default for Window<P> {
    fn default() -> Self {
        Self { announced: Vec::new(), withdrawn: Vec::new() }
    }
}

impl<P: Prefix> Window<P> {
    /// Writes messages, withdrawals first.
    fn write(mut self, core: &Core, group: &Group<P>, own: NextHop, out: &mut Vec<u8>) {
        let mut withdrawn = self.withdrawn.into_iter().peekable();
        while withdrawn.peek().is_some() && encode::withdraw(out, &group.target, &mut withdrawn).is_ok() {}
        self.announced.sort_by_key(|(set, ..)| *set);
        for run in self.announced.chunk_by(|a, b| a.0 == b.0) {
            let Some((set, ..)) = run.first() else {
                continue;
            };
            let next_hop = match core.sets.next_hop(*set) {
                NextHopId::OWN => own,
                via => core.next_hops.get(via).map_or(own, |(next_hop, _)| next_hop),
            };
            let attributes = core.sets.attributes(*set);
            let mut prefixes = run.iter().map(|(_, path_id, prefix)| (*path_id, *prefix)).peekable();
            while prefixes.peek().is_some()
                && encode::announce(out, &group.target, attributes, next_hop, &mut prefixes).is_ok()
            {}
        }
    }
}
