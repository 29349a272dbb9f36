//! The last messages and state changes of a peer, for people.
//!
//! UPDATE and KEEPALIVE come in such numbers that they would push out what explains a session: the last OPEN, the last
//! NOTIFICATION, the last change of state. Hence a ring for each kind, put together by sequence numbers when somebody asks.
//! A message costs a copy of a few octets and, once a ring is full, no allocation.

use std::{collections::VecDeque, fmt};

use super::event::State;
use crate::{id::Moment, wire::header::MessageType};

/// UPDATE and KEEPALIVE messages kept.
pub const FREQUENT_MAX: usize = 32;
/// Other messages kept.
pub const RARE_MAX: usize = 16;
/// State changes kept.
pub const CHANGES_MAX: usize = 32;
/// Octets kept of each message, from behind its header.
pub const OCTETS_MAX: usize = 64;

/// Direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the peer.
    Received,
    /// To the peer.
    Sent,
}

/// What was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A message.
    Message(MessageRecord),
    /// A change of state.
    Change {
        /// From this.
        from: State,
        /// To this.
        to: State,
    },
}

/// A message.
#[derive(Clone, PartialEq, Eq)]
pub struct MessageRecord {
    /// Who sent it.
    pub direction: Direction,
    /// Its type.
    pub message_type: MessageType,
    /// Octets on the wire, header included.
    pub length: u16,
    kept: u8,
    octets: [u8; OCTETS_MAX],
}

impl MessageRecord {
    /// The first octets of the body.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        self.octets.get(..usize::from(self.kept)).unwrap_or_default()
    }
}

impl fmt::Debug for MessageRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageRecord")
            .field("direction", &self.direction)
            .field("message_type", &self.message_type)
            .field("length", &self.length)
            .field("octets", &self.octets())
            .finish()
    }
}

/// A record with its place in the order of things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When.
    pub at: Moment,
    /// What.
    pub record: Record,
}

/// Messages of one direction, by type, since the peer was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MessageCounts {
    /// OPEN.
    pub open: u64,
    /// UPDATE.
    pub update: u64,
    /// NOTIFICATION.
    pub notification: u64,
    /// KEEPALIVE.
    pub keepalive: u64,
    /// ROUTE-REFRESH.
    pub route_refresh: u64,
}

/// What happened to one peer lately.
#[derive(Clone, Debug, Default)]
pub struct History {
    sequence: u64,
    frequent: VecDeque<(u64, Moment, MessageRecord)>,
    rare: VecDeque<(u64, Moment, MessageRecord)>,
    changes: VecDeque<(u64, Moment, State, State)>,
    received: MessageCounts,
    sent: MessageCounts,
}

impl History {
    /// Remembers a message. `body` is what follows the header.
    pub fn message(&mut self, at: Moment, direction: Direction, message_type: MessageType, body: &[u8]) {
        let counts = match direction {
            Direction::Received => &mut self.received,
            Direction::Sent => &mut self.sent,
        };
        let (count, ring, max) = match message_type {
            MessageType::Update => (&mut counts.update, &mut self.frequent, FREQUENT_MAX),
            MessageType::Keepalive => (&mut counts.keepalive, &mut self.frequent, FREQUENT_MAX),
            MessageType::Open => (&mut counts.open, &mut self.rare, RARE_MAX),
            MessageType::Notification => (&mut counts.notification, &mut self.rare, RARE_MAX),
            MessageType::RouteRefresh => (&mut counts.route_refresh, &mut self.rare, RARE_MAX),
        };
        *count += 1;
        let kept = body.len().min(OCTETS_MAX);
        let mut octets = [0; OCTETS_MAX];
        octets[..kept].copy_from_slice(&body[..kept]);
        let length = u16::try_from(body.len() + crate::wire::header::HEADER_LEN).unwrap_or(u16::MAX);
        let record = MessageRecord { direction, message_type, length, kept: kept as u8, octets };
        push(ring, max, (self.sequence, at, record));
        self.sequence += 1;
    }

    /// Counts an UPDATE that is not worth remembering, one of many.
    pub fn count_updates(&mut self, direction: Direction, number: u64) {
        match direction {
            Direction::Received => self.received.update += number,
            Direction::Sent => self.sent.update += number,
        }
    }

    pub(super) fn change(&mut self, at: Moment, from: State, to: State) {
        push(&mut self.changes, CHANGES_MAX, (self.sequence, at, from, to));
        self.sequence += 1;
    }

    /// Everything remembered, oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let messages = self.frequent.iter().chain(&self.rare);
        let messages = messages.map(|(sequence, at, message)| (*sequence, *at, Record::Message(message.clone())));
        let changes = self
            .changes
            .iter()
            .map(|(sequence, at, from, to)| (*sequence, *at, Record::Change { from: *from, to: *to }));
        let mut all: Vec<(u64, Moment, Record)> = messages.chain(changes).collect();
        all.sort_by_key(|(sequence, ..)| *sequence);
        all.into_iter().map(|(_, at, record)| Entry { at, record }).collect()
    }

    /// Messages received.
    #[must_use]
    pub const fn received(&self) -> &MessageCounts {
        &self.received
    }

    /// Messages sent.
    #[must_use]
    pub const fn sent(&self) -> &MessageCounts {
        &self.sent
    }
}

fn push<T>(ring: &mut VecDeque<T>, max: usize, entry: T) {
    if ring.len() >= max {
        ring.pop_front();
    }
    ring.push_back(entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_updates_do_not_push_out_what_explains_a_session() {
        let mut history = History::default();
        history.message(Moment(1), Direction::Sent, MessageType::Open, &[4; 10]);
        history.change(Moment(2), State::Active, State::OpenSent);
        for at in 0..1_000 {
            history.message(Moment(10 + at), Direction::Received, MessageType::Update, &[7; 200]);
        }
        history.message(Moment(5_000), Direction::Received, MessageType::Notification, &[6, 2]);
        let entries = history.entries();
        assert_eq!(entries.len(), FREQUENT_MAX + 3);
        let Record::Message(first) = &entries[0].record else { panic!("a message comes first") };
        assert_eq!((first.message_type, first.length, first.octets()), (MessageType::Open, 29, [4; 10].as_slice()));
        assert_eq!(entries[1].record, Record::Change { from: State::Active, to: State::OpenSent });
        let Record::Message(update) = &entries[2].record else { panic!("updates follow") };
        assert_eq!((update.length, update.octets()), (219, [7; OCTETS_MAX].as_slice()));
        assert_eq!(entries[2].at, Moment(10 + 1_000 - FREQUENT_MAX as u64));
        assert_eq!(entries.last().map(|entry| entry.at), Some(Moment(5_000)));
        assert_eq!((history.received().update, history.received().notification, history.sent().open), (1_000, 1, 1));
    }

    #[test]
    fn rings_are_bounded() {
        let mut history = History::default();
        for at in 0..10_000 {
            history.message(Moment(at), Direction::Sent, MessageType::RouteRefresh, &[]);
            history.message(Moment(at), Direction::Sent, MessageType::Keepalive, &[]);
            history.change(Moment(at), State::Idle, State::Active);
        }
        assert_eq!(history.entries().len(), FREQUENT_MAX + RARE_MAX + CHANGES_MAX);
    }
}
