//! The node that was asked: a packet for a backend of another node, and the note.
//!
//! The hop is counted in the packet itself, whatever is put around it: to the client it is one packet that one router forwarded. A
//! packet that would be too long with the note is answered with an ICMP error when it must not be fragmented, from the frontend's
//! address and in the length that fits; XDP leaves those, and unknown next hops, to TC.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_action, xdp_md},
    helpers::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_tail},
    programs::{TcContext, XdpContext},
};
use meshd_abi::{Reason, Settings, V4, V6, event_kind, event_place};
use meshd_steps::{
    Frame, Packet,
    choose::mix,
    dsr::{self, Ends, Form, QUOTE},
    header::ETHERNET,
};

use super::{Directing, HEADERS, MAY_PASS, TC_TOO_LONG, form, make_room, shift};
use crate::{
    context::{Context, linear},
    maps::{self, Route, Tables},
    steps::{
        deliver::{self, addresses},
        event, tunnel,
    },
};

/// `BPF_FIB_LKUP_RET_SUCCESS`.
const FOUND: i64 = 0;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: there is a route, and the neighbor is not resolved.
const NO_NEIGHBOR: i64 = 7;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`: there is a route, and the packet is too long for it.
const TOO_LONG: i64 = 8;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV4`: what is added begins with this header.
const OUTER_IPV4: u64 = 1 << 1;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV6`.
const OUTER_IPV6: u64 = 1 << 2;
/// `BPF_F_ADJ_ROOM_ENCAP_L4_UDP`: and UDP follows.
const OUTER_UDP: u64 = 1 << 4;
/// `BPF_F_ADJ_ROOM_ENCAP_L2` with the length of an Ethernet header, and `BPF_F_ADJ_ROOM_ENCAP_L2_ETH`.
const INNER_ETHERNET: u64 = (ETHERNET as u64) << 56 | 1 << 6;
/// Smallest MTU that IPv6 may be told (RFC 8201 section 4).
const IPV6_MTU_MIN: u32 = 1_280;

families!(xdp_send4, xdp_send6, send_xdp, xdp_md, XdpContext, u32);
families!(tc_send4, tc_send6, send_tc, __sk_buff, TcContext, i32);

#[inline(always)]
fn send_xdp<A: Tables>(ctx: &XdpContext) -> u32 {
    let length = ctx.length();
    let (Some(work), Some(settings)) = (A::directing(), maps::settings()) else {
        return deliver::xdp_pass(Reason::Passed, length);
    };
    let form = form(settings);
    let Some(ends) = ends(work, settings) else { return deliver::xdp_pass(Reason::Passed, length) };
    let index = next_hop(work, form);
    let frame = &ctx.frame();
    let (Some(hop), Some(total)) = (maps::next_hop(index), dsr::ip_length::<A>(frame, ETHERNET)) else {
        return deliver::xdp_pass(Reason::Passed, length);
    };
    // What stands behind the packet in the frame goes along.
    let longest = total.max(length as u32 - ETHERNET as u32);
    if hop.tunnel() != 0 || longest + dsr::overhead::<A>(form) as u32 > u32::from(hop.mtu) {
        return deliver::xdp_pass(Reason::Passed, length);
    }
    if !maps::link(ctx.link()).is_some_and(|at| deliver::may_send(at, hop.link)) {
        return deliver::xdp_pass(Reason::Passed, length);
    }
    if work.packet.ttl <= 1 {
        return deliver::xdp_drop(ctx, &work.packet, Reason::TtlExpired);
    }
    let done = !(form != Form::Geneve && dsr::has_no_room::<A>(frame, ETHERNET))
        && ctx.translate(frame, &work.packet, &work.tuple, true).is_some()
        && match form {
            Form::Option => shift(ctx, dsr::overhead::<A>(Form::Option) as i32),
            Form::Ipip => shift(ctx, dsr::overhead::<A>(Form::Ipip) as i32),
            Form::Geneve => shift(ctx, dsr::overhead::<A>(Form::Geneve) as i32),
        };
    if !done {
        return deliver::xdp_drop(ctx, &work.packet, Reason::RewriteFailed);
    }
    let frame = &ctx.frame();
    let wrapped = match form {
        Form::Option => dsr::insert_option::<A>(frame, ETHERNET, &work.note),
        Form::Ipip => {
            let length = total + dsr::option_length::<A>() as u32;
            dsr::insert_option::<A>(frame, ETHERNET + A::HEADER, &work.note)
                .and_then(|()| dsr::put_ipip(frame, ETHERNET, length, &ends))
        }
        Form::Geneve => dsr::put_geneve(frame, ETHERNET, total, &ends, &work.note, entropy(work)),
    };
    if wrapped.is_none() || !frame.write(12, A::ETHERTYPE.to_be()) || !frame.write(0, addresses(hop)) {
        return deliver::xdp_drop(ctx, &work.packet, Reason::RewriteFailed);
    }
    maps::count(work.reason, length);
    if hop.link == ctx.link() {
        return xdp_action::XDP_TX;
    }
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect(hop.link, 0) as u32 }
}

#[inline(always)]
fn send_tc<A: Tables>(ctx: &TcContext) -> i32 {
    linear(ctx, HEADERS);
    let length = ctx.length();
    let (Some(work), Some(settings)) = (A::directing(), maps::settings()) else {
        return deliver::tc_shot(Reason::RewriteFailed, length);
    };
    let form = form(settings);
    let Some(ends) = ends(work, settings) else { return drop_tc(ctx, &work.packet, Reason::NoSource) };
    let frame = &ctx.frame();
    let Some(total) = dsr::ip_length::<A>(frame, ETHERNET) else {
        return drop_tc(ctx, &work.packet, Reason::RewriteFailed);
    };
    // What stands behind the packet in the frame goes along.
    let longest = total.max(length as u32 - ETHERNET as u32);
    let overhead = dsr::overhead::<A>(form) as u32;
    // SAFETY: the context is valid while the program runs.
    let is_segment = unsafe { (*ctx.skb.skb).gso_size != 0 };
    let mut too_small = None;
    let hop = maps::next_hop(next_hop(work, form));
    let mut link = 0;
    if let Some(hop) = hop {
        link = hop.link;
        if !is_segment && longest + overhead > u32::from(hop.mtu) {
            too_small = Some(u32::from(hop.mtu));
        }
    } else {
        let Some(route) = maps::route() else { return drop_tc(ctx, &work.packet, Reason::NoRoute) };
        ask(
            route,
            work,
            form,
            &ends,
            ctx.link(),
            if is_segment { 0 } else { (longest + overhead).min(u16::MAX.into()) as u16 },
        );
        // SAFETY: the context is valid and the structure is as long as the kernel is told.
        match unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), (&raw mut *route).cast(), size_of::<Route>() as i32, 0) } {
            FOUND | NO_NEIGHBOR => link = route.link,
            TOO_LONG => too_small = Some(u32::from(route.length)),
            _ => return drop_tc(ctx, &work.packet, Reason::NoRoute),
        }
    }
    if let Some(mtu) = too_small {
        work.next_hop = mtu.saturating_sub(overhead);
        work.to = 0;
        return TC_TOO_LONG;
    }
    if hop.is_some_and(|hop| hop.tunnel() != 0 && !tunnel::aim(ctx, hop.tunnel())) {
        return drop_tc(ctx, &work.packet, Reason::NoRoute);
    }
    if work.packet.ttl <= 1 {
        return drop_tc(ctx, &work.packet, Reason::TtlExpired);
    }
    if form != Form::Geneve && dsr::has_no_room::<A>(frame, ETHERNET)
        || ctx.translate(frame, &work.packet, &work.tuple, true).is_none()
        || wrap_tc(ctx, work, form, &ends, total).is_none()
    {
        return drop_tc(ctx, &work.packet, Reason::RewriteFailed);
    }
    if let Some(hop) = hop {
        if !ctx.frame().write(0, addresses(hop)) {
            return drop_tc(ctx, &work.packet, Reason::RewriteFailed);
        }
    }
    maps::count(work.reason, length);
    // SAFETY: the helpers take numbers and no parameters.
    unsafe {
        if hop.is_some() {
            bpf_redirect(link, 0) as i32
        } else {
            bpf_redirect_neigh(link, core::ptr::null_mut(), 0, 0) as i32
        }
    }
}

#[inline(always)]
fn drop_tc<A: Tables>(ctx: &TcContext, packet: &Packet<A>, reason: Reason) -> i32 {
    deliver::tc_drop(ctx, packet, reason, event_place::FROM_NETWORK)
}

/// Adds the note to an skb.
#[inline(always)]
fn wrap_tc<A: Tables>(ctx: &TcContext, work: &Directing<A>, form: Form, ends: &Ends<A>, total: u32) -> Option<()> {
    let outer = if A::IS_V4 { OUTER_IPV4 } else { OUTER_IPV6 };
    if form == Form::Geneve {
        let flags = outer | OUTER_UDP | INNER_ETHERNET;
        if !make_room(ctx, dsr::overhead::<A>(Form::Geneve) as i32, flags) {
            return None;
        }
        return dsr::put_geneve(&ctx.frame(), ETHERNET, total, ends, &work.note, entropy(work));
    }
    let option = dsr::option_length::<A>();
    if !make_room(ctx, option as i32, 0) {
        return None;
    }
    dsr::insert_option::<A>(&ctx.frame(), ETHERNET, &work.note)?;
    if form == Form::Option {
        return Some(());
    }
    if !make_room(ctx, A::HEADER as i32, outer) {
        return None;
    }
    dsr::put_ipip(&ctx.frame(), ETHERNET, total + option as u32, ends)
}

/// The nodes at both ends of what is put around a packet; `None` when this node has no address of the family.
#[inline(always)]
fn ends<A: Tables>(work: &Directing<A>, settings: &Settings) -> Option<Ends<A>> {
    let ends = Ends { from: A::own_source(settings), to: A::direct(work.to)?.node };
    let is_whole = ends.from != A::default() && ends.to != A::default();
    if is_whole || form(settings) == Form::Option { Some(ends) } else { None }
}

/// The element of the next hop: of the backend itself, or of its node.
#[inline(always)]
fn next_hop<A: Tables>(work: &Directing<A>, form: Form) -> u32 {
    if form == Form::Option { work.next_hop } else { A::direct(work.to).map_or(0, |direct| direct.next_hop) }
}

/// Bits by which flows differ.
#[inline(always)]
fn entropy<A: Tables>(work: &Directing<A>) -> u32 {
    let key = &work.packet.key;
    let ports = u64::from(key.source_port) << 16 | u64::from(key.destination_port);
    mix(u64::from(key.source.folded()) << 32 | ports, 0)
}

/// Fills in the question to the routing table.
#[inline(always)]
fn ask<A: Tables>(route: &mut Route, work: &Directing<A>, form: Form, ends: &Ends<A>, link: u32, length: u16) {
    route.family = A::AF;
    route.protocol = work.packet.key.protocol;
    route.source_port = work.tuple.source_port;
    route.destination_port = work.tuple.destination_port;
    route.length = length;
    route.link = link;
    route.flow = 0;
    let (source, destination) =
        if form == Form::Option { (work.tuple.source, work.tuple.destination) } else { (ends.from, ends.to) };
    route.source = source.words();
    route.destination = destination.words();
    route.vlan = 0;
}

/// What became of a packet that is longer than its way takes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Told {
    /// It is the error about itself now.
    Told = 0,
    /// It is as it was: there is no error about it, or the kernel does not shorten it (what a tunnel's device has put together, and where the sum
    /// that is still to be computed is behind what would be left).
    Untold = 1,
    /// It is neither.
    Broken = 2,
}

/// What is laid down is longer than its way takes: who sent it is told when it must not be fragmented, and it ends here. What cannot be
/// told goes to the stack if that may have it.
#[inline(always)]
pub fn too_long<A: Tables>(ctx: &TcContext, place: u8) -> i32 {
    let length = ctx.length();
    let told = if A::IS_V4 { tc_too_long4(ctx.skb.skb) } else { tc_too_long6(ctx.skb.skb) };
    if let Some(work) = A::directing() {
        if told == Told::Untold as u32 && work.to == MAY_PASS {
            return deliver::tc_pass(Reason::Passed, length);
        }
        event::tell_of(ctx, length, &work.packet, event_kind::DROP, Reason::TooBig, place);
    }
    if told != Told::Told as u32 {
        return deliver::tc_shot(Reason::TooBig, length);
    }
    maps::count(Reason::TooBig, length);
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect(ctx.link(), 0) as i32 }
}

/// Makes the packet the error about itself; one of [`Told`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_too_long4(ctx: *mut __sk_buff) -> u32 {
    tell::<V4>(&TcContext::new(ctx)) as u32
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_too_long6(ctx: *mut __sk_buff) -> u32 {
    tell::<V6>(&TcContext::new(ctx)) as u32
}

/// True for a packet whose sender is told when it is too long: it must not be fragmented, and is no later fragment (RFC 1122 section
/// 3.2.2).
#[inline(always)]
pub fn may_tell<A: Tables>(frame: &Frame) -> bool {
    !A::IS_V4 || frame.read::<u16>(ETHERNET + 6).is_some_and(|fragment| u16::from_be(fragment) & 0x5fff == 0x4000)
}

#[inline(always)]
fn tell<A: Tables>(ctx: &TcContext) -> Told {
    let frame = ctx.frame();
    let (Some(work), Some(link)) = (A::directing(), frame.read::<[u16; 6]>(0)) else { return Told::Untold };
    if !may_tell::<A>(&frame) || ctx.length() < (ETHERNET + QUOTE) as u64 {
        return Told::Untold;
    }
    // First what the kernel may refuse. A segment is none any more after it.
    // SAFETY: the context is valid while the program runs.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, (ETHERNET + QUOTE) as u32, 0) } != 0 {
        return Told::Untold;
    }
    let mtu = if A::IS_V4 { work.next_hop } else { work.next_hop.max(IPV6_MTU_MIN) };
    let told = make_room(ctx, dsr::error_length::<A>() as i32, 0) && put_error::<A>(ctx, mtu, link).is_some();
    if told { Told::Told } else { Told::Broken }
}

/// Writes the error before what is left of the packet.
#[inline(always)]
fn put_error<A: Tables>(ctx: &TcContext, mtu: u32, [a, b, c, d, e, f]: [u16; 6]) -> Option<()> {
    let frame: Frame = ctx.frame();
    dsr::put_too_big::<A>(&frame, ETHERNET, mtu)?;
    if frame.write(0, [d, e, f, a, b, c]) { Some(()) } else { None }
}
