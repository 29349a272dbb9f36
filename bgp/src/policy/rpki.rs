//! Who may originate what: validated ROA payloads and the state of a route (RFC 6811).

use ipnet::IpNet;

use super::nested::Nested;
use crate::{
    id::Asn,
    wire::as_path::{AsPath, SegmentKind},
};

mod json;

pub use json::{VRPS_MAX, VrpsError};

/// A validated ROA payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vrp {
    /// What may be originated.
    pub prefix: IpNet,
    /// Longest prefix inside it that may be.
    pub length_max: u8,
    /// By whom; AS 0 for nobody (RFC 6483 section 4).
    pub asn: Asn,
}

/// State of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Validity {
    /// A payload allows it.
    Valid,
    /// Payloads cover the prefix and none allows it.
    Invalid,
    /// No payload covers the prefix.
    NotFound,
}

/// All payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vrps(Nested<(u8, Asn)>);

impl Vrps {
    /// These payloads; equal ones are kept once.
    #[must_use]
    pub fn new(mut vrps: Vec<Vrp>) -> Self {
        vrps.sort_unstable();
        vrps.dedup();
        Self(Nested::build(vrps.into_iter().map(|vrp| (vrp.prefix, (vrp.length_max, vrp.asn)))))
    }

    /// The state of a route to `prefix` that `origin` originated; `None` when the AS path does not say who did.
    #[must_use]
    pub fn validity(&self, prefix: &IpNet, origin: Option<Asn>) -> Validity {
        let mut state = Validity::NotFound;
        for (length_max, asn) in self.0.covering(prefix) {
            if prefix.prefix_len() <= *length_max && Some(*asn) == origin && *asn != Asn(0) {
                return Validity::Valid;
            }
            state = Validity::Invalid;
        }
        state
    }

    /// How many payloads there are of IPv4 and of IPv6.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.0.lens()
    }
}

/// The AS that originated a path (RFC 6811 section 2): the last of the path, this AS when the path is empty or has only
/// segments of our confederation, none when it ends with a set.
#[must_use]
pub fn origin_of(path: AsPath<'_>, local_as: Asn) -> Option<Asn> {
    match path.segments().last().map(|segment| segment.kind) {
        None | Some(SegmentKind::ConfedSequence | SegmentKind::ConfedSet) => Some(local_as),
        Some(SegmentKind::Sequence | SegmentKind::Set) => path.origin(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::as_path::write_segments;

    fn vrps(list: &[(&str, u8, u32)]) -> Vrps {
        let vrp = |(prefix, length_max, asn): &(&str, u8, u32)| Vrp {
            prefix: prefix.parse().expect("a prefix"),
            length_max: *length_max,
            asn: Asn(*asn),
        };
        Vrps::new(list.iter().map(vrp).collect())
    }

    #[test]
    fn a_route_is_valid_when_one_payload_allows_it() {
        let vrps = vrps(&[
            ("10.0.0.0/8", 16, 65_001),
            ("10.1.0.0/16", 24, 65_002),
            ("10.1.0.0/16", 16, 65_003),
            ("10.1.0.0/16", 16, 65_003),
            ("192.0.2.0/24", 32, 0),
            ("2001:db8::/32", 48, 65_001),
        ]);
        assert_eq!(vrps.counts(), (4, 1));
        for (prefix, origin, expected) in [
            ("10.0.0.0/8", Some(65_001), Validity::Valid),
            ("10.1.0.0/16", Some(65_001), Validity::Valid),
            ("10.1.0.0/16", Some(65_003), Validity::Valid),
            ("10.1.2.0/24", Some(65_002), Validity::Valid),
            ("10.1.2.0/24", Some(65_001), Validity::Invalid),
            ("10.1.2.0/25", Some(65_002), Validity::Invalid),
            ("10.2.0.0/16", Some(65_009), Validity::Invalid),
            ("10.2.0.0/16", None, Validity::Invalid),
            ("0.0.0.0/0", Some(65_001), Validity::NotFound),
            ("11.0.0.0/8", None, Validity::NotFound),
            ("192.0.2.0/24", Some(0), Validity::Invalid),
            ("2001:db8:1::/48", Some(65_001), Validity::Valid),
            ("2001:db8:1::/49", Some(65_001), Validity::Invalid),
        ] {
            let prefix = prefix.parse().expect("a prefix");
            assert_eq!(vrps.validity(&prefix, origin.map(Asn)), expected, "{prefix} {origin:?}");
        }
    }

    #[test]
    fn the_origin_is_the_last_as_or_ours() {
        use SegmentKind::{ConfedSequence, Sequence, Set};
        for (segments, expected) in [
            (&[][..], Some(9)),
            (&[(ConfedSequence, &[7][..])], Some(9)),
            (&[(Sequence, &[1, 2])], Some(2)),
            (&[(ConfedSequence, &[7]), (Sequence, &[1, 2])], Some(2)),
            (&[(Sequence, &[1]), (Set, &[2, 3])], None),
        ] {
            let numbers: Vec<(SegmentKind, Vec<Asn>)> = segments
                .iter()
                .map(|(kind, numbers): &(SegmentKind, &[u32])| (*kind, numbers.iter().copied().map(Asn).collect()))
                .collect();
            let value = write_segments(numbers.iter().map(|(kind, numbers)| (*kind, numbers.as_slice())));
            assert_eq!(origin_of(AsPath::of_canonical(&value), Asn(9)), expected.map(Asn), "{segments:?}");
        }
    }
}
