//! Prefixes of an UPDATE, read where they lie.
//!
//! ```text
//! | path identifier: 4, only with add-path | length in bits: 1 | as many octets as the length needs |
//! ```
//!
//! A field is walked once when it is decoded; after that it is a slice that is known to be well-formed, and iterating
//! costs no check that can fail.

use std::marker::PhantomData;

use thiserror::Error;

use crate::{
    family::{Family, Prefix, wire_octets},
    id::PathId,
};

/// Octets of a path identifier (RFC 7911 section 3).
const PATH_ID_LEN: usize = 4;

/// Well-formed prefixes of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nlri<'a> {
    family: Family,
    add_path: bool,
    count: usize,
    octets: &'a [u8],
}

/// What is wrong with a field of prefixes. Nothing behind it can be found (RFC 7606 section 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NlriError {
    /// More bits than an address has.
    #[error("prefix has {0} bits")]
    Length(u8),
    /// The field ends inside a prefix.
    #[error("field ends inside a prefix")]
    Truncated,
}

impl<'a> Nlri<'a> {
    /// No prefixes.
    #[must_use]
    pub const fn empty(family: Family) -> Self {
        Self { family, add_path: false, count: 0, octets: &[] }
    }

    /// Checks a field.
    pub fn decode(family: Family, add_path: bool, octets: &'a [u8]) -> Result<Self, NlriError> {
        let bits = match family {
            Family::Ipv4Unicast => 32,
            Family::Ipv6Unicast => 128,
        };
        let head = if add_path { PATH_ID_LEN } else { 0 };
        let mut count = 0;
        let mut at = 0;
        while at < octets.len() {
            let length = *octets.get(at + head).ok_or(NlriError::Truncated)?;
            if length > bits {
                return Err(NlriError::Length(length));
            }
            at += head + 1 + wire_octets(length);
            count += 1;
        }
        if at == octets.len() { Ok(Self { family, add_path, count, octets }) } else { Err(NlriError::Truncated) }
    }

    /// The family of all prefixes.
    #[must_use]
    pub const fn family(self) -> Family {
        self.family
    }

    /// True when each prefix has a path identifier.
    #[must_use]
    pub const fn has_path_ids(self) -> bool {
        self.add_path
    }

    /// How many prefixes there are.
    #[must_use]
    pub const fn len(self) -> usize {
        self.count
    }

    /// True when there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.count == 0
    }

    /// The field as it came.
    #[must_use]
    pub const fn octets(self) -> &'a [u8] {
        self.octets
    }

    /// The prefixes in the order of the wire; none when `P` is of the other family. Without add-path each has path
    /// identifier 0. Bits behind a prefix's length are cleared.
    #[must_use]
    pub fn iter<P: Prefix>(self) -> Iter<'a, P> {
        let count = if P::FAMILY == self.family { self.count } else { 0 };
        Iter { rest: self.octets, add_path: self.add_path, count, prefix: PhantomData }
    }
}

/// See [`Nlri::iter`].
#[derive(Clone, Debug)]
pub struct Iter<'a, P> {
    rest: &'a [u8],
    add_path: bool,
    count: usize,
    prefix: PhantomData<P>,
}

impl<P: Prefix> Iterator for Iter<'_, P> {
    type Item = (PathId, P);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            return None;
        }
        let path_id = if self.add_path {
            let (octets, after) = self.rest.split_first_chunk::<PATH_ID_LEN>()?;
            self.rest = after;
            PathId(u32::from_be_bytes(*octets))
        } else {
            PathId(0)
        };
        let (&length, after) = self.rest.split_first()?;
        let (octets, rest) = after.split_at_checked(wire_octets(length))?;
        self.rest = rest;
        self.count -= 1;
        Some((path_id, P::from_wire(length, octets)?))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl<P: Prefix> ExactSizeIterator for Iter<'_, P> {}

/// Octets of a prefix on the wire.
#[must_use]
pub fn wire_length<P: Prefix>(prefix: P, add_path: bool) -> usize {
    1 + wire_octets(prefix.length()) + if add_path { PATH_ID_LEN } else { 0 }
}

/// Appends a prefix, with its path identifier if add-path is in use.
pub fn write<P: Prefix>(out: &mut Vec<u8>, path_id: PathId, prefix: P, add_path: bool) {
    if add_path {
        out.extend_from_slice(&path_id.0.to_be_bytes());
    }
    prefix.write(out);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::family::{V4, V6};

    fn shown<P: Prefix>(nlri: Nlri<'_>) -> Vec<String> {
        nlri.iter::<P>().map(|(id, prefix)| format!("{}:{prefix}", id.0)).collect()
    }

    #[test]
    fn prefixes_are_read_with_and_without_path_identifiers() {
        let octets = [24, 192, 0, 2, 0, 12, 10, 0xff];
        let nlri = Nlri::decode(Family::Ipv4Unicast, false, &octets).expect("well-formed");
        assert_eq!(nlri.len(), 3);
        assert_eq!(shown::<V4>(nlri), ["0:192.0.2.0/24", "0:0.0.0.0/0", "0:10.240.0.0/12"]);
        assert_eq!(shown::<V6>(nlri), [""; 0]);
        let octets = [0, 0, 0, 7, 32, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 8, 0];
        let nlri = Nlri::decode(Family::Ipv6Unicast, true, &octets).expect("well-formed");
        assert_eq!(shown::<V6>(nlri), ["7:2001:db8::/32", "8:::/0"]);
    }

    #[test]
    fn fields_that_do_not_add_up_are_refused() {
        use Family::{Ipv4Unicast, Ipv6Unicast};
        for (family, add_path, octets, error) in [
            (Ipv4Unicast, false, &[33, 1, 2, 3, 4, 5][..], NlriError::Length(33)),
            (Ipv6Unicast, false, &[129][..], NlriError::Length(129)),
            (Ipv4Unicast, false, &[24, 10, 0], NlriError::Truncated),
            (Ipv4Unicast, true, &[0, 0, 0, 1], NlriError::Truncated),
            (Ipv4Unicast, true, &[0, 0, 0], NlriError::Truncated),
            (Ipv4Unicast, true, &[0, 0, 0, 1, 8], NlriError::Truncated),
        ] {
            assert_eq!(Nlri::decode(family, add_path, octets), Err(error), "{octets:?}");
        }
    }

    proptest! {
        #[test]
        fn what_decodes_is_counted_and_encodes_to_what_decodes_equal(octets: Vec<u8>, add_path: bool) {
            if let Ok(nlri) = Nlri::decode(Family::Ipv6Unicast, add_path, &octets) {
                let prefixes: Vec<(PathId, V6)> = nlri.iter().collect();
                prop_assert_eq!(prefixes.len(), nlri.len());
                let mut again = Vec::new();
                for (id, prefix) in &prefixes {
                    let before = again.len();
                    write(&mut again, *id, *prefix, add_path);
                    prop_assert_eq!(again.len() - before, wire_length(*prefix, add_path));
                }
                prop_assert_eq!(again.len(), octets.len());
                let nlri = Nlri::decode(Family::Ipv6Unicast, add_path, &again).expect("ours");
                prop_assert_eq!(nlri.iter::<V6>().collect::<Vec<_>>(), prefixes);
            }
        }
    }
}
