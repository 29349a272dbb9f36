//! MRT: records for files that other people's tools read.
//!
//! Two kinds of files are made of them: a table, which is one [`peer_index_table`] and then a [`rib`] record per prefix;
//! and a log of what happened, of [`message`] and [`state_change`] records. Every function appends one whole record.
//!
//! ```text
//! 0          4      6         8        12
//! | seconds  | type | subtype | length | (microseconds, with _ET) | ...
//! ```
//!
//! RFC 6396 (TABLE_DUMP_V2, BGP4MP, extended timestamps), RFC 8050 (path identifiers).
//!
//! What is ugly: in a table, MP_REACH_NLRI is cut down to its next hop (RFC 6396 section 4.3.4), a form that exists
//! nowhere else; and a record has room for a number of entries that a message could not carry, so nothing needs to be split.

use std::net::IpAddr;

pub use crate::bmp::Timestamp;
use crate::{
    NextHop,
    family::{Family, Prefix},
    id::{Asn, PathId, RouterId},
    wire::attributes::{Attributes, code, flag, write_attribute},
};

/// Record types (RFC 6396 section 4).
mod kind {
    pub(super) const TABLE_DUMP_V2: u16 = 13;
    pub(super) const BGP4MP: u16 = 16;
    pub(super) const BGP4MP_ET: u16 = 17;
}

/// Subtypes of TABLE_DUMP_V2.
mod table {
    pub(super) const PEER_INDEX_TABLE: u16 = 1;
    pub(super) const RIB_IPV4_UNICAST: u16 = 2;
    pub(super) const RIB_IPV6_UNICAST: u16 = 4;
    pub(super) const RIB_IPV4_UNICAST_ADDPATH: u16 = 8;
    pub(super) const RIB_IPV6_UNICAST_ADDPATH: u16 = 10;
}

/// Appends a record: header, what `body` writes, and then the length.
fn record(out: &mut Vec<u8>, time: Timestamp, kind: u16, subtype: u16, body: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&time.seconds.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&subtype.to_be_bytes());
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = u32::try_from(out.len() - length_at - 4).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(length_at..length_at + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

fn write_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
}

/// A peer that the records of a table refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexedPeer {
    /// Its identifier.
    pub router_id: RouterId,
    /// Its address.
    pub address: IpAddr,
    /// Its AS.
    pub asn: Asn,
}

/// The first record of a table: peers, which the others name by their place here (section 4.3.1). What is beyond 65,535
/// peers is left out, and a name beyond as many octets is cut.
pub fn peer_index_table(out: &mut Vec<u8>, time: Timestamp, collector: RouterId, view: &str, peers: &[IndexedPeer]) {
    record(out, time, kind::TABLE_DUMP_V2, table::PEER_INDEX_TABLE, |out| {
        out.extend_from_slice(&collector.0.to_be_bytes());
        write_counted(out, view.as_bytes());
        let count = u16::try_from(peers.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for peer in peers.iter().take(usize::from(count)) {
            // Bit 0: an IPv6 address; bit 1: an AS of four octets, as all of ours are written.
            out.push(2 | u8::from(peer.address.is_ipv6()));
            out.extend_from_slice(&peer.router_id.0.to_be_bytes());
            write_address(out, peer.address);
            out.extend_from_slice(&peer.asn.0.to_be_bytes());
        }
    });
}

/// Appends a length of two octets and as much as it can say.
fn write_counted(out: &mut Vec<u8>, octets: &[u8]) {
    let length = u16::try_from(octets.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(octets.get(..usize::from(length)).unwrap_or(octets));
}

/// One path to the prefix of a [`rib`] record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RibEntry<'a> {
    /// Place in the peer index table.
    pub peer: u16,
    /// When the path was learned, in seconds since 1970.
    pub learned_at: u32,
    /// Its identifier; only written in a record with path identifiers.
    pub path_id: PathId,
    /// Its attributes.
    pub attributes: Attributes<'a>,
    /// Its next hop.
    pub next_hop: NextHop,
}

/// All paths to one prefix (section 4.3.2, RFC 8050 section 4.1). `sequence` counts the records of the table from 0.
/// `scratch` is used for attributes and may be used again. What is beyond 65,535 paths is left out.
pub fn rib<P: Prefix>(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    time: Timestamp,
    sequence: u32,
    prefix: P,
    add_path: bool,
    entries: &[RibEntry<'_>],
) {
    let subtype = match (P::FAMILY, add_path) {
        (Family::Ipv4Unicast, false) => table::RIB_IPV4_UNICAST,
        (Family::Ipv6Unicast, false) => table::RIB_IPV6_UNICAST,
        (Family::Ipv4Unicast, true) => table::RIB_IPV4_UNICAST_ADDPATH,
        (Family::Ipv6Unicast, true) => table::RIB_IPV6_UNICAST_ADDPATH,
    };
    record(out, time, kind::TABLE_DUMP_V2, subtype, |out| {
        out.extend_from_slice(&sequence.to_be_bytes());
        prefix.write(out);
        let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        for entry in entries.iter().take(usize::from(count)) {
            out.extend_from_slice(&entry.peer.to_be_bytes());
            out.extend_from_slice(&entry.learned_at.to_be_bytes());
            if add_path {
                out.extend_from_slice(&entry.path_id.0.to_be_bytes());
            }
            scratch.clear();
            write_attributes(scratch, entry, P::FAMILY);
            write_counted(out, scratch);
        }
    });
}

/// Attributes with the next hop at its place among their codes: NEXT_HOP for IPv4 by way of IPv4, otherwise the
/// MP_REACH_NLRI of tables, which is its next hop and nothing else.
fn write_attributes(out: &mut Vec<u8>, entry: &RibEntry<'_>, family: Family) {
    let (own_code, flags) = match (family, entry.next_hop) {
        (Family::Ipv4Unicast, NextHop::V4(_)) => (code::NEXT_HOP, flag::TRANSITIVE),
        _ => (code::MP_REACH_NLRI, flag::OPTIONAL),
    };
    let mut next_hop = Vec::with_capacity(1 + entry.next_hop.wire_length());
    if own_code == code::MP_REACH_NLRI {
        next_hop.push(u8::try_from(entry.next_hop.wire_length()).unwrap_or_default());
    }
    entry.next_hop.write(&mut next_hop);
    let mut written = false;
    for attribute in entry.attributes.iter() {
        if !written && attribute.code > own_code {
            write_attribute(out, flags, own_code, &next_hop);
            written = true;
        }
        out.extend_from_slice(attribute.octets);
    }
    if !written {
        write_attribute(out, flags, own_code, &next_hop);
    }
}

/// Both ends of a session in the records of a log. Addresses are of one family; where they are not, both are written as
/// unspecified IPv6 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The peer's AS.
    pub remote_as: Asn,
    /// Our AS towards it.
    pub local_as: Asn,
    /// The index of the link, 0 when it is not known.
    pub link: u16,
    /// The peer's address.
    pub remote: IpAddr,
    /// Our address.
    pub local: IpAddr,
}

impl Ends {
    fn write(&self, out: &mut Vec<u8>, asn4: bool) {
        for asn in [self.remote_as, self.local_as] {
            if asn4 {
                out.extend_from_slice(&asn.0.to_be_bytes());
            } else {
                out.extend_from_slice(&asn.two_octets().to_be_bytes());
            }
        }
        out.extend_from_slice(&self.link.to_be_bytes());
        let family = if self.remote.is_ipv4() && self.local.is_ipv4() { 1 } else { 2u16 };
        out.extend_from_slice(&family.to_be_bytes());
        if self.remote.is_ipv4() == self.local.is_ipv4() {
            write_address(out, self.remote);
            write_address(out, self.local);
        } else {
            out.extend_from_slice(&[0; 32]);
        }
    }
}

/// Which way a message went, and how its numbers are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageForm {
    /// We sent it.
    pub sent: bool,
    /// AS numbers in it have four octets.
    pub asn4: bool,
    /// Prefixes in it have path identifiers.
    pub add_path: bool,
}

/// A message of a session, whole, with a timestamp in microseconds (sections 4.4.2, 4.4.3, RFC 8050 section 3).
pub fn message(out: &mut Vec<u8>, time: Timestamp, ends: &Ends, form: MessageForm, octets: &[u8]) {
    let subtype = match (form.asn4, form.sent, form.add_path) {
        (false, false, false) => 1,
        (true, false, false) => 4,
        (false, true, false) => 6,
        (true, true, false) => 7,
        (false, false, true) => 8,
        (true, false, true) => 9,
        (false, true, true) => 10,
        (true, true, true) => 11,
    };
    record(out, time, kind::BGP4MP_ET, subtype, |out| {
        out.extend_from_slice(&time.micros.to_be_bytes());
        ends.write(out, form.asn4);
        out.extend_from_slice(octets);
    });
}

/// States of a session as RFC 4271 section 8.2.2 numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum SessionState {
    /// Nothing is tried.
    Idle = 1,
    /// A connection is being made.
    Connect = 2,
    /// A connection is waited for.
    Active = 3,
    /// Our OPEN is sent.
    OpenSent = 4,
    /// Their OPEN is accepted.
    OpenConfirm = 5,
    /// It is up.
    Established = 6,
}

/// A session changed its state (section 4.4.4). `precise` writes the microseconds too, which old readers do not know for
/// this subtype.
pub fn state_change(
    out: &mut Vec<u8>,
    time: Timestamp,
    precise: bool,
    ends: &Ends,
    from: SessionState,
    to: SessionState,
) {
    const STATE_CHANGE_AS4: u16 = 5;
    let kind = if precise { kind::BGP4MP_ET } else { kind::BGP4MP };
    record(out, time, kind, STATE_CHANGE_AS4, |out| {
        if precise {
            out.extend_from_slice(&time.micros.to_be_bytes());
        }
        ends.write(out, true);
        out.extend_from_slice(&(from as u16).to_be_bytes());
        out.extend_from_slice(&(to as u16).to_be_bytes());
    });
}

#[cfg(test)]
mod tests;
