//! What the kernel runs for meshd.
//!
//! One file per program, and `steps/` for what programs share. A packet enters a program, the program takes the steps it
//! needs in order, and it leaves with a verdict; everything that outlives the packet sits in a map whose bytes are
//! described once, in `meshd-abi`.
//!
//! Two rules of this room come from the verifier. Nothing here may panic: a panic path compiles to an endless loop and the
//! kernel refuses the program, so every access is bounded by a visible comparison. And a packet pointer is read from the
//! context once per program and carried: reading it again gives a new pointer without the proven range.
//!
//! So far there is one program, [`count`]. It is small on purpose: it proves that compiler, linker, loader, pins and
//! attachment work on a machine before anything depends on them.

#![no_std]
#![no_main]

mod count;
mod steps;

/// The kernel compares this with its list of GPL-compatible licences when it loads a program.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
