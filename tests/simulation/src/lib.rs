//! Fifty nodes in five clusters, with everything that can go wrong, from a seed.
//!
//! The parts under test are the real ones: readers, observed tables, derivation, planner and codec. Around them are a
//! store, a kernel and time that obey one number: the same seed gives the same run, on every machine. For some minutes of
//! virtual time faults follow each other (`faults.rs`); after every step the invariants are checked (`invariants.rs`).
//! Then everything is mended, every node must reach the routes of a small reference model, and then be quiet.
//!
//! One event (`world.rs`) is one step: a message arrives over a connection (`connections.rs`), a node (`node.rs`) hears,
//! derives, plans and acts on its kernel (`kernel.rs`), a cluster writes to its store (`clusters.rs`, `store.rs`), a
//! hostile one writes what it should not (`hostile.rs`), or something breaks or is mended. Invariants that say what a step
//! may do are checked at that step for the node it concerns; what must be reached in the end is compared for all nodes.
//! `sabotage.rs` makes mistakes on purpose, and each must be found.
//!
//! A failure prints its seed, the step, the last events and the command that runs that seed again. `MESHD_SIM_SEED=N` runs
//! one seed, `MESHD_SIM_SEEDS=N` runs the first N, `MESHD_SIM_LINES=N` prints more events.
//!
//! What is ugly: the wiring of a node repeats what the daemon's tasks do around the pure core, and has to follow them.

#![cfg(test)]
#![forbid(unsafe_code)]

mod bgp;
mod clock;
mod clusters;
mod connections;
mod faults;
mod hostile;
mod invariants;
mod kernel;
mod node;
mod sabotage;
mod store;
mod world;

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use sabotage::Sabotage;
use world::{Event, NODES, World};

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;
/// How long the mesh forms before the first fault.
const FORMING: Duration = Duration::from_secs(20);
/// How long faults go on in most runs.
const CHAOS: Duration = Duration::from_secs(60);
/// How long in every tenth: long enough for leases, silent heartbeats and slow clusters to run out.
const LONG_CHAOS: Duration = Duration::from_secs(300);
/// Within this time after the last repair everybody must have the right routes. A store that lost its data waits two
/// minutes for its nodes, and a reader pauses for at most half a minute.
const HEALING: Duration = Duration::from_secs(240);
/// How long everybody must then do nothing.
const QUIET: Duration = Duration::from_secs(70);

/// What a run was like.
#[derive(Debug, Default)]
struct Outcome {
    failure: Option<String>,
    actions: u64,
    refusals: BTreeSet<String>,
}

/// One run from its seed.
fn run(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    let mut world = World::new(seed, sabotage);
    let converges = |world: &mut World, within: Duration| {
        let deadline = world.agenda.now + within;
        while world.agenda.now < deadline && world.failure.is_none() {
            let next = world.agenda.now + Duration::from_secs(5);
            world.run_until(next);
            if (0..NODES).all(|node| world.difference(node).is_none()) {
                return;
            }
        }
        if let Some(difference) = (0..NODES).find_map(|node| world.difference(node)) {
            world.fail(format!("not as it should be after {within:?}: {difference}"));
        }
    };
    converges(&mut world, FORMING);
    let chaos = if seed.is_multiple_of(10) { LONG_CHAOS } else { CHAOS };
    world.chaos_until = world.agenda.now + chaos;
    world.agenda.after(Duration::ZERO, Event::Fault);
    let end = world.chaos_until;
    if world.run_until(end) {
        world.heal();
        converges(&mut world, HEALING);
        let before = world.actions;
        let end = world.agenda.now + QUIET;
        world.run_until(end);
        if world.actions != before {
            world.fail(format!("{} actions on a mesh where nothing happens", world.actions - before));
        }
        if let Some(difference) = (0..NODES).find_map(|node| world.difference(node)) {
            world.fail(format!("what was reached did not last: {difference}"));
        }
    }
    Outcome { failure: world.failure, actions: world.actions, refusals: world.refusals_seen }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

/// Runs seeds on all processors; returns every outcome, failures first.
fn run_all(seeds: std::ops::Range<u64>) -> Vec<Outcome> {
    let next = AtomicU64::new(seeds.start);
    let worker = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return outcomes;
            }
            let outcome = run(seed, None);
            if let Some(failure) = &outcome.failure {
                println!("{}", failure.lines().next().unwrap_or_default());
            }
            outcomes.push(outcome);
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
fn every_seed_keeps_the_invariants_and_heals() {
    let (first, count) = match number("MESHD_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("MESHD_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    let begun = Instant::now();
    let outcomes = run_all(first..first + count);
    let failures: Vec<&str> = outcomes.iter().filter_map(|outcome| outcome.failure.as_deref()).collect();
    let actions: u64 = outcomes.iter().map(|outcome| outcome.actions).sum();
    println!("{count} seeds, {actions} kernel actions, {:.1} s", begun.elapsed().as_secs_f64());
    assert!(failures.is_empty(), "{} of {count} seeds failed; the first: {}", failures.len(), failures[0]);
    let seen: BTreeSet<&str> = outcomes.iter().flat_map(|outcome| &outcome.refusals).map(String::as_str).collect();
    let missing: Vec<&&str> = hostile::REFUSALS.iter().filter(|refusal| !seen.contains(**refusal)).collect();
    assert!(count < SEEDS || missing.is_empty(), "refusals no seed met: {missing:?}; met: {seen:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (one, two) = (run(7, None), run(7, None));
    assert_eq!((one.actions, one.failure, one.refusals), (two.actions, two.failure, two.refusals));
}

/// A check that cannot fail proves nothing: each mistake made on purpose must be found, by the check meant for it.
#[test]
fn mistakes_made_on_purpose_are_found() {
    for (sabotage, expected) in [
        (Sabotage::DeleteFirst, "lost its route to"),
        (Sabotage::SweepEarly, "lost its route to"),
        (Sabotage::PruneUnheard, "lost its route to"),
        (Sabotage::ForgetSilent, "lost its route to"),
        (Sabotage::AcceptEverything, "something nobody honest wrote"),
        (Sabotage::TouchForeign, "touched something foreign"),
        (Sabotage::ForgetOwn, "routes its own prefix"),
        (Sabotage::DumpOnce, "not as it should be"),
    ] {
        let found = (0..12).find_map(|seed| run(seed, Some(sabotage)).failure);
        let found = found.unwrap_or_else(|| panic!("{sabotage:?} was not found"));
        assert!(found.contains(expected), "{sabotage:?} was found by another check: {found}");
    }
}
