//! The end of connections and sessions, and what is kept.

use super::{
    connection::Connection,
    event::{Action, Down, DownCause, Fact, Outgoing, Retain, Slot, StopReason},
    machine::{End, Session},
    negotiated::Negotiated,
};
use crate::{
    family::{Family, PerFamily},
    id::Moment,
    wire::notification::{ErrorCode, Notification, cease},
};

impl Session {
    /// A connection has gone by itself.
    pub(super) fn closed(&mut self, now: Moment, slot: Slot, words: String, actions: &mut Vec<Action>) {
        if self.connections[slot.index()].is_some() {
            // Nothing is left to be closed, but the place must be known to be free.
            self.fail(now, slot, End { cause: DownCause::Lost(words), notification: None }, actions);
        }
    }

    /// Ends all connections for a reason that lies with us.
    pub(super) fn end_all(
        &mut self,
        now: Moment,
        cause: &DownCause,
        notification: Option<&Notification>,
        actions: &mut Vec<Action>,
    ) {
        for slot in Slot::ALL {
            self.end(now, slot, End { cause: cause.clone(), notification: notification.cloned() }, actions);
        }
    }

    /// Gives up whatever there is that is not established, without a word.
    pub(super) fn close_all(&mut self, actions: &mut Vec<Action>) {
        for slot in Slot::ALL {
            if self.connections[slot.index()].take().is_some() {
                actions.push(Action::Close(slot));
            }
        }
    }

    /// Takes a connection out of its place, tells the peer, and reports the end of the session when it was established.
    pub(super) fn end(&mut self, now: Moment, slot: Slot, end: End, actions: &mut Vec<Action>) {
        let Some(connection) = self.connections[slot.index()].take() else {
            return;
        };
        let End { cause, notification } = end;
        let established = connection.established().map(|live| &*live.negotiated);
        let retain = established.map(|negotiated| retained(&cause, negotiated));
        let understood = established.and_then(|negotiated| negotiated.restart).map(|restart| restart.notification);
        // Without RFC 8538 any NOTIFICATION makes the peer drop our paths: where we keep its paths we say nothing.
        let silent = matches!(retain, Some(Retain::Stale(_))) && understood == Some(false);
        if let Some(notification) = notification.filter(|_| connection.has_sent_open() && !silent) {
            let hard = retain == Some(Retain::Drop) && understood == Some(true);
            let notification = if hard { notification.into_hard_reset() } else { notification };
            actions.push(Action::Send(slot, Outgoing::Notification(notification)));
        }
        actions.push(Action::Close(slot));
        match (established, retain) {
            (Some(negotiated), Some(retain)) => {
                self.session_lost(now, &cause, negotiated, retain, actions);
                self.last_down = Some((now, cause));
            }
            _ => self.attempt_lost(now, cause, &connection, actions),
        }
    }

    fn attempt_lost(&mut self, now: Moment, cause: DownCause, connection: &Connection, actions: &mut Vec<Action>) {
        let ours = matches!(cause, DownCause::Stopped(_) | DownCause::Reset | DownCause::Reconfigured(_));
        if !ours || connection.is_open() {
            actions.push(Action::Fact(Fact::Failed(cause.clone())));
        }
        let collided = matches!(&cause, DownCause::Received(told) | DownCause::Sent(told) if is_collision(told));
        if !ours && !collided {
            self.last_failure = Some((now, cause));
        }
    }

    fn session_lost(
        &mut self,
        now: Moment,
        cause: &DownCause,
        negotiated: &Negotiated,
        retain: Retain,
        actions: &mut Vec<Action>,
    ) {
        self.established_since = None;
        match retain {
            Retain::Drop => {
                actions.push(Action::Down(Down { cause: cause.clone(), retain }));
                self.retention.clear(false, actions);
            }
            Retain::Stale(families) => {
                self.retention.before_loss(actions);
                actions.push(Action::Down(Down { cause: cause.clone(), retain }));
                self.retention.lost(now, negotiated, &families, actions);
            }
        }
    }
}

/// What is kept of the peer's paths (RFC 4724 section 4.2, RFC 8538 section 4, RFC 5882 section 4.3).
fn retained(cause: &DownCause, negotiated: &Negotiated) -> Retain {
    let Some(restart) = negotiated.restart else {
        return Retain::Drop;
    };
    let keeps = match cause {
        DownCause::Lost(_) | DownCause::NoAnswer | DownCause::Replaced | DownCause::LinkDown => true,
        // This process ends: what it leaves behind in the kernel is for the next one.
        DownCause::Stopped(StopReason::Restart) => true,
        DownCause::HoldTimer
        | DownCause::SendHoldTimer
        | DownCause::Sent(_)
        | DownCause::Reset
        | DownCause::Reconfigured(_) => restart.notification,
        DownCause::Received(notification) => restart.notification && !notification.is_hard_reset(),
        DownCause::Bfd { control_plane_independent } => !control_plane_independent,
        DownCause::Stopped(StopReason::Shutdown | StopReason::Deconfigured) | DownCause::PrefixLimit { .. } => false,
    };
    let keeps_family = |family: Family| {
        negotiated.families.get(family).is_some_and(|agreed| agreed.restart || agreed.stale_time_s > 0)
    };
    let families = PerFamily {
        ipv4: keeps && keeps_family(Family::Ipv4Unicast),
        ipv6: keeps && keeps_family(Family::Ipv6Unicast),
    };
    if families.ipv4 || families.ipv6 { Retain::Stale(families) } else { Retain::Drop }
}

/// The other connection won; that is no failure.
pub(super) fn is_collision(notification: &Notification) -> bool {
    notification.code == ErrorCode::Cease && notification.subcode == cease::CONNECTION_COLLISION
}
