//! Connections to backends, of IPv4 and a moment ago, in front of [`recent`](super::recent).
//!
//! There a connection takes a line of the cache, and a hundred thousand of them are more than a processor's second cache holds; here eight
//! share two lines, and all are two megabytes. What is written is in `meshd_steps::packed`. It counts in the tick in which it was
//! written, and in the epoch, as in `recent`.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use meshd_abi::{Backend, Connection, ConnectionKey, Scope, V4, V6, connection_flags};
use meshd_steps::packed::{BACKENDS, Entry, Form, Key, Packed, Place, SETS, WAYS, stamp};

use super::{
    recent::{Elements, Moment},
    settings,
};

/// Sets begin at a page, and with it at a line.
#[btf_map]
static PACKED4: Array<[Entry; WAYS], SETS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// A connection, with the port that stands for its client's.
#[derive(Clone, Copy)]
pub struct Known {
    /// What is written down.
    pub packed: Packed,
    /// The port, network byte order, where [`Form::tries`] says that there is one.
    pub port: u16,
}

/// Families, of which one has connections that can be packed.
pub trait Packs: Elements {
    /// What is known of the connection of a tuple, when one of its packets was seen in this tick.
    fn packed(key: &ConnectionKey<Self>, scope: Scope, now: Moment) -> Option<Known>;
    /// Notes a connection of which a packet is seen; false for one that has no place.
    fn pack(
        asked: (&ConnectionKey<Self>, Scope),
        connection: &Connection<Self>,
        backend: &Backend<Self>,
        now: Moment,
    ) -> bool;
    /// Makes sure that nobody is told of a connection whose entry is replaced or removed, whoever asks.
    fn unpack(key: &ConnectionKey<Self>);
}

impl Packs for V4 {
    #[inline(always)]
    fn packed(key: &ConnectionKey<V4>, scope: Scope, now: Moment) -> Option<Known> {
        let key = usable(key, scope)?;
        match packed4(key.client, key.frontend, now.0) {
            0 => None,
            found => Some(Known { packed: Packed::of(found as u32), port: (found >> 32) as u16 }),
        }
    }

    #[inline(always)]
    fn pack(
        (key, scope): (&ConnectionKey<V4>, Scope),
        connection: &Connection<V4>,
        backend: &Backend<V4>,
        now: Moment,
    ) -> bool {
        let tuple = &connection.tuple;
        let form = match connection.flags & !(connection_flags::LOCAL | connection_flags::ANSWERED) {
            0 => Form::KEPT,
            connection_flags::STACK => Form::IN_STACK,
            connection_flags::DSR => Form::DIRECT,
            connection_flags::SNAT => Form::FIRST_PORT,
            _ => return false,
        };
        let follows = if form == Form::FIRST_PORT {
            settings().is_some_and(|settings| tuple.source == settings.source4)
        } else {
            tuple.source == key.source && tuple.source_port == key.source_port
        };
        let is_backends = tuple.destination == backend.address
            && tuple.destination_port == backend.port
            && (connection.flags & connection_flags::LOCAL != 0) == (backend.local != 0);
        if !follows || !is_backends || connection.to >= BACKENDS {
            return false;
        }
        let word = Packed { backend: connection.to, form }.word();
        usable(key, scope).is_some_and(|key| pack4(key.client, key.frontend, now.0, word, tuple.source_port) != 0)
    }

    #[inline(always)]
    fn unpack(key: &ConnectionKey<V4>) {
        for scope in [Scope::External, Scope::Internal] {
            if let Some(key) = usable(key, scope) {
                unpack4(key.client, key.frontend);
            }
        }
    }
}

/// Keys of IPv6 are more than an entry holds.
impl Packs for V6 {
    #[inline(always)]
    fn packed(_: &ConnectionKey<V6>, _: Scope, _: Moment) -> Option<Known> {
        None
    }

    #[inline(always)]
    fn pack(_: (&ConnectionKey<V6>, Scope), _: &Connection<V6>, _: &Backend<V6>, _: Moment) -> bool {
        false
    }

    #[inline(always)]
    fn unpack(_: &ConnectionKey<V6>) {}
}

/// The key of a tuple that may have an entry.
#[inline(always)]
fn usable(key: &ConnectionKey<V4>, scope: Scope) -> Option<Key> {
    if V4::mask() == 0 { None } else { Key::new(key, scope) }
}

/// Answers what is known of a connection ([`Packed::word`]), with its port in the upper half, and 0 for nothing. Verified once, and not
/// with every way to get here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn packed4(client: u64, frontend: u64, now: u64) -> u64 {
    let key = Key { client, frontend };
    let place = at(&key, Moment(now));
    let Some(set) = PACKED4.get_ptr(place.set as u32) else { return 0 };
    let mut way = 0;
    while way < WAYS {
        // SAFETY: an entry of the set.
        if let Some(known) = place.read(unsafe { entry(set, way) }) {
            let port = known.form.tries().map_or(0, |tries| port(&key, tries));
            return u64::from(known.word()) | u64::from(port) << 32;
        }
        way += 1;
    }
    0
}

/// The port that is found after so many.
#[inline(always)]
fn port(key: &Key, tries: u8) -> u16 {
    let Some(settings) = settings() else { return 0 };
    let mut ports = key.ports();
    let mut port = ports.next(settings.ports, settings.port_count);
    let mut tried = 0;
    while tried < tries && tried < Form::PORTS {
        port = ports.next(settings.ports, settings.port_count);
        tried += 1;
    }
    port
}

/// Writes a connection down where it is already, or else in place of what counts no longer; answers 1, and 0 when neither is there, or its
/// port is none of the first that were tried.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn pack4(client: u64, frontend: u64, now: u64, word: u32, own_port: u16) -> u32 {
    let key = Key { client, frontend };
    let mut known = Packed::of(word);
    if known.form == Form::FIRST_PORT {
        let Some(tries) = tries(&key, own_port) else { return 0 };
        known.form = Form::port(tries);
    }
    let place = at(&key, Moment(now));
    let Some(set) = PACKED4.get_ptr_mut(place.set as u32) else { return 0 };
    let (mut free, mut way) = (WAYS, 0);
    while way < WAYS {
        // SAFETY: an entry of the set.
        let there = unsafe { entry(set, way) };
        if place.read(there).is_some() {
            free = way;
            break;
        }
        if free == WAYS && place.is_over(there) {
            free = way;
        }
        way += 1;
    }
    if free >= WAYS {
        return 0;
    }
    // SAFETY: an entry of the set.
    unsafe { write(set, free, place.entry(known)) };
    1
}

/// Removes every entry of a connection, whenever it was written.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn unpack4(client: u64, frontend: u64) -> u32 {
    let place = Key { client, frontend }.at(0);
    let Some(set) = PACKED4.get_ptr_mut(place.set as u32) else { return 0 };
    let mut way = 0;
    while way < WAYS {
        // SAFETY: an entry of the set.
        unsafe {
            if place.is_ever(entry(set, way)) {
                write(set, way, Entry::default());
            }
        }
        way += 1;
    }
    1
}

#[inline(always)]
fn at(key: &Key, now: Moment) -> Place {
    key.at(stamp(now.tick(), now.epoch()))
}

/// How many ports were tried before this one.
#[inline(always)]
fn tries(key: &Key, own_port: u16) -> Option<u8> {
    let settings = settings()?;
    let mut ports = key.ports();
    let mut tries = 0;
    while tries < Form::PORTS {
        if ports.next(settings.ports, settings.port_count) == own_port {
            return Some(tries);
        }
        tries += 1;
    }
    None
}

/// # Safety
/// There must be so many entries.
#[inline(always)]
unsafe fn entry(set: *const [Entry; WAYS], way: usize) -> Entry {
    // SAFETY: the caller's; volatile, because others may write meanwhile.
    unsafe {
        let at = set.cast::<Entry>().add(way);
        Entry {
            difference: (&raw const (*at).difference).read_volatile(),
            rest: (&raw const (*at).rest).read_volatile(),
        }
    }
}

/// # Safety
/// There must be so many entries.
#[inline(always)]
unsafe fn write(set: *mut [Entry; WAYS], way: usize, new: Entry) {
    // SAFETY: the caller's; volatile, because others read it meanwhile, each word as a whole.
    unsafe {
        let to = set.cast::<Entry>().add(way);
        (&raw mut (*to).difference).write_volatile(new.difference);
        (&raw mut (*to).rest).write_volatile(new.rest);
    }
}
