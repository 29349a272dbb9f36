//! Path attributes in the one form in which this speaker keeps them.
//!
//! **Canonical form**: the attributes of one path as octets of the wire, in ascending order of their codes, each code once,
//! with these rules, so that two paths with equal meaning have equal octets and can share one copy:
//!
//! - NEXT_HOP, MP_REACH_NLRI and MP_UNREACH_NLRI are not in it: the next hop is kept beside it, see [`crate::NextHop`];
//! - AS numbers in AS_PATH and AGGREGATOR have four octets; AS4_PATH and AS4_AGGREGATOR are merged in and gone;
//! - the flags of a known code are what its RFC says, and Partial when an optional transitive one came with it; the extended
//!   length flag is set exactly when the value is longer than 255 octets;
//! - an unknown transitive attribute is kept with the Partial flag; unknown non-transitive ones are not.
//!
//! The decoder of UPDATE makes this form from what a remote speaker sent, after all checks; [`Builder`] makes it from values.
//! [`Attributes`] reads it, and because both makers are ours, reading is not checked again: octets that are not in
//! canonical form give wrong answers, never a panic.

use super::as_path::AsPath;
use crate::id::{Asn, RouterId};

/// Codes of path attributes.
pub mod code {
    /// RFC 4271.
    pub const ORIGIN: u8 = 1;
    /// RFC 4271.
    pub const AS_PATH: u8 = 2;
    /// RFC 4271.
    pub const NEXT_HOP: u8 = 3;
    /// RFC 4271.
    pub const MED: u8 = 4;
    /// RFC 4271.
    pub const LOCAL_PREF: u8 = 5;
    /// RFC 4271.
    pub const ATOMIC_AGGREGATE: u8 = 6;
    /// RFC 4271.
    pub const AGGREGATOR: u8 = 7;
    /// RFC 1997.
    pub const COMMUNITIES: u8 = 8;
    /// RFC 4456.
    pub const ORIGINATOR_ID: u8 = 9;
    /// RFC 4456.
    pub const CLUSTER_LIST: u8 = 10;
    /// RFC 4760.
    pub const MP_REACH_NLRI: u8 = 14;
    /// RFC 4760.
    pub const MP_UNREACH_NLRI: u8 = 15;
    /// RFC 4360.
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    /// RFC 6793.
    pub const AS4_PATH: u8 = 17;
    /// RFC 6793.
    pub const AS4_AGGREGATOR: u8 = 18;
    /// RFC 8092.
    pub const LARGE_COMMUNITIES: u8 = 32;
    /// RFC 9234: Only to Customer.
    pub const OTC: u8 = 35;
}

/// The name that RFCs give to a known code.
#[must_use]
pub const fn name(code: u8) -> Option<&'static str> {
    Some(match code {
        code::ORIGIN => "ORIGIN",
        code::AS_PATH => "AS_PATH",
        code::NEXT_HOP => "NEXT_HOP",
        code::MED => "MULTI_EXIT_DISC",
        code::LOCAL_PREF => "LOCAL_PREF",
        code::ATOMIC_AGGREGATE => "ATOMIC_AGGREGATE",
        code::AGGREGATOR => "AGGREGATOR",
        code::COMMUNITIES => "COMMUNITIES",
        code::ORIGINATOR_ID => "ORIGINATOR_ID",
        code::CLUSTER_LIST => "CLUSTER_LIST",
        code::MP_REACH_NLRI => "MP_REACH_NLRI",
        code::MP_UNREACH_NLRI => "MP_UNREACH_NLRI",
        code::EXTENDED_COMMUNITIES => "EXTENDED_COMMUNITIES",
        code::AS4_PATH => "AS4_PATH",
        code::AS4_AGGREGATOR => "AS4_AGGREGATOR",
        code::LARGE_COMMUNITIES => "LARGE_COMMUNITY",
        code::OTC => "ONLY_TO_CUSTOMER",
        _ => return None,
    })
}

/// Bits of the flags octet.
pub mod flag {
    /// Not every speaker knows it.
    pub const OPTIONAL: u8 = 0x80;
    /// Passed on by speakers that do not know it.
    pub const TRANSITIVE: u8 = 0x40;
    /// Somebody on the way did not know it.
    pub const PARTIAL: u8 = 0x20;
    /// The length has two octets.
    pub const EXTENDED_LENGTH: u8 = 0x10;
}

/// The flags that a known code must have, without Partial and extended length; `None` for codes this speaker does not know.
#[must_use]
pub const fn known_flags(code: u8) -> Option<u8> {
    match code {
        code::ORIGIN | code::AS_PATH | code::NEXT_HOP | code::LOCAL_PREF | code::ATOMIC_AGGREGATE => {
            Some(flag::TRANSITIVE)
        }
        code::MED | code::ORIGINATOR_ID | code::CLUSTER_LIST | code::MP_REACH_NLRI | code::MP_UNREACH_NLRI => {
            Some(flag::OPTIONAL)
        }
        code::AGGREGATOR
        | code::COMMUNITIES
        | code::EXTENDED_COMMUNITIES
        | code::AS4_PATH
        | code::AS4_AGGREGATOR
        | code::LARGE_COMMUNITIES
        | code::OTC => Some(flag::OPTIONAL | flag::TRANSITIVE),
        _ => None,
    }
}

/// ORIGIN. Ordered as best path selection prefers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Interior.
    #[default]
    Igp = 0,
    /// The protocol of RFC 904.
    Egp = 1,
    /// Anything else.
    Incomplete = 2,
}

impl Origin {
    /// The value of this octet.
    #[must_use]
    pub const fn from_octet(octet: u8) -> Option<Self> {
        match octet {
            0 => Some(Self::Igp),
            1 => Some(Self::Egp),
            2 => Some(Self::Incomplete),
            _ => None,
        }
    }
}

/// One attribute of the canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Flags as they go out.
    pub flags: u8,
    /// Code.
    pub code: u8,
    /// Value.
    pub value: &'a [u8],
    /// Flags, code, length and value.
    pub octets: &'a [u8],
}

/// Attributes in canonical form, read where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes<'a>(pub &'a [u8]);

/// AGGREGATOR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregator {
    /// Who aggregated.
    pub asn: Asn,
    /// Its identifier.
    pub router_id: RouterId,
}

/// A large community (RFC 8092).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity {
    /// Who defines the rest.
    pub global: u32,
    /// First part.
    pub local_1: u32,
    /// Second part.
    pub local_2: u32,
}

impl<'a> Attributes<'a> {
    /// All of them, by ascending code.
    pub fn iter(self) -> impl Iterator<Item = Attribute<'a>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (attribute, after) = split_first(rest)?;
            rest = after;
            Some(attribute)
        })
    }

    /// The value of a code.
    #[must_use]
    pub fn get(self, code: u8) -> Option<&'a [u8]> {
        self.iter()
            .take_while(|attribute| attribute.code <= code)
            .find(|attribute| attribute.code == code)
            .map(|a| a.value)
    }

    /// ORIGIN.
    #[must_use]
    pub fn origin(self) -> Origin {
        self.get(code::ORIGIN).and_then(|value| Origin::from_octet(*value.first()?)).unwrap_or_default()
    }

    /// AS_PATH; empty when there is none.
    #[must_use]
    pub fn as_path(self) -> AsPath<'a> {
        AsPath::of_canonical(self.get(code::AS_PATH).unwrap_or_default())
    }

    /// MULTI_EXIT_DISC.
    #[must_use]
    pub fn med(self) -> Option<u32> {
        self.number(code::MED)
    }

    /// LOCAL_PREF.
    #[must_use]
    pub fn local_pref(self) -> Option<u32> {
        self.number(code::LOCAL_PREF)
    }

    /// True with ATOMIC_AGGREGATE.
    #[must_use]
    pub fn is_atomic_aggregate(self) -> bool {
        self.get(code::ATOMIC_AGGREGATE).is_some()
    }

    /// AGGREGATOR.
    #[must_use]
    pub fn aggregator(self) -> Option<Aggregator> {
        let [asn, router_id] = words(self.get(code::AGGREGATOR)?).next()?;
        Some(Aggregator { asn: Asn(asn), router_id: RouterId(router_id) })
    }

    /// COMMUNITIES, in the order of the wire.
    pub fn communities(self) -> impl Iterator<Item = u32> {
        words::<1>(self.get(code::COMMUNITIES).unwrap_or_default()).map(|[word]| word)
    }

    /// EXTENDED COMMUNITIES, in the order of the wire.
    pub fn extended_communities(self) -> impl Iterator<Item = [u8; 8]> {
        self.get(code::EXTENDED_COMMUNITIES).unwrap_or_default().as_chunks::<8>().0.iter().copied()
    }

    /// LARGE_COMMUNITY, in the order of the wire.
    pub fn large_communities(self) -> impl Iterator<Item = LargeCommunity> {
        let values = self.get(code::LARGE_COMMUNITIES).unwrap_or_default();
        words::<3>(values).map(|[global, local_1, local_2]| LargeCommunity { global, local_1, local_2 })
    }

    /// ORIGINATOR_ID.
    #[must_use]
    pub fn originator_id(self) -> Option<RouterId> {
        self.number(code::ORIGINATOR_ID).map(RouterId)
    }

    /// CLUSTER_LIST, the last reflector first.
    pub fn cluster_list(self) -> impl Iterator<Item = RouterId> {
        words::<1>(self.get(code::CLUSTER_LIST).unwrap_or_default()).map(|[word]| RouterId(word))
    }

    /// Only to Customer.
    #[must_use]
    pub fn otc(self) -> Option<Asn> {
        self.number(code::OTC).map(Asn)
    }

    fn number(self, code: u8) -> Option<u32> {
        words::<1>(self.get(code)?).next().map(|[word]| word)
    }
}

/// Groups of `N` numbers of four octets; what is left over at the end is not looked at.
fn words<const N: usize>(octets: &[u8]) -> impl Iterator<Item = [u32; N]> {
    let words = octets.as_chunks::<4>().0;
    words.as_chunks::<N>().0.iter().map(|group| group.map(u32::from_be_bytes))
}

fn split_first(octets: &[u8]) -> Option<(Attribute<'_>, &[u8])> {
    let (&[flags, code], after) = octets.split_first_chunk::<2>()?;
    let (length, after, head) = if flags & flag::EXTENDED_LENGTH == 0 {
        let (&length, after) = after.split_first()?;
        (usize::from(length), after, 3)
    } else {
        let (&length, after) = after.split_first_chunk::<2>()?;
        (usize::from(u16::from_be_bytes(length)), after, 4)
    };
    let (value, rest) = after.split_at_checked(length)?;
    Some((Attribute { flags, code, value, octets: octets.get(..head + length)? }, rest))
}

/// Appends one attribute: flags without the extended length bit, which follows from the length.
///
/// # Panics
/// Never: a value longer than a length can say is cut, which no caller can reach, because no message holds it.
pub fn write_attribute(out: &mut Vec<u8>, flags: u8, code: u8, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    let flags = flags & !flag::EXTENDED_LENGTH;
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[flags, code, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | flag::EXTENDED_LENGTH, code]);
            out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

/// Makes and edits canonical attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Builder {
    /// By code: flags without extended length, value.
    values: std::collections::BTreeMap<u8, (u8, Vec<u8>)>,
}

impl Builder {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts from what is there.
    #[must_use]
    pub fn of(attributes: Attributes<'_>) -> Self {
        let value = |a: Attribute<'_>| (a.code, (a.flags & !flag::EXTENDED_LENGTH, a.value.to_vec()));
        Self { values: attributes.iter().map(value).collect() }
    }

    /// Writes a known attribute over what is there.
    pub fn set(&mut self, code: u8, value: Vec<u8>) -> &mut Self {
        let flags = known_flags(code).unwrap_or(flag::OPTIONAL | flag::TRANSITIVE | flag::PARTIAL);
        self.values.insert(code, (flags, value));
        self
    }

    /// Takes an attribute out.
    pub fn remove(&mut self, code: u8) -> &mut Self {
        self.values.remove(&code);
        self
    }

    /// ORIGIN.
    pub fn origin(&mut self, origin: Origin) -> &mut Self {
        self.set(code::ORIGIN, vec![origin as u8])
    }

    /// An attribute of one number: MED, LOCAL_PREF, ORIGINATOR_ID, OTC.
    pub fn number(&mut self, code: u8, value: u32) -> &mut Self {
        self.set(code, value.to_be_bytes().to_vec())
    }

    /// COMMUNITIES; none takes the attribute out.
    pub fn communities(&mut self, values: impl IntoIterator<Item = u32>) -> &mut Self {
        let octets: Vec<u8> = values.into_iter().flat_map(u32::to_be_bytes).collect();
        self.set_or_remove(code::COMMUNITIES, octets)
    }

    /// EXTENDED COMMUNITIES; none takes the attribute out.
    pub fn extended_communities(&mut self, values: impl IntoIterator<Item = [u8; 8]>) -> &mut Self {
        let octets: Vec<u8> = values.into_iter().flatten().collect();
        self.set_or_remove(code::EXTENDED_COMMUNITIES, octets)
    }

    /// LARGE_COMMUNITY; none takes the attribute out.
    pub fn large_communities(&mut self, values: impl IntoIterator<Item = LargeCommunity>) -> &mut Self {
        let words = |c: LargeCommunity| [c.global, c.local_1, c.local_2];
        let octets: Vec<u8> = values.into_iter().flat_map(words).flat_map(u32::to_be_bytes).collect();
        self.set_or_remove(code::LARGE_COMMUNITIES, octets)
    }

    /// The canonical octets.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.values.values().map(|(_, value)| value.len() + 4).sum());
        for (code, (flags, value)) in &self.values {
            write_attribute(&mut out, *flags, *code, value);
        }
        out
    }

    fn set_or_remove(&mut self, code: u8, octets: Vec<u8>) -> &mut Self {
        if octets.is_empty() { self.remove(code) } else { self.set(code, octets) }
    }
}
