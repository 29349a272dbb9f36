//! BMP: what this speaker hears, keeps and sends, told to a monitoring station.
//!
//! A station is told of each peer that comes up or goes, gets the paths of the chosen tables as UPDATE messages, and numbers
//! now and then. Nothing comes back: BMP is a stream in one direction, and whoever listens late gets everything again
//! from the beginning.
//!
//! Every function appends one whole message. The order is the caller's: [`initiation`] first; [`peer_up`] before anything
//! else about a peer; after it the paths with an End-of-RIB for each family, in the tables of [`Table`] that are
//! monitored; [`peer_down`] or [`termination`] last.
//!
//! RFC 7854 (all messages), RFC 8671 (Adj-RIB-Out), RFC 9069 (Loc-RIB).
//!
//! What is ugly: a Route Mirroring message says nothing about direction, so both directions of a session cannot be told
//! apart by a station; and an UPDATE goes out as it came in, so a station must have seen the OPEN messages to read it.

mod statistics;

use std::net::IpAddr;

pub use statistics::{Statistic, statistics};

use crate::id::{Asn, RouterId};

/// The version of RFC 7854.
const VERSION: u8 = 3;
/// Octets of the common header: version, length, type.
const HEADER_LEN: usize = 6;
/// Octets of the per-peer header.
pub const PEER_HEADER_LEN: usize = 42;

/// Message types (RFC 7854 section 4.1).
mod kind {
    pub(super) const ROUTE_MONITORING: u8 = 0;
    pub(super) const STATISTICS: u8 = 1;
    pub(super) const PEER_DOWN: u8 = 2;
    pub(super) const PEER_UP: u8 = 3;
    pub(super) const INITIATION: u8 = 4;
    pub(super) const TERMINATION: u8 = 5;
    pub(super) const ROUTE_MIRRORING: u8 = 6;
}

/// Types of information (RFC 7854 section 4.4, RFC 9069 section 5.3).
mod information {
    pub(super) const STRING: u16 = 0;
    pub(super) const SYSTEM_DESCRIPTION: u16 = 1;
    pub(super) const SYSTEM_NAME: u16 = 2;
    pub(super) const TABLE_NAME: u16 = 3;
}

/// Bits of the peer flags.
mod flag {
    pub(super) const IPV6: u8 = 0x80;
    pub(super) const POST_POLICY: u8 = 0x40;
    pub(super) const TWO_OCTET_AS: u8 = 0x20;
    pub(super) const ADJ_RIB_OUT: u8 = 0x10;
    pub(super) const FILTERED: u8 = 0x80;
}

/// Which table a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// What the peer sent, before or after import policy.
    AdjRibIn {
        /// After policy.
        post_policy: bool,
    },
    /// What is sent to the peer, before or after export policy (RFC 8671).
    AdjRibOut {
        /// After policy.
        post_policy: bool,
    },
    /// What was chosen (RFC 9069). The "peer" is this speaker: its AS and identifier, no address.
    LocRib {
        /// Not all of it is told.
        filtered: bool,
    },
}

/// When something happened, by the clock on the wall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Since 1970.
    pub seconds: u32,
    /// Below a million.
    pub micros: u32,
}

/// The per-peer header (RFC 7854 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which table.
    pub table: Table,
    /// Tells peers of equal address apart that are in different routing instances; 0 in the main one.
    pub distinguisher: u64,
    /// Its address. Not said with [`Table::LocRib`].
    pub address: IpAddr,
    /// Its AS.
    pub asn: Asn,
    /// Its identifier.
    pub router_id: RouterId,
    /// AS numbers in its messages have two octets.
    pub two_octet_as: bool,
    /// When it was heard; zero when that is not known.
    pub time: Timestamp,
}

impl Peer {
    fn write(&self, out: &mut Vec<u8>) {
        let local = matches!(self.table, Table::LocRib { .. });
        let when = |set: bool, bit: u8| if set { bit } else { 0 };
        let (peer_type, flags) = match self.table {
            Table::AdjRibIn { post_policy } => (0, when(post_policy, flag::POST_POLICY)),
            Table::AdjRibOut { post_policy } => (0, flag::ADJ_RIB_OUT | when(post_policy, flag::POST_POLICY)),
            Table::LocRib { filtered } => (3, when(filtered, flag::FILTERED)),
        };
        let of_peer = when(self.address.is_ipv6(), flag::IPV6) | when(self.two_octet_as, flag::TWO_OCTET_AS);
        out.extend_from_slice(&[peer_type, if local { flags } else { flags | of_peer }]);
        out.extend_from_slice(&self.distinguisher.to_be_bytes());
        if local {
            out.extend_from_slice(&[0; 16]);
        } else {
            write_address(out, self.address);
        }
        for word in [self.asn.0, self.router_id.0, self.time.seconds, self.time.micros] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }
}

/// Sixteen octets, an IPv4 address in the last four.
fn write_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            out.extend_from_slice(&[0; 12]);
            out.extend_from_slice(&address.octets());
        }
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
}

/// Appends a message: header, what `body` writes, and then the length.
fn message(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[VERSION, 0, 0, 0, 0, kind]);
    debug_assert_eq!(out.len() - start, HEADER_LEN);
    body(out);
    // Nothing that this speaker tells has four gigabytes.
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(start + 1..start + 5) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends type, length and value. What does not fit into a length of two octets is cut.
fn tlv(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value.get(..usize::from(length)).unwrap_or(value));
}

/// Paths: one whole UPDATE message with its BGP header, as it was heard or as it is sent (section 4.6).
pub fn route_monitoring(out: &mut Vec<u8>, peer: &Peer, update: &[u8]) {
    message(out, kind::ROUTE_MONITORING, |out| {
        peer.write(out);
        out.extend_from_slice(update);
    });
}

/// What was agreed on when a session came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerUp<'a> {
    /// Our address.
    pub local: IpAddr,
    /// Our port.
    pub local_port: u16,
    /// The peer's port.
    pub remote_port: u16,
    /// Our OPEN, whole. With [`Table::LocRib`] one that says which families are told and that AS numbers have four octets.
    pub sent_open: &'a [u8],
    /// The peer's OPEN, whole. With [`Table::LocRib`] the same as ours.
    pub received_open: &'a [u8],
    /// The name of the table, with [`Table::LocRib`].
    pub table_name: Option<&'a str>,
}

/// A session came up, or a Loc-RIB begins (section 4.10, RFC 9069 section 5.3).
pub fn peer_up(out: &mut Vec<u8>, peer: &Peer, up: &PeerUp<'_>) {
    message(out, kind::PEER_UP, |out| {
        peer.write(out);
        if matches!(peer.table, Table::LocRib { .. }) {
            out.extend_from_slice(&[0; 20]);
        } else {
            write_address(out, up.local);
            out.extend_from_slice(&up.local_port.to_be_bytes());
            out.extend_from_slice(&up.remote_port.to_be_bytes());
        }
        out.extend_from_slice(up.sent_open);
        out.extend_from_slice(up.received_open);
        if let Some(name) = up.table_name {
            tlv(out, information::TABLE_NAME, name.as_bytes());
        }
    });
}

/// Why a session ended (section 4.9, RFC 9069 section 5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerDown<'a> {
    /// We sent this NOTIFICATION, whole.
    LocalNotification(&'a [u8]),
    /// We ended it without one, by this event of RFC 4271 section 8.1; 0 when none fits.
    LocalEvent(u16),
    /// The peer sent this NOTIFICATION, whole.
    RemoteNotification(&'a [u8]),
    /// The peer closed the connection.
    RemoteClosed,
    /// It is no longer monitored; the session may live on.
    Unmonitored,
    /// The Loc-RIB of this name ends.
    LocRib(&'a str),
}

/// A session ended, and with it everything that was said about the peer.
pub fn peer_down(out: &mut Vec<u8>, peer: &Peer, down: PeerDown<'_>) {
    message(out, kind::PEER_DOWN, |out| {
        peer.write(out);
        match down {
            PeerDown::LocalNotification(notification) => {
                out.push(1);
                out.extend_from_slice(notification);
            }
            PeerDown::LocalEvent(event) => {
                out.push(2);
                out.extend_from_slice(&event.to_be_bytes());
            }
            PeerDown::RemoteNotification(notification) => {
                out.push(3);
                out.extend_from_slice(notification);
            }
            PeerDown::RemoteClosed => out.push(4),
            PeerDown::Unmonitored => out.push(5),
            PeerDown::LocRib(name) => {
                out.push(6);
                tlv(out, information::TABLE_NAME, name.as_bytes());
            }
        }
    });
}

/// The first message: who speaks (section 4.3).
pub fn initiation(out: &mut Vec<u8>, name: &str, description: &str, remarks: &[&str]) {
    message(out, kind::INITIATION, |out| {
        tlv(out, information::SYSTEM_DESCRIPTION, description.as_bytes());
        tlv(out, information::SYSTEM_NAME, name.as_bytes());
        for remark in remarks {
            tlv(out, information::STRING, remark.as_bytes());
        }
    });
}

/// Why the stream ends (section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Termination {
    /// Somebody wants it so.
    AdministrativelyClosed = 0,
    /// None of the others.
    Unspecified = 1,
    /// The station was too slow.
    OutOfResources = 2,
    /// The station is connected twice.
    Redundant = 3,
    /// And it will not come back.
    PermanentlyClosed = 4,
}

/// The last message.
pub fn termination(out: &mut Vec<u8>, reason: Termination, remark: Option<&str>) {
    message(out, kind::TERMINATION, |out| {
        tlv(out, 1, &(reason as u16).to_be_bytes());
        if let Some(remark) = remark {
            tlv(out, 0, remark.as_bytes());
        }
    });
}

/// A part of a Route Mirroring message (section 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirrored<'a> {
    /// A whole message of any type, exactly as it came.
    Message(&'a [u8]),
    /// The message beside it could not be read and its prefixes were treated as withdrawn.
    Errored,
    /// Messages before this one were not mirrored.
    Lost,
}

/// Messages of a peer as they came, also such as could not be read.
pub fn route_mirroring(out: &mut Vec<u8>, peer: &Peer, parts: &[Mirrored<'_>]) {
    message(out, kind::ROUTE_MIRRORING, |out| {
        peer.write(out);
        for part in parts {
            match part {
                Mirrored::Message(octets) => tlv(out, 0, octets),
                Mirrored::Errored => tlv(out, 1, &0u16.to_be_bytes()),
                Mirrored::Lost => tlv(out, 1, &1u16.to_be_bytes()),
            }
        }
    });
}

#[cfg(test)]
mod tests;
