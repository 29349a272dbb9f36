//! From a peer's UPDATE into the table.

use std::convert::Infallible;

use ipnet::IpNet;
use thiserror::Error;

use super::{
    Core, FamilyTable, Rib, Stored,
    attributes::AttrId,
    chunked::NONE,
    next_hops::{NextHopId, Scope},
    peer::Peer,
    reasons::Rejection,
    table::{Imported, Path, is, mark},
};
use crate::{
    NextHop,
    family::{Family, Prefix},
    id::{Asn, Moment, PathId, PeerId},
    policy::{Candidate, Edited, NextHopEdit, Outcome, Policy, Source},
    session::PeerKind,
    wire::{
        as_path::SegmentKind,
        attributes::{Attributes, Builder, code},
        capability::Role,
    },
};

/// Prefixes of a message that are read from memory together. Processors have about so many reads under way.
const AHEAD: usize = 8;

/// Why not all of a message was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AnnounceError {
    /// The peer is not known, or its session is down.
    #[error("peer {} has no session", .0.0)]
    NoSession(PeerId),
    /// The peer has sent more than it may.
    #[error(transparent)]
    Limit(#[from] LimitReached),
}

/// A peer has sent more prefixes of a family than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("more than {max} {family} prefixes {kind}")]
pub struct LimitReached {
    /// The family.
    pub family: Family,
    /// Counted where.
    pub kind: LimitKind,
    /// The limit.
    pub max: u32,
}

/// Where a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// Before policy.
    Received,
    /// After policy.
    Accepted,
}

impl std::fmt::Display for LimitKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Received => "received",
            Self::Accepted => "accepted",
        })
    }
}

/// What came of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The peer has just come near its limit; said once, until it was below again.
    pub near_limit: bool,
}

/// Where one message comes from, as far as each of its prefixes needs it.
struct Sender {
    peer: PeerId,
    since_s: u32,
    received: AttrId,
    import: Policy,
    /// The answer for all prefixes that the guard lets pass, when it is the same.
    imported: Option<Imported>,
    received_max: u32,
    accepted_max: u32,
    limits: (Option<u32>, Option<u32>),
}

impl Rib {
    /// Takes in the announced prefixes of one UPDATE. At a limit the rest is left out.
    ///
    /// # Errors
    /// When there is no such session, or the peer is at its limit.
    pub fn announce<P: Stored>(
        &mut self,
        peer: PeerId,
        attributes: &[u8],
        next_hop: NextHop,
        prefixes: impl IntoIterator<Item = (PathId, P)>,
        now: Moment,
    ) -> Result<Announced, AnnounceError> {
        let core = &mut self.core;
        let state = core.peers.get(peer).filter(|peer| peer.session.is_some()).ok_or(AnnounceError::NoSession(peer))?;
        let (limits, import) = (*state.settings.limits.get(P::FAMILY), state.import.get(P::FAMILY).clone());
        let scope = scope_of(next_hop, state.settings.scope);
        let via = core.next_hops.enter(next_hop, scope);
        let received = core.sets.intern(attributes, via, &mut core.next_hops);
        let mut sender = Sender {
            peer,
            since_s: seconds(now),
            received,
            imported: None,
            received_max: limits.received_max.filter(|_| !limits.warns_only).unwrap_or(u32::MAX),
            accepted_max: limits.accepted_max.filter(|_| !limits.warns_only).unwrap_or(u32::MAX),
            limits: (limits.received_max, limits.accepted_max),
            import,
        };
        let table = P::of_mut(&mut self.tables);
        let outcome = table.by_steps(core, prefixes, |table, core, path_id, prefix| {
            table.announce_one(core, &mut sender, path_id, prefix)
        });
        if let Some(imported) = sender.imported {
            release_imported(core, imported);
        }
        core.release(received);
        table.check_tombstones(core.sizes.tombstones_max);
        outcome?;
        Ok(Announced { near_limit: self.warns(peer, P::FAMILY) })
    }

    /// Takes prefixes of a peer back. What it has not announced is no error.
    pub fn withdraw<P: Stored>(&mut self, peer: PeerId, prefixes: impl IntoIterator<Item = (PathId, P)>) {
        let table = P::of_mut(&mut self.tables);
        let withdrawn: Result<(), Infallible> =
            table.by_steps(&mut self.core, prefixes, |table, core, path_id, prefix| {
                if let Some(at) = table.table.find(prefix)
                    && let Some(path) = table.find_path(at, peer, path_id)
                {
                    table.remove_path(core, at, path);
                }
                Ok(())
            });
        let Ok(()) = withdrawn;
    }

    /// True once when the peer comes near its limit.
    fn warns(&mut self, id: PeerId, family: Family) -> bool {
        let Some(peer) = self.core.peers.get_mut(id) else {
            return false;
        };
        let (limits, counts) = (*peer.settings.limits.get(family), *peer.counts.get(family));
        let reached = |max: Option<u32>, count: u32| {
            let percent = u64::from(limits.warning_percent);
            max.is_some_and(|max| percent > 0 && u64::from(count) * 100 >= u64::from(max) * percent)
        };
        let near = reached(limits.received_max, counts.received) || reached(limits.accepted_max, counts.accepted);
        let warned = std::mem::replace(peer.warned.get_mut(family), near);
        near && !warned
    }
}

impl<P: Prefix> FamilyTable<P> {
    /// Does something with each prefix, up to the first error; what they need is read a few prefixes ahead.
    fn by_steps<E>(
        &mut self,
        core: &mut Core,
        prefixes: impl IntoIterator<Item = (PathId, P)>,
        mut each: impl FnMut(&mut Self, &mut Core, PathId, P) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut prefixes = prefixes.into_iter();
        loop {
            let step: [Option<(PathId, P)>; AHEAD] = std::array::from_fn(|_| prefixes.next());
            if step[1].is_some() {
                core.sets.read_ahead(self.table.read_ahead(&step));
            }
            for entry in step {
                let Some((path_id, prefix)) = entry else { return Ok(()) };
                each(self, core, path_id, prefix)?;
            }
        }
    }

    fn announce_one(
        &mut self,
        core: &mut Core,
        sender: &mut Sender,
        path_id: PathId,
        prefix: P,
    ) -> Result<(), LimitReached> {
        let at = self.table.find_or_insert(prefix);
        let known = self.find_path(at, sender.peer, path_id);
        let counts = core.peers.get(sender.peer).map(|peer| *peer.counts.get(P::FAMILY)).unwrap_or_default();
        if known.is_none() && counts.received >= sender.received_max {
            self.bury_if_empty(at);
            return Err(sender.reached(P::FAMILY, LimitKind::Received));
        }
        let imported = match (sender.import.check_prefix(&prefix.to_net()), sender.imported) {
            (Some(rule), _) => Imported::rejected(Rejection::Policy(rule)),
            (None, Some(imported)) => {
                hold_imported(core, imported);
                imported
            }
            (None, None) => self.import_first(core, sender, prefix),
        };
        let was_accepted = known.is_some_and(|path| self.table.path(path).imported.attributes().is_some());
        if imported.attributes().is_some() && !was_accepted && counts.accepted >= sender.accepted_max {
            release_imported(core, imported);
            self.bury_if_empty(at);
            return Err(sender.reached(P::FAMILY, LimitKind::Accepted));
        }
        core.sets.hold(sender.received);
        match known {
            Some(path) => self.replace_path(core, at, path, sender, imported),
            None => self.add_path(core, at, path_id, sender, imported),
        }
        Ok(())
    }

    /// Asks the policy, and remembers the answer when it holds for the whole message.
    fn import_first(&mut self, core: &mut Core, sender: &mut Sender, prefix: P) -> Imported {
        let imported = import_rules(core, sender.peer, sender.received, prefix);
        if !sender.import.rules_depend_on_prefix() || imported.rejection().is_some_and(|why| !is_of_policy(why)) {
            hold_imported(core, imported);
            sender.imported = Some(imported);
        }
        imported
    }

    fn add_path(&mut self, core: &mut Core, at: u32, path_id: PathId, sender: &Sender, imported: Imported) {
        let path = Path {
            received: sender.received,
            imported,
            next: NONE,
            path_id,
            since_s: sender.since_s,
            peer: sender.peer,
            flags: 0,
        };
        self.table.insert_path(at, path);
        self.count(core, sender.peer, |counts| {
            counts.received += 1;
            counts.accepted += u32::from(imported.attributes().is_some());
        });
        self.touch(at, 0);
    }

    /// Writes what was sent over what was known. The references of the new are taken over, those of the old given back.
    fn replace_path(&mut self, core: &mut Core, at: u32, path: u32, sender: &Sender, imported: Imported) {
        let entry = self.table.path_mut(path);
        let old = *entry;
        entry.received = sender.received;
        entry.imported = imported;
        entry.flags &= !(is::STALE | is::LONG_LIVED_STALE | is::AWAITS_REFRESH);
        let changed = old.imported != imported || old.is(is::LONG_LIVED_STALE);
        if changed || old.received != sender.received {
            entry.since_s = sender.since_s;
        }
        if changed {
            let marks = touched_by_change(core, &old, imported);
            self.touch(at, marks);
        }
        let was_stale = u32::from(old.is(is::STALE | is::AWAITS_REFRESH));
        self.count(core, old.peer, |counts| {
            counts.accepted += u32::from(imported.attributes().is_some());
            counts.accepted -= u32::from(old.imported.attributes().is_some());
            counts.stale -= was_stale;
        });
        core.release(old.received);
        release_imported(core, old.imported);
    }

    /// Judges the paths of a peer to an address again, and to all that covers it.
    pub(super) fn reimport_around(&mut self, core: &mut Core, peer: PeerId, address: IpNet) {
        for prefix in std::iter::successors(Some(address), IpNet::supernet) {
            let Some(at) = P::from_net(&prefix).and_then(|prefix| self.table.find(prefix)) else { continue };
            let paths = self.table.paths_of(at).filter(|(_, path)| path.peer == peer).map(|(path, _)| path);
            for path in paths.collect::<Vec<_>>() {
                self.reimport(core, at, path);
            }
        }
    }

    /// Puts what import makes of a path now in the place of what it made of it before.
    pub(super) fn reimport(&mut self, core: &mut Core, at: u32, path: u32) {
        let old = *self.table.path(path);
        let prefix = self.table.destination(at).prefix;
        let mut imported = match old.peer {
            PeerId::LOCAL => return,
            peer => import(core, peer, old.received, prefix),
        };
        core.judged_again += 1;
        if old.is(is::LONG_LIVED_STALE) {
            imported = mark_long_lived(core, imported);
        }
        if imported == old.imported {
            release_imported(core, imported);
            return;
        }
        self.table.path_mut(path).imported = imported;
        let marks = touched_by_change(core, &old, imported);
        self.touch(at, marks);
        self.count(core, old.peer, |counts| {
            counts.accepted += u32::from(imported.attributes().is_some());
            counts.accepted -= u32::from(old.imported.attributes().is_some());
        });
        release_imported(core, old.imported);
    }

    pub(super) fn remove_path(&mut self, core: &mut Core, at: u32, path: u32) {
        let old = self.table.remove_path(at, path);
        let mut marks = 0;
        if old.is(is::BEST) {
            marks |= mark::BEST_TOUCHED;
        }
        if old.is(is::FORWARDED) {
            marks |= mark::FORWARDING_TOUCHED;
        }
        self.touch(at, marks);
        self.count(core, old.peer, |counts| {
            counts.received -= 1;
            counts.accepted -= u32::from(old.imported.attributes().is_some());
            counts.best -= u32::from(old.is(is::BEST));
            counts.stale -= u32::from(old.is(is::STALE | is::AWAITS_REFRESH));
        });
        core.release(old.received);
        release_imported(core, old.imported);
    }

    /// Path of a peer to a destination.
    pub(super) fn find_path(&self, at: u32, peer: PeerId, path_id: PathId) -> Option<u32> {
        let is_it = |(_, path): &(u32, &Path)| path.peer == peer && path.path_id == path_id;
        self.table.paths_of(at).find(is_it).map(|(at, _)| at)
    }

    #[inline]
    pub(super) fn count(&self, core: &mut Core, peer: PeerId, change: impl FnOnce(&mut super::Counts)) {
        if let Some(peer) = core.peers.get_mut(peer) {
            change(peer.counts.get_mut(P::FAMILY));
        }
    }

    /// A destination that was made for a path that was then refused goes the way of all others.
    fn bury_if_empty(&mut self, at: u32) {
        if self.table.destination(at).head == NONE {
            self.touch(at, 0);
        }
    }
}

impl Sender {
    fn reached(&self, family: Family, kind: LimitKind) -> LimitReached {
        let max = match kind {
            LimitKind::Received => self.limits.0,
            LimitKind::Accepted => self.limits.1,
        };
        LimitReached { family, kind, max: max.unwrap_or(u32::MAX) }
    }
}

const fn is_of_policy(why: Rejection) -> bool {
    matches!(why, Rejection::Policy(_))
}

/// Marks for a path whose meaning changes from `old` to `imported`.
fn touched_by_change(core: &Core, old: &Path, imported: Imported) -> u16 {
    let mut marks = 0;
    if old.is(is::BEST) {
        marks |= mark::BEST_TOUCHED;
    }
    if old.is(is::FORWARDED) && !is_forwarded_alike(core, old.imported, imported) {
        marks |= mark::FORWARDING_TOUCHED;
    }
    marks
}

/// Do packets go the same way with both?
fn is_forwarded_alike(core: &Core, a: Imported, b: Imported) -> bool {
    match (a.attributes(), b.attributes()) {
        (Some(a), Some(b)) => {
            let bandwidth = |id| super::decision::link_bandwidth(core.sets.attributes(id).extended_communities());
            core.sets.next_hop(a) == core.sets.next_hop(b)
                && (!core.config.decision.weighted || bandwidth(a) == bandwidth(b))
                && super::fib::mark(core, a) == super::fib::mark(core, b)
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

pub(super) fn seconds(now: Moment) -> u32 {
    u32::try_from(now.0 / 1_000_000).unwrap_or(u32::MAX)
}

pub(super) fn release_imported(core: &mut Core, imported: Imported) {
    if let Some(id) = imported.attributes() {
        core.release(id);
    }
}

fn hold_imported(core: &mut Core, imported: Imported) {
    if let Some(id) = imported.attributes() {
        core.sets.hold(id);
    }
}

/// Link-local next hops are valid on one interface.
fn scope_of(next_hop: NextHop, interface: Scope) -> Scope {
    match next_hop {
        NextHop::V4(address) if address.is_link_local() => interface,
        NextHop::V6(address) if address.is_unicast_link_local() => interface,
        NextHop::V6Pair { .. } => interface,
        NextHop::V4(_) | NextHop::V6(_) => Scope::default(),
    }
}

/// What a received path is to us: guard, checks of the RFCs, policy. The caller holds the result.
pub(super) fn import<P: Prefix>(core: &mut Core, id: PeerId, received: AttrId, prefix: P) -> Imported {
    let guard = core.peers.get(id).and_then(|peer| peer.import.get(P::FAMILY).check_prefix(&prefix.to_net()));
    match guard {
        Some(rule) => Imported::rejected(Rejection::Policy(rule)),
        None => import_rules(core, id, received, prefix),
    }
}

/// The same without the guard, which the prefix has passed.
fn import_rules<P: Prefix>(core: &mut Core, id: PeerId, received: AttrId, prefix: P) -> Imported {
    let Some(peer) = core.peers.get(id) else {
        return Imported::rejected(Rejection::FirstAs);
    };
    if let Some(why) = refuse::<P>(core, peer, received) {
        return Imported::rejected(why);
    }
    let via = core.sets.next_hop(received);
    let otc = otc_to_add(peer, core.sets.attributes(received));
    let with_otc = otc.map(|asn| Builder::of(core.sets.attributes(received)).number(code::OTC, asn.0).build());
    let attributes = with_otc.as_deref().unwrap_or_else(|| core.sets.octets(received));
    let candidate = Candidate {
        prefix: prefix.to_net(),
        attributes: Attributes(attributes),
        next_hop: core.next_hops.get(via).map(|(next_hop, _)| next_hop),
        source: Source::Peer(peer.source()),
        local_as: peer.session.as_ref().map_or(core.config.local_as, |session| session.local_as),
        vrps: core.vrps.as_deref(),
    };
    let decision = peer.import.get(P::FAMILY).evaluate_rules(&candidate);
    let scope = peer.settings.scope;
    let edited = match decision.outcome {
        Outcome::Reject => return Imported::rejected(Rejection::Policy(decision.rule)),
        Outcome::Accept => Edited::default(),
        Outcome::Edit(edited) => edited,
    };
    let via = match edited.next_hop {
        NextHopEdit::Default | NextHopEdit::Unchanged => via,
        NextHopEdit::Own => NextHopId::OWN,
        NextHopEdit::Address(next_hop) => core.next_hops.enter(next_hop, scope_of(next_hop, scope)),
        NextHopEdit::Discard => NextHopId::DISCARD,
    };
    let octets = edited.attributes.or(with_otc);
    let same = octets.as_ref().is_none_or(|octets| **octets == *core.sets.octets(received));
    if same && via == core.sets.next_hop(received) {
        core.sets.hold(received);
        return Imported::accepted(received);
    }
    let octets = octets.unwrap_or_else(|| core.sets.octets(received).to_vec());
    Imported::accepted(core.sets.intern(&octets, via, &mut core.next_hops))
}

/// The checks that no policy can undo.
fn refuse<P: Prefix>(core: &Core, peer: &Peer, received: AttrId) -> Option<Rejection> {
    let attributes = core.sets.attributes(received);
    let path = attributes.as_path();
    let count = |asn: Asn| path.numbers().filter(|number| *number == asn).count();
    let local_as = peer.session.as_ref().map_or(core.config.local_as, |session| session.local_as);
    let own = [Some(local_as), Some(core.config.local_as), core.config.confederation];
    let own_as_max = usize::from(peer.settings.own_as_max);
    if own.into_iter().flatten().any(|asn| count(asn) > own_as_max) {
        return Some(Rejection::AsLoop);
    }
    let is_confederation = |kind: SegmentKind| kind.is_confederation();
    let first_is_confederation = path.segments().next().is_some_and(|segment| is_confederation(segment.kind));
    match peer.kind {
        PeerKind::External => {
            if path.segments().any(|segment| is_confederation(segment.kind)) {
                return Some(Rejection::Confederation);
            }
            if peer.settings.enforce_first_as && path.neighbor() != Some(peer.remote_as) {
                return Some(Rejection::FirstAs);
            }
            if is_leak(peer, attributes) {
                return Some(Rejection::RouteLeak);
            }
        }
        PeerKind::Confederation if !first_is_confederation => return Some(Rejection::Confederation),
        PeerKind::Confederation | PeerKind::Internal => {}
    }
    if attributes.originator_id() == Some(core.config.router_id) {
        return Some(Rejection::OriginatorLoop);
    }
    if attributes.cluster_list().any(|cluster| cluster == core.config.cluster_id) {
        return Some(Rejection::ClusterLoop);
    }
    let (_, family) = peer.session_family(P::FAMILY)?;
    let (next_hop, _) = core.next_hops.get(core.sets.next_hop(received))?;
    let is_own = family.own_next_hop.is_some_and(|own| own.address() == next_hop.address());
    is_own.then_some(Rejection::OwnNextHop)
}

/// RFC 9234 section 5, ingress, the two ways to be a leak.
fn is_leak(peer: &Peer, attributes: Attributes<'_>) -> bool {
    let Some(otc) = attributes.otc() else {
        return false;
    };
    match peer.session.as_ref().and_then(|session| session.role) {
        // From a customer or a client of our route server.
        Some(Role::Provider | Role::RouteServer) => true,
        Some(Role::Peer) => otc != peer.remote_as,
        Some(Role::Customer | Role::RouteServerClient) | None => false,
    }
}

/// RFC 9234 section 5, ingress: what comes down or across is marked.
fn otc_to_add(peer: &Peer, attributes: Attributes<'_>) -> Option<Asn> {
    let comes_down = matches!(
        peer.session.as_ref().and_then(|session| session.role),
        Some(Role::Customer | Role::Peer | Role::RouteServerClient)
    );
    (comes_down && attributes.otc().is_none()).then_some(peer.remote_as)
}

/// Adds LLGR_STALE (RFC 9494 section 4.2); the old result is taken over.
pub(super) fn mark_long_lived(core: &mut Core, imported: Imported) -> Imported {
    use super::attributes::{community, has};
    let Some(id) = imported.attributes() else {
        return imported;
    };
    if core.sets.view(id).has(has::LLGR_STALE) {
        return imported;
    }
    let attributes = core.sets.attributes(id);
    let communities = attributes.communities().chain([community::LLGR_STALE]).collect::<Vec<_>>();
    let octets = Builder::of(attributes).communities(communities).build();
    let marked = core.sets.intern(&octets, core.sets.next_hop(id), &mut core.next_hops);
    core.release(id);
    Imported::accepted(marked)
}
