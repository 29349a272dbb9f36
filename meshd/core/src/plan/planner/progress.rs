//! How far things are: what of the desired state the kernel holds.

use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    super::{ActualKey, ActualNexthop, RouteVia, nexthops::Slot},
    RoutePlanner,
};
use crate::{
    desired::{Hop, Target, TargetKey},
    id::NexthopId,
    observed::BgpTargetId,
    table::RowState,
};

impl RoutePlanner {
    /// True when the planner has seen a complete dump and nothing is left to do now.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.dumped
            && self.scan.is_none()
            && self.bgp_scan.is_none()
            && self.dirty_routes.is_empty()
            && self.dirty_targets.is_empty()
    }

    /// State of a desired route; `since` of an error is when it was first seen.
    #[must_use]
    pub fn state(&self, prefix: &IpNet, key: &TargetKey) -> (RowState, Option<Timestamp>) {
        let Some(target) = self.desired.targets.get(key) else { return (RowState::Pending, None) };
        if let Some(problem) = &target.problem {
            let since = self.held.get(key).copied();
            return (RowState::Error(problem.to_string().into()), since);
        }
        let failure = self.route_failures.get(prefix).or_else(|| self.target_failures.get(key));
        if let Some(failure) = failure {
            return (RowState::Error(failure.message.clone()), Some(failure.since));
        }
        let holds = self.routes.get(&self.key(*prefix));
        let wanted = self.wanted_via(key, target);
        match (holds, wanted) {
            (Some(actual), Some(via)) if actual.regular && actual.via == via && self.target_is_done(key, target) => {
                (RowState::Done, None)
            }
            _ => (RowState::Pending, None),
        }
    }

    /// Desired routes the kernel holds exactly as wanted, and those in error.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let (mut done, mut errors) = (0, 0);
        for (prefix, target) in self.desired.all_routes() {
            match self.state(&prefix, &target).0 {
                RowState::Done => done += 1,
                RowState::Error(_) => errors += 1,
                RowState::Pending => {}
            }
        }
        (done, errors)
    }

    /// Routes learned by BGP that the kernel holds exactly as wanted.
    #[must_use]
    pub fn learned_installed(&self) -> usize {
        let is_done = |(prefix, id): &(&IpNet, &BgpTargetId)| {
            !self.desired.routes.contains(prefix) && self.state(prefix, &TargetKey::Bgp(**id)).0 == RowState::Done
        };
        self.desired.bgp.iter().filter(is_done).count()
    }

    /// Routes with our mark the kernel holds.
    #[must_use]
    pub fn actual_routes(&self) -> usize {
        self.routes.len()
    }

    pub(super) fn route_matches(&self, key: &ActualKey, leads_to: &TargetKey) -> bool {
        let Some(target) = self.desired.targets.get(leads_to) else { return false };
        let Some(wanted) = self.wanted_via(leads_to, target) else { return false };
        self.routes.get(key).is_some_and(|actual| actual.regular && actual.via == wanted)
    }

    /// What routes to the target must refer to; `None` while its nexthop has no id yet or it has no next hop.
    pub(super) fn wanted_via(&self, key: &TargetKey, target: &Target) -> Option<RouteVia> {
        if target.drops {
            return Some(RouteVia::Blackhole);
        }
        if target.hops.is_empty() {
            return None;
        }
        let slot = if target.uses_group() { Slot::Group } else { Slot::Hop(0) };
        let via = if self.options.nexthop_objects {
            RouteVia::Object(self.ids.get(key, slot)?)
        } else {
            RouteVia::Hops(target.hops.clone())
        };
        Some(if target.narrow { RouteVia::Narrow(Box::new(via), target.mtu) } else { via })
    }

    pub(super) fn target_is_done(&self, key: &TargetKey, target: &Target) -> bool {
        if !self.options.nexthop_objects {
            return true;
        }
        let hop_done = |(slot, hop): (usize, &Hop)| {
            self.ids.get(key, Slot::Hop(slot)).and_then(|id| self.object(id)) == Some(&ActualNexthop::Hop(*hop))
        };
        let hops_done = target.hops.iter().enumerate().all(hop_done);
        hops_done && (!target.uses_group() || self.group_is_done(key, target))
    }

    /// The object as written last, else as the kernel told it.
    pub(super) fn object(&self, id: NexthopId) -> Option<&ActualNexthop> {
        self.sent.get(&id).or_else(|| self.nexthops.get(&id))
    }
}
