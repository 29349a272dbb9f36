//! The header that every message begins with (RFC 4271 section 4.1) and the checks of section 6.1.
//!
//! ```text
//! 0                16      18     19
//! | marker: 16 x ff | length | type | body ...
//! ```
//!
//! The length counts the header. It is the only thing that separates messages in the TCP stream, so a speaker that gets
//! it wrong cannot be followed any further: each refusal here ends the session.

use thiserror::Error;

use super::notification::{ErrorCode, Notification};

/// Octets of the header, which is also the shortest message.
pub const HEADER_LEN: usize = 19;
/// Octets of the marker.
const MARKER_LEN: usize = 16;
/// Shortest OPEN: header, version, AS, hold time, identifier, length of the (absent) parameters.
const OPEN_LEN_MIN: u16 = 29;
/// Shortest UPDATE: header and two empty length-prefixed fields.
const UPDATE_LEN_MIN: u16 = 23;
/// Shortest NOTIFICATION: header, code, subcode.
const NOTIFICATION_LEN_MIN: u16 = 21;
/// A KEEPALIVE is a header and nothing else.
const KEEPALIVE_LEN: u16 = 19;

/// Subcodes of a Message Header Error (RFC 4271 section 4.5).
const CONNECTION_NOT_SYNCHRONIZED: u8 = 1;
const BAD_MESSAGE_LENGTH: u8 = 2;
const BAD_MESSAGE_TYPE: u8 = 3;

/// Message types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MessageType {
    /// RFC 4271 section 4.2.
    Open = 1,
    /// RFC 4271 section 4.3.
    Update = 2,
    /// RFC 4271 section 4.5.
    Notification = 3,
    /// RFC 4271 section 4.4.
    Keepalive = 4,
    /// RFC 2918 section 3.
    RouteRefresh = 5,
}

impl MessageType {
    /// All types, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Open, Self::Update, Self::Notification, Self::Keepalive, Self::RouteRefresh];

    fn from_octet(octet: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|message_type| *message_type as u8 == octet)
    }

    /// Shortest and longest message of this type, in octets with the header.
    ///
    /// RFC 8654 section 4 keeps OPEN and KEEPALIVE at the old limit, whatever was negotiated. What is too short for a
    /// ROUTE-REFRESH is an error of its own (RFC 7313 section 5) and not one of the header.
    #[must_use]
    pub const fn length_range(self, limit: LengthLimit) -> (u16, u16) {
        match self {
            Self::Open => (OPEN_LEN_MIN, LengthLimit::Standard.octets()),
            Self::Update => (UPDATE_LEN_MIN, limit.octets()),
            Self::Notification => (NOTIFICATION_LEN_MIN, limit.octets()),
            Self::Keepalive => (KEEPALIVE_LEN, KEEPALIVE_LEN),
            Self::RouteRefresh => (HEADER_LEN as u16, limit.octets()),
        }
    }
}

/// The longest message that a session allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LengthLimit {
    /// 4,096 octets, RFC 4271.
    #[default]
    Standard,
    /// 65,535 octets, when both sides sent the capability of RFC 8654.
    Extended,
}

impl LengthLimit {
    /// The limit in octets, header included.
    #[must_use]
    pub const fn octets(self) -> u16 {
        match self {
            Self::Standard => 4_096,
            Self::Extended => 65_535,
        }
    }
}

/// A checked header. It can only be made for a type and a length that fit each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    message_type: MessageType,
    length: u16,
}

/// Why a header is refused; [`HeaderError::notification`] is what the other side is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The marker is not all ones: the stream is not where a message begins.
    #[error("connection is not synchronized: the marker is not all ones")]
    Marker,
    /// The length is outside of what the type, or any type, allows.
    #[error("bad message length {0}")]
    Length(u16),
    /// No message type has this number.
    #[error("bad message type {0}")]
    Type(u8),
}

impl HeaderError {
    /// The NOTIFICATION of RFC 4271 section 6.1: the data quotes the length or the type field, and nothing for a marker.
    #[must_use]
    pub fn notification(self) -> Notification {
        let (subcode, data) = match self {
            Self::Marker => (CONNECTION_NOT_SYNCHRONIZED, Vec::new()),
            Self::Length(length) => (BAD_MESSAGE_LENGTH, length.to_be_bytes().to_vec()),
            Self::Type(octet) => (BAD_MESSAGE_TYPE, vec![octet]),
        };
        Notification { code: ErrorCode::MessageHeader, subcode, data }
    }
}

/// A body does not fit into one message of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a body of {body} octets does not fit into one {message_type:?} message")]
pub struct BodyLengthError {
    /// The type of message it was meant for.
    pub message_type: MessageType,
    /// Octets of the body.
    pub body: usize,
}

impl Header {
    /// The header for a body of this many octets.
    pub fn for_body(message_type: MessageType, body: usize, limit: LengthLimit) -> Result<Self, BodyLengthError> {
        let (shortest, longest) = message_type.length_range(limit);
        body.checked_add(HEADER_LEN)
            .and_then(|length| u16::try_from(length).ok())
            .filter(|length| (shortest..=longest).contains(length))
            .map(|length| Self { message_type, length })
            .ok_or(BodyLengthError { message_type, body })
    }

    /// Checks the fields in the order of RFC 4271 section 6.1: marker, length as such, type, length for the type.
    pub fn decode(octets: &[u8; HEADER_LEN], limit: LengthLimit) -> Result<Self, HeaderError> {
        let [marker @ .., length_high, length_low, type_octet] = octets;
        if marker != &[0xff; MARKER_LEN] {
            return Err(HeaderError::Marker);
        }
        let length = u16::from_be_bytes([*length_high, *length_low]);
        if usize::from(length) < HEADER_LEN || length > limit.octets() {
            return Err(HeaderError::Length(length));
        }
        let message_type = MessageType::from_octet(*type_octet).ok_or(HeaderError::Type(*type_octet))?;
        let (shortest, longest) = message_type.length_range(limit);
        if !(shortest..=longest).contains(&length) {
            return Err(HeaderError::Length(length));
        }
        Ok(Self { message_type, length })
    }

    /// The octets of this header.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut octets = [0xff; HEADER_LEN];
        let [length_high, length_low] = self.length.to_be_bytes();
        octets[MARKER_LEN..].copy_from_slice(&[length_high, length_low, self.message_type as u8]);
        octets
    }

    /// The message's type.
    #[must_use]
    pub const fn message_type(self) -> MessageType {
        self.message_type
    }

    /// Octets that follow the header.
    #[must_use]
    pub fn body_length(self) -> usize {
        usize::from(self.length) - HEADER_LEN
    }
}

/// A message cut out of the stream: checked header, body not yet looked at, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// The body, exactly [`Header::body_length`] octets.
    pub body: &'a [u8],
    /// The octets after the message.
    pub rest: &'a [u8],
}

/// Cuts the first message off a stream; `None` while it is incomplete.
///
/// A bad header is refused as soon as its 19 octets are there, without waiting for a body of a length nobody believes.
pub fn next_frame(stream: &[u8], limit: LengthLimit) -> Result<Option<Frame<'_>>, HeaderError> {
    let Some((octets, after)) = stream.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let header = Header::decode(octets, limit)?;
    Ok(after.split_at_checked(header.body_length()).map(|(body, rest)| Frame { header, body, rest }))
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
