//! What happens to a session, and what a session wants done.

use std::{fmt, time::Duration};

use serde::Serialize;

use super::{config::SessionConfig, negotiated::Negotiated};
use crate::{
    family::{Family, PerFamily},
    wire::{header::MessageType, notification::Notification, open::Open, route_refresh::RouteRefresh},
};

/// One of the two places for a connection. A session never has more than two: while two collide, or while a peer that has
/// restarted opens a new connection before the old one is known to be dead. Who opened a connection is not said by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The first place.
    First,
    /// The second place.
    Second,
}

impl Slot {
    /// Both.
    pub const ALL: [Self; 2] = [Self::First, Self::Second];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// As an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// States of RFC 4271 section 8.2.2. A session is in the state of its most advanced connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum State {
    /// Nothing is tried: not started, or waiting after a failure.
    Idle,
    /// A connection is being opened.
    Connect,
    /// Waiting for the peer's connection, or for the next attempt.
    Active,
    /// Our OPEN is out.
    OpenSent,
    /// OPENs have been exchanged.
    OpenConfirm,
    /// Routes are exchanged.
    Established,
}

impl State {
    /// All, in the order of progress.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Connect, Self::Active, Self::OpenSent, Self::OpenConfirm, Self::Established];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Something happened. Numbers are the events of RFC 4271 section 8.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// 1, 3 to 7: the session is wanted. Also ends any waiting.
    Start,
    /// 2, 8: it is not wanted any more.
    Stop(Stop),
    /// An operator wants a new session; with words for the peer's operator.
    Reset {
        /// Shutdown communication; may be empty.
        communication: String,
    },
    /// The configuration is another one. Ends the session when the peer has to learn of the change.
    Reconfigure(Box<SessionConfig>),
    /// 9 to 13: [`super::Session::next_deadline`] may have passed.
    Timers,
    /// The peer may be reachable now: its address became known, the link came up. Connects without waiting further.
    Reachable,
    /// The link to the peer is down.
    LinkDown,
    /// What BFD says about the path to the peer.
    Bfd(BfdChange),
    /// The peer sent more prefixes than it may.
    PrefixLimit {
        /// Of this family.
        family: Family,
        /// The limit.
        maximum: u32,
    },
    /// 17: the peer opened a connection. Answered by [`Action::Accept`] or [`Action::Refuse`], and nothing is closed for it.
    Accepted,
    /// 16: the connection that [`Action::Connect`] asked for is open.
    Connected(Slot),
    /// 18: a connection could not be opened, or has gone, with the system's words for it.
    Closed(Slot, String),
    /// 19, 20: OPEN.
    Open(Slot, Open),
    /// 21, 22, 28, and whatever else ends a connection with a NOTIFICATION from us: a malformed header, OPEN or UPDATE, a
    /// peer that takes too many of our resources.
    Error(Slot, Notification),
    /// 24, 25: NOTIFICATION. The connection counts as closed.
    Notification(Slot, Notification),
    /// 26: KEEPALIVE.
    Keepalive(Slot),
    /// 27: UPDATE. [`super::Session::on_update`] does the same without a list of actions.
    Update(Slot),
    /// ROUTE-REFRESH.
    Refresh(Slot, RouteRefresh),
    /// The peer has sent all its routes of a family: End-of-RIB (RFC 4724 section 2).
    EndOfRib(Slot, Family),
    /// Ask the peer for all its routes of a family again.
    RequestRefresh(Family),
    /// This speaker has recovered from its restart; later OPENs no longer say "restarted".
    RestartOver,
}

/// Why a session is not wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The reason.
    pub reason: StopReason,
    /// Shutdown communication (RFC 9003); may be empty.
    pub communication: String,
}

/// Reasons to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// An operator wants it down.
    Shutdown,
    /// The peer is no longer in the configuration.
    Deconfigured,
    /// This speaker restarts and will be back: with graceful restart the connection is closed without a word, so that the
    /// peer keeps our paths.
    Restart,
}

/// What BFD says (RFC 5882).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BfdChange {
    /// The path works.
    Up,
    /// The path is dead.
    Down {
        /// Neither side's BFD shares the fate of its control plane: both sent the C bit. Then forwarding is dead, too, and
        /// nothing is kept; otherwise the peer may only be restarting (RFC 5882 section 4.3).
        control_plane_independent: bool,
    },
    /// The peer's operator switched BFD off; says nothing about the path (RFC 5882 section 3.2).
    AdminDown,
}

/// Something to be done, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a connection; answer with [`Event::Connected`] or [`Event::Closed`].
    Connect(Slot),
    /// The connection of [`Event::Accepted`] is wanted and has this place.
    Accept(Slot),
    /// The connection of [`Event::Accepted`] is not wanted: close it without a word.
    Refuse,
    /// Send a message.
    Send(Slot, Outgoing),
    /// Close the connection or the attempt, after what was sent has been handed to the kernel. Nothing more about it is to be
    /// reported; the place is free.
    Close(Slot),
    /// The session waits for BFD: watch the path of this connection and answer with [`Event::Bfd`] when it works, at once when
    /// that is known already.
    WatchPath(Slot),
    /// Established: routes may be exchanged on this connection.
    Up(Slot, Box<Negotiated>),
    /// No longer established.
    Down(Down),
    /// The peer wants all our routes of a family again.
    Resend(Family),
    /// The peer begins to send all its routes of a family again: mark those it sent before (RFC 7313 section 4).
    RefreshBegan(Family),
    /// The peer has sent all of them again, or had time enough: remove what is still marked.
    RefreshEnded(Family),
    /// Remove what is stale of this peer and family since a session was lost.
    Sweep(Family),
    /// What is stale of this peer and family is long-lived stale from now on (RFC 9494 section 4.2).
    LongLived(Family),
    /// Something an operator may want to know.
    Fact(Fact),
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// OPEN.
    Open(Open),
    /// KEEPALIVE.
    Keepalive,
    /// NOTIFICATION.
    Notification(Notification),
    /// ROUTE-REFRESH.
    Refresh(RouteRefresh),
}

/// The end of an established session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// Why.
    pub cause: DownCause,
    /// What to do with the peer's paths.
    pub retain: Retain,
}

/// What becomes of a peer's paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// All are removed.
    Drop,
    /// Those of these families are marked stale and stay until [`Action::Sweep`]; others are removed.
    Stale(PerFamily<bool>),
}

impl Retain {
    /// The families whose paths stay.
    #[must_use]
    pub fn families(self) -> PerFamily<bool> {
        match self {
            Self::Drop => PerFamily::default(),
            Self::Stale(families) => families,
        }
    }
}

/// Why a connection or session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownCause {
    /// Stopped by us.
    Stopped(StopReason),
    /// Reset by us.
    Reset,
    /// The peer has to learn of this part of the configuration.
    Reconfigured(&'static str),
    /// The peer was silent for the hold time.
    HoldTimer,
    /// The peer took nothing from us for the send hold time.
    SendHoldTimer,
    /// The peer reported an error.
    Received(Notification),
    /// We reported an error.
    Sent(Notification),
    /// The connection was lost.
    Lost(String),
    /// Nothing came back for an attempt to connect, neither a yes nor a no.
    NoAnswer,
    /// The peer opened a new connection after a restart.
    Replaced,
    /// BFD says that the path is dead.
    Bfd {
        /// See [`BfdChange::Down`].
        control_plane_independent: bool,
    },
    /// The link is down.
    LinkDown,
    /// The peer sent too many prefixes.
    PrefixLimit {
        /// Of this family.
        family: Family,
        /// The limit.
        maximum: u32,
    },
}

impl fmt::Display for DownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(StopReason::Shutdown) => f.write_str("stopped by the operator"),
            Self::Stopped(StopReason::Deconfigured) => f.write_str("removed from the configuration"),
            Self::Stopped(StopReason::Restart) => f.write_str("this speaker restarts"),
            Self::Reset => f.write_str("reset by the operator"),
            Self::Reconfigured(what) => write!(f, "configuration changed: {what}"),
            Self::HoldTimer => f.write_str("hold timer expired"),
            Self::SendHoldTimer => f.write_str("send hold timer expired"),
            Self::Received(notification) => write!(f, "received {notification}"),
            Self::Sent(notification) => write!(f, "sent {notification}"),
            Self::NoAnswer => f.write_str("no answer to the attempt to connect"),
            Self::Lost(words) => write!(f, "connection lost: {words}"),
            Self::Replaced => f.write_str("replaced by a new connection of the restarted peer"),
            Self::Bfd { .. } => f.write_str("BFD down"),
            Self::LinkDown => f.write_str("link down"),
            Self::PrefixLimit { family, maximum } => write!(f, "more than {maximum} {family} prefixes"),
        }
    }
}

/// Something that happened and needs nothing done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The session's state changed.
    State {
        /// From this.
        from: State,
        /// To this.
        to: State,
    },
    /// A connection ended before it was established. An established one ends with [`Action::Down`].
    Failed(DownCause),
    /// Nothing is tried for this time; `None`: until somebody starts the session.
    Waiting(Option<Duration>),
    /// Two connections collided, and the one that was opened by this side stays.
    Collision {
        /// We opened the connection that stays.
        ours_stays: bool,
    },
    /// A connection of the peer was refused.
    Refused(&'static str),
    /// A message of the peer was ignored.
    Ignored(MessageType, &'static str),
    /// The peer cannot be asked to send its routes again.
    RefreshUnsupported(Family),
    /// The peer was away longer than its restart time.
    RestartTimeOver,
}
