//! The fast path between workloads of two nodes: past the routing and the packet filter of this one.
//!
//! User space decides which addresses have it (`Identity::way`), and a packet takes it when both of its ends do and one of them is a
//! workload of this node. So both directions of a flow take it, and netfilter sees both or neither. What belongs to a service's
//! connection keeps the way that was chosen when it began ([`super::past`]), and what is unusual goes through the stack: options, packets
//! that have to be fragmented or have no hop left. Who sends a whole packet that is too long is told from here: the stack's route may be
//! another one while a way changes, and netfilter would see a part of the connection.

use core::arch::asm;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_peer},
    programs::TcContext,
};
use meshd_abi::{ConnectionKey, Reason, Settings, V4, V6, hop_flags, identity_flags, mark, settings_flags};
use meshd_steps::{
    Frame, Packet, Part,
    header::{ETHERNET, parse},
    hop,
};

use super::{
    deliver::{addresses, longest, tc_pass, tc_shot},
    dsr, tunnel,
};
use crate::{
    context::Context,
    maps::{self, Tables, Who, connections},
};

/// What the half of a program answers that leaves a packet to [`tc`], with the element of its next hop in the lower bits; no verdict of TC.
const TC_FAST: i32 = i32::MIN | 1 << 29;
/// The same to a workload of this node.
pub const TC_FAST_HOME: i32 = TC_FAST | 1 << 28;
/// The bits by which both are told from verdicts and other answers.
const KIND: i32 = 0xef << 24;
/// Elements of next hops: an answer has room for no more.
pub const HOPS: u32 = 1 << 24;

/// `GSO_BY_FRAGS`: a segment that does not say how long its packets are (SCTP).
const BY_FRAGMENTS: u32 = 0xffff;

/// True where workloads have a fast path.
#[inline(always)]
pub fn is_on(settings: &Settings) -> bool {
    settings.flags & settings_flags::FAST_PATH != 0
}

/// What a program answers for a packet that takes it, from a workload of this node or to one.
#[inline(always)]
pub fn taken<A: Tables>(packet: &Packet<A>, settings: &Settings, is_home: bool) -> Option<i32> {
    if !is_on(settings) {
        return None;
    }
    // One instruction that changes nothing and sees the packet's tuple in memory. Where all of it is in registers, the compiler makes copies of what
    // follows for each kind of packet, which the verifier goes through one by one.
    // SAFETY: on one register.
    unsafe { asm!("{key} = {key}", key = in(reg) &raw const packet.key, options(nostack, preserves_flags)) };
    between(&packet.key, is_home).filter(|_| is_nobodys(packet) && !(is_home && dsr::is_answered(packet, settings)))
}

/// True for a packet that belongs to no connection of a service.
#[inline(always)]
pub fn is_nobodys<A: Tables>(packet: &Packet<A>) -> bool {
    connections::get_any(&packet.key).is_none()
}

/// What a program answers for a tuple, of whatever connection. What comes from outside and says that a workload of this node sent it does not have it.
#[inline(always)]
pub fn between<A: Tables>(key: &ConnectionKey<A>, is_home: bool) -> Option<i32> {
    if A::IS_V4 {
        let answer = tc_between4(key.source.words()[0], key.destination.words()[0], is_home.into());
        if answer == 0 { None } else { Some(answer) }
    } else {
        way(&key.source, &key.destination, is_home)
    }
}

/// The same for IPv4 as a function of its own, so that the verifier need not follow each of its answers to the end of the packet; 0: none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_between4(source: u32, destination: u32, is_home: u32) -> i32 {
    way(&V4(source), &V4(destination), is_home != 0).unwrap_or(0)
}

#[inline(always)]
fn way<A: Tables>(source: &A, destination: &A, is_home: bool) -> Option<i32> {
    // First what most packets do not have: an address of a service is nobody's.
    let destination = A::identity(destination).filter(|known| known.way != 0 && known.way < HOPS)?;
    of(&A::identity(source)?, &destination, is_home)
}

/// The same for what is known of both.
#[inline(always)]
pub fn of(source: &Who, destination: &Who, is_home: bool) -> Option<i32> {
    if source.way == 0 || destination.way == 0 || destination.way >= HOPS {
        return None;
    }
    let place = identity_flags::LOCAL | identity_flags::NODE | identity_flags::THIS_NODE;
    let (from, to) = if is_home { (0, identity_flags::LOCAL) } else { (identity_flags::LOCAL, 0) };
    if source.flags & place != from || destination.flags & place != to {
        return None;
    }
    let home = if is_home { TC_FAST_HOME } else { TC_FAST };
    Some(home | destination.way as i32)
}

/// What a program says: the verdict of its half for this family, or the one about the packet that it left.
#[inline(always)]
pub fn tc<A: Tables>(verdict: i32, ctx: &TcContext) -> i32 {
    if verdict & KIND == TC_FAST { forward::<A>(ctx, verdict, false) } else { verdict }
}

/// Sends a packet by the next hop of an answer, or lets it pass to the stack. One that was counted already is only noted.
#[inline(always)]
pub fn forward<A: Tables>(ctx: &TcContext, answer: i32, is_counted: bool) -> i32 {
    let (skb, answer, is_counted) = (ctx.skb.skb, answer as u32, u32::from(is_counted));
    if A::IS_V4 { tc_forward4(skb, answer, is_counted) } else { tc_forward6(skb, answer, is_counted) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_forward4(ctx: *mut __sk_buff, answer: u32, is_counted: u32) -> i32 {
    send::<V4>(&TcContext::new(ctx), answer, is_counted != 0)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_forward6(ctx: *mut __sk_buff, answer: u32, is_counted: u32) -> i32 {
    send::<V6>(&TcContext::new(ctx), answer, is_counted != 0)
}

#[inline(always)]
fn send<A: Tables>(ctx: &TcContext, answer: u32, is_counted: bool) -> i32 {
    let length = if is_counted { 0 } else { ctx.length() };
    let frame = &ctx.frame();
    let Some((l4, protocol)) = plain::<A>(frame) else { return tc_pass(Reason::Passed, length) };
    let Some(next) = maps::next_hop(answer & (HOPS - 1)) else { return tc_pass(Reason::Passed, length) };
    let is_local = answer & TC_FAST_HOME as u32 == TC_FAST_HOME as u32;
    let mtu = u32::from(next.mtu);
    if hop::left::<A>(frame, ETHERNET).is_none_or(|left| left <= 1) {
        return tc_pass(Reason::Passed, length);
    }
    if longest(ctx, l4, protocol) > mtu {
        // What came from outside is of no way that changes here.
        return if !is_local && lay_down_long::<A>(ctx, mtu) {
            dsr::TC_TOO_LONG
        } else {
            tc_pass(Reason::Passed, length)
        };
    }
    if !frame.write(0, addresses(next)) || hop::take::<A>(frame, ETHERNET).is_none() {
        return tc_shot(Reason::RewriteFailed, length);
    }
    // A workload of this node is behind no tunnel.
    if next.tunnel() != 0 && !is_local {
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
    if !is_local {
        // SAFETY: the context is valid while the program runs.
        let skb = unsafe { &mut *ctx.skb.skb };
        skb.mark = skb.mark & !mark::MASK | mark::PAST;
    }
    let has_peer = is_local && next.flags & hop_flags::PEER != 0;
    // SAFETY: the helpers take numbers.
    (unsafe { if has_peer { bpf_redirect_peer(next.link, 0) } else { bpf_redirect(next.link, 0) } }) as i32
}

/// Lays down a packet that is longer than `mtu` for [`dsr::told`]. False: the stack has to look after it.
#[inline(always)]
fn lay_down_long<A: Tables>(ctx: &TcContext, mtu: u32) -> bool {
    (if A::IS_V4 { tc_long4(ctx.skb.skb, mtu) } else { tc_long6(ctx.skb.skb, mtu) }) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_long4(ctx: *mut __sk_buff, mtu: u32) -> u32 {
    u32::from(long::<V4>(&TcContext::new(ctx), mtu))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_long6(ctx: *mut __sk_buff, mtu: u32) -> u32 {
    u32::from(long::<V6>(&TcContext::new(ctx), mtu))
}

#[inline(always)]
fn long<A: Tables>(ctx: &TcContext, mtu: u32) -> bool {
    let frame = &ctx.frame();
    // An ICMP error does not get through here, and is not answered with another one (RFC 1122 section 3.2.2).
    let Ok(packet) = parse::<A, true>(frame, ETHERNET) else { return false };
    // SAFETY: the context is valid while the program runs.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    packet.part == Part::Whole
        && segment != BY_FRAGMENTS
        && dsr::send::may_tell::<A>(frame)
        && dsr::lay_down_long(&packet, mtu, true)
}

/// Beginning of the next header and its number; `None` with options that are for every router.
#[inline(always)]
fn plain<A: Tables>(frame: &Frame) -> Option<(usize, u8)> {
    let (is_plain, protocol) = if A::IS_V4 {
        let [version, _]: [u8; 2] = frame.read(ETHERNET)?;
        let [_, protocol]: [u8; 2] = frame.read(ETHERNET + 8)?;
        (version == 0x45, protocol)
    } else {
        let [next, _]: [u8; 2] = frame.read(ETHERNET + 6)?;
        (next != 0, next)
    };
    is_plain.then_some((ETHERNET + A::HEADER, protocol))
}
