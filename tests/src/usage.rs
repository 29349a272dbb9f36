//! What a process has used so far, as the kernel counts it.

use std::{fs, time::Duration};

use anyhow::Context as _;
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// Processor time and memory of a process.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Processor time in seconds.
    pub cpu_s: f64,
    /// The most memory it had, in MiB.
    pub peak_rss_mib: f64,
    /// The memory it has, in MiB.
    pub rss_mib: f64,
}

impl Usage {
    /// Of the process with this number.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
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

    /// From now on the most memory is that since now.
    ///
    /// # Errors
    /// When there is no such process, or it is somebody else's.
    pub fn forget_peak(pid: u32) -> anyhow::Result<()> {
        const PEAK_RSS: &str = "5";
        let path = format!("/proc/{pid}/clear_refs");
        fs::write(&path, PEAK_RSS).with_context(|| format!("failed to write {path}"))
    }
}
