//! AS_PATH as it comes: checked, widened to four octets, and merged with AS4_PATH (RFC 6793 section 4.2.3).

use super::{Context, problem::Fault};
use crate::{
    session::PeerKind,
    wire::as_path::{SEGMENT_MAX, SegmentKind},
};

/// What a check found out about a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Numbers outside of confederation segments, a set counted as one.
    hops: usize,
    /// Octets of the path with four-octet numbers.
    wide_octets: usize,
    /// Has segments of a confederation.
    confederation: bool,
}

/// One segment of numbers of `width` octets, and what follows it.
struct RawSegment<'a> {
    kind: SegmentKind,
    numbers: &'a [u8],
    count: usize,
    rest: &'a [u8],
}

fn split_segment(octets: &[u8], width: usize) -> Result<Option<RawSegment<'_>>, Fault> {
    let Some((&[kind, count], after)) = octets.split_first_chunk::<2>() else {
        return if octets.is_empty() { Ok(None) } else { Err(Fault::SegmentLength) };
    };
    let kind = SegmentKind::from_octet(kind).ok_or(Fault::SegmentKind(kind))?;
    let count = usize::from(count);
    match after.split_at_checked(count * width) {
        Some((numbers, rest)) if count > 0 => Ok(Some(RawSegment { kind, numbers, count, rest })),
        _ => Err(Fault::SegmentLength),
    }
}

/// Checks a path of numbers of `width` octets: RFC 7606 section 7.2, RFC 7607, and RFC 9774 if the context says so.
pub(super) fn check(value: &[u8], width: usize, refuse_sets: bool) -> Result<Shape, Fault> {
    let mut shape = Shape::default();
    let mut rest = value;
    while let Some(segment) = split_segment(rest, width)? {
        rest = segment.rest;
        let has_zero = if width == 4 {
            segment.numbers.as_chunks::<4>().0.contains(&[0; 4])
        } else {
            segment.numbers.as_chunks::<2>().0.contains(&[0; 2])
        };
        if has_zero {
            return Err(Fault::AsZero);
        }
        shape.wide_octets += 2 + 4 * segment.count;
        match segment.kind {
            SegmentKind::Sequence => shape.hops += segment.count,
            SegmentKind::Set => shape.hops += 1,
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => shape.confederation = true,
        }
        if refuse_sets && matches!(segment.kind, SegmentKind::Set | SegmentKind::ConfedSet) {
            return Err(Fault::AsSet);
        }
    }
    Ok(shape)
}

/// Checks the AS_PATH of a message for this session.
pub(super) fn check_for(context: &Context, value: &[u8]) -> Result<Shape, Fault> {
    let shape = check(value, context.as_width(), context.refuse_as_sets)?;
    let first_is_confederation = value.first() == Some(&(SegmentKind::ConfedSequence as u8));
    let fits = match context.kind {
        PeerKind::External => !shape.confederation,
        PeerKind::Confederation => first_is_confederation,
        PeerKind::Internal => true,
    };
    if !fits {
        return Err(Fault::Confederation);
    }
    if shape.wide_octets > usize::from(u16::MAX) {
        return Err(Fault::PathTooLong);
    }
    Ok(shape)
}

/// Checks an AS4_PATH (RFC 6793 section 6). Its confederation segments count for nothing.
pub(super) fn check_as4(value: &[u8], refuse_sets: bool) -> Result<Shape, Fault> {
    // The shortest one has one segment with one number.
    if value.len() < 6 {
        return Err(Fault::Length(value.len()));
    }
    check(value, 4, refuse_sets)
}

/// Appends a checked path of two-octet numbers with four octets each.
pub(super) fn widen(value: &[u8], out: &mut Vec<u8>) {
    let mut rest = value;
    while let Ok(Some(segment)) = split_segment(rest, 2) {
        rest = segment.rest;
        push_head(out, segment.kind, segment.count);
        push_wide(out, segment.numbers);
    }
}

/// Appends a checked path of two-octet numbers with as much of its end replaced as AS4_PATH knows. A path that is shorter
/// than AS4_PATH stays as it is: somebody on the way took numbers out.
pub(super) fn merge(path: &[u8], shape: Shape, as4_path: &[u8], as4_shape: Shape, out: &mut Vec<u8>) {
    let Some(mut missing) = shape.hops.checked_sub(as4_shape.hops) else {
        return widen(path, out);
    };
    // Where the last segment that was written begins, if it is a sequence that can be continued.
    let mut open_sequence = None;
    let mut rest = path;
    while let Ok(Some(segment)) = split_segment(rest, 2) {
        rest = segment.rest;
        let taken = match segment.kind {
            // Those that lead, and those next to a segment that was taken, go along.
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => segment.count,
            _ if missing == 0 => break,
            SegmentKind::Sequence => segment.count.min(missing),
            SegmentKind::Set => segment.count,
        };
        missing -= match segment.kind {
            SegmentKind::ConfedSequence | SegmentKind::ConfedSet => 0,
            SegmentKind::Sequence => taken,
            SegmentKind::Set => 1,
        };
        open_sequence = (segment.kind == SegmentKind::Sequence).then_some((out.len(), taken));
        push_head(out, segment.kind, taken);
        push_wide(out, segment.numbers.get(..taken * 2).unwrap_or_default());
        if taken < segment.count {
            break;
        }
    }
    let mut rest = as4_path;
    while let Ok(Some(segment)) = split_segment(rest, 4) {
        rest = segment.rest;
        if segment.kind.is_confederation() {
            continue;
        }
        let continued = open_sequence
            .take()
            .filter(|(_, count)| segment.kind == SegmentKind::Sequence && count + segment.count <= SEGMENT_MAX);
        match continued.and_then(|(at, count)| Some((out.get_mut(at + 1)?, count))) {
            Some((length, count)) => *length = u8::try_from(count + segment.count).unwrap_or(u8::MAX),
            None => push_head(out, segment.kind, segment.count),
        }
        out.extend_from_slice(segment.numbers);
    }
}

fn push_head(out: &mut Vec<u8>, kind: SegmentKind, count: usize) {
    out.extend_from_slice(&[kind as u8, u8::try_from(count).unwrap_or(u8::MAX)]);
}

fn push_wide(out: &mut Vec<u8>, numbers: &[u8]) {
    for &[high, low] in numbers.as_chunks::<2>().0 {
        out.extend_from_slice(&[0, 0, high, low]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::Asn,
        wire::as_path::{AsPath, write_segments},
    };

    type Segments<'a> = &'a [(SegmentKind, &'a [u32])];

    fn wide(segments: Segments<'_>) -> Vec<u8> {
        let segments: Vec<(SegmentKind, Vec<Asn>)> =
            segments.iter().map(|(kind, numbers)| (*kind, numbers.iter().copied().map(Asn).collect())).collect();
        write_segments(segments.iter().map(|(kind, numbers)| (*kind, numbers.as_slice())))
    }

    fn narrow(segments: Segments<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, numbers) in segments {
            push_head(&mut out, *kind, numbers.len());
            out.extend(numbers.iter().flat_map(|number| Asn(*number).two_octets().to_be_bytes()));
        }
        out
    }

    fn merged(path: Segments<'_>, as4_path: Segments<'_>) -> String {
        let (path, as4_path) = (narrow(path), wide(as4_path));
        let shape = check(&path, 2, false).expect("a path");
        let as4_shape = check_as4(&as4_path, false).expect("a path");
        let mut out = Vec::new();
        merge(&path, shape, &as4_path, as4_shape, &mut out);
        assert_eq!(check(&out, 4, false).map(|merged| merged.hops), Ok(shape.hops), "the count of hops stays");
        AsPath::of_canonical(&out).to_string()
    }

    /// RFC 6793 section 4.2.3, with its cases and those it leaves to the reader.
    #[test]
    fn the_end_of_the_path_is_replaced_by_what_as4_path_knows() {
        use SegmentKind::{ConfedSequence, ConfedSet, Sequence, Set};
        const T: u32 = 23_456;
        const A: u32 = 100_000;
        const B: u32 = 200_000;
        let cases: [(Segments<'_>, Segments<'_>, &str); 12] = [
            (&[(Sequence, &[1, T, T])], &[(Sequence, &[A, B])], "1 100000 200000"),
            (&[(Sequence, &[T])], &[(Sequence, &[A])], "100000"),
            (&[(Sequence, &[1, 2, 3])], &[(Sequence, &[A])], "1 2 100000"),
            // Shorter than AS4_PATH: not used.
            (&[(Sequence, &[1])], &[(Sequence, &[A, B])], "1"),
            (&[(Sequence, &[1, T]), (Set, &[T, 5])], &[(Sequence, &[A]), (Set, &[B, 5])], "1 100000 {200000 5}"),
            // The set goes along as a whole.
            (&[(Set, &[1, 2]), (Sequence, &[T])], &[(Sequence, &[A])], "{1 2} 100000"),
            (&[(Sequence, &[1, T])], &[(Set, &[A, B])], "1 {100000 200000}"),
            // Leading confederation segments stay, with or without something behind them.
            (&[(ConfedSequence, &[7]), (Sequence, &[T])], &[(Sequence, &[A])], "(7) 100000"),
            (&[(ConfedSequence, &[7]), (Sequence, &[1, T])], &[(Sequence, &[A])], "(7) 1 100000"),
            (&[(Sequence, &[1]), (ConfedSet, &[7]), (Sequence, &[T])], &[(Sequence, &[A])], "1 [7] 100000"),
            (&[(Sequence, &[T, 1]), (ConfedSet, &[7])], &[(Sequence, &[A, 1])], "100000 1"),
            // Confederation segments of AS4_PATH are none of ours.
            (&[(Sequence, &[1, T])], &[(ConfedSequence, &[9]), (Sequence, &[A])], "1 100000"),
        ];
        for (path, as4_path, expected) in cases {
            assert_eq!(merged(path, as4_path), expected);
        }
    }

    #[test]
    fn full_segments_are_not_joined() {
        let path = [SegmentKind::Sequence as u8; 1];
        let mut narrow_path = vec![path[0], 255];
        narrow_path.extend([0, 9].repeat(255));
        let shape = check(&narrow_path, 2, false).expect("a path");
        let as4 = wide(&[(SegmentKind::Sequence, &[100_000])]);
        let mut out = Vec::new();
        merge(&narrow_path, shape, &as4, check_as4(&as4, false).expect("a path"), &mut out);
        let counts: Vec<usize> = AsPath::of_canonical(&out).segments().map(|segment| segment.count()).collect();
        assert_eq!(counts, [255], "254 of the path and one of AS4_PATH");
    }

    #[test]
    fn paths_that_do_not_add_up_are_refused() {
        for (value, width, fault) in [
            (&[2][..], 4, Fault::SegmentLength),
            (&[2, 0], 4, Fault::SegmentLength),
            (&[2, 1, 0, 0, 0], 4, Fault::SegmentLength),
            (&[2, 1, 0, 0, 0, 1, 9], 4, Fault::SegmentLength),
            (&[2, 2, 0, 1, 0], 2, Fault::SegmentLength),
            (&[5, 1, 0, 0, 0, 1], 4, Fault::SegmentKind(5)),
            (&[0, 1, 0, 0, 0, 1], 4, Fault::SegmentKind(0)),
            (&[2, 1, 0, 0, 0, 0], 4, Fault::AsZero),
            (&[2, 1, 0, 0], 2, Fault::AsZero),
        ] {
            assert_eq!(check(value, width, false), Err(fault), "{value:?}");
        }
        assert_eq!(check(&[], 4, true), Ok(Shape::default()));
        assert_eq!(check(&[1, 1, 0, 9], 2, true), Err(Fault::AsSet));
        assert_eq!(check_as4(&[], false), Err(Fault::Length(0)));
    }
}
