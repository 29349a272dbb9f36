//! Entries of connections that nobody uses go when their time is over and not before, and sooner when there is hardly any room.
//!
//! Time cannot be made to pass here, so the entries are written with the moment of their last packet in the past.

use std::path::Path;

use meshd_abi::{Address, BPFFS_FOLDER, Connection, ConnectionKey, Tuple, V4, V6, connection_flags};
use meshd_datapath::{Connections, Maps, ticks};

use super::{
    meshes::eventually,
    services::{ALL_BACKENDS, NODES, Services},
};

/// The node whose daemon sweeps.
const NODE: &str = "west-worker";
/// Entries of IPv4 that there is room for.
const ROOM: usize = 1_024;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ECHO: u8 = 1;

/// Entries of a kind, and for how many ticks they live without a packet: with room, and with hardly any.
struct Kind {
    protocol: u8,
    flags: u8,
    relaxed: u32,
    pressed: u32,
}

const ESTABLISHED: Kind = Kind { protocol: TCP, flags: connection_flags::ANSWERED, relaxed: 21_600, pressed: 21_600 };
const OPENING: Kind = Kind { protocol: TCP, flags: 0, relaxed: 60, pressed: 5 };
const CLOSING: Kind =
    Kind { flags: connection_flags::ANSWERED | connection_flags::CLOSING, relaxed: 15, pressed: 2, ..OPENING };
const ASKED: Kind = Kind { protocol: UDP, flags: 0, relaxed: 90, pressed: 15 };
const ANSWERED: Kind = Kind { flags: connection_flags::ANSWERED, ..ASKED };
const PINGED: Kind = Kind { protocol: ECHO, ..ASKED };

const KINDS: [Kind; 6] = [ESTABLISHED, OPENING, CLOSING, ASKED, ANSWERED, PINGED];

/// A connection in the table: an entry for each direction, with the moment of its last packet.
struct Pair<A> {
    keys: [ConnectionKey<A>; 2],
    used: [u32; 2],
    kind: &'static Kind,
}

impl<A: Address> Pair<A> {
    /// Writes both entries; `ages` says how long ago a packet used them.
    fn put(table: &Connections<A>, number: u16, kind: &'static Kind, ages: [u32; 2]) -> Self {
        let address = |last: u32| A::from_words([u32::from_be_bytes([10, 0, 1, last as u8]), 0, 0, last]);
        let [client, frontend, backend] = [1, 2, 3].map(address);
        let port = number.to_be();
        let [asks, asked] = [(client, frontend), (client, backend)].map(|(source, destination)| Tuple {
            source,
            destination,
            source_port: port,
            destination_port: 80_u16.to_be(),
        });
        let back = |tuple: Tuple<A>| Tuple {
            source: tuple.destination,
            destination: tuple.source,
            source_port: tuple.destination_port,
            destination_port: tuple.source_port,
        };
        let directions = [(asks, asked, 0), (back(asked), back(asks), connection_flags::REPLY)];
        let used = ages.map(|age| ticks().wrapping_sub(age));
        let mut keys = directions.map(|(from, ..)| ConnectionKey {
            source: from.source,
            destination: from.destination,
            source_port: from.source_port,
            destination_port: from.destination_port,
            protocol: kind.protocol,
            reserved: [0; 3],
        });
        for ((key, (_, tuple, flag)), used) in keys.iter_mut().zip(directions).zip(used) {
            let connection = Connection { tuple, used, flags: kind.flags | flag, ..Connection::default() };
            table.put(key, &connection).expect("an entry");
        }
        Self { keys, used, kind }
    }

    /// True while both entries are there, false when both are gone.
    fn is_there(&self, table: &Connections<A>, life: impl Fn(&Kind) -> u32) -> bool {
        let [forth, back] = self.keys.map(|key| table.get(&key).expect("read").is_some());
        let now = ticks();
        let age = self.used.map(|used| now.wrapping_sub(used)).into_iter().min().expect("two");
        if forth && back {
            return true;
        }
        // Both directions live as long as one of them is used.
        let Kind { protocol, flags, .. } = self.kind;
        assert!(
            age.cast_signed() > life(self.kind).cast_signed(),
            "protocol {protocol}, flags {flags} went after {age}"
        );
        // One after the other.
        forth || back
    }
}

/// Connections of each kind in a table.
struct Filled<'a, A> {
    table: &'a Connections<A>,
    over: Vec<Pair<A>>,
    young: Vec<Pair<A>>,
}

impl<'a, A: Address> Filled<'a, A> {
    fn new(table: &'a Connections<A>) -> Self {
        let (mut over, mut young) = (Vec::new(), Vec::new());
        for (index, kind) in (0..).zip(&KINDS) {
            let put = |more: u16, ages| Pair::put(table, 1_000 + 10 * index + more, kind, ages);
            let life = kind.relaxed;
            over.extend([put(0, [life + 1; 2]), put(1, [life + 1, life + 500]), put(2, [u32::MAX / 2 - 100; 2])]);
            let recent = life - life.min(50);
            young.extend([put(3, [recent; 2]), put(4, [recent, life + 100]), put(5, [life + 100, recent])]);
            // A program may be ahead of who reads the clock.
            young.push(put(6, [3_u32.wrapping_neg(); 2]));
        }
        Self { table, over, young }
    }

    /// True when all that is over is gone. What is not over must be there.
    fn is_swept(&self) -> bool {
        let life = |kind: &Kind| kind.relaxed;
        for pair in &self.young {
            pair.is_there(self.table, life);
        }
        self.over.iter().filter(|pair| pair.is_there(self.table, life)).count() == 0
    }
}

/// What a flood leaves, and is over only when there is hardly any room.
fn flood<A: Address>(table: &Connections<A>) -> Vec<Pair<A>> {
    let kinds = [&OPENING, &ASKED, &ANSWERED, &PINGED];
    (2_000..).zip(kinds).map(|(number, kind)| Pair::put(table, number, kind, [kind.pressed + 1; 2])).collect()
}

fn count<A: Address>(pairs: &[Pair<A>], table: &Connections<A>) -> usize {
    pairs.iter().filter(|pair| pair.is_there(table, |kind| kind.pressed)).count()
}

/// Connections that are gone, and would not be with room.
fn early<A: Address>(pairs: &[Pair<A>]) -> usize {
    let now = ticks();
    pairs.iter().filter(|pair| now.wrapping_sub(pair.used[0]) <= pair.kind.relaxed).count()
}

#[test]
fn entries_go_by_time_and_sooner_by_need() {
    let lab = Services::up();
    lab.edit(
        &[NODE],
        "services:\n  enabled: true\n",
        &format!("services:\n  enabled: true\n  maps: {{connections: {ROOM}}}\n"),
    );
    lab.mesh.daemon(NODE).restart().expect("restarted");
    lab.wait(&NODES, &ALL_BACKENDS);
    let node = lab.mesh.node(NODE);
    let maps = || node.within(|| Maps::existing(Path::new(BPFFS_FOLDER))).expect("inside");
    let has_room = || maps().is_ok_and(|maps| maps.v4.connections.room() == 2 * ROOM);
    assert!(eventually(has_room), "{}", lab.mesh.log(NODE));
    let maps = maps().expect("maps");
    let (v4, v6) = (&maps.v4.connections, &maps.v6.connections);

    let (filled4, filled6) = (Filled::<V4>::new(v4), Filled::<V6>::new(v6));
    let flooded = (flood(v4), flood(v6));
    let is_swept = || {
        let (in4, in6) = (filled4.is_swept(), filled6.is_swept());
        in4 && in6
    };
    assert!(eventually(is_swept), "{:?} {:?}", v4.all(), v6.all());
    // With room the flood has as much time as anybody.
    assert_eq!((count(&flooded.0, v4), count(&flooded.1, v6)), (flooded.0.len(), flooded.1.len()));

    // Hardly any room in one of the tables: the flood goes from both, and who is in a conversation stays.
    let conversing: Vec<_> =
        (3_000..).take(ROOM * 9 / 20).map(|number| Pair::put(v4, number, &ESTABLISHED, [20_000; 2])).collect();
    assert!(eventually(|| count(&flooded.0, v4) + count(&flooded.1, v6) == 0), "{:?} {:?}", v4.all(), v6.all());
    assert_eq!((early(&flooded.0), early(&flooded.1)), (flooded.0.len(), flooded.1.len()), "time was over anyway");
    assert_eq!(count(&conversing, v4), conversing.len());
    lab.mesh.finish();
}
