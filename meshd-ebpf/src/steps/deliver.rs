//! Carrying out a decision: the way a packet leaves.
//!
//! The next hop is known to user space most of the time and stands in `next_hops`; where it is not, the kernel's routing table is
//! asked, which costs as much as all the rest.

use aya_ebpf::{
    bindings::{TC_ACT_OK, TC_ACT_SHOT, xdp_action},
    helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    programs::{TcContext, XdpContext},
};
use meshd_abi::{NextHop, Reason, event_kind, event_place};
use meshd_steps::{Frame, Packet, Skip, header::ETHERNET};

use super::{Send, dsr, event, related::IS_ICMP_ERROR, tunnel};
use crate::{
    context::Context,
    maps::{self, Route, Tables},
};

/// `BPF_FIB_LKUP_RET_SUCCESS`.
const FOUND: i64 = 0;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: there is a route, and the neighbor is not resolved.
const NO_NEIGHBOR: i64 = 7;

/// Sends from XDP.
///
/// # Errors
/// The reason to drop the packet for.
#[inline(always)]
pub fn xdp<A: Tables>(ctx: &XdpContext, frame: &Frame, packet: &Packet<A>, send: &Send<A>) -> Result<u32, Reason> {
    let length = ctx.length();
    let mut link = 0;
    if !send.local {
        if packet.ttl <= 1 {
            return Err(Reason::TtlExpired);
        }
        let addresses = match maps::next_hop(send.next_hop) {
            Some(hop) if hop.tunnel == 0 && length <= u64::from(hop.mtu) + ETHERNET as u64 => {
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
    if let Some(hop) = maps::next_hop(send.next_hop).filter(|hop| fits(ctx, hop)) {
        if packet.ttl <= 1 {
            return Err(Reason::TtlExpired);
        }
        // Addresses first: the translation ends with helpers, after which the frame must not be touched.
        if hop.tunnel != 0 && !tunnel::aim(ctx, hop.tunnel) {
            return Err(Reason::NoRoute);
        }
        if !frame.write(0, addresses(hop)) || way.write(true).is_none() {
            return Err(Reason::RewriteFailed);
        }
        maps::count(send.reason, length);
        // SAFETY: the helpers take numbers.
        return Ok(
            unsafe { if send.local { bpf_redirect_peer(hop.link, 0) } else { bpf_redirect(hop.link, 0) } } as i32
        );
    }
    // With a source of ours it cannot go up the stack, which would tell its sender that it is too long for the tunnel.
    let is_too_long = |hop: &NextHop| hop.tunnel != 0 && !fits(ctx, hop);
    if send.tuple.source != packet.key.source {
        if let Some(hop) = maps::next_hop(send.next_hop).filter(|hop| is_too_long(hop)) {
            return if dsr::too_long(packet, u32::from(hop.mtu)) { Ok(dsr::TC_TOO_LONG) } else { Err(Reason::TooBig) };
        }
    }
    if send.local || send.tuple.source == packet.key.source {
        return match way.write(false) {
            Some(()) => Ok(tc_pass(send.reason, length)),
            None => Err(Reason::RewriteFailed),
        };
    }
    // A packet with our own source would be dropped by the stack as a martian.
    if packet.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let Some(route) = route(packet, send, ctx.link(), 0) else { return Err(Reason::NoRoute) };
    // SAFETY: the context is valid and the structure is as long as the kernel is told.
    let found = unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), (&raw mut *route).cast(), size_of::<Route>() as i32, 0) };
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

/// True when the packet may go to a link past the stack. A segment that the device cuts into packets counts by those.
#[inline(always)]
fn fits(ctx: &TcContext, hop: &NextHop) -> bool {
    // SAFETY: the context is valid while the program runs.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    segment != 0 || ctx.length() <= u64::from(hop.mtu) + ETHERNET as u64
}

/// Counts and goes on.
#[inline(always)]
pub fn tc_pass(reason: Reason, length: u64) -> i32 {
    maps::count(reason, length);
    TC_ACT_OK as i32
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
