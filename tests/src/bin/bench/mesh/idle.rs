//! What the daemons of the lab use while nothing happens.

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, ensure};
use lab::{Daemon, Lab};

use tests::usage::Usage;

/// How long the daemons are watched.
const PERIOD: Duration = Duration::from_secs(20);

/// The figures of one daemon.
#[derive(Debug, Clone)]
pub(super) struct Idle {
    pub(super) rss_mib: f64,
    /// Processor milliseconds a second.
    pub(super) cpu_ms_per_s: f64,
}

/// Watches every daemon of the lab.
pub(super) fn measure(lab: &Lab) -> anyhow::Result<Vec<Idle>> {
    let daemons = lab.daemons("meshd");
    ensure!(!daemons.is_empty(), "the lab has no daemon");
    let usage = |daemon: &Daemon| -> anyhow::Result<Usage> {
        let pid = daemon.pid().context("a daemon does not run")?;
        Usage::of(u32::try_from(pid)?)
    };
    let before: Vec<Usage> = daemons.iter().map(usage).collect::<anyhow::Result<_>>()?;
    sleep(PERIOD);
    let figures = daemons.iter().zip(before).map(|(daemon, before)| {
        let after = usage(daemon)?;
        let cpu_ms_per_s = (after.cpu_s - before.cpu_s) * 1e3 / PERIOD.as_secs_f64();
        Ok(Idle { rss_mib: after.rss_mib, cpu_ms_per_s })
    });
    figures.collect()
}
