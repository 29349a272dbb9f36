//! XDP program `xdp_uplink`: packets from outside that are for a service, and answers to what this node sent for others.
//!
//! It takes what is common and leaves everything unusual (options, extension headers, fragments, ICMP, packets that are too
//! long, neighbors that are not resolved) to `uplink_ingress`, which finds it unchanged.

use aya_ebpf::{bindings::xdp_md, macros::xdp, programs::XdpContext};
use meshd_abi::{Address, ConnectionKey, Link, NeighborKey, Reason, Scope, Settings, V4, V6, event_place};
use meshd_steps::{
    Frame, Packet,
    header::{ETHERNET, ethertype, parse, protocol},
};

use crate::{
    context::Context,
    maps::{self, Tables},
    steps::{self, Decision, answer::answer, deliver, dsr, event, serve::serve},
};

/// Decides about one frame.
#[xdp]
pub fn xdp_uplink(ctx: XdpContext) -> u32 {
    let frame = ctx.frame();
    match ethertype(&frame) {
        Some(V4::ETHERTYPE) => dsr::xdp::<V4>(xdp_uplink4(ctx.ctx), &ctx),
        Some(V6::ETHERTYPE) => dsr::xdp::<V6>(xdp_uplink6(ctx.ctx), &ctx),
        _ => deliver::xdp_pass(Reason::Passed, ctx.length()),
    }
}

families!(xdp_uplink4, xdp_uplink6, uplink, xdp_md, XdpContext, u32);

#[inline(always)]
fn uplink<A: Tables>(ctx: &XdpContext) -> u32 {
    let frame = &ctx.frame();
    let length = ctx.length();
    let Some(link) = maps::link(ctx.link()).filter(|link| is_to(frame, link)) else {
        return deliver::xdp_pass(Reason::Passed, length);
    };
    let Ok(packet) = parse::<A, false>(frame, ETHERNET) else { return dsr::XDP_UNUSUAL };
    let Some(settings) = maps::settings() else { return dsr::XDP_UNUSUAL };
    let decision = decide(ctx, frame, &packet, settings);
    event::decided(ctx, &packet, &decision, event_place::FROM_NETWORK);
    let outcome = match decision {
        Decision::Pass if dsr::may_be_geneve(&packet, settings) => Ok(dsr::XDP_WRAPPED),
        Decision::Pass => Ok(deliver::xdp_pass(Reason::Passed, length)),
        Decision::Drop(reason) => Err(reason),
        Decision::Send(send)
            if send.direct != 0 && dsr::has_note(&packet, settings) && dsr::lay_down(&packet, &send) =>
        {
            Ok(dsr::XDP_DIRECT)
        }
        Decision::Send(send) => deliver::xdp(ctx, frame, &packet, &send, link),
    };
    outcome.unwrap_or_else(|reason| deliver::xdp_drop(ctx, &packet, reason))
}

#[inline(always)]
fn decide<A: Tables>(ctx: &XdpContext, frame: &Frame, packet: &Packet<A>, settings: &Settings) -> Decision<A> {
    match addressee(&packet.key, settings) {
        Addressee::Port => answer(packet, steps::ticks()),
        // Rare enough to be left to the TC program.
        Addressee::Node => Decision::Pass,
        Addressee::Other => serve(packet, Scope::External, || sender(ctx, frame), steps::ticks),
    }
}

/// Whom a packet is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Addressee {
    /// The address and one of the ports that this node uses in place of others: an answer, or nothing.
    Port,
    /// That address in a protocol whose ports stay: an answer, or a question.
    Node,
    /// Anybody else.
    Other,
}

/// Tells what this node got in place of others from what is asked of a service.
#[inline(always)]
pub fn addressee<A: Tables>(key: &ConnectionKey<A>, settings: &Settings) -> Addressee {
    let port = u16::from_be(key.destination_port);
    let is_port = port.wrapping_sub(settings.ports) < settings.port_count;
    let is_sctp = key.protocol == protocol::SCTP;
    if !(is_port || is_sctp) || key.destination != A::own_source(settings) {
        return Addressee::Other;
    }
    if is_sctp { Addressee::Node } else { Addressee::Port }
}

/// True for a frame to the link itself. One that listens to everything (a port of a bridge, a link that is watched) brings what is
/// for other hosts as well, and there may be one among them that has the same services.
#[inline(always)]
fn is_to(frame: &Frame, link: &Link) -> bool {
    let Some([a, b, c]) = frame.read::<[u16; 3]>(0) else { return false };
    let word = |at: usize| u16::from_ne_bytes([link.address[at], link.address[at + 1]]);
    (a ^ word(0)) | (b ^ word(2)) | (c ^ word(4)) == 0
}

/// The next hop that sent this frame: answers go back the way the question came.
#[inline(always)]
pub fn sender<C: Context>(ctx: &C, frame: &Frame) -> u32 {
    let Some([a, b, c]) = frame.read::<[u16; 3]>(6) else { return 0 };
    let ([a0, a1], [b0, b1], [c0, c1]) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
    maps::neighbor(&NeighborKey { link: ctx.link(), address: [a0, a1, b0, b1, c0, c1], reserved: 0 })
}
