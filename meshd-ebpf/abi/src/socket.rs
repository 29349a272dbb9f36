//! Sockets that were connected to a service at connect time.

use crate::{V4, V6};

/// Key of `sockets4` and `sockets6`: a socket and whom it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketKey<A> {
    /// The socket's cookie, lower half.
    pub cookie_low: u32,
    /// The socket's cookie, upper half.
    pub cookie_high: u32,
    /// The backend's address.
    pub address: A,
    /// The backend's port, network byte order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<SocketKey<V4>>() == 16 && size_of::<SocketKey<V6>>() == 28);

/// Value of `sockets4` and `sockets6`: whom the socket asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketValue<A> {
    /// The frontend's address.
    pub address: A,
    /// The service's number.
    pub service: u32,
    /// Index of the backend.
    pub backend: u32,
    /// The frontend's port, network byte order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<SocketValue<V4>>() == 16 && size_of::<SocketValue<V6>>() == 28);

/// Key of `socket_affinity`: whose sockets chose a backend. A socket that connects has no address yet, so clients are told apart by
/// the network namespace they are in: the node itself is one, and so is each workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketClient {
    /// The namespace's cookie, lower half.
    pub namespace_low: u32,
    /// The namespace's cookie, upper half.
    pub namespace_high: u32,
    /// The service's number.
    pub service: u32,
}

const _: () = assert!(size_of::<SocketClient>() == 12);
