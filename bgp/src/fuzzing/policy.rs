//! Texts of the operator: exports of RPKI validators and AS path patterns.

use crate::{
    id::Asn,
    policy::{AsPathPattern, PATTERN_LEN_MAX, Vrps},
    wire::as_path::{AsPath, write_segments},
};

/// Shortest entry of a list of VRPs: `{"asn":1,"prefix":"::/0"},`.
const VRP_OCTETS_MIN: usize = 26;

/// Reads `data` as the export of an RPKI validator.
///
/// # Panics
///
/// When more payloads come out than the text has room for, or when an error is said to be behind the end.
pub fn vrps(data: &[u8]) {
    match Vrps::from_json(data) {
        Ok(vrps) => {
            let (ipv4, ipv6) = vrps.counts();
            assert!((ipv4 + ipv6) * VRP_OCTETS_MIN <= data.len());
        }
        Err(error) => assert!(error.line <= data.split(|octet| *octet == b'\n').count()),
    }
}

/// Reads the first line of `data` as a pattern of AS paths and matches the rest, the value of an AS_PATH, with it.
///
/// # Panics
///
/// When a pattern is not written as it was read, or when comparing numbers says something else than comparing texts.
pub fn as_path_pattern(data: &[u8]) {
    let mut parts = data.splitn(2, |octet| *octet == b'\n');
    let (Some(Ok(text)), Some(value)) = (parts.next().map(str::from_utf8), parts.next()) else {
        return;
    };
    let Ok(pattern) = text.parse::<AsPathPattern>() else {
        return;
    };
    assert!(text.len() <= PATTERN_LEN_MAX);
    assert_eq!(pattern.to_string(), text);
    // The decoder lets no segment without numbers pass.
    let segments: Vec<_> = AsPath::of_canonical(value)
        .segments()
        .filter(|segment| segment.count() > 0)
        .map(|segment| (segment.kind, segment.numbers().collect::<Vec<Asn>>()))
        .collect();
    let value = write_segments(segments.iter().map(|(kind, numbers)| (*kind, numbers.as_slice())));
    let path = AsPath::of_canonical(&value);
    assert_eq!(pattern.matches(path), pattern.matches_text(path));
}
