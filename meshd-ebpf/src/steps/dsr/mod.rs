//! Direct server return: packets that reach a backend of another node with the client's own address, and are answered from there.
//!
//! The node that was asked adds a note of the frontend ([`send`]), the backend's node takes it off and remembers it ([`receive`]), and
//! `uplink_egress` there answers for the frontend. How a note looks is in `meshd_steps::dsr`.
//!
//! Both ends run as functions of their own, called by the program itself after its other half has said what the packet is: they
//! have a stack to themselves, and a packet that has nothing to do with them pays one comparison. What is known passes
//! between in this CPU's [`Directing`].

pub mod receive;
pub mod send;

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    btf_maps::{Array, HashMap, PerCpuArray},
    macros::btf_map,
    programs::{TcContext, XdpContext},
};
use meshd_abi::{
    Connection, Direct, Reason, ReceiverKey, Settings, Tuple, V4, V6, connection_flags, event_place, settings_flags,
};
use meshd_steps::{
    Frame, Packet,
    bucket::Client,
    dsr::{self, Form, GENEVE_PORT, Header, Note},
    header::{ETHERNET, protocol, tcp},
};

use super::{Send, connect, deliver};
use crate::{
    context::Context as _,
    maps::{self, ON_DEMAND, Tables, connections},
};

/// What the half of an XDP program answers that leaves a packet to [`send`]; no verdict.
pub const XDP_DIRECT: u32 = u32::MAX - 1;
/// The same for [`receive`].
pub const XDP_WRAPPED: u32 = u32::MAX;
/// What it answers about a packet that it does not look into: there may be another one inside of it.
pub const XDP_UNUSUAL: u32 = u32::MAX - 2;
/// What the half of a TC program answers that leaves a packet to [`send`]; no verdict.
pub const TC_DIRECT: i32 = i32::MIN + 1;
/// The same for [`receive`].
pub const TC_WRAPPED: i32 = i32::MIN + 2;
/// The same for what is longer than its way takes.
pub const TC_TOO_LONG: i32 = i32::MIN + 3;

/// Octets of a packet that may hold headers: those of Geneve around those of IPv6 with extensions and TCP.
const HEADERS: u32 = 256;

/// The stack may have a packet that is too long and that nobody can be told of.
const MAY_PASS: u32 = 1;

/// A packet under way.
#[repr(C)]
pub struct Directing<A> {
    /// What its headers say.
    packet: Packet<A>,
    /// What it gets.
    tuple: Tuple<A>,
    /// The backend's next hop; for a packet that is too long the length that fits.
    next_hop: u32,
    /// The backend's index; for a packet that is too long [`MAY_PASS`] or 0.
    to: u32,
    /// What it is counted as.
    reason: Reason,
    /// The frontend.
    note: Note<A>,
    /// The header of what is left without the note.
    header: Header,
}

/// The tables of one family that only direct server return has.
pub trait Maps: Sized {
    /// This CPU's room for a packet under way.
    fn directing() -> Option<&'static mut Directing<Self>>;
    /// The node of a backend.
    fn direct(backend: u32) -> Option<&'static Direct<Self>>;
    /// True when a service may send to a backend of this node.
    fn receives(key: &ReceiverKey<Self>) -> bool;
}

macro_rules! maps {
    ($family:ty, $module:ident, $directing:ident, $direct:ident, $receivers:ident) => {
        mod $module {
            use super::*;

            #[btf_map]
            pub static $directing: PerCpuArray<Directing<$family>, 1> = PerCpuArray::new();
            #[btf_map]
            pub static $direct: Array<Direct<$family>, 65_536> = Array::new();
            #[btf_map]
            pub static $receivers: HashMap<ReceiverKey<$family>, u32, 65_536, ON_DEMAND> = HashMap::new();
        }
        use $module::*;

        impl Maps for $family {
            #[inline(always)]
            fn directing() -> Option<&'static mut Directing<Self>> {
                // SAFETY: it is this CPU's copy, programs of packets do not interrupt each other on a CPU, and what takes it
                // again does so after whoever had it.
                $directing.get_ptr_mut(0).map(|directing| unsafe { &mut *directing })
            }
            #[inline(always)]
            fn direct(backend: u32) -> Option<&'static Direct<Self>> {
                $direct.get(backend)
            }
            #[inline(always)]
            fn receives(key: &ReceiverKey<Self>) -> bool {
                // SAFETY: only whether there is a value is asked.
                unsafe { $receivers.get(key) }.is_some()
            }
        }
    };
}

maps!(V4, v4, DIRECTING4, DIRECT4, RECEIVERS4);
maps!(V6, v6, DIRECTING6, DIRECT6, RECEIVERS6);

/// How notes travel on this node.
#[inline(always)]
fn form(settings: &Settings) -> Form {
    if settings.flags & settings_flags::DSR_GENEVE != 0 {
        Form::Geneve
    } else if settings.flags & settings_flags::DSR_IPIP != 0 {
        Form::Ipip
    } else {
        Form::Option
    }
}

/// True when a packet of a connection gets a note. Around packets there always is one, so that a node that has forgotten a connection
/// learns it again; an option, which slows routers down, is in the packet that opens a TCP connection, and in all of other protocols.
#[inline(always)]
pub fn has_note<A: Tables>(packet: &Packet<A>, settings: &Settings) -> bool {
    settings.flags & (settings_flags::DSR_GENEVE | settings_flags::DSR_IPIP) != 0
        || packet.key.protocol != protocol::TCP
        || packet.tcp_flags & tcp::SYN != 0
}

/// Lays down a packet for [`send`]. False: there is no room for it.
#[inline(always)]
pub fn lay_down<A: Tables>(packet: &Packet<A>, way: &Send<A>) -> bool {
    let Some(work) = A::directing() else { return false };
    work.packet = *packet;
    work.tuple = *way.tuple;
    work.next_hop = way.next_hop;
    work.to = way.direct;
    work.reason = way.reason;
    work.note.frontend = packet.key.destination;
    work.note.port = packet.key.destination_port;
    true
}

/// Lays down a packet that is longer than its way takes, and whether the stack may have it instead.
#[inline(always)]
pub fn lay_down_long<A: Tables>(packet: &Packet<A>, mtu: u32, may_pass: bool) -> bool {
    let Some(work) = A::directing() else { return false };
    work.packet = *packet;
    work.next_hop = mtu;
    work.to = if may_pass { MAY_PASS } else { 0 };
    true
}

/// True for a packet that may have a note in an option.
#[inline(always)]
pub fn may_have_option<A: Tables>(frame: &Frame, packet: &Packet<A>, settings: &Settings) -> bool {
    settings.flags & settings_flags::DSR != 0
        && packet.l4 != ETHERNET + A::HEADER
        && dsr::option::<A>(frame, ETHERNET).is_some()
}

/// True for a packet that may have a note in Geneve.
#[inline(always)]
pub fn may_be_geneve<A: Tables>(packet: &Packet<A>, settings: &Settings) -> bool {
    settings.flags & settings_flags::DSR != 0
        && packet.key.destination_port == GENEVE_PORT.to_be()
        && packet.key.protocol == protocol::UDP
        && packet.key.destination == A::own_source(settings)
}

/// True for a packet that may have a note in the packet inside of it.
#[inline(always)]
pub fn may_be_ipip<A: Tables>(frame: &Frame, settings: Option<&Settings>) -> bool {
    let [at, octet] = if A::IS_V4 { [ETHERNET + 8, 1] } else { [ETHERNET + 6, 0] };
    settings.is_some_and(|settings| settings.flags & settings_flags::DSR != 0)
        && frame.read::<[u8; 2]>(at).is_some_and(|octets| octets[octet] == dsr::inside::<A>())
}

/// Notes that a client goes on with a connection that this node answers for another one: its closing shows here only.
#[inline(always)]
pub fn keep<A: Tables>(packet: &Packet<A>, settings: &Settings, now: u32) -> u8 {
    match answering(packet, settings) {
        Some(connection) => connect::touch_back(connection, packet, now),
        None => 0,
    }
}

/// True for a packet of a client that this node answers for another one.
#[inline(always)]
pub fn is_answered<A: Tables>(packet: &Packet<A>, settings: &Settings) -> bool {
    answering(packet, settings).is_some()
}

/// The entry by which this node answers a client for another one.
#[inline(always)]
fn answering<A: Tables>(packet: &Packet<A>, settings: &Settings) -> Option<&'static mut Connection<A>> {
    if settings.flags & settings_flags::DSR == 0 {
        return None;
    }
    connections::get(&packet.key.answer(), Client::Destination).filter(|known| known.flags & connection_flags::DSR != 0)
}

/// What an XDP program says: the verdict of its half for this family, or the one about the packet that it left.
#[inline(always)]
pub fn xdp<A: Tables>(verdict: u32, ctx: &XdpContext) -> u32 {
    if verdict <= xdp_action::XDP_REDIRECT {
        return verdict;
    }
    if verdict == XDP_UNUSUAL && !may_be_ipip::<A>(&ctx.frame(), maps::settings()) {
        return deliver::xdp_pass(Reason::Passed, ctx.length());
    }
    match (verdict == XDP_DIRECT, A::IS_V4) {
        (true, true) => send::xdp_send4(ctx.ctx),
        (true, false) => send::xdp_send6(ctx.ctx),
        (false, true) => receive::xdp_receive4(ctx.ctx),
        (false, false) => receive::xdp_receive6(ctx.ctx),
    }
}

/// The same for a TC program.
#[inline(always)]
pub fn tc<A: Tables>(verdict: i32, ctx: &TcContext) -> i32 {
    let verdict = match (verdict, A::IS_V4) {
        (TC_DIRECT, true) => send::tc_send4(ctx.skb.skb),
        (TC_DIRECT, false) => send::tc_send6(ctx.skb.skb),
        (TC_WRAPPED, true) => receive::tc_receive4(ctx.skb.skb),
        (TC_WRAPPED, false) => receive::tc_receive6(ctx.skb.skb),
        (verdict, _) => verdict,
    };
    told::<A>(verdict, ctx, event_place::FROM_NETWORK)
}

/// The verdict about a packet, or about one that is longer than its way takes: see [`send::too_long`].
#[inline(always)]
pub fn told<A: Tables>(verdict: i32, ctx: &TcContext, place: u8) -> i32 {
    if verdict == TC_TOO_LONG { send::too_long::<A>(ctx, place) } else { verdict }
}

/// Gives a frame other room at its beginning: `octets` more, or less. Its bounds must be read again after it, and what was at its
/// beginning is not there any more.
#[inline(always)]
fn shift(ctx: &XdpContext, octets: i32) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { aya_ebpf::helpers::bpf_xdp_adjust_head(ctx.as_ptr().cast(), -octets) == 0 }
}

/// `BPF_ADJ_ROOM_MAC`: room behind the link-layer header.
const BEHIND_ETHERNET: u32 = 1;

/// Gives an skb other room behind its link-layer header.
#[inline(always)]
fn make_room(ctx: &TcContext, octets: i32, flags: u64) -> bool {
    // SAFETY: as above.
    unsafe { aya_ebpf::helpers::bpf_skb_adjust_room(ctx.skb.skb, octets, BEHIND_ETHERNET, flags) == 0 }
}
