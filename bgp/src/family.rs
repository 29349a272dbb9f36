//! Address families, and prefixes of each as a type of their own.
//!
//! What is done per family is written once over [`Prefix`] and compiled for [`V4`] and [`V6`]; nothing asks at run time
//! which family a table holds.

use std::{
    fmt,
    hash::Hash,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;

/// The families this speaker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
}

impl Family {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Ipv4Unicast, Self::Ipv6Unicast];

    /// The family of these numbers, if known.
    #[must_use]
    pub const fn from_numbers(afi: u16, safi: u8) -> Option<Self> {
        match (afi, safi) {
            (1, 1) => Some(Self::Ipv4Unicast),
            (2, 1) => Some(Self::Ipv6Unicast),
            _ => None,
        }
    }

    /// Address family identifier.
    #[must_use]
    pub const fn afi(self) -> u16 {
        match self {
            Self::Ipv4Unicast => 1,
            Self::Ipv6Unicast => 2,
        }
    }

    /// Subsequent address family identifier: unicast.
    #[must_use]
    pub const fn safi(self) -> u8 {
        1
    }

    /// The family of a prefix.
    #[must_use]
    pub const fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::Ipv4Unicast,
            IpNet::V6(_) => Self::Ipv6Unicast,
        }
    }

    /// As an index into a pair of tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4Unicast => "ipv4-unicast",
            Self::Ipv6Unicast => "ipv6-unicast",
        })
    }
}

/// One value per family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerFamily<T> {
    /// For IPv4 unicast.
    pub ipv4: T,
    /// For IPv6 unicast.
    pub ipv6: T,
}

impl<T> PerFamily<T> {
    /// The value of a family.
    pub const fn get(&self, family: Family) -> &T {
        match family {
            Family::Ipv4Unicast => &self.ipv4,
            Family::Ipv6Unicast => &self.ipv6,
        }
    }

    /// The value of a family, to change it.
    pub const fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::Ipv4Unicast => &mut self.ipv4,
            Family::Ipv6Unicast => &mut self.ipv6,
        }
    }

    /// Both, in the order of [`Family::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        [(Family::Ipv4Unicast, &self.ipv4), (Family::Ipv6Unicast, &self.ipv6)].into_iter()
    }
}

/// A prefix of one family. Bits behind the length are always zero.
pub trait Prefix: Copy + Eq + Ord + Hash + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The family.
    const FAMILY: Family;
    /// Bits of an address.
    const BITS: u8;

    /// A prefix from its length and the octets of the wire, of which there are as many as the length needs. Bits behind
    /// the length are cleared. `None` when the length is too large or there are not as many octets.
    fn from_wire(length: u8, octets: &[u8]) -> Option<Self>;

    /// Its length in bits.
    fn length(self) -> u8;

    /// Appends length and octets as they go onto the wire.
    fn write(self, out: &mut Vec<u8>);

    /// As a prefix of either family.
    fn to_net(self) -> IpNet;

    /// The prefix, when it is of this family.
    fn from_net(net: &IpNet) -> Option<Self>;
}

/// Octets that carry the bits of a prefix on the wire.
#[must_use]
pub const fn wire_octets(length: u8) -> usize {
    (length as usize).div_ceil(8)
}

/// An IPv4 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V4 {
    address: u32,
    length: u8,
}

impl Prefix for V4 {
    const FAMILY: Family = Family::Ipv4Unicast;
    const BITS: u8 = 32;

    fn from_wire(length: u8, octets: &[u8]) -> Option<Self> {
        if length > Self::BITS || octets.len() != wire_octets(length) {
            return None;
        }
        // One case for each count: a copy of unknown length would be a call, once for each prefix of a full table.
        let whole = match *octets {
            [a, b, c] => [a, b, c, 0],
            [a, b] => [a, b, 0, 0],
            [a, b, c, d] => [a, b, c, d],
            [a] => [a, 0, 0, 0],
            _ => [0; 4],
        };
        let mask = u32::MAX.checked_shl(u32::from(Self::BITS - length)).unwrap_or(0);
        Some(Self { address: u32::from_be_bytes(whole) & mask, length })
    }

    fn length(self) -> u8 {
        self.length
    }

    fn write(self, out: &mut Vec<u8>) {
        out.push(self.length);
        out.extend_from_slice(&self.address.to_be_bytes()[..wire_octets(self.length)]);
    }

    fn to_net(self) -> IpNet {
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_bits(self.address), self.length))
    }

    fn from_net(net: &IpNet) -> Option<Self> {
        match net {
            IpNet::V4(net) => Some(Self { address: net.network().to_bits(), length: net.prefix_len() }),
            IpNet::V6(_) => None,
        }
    }
}

impl fmt::Display for V4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_net().fmt(f)
    }
}

/// An IPv6 prefix. Kept as octets: 17 octets in a table instead of the 32 of an aligned number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V6 {
    address: [u8; 16],
    length: u8,
}

impl Prefix for V6 {
    const FAMILY: Family = Family::Ipv6Unicast;
    const BITS: u8 = 128;

    fn from_wire(length: u8, octets: &[u8]) -> Option<Self> {
        if length > Self::BITS || octets.len() != wire_octets(length) {
            return None;
        }
        let mut whole = [0; 16];
        whole[..octets.len()].copy_from_slice(octets);
        let mask = u128::MAX.checked_shl(u32::from(Self::BITS - length)).unwrap_or(0);
        Some(Self { address: (u128::from_be_bytes(whole) & mask).to_be_bytes(), length })
    }

    fn length(self) -> u8 {
        self.length
    }

    fn write(self, out: &mut Vec<u8>) {
        out.push(self.length);
        out.extend_from_slice(&self.address[..wire_octets(self.length)]);
    }

    fn to_net(self) -> IpNet {
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_octets(self.address), self.length))
    }

    fn from_net(net: &IpNet) -> Option<Self> {
        match net {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some(Self { address: net.network().octets(), length: net.prefix_len() }),
        }
    }
}

impl fmt::Display for V6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_net().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_cleared_and_lengths_checked() {
        let prefix = V4::from_wire(20, &[10, 1, 0xff]).expect("a prefix");
        assert_eq!(prefix.to_string(), "10.1.240.0/20");
        assert_eq!(V4::from_wire(0, &[]).expect("a prefix").to_string(), "0.0.0.0/0");
        assert_eq!(V6::from_wire(33, &[0x20, 1, 0xd, 0xb8, 0xff]).expect("a prefix").to_string(), "2001:db8:8000::/33");
        assert_eq!(V4::from_wire(33, &[10, 1, 2, 3, 4]), None);
        assert_eq!(V4::from_wire(24, &[10, 1]), None);
        assert_eq!(V6::from_wire(129, &[0; 17]), None);
        assert_eq!(V6::from_wire(0, &[0]), None);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.128.0/17", "192.0.2.255/32"] {
            let prefix = V4::from_net(&text.parse().expect("a prefix")).expect("IPv4");
            let mut wire = Vec::new();
            prefix.write(&mut wire);
            assert_eq!(V4::from_wire(wire[0], &wire[1..]), Some(prefix), "{text}");
        }
        for text in ["::/0", "2001:db8::/32", "2001:db8::1/128", "fe80::/10"] {
            let prefix = V6::from_net(&text.parse().expect("a prefix")).expect("IPv6");
            let mut wire = Vec::new();
            prefix.write(&mut wire);
            assert_eq!(V6::from_wire(wire[0], &wire[1..]), Some(prefix), "{text}");
        }
    }
}
