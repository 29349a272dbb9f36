//! Update groups: peers that are told the same.
//!
//! A group remembers for each destination what its members were told last (the Adj-RIB-Out, one for all of them), which
//! destinations may have changed since, and the messages that say so. Nothing is packed before a member asks for messages
//! and has read all there are: a group whose members are all stuck keeps one bit per change and no more.

use super::{
    Core,
    attributes::AttrId,
    chunked::{Bits, Linked, NONE, Slab, Sparse},
    log::Log,
    member::{Extent, Member, Progress, is_before},
    peer::{NextHopMode, Peer},
    sizes::Sizes,
};
use crate::{
    NextHop,
    family::{Family, PerFamily},
    id::{Asn, PathId, PeerId},
    policy::Policy,
    session::PeerKind,
    wire::{capability::Role, encode::Target, header::LengthLimit},
};

/// What makes peers be told the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GroupKey {
    pub(super) family: Family,
    pub(super) kind: PeerKind,
    /// Our AS as the peer sees it.
    pub(super) local_as: Asn,
    pub(super) asn4: bool,
    pub(super) add_path: bool,
    pub(super) add_path_max: u16,
    pub(super) extended_next_hop: bool,
    pub(super) length_limit: LengthLimit,
    pub(super) reflector_client: bool,
    pub(super) route_server_client: bool,
    pub(super) remove_private_as: bool,
    pub(super) long_lived: bool,
    pub(super) role: Option<Role>,
    pub(super) next_hop: NextHopMode,
    pub(super) watches: bool,
    /// Stands for the own next hop of every member, of which only the form is common.
    pub(super) own_form: NextHop,
    pub(super) policy: Policy,
}

impl GroupKey {
    /// The group of a peer, and its own next hop; `None` without session or next hop for the family.
    pub(super) fn of(peer: &Peer, family: Family) -> Option<(Self, NextHop)> {
        let (session, agreed) = peer.session_family(family)?;
        let own = agreed.own_next_hop.filter(|own| match (family, own) {
            (Family::Ipv4Unicast, NextHop::V4(_)) => true,
            (Family::Ipv4Unicast, NextHop::V6(_) | NextHop::V6Pair { .. }) => agreed.extended_next_hop,
            (Family::Ipv6Unicast, NextHop::V4(_)) => false,
            (Family::Ipv6Unicast, NextHop::V6(_) | NextHop::V6Pair { .. }) => true,
        })?;
        let settings = &peer.settings;
        let key = Self {
            family,
            kind: peer.kind,
            local_as: session.local_as,
            asn4: session.asn4,
            add_path: agreed.add_path_send,
            add_path_max: if agreed.add_path_send { *settings.add_path_max.get(family) } else { 0 },
            extended_next_hop: agreed.extended_next_hop,
            length_limit: session.length_limit,
            reflector_client: settings.reflector_client,
            route_server_client: settings.route_server_client,
            remove_private_as: settings.remove_private_as,
            long_lived: session.long_lived,
            role: session.role,
            next_hop: *settings.next_hop.get(family),
            watches: settings.watches,
            own_form: form_of(own),
            policy: peer.export.get(family).clone(),
        };
        Some((key, own))
    }

    pub(super) fn target(&self) -> Target {
        let add_path = PerFamily { ipv4: self.add_path, ipv6: self.add_path };
        Target { asn4: self.asn4, length_limit: self.length_limit, add_path }
    }
}

/// A next hop of the same length.
fn form_of(own: NextHop) -> NextHop {
    use std::net::{Ipv4Addr, Ipv6Addr};
    match own {
        NextHop::V4(_) => NextHop::V4(Ipv4Addr::UNSPECIFIED),
        NextHop::V6(_) => NextHop::V6(Ipv6Addr::UNSPECIFIED),
        NextHop::V6Pair { .. } => NextHop::V6Pair { global: Ipv6Addr::UNSPECIFIED, link_local: Ipv6Addr::UNSPECIFIED },
    }
}

/// What members were told of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// [`AttrId::NONE`] when it is withdrawn or was never announced.
    pub(super) attributes: AttrId,
    /// The epoch of the last change; 0 when there was none.
    pub(super) generation: u32,
    pub(super) source: PeerId,
}

impl Told {
    pub(super) const NOTHING: Self = Self { attributes: AttrId::NONE, generation: 0, source: PeerId::LOCAL };

    pub(super) fn is_announced(&self) -> bool {
        self.attributes != AttrId::NONE
    }
}

/// What members were told of one of several paths.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToldPath {
    pub(super) told: Told,
    pub(super) path_id: PathId,
    pub(super) next: u32,
}

/// The Adj-RIB-Out, by destination.
#[derive(Debug)]
pub(super) enum Out {
    /// One path each.
    Single(Sparse<Told>),
    /// Several (RFC 7911).
    Several(OutPaths),
}

impl Linked for ToldPath {
    fn link(&self) -> u32 {
        self.next
    }

    fn set_link(&mut self, link: u32) {
        self.next = link;
    }
}

#[derive(Debug)]
pub(super) struct OutPaths {
    pub(super) heads: Sparse<u32>,
    pub(super) paths: Slab<ToldPath>,
    /// How many were entered.
    entered: u64,
    /// How many were freed.
    freed: u64,
    /// What was taken over last: from which group, how many it had entered, how many were freed here.
    taken: (u64, u64, u64),
}

impl OutPaths {
    fn new() -> Self {
        Self { heads: Sparse::new(NONE), paths: Slab::default(), entered: 0, freed: 0, taken: (0, 0, 0) }
    }

    pub(super) fn of(&self, at: u32) -> impl Iterator<Item = (u32, &ToldPath)> {
        let mut next = self.heads.get(at);
        std::iter::from_fn(move || {
            let number = next;
            let path = self.paths.get(number)?;
            next = path.next;
            Some((number, path))
        })
    }

    pub(super) fn insert(&mut self, at: u32, path_id: PathId, told: Told) {
        let path = ToldPath { told, path_id, next: self.heads.get(at) };
        let number = self.paths.insert(path);
        self.heads.set(at, number);
        self.entered += 1;
    }

    /// Frees those of a destination for which `is_over` says so.
    pub(super) fn drop_where(&mut self, at: u32, is_over: impl Fn(&ToldPath) -> bool) {
        let all: Vec<(u32, bool)> = self.of(at).map(|(number, path)| (number, is_over(path))).collect();
        let mut kept = NONE;
        for (number, over) in all.into_iter().rev() {
            if over {
                self.paths.remove(number);
                self.freed += 1;
            } else {
                self.paths.at_mut(number).next = kept;
                kept = number;
            }
        }
        self.heads.set(at, kept);
    }
}

/// A result of export that holds as long as both sets are what they were.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remembered {
    pub(super) set_epoch: u32,
    pub(super) out: AttrId,
    pub(super) out_epoch: u32,
    pub(super) source: u16,
}

#[derive(Debug)]
pub(super) struct Group<P> {
    /// No other group ever had it. Never 0.
    number: u64,
    pub(super) key: GroupKey,
    pub(super) sizes: Sizes,
    pub(super) target: Target,
    pub(super) members: Vec<Member>,
    pub(super) is_member: Bits,
    pub(super) out: Out,
    pub(super) is_pending: Bits,
    /// Destinations to look at once the owner says so.
    pub(super) pending: Vec<u32>,
    /// Destinations to look at now, the next one last.
    pub(super) batch: Vec<u32>,
    /// How many times there was one.
    pub(super) batches: u64,
    /// The owner has said so.
    pub(super) flush: bool,
    pub(super) log: Log,
    /// Never 0.
    pub(super) epoch: u32,
    /// By number of the set.
    pub(super) remembered: Vec<Remembered>,
    /// The last set, its source and what is told of it, within one slice of packing.
    pub(super) last_export: Option<(AttrId, u16, AttrId)>,
    /// Announced paths.
    pub(super) announced: u32,
    /// Of these, by the peer they came from.
    pub(super) announced_by_source: Vec<u32>,
    /// What slow members have yet to hear, as of [`Self::refresh_needs`].
    pub(super) needs: Extent,
    pub(super) lanes: super::pack::Lanes<P>,
}

impl<P> Group<P> {
    pub(super) fn new(number: u64, key: GroupKey, sizes: Sizes) -> Self {
        let out = if key.add_path { Out::Several(OutPaths::new()) } else { Out::Single(Sparse::new(Told::NOTHING)) };
        Self {
            number,
            target: key.target(),
            key,
            sizes,
            members: Vec::new(),
            is_member: Bits::default(),
            out,
            is_pending: Bits::default(),
            pending: Vec::new(),
            batch: Vec::new(),
            batches: 0,
            flush: false,
            log: Log::new(sizes),
            epoch: 1,
            remembered: Vec::new(),
            last_export: None,
            announced: 0,
            announced_by_source: Vec::new(),
            needs: Extent::Nothing,
            lanes: super::pack::Lanes::default(),
        }
    }

    pub(super) const fn sends_several(&self) -> bool {
        matches!(self.out, Out::Several(_))
    }

    #[inline]
    pub(super) fn mark_pending(&mut self, at: u32) {
        if self.is_pending.set(at) {
            self.pending.push(at);
        }
    }

    pub(super) fn next_epoch(&mut self) -> u32 {
        let before = self.epoch;
        self.epoch = self.epoch.wrapping_add(1).max(1);
        before
    }

    pub(super) fn member_mut(&mut self, peer: PeerId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.peer == peer)
    }

    pub(super) fn member(&self, peer: PeerId) -> Option<&Member> {
        self.members.iter().find(|member| member.peer == peer)
    }

    /// What a member has yet to hear.
    pub(super) fn need_of(&self, member: &Member) -> Extent {
        match member.progress {
            Progress::Reading(cursor) if cursor >= self.log.head() => Extent::Nothing,
            Progress::Reading(_) => Extent::Since(member.read_epoch),
            Progress::Scanning(scan) => {
                let later = Extent::Since(scan.resume_epoch.wrapping_add(1));
                scan.withdraw.union(later)
            }
        }
    }

    /// Looks how far the members are.
    pub(super) fn refresh_needs(&mut self) {
        self.needs = self.members.iter().map(|member| self.need_of(member)).fold(Extent::Nothing, Extent::union);
    }

    /// How many paths it knows with an identifier, announced or not.
    #[cfg(test)]
    pub(super) fn known_paths(&self) -> usize {
        match &self.out {
            Out::Single(_) => 0,
            Out::Several(out) => (0..out.heads.end()).map(|at| out.of(at).count()).sum(),
        }
    }

    /// Has every member heard that nothing leads to this destination any more? As of the last [`Self::refresh_needs`].
    pub(super) fn is_done_with(&self, at: u32) -> bool {
        let over = |told: &Told| is_over(told, self.needs);
        !self.is_pending.get(at)
            && match &self.out {
                Out::Single(out) => over(&out.get(at)),
                Out::Several(out) => out.of(at).all(|(_, path)| over(&path.told)),
            }
    }

    /// Notes what members of another group were told and those of this one never: a member that comes from there has to be
    /// told when it is gone, and nobody else will know then which identifiers its paths had (RFC 7911). The first of several
    /// members that come at once pays for all of them.
    pub(super) fn take_over(&mut self, from: &Self) {
        let generation = self.epoch;
        let (Out::Several(own), Out::Several(other)) = (&mut self.out, &from.out) else {
            return;
        };
        if own.taken == (from.number, other.entered, own.freed) {
            return;
        }
        for at in 0..other.heads.end() {
            for (_, path) in other.of(at) {
                if own.of(at).all(|(_, known)| known.path_id != path.path_id) {
                    own.insert(
                        at,
                        path.path_id,
                        Told { attributes: AttrId::NONE, generation, source: path.told.source },
                    );
                }
            }
        }
        own.taken = (from.number, other.entered, own.freed);
    }

    /// Frees what was taken over and is withdrawn now, as a member has been told in a walk up to `until`.
    pub(super) fn drop_over(&mut self, peer: PeerId, until: u32, destinations: std::ops::Range<u32>) {
        let others = self.members.iter().filter(|member| member.peer != peer);
        let needs = others.map(|member| self.need_of(member)).fold(Extent::Nothing, Extent::union);
        let Out::Several(out) = &mut self.out else {
            return;
        };
        // What is younger than the walk is in the log, and may have to be told again if that goes on without this member.
        let is_over = |path: &ToldPath| !is_before(until, path.told.generation) && is_over(&path.told, needs);
        for at in destinations {
            out.drop_where(at, is_over);
        }
    }

    /// Makes the place of a destination free for another one.
    pub(super) fn forget(&mut self, at: u32) {
        match &mut self.out {
            Out::Single(out) => out.set(at, Told::NOTHING),
            Out::Several(out) => out.drop_where(at, |_| true),
        }
    }

    /// Members that hold up others: those that have most to hear.
    pub(super) fn slowest(&self) -> Vec<PeerId> {
        let needs: Vec<(PeerId, Extent)> =
            self.members.iter().map(|member| (member.peer, self.need_of(member))).collect();
        let all = needs.iter().map(|(_, need)| *need).fold(Extent::Nothing, Extent::union);
        let is_slowest = |need: &Extent| *need != Extent::Nothing && need.union(all) == *need;
        needs.iter().filter(|(_, need)| is_slowest(need)).map(|(peer, _)| *peer).collect()
    }

    /// Counts a path in or out.
    pub(super) fn count(&mut self, source: PeerId, by: i32) {
        self.announced = self.announced.wrapping_add_signed(by);
        if source == PeerId::LOCAL {
            return;
        }
        if self.announced_by_source.len() <= source.index() {
            self.announced_by_source.resize(source.index() + 1, 0);
        }
        let count = &mut self.announced_by_source[source.index()];
        *count = count.wrapping_add_signed(by);
    }

    /// Paths that a member is told when it has read everything.
    pub(super) fn advertised(&self, peer: PeerId) -> u32 {
        self.announced - self.announced_by_source.get(peer.index()).copied().unwrap_or(0)
    }

    /// Gives back the sets of destinations from `from` on, `left` at most; `None` when that was all.
    pub(super) fn dismantle(&mut self, core: &mut Core, from: u32, left: &mut usize) -> Option<u32> {
        let mut at = from;
        match &self.out {
            Out::Single(out) => {
                while *left > 0 && at < out.end() {
                    if out.get(at).is_announced() {
                        core.release(out.get(at).attributes);
                    }
                    at += 1;
                    *left -= 1;
                }
                (at < out.end()).then_some(at)
            }
            Out::Several(out) => {
                while *left > 0 && at < out.heads.end() {
                    for (_, path) in out.of(at).filter(|(_, path)| path.told.is_announced()) {
                        core.release(path.told.attributes);
                    }
                    at += 1;
                    *left -= 1;
                }
                (at < out.heads.end()).then_some(at)
            }
        }
    }
}

/// Is this withdrawn, and has everybody who needs to know heard of it?
pub(super) fn is_over(told: &Told, needs: Extent) -> bool {
    !told.is_announced()
        && match needs {
            Extent::Nothing => true,
            Extent::Since(epoch) => told.generation == 0 || is_before(told.generation, epoch),
            // Somebody came from another group, which may have told what this one never knew.
            Extent::Everything => false,
        }
}
