//! Links that XDP runs on.

/// Elements of `links`. A link's is its index modulo this number; of two with the same element one goes without, and its packets are
/// left to TC.
pub const LINKS: u32 = 256;

/// Bits of [`Link::flags`].
pub mod link_flags {
    /// XDP runs in the stack, which can send by any link.
    pub const GENERIC: u16 = 1 << 0;
    /// What XDP sends back by the link arrives. A veth whose other end does not wait for it drops it without a word.
    pub const RETURNS: u16 = 1 << 1;
    /// The driver sends what XDP gives it from other links. Others drop that without a word.
    pub const TRANSMITS: u16 = 1 << 2;
}

/// Element of `links`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index; 0: none.
    pub index: u32,
    /// Its link-layer address. A link that listens to everything brings frames for others too.
    pub address: [u8; 6],
    /// Bits of [`link_flags`].
    pub flags: u16,
}

const _: () = assert!(size_of::<Link>() == 12 && align_of::<Link>() == 4);
