//! One range of keys: list it page by page at one revision, then watch it from the next.

use std::{sync::Arc, time::Duration};

use super::{Command, LIST_RECORDS_MAX, Target};

/// Restarts in a row after which a range is given a pause: a store that compacts faster than it can be read must not
/// keep us busy.
const RESTARTS_MAX: u32 = 3;

/// Progress of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum List {
    /// Not asked for.
    Idle,
    /// Waiting for a page.
    Running {
        /// Revision of the first page; `None` until it has come.
        pinned: Option<i64>,
        /// First key of the page that was asked for.
        next: Vec<u8>,
        /// Records that have come.
        records: usize,
    },
    /// Complete.
    Done,
}

/// Progress of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// Not asked for.
    Closed,
    /// Asked for at this time.
    Opening(Duration),
    /// Confirmed.
    Open,
}

/// A range of keys.
#[derive(Debug, Clone)]
pub(super) struct Follow {
    target: Target,
    start: Vec<u8>,
    end: Vec<u8>,
    limit: u32,
    restarts: u32,
    pub(super) list: List,
    pub(super) watch: Watch,
    pub(super) refused: Option<Arc<str>>,
    pub(super) retry_at: Option<Duration>,
}

/// What a page means for the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageStep {
    /// Nobody asked for it.
    Unasked,
    /// It cannot be part of an ordered list of this range.
    Disordered,
    /// The list has more than [`LIST_RECORDS_MAX`] records.
    TooMany,
    /// It fits.
    Fits {
        /// It is the first one.
        first: bool,
    },
}

impl Follow {
    /// A single key when `end` is empty, else the range up to `end`.
    pub(super) fn new(target: Target, start: String, end: Vec<u8>, limit: u32) -> Self {
        Self {
            target,
            start: start.into_bytes(),
            end,
            limit: limit.max(1),
            restarts: 0,
            list: List::Idle,
            watch: Watch::Closed,
            refused: None,
            retry_at: None,
        }
    }

    /// Starts the list from its first key.
    pub(super) fn begin(&mut self) -> Command {
        self.retry_at = None;
        self.list = List::Running { pinned: None, next: self.start.clone(), records: 0 };
        self.ask(0, self.start.clone())
    }

    /// Starts the list again after a compaction: at once, or (`None`) after a pause when that happens all the time.
    pub(super) fn restart(&mut self, now: Duration, pause: Duration) -> Option<Command> {
        self.restarts += 1;
        if self.restarts > RESTARTS_MAX {
            self.list = List::Idle;
            self.retry_at = Some(now + pause);
            return None;
        }
        Some(self.begin())
    }

    /// Checks the page that has come: keys inside the range, ascending, and more only after at least one key. `count` is
    /// what the store counts from the first key of this page on.
    pub(super) fn check_page<'a>(
        &mut self,
        revision: i64,
        keys: impl Iterator<Item = &'a [u8]>,
        count: usize,
        more: bool,
    ) -> PageStep {
        let single = self.end.is_empty();
        let List::Running { pinned, next, records } = &mut self.list else { return PageStep::Unasked };
        let first = pinned.is_none();
        // The first page tells how long the list is, so that nobody has to read it to the end to know.
        if records.saturating_add(count) > LIST_RECORDS_MAX {
            return PageStep::TooMany;
        }
        let mut last: Option<&[u8]> = None;
        for key in keys {
            let above = last.map_or(key >= next.as_slice(), |last| key > last);
            let inside = if single { key == self.start } else { self.end == [0] || key < self.end.as_slice() };
            if !above || !inside {
                return PageStep::Disordered;
            }
            last = Some(key);
            *records += 1;
        }
        if *records > LIST_RECORDS_MAX {
            return PageStep::TooMany;
        }
        match last {
            None if more => return PageStep::Disordered,
            None => {}
            Some(key) => {
                next.clear();
                next.extend_from_slice(key);
                next.push(0);
            }
        }
        pinned.get_or_insert(revision);
        self.refused = None;
        PageStep::Fits { first }
    }

    /// Asks for the page that is due.
    pub(super) fn next_page(&self) -> Option<Command> {
        match &self.list {
            List::Running { pinned, next, .. } => Some(self.ask(pinned.unwrap_or(0), next.clone())),
            List::Idle | List::Done => None,
        }
    }

    /// Ends the list and, unless it is open, asks for the watch.
    pub(super) fn finish(&mut self, now: Duration) -> Option<Command> {
        let List::Running { pinned: Some(pinned), .. } = self.list else { return None };
        self.list = List::Done;
        if self.watch != Watch::Closed {
            return None;
        }
        self.watch = Watch::Opening(now);
        let (from, end) = (self.start.clone(), self.end.clone());
        Some(Command::Watch { target: self.target, from, end, revision: pinned + 1 })
    }

    /// Asks for less at once. `None` when a single record is already too much.
    pub(super) fn shrink(&mut self) -> Option<Command> {
        if self.limit == 1 {
            return None;
        }
        self.limit /= 2;
        self.next_page()
    }

    /// Stops until `retry_at`.
    pub(super) fn refuse(&mut self, reason: Arc<str>, retry_at: Duration) {
        self.list = List::Idle;
        self.watch = Watch::Closed;
        self.refused = Some(reason);
        self.retry_at = Some(retry_at);
    }

    /// The range is followed: events arrive.
    pub(super) fn alive(&mut self) {
        self.restarts = 0;
    }

    /// A page of the list has come, and it is not complete.
    pub(super) fn is_mid_list(&self) -> bool {
        matches!(self.list, List::Running { pinned: Some(_), .. })
    }

    fn ask(&self, revision: i64, from: Vec<u8>) -> Command {
        Command::List { target: self.target, from, end: self.end.clone(), revision, limit: self.limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Kind;

    const TARGET: Target = Target::Records(Kind::Nodes);

    fn follow() -> Follow {
        Follow::new(TARGET, "a/".to_owned(), b"a0".to_vec(), 8)
    }

    fn page(follow: &mut Follow, keys: &[&str], more: bool) -> PageStep {
        follow.check_page(5, keys.iter().map(|key| key.as_bytes()), keys.len(), more)
    }

    #[test]
    fn pages_are_pinned_and_the_watch_starts_after_them() {
        let mut follow = follow();
        assert!(matches!(follow.begin(), Command::List { revision: 0, limit: 8, .. }));
        assert_eq!(page(&mut follow, &["a/1", "a/2"], true), PageStep::Fits { first: true });
        let Some(Command::List { revision: 5, from, .. }) = follow.next_page() else { panic!("no next page") };
        assert_eq!(from, b"a/2\0");
        assert_eq!(page(&mut follow, &["a/3"], false), PageStep::Fits { first: false });
        let Some(Command::Watch { revision: 6, .. }) = follow.finish(Duration::ZERO) else { panic!("no watch") };
        assert_eq!(follow.watch, Watch::Opening(Duration::ZERO));
    }

    #[test]
    fn disordered_pages_are_found() {
        for (keys, more) in
            [(&["a/2", "a/1"][..], false), (&["a/1", "a/1"], false), (&["b/1"], false), (&["Z"], false), (&[], true)]
        {
            let mut follow = follow();
            follow.begin();
            assert_eq!(page(&mut follow, keys, more), PageStep::Disordered, "{keys:?}");
        }
        let mut follow = follow();
        assert_eq!(page(&mut follow, &["a/1"], false), PageStep::Unasked);
        follow.begin();
        page(&mut follow, &["a/5"], true);
        assert_eq!(page(&mut follow, &["a/4"], false), PageStep::Disordered, "going back would never end");
    }

    #[test]
    fn a_list_without_end_is_found() {
        let mut follow = follow();
        follow.begin();
        page(&mut follow, &["a/1", "a/2"], true);
        let List::Running { records, .. } = &mut follow.list else { panic!("no list") };
        assert_eq!(*records, 2);
        *records = LIST_RECORDS_MAX - 1;
        assert_eq!(page(&mut follow, &["a/3"], true), PageStep::Fits { first: false });
        assert_eq!(page(&mut follow, &["a/4"], true), PageStep::TooMany);
        follow.begin();
        assert_eq!(page(&mut follow, &["a/1"], true), PageStep::Fits { first: true }, "every list counts anew");
    }

    #[test]
    fn what_the_store_counts_is_believed_when_it_is_too_much() {
        let counted =
            |follow: &mut Follow, key: &str, count| follow.check_page(5, std::iter::once(key.as_bytes()), count, true);
        let mut follow = follow();
        follow.begin();
        assert_eq!(counted(&mut follow, "a/1", LIST_RECORDS_MAX + 1), PageStep::TooMany);
        follow.begin();
        assert_eq!(counted(&mut follow, "a/1", LIST_RECORDS_MAX), PageStep::Fits { first: true });
        // Later pages count what is left.
        assert_eq!(counted(&mut follow, "a/2", LIST_RECORDS_MAX - 1), PageStep::Fits { first: false });
        assert_eq!(counted(&mut follow, "a/3", LIST_RECORDS_MAX - 1), PageStep::TooMany);
    }

    #[test]
    fn pages_shrink_until_one_record() {
        let mut follow = follow();
        follow.begin();
        for limit in [4, 2, 1] {
            assert!(matches!(follow.shrink(), Some(Command::List { limit: l, .. }) if l == limit));
        }
        assert_eq!(follow.shrink(), None);
    }

    #[test]
    fn constant_compaction_is_given_a_pause() {
        let (now, pause) = (Duration::from_secs(9), Duration::from_secs(15));
        let mut follow = follow();
        follow.begin();
        for _ in 0..RESTARTS_MAX {
            assert!(follow.restart(now, pause).is_some());
        }
        assert_eq!(follow.restart(now, pause), None);
        assert_eq!(follow.retry_at, Some(now + pause));
        follow.alive();
        assert!(follow.restart(now, pause).is_some());
    }
}
