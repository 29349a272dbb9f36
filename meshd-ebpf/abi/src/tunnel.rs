//! Tunnels: the far ends of this node's, and the numbers that frames carry.

use crate::V6;

/// Element of `tunnels`: a node that packets go to inside of others. Element 0 is never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// The node's address, one of IPv4 in the form of [`V6::mapped`]; zero: the element is unused.
    pub address: V6,
    /// Its element in `next_hops`; 0: ask the kernel.
    pub next_hop: u32,
    /// Largest packet that goes in.
    pub mtu: u16,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<Tunnel>() == 24 && align_of::<Tunnel>() == 4);

impl Tunnel {
    /// Link-layer address that frames have inside of the node as those of a neighbor: by it a far end is a next hop like any other.
    #[must_use]
    #[inline(always)]
    pub const fn link_address(index: u32) -> [u8; 6] {
        let [a, b, c, d] = index.to_be_bytes();
        // Locally administered, and of nobody's device.
        [0x02, 0x4d, a, b, c, d]
    }

    /// The element that such an address names.
    #[must_use]
    #[inline(always)]
    pub const fn index([_, _, a, b, c, d]: [u8; 6]) -> u32 {
        u32::from_be_bytes([a, b, c, d])
    }
}

/// The highest number that a tunnel's header has room for.
pub const VNI_MAX: u32 = 0x00ff_ffff;

/// Identity of what a node itself sends, to others.
pub const REMOTE_NODE: u32 = 6;
