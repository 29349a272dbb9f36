//! Sessions with BGP peers: what to do when.

pub mod negotiated;

pub use negotiated::{Negotiated, NegotiatedFamily, PeerKind, PeerRestart};
