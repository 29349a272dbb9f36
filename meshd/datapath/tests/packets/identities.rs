//! Lines of identities: whatever is written, removed and found there already, programs find what the table has.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use meshd_abi::{IDENTITY_WAYS, Identity, IdentityLine, Reason, V4, identity_flags};
use meshd_datapath::Program::WorkloadIngress;
use meshd_steps::identity::home;

use crate::{
    bench::IDENTITIES,
    case::{Machine, Verdict, with_machine},
    fast::put_ways,
    frame::{GATEWAY, OWN, tcp},
    scene::{NETS, hop},
};

/// Lines of the tables under test.
const LINES: u32 = IDENTITIES.div_ceil(IDENTITY_WAYS as u32);
/// An identity of whoever has an address, in the way that a workload of another node has it.
fn identity(number: u32) -> Identity {
    Identity { identity: number, way: hop::GATEWAY, flags: 0, cluster: 1 }
}

/// So many addresses whose line is the same.
fn neighbors(line: u32, count: usize) -> Vec<V4> {
    let all = (1_u32..).map(|number| V4((0x0a63_0000 + number).to_be()));
    all.filter(|address| home(*address, LINES) == line).take(count).collect()
}

/// Gives a test a machine on which workloads have the fast path.
fn with_ways(test: impl FnOnce(&Machine) + Send + 'static) {
    with_machine(|machine| {
        machine.scene().reset();
        put_ways(&machine.scene(), hop::GATEWAY);
        test(machine);
    });
}

/// True when the programs find an address: a packet from the workload takes the fast path there.
fn is_found(machine: &Machine, address: V4) -> bool {
    let net = NETS[0];
    let asked = tcp(net.workload(), (std::net::Ipv4Addr::from(address.octets()), 80).into());
    let outcome = machine.run(WorkloadIngress, &asked.bytes());
    if outcome.verdict == Some(Verdict::Redirect) {
        assert_eq!(outcome.out, asked.sent(GATEWAY, OWN).ttl(63).bytes());
        return true;
    }
    assert!(outcome.counted.iter().any(|(reason, ..)| *reason == Reason::Passed), "{outcome:?}");
    false
}

/// What a line says of an address, without what it says of itself.
fn own(identity: Identity) -> Identity {
    Identity { flags: identity.flags & !identity_flags::LINE, ..identity }
}

/// A line as it lies in its map.
pub(crate) type Octets = [u64; size_of::<IdentityLine>() / 8];

/// The lines themselves.
pub(crate) fn lines(machine: &Machine) -> Array<MapData, Octets> {
    let map = machine.programs.object().map("IDENTITY_LINES4").expect("it is in the object");
    let Map::Array(map) = map else { panic!("{map:?}") };
    let map = map.fd().as_fd().try_clone_to_owned().expect("another descriptor");
    Array::try_from(Map::Array(MapData::from_fd(map).expect("a map"))).expect("an array")
}

/// Writes a line past the one who keeps it.
fn put_line(machine: &Machine, index: u32, line: IdentityLine) {
    // SAFETY: as in `line`.
    let octets = unsafe { std::mem::transmute::<IdentityLine, Octets>(line) };
    lines(machine).set(index, octets, 0).expect("written");
}

fn line(machine: &Machine, index: u32) -> IdentityLine {
    let octets = lines(machine).get(&index, 0).expect("a line");
    // SAFETY: words without padding on both sides.
    unsafe { std::mem::transmute::<Octets, IdentityLine>(octets) }
}

#[test]
fn a_line_is_asked_before_the_table_and_the_table_when_the_line_says_so() {
    with_ways(|machine| {
        let table = &machine.scene().maps.v4.identities;
        let address = neighbors(12, 1)[0];
        table.put(&address, &identity(500)).expect("an identity");
        let whole = line(machine, 12);
        let state = whole.identities[0].flags;
        let said = |flags: u16, addresses: [V4; IDENTITY_WAYS]| {
            let mut changed = whole;
            (changed.addresses, changed.identities[0].flags) = (addresses, flags);
            put_line(machine, 12, changed);
            is_found(machine, address)
        };
        let nobody = [V4(0); IDENTITY_WAYS];
        assert!(said(state, whole.addresses));
        // The table has it all the time: only who looks at the line does not find it.
        assert!(!said(state, nobody), "the line has all of its addresses");
        assert!(said(state | identity_flags::MORE, nobody), "it has not");
        assert!(said(state | identity_flags::CHANGE, nobody), "it changes");
        // And the other way round.
        table.remove(&address).expect("removed");
        assert!(said(state, whole.addresses), "the line says so");
        assert!(!said(state | identity_flags::CHANGE, whole.addresses), "it changes");
    });
}

#[test]
fn what_finds_no_room_in_its_line_is_found_in_the_table() {
    with_ways(|machine| {
        let scene = machine.scene();
        let table = &scene.maps.v4.identities;
        let addresses = neighbors(7, IDENTITY_WAYS + 3);
        for (number, address) in addresses.iter().enumerate() {
            assert!(!is_found(machine, *address), "not yet");
            table.put(address, &identity(500)).expect("an identity");
            assert!(addresses[..=number].iter().all(|address| is_found(machine, *address)), "{number}");
        }
        let is_marked = || line(machine, 7).identities[0].flags & identity_flags::MORE != 0;
        assert!(is_marked(), "{:?}", line(machine, 7));
        // In any order, and what is in the line as well as what is not.
        for gone in [2, 5, 0, 6, 1, 3, 4] {
            assert!(table.remove(&addresses[gone]).expect("removed"));
            assert!(!table.remove(&addresses[gone]).expect("read"), "twice");
            assert!(!is_found(machine, addresses[gone]), "{gone}");
            let left = table.all().expect("read");
            assert!(left.iter().all(|(address, known)| known.flags != 0 || is_found(machine, *address)), "{gone}");
        }
        assert_eq!(line(machine, 7).addresses, [V4(0); IDENTITY_WAYS]);
    });
}

#[test]
fn what_is_known_of_an_address_changes_in_its_line() {
    with_ways(|machine| {
        let scene = machine.scene();
        let table = &scene.maps.v4.identities;
        let addresses = neighbors(9, IDENTITY_WAYS);
        table.put_all(&addresses, &[identity(500); IDENTITY_WAYS]).expect("identities");
        for address in &addresses {
            // Without a way it goes through the stack.
            table.put(address, &Identity { way: 0, ..identity(501) }).expect("an identity");
            assert!(!is_found(machine, *address));
            table.put(address, &identity(502)).expect("an identity");
            assert!(is_found(machine, *address));
        }
        let line = line(machine, 9);
        assert_eq!(line.identities.map(own), [identity(502); IDENTITY_WAYS]);
        assert_eq!(line.identities[0].flags & (identity_flags::MORE | identity_flags::CHANGE), 0, "no mark is left");
        assert_eq!(BTreeSet::from(line.addresses), addresses.into_iter().collect());
    });
}

#[test]
fn an_address_of_zeros_is_no_free_way() {
    with_ways(|machine| {
        let scene = machine.scene();
        let (table, zero) = (&scene.maps.v4.identities, V4(0));
        let neighbor = neighbors(home(zero, LINES), 1)[0];
        table.put(&neighbor, &identity(500)).expect("an identity");
        table.remove(&neighbor).expect("removed");
        assert!(!is_found(machine, zero), "what a free way still says is nobody's");
        table.put(&zero, &identity(500)).expect("an identity");
        assert!(is_found(machine, zero));
        table.remove(&zero).expect("removed");
        assert!(!is_found(machine, zero));
    });
}

#[test]
fn lines_say_what_the_table_holds_whatever_was_in_them() {
    with_ways(|machine| {
        let scene = machine.scene();
        let maps = scene.maps;
        let mut known: BTreeMap<V4, Identity> = maps.v4.identities.all().expect("read").into_iter().collect();
        for (line, count) in [(3, 0), (4, 1), (5, IDENTITY_WAYS), (6, IDENTITY_WAYS + 1), (8, 2)] {
            for address in neighbors(line, count) {
                // All the same, so that an address that is there twice says what is right both times.
                maps.v4.identities.put(&address, &identity(600)).expect("an identity");
                known.insert(address, identity(600));
            }
        }
        let wanted = |line: u32| known.iter().filter(move |(address, _)| home(**address, LINES) == line).count();
        let is_right = |index: u32| {
            let found = line(machine, index);
            let there: Vec<_> =
                found.addresses.into_iter().zip(found.identities).filter(|(a, _)| *a != V4(0)).collect();
            let count = wanted(index);
            assert_eq!(there.len(), count.min(IDENTITY_WAYS), "line {index}: {found:?}");
            for (address, said) in there {
                assert_eq!(known.get(&address), Some(&own(said)), "line {index}: {found:?}");
            }
            let state = found.identities[0].flags;
            assert_eq!(state & identity_flags::MORE != 0, count > IDENTITY_WAYS, "line {index}: {found:?}");
            assert_eq!(state & identity_flags::CHANGE, 0, "line {index}: {found:?}");
        };
        // Of a daemon that died, of another build, or by chance.
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for round in 0..20 {
            for index in 0..LINES {
                let mut line = line(machine, index);
                for way in 0..IDENTITY_WAYS {
                    match draw() % 6 {
                        0 => line.addresses[way] = V4(0),
                        1 => line.addresses[way] = V4(draw() as u32),
                        2 => line.identities[way].identity ^= 1,
                        3 => line.identities[way].flags ^= (draw() as u16) & identity_flags::LINE,
                        4 => line.addresses[way] = line.addresses[(way + 1) % IDENTITY_WAYS],
                        _ => {}
                    }
                }
                put_line(machine, index, line);
            }
            maps.v4.identities.rebuild().expect("rebuilt");
            (0..LINES).for_each(is_right);
            assert!(known.iter().all(|(address, known)| known.flags != 0 || is_found(machine, *address)), "{round}");
        }
    });
}

#[test]
fn nothing_is_missed_while_it_changes() {
    with_ways(|machine| {
        let scene = machine.scene();
        let maps = scene.maps;
        let addresses = neighbors(11, 2);
        let address = addresses[0];
        maps.v4.identities.put(&address, &identity(500)).expect("an identity");
        assert!(is_found(machine, address));
        let asked = tcp(NETS[0].workload(), (std::net::Ipv4Addr::from(address.octets()), 80).into()).bytes();
        let found = machine.run_uncounted(WorkloadIngress, &asked);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                let mut changes = 0_u32;
                while !is_over.load(Ordering::Relaxed) {
                    changes += 1;
                    // Another number, and a neighbor that comes and goes.
                    maps.v4.identities.put(&address, &identity(500 + changes % 2)).expect("an identity");
                    maps.v4.identities.put(&addresses[1], &identity(502)).expect("an identity");
                    maps.v4.identities.remove(&addresses[1]).expect("removed");
                }
                changes
            });
            let end = Instant::now() + Duration::from_secs(1);
            let mut runs = 0;
            while Instant::now() < end || runs < 100 {
                let outcome = machine.run_uncounted(WorkloadIngress, &asked);
                if outcome != found {
                    is_over.store(true, Ordering::Relaxed);
                }
                assert_eq!(outcome, found, "after {runs}");
                runs += 1;
            }
            is_over.store(true, Ordering::Relaxed);
            let changes = changes.join().expect("no panic");
            assert!(changes > 10, "{runs} packets, {changes} changes");
        });
    });
}
