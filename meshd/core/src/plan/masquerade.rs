//! Desired masquerade against what the kernel holds.
//!
//! The kernel's table is one object: it is put in its place as a whole, without a moment in which it is not there, or gets
//! and loses exclusions. What a previous run excluded stays until everybody has been heard (I4): a prefix that is translated
//! by mistake stays so for as long as its connections last, and nothing is lost by one that is not.

use std::collections::BTreeSet;

use crate::desired::{Exclusion, Masquerade, MasqueradeWish};

/// What the kernel holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldMasquerade {
    /// The rules are the desired ones, word by word.
    pub rules_fit: bool,
    /// The exclusions.
    pub exclusions: BTreeSet<Exclusion>,
}

/// What to do with the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasqueradeStep {
    /// Put a table with exactly these exclusions in the place of what is there, or of nothing.
    Replace(BTreeSet<Exclusion>),
    /// Change its exclusions; nothing of what is added overlaps with what stays.
    Change {
        /// To be added.
        add: Vec<Exclusion>,
        /// To be removed, first.
        remove: Vec<Exclusion>,
    },
    /// Remove it.
    Remove,
}

/// Plans, and remembers what is left over from a previous run.
#[derive(Debug, Clone, Default)]
pub struct MasqueradePlanner {
    left_over: Option<BTreeSet<Exclusion>>,
}

impl MasqueradePlanner {
    /// The step from `held` (`None`: no table) to `desired`. `begun` tells that enough is known to begin where there is no
    /// table, `complete` that everybody has been heard.
    pub fn plan(
        &mut self,
        desired: &Masquerade,
        held: Option<&HeldMasquerade>,
        begun: bool,
        complete: bool,
    ) -> Option<MasqueradeStep> {
        match desired.wish {
            MasqueradeWish::Unknown => return None,
            MasqueradeWish::Off => return held.map(|_| MasqueradeStep::Remove),
            MasqueradeWish::On(_) => {}
        }
        let Some(held) = held else {
            return begun.then(|| MasqueradeStep::Replace(self.target(desired, complete)));
        };
        self.left_over.get_or_insert_with(|| held.exclusions.clone());
        let target = self.target(desired, complete);
        if !held.rules_fit {
            return Some(MasqueradeStep::Replace(target));
        }
        let add: Vec<Exclusion> = target.difference(&held.exclusions).copied().collect();
        let remove: Vec<Exclusion> = held.exclusions.difference(&target).copied().collect();
        (!add.is_empty() || !remove.is_empty()).then_some(MasqueradeStep::Change { add, remove })
    }

    /// What the kernel shall hold now: what is desired and, until everybody has been heard, what is left over and was not
    /// desired in this run yet.
    fn target(&mut self, desired: &Masquerade, complete: bool) -> BTreeSet<Exclusion> {
        let mut target: BTreeSet<Exclusion> = desired.exclusions.iter().map(|(exclusion, ())| *exclusion).collect();
        let Some(left_over) = self.left_over.as_mut().filter(|left_over| !left_over.is_empty()) else { return target };
        if complete {
            left_over.clear();
            return target;
        }
        left_over.retain(|exclusion| !target.contains(exclusion));
        target.extend(left_over.iter().copied());
        let mut last: Option<Exclusion> = None;
        // A prefix comes before those inside it.
        target.retain(|(set, prefix)| {
            let is_inside = last.is_some_and(|(of, outer)| of == *set && outer.contains(prefix));
            if !is_inside {
                last = Some((*set, *prefix));
            }
            !is_inside
        });
        target
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::desired::{ExclusionSet, MasqueradeRules};

    fn exclusions(texts: &[&str]) -> BTreeSet<Exclusion> {
        texts.iter().map(|text| (ExclusionSet::Pods, text.parse().unwrap())).collect()
    }

    fn desired(texts: &[&str]) -> Masquerade {
        let mut desired =
            Masquerade { wish: MasqueradeWish::On(Arc::new(MasqueradeRules::default())), ..Masquerade::default() };
        for exclusion in exclusions(texts) {
            desired.exclusions.upsert(exclusion, ());
        }
        desired
    }

    fn held(texts: &[&str]) -> HeldMasquerade {
        HeldMasquerade { rules_fit: true, exclusions: exclusions(texts) }
    }

    fn change(add: &[&str], remove: &[&str]) -> Option<MasqueradeStep> {
        let list = |texts| exclusions(texts).into_iter().collect();
        Some(MasqueradeStep::Change { add: list(add), remove: list(remove) })
    }

    #[test]
    fn nothing_happens_before_anybody_said_what_is_wanted() {
        let mut planner = MasqueradePlanner::default();
        assert_eq!(planner.plan(&Masquerade::default(), Some(&held(&["10.1.0.0/24"])), true, true), None);
        let off = Masquerade { wish: MasqueradeWish::Off, ..Masquerade::default() };
        assert_eq!(planner.plan(&off, None, true, true), None);
        assert_eq!(planner.plan(&off, Some(&held(&[])), false, false), Some(MasqueradeStep::Remove));
    }

    #[test]
    fn a_first_table_waits_until_enough_is_known() {
        let mut planner = MasqueradePlanner::default();
        let desired = desired(&["10.1.0.0/24"]);
        assert_eq!(planner.plan(&desired, None, false, false), None);
        let first = Some(MasqueradeStep::Replace(exclusions(&["10.1.0.0/24"])));
        assert_eq!(planner.plan(&desired, None, true, false), first);
        assert_eq!(planner.plan(&desired, Some(&held(&["10.1.0.0/24"])), true, true), None);
    }

    #[test]
    fn what_a_previous_run_excluded_stays_until_everybody_was_heard() {
        let mut planner = MasqueradePlanner::default();
        let old = held(&["10.1.0.0/24", "10.2.0.0/16"]);
        assert_eq!(planner.plan(&desired(&["10.2.3.0/24"]), Some(&old), true, false), None, "inside what is left over");
        let more = desired(&["10.1.0.0/24", "10.3.0.0/24"]);
        assert_eq!(planner.plan(&more, Some(&old), true, false), change(&["10.3.0.0/24"], &[]));
        // What this run itself has heard and lost again goes at once.
        let less = desired(&["10.3.0.0/24"]);
        let now = held(&["10.1.0.0/24", "10.2.0.0/16", "10.3.0.0/24"]);
        assert_eq!(planner.plan(&less, Some(&now), true, false), change(&[], &["10.1.0.0/24"]));
        let wider = desired(&["10.0.0.0/8"]);
        let expected = change(&["10.0.0.0/8"], &["10.1.0.0/24", "10.2.0.0/16", "10.3.0.0/24"]);
        assert_eq!(planner.plan(&wider, Some(&now), true, false), expected);
        assert_eq!(
            planner.plan(&less, Some(&old), true, true),
            change(&["10.3.0.0/24"], &["10.1.0.0/24", "10.2.0.0/16"])
        );
    }

    #[test]
    fn other_rules_replace_the_table_and_keep_what_is_left_over() {
        let mut planner = MasqueradePlanner::default();
        let other = HeldMasquerade { rules_fit: false, ..held(&["10.2.0.0/16"]) };
        let step = planner.plan(&desired(&["10.1.0.0/24"]), Some(&other), false, false);
        assert_eq!(step, Some(MasqueradeStep::Replace(exclusions(&["10.1.0.0/24", "10.2.0.0/16"]))));
    }
}
