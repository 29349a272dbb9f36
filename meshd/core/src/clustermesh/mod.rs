//! The records of the ClusterMesh etcd contract: keys, values and the checks of a careful reader.
//!
//! A store is written by somebody else. Whatever it holds passes through [`accept_upsert`], which either gives a row or a
//! [`Rejection`] that says which check failed (invariant I12); nothing else turns foreign bytes into rows. Before that, the
//! cluster-config of the store must have passed [`cluster_config::accept`], because the checks need the cluster's id.
//!
//! In the other direction each record has an `encode` that writes what readers of release 1.20 expect, byte for byte as
//! Go would: field order, `null`, `""`, omitted fields and escapes.
//!
//! [`over_bgp`] is for clusters without a store, whose prefixes BGP tells.
//!
//! One file per record: [`cluster_config`], [`node`], [`ip`], [`identity`], [`service`], [`service_export`],
//! [`endpointslice`], [`heartbeat`]; [`keys`] for the keyspace. [`context`](PeerContext) knows what a cluster may claim.
//!
//! Two choices differ from other readers. A record is refused as a whole when any part of it is: half a node is not a
//! node. And the accept lists of the configuration are checked here, before anything is stored, so that every later stage
//! may trust every row.

mod address;
pub mod cluster_config;
mod context;
pub mod endpointslice;
pub mod export;
mod go_json;
pub mod heartbeat;
pub mod identity;
mod interner;
pub mod ip;
pub mod keys;
mod labels;
pub mod node;
pub mod over_bgp;
pub mod reader;
mod record;
mod rejection;
pub mod service;
pub mod service_export;

pub use address::{PREFIX_MIN_V4, PREFIX_MIN_V6, mask_text, special_range};
pub use context::{Accept, PeerContext};
pub use interner::{INTERNED_LEN_MAX, INTERNER_MAX, Interner};
pub use keys::{Key, KeyError, KeyKind, Keyspace};
pub use labels::LABELS_TEXT_MAX;
pub use record::{Record, RecordKey, Refused, VALUE_MAX, accept_upsert, key_text, parse_delete};
pub use rejection::{EXCERPT_MAX, Excerpt, MaskProblem, Overlap, Rejection, SpecialRange};
