//! UPDATEs that go out.
//!
//! [`announce`] and [`withdraw`] append one message each, with as many prefixes as fit, and take those from an iterator that
//! can be looked into, so that the caller goes on with the rest:
//!
//! ```
//! # use bgp::{Asn, NextHop, PathId, Prefix, family::V4};
//! # use bgp::wire::{attributes::{Attributes, Builder, Origin}, as_path::{self, SegmentKind}, encode};
//! # let prefixes = ["192.0.2.0/24".parse().unwrap()].map(|net| (PathId(0), V4::from_net(&net).unwrap()));
//! # let path = as_path::write_segments([(SegmentKind::Sequence, [Asn(65_001)].as_slice())]);
//! # let attributes = Builder::new().origin(Origin::Igp).set(2, path).build();
//! # let next_hop = NextHop::V4([192, 0, 2, 1].into());
//! let (mut messages, mut rest) = (Vec::new(), prefixes.into_iter().peekable());
//! while rest.peek().is_some() {
//!     encode::announce(&mut messages, &encode::Target::default(), Attributes(&attributes), next_hop, &mut rest)?;
//! }
//! # Ok::<(), encode::EncodeError>(())
//! ```
//!
//! IPv4 prefixes with an IPv4 next hop go into the base fields; everything else goes into MP_REACH_NLRI, which is the first
//! attribute so that a receiver finds the prefixes even when an attribute behind it is malformed (RFC 7606 section 5.1).
//! To peers without four-octet AS numbers, AS_PATH and AGGREGATOR go with AS_TRANS, and AS4_PATH and AS4_AGGREGATOR say what
//! is meant (RFC 6793 section 4.2.2).
//!
//! What peers of equal export get differs in the next hop only, so [`Packed`] says where it is: a message can be copied and
//! patched instead of made again.

use std::iter::Peekable;

use thiserror::Error;

use super::{
    as_path::{AsPath, Segment},
    attributes::{Attribute, Attributes, code, flag, write_attribute},
    header::{HEADER_LEN, LengthLimit, MessageType},
    nlri,
};
use crate::{
    NextHop,
    family::{Family, PerFamily, Prefix},
    id::{Asn, PathId},
    session::Negotiated,
};

/// The two length fields of an UPDATE.
const LENGTHS_LEN: usize = 4;
/// Flags, code and a length of two octets.
const EXTENDED_HEAD_LEN: usize = 4;

/// What encoding legally depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// AS numbers have four octets.
    pub asn4: bool,
    /// Longest message.
    pub length_limit: LengthLimit,
    /// We send path identifiers.
    pub add_path: PerFamily<bool>,
}

impl From<&Negotiated> for Target {
    fn from(negotiated: &Negotiated) -> Self {
        let of = |family| negotiated.families.get(family).is_some_and(|family| family.add_path_send);
        Self {
            asn4: negotiated.asn4,
            length_limit: negotiated.length_limit,
            add_path: PerFamily { ipv4: of(Family::Ipv4Unicast), ipv6: of(Family::Ipv6Unicast) },
        }
    }
}

/// One message that was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Prefixes in it.
    pub prefixes: usize,
    /// Octets of the message, header included.
    pub length: usize,
    /// Where the octets of the next hop begin, from the beginning of the message; there are
    /// [`NextHop::wire_length`] of them. 0 for a withdrawal.
    pub next_hop_at: usize,
}

/// Why there is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The attributes leave no room for a single prefix. The path cannot be told to this peer; one told before is to be
    /// withdrawn (RFC 4271 section 9.2).
    #[error("{0} octets of attributes leave no room for a prefix")]
    AttributesTooLong(usize),
    /// There was no prefix.
    #[error("there is no prefix to encode")]
    NoPrefix,
    /// IPv6 prefixes have IPv6 next hops.
    #[error("an IPv6 prefix cannot have an IPv4 next hop")]
    NextHopFamily,
}

/// Appends an UPDATE that announces the first of `prefixes`, and takes them.
pub fn announce<P: Prefix, I: Iterator<Item = (PathId, P)>>(
    out: &mut Vec<u8>,
    target: &Target,
    attributes: Attributes<'_>,
    next_hop: NextHop,
    prefixes: &mut Peekable<I>,
) -> Result<Packed, EncodeError> {
    let base_fields = match (P::FAMILY, next_hop) {
        (Family::Ipv4Unicast, NextHop::V4(_)) => true,
        (Family::Ipv6Unicast, NextHop::V4(_)) => return Err(EncodeError::NextHopFamily),
        (Family::Ipv4Unicast | Family::Ipv6Unicast, NextHop::V6(_) | NextHop::V6Pair { .. }) => false,
    };
    let mut message = Message::begin(out, target);
    // No withdrawn prefixes; the length of the attributes follows.
    message.out.extend_from_slice(&[0; LENGTHS_LEN]);
    let list_start = message.out.len();
    let packed = if base_fields {
        let next_hop_at = write_with_next_hop(message.out, target, attributes, next_hop) - message.start;
        let list_octets = message.out.len() - list_start;
        message.patch(list_start - 2, list_octets);
        let taken = message.fill(target, prefixes, 0);
        message.finish(taken, next_hop_at, list_octets)
    } else {
        // All that follows the prefixes must be known before they are packed.
        message.out.extend_from_slice(&[flag::OPTIONAL | flag::EXTENDED_LENGTH, code::MP_REACH_NLRI, 0, 0]);
        let value_start = message.out.len();
        let [afi_high, afi_low] = P::FAMILY.afi().to_be_bytes();
        let next_hop_len = u8::try_from(next_hop.wire_length()).unwrap_or(u8::MAX);
        message.out.extend_from_slice(&[afi_high, afi_low, P::FAMILY.safi(), next_hop_len]);
        let next_hop_at = message.out.len() - message.start;
        next_hop.write(message.out);
        message.out.push(0);
        let others = written_length(attributes, target);
        let taken = message.fill(target, prefixes, others);
        let value_octets = message.out.len() - value_start;
        message.patch(value_start - 2, value_octets);
        for attribute in attributes.iter() {
            write_for(message.out, target, attribute);
        }
        write_as4(message.out, target, attributes);
        let list_octets = message.out.len() - list_start;
        message.patch(list_start - 2, list_octets);
        message.finish(taken, next_hop_at, list_octets)
    };
    packed.map_err(|error| if prefixes.peek().is_none() { EncodeError::NoPrefix } else { error })
}

/// Appends an UPDATE that withdraws the first of `prefixes`, and takes them.
pub fn withdraw<P: Prefix, I: Iterator<Item = (PathId, P)>>(
    out: &mut Vec<u8>,
    target: &Target,
    prefixes: &mut Peekable<I>,
) -> Result<Packed, EncodeError> {
    let mut message = Message::begin(out, target);
    match P::FAMILY {
        Family::Ipv4Unicast => {
            message.out.extend_from_slice(&[0; 2]);
            let field_start = message.out.len();
            // The length of the attributes comes behind the prefixes.
            let taken = message.fill(target, prefixes, 2);
            message.patch(field_start - 2, message.out.len() - field_start);
            message.out.extend_from_slice(&[0; 2]);
            message.finish(taken, 0, 0)
        }
        Family::Ipv6Unicast => {
            message.out.extend_from_slice(&[0; LENGTHS_LEN]);
            let list_start = message.out.len();
            message.out.extend_from_slice(&[flag::OPTIONAL | flag::EXTENDED_LENGTH, code::MP_UNREACH_NLRI, 0, 0]);
            let [afi_high, afi_low] = P::FAMILY.afi().to_be_bytes();
            message.out.extend_from_slice(&[afi_high, afi_low, P::FAMILY.safi()]);
            let taken = message.fill(target, prefixes, 0);
            let list_octets = message.out.len() - list_start;
            message.patch(list_start + 2, list_octets - EXTENDED_HEAD_LEN);
            message.patch(list_start - 2, list_octets);
            message.finish(taken, 0, 0)
        }
    }
    .map_err(|_| EncodeError::NoPrefix)
}

/// Appends the End-of-RIB of a family (RFC 4724 section 2).
pub fn end_of_rib(out: &mut Vec<u8>, family: Family) {
    match family {
        Family::Ipv4Unicast => {
            push_header(out, MessageType::Update, LENGTHS_LEN);
            out.extend_from_slice(&[0; LENGTHS_LEN]);
        }
        Family::Ipv6Unicast => {
            let [afi_high, afi_low] = family.afi().to_be_bytes();
            let attribute = [flag::OPTIONAL, code::MP_UNREACH_NLRI, 3, afi_high, afi_low, family.safi()];
            push_header(out, MessageType::Update, LENGTHS_LEN + attribute.len());
            out.extend_from_slice(&[0, 0, 0, 6]);
            out.extend_from_slice(&attribute);
        }
    }
}

/// Appends a KEEPALIVE.
pub fn keepalive(out: &mut Vec<u8>) {
    push_header(out, MessageType::Keepalive, 0);
}

/// A message being made at the end of a buffer.
struct Message<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    limit: usize,
}

impl<'a> Message<'a> {
    fn begin(out: &'a mut Vec<u8>, target: &Target) -> Self {
        let start = out.len();
        push_header(out, MessageType::Update, 0);
        Self { out, start, limit: usize::from(target.length_limit.octets()) }
    }

    /// Writes prefixes while they and `others` more octets fit. Says how many.
    fn fill<P: Prefix, I: Iterator<Item = (PathId, P)>>(
        &mut self,
        target: &Target,
        prefixes: &mut Peekable<I>,
        others: usize,
    ) -> usize {
        let add_path = *target.add_path.get(P::FAMILY);
        let mut room = (self.start + self.limit).saturating_sub(self.out.len() + others);
        let mut taken = 0;
        while let Some((path_id, prefix)) = prefixes.next_if(|(_, prefix)| nlri::wire_length(*prefix, add_path) <= room)
        {
            room -= nlri::wire_length(prefix, add_path);
            nlri::write(self.out, path_id, prefix, add_path);
            taken += 1;
        }
        taken
    }

    /// Writes a length over two octets; one that does not fit is of a message that is refused in [`Self::finish`].
    fn patch(&mut self, at: usize, length: usize) {
        if let Some(field) = self.out.get_mut(at..at + 2) {
            field.copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        }
    }

    /// Writes the length of the message, or takes it back when there is no prefix in it.
    fn finish(mut self, prefixes: usize, next_hop_at: usize, list_octets: usize) -> Result<Packed, EncodeError> {
        let length = self.out.len() - self.start;
        if prefixes == 0 {
            self.out.truncate(self.start);
            return Err(EncodeError::AttributesTooLong(list_octets));
        }
        self.patch(self.start + HEADER_LEN - 3, length);
        Ok(Packed { prefixes, length, next_hop_at })
    }
}

/// A header whose length counts `body` octets that the caller appends.
fn push_header(out: &mut Vec<u8>, message_type: MessageType, body: usize) {
    let [high, low] = u16::try_from(HEADER_LEN + body).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = [0xff; HEADER_LEN];
    let [.., length_high, length_low, type_octet] = &mut header;
    (*length_high, *length_low, *type_octet) = (high, low, message_type as u8);
    out.extend_from_slice(&header);
}

/// Writes all attributes with NEXT_HOP in its place. Says where the octets of the next hop are.
fn write_with_next_hop(out: &mut Vec<u8>, target: &Target, attributes: Attributes<'_>, next_hop: NextHop) -> usize {
    let mut next_hop_at = None;
    let mut write_next_hop = |out: &mut Vec<u8>| {
        if next_hop_at.is_none() {
            let length = u8::try_from(next_hop.wire_length()).unwrap_or(u8::MAX);
            out.extend_from_slice(&[flag::TRANSITIVE, code::NEXT_HOP, length]);
            next_hop_at = Some(out.len());
            next_hop.write(out);
        }
    };
    for attribute in attributes.iter() {
        if attribute.code > code::NEXT_HOP {
            write_next_hop(out);
        }
        write_for(out, target, attribute);
    }
    write_next_hop(out);
    write_as4(out, target, attributes);
    next_hop_at.unwrap_or_default()
}

/// Writes one attribute in the form for the peer.
fn write_for(out: &mut Vec<u8>, target: &Target, attribute: Attribute<'_>) {
    match attribute.code {
        code::AS_PATH if !target.asn4 => {
            write_attribute(out, attribute.flags, code::AS_PATH, &narrow_path(attribute.value))
        }
        code::AGGREGATOR if !target.asn4 => {
            if let Some((asn, router_id)) = attribute.value.split_first_chunk::<4>() {
                let asn = Asn(u32::from_be_bytes(*asn)).two_octets().to_be_bytes();
                write_attribute(out, attribute.flags, code::AGGREGATOR, &[&asn, router_id].concat());
            }
        }
        _ => out.extend_from_slice(attribute.octets),
    }
}

/// Writes AS4_PATH and AS4_AGGREGATOR where the two-octet forms do not say everything.
fn write_as4(out: &mut Vec<u8>, target: &Target, attributes: Attributes<'_>) {
    const FLAGS: u8 = flag::OPTIONAL | flag::TRANSITIVE;
    if target.asn4 {
        return;
    }
    let path = attributes.as_path();
    // RFC 6793 section 3: segments of a confederation are not in AS4_PATH.
    let outside = || path.segments().filter(|segment| !segment.kind.is_confederation());
    if outside().any(|segment| segment.numbers().any(needs_four_octets)) {
        write_attribute(out, FLAGS, code::AS4_PATH, &four_octet_segments(outside()));
    }
    if let Some(value) = attributes.get(code::AGGREGATOR)
        && attributes.aggregator().is_some_and(|aggregator| needs_four_octets(aggregator.asn))
    {
        write_attribute(out, FLAGS, code::AS4_AGGREGATOR, value);
    }
}

/// Octets that [`write_for`] and [`write_as4`] write.
fn written_length(attributes: Attributes<'_>, target: &Target) -> usize {
    if target.asn4 {
        return attributes.0.len();
    }
    let mut octets = Vec::with_capacity(attributes.0.len());
    for attribute in attributes.iter() {
        write_for(&mut octets, target, attribute);
    }
    write_as4(&mut octets, target, attributes);
    octets.len()
}

fn needs_four_octets(asn: Asn) -> bool {
    asn.0 > u32::from(u16::MAX)
}

fn narrow_path(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for segment in AsPath::of_canonical(value).segments() {
        out.extend_from_slice(&[segment.kind as u8, u8::try_from(segment.count()).unwrap_or(u8::MAX)]);
        out.extend(segment.numbers().flat_map(|asn| asn.two_octets().to_be_bytes()));
    }
    out
}

fn four_octet_segments<'a>(segments: impl Iterator<Item = Segment<'a>>) -> Vec<u8> {
    let mut out = Vec::new();
    for segment in segments {
        out.extend_from_slice(&[segment.kind as u8, u8::try_from(segment.count()).unwrap_or(u8::MAX)]);
        out.extend(segment.numbers().flat_map(|asn| asn.0.to_be_bytes()));
    }
    out
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
