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
//! | `0x0020` | [`mark::KEEP_SOURCE`] | stays inside the mesh: masquerade leaves the source address alone |
//! | `0x0040` | [`mark::TRANSLATED`] | a service program already chose the backend |
//! | `0x0060` | [`mark::PAST`] | a program sends it past the stack: nothing is left to be done on its way out |
//! | `0x0010`, `0x0080` | reserved | always written as zero |
//!
//! The neighbours' bits are elsewhere: kube-proxy uses `0x4000` and `0x8000`, Cilium `0x0f00` and the upper half, Calico
//! by default `0xffff0000`.

#![no_std]
#![forbid(unsafe_code)]

mod backend;
mod connection;
mod counter;
mod direct;
mod event;
mod family;
mod fragment;
mod frontend;
mod identity;
mod link;
mod policy;
mod range;
mod service;
mod settings;
mod socket;
mod tunnel;

pub use backend::{Backend, BackendState, NeighborKey, NextHop, hop_flags};
pub use connection::{Bucket, Connection, ConnectionKey, Entry, Tuple, WAYS, closed_by, connection_flags};
pub use counter::{Counter, Reason};
pub use direct::{Direct, ReceiverKey};
pub use event::{FlowEvent, event_kind, event_place};
pub use family::{Address, V4, V6};
pub use fragment::{Fragment, FragmentKey};
pub use frontend::{FRONTEND_WORDS, frontend_slot};
pub use identity::{CidrKey, IDENTITY_WAYS, Identity, IdentityLine, identity_flags, mesh_flags};
pub use link::{LINKS, Link, link_flags};
pub use policy::{Policy, PolicyKey, policy_direction, policy_verdict};
pub use range::RangeKey;
pub use service::{
    AffinityKey, AffinityValue, MAGLEV_CHUNK, MAGLEV_CHUNK_BITS, NO_TABLE, Scope, Service, ServiceKey, service_flags,
};
pub use settings::{Settings, settings_flags};
pub use socket::{SocketClient, SocketKey, SocketValue};
pub use tunnel::{REMOTE_NODE, Tunnel, VNI_MAX};

/// Folder below which everything that meshd pins lives; what is outside of it is foreign.
pub const BPFFS_FOLDER: &str = "/sys/fs/bpf/meshd";

/// Version of all layouts in this crate, part of every pin's path.
pub const LAYOUT_VERSION: u32 = 6;

/// The bits of the packet mark that belong to meshd; see the table at the top of the crate.
pub mod mark {
    /// All bits of ours. Set with `mark = (mark & !MASK) | bits`.
    pub const MASK: u32 = 0x00f0;
    /// Must not be masqueraded.
    pub const KEEP_SOURCE: u32 = 0x0020;
    /// Went through service translation.
    pub const TRANSLATED: u32 = 0x0040;

    /// Both: nothing is left to be done.
    pub const PAST: u32 = KEEP_SOURCE | TRANSLATED;

    const _: () = assert!((KEEP_SOURCE | TRANSLATED) & !MASK == 0);
    const _: () = assert!(KEEP_SOURCE & TRANSLATED == 0);
}
