//! The error report that closes a session (RFC 4271 section 4.5).
//!
//! Decoding never refuses what it can describe: the session is over either way, and whatever the peer said is the best
//! hint an operator gets.

use std::fmt;

use thiserror::Error;

use super::header::{HEADER_LEN, Header, LengthLimit, MessageType};

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

/// Error codes (RFC 4271 section 4.5, RFC 7313 section 5, RFC 9687).
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

/// Subcodes of an OPEN Message Error.
pub mod open_error {
    /// None of the others.
    pub const UNSPECIFIC: u8 = 0;
    /// The data is the version we speak, two octets.
    pub const UNSUPPORTED_VERSION: u8 = 1;
    /// Not the AS that was configured, or 0.
    pub const BAD_PEER_AS: u8 = 2;
    /// 0, or ours.
    pub const BAD_IDENTIFIER: u8 = 3;
    /// A parameter other than capabilities.
    pub const UNSUPPORTED_PARAMETER: u8 = 4;
    /// 1 or 2 seconds, or less than what was configured.
    pub const UNACCEPTABLE_HOLD_TIME: u8 = 6;
    /// RFC 5492: the data is the capability that is missing.
    pub const UNSUPPORTED_CAPABILITY: u8 = 7;
    /// RFC 9234.
    pub const ROLE_MISMATCH: u8 = 11;
}

/// Subcodes of an UPDATE Message Error.
pub mod update_error {
    /// Lengths that contradict each other.
    pub const MALFORMED_LIST: u8 = 1;
    /// The data is the attribute.
    pub const UNRECOGNIZED_WELL_KNOWN: u8 = 2;
    /// The data is the code.
    pub const MISSING_WELL_KNOWN: u8 = 3;
    /// The data is the attribute.
    pub const FLAGS: u8 = 4;
    /// The data is the attribute.
    pub const LENGTH: u8 = 5;
    /// The data is the attribute.
    pub const INVALID_ORIGIN: u8 = 6;
    /// The data is the attribute.
    pub const INVALID_NEXT_HOP: u8 = 8;
    /// The data is the attribute.
    pub const OPTIONAL_ATTRIBUTE: u8 = 9;
    /// A prefix in one of the two base fields.
    pub const INVALID_NETWORK: u8 = 10;
    /// Nothing that could be quoted.
    pub const MALFORMED_AS_PATH: u8 = 11;
}

/// Subcodes of a Finite State Machine Error (RFC 6608).
pub mod state_machine_error {
    /// A message that does not belong into `OpenSent`.
    pub const IN_OPEN_SENT: u8 = 1;
    /// A message that does not belong into `OpenConfirm`.
    pub const IN_OPEN_CONFIRM: u8 = 2;
    /// A message that does not belong into `Established`.
    pub const IN_ESTABLISHED: u8 = 3;
}

/// Subcodes of Cease (RFC 4486, RFC 8538, RFC 9384).
pub mod cease {
    /// The data is AFI, SAFI and the limit.
    pub const MAXIMUM_PREFIXES: u8 = 1;
    /// The data may be a message for the peer's operator.
    pub const ADMINISTRATIVE_SHUTDOWN: u8 = 2;
    /// The peer is no longer configured.
    pub const PEER_DECONFIGURED: u8 = 3;
    /// The data may be a message for the peer's operator.
    pub const ADMINISTRATIVE_RESET: u8 = 4;
    /// The connection is not wanted.
    pub const CONNECTION_REJECTED: u8 = 5;
    /// A change that needs a new session.
    pub const CONFIGURATION_CHANGE: u8 = 6;
    /// The other connection won.
    pub const CONNECTION_COLLISION: u8 = 7;
    /// No memory, no place.
    pub const OUT_OF_RESOURCES: u8 = 8;
    /// The data is the code, subcode and data of what ends the session for good (RFC 8538).
    pub const HARD_RESET: u8 = 9;
    /// RFC 9384.
    pub const BFD_DOWN: u8 = 10;
}

/// Subcodes of a ROUTE-REFRESH Message Error.
pub mod route_refresh_error {
    /// The data is the whole message.
    pub const INVALID_LENGTH: u8 = 1;
}

/// Octets of a shutdown communication at most (RFC 9003 section 2).
pub const COMMUNICATION_LEN_MAX: usize = 255;

/// A NOTIFICATION that cannot be taken apart. Nothing is answered (RFC 4271 section 6.4).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotificationError {
    /// Less than code and subcode.
    #[error("notification of {0} octets has no code and subcode")]
    Short(usize),
    /// A code that no RFC defines.
    #[error("notification has unknown code {code} with subcode {subcode}")]
    Code {
        /// The code.
        code: u8,
        /// The subcode.
        subcode: u8,
    },
}

impl ErrorCode {
    /// All codes, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::MessageHeader,
        Self::Open,
        Self::Update,
        Self::HoldTimer,
        Self::StateMachine,
        Self::Cease,
        Self::RouteRefresh,
        Self::SendHoldTimer,
    ];

    /// The code of this octet.
    #[must_use]
    pub fn from_octet(octet: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u8 == octet)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MessageHeader => "Message Header Error",
            Self::Open => "OPEN Message Error",
            Self::Update => "UPDATE Message Error",
            Self::HoldTimer => "Hold Timer Expired",
            Self::StateMachine => "Finite State Machine Error",
            Self::Cease => "Cease",
            Self::RouteRefresh => "ROUTE-REFRESH Message Error",
            Self::SendHoldTimer => "Send Hold Timer Expired",
        })
    }
}

impl Notification {
    /// Without data.
    #[must_use]
    pub const fn new(code: ErrorCode, subcode: u8) -> Self {
        Self { code, subcode, data: Vec::new() }
    }

    /// Cease with a message for the operator of the other side (RFC 9003). What is longer than 255 octets is cut between
    /// two characters; an empty text sends no data.
    #[must_use]
    pub fn cease_with_communication(subcode: u8, text: &str) -> Self {
        let text = &text[..text.floor_char_boundary(COMMUNICATION_LEN_MAX)];
        let mut data = Vec::with_capacity(text.len() + 1);
        if let (Ok(length), false) = (u8::try_from(text.len()), text.is_empty()) {
            data.push(length);
            data.extend_from_slice(text.as_bytes());
        }
        Self { code: ErrorCode::Cease, subcode, data }
    }

    /// This one wrapped into a hard reset, after which nothing is kept (RFC 8538 section 3.1).
    #[must_use]
    pub fn into_hard_reset(self) -> Self {
        let mut data = vec![self.code as u8, self.subcode];
        data.extend_from_slice(&self.data);
        Self { code: ErrorCode::Cease, subcode: cease::HARD_RESET, data }
    }

    /// What a hard reset wraps, when this is one and says why.
    #[must_use]
    pub fn hard_reset_cause(&self) -> Option<Self> {
        if !self.is_hard_reset() {
            return None;
        }
        Self::decode(&self.data).ok()
    }

    /// True for a hard reset (RFC 8538).
    #[must_use]
    pub fn is_hard_reset(&self) -> bool {
        self.code == ErrorCode::Cease && self.subcode == cease::HARD_RESET
    }

    /// The message for the operator (RFC 9003), also of one inside a hard reset: what cannot be shown is replaced, control
    /// characters included. `None` when there is none or its length contradicts the data.
    #[must_use]
    pub fn communication(&self) -> Option<String> {
        if let Some(cause) = self.hard_reset_cause() {
            return if cause.is_hard_reset() { None } else { cause.communication() };
        }
        let with_text = matches!(self.subcode, cease::ADMINISTRATIVE_SHUTDOWN | cease::ADMINISTRATIVE_RESET);
        if self.code != ErrorCode::Cease || !with_text {
            return None;
        }
        let (&length, after) = self.data.split_first()?;
        let text = after.get(..usize::from(length)).filter(|text| !text.is_empty())?;
        let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        Some(String::from_utf8_lossy(text).chars().map(shown).collect())
    }

    /// The name of the subcode, where an RFC gives it one.
    #[must_use]
    pub const fn subcode_name(&self) -> Option<&'static str> {
        Some(match (self.code, self.subcode) {
            (ErrorCode::MessageHeader, 1) => "Connection Not Synchronized",
            (ErrorCode::MessageHeader, 2) => "Bad Message Length",
            (ErrorCode::MessageHeader, 3) => "Bad Message Type",
            (ErrorCode::Open, open_error::UNSUPPORTED_VERSION) => "Unsupported Version Number",
            (ErrorCode::Open, open_error::BAD_PEER_AS) => "Bad Peer AS",
            (ErrorCode::Open, open_error::BAD_IDENTIFIER) => "Bad BGP Identifier",
            (ErrorCode::Open, open_error::UNSUPPORTED_PARAMETER) => "Unsupported Optional Parameter",
            (ErrorCode::Open, open_error::UNACCEPTABLE_HOLD_TIME) => "Unacceptable Hold Time",
            (ErrorCode::Open, open_error::UNSUPPORTED_CAPABILITY) => "Unsupported Capability",
            (ErrorCode::Open, open_error::ROLE_MISMATCH) => "Role Mismatch",
            (ErrorCode::Update, update_error::MALFORMED_LIST) => "Malformed Attribute List",
            (ErrorCode::Update, update_error::UNRECOGNIZED_WELL_KNOWN) => "Unrecognized Well-known Attribute",
            (ErrorCode::Update, update_error::MISSING_WELL_KNOWN) => "Missing Well-known Attribute",
            (ErrorCode::Update, update_error::FLAGS) => "Attribute Flags Error",
            (ErrorCode::Update, update_error::LENGTH) => "Attribute Length Error",
            (ErrorCode::Update, update_error::INVALID_ORIGIN) => "Invalid ORIGIN Attribute",
            (ErrorCode::Update, update_error::INVALID_NEXT_HOP) => "Invalid NEXT_HOP Attribute",
            (ErrorCode::Update, update_error::OPTIONAL_ATTRIBUTE) => "Optional Attribute Error",
            (ErrorCode::Update, update_error::INVALID_NETWORK) => "Invalid Network Field",
            (ErrorCode::Update, update_error::MALFORMED_AS_PATH) => "Malformed AS_PATH",
            (ErrorCode::StateMachine, state_machine_error::IN_OPEN_SENT) => "Unexpected Message in OpenSent",
            (ErrorCode::StateMachine, state_machine_error::IN_OPEN_CONFIRM) => "Unexpected Message in OpenConfirm",
            (ErrorCode::StateMachine, state_machine_error::IN_ESTABLISHED) => "Unexpected Message in Established",
            (ErrorCode::Cease, cease::MAXIMUM_PREFIXES) => "Maximum Number of Prefixes Reached",
            (ErrorCode::Cease, cease::ADMINISTRATIVE_SHUTDOWN) => "Administrative Shutdown",
            (ErrorCode::Cease, cease::PEER_DECONFIGURED) => "Peer De-configured",
            (ErrorCode::Cease, cease::ADMINISTRATIVE_RESET) => "Administrative Reset",
            (ErrorCode::Cease, cease::CONNECTION_REJECTED) => "Connection Rejected",
            (ErrorCode::Cease, cease::CONFIGURATION_CHANGE) => "Other Configuration Change",
            (ErrorCode::Cease, cease::CONNECTION_COLLISION) => "Connection Collision Resolution",
            (ErrorCode::Cease, cease::OUT_OF_RESOURCES) => "Out of Resources",
            (ErrorCode::Cease, cease::HARD_RESET) => "Hard Reset",
            (ErrorCode::Cease, cease::BFD_DOWN) => "BFD Down",
            (ErrorCode::RouteRefresh, route_refresh_error::INVALID_LENGTH) => "Invalid Message Length",
            _ => return None,
        })
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, NotificationError> {
        let Some((&[code, subcode], data)) = body.split_first_chunk::<2>() else {
            return Err(NotificationError::Short(body.len()));
        };
        let code = ErrorCode::from_octet(code).ok_or(NotificationError::Code { code, subcode })?;
        Ok(Self { code, subcode, data: data.to_vec() })
    }

    /// Appends the whole message. Data that does not fit into it is cut.
    pub fn encode(&self, limit: LengthLimit, out: &mut Vec<u8>) {
        let room = usize::from(limit.octets()) - HEADER_LEN - 2;
        let data = &self.data[..self.data.len().min(room)];
        // The room is what the limit leaves, so there is always a header for it.
        if let Ok(header) = Header::for_body(MessageType::Notification, data.len() + 2, limit) {
            out.extend_from_slice(&header.encode());
            out.extend_from_slice(&[self.code as u8, self.subcode]);
            out.extend_from_slice(data);
        }
    }
}

/// `Cease: Administrative Shutdown: "maintenance"`; a hard reset shows what it wraps.
impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.code.fmt(f)?;
        match self.subcode_name() {
            Some(name) => write!(f, ": {name}")?,
            None if self.subcode == 0 => {}
            None => write!(f, ": subcode {}", self.subcode)?,
        }
        if let Some(cause) = self.hard_reset_cause().filter(|cause| !cause.is_hard_reset()) {
            return write!(f, " ({cause})");
        }
        if let Some(text) = self.communication() {
            write!(f, ": {text:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_shutdown_communication_is_told_and_understood() {
        let sent =
            Notification::cease_with_communication(cease::ADMINISTRATIVE_SHUTDOWN, "rack 7 is moved, back at 12:00");
        assert_eq!(sent.to_string(), "Cease: Administrative Shutdown: \"rack 7 is moved, back at 12:00\"");
        let wrapped = sent.clone().into_hard_reset();
        assert_eq!(wrapped.data[..2], [6, 2]);
        assert_eq!(wrapped.hard_reset_cause(), Some(sent));
        assert_eq!(wrapped.communication().as_deref(), Some("rack 7 is moved, back at 12:00"));
        let long = Notification::cease_with_communication(cease::ADMINISTRATIVE_RESET, &"ü".repeat(200));
        assert_eq!((long.data.len(), long.data[0]), (255, 254));
        assert!(Notification::cease_with_communication(cease::ADMINISTRATIVE_RESET, "").data.is_empty());
    }

    #[test]
    fn what_a_peer_says_is_shown_without_its_tricks() {
        let shown =
            |data: &[u8]| Notification { code: ErrorCode::Cease, subcode: 2, data: data.to_vec() }.communication();
        assert_eq!(shown(b"\x04a\x1b[b"), Some("a\u{fffd}[b".to_owned()));
        assert_eq!(shown(b"\x02\xff\xfe"), Some("\u{fffd}\u{fffd}".to_owned()));
        assert_eq!(shown(b"\x05abc"), None, "longer than the data");
        assert_eq!(shown(b"\x00"), None);
        assert_eq!(shown(b""), None);
        let nested = Notification::new(ErrorCode::Cease, 2).into_hard_reset().into_hard_reset();
        assert_eq!(nested.communication(), None);
    }

    #[test]
    fn names_are_those_of_the_rfcs() {
        for (code, subcode, text) in [
            (ErrorCode::HoldTimer, 0, "Hold Timer Expired"),
            (ErrorCode::Open, open_error::BAD_PEER_AS, "OPEN Message Error: Bad Peer AS"),
            (ErrorCode::Open, 99, "OPEN Message Error: subcode 99"),
            (ErrorCode::SendHoldTimer, 0, "Send Hold Timer Expired"),
        ] {
            assert_eq!(Notification::new(code, subcode).to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_read_is_described() {
        assert_eq!(Notification::decode(&[6]), Err(NotificationError::Short(1)));
        assert_eq!(Notification::decode(&[9, 1, 2]), Err(NotificationError::Code { code: 9, subcode: 1 }));
    }

    #[test]
    fn data_is_cut_to_the_limit() {
        let mut out = Vec::new();
        let notification = Notification { code: ErrorCode::Update, subcode: 1, data: vec![7; 70_000] };
        notification.encode(LengthLimit::Standard, &mut out);
        assert_eq!(out.len(), 4_096);
        out.clear();
        notification.encode(LengthLimit::Extended, &mut out);
        assert_eq!(out.len(), 65_535);
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_octets(body: Vec<u8>) {
            if let Ok(notification) = Notification::decode(&body) {
                let mut out = Vec::new();
                notification.encode(LengthLimit::Standard, &mut out);
                prop_assert_eq!(&out[HEADER_LEN..], body.as_slice());
                prop_assert!(!notification.to_string().chars().any(char::is_control));
            }
        }
    }
}
