//! What programs do with a packet, as far as it needs no kernel: looking at headers, sums, choices by hash.
//!
//! The programs in `meshd-ebpf` and the tests on the host compile the same functions. Every access to a packet goes
//! through [`Frame`], which compares with the end of the packet before it reads: the verifier demands it, and on the host
//! it is what makes the accesses sound.

#![no_std]

pub mod bucket;
pub mod checksum;
pub mod choose;
pub mod dsr;
pub mod frame;
pub mod header;
pub mod hop;
pub mod icmp;
pub mod identity;
pub mod packed;
pub mod policy;
pub mod rewrite;
pub mod tunnel;

pub use frame::Frame;
pub use header::{Packet, Part, Skip, parse};
