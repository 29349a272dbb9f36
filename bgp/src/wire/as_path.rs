//! AS_PATH in canonical form: segments of four-octet numbers.

use std::fmt;

use crate::id::Asn;

/// Kinds of segments (RFC 4271 section 4.3, RFC 5065 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum SegmentKind {
    /// Unordered.
    Set = 1,
    /// Ordered.
    Sequence = 2,
    /// Ordered, inside a confederation.
    ConfedSequence = 3,
    /// Unordered, inside a confederation.
    ConfedSet = 4,
}

impl SegmentKind {
    /// The kind of this octet.
    #[must_use]
    pub const fn from_octet(octet: u8) -> Option<Self> {
        match octet {
            1 => Some(Self::Set),
            2 => Some(Self::Sequence),
            3 => Some(Self::ConfedSequence),
            4 => Some(Self::ConfedSet),
            _ => None,
        }
    }

    /// True for the two kinds that never leave a confederation.
    #[must_use]
    pub const fn is_confederation(self) -> bool {
        matches!(self, Self::ConfedSequence | Self::ConfedSet)
    }
}

/// Numbers in one segment at most.
pub const SEGMENT_MAX: usize = 255;

/// One segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Its kind.
    pub kind: SegmentKind,
    numbers: &'a [[u8; 4]],
}

impl<'a> Segment<'a> {
    /// Its numbers, the last speaker first.
    pub fn numbers(self) -> impl DoubleEndedIterator<Item = Asn> + 'a {
        self.numbers.iter().map(|octets| Asn(u32::from_be_bytes(*octets)))
    }

    /// How many numbers it has.
    #[must_use]
    pub const fn count(self) -> usize {
        self.numbers.len()
    }
}

/// The value of a canonical AS_PATH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsPath<'a>(&'a [u8]);

impl<'a> AsPath<'a> {
    /// Reads a value in canonical form.
    #[must_use]
    pub const fn of_canonical(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// The octets.
    #[must_use]
    pub const fn octets(self) -> &'a [u8] {
        self.0
    }

    /// Its segments.
    pub fn segments(self) -> impl Iterator<Item = Segment<'a>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (&[kind, count], after) = rest.split_first_chunk::<2>()?;
            let (numbers, after) = after.split_at_checked(usize::from(count) * 4)?;
            rest = after;
            Some(Segment { kind: SegmentKind::from_octet(kind)?, numbers: numbers.as_chunks::<4>().0 })
        })
    }

    /// All numbers, those of sets and confederations included.
    pub fn numbers(self) -> impl Iterator<Item = Asn> {
        self.segments().flat_map(Segment::numbers)
    }

    /// Length as best path selection counts it: a set is one, confederation segments are none (RFC 5065 section 5.3).
    #[must_use]
    pub fn hops(self) -> u32 {
        self.segments()
            .map(|segment| match segment.kind {
                SegmentKind::Sequence => u32::try_from(segment.count()).unwrap_or(u32::MAX),
                SegmentKind::Set => 1,
                SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
            })
            .sum()
    }

    /// The AS the path came from: the first number of the first segment outside of confederations, if that is a sequence.
    #[must_use]
    pub fn neighbor(self) -> Option<Asn> {
        let first = self.segments().find(|segment| !segment.kind.is_confederation())?;
        if first.kind == SegmentKind::Sequence { first.numbers().next() } else { None }
    }

    /// The AS that originated the path: the last number, unless the path ends with a set.
    #[must_use]
    pub fn origin(self) -> Option<Asn> {
        let last = self.segments().filter(|segment| !segment.kind.is_confederation()).last()?;
        if last.kind == SegmentKind::Sequence { last.numbers().next_back() } else { None }
    }

    /// Has it this number anywhere?
    #[must_use]
    pub fn contains(self, asn: Asn) -> bool {
        self.numbers().any(|number| number == asn)
    }
}

/// As routers print it: `65001 65002 {65010 65011} (65100)`.
impl fmt::Display for AsPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.segments().enumerate() {
            let (open, close) = match segment.kind {
                SegmentKind::Sequence => ("", ""),
                SegmentKind::Set => ("{", "}"),
                SegmentKind::ConfedSequence => ("(", ")"),
                SegmentKind::ConfedSet => ("[", "]"),
            };
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{open}")?;
            for (index, number) in segment.numbers().enumerate() {
                let space = if index == 0 { "" } else { " " };
                write!(f, "{space}{number}")?;
            }
            f.write_str(close)?;
        }
        Ok(())
    }
}

/// Makes the value of a canonical AS_PATH out of segments; those longer than [`SEGMENT_MAX`] are split.
#[must_use]
pub fn write_segments<'a>(segments: impl IntoIterator<Item = (SegmentKind, &'a [Asn])>) -> Vec<u8> {
    let mut value = Vec::new();
    for (kind, numbers) in segments {
        for chunk in numbers.chunks(SEGMENT_MAX) {
            value.extend_from_slice(&[kind as u8, u8::try_from(chunk.len()).unwrap_or(u8::MAX)]);
            value.extend(chunk.iter().flat_map(|asn| asn.0.to_be_bytes()));
        }
    }
    value
}

/// The value of `path` with `asn` put in front `count` times (RFC 4271 section 5.1.2): into the first segment when it is
/// of `kind` (a sequence, or a confederation's) and has room, else as a new one.
#[must_use]
pub fn prepend(path: AsPath<'_>, kind: SegmentKind, asn: Asn, count: u8) -> Vec<u8> {
    if count == 0 {
        return path.0.to_vec();
    }
    let first = path.segments().next();
    let joined = first.filter(|first| first.kind == kind && first.count() + usize::from(count) <= SEGMENT_MAX);
    let (in_first, rest) = match joined {
        Some(first) => (first.count(), &path.0[2..]),
        None => (0, path.0),
    };
    let mut value = Vec::with_capacity(path.0.len() + 2 + 4 * usize::from(count));
    value.extend_from_slice(&[kind as u8, u8::try_from(in_first + usize::from(count)).unwrap_or(u8::MAX)]);
    for _ in 0..count {
        value.extend_from_slice(&asn.0.to_be_bytes());
    }
    value.extend_from_slice(rest);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(segments: &[(SegmentKind, &[u32])]) -> Vec<u8> {
        let segments: Vec<(SegmentKind, Vec<Asn>)> =
            segments.iter().map(|(kind, numbers)| (*kind, numbers.iter().copied().map(Asn).collect())).collect();
        write_segments(segments.iter().map(|(kind, numbers)| (*kind, numbers.as_slice())))
    }

    #[test]
    fn paths_are_counted_and_printed_as_routers_do() {
        use SegmentKind::{ConfedSequence, ConfedSet, Sequence, Set};
        let value = path(&[(ConfedSequence, &[65_100]), (Sequence, &[65_001, 4_200_000_001]), (Set, &[1, 2])]);
        let view = AsPath::of_canonical(&value);
        assert_eq!(view.to_string(), "(65100) 65001 4200000001 {1 2}");
        assert_eq!(view.hops(), 3);
        assert_eq!(view.neighbor(), Some(Asn(65_001)));
        assert_eq!(view.origin(), None);
        assert!(view.contains(Asn(2)) && !view.contains(Asn(3)));
        let confed = path(&[(ConfedSet, &[7]), (Set, &[5])]);
        assert_eq!(AsPath::of_canonical(&confed).neighbor(), None);
        assert_eq!(AsPath::of_canonical(&[]).to_string(), "");
    }

    #[test]
    fn prepending_joins_or_starts_a_segment() {
        use SegmentKind::{ConfedSequence, Sequence, Set};
        for (before, kind, count, after) in [
            (path(&[]), Sequence, 1, "9"),
            (path(&[(Sequence, &[1, 2])]), Sequence, 3, "9 9 9 1 2"),
            (path(&[(Set, &[1, 2])]), Sequence, 1, "9 {1 2}"),
            (path(&[(Sequence, &[1])]), ConfedSequence, 1, "(9) 1"),
            (path(&[(Sequence, &[1])]), Sequence, 0, "1"),
        ] {
            let value = prepend(AsPath::of_canonical(&before), kind, Asn(9), count);
            assert_eq!(AsPath::of_canonical(&value).to_string(), after);
        }
        let full = path(&[(Sequence, &[1; 255])]);
        let value = prepend(AsPath::of_canonical(&full), Sequence, Asn(9), 1);
        let counts: Vec<usize> = AsPath::of_canonical(&value).segments().map(Segment::count).collect();
        assert_eq!(counts, [1, 255]);
    }
}
