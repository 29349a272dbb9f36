//! The planner: what is left to do at the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

mod groups;
mod leaving;
mod missing;

use leaving::Leaving;
use missing::Comparison;

use super::{
    Action, ActualChange, ActualKey, ActualNexthop, ActualRoute, RouteVia,
    nexthops::{NexthopIds, Slot},
};
use crate::{
    desired::{Desired, Hop, RouteProblem, Target, TargetKey},
    id::{Metric, NexthopId, TableId},
    observed::BgpTargetId,
    table::{RowDiff, RowState},
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

#[derive(Debug, Clone)]
struct Failure {
    message: Arc<str>,
    since: Timestamp,
    attempts: u32,
    retry_at: Timestamp,
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

    /// Takes over what the kernel said, in its order.
    pub fn observe(&mut self, change: ActualChange) {
        match change {
            ActualChange::DumpBegin => self.dump = Some(Default::default()),
            ActualChange::DumpAbort => self.dump = None,
            ActualChange::DumpEnd => self.end_dump(),
            ActualChange::Nexthop(id, state) => {
                if let Some((_, seen)) = &mut self.dump {
                    seen.insert(id);
                }
                self.observe_nexthop(id, state);
            }
            ActualChange::Route(key, state) => {
                if let Some((seen, _)) = &mut self.dump {
                    seen.insert(key);
                }
                self.observe_route(key, state);
            }
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

    /// Says that the kernel refused an action.
    pub fn refused(&mut self, action: &Action, message: &str, now: Timestamp) {
        match action {
            // It was written twice, and the kernel has told that it is there.
            Action::PutRoute { key, via, replace: false }
                if self.routes.get(key).is_some_and(|route| route.regular && route.via == *via) => {}
            Action::PutRoute { key, .. } | Action::DeleteRoute { key } => {
                if matches!(action, Action::PutRoute { replace: false, .. }) {
                    self.unheard = self.unheard.saturating_sub(1);
                }
                self.withdrawing.remove(&key.prefix);
                if action.is_delete() {
                    self.leaving.refused(key, self.routes.get(key).map(|route| &route.via));
                }
                let failure = next_failure(self.route_failures.get(&key.prefix), message, now);
                self.route_failures.insert(key.prefix, failure);
            }
            Action::PutNexthop { id, .. } | Action::PutGroup { id, .. } => {
                self.sent.remove(id);
                if let Some(target) = self.ids.target(*id).cloned() {
                    let failure = next_failure(self.target_failures.get(&target), message, now);
                    self.target_failures.insert(target, failure);
                }
            }
            Action::DeleteNexthop { id, routes } => {
                if *routes > 0 {
                    let mut back = self.leaving.refused_object(*id, &self.routes);
                    let is_wanted = |key: &ActualKey| *key == self.key(key.prefix) && self.desired.wants(&key.prefix);
                    back.retain(|(key, _)| !is_wanted(key));
                    back.into_iter().for_each(|(key, via)| self.leaving.add(key, &via));
                }
                if self.holds_nexthop(*id) {
                    self.surplus_nexthops.insert(*id);
                }
            }
        }
    }

    /// Says that the kernel refused an action, as [`Self::refused`], because somebody else's object has the key. The next
    /// try for a nexthop object takes another id: the foreign one stays. Most of them are known from the kernel's dump and
    /// its notifications ([`ActualNexthop::Foreign`]); this one was faster.
    pub fn taken(&mut self, action: &Action, message: &str, now: Timestamp) {
        self.refused(action, message, now);
        if let Action::PutNexthop { id, .. } | Action::PutGroup { id, .. } = action
            && !self.holds_nexthop(*id)
        {
            self.ids.give_up(*id);
        }
    }

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

    fn end_dump(&mut self) {
        let Some((routes, nexthops)) = self.dump.take() else { return };
        self.sent.clear();
        self.withdrawing.clear();
        self.unheard = 0;
        let gone: Vec<ActualKey> = self.routes.keys().filter(|key| !routes.contains(key)).copied().collect();
        for key in gone {
            self.observe_route(key, None);
        }
        let gone: Vec<NexthopId> = self.nexthops.keys().filter(|id| !nexthops.contains(id)).copied().collect();
        for id in gone {
            self.observe_nexthop(id, None);
        }
        if self.dumped {
            self.comparison = Comparison::Wanted;
        } else {
            self.dumped = true;
            self.scan_all();
            self.dirty_targets.extend(self.desired.targets.iter().map(|(key, _)| key.clone()));
        }
        self.find_surplus();
    }

    fn find_surplus(&mut self) {
        let (mut leaving, mut superseded) = (Leaving::default(), BTreeSet::new());
        for (key, route) in &self.routes {
            let right = self.key(key.prefix);
            match self.desired.target_of(&key.prefix) {
                Some(_) if *key == right => {}
                Some(target) if !self.route_matches(&right, &target) => {
                    superseded.insert(key.prefix);
                }
                Some(_) | None => leaving.add(*key, &route.via),
            }
        }
        (self.leaving, self.superseded) = (leaving, superseded);
        let unwanted = |id: &NexthopId| self.holds_nexthop(*id) && self.ids.target(*id).is_none();
        self.surplus_nexthops = self.nexthops.keys().copied().filter(unwanted).collect();
    }

    /// True when the kernel holds an object of ours under this id.
    fn holds_nexthop(&self, id: NexthopId) -> bool {
        self.nexthops.get(&id).is_some_and(|nexthop| *nexthop != ActualNexthop::Foreign)
    }

    fn observe_route(&mut self, key: ActualKey, state: Option<ActualRoute>) {
        let old = match state {
            Some(route) => {
                if let RouteVia::Object(id) = route.via {
                    *self.references.entry(id).or_default() += 1;
                }
                self.routes.insert(key, route)
            }
            None => self.routes.remove(&key),
        };
        if key == self.key(key.prefix) {
            self.withdrawing.remove(&key.prefix);
        }
        let was_there = old.is_some();
        if !was_there && self.routes.contains_key(&key) {
            self.unheard = self.unheard.saturating_sub(1);
        }
        if let Some(old) = old {
            self.leaving.forget(&key, &old.via);
            if let RouteVia::Object(id) = old.via {
                self.release(id);
            }
        }
        let (right, is_there) = (self.key(key.prefix), self.routes.contains_key(&key));
        match self.desired.target_of(&key.prefix) {
            // It went with its object, which was heard before, and may be on its way again.
            Some(_) if !was_there && !is_there => {}
            Some(target) if key == right => {
                if self.route_matches(&key, &target) {
                    self.route_failures.remove(&key.prefix);
                    self.leave_superseded(key);
                } else {
                    self.dirty_routes.insert(key.prefix);
                }
            }
            Some(target) if is_there => {
                self.superseded.insert(key.prefix);
                if self.route_matches(&right, &target) {
                    self.leave_superseded(right);
                }
            }
            None if is_there => self.leave(key.prefix),
            Some(_) | None => {
                self.retired.remove(&key.prefix);
                self.route_failures.remove(&key.prefix);
            }
        }
    }

    fn observe_nexthop(&mut self, id: NexthopId, state: Option<ActualNexthop>) {
        if state.is_none() {
            self.drop_routes_over(id);
        }
        self.leaving.forget_object(id);
        let members = |nexthop: Option<&ActualNexthop>| match nexthop {
            Some(ActualNexthop::Group(members)) => members.to_vec(),
            _ => Vec::new(),
        };
        for member in members(state.as_ref()) {
            *self.references.entry(member.id).or_default() += 1;
        }
        let is_ours = state.as_ref().is_some_and(|nexthop| *nexthop != ActualNexthop::Foreign);
        let is_foreign = state == Some(ActualNexthop::Foreign);
        self.sent.remove(&id);
        let old = match state {
            Some(nexthop) => self.nexthops.insert(id, nexthop),
            None => self.nexthops.remove(&id),
        };
        for member in members(old.as_ref()) {
            self.release(member.id);
        }
        match self.ids.target(id).cloned() {
            // Somebody else has the id now: ours takes another one.
            Some(target) if is_foreign => {
                self.ids.give_up(id);
                self.dirty_targets.insert(target);
            }
            Some(target) => {
                let done = self.desired.targets.get(&target).is_some_and(|row| self.target_is_done(&target, row));
                if !done {
                    self.dirty_targets.insert(target);
                } else if self.target_failures.remove(&target).is_some() {
                    self.look_at_routes_of(&target);
                }
            }
            None if is_ours => {
                self.surplus_nexthops.insert(id);
            }
            None => {
                self.surplus_nexthops.remove(&id);
            }
        }
    }

    /// The object is gone, and its routes with it: of those of IPv4 the kernel does not say a word.
    fn drop_routes_over(&mut self, id: NexthopId) {
        if !self.references.contains_key(&id) {
            return;
        }
        let over = |(_, route): &(&ActualKey, &ActualRoute)| route.via == RouteVia::Object(id);
        let gone: Vec<ActualKey> = self.routes.iter().filter(over).map(|(key, _)| *key).collect();
        for key in gone {
            self.observe_route(key, None);
        }
    }

    fn release(&mut self, id: NexthopId) {
        if let Some(count) = self.references.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.references.remove(&id);
            }
        }
    }

    fn route_matches(&self, key: &ActualKey, leads_to: &TargetKey) -> bool {
        let Some(target) = self.desired.targets.get(leads_to) else { return false };
        let Some(wanted) = self.wanted_via(leads_to, target) else { return false };
        self.routes.get(key).is_some_and(|actual| actual.regular && actual.via == wanted)
    }

    /// What routes to the target must refer to; `None` while its nexthop has no id yet or it has no next hop.
    fn wanted_via(&self, key: &TargetKey, target: &Target) -> Option<RouteVia> {
        if target.drops {
            return Some(RouteVia::Blackhole);
        }
        if target.hops.is_empty() {
            return None;
        }
        if !self.options.nexthop_objects {
            return Some(RouteVia::Hops(target.hops.clone()));
        }
        let slot = if target.uses_group() { Slot::Group } else { Slot::Hop(0) };
        self.ids.get(key, slot).map(RouteVia::Object)
    }

    fn target_is_done(&self, key: &TargetKey, target: &Target) -> bool {
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
    fn object(&self, id: NexthopId) -> Option<&ActualNexthop> {
        self.sent.get(&id).or_else(|| self.nexthops.get(&id))
    }

    fn wake_failures(&mut self, now: Timestamp) {
        let due: Vec<IpNet> = self.route_failures.iter().filter(|(_, f)| f.retry_at <= now).map(|(p, _)| *p).collect();
        for prefix in due {
            // The answer of the kernel, or the next dump, ends the failure; until then it is not due again.
            if let Some(failure) = self.route_failures.get_mut(&prefix) {
                failure.retry_at = now + RETRY_MAX;
            }
            if self.desired.wants(&prefix) {
                self.dirty_routes.insert(prefix);
            } else if self.held_for(prefix).next().is_some() {
                self.leave(prefix);
            } else {
                self.route_failures.remove(&prefix);
            }
        }
        for (key, failure) in self.target_failures.iter_mut().filter(|(_, failure)| failure.retry_at <= now) {
            failure.retry_at = now + RETRY_MAX;
            self.dirty_targets.insert(key.clone());
        }
        let over = self.held.iter().filter(|(_, since)| **since + WITHDRAW_HOLD <= now).map(|(key, _)| key.clone());
        for target in over.collect::<Vec<_>>() {
            let due: Vec<IpNet> = self.to_withdraw(&target).collect();
            self.dirty_routes.extend(due);
            if self.bgp_held.remove(&target) {
                self.look_at_routes_of(&target);
            }
        }
    }

    fn release_hold(&mut self, target: &TargetKey) {
        self.held.remove(target);
        self.bgp_held.remove(target);
    }

    /// Every route over a target is to be looked at.
    fn look_at_routes_of(&mut self, target: &TargetKey) {
        match target {
            TargetKey::Node(_) => {
                self.dirty_routes.extend(self.by_target.get(target).into_iter().flatten().copied());
            }
            TargetKey::Bgp(_) => self.bgp_scan = self.desired.bgp.iter().next().map(|(prefix, _)| *prefix),
        }
    }

    /// Installed routes over a held target that wait for nothing but the end of the hold: a deletion under way is waited
    /// for, a refused one has a time of its own.
    fn to_withdraw(&self, target: &TargetKey) -> impl Iterator<Item = IpNet> {
        let waits = |prefix: &IpNet| self.withdrawing.contains(prefix) || self.route_failures.contains_key(prefix);
        let prefixes = self.by_target.get(target).into_iter().flatten().copied();
        prefixes.filter(move |prefix| self.routes.contains_key(&self.key(*prefix)) && !waits(prefix))
    }

    fn next_wakeup(&self) -> Option<Timestamp> {
        let routes = self.route_failures.values().map(|f| f.retry_at);
        let targets = self.target_failures.values().map(|f| f.retry_at);
        let holds = |key: &TargetKey| self.to_withdraw(key).next().is_some();
        let held = self
            .held
            .iter()
            .filter(|(key, _)| self.bgp_held.contains(key) || holds(key))
            .map(|(_, since)| *since + WITHDRAW_HOLD);
        routes.chain(targets).chain(held).chain(self.comparison_at()).min()
    }

    fn plan_targets(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        while actions.len() < PLAN_ACTIONS_MAX {
            let Some(key) = self.dirty_targets.pop_first() else { break };
            match self.desired.targets.get(&key).cloned() {
                Some(target) if target.problem.is_none() => {
                    self.release_hold(&key);
                    if self.options.nexthop_objects {
                        self.plan_nexthops(&key, &target, actions);
                    }
                }
                // Nobody knows yet whether there is a next hop: what is installed stays for as long as that takes.
                Some(target) if target.problem == Some(RouteProblem::KernelUnknown) => {
                    self.release_hold(&key);
                }
                Some(_) => {
                    if let Entry::Vacant(held) = self.held.entry(key.clone()) {
                        held.insert(now);
                        if let TargetKey::Bgp(_) = key {
                            self.bgp_held.insert(key.clone());
                        }
                    }
                }
                None => {
                    self.release_hold(&key);
                    if let TargetKey::Bgp(id) = &key {
                        self.bgp_waiting.remove(id);
                    }
                    self.target_failures.remove(&key);
                    self.thin_out(&key, actions);
                    let freed = self.ids.release(&key);
                    let held: Vec<_> = freed.into_iter().filter(|id| self.holds_nexthop(*id)).collect();
                    self.surplus_nexthops.extend(held);
                }
            }
            let via = self.desired.targets.get(&key).and_then(|row| self.wanted_via(&key, row));
            let before = match via.clone() {
                Some(via) => self.planned_via.insert(key.clone(), via),
                None => self.planned_via.remove(&key),
            };
            // Routes of a set of next hops that is new are looked at after it, so none was passed over.
            let was_looked_at = match &key {
                TargetKey::Bgp(id) => before.is_some() || (via.is_some() && self.bgp_waiting.remove(id)),
                TargetKey::Node(_) => true,
            };
            // Nobody's routes lead to a target that is gone.
            if before != via && was_looked_at && self.desired.targets.contains(&key) {
                self.look_at_routes_of(&key);
            }
        }
    }

    fn plan_nexthops(&mut self, key: &TargetKey, target: &Target, actions: &mut Vec<Action>) {
        for (slot, hop) in target.hops.iter().enumerate() {
            let id = self.ids.assign(key, Slot::Hop(slot), &ActualNexthop::Hop(*hop), &self.nexthops);
            let Some(id) = id else { return };
            self.surplus_nexthops.remove(&id);
            let wanted = ActualNexthop::Hop(*hop);
            if self.object(id) != Some(&wanted) {
                actions.push(Action::PutNexthop { id, hop: *hop, replace: self.object(id).is_some() });
                self.sent.insert(id, wanted);
            }
        }
        if target.uses_group() {
            let Some(members) = self.group_members(key, target) else { return };
            let wanted = ActualNexthop::Group(members.clone());
            let Some(id) = self.ids.assign(key, Slot::Group, &wanted, &self.nexthops) else { return };
            self.surplus_nexthops.remove(&id);
            if self.object(id) != Some(&wanted) {
                actions.push(Action::PutGroup { id, members, replace: self.object(id).is_some() });
                self.sent.insert(id, wanted);
            }
        }
        // Slots beyond the new number of hops are free once no route or group refers to them.
        let freed = self.ids.shrink(key, target.hops.len(), target.uses_group());
        let held: Vec<_> = freed.into_iter().filter(|id| self.holds_nexthop(*id)).collect();
        self.surplus_nexthops.extend(held);
    }

    fn plan_routes(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        while actions.len() < PLAN_ACTIONS_MAX {
            let Some(prefix) = self.dirty_routes.pop_first() else { break };
            let key = self.key(prefix);
            if let Some(target) = self.desired.target_of(&prefix) {
                actions.extend(self.plan_route(key, &target, now));
            } else {
                self.leave(prefix);
            }
        }
    }

    /// Goes on with the look at all desired routes.
    fn plan_scan(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(from) = self.scan else { return };
        let routes = self.desired.routes.clone();
        let mut rest = routes.range_from(&from);
        while actions.len() < PLAN_ACTIONS_MAX {
            let Some((prefix, row)) = rest.next() else { break };
            match self.by_target.get_mut(&row.target) {
                Some(prefixes) => {
                    prefixes.insert(*prefix);
                }
                None => {
                    self.by_target.insert(row.target.clone(), BTreeSet::from([*prefix]));
                }
            }
            actions.extend(self.plan_route(self.key(*prefix), &row.target, now));
        }
        self.scan = rest.next().map(|(prefix, _)| *prefix);
    }

    /// Goes on with the look at all routes learned by BGP.
    fn plan_bgp_scan(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(from) = self.bgp_scan else { return };
        let routes = self.desired.bgp.clone();
        let mut rest = routes.range_from(&from);
        while actions.len() < PLAN_ACTIONS_MAX {
            let Some((prefix, id)) = rest.next() else { break };
            if self.desired.routes.is_empty() || !self.desired.routes.contains(prefix) {
                actions.extend(self.plan_route(self.key(*prefix), &TargetKey::Bgp(*id), now));
            }
        }
        self.bgp_scan = rest.next().map(|(prefix, _)| *prefix);
    }

    /// What is to be done for one desired route.
    fn plan_route(&mut self, key: ActualKey, leads_to: &TargetKey, now: Timestamp) -> Option<Action> {
        let actual = self.routes.get(&key);
        if let Some(actual) = actual {
            self.leaving.keep(&key, &actual.via);
        }
        if self.options.metric != self.options.bgp_metric && self.held_for(key.prefix).any(|(held, _)| held != key) {
            self.superseded.insert(key.prefix);
        }
        let wanted = self.desired.targets.get(leads_to).and_then(|target| self.wanted_via(leads_to, target));
        let Some(via) = wanted else {
            if let TargetKey::Bgp(id) = leads_to {
                self.bgp_waiting.insert(*id);
            }
            let over = self.held.get(leads_to).is_some_and(|since| *since + WITHDRAW_HOLD <= now);
            let due = over && actual.is_some() && self.withdrawing.insert(key.prefix);
            return due.then_some(Action::DeleteRoute { key });
        };
        if actual.is_some_and(|actual| actual.regular && actual.via == via) {
            self.route_failures.remove(&key.prefix);
            self.leave_superseded(key);
            return None;
        }
        let replace = actual.is_some();
        self.unheard += usize::from(!replace);
        Some(Action::PutRoute { key, via, replace })
    }

    fn plan_deletions(&mut self, actions: &mut Vec<Action>) {
        self.plan_flushes(actions);
        let may_prune = |key: &ActualKey| self.prune_all || self.retired.contains(&key.prefix);
        let room = PLAN_ACTIONS_MAX.saturating_sub(actions.len());
        let due = self.leaving.take(room, may_prune);
        actions.extend(due.into_iter().map(|key| Action::DeleteRoute { key }));
        // The kernel deletes the routes of a nexthop with it, so a nexthop goes only when nothing refers to it any more.
        let room = PLAN_ACTIONS_MAX.saturating_sub(actions.len());
        let free = |id: &NexthopId| !self.references.contains_key(id) && self.ids.target(*id).is_none();
        let due: Vec<NexthopId> = self.surplus_nexthops.iter().filter(|id| free(id)).take(room).copied().collect();
        for id in due {
            self.surplus_nexthops.remove(&id);
            actions.push(Action::DeleteNexthop { id, routes: 0 });
        }
    }

    /// Deletes objects that everything over them leaves, when that is less work than to delete the routes.
    fn plan_flushes(&mut self, actions: &mut Vec<Action>) {
        let min = self.options.flush_routes_min.max(self.routes.len() / FLUSH_WALK);
        let all_leave = |(id, count): &(NexthopId, usize)| {
            self.references.get(id) == Some(count) && self.ids.target(*id).is_none() && self.holds_nexthop(*id)
        };
        let due: Vec<(NexthopId, usize)> = self.leaving.objects(min).filter(all_leave).collect();
        let may_prune = |key: &ActualKey| self.prune_all || self.retired.contains(&key.prefix);
        for (id, routes) in due {
            // One that was planned already is waited for.
            if self.leaving.take_object(id, &self.routes, may_prune) {
                self.surplus_nexthops.remove(&id);
                actions.push(Action::DeleteNexthop { id, routes });
            }
        }
    }
}

fn next_failure(old: Option<&Failure>, message: &str, now: Timestamp) -> Failure {
    let attempts = old.map_or(0, |failure| failure.attempts) + 1;
    let wait = RETRY_MIN.checked_mul(1 << (attempts - 1).min(20)).map_or(RETRY_MAX, |wait| wait.min(RETRY_MAX));
    let since = old.map_or(now, |failure| failure.since);
    Failure { message: message.into(), since, attempts, retry_at: now + wait }
}

#[cfg(test)]
mod tests;
