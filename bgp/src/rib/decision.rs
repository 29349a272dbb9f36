//! Best path selection (RFC 4271 section 9.1.2.2 and what came after it), step by step with a name for each.
//!
//! Paths from one neighboring AS are compared among themselves first, then the winners: MED counts only inside of such a
//! group, so comparing in the order of arrival would let the order decide. With groups the result depends on the set of
//! paths alone. The one exception is RFC 5004, an option that is off unless asked for.

use std::{cmp::Ordering, net::IpAddr};

use super::{
    attributes::{AttrId, View, has},
    next_hops::NextHopId,
    reasons::Step,
    table::{Path, is},
};
use crate::{
    id::{PathId, RouterId},
    session::PeerKind,
};

/// Options of best path selection and multipath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionOptions {
    /// Compare MED between neighboring ASes too.
    pub always_compare_med: bool,
    /// A path without MED is as bad as can be, instead of as good.
    pub missing_med_is_worst: bool,
    /// An external path that is best stays best against one that is better by its router identifier only (RFC 5004).
    /// Fewer changes, but the result depends on the order of arrival.
    pub prefer_oldest: bool,
    /// External paths to forward to at once; 0 and 1 mean the best only.
    pub multipath_external: u16,
    /// Internal paths to forward to at once.
    pub multipath_internal: u16,
    /// Paths of equal length may be used at once, whatever ASes they cross.
    pub multipath_relax: bool,
    /// Share packets in proportion to the link bandwidth extended community, when all paths have it.
    pub weighted: bool,
}

impl Default for DecisionOptions {
    fn default() -> Self {
        Self {
            always_compare_med: false,
            missing_med_is_worst: false,
            prefer_oldest: false,
            multipath_external: 1,
            multipath_internal: 1,
            multipath_relax: false,
            weighted: true,
        }
    }
}

/// Where a path came from, as selection sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origination {
    /// `None` for our own.
    pub(super) kind: Option<PeerKind>,
    pub(super) router_id: RouterId,
    pub(super) address: IpAddr,
}

/// A path that takes part in selection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contender {
    pub(super) at: u32,
    pub(super) attributes: AttrId,
    pub(super) view: View,
    pub(super) next_hop: NextHopId,
    pub(super) metric: u32,
    pub(super) from: Origination,
    pub(super) path_id: PathId,
    pub(super) flags: u8,
}

impl Contender {
    pub(super) fn new(at: u32, path: &Path, attributes: AttrId, view: View, from: Origination) -> Self {
        let (path_id, flags) = (path.path_id, path.flags);
        Self { at, attributes, view, next_hop: NextHopId::OWN, metric: 0, from, path_id, flags }
    }

    const fn is_long_lived_stale(&self) -> bool {
        self.flags & is::LONG_LIVED_STALE != 0 || self.view.has(has::LLGR_STALE)
    }

    /// Paths inside of a confederation count as internal (RFC 5065 section 5.3).
    fn is_external(&self) -> bool {
        self.from.kind == Some(PeerKind::External)
    }

    fn router_id(&self) -> RouterId {
        if self.view.has(has::ORIGINATOR) { self.view.originator } else { self.from.router_id }
    }

    fn med(&self, options: &DecisionOptions) -> u32 {
        if !self.view.has(has::MED) && options.missing_med_is_worst { u32::MAX } else { self.view.med }
    }
}

/// `Less` when `a` is better, and the step that said so. `Equal` never for two paths of one table.
pub(super) fn compare(a: &Contender, b: &Contender, options: &DecisionOptions) -> (Ordering, Step) {
    let (order, step) = compare_cost(a, b, options);
    if order.is_ne() {
        return (order, step);
    }
    if options.prefer_oldest && a.is_external() && b.is_external() {
        let is_best = |c: &Contender| c.flags & is::BEST != 0;
        let order = is_best(b).cmp(&is_best(a));
        if order.is_ne() {
            return (order, Step::Oldest);
        }
    }
    let steps = [
        (a.router_id().cmp(&b.router_id()), Step::RouterId),
        (a.view.clusters.cmp(&b.view.clusters), Step::ClusterListLength),
        (a.from.address.cmp(&b.from.address), Step::PeerAddress),
        (a.path_id.cmp(&b.path_id), Step::PathId),
    ];
    first_difference(steps)
}

/// The steps up to which paths must be equal to be used at once.
fn compare_cost(a: &Contender, b: &Contender, options: &DecisionOptions) -> (Ordering, Step) {
    let med = if options.always_compare_med || a.view.neighbor == b.view.neighbor {
        a.med(options).cmp(&b.med(options))
    } else {
        Ordering::Equal
    };
    let is_local = |c: &Contender| c.from.kind.is_none();
    first_difference([
        (a.is_long_lived_stale().cmp(&b.is_long_lived_stale()), Step::LongLivedStale),
        (b.view.local_pref.cmp(&a.view.local_pref), Step::LocalPref),
        (is_local(b).cmp(&is_local(a)), Step::LocalOrigin),
        (a.view.hops.cmp(&b.view.hops), Step::AsPathLength),
        (a.view.origin.cmp(&b.view.origin), Step::Origin),
        (med, Step::Med),
        (b.is_external().cmp(&a.is_external()), Step::ExternalFirst),
        (a.metric.cmp(&b.metric), Step::NextHopMetric),
    ])
}

fn first_difference<const N: usize>(steps: [(Ordering, Step); N]) -> (Ordering, Step) {
    steps.into_iter().find(|(order, _)| order.is_ne()).unwrap_or((Ordering::Equal, Step::PathId))
}

/// Puts the best path first and the others behind it in the order in which they would follow.
pub(super) fn rank(contenders: &mut [Contender], options: &DecisionOptions) {
    for from in 0..contenders.len() {
        let rest = &mut contenders[from..];
        let best = select(rest, options);
        rest.swap(0, best);
    }
}

/// The best of at least one path.
pub(super) fn select(contenders: &[Contender], options: &DecisionOptions) -> usize {
    let better = |a: usize, b: usize| compare(&contenders[a], &contenders[b], options).0.is_lt();
    let best_of = |candidates: &[usize]| {
        candidates.iter().copied().reduce(|best, at| if better(at, best) { at } else { best }).unwrap_or(0)
    };
    let med = contenders.first().map_or(0, |first| first.med(options));
    if options.always_compare_med || contenders.iter().all(|c| c.med(options) == med) {
        return (1..contenders.len()).fold(0, |best, at| if better(at, best) { at } else { best });
    }
    let mut by_neighbor: Vec<usize> = (0..contenders.len()).collect();
    by_neighbor.sort_unstable_by_key(|at| contenders[*at].view.neighbor);
    let groups = by_neighbor.chunk_by(|a, b| contenders[*a].view.neighbor == contenders[*b].view.neighbor);
    let winners: Vec<usize> = groups.map(best_of).collect();
    best_of(&winners)
}

/// The step at which `contender` lost against `best`; when it would have won against it alone, its own group decided,
/// and the only step that can turn an order around is MED.
pub(super) fn lost_at(best: &Contender, contender: &Contender, options: &DecisionOptions) -> Step {
    match compare(best, contender, options) {
        (Ordering::Less, step) => step,
        (Ordering::Equal | Ordering::Greater, _) => Step::Med,
    }
}

/// May packets be sent along `contender` beside `best`? `same_path` compares the AS paths. A path that drops packets
/// (RFC 7999) is used alone when it is best and not at all when it is not: a share of the traffic to be lost is nothing
/// that anybody asks for.
pub(super) fn is_equal_cost(
    best: &Contender,
    contender: &Contender,
    options: &DecisionOptions,
    same_path: impl Fn() -> bool,
) -> bool {
    if best.from.kind.is_none() || best.from.kind != contender.from.kind || best.next_hop == contender.next_hop {
        return false;
    }
    if [best, contender].iter().any(|path| path.next_hop == NextHopId::DISCARD) {
        return false;
    }
    compare_cost(best, contender, options).0.is_eq()
        && (options.multipath_relax
            || if best.is_external() { best.view.neighbor == contender.view.neighbor } else { same_path() })
}

/// Bandwidth of the link bandwidth extended community, in octets per second.
pub(super) fn link_bandwidth(communities: impl Iterator<Item = [u8; 8]>) -> Option<f32> {
    for [kind, subtype, _, _, rest @ ..] in communities {
        if matches!(kind, 0x00 | 0x40) && subtype == 0x04 {
            let bandwidth = f32::from_be_bytes(rest);
            return (bandwidth.is_finite() && bandwidth > 0.0).then_some(bandwidth);
        }
    }
    None
}
