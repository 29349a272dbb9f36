//! Addresses and the identity behind them.
//!
//! Workloads and nodes are in an exact hash, `identities4` and `identities6`, because a longest-match trie costs two to five
//! times as much; only prefixes that have one are in a trie, `cidrs4` and `cidrs6`, which is asked for addresses that are not in the hash, and for
//! what is told of packets only: a prefix is nobody's address, and decides nothing. In front of the hash of IPv4 are lines that hold most of
//! it ([`IdentityLine`]).

use crate::{V4, V6};

/// Bits of [`Identity::flags`].
pub mod identity_flags {
    /// A workload of this node.
    pub const LOCAL: u16 = 1 << 0;
    /// An address of a node of the mesh.
    pub const NODE: u16 = 1 << 1;
    /// An address of this very node.
    pub const THIS_NODE: u16 = 1 << 2;
    /// Reached through a tunnel now.
    pub const TUNNEL: u16 = 1 << 3;
    /// Bits that are no identity's, but in the first way of an [`IdentityLine`](crate::IdentityLine) the line's.
    pub const LINE: u16 = !(CHANGE - 1);
    /// Added when a change of the line begins and when it ends: the number is odd in between.
    pub const CHANGE: u16 = 1 << 4;
    /// Not all addresses of the line are in it.
    pub const MORE: u16 = 1 << 15;
}

/// Value of `identities4`, `identities6`, `cidrs4` and `cidrs6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Numeric security identity.
    pub identity: u32,
    /// A workload's element in `next_hops`, by which the fast path reaches it: that of its link with [`identity_flags::LOCAL`],
    /// otherwise the one on the way to its node; 0: through the stack.
    pub way: u32,
    /// Bits of [`identity_flags`].
    pub flags: u16,
    /// Id of its cluster; 0: unknown.
    pub cluster: u16,
}

const _: () = assert!(size_of::<Identity>() == 12);

/// Ways of an [`IdentityLine`].
pub const IDENTITY_WAYS: usize = 4;

/// Value of `identity_lines4`, a cache line: some of the addresses that `meshd_steps::identity::home` puts there, and what is known of each.
/// User space alone writes it, and says that it does (`identity_flags::CHANGE`); an address of 0 is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityLine {
    /// Addresses.
    pub addresses: [V4; IDENTITY_WAYS],
    /// What is known of each.
    pub identities: [Identity; IDENTITY_WAYS],
}

const _: () = assert!(size_of::<IdentityLine>() == 64);

/// Values of the tries `mesh4` and `mesh6`: what masquerade thinks of an address.
pub mod mesh_flags {
    /// A workload of this node may have it.
    pub const OWN: u32 = 1 << 0;
    /// Inside the mesh, or excluded by configuration: the source stays.
    pub const KEEP_SOURCE: u32 = 1 << 1;
}

/// Key of the tries `cidrs4`, `cidrs6`, `mesh4` and `mesh6`, as the kernel wants it: the length first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CidrKey<A> {
    /// Significant bits of the address.
    pub length: u32,
    /// The address; bits beyond the length are ignored.
    pub address: A,
}

const _: () = assert!(size_of::<CidrKey<V4>>() == 8 && size_of::<CidrKey<V6>>() == 20);
