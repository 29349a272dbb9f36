//! The backend's node: the note is taken off, and answers get the frontend's address.
//!
//! A note makes this node send in the name of the frontend, so it is believed only as far as this node knows itself: the packet is
//! for a workload of its own, the frontend is one of a service that uses direct server return, and that workload is one of the
//! service's backends. What is around a packet must come from a node of the mesh besides; an option comes from the client itself, of
//! whom nothing can be known. A frontend that is a port of another node is known by the same port of this one.
//!
//! There is one entry, that of the answers. Packets of both directions keep it alive (`keep` in this folder). Both go through the stack,
//! so that netfilter sees all of the connection (`steps/past.rs`): an answer gets the frontend's address where it leaves the node.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_OK, xdp_md},
    helpers::bpf_skb_store_bytes,
    programs::{TcContext, XdpContext},
};
use meshd_abi::{
    Connection, ConnectionKey, Reason, ReceiverKey, Scope, Service, ServiceKey, Settings, V4, V6, connection_flags,
    event_kind, event_place, identity_flags, service_flags,
};
use meshd_steps::{
    Packet,
    bucket::Client,
    dsr::{self, Form},
    header::{ETHERNET, parse, protocol},
};

use super::{Directing, HEADERS, make_room, shift};
use crate::{
    context::{Context, linear},
    maps::{
        self, Tables,
        connections::{self, Way},
    },
    steps::{connect, deliver, event, fragment, ticks},
};

/// What [`find`] and [`learn`] answer: it is none of ours.
const NONE: u32 = 0;
/// A note in an option.
const OPTION: u32 = 1;
/// A note inside of another packet.
const IPIP: u32 = 2;
/// A note in Geneve.
const GENEVE: u32 = 3;
/// A note that is not believed.
const REFUSED: u32 = 4;
/// A note that was taken over.
const LEARNT: u32 = 5;
/// The same of a connection that begins.
const BEGUN: u32 = 6;
/// `BPF_F_RECOMPUTE_CSUM`: a sum that the device made over everything is brought up to date.
const RECOMPUTE: u64 = 1;
/// An entry that nobody used for this many ticks gives way to another frontend with the same tuple.
const STALE: u32 = 60;

/// The functions of a family and a kind of program: each has a stack of its own.
macro_rules! receivers {
    ($family:ty, $raw:ident, $context:ident, $find:ident, $learn:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $find(ctx: *mut $raw) -> u32 {
            find::<$family, $context>(&$context::new(ctx))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $learn(ctx: *mut $raw, found: u32) -> u32 {
            learn::<$family, $context>(&$context::new(ctx), found).unwrap_or(REFUSED)
        }
    };
}

receivers!(V4, xdp_md, XdpContext, xdp_find4, xdp_learn4);
receivers!(V6, xdp_md, XdpContext, xdp_find6, xdp_learn6);
receivers!(V4, __sk_buff, TcContext, tc_find4, tc_learn4);
receivers!(V6, __sk_buff, TcContext, tc_find6, tc_learn6);

families!(xdp_receive4, xdp_receive6, receive_xdp, xdp_md, XdpContext, u32);
families!(tc_receive4, tc_receive6, receive_tc, __sk_buff, TcContext, i32);

#[inline(always)]
fn receive_xdp<A: Tables>(ctx: &XdpContext) -> u32 {
    let length = ctx.length();
    let found = if A::IS_V4 { xdp_find4(ctx.ctx) } else { xdp_find6(ctx.ctx) };
    // Options are unusual, and left to TC like all that is.
    if found == NONE || found == OPTION {
        return deliver::xdp_pass(Reason::Passed, length);
    }
    if found == REFUSED {
        return deliver::xdp_shot(Reason::DsrRefused, length);
    }
    let learnt = if A::IS_V4 { xdp_learn4(ctx.ctx, found) } else { xdp_learn6(ctx.ctx, found) };
    if learnt != LEARNT && learnt != BEGUN {
        return deliver::xdp_shot(Reason::DsrRefused, length);
    }
    tell_begun::<A, XdpContext>(ctx, learnt);
    match strip_xdp::<A>(ctx, found) {
        Some(()) => deliver::xdp_pass(Reason::DsrReceived, length),
        None => deliver::xdp_shot(Reason::RewriteFailed, length),
    }
}

#[inline(always)]
fn receive_tc<A: Tables>(ctx: &TcContext) -> i32 {
    linear(ctx, HEADERS);
    let length = ctx.length();
    let found = if A::IS_V4 { tc_find4(ctx.skb.skb) } else { tc_find6(ctx.skb.skb) };
    if found == NONE {
        return deliver::tc_pass(Reason::Passed, length);
    }
    if found == REFUSED {
        return deliver::tc_shot(Reason::DsrRefused, length);
    }
    // Not a value that is either what was found or what was learnt: kernels before 6.5 take the two for one then, and remove what is
    // done about some of what was found (docs/kernels.md).
    let learnt = if A::IS_V4 { tc_learn4(ctx.skb.skb, found) } else { tc_learn6(ctx.skb.skb, found) };
    if learnt == NONE {
        return deliver::tc_pass(Reason::Passed, length);
    }
    if learnt != LEARNT && learnt != BEGUN {
        return deliver::tc_shot(Reason::DsrRefused, length);
    }
    tell_begun::<A, TcContext>(ctx, learnt);
    match strip_tc::<A>(ctx, found) {
        Some(()) => {
            maps::count(Reason::DsrReceived, length);
            TC_ACT_OK as i32
        }
        None => deliver::tc_shot(Reason::RewriteFailed, length),
    }
}

/// Tells of a connection that begins. What is refused is counted only: what it says of itself is not believed.
#[inline(always)]
fn tell_begun<A: Tables, C: Context>(ctx: &C, learnt: u32) {
    if learnt == BEGUN {
        if let Some(work) = A::directing() {
            event::tell(ctx, &work.packet, event_kind::NEW, Reason::DsrReceived, event_place::FROM_NETWORK);
        }
    }
}

/// Looks for a note, and who sent it.
#[inline(always)]
fn find<A: Tables, C: Context>(ctx: &C) -> u32 {
    let frame = &ctx.frame();
    let (Some(work), Some(settings)) = (A::directing(), maps::settings()) else { return NONE };
    if let Some(note) = dsr::option::<A>(frame, ETHERNET) {
        work.note = note;
        return OPTION;
    }
    let Some((ends, next)) = dsr::plain_outer::<A>(frame, ETHERNET) else { return NONE };
    if ends.to != A::own_source(settings) {
        return NONE;
    }
    let (note, found) = if next == dsr::inside::<A>() {
        (dsr::option::<A>(frame, ETHERNET + A::HEADER), IPIP)
    } else if next == protocol::UDP {
        (dsr::geneve::<A>(frame, ETHERNET), GENEVE)
    } else {
        (None, NONE)
    };
    let Some(note) = note else { return NONE };
    work.note = note;
    let is_node = A::identity(&ends.from)
        .is_some_and(|from| from.flags & (identity_flags::NODE | identity_flags::THIS_NODE) == identity_flags::NODE);
    if is_node { found } else { REFUSED }
}

/// Judges a note, and remembers it. `None`: it is not believed.
#[inline(always)]
fn learn<A: Tables, C: Context>(ctx: &C, found: u32) -> Option<u32> {
    let frame = &ctx.frame();
    let (Some(work), Some(settings)) = (A::directing(), maps::settings()) else { return None };
    let l3 = match found {
        OPTION => ETHERNET,
        IPIP => ETHERNET + A::HEADER,
        _ => ETHERNET + dsr::overhead::<A>(Form::Geneve),
    };
    let mut packet: Packet<A> = parse::<A, true>(frame, l3).ok()?;
    let is_own =
        A::identity(&packet.key.destination).is_some_and(|identity| identity.flags & identity_flags::LOCAL != 0);
    if !is_own {
        // An option on its way to somebody else.
        return if found == OPTION { Some(NONE) } else { None };
    }
    if !fragment::complete(&mut packet) {
        return None;
    }
    if found != GENEVE {
        dsr::without_option::<A>(frame, l3, &mut work.header)?;
    }
    let key = &packet.key;
    let service = service(work, key.protocol, settings)?;
    let receiver = ReceiverKey {
        backend: key.destination,
        service: service.id,
        port: key.destination_port,
        protocol: key.protocol,
        reserved: 0,
    };
    if !A::receives(&receiver) {
        return None;
    }
    let service = service.id;
    let learnt = remember(work, &packet, service)?;
    if learnt == BEGUN {
        work.packet = packet;
    }
    Some(learnt)
}

/// The service of the note's frontend, if it is one that other nodes may send for.
#[inline(always)]
fn service<A: Tables>(work: &Directing<A>, protocol: u8, settings: &Settings) -> Option<&'static Service> {
    let note = &work.note;
    let mut key = ServiceKey::new(note.frontend, note.port, protocol, Scope::External);
    let mut service = A::service(&key);
    if service.is_none() && A::identity(&note.frontend).is_some_and(|who| who.flags & identity_flags::NODE != 0) {
        key.address = A::own_source(settings);
        service = A::service(&key);
    }
    service.filter(|service| service.flags & service_flags::DSR != 0)
}

/// Makes the entry of the answers; `None` when another connection has it.
#[inline(always)]
fn remember<A: Tables>(work: &mut Directing<A>, packet: &Packet<A>, service: u32) -> Option<u32> {
    let beginning = connect::Beginning::of(packet, ticks())?;
    let now = beginning.now;
    let key: &mut ConnectionKey<A> = &mut beginning.answer_key;
    key.source = packet.key.destination;
    key.destination = packet.key.source;
    key.source_port = packet.key.destination_port;
    key.destination_port = packet.key.source_port;
    key.protocol = packet.key.protocol;
    key.reserved = [0; 3];
    let answer: &mut Connection<A> = &mut beginning.answer;
    answer.tuple.source = work.note.frontend;
    answer.tuple.destination = packet.key.source;
    answer.tuple.source_port = work.note.port;
    answer.tuple.destination_port = packet.key.source_port;
    // The client may be behind another way than the one the packet came by: the stack is asked.
    answer.to = 0;
    answer.service = service;
    answer.used = now;
    answer.began = now;
    // What is taken off its note goes up the stack, and so does what follows without one: netfilter sees the question.
    answer.flags = connection_flags::REPLY | connection_flags::DSR | connection_flags::STACK;
    answer.closed_by = 0;
    answer.reserved = [0; 2];
    if let Some(known) = connections::get(&beginning.answer_key, Client::Destination) {
        let is_over = known.flags & connection_flags::CLOSING != 0;
        let is_same = known.tuple == beginning.answer.tuple && known.flags & connection_flags::DSR != 0;
        if is_same && !connect::begins_again(known, packet) {
            connect::touch_back(known, packet, now);
            return Some(LEARNT);
        }
        if !is_same && !is_over && now.wrapping_sub(known.used) <= STALE {
            return None;
        }
    }
    connections::put::<A>(Way::Answer).then_some(BEGUN)
}

/// Octets that go with a note.
#[inline(always)]
const fn stripped<A: Tables>(found: u32) -> i32 {
    match found {
        OPTION => dsr::overhead::<A>(Form::Option) as i32,
        IPIP => dsr::overhead::<A>(Form::Ipip) as i32,
        _ => dsr::overhead::<A>(Form::Geneve) as i32,
    }
}

/// Takes the note off a frame.
#[inline(always)]
fn strip_xdp<A: Tables>(ctx: &XdpContext, found: u32) -> Option<()> {
    let work = A::directing()?;
    let link: [u16; 6] = ctx.frame().read(0)?;
    let octets = if found == IPIP { stripped::<A>(IPIP) } else { stripped::<A>(GENEVE) };
    if !shift(ctx, -octets) {
        return None;
    }
    let frame = &ctx.frame();
    if !frame.write(0, link) || !frame.write(12, A::ETHERTYPE.to_be()) {
        return None;
    }
    if found == GENEVE { Some(()) } else { dsr::put_header::<A>(frame, ETHERNET, &work.header) }
}

/// Takes the note off an skb.
#[inline(always)]
fn strip_tc<A: Tables>(ctx: &TcContext, found: u32) -> Option<()> {
    let work = A::directing()?;
    let octets = match found {
        OPTION => stripped::<A>(OPTION),
        IPIP => stripped::<A>(IPIP),
        _ => stripped::<A>(GENEVE),
    };
    if !make_room(ctx, -octets, 0) {
        return None;
    }
    if found == GENEVE {
        return Some(());
    }
    let header = (&raw const work.header).cast();
    // SAFETY: the header is longer than any family's.
    let stored = unsafe { bpf_skb_store_bytes(ctx.skb.skb, ETHERNET as u32, header, A::HEADER as u32, RECOMPUTE) };
    if stored == 0 { Some(()) } else { None }
}
