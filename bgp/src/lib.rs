//! What the BGP RFCs say, as pure code.
//!
//! Bytes and events go in, values and actions come out. This crate opens no socket, reads no clock and draws no random
//! number: whoever drives it says what time it is and carries the bytes, so that every decision can be replayed, fuzzed
//! and simulated without a network. `meshd::speaker` is the one that drives it over TCP.
//!
//! So far it holds the outermost layer of the wire format, [`wire::header`]: enough to cut a TCP stream into messages and
//! to refuse what RFC 4271 section 6.1 refuses. `README.md` says what comes next to it.

#![forbid(unsafe_code)]

pub mod fuzzing;
pub mod wire;
