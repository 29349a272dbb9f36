//! What a packet costs in the kernel's programs, and how long it takes to write their tables.
//!
//! `make bench BENCH=datapath` calls it. The unit of cost is the empty XDP program of the same moment: nanoseconds differ from
//! machine to machine and from hour to hour. Of each case the floor is subtracted, which is the driver with an empty program
//! behind it ([`driver`]). Of several rounds the least counts, because whatever else the machine does only ever adds.

mod cases;
mod driver;
mod fill;
mod memory;
mod netns;
#[path = "../../../../tests/src/bin/bench/report.rs"]
mod report;
mod world;

use std::{
    collections::BTreeMap,
    process::{Command, ExitCode},
    thread,
};

use anyhow::{Context as _, ensure};
use aya::maps::RingBuf;
use driver::{Driver, Layer, Sample};
use meshd_abi::{Identity, V4};
use meshd_datapath::{Programs, shape::Sizes};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use report::{Better, Figure, Machine, NO_TARGET, Report};
use world::Side as _;

/// Entries of the table of IPv4 connections, the default of the configuration.
const CONNECTIONS: u32 = 524_288;
/// Flow events in a tick, as many as the daemon allows; what begins beyond that is counted.
const EVENTS_PER_TICK: u32 = 4_096;
/// The link packets leave through.
const LINK: u32 = 77;
/// Sizes of the tables in which an identity is looked for, and rounds of each.
const IDENTITIES: [u32; 3] = [1_000, 100_000, 1_000_000];
/// Room for the most of them.
const IDENTITIES_MAX: u32 = 1 << 20;
const IDENTITY_ROUNDS: usize = 15;
const IDENTITY_REPEAT: u32 = 300_000;
/// Most part of a trie's cost that the datapath's way may cost, with as many identities as this.
const OF_TRIE: (f64, u32) = (0.35, 100_000);

fn main() -> ExitCode {
    let only = std::env::args().nth(1);
    println!("bench datapath");
    let body = move || measure(only.as_deref());
    let outcome = thread::spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    match outcome.and_then(|report| report.write("datapath")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench datapath: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures everything whose name contains `only`, in namespaces of its own.
fn measure(only: Option<&str>) -> anyhow::Result<Report> {
    driver::need_jit()?;
    let machine = Machine::here();
    let folder = tempfile::tempdir()?;
    enter(folder.path())?;
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only));
    let mut report = Report::default();
    let sizes = Sizes { connections: CONNECTIONS, identities: IDENTITIES_MAX, ..Sizes::default() };
    let pins = folder.path().join("meshd");
    let programs = Programs::load(&pins, &sizes)?;
    let mut driver = Driver::load(&pins)?;
    world::prepare(&programs.maps, LINK, EVENTS_PER_TICK)?;
    if wanted("memory") {
        report.0.push(memory::measure(&machine));
    }
    for case in cases::all().iter().filter(|case| wanted(&case.name)) {
        let samples = case.measure(&mut driver, &programs).with_context(|| case.name.clone())?;
        report.0.push(cost(&case.name, &samples, case.target, &machine));
    }
    for count in IDENTITIES.into_iter().filter(|_| wanted("identity")) {
        report.0.extend(identities(&mut driver, &programs, count, &machine)?);
    }
    if wanted("fill") {
        report.0.push(fill::identities(&programs, &machine)?);
    }
    if wanted("service") {
        report.0.push(fill::service(&programs, &machine)?);
    }
    programs.remove()?;
    report.0.extend(netns::measure(only, &machine)?);
    nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH)?;
    Ok(report)
}

/// Network and mount namespaces of this thread's own: a link with a neighbor and a route for the kernel to find, and a bpf file
/// system. All of it vanishes with the thread.
fn enter(folder: &std::path::Path) -> anyhow::Result<()> {
    // Another thread would keep the old namespaces.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("failed to make namespaces")?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    mount(Some("bpf"), folder, Some("bpf"), MsFlags::empty(), nothing).context("failed to mount a bpf file system")?;
    shell(&format!(
        "ip link set lo up
         ip link add bench index {LINK} type veth peer name far && ip link set bench up && ip link set far up
         ip addr add 203.0.113.1/24 dev bench && ip -6 addr add 2001:db8:1::1/64 dev bench nodad
         ip neigh add 203.0.113.9 lladdr 02:00:00:00:00:05 dev bench nud permanent
         ip neigh add 2001:db8:1::9 lladdr 02:00:00:00:00:05 dev bench nud permanent
         ip route add 10.0.0.0/8 via 203.0.113.9 && ip route add 2001:db8::/64 via 2001:db8:1::9
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.lo.forwarding=1"
    ))
}

fn shell(lines: &str) -> anyhow::Result<()> {
    let output = Command::new("sh").args(["-ec", lines]).output().context("failed to run sh")?;
    ensure!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The figure of a case: what is above the floor, in empty programs.
fn cost(name: &str, samples: &[Sample], target: Option<f64>, machine: &Machine) -> Figure {
    let best = best(samples);
    let ours = (best.whole - best.floor) / best.empty;
    println!(
        "  {name}: {:.1} ns above the floor of {:.1} ns, empty program {:.2} ns",
        best.whole - best.floor,
        best.floor,
        best.empty
    );
    Figure {
        name: name.into(),
        unit: "empty programs",
        better: Better::Lower,
        ours,
        runs: samples.iter().map(|sample| (sample.whole - best.floor) / best.empty).collect(),
        peers: BTreeMap::new(),
        unfinished: BTreeMap::new(),
        limit: None,
        target: target.map_or(NO_TARGET.into(), |target| format!("at most {target}")),
        met: target.is_none_or(|target| ours <= target),
        machine: machine.clone(),
    }
}

/// The least of each.
fn best(samples: &[Sample]) -> Sample {
    let least = |of: fn(&Sample) -> f64| samples.iter().map(of).fold(f64::INFINITY, f64::min);
    Sample {
        empty: least(|sample| sample.empty),
        floor: least(|sample| sample.floor),
        whole: least(|sample| sample.whole),
    }
}

/// Looks for identities as the datapath does and in a trie with the same addresses.
fn identities(driver: &mut Driver, programs: &Programs, count: u32, machine: &Machine) -> anyhow::Result<[Figure; 2]> {
    let smaller = IDENTITIES.into_iter().filter(|size| *size < count).max().unwrap_or(0);
    driver.add_to_trie(world::CLIENT + smaller..world::CLIENT + count)?;
    let addresses: Vec<V4> = (0..count).map(|number| V4::of(world::CLIENT + number)).collect();
    let known: Vec<Identity> =
        (1..=count).map(|identity| Identity { identity, way: 1, flags: 0, cluster: 7 }).collect();
    let table = &programs.maps.v4.identities;
    table.put_all(&addresses, &known)?;
    let mut packets = world::packets::<meshd_abi::V4>(world::Aim::Nobody, count, world::TCP_ACK);
    packets.port_bits = 0;
    let names = ["identity_exact", "identity_trie"];
    for name in names {
        driver.need_pass(name, &packets)?;
    }
    let programs = [driver.own(names[0])?, driver.own(names[1])?];
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..IDENTITY_ROUNDS {
        for (samples, program) in samples.iter_mut().zip(&programs) {
            samples.push(driver.sample(program, Layer::Xdp, &packets, IDENTITY_REPEAT)?);
        }
    }
    let [exact, trie] = samples;
    let mut exact = cost(&format!("identity-exact-{count}"), &exact, None, machine);
    let trie = cost(&format!("identity-trie-{count}"), &trie, None, machine);
    if count == OF_TRIE.1 {
        exact.target = format!("at most {} of the trie", OF_TRIE.0);
        exact.met = exact.ours <= OF_TRIE.0 * trie.ours;
    }
    exact.peers.insert("trie", trie.ours);
    table.remove_all(&addresses)?;
    Ok([exact, trie])
}

/// Takes all flow events out of the ring, so that there is room.
fn drain_events(programs: &Programs) -> anyhow::Result<()> {
    let map = programs.object().map("EVENTS").context("no map EVENTS")?;
    let mut ring = RingBuf::try_from(map)?;
    while ring.next().is_some() {}
    Ok(())
}
