//! Half-open intervals of keys, and how the wire writes them.

/// All keys from `start` up to, not including, `end`; no `end` means no upper bound.
///
/// The wire has three forms: an empty `range_end` is the single key, `"\0"` is "this key and everything after it",
/// anything else is the exclusive end. A single key `k` is the interval from `k` to `k\0`, because no key sorts
/// between the two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeySpan {
    /// First key.
    pub start: Vec<u8>,
    /// First key that is no longer inside.
    pub end: Option<Vec<u8>>,
}

impl KeySpan {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self { start: Vec::new(), end: None }
    }

    /// Exactly one key.
    #[must_use]
    pub fn single(key: &[u8]) -> Self {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(key);
        end.push(0);
        Self { start: key.to_vec(), end: Some(end) }
    }

    /// Every key that starts with `prefix`.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { start: prefix.to_vec(), end: prefix_end(prefix) }
    }

    /// Reads `key` and `range_end` of a request.
    #[must_use]
    pub fn from_wire(key: &[u8], range_end: &[u8]) -> Self {
        match range_end {
            [] => Self::single(key),
            [0] => Self { start: key.to_vec(), end: None },
            end => Self { start: key.to_vec(), end: Some(end.to_vec()) },
        }
    }

    /// `key` and `range_end` as a request would write them.
    #[must_use]
    pub fn to_wire(&self) -> (Vec<u8>, Vec<u8>) {
        let end = match &self.end {
            None => vec![0],
            Some(_) if self.as_single().is_some() => Vec::new(),
            Some(end) => end.clone(),
        };
        (self.start.clone(), end)
    }

    /// True if no key can be inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// True if `key` is inside.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && self.end.as_ref().is_none_or(|end| key < end.as_slice())
    }

    /// True if every key of `other` is inside.
    #[must_use]
    pub fn contains_span(&self, other: &Self) -> bool {
        self.start <= other.start
            && match (&self.end, &other.end) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(own), Some(others)) => others <= own,
            }
    }

    /// The key, if the span is one.
    #[must_use]
    pub fn as_single(&self) -> Option<&[u8]> {
        match self.end.as_deref() {
            Some([head @ .., 0]) if head == self.start.as_slice() => Some(&self.start),
            _ => None,
        }
    }

    /// The prefix, if the span is exactly the keys that start with one.
    #[must_use]
    pub fn as_prefix(&self) -> Option<&[u8]> {
        (prefix_end(&self.start) == self.end).then_some(self.start.as_slice())
    }
}

/// The first key after all keys that start with `prefix`; `None` if there is no such key.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_forms_mean_single_from_and_between() {
        let single = KeySpan::from_wire(b"a", b"");
        assert!(single.contains(b"a") && !single.contains(b"a\0") && !single.contains(b"b"));
        assert_eq!(single.as_single(), Some(b"a".as_slice()));
        let from = KeySpan::from_wire(b"b", b"\0");
        assert!(!from.contains(b"a") && from.contains(b"b") && from.contains(&[0xff, 0xff]));
        let between = KeySpan::from_wire(b"b", b"d");
        assert!(between.contains(b"b") && between.contains(b"c\xff") && !between.contains(b"d"));
        assert!(KeySpan::from_wire(b"d", b"b").is_empty());
        for span in [single, from, between] {
            let (key, end) = span.to_wire();
            assert_eq!(KeySpan::from_wire(&key, &end), span);
        }
    }

    #[test]
    fn prefixes_are_recognised() {
        assert_eq!(KeySpan::from_wire(b"ab/", b"ab0").as_prefix(), Some(b"ab/".as_slice()));
        assert_eq!(KeySpan::from_wire(b"ab/", b"ab1").as_prefix(), None);
        assert_eq!(KeySpan::prefix(&[0xff]).end, None);
        assert_eq!(KeySpan::prefix(&[1, 0xff]).end, Some(vec![2]));
        assert_eq!(KeySpan::all().as_prefix(), Some(b"".as_slice()));
    }

    #[test]
    fn containment_of_spans_respects_open_ends() {
        let all = KeySpan::all();
        let prefix = KeySpan::prefix(b"a/");
        assert!(all.contains_span(&prefix) && !prefix.contains_span(&all));
        assert!(prefix.contains_span(&KeySpan::single(b"a/x")));
        assert!(!prefix.contains_span(&KeySpan::from_wire(b"a/", b"\0")));
    }
}
