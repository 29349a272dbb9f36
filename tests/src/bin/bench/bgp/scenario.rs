//! What is measured, once for one daemon.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Scope, ScopedJoinHandle, scope, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tests::bgp::{
    speaker::{HOLD_TIME_S, Identity, Index, Seen, Session, Sink},
    stream::{self, Table},
    wire::{self, Prefix},
};

use super::{
    daemon::{Bench, Daemon, Peer, Task},
    fib::{self, Fib},
    limit::{Limit, Outcome},
};

/// Pause between two KEEPALIVEs of a session that has nothing else to say.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// A sink that has seen nothing for this long has seen everything.
const QUIET: Duration = Duration::from_secs(1);
const SEED: u64 = 65000;

const SINK: Identity = Identity {
    asn: 65099,
    address: Ipv4Addr::new(10, 98, 0, 2),
    daemon: Ipv4Addr::new(10, 98, 0, 1),
    hold_time_s: HOLD_TIME_S,
    receive_buffer: None,
};

/// The sender of this number.
fn sender(number: u8) -> Identity {
    Identity {
        asn: 65100 + u32::from(number),
        address: Ipv4Addr::new(10, 99, 1, number + 1),
        daemon: Ipv4Addr::new(10, 99, 0, 1),
        hold_time_s: HOLD_TIME_S,
        receive_buffer: None,
    }
}

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scenario {
    /// One peer sends a table, the other one gets it; then the first one goes away.
    Table { prefixes: usize },
    /// The same with routes into the kernel.
    Fib { prefixes: usize },
    /// So many changes a second in a table of 200,000.
    Churn { per_s: usize, seconds: usize },
    /// Many peers with a small table each, and one that gets everything.
    Peers { peers: u8, prefixes: usize },
    /// Many peers with a small table each, and each gets everything.
    Fanout { peers: u8, prefixes: usize },
    /// Several peers with the same prefixes and different paths.
    Overlap { peers: u8, prefixes: usize },
}

/// Figures by name, in their units.
pub(super) type Figures = BTreeMap<&'static str, f64>;

impl Scenario {
    pub(super) fn name(self) -> String {
        match self {
            Self::Table { prefixes } => format!("table-{prefixes}"),
            Self::Fib { prefixes } => format!("fib-{prefixes}"),
            Self::Churn { per_s, seconds } => format!("churn-{per_s}x{seconds}s"),
            Self::Peers { peers, prefixes } => format!("peers-{peers}x{prefixes}"),
            Self::Fanout { peers, prefixes } => format!("fanout-{peers}x{prefixes}"),
            Self::Overlap { peers, prefixes } => format!("overlap-{peers}x{prefixes}"),
        }
    }

    pub(super) fn needs_fib(self) -> bool {
        matches!(self, Self::Fib { .. })
    }

    /// Brings a daemon up, measures, and takes it down, or ends it when it does not finish.
    pub(super) fn measure(self, daemon: Daemon, within: Duration) -> anyhow::Result<Outcome<Figures>> {
        let senders: Vec<Identity> = match self {
            Self::Table { .. } | Self::Fib { .. } | Self::Churn { .. } => vec![sender(0)],
            Self::Peers { peers, .. } | Self::Fanout { peers, .. } | Self::Overlap { peers, .. } => {
                (0..peers).map(sender).collect()
            }
        };
        // With one sender there is nothing to send back to it.
        let export = !matches!(self, Self::Peers { .. } | Self::Overlap { .. });
        let peers = senders.iter().map(|&identity| Peer { identity, export });
        let peers = peers.chain([Peer { identity: SINK, export: true }]).collect();
        let bench = Bench::up(daemon, &Task { peers, fib: self.needs_fib() })?;
        let limit = Limit::of(within);
        let measure = || match self {
            Self::Table { prefixes } => table(&bench, limit, prefixes, false),
            Self::Fib { prefixes } => table(&bench, limit, prefixes, true),
            Self::Churn { per_s, seconds } => churn(&bench, limit, per_s, seconds),
            Self::Peers { prefixes, .. } => many(&bench, limit, &senders, prefixes, false),
            Self::Fanout { prefixes, .. } => many(&bench, limit, &senders, prefixes, true),
            Self::Overlap { prefixes, .. } => overlap(&bench, limit, &senders, prefixes),
        };
        let measured = limit
            .watch(&bench, || bench.generator.within(measure)?)
            .with_context(|| format!("{} with {}; its log ends:\n{}", self.name(), daemon.name(), bench.log_end()));
        bench.down()?;
        measured
    }
}

/// Keeps sessions alive until the flag.
fn keep_alive<'scope>(scope: &'scope Scope<'scope, '_>, sessions: Vec<&'scope Session>, done: &'scope AtomicBool) {
    scope.spawn(move || {
        let mut next = Instant::now() + KEEPALIVE_EVERY;
        while !done.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(20));
            if Instant::now() >= next {
                next += KEEPALIVE_EVERY;
                for session in &sessions {
                    // A session that has ended is noticed by whoever needs it.
                    let _ = session.keep_alive();
                }
            }
        }
    });
}

/// Raised when a scope is left, also by an error, so that its threads end.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn table(bench: &Bench, limit: Limit, prefixes: usize, fib: bool) -> anyhow::Result<Figures> {
    let table = Table::new(prefixes, SEED);
    let stream = table.encode(sender(0).asn, sender(0).address);
    let index = Index::new(table.prefixes());
    let (out, incoming) = (limit.establish(&SINK)?, limit.establish(&sender(0))?);
    let done = AtomicBool::new(false);
    let mut figures = Figures::new();
    let base = if fib { bench.daemon.within(fib::len)?? } else { 0 };
    let all: Vec<Prefix> = table.prefixes().collect();
    let wait_fib = &|begin: Instant, there: bool| -> anyhow::Result<f64> {
        bench.daemon.within(|| {
            Fib::of_this_thread()?.wait(limit, &all, there, base)?;
            Ok(begin.elapsed().as_secs_f64())
        })?
    };
    scope(|scope| {
        let _raise = Raise(&done);
        keep_alive(scope, vec![&out, &incoming], &done);
        scope.spawn(|| incoming.drain(&done));
        let mut sink = Sink::new(&out, &index, Instant::now());
        let before = bench.usage()?;
        let begin = Instant::now();
        let installed = fib.then(|| scope.spawn(move || wait_fib(begin, true)));
        let writer = scope.spawn(|| incoming.send(&stream));
        sink.read_until("the whole table", limit.left(), |seen| seen.held == prefixes)?;
        figures.insert("all at sink, s", begin.elapsed().as_secs_f64());
        if let Some(installed) = installed {
            figures.insert("FIB full, s", joined(installed)?);
        }
        joined(writer)?;
        let after = bench.usage()?;
        figures.insert("CPU, s", after.cpu_s - before.cpu_s);
        figures.insert("peak RSS, MiB", after.peak_rss_mib);
        figures.insert("UPDATEs out", sink.seen.updates as f64);
        let before = bench.usage()?;
        let begin = Instant::now();
        let emptied = fib.then(|| scope.spawn(move || wait_fib(begin, false)));
        incoming.close()?;
        sink.read_until("all withdrawals", limit.left(), |seen| seen.held == 0)?;
        figures.insert("all withdrawn, s", begin.elapsed().as_secs_f64());
        if let Some(emptied) = emptied {
            figures.insert("FIB empty, s", joined(emptied)?);
        }
        figures.insert("withdraw CPU, s", bench.usage()?.cpu_s - before.cpu_s);
        Ok(figures)
    })
}

/// Changes in a steady stream: a quarter withdrawals, the rest new attributes for prefixes that are there or come back.
fn churn(bench: &Bench, limit: Limit, per_s: usize, seconds: usize) -> anyhow::Result<Figures> {
    const PREFIXES: usize = 200_000;
    const TICKS_PER_S: usize = 100;
    /// Prefixes that get new attributes together.
    const TOGETHER: usize = 5;
    let all = stream::prefixes(PREFIXES);
    let table = Table::of(&all, SEED);
    let stream = table.encode(sender(0).asn, sender(0).address);
    let index = Index::new(all.iter().copied());
    let (out, incoming) = (limit.establish(&SINK)?, limit.establish(&sender(0))?);
    let done = AtomicBool::new(false);
    let epoch = Instant::now();
    // Attributes that differ from those of the first table.
    let other = Table::of(&all, SEED + 1);
    scope(|scope| {
        let _raise = Raise(&done);
        keep_alive(scope, vec![&out, &incoming], &done);
        scope.spawn(|| incoming.drain(&done));
        let mut sink = Sink::new(&out, &index, epoch);
        let writer = scope.spawn(|| incoming.send(&stream));
        sink.read_until("the whole table", limit.left(), |seen| seen.held == PREFIXES)?;
        joined(writer)?;
        let (before, seen) = (bench.usage()?, sink.seen);
        let changer = scope.spawn(|| -> anyhow::Result<usize> {
            let mut random = StdRng::seed_from_u64(SEED);
            let mut held = vec![true; all.len()];
            let (mut out, mut absent) = (Vec::new(), 0);
            let begin = Instant::now();
            for tick in 0..seconds * TICKS_PER_S {
                out.clear();
                // Changes come in runs of neighbours; no prefix comes twice in a tick.
                let runs = per_s / TICKS_PER_S / TOGETHER;
                let width = all.len() / runs;
                let now_us = epoch.elapsed().as_micros() as u64;
                for run in 0..runs {
                    let first = run * width + random.random_range(0..width - TOGETHER);
                    let numbers = first..first + TOGETHER;
                    let withdraw = random.random_range(0..4) == 0;
                    for number in numbers.clone() {
                        // What is withdrawn twice does not arrive twice.
                        if held[number] || !withdraw {
                            index.sent_us[number].store(now_us, Ordering::Relaxed);
                        }
                        absent =
                            absent + usize::from(held[number] && withdraw) - usize::from(!held[number] && !withdraw);
                        held[number] = !withdraw;
                    }
                    if withdraw {
                        wire::withdraw(&mut out, &all[numbers]);
                    } else {
                        let set = &other.sets[random.random_range(0..other.sets.len())];
                        wire::announce(&mut out, &set.attributes, sender(0).asn, sender(0).address, &all[numbers]);
                    }
                }
                incoming.send(&out)?;
                let due = Duration::from_millis((tick as u64 + 1) * 1000 / TICKS_PER_S as u64);
                sleep(due.saturating_sub(begin.elapsed()));
            }
            Ok(all.len() - absent)
        });
        let quiet = |seen: &Seen| seen.last.is_some_and(|last| last.elapsed() > QUIET);
        sink.read_until("the end of the changes", limit.left(), |seen| changer.is_finished() && quiet(seen))?;
        let left = joined(changer)?;
        ensure!(sink.seen.held == left, "the sink holds {} prefixes and the sender {left}", sink.seen.held);
        sink.delays_us.sort_unstable();
        let delay_ms = |part: f64| {
            let at = (sink.delays_us.len() as f64 * part) as usize;
            sink.delays_us.get(at).copied().unwrap_or_default() as f64 / 1000.0
        };
        let after = bench.usage()?;
        Ok(Figures::from([
            ("CPU, s", after.cpu_s - before.cpu_s),
            ("delay p50, ms", delay_ms(0.5)),
            ("delay p99, ms", delay_ms(0.99)),
            ("peak RSS, MiB", after.peak_rss_mib),
            ("UPDATEs out", (sink.seen.updates - seen.updates) as f64),
        ]))
    })
}

/// Many senders with tables of their own; with `fanout` each one also reads what the others sent.
fn many(bench: &Bench, limit: Limit, senders: &[Identity], each: usize, fanout: bool) -> anyhow::Result<Figures> {
    let all = stream::prefixes(each * senders.len());
    let index = Index::new(all.iter().copied());
    let streams: Vec<Vec<u8>> = senders
        .iter()
        .zip(all.chunks(each))
        .map(|(identity, prefixes)| {
            Table::of(prefixes, SEED + u64::from(identity.asn)).encode(identity.asn, identity.address)
        })
        .collect();
    let out = limit.establish(&SINK)?;
    let sessions: Vec<Session> = senders.iter().map(|identity| limit.establish(identity)).collect::<Result<_, _>>()?;
    let done = AtomicBool::new(false);
    // When each reader had everything, in seconds.
    let complete: Mutex<Vec<f64>> = Mutex::default();
    scope(|scope| {
        let _raise = Raise(&done);
        keep_alive(scope, sessions.iter().chain([&out]).collect(), &done);
        let mut sink = Sink::new(&out, &index, Instant::now());
        let before = bench.usage()?;
        let begin = Instant::now();
        let others = all.len() - each;
        let readers: Vec<_> = sessions
            .iter()
            .map(|session| {
                let (index, done, complete) = (&index, &done, &complete);
                scope.spawn(move || -> anyhow::Result<()> {
                    if fanout {
                        let mut sink = Sink::new(session, index, begin);
                        sink.read_until("everything of the others", limit.left(), |seen| seen.held == others)?;
                    }
                    complete.lock().unwrap_or_else(PoisonError::into_inner).push(begin.elapsed().as_secs_f64());
                    // The daemon must not be held up by one that has what it needs.
                    session.drain(done)
                })
            })
            .collect();
        let writers: Vec<_> =
            sessions.iter().zip(&streams).map(|(session, stream)| scope.spawn(move || session.send(stream))).collect();
        sink.read_until("every table", limit.left(), |seen| seen.held == all.len())?;
        let mut figures = Figures::from([("all at sink, s", begin.elapsed().as_secs_f64())]);
        writers.into_iter().try_for_each(joined)?;
        let times = || complete.lock().unwrap_or_else(PoisonError::into_inner).clone();
        while times().len() < readers.len() && !readers.iter().any(ScopedJoinHandle::is_finished) {
            sleep(Duration::from_millis(5));
        }
        let after = bench.usage()?;
        done.store(true, Ordering::Relaxed);
        readers.into_iter().try_for_each(joined)?;
        if fanout {
            figures.insert("all everywhere, s", times().into_iter().fold(0.0, f64::max));
        }
        figures.insert("CPU, s", after.cpu_s - before.cpu_s);
        figures.insert("peak RSS, MiB", after.peak_rss_mib);
        figures.insert("UPDATEs out", sink.seen.updates as f64);
        Ok(figures)
    })
}

/// Senders with the same prefixes and different paths, all at once.
fn overlap(bench: &Bench, limit: Limit, senders: &[Identity], prefixes: usize) -> anyhow::Result<Figures> {
    let all = stream::prefixes(prefixes);
    let index = Index::new(all.iter().copied());
    let streams: Vec<Vec<u8>> = senders
        .iter()
        .map(|identity| Table::of(&all, SEED + u64::from(identity.asn)).encode(identity.asn, identity.address))
        .collect();
    let out = limit.establish(&SINK)?;
    let sessions: Vec<Session> = senders.iter().map(|identity| limit.establish(identity)).collect::<Result<_, _>>()?;
    let done = AtomicBool::new(false);
    scope(|scope| {
        let _raise = Raise(&done);
        keep_alive(scope, sessions.iter().chain([&out]).collect(), &done);
        for session in &sessions {
            scope.spawn(|| session.drain(&done));
        }
        let mut sink = Sink::new(&out, &index, Instant::now());
        let before = bench.usage()?;
        let begin = Instant::now();
        let writers: Vec<_> =
            sessions.iter().zip(&streams).map(|(session, stream)| scope.spawn(move || session.send(stream))).collect();
        sink.read_until("every prefix", limit.left(), |seen| seen.held == prefixes)?;
        let at_sink = begin.elapsed().as_secs_f64();
        let written = || writers.iter().all(ScopedJoinHandle::is_finished);
        sink.read_until("the last change", limit.left(), |seen| {
            written() && seen.last.is_some_and(|last| last.elapsed() > QUIET)
        })?;
        writers.into_iter().try_for_each(joined)?;
        let after = bench.usage()?;
        let settled = sink.seen.last.map_or(0.0, |last| last.duration_since(begin).as_secs_f64());
        Ok(Figures::from([
            ("all at sink, s", at_sink),
            ("settled, s", settled),
            ("CPU, s", after.cpu_s - before.cpu_s),
            ("peak RSS, MiB", after.peak_rss_mib),
            ("exported per prefix", sink.seen.announced as f64 / prefixes as f64),
        ]))
    })
}
