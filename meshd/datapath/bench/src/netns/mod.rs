//! Real packets between namespaces: what a service, masquerade and a tunnel cost next to what the kernel has for them.
//!
//! Two processes' worth of threads talk through one or two routers, all on one processor, so that what a packet costs anywhere is
//! what there is less of. Ways take turns ([`ways`]): a short round of each, many rounds, and the rate of a way is what one round in
//! twenty reaches, because whatever else the machine does only slows. What is counted is connections with one octet and a reset, and
//! octets that go there and back ([`traffic`]).

mod place;
mod traffic;
mod tunnel;
mod ways;

use std::{collections::BTreeMap, thread};

use anyhow::Context as _;
use place::Place;
use traffic::{Rates, Talk};
use ways::{MESH, ROUTED, Way};

use crate::report::{Better, Figure, Machine, NO_TARGET};

/// Rounds of every way.
const ROUNDS: usize = 60;
/// One round in so many is as fast as the rate of a way says.
const FAST_ONE_IN: usize = 20;

/// A ratio of two ways with a name of its own.
struct Ratio {
    name: &'static str,
    ours: &'static str,
    peer: &'static str,
    of: fn(&Rates) -> f64,
    /// Least that is wanted.
    target: Option<f64>,
}

const fn connects(name: &'static str, ours: &'static str, peer: &'static str, target: Option<f64>) -> Ratio {
    Ratio { name, ours, peer, of: |rates| rates.connects, target }
}

const fn trips(name: &'static str, ours: &'static str, peer: &'static str) -> Ratio {
    Ratio { name, ours, peer, of: |rates| rates.round_trips, target: None }
}

/// What is compared through one router.
const ROUTED_RATIOS: &[Ratio] = &[
    connects("netns-clusterip-connects-of-routing", "tc", "routing", Some(0.95)),
    connects("netns-clusterip-connects-of-nft", "tc", "nft-dnat-1000", Some(1.12)),
    connects("netns-clusterip-connects-of-nft-1", "tc", "nft-dnat-1", None),
    connects("netns-clusterip-connects-of-iptables", "tc", "iptables-dnat-1000", Some(1.5)),
    connects("netns-clusterip-far-connects-of-routing", "tc-far", "routing", Some(0.95)),
    connects("netns-clusterip-far-connects-of-nft", "tc-far", "nft-dnat-1000", Some(1.12)),
    trips("netns-clusterip-trips-of-routing", "tc", "routing"),
    trips("netns-clusterip-far-trips-of-routing", "tc-far", "routing"),
    trips("netns-clusterip-trips-of-nft", "tc", "nft-dnat-1000"),
    connects("netns-masquerade-connects-of-nft", "tc-masquerade", "nft-masquerade", Some(1.0)),
    connects("netns-masquerade-connects-of-routing", "tc-masquerade", "routing", None),
    trips("netns-masquerade-trips-of-nft", "tc-masquerade", "nft-masquerade"),
];

/// The same between two nodes.
const MESH_RATIOS: &[Ratio] = &[
    connects("netns-vxlan-device-connects-of-routing", "vxlan-device", "mesh-routing", None),
    trips("netns-vxlan-device-trips-of-routing", "vxlan-device", "mesh-routing"),
    connects("netns-tunnel-connects-of-vxlan-device", "own-vxlan-fast", "vxlan-device", Some(1.2)),
    connects("netns-tunnel-geneve-connects-of-vxlan-device", "own-geneve-fast", "vxlan-device", Some(1.2)),
    connects("netns-tunnel-by-the-stack-connects-of-vxlan-device", "own-vxlan", "vxlan-device", None),
    connects("netns-tunnel-connects-of-routing", "own-vxlan-fast", "mesh-routing", None),
    trips("netns-tunnel-trips-of-vxlan-device", "own-vxlan-fast", "vxlan-device"),
];

/// Measures everything whose name contains `only`. The calling thread is in mount and network namespaces of the benchmark's own.
pub(crate) fn measure(only: Option<&str>, machine: &Machine) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (ways, ratios, nodes) in [(ROUTED, ROUTED_RATIOS, 1), (MESH, MESH_RATIOS, 2)] {
        let wanted: Vec<&Ratio> =
            ratios.iter().filter(|ratio| only.is_none_or(|only| ratio.name.contains(only))).collect();
        if wanted.is_empty() {
            continue;
        }
        // Namespaces are those of a thread, and this one keeps its own.
        let rates = thread::scope(|scope| scope.spawn(|| run(ways, &wanted, nodes)).join());
        let rates = rates.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        for (way, rounds) in &rates {
            let (connects, trips) = (rate(rounds, |rates| rates.connects), rate(rounds, |rates| rates.round_trips));
            println!("  {way}: {connects:.0} connections a second, {trips:.0} round trips");
        }
        figures.extend(wanted.into_iter().filter_map(|ratio| figure(ratio, &rates, machine)));
    }
    Ok(figures)
}

/// The rate of a way.
fn rate(rounds: &[Rates], of: impl Fn(&Rates) -> f64) -> f64 {
    let mut rates: Vec<f64> = rounds.iter().map(of).collect();
    rates.sort_by(|one, other| other.total_cmp(one));
    rates[rates.len() / FAST_ONE_IN]
}

type All = BTreeMap<&'static str, Vec<Rates>>;

/// Runs every way that a ratio names, in turns.
fn run(ways: &[&'static dyn Way], ratios: &[&Ratio], nodes: usize) -> anyhow::Result<All> {
    let mut place = Place::new(nodes)?;
    let talk = Talk::new(&place)?;
    let is_named = |way: &&&'static dyn Way| {
        let name = way.name();
        ratios.iter().any(|ratio| ratio.ours == name || ratio.peer == name)
    };
    let ways: Vec<_> = ways.iter().filter(is_named).filter(|way| way.is_there()).collect();
    let mut rates = All::new();
    // The first round warms everything up.
    for round in 0..=ROUNDS {
        for way in &ways {
            way.begin(&mut place).with_context(|| format!("failed to set {} up", way.name()))?;
            let measured = talk.measure(way.target()).with_context(|| format!("no traffic by {}", way.name()));
            way.end(&mut place)?;
            if round > 0 {
                rates.entry(way.name()).or_default().push(measured?);
            } else {
                measured?;
            }
        }
    }
    talk.end()?;
    place.end()?;
    Ok(rates)
}

/// The ratio of two ways' rates, and beside it those of single rounds; `None` when one of the ways is not there.
fn figure(ratio: &Ratio, rates: &All, machine: &Machine) -> Option<Figure> {
    let (ours, peer) = (rates.get(ratio.ours)?, rates.get(ratio.peer)?);
    let runs: Vec<f64> = ours.iter().zip(peer).map(|(ours, peer)| (ratio.of)(ours) / (ratio.of)(peer)).collect();
    let ours = rate(ours, ratio.of) / rate(peer, ratio.of);
    Some(Figure {
        name: ratio.name.into(),
        unit: ratio.peer,
        better: Better::Higher,
        ours,
        runs,
        peers: BTreeMap::from([(ratio.peer, 1.0)]),
        unfinished: BTreeMap::new(),
        limit: None,
        target: ratio.target.map_or(NO_TARGET.into(), |target| format!("at least {target}")),
        met: ratio.target.is_none_or(|target| ours >= target),
        machine: machine.clone(),
    })
}
