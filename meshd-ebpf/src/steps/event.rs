//! Flow events: one record per connection that begins, and per packet that is dropped, as long as there is room.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use meshd_abi::{Reason, Settings, event_kind, settings_flags};
use meshd_steps::Packet;

use super::Decision;
use crate::maps::{self, Tables};

/// `BPF_RB_NO_WAKEUP`: user space looks by itself, a wake-up costs three hundred records.
const NO_WAKEUP: u64 = 1;

/// Tells what was decided when it is worth a record.
#[inline(always)]
pub fn tell<A: Tables>(
    packet: &Packet<A>,
    decision: &Decision<A>,
    link: u32,
    length: u64,
    direction: u8,
    settings: &Settings,
    now: impl FnOnce() -> u32,
) {
    if settings.flags & settings_flags::EVENTS == 0 {
        return;
    }
    let (kind, reason, tuple) = match decision {
        Decision::Drop(reason) => (event_kind::DROP, *reason, None),
        Decision::Send(send) if matches!(send.reason, Reason::NewConnection) => {
            (event_kind::NEW, send.reason, Some(send.tuple))
        }
        Decision::Send(_) | Decision::Pass => return,
    };
    if !maps::may_tell(now(), settings.events_per_tick) {
        maps::count(Reason::EventsLost, 0);
        return;
    }
    // The flags belong to the submission: a reservation with any is refused.
    let Some(mut room) = maps::events().reserve(0) else {
        maps::count(Reason::EventsLost, 0);
        return;
    };
    let event = room.as_mut_ptr();
    // SAFETY: the record is as long as the type, ours until it is submitted, and every field is written.
    unsafe {
        (*event).time = bpf_ktime_get_coarse_ns();
        (*event).source = packet.key.source.words();
        (*event).destination = packet.key.destination.words();
        (*event).source_identity = identity(&packet.key.source);
        if let Some(tuple) = tuple {
            (*event).backend = tuple.destination.words();
            (*event).backend_port = tuple.destination_port;
            (*event).destination_identity = identity(&tuple.destination);
        } else {
            (*event).backend = [0; 4];
            (*event).backend_port = 0;
            (*event).destination_identity = identity(&packet.key.destination);
        }
        (*event).service = 0;
        (*event).link = link;
        (*event).source_port = packet.key.source_port;
        (*event).destination_port = packet.key.destination_port;
        (*event).protocol = packet.key.protocol;
        (*event).family = if A::IS_V4 { 4 } else { 6 };
        (*event).kind = kind;
        (*event).reason = reason as u8;
        (*event).direction = direction;
        (*event).tcp_flags = packet.tcp_flags;
        (*event).length = length as u32;
    }
    room.submit(NO_WAKEUP);
}

#[inline(always)]
fn identity<A: Tables>(address: &A) -> u32 {
    A::identity(address).map_or(0, |identity| identity.identity)
}
