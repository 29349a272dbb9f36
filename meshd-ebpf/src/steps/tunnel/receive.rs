//! A frame at the uplink: who sent it, whose packet is inside, and the packet to the tunnel's link.
//!
//! VXLAN is taken off here when the packet is for a workload of this node or for the node. The rest is left to the device, as with all
//! that is unusual: what goes on to other nodes would keep marks of the frame on it that a network card could take for those of a
//! tunnel. Geneve has no device here, so all of it is taken off.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_OK},
    helpers::{bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_type, bpf_skb_ecn_set_ce},
    programs::TcContext,
};
use meshd_abi::{Address, Reason, Settings, Tunnel, V4, V6, event_place, identity_flags, settings_flags};
use meshd_steps::{
    Frame, Packet, Part,
    dsr::plain_outer,
    header::{ETHERNET, ethertype, parse, protocol},
    tunnel::{ECN_CE, Head, UDP_TUNNEL, head, overhead},
};

use super::{HEADERS, Key, address_of, come_from, far_end, fits, key_of, remember, send::FIXED_SEGMENTS, tunnel_to};
use crate::{
    context::{Context, linear},
    maps::{self, Tables, Who},
    steps::{deliver, dsr, event, fast, fragment},
};

/// What the half of a program answers that leaves a packet to [`tc`]; no verdict of TC.
pub const TC_TUNNELLED: i32 = i32::MIN + 4;
/// What [`unwrap`] answers for a packet that may take the fast path: that answer and its family.
const TC_OPENED4: i32 = fast::TC_FAST_HOME | 1 << 24;
const TC_OPENED6: i32 = fast::TC_FAST_HOME | 1 << 25;
const _: () = assert!(fast::HOPS <= 1 << 24);
/// The bits by which both are told from verdicts and other answers.
const KIND: i32 = 0xff << 24;
/// `BPF_ADJ_ROOM_MAC`: room behind the link-layer header.
const BEHIND_ETHERNET: u32 = 1;
/// `BPF_F_ADJ_ROOM_DECAP_L3_IPV4` (6.3 and newer): what is inside is IPv4, and what was outside is not.
const INSIDE_IPV4: u64 = 1 << 7;
/// `BPF_F_ADJ_ROOM_DECAP_L3_IPV6`.
const INSIDE_IPV6: u64 = 1 << 8;
/// `BPF_F_INGRESS`.
const INGRESS: u64 = 1;
/// `PACKET_HOST`.
const FOR_THIS_HOST: u32 = 0;
/// Whoever is of this node.
const OWN: u16 = identity_flags::LOCAL | identity_flags::THIS_NODE;

/// True for a packet to this node that may be a frame of the tunnel.
#[inline(always)]
pub fn may_be<A: Tables>(packet: &Packet<A>, settings: &Settings) -> bool {
    settings.tunnel_link != 0
        && packet.key.destination_port == settings.tunnel_port.to_be()
        && packet.key.protocol == protocol::UDP
        && matches!(packet.part, Part::Whole)
        && is_own(&packet.key.destination, settings)
}

/// True for an address of this node.
#[inline(always)]
fn is_own<A: Tables>(address: &A, settings: &Settings) -> bool {
    *address == A::own_source(settings) || has_flag(address, identity_flags::THIS_NODE)
}

/// What a program says: the verdict of its half for this family, or the one about the frame that it left.
#[inline(always)]
pub fn tc<A: Tables>(verdict: i32, ctx: &TcContext) -> i32 {
    let verdict = match (verdict, A::IS_V4) {
        (TC_TUNNELLED, true) => tc_unwrap4(ctx.skb.skb),
        (TC_TUNNELLED, false) => tc_unwrap6(ctx.skb.skb),
        (verdict, _) => return verdict,
    };
    match verdict & KIND {
        TC_OPENED4 => tc_opened4(ctx.skb.skb, verdict as u32),
        TC_OPENED6 => tc_opened6(ctx.skb.skb, verdict as u32),
        _ => verdict,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_opened4(ctx: *mut __sk_buff, answer: u32) -> i32 {
    opened::<V4>(&TcContext::new(ctx), answer)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_opened6(ctx: *mut __sk_buff, answer: u32) -> i32 {
    opened::<V6>(&TcContext::new(ctx), answer)
}

/// A packet that was in a frame and whose ends have a fast path: by it to its workload, or to the tunnel's link.
#[inline(always)]
fn opened<A: Tables>(ctx: &TcContext, answer: u32) -> i32 {
    linear(ctx, HEADERS);
    let frame = &ctx.frame();
    if let Ok(mut packet) = parse::<A, true>(frame, ETHERNET)
        && fragment::complete(&mut packet)
        && fast::is_nobodys(&packet)
        && !is_direct(frame, &packet)
    {
        event::untranslated(ctx, &packet, event_place::TO_WORKLOAD);
        let verdict = fast::forward::<A>(ctx, answer as i32, true);
        if verdict != TC_ACT_OK as i32 {
            return verdict;
        }
    }
    let (Some(settings), Some(far)) = (maps::settings(), come_from()) else {
        return deliver::tc_shot(Reason::NoRoute, ctx.length());
    };
    to_link(ctx, settings, far)
}

/// True for a packet of direct server return, and for one that may say so.
#[inline(always)]
fn is_direct<A: Tables>(frame: &Frame, packet: &Packet<A>) -> bool {
    maps::settings()
        .is_some_and(|settings| dsr::may_have_option(frame, packet, settings) || dsr::is_answered(packet, settings))
}

/// To the tunnel's link, as if the device had taken it out of a frame of a node.
#[inline(always)]
fn to_link(ctx: &TcContext, settings: &Settings, far: &V6) -> i32 {
    let frame = &ctx.frame();
    if !frame.write(0, settings.tunnel_mac) || !frame.write(6, Tunnel::link_address(tunnel_to(far))) {
        return deliver::tc_shot(Reason::RewriteFailed, ctx.length());
    }
    // SAFETY: the helper takes numbers.
    unsafe { bpf_redirect(settings.tunnel_link, INGRESS) as i32 }
}

families!(tc_unwrap4, tc_unwrap6, unwrap, __sk_buff, TcContext, i32);

#[inline(always)]
fn unwrap<A: Tables>(ctx: &TcContext) -> i32 {
    linear(ctx, HEADERS);
    let length = ctx.length();
    let Some(settings) = maps::settings() else { return deliver::tc_pass(Reason::Passed, length) };
    let frame = &ctx.frame();
    let pass = || deliver::tc_pass(Reason::Passed, length);
    let Some((ends, next)) = plain_outer::<A>(frame, ETHERNET) else { return pass() };
    let udp = ETHERNET + A::HEADER;
    if next != protocol::UDP || !is_own(&ends.to, settings) {
        return pass();
    }
    let is_geneve = settings.flags & settings_flags::TUNNEL_GENEVE != 0;
    let (vni, is_vxlan) = match head(frame, udp) {
        Some(Head::Vxlan(vni)) => (vni, true),
        Some(Head::Geneve(vni)) if is_geneve => (vni, false),
        Some(Head::GeneveOptions) if is_geneve && settings.flags & settings_flags::DSR != 0 => return dsr::TC_WRAPPED,
        _ => return pass(),
    };
    let from = A::identity(&ends.from).map_or(0, |from| from.flags);
    if from & (identity_flags::NODE | identity_flags::THIS_NODE) != identity_flags::NODE {
        if settings.flags & settings_flags::TUNNEL_FILTER != 0 {
            return deliver::tc_shot(Reason::TunnelRefused, length);
        }
        return pass();
    }
    let inner = udp + UDP_TUNNEL;
    let Some(kind) = frame.read::<u16>(inner + 12).map(u16::from_be) else { return pass() };
    let judged = match kind {
        V4::ETHERTYPE => judge::<V4>(frame, inner + ETHERNET, vni, settings),
        V6::ETHERTYPE => judge::<V6>(frame, inner + ETHERNET, vni, settings),
        _ => return pass(),
    };
    match judged {
        Judged::Refused => return deliver::tc_shot(Reason::TunnelRefused, length),
        Judged::Unknown => return pass(),
        Judged::Transit if is_vxlan => return pass(),
        Judged::Transit | Judged::Local(_) => {}
    }
    let is_marked = service::<A>(frame).is_some_and(|service| service & ECN_CE == ECN_CE);
    let inside = match (kind == V4::ETHERTYPE, A::IS_V4) {
        (true, true) | (false, false) => 0,
        (true, false) => INSIDE_IPV4,
        (false, true) => INSIDE_IPV6,
    };
    let far = far_end(&ends.from);
    let room = -(overhead::<A>() as i32);
    // SAFETY: the context is valid. What the kernel refuses is as it was, and the device takes it.
    if unsafe { bpf_skb_adjust_room(ctx.skb.skb, room, BEHIND_ETHERNET, FIXED_SEGMENTS | inside) } != 0 {
        return deliver::tc_pass(Reason::Passed, length);
    }
    if !ctx.frame().write(12, kind.to_be()) {
        return deliver::tc_shot(Reason::RewriteFailed, length);
    }
    maps::count(Reason::Decapsulated, length);
    if is_marked {
        // SAFETY: the context is valid. A packet whose sender does not understand marks stays without one.
        unsafe { bpf_skb_ecn_set_ce(ctx.skb.skb) };
    }
    match judged {
        Judged::Local(Some(answer)) if fast::is_on(settings) && remember(far) => {
            answer | if kind == V4::ETHERTYPE { TC_OPENED4 } else { TC_OPENED6 }
        }
        _ => to_link(ctx, settings, &far),
    }
}

/// What is thought of a packet inside of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    /// It says to come from this node.
    Refused,
    /// It is for this node, with the answer of the fast path if its ends have one.
    Local(Option<i32>),
    /// It goes on.
    Transit,
    /// Its headers are cut short.
    Unknown,
}

/// Looks at the ends of a packet inside of a frame, and takes over who its source is.
#[inline(always)]
fn judge<A: Tables>(frame: &Frame, l3: usize, vni: u32, settings: &Settings) -> Judged {
    let at = if A::IS_V4 { l3 + 12 } else { l3 + 8 };
    let (source, destination): (A, A) = if A::IS_V4 {
        let Some([source, destination]) = frame.read::<[u32; 2]>(at) else { return Judged::Unknown };
        (A::from_words([source, 0, 0, 0]), A::from_words([destination, 0, 0, 0]))
    } else {
        let Some(source) = frame.read::<V6>(at) else { return Judged::Unknown };
        let Some(destination) = frame.read::<V6>(at + 16) else { return Judged::Unknown };
        (A::from_words(source.0), A::from_words(destination.0))
    };
    let from = A::identity(&source);
    if from.is_some_and(|from| from.flags & OWN != 0) {
        return Judged::Refused;
    }
    take_over(&source, from, vni, settings);
    match A::identity(&destination) {
        Some(to) if to.flags & OWN != 0 => Judged::Local(from.and_then(|from| fast::of(&from, &to, true))),
        _ => Judged::Transit,
    }
}

/// Takes over the identity of a source from a frame. What is known of it already counts more.
#[inline(always)]
fn take_over<A: Tables>(source: &A, known: Option<Who>, vni: u32, settings: &Settings) {
    let is_said = vni != settings.tunnel_vni && fits(vni);
    match known {
        Some(known) if is_said && known.identity != vni => maps::count(Reason::IdentityMismatch, 0),
        None if is_said && A::arrived(source) != vni => A::put_arrived(source, vni),
        _ => {}
    }
}

/// True for an address with one of these flags.
#[inline(always)]
fn has_flag<A: Tables>(address: &A, flags: u16) -> bool {
    A::identity(address).is_some_and(|known| known.flags & flags != 0)
}

/// The service octet of the outer header.
#[inline(always)]
fn service<A: Address>(frame: &Frame) -> Option<u8> {
    let [first, second]: [u8; 2] = frame.read(ETHERNET)?;
    Some(if A::IS_V4 { second } else { first << 4 | second >> 4 })
}

/// A packet that the device has taken out of a frame: the same checks, and marks as of one that was taken out here. False: it must be
/// dropped.
#[inline(always)]
pub fn arrived(ctx: &TcContext) -> bool {
    tc_arrived(ctx.skb.skb) == 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_arrived(ctx: *mut __sk_buff) -> u32 {
    u32::from(!admit(&TcContext::new(ctx)))
}

#[inline(always)]
fn admit(ctx: &TcContext) -> bool {
    let Some(settings) = maps::settings() else { return true };
    let mut key = Key::default();
    let Some(is_v4) = key_of(ctx, &mut key) else { return true };
    let far = address_of(key.remote, is_v4);
    let from = match far.unmapped() {
        Some(address) => V4::identity(&address),
        None => V6::identity(&far),
    };
    let is_node = from
        .is_some_and(|from| from.flags & (identity_flags::NODE | identity_flags::THIS_NODE) == identity_flags::NODE);
    if !is_node && settings.flags & settings_flags::TUNNEL_FILTER != 0 {
        return false;
    }
    let frame = &ctx.frame();
    let judged = match ethertype(frame) {
        Some(V4::ETHERTYPE) => judge::<V4>(frame, ETHERNET, key.vni, settings),
        Some(V6::ETHERTYPE) => judge::<V6>(frame, ETHERNET, key.vni, settings),
        _ => return true,
    };
    if judged == Judged::Refused {
        return false;
    }
    let tunnel = tunnel_to(&far);
    // A frame that is too short for addresses has no packet in it either.
    let _marked = frame.write(6, Tunnel::link_address(tunnel));
    // SAFETY: the context is valid. Whatever address the frame has, its packet is for this host.
    unsafe { bpf_skb_change_type(ctx.skb.skb, FOR_THIS_HOST) };
    true
}

/// The same verdict where frames inside of frames are left to the stack.
#[inline(always)]
pub fn innermost(verdict: i32, ctx: &TcContext) -> i32 {
    if verdict == TC_TUNNELLED { deliver::tc_pass(Reason::Passed, ctx.length()) } else { verdict }
}

/// What a frame that is not admitted is counted as.
#[inline(always)]
pub fn refuse(ctx: &TcContext) -> i32 {
    deliver::tc_shot(Reason::TunnelRefused, ctx.length())
}
