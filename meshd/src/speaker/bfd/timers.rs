//! When which session is due: a heap in which entries may be out of date.
//!
//! A session's deadline moves with every packet, mostly to later. Moving an entry would cost a search, so an entry that is
//! too early is left where it is and put right when it is taken out.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use bgp::{Moment, bfd::Discriminator};

/// Deadlines by session.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Moment, Discriminator)>>,
    /// The entry of each session that counts; others in the heap are left over.
    entries: BTreeMap<Discriminator, Moment>,
}

impl Timers {
    /// The deadline of a session is now this.
    pub(super) fn set(&mut self, session: Discriminator, deadline: Option<Moment>) {
        let Some(deadline) = deadline else { return };
        if self.entries.get(&session).is_none_or(|entry| *entry > deadline) {
            self.entries.insert(session, deadline);
            self.heap.push(Reverse((deadline, session)));
        }
    }

    /// Forgets a session.
    pub(super) fn remove(&mut self, session: Discriminator) {
        self.entries.remove(&session);
    }

    /// When the thread must wake at the latest.
    pub(super) fn next(&mut self) -> Option<Moment> {
        loop {
            let Reverse((moment, session)) = *self.heap.peek()?;
            if self.entries.get(&session) == Some(&moment) {
                return Some(moment);
            }
            self.heap.pop();
        }
    }

    /// Takes a session out whose entry has come; whoever takes it sets the deadline again.
    pub(super) fn pop_due(&mut self, now: Moment) -> Option<(Moment, Discriminator)> {
        let moment = self.next().filter(|moment| *moment <= now)?;
        let Reverse((_, session)) = self.heap.pop()?;
        self.entries.remove(&session);
        Some((moment, session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u32) -> Discriminator {
        Discriminator::new(number).expect("not zero")
    }

    #[test]
    fn sessions_come_in_the_order_of_their_deadlines() {
        let mut timers = Timers::default();
        timers.set(session(1), Some(Moment(30)));
        timers.set(session(2), Some(Moment(10)));
        timers.set(session(3), Some(Moment(20)));
        timers.set(session(4), None);
        // Earlier counts, later waits for the entry to come.
        timers.set(session(1), Some(Moment(5)));
        timers.set(session(2), Some(Moment(90)));
        timers.remove(session(3));
        assert_eq!(timers.next(), Some(Moment(5)));
        assert_eq!(timers.pop_due(Moment(4)), None);
        assert_eq!(timers.pop_due(Moment(50)), Some((Moment(5), session(1))));
        assert_eq!(timers.pop_due(Moment(50)), Some((Moment(10), session(2))));
        assert_eq!(timers.pop_due(Moment(50)), None);
        assert_eq!(timers.next(), None);
        timers.set(session(1), Some(Moment(60)));
        assert_eq!(timers.next(), Some(Moment(60)));
    }

    /// Moving deadlines with each packet must not fill the heap.
    #[test]
    fn the_heap_stays_small() {
        let mut timers = Timers::default();
        for moment in 0..10_000 {
            timers.set(session(1), Some(Moment(moment + 100)));
            if let Some((_, session)) = timers.pop_due(Moment(moment)) {
                timers.set(session, Some(Moment(moment + 100)));
            }
        }
        assert_eq!(timers.heap.len(), 1);
    }
}
