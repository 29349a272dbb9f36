//! Steps that programs share.
//!
//! A packet that a program knows is brought to its service or back ([`serve`], [`answer`], [`masquerade`]); the outcome is a
//! [`Decision`], which the program carries out ([`deliver`]). What is common to the three is [`connect`]: entries for both directions.

pub mod answer;
pub mod connect;
pub mod deliver;
pub mod dsr;
pub mod event;
pub mod fast;
pub mod fragment;
pub mod handover;
pub mod masquerade;
pub mod past;
pub mod related;
pub mod serve;
pub mod socket;
pub mod tunnel;

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use meshd_abi::{Address, Reason, Tuple};

/// What is to happen with a packet.
#[derive(Clone, Copy)]
pub enum Decision<A: Address> {
    /// It is none of ours.
    Pass,
    /// It ends here.
    Drop(Reason),
    /// It gets another tuple.
    Send(Send<A>),
}

/// How a packet goes on.
#[derive(Clone, Copy)]
pub struct Send<A: Address> {
    /// The tuple it gets, in the connection's own entry.
    pub tuple: &'static Tuple<A>,
    /// The element of `next_hops` to send it to; 0: ask the kernel.
    pub next_hop: u32,
    /// Its destination is a workload of this node.
    pub local: bool,
    /// The backend's index when answers do not come back this way (see [`dsr`]), otherwise 0, which no backend has.
    pub direct: u32,
    /// What it is counted as.
    pub reason: Reason,
    /// What is told of it, one of `meshd_abi::event_kind`; 0: nothing.
    pub event: u8,
}

/// Time in ticks of 2^30 nanoseconds (1.07 s) of the coarse monotonic clock, which user space reads as well.
#[inline(always)]
pub fn ticks() -> u32 {
    // SAFETY: the helper takes nothing.
    (unsafe { bpf_ktime_get_coarse_ns() } >> 30) as u32
}
