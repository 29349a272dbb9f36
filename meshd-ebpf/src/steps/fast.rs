//! The fast path between workloads of two nodes: past the routing and the packet filter of this one.
//!
//! User space decides which addresses have it (`Identity::way`), and a packet takes it when both of its ends do and one of them is a
//! workload of this node. So both directions of a flow take it, and netfilter sees both or neither. What belongs to a service's
//! connection keeps the way that was chosen when it began ([`super::past`]), and what is unusual goes through the stack: options,
//! packets that are too long or have no hop left, for which the stack tells the sender.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_peer},
    programs::TcContext,
};
use meshd_abi::{ConnectionKey, Reason, Settings, V4, V6, hop_flags, identity_flags, mark, settings_flags};
use meshd_steps::{
    Frame, Packet,
    header::ETHERNET,
    hop,
};

use super::{
    deliver::{addresses, longest, tc_pass, tc_shot},
    tunnel,
};
use crate::{
    context::Context,
    maps::{self, Tables},
};

/// What the half of a program answers that leaves a packet to [`tc`]; no verdict of TC.
pub const TC_FAST: i32 = i32::MIN + 5;

/// True where workloads have a fast path.
#[inline(always)]
pub fn is_on(settings: &Settings) -> bool {
    settings.flags & settings_flags::FAST_PATH != 0
}

/// True for a packet that takes it.
#[inline(always)]
pub fn goes<A: Tables>(packet: &Packet<A>, settings: &Settings) -> bool {
    is_on(settings) && is_between(&packet.key) && A::connection(&packet.key).is_none()
}

/// True for a tuple, or the tuple of its answers, between a workload of this node and one of another that both have a way.
#[inline(always)]
pub fn is_between<A: Tables>(key: &ConnectionKey<A>) -> bool {
    let Some(source) = A::identity(&key.source).filter(|known| known.way != 0) else { return false };
    let Some(destination) = A::identity(&key.destination).filter(|known| known.way != 0) else { return false };
    let nodes = identity_flags::NODE | identity_flags::THIS_NODE;
    (source.flags ^ destination.flags) & identity_flags::LOCAL != 0 && (source.flags | destination.flags) & nodes == 0
}

/// What a program says: the verdict of its half for this family, or the one about the packet that it left.
#[inline(always)]
pub fn tc<A: Tables>(verdict: i32, ctx: &TcContext) -> i32 {
    if verdict == TC_FAST { forward::<A>(ctx, false) } else { verdict }
}

/// Sends a packet to its destination, which has a way, or lets it pass to the stack. One that was counted already is only noted.
#[inline(always)]
pub fn forward<A: Tables>(ctx: &TcContext, is_counted: bool) -> i32 {
    let (skb, is_counted) = (ctx.skb.skb, u32::from(is_counted));
    if A::IS_V4 { tc_forward4(skb, is_counted) } else { tc_forward6(skb, is_counted) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_forward4(ctx: *mut __sk_buff, is_counted: u32) -> i32 {
    send::<V4>(&TcContext::new(ctx), is_counted != 0)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_forward6(ctx: *mut __sk_buff, is_counted: u32) -> i32 {
    send::<V6>(&TcContext::new(ctx), is_counted != 0)
}

#[inline(always)]
fn send<A: Tables>(ctx: &TcContext, is_counted: bool) -> i32 {
    let length = if is_counted { 0 } else { ctx.length() };
    let frame = &ctx.frame();
    let Some((destination, l4, protocol)) = plain::<A>(frame) else { return tc_pass(Reason::Passed, length) };
    let Some(known) = A::identity(&destination) else { return tc_pass(Reason::Passed, length) };
    let Some(next) = maps::next_hop(known.way) else { return tc_pass(Reason::Passed, length) };
    if longest(ctx, l4, protocol) > u32::from(next.mtu) || hop::left::<A>(frame, ETHERNET).is_none_or(|left| left <= 1) {
        return tc_pass(Reason::Passed, length);
    }
    if !frame.write(0, addresses(next)) || hop::take::<A>(frame, ETHERNET).is_none() {
        return tc_shot(Reason::RewriteFailed, length);
    }
    if next.tunnel() != 0 {
        let verdict = tunnel::send::to(ctx, next.tunnel());
        if verdict != TC_ACT_UNSPEC {
            maps::count(Reason::Forwarded, 0);
            return verdict;
        }
        if !tunnel::aim(ctx, next.tunnel()) {
            return tc_shot(Reason::NoRoute, length);
        }
    }
    maps::count(Reason::Forwarded, length);
    let is_local = known.flags & identity_flags::LOCAL != 0;
    if !is_local {
        // SAFETY: the context is valid while the program runs.
        let skb = unsafe { &mut *ctx.skb.skb };
        skb.mark = skb.mark & !mark::MASK | mark::PAST;
    }
    let has_peer = is_local && next.flags & hop_flags::PEER != 0;
    // SAFETY: the helpers take numbers.
    (unsafe { if has_peer { bpf_redirect_peer(next.link, 0) } else { bpf_redirect(next.link, 0) } }) as i32
}

/// Destination, beginning of the next header and its number; `None` with options and extension headers.
#[inline(always)]
fn plain<A: Tables>(frame: &Frame) -> Option<(A, usize, u8)> {
    if A::IS_V4 {
        let [version, _]: [u8; 2] = frame.read(ETHERNET)?;
        let [_, protocol]: [u8; 2] = frame.read(ETHERNET + 8)?;
        let destination: u32 = frame.read(ETHERNET + 16)?;
        (version == 0x45).then_some((A::from_words([destination, 0, 0, 0]), ETHERNET + A::HEADER, protocol))
    } else {
        let [next, _]: [u8; 2] = frame.read(ETHERNET + 6)?;
        let destination: [u32; 4] = frame.read(ETHERNET + 24)?;
        // Hop-by-hop options are for every router; the others are for the ends.
        (next != 0).then_some((A::from_words(destination), ETHERNET + A::HEADER, next))
    }
}
