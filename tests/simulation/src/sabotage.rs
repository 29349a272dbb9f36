//! Mistakes made on purpose.

use meshd_core::{id::NexthopId, observed::ClusterChange, plan::Action};

/// A deliberate mistake, to prove that the invariants see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Replaces a route by deleting it first (I8).
    DeleteFirst,
    /// Sweeps before a list has come to its end (I4).
    SweepEarly,
    /// Prunes before every cluster was heard (I4).
    PruneUnheard,
    /// Drops the rows of a cluster that does not answer (fail static).
    ForgetSilent,
    /// Believes every cluster everything (I12).
    AcceptEverything,
    /// Names a nexthop object outside our range (I5).
    TouchForeign,
    /// Does not know its own PodCIDRs.
    ForgetOwn,
    /// Dumps the kernel once and then trusts its notifications (I6): never repairs what it did not hear.
    DumpOnce,
}

impl Sabotage {
    /// Falsifies what a reader said.
    pub(crate) fn spoil_changes(self, changes: &mut Vec<ClusterChange>) {
        let spoil = |change: ClusterChange| match (self, change) {
            (Self::SweepEarly, ClusterChange::ListBegin(kind)) => {
                vec![ClusterChange::ListBegin(kind), ClusterChange::ListEnd(kind)]
            }
            (Self::ForgetSilent, ClusterChange::Stale(_)) => vec![ClusterChange::Drop],
            (_, change) => vec![change],
        };
        *changes = std::mem::take(changes).into_iter().flat_map(spoil).collect();
    }

    /// Falsifies what a planner wants.
    pub(crate) fn spoil_actions(self, actions: &mut Vec<Action>) {
        match self {
            Self::DeleteFirst => {
                *actions = std::mem::take(actions)
                    .into_iter()
                    .flat_map(|action| match action {
                        Action::PutRoute { key, via, replace: true } => {
                            vec![Action::DeleteRoute { key }, Action::PutRoute { key, via, replace: false }]
                        }
                        other => vec![other],
                    })
                    .collect();
            }
            Self::TouchForeign => actions.push(Action::DeleteNexthop { id: NexthopId(7), routes: 0 }),
            Self::ForgetOwn
            | Self::SweepEarly
            | Self::PruneUnheard
            | Self::ForgetSilent
            | Self::AcceptEverything
            | Self::DumpOnce => {}
        }
    }
}
