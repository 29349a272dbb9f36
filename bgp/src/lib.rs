//! What the BGP RFCs say, as pure code.
//!
//! Bytes and events go in, values and actions come out. This crate opens no socket, reads no clock and draws no random
//! number: whoever drives it says what time it is and carries the bytes, so that every decision can be replayed, fuzzed
//! and simulated without a network. `meshd::speaker` is the one that drives it over TCP.
//!
//! [`wire`] knows messages, [`session`] when to send which, [`policy`] which paths pass. `README.md` lists the RFCs with their modules and tests.

#![forbid(unsafe_code)]

pub mod bfd;
pub mod bmp;
pub mod family;
pub mod fuzzing;
pub mod id;
pub mod mrt;
mod next_hop;
pub mod policy;
pub mod rib;
pub mod session;
pub mod speaker;
pub mod wire;

pub use family::{Family, PerFamily, Prefix};
pub use id::{Asn, Moment, PathId, PeerId, RouterId};
pub use next_hop::NextHop;

#[cfg(test)]
#[path = "standards_tests.rs"]
mod standards;
