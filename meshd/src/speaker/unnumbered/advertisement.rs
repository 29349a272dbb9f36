//! Router advertisements (RFC 4861 section 4.2), as far as finding a BGP peer on a link needs them.

use std::{net::Ipv6Addr, time::Duration};

/// ICMPv6 type of a router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// ICMPv6 type of a router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// Hop limit that proves that a packet was not forwarded.
pub const HOP_LIMIT: u8 = 255;
/// Octets before the options.
const FIXED_LEN: usize = 16;
/// Option with the link-layer address of the sender.
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;

/// What a router said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Its link-local address.
    pub router: Ipv6Addr,
    /// For how long it offers to be a default router; zero says that it is none. It speaks BGP in either case.
    pub lifetime: Duration,
}

/// Why a packet is not taken (RFC 4861 section 6.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not from the link.
    #[error("hop limit {0} shows that it was forwarded")]
    Forwarded(u8),
    /// Not from a link-local address.
    #[error("source {0} is not link-local")]
    Source(Ipv6Addr),
    /// Another type or code.
    #[error("not a router advertisement")]
    Kind,
    /// Cut off.
    #[error("too short")]
    Short,
    /// An option without or with a wrong length.
    #[error("an option has a bad length")]
    Option,
}

/// Reads an ICMPv6 message; the kernel has checked its checksum.
///
/// # Errors
/// [`Invalid`], in the order of the RFC.
pub fn decode(message: &[u8], source: Ipv6Addr, hop_limit: u8) -> Result<Advertisement, Invalid> {
    if !source.is_unicast_link_local() {
        return Err(Invalid::Source(source));
    }
    if hop_limit != HOP_LIMIT {
        return Err(Invalid::Forwarded(hop_limit));
    }
    let (fixed, mut options) = message.split_first_chunk::<FIXED_LEN>().ok_or(Invalid::Short)?;
    if fixed[..2] != [ROUTER_ADVERTISEMENT, 0] {
        return Err(Invalid::Kind);
    }
    while let [_, length, ..] = options {
        let length = usize::from(*length) * 8;
        if length == 0 {
            return Err(Invalid::Option);
        }
        options = options.get(length..).ok_or(Invalid::Option)?;
    }
    if !options.is_empty() {
        return Err(Invalid::Option);
    }
    Ok(Advertisement { router: source, lifetime: Duration::from_secs(u16::from_be_bytes([fixed[6], fixed[7]]).into()) })
}

/// An advertisement of a speaker that is no default router: lifetime zero, nothing configured on the link. The kernel writes
/// the checksum.
#[must_use]
pub fn encode(mac: Option<[u8; 6]>) -> Vec<u8> {
    let mut message = vec![0; FIXED_LEN];
    message[0] = ROUTER_ADVERTISEMENT;
    // Current hop limit: 64, what Linux uses anyhow.
    message[4] = 64;
    if let Some(mac) = mac {
        message.extend_from_slice(&[SOURCE_LINK_LAYER_ADDRESS, 1]);
        message.extend_from_slice(&mac);
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

    #[test]
    fn what_we_send_is_understood() {
        for mac in [None, Some([2, 0, 0, 0, 0, 1])] {
            let message = encode(mac);
            let expected = Advertisement { router: ROUTER, lifetime: Duration::ZERO };
            assert_eq!(decode(&message, ROUTER, 255), Ok(expected));
        }
    }

    #[test]
    fn what_did_not_come_from_a_router_on_the_link_is_refused() {
        let good = encode(Some([2, 0, 0, 0, 0, 1]));
        let global = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        assert_eq!(decode(&good, ROUTER, 254), Err(Invalid::Forwarded(254)));
        assert_eq!(decode(&good, global, 255), Err(Invalid::Source(global)));
        assert_eq!(decode(&good[..15], ROUTER, 255), Err(Invalid::Short));
        assert_eq!(decode(&good[..20], ROUTER, 255), Err(Invalid::Option));
        assert_eq!(decode(&good[..17], ROUTER, 255), Err(Invalid::Option));
        let mut empty_option = good.clone();
        empty_option[17] = 0;
        assert_eq!(decode(&empty_option, ROUTER, 255), Err(Invalid::Option));
        let mut solicitation = good;
        solicitation[0] = ROUTER_SOLICITATION;
        assert_eq!(decode(&solicitation, ROUTER, 255), Err(Invalid::Kind));
    }

    proptest! {
        #[test]
        fn any_message_is_read_without_panic(message: Vec<u8>) {
            let _read = decode(&message, ROUTER, 255);
        }
    }
}
