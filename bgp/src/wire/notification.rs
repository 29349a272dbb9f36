//! The error report that closes a session (RFC 4271 section 4.5).

/// What a NOTIFICATION message says.
///
/// The data field quotes the part of the message that was wrong, as each error's RFC section defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Error code.
    pub code: ErrorCode,
    /// Error subcode; its meaning depends on the code. 0 is "unspecific".
    pub subcode: u8,
    /// Data field; may be empty.
    pub data: Vec<u8>,
}

/// Error codes (RFC 4271 section 4.5, RFC 7313 section 5, RFC 9687 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ErrorCode {
    /// Message Header Error.
    MessageHeader = 1,
    /// OPEN Message Error.
    Open = 2,
    /// UPDATE Message Error.
    Update = 3,
    /// Hold Timer Expired.
    HoldTimer = 4,
    /// Finite State Machine Error.
    StateMachine = 5,
    /// Cease.
    Cease = 6,
    /// ROUTE-REFRESH Message Error.
    RouteRefresh = 7,
    /// Send Hold Timer Expired.
    SendHoldTimer = 8,
}
