//! The driver of the datapath benchmark: makes a packet and calls the program that is measured.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on the packet that the run before left behind. So what is repeated is one of these
//! programs: it restores the frame from [`DRIVE`], writes the source of the flow whose turn it is, and goes on to the program under
//! test by a tail call, which costs little and the same for all. With an empty program behind the call it is the floor that is
//! subtracted. Beside it are the two ways to find an identity, to be compared.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

// What the datapath does, on the tables of the datapath.
#[path = "../src/maps/identities.rs"]
mod identities;

use aya_ebpf::{
    bindings::{TC_ACT_OK, xdp_action},
    btf_maps::{Array, LpmTrie, ProgramArray},
    helpers::bpf_map_lookup_elem,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use meshd_abi::{CidrKey, Identity, V4};
use meshd_steps::Frame;

/// Words of a frame at most.
const WORDS: usize = 10;
/// Words of a frame of IPv4: the least that Ethernet sends.
const WORDS4: usize = 8;
/// Where the lower half of an IPv4 or IPv6 source address is in a frame, and the source port behind headers without options.
const SOURCE4: (usize, usize) = (26, 34);
const SOURCE6: (usize, usize) = (34, 54);

/// What the driver makes. The benchmark has the same structure.
#[repr(C)]
pub struct Drive {
    /// Packets so far.
    turn: u64,
    /// Number of flows; 0: each packet has a flow of its own.
    flows: u32,
    /// The source address of flow 0, its last four octets, host byte order.
    address: u32,
    /// The source port of flow 0, host byte order.
    port: u32,
    /// Flows of one address, as a power of two: they differ by port.
    port_bits: u32,
    /// The frame.
    frame: [u64; WORDS],
}

#[btf_map]
static DRIVE: Array<Drive, 1> = Array::new();
#[btf_map]
static XDP_UNDER_TEST: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static TC_UNDER_TEST: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static TRIE: LpmTrie<V4, Identity, 1_048_576> = LpmTrie::new();

/// Makes the next packet.
#[inline(always)]
fn make<const N: usize>(frame: &Frame, (address_at, port_at): (usize, usize)) -> Option<()>
where
    [u64; N]: meshd_steps::frame::Plain,
{
    let drive = DRIVE.get_ptr_mut(0)?;
    // SAFETY: one test runs at a time, on one CPU.
    let drive = unsafe { &mut *drive };
    drive.turn = drive.turn.wrapping_add(1);
    let flow = if drive.flows == 0 {
        drive.turn as u32
    } else {
        // The upper half of a product with an odd constant is spread evenly, and neighbors in it are far apart.
        let hash = drive.turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((hash * u64::from(drive.flows)) >> 32) as u32
    };
    let mut words = [0; N];
    for (to, from) in words.iter_mut().zip(&drive.frame) {
        *to = *from;
    }
    let bits = drive.port_bits & 15;
    let address = drive.address.wrapping_add(flow >> bits).to_be();
    let port = (drive.port.wrapping_add(flow & ((1 << bits) - 1)) as u16).to_be();
    let all = frame.write(0, words) && frame.write(address_at, address) && frame.write(port_at, port);
    if all { Some(()) } else { None }
}

macro_rules! drivers {
    ($($name:ident: $attribute:ident, $context:ty, $words:expr, $source:expr, $array:ident => $failed:expr, $verdict:ty;)*) => {
        $(
            /// Makes a packet and calls the program under test.
            #[$attribute]
            pub fn $name(ctx: $context) -> $verdict {
                // SAFETY: the kernel gives a packet's bounds.
                let frame = unsafe { Frame::new(ctx.data(), ctx.data_end()) };
                if make::<{ $words }>(&frame, $source).is_some() {
                    // SAFETY: nothing here is left to be dropped.
                    unsafe { $array.tail_call(&ctx, 0) };
                }
                $failed
            }
        )*
    };
}

/// What no program under test answers: the call failed.
const FAILED: u32 = 99;

drivers! {
    drive_xdp4: xdp, XdpContext, WORDS4, SOURCE4, XDP_UNDER_TEST => FAILED, u32;
    drive_xdp6: xdp, XdpContext, WORDS, SOURCE6, XDP_UNDER_TEST => FAILED, u32;
    drive_tc4: classifier, TcContext, WORDS4, SOURCE4, TC_UNDER_TEST => FAILED as i32, i32;
    drive_tc6: classifier, TcContext, WORDS, SOURCE6, TC_UNDER_TEST => FAILED as i32, i32;
}

/// The floor.
#[xdp]
pub fn empty_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The floor.
#[classifier]
pub fn empty_tc(_ctx: TcContext) -> i32 {
    TC_ACT_OK as i32
}

/// Finds the identity of the source as the datapath does.
#[xdp]
pub fn identity_exact(ctx: XdpContext) -> u32 {
    let Some(source) = source(&ctx) else { return xdp_action::XDP_ABORTED };
    let found = identities::find(source);
    if found.is_some_and(|identity| identity.identity != 0) { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}

/// Finds the identity of the source in a trie of prefixes.
#[xdp]
pub fn identity_trie(ctx: XdpContext) -> u32 {
    let Some(source) = source(&ctx) else { return xdp_action::XDP_ABORTED };
    let key = CidrKey { length: 32, address: source };
    // SAFETY: `CidrKey` has the layout of the kernel's key, and nobody writes to the table meanwhile.
    let found = unsafe {
        bpf_map_lookup_elem((&raw const TRIE).cast_mut().cast(), (&raw const key).cast()).cast::<Identity>().as_ref()
    };
    if found.is_some_and(|identity| identity.identity != 0) { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}

#[inline(always)]
fn source(ctx: &XdpContext) -> Option<V4> {
    // SAFETY: the kernel gives a packet's bounds.
    unsafe { Frame::new(ctx.data(), ctx.data_end()) }.read(SOURCE4.0)
}

/// The kernel compares this with its list of GPL-compatible licences when it loads a program.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
