//! The slices of work between input and output: best path selection, walks through the table, freeing.

use super::{
    Core, FamilyTable, Rib,
    chunked::NONE,
    decision::{self, Contender, Origination},
    next_hops::NextHopId,
    table::{Path, is, mark},
};
use crate::{family::Prefix, id::PeerId};

/// Lists that grew beyond this are given back when they are empty.
const LIST_KEPT_MAX: usize = 65_536;

impl Rib {
    /// Decides destinations, goes on with walks and frees what nobody needs, `budget` steps at most. True when there is
    /// more to do.
    pub fn run(&mut self, budget: usize) -> bool {
        let mut left = budget;
        self.tables.ipv4.run(&mut self.core, &mut left);
        self.tables.ipv6.run(&mut self.core, &mut left);
        // Last: destinations that cannot be freed yet cost steps, and must not keep the other family from being decided.
        let is_spent = left == 0;
        let freed = self.tables.ipv4.reap(&mut left) + self.tables.ipv6.reap(&mut left);
        let has_graves = !self.tables.ipv4.graves.is_empty() || !self.tables.ipv6.graves.is_empty();
        self.drop_leaving();
        // Those that wait for a slow peer are no reason to come again.
        !self.is_idle() || has_graves && (is_spent || left == 0 && freed > 0)
    }
}

impl<P: Prefix> FamilyTable<P> {
    fn run(&mut self, core: &mut Core, left: &mut usize) {
        while *left > 0 && self.run_job(core, left) {}
        self.decide_dirty(core, left);
        self.dismantle(core, left);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.dying.is_empty() && (self.dirty.is_empty() || self.deferred)
    }

    fn decide_dirty(&mut self, core: &mut Core, left: &mut usize) {
        if self.deferred {
            return;
        }
        while *left > 0
            && let Some(at) = self.dirty.pop_front()
        {
            *left -= 1;
            self.decided += 1;
            self.decide(core, at);
        }
        if self.dirty.is_empty() && self.dirty.capacity() > LIST_KEPT_MAX {
            self.dirty = std::collections::VecDeque::new();
        }
    }

    /// Selects the best path of a destination and tells those who follow what changed.
    fn decide(&mut self, core: &mut Core, at: u32) {
        let destination = self.table.destination_mut(at);
        let touched = destination.flags;
        destination.flags &= !(mark::DIRTY | mark::BEST_TOUCHED | mark::FORWARDING_TOUCHED);
        let head = destination.head;
        let changed = if head == NONE {
            (false, false)
        } else if self.table.path(head).next == NONE {
            let is_eligible = eligible(core, self.table.path(head)).is_some();
            self.select_only(core, head, is_eligible)
        } else {
            self.select_among(core, at)
        };
        let best_changed = changed.0 || touched & mark::BEST_TOUCHED != 0;
        let mark_may_differ = core.mark.is_some() && changed.0;
        let forwarding_changed = changed.1 || mark_may_differ || touched & mark::FORWARDING_TOUCHED != 0;
        if forwarding_changed && core.config.forwarding && touched & mark::FORWARDING_LISTED == 0 {
            self.table.destination_mut(at).flags |= mark::FORWARDING_LISTED;
            self.forwarding.push_back(at);
        }
        if best_changed {
            self.follow_contributor(core, at);
        }
        for group in self.groups.iter_mut().flatten() {
            if best_changed || group.sends_several() {
                group.mark_pending(at);
            }
        }
        if head == NONE && touched & mark::GRAVE == 0 {
            self.table.destination_mut(at).flags |= mark::GRAVE;
            self.graves.push_back(at);
        }
    }

    /// Says whether the best path and the forwarded paths changed.
    fn select_only(&mut self, core: &mut Core, at: u32, is_eligible: bool) -> (bool, bool) {
        let path = self.table.path_mut(at);
        let before = path.flags;
        path.flags &= !(is::BEST | is::FORWARDED);
        if is_eligible {
            path.flags |= is::BEST | is::FORWARDED;
        }
        let (peer, changed) = (path.peer, before ^ path.flags);
        if changed & is::BEST != 0 {
            self.count(core, peer, |counts| {
                counts.best = counts.best.wrapping_add_signed(if is_eligible { 1 } else { -1 })
            });
        }
        (changed & is::BEST != 0, changed & is::FORWARDED != 0)
    }

    fn select_among(&mut self, core: &mut Core, at: u32) -> (bool, bool) {
        let contenders = self.contenders(core, at);
        let best = (!contenders.is_empty()).then(|| contenders[decision::select(&contenders, &core.config.decision)]);
        let forwarded = best.map(|best| forwarded(core, &best, &contenders)).unwrap_or_default();
        let (mut best_changed, mut forwarding_changed) = (false, false);
        let mut next = self.table.destination(at).head;
        while next != NONE {
            let path = self.table.path_mut(next);
            let before = path.flags;
            path.flags &= !(is::BEST | is::FORWARDED);
            if best.is_some_and(|best| best.at == next) {
                path.flags |= is::BEST | is::FORWARDED;
            } else if forwarded.contains(&next) {
                path.flags |= is::FORWARDED;
            }
            let (peer, changed, is_best) = (path.peer, before ^ path.flags, path.is(is::BEST));
            best_changed |= changed & is::BEST != 0;
            forwarding_changed |= changed & is::FORWARDED != 0;
            next = path.next;
            if changed & is::BEST != 0 {
                self.count(core, peer, |counts| {
                    counts.best = counts.best.wrapping_add_signed(if is_best { 1 } else { -1 })
                });
            }
        }
        if let Some(best) = best {
            self.table.move_to_front(at, best.at);
        }
        (best_changed, forwarding_changed)
    }

    /// The paths that may be selected, in the order of the list.
    pub(super) fn contenders(&self, core: &Core, at: u32) -> Vec<Contender> {
        self.table.paths_of(at).filter_map(|(number, path)| contender(core, number, path)).collect()
    }

    /// Frees destinations without paths that everybody has heard of; says how many.
    fn reap(&mut self, left: &mut usize) -> usize {
        if self.graves.is_empty() {
            return 0;
        }
        for group in self.groups.iter_mut().flatten() {
            group.refresh_needs();
        }
        let (mut looked_at, mut freed) = (0, 0);
        let waiting = self.graves.len();
        while *left > 0 && looked_at < waiting {
            let Some(at) = self.graves.pop_front() else {
                break;
            };
            *left -= 1;
            looked_at += 1;
            let destination = self.table.destination(at);
            if destination.head != NONE {
                self.table.destination_mut(at).flags &= !mark::GRAVE;
                continue;
            }
            let is_listed = destination.flags & (mark::DIRTY | mark::FORWARDING_LISTED) != 0;
            if is_listed || !self.groups.iter().flatten().all(|group| group.is_done_with(at)) {
                self.graves.push_back(at);
                // Withdrawals are heard in the order in which they were made: those behind wait as well.
                if looked_at > GRAVES_PASSED_MAX {
                    break;
                }
                continue;
            }
            for group in self.groups.iter_mut().flatten() {
                group.forget(at);
            }
            self.table.remove(at);
            freed += 1;
        }
        if self.graves.is_empty() && self.graves.capacity() > LIST_KEPT_MAX {
            self.graves = std::collections::VecDeque::new();
        }
        if self.table.len() == 0 {
            self.high_water = 0;
        }
        freed
    }

    /// Remembers how large the table was, and names slow peers when it is kept too large for their sake.
    pub(super) fn check_tombstones(&mut self, max: u32) {
        let graves = u32::try_from(self.graves.len()).unwrap_or(u32::MAX);
        let with_paths = self.table.len().saturating_sub(graves);
        self.high_water = self.high_water.max(with_paths);
        if graves > max.max(self.high_water) {
            for group in self.groups.iter().flatten() {
                self.laggards.extend(group.slowest());
            }
            self.laggards.sort_unstable();
            self.laggards.dedup();
        }
    }
}

/// Destinations in a row that cannot be freed yet before the rest is left for later.
const GRAVES_PASSED_MAX: usize = 64;

/// The next hop and the metric of a path that may be selected.
#[inline]
fn eligible(core: &Core, path: &Path) -> Option<(NextHopId, u32)> {
    let id = path.imported.attributes()?;
    let via = core.sets.next_hop(id);
    Some((via, core.next_hops.metric(via)?))
}

/// Where the paths of a peer come from.
pub(super) fn origination(core: &Core, peer: PeerId) -> Origination {
    let local = Origination {
        kind: None,
        router_id: core.config.router_id,
        address: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    };
    core.peers.get(peer).map_or(local, super::peer::Peer::origination)
}

/// A path as selection sees it; `None` when it may not be selected.
pub(super) fn contender(core: &Core, at: u32, path: &Path) -> Option<Contender> {
    let attributes = path.imported.attributes()?;
    let (next_hop, metric) = eligible(core, path)?;
    let view = *core.sets.view(attributes);
    let from = origination(core, path.peer);
    Some(Contender { next_hop, metric, ..Contender::new(at, path, attributes, view, from) })
}

/// Paths that packets are sent along beside the best one.
fn forwarded(core: &Core, best: &Contender, contenders: &[Contender]) -> Vec<u32> {
    let options = &core.config.decision;
    let external = best.from.kind == Some(crate::session::PeerKind::External);
    let max = usize::from(if external { options.multipath_external } else { options.multipath_internal });
    if max < 2 {
        return Vec::new();
    }
    let path_of = |c: &Contender| core.sets.attributes(c.attributes).as_path();
    let is_equal =
        |c: &&Contender| c.at != best.at && decision::is_equal_cost(best, c, options, || path_of(best) == path_of(c));
    let mut equal: Vec<&Contender> = contenders.iter().filter(is_equal).collect();
    equal.sort_unstable_by(|a, b| decision::compare(a, b, options).0);
    let mut next_hops = vec![best.next_hop];
    let mut chosen = Vec::new();
    for contender in equal {
        if chosen.len() + 1 < max && !next_hops.contains(&contender.next_hop) {
            next_hops.push(contender.next_hop);
            chosen.push(contender.at);
        }
    }
    chosen
}
