//! Addresses, masks and prefixes as Go writes them, and what no cluster may claim.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::rejection::{Excerpt, MaskProblem, Rejection, SpecialRange};

/// Shortest IPv4 prefix a record may claim.
pub const PREFIX_MIN_V4: u8 = 8;
/// Shortest IPv6 prefix a record may claim.
pub const PREFIX_MIN_V6: u8 = 16;

/// Longest text of an address (`INET6_ADDRSTRLEN` without its zero).
const ADDRESS_TEXT_MAX: usize = 45;

/// True when `text` is how Go and we print `ip`.
pub(super) fn is_canonical(ip: IpAddr, text: &str) -> bool {
    let mut buffer = [0u8; ADDRESS_TEXT_MAX];
    let mut rest = &mut buffer[..];
    let room = rest.len();
    if std::io::Write::write_fmt(&mut rest, format_args!("{ip}")).is_err() {
        return false;
    }
    let written = room - rest.len();
    &buffer[..written] == text.as_bytes()
}

/// Reads an address in canonical form.
pub(super) fn parse_address(field: &'static str, text: &str) -> Result<IpAddr, Rejection> {
    let ip: IpAddr = text.parse().map_err(|_| Rejection::Address { field, found: Excerpt::new(text) })?;
    if ip.is_ipv4() || is_canonical(ip, text) {
        Ok(ip)
    } else {
        Err(Rejection::NotCanonical { field, found: Excerpt::new(text), canonical: ip })
    }
}

/// The range of special meaning that `ip` is in, if any.
#[must_use]
pub fn special_range(ip: IpAddr) -> Option<SpecialRange> {
    match ip {
        IpAddr::V4(v4) => match v4.octets() {
            [0, ..] => Some(SpecialRange::Unspecified),
            [127, ..] => Some(SpecialRange::Loopback),
            [169, 254, ..] => Some(SpecialRange::LinkLocal),
            [224..=239, ..] => Some(SpecialRange::Multicast),
            [255, 255, 255, 255] => Some(SpecialRange::Broadcast),
            _ => None,
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Some(SpecialRange::Unspecified),
            [0, 0, 0, 0, 0, 0, 0, 1] => Some(SpecialRange::Loopback),
            [0xfe80..=0xfebf, ..] => Some(SpecialRange::LinkLocal),
            [0xff00..=0xffff, ..] => Some(SpecialRange::Multicast),
            [0, 0, 0, 0, 0, 0xffff, ..] => Some(SpecialRange::Ipv4Mapped),
            _ => None,
        },
    }
}

/// Refuses an address that means something else everywhere.
pub(super) fn check_address(field: &'static str, ip: IpAddr) -> Result<(), Rejection> {
    match special_range(ip) {
        Some(range) => Err(Rejection::Special { field, found: IpNet::from(ip), range }),
        None => Ok(()),
    }
}

/// Refuses a prefix that no cluster may claim: the default route, host bits, too short, or touching a special range.
pub(super) fn check_prefix(field: &'static str, found: IpNet) -> Result<(), Rejection> {
    if found.prefix_len() == 0 {
        return Err(Rejection::DefaultRoute { found });
    }
    if found.trunc() != found {
        return Err(Rejection::HostBits { found, network: found.trunc() });
    }
    // A special range shorter than the limit (multicast) is named as such, whatever the length.
    if let Some((_, range)) = SPECIAL.iter().find(|(special, _)| special.contains(&found)) {
        return Err(Rejection::Special { field, found, range: *range });
    }
    let min = if found.addr().is_ipv4() { PREFIX_MIN_V4 } else { PREFIX_MIN_V6 };
    if found.prefix_len() < min {
        return Err(Rejection::PrefixTooShort { found, min });
    }
    match SPECIAL.iter().find(|(special, _)| found.contains(special)) {
        Some((_, range)) => Err(Rejection::Special { field, found, range: *range }),
        None => Ok(()),
    }
}

const SPECIAL: [(IpNet, SpecialRange); 10] = [
    (v4([0, 0, 0, 0], 8), SpecialRange::Unspecified),
    (v4([127, 0, 0, 0], 8), SpecialRange::Loopback),
    (v4([169, 254, 0, 0], 16), SpecialRange::LinkLocal),
    (v4([224, 0, 0, 0], 4), SpecialRange::Multicast),
    (v4([255, 255, 255, 255], 32), SpecialRange::Broadcast),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), SpecialRange::Unspecified),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), SpecialRange::Loopback),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), SpecialRange::LinkLocal),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), SpecialRange::Multicast),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), SpecialRange::Ipv4Mapped),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length))
}

/// Joins an address with a mask as Go encodes it: standard base64 of the raw mask bytes.
pub(super) fn prefix_from_mask(field: &'static str, address: IpAddr, mask: &str) -> Result<IpNet, Rejection> {
    let refuse = |problem| Rejection::Mask { field, found: Excerpt::new(mask), problem };
    // 16 bytes are 24 characters; anything longer needs no decoding to be wrong.
    if mask.len() > 24 {
        let problem = if STANDARD.decode(mask).is_ok() { MaskProblem::Length } else { MaskProblem::Base64 };
        return Err(refuse(problem));
    }
    let mut buffer = [0u8; 18];
    let length = STANDARD.decode_slice(mask, &mut buffer).map_err(|_| refuse(MaskProblem::Base64))?;
    match address {
        IpAddr::V4(v4) => {
            let bytes: [u8; 4] = buffer[..length].try_into().map_err(|_| refuse(MaskProblem::Length))?;
            let bits = u32::from_be_bytes(bytes);
            let ones = bits.leading_ones();
            if bits.count_ones() != ones {
                return Err(refuse(MaskProblem::Holes));
            }
            Ok(IpNet::V4(Ipv4Net::new_assert(v4, narrow(ones))))
        }
        IpAddr::V6(v6) => {
            let bytes: [u8; 16] = buffer[..length].try_into().map_err(|_| refuse(MaskProblem::Length))?;
            let bits = u128::from_be_bytes(bytes);
            let ones = bits.leading_ones();
            if bits.count_ones() != ones {
                return Err(refuse(MaskProblem::Holes));
            }
            Ok(IpNet::V6(Ipv6Net::new_assert(v6, narrow(ones))))
        }
    }
}

/// The mask of `prefix` as Go encodes it.
#[must_use]
pub fn mask_text(prefix: IpNet) -> String {
    match prefix {
        IpNet::V4(net) => STANDARD.encode(net.netmask().octets()),
        IpNet::V6(net) => STANDARD.encode(net.netmask().octets()),
    }
}

/// A count of leading ones is at most 128.
fn narrow(ones: u32) -> u8 {
    u8::try_from(ones).unwrap_or(128)
}

#[cfg(test)]
mod tests;
