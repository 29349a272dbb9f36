//! MP_REACH_NLRI and MP_UNREACH_NLRI (RFC 4760), with the next hops of RFC 2545 and RFC 8950.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Context, problem::Fault};
use crate::{NextHop, family::Family, wire::nlri::Nlri};

/// AFI, SAFI and the length of the next hop.
const REACH_HEAD_LEN: usize = 4;
/// AFI and SAFI.
const UNREACH_HEAD_LEN: usize = 3;

/// What MP_REACH_NLRI says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach<'a> {
    /// `None` when it is no address of a host; the prefixes can still be read.
    pub(super) next_hop: Option<NextHop>,
    pub(super) nlri: Nlri<'a>,
}

/// Reads MP_REACH_NLRI. Errors reset the session: where the prefixes are is not certain. A family that was not negotiated
/// is `Ok(Err(..))`. The second value says whether prefixes follow the next hop.
pub(super) fn reach<'a>(context: &Context, value: &'a [u8]) -> Result<(Result<Reach<'a>, Fault>, bool), Fault> {
    let short = Fault::Length(value.len());
    let (&[afi_high, afi_low, safi, next_hop_len], after) = value.split_first_chunk::<REACH_HEAD_LEN>().ok_or(short)?;
    let afi = u16::from_be_bytes([afi_high, afi_low]);
    let (next_hop, after) = after.split_at_checked(usize::from(next_hop_len)).ok_or(short)?;
    // An octet that was once a count of addresses; RFC 4760 has it ignored.
    let (_reserved, prefixes) = after.split_first().ok_or(short)?;
    let there = !prefixes.is_empty();
    let Some(family) = negotiated(context, afi, safi) else {
        return Ok((Err(Fault::Family { afi, safi }), there));
    };
    let of_family = context.families.get(family);
    let next_hop = match (family, next_hop.len()) {
        (Family::Ipv4Unicast, 4) => next_hop.first_chunk().and_then(|octets| ipv4(*octets)),
        (Family::Ipv4Unicast, 16 | 32) if of_family.extended_next_hop => ipv6(next_hop),
        (Family::Ipv6Unicast, 16 | 32) => ipv6(next_hop),
        (Family::Ipv4Unicast | Family::Ipv6Unicast, _) => return Err(Fault::NextHopLength(next_hop_len)),
    };
    let nlri = Nlri::decode(family, of_family.add_path, prefixes)?;
    Ok((Ok(Reach { next_hop, nlri }), there))
}

/// Reads MP_UNREACH_NLRI; as [`reach`].
pub(super) fn unreach<'a>(context: &Context, value: &'a [u8]) -> Result<Result<Nlri<'a>, Fault>, Fault> {
    let (&[afi_high, afi_low, safi], prefixes) =
        value.split_first_chunk::<UNREACH_HEAD_LEN>().ok_or(Fault::Length(value.len()))?;
    let afi = u16::from_be_bytes([afi_high, afi_low]);
    let Some(family) = negotiated(context, afi, safi) else {
        return Ok(Err(Fault::Family { afi, safi }));
    };
    Ok(Ok(Nlri::decode(family, context.families.get(family).add_path, prefixes)?))
}

fn negotiated(context: &Context, afi: u16, safi: u8) -> Option<Family> {
    Family::from_numbers(afi, safi).filter(|family| context.families.get(*family).enabled)
}

/// An address that a host can have. Those that only this speaker would refuse, such as its own, are for the RIB to see.
pub(super) fn ipv4(octets: [u8; 4]) -> Option<NextHop> {
    let address = Ipv4Addr::from(octets);
    let is_host = !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast();
    is_host.then_some(NextHop::V4(address))
}

/// One or two addresses. Of two, some speakers leave the global one empty or fill it with the link-local one, and some
/// have something else in the place of the link-local one.
fn ipv6(octets: &[u8]) -> Option<NextHop> {
    let (first, second) = octets.split_first_chunk::<16>()?;
    let is_host = |address: &Ipv6Addr| !address.is_unspecified() && !address.is_multicast();
    let first = Ipv6Addr::from(*first);
    let link_local = second.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets)).filter(is_link_local);
    match link_local {
        Some(link_local) if first.is_unspecified() || is_link_local(&first) => Some(NextHop::V6(link_local)),
        Some(link_local) if is_host(&first) => Some(NextHop::V6Pair { global: first, link_local }),
        None if is_host(&first) => Some(NextHop::V6(first)),
        Some(_) | None => None,
    }
}

fn is_link_local(address: &Ipv6Addr) -> bool {
    address.is_unicast_link_local()
}

/// The address that was refused, for people.
pub(super) fn refused_address(octets: &[u8]) -> IpAddr {
    match (octets.first_chunk::<16>(), octets.first_chunk::<4>()) {
        (Some(octets), _) => IpAddr::from(*octets),
        (None, Some(octets)) => IpAddr::from(*octets),
        (None, None) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}
