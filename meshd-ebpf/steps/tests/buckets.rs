//! The table of connections on ordinary memory: against a model, with several threads, and with as much in it as there is room for.

use std::{
    collections::HashMap,
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use meshd_abi::{ConnectionKey, V4, V6, WAYS};
use meshd_steps::bucket::{
    Buckets, Claim, Client, GROUP, Place, Position, claim, claim_anywhere, find, find_once, freed, is_taken,
    is_written, pair, publish, release, replace,
};
use proptest::prelude::*;

const SEED: u64 = 0x1234_5678_9abc_def1;

type Key = ConnectionKey<V4>;

/// A table whose entries are keys.
struct Memory {
    words: Vec<[AtomicU64; WAYS]>,
    keys: Vec<[[AtomicU64; 2]; WAYS]>,
}

fn in_words(key: &Key) -> [u64; 2] {
    let ports = pair(key.source_port.into(), key.destination_port.into(), 16);
    let rest = pair(ports, u32::from_ne_bytes([key.protocol, 0, 0, 0]).into(), 32);
    [pair(key.source.0.into(), key.destination.0.into(), 32), rest]
}

impl Memory {
    fn new(buckets: u32) -> Self {
        Self {
            words: (0..buckets).map(|_| Default::default()).collect(),
            keys: (0..buckets).map(|_| Default::default()).collect(),
        }
    }

    fn place(&self, key: &Key, client: Client) -> Place {
        Place::of(in_words(key), client, SEED, self.words.len() as u32)
    }

    /// Adds a key as programs do; false when it is there or there is no room.
    fn add(&self, key: &Key, client: Client) -> bool {
        let place = self.place(key, client);
        let claimed = match claim(self, &place) {
            Claim::Elsewhere => claim_anywhere(self, &place),
            claimed => claimed,
        };
        assert_eq!(Claim::of(claimed.number()), claimed);
        let Claim::Made(at) = claimed else { return false };
        assert!(!is_written(self.words[at.bucket() as usize][at.way()].load(Ordering::SeqCst)));
        self.write(key, at);
        true
    }

    fn write(&self, key: &Key, at: Position) {
        for (to, word) in self.keys[at.bucket() as usize][at.way()].iter().zip(in_words(key)) {
            to.store(word, Ordering::SeqCst);
        }
        assert!(publish(self, at));
    }

    fn find(&self, key: &Key, client: Client) -> Position {
        let place = self.place(key, client);
        let found = find(self, key, &place);
        assert_eq!(find_once(self, key, &place), found);
        found
    }

    fn remove(&self, key: &Key, client: Client) -> bool {
        let place = self.place(key, client);
        let at = find(self, key, &place);
        at != Position::NONE && release(self, &place, at)
    }

    fn live(&self) -> usize {
        self.words.iter().flatten().filter(|word| is_taken(word.load(Ordering::SeqCst))).count()
    }

    /// What words hold besides entries.
    fn counted(&self) -> u64 {
        self.words.iter().flatten().map(|word| freed(word.load(Ordering::SeqCst))).sum()
    }
}

impl Buckets<Key> for Memory {
    type Bucket = usize;

    fn bucket(&self, index: u32) -> Option<usize> {
        ((index as usize) < self.words.len()).then_some(index as usize)
    }
    fn word(&self, bucket: usize, way: usize) -> u64 {
        self.words[bucket][way].load(Ordering::SeqCst)
    }
    fn exchange(&self, bucket: usize, way: usize, from: u64, to: u64) -> bool {
        self.words[bucket][way].compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
    fn set(&self, bucket: usize, way: usize, to: u64) {
        self.words[bucket][way].store(to, Ordering::SeqCst);
    }
    fn has(&self, bucket: usize, way: usize, key: &Key) -> bool {
        let there = &self.keys[bucket][way];
        in_words(key).iter().zip(there).all(|(word, there)| there.load(Ordering::SeqCst) == *word)
    }
}

/// A question of one of many clients.
fn key(number: u32) -> Key {
    ConnectionKey {
        source: V4::from_octets((0x0a01_0000 + number / 50_000).to_be_bytes()),
        destination: V4::from_octets([192, 0, 2, 10]),
        source_port: (10_000 + (number % 50_000) as u16).to_be(),
        destination_port: 80u16.to_be(),
        protocol: 6,
        reserved: [0; 3],
    }
}

/// The answer to it from a backend.
fn answer(number: u32) -> Key {
    let asked = key(number);
    let from = V4::from_octets([10, 2, 0, (number % 200) as u8]);
    Key {
        source: from,
        destination: asked.source,
        source_port: 8_080u16.to_be(),
        destination_port: asked.source_port,
        ..asked
    }
}

#[test]
fn a_question_and_its_answer_are_neighbors() {
    let table = Memory::new(1_024);
    for number in 0..10_000 {
        let (asks, answers) =
            (table.place(&key(number), Client::Source), table.place(&answer(number), Client::Destination));
        assert_eq!((asks.home, asks.way ^ 1), (answers.home, answers.way), "{number}");
        assert_ne!(asks, answers);
        let elsewhere = table.place(&key(number), Client::Destination);
        assert_ne!(elsewhere, asks);
    }
}

#[test]
fn a_question_and_an_answer_between_the_same_two_ends_are_two_entries() {
    let table = Memory::new(1_024);
    for number in 0..1_000 {
        let question = key(number);
        let reverse = Key {
            source: question.destination,
            destination: question.source,
            source_port: question.destination_port,
            destination_port: question.source_port,
            ..question
        };
        let all = [
            (question, Client::Source),
            (reverse, Client::Destination),
            (question, Client::Destination),
            (reverse, Client::Source),
        ];
        for (key, client) in all {
            assert!(table.add(&key, client), "{number}, {client:?}");
        }
        let mut places = vec![Position::NONE];
        for (key, client) in all {
            let place = table.find(&key, client);
            assert!(!places.contains(&place), "{number}, {client:?}");
            places.push(place);
        }
    }
}

#[test]
fn every_part_of_a_key_and_the_seed_make_another_word() {
    let one = key(7);
    let others = [
        Key { source: V4::from_octets([10, 9, 0, 1]), ..one },
        Key { destination: V4::from_octets([192, 0, 2, 11]), ..one },
        Key { source_port: 1, ..one },
        Key { destination_port: 81u16.to_be(), ..one },
        Key { protocol: 17, ..one },
    ];
    let word = |key: &Key, seed| Place::of(in_words(key), Client::Source, seed, 1_024);
    for other in others {
        assert_ne!(word(&other, SEED), word(&one, SEED), "{other:?}");
    }
    assert_ne!(word(&one, SEED), word(&one, SEED + 1));
}

#[test]
fn addresses_of_ipv6_are_more_than_what_their_halves_have_in_common() {
    let address = |high: u64, low: u64| [high, low];
    let (prefix, host) = (0xfd00_0010_0244_0001_u64, 0xa_u64);
    let place = |source: [u64; 2], destination: [u64; 2]| {
        Place::of([source[0], source[1], destination[0], destination[1], 7], Client::Source, SEED, 1 << 20)
    };
    let to = address(0x2001_0db8, 0x10);
    let one = place(address(prefix, host), to);
    let others = [
        place(address(host, prefix), to),
        place(address(prefix ^ 0xff00, host ^ 0xff00), to),
        place(address(prefix, host), address(0x10, 0x2001_0db8)),
        place(address(prefix, host), address(0x2001_0db8 ^ 1, 0x10 ^ 1)),
        place(to, address(prefix, host)),
    ];
    for (number, other) in others.into_iter().enumerate() {
        assert_ne!(other, one, "{number}");
    }
    // Nor do pairs that meet with one seed meet with another one.
    let homes = |seed| {
        let home = |low| Place::of([prefix, low, 0, 0, 7], Client::Source, seed, 1_024).home;
        (0..1_000).map(home).collect::<Vec<_>>()
    };
    let together = homes(SEED).iter().zip(homes(SEED + 1)).filter(|(a, b)| **a == *b).count();
    assert!(together < 20, "{together} of 1,000 stay");
}

#[test]
fn user_space_finds_the_place_that_programs_find() {
    for number in 0..1_000 {
        let key = key(number);
        for client in [Client::Source, Client::Destination] {
            assert_eq!(Place::of_key(&key, client, SEED, 512), Place::of(in_words(&key), client, SEED, 512));
        }
        let octets = |last: u8| V6::from_octets([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, number as u8, 0, 0, 0, 0, 0, 0, last]);
        let key6 = ConnectionKey {
            source: octets(1),
            destination: octets(2),
            source_port: number as u16,
            destination_port: 80,
            protocol: 17,
            reserved: [0; 3],
        };
        // As it lies in memory.
        let mut words = [0; 5];
        let halves = key6.source.0.into_iter().chain(key6.destination.0);
        for (at, word) in halves.enumerate() {
            words[at / 2] |=
                pair(u64::from(word) * u64::from(at % 2 == 0), u64::from(word) * u64::from(at % 2 != 0), 32);
        }
        let ports = pair(key6.source_port.into(), key6.destination_port.into(), 16);
        words[4] = pair(ports, u32::from_ne_bytes([17, 0, 0, 0]).into(), 32);
        for client in [Client::Source, Client::Destination] {
            assert_eq!(Place::of_key(&key6, client, SEED, 512), Place::of(words, client, SEED, 512));
        }
    }
}

#[test]
fn as_many_find_room_as_the_table_is_made_for() {
    // Half of its entries, as the loader makes it.
    let table = Memory::new(32_768);
    let mut refused = 0;
    for number in 0..65_536 {
        refused += u32::from(!table.add(&key(number), Client::Source));
        refused += u32::from(!table.add(&answer(number), Client::Destination));
    }
    assert!(refused <= 8, "{refused} of 131,072 found no room");
    assert_eq!(table.live() as u32, 131_072 - refused);
}

#[test]
fn one_client_with_one_port_may_have_many_connections() {
    let table = Memory::new(4_096);
    let ask = |number: u32| Key { destination: V4::from_octets(number.to_be_bytes()), ..key(0) };
    for number in 0..8_000 {
        assert!(table.add(&ask(number), Client::Source), "{number}");
    }
    for number in 0..8_000 {
        assert_ne!(table.find(&ask(number), Client::Source), Position::NONE, "{number}");
        assert!(table.remove(&ask(number), Client::Source), "{number}");
    }
    assert_eq!((table.live(), table.counted()), (0, 0));
}

#[test]
fn a_full_table_refuses_and_forgets_nobody() {
    let table = Memory::new(2 * GROUP);
    let room = table.words.len() * WAYS;
    let (mut known, mut refused) = (Vec::new(), 0);
    for number in 0..10_000 {
        if table.add(&key(number), Client::Source) { known.push(number) } else { refused += 1 }
    }
    assert_eq!((known.len(), table.live()), (room, room));
    assert_eq!(refused, 10_000 - room);
    for number in &known {
        assert!(!table.add(&key(*number), Client::Source), "it is there");
        assert_ne!(table.find(&key(*number), Client::Source), Position::NONE);
    }
    // One goes, and somebody else gets its place.
    assert!(table.remove(&key(known[3]), Client::Source));
    assert!((10_000..20_000).any(|number| table.add(&key(number), Client::Source)));
    assert_eq!(table.live(), room);
}

#[test]
fn an_entry_is_nobodys_to_find_while_it_is_written() {
    let table = Memory::new(GROUP);
    let place = table.place(&key(1), Client::Source);
    let Claim::Made(at) = claim(&table, &place) else { panic!("there is room") };
    // Whatever was there before.
    for (to, word) in table.keys[at.bucket() as usize][at.way()].iter().zip(in_words(&key(1))) {
        to.store(word, Ordering::SeqCst);
    }
    assert_eq!(table.find(&key(1), Client::Source), Position::NONE);
    assert!(!table.add(&key(1), Client::Source), "somebody else has it");
    assert!(!replace(&table, &key(1), || Some(place), at), "somebody else writes it");
    table.write(&key(1), at);
    assert_eq!(table.find(&key(1), Client::Source), at);
    assert!(!replace(&table, &key(2), || Some(place), at), "it is another one's");
    assert!(replace(&table, &key(1), || Some(place), at));
    assert_eq!(table.find(&key(1), Client::Source), Position::NONE);
    assert!(!replace(&table, &key(1), || Some(place), at), "somebody else writes it");
    table.write(&key(1), at);
    assert!(release(&table, &place, at) && !release(&table, &place, at));
    assert_eq!((table.live(), table.counted()), (0, 0));
}

#[test]
fn of_many_who_add_a_key_one_has_it() {
    const THREADS: usize = 4;
    const ROUNDS: u32 = 20_000;
    const KEYS: u32 = 40;
    // Small, so that entries are in others' buckets too.
    let table = Memory::new(2 * GROUP);
    let barrier = Barrier::new(THREADS);
    let holders: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let made = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS as u32 {
            let (table, barrier, holders, made) = (&table, &barrier, &holders, &made);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    // Together every now and then; those in between come and go as they like.
                    if round % 512 == 0 {
                        barrier.wait();
                    }
                    let number = round % KEYS;
                    if table.add(&key(number), Client::Source) {
                        let holder = &holders[number as usize];
                        assert_eq!(holder.fetch_add(1, Ordering::SeqCst), 0, "{number} is there twice");
                        made.fetch_add(1, Ordering::SeqCst);
                        if round % 3 == 0 {
                            thread::yield_now();
                        }
                        assert_eq!(holder.fetch_sub(1, Ordering::SeqCst), 1);
                        assert!(table.remove(&key(number), Client::Source), "nobody else removes it");
                    }
                    // A tenant for a while, whom others must not hide.
                    let own = key(1_000 + thread);
                    if table.add(&own, Client::Source) {
                        assert_ne!(find(table, &own, &table.place(&own, Client::Source)), Position::NONE);
                        assert_ne!(find_once(table, &own, &table.place(&own, Client::Source)), Position::NONE);
                        assert!(table.remove(&own, Client::Source));
                    }
                }
            });
        }
    });
    assert!(made.load(Ordering::SeqCst) > u64::from(ROUNDS));
    assert_eq!((table.live(), table.counted()), (0, 0));
}

proptest! {
    #[test]
    fn the_table_is_a_map(operations in proptest::collection::vec((0..4_u8, 0..120_u32, any::<bool>()), 1..400)) {
        let table = Memory::new(2 * GROUP);
        let mut model: HashMap<(u32, bool), ()> = HashMap::new();
        for (operation, number, answers) in operations {
            let (key, client) =
                if answers { (answer(number), Client::Destination) } else { (key(number), Client::Source) };
            let is_known = model.contains_key(&(number, answers));
            match operation {
                0 | 1 => {
                    let added = table.add(&key, client);
                    prop_assert!(!(added && is_known), "{number} twice");
                    // Only a table that is well filled refuses.
                    prop_assert!(added || is_known || model.len() >= 2 * WAYS);
                    if added {
                        model.insert((number, answers), ());
                    }
                }
                2 => {
                    prop_assert_eq!(table.remove(&key, client), is_known);
                    model.remove(&(number, answers));
                }
                _ => prop_assert_eq!(table.find(&key, client) != Position::NONE, is_known),
            }
            prop_assert_eq!(table.live(), model.len());
        }
        for (number, answers) in model.into_keys() {
            let (key, client) =
                if answers { (answer(number), Client::Destination) } else { (key(number), Client::Source) };
            prop_assert!(table.remove(&key, client));
        }
        prop_assert_eq!((table.live(), table.counted()), (0, 0));
    }
}
