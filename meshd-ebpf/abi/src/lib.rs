//! The bytes that the daemon and its kernel programs agree on.
//!
//! Both sides compile this crate: the daemon as ordinary Rust, the programs for the BPF target. A type is in here when it
//! is a map key, a map value or an event. Rules: `repr(C)`, every byte named (no implicit padding), integers in host order
//! unless the field's type says otherwise, and an assertion of size and alignment beside the type, so that a change that
//! would make an old pinned map unreadable does not compile unnoticed.
//!
//! # Names under the bpf file system
//!
//! Pins live in `BPFFS_FOLDER/v<LAYOUT_VERSION>/`. The kernel reuses a pinned map without looking at what its bytes mean,
//! so a change of any layout here raises [`LAYOUT_VERSION`]; the folder of the version before is then migrated or removed
//! by the daemon.
//!
//! # Packet mark bits
//!
//! `skb->mark` is shared by everybody on a node. meshd owns the bits of [`mark::MASK`] and touches no other:
//!
//! | bits | name | meaning |
//! |---|---|---|
//! | `0x0010` | [`mark::DECAPSULATED`] | arrived in a tunnel of ours and passed the check of the outer address |
//! | `0x0020` | [`mark::KEEP_SOURCE`] | stays inside the mesh: masquerade leaves the source address alone |
//! | `0x0040` | [`mark::TRANSLATED`] | a service program already chose the backend |
//! | `0x0080` | reserved | always written as zero |
//!
//! The neighbours' bits are elsewhere: kube-proxy uses `0x4000` and `0x8000`, Cilium `0x0f00` and the upper half, Calico
//! by default `0xffff0000`.

#![no_std]
#![forbid(unsafe_code)]

/// Folder below which everything that meshd pins lives; what is outside of it is foreign.
pub const BPFFS_FOLDER: &str = "/sys/fs/bpf/meshd";

/// Version of all layouts in this crate, part of every pin's path.
pub const LAYOUT_VERSION: u32 = 1;

/// The bits of the packet mark that belong to meshd; see the table at the top of the crate.
pub mod mark {
    /// All bits of ours. Set with `mark = (mark & !MASK) | bits`.
    pub const MASK: u32 = 0x00f0;
    /// Arrived in a tunnel of ours.
    pub const DECAPSULATED: u32 = 0x0010;
    /// Must not be masqueraded.
    pub const KEEP_SOURCE: u32 = 0x0020;
    /// Went through service translation.
    pub const TRANSLATED: u32 = 0x0040;

    const _: () = assert!((DECAPSULATED | KEEP_SOURCE | TRANSLATED) & !MASK == 0);
    const _: () = assert!(DECAPSULATED & KEEP_SOURCE == 0);
    const _: () = assert!((DECAPSULATED | KEEP_SOURCE) & TRANSLATED == 0);
}

/// Packets and bytes counted on one CPU for one [`ProtocolClass`]. Value of the map `packets`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Frames seen.
    pub packets: u64,
    /// Their length in bytes, Ethernet header included, frame check sequence not.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);
const _: () = assert!(align_of::<Counter>() == 8);

impl Counter {
    /// The sum of two counters, which is how the copies of several CPUs become one figure. Wraps like the counters
    /// themselves do.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { packets: self.packets.wrapping_add(other.packets), bytes: self.bytes.wrapping_add(other.bytes) }
    }
}

/// What a frame carries, by its Ethernet type. The discriminant is the index into the map `packets`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtocolClass {
    /// IPv4, Ethernet type 0x0800.
    Ipv4 = 0,
    /// IPv6, Ethernet type 0x86dd.
    Ipv6 = 1,
    /// ARP, Ethernet type 0x0806.
    Arp = 2,
    /// Everything else: other types, VLAN-tagged frames, frames shorter than an Ethernet header.
    Other = 3,
}

impl ProtocolClass {
    /// Number of classes, which is the number of elements of the map `packets`.
    pub const COUNT: u32 = 4;

    /// All classes in index order.
    pub const ALL: [Self; Self::COUNT as usize] = [Self::Ipv4, Self::Ipv6, Self::Arp, Self::Other];

    /// The class of an Ethernet type given in host byte order (IEEE 802 numbers, as registered by IANA).
    #[must_use]
    #[inline(always)]
    pub const fn from_ethertype(ethertype: u16) -> Self {
        match ethertype {
            0x0800 => Self::Ipv4,
            0x86dd => Self::Ipv6,
            0x0806 => Self::Arp,
            _ => Self::Other,
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < ProtocolClass::ALL.len() {
        assert!(ProtocolClass::ALL[index] as usize == index);
        index += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethertypes_map_to_their_class() {
        let cases = [
            (0x0800, ProtocolClass::Ipv4),
            (0x86dd, ProtocolClass::Ipv6),
            (0x0806, ProtocolClass::Arp),
            (0x8100, ProtocolClass::Other),
            (0x88a8, ProtocolClass::Other),
            (0x0008, ProtocolClass::Other),
            (0, ProtocolClass::Other),
        ];
        for (ethertype, class) in cases {
            assert_eq!(ProtocolClass::from_ethertype(ethertype), class, "{ethertype:#06x}");
        }
    }

    #[test]
    fn counters_add_up_and_wrap() {
        let almost_full = Counter { packets: u64::MAX, bytes: 10 };
        let one = Counter { packets: 1, bytes: 60 };
        assert_eq!(almost_full.plus(one), Counter { packets: 0, bytes: 70 });
    }
}
