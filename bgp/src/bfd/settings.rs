//! What a session is configured with, and what it tells its owner.

use std::num::NonZeroU8;

use super::{
    authentication::Authentication,
    packet::{Diagnostic, Encoded, Interval, State},
};

/// How a session behaves. All of it may change while the session lives; nothing of it takes the session down, except
/// authentication that the other side does not change at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often we would like to send when up (bfd.DesiredMinTxInterval).
    pub min_transmit: Interval,
    /// How often we can receive (bfd.RequiredMinRxInterval).
    pub min_receive: Interval,
    /// After how many of our intervals the other side takes the path for dead.
    pub multiplier: NonZeroU8,
    /// Waits until the other side sends. Two passive sides never meet.
    pub passive: bool,
    /// C: this BFD lives on when the control plane restarts. False as long as both are one process.
    pub control_plane_independent: bool,
    /// How often the forwarding plane loops echo packets back; none by default.
    pub min_echo_receive: Interval,
    /// How often we would like to send echo packets; none by default. Only over a single hop, and by somebody who can send
    /// them.
    pub min_echo_transmit: Interval,
    /// Signing and checking of packets.
    pub authentication: Option<Authentication>,
}

impl Default for Settings {
    /// 300 ms times 3: what routers come with.
    fn default() -> Self {
        Self {
            min_transmit: Interval::from_millis(300),
            min_receive: Interval::from_millis(300),
            multiplier: NonZeroU8::MIN.saturating_add(2),
            passive: false,
            control_plane_independent: false,
            min_echo_receive: Interval::NONE,
            min_echo_transmit: Interval::NONE,
            authentication: None,
        }
    }
}

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a control packet.
    Send(Encoded),
    /// Send an echo packet that comes back as [`super::Event::Echo`].
    SendEcho {
        /// Its number.
        sequence: u32,
    },
    /// Tell the owner that the state changed.
    Changed(Change),
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state before.
    pub from: State,
    /// The state now.
    pub to: State,
    /// Why.
    pub diagnostic: Diagnostic,
    /// The state that the other side said it has.
    pub remote_state: State,
    /// Why the other side's state changed last.
    pub remote_diagnostic: Diagnostic,
    /// C of the other side: its BFD outlives its control plane.
    pub remote_control_plane_independent: bool,
}

impl Change {
    /// The path is to be taken for dead: it was up, and not because somebody on either side wished BFD away.
    /// RFC 5882 section 4.2: an administrative down says nothing about the path.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.from == State::Up
            && self.to != State::AdminDown
            && (self.remote_state != State::AdminDown || self.diagnostic != Diagnostic::NeighborSignaledDown)
    }
}
