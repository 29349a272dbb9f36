//! The next hop of a path.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::Serialize;

/// Where a path leads, as NEXT_HOP or MP_REACH_NLRI said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextHop {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// One IPv6 address (16 octets). A link-local one alone is what unnumbered peers send.
    V6(Ipv6Addr),
    /// A global and a link-local IPv6 address (32 octets, RFC 2545 section 3).
    V6Pair {
        /// The global address.
        global: Ipv6Addr,
        /// The link-local address; packets are sent to it.
        link_local: Ipv6Addr,
    },
}

impl NextHop {
    /// The address that stands for the path: the global one of a pair.
    #[must_use]
    pub const fn address(self) -> IpAddr {
        match self {
            Self::V4(address) => IpAddr::V4(address),
            Self::V6(address) | Self::V6Pair { global: address, .. } => IpAddr::V6(address),
        }
    }

    /// The octets of an MP_REACH_NLRI next hop field.
    pub fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::V4(address) => out.extend_from_slice(&address.octets()),
            Self::V6(address) => out.extend_from_slice(&address.octets()),
            Self::V6Pair { global, link_local } => {
                out.extend_from_slice(&global.octets());
                out.extend_from_slice(&link_local.octets());
            }
        }
    }

    /// Octets that [`Self::write`] appends.
    #[must_use]
    pub const fn wire_length(self) -> usize {
        match self {
            Self::V4(_) => 4,
            Self::V6(_) => 16,
            Self::V6Pair { .. } => 32,
        }
    }
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(address),
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(address) => address.fmt(f),
            Self::V6Pair { global, link_local } => write!(f, "{global} ({link_local})"),
        }
    }
}

impl Serialize for NextHop {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.address())
    }
}
