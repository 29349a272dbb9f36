//! The planner: what is left to do at the kernel.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

mod groups;
mod heard;
mod leaving;
mod missing;
mod progress;
mod refusals;
mod steps;

use leaving::Leaving;
use missing::Comparison;
use refusals::Failure;

use super::{Action, ActualKey, ActualNexthop, ActualRoute, RouteVia, nexthops::NexthopIds};
use crate::{
    desired::{Desired, TargetKey},
    id::{Metric, NexthopId, TableId},
    observed::BgpTargetId,
    table::RowDiff,
};

/// Most actions of one plan; the rest follows in the next round.
pub const PLAN_ACTIONS_MAX: usize = 8_192;
/// Fewest routes that are deleted by deleting their nexthop object.
pub const FLUSH_ROUTES_MIN: usize = 1_024;
/// Such a deletion walks the whole table of the kernel: a walk over so many routes costs less than to delete one.
const FLUSH_WALK: usize = 16;
/// Prefixes that were wanted once and may be remembered beyond twice the routes the kernel holds.
const RETIRED_SPARE: usize = PLAN_ACTIONS_MAX;
/// How long an installed route stays after its node stopped being on-link: an address that is taken away and given back
/// by its own daemon must not cost a packet.
pub const WITHDRAW_HOLD: SignedDuration = SignedDuration::from_secs(5);
/// First wait after a refusal by the kernel; doubled up to [`RETRY_MAX`].
pub const RETRY_MIN: SignedDuration = SignedDuration::from_millis(20);
/// Longest wait after a refusal by the kernel.
pub const RETRY_MAX: SignedDuration = SignedDuration::from_secs(30);

/// How routes are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannerOptions {
    /// Route table.
    pub table: TableId,
    /// Metric of routes of the mesh.
    pub metric: Metric,
    /// Metric of routes learned by BGP.
    pub bgp_metric: Metric,
    /// Routes refer to nexthop objects (`routing.nexthop_objects`).
    pub nexthop_objects: bool,
    /// Fewest routes that are deleted by deleting their nexthop object, usually [`FLUSH_ROUTES_MIN`].
    pub flush_routes_min: usize,
}

/// Compares desired with actual and says what to do, at most [`PLAN_ACTIONS_MAX`] actions at a time.
#[derive(Debug, Clone)]
pub struct RoutePlanner {
    options: PlannerOptions,
    desired: Desired,
    by_target: BTreeMap<TargetKey, BTreeSet<IpNet>>,
    routes: BTreeMap<ActualKey, ActualRoute>,
    nexthops: BTreeMap<NexthopId, ActualNexthop>,
    references: BTreeMap<NexthopId, usize>,
    ids: NexthopIds,
    dump: Option<(BTreeSet<ActualKey>, BTreeSet<NexthopId>)>,
    dumped: bool,
    dirty_targets: BTreeSet<TargetKey>,
    dirty_routes: BTreeSet<IpNet>,
    /// After a first load all desired routes from this one on are still to be looked at, and to be entered in
    /// `by_target`: a million of them must not wait in a set before the first one is planned.
    scan: Option<IpNet>,
    /// The same for routes learned by BGP, which are not in `by_target`: after a first load, and after a target of theirs
    /// leads elsewhere, which is rare, because it is a group whose members change.
    bgp_scan: Option<IpNet>,
    /// Sets of next hops whose routes could not be planned when they were looked at.
    bgp_waiting: BTreeSet<BgpTargetId>,
    /// Wanted prefixes that the kernel holds under another key than they are to have: what is there goes when the right one is
    /// installed.
    superseded: BTreeSet<IpNet>,
    /// Actual routes and nexthops nobody wants: candidates for deletion.
    leaving: Leaving,
    surplus_nexthops: BTreeSet<NexthopId>,
    /// Prefixes we wanted once in this run: their routes may go without waiting for every source.
    retired: BTreeSet<IpNet>,
    /// Routes that were planned anew and that the kernel has not told yet: during a bulk write nobody listens.
    unheard: usize,
    prune_all: bool,
    /// Nexthop objects written whose notification has not come yet: not written again meanwhile. Never a reason to prune.
    sent: BTreeMap<NexthopId, ActualNexthop>,
    held: BTreeMap<TargetKey, Timestamp>,
    /// Those of BGP among them whose routes have not been looked at since the hold was over.
    bgp_held: BTreeSet<TargetKey>,
    /// Routes over a target that was held too long, whose deletion was planned and is not answered yet: not deleted again
    /// meanwhile.
    withdrawing: BTreeSet<IpNet>,
    /// What routes to a target referred to when it was planned last.
    planned_via: BTreeMap<TargetKey, RouteVia>,
    route_failures: BTreeMap<IpNet, Failure>,
    target_failures: BTreeMap<TargetKey, Failure>,
    comparison: Comparison,
}

impl RoutePlanner {
    /// A planner that knows nothing yet: it plans nothing before the first complete dump.
    #[must_use]
    pub fn new(options: PlannerOptions) -> Self {
        Self {
            options,
            desired: Desired::default(),
            by_target: BTreeMap::new(),
            routes: BTreeMap::new(),
            nexthops: BTreeMap::new(),
            references: BTreeMap::new(),
            ids: NexthopIds::default(),
            dump: None,
            dumped: false,
            dirty_targets: BTreeSet::new(),
            dirty_routes: BTreeSet::new(),
            scan: None,
            bgp_scan: None,
            bgp_waiting: BTreeSet::new(),
            superseded: BTreeSet::new(),
            leaving: Leaving::default(),
            surplus_nexthops: BTreeSet::new(),
            retired: BTreeSet::new(),
            unheard: 0,
            prune_all: false,
            sent: BTreeMap::new(),
            held: BTreeMap::new(),
            bgp_held: BTreeSet::new(),
            withdrawing: BTreeSet::new(),
            planned_via: BTreeMap::new(),
            route_failures: BTreeMap::new(),
            target_failures: BTreeMap::new(),
            comparison: Comparison::default(),
        }
    }

    /// Takes over a new version of the desired tables. `complete` says that every source has been heard: from then on
    /// also routes that nobody in this run ever wanted may be deleted (I4).
    pub fn set_desired(&mut self, desired: &Desired, complete: bool) {
        let old = std::mem::replace(&mut self.desired, desired.clone());
        if old.routes.is_empty() {
            self.scan_all();
        } else {
            self.take_route_changes(&old);
        }
        self.take_bgp_changes(&old);
        for diff in self.desired.targets.diff(&old.targets) {
            self.target_failures.remove(diff.key());
            self.dirty_targets.insert(diff.key().clone());
        }
        if complete && !self.prune_all {
            self.prune_all = true;
            self.retired.clear();
            self.find_surplus();
        }
    }

    /// Says that routes to `prefixes` were for clusters that are no longer configured: unless somebody wants them now, they
    /// may go without waiting for every source. Comes after the first [`Self::set_desired`].
    pub fn retire(&mut self, prefixes: impl IntoIterator<Item = IpNet>) {
        if !self.prune_all {
            let desired = &self.desired;
            self.retired.extend(prefixes.into_iter().filter(|prefix| !desired.wants(prefix)));
        }
    }

    /// The next actions, in order, and when to ask again although nothing changed. Empty when actual is as desired. `now` is
    /// what waits are measured by, so it must not follow a clock that somebody sets.
    pub fn plan(&mut self, now: Timestamp) -> (Vec<Action>, Option<Timestamp>) {
        if !self.dumped {
            return (Vec::new(), None);
        }
        self.wake_failures(now);
        self.compare(now, false);
        let mut actions = Vec::new();
        self.plan_targets(now, &mut actions);
        self.plan_routes(now, &mut actions);
        self.plan_scan(now, &mut actions);
        self.plan_bgp_scan(now, &mut actions);
        if self.scan.is_none()
            && self.bgp_scan.is_none()
            && self.dirty_routes.is_empty()
            && self.dirty_targets.is_empty()
        {
            self.plan_deletions(&mut actions);
        }
        if !actions.is_empty() {
            self.compare(now, true);
        }
        (actions, self.next_wakeup())
    }

    /// Everything [`Self::plan`] would do now, without doing it. Costs a copy of the planner.
    #[must_use]
    pub fn preview(&self, now: Timestamp) -> Vec<Action> {
        let mut copy = self.clone();
        let mut actions = Vec::new();
        loop {
            let (round, _) = copy.plan(now);
            if round.is_empty() {
                return actions;
            }
            actions.extend(round);
        }
    }

    /// Everything of ours at the kernel, as deletions in a safe order (`drain`).
    #[must_use]
    pub fn withdraw_all(&self) -> Vec<Action> {
        let routes = self.routes.keys().map(|key| Action::DeleteRoute { key: *key });
        let groups = self.nexthops.iter().filter(|(_, n)| matches!(n, ActualNexthop::Group(_)));
        let is_hop = |n: &ActualNexthop| matches!(n, ActualNexthop::Hop(_) | ActualNexthop::Irregular);
        let hops = self.nexthops.iter().filter(|(_, n)| is_hop(n));
        routes.chain(groups.chain(hops).map(|(id, _)| Action::DeleteNexthop { id: *id, routes: 0 })).collect()
    }

    /// All desired routes are to be looked at.
    fn scan_all(&mut self) {
        self.scan = self.desired.routes.iter().next().map(|(prefix, _)| *prefix);
        self.retired.retain(|prefix| !self.desired.wants(prefix));
        self.route_failures.retain(|prefix, _| !self.desired.wants(prefix));
    }

    /// Takes over routes that BGP learned or lost.
    fn take_bgp_changes(&mut self, old: &Desired) {
        if old.bgp.is_empty() {
            self.bgp_scan = self.desired.bgp.iter().next().map(|(prefix, _)| *prefix);
            if self.bgp_scan.is_some() {
                self.retired.retain(|prefix| !self.desired.wants(prefix));
            }
            return;
        }
        let desired = self.desired.bgp.clone();
        for diff in desired.diff(&old.bgp) {
            let prefix = *diff.key();
            match diff {
                RowDiff::Removed(..) if !self.prune_all => {
                    self.retired.insert(prefix);
                }
                RowDiff::Added(..) if !self.prune_all => {
                    self.retired.remove(&prefix);
                }
                RowDiff::Removed(..) | RowDiff::Added(..) | RowDiff::Changed(..) => {}
            }
            self.route_failures.remove(&prefix);
            // The look at all routes comes to those behind it anyway, and would plan them a second time.
            let is_ahead = self.bgp_scan.is_some_and(|from| from <= prefix);
            if !is_ahead || matches!(diff, RowDiff::Removed(..)) {
                self.dirty_routes.insert(prefix);
            }
        }
        self.forget_retired();
    }

    fn take_route_changes(&mut self, old: &Desired) {
        let desired = self.desired.clone();
        for diff in desired.routes.diff(&old.routes) {
            let prefix = *diff.key();
            if let RowDiff::Removed(_, row) | RowDiff::Changed(_, row, _) = &diff
                && let Some(prefixes) = self.by_target.get_mut(&row.target)
            {
                prefixes.remove(&prefix);
                if prefixes.is_empty() {
                    self.by_target.remove(&row.target);
                }
            }
            if let RowDiff::Added(_, row) | RowDiff::Changed(_, _, row) = &diff {
                self.by_target.entry(row.target.clone()).or_default().insert(prefix);
                self.retired.remove(&prefix);
            } else if !self.prune_all {
                self.retired.insert(prefix);
            }
            self.route_failures.remove(&prefix);
            let is_ahead = self.scan.is_some_and(|from| from <= prefix);
            if !is_ahead || matches!(diff, RowDiff::Removed(..)) {
                self.dirty_routes.insert(prefix);
            }
        }
        self.forget_retired();
    }

    /// A peer may claim prefixes without end that never reach the kernel.
    fn forget_retired(&mut self) {
        if self.dumped && self.retired.len() > 2 * (self.routes.len() + self.unheard) + RETIRED_SPARE {
            let routes: BTreeSet<IpNet> = self.routes.keys().map(|key| key.prefix).collect();
            self.retired.retain(|prefix| routes.contains(prefix));
        }
    }

    fn key(&self, prefix: IpNet) -> ActualKey {
        let PlannerOptions { table, metric, bgp_metric, .. } = self.options;
        let is_learned = || !self.desired.routes.contains(&prefix) && self.desired.bgp.contains(&prefix);
        let metric = if bgp_metric != metric && is_learned() { bgp_metric } else { metric };
        ActualKey { prefix, table, metric }
    }

    /// What the kernel holds of ours for a prefix, whatever the table and metric.
    fn held_for(&self, prefix: IpNet) -> impl Iterator<Item = (ActualKey, &ActualRoute)> {
        let first = ActualKey { prefix, table: TableId(0), metric: Metric(0) };
        let same = self.routes.range(first..).take_while(move |(key, _)| key.prefix == prefix);
        same.map(|(key, route)| (*key, route))
    }

    /// Nobody wants the prefix: whatever is there for it goes.
    fn leave(&mut self, prefix: IpNet) {
        self.superseded.remove(&prefix);
        let held: Vec<_> = self.held_for(prefix).map(|(key, route)| (key, route.via.clone())).collect();
        held.into_iter().for_each(|(key, via)| self.leaving.add(key, &via));
    }

    /// The prefix is installed as wanted: what is there for it under other keys was waiting for that.
    fn leave_superseded(&mut self, right: ActualKey) {
        if self.superseded.remove(&right.prefix) {
            let others = self.held_for(right.prefix).filter(|(key, _)| *key != right);
            let others: Vec<_> = others.map(|(key, route)| (key, route.via.clone())).collect();
            others.into_iter().for_each(|(key, via)| self.leaving.add(key, &via));
        }
    }
}

#[cfg(test)]
mod tests;
