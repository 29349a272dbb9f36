//! By what a peer is known.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use serde::Serialize;
use thiserror::Error;

/// Longest name of a link (the kernel's `IFNAMSIZ` without the final zero).
pub const LINK_NAME_OCTETS_MAX: usize = 15;

/// Name of a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(Arc<str>);

impl IfName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = PeerKeyError;

    /// What the kernel takes: at most 15 octets, neither `/` nor `:` nor blanks, and not `.` or `..`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let forbidden = |character: char| {
            matches!(character, '/' | ':' | '%') || character.is_whitespace() || character.is_control()
        };
        if text.is_empty()
            || text.len() > LINK_NAME_OCTETS_MAX
            || matches!(text, "." | "..")
            || text.contains(forbidden)
        {
            return Err(PeerKeyError(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for IfName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// By what a peer is known, for as long as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKey {
    /// An address, with a link where the address alone is ambiguous (IPv6 link-local).
    Address(IpAddr, Option<IfName>),
    /// Whoever is at the other end of a link (unnumbered). The peer stays the same when its link-local address changes.
    Interface(IfName),
}

/// Neither an address nor the name of a link.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is neither an IP address nor the name of a link")]
pub struct PeerKeyError(pub String);

impl PeerKey {
    /// The address, when the key has one.
    #[must_use]
    pub const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address, _) => Some(*address),
            Self::Interface(_) => None,
        }
    }

    /// The link, when the key has one.
    #[must_use]
    pub const fn link(&self) -> Option<&IfName> {
        match self {
            Self::Address(_, link) => link.as_ref(),
            Self::Interface(link) => Some(link),
        }
    }
}

impl From<IpAddr> for PeerKey {
    fn from(address: IpAddr) -> Self {
        Self::Address(address, None)
    }
}

impl FromStr for PeerKey {
    type Err = PeerKeyError;

    /// `192.0.2.1`, `2001:db8::1`, `fe80::1%eth0` or `eth0`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || PeerKeyError(text.to_owned());
        if let Some((address, link)) = text.split_once('%') {
            let address = address.parse().map_err(|_| error())?;
            return Ok(Self::Address(address, Some(link.parse().map_err(|_| error())?)));
        }
        match text.parse() {
            Ok(address) => Ok(Self::Address(address, None)),
            Err(_) => text.parse().map(Self::Interface),
        }
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address, None) => address.fmt(f),
            Self::Address(address, Some(link)) => write!(f, "{address}%{link}"),
            Self::Interface(link) => link.fmt(f),
        }
    }
}

impl Serialize for PeerKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_they_are_read() {
        for text in ["192.0.2.1", "2001:db8::1", "fe80::1%eth0", "eth0", "bond0.100"] {
            let key: PeerKey = text.parse().expect("a key");
            assert_eq!(key.to_string(), text);
        }
        let key: PeerKey = "fe80::1%eth0".parse().expect("a key");
        assert_eq!(key.address(), "fe80::1".parse().ok());
        assert_eq!(key.link().map(IfName::as_str), Some("eth0"));
        assert_eq!("eth0".parse::<PeerKey>().expect("a key").address(), None);
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        for text in [
            "",
            "a b",
            "../x",
            "..",
            "a-name-of-sixteen",
            "eth0:1",
            "fe80::1%",
            "eth0%eth1",
            "fe80::1%eth0%eth1",
            "a\n",
        ] {
            assert_eq!(text.parse::<PeerKey>(), Err(PeerKeyError(text.to_owned())), "{text:?}");
        }
    }
}
