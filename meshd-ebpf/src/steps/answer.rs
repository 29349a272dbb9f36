//! Answers of known connections: back to the tuple that was asked.

use meshd_abi::{Connection, Reason, connection_flags};
use meshd_steps::Packet;

use super::{Decision, Send, connect, serve::is_common};
use crate::maps::{Tables, recent};

/// Decides about a packet that can only be an answer, or is for nobody.
#[inline(always)]
pub fn answer<A: Tables>(packet: &Packet<A>, now: u32) -> Decision<A> {
    let is_common = is_common(packet);
    if is_common {
        if let Some(connection) = recent::recall(&packet.key, now) {
            return back(connection, packet, now);
        }
    }
    let Some(connection) = A::connection(&packet.key) else { return Decision::Pass };
    if is_common && recent::take(connection).is_some() {
        recent::remember(&packet.key, now);
    }
    back(connection, packet, now)
}

/// Decides about a packet of a known connection, which need not be one of answers.
#[inline(always)]
pub fn back<A: Tables>(connection: &'static mut Connection<A>, packet: &Packet<A>, now: u32) -> Decision<A> {
    if connection.flags & connection_flags::REPLY == 0 {
        return Decision::Pass;
    }
    let event = connect::touch(connection, packet, now);
    let Some(connection) = recent::take(connection) else { return Decision::Pass };
    let is_masquerade = connection.flags & connection_flags::MASQUERADE != 0;
    Decision::Send(Send {
        tuple: &connection.tuple,
        next_hop: connection.to,
        local: connection.flags & connection_flags::LOCAL != 0,
        direct: 0,
        reason: if is_masquerade { Reason::MasqueradeReply } else { Reason::Reply },
        event,
    })
}
