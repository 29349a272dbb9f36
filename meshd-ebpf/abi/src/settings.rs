//! What the programs know of their node.

use crate::{V4, V6};

/// Bits of [`Settings::flags`].
pub mod settings_flags {
    /// Traffic of workloads that leaves the mesh gets this node's address.
    pub const MASQUERADE: u32 = 1 << 0;
    /// Flow events are wanted.
    pub const EVENTS: u32 = 1 << 1;
    /// The kernel knows `BPF_F_IPV6` of `bpf_l4_csum_replace` (6.16 and newer).
    pub const IPV6_CHECKSUM_FLAG: u32 = 1 << 2;
    /// Services reach backends of other nodes by direct server return, and other nodes reach ours: by an option of the network
    /// header, unless another bit says otherwise.
    pub const DSR: u32 = 1 << 16;
    /// By another IP header around the packet.
    pub const DSR_IPIP: u32 = 1 << 17;
    /// By Geneve around the packet.
    pub const DSR_GENEVE: u32 = 1 << 18;
    /// Frames of tunnels are written as Geneve, otherwise as VXLAN.
    pub const TUNNEL_GENEVE: u32 = 1 << 24;
    /// Frames of a tunnel from others than nodes of the mesh end here.
    pub const TUNNEL_FILTER: u32 = 1 << 25;
    /// Workloads of different nodes reach each other past routing and packet filter, where their identities have a way.
    pub const FAST_PATH: u32 = 1 << 26;
}

/// The one element of `settings`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Source of packets that this node sends for others; zero: IPv4 cannot be translated.
    pub source4: V4,
    /// The same of IPv6.
    pub source6: V6,
    /// First port of translated sources, host byte order.
    pub ports: u16,
    /// Number of these ports; 0: none.
    pub port_count: u16,
    /// Bits of [`settings_flags`].
    pub flags: u32,
    /// Seed of every choice by hash, equal on all nodes of the mesh.
    pub seed: u32,
    /// Source address that a workload sees when it reaches itself through a service.
    pub loopback4: V4,
    /// The same of IPv6.
    pub loopback6: V6,
    /// Flow events of a kind that may be written in one tick on one CPU.
    pub events_per_tick: u32,
    /// The tunnel's link; 0: there is none, and frames of tunnels are none of ours.
    pub tunnel_link: u32,
    /// Number in the header of what nobody has an identity for.
    pub tunnel_vni: u32,
    /// UDP port of the tunnel, host byte order.
    pub tunnel_port: u16,
    /// Link-layer address of the tunnel's link.
    pub tunnel_mac: [u8; 6],
}

const _: () = assert!(size_of::<Settings>() == 72);
