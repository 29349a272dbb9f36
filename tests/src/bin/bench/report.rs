//! Figures side by side, on the terminal and as JSON.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::Context as _;
use serde::Serialize;

/// The target of a figure that is only watched.
pub(crate) const NO_TARGET: &str = "none";

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// Rates.
    Higher,
    /// Times and sizes.
    Lower,
}

/// One measured figure: ours, the peers', and the best that can be had on this machine.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) name: String,
    /// Unit of all numbers.
    pub(crate) unit: &'static str,
    /// Which way is better.
    pub(crate) better: Better,
    /// Median of our runs.
    pub(crate) ours: f64,
    /// Our runs, in order.
    pub(crate) runs: Vec<f64>,
    /// Median of each peer.
    pub(crate) peers: BTreeMap<&'static str, f64>,
    /// Peers that did not finish, with what there is to say about it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) unfinished: BTreeMap<&'static str, String>,
    /// Median of a loop that does nothing but the system calls.
    pub(crate) limit: Option<f64>,
    /// The target in words.
    pub(crate) target: String,
    /// Whether it was met.
    pub(crate) met: bool,
    /// Where this was.
    pub(crate) machine: Machine,
}

/// The machine the figures are from.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// Processor, as it names itself.
    pub(crate) cpu: String,
    /// Number of processors.
    pub(crate) cpus: usize,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// Load average over a minute when the benchmark began: what else the machine did.
    pub(crate) load: f64,
}

impl Machine {
    /// This machine.
    pub(crate) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |path: &str, name: &str| {
            let text = read(path);
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let kib: u64 = memory.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg")
                .split_whitespace()
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or_default(),
        }
    }
}

/// All figures of one benchmark.
#[derive(Debug, Default)]
pub(crate) struct Report(pub(crate) Vec<Figure>);

impl Report {
    /// Prints the figures and writes `target/bench/NAME.json`.
    pub(crate) fn write(&self, name: &str) -> anyhow::Result<()> {
        for figure in &self.0 {
            println!("{figure}");
        }
        let folder =
            PathBuf::from(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&self.0)? + "\n";
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        println!("written to {}", path.display());
        Ok(())
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Small figures need their decimals.
        let decimals = if self.ours < 100.0 { 2 } else { 0 };
        write!(f, "{:<24} ours {:>9.decimals$} {}", self.name, self.ours, self.unit)?;
        if let Some(limit) = self.limit {
            write!(f, "   bare loop {limit:>9.0} (x{:.2})", self.ours / limit)?;
        }
        for (peer, value) in &self.peers {
            write!(f, "   {peer} {value:>9.decimals$} (x{:.2})", self.ours / value)?;
        }
        for (daemon, words) in &self.unfinished {
            write!(f, "   {daemon} {words}")?;
        }
        if self.target == NO_TARGET {
            return write!(f, "   no target");
        }
        write!(f, "   target {}: {}", self.target, if self.met { "met" } else { "not met" })
    }
}

/// The middle value; of an even number the lower one of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}
