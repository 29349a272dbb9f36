//! BGP daemons with tables of the Internet's shape: what receiving, choosing and re-advertising costs.
//!
//! Two network namespaces of a lab: the daemon in one, and in the other one a generator that is sender and sink in one process, with
//! a codec of its own ([`tests::bgp::wire`]). The generator connects to the daemon from one or many addresses behind one link, writes a
//! prepared stream ([`tests::bgp::stream`]), and counts behind another link what comes out. Times are walls from the first octet
//! written; processor time and memory are those of the daemon's processes alone.
//!
//! Every daemon that is installed takes part, in turn, in every round. The whole takes about a quarter of an hour; the environment
//! makes it shorter:
//!
//! | variable | meaning |
//! |---|---|
//! | `BGP_SCENARIOS` | names of scenarios, or their beginnings: `table-200000,churn` |
//! | `BGP_DAEMONS` | `meshd,bird2` |
//! | `BGP_ROUNDS` | rounds instead of three |
//! | `BGP_LIMIT_S` | seconds that a daemon may take for a scenario, instead of 300 |
//!
//! A daemon that does not finish a scenario in that time is ended, is not asked again, and its place in the row says so. FRR is such
//! a one where each of 100 peers gets everything.
//!
//! GoBGP advertises each prefix by itself and takes minutes for a million, so there it is asked for 200,000 only, unless
//! `BGP_DAEMONS` names it.
//!
//! SIGINT and SIGTERM take down what is up before the program ends.

mod daemon;
mod fib;
mod interrupt;
mod limit;
mod ours;
mod scenario;

use std::{
    collections::BTreeMap,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::ensure;

use self::{
    daemon::{ALL, Daemon},
    interrupt::Guard,
    limit::Outcome,
    scenario::{Figures, Scenario},
};
use crate::report::{Better, Figure, Machine, NO_TARGET, Report, median};

const SCENARIOS: [Scenario; 7] = [
    Scenario::Table { prefixes: 200_000 },
    Scenario::Table { prefixes: 1_000_000 },
    Scenario::Fib { prefixes: 200_000 },
    Scenario::Overlap { peers: 16, prefixes: 50_000 },
    Scenario::Peers { peers: 100, prefixes: 10_000 },
    Scenario::Fanout { peers: 100, prefixes: 1_000 },
    Scenario::Churn { per_s: 10_000, seconds: 30 },
];
const ROUNDS: usize = 3;
/// Churn takes half a minute, however fast the daemon is.
const CHURN_ROUNDS: usize = 1;
/// More prefixes than this are too many for GoBGP.
const GOBGP_MAX: usize = 200_000;
/// The one that targets are ratios of.
const REFERENCE: Daemon = Daemon::Bird;

/// A target: scenario, figure, and the most it may be, as a multiple of the reference or as it is.
struct Target {
    scenario: &'static str,
    figure: &'static str,
    most: f64,
    of_reference: bool,
}

const fn of_reference(scenario: &'static str, figure: &'static str, most: f64) -> Target {
    Target { scenario, figure, most, of_reference: true }
}

const TARGETS: [Target; 9] = [
    of_reference("table-200000", "CPU, s", 1.0),
    of_reference("table-1000000", "CPU, s", 1.0),
    of_reference("table-1000000", "peak RSS, MiB", 1.3),
    of_reference("peers-100x10000", "CPU, s", 1.0),
    of_reference("churn-10000x30s", "CPU, s", 1.0),
    of_reference("fib-200000", "all at sink, s", 0.3),
    of_reference("fib-200000", "FIB full, s", 0.6),
    of_reference("fib-200000", "FIB empty, s", 0.9),
    Target { scenario: "overlap-16x50000", figure: "exported per prefix", most: 1.5, of_reference: false },
];

/// The choices of whoever runs this.
struct Choice {
    scenarios: Vec<Scenario>,
    daemons: Vec<Daemon>,
    rounds: Option<usize>,
    /// What a daemon may take for a scenario.
    limit: Duration,
    /// Whether the daemons were named.
    named: bool,
}

impl Choice {
    fn read() -> anyhow::Result<Self> {
        let list = |name: &str| -> Vec<String> {
            let value = std::env::var(name).unwrap_or_default();
            value.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let (scenarios, daemons) = (list("BGP_SCENARIOS"), list("BGP_DAEMONS"));
        for wanted in &scenarios {
            let known: Vec<String> = SCENARIOS.iter().map(|scenario| scenario.name()).collect();
            ensure!(
                known.iter().any(|name| name.starts_with(wanted)),
                "no scenario {wanted}; there are {}",
                known.join(", ")
            );
        }
        for wanted in &daemons {
            let known = ALL.map(Daemon::name);
            ensure!(known.contains(&wanted.as_str()), "no daemon {wanted}; there are {}", known.join(", "));
        }
        let has = |list: &[String], name: &str| {
            list.is_empty() || list.iter().any(|wanted| name.starts_with(wanted.as_str()))
        };
        Ok(Self {
            scenarios: SCENARIOS.into_iter().filter(|scenario| has(&scenarios, &scenario.name())).collect(),
            daemons: ALL.into_iter().filter(|daemon| has(&daemons, daemon.name())).collect(),
            rounds: std::env::var("BGP_ROUNDS").ok().map(|rounds| rounds.parse()).transpose()?,
            limit: limit::read()?,
            named: !daemons.is_empty(),
        })
    }

    /// The daemons that take part in a scenario; says who does not and why.
    fn daemons(&self, scenario: Scenario) -> Vec<Daemon> {
        let takes_part = |daemon: &Daemon| {
            let too_large = matches!(scenario, Scenario::Table { prefixes } if prefixes > GOBGP_MAX)
                || matches!(scenario, Scenario::Peers { .. });
            if !daemon.can(scenario.needs_fib()) {
                println!("  {}: {} is left out: not installed, or not made for this", scenario.name(), daemon.name());
                return false;
            }
            if *daemon == Daemon::GoBgp && too_large && !self.named {
                println!("  {}: gobgp is left out: it takes minutes; BGP_DAEMONS=gobgp asks for it", scenario.name());
                return false;
            }
            true
        };
        self.daemons.iter().copied().filter(takes_part).collect()
    }
}

/// Runs of one daemon, by figure.
type Runs = BTreeMap<&'static str, Vec<f64>>;

/// What came of a scenario, by daemon.
#[derive(Default)]
struct Results {
    runs: BTreeMap<&'static str, Runs>,
    /// Those that did not finish, and how long they had. They have no runs.
    unfinished: BTreeMap<&'static str, Duration>,
}

impl Results {
    fn add(&mut self, daemon: Daemon, outcome: Outcome<Figures>) {
        match outcome {
            Outcome::Done(figures) => {
                let of_daemon = self.runs.entry(daemon.name()).or_default();
                for (figure, value) in figures {
                    of_daemon.entry(figure).or_default().push(value);
                }
            }
            Outcome::NotDone(within) => {
                self.runs.remove(daemon.name());
                self.unfinished.insert(daemon.name(), within);
            }
        }
    }

    /// In words, by daemon.
    fn not_done(&self) -> BTreeMap<&'static str, String> {
        self.unfinished.iter().map(|(daemon, within)| (*daemon, not_done(*within))).collect()
    }
}

fn not_done(within: Duration) -> String {
    format!("not done within {} s", within.as_secs())
}

/// Measures every scenario with every daemon.
pub(crate) fn run() -> anyhow::Result<Report> {
    let choice = Choice::read()?;
    let guard = Guard::set()?;
    guard.unless_ending(measure(&choice))
}

fn measure(choice: &Choice) -> anyhow::Result<Report> {
    let machine = Machine::here();
    let mut report = Report::default();
    for &scenario in &choice.scenarios {
        let daemons = choice.daemons(scenario);
        let rounds = match scenario {
            Scenario::Churn { .. } => choice.rounds.unwrap_or(CHURN_ROUNDS),
            _ => choice.rounds.unwrap_or(ROUNDS),
        };
        let mut results = Results::default();
        for round in 1..=rounds {
            for &daemon in &daemons {
                if results.unfinished.contains_key(daemon.name()) {
                    continue;
                }
                print!("  {} round {round} of {rounds}: {:<6}", scenario.name(), daemon.name());
                std::io::stdout().flush()?;
                let begin = Instant::now();
                let outcome = scenario.measure(daemon, choice.limit)?;
                match &outcome {
                    Outcome::Done(figures) => println!("{}", line(figures, begin.elapsed())),
                    Outcome::NotDone(within) => println!(" {}", not_done(*within)),
                }
                results.add(daemon, outcome);
            }
        }
        report.0.extend(figures(scenario, &results, &machine));
    }
    Ok(report)
}

fn line(figures: &Figures, took: Duration) -> String {
    let words: Vec<String> = figures
        .iter()
        .map(|(name, value)| {
            let (what, unit) = split(name);
            let decimals = if *value < 100.0 { 2 } else { 0 };
            format!("{what} {value:.decimals$}{}{unit}", if unit.is_empty() { "" } else { " " })
        })
        .collect();
    format!(" {} ({:.0} s in all)", words.join(", "), took.as_secs_f64())
}

/// `CPU, s` as what and unit.
fn split(figure: &'static str) -> (&'static str, &'static str) {
    figure.split_once(", ").unwrap_or((figure, ""))
}

/// Ours beside the others; nothing when ours was not asked.
fn figures(scenario: Scenario, results: &Results, machine: &Machine) -> Vec<Figure> {
    let Results { runs, unfinished } = results;
    if unfinished.contains_key(Daemon::Meshd.name()) {
        return vec![rounds_done(scenario, results, machine)];
    }
    let Some(ours) = runs.get(Daemon::Meshd.name()) else { return Vec::new() };
    let others = || runs.iter().filter(|(daemon, _)| **daemon != Daemon::Meshd.name());
    let figure = |(name, values): (&&'static str, &Vec<f64>)| {
        let peers: BTreeMap<&'static str, f64> =
            others().filter_map(|(daemon, runs)| Some((*daemon, median(runs.get(name)?)))).collect();
        let (what, unit) = split(name);
        let value = median(values);
        let target = TARGETS.iter().find(|target| target.scenario == scenario.name() && target.figure == *name);
        let (words, met) = match target {
            Some(Target { most, of_reference: true, .. }) => {
                let reference = peers.get(REFERENCE.name()).copied();
                let met = match reference {
                    Some(peer) => value <= most * peer,
                    None => unfinished.contains_key(REFERENCE.name()),
                };
                (format!("at most {most} of {}", REFERENCE.name()), met)
            }
            Some(Target { most, .. }) => (format!("at most {most}"), value <= *most),
            None => (NO_TARGET.to_owned(), true),
        };
        Figure {
            name: format!("{}, {what}", scenario.name()),
            unit,
            better: Better::Lower,
            ours: value,
            runs: values.clone(),
            peers,
            unfinished: results.not_done(),
            limit: None,
            target: words,
            met,
            machine: machine.clone(),
        }
    };
    ours.iter().map(figure).collect()
}

/// What there is to say when ours did not finish: that it did not, and who did.
fn rounds_done(scenario: Scenario, results: &Results, machine: &Machine) -> Figure {
    let rounds = |runs: &Runs| runs.values().map(Vec::len).max().unwrap_or_default() as f64;
    Figure {
        name: format!("{}, rounds done", scenario.name()),
        unit: "",
        better: Better::Higher,
        ours: 0.0,
        runs: Vec::new(),
        peers: results.runs.iter().map(|(daemon, runs)| (*daemon, rounds(runs))).collect(),
        unfinished: results.not_done(),
        limit: None,
        target: "all".to_owned(),
        met: false,
        machine: machine.clone(),
    }
}
