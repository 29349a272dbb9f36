//! OPEN (RFC 4271 section 4.2, RFC 5492, RFC 9072).
//!
//! ```text
//! 0         1    3           5               9            10
//! | version | AS | hold time | BGP identifier | parameters | ...
//! ```
//!
//! Parameters are `| type | length | value |`; the only type in use is 2, capabilities. When they need more than 255
//! octets, the length octet and a type of 255 say so, and all lengths have two octets (RFC 9072).
//!
//! What depends on the configuration (is this the right AS, is this identifier ours) is decided by the session.

use thiserror::Error;

use super::{
    capability::{self, Capability, CapabilityLengthError},
    header::{BodyLengthError, Header, LengthLimit, MessageType},
    notification::{ErrorCode, Notification, open_error},
};
use crate::id::{Asn, RouterId};

/// The version of BGP.
const VERSION: u8 = 4;
/// Parameter type: capabilities.
const PARAMETER_CAPABILITIES: u8 = 2;
/// In the place of the length and of the first type: the extended form follows.
const EXTENDED: u8 = 255;

/// An OPEN message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The AS: the number of the four-octet capability when there is one, else that of the fixed field.
    pub asn: Asn,
    /// Hold time offered; 0 for none. 1 and 2 are refused (RFC 4271 section 6.2).
    pub hold_time_s: u16,
    /// Identifier; never 0.
    pub router_id: RouterId,
    /// Capabilities in the order of the wire.
    pub capabilities: Vec<Capability>,
}

/// Why an OPEN is refused; [`OpenError::notification`] is what the other side is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Lengths that contradict each other, or a four-octet AS capability without four octets.
    #[error("open is malformed: {0}")]
    Malformed(&'static str),
    /// Another version of BGP.
    #[error("open has unsupported version {0}")]
    Version(u8),
    /// AS 0 (RFC 7607).
    #[error("open has AS 0")]
    AsZero,
    /// Identifier 0 (RFC 6286 section 2.1).
    #[error("open has identifier 0.0.0.0")]
    Identifier,
    /// A parameter that is not capabilities.
    #[error("open has unsupported parameter {0}")]
    Parameter(u8),
    /// A hold time of one or two seconds.
    #[error("open has unacceptable hold time {0} s")]
    HoldTime(u16),
}

impl OpenError {
    /// The NOTIFICATION of RFC 4271 section 6.2.
    #[must_use]
    pub fn notification(self) -> Notification {
        let (subcode, data) = match self {
            Self::Malformed(_) => (open_error::UNSPECIFIC, Vec::new()),
            Self::Version(_) => (open_error::UNSUPPORTED_VERSION, u16::from(VERSION).to_be_bytes().to_vec()),
            Self::AsZero => (open_error::BAD_PEER_AS, Vec::new()),
            Self::Identifier => (open_error::BAD_IDENTIFIER, Vec::new()),
            Self::Parameter(_) => (open_error::UNSUPPORTED_PARAMETER, Vec::new()),
            Self::HoldTime(_) => (open_error::UNACCEPTABLE_HOLD_TIME, Vec::new()),
        };
        Notification { code: ErrorCode::Open, subcode, data }
    }
}

/// Why an OPEN cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenEncodeError {
    /// One capability is too long.
    #[error(transparent)]
    Capability(#[from] CapabilityLengthError),
    /// All of them are too long together.
    #[error(transparent)]
    Message(#[from] BodyLengthError),
}

impl Open {
    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, OpenError> {
        let (&[version], after) = body.split_first_chunk().ok_or(OpenError::Malformed("no version"))?;
        if version != VERSION {
            return Err(OpenError::Version(version));
        }
        let (&[as_high, as_low, hold_high, hold_low, id @ .., parameters], rest) =
            after.split_first_chunk::<9>().ok_or(OpenError::Malformed("too short"))?;
        let capabilities = decode_parameters(parameters, rest)?;
        let four_octets = four_octet_as(&capabilities)?;
        let asn = four_octets.unwrap_or(Asn(u32::from(u16::from_be_bytes([as_high, as_low]))));
        if asn == Asn(0) {
            return Err(OpenError::AsZero);
        }
        let hold_time_s = u16::from_be_bytes([hold_high, hold_low]);
        if matches!(hold_time_s, 1 | 2) {
            return Err(OpenError::HoldTime(hold_time_s));
        }
        let router_id = RouterId(u32::from_be_bytes(id));
        if router_id == RouterId(0) {
            return Err(OpenError::Identifier);
        }
        Ok(Self { asn, hold_time_s, router_id, capabilities })
    }

    /// The whole message. All capabilities go into one parameter, in the extended form when they need it.
    pub fn encode(&self) -> Result<Vec<u8>, OpenEncodeError> {
        let mut capabilities = Vec::new();
        for capability in &self.capabilities {
            capability.encode(&mut capabilities)?;
        }
        let mut body = vec![VERSION];
        body.extend_from_slice(&self.asn.two_octets().to_be_bytes());
        body.extend_from_slice(&self.hold_time_s.to_be_bytes());
        body.extend_from_slice(&self.router_id.0.to_be_bytes());
        match (u8::try_from(capabilities.len()), u16::try_from(capabilities.len())) {
            (Ok(0), _) => body.push(0),
            (Ok(length @ ..=252), _) => {
                body.extend_from_slice(&[length + 2, PARAMETER_CAPABILITIES, length]);
            }
            (_, length) => {
                // A length that does not fit here makes a body that does not fit either.
                let length = length.unwrap_or(u16::MAX - 3);
                body.extend_from_slice(&[EXTENDED, EXTENDED]);
                body.extend_from_slice(&length.saturating_add(3).to_be_bytes());
                body.push(PARAMETER_CAPABILITIES);
                body.extend_from_slice(&length.to_be_bytes());
            }
        }
        body.extend_from_slice(&capabilities);
        let header = Header::for_body(MessageType::Open, body.len(), LengthLimit::Standard)?;
        Ok([header.encode().as_slice(), &body].concat())
    }
}

/// The parameters behind their length octet.
fn decode_parameters(length: u8, octets: &[u8]) -> Result<Vec<Capability>, OpenError> {
    const CONFLICT: OpenError = OpenError::Malformed("the length of the parameters is not that of the message");
    let extended = length != 0 && octets.first() == Some(&EXTENDED);
    let mut rest = if extended {
        let (&[_, high, low], after) = octets.split_first_chunk().ok_or(CONFLICT)?;
        Some(after).filter(|after| after.len() == usize::from(u16::from_be_bytes([high, low])))
    } else {
        Some(octets).filter(|octets| octets.len() == usize::from(length))
    }
    .ok_or(CONFLICT)?;
    let mut capabilities = Vec::new();
    while let Some((&kind, after)) = rest.split_first() {
        let (value, after) = if extended { counted::<2>(after) } else { counted::<1>(after) }
            .ok_or(OpenError::Malformed("a parameter is longer than the message"))?;
        if kind != PARAMETER_CAPABILITIES {
            return Err(OpenError::Parameter(kind));
        }
        decode_capabilities(value, &mut capabilities)?;
        rest = after;
    }
    Ok(capabilities)
}

fn decode_capabilities(mut rest: &[u8], capabilities: &mut Vec<Capability>) -> Result<(), OpenError> {
    while let Some((&code, after)) = rest.split_first() {
        let (value, after) =
            counted::<1>(after).ok_or(OpenError::Malformed("a capability is longer than its parameter"))?;
        capabilities.push(Capability::decode(code, value));
        rest = after;
    }
    Ok(())
}

/// What follows a length of `N` octets, and the rest.
fn counted<const N: usize>(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, after) = octets.split_first_chunk::<N>()?;
    after.split_at_checked(length.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)))
}

/// The AS of the capability. Capabilities that are sent twice are equal or a matter of taste; the first one counts.
fn four_octet_as(capabilities: &[Capability]) -> Result<Option<Asn>, OpenError> {
    let of = |capability: &Capability| match capability {
        Capability::FourOctetAs(asn) => Some(Ok(*asn)),
        Capability::Unknown { code: capability::code::FOUR_OCTET_AS, .. } => {
            Some(Err(OpenError::Malformed("the AS number of the capability has not four octets")))
        }
        _ => None,
    };
    capabilities.iter().find_map(of).transpose()
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
