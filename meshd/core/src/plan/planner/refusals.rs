//! What the kernel refused, and what else waits for its time.

use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    super::{Action, ActualKey},
    RETRY_MAX, RETRY_MIN, RoutePlanner, WITHDRAW_HOLD,
};
use crate::desired::TargetKey;

/// What went wrong last, and since when.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) message: Arc<str>,
    pub(super) since: Timestamp,
    attempts: u32,
    retry_at: Timestamp,
}

impl RoutePlanner {
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

    pub(super) fn wake_failures(&mut self, now: Timestamp) {
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

    pub(super) fn release_hold(&mut self, target: &TargetKey) {
        self.held.remove(target);
        self.bgp_held.remove(target);
    }

    /// Every route over a target is to be looked at.
    pub(super) fn look_at_routes_of(&mut self, target: &TargetKey) {
        match target {
            TargetKey::Node(_) | TargetKey::Probe(_) => {
                self.dirty_routes.extend(self.by_target.get(target).into_iter().flatten().copied());
            }
            TargetKey::Bgp(_) => self.bgp_scan = self.desired.bgp.iter().next().map(|(prefix, _)| *prefix),
        }
    }

    /// Installed routes over a held target that wait for nothing but the end of the hold: a deletion under way is waited
    /// for, a refused one has a time of its own.
    pub(super) fn to_withdraw(&self, target: &TargetKey) -> impl Iterator<Item = IpNet> {
        let waits = |prefix: &IpNet| self.withdrawing.contains(prefix) || self.route_failures.contains_key(prefix);
        let prefixes = self.by_target.get(target).into_iter().flatten().copied();
        prefixes.filter(move |prefix| self.routes.contains_key(&self.key(*prefix)) && !waits(prefix))
    }

    pub(super) fn next_wakeup(&self) -> Option<Timestamp> {
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
}

fn next_failure(old: Option<&Failure>, message: &str, now: Timestamp) -> Failure {
    let attempts = old.map_or(0, |failure| failure.attempts) + 1;
    let wait = RETRY_MIN.checked_mul(1 << (attempts - 1).min(20)).map_or(RETRY_MAX, |wait| wait.min(RETRY_MAX));
    let since = old.map_or(now, |failure| failure.since);
    Failure { message: message.into(), since, attempts, retry_at: now + wait }
}
