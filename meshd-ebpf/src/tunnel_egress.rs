//! TC program `tunnel_egress`: what leaves through the tunnel's link. It is treated as at an uplink, and then put into a frame for the
//! other node, which leaves by the uplink.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use meshd_abi::{Address, V4, V6, mark};
use meshd_steps::header::ethertype;

use crate::{
    context::{Context, is_of_vlan, linear},
    steps::{
        deliver,
        related::{UPLINK_EGRESS, or_related},
        tunnel::send,
    },
    uplink_egress::{uplink_egress4, uplink_egress6},
    uplink_ingress::HEADERS,
};

/// Decides about one packet.
#[classifier]
pub fn tunnel_egress(ctx: TcContext) -> i32 {
    if is_of_vlan(&ctx) {
        return deliver::tc_unread(&ctx);
    }
    linear(&ctx, HEADERS);
    let frame = ctx.frame();
    // SAFETY: the context is valid while the program runs.
    let is_past = unsafe { (*ctx.skb.skb).mark & mark::PAST == mark::PAST };
    let verdict = match ethertype(&frame) {
        Some(V4::ETHERTYPE | V6::ETHERTYPE) if is_past => deliver::tc_unread(&ctx),
        Some(V4::ETHERTYPE) => or_related::<V4>(uplink_egress4(ctx.skb.skb), &ctx, UPLINK_EGRESS),
        Some(V6::ETHERTYPE) => or_related::<V6>(uplink_egress6(ctx.skb.skb), &ctx, UPLINK_EGRESS),
        _ => return deliver::tc_unread(&ctx),
    };
    if verdict == TC_ACT_UNSPEC { send::tc(&ctx) } else { verdict }
}
