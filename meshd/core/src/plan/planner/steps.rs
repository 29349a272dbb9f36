//! The steps of a plan, in their order: nexthop objects, routes over them, and what goes.

use std::collections::{BTreeSet, btree_map::Entry};

use jiff::Timestamp;

use super::{
    super::{Action, ActualKey, ActualNexthop, nexthops::Slot},
    FLUSH_WALK, PLAN_ACTIONS_MAX, RoutePlanner, WITHDRAW_HOLD,
};
use crate::{
    desired::{RouteProblem, Target, TargetKey},
    id::NexthopId,
};

impl RoutePlanner {
    pub(super) fn plan_targets(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
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
                TargetKey::Node(_) | TargetKey::Probe(_) => true,
            };
            // Nobody's routes lead to a target that is gone.
            if before != via && was_looked_at && self.desired.targets.contains(&key) {
                self.look_at_routes_of(&key);
            }
        }
    }

    pub(super) fn plan_nexthops(&mut self, key: &TargetKey, target: &Target, actions: &mut Vec<Action>) {
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

    pub(super) fn plan_routes(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
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
    pub(super) fn plan_scan(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
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
    pub(super) fn plan_bgp_scan(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
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
    pub(super) fn plan_route(&mut self, key: ActualKey, leads_to: &TargetKey, now: Timestamp) -> Option<Action> {
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

    pub(super) fn plan_deletions(&mut self, actions: &mut Vec<Action>) {
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
    pub(super) fn plan_flushes(&mut self, actions: &mut Vec<Action>) {
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
