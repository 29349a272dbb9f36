//! TC program `uplink_ingress`: what XDP left to it, with everything that is unusual, and workloads that are addressed directly.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use meshd_abi::{Address, Reason, Scope, V4, V6, event_place};
use meshd_steps::{
    Skip,
    header::{ETHERNET, ethertype, parse},
};

use crate::{
    context::{Context, is_for_another_host, is_of_vlan, linear},
    maps::{self, Tables},
    steps::{
        self, Decision, deliver, dsr, event, fast, fragment, handover, masquerade, past,
        related::{UPLINK_INGRESS, or_related},
        serve::serve,
        tunnel::receive,
    },
    xdp_uplink::{Addressee, addressee, sender},
};

/// Octets of a packet that may hold headers: Ethernet, IPv6, extension headers, TCP.
pub const HEADERS: u32 = 128;

/// Decides about one packet.
#[classifier]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    if is_for_another_host(&ctx) || is_of_vlan(&ctx) {
        return deliver::tc_unread(&ctx);
    }
    linear(&ctx, HEADERS);
    let frame = ctx.frame();
    match ethertype(&frame) {
        Some(V4::ETHERTYPE) => {
            let verdict = receive::tc::<V4>(fast::tc::<V4>(uplink_ingress4(ctx.skb.skb), &ctx), &ctx);
            or_related::<V4>(dsr::tc::<V4>(verdict, &ctx), &ctx, UPLINK_INGRESS)
        }
        Some(V6::ETHERTYPE) => {
            let verdict = receive::tc::<V6>(fast::tc::<V6>(uplink_ingress6(ctx.skb.skb), &ctx), &ctx);
            or_related::<V6>(dsr::tc::<V6>(verdict, &ctx), &ctx, UPLINK_INGRESS)
        }
        _ => deliver::tc_unread(&ctx),
    }
}

families!(uplink_ingress4, uplink_ingress6, uplink, __sk_buff, TcContext, i32);

#[inline(always)]
fn uplink<A: Tables>(ctx: &TcContext) -> i32 {
    let frame = &ctx.frame();
    let length = ctx.length();
    let mut packet = match parse::<A, true>(frame, ETHERNET) {
        Ok(packet) => packet,
        Err(Skip::OtherProtocol) if dsr::may_be_ipip::<A>(frame, maps::settings()) => return dsr::TC_WRAPPED,
        Err(skip) => return deliver::tc_skip(skip, length),
    };
    let Some(settings) = maps::settings() else { return deliver::tc_pass(Reason::Passed, length) };
    // Before all that could be asked of a service: nodes send each other little else through a tunnel.
    if receive::may_be(&packet, settings) {
        return receive::TC_TUNNELLED;
    }
    if !fragment::complete(&mut packet) {
        return deliver::tc_pass(Reason::FragmentUnknown, length);
    }
    let is_held = handover::holds(&packet);
    if !is_held && let Some(answer) = fast::taken(&packet, settings, true) {
        // Not one that says for whom it is to be answered.
        if dsr::may_have_option(frame, &packet, settings) {
            return dsr::TC_WRAPPED;
        }
        event::untranslated(ctx, &packet, event_place::TO_WORKLOAD);
        return answer;
    }
    let now = steps::ticks();
    let addressee = addressee(&packet.key, settings);
    let mut decision = if is_held {
        Decision::Drop(Reason::ResetHeld)
    } else {
        past::at_uplink(&packet, addressee == Addressee::Other, now)
    };
    if addressee != Addressee::Port && matches!(decision, Decision::Pass) {
        decision = serve(&packet, Scope::External, || sender(ctx, frame), || now);
    }
    event::decided(ctx, &packet, &decision, event_place::FROM_NETWORK);
    let outcome = match decision {
        Decision::Pass if dsr::may_have_option(frame, &packet, settings) || dsr::may_be_geneve(&packet, settings) => {
            Ok(dsr::TC_WRAPPED)
        }
        Decision::Pass => {
            let told = match dsr::keep(&packet, settings, now) {
                0 => masquerade::admit(&packet, settings, now),
                told => told,
            };
            if told != 0 {
                event::tell(ctx, &packet, told, Reason::Passed, event_place::FROM_NETWORK);
            }
            Ok(deliver::tc_pass(Reason::Passed, length))
        }
        Decision::Drop(reason) => Err(reason),
        Decision::Send(send)
            if send.direct != 0 && dsr::has_note(&packet, settings) && dsr::lay_down(&packet, &send) =>
        {
            Ok(dsr::TC_DIRECT)
        }
        Decision::Send(send) => deliver::tc(ctx, frame, &packet, &send),
    };
    outcome.unwrap_or_else(|reason| deliver::tc_refuse(ctx, &packet, reason, event_place::FROM_NETWORK))
}
