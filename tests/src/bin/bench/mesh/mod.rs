//! A node in a mesh: what it costs to join one of 250 clusters, how fast a change arrives, and what it uses when idle.
//!
//! For joining, the store is the embedded one in this process with every cluster in cache form, behind TLS. The node is the built
//! binary with 250 peers, in a network namespace of its own; ready means that all rows are read and the kernel holds a
//! route for every node of the mesh. The other figures come from the west/east lab.

mod generate;
mod idle;
mod latency;
mod node;

use std::{process::Command, thread, time::Duration};

use anyhow::{Context as _, ensure};
use lab::{Lab, Options};
use nix::sched::{CloneFlags, unshare};

use self::{
    generate::{CLUSTERS, ENDPOINTS, IDENTITIES, NODES},
    node::Node,
};
use crate::report::{Better, Figure, Machine, NO_TARGET, Report, median};

/// Starts that are measured.
const ROUNDS: usize = 3;
/// Targets: seconds to ready, CPU seconds, peak memory.
const READY_S: f64 = 10.0;
const CPU_S: f64 = 8.0;
const PEAK_MIB: f64 = 300.0;

/// Targets: milliseconds from Put to route, memory of an idle node.
const LATENCY_P99_MS: f64 = 10.0;
const IDLE_MIB: f64 = 20.0;
/// Times the changes are measured.
const LATENCY_ROUNDS: usize = 3;
/// How long the lab may take to come up.
const LAB_WITHIN: Duration = Duration::from_secs(60);

/// Runs both parts.
pub(crate) fn run() -> anyhow::Result<Report> {
    let mut figures = bootstrap()?.0;
    figures.extend(west_east()?);
    Ok(Report(figures))
}

/// Joining, in a network namespace of its own.
fn bootstrap() -> anyhow::Result<Report> {
    let body = || -> anyhow::Result<Report> {
        unshare(CloneFlags::CLONE_NEWNET).context("failed to create a network namespace")?;
        for line in [
            "link set lo up",
            "link add bench type veth peer name far",
            "link set bench up",
            "link set far up",
            "address add 172.16.0.1/12 dev bench",
            // Nobody answers; the kernel need not ask.
            "link set bench arp off",
        ] {
            let done = Command::new("ip").args(line.split(' ')).status().context("failed to run ip")?;
            ensure!(done.success(), "ip {line}: {done}");
        }
        // Threads of this runtime belong to the namespace of the thread that makes it.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(measure())
    };
    thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn measure() -> anyhow::Result<Report> {
    let machine = Machine::here();
    let certificates = tempfile::tempdir()?;
    let tls = generate::certificates(certificates.path())?;
    println!("  filling a store with {CLUSTERS} clusters");
    let (_store, address) = generate::start(tls).await?;
    let each = |count: u32| u64::from(CLUSTERS) * u64::from(count);
    let counts = (each(NODES), each(ENDPOINTS), each(IDENTITIES));
    let mut runs = [const { Vec::new() }; 4];
    for round in 1..=ROUNDS {
        let folder = tempfile::tempdir()?;
        for name in ["ca.crt", "client.crt", "client.key"] {
            std::fs::copy(certificates.path().join(name), folder.path().join(name))?;
        }
        node::configure(folder.path(), address)?;
        let (took, usage) = tokio::task::spawn_blocking({
            let folder = folder.path().to_owned();
            move || -> anyhow::Result<_> {
                let mut node = Node::start(&folder)?;
                let is_complete = |status: &node::Status| status.is_complete(counts.0, counts.1, counts.2);
                let waited = node.wait(is_complete);
                let took = waited.with_context(|| {
                    let log = std::fs::read_to_string(folder.join("meshd.log")).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(20).collect();
                    format!("the end of its log:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
                })?;
                Ok((took, node.usage()?))
            }
        })
        .await??;
        println!(
            "  round {round}: ready after {:.2} s, {:.2} CPU s, peak {:.0} MiB, then {:.0} MiB",
            took.as_secs_f64(),
            usage.cpu_s,
            usage.peak_rss_mib,
            usage.rss_mib
        );
        for (runs, value) in runs.iter_mut().zip([took.as_secs_f64(), usage.cpu_s, usage.peak_rss_mib, usage.rss_mib]) {
            runs.push(value);
        }
        // Their routes go with them.
        let flushed = Command::new("ip").args(["nexthop", "flush", "proto", "77"]).output()?;
        ensure!(flushed.status.success(), "ip nexthop flush: {}", String::from_utf8_lossy(&flushed.stderr));
    }
    let [ready, cpu, peak, _] = &runs;
    Ok(Report(vec![
        figure("bootstrap, ready", "s", ready, Some(READY_S), &machine),
        figure("bootstrap, CPU", "s", cpu, Some(CPU_S), &machine),
        figure("bootstrap, peak RSS", "MiB", peak, Some(PEAK_MIB), &machine),
    ]))
}

/// Idle nodes and single changes, in the lab.
fn west_east() -> anyhow::Result<Vec<Figure>> {
    let machine = Machine::here();
    let name = Some(format!("bench-{}", std::process::id()));
    let lab = Lab::up("west-east", &Options { name, ready_within: Some(LAB_WITHIN), ..Options::default() })?;
    println!("  watching idle nodes");
    let idle = idle::measure(&lab)?;
    let rss: Vec<f64> = idle.iter().map(|idle| idle.rss_mib).collect();
    let cpu: Vec<f64> = idle.iter().map(|idle| idle.cpu_ms_per_s).collect();
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for round in 1..=LATENCY_ROUNDS {
        let sorted = latency::measure(&lab, round)?;
        let (half, most) = (percentile(&sorted, 50), percentile(&sorted, 99));
        println!("  round {round}: from Put to kernel p50 {half:.2} ms, p99 {most:.2} ms");
        p50.push(half);
        p99.push(most);
    }
    lab.down()?;
    Ok(vec![
        figure("Put to kernel, p50", "ms", &p50, None, &machine),
        figure("Put to kernel, p99", "ms", &p99, Some(LATENCY_P99_MS), &machine),
        worst("idle node, RSS", "MiB", &rss, Some(IDLE_MIB), &machine),
        worst("idle node, CPU", "ms/s", &cpu, None, &machine),
    ])
}

/// A figure that is better when lower, with a target or only to be watched.
fn figure(name: &str, unit: &'static str, runs: &[f64], most: Option<f64>, machine: &Machine) -> Figure {
    of_runs(name, unit, median(runs), runs, most, machine)
}

/// As [`figure`], of things that run side by side and differ: a node that hosts a store needs more than one that does not,
/// and what holds must hold for each.
fn worst(name: &str, unit: &'static str, nodes: &[f64], most: Option<f64>, machine: &Machine) -> Figure {
    let highest = nodes.iter().copied().fold(f64::NAN, f64::max);
    of_runs(name, unit, highest, nodes, most, machine)
}

fn of_runs(name: &str, unit: &'static str, ours: f64, runs: &[f64], most: Option<f64>, machine: &Machine) -> Figure {
    Figure {
        name: name.to_owned(),
        unit,
        better: Better::Lower,
        ours,
        runs: runs.to_vec(),
        peers: Default::default(),
        unfinished: Default::default(),
        limit: None,
        target: most.map_or_else(|| NO_TARGET.to_owned(), |most| format!("under {most} {unit}")),
        met: most.is_none_or(|most| ours < most),
        machine: machine.clone(),
    }
}

/// The value that so many per cent of the sorted values do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
