//! What a peer is sent, from sessions and tables to octets.

use super::{Command, Speaker, peer::Peer};
use crate::{
    id::{Moment, PeerId},
    session::{Direction, Outgoing, Slot},
    wire::{
        encode,
        header::{HEADER_LEN, LengthLimit, MessageType, next_frame},
    },
};

impl Speaker {
    /// Appends what is to be sent on a connection, whole messages, at most about `octets_max`. Returns true when there may
    /// be more; when nothing was appended nevertheless, a [`Command::Write`] says so too.
    pub fn send(&mut self, now: Moment, id: PeerId, slot: Slot, out: &mut Vec<u8>, octets_max: usize) -> bool {
        let Some(peer) = self.peers.get_mut(id.index()).and_then(Option::as_mut) else { return false };
        let connection = peer.connection_mut(slot);
        out.append(&mut connection.out);
        if peer.session.established_slot() != Some(slot) {
            return false;
        }
        let before = out.len();
        let more = out.len() >= octets_max || self.rib.poll_export(id, out, octets_max - out.len());
        if out.len() > before {
            let limit = peer.connection(slot).limit;
            record(peer, now, &out[before..], limit);
            peer.session.on_sent(slot, now);
            self.schedule(id);
            let mut rest = &out[before..];
            while self.mirrors
                && let Ok(Some(frame)) = next_frame(rest, limit)
            {
                let length = rest.len() - frame.rest.len();
                self.note_message(id, slot, Direction::Sent, &rest[..length]);
                rest = frame.rest;
            }
        } else if more {
            // Much was looked at that is nothing to this peer. An owner that waits until the kernel has taken what was sent
            // would wait for ever.
            self.commands.push_back(Command::Write(id, slot));
        }
        more
    }

    /// The kernel took octets of a connection.
    pub fn written(&mut self, now: Moment, id: PeerId, slot: Slot) {
        if let Some(peer) = self.peer_mut(id) {
            peer.session.on_written(slot, now);
            self.schedule(id);
        }
    }

    /// Queues a message of the session.
    pub(super) fn queue(&mut self, now: Moment, id: PeerId, slot: Slot, message: &Outgoing) {
        let Some(peer) = self.peer_mut(id) else { return };
        let limit = peer.connection(slot).limit;
        let out = &mut peer.connection_mut(slot).out;
        let before = out.len();
        let message_type = match message {
            Outgoing::Open(open) => {
                // The session was validated: its OPEN fits. If it did not, there would be nothing to say to the peer.
                out.extend(open.encode().unwrap_or_default());
                MessageType::Open
            }
            Outgoing::Keepalive => {
                encode::keepalive(out);
                MessageType::Keepalive
            }
            Outgoing::Notification(notification) => {
                notification.encode(limit, out);
                MessageType::Notification
            }
            Outgoing::Refresh(refresh) => {
                refresh.encode(out);
                MessageType::RouteRefresh
            }
        };
        let whole = out.get(before..).unwrap_or_default().to_vec();
        let body = whole.get(HEADER_LEN..).unwrap_or_default();
        peer.session.history_mut().message(now, Direction::Sent, message_type, body);
        self.note_message(id, slot, Direction::Sent, &whole);
        self.commands.push_back(Command::Write(id, slot));
    }
}

/// Enters sent UPDATEs into the history of the session: the last of them with their octets, the others as a number.
fn record(peer: &mut Peer, now: Moment, sent: &[u8], limit: LengthLimit) {
    let history = peer.session.history_mut();
    let mut rest = sent;
    while let Ok(Some(frame)) = next_frame(rest, limit) {
        history.message(now, Direction::Sent, frame.header.message_type(), frame.body);
        rest = frame.rest;
    }
}
