//! The next hops of BGP paths, and the targets made of them.
//!
//! The speaker says which next hops it wants to know about; the answers go back to it ([`Desired::next_hops`]) and make
//! the targets of the routes. A target belongs to a set of next hops and not to a prefix: when one of them dies, the target loses
//! it, and the kernel's group with it, before any path has been chosen again. The routes themselves need no derivation:
//! the desired table is the observed one.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    desired::{Hop, Resolution, RouteMode, RouteProblem, TargetKey},
    observed::{BgpHop, BgpNextHop, BgpTarget, BgpTargetId},
    table::{RowDiff, Table},
};

#[derive(Debug, Clone, Default)]
pub(super) struct BgpTargets {
    watched: Table<BgpNextHop, bool>,
    targets: Table<BgpTargetId, BgpTarget>,
    by_next_hop: BTreeMap<BgpNextHop, BTreeSet<BgpTargetId>>,
    /// Next hops whose resolution is to be looked at.
    dirty: BTreeSet<BgpNextHop>,
}

impl BgpTargets {
    /// Takes over which next hops are asked for.
    pub(super) fn watch(&mut self, observed: &Observed, on_link: &mut OnLink) {
        let old = std::mem::replace(&mut self.watched, observed.bgp_next_hops.clone());
        for diff in self.watched.diff(&old) {
            let next_hop = *diff.key();
            self.dirty.insert(next_hop);
            if next_hop.link.is_some() {
                continue;
            }
            match diff {
                RowDiff::Added(..) => on_link.watch(next_hop.address),
                RowDiff::Removed(..) => on_link.unwatch(next_hop.address),
                RowDiff::Changed(..) => {}
            }
        }
    }

    /// Says which addresses have another answer now. Next hops that name a link are few and are always looked at.
    pub(super) fn look_again(&mut self, changed: &BTreeSet<IpAddr>, all: bool) {
        let affected = |next_hop: &&BgpNextHop| all || next_hop.link.is_some() || changed.contains(&next_hop.address);
        self.dirty.extend(self.watched.iter().map(|(next_hop, _)| next_hop).filter(affected));
    }

    /// Brings routes, resolutions and targets up to date.
    pub(super) fn update(&mut self, observed: &Observed, on_link: &OnLink, kernel_known: bool, desired: &mut Desired) {
        desired.bgp = observed.bgp.clone();
        let mut affected = self.take_targets(observed, desired);
        for next_hop in std::mem::take(&mut self.dirty) {
            match self.watched.get(&next_hop) {
                Some(dead) => {
                    desired.next_hops.upsert(next_hop, resolve(next_hop, *dead, on_link, kernel_known));
                }
                None => {
                    desired.next_hops.remove(&next_hop);
                }
            }
            affected.extend(self.by_next_hop.get(&next_hop).into_iter().flatten());
        }
        for id in affected {
            let target = match self.targets.get(&id) {
                Some(BgpTarget::Drop) => Target::blackhole(RouteMode::Bgp),
                Some(BgpTarget::Via { hops, ipv4 }) => through(hops, *ipv4, desired),
                None => continue,
            };
            desired.targets.upsert(TargetKey::Bgp(id), Arc::new(target));
        }
    }

    /// Takes over the targets in use; returns those that are new or another.
    fn take_targets(&mut self, observed: &Observed, desired: &mut Desired) -> BTreeSet<BgpTargetId> {
        let mut affected = BTreeSet::new();
        let old = std::mem::replace(&mut self.targets, observed.bgp_targets.clone());
        for diff in observed.bgp_targets.diff(&old) {
            let id = *diff.key();
            if let RowDiff::Removed(_, target) | RowDiff::Changed(_, target, _) = &diff {
                for hop in target.hops() {
                    if let Some(targets) = self.by_next_hop.get_mut(&hop.next_hop) {
                        targets.remove(&id);
                        if targets.is_empty() {
                            self.by_next_hop.remove(&hop.next_hop);
                        }
                    }
                }
            }
            if let RowDiff::Added(_, target) | RowDiff::Changed(_, _, target) = &diff {
                for hop in target.hops() {
                    self.by_next_hop.entry(hop.next_hop).or_default().insert(id);
                }
                affected.insert(id);
            } else {
                desired.targets.remove(&TargetKey::Bgp(id));
            }
        }
        affected
    }
}

fn resolve(next_hop: BgpNextHop, dead: bool, on_link: &OnLink, kernel_known: bool) -> Resolution {
    if !kernel_known {
        return Resolution::Unknown;
    }
    if dead {
        return Resolution::Unreachable("it does not answer (BFD)".into());
    }
    let found = match next_hop.link {
        Some(link) => match on_link.link_mtu(link) {
            Some(mtu) => Ok((next_hop.address, link, mtu, 0)),
            None => Err(format!("link {link} is down or gone").into()),
        },
        None => on_link.resolve(next_hop.address),
    };
    match found {
        Ok((via, dev, mtu, metric)) => Resolution::Reachable { hop: Hop { via, dev, tunnel: None }, mtu, metric },
        Err(reason) => Resolution::Unreachable(reason),
    }
}

/// Where routes over these next hops lead now: to those that can be reached.
fn through(hops: &[BgpHop], ipv4: bool, desired: &Desired) -> Target {
    let mut usable: BTreeMap<Hop, (u8, u32)> = BTreeMap::new();
    let mut problem = None;
    for hop in hops {
        match desired.next_hops.get(&hop.next_hop) {
            Some(Resolution::Reachable { hop: via, mtu, .. }) if ipv4 || via.via.is_ipv6() => {
                let share = usable.entry(*via).or_insert((0, *mtu));
                share.0 = share.0.saturating_add(hop.weight.max(1));
            }
            Some(Resolution::Reachable { .. }) => {
                let reason = format!("{} is reached through an IPv4 gateway", hop.next_hop);
                problem.get_or_insert(RouteProblem::NoNextHop { reason: reason.into() });
            }
            Some(Resolution::Unreachable(reason)) => {
                let reason = format!("{}: {reason}", hop.next_hop);
                problem.get_or_insert(RouteProblem::NoNextHop { reason: reason.into() });
            }
            Some(Resolution::Unknown) | None => {
                problem.get_or_insert(RouteProblem::KernelUnknown);
            }
        }
    }
    if usable.is_empty() {
        let problem = problem.unwrap_or(RouteProblem::KernelUnknown);
        return Target::unreachable(problem, RouteMode::Bgp);
    }
    let weights: Box<[u8]> = usable.values().map(|(weight, _)| *weight).collect();
    let equal = weights.iter().all(|weight| *weight == weights[0]);
    Target {
        hops: usable.keys().copied().collect(),
        drops: false,
        weights: if equal { Box::default() } else { weights },
        grouped: hops.len() > 1,
        problem: None,
        mode: RouteMode::Bgp,
        mtu: usable.values().map(|(_, mtu)| *mtu).min().unwrap_or(0),
        narrow: false,
    }
}

#[cfg(test)]
mod tests;
