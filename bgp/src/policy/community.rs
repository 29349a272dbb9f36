//! Communities of the three kinds as texts, and patterns of them.

use std::{fmt, net::Ipv4Addr, ops::RangeInclusive, str::FromStr};

use crate::wire::attributes::{Attributes, LargeCommunity};

/// A community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    /// RFC 1997: `65000:100`, or the name of a well-known one.
    Standard(u32),
    /// RFC 4360: `rt:65000:100`, `soo:192.0.2.1:7`, `0x0002fde800000064`.
    Extended([u8; 8]),
    /// RFC 8092: `65000:1:2`.
    Large(LargeCommunity),
}

impl Community {
    /// RFC 8326.
    pub const GRACEFUL_SHUTDOWN: u32 = 0xffff_0000;
    /// RFC 9494.
    pub const LLGR_STALE: u32 = 0xffff_0006;
    /// RFC 9494.
    pub const NO_LLGR: u32 = 0xffff_0007;
    /// RFC 7999.
    pub const BLACKHOLE: u32 = 0xffff_029a;
    /// RFC 1997.
    pub const NO_EXPORT: u32 = 0xffff_ff01;
    /// RFC 1997.
    pub const NO_ADVERTISE: u32 = 0xffff_ff02;
    /// RFC 1997.
    pub const NO_EXPORT_SUBCONFED: u32 = 0xffff_ff03;
    /// RFC 3765.
    pub const NO_PEER: u32 = 0xffff_ff04;
}

/// Names of well-known communities; the first of a value is the one that is printed.
const WELL_KNOWN: [(&str, u32); 11] = [
    ("graceful-shutdown", Community::GRACEFUL_SHUTDOWN),
    ("gshut", Community::GRACEFUL_SHUTDOWN),
    ("accept-own", 0xffff_0001),
    ("llgr-stale", Community::LLGR_STALE),
    ("no-llgr", Community::NO_LLGR),
    ("blackhole", Community::BLACKHOLE),
    ("no-export", Community::NO_EXPORT),
    ("no-advertise", Community::NO_ADVERTISE),
    ("no-export-subconfed", Community::NO_EXPORT_SUBCONFED),
    ("local-as", Community::NO_EXPORT_SUBCONFED),
    ("no-peer", Community::NO_PEER),
];

/// Types of extended communities with a two-octet AS, an IPv4 address, and a four-octet AS in front (RFC 4360, 5668).
const TYPE_AS2: u8 = 0x00;
const TYPE_IPV4: u8 = 0x01;
const TYPE_AS4: u8 = 0x02;
/// Subtypes: route target and route origin.
const SUBTYPE_TARGET: u8 = 0x02;
const SUBTYPE_ORIGIN: u8 = 0x03;

/// Why a text is not a community or a pattern of communities.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}: {reason}")]
pub struct CommunityError {
    text: String,
    what: &'static str,
    reason: &'static str,
}

/// Communities whose parts lie in ranges: `65000:*`, `65000:100-199`, `rt:*:*`, `65000:*:7`, or one community.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommunityPattern {
    /// Of RFC 1997.
    Standard {
        /// The upper two octets.
        high: RangeInclusive<u16>,
        /// The lower two octets.
        low: RangeInclusive<u16>,
    },
    /// Of RFC 4360, a route target or a route origin.
    Extended {
        /// Which of the two.
        subtype: u8,
        /// The part in front.
        administrator: Administrator,
        /// The number behind it.
        local: RangeInclusive<u32>,
    },
    /// Of RFC 4360, these octets.
    ExtendedOctets([u8; 8]),
    /// Of RFC 4360, all.
    ExtendedAny,
    /// Of RFC 8092.
    Large([RangeInclusive<u32>; 3]),
}

/// The part of an extended community in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Administrator {
    /// Any of the two kinds.
    Any,
    /// An AS, in two or four octets.
    As(RangeInclusive<u32>),
    /// An address.
    Address(Ipv4Addr),
}

impl CommunityPattern {
    /// Is this community one of them?
    #[must_use]
    pub fn matches(&self, community: Community) -> bool {
        match (self, community) {
            (Self::Standard { high, low }, Community::Standard(value)) => {
                let [a, b, c, d] = value.to_be_bytes();
                high.contains(&u16::from_be_bytes([a, b])) && low.contains(&u16::from_be_bytes([c, d]))
            }
            (Self::Large([global, local_1, local_2]), Community::Large(value)) => {
                global.contains(&value.global) && local_1.contains(&value.local_1) && local_2.contains(&value.local_2)
            }
            (Self::ExtendedAny, Community::Extended(_)) => true,
            (Self::ExtendedOctets(octets), Community::Extended(value)) => *octets == value,
            (Self::Extended { subtype, administrator, local }, Community::Extended(value)) => {
                let Some((found, number)) = split_extended(value, *subtype) else { return false };
                let administered = match (administrator, found) {
                    (Administrator::Any, _) => true,
                    (Administrator::As(range), Found::As(asn)) => range.contains(&asn),
                    (Administrator::Address(wanted), Found::Address(address)) => *wanted == address,
                    (Administrator::As(_), Found::Address(_)) | (Administrator::Address(_), Found::As(_)) => false,
                };
                administered && local.contains(&number)
            }
            (Self::Standard { .. }, Community::Extended(_) | Community::Large(_))
            | (
                Self::Extended { .. } | Self::ExtendedAny | Self::ExtendedOctets(_),
                Community::Standard(_) | Community::Large(_),
            )
            | (Self::Large(_), Community::Standard(_) | Community::Extended(_)) => false,
        }
    }

    /// Has the path one of them?
    #[must_use]
    pub fn matches_any_of(&self, attributes: Attributes<'_>) -> bool {
        match self {
            Self::Standard { .. } => attributes.communities().any(|value| self.matches(Community::Standard(value))),
            Self::Extended { .. } | Self::ExtendedOctets(_) | Self::ExtendedAny => {
                attributes.extended_communities().any(|value| self.matches(Community::Extended(value)))
            }
            Self::Large(_) => attributes.large_communities().any(|value| self.matches(Community::Large(value))),
        }
    }
}

enum Found {
    As(u32),
    Address(Ipv4Addr),
}

/// The parts of a route target or route origin.
fn split_extended(value: [u8; 8], wanted: u8) -> Option<(Found, u32)> {
    let [kind, subtype, a, b, c, d, e, f] = value;
    if subtype != wanted {
        return None;
    }
    let high = u32::from(u16::from_be_bytes([a, b]));
    let low = u32::from(u16::from_be_bytes([e, f]));
    match kind {
        TYPE_AS2 => Some((Found::As(high), u32::from_be_bytes([c, d, e, f]))),
        TYPE_IPV4 => Some((Found::Address(Ipv4Addr::new(a, b, c, d)), low)),
        TYPE_AS4 => Some((Found::As(u32::from_be_bytes([a, b, c, d])), low)),
        _ => None,
    }
}

impl FromStr for Community {
    type Err = CommunityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason| CommunityError { text: text.to_owned(), what: "community", reason };
        if let Some((_, value)) = WELL_KNOWN.iter().find(|(name, _)| *name == text) {
            return Ok(Self::Standard(*value));
        }
        if let Some(octets) = raw_octets(text) {
            return octets.map(Self::Extended).map_err(wrong);
        }
        if let Some((subtype, rest)) = extended_prefix(text) {
            return extended(subtype, rest).map(Self::Extended).map_err(wrong);
        }
        let parts: Vec<&str> = text.split(':').collect();
        match *parts.as_slice() {
            [high, low] => {
                let part = |text: &str| text.parse::<u16>().map_err(|_| wrong("its parts are numbers up to 65535"));
                Ok(Self::Standard(u32::from(part(high)?) << 16 | u32::from(part(low)?)))
            }
            [global, local_1, local_2] => {
                let part = |text: &str| text.parse().map_err(|_| wrong("its parts are numbers up to 4294967295"));
                let (global, local_1, local_2) = (part(global)?, part(local_1)?, part(local_2)?);
                Ok(Self::Large(LargeCommunity { global, local_1, local_2 }))
            }
            _ => Err(wrong(FORMS)),
        }
    }
}

const FORMS: &str =
    "write 65000:1, 65000:1:2, rt:65000:1, soo:65000:1, 0x and 16 digits, or the name of a well-known one";

/// `0x` and 16 digits; `None` when the text is something else.
fn raw_octets(text: &str) -> Option<Result<[u8; 8], &'static str>> {
    let digits = text.strip_prefix("0x")?;
    let valid = digits.len() == 16 && digits.bytes().all(|octet| octet.is_ascii_hexdigit());
    let value = if valid { u64::from_str_radix(digits, 16).ok() } else { None };
    Some(value.map(u64::to_be_bytes).ok_or("0x needs 16 hexadecimal digits"))
}

fn extended_prefix(text: &str) -> Option<(u8, &str)> {
    let (kind, rest) = text.split_once(':')?;
    match kind {
        "rt" | "target" => Some((SUBTYPE_TARGET, rest)),
        "ro" | "soo" | "origin" => Some((SUBTYPE_ORIGIN, rest)),
        _ => None,
    }
}

fn extended(subtype: u8, text: &str) -> Result<[u8; 8], &'static str> {
    let (administrator, local) = text.split_once(':').ok_or("after the kind come two parts")?;
    let local: u32 = local.parse().map_err(|_| "the last part is a number")?;
    let short = || u16::try_from(local).map(u16::to_be_bytes).map_err(|_| "the last part has two octets here");
    if let Ok(address) = administrator.parse::<Ipv4Addr>() {
        let ([a, b, c, d], [e, f]) = (address.octets(), short()?);
        return Ok([TYPE_IPV4, subtype, a, b, c, d, e, f]);
    }
    let asn: u32 = administrator.parse().map_err(|_| "the part after the kind is an AS number or an IPv4 address")?;
    if let Ok(asn) = u16::try_from(asn) {
        let ([a, b], [c, d, e, f]) = (asn.to_be_bytes(), local.to_be_bytes());
        return Ok([TYPE_AS2, subtype, a, b, c, d, e, f]);
    }
    let ([a, b, c, d], [e, f]) = (asn.to_be_bytes(), short()?);
    Ok([TYPE_AS4, subtype, a, b, c, d, e, f])
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Standard(value) => match WELL_KNOWN.iter().find(|(_, known)| *known == value) {
                Some((name, _)) => f.write_str(name),
                None => write!(f, "{}:{}", value >> 16, value & 0xffff),
            },
            Self::Large(LargeCommunity { global, local_1, local_2 }) => write!(f, "{global}:{local_1}:{local_2}"),
            Self::Extended(value) => {
                for (subtype, name) in [(SUBTYPE_TARGET, "rt"), (SUBTYPE_ORIGIN, "soo")] {
                    match split_extended(value, subtype) {
                        // A small number in four octets would be read back as two.
                        Some((Found::As(asn), _)) if value.starts_with(&[TYPE_AS4]) && asn <= 0xffff => {}
                        Some((Found::As(asn), local)) => return write!(f, "{name}:{asn}:{local}"),
                        Some((Found::Address(address), local)) => return write!(f, "{name}:{address}:{local}"),
                        None => {}
                    }
                }
                write!(f, "0x{:016x}", u64::from_be_bytes(value))
            }
        }
    }
}

impl FromStr for CommunityPattern {
    type Err = CommunityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason| CommunityError { text: text.to_owned(), what: "community pattern", reason };
        if let Some((_, value)) = WELL_KNOWN.iter().find(|(name, _)| *name == text) {
            let [a, b, c, d] = value.to_be_bytes();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            return Ok(Self::Standard { high: high..=high, low: low..=low });
        }
        if let Some(octets) = raw_octets(text) {
            return octets.map(Self::ExtendedOctets).map_err(wrong);
        }
        if let Some((subtype, rest)) = extended_prefix(text) {
            let (administrator, local) = rest.split_once(':').ok_or_else(|| wrong("after the kind come two parts"))?;
            let administrator = match administrator.parse::<Ipv4Addr>() {
                Ok(address) => Administrator::Address(address),
                Err(_) if administrator == "*" => Administrator::Any,
                Err(_) => Administrator::As(range(administrator, u32::MAX).ok_or_else(|| wrong(PARTS_32))?),
            };
            let local = range(local, u32::MAX).ok_or_else(|| wrong(PARTS_32))?;
            return Ok(Self::Extended { subtype, administrator, local });
        }
        let parts: Vec<&str> = text.split(':').collect();
        match *parts.as_slice() {
            ["extended", "*"] => Ok(Self::ExtendedAny),
            [high, low] => {
                let part = |text| range(text, u16::MAX).ok_or_else(|| wrong(PARTS_16));
                Ok(Self::Standard { high: part(high)?, low: part(low)? })
            }
            [global, local_1, local_2] => {
                let part = |text| range(text, u32::MAX).ok_or_else(|| wrong(PARTS_32));
                Ok(Self::Large([part(global)?, part(local_1)?, part(local_2)?]))
            }
            _ => Err(wrong(FORMS)),
        }
    }
}

const PARTS_16: &str = "its parts are numbers up to 65535, ranges such as 100-199, or *";
const PARTS_32: &str = "its parts are numbers up to 4294967295, ranges such as 100-199, or *";

/// `*`, a number, or two with `-` between them.
fn range<N: FromStr + PartialOrd + Copy + Default>(text: &str, max: N) -> Option<RangeInclusive<N>> {
    if text == "*" {
        return Some(N::default()..=max);
    }
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
    (low <= high).then_some(low..=high)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::attributes::Builder;

    fn community(text: &str) -> Community {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn pattern(text: &str) -> CommunityPattern {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn communities_have_the_octets_of_their_rfcs() {
        for (text, expected) in [
            ("65000:100", Community::Standard(0xfde8_0064)),
            ("gshut", Community::Standard(0xffff_0000)),
            ("blackhole", Community::Standard(0xffff_029a)),
            ("65535:666", Community::Standard(0xffff_029a)),
            ("no-export", Community::Standard(0xffff_ff01)),
            ("4200000000:1:2", Community::Large(LargeCommunity { global: 4_200_000_000, local_1: 1, local_2: 2 })),
            ("rt:65000:100", Community::Extended([0, 2, 0xfd, 0xe8, 0, 0, 0, 100])),
            ("target:192.0.2.1:7", Community::Extended([1, 2, 192, 0, 2, 1, 0, 7])),
            ("soo:4200000000:7", Community::Extended([2, 3, 0xfa, 0x56, 0xea, 0, 0, 7])),
            ("0x4004fde84b189680", Community::Extended([0x40, 4, 0xfd, 0xe8, 0x4b, 0x18, 0x96, 0x80])),
        ] {
            assert_eq!(community(text), expected, "{text}");
        }
        for text in [
            "65536:1",
            "1",
            "1:2:3:4",
            "rt:1",
            "rt:4200000000:65536",
            "rt:192.0.2.1:65536",
            "0x12",
            "no-such",
            "",
            ":",
            "0x+123456789abcdef",
        ] {
            assert!(text.parse::<Community>().is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_match_their_kind_only() {
        for (text, matching, other) in [
            ("65000:*", &["65000:0", "65000:65535"][..], &["65001:0", "65000:1:1", "rt:65000:1"][..]),
            ("*:100-199", &["1:100", "2:199"], &["1:200", "1:99"]),
            ("*:*", &["1:1", "no-export"], &["1:1:1", "rt:1:1"]),
            ("65000:*:7", &["65000:9:7"], &["65000:9:8", "65000:9"]),
            ("rt:65000:*", &["rt:65000:1", "0x02020000fde80001"], &["soo:65000:1", "rt:65001:1", "rt:192.0.2.1:1"]),
            ("soo:*:5", &["soo:1:5", "soo:192.0.2.1:5"], &["rt:1:5", "soo:1:6"]),
            ("rt:192.0.2.1:*", &["rt:192.0.2.1:5"], &["rt:192.0.2.2:5", "rt:1:5"]),
            ("0x4004fde84b189680", &["0x4004fde84b189680"], &["0x4004fde84b189681"]),
            ("extended:*", &["rt:1:1", "0x4004fde84b189680"], &["1:1", "1:1:1"]),
            ("graceful-shutdown", &["65535:0"], &["65535:1"]),
        ] {
            for one in matching {
                assert!(pattern(text).matches(community(one)), "{text} {one}");
            }
            for one in other {
                assert!(!pattern(text).matches(community(one)), "{text} {one}");
            }
        }
        for text in ["65000:1-", "2-1:1", "65536:*", "*", "*:*:*:*", "rt:*", "rt:x:*"] {
            assert!(text.parse::<CommunityPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn patterns_look_into_the_attribute_of_their_kind() {
        let mut builder = Builder::new();
        builder.communities([0xfde8_0064]).extended_communities([[0, 2, 0, 9, 0, 0, 0, 1]]);
        let octets = builder.build();
        for (text, expected) in [("65000:*", true), ("65000:*:*", false), ("rt:9:1", true), ("rt:9:2", false)] {
            assert_eq!(pattern(text).matches_any_of(Attributes(&octets)), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(kind in 0..3, octets in any::<[u8; 12]>(), small in any::<bool>()) {
            let [a, b, c, d, e, f, g, h, i, j, k, l] = octets;
            let community = match kind {
                0 => Community::Standard(u32::from_be_bytes([a, b, c, d])),
                1 if small => Community::Extended([a % 4, b % 4, 0, 0, e, f, g, h]),
                1 => Community::Extended([a % 4, b % 4, c, d, e, f, g, h]),
                _ => Community::Large(LargeCommunity {
                    global: u32::from_be_bytes([a, b, c, d]),
                    local_1: u32::from_be_bytes([e, f, g, h]),
                    local_2: u32::from_be_bytes([i, j, k, l]),
                }),
            };
            prop_assert_eq!(community.to_string().parse::<Community>(), Ok(community));
            let pattern: CommunityPattern = community.to_string().parse().expect("a pattern");
            prop_assert!(pattern.matches(community));
        }
    }
}
