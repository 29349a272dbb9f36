//! What peers and strangers do that costs something and brings nothing: counted in full, said seldom.
//!
//! Whoever can reach the port can open connections as fast as the network carries them. Each costs a moment, none keeps
//! memory, and none may write its own line into the log: that would fill a disk.

use std::{mem, time::Duration};

use bgp::id::Moment;

/// Time between two lines of the log about the same nuisance.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Something that is said at most once in [`SAY_EVERY`].
#[derive(Clone, Debug, Default)]
pub(super) struct Seldom {
    said: Option<Moment>,
    kept_back: u64,
}

impl Seldom {
    /// May it be said now? If so, how many times it was not said since the last time.
    pub(super) fn may_say(&mut self, now: Moment) -> Option<u64> {
        if self.said.is_some_and(|said| now.since(said) < SAY_EVERY) {
            self.kept_back += 1;
            return None;
        }
        self.said = Some(now);
        Some(mem::take(&mut self.kept_back))
    }
}

/// Connections that were closed before a byte of them was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals {
    count: u64,
    why: Option<String>,
    said: Seldom,
}

impl Refusals {
    /// Counts one. `Some` when it may be said, with how many were not said since the last time.
    pub(super) fn add(&mut self, now: Moment, why: &str) -> Option<u64> {
        self.count += 1;
        if self.why.as_deref() != Some(why) {
            self.why = Some(why.to_owned());
        }
        self.said.may_say(now)
    }

    /// How many.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// Why the last of them was.
    pub(super) fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_said_once_in_a_while() {
        let mut refusals = Refusals::default();
        let at = |millis: u64| Moment::default().after(Duration::from_millis(millis));
        let said: Vec<Option<u64>> = (0..25_000).map(|millis| refusals.add(at(millis), "one too many")).collect();
        let lines: Vec<u64> = said.into_iter().flatten().collect();
        assert_eq!(lines, [0, 9_999, 9_999]);
        assert_eq!((refusals.count(), refusals.why()), (25_000, Some("one too many")));
        assert_eq!(refusals.add(at(25_000), "another reason"), None);
        assert_eq!(refusals.why(), Some("another reason"));
    }
}
