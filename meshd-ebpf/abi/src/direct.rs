//! Direct server return: a backend of another node sees the client itself, and answers it without the node that was asked.

use crate::{V4, V6};

/// Element of `direct4` and `direct6`, by backend index: the node of a backend that may be reached this way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direct<A> {
    /// The node's address; zero: the backend gets translated sources.
    pub node: A,
    /// The node's element in `next_hops`; 0: ask the kernel.
    pub next_hop: u32,
}

const _: () = assert!(size_of::<Direct<V4>>() == 8 && size_of::<Direct<V6>>() == 20);

/// Key of `receivers4` and `receivers6`: a backend of this node, and a service that may send to it from other nodes. The value is
/// the backend's index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReceiverKey<A> {
    /// The backend's address.
    pub backend: A,
    /// The service's number on this node.
    pub service: u32,
    /// The backend's port, network byte order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<ReceiverKey<V4>>() == 12 && size_of::<ReceiverKey<V6>>() == 24);
