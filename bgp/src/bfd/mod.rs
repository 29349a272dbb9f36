//! Bidirectional forwarding detection: whether a path still carries packets, known within a fraction of a second.
//!
//! BGP's hold timer takes seconds to notice a dead path, and a link that is up at both ends may lose everything in the
//! middle. So both ends of a [`Session`] send each other small packets at an agreed rate, and whoever hears nothing for a
//! few intervals takes the path for dead.
//!
//! [`packet`] turns octets into values and makes all checks that need no session, [`Sessions`] finds the session,
//! [`Session::handle`] takes the packet in and answers with [`Action`]s, and [`Session::next_deadline`] says when it
//! wants to be asked again. Nothing here sends or waits: whoever drives it does, from a thread of its own, because what
//! delays these packets looks like a dead path to the other side.
//!
//! RFC 5880 with asynchronous mode, the answering half of demand mode, echo, and keyed SHA1; RFC 5881 (single hop); RFC
//! 5883 (multiple hops).
//!
//! # What BGP makes of it (RFC 5882)
//!
//! - [`Change::is_failure`] means that the path is dead: the BGP session ends at once, as if its hold timer had run out,
//!   and comes back by its own rules.
//! - An administrative down, ours or theirs, says nothing about the path: BGP goes on as without BFD (section 4.2). So does
//!   a BFD session that was never up, unless the peer is configured to wait for it.
//! - With graceful restart (section 4.3), a failure while the other side said C means that forwarding is dead, so nothing is
//!   retained. Without C the other side's BFD dies with its control plane; then a failure cannot be told from its restart,
//!   and paths are kept as stale like after the loss of the TCP connection.
//! - [`Settings::control_plane_independent`] is ours to say and is false: our BFD is a thread of the same process.
//!
//! # What is ugly
//!
//! An echo function that was active, failed, and does not come back leaves a session that is up without it: from here a
//! forwarding plane that died cannot be told from one that was told not to forward, and a session that is held down for it
//! would never come back. [`EchoState`] says so.
//!
//! The other side's values are taken over before the session knows whether it wants the packet at all, because section
//! 6.8.6 does it in that order. And demand mode is only answered, never asked for: with hardware that sends for free
//! nowhere in reach, it would save nothing.

pub mod authentication;
pub mod echo;
mod jitter;
pub mod packet;
mod session;
mod sessions;
mod settings;

pub use authentication::{Authentication, Key};
pub use echo::{ECHO_LEN, ECHO_PORT, EchoPacket, EchoState};
pub use packet::{Diagnostic, Discriminator, Encoded, Interval, Packet, Received, State};
pub use session::{Discard, Event, Remote, Session, next_state};
pub use sessions::{Arrival, Hops, Member, Path, PathTaken, Sessions, TTL_LOOPED, TTL_UNFORWARDED, Unselected};
pub use settings::{Action, Change, Settings};

#[cfg(test)]
mod tests;
