//! From the address of a service to a backend.

use meshd_abi::{
    AffinityValue, Backend, BackendState, Connection, NO_TABLE, Reason, Scope, Service, ServiceKey, Settings, Tuple,
    connection_flags, event_kind, service_flags,
};
use meshd_steps::{
    Packet,
    bucket::Client,
    choose::{chunk_of, client_hash, flow_hash, reduce},
    header::{protocol, tcp},
    packed::{Form, Packed},
};

use super::{
    Decision, Send,
    connect::{self, Beginning},
    past,
};
use crate::maps::{
    self, Tables, connections,
    packed::Known,
    recent::{self, Moment, Side},
};

/// Decides about a packet by its destination. `reply_hop` is where its answers go, as far as the caller knows, and is asked for the
/// first packet of a connection only; `now` is the time in ticks, and is asked when there is a service.
#[inline(always)]
pub fn serve<A: Tables>(
    packet: &Packet<A>,
    scope: Scope,
    reply_hop: impl FnOnce() -> u32,
    now: impl FnOnce() -> u32,
) -> Decision<A> {
    let (address, port) = (packet.key.destination, packet.key.destination_port);
    if !maps::may_be_frontend(&address, port) {
        return Decision::Pass;
    }
    let now = now();
    let Some(moment) = Moment::of(now) else { return Decision::Pass };
    if let Some(send) = recalled(packet, scope, moment) {
        return Decision::Send(send);
    }
    let key = ServiceKey::new(address, port, packet.key.protocol, scope);
    let Some(service) = A::service(&key) else { return Decision::Pass };
    let known = connections::get(&packet.key, Client::Source);
    let is_known = known.is_some();
    // An answer, to somebody with the address of a service. What opens a connection is none.
    if !is_known && !packet.is_syn() && connections::get(&packet.key, Client::Destination).is_some() {
        return Decision::Pass;
    }
    if let Some(connection) = known {
        let is_new = packet.is_syn() && connection.flags & connection_flags::CLOSING != 0;
        if let Some(backend) = A::backend(connection.to).filter(|_| !is_new) {
            if may_stay(backend.state, packet, service) {
                let event = connect::touch(connection, packet, now);
                let Some(connection) = recent::take(connection) else { return Decision::Pass };
                // One that leaves is asked for with every packet: its index becomes another's once nobody has an entry with it.
                if is_common(packet)
                    && backend.state == BackendState::Active as u8
                    && !A::pack((&packet.key, scope), connection, backend, moment)
                {
                    recent::remember(&packet.key, Side::Asks(scope), moment);
                }
                return Decision::Send(to_backend(connection, backend, event));
            }
            if backend.state == BackendState::Killed as u8 && packet.key.protocol == protocol::TCP && !packet.is_syn() {
                return Decision::Drop(Reason::BackendKilled);
            }
        }
    }
    let Some(beginning) = Beginning::of(packet, now) else { return Decision::Drop(Reason::NoConnection) };
    // By fields, because a whole service is copied by a loop over its octets.
    let asked = &mut beginning.service;
    (asked.id, asked.table, asked.slots, asked.members) = (service.id, service.table, service.slots, service.members);
    (asked.affinity, asked.count, asked.flags) = (service.affinity, service.count, service.flags);
    beginning.scope = scope as u8;
    beginning.replaces = is_known;
    beginning.reply_hop = reply_hop();
    if let Some(reason) = connect::reason_of(begin::<A>()) {
        return Decision::Drop(reason);
    }
    Decision::Send(Send {
        tuple: &beginning.forward.tuple,
        next_hop: beginning.next_hop,
        local: beginning.forward.flags & connection_flags::LOCAL != 0,
        direct: direct(&beginning.forward),
        reason: Reason::NewConnection,
        // What was known and goes on with another backend did not begin. Read again: what was in a register meanwhile, kernels before 6.5
        // take for another value (docs/kernels.md).
        event: if beginning.replaces && !packet.is_syn() { event_kind::CHANGE } else { event_kind::NEW },
    })
}

/// What happens to a packet in the middle of a connection of which another one was seen in this tick, as long as its backend takes
/// connections.
#[inline(always)]
fn recalled<A: Tables>(packet: &Packet<A>, scope: Scope, now: Moment) -> Option<Send<A>> {
    if !is_common(packet) {
        return None;
    }
    if let Some(known) = A::packed(&packet.key, scope, now) {
        return unpacked(packet, known);
    }
    let connection = recent::recall(&packet.key, Side::Asks(scope), now)?;
    let backend = A::backend(connection.to).filter(|backend| backend.state == BackendState::Active as u8)?;
    Some(to_backend(connection, backend, 0))
}

/// What happens to a packet of a connection of which little but the backend is written down.
#[inline(always)]
fn unpacked<A: Tables>(packet: &Packet<A>, known: Known) -> Option<Send<A>> {
    let Packed { backend: index, form } = known.packed;
    let backend = A::backend(index).filter(|backend| backend.state == BackendState::Active as u8)?;
    let tuple = &mut A::beginning()?.forward.tuple;
    (tuple.source, tuple.source_port) = if form.tries().is_some() {
        (A::own_source(maps::settings()?), known.port)
    } else {
        (packet.key.source, packet.key.source_port)
    };
    (tuple.destination, tuple.destination_port) = (backend.address, backend.port);
    Some(Send {
        tuple,
        next_hop: if form == Form::IN_STACK { 0 } else { backend.next_hop },
        local: backend.local != 0,
        direct: if form == Form::DIRECT { index } else { 0 },
        reason: Reason::ToBackend,
        event: 0,
    })
}

/// True for a packet that neither opens nor closes its connection.
#[inline(always)]
pub fn is_common<A: Tables>(packet: &Packet<A>) -> bool {
    packet.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
}

#[inline(always)]
fn to_backend<A: Tables>(connection: &'static Connection<A>, backend: &Backend<A>, event: u8) -> Send<A> {
    Send {
        tuple: &connection.tuple,
        next_hop: past::next_hop(connection, backend.next_hop),
        local: connection.flags & connection_flags::LOCAL != 0,
        direct: direct(connection),
        reason: Reason::ToBackend,
        event,
    }
}

/// The backend of a connection that is answered from there; 0: answers come back.
#[inline(always)]
fn direct<A>(connection: &Connection<A>) -> u32 {
    if connection.flags & connection_flags::DSR != 0 { connection.to } else { 0 }
}

/// True when a known connection goes on with its backend.
#[inline(always)]
fn may_stay<A: Tables>(state: u8, packet: &Packet<A>, service: &Service) -> bool {
    if state == BackendState::Active as u8 || state == BackendState::Terminating as u8 {
        return true;
    }
    // A datagram loses nothing by another backend, a connection that is only opened neither.
    state == BackendState::Removed as u8
        && service.flags & service_flags::KILL_REMOVED == 0
        && packet.key.protocol != protocol::UDP
        && !packet.is_syn()
}

/// Chooses a backend for this CPU's [`Beginning`] and makes the entries; answers a [`connect::verdict`].
#[inline(never)]
fn begin<A: Tables>() -> u32 {
    let (Some(beginning), Some(settings)) = (A::beginning(), maps::settings()) else {
        return connect::verdict(Err(Reason::NoConnection));
    };
    let connected = choose(beginning, settings).and_then(|index| {
        if beginning.replaces {
            beginning.forget();
        }
        connect_to(beginning, index, settings)
    });
    connect::verdict(connected)
}

/// Plans the connection to a backend.
#[inline(always)]
fn connect_to<A: Tables>(beginning: &mut Beginning<A>, index: u32, settings: &Settings) -> Result<(), Reason> {
    let backend = A::backend(index).ok_or(Reason::NoBackend)?;
    let client = beginning.key.source;
    let mut tuple = Tuple {
        source: client,
        destination: backend.address,
        source_port: beginning.key.source_port,
        // SCTP's sum covers the ports and is none that can be patched, so its ports stay.
        destination_port: if beginning.key.protocol == protocol::SCTP {
            beginning.key.destination_port
        } else {
            backend.port
        },
    };
    let is_local = backend.local != 0;
    let mut flags = if is_local { connection_flags::LOCAL } else { 0 };
    let mut reply_flags = 0;
    if beginning.scope == Scope::Internal as u8 {
        reply_flags |= connection_flags::LOCAL;
        if backend.address == client {
            // To itself: an answer to its own address would never leave it.
            tuple.source = A::loopback(settings);
            flags |= connection_flags::SNAT;
            reply_flags |= connection_flags::SNAT;
        }
    } else if !is_local && beginning.service.flags & service_flags::DSR != 0 && is_direct::<A>(index) != 0 {
        flags |= connection_flags::DSR;
        reply_flags |= connection_flags::DSR;
    } else if !is_local {
        tuple.source = A::own_source(settings);
        if tuple.source == A::default() {
            return Err(Reason::NoSource);
        }
        beginning.allocate = true;
        flags |= connection_flags::SNAT;
        reply_flags |= connection_flags::SNAT;
    }
    beginning.next_hop = backend.next_hop;
    // What gets a source of ours finds its way back to these programs only.
    if flags & (connection_flags::SNAT | connection_flags::DSR) == 0 {
        let way = past::flag(backend.next_hop, beginning.reply_hop);
        flags |= way;
        reply_flags |= way;
        if way != 0 {
            beginning.next_hop = 0;
        }
    }
    beginning.plan(&tuple, index, beginning.service.id, flags, reply_flags);
    beginning.connect(settings)
}

/// Whether a backend's node answers the client of this CPU's [`Beginning`] itself: 1 or 0. What comes from that very node, or from a
/// workload there, has an address of that node, and would be taken for a forgery. Which node a workload is on is not known here, so nobody
/// of that node's cluster is answered that way. A function of its own for the sake of the stack.
#[inline(never)]
fn is_direct<A: Tables>(backend: u32) -> u32 {
    let (Some(beginning), Some(direct)) = (A::beginning(), A::direct(backend)) else { return 0 };
    let client = &beginning.key.source;
    if direct.node == A::default() || direct.node == *client {
        return 0;
    }
    let Some(client) = A::known(client) else { return 1 };
    A::known(&direct.node).is_some_and(|node| node.cluster != client.cluster).into()
}

/// Picks a backend: the one the client had, as long as it takes new connections, otherwise by hash.
#[inline(always)]
fn choose<A: Tables>(beginning: &mut Beginning<A>, settings: &Settings) -> Result<u32, Reason> {
    beginning.client.client = beginning.key.source;
    beginning.client.service = beginning.service.id;
    let (service, client) = (&beginning.service, &beginning.client.client);
    if service.flags & service_flags::SOURCE_RANGES != 0 && !A::is_in_range(service.id, client) {
        return Err(Reason::SourceRange);
    }
    if service.count == 0 {
        return Err(Reason::NoBackend);
    }
    if service.affinity != 0 {
        if let Some(last) = A::affinity(&beginning.client) {
            if beginning.now.wrapping_sub(last.used) <= service.affinity && serves::<A>(last.backend, service.id) {
                A::put_affinity(&beginning.client, &AffinityValue { backend: last.backend, used: beginning.now });
                return Ok(last.backend);
            }
        }
    }
    let hash = if service.flags & service_flags::BY_SOURCE != 0 {
        client_hash(settings.seed, client)
    } else {
        let key = &beginning.key;
        flow_hash(settings.seed, client, key.source_port, key.destination_port, key.protocol)
    };
    let index = pick::<A>(service, hash)?;
    if service.affinity != 0 {
        A::put_affinity(&beginning.client, &AffinityValue { backend: index, used: beginning.now });
    }
    Ok(index)
}

/// The backend that a hash means: by the service's table, in which each has its share, or without one straight among its members.
///
/// # Errors
/// When there is none that takes new connections.
#[inline(always)]
pub fn pick<A: Tables>(service: &Service, hash: u32) -> Result<u32, Reason> {
    let slot = reduce(hash, service.slots);
    let member = if service.table == NO_TABLE {
        slot
    } else {
        let (chunk, at) = chunk_of(slot);
        u32::from(maps::slot(service.table.wrapping_add(chunk), at).ok_or(Reason::NoBackend)?)
    };
    let index = maps::member(service.members.wrapping_add(member)).ok_or(Reason::NoBackend)?;
    if serves::<A>(index, service.id) { Ok(index) } else { Err(Reason::NoBackend) }
}

/// True when a backend is one of this service and takes new connections.
#[inline(always)]
pub fn serves<A: Tables>(backend: u32, service: u32) -> bool {
    A::backend(backend).is_some_and(|backend| backend.state == BackendState::Active as u8 && backend.owner == service)
}
