//! ICMP errors about packets that this node translated.
//!
//! An error is told of the connection that its inner packet belongs to: the entry whose key is that packet's answer says what the
//! packet was before it was translated, and where whoever sent it is. It runs as a function of its own per family, called by the
//! program itself after its other half has seen what the packet is, so that it has a stack to itself.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_OK, TC_ACT_UNSPEC},
    programs::TcContext,
};
use meshd_abi::{Connection, ConnectionKey, Reason, Tuple, V4, V6, connection_flags, event_place};
use meshd_steps::{
    Skip,
    checksum::Difference,
    header::ETHERNET,
    icmp::{self, IcmpError},
};

use super::{Send, deliver, fast, past};
use crate::{
    context::{Context, linear},
    maps::{self, Tables, connections},
    xdp_uplink::{Addressee, addressee},
};

/// What the half of a program answers that leaves an ICMP error to [`or_related`]; no verdict of TC.
pub const IS_ICMP_ERROR: i32 = i32::MIN;

/// Octets of an error that may hold headers: twice IP and eight octets, options of both, the sum of TCP.
const HEADERS: u32 = 192;

/// The program that asks, which decides what may be told and how the error goes on: `uplink_ingress`. Each is the place that events name.
pub const UPLINK_INGRESS: u32 = event_place::FROM_NETWORK as u32;
/// `uplink_egress`.
pub const UPLINK_EGRESS: u32 = event_place::TO_NETWORK as u32;
/// `workload_ingress`.
pub const WORKLOAD_INGRESS: u32 = event_place::FROM_WORKLOAD as u32;
/// `workload_egress`.
pub const WORKLOAD_EGRESS: u32 = event_place::TO_WORKLOAD as u32;

/// An error under way: two packets' headers and two tuples are too much for the stack.
#[repr(C)]
pub struct Relating<A> {
    error: IcmpError<A>,
    key: ConnectionKey<A>,
    outer: Tuple<A>,
    inner: Tuple<A>,
    pseudo: Difference,
}

/// What a program says: the verdict of its half for this family, or the one about the ICMP error that it turned out to be.
///
/// What passes goes on to whoever is next, which without others on the link is the stack: `TC_ACT_OK` would end the round, and
/// programs and filters of others after ours would not see the packet.
#[inline(always)]
pub fn or_related<A: Tables>(verdict: i32, ctx: &TcContext, place: u32) -> i32 {
    let verdict = if verdict != IS_ICMP_ERROR {
        verdict
    } else if A::IS_V4 {
        tc_related4(ctx.skb.skb, place)
    } else {
        tc_related6(ctx.skb.skb, place)
    };
    if verdict == TC_ACT_OK as i32 { TC_ACT_UNSPEC } else { verdict }
}

/// The functions of a family: each has a stack of its own, and what is known passes between them in this CPU's [`Relating`].
macro_rules! related {
    ($family:ty, $related:ident, $read:ident, $outer:ident, $inner:ident) => {
        /// Translates an ICMP error; a verdict of TC.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $related(ctx: *mut __sk_buff, place: u32) -> i32 {
            related::<$family>(&TcContext::new(ctx), place)
        }

        /// Reads the headers; 0 when they are an error that can be told.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $read(ctx: *mut __sk_buff) -> u32 {
            match read::<$family>(&TcContext::new(ctx)) {
                Ok(()) => 0,
                Err(Skip::Malformed) => MALFORMED,
                Err(_) => 1,
            }
        }

        /// Writes the headers of the error; 0 when they could be written.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $outer(ctx: *mut __sk_buff, forward: u32) -> u32 {
            u32::from(write_outer::<$family>(&TcContext::new(ctx), forward != 0).is_none())
        }

        /// Writes the packet inside and the sum of the error; 0 when they could be written.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $inner(ctx: *mut __sk_buff) -> u32 {
            u32::from(write_inner::<$family>(&TcContext::new(ctx)).is_none())
        }
    };
}

related!(V4, tc_related4, tc_read_error4, tc_write_outer4, tc_write_inner4);
related!(V6, tc_related6, tc_read_error6, tc_write_outer6, tc_write_inner6);

/// What reading answers about headers that are cut short.
const MALFORMED: u32 = 2;

#[inline(always)]
fn read<A: Tables>(ctx: &TcContext) -> Result<(), Skip> {
    let frame = &ctx.frame();
    let Some(work) = A::relating() else { return Err(Skip::OtherProtocol) };
    work.error.outer = icmp::parse_outer::<A>(frame, ETHERNET)?;
    work.error.inner = icmp::parse_inner::<A>(frame, work.error.inner_l3())?;
    Ok(())
}

#[inline(always)]
fn write_outer<A: Tables>(ctx: &TcContext, forward: bool) -> Option<()> {
    let work = A::relating()?;
    work.pseudo = icmp::rewrite_outer(&ctx.frame(), ETHERNET, &work.error, &work.outer, forward)?;
    Some(())
}

#[inline(always)]
fn write_inner<A: Tables>(ctx: &TcContext) -> Option<()> {
    let work = A::relating()?;
    icmp::rewrite_inner(&ctx.frame(), &work.error, &work.inner, work.pseudo)
}

/// The way an error is written: see [`deliver::Write`].
struct Told<'a> {
    ctx: &'a TcContext,
    is_v4: bool,
}

impl deliver::Write for Told<'_> {
    #[inline(always)]
    fn write(&self, forward: bool) -> Option<()> {
        let (skb, forward) = (self.ctx.skb.skb, u32::from(forward));
        let refused = if self.is_v4 { tc_write_outer4(skb, forward) } else { tc_write_outer6(skb, forward) };
        if refused != 0 {
            return None;
        }
        let refused = if self.is_v4 { tc_write_inner4(skb) } else { tc_write_inner6(skb) };
        if refused == 0 { Some(()) } else { None }
    }
}

#[inline(always)]
fn related<A: Tables>(ctx: &TcContext, place: u32) -> i32 {
    linear(ctx, HEADERS);
    let length = ctx.length();
    match if A::IS_V4 { tc_read_error4(ctx.skb.skb) } else { tc_read_error6(ctx.skb.skb) } {
        0 => {}
        MALFORMED => return deliver::tc_pass(Reason::Malformed, length),
        _ => return deliver::tc_pass(Reason::Passed, length),
    }
    let Some(work) = A::relating() else { return deliver::tc_pass(Reason::Passed, length) };
    let key = &mut work.key;
    *key = work.error.answer_key();
    let Some(connection) = connections::get_any(key) else {
        // About a packet that took the fast path, which netfilter knows nothing of.
        let is_on = maps::settings().is_some_and(fast::is_on);
        if is_on
            && (place == UPLINK_INGRESS || place == WORKLOAD_INGRESS)
            && let Some(answer) = fast::between(key, place == UPLINK_INGRESS)
        {
            return fast::forward::<A>(ctx, answer, false);
        }
        return deliver::tc_pass(Reason::Passed, length);
    };
    if !may_tell(connection, key, place) {
        return deliver::tc_pass(Reason::Passed, length);
    }
    let to = &connection.tuple;
    work.inner.source = to.destination;
    work.inner.destination = to.source;
    work.inner.source_port = to.destination_port;
    work.inner.destination_port = to.source_port;
    // Who sent the packet is where its answers go. Whoever the error is from, it seems to come from where the packet was sent to
    // when that was translated: a router behind the translation is nobody to the other side.
    work.outer.destination = to.destination;
    work.outer.source = if to.source == key.source { work.error.outer.key.source } else { to.source };
    work.outer.source_port = 0;
    work.outer.destination_port = 0;
    let told = Told { ctx, is_v4: A::IS_V4 };
    if place == UPLINK_EGRESS || place == WORKLOAD_EGRESS {
        return match deliver::Write::write(&told, false) {
            Some(()) => deliver::tc_pass(Reason::IcmpError, length),
            None => deliver::tc_drop(ctx, &work.error.outer, Reason::RewriteFailed, place as u8),
        };
    }
    let next_hop = if connection.flags & connection_flags::REPLY != 0 {
        connection.to
    } else {
        A::backend(connection.to).map_or(0, |backend| past::next_hop(connection, backend.next_hop))
    };
    let local = connection.flags & connection_flags::LOCAL != 0;
    let work: &'static Relating<A> = work;
    let send = Send { tuple: &work.outer, next_hop, local, direct: 0, reason: Reason::IcmpError, event: 0 };
    let sent = deliver::tc_by(ctx, &ctx.frame(), &work.error.outer, &send, &told);
    sent.unwrap_or_else(|reason| deliver::tc_drop(ctx, &work.error.outer, reason, place as u8))
}

/// True for an entry that this program would apply to the packets of its connection: an error takes the way of an answer.
#[inline(always)]
fn may_tell<A: Tables>(connection: &Connection<A>, key: &ConnectionKey<A>, place: u32) -> bool {
    let is_reply = connection.flags & connection_flags::REPLY != 0;
    let is_masquerade = connection.flags & connection_flags::MASQUERADE != 0;
    let to = &connection.tuple;
    // A note that a connection keeps its tuple: there is nothing to tell.
    let keeps_source = to.source == key.source && to.source_port == key.source_port;
    if keeps_source && to.destination == key.destination && to.destination_port == key.destination_port {
        return false;
    }
    match place {
        UPLINK_INGRESS => match maps::settings().map(|settings| addressee(key, settings)) {
            Some(Addressee::Port) => is_reply,
            Some(Addressee::Node) => is_reply || !is_masquerade,
            // What is translated back at the workload's link only is left to it: netfilter has to see it as it is.
            Some(Addressee::Other) | None => !is_masquerade && (!is_reply || past::is_past(connection.flags)),
        },
        UPLINK_EGRESS => is_reply || is_masquerade,
        WORKLOAD_INGRESS if is_reply => connection.flags & connection_flags::STACK == 0,
        WORKLOAD_INGRESS => !is_masquerade,
        _ => is_reply,
    }
}
