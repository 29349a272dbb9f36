//! Route installation, as many a second as the kernel takes.
//!
//! Ours is the whole way: desired rows, the planner, the writer, the kernel's acknowledgements, with the event stream
//! open beside it. The peers install the same prefixes behind the same nexthop object: `ip -batch` from a file, and a
//! loop that does nothing but copy prepared messages into sends of 512 with one acknowledgement each.

mod bare;
mod ours;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sched::{CloneFlags, unshare};

use crate::report::{Better, Figure, Machine, Report, median};

/// Number of routes and of rounds.
const SIZES: [(usize, usize); 2] = [(200_000, 5), (1_000_000, 3)];
/// Least part of the bare loop's rate.
const OF_BARE: f64 = 0.9;
/// Least multiple of `ip -batch`.
const OF_IP: f64 = 3.0;
/// The link all routes lead over.
const LINK: u32 = 77;
/// The nexthop object of the peers.
const NEXTHOP: u32 = 77_000_000;

/// One address family of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    fn gateway(self) -> &'static str {
        match self {
            Self::V4 => "192.0.2.9",
            Self::V6 => "2001:db8::9",
        }
    }

    /// A /24 or a /48.
    fn prefix(self, n: usize) -> IpNet {
        let n = u32::try_from(n).expect("a few million");
        match self {
            Self::V4 => Ipv4Net::new_assert(Ipv4Addr::from((16 << 24) + (n << 8)), 24).into(),
            Self::V6 => {
                let address = (0xfd00_u128 << 112) + (u128::from(n) << 80);
                Ipv6Net::new_assert(Ipv6Addr::from(address), 48).into()
            }
        }
    }
}

/// Runs everything in a network namespace of its own.
pub(crate) fn run() -> anyhow::Result<Report> {
    let body = || -> anyhow::Result<Report> {
        unshare(CloneFlags::CLONE_NEWNET).context("failed to create a network namespace")?;
        shell(&format!(
            "ip link set lo up
             ip link add bench index {LINK} type veth peer name far && ip link set bench up && ip link set far up
             ip addr add 192.0.2.1/24 dev bench && ip -6 addr add 2001:db8::1/64 dev bench nodad"
        ))?;
        let machine = Machine::here();
        let mut report = Report::default();
        for (count, rounds) in SIZES {
            for family in [Family::V4, Family::V6] {
                report.0.extend(measure(family, count, rounds, &machine)?);
            }
        }
        Ok(report)
    };
    thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn measure(family: Family, count: usize, rounds: usize, machine: &Machine) -> anyhow::Result<[Figure; 2]> {
    let prefixes: Vec<IpNet> = (0..count).map(|n| family.prefix(n)).collect();
    let desired = ours::desired(family, &prefixes);
    let batch = batch_file(family, &prefixes)?;
    let mut rates = [const { Vec::new() }; 4];
    for round in 1..=rounds {
        let (acknowledged, known) = ours::install(&desired)?;
        clean(family, count)?;
        nexthop(family)?;
        let bare = bare::install(family, &prefixes)?;
        clean(family, count)?;
        nexthop(family)?;
        let ip = timed(|| shell(&format!("ip {} -batch {}", family.flag(), batch.path().display())))?;
        clean(family, count)?;
        let all = [acknowledged, known, bare, ip];
        let rate = all.map(|took| count as f64 / took.as_secs_f64());
        println!(
            "  {} {count} round {round}: ours {:.0}/s (known after {:.2} s), bare loop {:.0}/s, ip -batch {:.0}/s",
            family.name(),
            rate[0],
            known.as_secs_f64(),
            rate[2],
            rate[3]
        );
        for (rates, rate) in rates.iter_mut().zip(rate) {
            rates.push(rate);
        }
    }
    let [acknowledged, known, bare, ip] = rates;
    let (limit, peer) = (median(&bare), median(&ip));
    let figure = |what: &str, runs: Vec<f64>, target: String, of_bare: f64, of_ip: f64| {
        let ours = median(&runs);
        Figure {
            name: format!("{}-{count}-{what}", family.name()),
            unit: "routes/s",
            better: Better::Higher,
            ours,
            runs,
            peers: BTreeMap::from([("ip -batch", peer)]),
            unfinished: BTreeMap::new(),
            limit: Some(limit),
            target,
            met: ours >= of_bare * limit && ours >= of_ip * peer,
            machine: machine.clone(),
        }
    };
    let target = format!("at least {OF_BARE} of the bare loop and {OF_IP} times ip -batch");
    Ok([
        figure("installed", acknowledged, target, OF_BARE, OF_IP),
        figure("confirmed", known, "faster than ip -batch".into(), 0.0, 1.0),
    ])
}

/// A file for `ip -batch`; it vanishes with the handle.
fn batch_file(family: Family, prefixes: &[IpNet]) -> anyhow::Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new().context("failed to create a file for ip -batch")?;
    let mut text = String::with_capacity(prefixes.len() * 64);
    for prefix in prefixes {
        writeln!(text, "route add {prefix} nhid {NEXTHOP} proto 77 metric 77")?;
    }
    fs::write(file.path(), text).with_context(|| format!("failed to write the {} batch", family.name()))?;
    Ok(file)
}

fn nexthop(family: Family) -> anyhow::Result<()> {
    shell(&format!("ip {} nexthop add id {NEXTHOP} via {} dev bench proto 77", family.flag(), family.gateway()))
        .map(drop)
}

/// Checks that all routes are there and removes them with their nexthop objects.
fn clean(family: Family, count: usize) -> anyhow::Result<()> {
    let lines = shell(&format!("ip {} route show proto 77 | wc -l", family.flag()))?;
    ensure!(lines.trim() == count.to_string(), "{count} routes were installed, the kernel shows {}", lines.trim());
    shell("ip nexthop flush proto 77 2>/dev/null")?;
    let left = shell(&format!("ip {} route show proto 77 | wc -l", family.flag()))?;
    ensure!(left.trim() == "0", "{} routes are left after their nexthop object", left.trim());
    Ok(())
}

fn timed<T>(body: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    body()?;
    Ok(started.elapsed())
}

fn shell(line: &str) -> anyhow::Result<String> {
    let output = Command::new("sh").args(["-c", line]).output().context("failed to run sh")?;
    if !output.status.success() {
        bail!("{line}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}
