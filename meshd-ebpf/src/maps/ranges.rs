//! Who may use a service from outside.

use aya_ebpf::{btf_maps::LpmTrie, helpers::bpf_map_lookup_elem, macros::btf_map};
use meshd_abi::{RangeKey, V4, V6};

/// What follows the length in a [`RangeKey`].
#[repr(C)]
struct Client<A> {
    service: u32,
    address: A,
}

#[btf_map]
static RANGES4: LpmTrie<Client<V4>, u32, 65_536> = LpmTrie::new();
#[btf_map]
static RANGES6: LpmTrie<Client<V6>, u32, 65_536> = LpmTrie::new();

/// The source ranges of one family.
pub trait Ranges: Copy {
    /// True when an address is inside of a range of the service.
    fn is_in_range(service: u32, address: &Self) -> bool;
}

macro_rules! ranges {
    ($family:ty, $ranges:ident) => {
        impl Ranges for $family {
            #[inline(always)]
            fn is_in_range(service: u32, address: &Self) -> bool {
                let length = RangeKey::<Self>::SERVICE_BITS + size_of::<Self>() as u32 * 8;
                let key = RangeKey { length, service, address: *address };
                // SAFETY: `RangeKey` has the layout of the kernel's key. The value is not looked at: its presence says it.
                unsafe {
                    !bpf_map_lookup_elem((&raw const $ranges).cast_mut().cast(), (&raw const key).cast()).is_null()
                }
            }
        }
    };
}

ranges!(V4, RANGES4);
ranges!(V6, RANGES6);
