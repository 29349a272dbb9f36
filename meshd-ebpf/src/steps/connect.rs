//! The first packet of a connection: entries for both directions.
//!
//! What is known is laid down in a [`Beginning`], this CPU's own, because it does not fit on the stack beside the caller's.

use meshd_abi::{
    AffinityKey, Connection, ConnectionKey, Reason, Service, Settings, Tuple, closed_by, connection_flags, event_kind,
};
use meshd_steps::{
    Packet, Part,
    bucket::Client,
    choose::Ports,
    header::{protocol, tcp},
};

use super::event;
use crate::maps::{
    Tables,
    connections::{self, Way},
    recent,
};

/// Ports that are tried for a translated source before the packet is dropped. More tries find a port later and cost every
/// packet of a client that finds none.
pub const PORT_TRIES: u32 = 16;
/// An entry that nobody used for this many ticks gives way to a new connection with the same tuple.
const STALE: u32 = 60;

/// A connection that begins: what is known of its first packet, and what it is to look like.
#[repr(C)]
pub struct Beginning<A> {
    /// The entry's key: the packet's tuple.
    pub key: ConnectionKey<A>,
    /// The key of the other direction.
    pub answer_key: ConnectionKey<A>,
    /// The entry of this direction; its source port is a wish with `allocate`.
    pub forward: Connection<A>,
    /// The entry of the other direction.
    pub answer: Connection<A>,
    /// A key for [`recent`], which has more words than a call takes.
    pub recent_key: ConnectionKey<A>,
    /// The client of the service that is asked.
    pub client: AffinityKey<A>,
    /// The service that is asked, if any.
    pub service: Service,
    /// Time in ticks.
    pub now: u32,
    /// The next hop of answers, 0: ask the kernel.
    pub reply_hop: u32,
    /// The next hop of this direction, found on the way.
    pub next_hop: u32,
    /// A `meshd_abi::Scope`.
    pub scope: u8,
    /// The source is an address of this node: its port must be one that no other connection to this destination has.
    pub allocate: bool,
    /// There is an entry of the packet's tuple, of a connection that is over.
    pub replaces: bool,
}

impl<A: Tables> Beginning<A> {
    /// Lays down what is known of a packet.
    #[inline(always)]
    pub fn of(packet: &Packet<A>, now: u32) -> Option<&'static mut Self> {
        let beginning = A::beginning()?;
        beginning.key = packet.key;
        beginning.now = now;
        beginning.reply_hop = 0;
        beginning.next_hop = 0;
        beginning.allocate = false;
        beginning.replaces = false;
        Some(beginning)
    }

    /// Removes both entries of the connection that had this tuple before, and with the one of its answers the port it had.
    #[inline(always)]
    pub fn forget(&mut self) {
        let Some(old) = connections::get(&self.key, Client::Source) else { return };
        self.answer_key.source = old.tuple.destination;
        self.answer_key.destination = old.tuple.source;
        self.answer_key.source_port = old.tuple.destination_port;
        self.answer_key.destination_port = old.tuple.source_port;
        self.answer_key.protocol = self.key.protocol;
        self.answer_key.reserved = [0; 3];
        if let Some(answer) = connections::get(&self.answer_key, Client::Destination) {
            // The port may have gone to somebody else meanwhile.
            let is_ours = answer.flags & connection_flags::REPLY != 0
                && answer.tuple.destination_port == self.key.source_port
                && answer.tuple.destination == self.key.source;
            if is_ours {
                connections::remove::<A>(Way::Answer);
                recent::forget(&self.answer_key);
            }
        }
        connections::remove::<A>(Way::Forward);
        recent::forget(&self.key);
    }

    /// Sets the tuple after translation, and with it everything of both entries but the backend.
    #[inline(always)]
    pub fn plan(&mut self, tuple: &Tuple<A>, to: u32, service: u32, flags: u8, reply_flags: u8) {
        let now = self.now;
        // By fields, because a whole tuple is copied by a loop over its octets.
        self.forward.tuple.source = tuple.source;
        self.forward.tuple.destination = tuple.destination;
        self.forward.tuple.source_port = tuple.source_port;
        self.forward.tuple.destination_port = tuple.destination_port;
        self.forward.to = to;
        self.forward.service = service;
        self.forward.used = now;
        self.forward.began = now;
        self.forward.flags = flags;
        self.forward.closed_by = 0;
        self.forward.reserved = [0; 2];
        self.answer.tuple.source = self.key.destination;
        self.answer.tuple.destination = self.key.source;
        self.answer.tuple.source_port = self.key.destination_port;
        self.answer.tuple.destination_port = self.key.source_port;
        self.answer.to = self.reply_hop;
        self.answer.service = service;
        self.answer.used = now;
        self.answer.began = now;
        self.answer.flags = reply_flags | connection_flags::REPLY;
        self.answer.closed_by = 0;
        self.answer.reserved = [0; 2];
        self.answer_key.source = tuple.destination;
        self.answer_key.destination = tuple.source;
        self.answer_key.source_port = tuple.destination_port;
        self.answer_key.destination_port = tuple.source_port;
        self.answer_key.protocol = self.key.protocol;
        self.answer_key.reserved = [0; 3];
    }

    /// Makes the entries of both directions.
    ///
    /// # Errors
    /// The reason to drop the packet for: no port, no room, or a live connection of the same tuple.
    #[inline(always)]
    pub fn connect(&mut self, settings: &Settings) -> Result<(), Reason> {
        // The ports of SCTP stay.
        let is_ours = if self.allocate && self.key.protocol != protocol::SCTP {
            self.allocate_port(settings)?;
            true
        } else if connections::add::<A>(Way::Answer) {
            true
        } else {
            self.take_over()?;
            false
        };
        if connections::put::<A>(Way::Forward) {
            return Ok(());
        }
        // What was there may be of somebody who begins the same connection at this moment.
        if is_ours {
            connections::remove::<A>(Way::Answer);
        }
        Err(Reason::NoConnection)
    }

    /// Finds a port that no other connection to this destination has: the first free of [`PORT_TRIES`] in a sequence that
    /// differs from flow to flow.
    #[inline(always)]
    fn allocate_port(&mut self, settings: &Settings) -> Result<(), Reason> {
        if settings.port_count == 0 {
            return Err(Reason::NoSource);
        }
        let mut ports = Ports::of(&self.key.source, self.key.source_port, self.key.destination_port);
        let mut tries = 0;
        while tries < PORT_TRIES {
            let port = ports.next(settings.ports, settings.port_count);
            self.answer_key.destination_port = port;
            if connections::add::<A>(Way::Answer) {
                self.forward.tuple.source_port = port;
                return Ok(());
            }
            tries += 1;
        }
        // Either every port tried is taken, or the table is: whoever looks at the last key sees which.
        Err(if connections::get(&self.answer_key, Client::Destination).is_some() {
            Reason::NoPort
        } else {
            Reason::NoConnection
        })
    }

    /// An entry with the same tuple exists: it gives way when it belongs to the past.
    #[inline(always)]
    fn take_over(&self) -> Result<(), Reason> {
        let Some(known) = connections::get(&self.answer_key, Client::Destination) else {
            return Err(Reason::NoConnection);
        };
        let answer = &self.answer;
        let same = known.tuple == answer.tuple;
        let past = known.flags & connection_flags::CLOSING != 0 || self.now.wrapping_sub(known.used) > STALE;
        if !(same || past) {
            return Err(Reason::NoPort);
        }
        recent::forget(&self.answer_key);
        if connections::put::<A>(Way::Answer) { Ok(()) } else { Err(Reason::NoConnection) }
    }
}

/// What a function that the compiler must not inline answers: 0 for success, otherwise the reason and one.
#[inline(always)]
pub fn verdict(outcome: Result<(), Reason>) -> u32 {
    match outcome {
        Ok(()) => 0,
        Err(reason) => reason as u32 + 1,
    }
}

/// The other end of [`verdict`].
#[inline(always)]
pub fn reason_of(verdict: u32) -> Option<Reason> {
    // Only what `begin` functions answer; anything else cannot come.
    match verdict {
        0 => None,
        v if v == Reason::NoBackend as u32 + 1 => Some(Reason::NoBackend),
        v if v == Reason::NoPort as u32 + 1 => Some(Reason::NoPort),
        v if v == Reason::NoSource as u32 + 1 => Some(Reason::NoSource),
        v if v == Reason::SourceRange as u32 + 1 => Some(Reason::SourceRange),
        _ => Some(Reason::NoConnection),
    }
}

/// Notes that a packet of a known connection was seen, in the direction of the entry. Answers `CLOSE` for the one that says goodbye first,
/// [`event::RESET`] for one that then ends the other direction as well, otherwise 0.
#[inline(always)]
pub fn touch<A: Tables>(connection: &mut Connection<A>, packet: &Packet<A>, now: u32) -> u8 {
    touch_as(connection, packet, now, closed_by::SENDER)
}

/// The same for a packet of the other direction, which has no entry of its own.
#[inline(always)]
pub fn touch_back<A: Tables>(connection: &mut Connection<A>, packet: &Packet<A>, now: u32) -> u8 {
    touch_as(connection, packet, now, closed_by::RECEIVER)
}

#[inline(always)]
fn touch_as<A: Tables>(connection: &mut Connection<A>, packet: &Packet<A>, now: u32, end: u8) -> u8 {
    // Written only when it changes, so that the cache line stays shared between CPUs.
    if connection.used != now {
        connection.used = now;
    }
    let mut flags = connection.flags;
    let mut told = 0;
    if packet.part != Part::Later && packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        let is_reset = packet.tcp_flags & tcp::RST != 0;
        if !connection.has_goodbye() {
            told = event_kind::CLOSE;
        } else if is_reset {
            told = event::RESET;
        }
        // An entry for both directions lives on for the one that is left.
        if is_reset || !connection.is_alone() || says_last(connection, end) {
            flags |= connection_flags::CLOSING;
        }
    }
    if !packet.is_syn() {
        flags |= connection_flags::ANSWERED;
    }
    if flags != connection.flags {
        connection.flags = flags;
    }
    told
}

/// Notes that an end said goodbye; true when both have.
#[inline(always)]
fn says_last<A>(connection: &mut Connection<A>, end: u8) -> bool {
    connection.closed_by |= end;
    connection.closed_by == closed_by::BOTH
}

/// True for a packet that opens a connection with the tuple of one that an end has closed.
#[inline(always)]
pub fn begins_again<A: Tables>(known: &Connection<A>, packet: &Packet<A>) -> bool {
    packet.is_syn() && known.has_goodbye()
}

/// The key of the other direction's entry.
#[inline(always)]
pub fn other_direction<A: Tables>(tuple: &Tuple<A>, protocol: u8) -> ConnectionKey<A> {
    ConnectionKey {
        source: tuple.destination,
        destination: tuple.source,
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
        protocol,
        reserved: [0; 3],
    }
}
