//! TC program `tunnel_ingress`: what came out of the tunnel, whoever took it out of its frame. It is treated as at an uplink.

use aya_ebpf::{macros::classifier, programs::TcContext};
use meshd_abi::{Address, V4, V6};
use meshd_steps::header::ethertype;

use crate::{
    context::{Context, is_of_vlan, linear},
    steps::{
        deliver, dsr, fast,
        related::{UPLINK_INGRESS, or_related},
        tunnel::receive,
    },
    uplink_ingress::{HEADERS, uplink_ingress4, uplink_ingress6},
};

/// Decides about one packet.
#[classifier]
pub fn tunnel_ingress(ctx: TcContext) -> i32 {
    if is_of_vlan(&ctx) {
        return deliver::tc_unread(&ctx);
    }
    linear(&ctx, HEADERS);
    if !receive::arrived(&ctx) {
        return receive::refuse(&ctx);
    }
    let frame = ctx.frame();
    match ethertype(&frame) {
        Some(V4::ETHERTYPE) => {
            let verdict = receive::innermost(fast::tc::<V4>(uplink_ingress4(ctx.skb.skb), &ctx), &ctx);
            or_related::<V4>(dsr::tc::<V4>(verdict, &ctx), &ctx, UPLINK_INGRESS)
        }
        Some(V6::ETHERTYPE) => {
            let verdict = receive::innermost(fast::tc::<V6>(uplink_ingress6(ctx.skb.skb), &ctx), &ctx);
            or_related::<V6>(dsr::tc::<V6>(verdict, &ctx), &ctx, UPLINK_INGRESS)
        }
        _ => deliver::tc_unread(&ctx),
    }
}
