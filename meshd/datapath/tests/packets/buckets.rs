//! The table of connections from user space, while its memory holds what nobody should have left there.

use std::os::fd::AsRawFd;

use meshd_abi::{Address, Bucket, Connection, ConnectionKey, V4, WAYS, connection_flags};
use meshd_datapath::{Connections, Unwritten, client_of};
use meshd_steps::bucket::{Client, is_taken};

use crate::case::with_machine;

/// Calls a function with the words of every bucket of connections, those of its entries behind those that tell them apart.
pub(crate) fn in_buckets<A: Address>(connections: &Connections<A>, mut change: impl FnMut(&mut [u64])) {
    let octets = connections.room() / WAYS * size_of::<Bucket<A>>();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let map = connections.descriptor().as_raw_fd();
    // SAFETY: a new mapping of memory that is shared with programs that do not run now.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), octets, access, libc::MAP_SHARED, map, 0) };
    assert_ne!(memory, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: as long as the mapping, of which any octets are buckets.
    let words = unsafe { std::slice::from_raw_parts_mut(memory.cast::<u64>(), octets / 8) };
    words.chunks_exact_mut(size_of::<Bucket<A>>() / 8).for_each(&mut change);
    // SAFETY: nothing refers to it any more.
    unsafe { libc::munmap(memory, octets) };
}

/// Ways that are somebody's.
fn taken(connections: &Connections<V4>) -> usize {
    let mut taken = 0;
    in_buckets(connections, |bucket| taken += bucket[..WAYS].iter().filter(|word| is_taken(**word)).count());
    taken
}

fn key(port: u16) -> ConnectionKey<V4> {
    ConnectionKey { source_port: port, protocol: 6, ..ConnectionKey::default() }
}

#[test]
fn what_was_taken_and_not_written_is_freed_by_the_second_sweep() {
    with_machine(|machine| {
        machine.scene().reset();
        let connections = &machine.programs.maps.v4.connections;
        for port in 1..=50 {
            connections.put(&key(port), &Connection::default()).expect("there is room");
        }
        // Somebody took a way of each bucket and died.
        let mut left = 0;
        in_buckets(connections, |bucket| {
            if let Some(free) = bucket[1..WAYS].iter_mut().find(|word| !is_taken(**word)) {
                *free = 1 << 17 | 0xabcd << 40;
                left += 1;
            }
        });
        assert!(left > 50, "{left}");
        let mut unwritten = Unwritten::default();
        for (sweep, expected) in [(1, 50 + left), (2, 50), (3, 50)] {
            let mut seen = 0;
            connections.view().expect("mapped").sweep(&mut unwritten, |_, _| seen += 1);
            assert_eq!((seen, taken(connections)), (50, expected), "sweep {sweep}");
        }
        // What changes from one sweep to the next is somebody at work.
        for round in 1..=4_u64 {
            in_buckets(connections, |bucket| bucket[WAYS - 1] = 1 << 17 | round << 40);
            connections.view().expect("mapped").sweep(&mut unwritten, |_, _| ());
            assert!(taken(connections) >= connections.room() / WAYS, "round {round}");
        }
        in_buckets(connections, |bucket| bucket.fill(0));
    });
}

#[test]
fn a_question_and_an_answer_with_the_same_tuple_are_two() {
    with_machine(|machine| {
        machine.scene().reset();
        let connections = &machine.programs.maps.v4.connections;
        let asks = Connection { to: 1, ..Connection::default() };
        let answers = Connection { to: 2, flags: connection_flags::REPLY, ..Connection::default() };
        let view = connections.view().expect("mapped");
        for connection in [asks, answers] {
            view.put(&key(7), &connection).expect("there is room");
            // Again, with what packets change and with something else.
            view.put(&key(7), &Connection { used: 9, ..connection }).expect("it is there");
            view.put(&key(7), &Connection { service: 3, ..connection }).expect("it is there");
        }
        assert_eq!(machine.scene().connections(), 2);
        assert_eq!(view.get(&key(7), Client::Source), Some(Connection { service: 3, ..asks }));
        assert_eq!(view.get(&key(7), Client::Destination), Some(Connection { service: 3, ..answers }));
        assert_eq!(connections.remove_if(|_, connection| client_of(connection) == Client::Destination).expect("ok"), 1);
        assert_eq!(view.get(&key(7), Client::Destination), None);
        assert!(view.remove(&key(7), Client::Source) && !view.remove(&key(7), Client::Source));
    });
}
