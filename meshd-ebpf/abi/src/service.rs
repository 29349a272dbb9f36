//! Services: what a destination stands for, and how a backend is chosen.
//!
//! A packet's destination is looked up once, in `services4` or `services6`. User space has expanded everything before: each
//! frontend address, each node address of a NodePort, and the two scopes.

use crate::{Address, V4, V6};

/// From where a service is asked. The same frontend can have other backends for each, because of traffic policies.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// From outside of this node, at an uplink.
    External = 0,
    /// From a workload or a socket of this node.
    Internal = 1,
}

/// Key of `services4` and `services6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey<A> {
    /// Frontend address.
    pub address: A,
    /// Frontend port, network byte order.
    pub port: u16,
    /// IP protocol number: 6, 17 or 132.
    pub protocol: u8,
    /// A [`Scope`].
    pub scope: u8,
}

const _: () = assert!(size_of::<ServiceKey<V4>>() == 8 && size_of::<ServiceKey<V6>>() == 20);

/// Bits of [`Service::flags`].
pub mod service_flags {
    /// Remote backends get the packet with the client's address (DSR) instead of this node's.
    pub const DSR: u16 = 1 << 0;
    /// Only clients of `source_ranges` may use it.
    pub const SOURCE_RANGES: u16 = 1 << 1;
    /// The hash covers the client's address only, so that all its connections meet the same backend.
    pub const BY_SOURCE: u16 = 1 << 2;
    /// Connections of removed backends are ended instead of kept.
    pub const KILL_REMOVED: u16 = 1 << 3;
}

/// [`Service::table`] of a service without a Maglev table.
pub const NO_TABLE: u32 = u32::MAX;

/// Slots of one element of `maglev`, as a power of two of which the table uses a prime number.
pub const MAGLEV_CHUNK_BITS: u32 = 14;
/// See [`MAGLEV_CHUNK_BITS`].
pub const MAGLEV_CHUNK: usize = 1 << MAGLEV_CHUNK_BITS;

/// Value of `services4` and `services6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its number, for counters, affinity and events.
    pub id: u32,
    /// First chunk of its Maglev table in `maglev`; [`NO_TABLE`]: the hash picks a member directly.
    pub table: u32,
    /// Slots of the table: 16381 or 65521; with [`NO_TABLE`] the number of members.
    pub slots: u32,
    /// Where its members begin in `members`; a slot holds an offset to it.
    pub members: u32,
    /// How long a client stays with its backend, in ticks; 0: no session affinity.
    pub affinity: u32,
    /// Members, 0 when there is nobody to send to.
    pub count: u16,
    /// Bits of [`service_flags`].
    pub flags: u16,
}

const _: () = assert!(size_of::<Service>() == 24 && align_of::<Service>() == 4);

/// Key of `affinity4` and `affinity6`: which backend a client had last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityKey<A> {
    /// The client.
    pub client: A,
    /// The service.
    pub service: u32,
}

const _: () = assert!(size_of::<AffinityKey<V4>>() == 8 && size_of::<AffinityKey<V6>>() == 20);

/// Value of `affinity4` and `affinity6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityValue {
    /// Index of the backend.
    pub backend: u32,
    /// When it was used last, in ticks.
    pub used: u32,
}

const _: () = assert!(size_of::<AffinityValue>() == 8);

impl<A: Address> ServiceKey<A> {
    /// The key of a destination.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: A, port: u16, protocol: u8, scope: Scope) -> Self {
        Self { address, port, protocol, scope: scope as u8 }
    }
}
