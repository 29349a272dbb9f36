//! Paths of a peer that is away or just back: for how long they stay.
//!
//! The receiving speaker of graceful restart (RFC 4724 section 4.2, RFC 8538), long-lived graceful restart (RFC 9494), and
//! the marks of an enhanced route refresh (RFC 7313), which are stale paths with another reason. The tables only mark paths
//! and are told when to sweep.

use std::time::Duration;

use super::{
    event::{Action, Fact},
    negotiated::{Negotiated, NegotiatedFamily},
};
use crate::{
    family::{Family, PerFamily},
    id::Moment,
};

/// How long paths that a peer announced to send again wait for the end of its route refresh.
pub const REFRESH_TIME: Duration = Duration::from_secs(600);

/// Stale paths of one peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Retention {
    stages: PerFamily<Stage>,
    /// Until when the peer has to be back.
    restart_until: Option<Moment>,
    /// Long-lived stale times, as agreed by the session that was lost.
    stale_times: PerFamily<Duration>,
}

/// Where the stale paths of one family are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// There are none.
    #[default]
    Fresh,
    /// The peer is away: until its restart time is over.
    Restarting,
    /// The peer is away for long.
    LongLived {
        /// Until then.
        until: Moment,
    },
    /// The peer is back; its End-of-RIB is awaited.
    Returned {
        /// Until then.
        until: Moment,
        /// The paths are long-lived stale.
        long_lived: bool,
    },
    /// The long-lived stale time ran out while the peer was back, and its End-of-RIB is still awaited: should the session
    /// end before that, nothing is kept (RFC 9494 section 4.2).
    Overdue,
    /// The peer sends its routes again; the end of that is awaited.
    Refreshing {
        /// Until then.
        until: Moment,
    },
}

impl Retention {
    pub(super) fn stage(&self, family: Family) -> Stage {
        *self.stages.get(family)
    }

    pub(super) fn next_deadline(&self) -> Option<Moment> {
        let stages = self.stages.iter().filter_map(|(_, stage)| match stage {
            Stage::Fresh | Stage::Restarting | Stage::Overdue => None,
            Stage::LongLived { until } | Stage::Returned { until, .. } | Stage::Refreshing { until } => Some(*until),
        });
        stages.chain(self.restart_until).min()
    }

    /// Before the session is reported lost: paths that were stale already are not kept a second time (RFC 4724 section
    /// 4.2), except long-lived ones, whose time goes on (RFC 9494 section 4.2).
    pub(super) fn before_loss(&mut self, actions: &mut Vec<Action>) {
        for family in Family::ALL {
            match *self.stages.get(family) {
                Stage::Returned { long_lived: false, .. } | Stage::Refreshing { .. } => self.sweep(family, actions),
                Stage::Returned { long_lived: true, until } => {
                    *self.stages.get_mut(family) = Stage::LongLived { until };
                }
                Stage::Fresh | Stage::Restarting | Stage::LongLived { .. } | Stage::Overdue => {}
            }
        }
    }

    /// The session was lost, and the tables keep the paths of `families`.
    pub(super) fn lost(
        &mut self,
        now: Moment,
        negotiated: &Negotiated,
        families: &PerFamily<bool>,
        actions: &mut Vec<Action>,
    ) {
        let restart_time = Duration::from_secs(negotiated.restart.map_or(0, |it| it.restart_time_s).into());
        for (family, kept) in families.iter() {
            let agreed = negotiated.families.get(family).unwrap_or_default();
            *self.stale_times.get_mut(family) = Duration::from_secs(agreed.stale_time_s.into());
            if !kept {
                *self.stages.get_mut(family) = Stage::Fresh;
            } else if let Stage::Overdue = self.stages.get(family) {
                self.sweep(family, actions);
            } else if let Stage::LongLived { .. } = self.stages.get(family) {
                actions.push(Action::LongLived(family));
            } else if agreed.restart && !restart_time.is_zero() {
                *self.stages.get_mut(family) = Stage::Restarting;
                self.restart_until = Some(now.after(restart_time));
            } else {
                self.begin_long_lived(now, family, actions);
            }
        }
    }

    /// The session is up again.
    pub(super) fn returned(
        &mut self,
        now: Moment,
        negotiated: &Negotiated,
        stale_path_time: Duration,
        actions: &mut Vec<Action>,
    ) {
        self.restart_until = None;
        for family in Family::ALL {
            let agreed: NegotiatedFamily = negotiated.families.get(family).unwrap_or_default();
            let (until, long_lived, kept) = match *self.stages.get(family) {
                Stage::Fresh => continue,
                // Here only the flag of the long-lived capability counts (RFC 9494 section 4.2).
                Stage::LongLived { until } => (until, true, agreed.long_lived_forwarding_kept),
                Stage::Restarting | Stage::Returned { .. } | Stage::Overdue | Stage::Refreshing { .. } => {
                    (now.after(stale_path_time), false, agreed.forwarding_kept)
                }
            };
            if kept {
                *self.stages.get_mut(family) = Stage::Returned { until, long_lived };
            } else {
                self.sweep(family, actions);
            }
        }
    }

    pub(super) fn end_of_rib(&mut self, family: Family, actions: &mut Vec<Action>) {
        match self.stages.get(family) {
            Stage::Returned { .. } => self.sweep(family, actions),
            Stage::Overdue => *self.stages.get_mut(family) = Stage::Fresh,
            Stage::Fresh | Stage::Restarting | Stage::LongLived { .. } | Stage::Refreshing { .. } => {}
        }
    }

    /// The peer begins to send everything again. Before its End-of-RIB that is to be ignored (RFC 7313 section 4.1).
    pub(super) fn refresh_begins(&mut self, now: Moment, family: Family, actions: &mut Vec<Action>) -> bool {
        let stage = self.stages.get_mut(family);
        let begins = matches!(stage, Stage::Fresh | Stage::Refreshing { .. });
        if begins {
            *stage = Stage::Refreshing { until: now.after(REFRESH_TIME) };
            actions.push(Action::RefreshBegan(family));
        }
        begins
    }

    /// The peer has sent everything again.
    pub(super) fn refresh_ends(&mut self, family: Family, actions: &mut Vec<Action>) -> bool {
        let ends = matches!(self.stages.get(family), Stage::Refreshing { .. });
        if ends {
            self.sweep(family, actions);
        }
        ends
    }

    /// Forgets everything; with `sweep` the tables are told, without it they have been told otherwise.
    pub(super) fn clear(&mut self, sweep: bool, actions: &mut Vec<Action>) {
        self.restart_until = None;
        for family in Family::ALL {
            if *self.stages.get(family) != Stage::Fresh && sweep {
                self.sweep(family, actions);
            }
        }
        self.stages = PerFamily::default();
    }

    pub(super) fn expire(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for family in Family::ALL {
            match *self.stages.get(family) {
                Stage::Returned { until, long_lived: true } if until <= now => {
                    self.sweep(family, actions);
                    *self.stages.get_mut(family) = Stage::Overdue;
                }
                Stage::LongLived { until } | Stage::Returned { until, .. } | Stage::Refreshing { until }
                    if until <= now =>
                {
                    self.sweep(family, actions);
                }
                Stage::Fresh
                | Stage::Restarting
                | Stage::Overdue
                | Stage::LongLived { .. }
                | Stage::Returned { .. }
                | Stage::Refreshing { .. } => {}
            }
        }
        if self.restart_until.is_some_and(|until| until <= now) {
            self.restart_until = None;
            actions.push(Action::Fact(Fact::RestartTimeOver));
            for family in Family::ALL {
                if *self.stages.get(family) == Stage::Restarting {
                    self.begin_long_lived(now, family, actions);
                }
            }
        }
    }

    fn begin_long_lived(&mut self, now: Moment, family: Family, actions: &mut Vec<Action>) {
        let stale_time = *self.stale_times.get(family);
        if stale_time.is_zero() {
            self.sweep(family, actions);
        } else {
            *self.stages.get_mut(family) = Stage::LongLived { until: now.after(stale_time) };
            actions.push(Action::LongLived(family));
        }
    }

    /// Whatever is stale of a family goes.
    fn sweep(&mut self, family: Family, actions: &mut Vec<Action>) {
        let stage = std::mem::take(self.stages.get_mut(family));
        actions.push(match stage {
            Stage::Refreshing { .. } => Action::RefreshEnded(family),
            Stage::Fresh | Stage::Restarting | Stage::LongLived { .. } | Stage::Returned { .. } | Stage::Overdue => {
                Action::Sweep(family)
            }
        });
    }
}
