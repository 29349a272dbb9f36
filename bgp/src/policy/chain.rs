//! A peer's whole policy for one direction: the guard, rule sets in their order, and what holds at the end.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    candidate::{Candidate, Decision, Edited, NextHopEdit, Outcome, RuleId},
    community::Community,
    edit::Edit,
    guard::ImportGuard,
    rule::{Action, Match, NumberEdit, RuleSet, Then, View},
};
use crate::{
    family::Family,
    wire::{as_path::SegmentKind, attributes::Attributes},
};

/// Rules in all sets of one policy at most: their numbers are kept with every path.
pub const RULES_MAX: usize = 60_000;

/// What becomes of a path that no rule decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is accepted.
    Accept,
    /// It is rejected.
    Reject,
}

/// More rules than [`RULES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to make a policy of {count} rules: there may be {RULES_MAX}")]
pub struct TooManyRules {
    /// How many there are.
    pub count: usize,
}

/// A policy. A clone shares everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy(Arc<Inner>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Inner {
    guard: Option<Arc<ImportGuard>>,
    steps: Vec<Step>,
    names: Arc<[Arc<str>]>,
    end: End,
    /// The rule that [`Self::end`] is said to be.
    end_rule: RuleId,
    graceful_shutdown: bool,
    rules_depend_on_prefix: bool,
    depends_on_peer: bool,
    depends_on_rpki: bool,
}

impl Inner {
    /// All but the guard. What it depends on follows from the steps.
    fn rules(&self) -> (&[Step], &[Arc<str>], End, RuleId, bool) {
        let Self { guard: _, steps, names, end, end_rule, graceful_shutdown, .. } = self;
        (steps, names, *end, *end_rule, *graceful_shutdown)
    }
}

/// A rule among those of all sets.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    id: RuleId,
    matches: Vec<Match>,
    actions: Vec<Action>,
    then: Then,
    /// Where the next set begins.
    next_set: usize,
}

impl Policy {
    /// Accepts everything as it is.
    #[must_use]
    pub fn accept_all() -> Self {
        Self::of_steps(Vec::new(), Arc::from([]), End::Accept, RuleId::ACCEPT_ALL)
    }

    /// Rejects everything: what holds for an external peer without a policy (RFC 8212).
    #[must_use]
    pub fn reject_all() -> Self {
        Self::of_steps(Vec::new(), Arc::from([]), End::Reject, RuleId::NO_POLICY)
    }

    /// Rule sets in their order.
    ///
    /// # Errors
    /// More than [`RULES_MAX`] rules.
    pub fn new(sets: &[Arc<RuleSet>], end: End) -> Result<Self, TooManyRules> {
        let count = sets.iter().map(|set| set.rules.len()).sum();
        if count > RULES_MAX {
            return Err(TooManyRules { count });
        }
        let (mut steps, mut names) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for set in sets {
            let next_set = steps.len() + set.rules.len();
            for rule in &set.rules {
                let id = RuleId(u16::try_from(steps.len()).unwrap_or(RuleId::END_OF_POLICY.0));
                names.push(Arc::from(format!("{}/{}", set.name, rule.name)));
                let (matches, actions, then) = (rule.matches.clone(), rule.actions.clone(), rule.then);
                steps.push(Step { id, matches, actions, then, next_set });
            }
        }
        Ok(Self::of_steps(reachable(steps, None), Arc::from(names), end, RuleId::END_OF_POLICY))
    }

    fn of_steps(steps: Vec<Step>, names: Arc<[Arc<str>]>, end: End, end_rule: RuleId) -> Self {
        let any = |test: fn(&Match) -> bool| steps.iter().flat_map(|step| &step.matches).any(test);
        let rules_depend_on_prefix = any(Match::depends_on_prefix);
        let depends_on_peer = any(Match::depends_on_peer);
        let depends_on_rpki = any(Match::depends_on_rpki);
        Self(Arc::new(Inner {
            guard: None,
            steps,
            names,
            end,
            end_rule,
            graceful_shutdown: false,
            rules_depend_on_prefix,
            depends_on_peer,
            depends_on_rpki,
        }))
    }

    /// The same with a guard in front: for import.
    #[must_use]
    pub fn with_guard(&self, guard: Arc<ImportGuard>) -> Self {
        Self(Arc::new(Inner { guard: Some(guard), ..self.0.as_ref().clone() }))
    }

    /// Own prefixes that only one of the two policies refuses, when they differ in nothing else: only paths to what lies in
    /// or around one of these can be decided about differently.
    #[must_use]
    pub fn own_difference(&self, other: &Self) -> Option<Vec<IpNet>> {
        let (ours, theirs) = (self.0.guard.as_ref()?, other.0.guard.as_ref()?);
        if self.0.rules() == other.0.rules() { ours.own_difference(theirs) } else { None }
    }

    /// The same, which also puts the community of RFC 8326 on everything it accepts: for export while this node drains.
    #[must_use]
    pub fn with_graceful_shutdown(&self) -> Self {
        Self(Arc::new(Inner { graceful_shutdown: true, ..self.0.as_ref().clone() }))
    }

    /// The same for one family: without what cannot hold there. It decides as this one does, and may depend on less.
    #[must_use]
    pub fn for_family(&self, family: Family) -> Self {
        let inner = self.0.as_ref();
        let steps = reachable(inner.steps.clone(), Some(family));
        let Inner { guard, graceful_shutdown, .. } = inner.clone();
        let policy = Self::of_steps(steps, Arc::clone(&inner.names), inner.end, inner.end_rule);
        Self(Arc::new(Inner { guard, graceful_shutdown, ..policy.0.as_ref().clone() }))
    }

    /// True when paths with equal attributes and next hop from one source may be decided about differently. When false, one
    /// decision holds for all prefixes of a family. A policy with a guard always depends on the prefix; whoever
    /// asks [`Self::check_prefix`] and [`Self::evaluate_rules`] apart asks [`Self::rules_depend_on_prefix`].
    #[must_use]
    pub fn depends_on_prefix(&self) -> bool {
        self.0.guard.is_some() || self.0.rules_depend_on_prefix
    }

    /// As [`Self::depends_on_prefix`] for the rules without the guard. See also [`Self::for_family`].
    #[must_use]
    pub fn rules_depend_on_prefix(&self) -> bool {
        self.0.rules_depend_on_prefix
    }

    /// True when it matters which peer a path comes from; otherwise only the kind of the source does.
    #[must_use]
    pub fn depends_on_peer(&self) -> bool {
        self.0.depends_on_peer
    }

    /// True when paths are to be evaluated again after the VRPs changed.
    #[must_use]
    pub fn depends_on_rpki(&self) -> bool {
        self.0.depends_on_rpki
    }

    /// True when it accepts every path as it is.
    #[must_use]
    pub fn accepts_all(&self) -> bool {
        let inner = self.0.as_ref();
        inner.guard.is_none() && inner.steps.is_empty() && inner.end == End::Accept && !inner.graceful_shutdown
    }

    /// The name of a rule that decided: `POLICY/RULE`, or what is built in.
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> &str {
        match rule.built_in_name() {
            Some(name) => name,
            None => self.0.names.get(usize::from(rule.0)).map_or("unknown rule", |name| name),
        }
    }

    /// Decides about a path.
    #[must_use]
    pub fn evaluate(&self, candidate: &Candidate<'_>) -> Decision {
        match self.check_prefix(&candidate.prefix) {
            Some(rule) => Decision { rule, outcome: Outcome::Reject },
            None => self.evaluate_rules(candidate),
        }
    }

    /// The guard's check that refuses every path to this prefix, if one does.
    #[must_use]
    pub fn check_prefix(&self, prefix: &IpNet) -> Option<RuleId> {
        self.0.guard.as_ref()?.check(prefix)
    }

    /// Decides about a path whose prefix [`Self::check_prefix`] let pass.
    #[must_use]
    pub fn evaluate_rules(&self, candidate: &Candidate<'_>) -> Decision {
        let refuses_sets = self.0.guard.as_ref().is_some_and(|guard| guard.settings().refuse_as_sets);
        if refuses_sets && has_set(candidate.attributes) {
            return Decision { rule: RuleId::AS_SET, outcome: Outcome::Reject };
        }
        let mut state = State { attributes: None, next_hop: NextHopEdit::Default };
        let (rule, end) = self.walk(candidate, &mut state);
        if end == End::Reject {
            return Decision { rule, outcome: Outcome::Reject };
        }
        self.well_known(candidate, &mut state);
        let attributes = state.attributes.filter(|octets| octets.as_slice() != candidate.attributes.0);
        if attributes.is_none() && state.next_hop == NextHopEdit::Default {
            return Decision { rule, outcome: Outcome::Accept };
        }
        Decision { rule, outcome: Outcome::Edit(Edited { attributes, next_hop: state.next_hop }) }
    }

    /// Goes over the rules until one decides.
    fn walk(&self, candidate: &Candidate<'_>, state: &mut State) -> (RuleId, End) {
        let mut at = 0;
        while let Some(step) = self.0.steps.get(at) {
            if !state.holds(step, candidate) {
                at += 1;
                continue;
            }
            state.apply(&step.actions, candidate);
            match step.then {
                Then::Accept => return (step.id, End::Accept),
                Then::Reject => return (step.id, End::Reject),
                Then::Next => at += 1,
                Then::NextPolicy => at = step.next_set,
            }
        }
        (self.0.end_rule, self.0.end)
    }

    /// What communities mean that every speaker knows.
    fn well_known(&self, candidate: &Candidate<'_>, state: &mut State) {
        if let Some(guard) = &self.0.guard {
            let settings = guard.settings();
            let has = |wanted: u32| candidate.attributes.communities().any(|community| community == wanted);
            if settings.graceful_shutdown && has(Community::GRACEFUL_SHUTDOWN) {
                state.apply(&[Action::LocalPref(NumberEdit::Set(0))], candidate);
            }
            if settings.blackhole && has(Community::BLACKHOLE) {
                state.next_hop = NextHopEdit::Discard;
                // It is meant for us only (RFC 7999 section 3.2).
                if !has(Community::NO_EXPORT) && !has(Community::NO_ADVERTISE) {
                    let list = Arc::from([Community::Standard(Community::NO_ADVERTISE)]);
                    state.apply(&[Action::AddCommunities(list)], candidate);
                }
            }
        }
        if self.0.graceful_shutdown {
            let list = Arc::from([Community::Standard(Community::GRACEFUL_SHUTDOWN)]);
            state.apply(&[Action::AddCommunities(list)], candidate);
        }
    }
}

/// What rules changed so far.
struct State {
    attributes: Option<Vec<u8>>,
    next_hop: NextHopEdit,
}

impl State {
    fn holds(&self, step: &Step, candidate: &Candidate<'_>) -> bool {
        let mut view = View::of(candidate);
        if let Some(octets) = &self.attributes {
            view.attributes = Attributes(octets);
        }
        if let NextHopEdit::Address(next_hop) = self.next_hop {
            view.next_hop = Some(next_hop);
        }
        step.matches.iter().all(|one| one.holds(&view))
    }

    fn apply(&mut self, actions: &[Action], candidate: &Candidate<'_>) {
        if actions.is_empty() {
            return;
        }
        let base = Attributes(self.attributes.as_deref().unwrap_or(candidate.attributes.0));
        let mut edit = Edit::new(base, self.next_hop);
        for action in actions {
            edit.apply(action, candidate.local_as);
        }
        self.next_hop = edit.next_hop;
        if let Some(octets) = edit.finish() {
            self.attributes = Some(octets);
        }
    }
}

fn has_set(attributes: Attributes<'_>) -> bool {
    let is_set = |kind| matches!(kind, SegmentKind::Set | SegmentKind::ConfedSet);
    attributes.as_path().segments().any(|segment| is_set(segment.kind))
}

/// The steps that some path can reach, without matches that always hold.
fn reachable(mut steps: Vec<Step>, family: Option<Family>) -> Vec<Step> {
    let mut can_hold = Vec::with_capacity(steps.len());
    for step in &mut steps {
        can_hold.push(step.matches.iter().all(|one| one.constant(family) != Some(false)));
        step.matches.retain(|one| one.constant(family) != Some(true));
    }
    let mut reached = vec![false; steps.len() + 1];
    let mark = |reached: &mut [bool], index: usize| {
        if let Some(slot) = reached.get_mut(index) {
            *slot = true;
        }
    };
    mark(&mut reached, 0);
    let mut kept = Vec::with_capacity(steps.len());
    for (index, (step, can_hold)) in steps.iter().zip(can_hold).enumerate() {
        let is_reached = reached.get(index).is_some_and(|slot| *slot);
        if is_reached && (!can_hold || !step.matches.is_empty() || step.then == Then::Next) {
            mark(&mut reached, index + 1);
        }
        if is_reached && can_hold && step.then == Then::NextPolicy {
            mark(&mut reached, step.next_set);
        }
        let does_nothing = step.then == Then::Next && step.actions.is_empty();
        kept.push(is_reached && can_hold && !does_nothing);
    }
    // Where a set begins now: as many steps as are kept in front of where it began.
    let mut in_front = vec![0_usize];
    in_front.extend(kept.iter().scan(0, |count, kept| {
        *count += usize::from(*kept);
        Some(*count)
    }));
    let moved: Vec<usize> = steps.iter().map(|step| in_front.get(step.next_set).copied().unwrap_or_default()).collect();
    let all = steps.into_iter().zip(moved).zip(kept);
    all.filter(|(_, kept)| *kept).map(|((step, next_set), _)| Step { next_set, ..step }).collect()
}

#[cfg(test)]
mod tests;
