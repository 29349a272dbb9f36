//! Routes of the best BGP paths, and the next hops they lead to.
//!
//! The speaker says which next hops it wants to know about; the answers go back to it ([`Desired::next_hops`]) and make
//! the targets of the routes. A target is a set of next hops and not of a prefix: when one of them dies, the target loses
//! it, and the kernel's group with it, before any path has been chosen again.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    desired::{Resolution, TargetKey},
    observed::{BgpHops, BgpNextHop},
    table::{RowDiff, Table},
};

#[derive(Debug, Clone, Default)]
pub(super) struct BgpRoutes {
    seen: Table<BgpNextHop, bool>,
    /// Next hops whose resolution is to be looked at.
    dirty: BTreeSet<BgpNextHop>,
    /// Prefixes whose route is ours to write, by their target; the row is shared by all of them.
    targets: BTreeMap<BgpHops, Behind>,
    by_next_hop: BTreeMap<BgpNextHop, BTreeSet<BgpHops>>,
    /// Targets that came, or whose next hops changed.
    dirty_targets: BTreeSet<BgpHops>,
}

#[derive(Debug, Clone)]
struct Behind {
    row: Arc<RouteRow>,
    prefixes: usize,
}

impl BgpRoutes {
    /// Takes over which next hops are asked for.
    pub(super) fn watch(&mut self, observed: &Observed, on_link: &mut OnLink) {
        let old = std::mem::replace(&mut self.seen, observed.bgp_next_hops.clone());
        for diff in self.seen.diff(&old) {
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
        self.dirty.extend(self.seen.iter().map(|(next_hop, _)| next_hop).filter(affected));
    }

    /// Writes the route to a prefix that no node holds.
    pub(super) fn route(&mut self, prefix: IpNet, observed: &Observed, desired: &mut Desired) {
        let old = desired.routes.get(&prefix).map(|row| row.target.clone());
        let new = observed.bgp.get(&prefix);
        if let (Some(TargetKey::Bgp(old)), Some(new)) = (&old, new)
            && old == new
        {
            return;
        }
        match new {
            Some(hops) => {
                let row = self.refer(hops);
                desired.routes.upsert(prefix, row);
            }
            None => {
                desired.routes.remove(&prefix);
            }
        }
        if let Some(TargetKey::Bgp(old)) = old {
            self.release(&old);
        }
    }

    /// A node holds the prefix from now on; `old` is what the route to it led to.
    pub(super) fn displaced(&mut self, old: Option<&TargetKey>) {
        if let Some(TargetKey::Bgp(old)) = old {
            self.release(old);
        }
    }

    /// Brings resolutions and targets up to date.
    pub(super) fn finish(&mut self, on_link: &OnLink, kernel_known: bool, desired: &mut Desired) {
        for next_hop in std::mem::take(&mut self.dirty) {
            match self.seen.get(&next_hop) {
                Some(dead) => {
                    desired.next_hops.upsert(next_hop, resolve(next_hop, *dead, on_link, kernel_known));
                }
                None => {
                    desired.next_hops.remove(&next_hop);
                }
            }
            self.dirty_targets.extend(self.by_next_hop.get(&next_hop).into_iter().flatten().cloned());
        }
        for hops in std::mem::take(&mut self.dirty_targets) {
            if self.targets.contains_key(&hops) {
                let target = target(&hops, desired);
                desired.targets.upsert(TargetKey::Bgp(hops), Arc::new(target));
            } else {
                desired.targets.remove(&TargetKey::Bgp(hops));
            }
        }
    }

    fn refer(&mut self, hops: &BgpHops) -> Arc<RouteRow> {
        if let Some(behind) = self.targets.get_mut(hops) {
            behind.prefixes += 1;
            return behind.row.clone();
        }
        let row = Arc::new(RouteRow { target: TargetKey::Bgp(hops.clone()) });
        self.targets.insert(hops.clone(), Behind { row: row.clone(), prefixes: 1 });
        for hop in &*hops.hops {
            self.by_next_hop.entry(hop.next_hop).or_default().insert(hops.clone());
        }
        self.dirty_targets.insert(hops.clone());
        row
    }

    fn release(&mut self, hops: &BgpHops) {
        let Some(behind) = self.targets.get_mut(hops) else { return };
        behind.prefixes -= 1;
        if behind.prefixes > 0 {
            return;
        }
        self.targets.remove(hops);
        for hop in &*hops.hops {
            if let Some(targets) = self.by_next_hop.get_mut(&hop.next_hop) {
                targets.remove(hops);
                if targets.is_empty() {
                    self.by_next_hop.remove(&hop.next_hop);
                }
            }
        }
        self.dirty_targets.insert(hops.clone());
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
        Ok((via, dev, mtu, metric)) => Resolution::Reachable { hop: Hop { via, dev }, mtu, metric },
        Err(reason) => Resolution::Unreachable(reason),
    }
}

/// Where routes over these next hops lead now: to those that can be reached.
fn target(hops: &BgpHops, desired: &Desired) -> Target {
    let mut usable: BTreeMap<Hop, (u8, u32)> = BTreeMap::new();
    let mut problem = None;
    for hop in &*hops.hops {
        match desired.next_hops.get(&hop.next_hop) {
            Some(Resolution::Reachable { hop: via, mtu, .. }) if hops.ipv4 || via.via.is_ipv6() => {
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
        weights: if equal { Box::default() } else { weights },
        grouped: hops.hops.len() > 1,
        problem: None,
        mode: RouteMode::Bgp,
        mtu: usable.values().map(|(_, mtu)| *mtu).min().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests;
