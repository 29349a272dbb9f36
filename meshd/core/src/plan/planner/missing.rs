//! What should be there, is not, and nobody will say so.
//!
//! A route is planned once, and what comes of it is heard. The kernel's notifications can be lost (its queue overflows, and
//! during a bulk write nobody listens); the dump that follows tells what is there. It cannot tell that a route was written
//! and then deleted by somebody in between: for the planner it never was. So some time after a dump, when every answer has
//! come, desired and actual are compared as a whole.

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use super::RoutePlanner;

/// How long nothing must have been planned before what is not there counts as missing, and not as on its way.
pub(super) const QUIET: SignedDuration = SignedDuration::from_secs(2);

/// Where it is never quiet, what is on its way is not told apart after so long: it may be written twice.
pub(super) const LATEST: SignedDuration = SignedDuration::from_secs(60);

/// When to compare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Comparison {
    #[default]
    NotDue,
    /// A dump has ended.
    Wanted,
    At {
        at: Timestamp,
        latest: Timestamp,
    },
}

impl RoutePlanner {
    /// Looks for what is missing when it is time; `planned` says that something was planned just now.
    pub(super) fn compare(&mut self, now: Timestamp, planned: bool) {
        match self.comparison {
            Comparison::NotDue => {}
            Comparison::Wanted => self.comparison = Comparison::At { at: now + QUIET, latest: now + LATEST },
            Comparison::At { at, .. } if !planned && at <= now => {
                self.comparison = Comparison::NotDue;
                self.find_missing();
            }
            Comparison::At { latest, .. } if planned => {
                self.comparison = Comparison::At { at: latest.min(now + QUIET), latest };
            }
            Comparison::At { .. } => {}
        }
    }

    /// When [`Self::compare`] has something to do.
    pub(super) fn comparison_at(&self) -> Option<Timestamp> {
        match self.comparison {
            Comparison::At { at, .. } => Some(at),
            Comparison::NotDue | Comparison::Wanted => None,
        }
    }

    fn find_missing(&mut self) {
        let is_open = |prefix: &IpNet| !self.route_failures.contains_key(prefix);
        let missing = self.desired.all_routes().filter(|(prefix, leads_to)| {
            let target = self.desired.targets.get(leads_to);
            let has_way = target.is_some_and(|target| self.wanted_via(leads_to, target).is_some());
            has_way && is_open(prefix) && !self.route_matches(&self.key(*prefix), leads_to)
        });
        let missing: Vec<_> = missing.map(|(prefix, _)| prefix).collect();
        self.dirty_routes.extend(missing);
        let undone = self.desired.targets.iter().filter(|(key, target)| {
            target.problem.is_none() && !self.target_failures.contains_key(key) && !self.target_is_done(key, target)
        });
        let undone: Vec<_> = undone.map(|(key, _)| key.clone()).collect();
        self.dirty_targets.extend(undone);
    }
}
