//! Flow events: one record for a connection that begins, moves or ends, and for a packet that is dropped, as long as there is room.
//!
//! A packet of a known connection costs one comparison here. Whatever is told goes through a function of its own per family, with a
//! stack of its own, which looks up again what the record says: that is rare, and what a program would have to keep for it would cost
//! every packet.
//!
//! What passes a workload's link without a translation has no entry. So its first packet is known by its flags only, and its end is told
//! of each end ([`untranslated`]); nothing is remembered of it.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::bpf_ktime_get_coarse_ns,
    programs::{TcContext, XdpContext},
};
use meshd_abi::{
    ConnectionKey, FlowEvent, Identity, Reason, Scope, ServiceKey, V4, V6, connection_flags, event_kind, event_place,
    identity_flags, settings_flags,
};
use meshd_steps::{Packet, Part, header::tcp};

use super::{
    Decision,
    connect::other_direction,
    masquerade::{is_mesh, is_own},
    ticks,
};
use crate::{
    context::Context,
    maps::{self, Budget, Tables, connections},
};

/// `BPF_RB_NO_WAKEUP`: user space looks by itself, a wake-up costs three hundred records.
const NO_WAKEUP: u64 = 1;
/// `BPF_RB_FORCE_WAKEUP`.
const WAKEUP: u64 = 2;

/// The end of a connection by somebody who has said goodbye before: the other direction's entry notes it, and nobody is told again.
pub const RESET: u8 = 1 << 7;

/// Tells what was decided when it is worth a record.
#[inline(always)]
pub fn decided<A: Tables, C: Context>(ctx: &C, packet: &Packet<A>, decision: &Decision<A>, place: u8) {
    if let Decision::Send(send) = decision {
        if send.event != 0 {
            tell(ctx, packet, send.event, send.reason, place);
        }
    }
}

/// Tells of a packet; `kind` is one of `meshd_abi::event_kind` and `place` one of `event_place`.
#[inline(always)]
pub fn tell<A: Tables, C: Context>(ctx: &C, packet: &Packet<A>, kind: u8, reason: Reason, place: u8) {
    tell_of(ctx, ctx.length(), packet, kind, reason, place);
}

/// The same of a packet that had this length when it came.
#[inline(always)]
pub fn tell_of<A: Tables, C: Context>(ctx: &C, length: u64, packet: &Packet<A>, kind: u8, reason: Reason, place: u8) {
    // A flood of connections or drops is not worth what a record costs to fill in. An end is: it is noted in the entry.
    if kind != event_kind::CLOSE && kind != RESET && may_tell(kind.into()) == 0 {
        return;
    }
    if lay_down(length, packet, kind, reason, place) {
        ctx.tell::<A>();
    }
}

/// Tells of a packet that a workload's link lets pass, if it begins or ends a TCP connection. Where somebody else tells of that
/// connection, nothing is said here ([`is_told_elsewhere`]).
#[inline(always)]
pub fn untranslated<A: Tables, C: Context>(ctx: &C, packet: &Packet<A>, place: u8) {
    let flags = packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST);
    // Most packets end here: of other protocols there are no flags.
    if flags == 0 || flags == tcp::ACK || flags == tcp::SYN | tcp::ACK || packet.part == Part::Later {
        return;
    }
    let kind = if flags == tcp::SYN { event_kind::NEW } else { event_kind::CLOSE };
    if !lay_down(ctx.length(), packet, kind, Reason::Passed, place) {
        return;
    }
    let is_elsewhere = if A::IS_V4 { is_told_elsewhere4() } else { is_told_elsewhere6() };
    if is_elsewhere == 0 && (kind == event_kind::CLOSE || may_tell(kind.into()) != 0) {
        ctx.tell::<A>();
    }
}

/// Lays down in this CPU's record what a packet says.
#[inline(always)]
fn lay_down<A: Tables>(length: u64, packet: &Packet<A>, kind: u8, reason: Reason, place: u8) -> bool {
    let Some(event) = maps::telling() else { return false };
    event.length = length as u32;
    event.source = packet.key.source.words();
    event.destination = packet.key.destination.words();
    event.source_port = packet.key.source_port;
    event.destination_port = packet.key.destination_port;
    event.protocol = packet.key.protocol;
    event.family = if A::IS_V4 { 4 } else { 6 };
    event.tcp_flags = packet.tcp_flags;
    event.kind = kind;
    event.reason = reason as u8;
    event.place = place;
    true
}

/// The functions of a kind of program: each completes this CPU's record and writes it. What they answer means nothing, but the kernel
/// wants an answer. The link is read in here, because a program that reads it in two places may keep a pointer to it, which the verifier
/// does not let it use.
macro_rules! tells {
    ($v4:ident, $v6:ident, $raw:ident, $context:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $v4(ctx: *mut $raw) -> u32 {
            complete::<V4, $context>(&$context::new(ctx)).is_some().into()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $v6(ctx: *mut $raw) -> u32 {
            complete::<V6, $context>(&$context::new(ctx)).is_some().into()
        }
    };
}

tells!(xdp_tell4, xdp_tell6, xdp_md, XdpContext);
tells!(tc_tell4, tc_tell6, __sk_buff, TcContext);

#[inline(always)]
fn complete<A: Tables, C: Context>(ctx: &C) -> Option<()> {
    let event = maps::telling()?;
    event.link = ctx.link();
    let key = key_of::<A>(event);
    if event.kind == event_kind::CLOSE || event.kind == RESET {
        let known = connections::get_any(&key);
        if let Some(partner) =
            known.and_then(|known| connections::get_any(&other_direction(&known.tuple, key.protocol)))
        {
            if partner.flags & connection_flags::CLOSING != 0 {
                // The other end was first.
                return None;
            }
            if event.tcp_flags & tcp::RST != 0 {
                partner.flags |= connection_flags::CLOSING;
            }
        }
    }
    if event.kind == RESET {
        return None;
    }
    if event.kind == event_kind::CLOSE && may_tell(event.kind.into()) == 0 {
        return None;
    }
    // SAFETY: the helper takes nothing.
    event.time = unsafe { bpf_ktime_get_coarse_ns() };
    let budget = maps::event_budget()?;
    match connections::get_any(&key) {
        Some(known) => {
            event.new_source = known.tuple.source.words();
            event.new_destination = known.tuple.destination.words();
            event.new_source_port = known.tuple.source_port;
            event.new_destination_port = known.tuple.destination_port;
            event.service = known.service;
            event.connection_flags = known.flags;
        }
        None => {
            event.new_source = event.source;
            event.new_destination = event.destination;
            event.new_source_port = event.source_port;
            event.new_destination_port = event.destination_port;
            event.connection_flags = 0;
            let scope = if event.place == event_place::FROM_WORKLOAD { Scope::Internal } else { Scope::External };
            let frontend = ServiceKey::new(key.destination, key.destination_port, key.protocol, scope);
            event.service = A::service(&frontend).map_or(0, |service| service.id);
        }
    }
    let known = A::known(&key.source);
    // Of whom nobody knows anything, the tunnel may have said something, and that is more than what is known of a prefix.
    let said = if known.is_none() { A::arrived(&key.source) } else { 0 };
    (event.source_identity, event.source_cluster) =
        if said == 0 { label(known.or_else(|| A::around(&key.source))) } else { (said, 0) };
    let destination = A::from_words(event.new_destination);
    let known = A::known(&destination).or_else(|| A::around(&destination));
    (event.destination_identity, event.destination_cluster) = label(known);
    event.reserved = 0;
    // The ring is looked at by the clock; when much comes at once, it has to be looked at before it is full.
    budget.written = budget.written.wrapping_add(1);
    let flags = if budget.written % Budget::WAKE_EVERY == 0 { WAKEUP } else { NO_WAKEUP };
    if maps::events().output(&*event, flags).is_err() {
        maps::count(Reason::EventsLost, 0);
    }
    Some(())
}

/// Identity and cluster; 0: unknown.
#[inline(always)]
fn label(known: Option<&Identity>) -> (u32, u16) {
    known.map_or((0, 0), |known| (known.identity, known.cluster))
}

/// The tuple of the packet that a record is about.
#[inline(always)]
fn key_of<A: Tables>(event: &FlowEvent) -> ConnectionKey<A> {
    ConnectionKey {
        source: A::from_words(event.source),
        destination: A::from_words(event.destination),
        source_port: event.source_port,
        destination_port: event.destination_port,
        protocol: event.protocol,
        reserved: [0; 3],
    }
}

/// The functions of a family: they have a stack of their own, and programs at uplinks do without them.
macro_rules! elsewhere {
    ($name:ident, $family:ty) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name() -> u32 {
            maps::telling().is_none_or(|event| is_told_elsewhere::<$family>(event)).into()
        }
    };
}

elsewhere!(is_told_elsewhere4, V4);
elsewhere!(is_told_elsewhere6, V6);

/// True for a packet at a workload's link of which another place tells: its connection has an entry, or gets one at the uplink, or the
/// workload that sends it is of this node, too.
#[inline(always)]
fn is_told_elsewhere<A: Tables>(event: &FlowEvent) -> bool {
    let key = &key_of::<A>(event);
    if event.place == event_place::FROM_WORKLOAD {
        let masquerades = maps::settings().is_some_and(|settings| settings.flags & settings_flags::MASQUERADE != 0);
        if masquerades && is_own(&key.source) && !is_mesh(&key.destination) {
            return true;
        }
    } else if A::identity(&key.source).is_some_and(|source| source.flags & identity_flags::LOCAL != 0) {
        return true;
    }
    if connections::get_any(key).is_some() {
        return true;
    }
    connections::get_any(&key.answer()).is_some()
}

/// Takes one from what this CPU may write of a kind in this tick, and answers 1; 0 when there is none left, or nothing is to be told. By
/// kind, so that packets that are dropped by the million do not hide that connections begin.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn may_tell(kind: u32) -> u32 {
    let (Some(settings), Some(budget)) = (maps::settings(), maps::event_budget()) else { return 0 };
    if settings.flags & settings_flags::EVENTS == 0 {
        return 0;
    }
    let now = ticks();
    if budget.tick != now {
        budget.tick = now;
        budget.told = [0; 4];
    }
    // Kinds are 1 to 4.
    let told = &mut budget.told[kind.wrapping_sub(1) as usize & 3];
    *told += 1;
    if *told <= settings.events_per_tick {
        return 1;
    }
    maps::count(Reason::EventsLimited, 0);
    0
}
