//! Sixty-four BGP speakers in a network that loses, delays and cuts, from a seed.
//!
//! The speakers are the real ones of crate `bgp`: sessions, codec, tables. What is made up is the network, time, and the
//! driver that carries octets (`world.rs`, `tcp.rs`). Faults follow each other (`faults.rs`): links that carry nothing with
//! and without anybody noticing, connections that are reset, speakers that restart with and without a last word, prefixes
//! that come and go, operators that reset sessions and ask for routes again; every timer is late by a time of its own. Then
//! everything is mended. There is one result that all seeds must reach (`topology.rs`), and then nothing may change.
//!
//! Beside the best paths, every neighbor must have exactly what it is told (Adj-RIB-Out against Adj-RIB-In).

mod faults;
mod tcp;
mod topology;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use ::bgp::{
    Asn, PeerId,
    family::{V4, V6},
    rib::{Cursor, PathView, Standing, Stored},
    session::{Session, State},
    wire::attributes::Attributes,
};

use faults::CHAOS;
use topology::{SPEAKERS, asn, prefix, prefix6};
use world::{Event, World};

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;
/// How long the sessions form before the first fault.
const FORMING: Duration = Duration::from_secs(20);
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

fn run(seed: u64) -> Outcome {
    let mut world = World::new(seed);
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
        if let Some(difference) = difference(&world).or_else(|| neighbors_differ(&world)) {
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
        }
    }
    (0..SPEAKERS).find_map(|origin| {
        world.topology.expected(origin).find_map(|(speaker, path)| {
            best_differs(world, speaker, prefix(origin), path)
                .or_else(|| best_differs(world, speaker, prefix6(origin)?, path))
        })
    })
}

fn best_differs<P: Stored>(world: &World, speaker: usize, prefix: P, expected: &[Asn]) -> Option<String> {
    let rib = world.nodes[speaker].speaker.as_ref()?.rib();
    let views = rib.explain(prefix);
    let best: Vec<&PathView> = views.iter().filter(|view| view.standing == Standing::Best).collect();
    let [best] = best.as_slice() else {
        return Some(format!("{speaker} has {} best paths to {prefix}", best.len()));
    };
    if views.iter().any(|view| view.stale) {
        return Some(format!("{speaker} has a stale path to {prefix}"));
    }
    let found = as_path(&best.received);
    let local = best.peer == PeerId::LOCAL;
    (found != expected || local != expected.is_empty())
        .then(|| format!("{speaker} has {found:?} to {prefix} and not {expected:?}"))
}

fn as_path(attributes: &[u8]) -> Vec<Asn> {
    Attributes(attributes).as_path().numbers().collect()
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
            outcomes.push(run(seed));
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
    let (one, two) = (run(7), run(7));
    assert_eq!((one.established, one.healed_in, one.failure), (two.established, two.healed_in, two.failure));
}
