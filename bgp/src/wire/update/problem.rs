//! What is wrong with an UPDATE, and what follows from it (RFC 7606 section 2).

use std::{fmt, net::IpAddr};

use thiserror::Error;

use crate::wire::{
    attributes::{self, code},
    nlri::NlriError,
    notification::{ErrorCode, Notification, update_error},
};

/// Problems that are kept of one message; the rest is counted.
pub const PROBLEMS_MAX: usize = 16;

/// What follows from a malformed attribute when the session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disposition {
    /// The attribute is dropped and the paths are used without it.
    Discard,
    /// The prefixes of the message are treated as withdrawn.
    Withdraw,
}

/// Something wrong that the session survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The attribute; 0 where the list of attributes as a whole is meant.
    pub code: u8,
    /// What follows.
    pub disposition: Disposition,
    /// What is wrong.
    pub fault: Fault,
}

/// `COMMUNITIES: length 5 is wrong: prefixes are treated as withdrawn`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let consequence = match self.disposition {
            Disposition::Discard => "it is ignored",
            Disposition::Withdraw => "prefixes are treated as withdrawn",
        };
        write!(f, "{}: {}: {consequence}", Place(self.code), self.fault)
    }
}

/// What a code blames: an attribute, or with 0 the message around them.
struct Place(u8);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, attributes::name(self.0)) {
            (0, _) => f.write_str("UPDATE"),
            (_, Some(name)) => f.write_str(name),
            (code, None) => write!(f, "attribute {code}"),
        }
    }
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// Two lengths contradict each other, so that a field cannot be found.
    #[error("lengths of the fields contradict each other")]
    Framing,
    /// The last attribute is longer than the list, or only a part of its head is there.
    #[error("list of attributes ends inside an attribute")]
    Truncated,
    /// Optional or Transitive are not what the RFC of the attribute says.
    #[error("flags 0x{0:02x} are wrong")]
    Flags(u8),
    /// A length the attribute cannot have.
    #[error("length {0} is wrong")]
    Length(usize),
    /// A value that is not defined.
    #[error("value {0} is not defined")]
    Value(u8),
    /// The same attribute again.
    #[error("it is there twice")]
    Duplicate,
    /// A mandatory attribute is not there.
    #[error("it is missing")]
    Missing,
    /// Not optional, and unknown.
    #[error("it is well-known and unrecognized")]
    Unrecognized,
    /// Peers of this kind do not send it.
    #[error("it is not expected from this peer")]
    NotExpected,
    /// The AS_PATH has a segment of an undefined kind.
    #[error("path has a segment of kind {0}")]
    SegmentKind(u8),
    /// The AS_PATH has a segment without numbers, or one that is longer than the path.
    #[error("path has a segment of a wrong length")]
    SegmentLength,
    /// AS 0 (RFC 7607).
    #[error("it has AS 0")]
    AsZero,
    /// A set (RFC 9774), where sets are refused.
    #[error("path has a set")]
    AsSet,
    /// Confederation segments from outside, or none at the start from inside (RFC 5065 section 5.3).
    #[error("path and confederation do not fit")]
    Confederation,
    /// With four octets for each number the path is longer than an attribute.
    #[error("path is too long")]
    PathTooLong,
    /// No address of a host.
    #[error("{0} is not an address of a host")]
    NextHop(IpAddr),
    /// A length of a next hop that this family cannot have on this session.
    #[error("next hop of {0} octets is wrong")]
    NextHopLength(u8),
    /// Prefixes that cannot be read.
    #[error(transparent)]
    Nlri(#[from] NlriError),
    /// A family that was not negotiated.
    #[error("family {afi}/{safi} was not negotiated")]
    Family {
        /// Address family identifier.
        afi: u16,
        /// Subsequent address family identifier.
        safi: u8,
    },
}

/// What is wrong with a message whose session survives it; empty for nearly all messages, and then without allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    kept: Vec<Problem>,
    more: usize,
    worst: Option<Problem>,
}

impl Problems {
    /// The first ones.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.kept
    }

    /// How many there were beside those of [`Self::as_slice`].
    #[must_use]
    pub const fn more(&self) -> usize {
        self.more
    }

    /// True when nothing was wrong.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The first one that leaves no path to use.
    #[must_use]
    pub const fn worst(&self) -> Option<Problem> {
        self.worst
    }

    pub(super) fn push(&mut self, problem: Problem) {
        if problem.disposition == Disposition::Withdraw {
            self.worst = self.worst.or(Some(problem));
        }
        if self.kept.len() < PROBLEMS_MAX {
            self.kept.push(problem);
        } else {
            self.more += 1;
        }
    }
}

/// An UPDATE after which the session cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}: {fault}", Place(*code))]
pub struct UpdateError {
    /// The attribute; 0 for a field outside of the attributes.
    pub code: u8,
    /// What is wrong.
    pub fault: Fault,
    /// The attribute as it came.
    octets: Vec<u8>,
}

impl UpdateError {
    pub(super) fn new(code: u8, fault: Fault, octets: &[u8]) -> Self {
        Self { code, fault, octets: octets.to_vec() }
    }

    /// The NOTIFICATION of RFC 4271 section 6.3 or RFC 4760 section 7.
    #[must_use]
    pub fn notification(&self) -> Notification {
        let subcode = subcode(self.code, self.fault);
        let data = match subcode {
            update_error::MALFORMED_LIST | update_error::INVALID_NETWORK | update_error::MALFORMED_AS_PATH => {
                Vec::new()
            }
            update_error::MISSING_WELL_KNOWN => vec![self.code],
            _ => self.octets.clone(),
        };
        Notification { code: ErrorCode::Update, subcode, data }
    }
}

const fn subcode(code: u8, fault: Fault) -> u8 {
    match fault {
        Fault::Framing | Fault::Truncated | Fault::Duplicate => update_error::MALFORMED_LIST,
        Fault::Unrecognized => update_error::UNRECOGNIZED_WELL_KNOWN,
        Fault::Missing => update_error::MISSING_WELL_KNOWN,
        Fault::Flags(_) => update_error::FLAGS,
        Fault::Nlri(_) if code == 0 => update_error::INVALID_NETWORK,
        // RFC 4760 section 7 has one subcode for all that is wrong with its attributes.
        _ if matches!(code, code::MP_REACH_NLRI | code::MP_UNREACH_NLRI) => update_error::OPTIONAL_ATTRIBUTE,
        Fault::Length(_) => update_error::LENGTH,
        Fault::NextHop(_) | Fault::NextHopLength(_) => update_error::INVALID_NEXT_HOP,
        _ if code == code::ORIGIN => update_error::INVALID_ORIGIN,
        _ if code == code::AS_PATH => update_error::MALFORMED_AS_PATH,
        _ => update_error::OPTIONAL_ATTRIBUTE,
    }
}
