//! Hands and ears of the BGP speaker: sockets, threads and files around the decisions of crate `bgp`.
//!
//! [`bfd`] watches paths from a thread of its own. [`bmp`] feeds monitoring stations and [`mrt`] writes files, both without
//! ever making the speaker wait.

pub mod bfd;
pub mod bmp;
pub mod mrt;
