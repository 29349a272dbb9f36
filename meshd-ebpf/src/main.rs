//! What the kernel runs for meshd.
//!
//! One file per program, and `steps/` for what programs share. A packet enters a program, the program takes the steps it
//! needs in order, and it leaves with a verdict; everything that outlives the packet sits in a map ([`maps`]) whose bytes are
//! described once, in `meshd-abi`. What needs no kernel (parsing, sums, hashes) is in `meshd-steps` and tested on the host.
//!
//! ```text
//!            outside                                                         workload
//!   ┌───────────▼─────────────┐                                   ┌─────────────▼─────────────┐
//!   │ xdp_uplink              │ services, answers                 │ workload_ingress          │ services, answers
//!   │ uplink_ingress (TC)     │ the same for what XDP left        │   (TC, from the workload) │
//!   └───────────┬─────────────┘                                   └─────────────┬─────────────┘
//!               ▼          routing and netfilter of the kernel, or past them    ▼
//!   ┌───────────┴─────────────┐                                   ┌─────────────┴─────────────┐
//!   │ uplink_egress (TC)      │ answers, masquerade               │ workload_egress           │ answers
//!   └───────────▼─────────────┘                                   └─────────────▼─────────────┘
//! ```
//!
//! Sockets below the configured control group need none of this: `socket_connect` and `socket_send` put a backend in place of the
//! service before there is a packet, and `socket_receive` and `socket_peer` show the service to the process (`steps/socket.rs`).
//!
//! ICMP errors take the same ways (`steps/related.rs`): a TC program that meets one translates it like an answer of the connection
//! that it is about.
//!
//! Three rules of this room come from the verifier. Nothing here may panic: a panic path compiles to an endless loop and the
//! kernel refuses the program, so every access is bounded by a visible comparison. A packet pointer is read from the
//! context once and carried: reading it again gives a new pointer without the proven range. And what is inlined here is
//! inlined because an argument that is a context or a packet pointer does not survive a call.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "this target's atomics have no addition, and counters of socket programs need one"
)]

#[macro_use]
mod context;
mod maps;
mod socket_connect;
mod socket_peer;
mod socket_receive;
mod socket_send;
mod steps;
mod tunnel_egress;
mod tunnel_ingress;
mod uplink_egress;
mod uplink_ingress;
mod workload_egress;
mod workload_ingress;
mod xdp_uplink;

/// The kernel compares this with its list of GPL-compatible licences when it loads a program.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
