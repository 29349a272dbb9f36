//! Routes at the kernel that nobody wants any more.
//!
//! They are deleted one by one, unless all routes over a nexthop object leave and they are many: then the object goes, and the
//! kernel drops its routes in one walk over its table (`nexthop_flush` in `net/ipv4/nexthop.c`). That is how 200,000 routes of
//! a lost BGP peer go in the time of some thousand single deletions.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{ActualKey, ActualRoute, RouteVia};
use crate::id::NexthopId;

/// Unwanted routes: those that wait for their deletion, and those whose deletion was planned and is not seen yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaving {
    waiting: BTreeSet<ActualKey>,
    planned: BTreeSet<ActualKey>,
    /// How many of both lead over an object.
    over: BTreeMap<NexthopId, usize>,
    /// Objects the kernel would not delete with their routes.
    refused: BTreeSet<NexthopId>,
}

impl Leaving {
    /// A route of ours that is unwanted.
    pub(super) fn add(&mut self, key: ActualKey, via: &RouteVia) {
        if !self.planned.contains(&key) && self.waiting.insert(key) {
            self.count(via);
        }
    }

    /// Somebody wants the route after all. A deletion that was planned cannot be taken back.
    pub(super) fn keep(&mut self, key: &ActualKey, via: &RouteVia) {
        if self.waiting.remove(key) {
            self.discount(via);
        }
    }

    /// The route is gone, or is another one now.
    pub(super) fn forget(&mut self, key: &ActualKey, via: &RouteVia) {
        if self.waiting.remove(key) | self.planned.remove(key) {
            self.discount(via);
        }
    }

    /// The deletion of the route was refused.
    pub(super) fn refused(&mut self, key: &ActualKey, via: Option<&RouteVia>) {
        if self.planned.remove(key)
            && let Some(via) = via
        {
            self.discount(via);
        }
    }

    /// The deletion of an object with its routes was refused: from now on they are deleted one by one, those of them that
    /// still are unwanted.
    pub(super) fn refused_object(
        &mut self,
        id: NexthopId,
        routes: &BTreeMap<ActualKey, ActualRoute>,
    ) -> Vec<(ActualKey, RouteVia)> {
        self.refused.insert(id);
        let over = |key: &ActualKey| {
            let route = routes.get(key).filter(|route| route.via.object() == Some(id))?;
            Some((*key, route.via.clone()))
        };
        let back: Vec<(ActualKey, RouteVia)> = self.planned.iter().filter_map(over).collect();
        for (key, via) in &back {
            self.forget(key, via);
        }
        back
    }

    /// The object is another one now, or gone.
    pub(super) fn forget_object(&mut self, id: NexthopId) {
        self.refused.remove(&id);
    }

    /// The next routes to delete among those that `may` go, at most `max`.
    pub(super) fn take(&mut self, max: usize, may: impl Fn(&ActualKey) -> bool) -> Vec<ActualKey> {
        let due: Vec<ActualKey> = self.waiting.iter().filter(|key| may(key)).take(max).copied().collect();
        for key in &due {
            self.waiting.remove(key);
            self.planned.insert(*key);
        }
        due
    }

    /// Objects over which at least `min` routes leave, with their number.
    pub(super) fn objects(&self, min: usize) -> impl Iterator<Item = (NexthopId, usize)> {
        let due = move |(id, count): &(&NexthopId, &usize)| **count >= min && !self.refused.contains(id);
        self.over.iter().filter(due).map(|(id, count)| (*id, *count))
    }

    /// The object is deleted with its routes: they wait no more. False, and nothing is done, when none waits or one of them
    /// may not go.
    pub(super) fn take_object(
        &mut self,
        id: NexthopId,
        routes: &BTreeMap<ActualKey, ActualRoute>,
        may: impl Fn(&ActualKey) -> bool,
    ) -> bool {
        let over = |key: &ActualKey| routes.get(key).is_some_and(|route| route.via.object() == Some(id));
        if !self.waiting.iter().filter(|key| over(key)).all(may) {
            return false;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        let before = waiting.len();
        let planned = &mut self.planned;
        waiting.retain(|key| {
            let goes = over(key);
            if goes {
                planned.insert(*key);
            }
            !goes
        });
        self.waiting = waiting;
        self.waiting.len() != before
    }

    fn count(&mut self, via: &RouteVia) {
        if let Some(id) = via.object() {
            *self.over.entry(id).or_default() += 1;
        }
    }

    fn discount(&mut self, via: &RouteVia) {
        if let Some(id) = via.object()
            && let Some(count) = self.over.get_mut(&id)
        {
            *count -= 1;
            if *count == 0 {
                self.over.remove(&id);
            }
        }
    }
}
