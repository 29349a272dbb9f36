//! XDP program `count`: adds every frame of a link to the counters of its protocol class and lets it pass.
//!
//! The counters are a per-CPU array: one CPU writes its own copy, so no atomic operation is needed, and the reader adds
//! the copies up. The map is pinned by name, which keeps the totals over a restart of the daemon.

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::PerCpuArray,
    programs::XdpContext,
};
use meshd_abi::{Counter, ProtocolClass};

use crate::steps::ethernet;

/// One [`Counter`] per [`ProtocolClass`], indexed by its discriminant.
#[map(name = "packets")]
static PACKETS: PerCpuArray<Counter> = PerCpuArray::pinned(ProtocolClass::COUNT, 0);

/// Counts one frame. Never drops: a frame whose class has no counter passes uncounted.
#[xdp]
pub fn count(ctx: XdpContext) -> u32 {
    let frame = ethernet::Frame::new(&ctx);
    let class = frame.protocol_class();
    if let Some(counter) = PACKETS.get_ptr_mut(class as u32) {
        // SAFETY: the helper returned a pointer to this CPU's copy of an existing element; an XDP program is not
        // preempted by another run of itself on the same CPU, so nobody else writes to it meanwhile.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += frame.len();
        }
    }
    xdp_action::XDP_PASS
}
