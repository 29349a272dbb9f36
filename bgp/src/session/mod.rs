//! Sessions with BGP peers: what to do when.
//!
//! A [`Session`] is the state machine of RFC 4271 section 8 for one peer. It owns no socket and reads no clock: it takes an
//! [`Event`] and the time, and appends [`Action`]s to a list. Its timers are moments in its state; [`Session::next_deadline`]
//! says when [`Event::Timers`] is due. So a whole network of sessions runs in a test, in any order of events, from a seed.
//!
//! **One session, two places.** The RFC describes one machine per connection and lets them collide. Here one session has two
//! [`Slot`]s for connections and is in the state of the one that is further. Whatever opens a place ([`Action::Connect`],
//! [`Action::Accept`]) is followed by exactly one [`Action::Close`] of that place; in between the driver reports what it sees
//! on it. A driver therefore needs two sockets per peer and no opinion. Messages are values here: bytes are the business of
//! [`crate::wire`], and what is wrong with bytes arrives as [`Event::Error`] with the NOTIFICATION that the codec chose.
//!
//! **The fast path** is [`Session::on_update`], [`Session::on_sent`] and [`Session::on_written`]: no list, no allocation.
//!
//! Files, in the order of a session's life: `config` says what is wanted and which changes the peer has to learn of,
//! `negotiate` builds OPEN and judges the peer's, `opening` holds attempts, acceptance and collisions, `connection` one
//! connection with its timers, `machine` the dispatch and everything while established, `ending` who is told what at the end
//! and what is kept, `retention` for how long, `damping` how long to wait before the next attempt, `history` what people may
//! want to see afterwards.
//!
//! Beside sessions: `key` is by what a peer is known, `dynamic` whom the listen ranges let in, `restarter` how long this
//! speaker waits for its peers after its own restart.
//!
//! Where this differs from the RFC, and why:
//!
//! - A connection that cannot be opened leads to Active, not to Idle: in Idle the peer's own connection would be refused.
//! - A connection of the peer that has not said OPEN does not stop our own attempts, is given up after
//!   [`INCOMING_OPEN_HOLD_TIME`] instead of four minutes, and whatever goes wrong on it is no failure to wait after: not
//!   only the peer can open connections from its address.
//! - A collision is decided by the speaker with the higher identifier, as soon as one of the two OPENs is there; the other
//!   one waits for that with its KEEPALIVE (`opening`). As the RFC has it, there are orders of messages in which each speaker
//!   closes another connection, and none is left.
//! - The first failure after a quiet time costs no waiting (`damping`).
//! - An established session with a peer without graceful restart answers a second connection with a KEEPALIVE on the first:
//!   if the peer has rebooted, its kernel resets the old connection at once.
//!
//! **What is kept when a session ends** is one table, in `ending`. The rule for the other side is: the peer is sent a hard
//! reset (RFC 8538) exactly when we drop its paths ourselves. BFD down keeps paths only when BFD may have died together with
//! the peer's control plane (a C bit is missing, RFC 5882 section 4.3); BFD administratively down says nothing.
//!
//! What is ugly: [`Retain`] marks paths stale in tables this room does not see, and trusts the owner to sweep when told.
//!
//! RFCs: 4271 section 8, 2918 and 7313 (route refresh), 4486 and 9384 (Cease), 4724, 8538 and 9494 (restarts),
//! 5065 (kinds of peers), 5882 section 4 (BFD), 6286 (identifiers), 6608 (state machine errors), 7607 (AS 0), 9003 (shutdown
//! communication), 9234 (roles), 9687 (send hold timer).

pub mod config;
mod connection;
mod damping;
pub mod dynamic;
mod ending;
mod event;
pub mod history;
pub mod key;
mod machine;
mod negotiate;
pub mod negotiated;
mod opening;
pub mod restarter;
mod retention;

pub use config::{
    Confederation, ConfigError, FamilyConfig, HostName, RemoteAs, RestartConfig, RoleConfig, SendHold, SessionConfig,
};
pub use connection::{INCOMING_OPEN_HOLD_TIME, OPEN_HOLD_TIME, SEND_HOLD_TIME};
pub use damping::DampingConfig;
pub use dynamic::{AdmitError, DynamicPeers, ListenRange};
pub use event::{Action, BfdChange, Down, DownCause, Event, Fact, Outgoing, Retain, Slot, State, Stop, StopReason};
pub use history::{Direction, Entry, History, MessageCounts, MessageRecord, Record};
pub use key::{IfName, PeerKey, PeerKeyError};
pub use machine::Session;
pub use negotiate::{LocalRestart, negotiate, our_open};
pub use negotiated::{Negotiated, NegotiatedFamily, PeerKind, PeerRestart};
pub use opening::{COLLISION_TIME, PROBE_INTERVAL};
pub use restarter::{Restarter, SELECTION_DEFERRAL};
pub use retention::{REFRESH_TIME, Stage};

#[cfg(test)]
mod tests;
