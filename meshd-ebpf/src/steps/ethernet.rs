//! The Ethernet header.

use aya_ebpf::programs::XdpContext;
use meshd_abi::ProtocolClass;

/// Destination, source, type.
const HEADER_LEN: usize = 14;
/// Where the two type bytes are.
const TYPE_OFFSET: usize = 12;

/// A frame's bounds, read from the context once.
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// Takes the bounds of the frame that the program runs for.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    /// Length in bytes of the linear part, Ethernet header included.
    #[inline(always)]
    pub fn len(&self) -> u64 {
        (self.end - self.start) as u64
    }

    /// The class of the frame's payload by its type field. A frame too short for a header is
    /// [`ProtocolClass::Other`], and so is one that still carries a VLAN tag.
    #[inline(always)]
    pub fn protocol_class(&self) -> ProtocolClass {
        if self.start + HEADER_LEN > self.end {
            return ProtocolClass::Other;
        }
        // SAFETY: the comparison above proved that the 14 bytes from `start` lie inside the frame, and the array of
        // bytes has no alignment to keep.
        let ethertype = unsafe { *((self.start + TYPE_OFFSET) as *const [u8; 2]) };
        ProtocolClass::from_ethertype(u16::from_be_bytes(ethertype))
    }
}
