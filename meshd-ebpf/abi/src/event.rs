//! Flow events: what the programs tell about connections and drops.

/// Kinds of [`FlowEvent::kind`].
pub mod event_kind {
    /// A connection began.
    pub const NEW: u8 = 1;
    /// A connection was closed by one of its ends.
    pub const CLOSE: u8 = 2;
    /// A packet was dropped.
    pub const DROP: u8 = 3;
}

/// Number of kinds, zero included.
pub const EVENT_KINDS: usize = 4;

/// A record in the ring buffer `events`. IPv4 addresses are in the first word.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEvent {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// Source as it arrived.
    pub source: [u32; 4],
    /// Destination as it arrived.
    pub destination: [u32; 4],
    /// Destination after translation; zero without one.
    pub backend: [u32; 4],
    /// Identity of the source; 0: unknown.
    pub source_identity: u32,
    /// Identity of the destination; 0: unknown.
    pub destination_identity: u32,
    /// The service's number; 0: none.
    pub service: u32,
    /// Link it arrived at or leaves through.
    pub link: u32,
    /// Source port, network byte order.
    pub source_port: u16,
    /// Destination port, network byte order.
    pub destination_port: u16,
    /// The backend's port, network byte order.
    pub backend_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// One of [`event_kind`].
    pub kind: u8,
    /// A [`crate::Reason`].
    pub reason: u8,
    /// 0: arriving at this node or from a workload; 1: leaving.
    pub direction: u8,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// Length of the packet in bytes.
    pub length: u32,
}

const _: () = assert!(size_of::<FlowEvent>() == 88 && align_of::<FlowEvent>() == 8);
