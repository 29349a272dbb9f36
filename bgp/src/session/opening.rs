//! The way to an established session: attempts, the peer's connections, OPEN, collisions.

use std::time::Duration;

use super::{
    connection::{BFD_HOLD_TIME, Connection, Live, Phase, ours_wins},
    event::{Action, DownCause, Fact, Outgoing, Slot, State},
    machine::{End, Run, Session},
    negotiate::negotiate,
};
use crate::{
    id::Moment,
    wire::{
        header::MessageType,
        notification::{ErrorCode, Notification, cease},
        open::Open,
    },
};

/// How long a connection of ours that may lose a collision waits for the peer's one to say OPEN.
pub const COLLISION_TIME: Duration = Duration::from_secs(5);
/// Shortest time between two KEEPALIVE messages that find out whether an established connection is dead.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

impl Session {
    /// Opens a connection unless there is one of ours.
    pub(super) fn connect(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.connections.iter().flatten().any(|connection| connection.ours) {
            return;
        }
        let Some(slot) = self.free_slot() else {
            return;
        };
        self.connections[slot.index()] = Some(Connection { ours: true, since: now, phase: Phase::Connecting });
        self.connect_retry = Some(now.after(self.jitter.apply(self.config.connect_retry)));
        actions.push(Action::Connect(slot));
    }

    /// Connects without waiting for the timer: also in place of an attempt that began when the peer could not be reached.
    pub(super) fn reachable(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if matches!(self.state(), State::Connect | State::Active) && self.run == Run::Running && !self.config.passive {
            self.close_attempt(actions);
            self.connect(now, actions);
        }
    }

    /// Gives an attempt up that has not become a connection: a better one takes its place.
    pub(super) fn close_attempt(&mut self, actions: &mut Vec<Action>) {
        for slot in Slot::ALL {
            if self.connections[slot.index()].as_ref().is_some_and(|connection| !connection.is_open()) {
                self.connections[slot.index()] = None;
                actions.push(Action::Close(slot));
            }
        }
    }

    /// Gives an attempt up that has taken too long.
    pub(super) fn give_up_attempt(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for slot in Slot::ALL {
            if self.connections[slot.index()].as_ref().is_some_and(|connection| !connection.is_open()) {
                self.end(now, slot, End { cause: DownCause::NoAnswer, notification: None }, actions);
            }
        }
    }

    pub(super) fn connected(&mut self, now: Moment, slot: Slot, actions: &mut Vec<Action>) {
        if self.connections[slot.index()].as_ref().is_some_and(|connection| !connection.is_open()) {
            self.speak(now, slot, actions);
        }
    }

    /// The peer opened a connection.
    pub(super) fn accept(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match self.place_for_incoming(now, actions) {
            Ok(slot) => {
                self.connections[slot.index()] = Some(Connection { ours: false, since: now, phase: Phase::Connecting });
                actions.push(Action::Accept(slot));
                self.speak(now, slot, actions);
            }
            Err(why) => {
                actions.push(Action::Refuse);
                actions.push(Action::Fact(Fact::Refused(why)));
            }
        }
    }

    fn place_for_incoming(&mut self, now: Moment, actions: &mut Vec<Action>) -> Result<Slot, &'static str> {
        match self.run {
            Run::Stopped => return Err("the session is stopped"),
            Run::Waiting(_) => return Err("waiting after a failure"),
            Run::Running => {}
        }
        if let Some((slot, live)) = self.established() {
            if live.negotiated.restart.is_none() {
                self.probe(now, slot, actions);
                return Err("the session is established");
            }
            // RFC 4724 section 5: a peer that has restarted comes back before its old connection is known to be dead.
            return self.free_slot().ok_or("another connection of the peer is being opened");
        }
        for slot in Slot::ALL {
            let Some(connection) = &self.connections[slot.index()] else {
                continue;
            };
            match connection.live() {
                Some(live) if !connection.ours || ours_wins(self.config.router_id, &live.negotiated) => {
                    return Err("another connection is further");
                }
                // Only one, so that somebody who opens connections without end does not disturb the one that talks.
                None if !connection.ours => return Err("another connection of the peer is being opened"),
                Some(_) | None => {}
            }
        }
        self.free_slot().ok_or("there are two connections already")
    }

    /// Makes the kernel find out whether the peer still knows an established connection: when it does not, its answer to this
    /// KEEPALIVE ends the connection long before the hold timer does.
    fn probe(&mut self, now: Moment, slot: Slot, actions: &mut Vec<Action>) {
        if self.probed.is_none_or(|probed| now.since(probed) >= PROBE_INTERVAL) {
            self.probed = Some(now);
            actions.push(Action::Send(slot, Outgoing::Keepalive));
        }
    }

    fn speak(&mut self, now: Moment, slot: Slot, actions: &mut Vec<Action>) {
        match (self.config.delay_open, &mut self.connections[slot.index()]) {
            (Some(delay), Some(connection)) => {
                connection.phase = Phase::Delaying { until: now.after(self.jitter.apply(delay)) };
            }
            (None, _) | (_, None) => self.send_open(now, slot, actions),
        }
    }

    pub(super) fn open_received(&mut self, now: Moment, slot: Slot, open: &Open, actions: &mut Vec<Action>) {
        match self.connections[slot.index()].as_ref().map(|connection| &connection.phase) {
            None => return,
            Some(Phase::OpenSent { .. }) => {}
            Some(Phase::Delaying { .. }) => self.send_open(now, slot, actions),
            Some(Phase::Connecting | Phase::OpenConfirm(_) | Phase::Established(_)) => {
                self.unexpected(now, slot, MessageType::Open, actions);
                return;
            }
        }
        let negotiated = match negotiate(&self.config, open) {
            Ok(negotiated) => negotiated,
            Err(notification) => {
                let cause = DownCause::Sent(notification.clone());
                self.fail(now, slot, End { cause, notification: Some(notification) }, actions);
                return;
            }
        };
        let mut live = Live::new(now, &self.config, negotiated, &mut self.jitter);
        if !self.survives_collision(now, slot, &mut live, actions) {
            return;
        }
        if self.config.bfd_strict {
            live.awaits_bfd_until = Some(now.after(BFD_HOLD_TIME));
            actions.push(Action::WatchPath(slot));
        }
        if let Some(connection) = &mut self.connections[slot.index()] {
            if !live.is_held() {
                actions.push(Action::Send(slot, Outgoing::Keepalive));
            }
            connection.phase = Phase::OpenConfirm(live);
        }
    }

    /// BFD says that the path works, or says nothing about it any more.
    pub(super) fn path_works(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for slot in Slot::ALL {
            if let Some(Phase::OpenConfirm(live)) = self.connections[slot.index()].as_mut().map(|it| &mut it.phase)
                && live.awaits_bfd_until.take().is_some()
            {
                self.answer_if_free(now, slot, actions);
            }
        }
    }

    /// Sends the KEEPALIVE that was kept back, once nothing keeps it.
    fn answer_if_free(&mut self, now: Moment, slot: Slot, actions: &mut Vec<Action>) {
        if let Some(Phase::OpenConfirm(live)) = self.connections[slot.index()].as_mut().map(|it| &mut it.phase)
            && !live.is_held()
        {
            let confirmed = live.confirmed;
            if let Some(keepalive) = &mut live.keepalive {
                // It ran while nothing was sent, and may be over already.
                keepalive.restart_with(now, &mut self.jitter);
            }
            actions.push(Action::Send(slot, Outgoing::Keepalive));
            if confirmed {
                self.establish(now, slot, actions);
            }
        }
    }

    /// Answers the peer's OPEN where that waited for the other connection, once there is none.
    pub(super) fn release_held(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for slot in Slot::ALL {
            if self.connections[slot.other().index()].is_some() {
                continue;
            }
            let Some(Phase::OpenConfirm(live)) = self.connections[slot.index()].as_mut().map(|it| &mut it.phase) else {
                continue;
            };
            if live.held_until.take().is_some() {
                self.answer_if_free(now, slot, actions);
            }
        }
    }

    /// Decides between this connection, whose OPEN has just come, and the other one, and closes the loser.
    ///
    /// The speaker whose connection wins (the one with the higher identifier) decides alone, as soon as it has the OPEN of
    /// either connection: its own one stays when it is open, and is given up when it is only an attempt. KEEPALIVE on the
    /// connection that stays is its word. The other speaker cannot know which of both it was, so it keeps its KEEPALIVE back
    /// until the peer's connection has said OPEN or is closed. That way no order of messages loses both.
    fn survives_collision(&mut self, now: Moment, slot: Slot, live: &mut Live, actions: &mut Vec<Action>) -> bool {
        let other = slot.other();
        let (Some(this), Some(that)) = (&self.connections[slot.index()], &self.connections[other.index()]) else {
            return true;
        };
        let ours_stays = ours_wins(self.config.router_id, &live.negotiated);
        match &that.phase {
            Phase::Connecting => {
                self.connections[other.index()] = None;
                actions.push(Action::Close(other));
                true
            }
            Phase::Delaying { .. } | Phase::OpenSent { .. } if this.ours && !ours_stays => {
                live.held_until = Some(now.after(COLLISION_TIME));
                true
            }
            Phase::Delaying { .. } | Phase::OpenSent { .. } | Phase::OpenConfirm(_) => {
                let survives = this.ours == ours_stays;
                actions.push(Action::Fact(Fact::Collision { ours_stays }));
                self.end_collided(now, if survives { other } else { slot }, actions);
                survives
            }
            Phase::Established(old) if old.negotiated.restart.is_some() => {
                // Without a NOTIFICATION (RFC 4724 section 5): the peer has forgotten this connection.
                self.end(now, other, End { cause: DownCause::Replaced, notification: None }, actions);
                true
            }
            Phase::Established(_) => {
                self.end_collided(now, slot, actions);
                false
            }
        }
    }

    /// Ends a connection that has lost against another one.
    pub(super) fn end_collided(&mut self, now: Moment, slot: Slot, actions: &mut Vec<Action>) {
        let notification = Notification::new(ErrorCode::Cease, cease::CONNECTION_COLLISION);
        let cause = DownCause::Sent(notification.clone());
        self.end(now, slot, End { cause, notification: Some(notification) }, actions);
    }

    fn free_slot(&self) -> Option<Slot> {
        Slot::ALL.into_iter().find(|slot| self.connections[slot.index()].is_none())
    }
}
