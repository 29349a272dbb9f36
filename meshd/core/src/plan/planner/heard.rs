//! What the kernel says: what is there, and what is gone.

use std::collections::BTreeSet;

use super::{
    super::{ActualChange, ActualKey, ActualNexthop, ActualRoute},
    Comparison, Leaving, RoutePlanner,
};
use crate::id::NexthopId;

impl RoutePlanner {
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

    pub(super) fn end_dump(&mut self) {
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

    pub(super) fn find_surplus(&mut self) {
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
    pub(super) fn holds_nexthop(&self, id: NexthopId) -> bool {
        self.nexthops.get(&id).is_some_and(|nexthop| *nexthop != ActualNexthop::Foreign)
    }

    pub(super) fn observe_route(&mut self, key: ActualKey, state: Option<ActualRoute>) {
        let old = match state {
            Some(route) => {
                if let Some(id) = route.via.object() {
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
            if let Some(id) = old.via.object() {
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

    pub(super) fn observe_nexthop(&mut self, id: NexthopId, state: Option<ActualNexthop>) {
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
    pub(super) fn drop_routes_over(&mut self, id: NexthopId) {
        if !self.references.contains_key(&id) {
            return;
        }
        let over = |(_, route): &(&ActualKey, &ActualRoute)| route.via.object() == Some(id);
        let gone: Vec<ActualKey> = self.routes.iter().filter(over).map(|(key, _)| *key).collect();
        for key in gone {
            self.observe_route(key, None);
        }
    }

    pub(super) fn release(&mut self, id: NexthopId) {
        if let Some(count) = self.references.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.references.remove(&id);
            }
        }
    }
}
