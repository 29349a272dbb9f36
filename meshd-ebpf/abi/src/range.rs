//! Source ranges: who may use a service from outside.

use crate::{V4, V6};

/// Key of the tries `ranges4` and `ranges6`, as the kernel wants it: the length first. What is in it is let in; the value is 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeKey<A> {
    /// Significant bits of what follows: [`RangeKey::SERVICE_BITS`] and those of the prefix.
    pub length: u32,
    /// The service's number.
    pub service: u32,
    /// The client's address, or a prefix; bits beyond the length are ignored.
    pub address: A,
}

const _: () = assert!(size_of::<RangeKey<V4>>() == 12 && size_of::<RangeKey<V6>>() == 24);

impl<A> RangeKey<A> {
    /// Bits of the service's number, all of which count.
    pub const SERVICE_BITS: u32 = u32::BITS;
}
