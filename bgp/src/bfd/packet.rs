//! Control packets (RFC 5880 section 4.1) and those checks of section 6.8.6 that need no session.
//!
//! ```text
//!  0       3       8   10              16              24            31
//! | vers=1 |  diag  | state | P F C A D M | detect mult   |   length    |
//! |                        my discriminator                           |
//! |                       your discriminator                          |
//! |                     desired min tx interval                       |
//! |                     required min rx interval                      |
//! |                   required min echo rx interval                   |
//! | auth type | auth length | authentication data ...                 |
//! ```
//!
//! A packet that is refused is dropped and counted; nobody is told, because there is nothing in the protocol to tell it with.

use std::{
    fmt,
    num::{NonZeroU8, NonZeroU32},
    time::Duration,
};

use serde::Serialize;
use thiserror::Error;

use super::authentication::{SECTION_LEN_MAX, Section};

/// Octets of a packet without authentication.
pub const PACKET_LEN: usize = 24;
/// Octets of the longest packet this speaker sends.
pub const PACKET_LEN_MAX: usize = PACKET_LEN + SECTION_LEN_MAX;
/// The version of RFC 5880.
const VERSION: u8 = 1;

/// Bits of the second octet, below the state.
mod bit {
    pub(super) const POLL: u8 = 0x20;
    pub(super) const FINAL: u8 = 0x10;
    pub(super) const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
    pub(super) const AUTHENTICATION: u8 = 0x04;
    pub(super) const DEMAND: u8 = 0x02;
    pub(super) const MULTIPOINT: u8 = 0x01;
}

/// State of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Held down by somebody who configures it.
    AdminDown = 0,
    /// Nothing is heard, or the other side does not hear us.
    #[default]
    Down = 1,
    /// The other side is heard, and does not know it yet.
    Init = 2,
    /// Both hear each other.
    Up = 3,
}

impl State {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::AdminDown, Self::Down, Self::Init, Self::Up];

    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdminDown => "admin down",
            Self::Down => "down",
            Self::Init => "init",
            Self::Up => "up",
        })
    }
}

/// Why a session changed its state last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Diagnostic {
    /// 0.
    #[default]
    None,
    /// 1: nothing was heard for the detection time.
    DetectionTimeExpired,
    /// 2: our own echo packets did not come back.
    EchoFailed,
    /// 3: the other side said that it is down.
    NeighborSignaledDown,
    /// 4.
    ForwardingPlaneReset,
    /// 5.
    PathDown,
    /// 6.
    ConcatenatedPathDown,
    /// 7: somebody took it down.
    AdministrativelyDown,
    /// 8.
    ReverseConcatenatedPathDown,
    /// 9 to 31, not assigned by RFC 5880.
    Other(u8),
}

impl Diagnostic {
    const fn from_bits(bits: u8) -> Self {
        match bits & 0x1f {
            0 => Self::None,
            1 => Self::DetectionTimeExpired,
            2 => Self::EchoFailed,
            3 => Self::NeighborSignaledDown,
            4 => Self::ForwardingPlaneReset,
            5 => Self::PathDown,
            6 => Self::ConcatenatedPathDown,
            7 => Self::AdministrativelyDown,
            8 => Self::ReverseConcatenatedPathDown,
            other => Self::Other(other),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::DetectionTimeExpired => 1,
            Self::EchoFailed => 2,
            Self::NeighborSignaledDown => 3,
            Self::ForwardingPlaneReset => 4,
            Self::PathDown => 5,
            Self::ConcatenatedPathDown => 6,
            Self::AdministrativelyDown => 7,
            Self::ReverseConcatenatedPathDown => 8,
            Self::Other(number) => number & 0x1f,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no diagnostic",
            Self::DetectionTimeExpired => "control detection time expired",
            Self::EchoFailed => "echo function failed",
            Self::NeighborSignaledDown => "neighbor signaled session down",
            Self::ForwardingPlaneReset => "forwarding plane reset",
            Self::PathDown => "path down",
            Self::ConcatenatedPathDown => "concatenated path down",
            Self::AdministrativelyDown => "administratively down",
            Self::ReverseConcatenatedPathDown => "reverse concatenated path down",
            Self::Other(number) => return write!(f, "diagnostic {number}"),
        })
    }
}

/// The number by which one side knows a session. 0 means "not known yet" and is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Discriminator(pub NonZeroU32);

impl Discriminator {
    /// The discriminator of a field.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// As a field.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Discriminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Time between packets, in microseconds as all of the protocol counts. Where a packet says 0, it means "none, please".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Interval(pub u32);

impl Interval {
    /// Not wanted, or not able.
    pub const NONE: Self = Self(0);
    /// One second: how slowly a session that is not up sends at least (RFC 5880 section 6.8.3).
    pub const SLOW: Self = Self(1_000_000);

    /// From milliseconds; what does not fit is the longest interval, 71 minutes.
    #[must_use]
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_micros(self.0 as u64)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.duration())
    }
}

/// The mandatory part of a control packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender's state changed last.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// P: the sender waits for a packet with F.
    pub poll: bool,
    /// F: answers a packet with P.
    pub is_final: bool,
    /// C: the sender's BFD lives on when its control plane restarts.
    pub control_plane_independent: bool,
    /// D: the sender does not want periodic packets while both are up.
    pub demand: bool,
    /// How many intervals without a packet mean that the path is dead.
    pub multiplier: NonZeroU8,
    /// The sender's number of the session.
    pub my_discriminator: Discriminator,
    /// The receiver's number of the session, as far as the sender knows it.
    pub your_discriminator: Option<Discriminator>,
    /// The sender would like to send this often.
    pub desired_min_transmit: Interval,
    /// The sender can receive this often; 0 asks for no periodic packets.
    pub required_min_receive: Interval,
    /// The sender loops echo packets back this often; 0 for not at all.
    pub required_min_echo_receive: Interval,
}

/// Why octets are no control packet. In the order in which section 6.8.6 asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum DecodeError {
    /// Not even the mandatory part is there.
    #[error("a payload of {0} octets is shorter than a control packet")]
    Payload(usize),
    /// Another version.
    #[error("version {0} is not 1")]
    Version(u8),
    /// The length field is too small, also for an authentication section if one is announced.
    #[error("length {0} is too small")]
    LengthTooSmall(u8),
    /// The length field says more than was received.
    #[error("length {length} is more than the payload of {payload} octets")]
    LengthOverPayload {
        /// The field.
        length: u8,
        /// What was received.
        payload: usize,
    },
    /// A multiplier of 0 would be a path that is always dead.
    #[error("detection multiplier is 0")]
    MultiplierZero,
    /// For point-to-multipoint, which is RFC 8562.
    #[error("multipoint bit is set")]
    Multipoint,
    /// The sender has no number.
    #[error("my discriminator is 0")]
    MyDiscriminatorZero,
    /// Who is in Init or Up knows our number.
    #[error("your discriminator is 0 in state {0}")]
    YourDiscriminatorZero(State),
    /// The authentication section does not fit into the packet or has a length that its type does not allow.
    #[error("authentication section of type {kind} has a bad length {length}")]
    AuthenticationLength {
        /// Type field.
        kind: u8,
        /// Length field.
        length: u8,
    },
}

/// A packet as it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// The mandatory part.
    pub packet: Packet,
    /// The authentication section, if there is one.
    pub authentication: Option<Section<'a>>,
    /// Exactly the octets that the length field counts: what a digest is made of.
    pub octets: &'a [u8],
}

impl Packet {
    /// Checks a UDP payload in the order of RFC 5880 section 6.8.6, up to where a session is needed.
    pub fn decode(payload: &[u8]) -> Result<Received<'_>, DecodeError> {
        let Some((&[first, flags, multiplier, length, ref words @ ..], _)) = payload.split_first_chunk::<PACKET_LEN>()
        else {
            return Err(DecodeError::Payload(payload.len()));
        };
        if first >> 5 != VERSION {
            return Err(DecodeError::Version(first >> 5));
        }
        let authenticated = flags & bit::AUTHENTICATION != 0;
        if usize::from(length) < if authenticated { PACKET_LEN + 2 } else { PACKET_LEN } {
            return Err(DecodeError::LengthTooSmall(length));
        }
        let octets = payload
            .get(..usize::from(length))
            .ok_or(DecodeError::LengthOverPayload { length, payload: payload.len() })?;
        let multiplier = NonZeroU8::new(multiplier).ok_or(DecodeError::MultiplierZero)?;
        if flags & bit::MULTIPOINT != 0 {
            return Err(DecodeError::Multipoint);
        }
        let mut words = words.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
        let mut word = || words.next().unwrap_or_default();
        let my_discriminator = Discriminator::new(word()).ok_or(DecodeError::MyDiscriminatorZero)?;
        let your_discriminator = Discriminator::new(word());
        let state = State::from_bits(flags >> 6);
        if your_discriminator.is_none() && matches!(state, State::Init | State::Up) {
            return Err(DecodeError::YourDiscriminatorZero(state));
        }
        let packet = Self {
            diagnostic: Diagnostic::from_bits(first),
            state,
            poll: flags & bit::POLL != 0,
            is_final: flags & bit::FINAL != 0,
            control_plane_independent: flags & bit::CONTROL_PLANE_INDEPENDENT != 0,
            demand: flags & bit::DEMAND != 0,
            multiplier,
            my_discriminator,
            your_discriminator,
            desired_min_transmit: Interval(word()),
            required_min_receive: Interval(word()),
            required_min_echo_receive: Interval(word()),
        };
        let authentication = if authenticated { Some(Section::decode(&octets[PACKET_LEN..])?) } else { None };
        Ok(Received { packet, authentication, octets })
    }

    /// The octets without authentication.
    #[must_use]
    pub fn encode(&self) -> Encoded {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = (self.state as u8) << 6
            | flag(self.poll, bit::POLL)
            | flag(self.is_final, bit::FINAL)
            | flag(self.control_plane_independent, bit::CONTROL_PLANE_INDEPENDENT)
            | flag(self.demand, bit::DEMAND);
        let mut encoded = Encoded { octets: [0; PACKET_LEN_MAX], length: 0 };
        encoded.push(&[VERSION << 5 | self.diagnostic.number(), flags, self.multiplier.get(), PACKET_LEN as u8]);
        for word in [
            self.my_discriminator.get(),
            self.your_discriminator.map_or(0, Discriminator::get),
            self.desired_min_transmit.0,
            self.required_min_receive.0,
            self.required_min_echo_receive.0,
        ] {
            encoded.push(&word.to_be_bytes());
        }
        encoded
    }
}

/// A packet ready to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    octets: [u8; PACKET_LEN_MAX],
    length: usize,
}

impl Encoded {
    /// Appends what fits, which is everything this crate appends.
    fn push(&mut self, octets: &[u8]) {
        if let Some(place) = self.octets.get_mut(self.length..self.length + octets.len()) {
            place.copy_from_slice(octets);
            self.length += octets.len();
        }
    }

    /// Sets the authentication bit, appends the section and corrects the length field.
    pub(super) fn authenticate(&mut self, section: &[u8; SECTION_LEN_MAX]) {
        self.octets[1] |= bit::AUTHENTICATION;
        self.push(section);
        self.octets[3] = self.length as u8;
    }

    /// To write a digest over its place.
    pub(super) fn octets_mut(&mut self) -> &mut [u8] {
        &mut self.octets[..self.length]
    }
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        &self.octets[..self.length]
    }
}
