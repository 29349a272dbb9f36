//! What a peer sent, from octets to sessions and tables.

use super::{Command, Speaker};
use crate::{
    family::{Family, V4, V6},
    id::{Moment, PeerId},
    rib::AnnounceError,
    session::{Direction, Event, Slot},
    wire::{
        header::{Frame, MessageType, next_frame},
        nlri::Nlri,
        notification::Notification,
        open::Open,
        route_refresh::RouteRefresh,
        update::{self, Update},
    },
};

impl Speaker {
    /// Reads what has arrived on a connection: `stream` begins where a message begins. Returns how many octets were used;
    /// the rest is the beginning of a message and is to be presented again with what follows it.
    pub fn receive(&mut self, now: Moment, id: PeerId, slot: Slot, stream: &[u8]) -> usize {
        let mut used = 0;
        while let Some(rest) = stream.get(used..) {
            // An event may have ended the connection: what follows on it is nobody's.
            let Some(peer) = self.peer(id).filter(|peer| peer.session.has_connection(slot)) else {
                return stream.len();
            };
            match next_frame(rest, peer.connection(slot).limit) {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    let length = rest.len() - frame.rest.len();
                    used += length;
                    self.note_message(id, slot, Direction::Received, rest.get(..length).unwrap_or_default());
                    self.frame(now, id, slot, &frame);
                }
                Err(error) => {
                    self.handle(now, id, Event::Error(slot, error.notification()));
                    return stream.len();
                }
            }
        }
        used
    }

    fn frame(&mut self, now: Moment, id: PeerId, slot: Slot, frame: &Frame<'_>) {
        let message_type = frame.header.message_type();
        let Some(peer) = self.peer_mut(id) else { return };
        peer.session.history_mut().message(now, Direction::Received, message_type, frame.body);
        let enhanced = peer.session.negotiated().is_some_and(|it| it.enhanced_refresh);
        let event = match message_type {
            MessageType::Update => {
                if peer.session.on_update(slot, now) {
                    self.update(now, id, slot, frame.body);
                    return;
                }
                Event::Update(slot)
            }
            MessageType::Keepalive => Event::Keepalive(slot),
            MessageType::Open => match Open::decode(frame.body) {
                Ok(open) => Event::Open(slot, open),
                Err(error) => Event::Error(slot, error.notification()),
            },
            MessageType::Notification => match Notification::decode(frame.body) {
                Ok(notification) => Event::Notification(slot, notification),
                // A malformed report is answered by nothing (RFC 4271 section 6.4); the connection is of no use any more.
                Err(error) => Event::Closed(slot, error.to_string()),
            },
            MessageType::RouteRefresh => match RouteRefresh::decode(frame.body, enhanced) {
                Ok(Some(refresh)) => Event::Refresh(slot, refresh),
                Ok(None) => return,
                Err(error) => Event::Error(slot, error.notification()),
            },
        };
        self.handle(now, id, event);
    }

    fn update(&mut self, now: Moment, id: PeerId, slot: Slot, body: &[u8]) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let event = match self.peer(id).and_then(|peer| peer.context) {
            Some(context) => match update::decode(body, &context, &mut scratch) {
                Ok(update) => self.take_update(now, id, slot, &update),
                Err(error) => Some(Event::Error(slot, error.notification())),
            },
            None => None,
        };
        self.scratch = scratch;
        self.has_input = true;
        if let Some(event) = event {
            self.handle(now, id, event);
        }
    }

    /// Enters an UPDATE into the tables; returns what it means for the session.
    fn take_update(&mut self, now: Moment, id: PeerId, slot: Slot, update: &Update<'_>) -> Option<Event> {
        if let Some(problem) = update.problems.as_slice().first()
            && let Some(peer) = self.peer_mut(id)
        {
            peer.malformed_updates += 1;
            peer.updates_treated_as_withdraw += u64::from(update.treat_as_withdraw);
            peer.last_malformed = Some(problem.to_string());
        }
        for nlri in update.withdrawals() {
            self.withdraw(id, nlri);
        }
        for announced in update.announcements() {
            let (attributes, next_hop, nlri) = (update.attributes, announced.next_hop, announced.nlri);
            let entered = match nlri.family() {
                Family::Ipv4Unicast => self.rib.announce(id, attributes, next_hop, nlri.iter::<V4>(), now),
                Family::Ipv6Unicast => self.rib.announce(id, attributes, next_hop, nlri.iter::<V6>(), now),
            };
            match entered {
                Ok(announced) if announced.near_limit => self.commands.push_back(Command::NearLimit(id, nlri.family())),
                Ok(_) => {}
                Err(AnnounceError::Limit(limit)) => {
                    return Some(Event::PrefixLimit { family: limit.family, maximum: limit.max });
                }
                // The session went down while its last octets were read.
                Err(AnnounceError::NoSession(_)) => return None,
            }
        }
        let family = update.end_of_rib?;
        if let Some(peer) = self.peer_mut(id) {
            *peer.told.get_mut(family) = true;
        }
        if let Some(restarter) = &mut self.restarter {
            restarter.end_of_rib(id, family);
        }
        Some(Event::EndOfRib(slot, family))
    }

    fn withdraw(&mut self, id: PeerId, nlri: Nlri<'_>) {
        match nlri.family() {
            Family::Ipv4Unicast => self.rib.withdraw(id, nlri.iter::<V4>()),
            Family::Ipv6Unicast => self.rib.withdraw(id, nlri.iter::<V6>()),
        }
    }
}
