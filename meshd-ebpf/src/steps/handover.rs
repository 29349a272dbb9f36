//! The time in which connections go over from the programs of before, with a table of their own.
//!
//! A connection that began in the last moments of the old programs is not in the new table yet. Its answers find nobody who asked, and whoever
//! they then reach, a client or this node itself, refuses them: the reset that leaves would end the connection at its other
//! end. The answer comes again, and so would the reset; so resets of connections that nobody knows wait until the last entries are taken over.

use meshd_steps::{Packet, header::tcp};

use super::ticks;
use crate::maps::{self, Tables, connections};

/// True for a reset that may be premature.
#[inline(always)]
pub fn holds<A: Tables>(packet: &Packet<A>) -> bool {
    packet.tcp_flags & tcp::RST != 0 && is_now() && connections::get_any(&packet.key).is_none()
}

#[inline(always)]
fn is_now() -> bool {
    maps::handover().wrapping_sub(ticks()).cast_signed() > 0
}
