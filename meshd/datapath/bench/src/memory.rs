//! What a load costs that no cache of the processor's own has: with many connections, and with first packets, it is most of a figure, and
//! it differs from hour to hour on a machine that is shared.

use std::{collections::BTreeMap, hint::black_box, time::Instant};

use crate::report::{Better, Figure, Machine, NO_TARGET};

/// Lines of memory: more than a second cache has.
const LINES: usize = 16 << 20 >> 6;
const LOADS: usize = 300_000;
const ROUNDS: usize = 15;

/// A line of a cache, with the number of the one that is loaded after it.
#[repr(align(64))]
#[derive(Clone)]
struct Line(usize);

/// Loads lines in an order that nobody can guess, each after the one before it.
pub(crate) fn measure(machine: &Machine) -> Figure {
    let mut order: Vec<usize> = (0..LINES).collect();
    let mut random = 7_606_u64;
    for at in (1..LINES).rev() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, (random >> 33) as usize % (at + 1));
    }
    let mut lines = vec![Line(0); LINES];
    for (at, line) in order.iter().enumerate() {
        lines[*line].0 = order[(at + 1) % LINES];
    }
    let mut at = order[0];
    let runs: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            for _ in 0..LOADS {
                at = lines[black_box(at)].0;
            }
            begin.elapsed().as_nanos() as f64 / LOADS as f64
        })
        .collect();
    let ours = runs.iter().copied().fold(f64::INFINITY, f64::min);
    println!("  memory-line: {ours:.1} ns");
    Figure {
        name: "memory-line".into(),
        unit: "ns",
        better: Better::Lower,
        ours,
        runs,
        peers: BTreeMap::new(),
        unfinished: BTreeMap::new(),
        limit: None,
        target: NO_TARGET.into(),
        met: true,
        machine: machine.clone(),
    }
}
