//! What meshd asks of the kernel, and what the kernel tells back.
//!
//! Everything here is hands: no decision is taken in this room. [`KernelRoutes`] carries out the actions of a plan in
//! their order and reports each failure; beside it runs a stream of [`ActualChange`]s, which is the only thing a planner
//! may believe about the kernel (invariant I6). [`linux`] is the real kernel, [`fake`] one in memory with the same
//! semantics, for the simulation and for tests without root. [`nftables`] holds our table of the packet filter, and [`sockets`] ends sockets.
//!
//! Data passes like this:
//!
//! ```text
//!  plan ── Vec<Action> ──► writer thread ── 512 messages a send ──► kernel
//!               ▲  failures │                                          │
//!               └───────────┘                                          │ multicast, filtered by a socket filter
//!  actual table ◄── Vec<ActualChange> ── events thread ◄───────────────┘ and full dumps
//! ```
//!
//! What is ugly: the kernel removes routes and nexthop objects without a word when a link goes down or an address
//! vanishes, so the events thread dumps again after such an event; and `NLM_F_REPLACE` does not ask whose route it
//! replaces, so a foreign route that took exactly our prefix, table and metric in the moment between our last look and
//! the replacement would be replaced. Additions and deletions have no such gap.

pub mod fake;
pub mod linux;
pub mod nftables;
pub mod sockets;

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use meshd_core::plan::{Action, ActualChange};
use nix::errno::Errno;
use tokio::sync::{mpsc, oneshot};

/// Most batches of actions that wait for the writer; `submit` waits for room.
pub const ACTION_BATCHES_MAX: usize = 8;
/// Most batches of changes that wait for the planner; the events thread waits for room, the kernel's buffer takes the
/// rest, and its overflow leads to a new dump.
pub const EVENT_BATCHES_MAX: usize = 16;
/// Most changes in one batch.
pub const EVENT_BATCH_LEN: usize = 4096;

/// Batches of what the kernel said about our routes and nexthop objects, in its order.
pub type ActualEvents = mpsc::Receiver<Vec<ActualChange>>;

/// Writes routes and nexthop objects.
pub trait KernelRoutes: Send + Sync + 'static {
    /// Queues `actions` behind everything submitted earlier and returns when they are queued. They are carried out in
    /// order; a failure does not stop those that follow. Batches submitted without waiting for the receipts are pipelined.
    fn submit(&self, actions: Vec<Action>) -> BoxFuture<'_, Result<Receipt, KernelError>>;

    /// Asks for a full dump on the event stream. Requests coalesce.
    fn request_dump(&self);

    /// Submits `actions` and waits for the kernel's answers.
    fn apply(&self, actions: Vec<Action>) -> BoxFuture<'_, Result<Vec<Failure>, KernelError>> {
        Box::pin(async move { self.submit(actions).await?.await })
    }
}

/// Resolves to the failures of one batch, in order, once the kernel has answered all of it.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Vec<Failure>>);

impl Receipt {
    /// A receipt and where its answer goes.
    fn new() -> (oneshot::Sender<Vec<Failure>>, Self) {
        let (tx, rx) = oneshot::channel();
        (tx, Self(rx))
    }
}

impl Future for Receipt {
    type Output = Result<Vec<Failure>, KernelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll(cx)).map_err(|_| KernelError::Stopped))
    }
}

/// An action that did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Position in the submitted batch.
    pub index: usize,
    /// The action.
    pub action: Action,
    /// Why not.
    pub reason: Refusal,
}

impl Failure {
    /// True when a deletion failed because there was nothing to delete: the wish is fulfilled, only the actual table
    /// did not know.
    #[must_use]
    pub fn is_already_gone(&self) -> bool {
        self.action.is_delete() && matches!(self.reason.errno(), Some(Errno::ESRCH | Errno::ENOENT))
    }

    /// True when an addition found something under the same key: either a foreign object, or one of ours that the actual
    /// table did not know. A dump tells which.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.reason.errno() == Some(Errno::EEXIST)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {}", self.action, self.reason)
    }
}

impl std::error::Error for Failure {}

/// Why the kernel, or the writer before it, refused an action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The kernel's answer, with the text it gives for most refusals.
    #[error("{}{}", errno, message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Kernel {
        /// Error number.
        errno: Errno,
        /// Extended acknowledgement text.
        message: Option<Arc<str>>,
    },
    /// The answers of this batch did not arrive; what happened is known after the next dump.
    #[error("the kernel's answer was lost")]
    AnswerLost,
    /// The action names something outside our ranges; nothing was sent.
    #[error("nexthop id {0} is outside our range")]
    NotOwned(u32),
    /// The object does not fit into one message; nothing was sent.
    #[error("{0} next hops do not fit into one message")]
    TooManyHops(usize),
    /// The destination and a next hop cannot be combined; nothing was sent.
    #[error("an IPv6 destination cannot have an IPv4 next hop")]
    HopFamily,
}

impl Refusal {
    /// The kernel's error number, when it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::AnswerLost | Self::NotOwned(_) | Self::TooManyHops(_) | Self::HopFamily => None,
        }
    }
}

/// Why the kernel cannot be talked to at all.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KernelError {
    /// A system call on a socket failed.
    #[error("failed to {operation}")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The thread that would do it has ended.
    #[error("the kernel route writer has stopped")]
    Stopped,
}

impl KernelError {
    /// Wraps an I/O error with the operation that failed.
    pub(crate) fn socket(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Socket { operation, source: Arc::new(source) }
    }

    /// Wraps an error number with the operation that failed.
    pub(crate) fn errno(operation: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Socket { operation, source: Arc::new(errno.into()) }
    }
}
