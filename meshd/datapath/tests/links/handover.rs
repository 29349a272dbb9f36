//! Resets that are held back while connections go over to maps of another size: when that begins, for how long, and what does not
//! prolong it.

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use meshd_abi::{Counter, LAYOUT_VERSION, Reason};
use meshd_datapath::{Program, Programs, shape::Sizes, ticks};

use super::{LINK, Pair, TC, in_namespaces, small};

/// Ticks that resets are held.
const HELD: u32 = 4;
/// Longer than they are by far.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an answer of a neighbor may take.
const BRIEF: Duration = Duration::from_millis(300);

/// The tick until which a generation of maps has resets held.
pub(super) fn until(pair: &Pair, generation: &str) -> u32 {
    let pin = pair.pins().join(generation).join("HANDOVER");
    let map = Map::from_map_data(MapData::from_pin(pin).expect("a map")).expect("of a kind that is known");
    let map: Array<_, u32> = map.try_into().expect("an array");
    map.get(&0, 0).expect("an element")
}

/// Does something, and demands that resets are held from then on.
pub(super) fn assert_holds<T>(pair: &Pair, generation: &str, act: impl FnOnce() -> T) -> T {
    let before = ticks();
    let outcome = act();
    let (until, took) = (until(pair, generation), ticks().wrapping_sub(before));
    let from = until.wrapping_sub(HELD).wrapping_sub(before);
    assert!(from <= took, "until {until}, which began at {before} and took {took} ticks");
    outcome
}

fn wait(mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Whatever is held from now on is held for longer.
fn wait_for_a_tick() {
    let now = ticks();
    assert!(wait(|| ticks() != now), "the clock stands still");
}

/// How the peer answers who asks a port that nobody has.
fn refusal() -> ErrorKind {
    let to = SocketAddr::from(([192, 0, 2, 2], 9));
    TcpStream::connect_timeout(&to, BRIEF).expect_err("nobody listens").kind()
}

fn held(programs: &Programs) -> u64 {
    let copies = programs.maps.counters.get(Reason::ResetHeld as u32).expect("read the counters");
    copies.into_iter().fold(Counter::default(), Counter::plus).packets
}

#[test]
fn resets_are_held_when_connections_go_over_and_no_longer() {
    in_namespaces(|pair| {
        let [first, second] = [format!("v{LAYOUT_VERSION}"), format!("v{LAYOUT_VERSION}-1")];
        let mut programs = pair.load();
        for program in TC {
            programs.attach(program, LINK).expect("attach");
        }
        programs.settle().expect("settle");
        assert_eq!(until(pair, &first), 0, "there was nobody before");
        assert_eq!(refusal(), ErrorKind::ConnectionRefused);
        drop(programs);

        let mut programs = Programs::load(&pair.pins(), &Sizes { connections: 4_096, ..small() }).expect("load");
        assert_eq!(until(pair, &second), 0, "the old programs know their connections");
        assert_holds(pair, &second, || programs.attach(Program::UplinkIngress, LINK).expect("adopt"));
        let begun = until(pair, &second);
        wait_for_a_tick();
        for program in TC {
            programs.attach(program, LINK).expect("adopt");
        }
        assert_eq!(until(pair, &second), begun, "the next program takes the connections over as well");

        // What came through the last of the old programs is taken over late. Something keeps their maps from being removed.
        let stuck = pair.pins().join(&first).join("stuck");
        fs::create_dir(&stuck).expect("a folder");
        assert_holds(pair, &second, || programs.settle().expect_err("they are not removed"));
        let settled = until(pair, &second);
        assert_ne!(settled, begun);
        assert_eq!((refusal(), held(&programs)), (ErrorKind::TimedOut, 1));
        wait_for_a_tick();
        programs.settle().expect_err("nor are they now");
        assert_eq!(until(pair, &second), settled, "who tries again does not hold them for longer");
        assert!(wait(|| refusal() == ErrorKind::ConnectionRefused), "until {settled}, and now it is {}", ticks());
        assert!(ticks().wrapping_sub(settled).cast_signed() >= 0, "{} is before {settled}", ticks());
        fs::remove_dir(stuck).expect("removed");
        programs.settle().expect("settle");
        assert_eq!(until(pair, &second), settled);
        assert!(!pair.pins().join(first).exists());
        programs.remove().expect("remove");
    });
}

#[test]
fn who_shares_the_connections_holds_no_resets() {
    in_namespaces(|pair| {
        let mut programs = pair.load();
        programs.attach(Program::UplinkIngress, LINK).expect("attach");
        drop(programs);
        let mut programs = Programs::load(&pair.pins(), &Sizes { services: 512, ..small() }).expect("load");
        for program in TC {
            programs.attach(program, LINK).expect("attach");
        }
        programs.settle().expect("settle");
        assert_eq!(until(pair, &format!("v{LAYOUT_VERSION}-1")), 0);
        assert_eq!((refusal(), held(&programs)), (ErrorKind::ConnectionRefused, 0));
        programs.remove().expect("remove");
    });
}
