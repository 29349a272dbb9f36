//! Fragments: the ports of a datagram whose first fragment was seen.

use crate::{V4, V6};

/// Key of `fragments4` and `fragments6` (RFC 791 section 3.2, RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Identification, network byte order; IPv4's in the lower half.
    pub id: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<FragmentKey<V4>>() == 16 && size_of::<FragmentKey<V6>>() == 40);

/// Value of `fragments4` and `fragments6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Source port, network byte order.
    pub source_port: u16,
    /// Destination port, network byte order.
    pub destination_port: u16,
}

const _: () = assert!(size_of::<Fragment>() == 4);
