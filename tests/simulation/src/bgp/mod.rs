//! Sixty-four BGP speakers in a network that loses, delays and cuts, from a seed.
//!
//! The speakers are the real ones of crate `bgp`: sessions, codec, tables. What is made up is the network, time, and the
//! driver that carries octets (`world.rs`, `tcp.rs`). Faults follow each other (`faults.rs`): links that carry nothing with
//! and without anybody noticing, octets that come late because they were lost once, connections that are reset, speakers that
//! restart with and without a last word and ask for their routes back, prefixes that come and go, operators that reset
//! sessions and ask for routes again; every timer is late by a time of its own, and some sessions are looked at out of turn.
//! Then everything is mended. There is one result that all seeds must reach (`topology.rs`), and then nothing may change.
//!
//! Beside the best paths, every neighbor must have exactly what it is told (Adj-RIB-Out against Adj-RIB-In).
//! `sabotage.rs` makes mistakes on purpose, and each must be found.

mod faults;
mod sabotage;
mod tcp;
mod topology;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use ::bgp::{
    Asn, Family, PeerId,
    family::{V4, V6},
    rib::{Cursor, Standing, Stored},
    session::{Session, State},
    wire::attributes::Attributes,
};

use faults::CHAOS;
use sabotage::Sabotage;
use topology::{LISTENERS, SPEAKERS, asn, is_listener, prefix, prefix6};
use world::{Event, World};

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;
/// Within this time the sessions form before the first fault: an attempt that meets another one is made again.
const FORMING: Duration = Duration::from_secs(120);
/// Within this time after the last repair everybody must have the right paths: an OPEN is awaited for four minutes, and a
/// session that failed often waits for two.
const HEALING: Duration = Duration::from_secs(600);
/// So long a dead connection can go unnoticed: the hold time, and how late its timer is.
const UNNOTICED: Duration = Duration::from_secs(31);
/// How long nothing may change then: longer than a hold time.
const QUIET: Duration = Duration::from_secs(35);

#[derive(Debug)]
struct Outcome {
    failure: Option<String>,
    established: u64,
    healed_in: Duration,
}

fn run(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    let mut world = World::new(seed, sabotage);
    let mut healed_in = Duration::ZERO;
    converge(&mut world, FORMING);
    world.chaos_until = world.agenda.now + CHAOS;
    world.agenda.after(Duration::ZERO, Event::Fault);
    let end = world.chaos_until;
    if world.run_until(end) {
        world.heal();
        let begun = world.agenda.now;
        world.run_until(begun + UNNOTICED);
        converge(&mut world, HEALING);
        healed_in = world.agenda.now - begun;
        let before = world.established;
        let end = world.agenda.now + QUIET;
        world.run_until(end);
        if world.established != before {
            world.fail(format!("{} sessions were established anew where nothing happens", world.established - before));
        }
        let difference = difference(&world).or_else(|| neighbors_differ(&world)).or_else(|| listeners_differ(&world));
        if let Some(difference) = difference {
            world.fail(format!("what was reached did not last: {difference}"));
        }
    }
    Outcome { failure: world.failure, established: world.established, healed_in }
}

fn converge(world: &mut World, within: Duration) {
    let deadline = world.agenda.now + within;
    while world.agenda.now < deadline && world.failure.is_none() {
        let next = world.agenda.now + Duration::from_secs(5);
        world.run_until(next);
        if difference(world).is_none() {
            return;
        }
    }
    if let Some(difference) = difference(world) {
        world.fail(format!("not as it should be after {within:?}: {difference}"));
    }
}

/// What is not as it should be.
fn difference(world: &World) -> Option<String> {
    for (speaker, node) in world.nodes.iter().enumerate() {
        let Some(it) = &node.speaker else {
            return Some(format!("{speaker} does not run"));
        };
        for (neighbor, peer) in &node.peers {
            let state = it.session(*peer).map(Session::state);
            if state != Some(State::Established) {
                return Some(format!("{speaker} has no session with {neighbor}: {state:?}"));
            }
            if Family::ALL.iter().any(|family| it.rib().counts(*peer, *family).stale > 0) {
                return Some(format!("{speaker} has stale paths of {neighbor}"));
            }
        }
    }
    (0..SPEAKERS).find_map(|origin| {
        world.topology.expected(origin).find_map(|(speaker, path)| {
            let who = (origin, speaker);
            best_differs(world, who, prefix(origin), path).or_else(|| best_differs(world, who, prefix6(origin)?, path))
        })
    })
}

fn best_differs<P: Stored>(
    world: &World,
    (origin, speaker): (usize, usize),
    prefix: P,
    expected: &[Asn],
) -> Option<String> {
    let rib = world.nodes[speaker].speaker.as_ref()?.rib();
    let Some(best) = rib.best(prefix) else {
        return Some(format!("{speaker} has no path to {prefix}"));
    };
    let found = best.received.as_path();
    let local = best.peer == PeerId::LOCAL;
    // Among several paths of equal length from one neighbor, any may be the best one.
    let is_right = if is_listener(speaker) {
        found.numbers().count() == expected.len()
    } else {
        found.numbers().eq(expected.iter().copied())
    };
    (!is_right || local != (origin == speaker))
        .then(|| format!("{speaker} has {:?} to {prefix} and not {expected:?}", found.numbers().collect::<Vec<_>>()))
}

fn as_path(attributes: &[u8]) -> Vec<Asn> {
    Attributes(attributes).as_path().numbers().collect()
}

/// Those that hear several paths hear as many as there are.
fn listeners_differ(world: &World) -> Option<String> {
    let mut most = 0;
    for (listener, from, max) in LISTENERS {
        let (teller, hearer) = (&world.nodes[from], &world.nodes[listener]);
        let (told, heard) = (teller.speaker.as_ref()?.rib(), hearer.speaker.as_ref()?.rib());
        let (to, by) = (*teller.peers.get(&listener)?, *hearer.peers.get(&from)?);
        for origin in (0..SPEAKERS).filter(|origin| *origin != listener) {
            let is_told = |standing| !matches!(standing, Standing::Rejected(_));
            let views = told.explain(prefix(origin));
            let mut wanted = views.iter().filter(|view| is_told(view.standing) && view.peer != to).count();
            if max > 0 {
                wanted = wanted.min(usize::from(max));
            }
            let found = heard.explain(prefix(origin)).iter().filter(|view| view.peer == by).count();
            if found != wanted {
                return Some(format!("{listener} hears {found} paths to {} and not {wanted}", prefix(origin)));
            }
            most = most.max(found);
        }
    }
    (most < 2).then(|| "nobody hears several paths".to_owned())
}

/// What a speaker tells a neighbor is what the neighbor has from it.
fn neighbors_differ(world: &World) -> Option<String> {
    for (one, other) in world.topology.links() {
        for (from, to) in [(one, other), (other, one)] {
            let difference = told_differs::<V4>(world, from, to).or_else(|| told_differs::<V6>(world, from, to));
            if let Some(difference) = difference {
                return Some(format!("{to} does not have what {from} (AS {}) tells it: {difference}", asn(from)));
            }
        }
    }
    None
}

fn told_differs<P: Stored>(world: &World, from: usize, to: usize) -> Option<String> {
    let (teller, hearer) = (&world.nodes[from], &world.nodes[to]);
    let (told, heard) = (teller.speaker.as_ref()?.rib(), hearer.speaker.as_ref()?.rib());
    let advertised = told.advertised::<P>(*teller.peers.get(&to)?, Cursor::default(), usize::MAX);
    let received = heard.received::<P>(*hearer.peers.get(&from)?, Cursor::default(), usize::MAX);
    let mut told: Vec<_> = advertised.entries.into_iter().map(|it| (it.prefix, as_path(&it.attributes))).collect();
    let mut heard: Vec<_> = received.entries.into_iter().map(|it| (it.prefix, as_path(&it.received))).collect();
    told.sort();
    heard.sort();
    (told != heard).then(|| format!("{} prefixes told, {} heard", told.len(), heard.len()))
}

/// Runs seeds on all processors; failures come first.
fn run_all(seeds: std::ops::Range<u64>) -> Vec<Outcome> {
    let next = AtomicU64::new(seeds.start);
    let worker = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return outcomes;
            }
            outcomes.push(run(seed, None));
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    outcomes.sort_by_key(|outcome| outcome.failure.is_none());
    outcomes
}

#[test]
fn bgp_every_seed_reaches_the_same_tables() {
    let (first, count) = match crate::number("MESHD_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, crate::number("MESHD_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    let begun = Instant::now();
    let outcomes = run_all(first..first + count);
    let failures: Vec<&str> = outcomes.iter().filter_map(|outcome| outcome.failure.as_deref()).collect();
    let established: u64 = outcomes.iter().map(|outcome| outcome.established).sum();
    let slowest = outcomes.iter().map(|outcome| outcome.healed_in).max().unwrap_or_default();
    println!(
        "{count} seeds, {established} sessions established, healed in {slowest:?} at most, {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(failures.is_empty(), "{} of {count} seeds failed; the first: {}", failures.len(), failures[0]);
}

#[test]
fn bgp_the_same_seed_gives_the_same_run() {
    let (one, two) = (run(7, None), run(7, None));
    assert_eq!((one.established, one.healed_in, one.failure), (two.established, two.healed_in, two.failure));
}

/// A check that cannot fail proves nothing: each mistake made on purpose must be found, by a check meant for it.
#[test]
fn bgp_mistakes_made_on_purpose_are_found() {
    for (sabotage, expected) in [
        (Sabotage::LoseUpdates, "not as it should be"),
        (Sabotage::SwapPieces, "not as it should be"),
        (Sabotage::DeafTimers, "not as it should be"),
        (Sabotage::ForgetOrigin, "has no path to"),
        (Sabotage::NoReflection, "and not"),
        (Sabotage::WrongIdentifier, "and not"),
        (Sabotage::OnePath, "hears 1 paths"),
        (Sabotage::KeepConnections, "uses"),
    ] {
        let found = (0..6).find_map(|seed| run(seed, Some(sabotage)).failure);
        let found = found.unwrap_or_else(|| panic!("{sabotage:?} was not found"));
        assert!(found.contains(expected), "{sabotage:?} was found by another check: {found}");
    }
}
