//! Flow events: what the programs tell about connections and drops.
//!
//! One record says what a packet looked like when it came and when it left, who is behind both ends, and what was decided, so that
//! nobody has to ask again what the tables held at that moment. A connection makes a record when it begins, when it moves to another
//! backend and when an end of it closes it; packets in between make none.

/// Kinds of [`FlowEvent::kind`].
pub mod event_kind {
    /// A connection began.
    pub const NEW: u8 = 1;
    /// The first of its ends closed a connection; of one that nobody translates, each end that does.
    pub const CLOSE: u8 = 2;
    /// A packet was dropped.
    pub const DROP: u8 = 3;
    /// Something else was decided about a connection that goes on: another backend.
    pub const CHANGE: u8 = 4;
}

/// Values of [`FlowEvent::place`]: where the packet was seen.
pub mod event_place {
    /// At an uplink, coming in.
    pub const FROM_NETWORK: u8 = 1;
    /// At an uplink, going out.
    pub const TO_NETWORK: u8 = 2;
    /// At the link of a workload, coming from it.
    pub const FROM_WORKLOAD: u8 = 3;
    /// At the link of a workload, going to it.
    pub const TO_WORKLOAD: u8 = 4;
}

/// A record in the ring buffer `events`. IPv4 addresses are in the first word. Ports are in network byte order; those of an ICMP echo
/// are its identifier.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEvent {
    /// Nanoseconds of the coarse monotonic clock.
    pub time: u64,
    /// Source as it arrived.
    pub source: [u32; 4],
    /// Destination as it arrived: of a service, its frontend.
    pub destination: [u32; 4],
    /// Source after translation; the same without one.
    pub new_source: [u32; 4],
    /// Destination after translation, of a service its backend; the same without one.
    pub new_destination: [u32; 4],
    /// Identity of the source as it arrived; 0: unknown.
    pub source_identity: u32,
    /// Identity of the destination after translation; 0: unknown.
    pub destination_identity: u32,
    /// The service's number; 0: none.
    pub service: u32,
    /// Link it arrived at or leaves through.
    pub link: u32,
    /// Length of the packet in bytes, link-layer header included.
    pub length: u32,
    /// Source port as it arrived.
    pub source_port: u16,
    /// Destination port as it arrived.
    pub destination_port: u16,
    /// Source port after translation.
    pub new_source_port: u16,
    /// Destination port after translation.
    pub new_destination_port: u16,
    /// Id of the source's cluster; 0: unknown.
    pub source_cluster: u16,
    /// Id of the destination's cluster; 0: unknown.
    pub destination_cluster: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// One of [`event_kind`].
    pub kind: u8,
    /// A [`crate::Reason`].
    pub reason: u8,
    /// One of [`event_place`].
    pub place: u8,
    /// TCP flags of the packet.
    pub tcp_flags: u8,
    /// [`crate::connection_flags`] of its connection; 0: it has none.
    pub connection_flags: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<FlowEvent>() == 112 && align_of::<FlowEvent>() == 8);
