//! UPDATE (RFC 4271 section 4.3), decoded with the outcomes of RFC 7606.
//!
//! ```text
//! | length: 2 | withdrawn prefixes (IPv4) | length: 2 | path attributes | announced prefixes (IPv4) |
//! ```
//!
//! One walk over the attributes notes where each of them lies ([`walk`]); then they are checked in the order of their codes
//! and written into the caller's buffer in the canonical form of [`super::attributes`]. Prefixes stay where they are, as
//! [`Nlri`]. A message without faults costs no allocation once the buffer has grown to its size.
//!
//! What is wrong has one of four outcomes, and only the last is an error here:
//!
//! - the attribute is dropped ([`Disposition::Discard`]);
//! - the prefixes are treated as withdrawn ([`Disposition::Withdraw`]), which needs prefixes that can be read;
//! - an attribute of a family that was not negotiated is ignored (RFC 4760 section 6), noted as a discard;
//! - the session is reset ([`UpdateError`]): prefixes cannot be found or read, or attributes are malformed in a message in
//!   which none was found, which is how a length that went wrong looks (RFC 7606 section 5.2).
//!
//! What is ugly: a well-known attribute nobody has heard of still resets the session, as RFC 4271 section 6.3 has it;
//! RFC 7606 leaves that alone.
//!
//! RFCs: 4271, 4456, 4760, 5065, 6793, 7606, 7607, 7911, 8092, 8950, 9234, 9774.

mod as_path;
mod multiprotocol;
mod problem;
mod values;
mod walk;

pub use problem::{Disposition, Fault, PROBLEMS_MAX, Problem, Problems, UpdateError};

use super::{attributes::code, nlri::Nlri};
use crate::{
    NextHop,
    family::{Family, PerFamily},
    session::{Negotiated, PeerKind},
};

/// What decoding legally depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// How the peer is related to us.
    pub kind: PeerKind,
    /// AS numbers have four octets.
    pub asn4: bool,
    /// Paths with sets are treated as withdrawn (RFC 9774).
    pub refuse_as_sets: bool,
    /// By family.
    pub families: PerFamily<FamilyContext>,
}

/// What decoding depends on for one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyContext {
    /// It was negotiated.
    pub enabled: bool,
    /// Prefixes have path identifiers.
    pub add_path: bool,
    /// IPv4 prefixes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
}

impl From<&Negotiated> for Context {
    /// Sets are accepted; who wants RFC 9774 says so in [`Context::refuse_as_sets`].
    fn from(negotiated: &Negotiated) -> Self {
        let of = |family: Family| {
            negotiated.families.get(family).map_or_else(FamilyContext::default, |negotiated| FamilyContext {
                enabled: true,
                add_path: negotiated.add_path_receive,
                extended_next_hop: negotiated.extended_next_hop,
            })
        };
        Self {
            kind: negotiated.kind,
            asn4: negotiated.asn4,
            refuse_as_sets: false,
            families: PerFamily { ipv4: of(Family::Ipv4Unicast), ipv6: of(Family::Ipv6Unicast) },
        }
    }
}

impl Context {
    /// Octets of an AS number in AS_PATH.
    const fn as_width(&self) -> usize {
        if self.asn4 { 4 } else { 2 }
    }
}

/// What an UPDATE says. Withdrawals are meant to be carried out before announcements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    /// Prefixes of the withdrawn field: IPv4.
    pub withdrawn: Nlri<'a>,
    /// Prefixes of MP_UNREACH_NLRI.
    pub mp_unreach: Option<Nlri<'a>>,
    /// Prefixes of the announced field, IPv4, with NEXT_HOP. `None` without such prefixes, and when treated as withdrawn.
    pub announced: Option<Announced<'a>>,
    /// Prefixes of MP_REACH_NLRI. `None` without such prefixes, and when treated as withdrawn.
    pub mp_reach: Option<Announced<'a>>,
    /// Announced prefixes that are treated as withdrawn: those of the field and those of MP_REACH_NLRI.
    pub refused: [Nlri<'a>; 2],
    /// Path attributes of all announced prefixes in canonical form; empty when there are none.
    pub attributes: &'a [u8],
    /// Attributes were malformed in a way that leaves no path to use.
    pub treat_as_withdraw: bool,
    /// What was wrong, usually nothing.
    pub problems: Problems,
    /// The message is End-of-RIB for this family (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
}

/// Announced prefixes of one family with the next hop of their paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced<'a> {
    /// The next hop.
    pub next_hop: NextHop,
    /// The prefixes.
    pub nlri: Nlri<'a>,
}

impl<'a> Update<'a> {
    /// All prefixes that are withdrawn, those treated so included.
    pub fn withdrawals(&self) -> impl Iterator<Item = Nlri<'a>> {
        let [refused, mp_refused] = self.refused;
        [Some(self.withdrawn), self.mp_unreach, Some(refused), Some(mp_refused)]
            .into_iter()
            .flatten()
            .filter(|nlri| !nlri.is_empty())
    }

    /// All prefixes that are announced.
    pub fn announcements(&self) -> impl Iterator<Item = Announced<'a>> {
        [self.announced, self.mp_reach].into_iter().flatten()
    }
}

/// Reads a body. `scratch` is cleared and holds the attributes afterwards; keep it for the next message.
pub fn decode<'a>(body: &'a [u8], context: &Context, scratch: &'a mut Vec<u8>) -> Result<Update<'a>, UpdateError> {
    scratch.clear();
    let framing = || UpdateError::new(0, Fault::Framing, &[]);
    let (withdrawn_field, rest) = counted(body).ok_or_else(framing)?;
    let (list, announced_field) = counted(rest).ok_or_else(framing)?;

    let ipv4 = context.families.ipv4;
    let base = |octets| {
        let nlri = Nlri::decode(Family::Ipv4Unicast, ipv4.add_path, octets);
        nlri.map_err(|error| UpdateError::new(0, Fault::Nlri(error), &[]))
    };
    let withdrawn = base(withdrawn_field)?;
    let announced = base(announced_field)?;

    let mut found = walk::walk(list)?;
    let parts = values::read(context, &mut found, scratch, !announced.is_empty() && ipv4.enabled)?;
    let mut problems = found.problems;
    let (withdrawn, announced) = if ipv4.enabled {
        (withdrawn, announced)
    } else {
        if !withdrawn.is_empty() || !announced.is_empty() {
            let fault = Fault::Family { afi: Family::Ipv4Unicast.afi(), safi: Family::Ipv4Unicast.safi() };
            problems.push(Problem { code: 0, disposition: Disposition::Discard, fault });
        }
        (Nlri::empty(Family::Ipv4Unicast), Nlri::empty(Family::Ipv4Unicast))
    };

    let treat_as_withdraw = problems.worst().is_some();
    if let Some(worst) = problems.worst() {
        // RFC 7606 section 5.2: malformed attributes, and no prefix that could be treated as withdrawn.
        let withdraws_only = parts.only_unreach && worst.code == code::MP_UNREACH_NLRI;
        if announced_field.is_empty() && !parts.reach_is_there && !withdraws_only {
            return Err(UpdateError::new(worst.code, worst.fault, walk::octets_of(list, worst.code)));
        }
    }
    let reach = parts.reach.filter(|reach| !reach.nlri.is_empty());
    let end_of_rib = if withdrawn_field.is_empty() && announced_field.is_empty() {
        if list.is_empty() { Some(Family::Ipv4Unicast) } else { parts.end_of_rib }
    } else {
        None
    };
    let nothing = Nlri::empty(Family::Ipv4Unicast);
    let (announced, mp_reach, refused) = if treat_as_withdraw {
        (None, None, [announced, reach.map_or(nothing, |reach| reach.nlri)])
    } else {
        let announced =
            parts.next_hop.filter(|_| !announced.is_empty()).map(|next_hop| Announced { next_hop, nlri: announced });
        let mp_reach = reach.and_then(|reach| Some(Announced { next_hop: reach.next_hop?, nlri: reach.nlri }));
        (announced, mp_reach, [nothing; 2])
    };
    let attributes: &[u8] = if announced.is_some() || mp_reach.is_some() { scratch } else { &[] };
    Ok(Update {
        withdrawn,
        mp_unreach: parts.unreach.filter(|nlri| !nlri.is_empty()),
        announced,
        mp_reach,
        refused,
        attributes,
        treat_as_withdraw,
        problems,
        end_of_rib,
    })
}

/// What follows a length of two octets, and the rest.
fn counted(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, after) = octets.split_first_chunk::<2>()?;
    after.split_at_checked(usize::from(u16::from_be_bytes(length)))
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "update_rfc7606_tests.rs"]
mod rfc7606_tests;
