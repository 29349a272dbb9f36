//! Connections that go past the stack.
//!
//! Netfilter judges a packet by those it has seen before: of a connection of which it sees one direction only it takes every packet
//! for invalid. So a connection goes past the stack in both directions or in neither (`connection_flags::STACK`), which is decided
//! when it begins, by whether both have a next hop. What goes through the stack is translated where netfilter sees both directions
//! alike: before it on the way to a backend, and behind it on the way back.

use meshd_abi::{Connection, connection_flags};
use meshd_steps::{Packet, bucket::Client};

use super::{Decision, answer::back};
use crate::maps::{self, Tables, connections};

/// Decides about what a workload sends, which may be an answer.
#[inline(always)]
pub fn from_workload<A: Tables>(packet: &Packet<A>, now: u32) -> Decision<A> {
    match connections::get(&packet.key, Client::Destination) {
        Some(connection) if connection.flags & connection_flags::STACK == 0 => back(connection, packet, now),
        _ => Decision::Pass,
    }
}

/// Decides about what arrives at an uplink: it may answer what this node sent for others, or what a workload of this node asked past
/// the stack; `to_workload` says which of both.
#[inline(always)]
pub fn at_uplink<A: Tables>(packet: &Packet<A>, to_workload: bool, now: u32) -> Decision<A> {
    let Some(connection) = connections::get(&packet.key, Client::Destination) else { return Decision::Pass };
    let (mask, wanted) = if to_workload { (KIND, PAST) } else { (connection_flags::REPLY, connection_flags::REPLY) };
    if connection.flags & mask == wanted { back(connection, packet, now) } else { Decision::Pass }
}

/// True for answers that go past the stack to a workload of this node.
#[inline(always)]
pub fn is_past(flags: u8) -> bool {
    flags & KIND == PAST
}

/// Flags that tell whose answers they are, and those of answers to a workload of this node that go past the stack.
const KIND: u8 =
    PAST | connection_flags::STACK | connection_flags::MASQUERADE | connection_flags::DSR | connection_flags::SNAT;
const PAST: u8 = connection_flags::REPLY | connection_flags::LOCAL;

/// The flag of a connection that begins and has these next hops.
#[inline(always)]
pub fn flag(next_hop: u32, reply_hop: u32) -> u8 {
    let is_known = maps::next_hop(next_hop).is_some() && maps::next_hop(reply_hop).is_some();
    if is_known { 0 } else { connection_flags::STACK }
}

/// The next hop of a known connection's packet, which was decided when it began.
#[inline(always)]
pub fn next_hop<A>(connection: &Connection<A>, hop: u32) -> u32 {
    // Without a branch, which the verifier would follow to the end of the packet.
    hop & u32::from(connection.flags & connection_flags::STACK != 0).wrapping_sub(1)
}
