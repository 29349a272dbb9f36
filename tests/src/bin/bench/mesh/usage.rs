//! What a process has used so far, as the kernel counts it.

use std::fs;

use anyhow::Context as _;

/// Processor time and memory of a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) cpu_s: f64,
    pub(super) peak_rss_mib: f64,
    pub(super) rss_mib: f64,
}

impl Usage {
    /// Of the process with this number.
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Fields after the name in parentheses; user and system time are the 12th and 13th of them.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |nth: usize| -> anyhow::Result<f64> {
            let field = fields.get(nth).with_context(|| format!("/proc/{pid}/stat has too few fields"))?;
            Ok(field.parse()?)
        };
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |name: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next());
            let kib: f64 = kib.with_context(|| format!("/proc/{pid}/status has no {name}"))?.parse()?;
            Ok(kib / 1024.0)
        };
        Ok(Self {
            cpu_s: (ticks(11)? + ticks(12)?) / per_second as f64,
            peak_rss_mib: mib("VmHWM:")?,
            rss_mib: mib("VmRSS:")?,
        })
    }
}
