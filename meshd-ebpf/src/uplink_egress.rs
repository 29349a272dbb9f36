//! TC program `uplink_egress`: what leaves this node. Answers of services that came through the stack get the address that was
//! asked, and what workloads send to the world gets the node's.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use meshd_abi::{Address, Reason, V4, V6, event_place, mark};
use meshd_steps::header::{ETHERNET, ethertype, parse};

use crate::{
    context::{Context, is_of_vlan, linear},
    maps::{self, Tables},
    steps::{
        self, Decision, deliver, event, fragment, handover,
        masquerade::masquerade,
        related::{UPLINK_EGRESS, or_related},
    },
    uplink_ingress::HEADERS,
};

/// Decides about one packet.
#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let is_past = unsafe { (*ctx.skb.skb).mark & mark::PAST == mark::PAST };
    if is_past || is_of_vlan(&ctx) {
        return deliver::tc_unread(&ctx);
    }
    linear(&ctx, HEADERS);
    let frame = ctx.frame();
    match ethertype(&frame) {
        Some(V4::ETHERTYPE) => or_related::<V4>(uplink_egress4(ctx.skb.skb), &ctx, UPLINK_EGRESS),
        Some(V6::ETHERTYPE) => or_related::<V6>(uplink_egress6(ctx.skb.skb), &ctx, UPLINK_EGRESS),
        _ => deliver::tc_unread(&ctx),
    }
}

families!(uplink_egress4, uplink_egress6, uplink, __sk_buff, TcContext, i32);

#[inline(always)]
fn uplink<A: Tables>(ctx: &TcContext) -> i32 {
    let frame = &ctx.frame();
    let length = ctx.length();
    let mut packet = match parse::<A, true>(frame, ETHERNET) {
        Ok(packet) => packet,
        Err(skip) => return deliver::tc_skip(skip, length),
    };
    let Some(settings) = maps::settings() else { return deliver::tc_pass(Reason::Passed, length) };
    if !fragment::complete(&mut packet) {
        return deliver::tc_pass(Reason::FragmentUnknown, length);
    }
    let now = steps::ticks();
    // SAFETY: the context is valid while the program runs.
    let mark = unsafe { (*ctx.skb.skb).mark };
    let decision = if handover::is_own_port(&packet, settings) && handover::holds(&packet) {
        Decision::Drop(Reason::ResetHeld)
    } else {
        masquerade(&packet, settings, mark, now)
    };
    event::decided(ctx, &packet, &decision, event_place::TO_NETWORK);
    let outcome = match decision {
        Decision::Pass => Ok(deliver::tc_pass(Reason::Passed, length)),
        Decision::Drop(reason) => Err(reason),
        // It is on its way out: the route was chosen and the hop counted.
        Decision::Send(send) => match ctx.translate(frame, &packet, send.tuple, false) {
            Some(()) => Ok(deliver::tc_pass(send.reason, length)),
            None => Err(Reason::RewriteFailed),
        },
    };
    outcome.unwrap_or_else(|reason| deliver::tc_drop(ctx, &packet, reason, event_place::TO_NETWORK))
}
