//! The node's address for workloads that talk to the world.

use meshd_abi::{
    Reason, Settings, Tuple, connection_flags, event_kind, identity_flags, mark, mesh_flags, settings_flags,
};
use meshd_steps::{
    Packet,
    header::{protocol, tcp},
};

use super::{
    Decision, Send,
    answer::back,
    connect::{self, Beginning},
};
use crate::maps::{
    self, Tables,
    connections::{self, Way},
};

/// Decides about a packet that leaves through an uplink: an answer, or one that gets the node's address. `skb_mark` is that of the packet.
#[inline(always)]
pub fn masquerade<A: Tables>(packet: &Packet<A>, settings: &Settings, skb_mark: u32, now: u32) -> Decision<A> {
    // Known connections first: they cost one lookup. What answers a connection from outside has an entry that keeps its source.
    let mut replaces = false;
    if let Some(connection) = connections::get_any(&packet.key) {
        if connection.flags & connection_flags::REPLY != 0 {
            return back(connection, packet, now);
        }
        if connect::begins_again(connection, packet) {
            replaces = true;
        } else {
            let event = connect::touch(connection, packet, now);
            if connection.flags & connection_flags::MASQUERADE != 0 {
                return Decision::Send(send(&connection.tuple, event));
            }
        }
    }
    // What is marked belongs to whoever has translated it.
    if settings.flags & settings_flags::MASQUERADE == 0 || skb_mark & mark::TRANSLATED != 0 {
        return Decision::Pass;
    }
    if !may_begin(packet) || !is_own(&packet.key.source) || is_mesh(&packet.key.destination) {
        return Decision::Pass;
    }
    let Some(beginning) = Beginning::of(packet, now) else { return Decision::Drop(Reason::NoConnection) };
    beginning.replaces = replaces;
    match connect::reason_of(begin::<A>()) {
        None => Decision::Send(send(&beginning.forward.tuple, event_kind::NEW)),
        Some(reason) => Decision::Drop(reason),
    }
}

/// Makes the entries of this CPU's [`Beginning`]; answers a [`connect::verdict`].
#[inline(never)]
fn begin<A: Tables>() -> u32 {
    let (Some(beginning), Some(settings)) = (A::beginning(), maps::settings()) else {
        return connect::verdict(Err(Reason::NoConnection));
    };
    let source = A::own_source(settings);
    if source == A::default() {
        return connect::verdict(Err(Reason::NoSource));
    }
    let tuple = Tuple {
        source,
        destination: beginning.key.destination,
        source_port: beginning.key.source_port,
        destination_port: beginning.key.destination_port,
    };
    let flags = connection_flags::MASQUERADE | connection_flags::SNAT;
    if beginning.replaces {
        beginning.forget();
    }
    beginning.allocate = true;
    beginning.plan(&tuple, 0, 0, flags, flags | connection_flags::LOCAL);
    connect::verdict(beginning.connect(settings))
}

/// Remembers a connection that somebody outside of the mesh opens to a workload of this node by its own address, so that the
/// answers keep that address. Answers what is to be told of it, 0 for nothing.
#[inline(always)]
pub fn admit<A: Tables>(packet: &Packet<A>, settings: &Settings, now: u32) -> u8 {
    if settings.flags & settings_flags::MASQUERADE == 0
        || !is_own(&packet.key.destination)
        || is_mesh(&packet.key.source)
    {
        return 0;
    }
    let Some(beginning) = Beginning::of(packet, now) else { return 0 };
    beginning.allocate = false;
    let unchanged = Tuple {
        source: packet.key.source,
        destination: packet.key.destination,
        source_port: packet.key.source_port,
        destination_port: packet.key.destination_port,
    };
    beginning.plan(&unchanged, 0, 0, 0, connection_flags::MASQUERADE);
    if let Some(known) = connections::get_any(&beginning.answer_key) {
        // Of what has an entry for each direction this packet is noted in its own.
        if !known.is_alone() {
            return 0;
        }
        if !connect::begins_again(known, packet) {
            return connect::touch_back(known, packet, now);
        }
        return if connections::put::<A>(Way::Answer) { event_kind::NEW } else { 0 };
    }
    // An answer to what a workload sent has an entry, whoever made it; without one this is somebody's first packet.
    if !may_begin(packet) {
        return 0;
    }
    if !connections::add::<A>(Way::Answer) {
        maps::count(Reason::NoConnection, 0);
        return 0;
    }
    event_kind::NEW
}

/// True for a packet that can be the first of its connection: an answer never is.
#[inline(always)]
fn may_begin<A: Tables>(packet: &Packet<A>) -> bool {
    match packet.key.protocol {
        protocol::TCP => packet.tcp_flags & (tcp::SYN | tcp::ACK) != tcp::SYN | tcp::ACK,
        protocol::ICMP | protocol::ICMPV6 => packet.key.source_port != 0,
        _ => true,
    }
}

#[inline(always)]
fn send<A: Tables>(tuple: &'static Tuple<A>, event: u8) -> Send<A> {
    Send { tuple, next_hop: 0, local: false, direct: 0, reason: Reason::Masqueraded, event }
}

/// True for an address of a workload of this node.
#[inline(always)]
pub fn is_own<A: Tables>(address: &A) -> bool {
    match A::identity(address) {
        Some(identity) => identity.flags & identity_flags::LOCAL != 0,
        None => A::mesh(address) & mesh_flags::OWN != 0,
    }
}

/// True for an address inside of the mesh: workloads and nodes are in the exact table, what is excluded by prefix in the trie.
#[inline(always)]
pub fn is_mesh<A: Tables>(address: &A) -> bool {
    A::identity(address).is_some() || A::mesh(address) & mesh_flags::KEEP_SOURCE != 0
}
