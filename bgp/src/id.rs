//! Newtypes of the numbers BGP is full of, so that an AS number is never taken for a router identifier.

use std::{fmt, net::Ipv4Addr, str::FromStr, time::Duration};

use serde::Serialize;

/// Autonomous system number, four octets (RFC 6793).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Asn(pub u32);

impl Asn {
    /// Stands for a four-octet number in a two-octet field (RFC 6793 section 9).
    pub const TRANS: Self = Self(23_456);

    /// True for the ranges of RFC 6996, which are not to be seen on the Internet.
    #[must_use]
    pub const fn is_private(self) -> bool {
        matches!(self.0, 64_512..=65_534 | 4_200_000_000..=4_294_967_294)
    }

    /// The number as it is written into a two-octet field.
    #[must_use]
    pub fn two_octets(self) -> u16 {
        u16::try_from(self.0).unwrap_or(23_456)
    }
}

impl fmt::Display for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// BGP identifier of a speaker, also of a cluster of a route reflector: four octets that are written like an address
/// (RFC 6286). Ordered as RFC 4271 compares it: as an unsigned number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId(pub u32);

impl From<Ipv4Addr> for RouterId {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.to_bits())
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from_bits(self.0).fmt(f)
    }
}

impl FromStr for RouterId {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Ipv4Addr>().map(Self::from)
    }
}

impl Serialize for RouterId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A configured or dynamic BGP peer, counted from 0. What belongs to one peer is found by this number; it is used again
/// only after everything of the old peer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PeerId(pub u16);

impl PeerId {
    /// Stands for this speaker itself as the source of a path.
    pub const LOCAL: Self = Self(u16::MAX);

    /// As an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Path identifier of add-path (RFC 7911). 0 where add-path is not in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PathId(pub u32);

/// A moment of a clock that only goes forward, in microseconds since an origin that the caller chooses once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment `after` this one.
    #[must_use]
    pub fn after(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Time since `earlier`; zero when that lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}
