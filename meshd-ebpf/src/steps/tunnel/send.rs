//! A packet at the tunnel's link on its way out: the frame around it, and to the uplink.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    helpers::{bpf_fib_lookup, bpf_get_hash_recalc, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room},
    programs::TcContext,
};
use meshd_abi::{Address, REMOTE_NODE, Reason, Settings, Tunnel, V4, V6, identity_flags, mark, settings_flags};
use meshd_steps::{
    Frame,
    dsr::Ends,
    header::{ETHERNET, ethertype, protocol},
    tunnel::{Wrap, overhead, put},
};

use super::{HEADERS, Key, TUNNELS, WRAPPING, address_of, fits, is_on, key_of, tunnel_to};
use crate::{
    context::{Context, linear},
    maps::{self, Tables},
    steps::deliver::{addresses, tc_shot},
};

/// `BPF_FIB_LKUP_RET_SUCCESS`.
const FOUND: i64 = 0;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: there is a route, and the neighbor is not resolved.
const NO_NEIGHBOR: i64 = 7;
/// `BPF_ADJ_ROOM_MAC`: room behind the link-layer header.
const BEHIND_ETHERNET: u32 = 1;
/// `BPF_F_ADJ_ROOM_FIXED_GSO`: segments keep their size.
pub const FIXED_SEGMENTS: u64 = 1;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV4`.
const OUTER_IPV4: u64 = 1 << 1;
/// `BPF_F_ADJ_ROOM_ENCAP_L3_IPV6`.
const OUTER_IPV6: u64 = 1 << 2;
/// `BPF_F_ADJ_ROOM_ENCAP_L4_UDP`.
const OUTER_UDP: u64 = 1 << 4;
/// `BPF_F_ADJ_ROOM_ENCAP_L2` with the length of an Ethernet header, and `BPF_F_ADJ_ROOM_ENCAP_L2_ETH`.
const INNER_ETHERNET: u64 = (ETHERNET as u64) << 56 | 1 << 6;
/// Longest packet whose frame has a length that its headers can say.
const LENGTH_MAX: u32 = 65_535 - 70;

/// What is known of the packet inside.
struct Inside {
    vni: u32,
    service: u8,
    /// Octets of its headers, when it is a segment that is cut into packets later.
    headers: u32,
}

/// Puts a packet into a frame and sends it; what cannot be is left to the device.
#[inline(always)]
pub fn tc(ctx: &TcContext) -> i32 {
    match tc_wrap(ctx.skb.skb) {
        4 => tc_wrap4(ctx.skb.skb),
        6 => tc_wrap6(ctx.skb.skb),
        _ => TC_ACT_UNSPEC,
    }
}

/// Fills this CPU's [`super::Wrapping`]; the family of the outer header, 0 leaves the packet to the device.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_wrap(ctx: *mut __sk_buff) -> u32 {
    plan(&TcContext::new(ctx)).unwrap_or(0)
}

#[inline(always)]
fn plan(ctx: &TcContext) -> Option<u32> {
    let mut key = Key::default();
    let is_v4 = key_of(ctx, &mut key)?;
    let far = address_of(key.local, is_v4);
    let tunnel = TUNNELS.get(tunnel_to(&far)).filter(|tunnel| tunnel.address == far)?;
    fill(ctx, tunnel)
}

/// Puts a packet that has not come to the tunnel's link into a frame for a far end and sends it. `TC_ACT_UNSPEC`: it is as it was, for the device.
#[inline(always)]
pub fn to(ctx: &TcContext, index: u32) -> i32 {
    match tc_wrap_to(ctx.skb.skb, index) {
        4 => tc_wrap4(ctx.skb.skb),
        6 => tc_wrap6(ctx.skb.skb),
        _ => TC_ACT_UNSPEC,
    }
}

/// The same as [`tc_wrap`] with the element of a far end.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_wrap_to(ctx: *mut __sk_buff, index: u32) -> u32 {
    let tunnel = TUNNELS.get(index).filter(|tunnel| tunnel.address != V6::default());
    tunnel.and_then(|tunnel| fill(&TcContext::new(ctx), tunnel)).unwrap_or(0)
}

#[inline(always)]
fn fill(ctx: &TcContext, tunnel: &Tunnel) -> Option<u32> {
    let settings = maps::settings().filter(|settings| is_on(settings))?;
    let far = tunnel.address;
    let is_v4 = far.unmapped().is_some();
    linear(ctx, HEADERS);
    let frame = &ctx.frame();
    let kind = ethertype(frame)?;
    let inside = match kind {
        V4::ETHERTYPE => inside::<V4>(ctx, frame, settings)?,
        V6::ETHERTYPE => inside::<V6>(ctx, frame, settings)?,
        _ => return None,
    };
    let length = (ctx.length() as u32).wrapping_sub(ETHERNET as u32);
    // SAFETY: the context is valid while the program runs.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    let mtu = u32::from(tunnel.mtu);
    if length > LENGTH_MAX || segment == 0 && length > mtu {
        return None;
    }
    let work = WRAPPING.get_ptr_mut(0)?;
    // SAFETY: it is this CPU's copy, and programs of packets do not interrupt each other on a CPU.
    let work = unsafe { &mut *work };
    // The stack cuts what it forwards into segments that fit; what came past it may have larger ones, which are made smaller.
    work.flags = if segment + inside.headers <= mtu { FIXED_SEGMENTS } else { 0 };
    work.far = far;
    work.next_hop = tunnel.next_hop;
    // SAFETY: as above.
    let hash = unsafe { bpf_get_hash_recalc(ctx.skb.skb) };
    work.wrap = Wrap {
        length,
        vni: inside.vni,
        port: settings.tunnel_port,
        entropy: (hash ^ hash >> 16) as u16,
        ethertype: kind.to_be(),
        service: inside.service,
        geneve: settings.flags & settings_flags::TUNNEL_GENEVE != 0,
    };
    Some(if is_v4 { 4 } else { 6 })
}

/// Reads what the frame has to say of the packet inside.
#[inline(always)]
fn inside<A: Tables>(ctx: &TcContext, frame: &Frame, settings: &Settings) -> Option<Inside> {
    let head: [u8; 8] = frame.read(ETHERNET)?;
    let (source, service, next): (A, u8, u8) = if A::IS_V4 {
        let address: V4 = frame.read(ETHERNET + 12)?;
        let rest: [u8; 4] = frame.read(ETHERNET + 8)?;
        (A::from_words(address.words()), head[1], rest[1])
    } else {
        let address: V6 = frame.read(ETHERNET + 8)?;
        (A::from_words(address.words()), head[0] << 4 | head[1] >> 4, head[6])
    };
    let layer4 = if next == protocol::TCP {
        // Options of IP make it a little longer, which is on the safe side of nothing: a segment then gets smaller, too.
        let offset: [u8; 2] = frame.read(ETHERNET + A::HEADER + 12)?;
        u32::from(offset[0] >> 4) * 4
    } else {
        8
    };
    // SAFETY: the context is valid while the program runs.
    let is_own = unsafe { (*ctx.skb.skb).ingress_ifindex } == 0;
    let vni = match A::identity(&source) {
        Some(known) if known.flags & identity_flags::LOCAL != 0 && fits(known.identity) => known.identity,
        // Another sender could have the node's address, too: only what begins here is the node's.
        Some(known) if known.flags & identity_flags::THIS_NODE != 0 && is_own => REMOTE_NODE,
        _ => settings.tunnel_vni,
    };
    Some(Inside { vni, service, headers: A::HEADER as u32 + layer4 })
}

families!(tc_wrap4, tc_wrap6, wrap, __sk_buff, TcContext, i32);

#[inline(always)]
fn wrap<A: Tables>(ctx: &TcContext) -> i32 {
    let (Some(work), Some(settings)) = (WRAPPING.get_ptr_mut(0), maps::settings()) else { return TC_ACT_UNSPEC };
    // SAFETY: as in `plan`.
    let work = unsafe { &*work };
    let to = if A::IS_V4 { [work.far.0[3], 0, 0, 0] } else { work.far.0 };
    let ends: Ends<A> = Ends { from: A::own_source(settings), to: A::from_words(to) };
    let length = ctx.length();
    let Some(link) = ctx.frame().read::<[u16; 6]>(0) else { return TC_ACT_UNSPEC };
    if ends.from == A::default() {
        return TC_ACT_UNSPEC;
    }
    let hop = maps::next_hop(work.next_hop);
    let mut out = 0;
    if hop.is_none() {
        let Some(route) = maps::route() else { return TC_ACT_UNSPEC };
        route.family = A::AF;
        route.protocol = protocol::UDP;
        route.source_port = 0;
        route.destination_port = settings.tunnel_port.to_be();
        route.length = 0;
        route.link = ctx.link();
        route.flow = 0;
        route.source = ends.from.words();
        route.destination = ends.to.words();
        route.vlan = 0;
        let (at, size) = ((&raw mut *route).cast(), size_of::<maps::Route>() as i32);
        // SAFETY: the context is valid and the structure is as long as the kernel is told.
        let found = unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), at, size, 0) };
        if found != FOUND && found != NO_NEIGHBOR {
            return TC_ACT_UNSPEC;
        }
        out = route.link;
    }
    let outer = if A::IS_V4 { OUTER_IPV4 } else { OUTER_IPV6 };
    let flags = outer | OUTER_UDP | INNER_ETHERNET | work.flags;
    // SAFETY: the context is valid. What the kernel refuses is as it was.
    if unsafe { bpf_skb_adjust_room(ctx.skb.skb, overhead::<A>() as i32, BEHIND_ETHERNET, flags) } != 0 {
        return TC_ACT_UNSPEC;
    }
    let frame = &ctx.frame();
    if put(frame, ETHERNET, &ends, &work.wrap, link).is_none() || !frame.write(12, A::ETHERTYPE.to_be()) {
        return tc_shot(Reason::RewriteFailed, length);
    }
    maps::count(Reason::Encapsulated, length);
    // SAFETY: the context is valid while the program runs.
    let skb = unsafe { &mut *ctx.skb.skb };
    skb.mark = skb.mark & !mark::MASK | mark::PAST;
    match hop {
        Some(hop) if frame.write(0, addresses(hop)) => {
            // SAFETY: the helper takes numbers.
            unsafe { bpf_redirect(hop.link, 0) as i32 }
        }
        Some(_) => tc_shot(Reason::RewriteFailed, length),
        // SAFETY: the helper takes numbers and no parameters.
        None => unsafe { bpf_redirect_neigh(out, core::ptr::null_mut(), 0, 0) as i32 },
    }
}
