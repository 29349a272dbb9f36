//! Nexthop groups: several next hops behind one object that many routes refer to.

use std::collections::BTreeSet;

use super::{
    super::{Action, ActualNexthop, GroupMember, nexthops::Slot},
    RoutePlanner,
};
use crate::desired::{Hop, Target, TargetKey};

impl RoutePlanner {
    pub(super) fn group_members(&self, key: &TargetKey, target: &Target) -> Option<Box<[GroupMember]>> {
        let member = |slot| {
            let weight = target.weights.get(slot).copied().unwrap_or(1).max(1);
            self.ids.get(key, Slot::Hop(slot)).map(|id| GroupMember { id, weight })
        };
        let members: Option<Vec<GroupMember>> = (0..target.hops.len()).map(member).collect();
        let mut members = members?;
        members.sort_unstable();
        Some(members.into())
    }

    pub(super) fn group_is_done(&self, key: &TargetKey, target: &Target) -> bool {
        let actual = self.ids.get(key, Slot::Group).and_then(|id| self.object(id));
        match (actual, self.group_members(key, target)) {
            (Some(ActualNexthop::Group(actual)), Some(wanted)) => *actual == wanted,
            _ => false,
        }
    }

    /// Nobody wants the group of `key` any more, and routes still lead over it until each has been moved. Members that nobody
    /// else leads to leave it first, because the most usual reason is that they are dead: one message moves the traffic of all
    /// these routes to the members that stay.
    pub(super) fn thin_out(&mut self, key: &TargetKey, actions: &mut Vec<Action>) {
        let Some(id) = self.ids.get(key, Slot::Group) else { return };
        let Some(ActualNexthop::Group(members)) = self.object(id) else { return };
        if !self.references.contains_key(&id) {
            return;
        }
        let used: BTreeSet<Hop> =
            self.desired.targets.iter().flat_map(|(_, target)| target.hops.iter().copied()).collect();
        let is_used = |member: &&GroupMember| matches!(self.object(member.id), Some(ActualNexthop::Hop(hop)) if used.contains(hop));
        let stay: Box<[GroupMember]> = members.iter().filter(is_used).copied().collect();
        if !stay.is_empty() && stay.len() < members.len() {
            actions.push(Action::PutGroup { id, members: stay.clone(), replace: true });
            self.sent.insert(id, ActualNexthop::Group(stay));
        }
    }
}
