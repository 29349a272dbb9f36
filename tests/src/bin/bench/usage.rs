//! What a process has used so far, as the kernel counts it.

use std::{fs, time::Duration};

use anyhow::Context as _;
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// Processor time and memory of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) peak_rss_mib: f64,
    pub(crate) rss_mib: f64,
}

impl Usage {
    /// Of the process with this number.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))?;
        let cpu = Duration::from(clock_gettime(clock)?);
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |name: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next());
            let kib: f64 = kib.with_context(|| format!("/proc/{pid}/status has no {name}"))?.parse()?;
            Ok(kib / 1024.0)
        };
        Ok(Self { cpu_s: cpu.as_secs_f64(), peak_rss_mib: mib("VmHWM:")?, rss_mib: mib("VmRSS:")? })
    }
}
