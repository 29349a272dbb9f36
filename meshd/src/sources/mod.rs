//! ① Sources: what writes observed tables.
//!
//! A source subscribes, lists and follows one kind of upstream and sends [`Change`](meshd_core::observed::Change)s into
//! the pipeline's bounded channel. Sources know nothing of each other, of derivation or of reconcilers (I3).

pub mod config;
pub mod etcd;
mod folders;
pub mod masquerade;
pub mod netlink;
pub mod probes;
