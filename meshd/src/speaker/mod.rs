//! Hands and ears of the BGP speaker: sockets, threads and files around the decisions of crate `bgp`.
//!
//! [`bfd`] watches paths from a thread of its own.

pub mod bfd;
