//! Answers of known connections: back to the tuple that was asked.

use meshd_abi::{Connection, Reason, connection_flags};
use meshd_steps::{Packet, bucket::Client};

use super::{Decision, Send, connect, serve::is_common};
use crate::maps::{
    Tables, connections,
    recent::{self, Moment, Side},
};

/// Decides about a packet that can only be an answer, or is for nobody.
#[inline(always)]
pub fn answer<A: Tables>(packet: &Packet<A>, now: u32) -> Decision<A> {
    let is_common = is_common(packet);
    let Some(moment) = Moment::of(now) else { return Decision::Pass };
    if is_common {
        if let Some(connection) = recent::recall(&packet.key, Side::Answers, moment) {
            return Decision::Send(reply(connection, 0));
        }
    }
    let Some(connection) = connections::get(&packet.key, Client::Destination) else { return Decision::Pass };
    let decision = back(connection, packet, now);
    if is_common && matches!(decision, Decision::Send(_)) {
        recent::remember(&packet.key, Side::Answers, moment);
    }
    decision
}

/// Decides about a packet of a connection in the table, which need not be one of answers.
#[inline(always)]
pub fn back<A: Tables>(connection: &mut Connection<A>, packet: &Packet<A>, now: u32) -> Decision<A> {
    if !is_answer(connection) {
        return Decision::Pass;
    }
    let event = connect::touch(connection, packet, now);
    let Some(connection) = recent::take(connection) else { return Decision::Pass };
    Decision::Send(reply(connection, event))
}

#[inline(always)]
fn is_answer<A>(connection: &Connection<A>) -> bool {
    connection.flags & connection_flags::REPLY != 0
}

/// What happens to an answer.
#[inline(always)]
fn reply<A: Tables>(connection: &'static Connection<A>, event: u8) -> Send<A> {
    let is_masquerade = connection.flags & connection_flags::MASQUERADE != 0;
    Send {
        tuple: &connection.tuple,
        next_hop: connection.to,
        local: connection.flags & connection_flags::LOCAL != 0,
        direct: 0,
        reason: if is_masquerade { Reason::MasqueradeReply } else { Reason::Reply },
        event,
    }
}
