//! Watches: who waits for which keys, and what each of them has still to be told. No sockets here.
//!
//! A watch has no queue of events. It knows the next revision it has to look at, and at most
//! [`PENDING_REVISIONS_MAX`] revisions that are known to concern it; when more come than that it falls back to reading
//! the history from the first of them. Either way the events themselves stay in the engine's history until the moment
//! they are sent, so a client that does not read holds no memory, and when compaction overtakes it the watch is
//! cancelled as etcd does, and the client lists again.
//!
//! When revisions are published, each change looks up the watches it concerns in an index by prefix, and marks them.
//! Watches that are not concerned cost nothing.

mod hub;
mod index;

pub(crate) use hub::{Batch, Cancelled, Hub, StreamId, WatchLimits, WatchSpec};
