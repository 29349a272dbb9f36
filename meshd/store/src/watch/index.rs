//! Which watches does a key concern? Exact keys and prefixes are found by lookup; other ranges are walked.

use std::collections::BTreeMap;

use super::hub::WatchKey;
use crate::engine::KeySpan;

/// Watches by what they look at.
#[derive(Debug, Default)]
pub(super) struct WatchIndex {
    exact: BTreeMap<Vec<u8>, Vec<WatchKey>>,
    prefixes: BTreeMap<Vec<u8>, Vec<WatchKey>>,
    /// How many different prefixes of each length there are: only these lengths have to be tried.
    prefix_lengths: BTreeMap<usize, usize>,
    ranges: BTreeMap<KeySpan, Vec<WatchKey>>,
}

impl WatchIndex {
    pub(super) fn insert(&mut self, span: &KeySpan, watch: WatchKey) {
        if let Some(key) = span.as_single() {
            self.exact.entry(key.to_vec()).or_default().push(watch);
        } else if let Some(prefix) = span.as_prefix() {
            let watches = self.prefixes.entry(prefix.to_vec()).or_default();
            if watches.is_empty() {
                *self.prefix_lengths.entry(prefix.len()).or_default() += 1;
            }
            watches.push(watch);
        } else {
            self.ranges.entry(span.clone()).or_default().push(watch);
        }
    }

    pub(super) fn remove(&mut self, span: &KeySpan, watch: WatchKey) {
        if let Some(key) = span.as_single() {
            take_out(&mut self.exact, key, watch);
        } else if let Some(prefix) = span.as_prefix() {
            if take_out(&mut self.prefixes, prefix, watch)
                && let Some(count) = self.prefix_lengths.get_mut(&prefix.len())
            {
                *count -= 1;
                if *count == 0 {
                    self.prefix_lengths.remove(&prefix.len());
                }
            }
        } else {
            take_out(&mut self.ranges, span, watch);
        }
    }

    /// Calls `found` for every watch that looks at `key`.
    pub(super) fn matches(&self, key: &[u8], mut found: impl FnMut(WatchKey)) {
        let mut report = |watches: Option<&Vec<WatchKey>>| watches.into_iter().flatten().copied().for_each(&mut found);
        report(self.exact.get(key));
        for length in self.prefix_lengths.range(..=key.len()).map(|(length, _)| *length) {
            report(self.prefixes.get(&key[..length]));
        }
        for (span, watches) in &self.ranges {
            if span.start.as_slice() > key {
                break;
            }
            if span.contains(key) {
                report(Some(watches));
            }
        }
    }
}

/// Removes one watch from a list; true if the list became empty and went away.
fn take_out<K, Q>(map: &mut BTreeMap<K, Vec<WatchKey>>, key: &Q, watch: WatchKey) -> bool
where
    K: Ord + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
{
    let Some(watches) = map.get_mut(key) else {
        return false;
    };
    watches.retain(|other| *other != watch);
    if watches.is_empty() {
        map.remove(key);
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::hub::StreamId;
    use super::*;

    fn key(id: i64) -> WatchKey {
        WatchKey { stream: StreamId(1), watch: id }
    }

    fn found(index: &WatchIndex, at: &[u8]) -> Vec<i64> {
        let mut ids = Vec::new();
        index.matches(at, |watch| ids.push(watch.watch));
        ids.sort_unstable();
        ids
    }

    #[test]
    fn every_kind_of_span_is_found_and_forgotten() {
        let spans = [
            KeySpan::single(b"a/b"),
            KeySpan::prefix(b"a/"),
            KeySpan::from_wire(b"a/a", b"a/c"),
            KeySpan::all(),
            KeySpan::from_wire(b"b", b"\0"),
            KeySpan::prefix(b"a/"),
        ];
        let mut index = WatchIndex::default();
        for (id, span) in (0..).zip(&spans) {
            index.insert(span, key(id));
        }
        assert_eq!(found(&index, b"a/b"), [0, 1, 2, 3, 5]);
        assert_eq!(found(&index, b"a/c"), [1, 3, 5]);
        assert_eq!(found(&index, b"b"), [3, 4]);
        assert_eq!(found(&index, b"a"), [3]);
        for (id, span) in (0..).zip(&spans) {
            index.remove(span, key(id));
        }
        assert_eq!(found(&index, b"a/b"), [0_i64; 0]);
        assert!(index.prefix_lengths.is_empty() && index.ranges.is_empty());
    }
}
