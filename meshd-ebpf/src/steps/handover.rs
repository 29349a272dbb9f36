//! The time in which connections go over from the programs of before, with a table of their own.
//!
//! A connection that began in the last moments of the old programs is not in the new table yet. Its answers find nobody who asked, and whoever
//! they then reach, a client or this node itself, refuses them: the reset that leaves would end the connection at its other
//! end. The answer comes again; so resets of connections that nobody knows are dropped until the last entries are taken over. Resets of connections
//! that nothing translates are among them: their other end goes on until it sends something, or gives up.

use meshd_abi::Settings;
use meshd_steps::{Packet, header::tcp};

use super::ticks;
use crate::maps::{self, Tables, connections};

/// True for what this node itself sends from a port that it gives to translated sources: no process of its own has it.
#[inline(always)]
pub fn is_own_port<A: Tables>(packet: &Packet<A>, settings: &Settings) -> bool {
    u16::from_be(packet.key.source_port).wrapping_sub(settings.ports) < settings.port_count
        && packet.key.source == A::own_source(settings)
}

/// True for a reset that may be premature. What nothing translates has no entry either: its resets wait as well.
#[inline(always)]
pub fn holds<A: Tables>(packet: &Packet<A>) -> bool {
    packet.tcp_flags & tcp::RST != 0 && is_now() && connections::get_any(&packet.key).is_none()
}

#[inline(always)]
fn is_now() -> bool {
    maps::handover().wrapping_sub(ticks()).cast_signed() > 0
}
