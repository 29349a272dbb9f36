//! TC program `workload_egress`: what the stack hands to a workload. Answers of the services it asked come from the backend and
//! get the service's address here, after netfilter has seen them as what they are.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use meshd_abi::{Address, Reason, V4, V6, event_place};
use meshd_steps::header::{ETHERNET, ethertype, parse};

use crate::{
    context::{Context, linear},
    maps::Tables,
    steps::{
        self, Decision,
        answer::answer,
        deliver, event, fragment,
        related::{WORKLOAD_EGRESS, or_related},
    },
    uplink_ingress::HEADERS,
};

/// Decides about one packet.
#[classifier]
pub fn workload_egress(ctx: TcContext) -> i32 {
    linear(&ctx, HEADERS);
    let frame = ctx.frame();
    match ethertype(&frame) {
        Some(V4::ETHERTYPE) => or_related::<V4>(workload_egress4(ctx.skb.skb), &ctx, WORKLOAD_EGRESS),
        Some(V6::ETHERTYPE) => or_related::<V6>(workload_egress6(ctx.skb.skb), &ctx, WORKLOAD_EGRESS),
        _ => deliver::tc_unread(&ctx),
    }
}

families!(workload_egress4, workload_egress6, workload, __sk_buff, TcContext, i32);

#[inline(always)]
fn workload<A: Tables>(ctx: &TcContext) -> i32 {
    let frame = &ctx.frame();
    let length = ctx.length();
    let mut packet = match parse::<A, true>(frame, ETHERNET) {
        Ok(packet) => packet,
        Err(skip) => return deliver::tc_skip(skip, length),
    };
    if !fragment::complete(&mut packet) {
        return deliver::tc_pass(Reason::FragmentUnknown, length);
    }
    let decision = answer(&packet, steps::ticks());
    event::decided(ctx, &packet, &decision, event_place::TO_WORKLOAD);
    let outcome = match decision {
        Decision::Pass => {
            event::untranslated(ctx, &packet, event_place::TO_WORKLOAD);
            Ok(deliver::tc_pass(Reason::Passed, length))
        }
        Decision::Drop(reason) => Err(reason),
        Decision::Send(send) => match ctx.translate(frame, &packet, send.tuple, false) {
            Some(()) => Ok(deliver::tc_pass(send.reason, length)),
            None => Err(Reason::RewriteFailed),
        },
    };
    outcome.unwrap_or_else(|reason| deliver::tc_drop(ctx, &packet, reason, event_place::TO_WORKLOAD))
}
