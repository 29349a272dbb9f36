//! meshd-store: an etcd v3 compatible server inside the process.
//!
//! A cluster publishes itself in an etcd. Two hosts that want to be a mesh should not need one to operate, so this
//! crate answers the part of the etcd v3 API that readers and writers of a mesh use: KV, Watch, Lease, the questions
//! of Auth, Cluster and Maintenance, with users by client certificate. One process, one member, no consensus; a real
//! etcd takes over where more is needed.
//!
//! How data passes: a connection ([`server`](crate) room) decodes a request and checks it against the user's spans
//! ([`auth`](crate)); writes get a place in the queue to the disk, change the engine under its lock and wait for their
//! group to be synced ([`disk`](crate)); only then are they published to readers and watches ([`watch`](crate)).
//! Reads look at the published revision and never wait.
//!
//! Why so: the one thing a store must not do is give the same revision two meanings. A reader that saw revision 10
//! asks to continue at 11; if a crash could take 10 back, it would miss whatever 10 becomes afterwards and nobody would
//! notice. So nothing is shown before it is durable, and if the history is lost all the same (no file, unreadable
//! file) the cluster id changes, which makes every reader start over.
//!
//! Bounds: keys, history, request size, operations per transaction, leases, connections, watches and streams per
//! user, answers that are not read (`answers`) and the queue to the disk are all bounded by named constants; see [`Limits`]
//! and [`StoreOptions`]. A watch has no event queue at all.
//!
//! Not pretty: the Auth service is dispatched by hand, because two of its message types are not exported by the crate
//! that generates the others.

mod answers;
pub mod auth;
mod disk;

pub mod engine;
pub mod fuzzing;
mod server;
mod store;
mod watch;

pub use answers::{ANSWER_BYTES_MAX, ANSWER_WAIT_MAX};
pub use auth::{AuthConfig, Permission, PermissionKind, Role, User};
pub use disk::HistoryLoss;
pub use engine::{KeySpan, Limits, Revision};
pub use server::tls::{ServerTls, TlsError};
pub use store::{
    CONNECTIONS_MAX, OpenReport, STREAMS_PER_USER_MAX, Store, StoreError, StoreOptions, StoreStatus,
    WATCH_PROGRESS_INTERVAL, WATCHES_PER_STREAM_MAX, WATCHES_PER_USER_MAX,
};
