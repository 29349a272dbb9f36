//! A connection to a backend, in sixteen octets.
//!
//! What happens to its packets follows from the backend's entry, so that little but its index is to be known; a port that stands for the
//! client's follows from the tuple and from how many were tried. The client's address and port and the port it asked become one number by
//! a function that has an inverse. Some bits of it, mixed with the address that was asked, are the number of the set in which the
//! entry is; they are not written a second time, and an entry is still exactly one connection's. The rest of it is:
//!
//! | word | bits | what |
//! |---|---|---|
//! | number | 0 to 49 | lower bits of the number |
//! | | 50 to 63 | lower bits of the stamp |
//! | rest | 0 to 31 | the address that was asked |
//! | | 32 to 51 | index of the backend |
//! | | 52 | 1: UDP, 0: TCP |
//! | | 53 | 1: a workload of this node asks, 0: somebody outside |
//! | | 54 to 60 | upper bits of the stamp |
//! | | 61 to 63 | the [`Form`] |
//!
//! In place of the first word lies the difference of both. Who reads a word of one entry and the other word of its successor gets a number
//! that belongs to somebody only by a chance of one in 2^50, and so no lock is needed.

use meshd_abi::{Address, ConnectionKey, Scope, V4};

use crate::{choose::Ports, header::protocol};

/// Bits of the number of a set.
const SET_BITS: u32 = 14;
/// Sets of entries.
pub const SETS: usize = 1 << SET_BITS;
/// Entries of a set: two cache lines, which a processor fetches together.
pub const WAYS: usize = 8;

/// Some bits of a word.
struct Field {
    at: u32,
    bits: u32,
}

const ADDRESS: Field = Field { at: 0, bits: 32 };
const BACKEND: Field = Field { at: 32, bits: 20 };
const IS_UDP: Field = Field { at: 52, bits: 1 };
const IS_INTERNAL: Field = Field { at: 53, bits: 1 };
const STAMP_HIGH: Field = Field { at: 54, bits: 7 };
const FORM: Field = Field { at: 61, bits: 3 };
const STAMP_LOW: Field = Field { at: 64 - SET_BITS, bits: SET_BITS };

impl Field {
    const fn mask(&self) -> u64 {
        ((1 << self.bits) - 1) << self.at
    }
    #[inline(always)]
    const fn read(&self, word: u64) -> u64 {
        word >> self.at & ((1 << self.bits) - 1)
    }
    #[inline(always)]
    const fn write(&self, value: u64) -> u64 {
        (value & ((1 << self.bits) - 1)) << self.at
    }
}

/// Backends below this can be written down.
pub const BACKENDS: u32 = 1 << BACKEND.bits;
/// The rest of an entry, without what is known of its connection.
const KEY: u64 = !(BACKEND.mask() | FORM.mask());
/// What tells stamps apart.
const STAMP: u64 = (1 << (STAMP_LOW.bits + STAMP_HIGH.bits)) - 1;

/// As it lies in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Both words' difference.
    pub difference: u64,
    /// The second word.
    pub rest: u64,
}

const _: () = assert!(size_of::<[Entry; WAYS]>() == 128);

/// What happens to a connection's packets besides that they go to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form(u8);

impl Form {
    /// The client's address stays.
    pub const KEPT: Self = Self(0);
    /// So it does, and they go through the stack (`connection_flags::STACK`).
    pub const IN_STACK: Self = Self(1);
    /// So it does, and the backend answers itself (`connection_flags::DSR`).
    pub const DIRECT: Self = Self(2);
    /// They get this node's address and the first port that was tried (`connection_flags::SNAT`).
    pub const FIRST_PORT: Self = Self(3);
    /// Ports of which it can be said that they are the connection's.
    pub const PORTS: u8 = 4;

    /// With a port that was found after so many, below [`Form::PORTS`].
    #[must_use]
    #[inline(always)]
    pub const fn port(tries: u8) -> Self {
        Self(Self::FIRST_PORT.0 + tries)
    }

    /// How many ports were tried before; `None` for a connection that keeps the client's.
    #[must_use]
    #[inline(always)]
    pub const fn tries(self) -> Option<u8> {
        self.0.checked_sub(Self::FIRST_PORT.0)
    }
}

/// What is written down of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Index of its backend.
    pub backend: u32,
    /// What happens to its packets.
    pub form: Form,
}

impl Packed {
    /// As a word, which is not 0 when there is a backend.
    #[must_use]
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.backend | (self.form.0 as u32) << BACKEND.bits
    }

    /// From such a word.
    #[must_use]
    #[inline(always)]
    pub const fn of(word: u32) -> Self {
        Self { backend: word & (BACKENDS - 1), form: Form((word >> BACKEND.bits) as u8 & 7) }
    }
}

/// The tuple of a connection in the two numbers that entries are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The client's address and port, and the port it asked.
    pub client: u64,
    /// The address it asked, the protocol, and from where.
    pub frontend: u64,
}

impl Key {
    /// Of a tuple; `None` for a protocol that is neither TCP nor UDP.
    #[must_use]
    #[inline(always)]
    pub fn new(key: &ConnectionKey<V4>, scope: Scope) -> Option<Self> {
        let is_udp = match key.protocol {
            protocol::TCP => 0,
            protocol::UDP => 1,
            _ => return None,
        };
        // What follows each other, ports of a client and addresses of clients, is then spread better than by chance.
        let ports = u64::from(key.source_port) << 16 | u64::from(key.destination_port);
        Some(Self {
            client: ports << 32 | u64::from(u32::from_be(key.source.words()[0])),
            frontend: ADDRESS.write(key.destination.words()[0].into())
                | IS_UDP.write(is_udp)
                | IS_INTERNAL.write(scope as u64),
        })
    }

    /// The ports that are tried for the connection.
    #[must_use]
    #[inline(always)]
    pub fn ports(&self) -> Ports {
        let client = V4::from_octets((self.client as u32).to_be_bytes());
        Ports::of(&client, (self.client >> 48) as u16, (self.client >> 32) as u16)
    }

    /// Where an entry is, and what it is like, that is written with this stamp.
    #[must_use]
    #[inline(always)]
    pub const fn at(&self, stamp: u64) -> Place {
        // The upper bits of a product depend on all bits of both factors.
        let number = self.client.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let asked = self.frontend ^ self.frontend >> 16;
        Place {
            set: (number >> STAMP_LOW.at ^ asked) as usize & (SETS - 1),
            number: number & !STAMP_LOW.mask() | STAMP_LOW.write(stamp),
            rest: self.frontend | STAMP_HIGH.write(stamp >> STAMP_LOW.bits),
        }
    }
}

/// Where an entry is, and what it is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The set, below [`SETS`].
    pub set: usize,
    number: u64,
    rest: u64,
}

impl Place {
    /// The entry of what is known of the connection.
    #[must_use]
    #[inline(always)]
    pub const fn entry(&self, known: Packed) -> Entry {
        let rest = self.rest | BACKEND.write(known.backend as u64) | FORM.write(known.form.0 as u64);
        Entry { difference: self.number ^ rest, rest }
    }

    /// What is known of the connection, if this is its entry and has this stamp.
    #[must_use]
    #[inline(always)]
    pub const fn read(&self, entry: Entry) -> Option<Packed> {
        if (entry.difference ^ entry.rest ^ self.number) | ((entry.rest ^ self.rest) & KEY) != 0 {
            return None;
        }
        Some(Packed { backend: BACKEND.read(entry.rest) as u32, form: Form(FORM.read(entry.rest) as u8) })
    }

    /// True for the connection's entry, whatever its stamp.
    #[must_use]
    #[inline(always)]
    pub const fn is_ever(&self, entry: Entry) -> bool {
        let number = (entry.difference ^ entry.rest ^ self.number) & !STAMP_LOW.mask();
        number | ((entry.rest ^ self.rest) & KEY & !STAMP_HIGH.mask()) == 0
    }

    /// True for an entry that has another stamp, and counts no longer.
    #[must_use]
    #[inline(always)]
    pub const fn is_over(&self, entry: Entry) -> bool {
        let low = STAMP_LOW.mask() & (entry.difference ^ entry.rest ^ self.number);
        low | STAMP_HIGH.mask() & (entry.rest ^ self.rest) != 0
    }
}

/// The stamp of what is written now: it differs from that of every earlier tick and every earlier epoch, for three weeks:
/// what nobody has written over in that time and in the same second would count again.
#[must_use]
#[inline(always)]
pub const fn stamp(tick: u32, epoch: u32) -> u64 {
    (tick as u64 + epoch as u64) & STAMP
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::HashMap, vec};

    use super::*;

    fn key(number: u32, port: u16, protocol: u8) -> ConnectionKey<V4> {
        ConnectionKey {
            source: V4::from_octets((0x0a00_0000 | number).to_be_bytes()),
            destination: V4::from_octets([192, 0, 2, 10]),
            source_port: port,
            destination_port: 80u16.to_be(),
            protocol,
            reserved: [0; 3],
        }
    }

    fn place(key: &ConnectionKey<V4>, stamp: u64) -> Place {
        Key::new(key, Scope::External).expect("TCP or UDP").at(stamp)
    }

    #[test]
    fn what_was_written_is_read() {
        let at = place(&key(7, 40_000, 6), 9);
        for known in [
            Packed { backend: 1, form: Form::KEPT },
            Packed { backend: BACKENDS - 1, form: Form::IN_STACK },
            Packed { backend: 300, form: Form::DIRECT },
            Packed { backend: 2, form: Form::port(Form::PORTS - 1) },
        ] {
            let entry = at.entry(known);
            assert_eq!(at.read(entry), Some(known));
            assert_eq!(Packed::of(known.word()), known);
            assert_ne!(known.word(), 0);
            assert!(!at.is_over(entry) && at.is_ever(entry));
        }
        assert_eq!((at.read(Entry::default()), at.is_ever(Entry::default())), (None, false));
        assert!(at.is_over(Entry::default()));
    }

    #[test]
    fn ports_are_those_of_the_tuple() {
        let one = key(7, 40_000, 6);
        let [mut found, mut wanted] = [
            Key::new(&one, Scope::External).expect("TCP").ports(),
            Ports::of(&one.source, one.source_port, one.destination_port),
        ];
        for tries in 0..Form::PORTS {
            assert_eq!(found.next(32_768, 28_000), wanted.next(32_768, 28_000));
            assert_eq!(Form::port(tries).tries(), Some(tries));
        }
        assert_eq!([Form::KEPT, Form::IN_STACK, Form::DIRECT].map(Form::tries), [None; 3]);
    }

    #[test]
    fn every_part_of_a_tuple_and_every_stamp_make_another_entry() {
        let known = Packed { backend: 5, form: Form::KEPT };
        let one = key(7, 40_000, 6);
        let entry = place(&one, 9).entry(known);
        let others = [
            ConnectionKey { source: V4::from_octets([10, 0, 0, 8]), ..one },
            ConnectionKey { destination: V4::from_octets([192, 0, 2, 11]), ..one },
            ConnectionKey { source_port: 40_001, ..one },
            ConnectionKey { destination_port: 81u16.to_be(), ..one },
            ConnectionKey { protocol: 17, ..one },
        ];
        for other in others {
            let (a, b) = (place(&one, 9), place(&other, 9));
            assert!(a.set != b.set || b.read(entry).is_none() && !b.is_ever(entry), "{other:?}");
        }
        let inside = Key::new(&one, Scope::Internal).expect("TCP").at(9);
        assert_eq!(inside.read(entry), None, "asked from elsewhere");
        for bit in 0..21 {
            let later = place(&one, 9 ^ 1 << bit);
            assert_eq!((later.read(entry), later.is_over(entry)), (None, true), "bit {bit} of the stamp");
            assert!(later.is_ever(entry));
        }
        assert_eq!(Key::new(&ConnectionKey { protocol: 132, ..one }, Scope::External), None);
    }

    #[test]
    fn no_two_connections_have_the_same_place_and_entry() {
        let known = Packed { backend: 1, form: Form::KEPT };
        let mut seen = HashMap::new();
        for number in 0..2_000 {
            for port in 0..64 {
                for destination in [[192, 0, 2, 10], [192, 0, 2, 11], [10, 0, 0, 1]] {
                    let key = ConnectionKey { destination: V4::from_octets(destination), ..key(number, port, 6) };
                    let at = place(&key, 0);
                    let entry = at.entry(known);
                    assert_eq!(seen.insert((at.set, entry.difference, entry.rest), key), None);
                }
            }
        }
    }

    #[test]
    fn a_word_of_one_entry_and_one_of_another_are_nobodys() {
        let at = place(&key(7, 40_000, 6), 9);
        let (old, new) = (Packed { backend: 1, form: Form::KEPT }, Packed { backend: 2, form: Form::KEPT });
        let (old, new) = (at.entry(old), at.entry(new));
        assert_eq!(at.read(Entry { difference: old.difference, rest: new.rest }), None);
        assert_eq!(at.read(Entry { difference: new.difference, rest: old.rest }), None);
    }

    #[test]
    fn stamps_differ_from_tick_to_tick_and_from_epoch_to_epoch() {
        assert_eq!(stamp(5, 0) + 1, stamp(6, 0));
        assert_eq!(stamp(5, 1), stamp(6, 0));
        assert!(stamp(6, 1) > stamp(6, 0) && stamp(6, 1) > stamp(5, 1));
        assert_eq!(stamp(u32::MAX, u32::MAX), STAMP - 1);
    }

    #[test]
    fn a_hundred_thousand_connections_find_room() {
        // Many ports of few clients, few of many, and clients that differ in their upper bits only.
        for (ports, shift) in [
            (16_u32, 0),
            (16, 8),
            (16, 16),
            (1, 0),
            (1, 12),
            (50_000, 0),
            (25_000, 30),
            (1_000, 8),
            (200, 4),
            (10_000, 16),
        ] {
            let mut filled = vec![0; SETS];
            let mut refused = 0;
            for number in 0..100_000 / ports {
                for port in 0..ports as u16 {
                    let client = ConnectionKey {
                        source: V4::from_octets((0x0a00_0000 ^ number << shift).to_be_bytes()),
                        ..key(0, (15_000 + port).to_be(), 6)
                    };
                    let at = place(&client, 1);
                    filled[at.set] += 1;
                    refused += u32::from(filled[at.set] > WAYS);
                }
            }
            // By chance it would be 5,500.
            assert!(
                refused < 7_000,
                "{refused} of 100,000 find no place, with {ports} ports of clients at bit {shift}"
            );
        }
    }
}
