//! Flows: what the kernel's programs tell about connections and drops, for people who ask.
//!
//! The programs write records into a ring and wake nobody, because that costs three hundred records. The task here looks at the
//! ring by the clock, often while somebody follows and seldom otherwise, and whenever a program has written so much that it
//! does wake ([`task`]). Each record gets its names from the tables of that moment ([`names`]), goes into a history of bounded length
//! and to everybody whose filter fits ([`filter`]).
//!
//! Nothing here can hold up a packet. A ring that is full loses records, a program that has told enough for a second tells no more, and
//! a reader that is too slow misses some: each is counted where it happens, and the reader is told how many.

pub mod filter;
mod names;
mod task;
#[cfg(test)]
pub(crate) mod testing;

pub use names::ServiceNumbers;
pub use task::{Inputs, start};

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};

use self::filter::Filter;
use crate::api::flow_view::{FlowCountsView, FlowKind, FlowLine, FlowView, LostKind, LostSource, LostView};

/// Flows that are remembered.
pub const HISTORY_MAX: usize = 4_096;
/// Lines that wait for one reader; what comes when it has so many is lost to it.
pub const FOLLOWER_QUEUE: usize = 4_096;
/// Readers at a time.
pub const FOLLOWERS_MAX: usize = 64;
/// Flows of a kind that a processor may tell in a second: what a node can look at without noticing.
pub const EVENTS_PER_TICK: u32 = 4_096;

/// Where flows can be had. Cheap to clone: all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct FlowsHandle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    book: Mutex<Book>,
    /// Somebody began to follow.
    follows: Notify,
}

#[derive(Debug, Default)]
struct Book {
    history: VecDeque<Arc<FlowView>>,
    followers: Vec<Follower>,
    told: BTreeMap<FlowKind, u64>,
}

/// A reader who waits for more.
#[derive(Debug)]
struct Follower {
    filter: Filter,
    lines: mpsc::Sender<Arc<FlowLine>>,
    lost: u64,
}

/// What [`FlowsHandle::follow`] answers when there are too many already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{FOLLOWERS_MAX} readers follow the flows already")]
pub struct TooManyFollowers;

/// The flows before, oldest first, and those that come after them.
type Following = (Vec<Arc<FlowView>>, mpsc::Receiver<Arc<FlowLine>>);

impl FlowsHandle {
    /// The last flows that fit, oldest first.
    #[must_use]
    pub fn last(&self, filter: &Filter, count: usize) -> Vec<Arc<FlowView>> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner).last(filter, count)
    }

    /// The same, and everything that comes after them, without a gap.
    ///
    /// # Errors
    /// When too many follow already.
    pub fn follow(&self, filter: Filter, count: usize) -> Result<Following, TooManyFollowers> {
        let (lines, receiver) = mpsc::channel(FOLLOWER_QUEUE);
        let mut book = self.0.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.followers.retain(|follower| !follower.lines.is_closed());
        if book.followers.len() >= FOLLOWERS_MAX {
            return Err(TooManyFollowers);
        }
        let last = book.last(&filter, count);
        book.followers.push(Follower { filter, lines, lost: 0 });
        drop(book);
        self.0.follows.notify_one();
        Ok((last, receiver))
    }

    /// What was told so far, and to how many.
    #[must_use]
    pub fn counts(&self) -> FlowCountsView {
        let book = self.0.book.lock().unwrap_or_else(PoisonError::into_inner);
        let told = FlowKind::ALL.iter().map(|kind| (kind.to_string(), book.told.get(kind).copied().unwrap_or(0)));
        let followers = book.followers.iter().filter(|follower| !follower.lines.is_closed()).count();
        FlowCountsView { told: told.collect(), followers: followers as u64 }
    }

    /// Takes flows over; true while somebody follows.
    fn put(&self, flows: Vec<FlowView>) -> bool {
        let mut book = self.0.book.lock().unwrap_or_else(PoisonError::into_inner);
        for flow in flows {
            *book.told.entry(flow.kind).or_default() += 1;
            let flow = Arc::new(flow);
            let mut line = None;
            for follower in book.followers.iter_mut().filter(|follower| follower.filter.fits(&flow)) {
                let line = line.get_or_insert_with(|| Arc::new(FlowLine::Flow(flow.clone())));
                follower.tell(line, flow.time);
            }
            if book.history.len() >= HISTORY_MAX {
                book.history.pop_front();
            }
            book.history.push_back(flow);
        }
        book.followers.retain(|follower| !follower.lines.is_closed());
        !book.followers.is_empty()
    }

    /// Tells everybody of flows that were lost before anybody could filter them.
    fn put_lost(&self, source: LostSource, events: u64, time: Timestamp) {
        let line = Arc::new(FlowLine::Lost(LostView { kind: LostKind::Lost, time, source, events }));
        let mut book = self.0.book.lock().unwrap_or_else(PoisonError::into_inner);
        for follower in &mut book.followers {
            follower.tell(&line, time);
        }
    }
}

impl Book {
    fn last(&self, filter: &Filter, count: usize) -> Vec<Arc<FlowView>> {
        let mut last: Vec<_> =
            self.history.iter().rev().filter(|flow| filter.fits(flow)).take(count).cloned().collect();
        last.reverse();
        last
    }
}

impl Follower {
    /// Hands over a line, and before it how many are missing.
    fn tell(&mut self, line: &Arc<FlowLine>, time: Timestamp) {
        if self.lost > 0 {
            // Room for both, so that nobody is told of a loss and then of another.
            if self.lines.capacity() < 2 {
                self.lost += 1;
                return;
            }
            let lost = LostView { kind: LostKind::Lost, time, source: LostSource::Follower, events: self.lost };
            if self.lines.try_send(Arc::new(FlowLine::Lost(lost))).is_ok() {
                self.lost = 0;
            }
        }
        if self.lines.try_send(line.clone()).is_err() {
            self.lost += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::flow, *};

    fn flows(count: usize) -> Vec<FlowView> {
        (0..count).map(|number| FlowView { length: number as u32, ..flow() }).collect()
    }

    #[test]
    fn history_is_bounded_and_the_last_ones_come_oldest_first() {
        let handle = FlowsHandle::default();
        assert!(!handle.put(flows(HISTORY_MAX + 10)));
        let all = handle.last(&Filter::default(), usize::MAX);
        assert_eq!((all.len(), all[0].length, all[HISTORY_MAX - 1].length), (HISTORY_MAX, 10, HISTORY_MAX as u32 + 9));
        let two: Vec<u32> = handle.last(&Filter::default(), 2).iter().map(|flow| flow.length).collect();
        assert_eq!(two, [HISTORY_MAX as u32 + 8, HISTORY_MAX as u32 + 9]);
        assert_eq!(handle.counts().told["new"], HISTORY_MAX as u64 + 10);
        let none: Filter = serde_json::from_value(serde_json::json!({"type": "drop"})).unwrap();
        assert!(handle.last(&none, 5).is_empty());
    }

    #[test]
    fn a_reader_gets_what_was_and_what_comes_without_a_gap() {
        let handle = FlowsHandle::default();
        handle.put(flows(3));
        let (last, mut lines) = handle.follow(Filter::default(), 2).unwrap();
        assert_eq!(last.len(), 2);
        assert!(handle.put(flows(1)));
        assert!(matches!(&*lines.try_recv().unwrap(), FlowLine::Flow(flow) if flow.length == 0));
        assert!(lines.try_recv().is_err());
        assert_eq!(handle.counts().followers, 1);
        drop(lines);
        assert!(!handle.put(flows(1)), "nobody follows any more");
    }

    #[test]
    fn a_slow_reader_is_told_how_many_it_lost() {
        let handle = FlowsHandle::default();
        let (_, mut lines) = handle.follow(Filter::default(), 0).unwrap();
        handle.put(flows(FOLLOWER_QUEUE + 7));
        handle.put_lost(LostSource::Ring, 3, Timestamp::UNIX_EPOCH);
        for number in 0..FOLLOWER_QUEUE {
            assert!(matches!(&*lines.try_recv().unwrap(), FlowLine::Flow(flow) if flow.length == number as u32));
        }
        assert!(lines.try_recv().is_err());
        handle.put(flows(1));
        let lost = lines.try_recv().unwrap();
        // The line about the ring was lost as well.
        assert!(
            matches!(&*lost, FlowLine::Lost(lost) if lost.events == 8 && lost.source == LostSource::Follower),
            "{lost:?}"
        );
        assert!(matches!(&*lines.try_recv().unwrap(), FlowLine::Flow(_)));
        handle.put_lost(LostSource::Limit, 5, Timestamp::UNIX_EPOCH);
        assert!(matches!(&*lines.try_recv().unwrap(), FlowLine::Lost(lost) if lost.events == 5));
    }

    #[test]
    fn readers_are_bounded_and_make_room_when_they_go() {
        let handle = FlowsHandle::default();
        let readers: Vec<_> = (0..FOLLOWERS_MAX).map(|_| handle.follow(Filter::default(), 0).unwrap()).collect();
        assert_eq!(handle.follow(Filter::default(), 0).unwrap_err(), TooManyFollowers);
        drop(readers);
        assert!(handle.follow(Filter::default(), 0).is_ok());
    }
}
