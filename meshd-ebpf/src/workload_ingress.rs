//! TC program `workload_ingress`: what a workload sends. Services it asks are translated, and what it answers for a service gets
//! the address that was asked.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use meshd_abi::{Address, Reason, Scope, V4, V6, event_place};
use meshd_steps::header::{ETHERNET, ethertype, parse};

use crate::{
    context::{Context, linear},
    maps::{self, Tables},
    steps::{
        self, Decision, deliver, dsr, event, fast, fragment, handover, past,
        related::{WORKLOAD_INGRESS, or_related},
        serve::serve,
    },
    uplink_ingress::HEADERS,
    xdp_uplink::sender,
};

/// Decides about one packet.
#[classifier]
pub fn workload_ingress(ctx: TcContext) -> i32 {
    linear(&ctx, HEADERS);
    let frame = ctx.frame();
    match ethertype(&frame) {
        Some(V4::ETHERTYPE) => {
            let verdict =
                dsr::told::<V4>(fast::tc::<V4>(workload_ingress4(ctx.skb.skb), &ctx), &ctx, event_place::FROM_WORKLOAD);
            or_related::<V4>(verdict, &ctx, WORKLOAD_INGRESS)
        }
        Some(V6::ETHERTYPE) => {
            let verdict =
                dsr::told::<V6>(fast::tc::<V6>(workload_ingress6(ctx.skb.skb), &ctx), &ctx, event_place::FROM_WORKLOAD);
            or_related::<V6>(verdict, &ctx, WORKLOAD_INGRESS)
        }
        _ => deliver::tc_unread(&ctx),
    }
}

families!(workload_ingress4, workload_ingress6, workload, __sk_buff, TcContext, i32);

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
    let is_held = handover::holds(&packet);
    if !is_held && let Some(answer) = maps::settings().and_then(|settings| fast::taken(&packet, settings, false)) {
        event::untranslated(ctx, &packet, event_place::FROM_WORKLOAD);
        return answer;
    }
    let now = steps::ticks();
    let mut decision = if is_held {
        Decision::Drop(Reason::ResetHeld)
    } else {
        serve(&packet, Scope::Internal, || sender(ctx, frame), || now)
    };
    if matches!(decision, Decision::Pass) {
        decision = past::from_workload(&packet, now);
    }
    event::decided(ctx, &packet, &decision, event_place::FROM_WORKLOAD);
    let outcome = match decision {
        Decision::Pass => {
            event::untranslated(ctx, &packet, event_place::FROM_WORKLOAD);
            Ok(deliver::tc_pass(Reason::Passed, length))
        }
        Decision::Drop(reason) => Err(reason),
        Decision::Send(send) => deliver::tc(ctx, frame, &packet, &send),
    };
    outcome.unwrap_or_else(|reason| deliver::tc_refuse(ctx, &packet, reason, event_place::FROM_WORKLOAD))
}
