//! Backends and the way to them.

use crate::{Tunnel, V4, V6};

/// What a backend may get.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendState {
    /// The element is unused.
    #[default]
    Free = 0,
    /// New connections and known ones.
    Active = 1,
    /// Known connections only.
    Terminating = 2,
    /// It was removed, and its connections may go on.
    Removed = 3,
    /// It was removed, and its connections are to end.
    Killed = 4,
}

/// Element of `backends4` and `backends6`, by backend index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend<A> {
    /// Its address.
    pub address: A,
    /// Its element in `next_hops`; 0: ask the kernel.
    pub next_hop: u32,
    /// Its port, network byte order.
    pub port: u16,
    /// A [`BackendState`].
    pub state: u8,
    /// 1: a workload of this node.
    pub local: u8,
    /// Number of the service it serves. What names a backend by its index (a slot, a remembered client) is believed only if this
    /// is the service that was asked: indexes are used again.
    pub owner: u32,
}

const _: () = assert!(size_of::<Backend<V4>>() == 16 && size_of::<Backend<V6>>() == 28);

/// Element of `next_hops`: a neighbor of this node. Element 0 is never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// Link to leave through; 0: the neighbor is not known now, ask the kernel.
    pub link: u32,
    /// Largest IP packet of the link.
    pub mtu: u16,
    /// The neighbor's link-layer address.
    pub destination: [u8; 6],
    /// The link's own.
    pub source: [u8; 6],
    /// Bits of [`hop_flags`].
    pub flags: u16,
}

impl NextHop {
    /// With a far end of the tunnel as neighbor its element in `tunnels`; 0: it is none.
    #[must_use]
    #[inline(always)]
    pub const fn tunnel(&self) -> u32 {
        if self.flags & hop_flags::TUNNEL == 0 { 0 } else { Tunnel::index(self.destination) }
    }
}

/// Bits of [`NextHop::flags`].
pub mod hop_flags {
    /// The link has another end that packets can be handed to at once (veth, netkit).
    pub const PEER: u16 = 1 << 0;
    /// The neighbor is a far end of the tunnel, and its link-layer address says which one.
    pub const TUNNEL: u16 = 1 << 1;
}

const _: () = assert!(size_of::<NextHop>() == 20 && align_of::<NextHop>() == 4);

/// Key of `neighbors`: a link-layer address on a link. The value is the neighbor's element in `next_hops`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighborKey {
    /// The link.
    pub link: u32,
    /// The neighbor's link-layer address.
    pub address: [u8; 6],
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<NeighborKey>() == 12);
