//! Known connections: what to write into their packets.
//!
//! A translated connection has one entry per direction, in `connections4` or `connections6`. Each is complete: the tuple as it
//! arrives is the key, the tuple as it leaves is the value. A packet of a known connection needs no other decision, whatever made
//! the entry: a service, session affinity, masquerade or DSR.
//!
//! To the kernel the table is an array of [`Bucket`]s; how entries are found in it is in `meshd_steps::bucket`, which both sides use.

use crate::{V4, V6};

/// The tuple of a packet as it arrives. Key of an [`Entry`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConnectionKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port, network byte order. For an ICMP echo its identifier in both ports.
    pub source_port: u16,
    /// Destination port, network byte order.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

impl<A: Copy> ConnectionKey<A> {
    /// The tuple of an answer to a packet with this one.
    #[must_use]
    #[inline(always)]
    pub const fn answer(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }
}

const _: () = assert!(size_of::<ConnectionKey<V4>>() == 16 && size_of::<ConnectionKey<V6>>() == 40);

/// Bits of [`Connection::flags`].
pub mod connection_flags {
    /// Of the answering direction: [`super::Connection::to`] is an index into `next_hops`, otherwise into the backends.
    pub const REPLY: u8 = 1 << 0;
    /// A FIN was seen in this direction, or a RST in either. Where there is one entry for both, a FIN of each end ([`super::closed_by`]).
    pub const CLOSING: u8 = 1 << 1;
    /// The source was rewritten to an address of this node (SNAT, masquerade, hairpin).
    pub const SNAT: u8 = 1 << 2;
    /// Made by masquerade, not by a service.
    pub const MASQUERADE: u8 = 1 << 3;
    /// The backend gets the client's address and answers itself.
    pub const DSR: u8 = 1 << 4;
    /// More than the first packet was seen: an answer, or data after it.
    pub const ANSWERED: u8 = 1 << 5;
    /// The destination is a workload of this node.
    pub const LOCAL: u8 = 1 << 6;
    /// Both directions go through the stack, because one of them has no next hop to go past it: netfilter sees all of a connection or
    /// nothing. Its answers are translated where they leave the stack.
    pub const STACK: u8 = 1 << 7;
}

/// Bits of [`Connection::closed_by`].
pub mod closed_by {
    /// Who sends packets with the entry's key.
    pub const SENDER: u8 = 1 << 0;
    /// Who gets them.
    pub const RECEIVER: u8 = 1 << 1;
    /// Both.
    pub const BOTH: u8 = SENDER | RECEIVER;
}

/// The tuple of a packet as it leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple<A> {
    /// New source address.
    pub source: A,
    /// New destination address.
    pub destination: A,
    /// New source port, network byte order.
    pub source_port: u16,
    /// New destination port, network byte order.
    pub destination_port: u16,
}

/// The tuple of a packet as it leaves, and what is known of its connection. Value of an [`Entry`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection<A> {
    /// What its packets get.
    pub tuple: Tuple<A>,
    /// Index of the backend, or of the next hop with [`connection_flags::REPLY`]; 0: none.
    pub to: u32,
    /// The service's number; 0: none.
    pub service: u32,
    /// When a packet was seen last, in ticks.
    pub used: u32,
    /// When the connection began, in ticks.
    pub began: u32,
    /// Bits of [`connection_flags`].
    pub flags: u8,
    /// Bits of [`closed_by`]: who sent a FIN of a connection that has this entry only, and goes on until the other end does.
    pub closed_by: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

impl<A> Connection<A> {
    /// True for the entry of a connection that has no other one: packets of both directions are noted in it. So it is with what keeps its
    /// source because the outside began it, and with what a node answers for another one.
    #[must_use]
    #[inline(always)]
    pub const fn is_alone(&self) -> bool {
        let kept = connection_flags::MASQUERADE | connection_flags::SNAT;
        self.flags & connection_flags::REPLY != 0
            && (self.flags & connection_flags::DSR != 0 || self.flags & kept == connection_flags::MASQUERADE)
    }

    /// True when an end of it said goodbye.
    #[must_use]
    #[inline(always)]
    pub const fn has_goodbye(&self) -> bool {
        self.flags & connection_flags::CLOSING != 0 || self.closed_by != 0
    }
}

const _: () = assert!(size_of::<Connection<V4>>() == 32 && size_of::<Connection<V6>>() == 56);

/// A direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry<A> {
    /// The tuple as it arrives.
    pub key: ConnectionKey<A>,
    /// What is known of it.
    pub connection: Connection<A>,
}

const _: () = assert!(size_of::<Entry<V4>>() == 48 && size_of::<Entry<V6>>() == 96);

/// Entries of a bucket: as many as have their words in one cache line.
pub const WAYS: usize = 8;

/// Entries that are looked for together. Value of `connections4` and `connections6`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bucket<A> {
    /// What tells entries apart; what is in them means nothing without it.
    pub words: [u64; WAYS],
    /// The entries.
    pub entries: [Entry<A>; WAYS],
}

// Whole cache lines, so that each begins with one.
const _: () = assert!(size_of::<Bucket<V4>>() == 448 && size_of::<Bucket<V6>>() == 832);
