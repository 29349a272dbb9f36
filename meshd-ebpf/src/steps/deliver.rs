//! Carrying out a decision: the way a packet leaves.
//!
//! The next hop is known to user space most of the time and stands in `next_hops`; where it is not, the kernel's routing table is
//! asked, which costs as much as all the rest.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    programs::{TcContext, XdpContext},
};
use meshd_abi::{Link, NextHop, Reason, event_kind, event_place, hop_flags, link_flags, mark};
use meshd_steps::{
    Frame, Packet, Skip,
    header::{ETHERNET, protocol},
};

use super::{Send, dsr, event, related::IS_ICMP_ERROR, tunnel};
use crate::{
    context::Context,
    maps::{self, Route, Tables},
};

/// `BPF_FIB_LKUP_RET_SUCCESS`.
const FOUND: i64 = 0;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: there is a route, and the neighbor is not resolved.
const NO_NEIGHBOR: i64 = 7;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`: there is a route, and the packet is too long for it.
const TOO_LONG: i64 = 8;

/// Sends from XDP what arrived at a link.
///
/// # Errors
/// The reason to drop the packet for.
#[inline(always)]
pub fn xdp<A: Tables>(
    ctx: &XdpContext,
    frame: &Frame,
    packet: &Packet<A>,
    send: &Send<A>,
    at: &Link,
) -> Result<u32, Reason> {
    let length = ctx.length();
    let mut link = 0;
    if send.local && send.next_hop != 0 && !matches!(send.reason, Reason::MasqueradeReply) {
        // Answers go past the stack, and so must this, which only TC can do: it finds the connection known.
        return Ok(xdp_pass(Reason::Passed, length));
    }
    if !send.local {
        if packet.ttl <= 1 {
            return Err(Reason::TtlExpired);
        }
        let addresses = match maps::next_hop(send.next_hop) {
            Some(hop) if hop.tunnel() == 0 && length <= u64::from(hop.mtu) + ETHERNET as u64 => {
                link = hop.link;
                addresses(hop)
            }
            // The TC program can put it into a tunnel, wait for a neighbor and tell the sender that a packet is too long; it finds the connection
            // known.
            Some(_) => return Ok(xdp_pass(Reason::Passed, length)),
            None => {
                let length_ip = (length - ETHERNET as u64) as u16;
                let Some(route) = route(packet, send, ctx.link(), length_ip) else {
                    return Ok(xdp_pass(Reason::Passed, length));
                };
                // SAFETY: the context is valid and the structure is as long as the kernel is told.
                let found =
                    unsafe { bpf_fib_lookup(ctx.ctx.cast(), (&raw mut *route).cast(), size_of::<Route>() as i32, 0) };
                if found != FOUND {
                    return Ok(xdp_pass(Reason::Passed, length));
                }
                link = route.link;
                packed(&route.destination_mac, &route.source_mac)
            }
        };
        if !may_send(at, link) {
            return Ok(xdp_pass(Reason::Passed, length));
        }
        if !frame.write(0, addresses) {
            return Err(Reason::RewriteFailed);
        }
    }
    // To a workload of this node the stack brings it, and counts the hop.
    if ctx.translate(frame, packet, send.tuple, !send.local).is_none() {
        return Err(Reason::RewriteFailed);
    }
    maps::count(send.reason, length);
    if send.local {
        return Ok(xdp_action::XDP_PASS);
    }
    if link == ctx.link() {
        return Ok(xdp_action::XDP_TX);
    }
    // SAFETY: the helper takes numbers.
    Ok(unsafe { bpf_redirect(link, 0) as u32 })
}

/// True when what XDP sends from a link by another one, or back, arrives. Otherwise the TC program does it.
#[inline(always)]
pub fn may_send(at: &Link, link: u32) -> bool {
    xdp_may_send(at.index, at.flags.into(), link) != 0
}

/// The same as a function of its own, so that the verifier need not follow each of its answers to the end of the packet.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xdp_may_send(at: u32, flags: u32, link: u32) -> u32 {
    if flags & u32::from(link_flags::GENERIC) != 0 {
        return 1;
    }
    if link == at {
        return flags & u32::from(link_flags::RETURNS);
    }
    maps::link(link).map_or(0, |link| u32::from(link.flags & link_flags::TRANSMITS))
}

/// Counts and passes.
#[inline(always)]
pub fn xdp_pass(reason: Reason, length: u64) -> u32 {
    maps::count(reason, length);
    xdp_action::XDP_PASS
}

/// Counts, tells and drops.
#[inline(always)]
pub fn xdp_drop<A: Tables>(ctx: &XdpContext, packet: &Packet<A>, reason: Reason) -> u32 {
    let length = ctx.length();
    maps::count(reason, length);
    event::tell(ctx, packet, event_kind::DROP, reason, event_place::FROM_NETWORK);
    xdp_action::XDP_DROP
}

/// Sends from TC at ingress: past the stack where the next hop is known, otherwise through it, which then has the last word.
///
/// # Errors
/// The reason to drop the packet for.
#[inline(always)]
pub fn tc<A: Tables>(ctx: &TcContext, frame: &Frame, packet: &Packet<A>, send: &Send<A>) -> Result<i32, Reason> {
    tc_by(ctx, frame, packet, send, &Translated { ctx, frame, packet, send })
}

/// How a packet is written before it leaves. A trait and not a closure: a closure is not inlined by force.
pub trait Write {
    /// Writes it, and with `forward` a hop limit that is one lower. `None`: it must be dropped.
    fn write(&self, forward: bool) -> Option<()>;
}

struct Translated<'a, A: Tables> {
    ctx: &'a TcContext,
    frame: &'a Frame,
    packet: &'a Packet<A>,
    send: &'a Send<A>,
}

impl<A: Tables> Write for Translated<'_, A> {
    #[inline(always)]
    fn write(&self, forward: bool) -> Option<()> {
        self.ctx.translate(self.frame, self.packet, self.send.tuple, forward)
    }
}

/// The same with another way to write the packet.
///
/// # Errors
/// The reason to drop the packet for.
#[inline(always)]
pub fn tc_by<A: Tables, W: Write>(
    ctx: &TcContext,
    frame: &Frame,
    packet: &Packet<A>,
    send: &Send<A>,
    way: &W,
) -> Result<i32, Reason> {
    let length = ctx.length();
    let hop = maps::next_hop(send.next_hop);
    let single =
        if hop.is_some() || !may_use_stack(packet, send) { longest(ctx, packet.l4, packet.key.protocol) } else { 0 };
    if let Some(hop) = hop.filter(|hop| single <= u32::from(hop.mtu)) {
        if packet.ttl <= 1 {
            return Err(Reason::TtlExpired);
        }
        // Addresses first: the translation ends with helpers, after which the frame must not be touched.
        if hop.tunnel() != 0 && !tunnel::aim(ctx, hop.tunnel()) {
            return Err(Reason::NoRoute);
        }
        if !frame.write(0, addresses(hop)) || way.write(true).is_none() {
            return Err(Reason::RewriteFailed);
        }
        maps::count(send.reason, length);
        if !send.local {
            // SAFETY: the context is valid while the program runs.
            let skb = unsafe { &mut *ctx.skb.skb };
            skb.mark = skb.mark & !mark::MASK | mark::PAST;
        }
        let has_peer = send.local && hop.flags & hop_flags::PEER != 0;
        // SAFETY: the helpers take numbers.
        return Ok(unsafe { if has_peer { bpf_redirect_peer(hop.link, 0) } else { bpf_redirect(hop.link, 0) } } as i32);
    }
    // The tunnel takes less than it would say of itself.
    if let Some(hop) = hop.filter(|hop| hop.tunnel() != 0 && !may_use_stack(packet, send)) {
        if dsr::lay_down_long(packet, hop.mtu.into(), false) {
            return Err(Reason::TooBig);
        }
    }
    if may_use_stack(packet, send) {
        return match way.write(false) {
            Some(()) => Ok(tc_pass(send.reason, length)),
            None => Err(Reason::RewriteFailed),
        };
    }
    // A packet with our own source would be dropped by the stack as a martian.
    if packet.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let Some(route) = route(packet, send, ctx.link(), single as u16) else { return Err(Reason::NoRoute) };
    // SAFETY: the context is valid and the structure is as long as the kernel is told.
    let found = unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), (&raw mut *route).cast(), size_of::<Route>() as i32, 0) };
    if found == TOO_LONG && dsr::lay_down_long(packet, route.length.into(), false) {
        return Err(Reason::TooBig);
    }
    if found != FOUND && found != NO_NEIGHBOR {
        return Err(Reason::NoRoute);
    }
    if way.write(true).is_none() {
        return Err(Reason::RewriteFailed);
    }
    maps::count(send.reason, length);
    // SAFETY: the helper takes numbers and no parameters.
    Ok(unsafe { bpf_redirect_neigh(route.link, core::ptr::null_mut(), 0, 0) as i32 })
}

/// True when the stack would take the packet: to a workload of this node, or with the source it has. One with a source of our own it
/// takes for forged.
#[inline(always)]
fn may_use_stack<A: Tables>(packet: &Packet<A>, send: &Send<A>) -> bool {
    send.local || send.tuple.source == packet.key.source
}

/// Length of the network packet, of the longest one where it is a segment that the device cuts into packets.
#[inline(always)]
pub fn longest(ctx: &TcContext, l4: usize, number: u8) -> u32 {
    // SAFETY: the context is valid while the program runs.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    if segment == 0 {
        return ctx.len() - ETHERNET as u32;
    }
    segment + tc_headers(ctx.skb.skb, l4 as u32, number.into())
}

/// Octets of the headers behind the link-layer header in a segment: a function of its own, as [`xdp_may_send`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_headers(ctx: *mut __sk_buff, l4: u32, number: u32) -> u32 {
    let frame = TcContext::new(ctx).frame();
    let l4 = l4 & 0x1ff;
    let header = if number == u32::from(protocol::TCP) {
        frame.read::<[u8; 2]>(l4 as usize + 12).map_or(0, |octets| u32::from(octets[0] >> 4) * 4)
    } else {
        8
    };
    header + l4 - ETHERNET as u32
}

/// Counts and goes on.
#[inline(always)]
pub fn tc_pass(reason: Reason, length: u64) -> i32 {
    maps::count(reason, length);
    TC_ACT_OK as i32
}

/// Counts what no program looks into (ARP, frames of a VLAN or for another host) as XDP does, and leaves it to whoever is next.
#[inline(always)]
pub fn tc_unread(ctx: &TcContext) -> i32 {
    maps::count(Reason::Passed, ctx.length());
    TC_ACT_UNSPEC
}

/// Counts what is none of ours and goes on. ICMP errors are left to [`super::related`], which counts them.
#[inline(always)]
pub fn tc_skip(skip: Skip, length: u64) -> i32 {
    match skip {
        Skip::IcmpError => IS_ICMP_ERROR,
        Skip::Malformed => tc_pass(Reason::Malformed, length),
        Skip::OtherType | Skip::OtherProtocol | Skip::Unusual => tc_pass(Reason::Passed, length),
    }
}

/// Counts, tells and drops; `place` is one of `meshd_abi::event_place`.
#[inline(always)]
pub fn tc_drop<A: Tables>(ctx: &TcContext, packet: &Packet<A>, reason: Reason, place: u8) -> i32 {
    let length = ctx.length();
    maps::count(reason, length);
    event::tell(ctx, packet, event_kind::DROP, reason, place);
    TC_ACT_SHOT as i32
}

/// The same for a program that goes on to [`dsr::told`]: who sent what is too long is told.
#[inline(always)]
pub fn tc_refuse<A: Tables>(ctx: &TcContext, packet: &Packet<A>, reason: Reason, place: u8) -> i32 {
    if reason == Reason::TooBig { dsr::TC_TOO_LONG } else { tc_drop(ctx, packet, reason, place) }
}

/// Counts and drops what was sent, or is to be sent, inside of another packet. Nobody is told of it one by one.
#[inline(always)]
pub fn xdp_shot(reason: Reason, length: u64) -> u32 {
    maps::count(reason, length);
    xdp_action::XDP_DROP
}

/// The same in TC.
#[inline(always)]
pub fn tc_shot(reason: Reason, length: u64) -> i32 {
    maps::count(reason, length);
    TC_ACT_SHOT as i32
}

/// Both link-layer addresses of a header, as the words it begins with.
#[inline(always)]
pub fn addresses(hop: &NextHop) -> [u16; 6] {
    packed(&hop.destination, &hop.source)
}

#[inline(always)]
fn packed(destination: &[u8; 6], source: &[u8; 6]) -> [u16; 6] {
    let word = |octets: &[u8; 6], at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
    [
        word(destination, 0),
        word(destination, 2),
        word(destination, 4),
        word(source, 0),
        word(source, 2),
        word(source, 4),
    ]
}

/// This CPU's question to the routing table.
#[inline(always)]
fn route<A: Tables>(packet: &Packet<A>, send: &Send<A>, link: u32, length: u16) -> Option<&'static mut Route> {
    let route = maps::route()?;
    route.family = A::AF;
    route.protocol = packet.key.protocol;
    route.source_port = send.tuple.source_port;
    route.destination_port = send.tuple.destination_port;
    route.length = length;
    route.link = link;
    route.flow = 0;
    route.source = send.tuple.source.words();
    route.destination = send.tuple.destination.words();
    route.vlan = 0;
    Some(route)
}
