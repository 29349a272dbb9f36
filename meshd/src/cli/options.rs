//! Flags several verbs share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::failure::Failure;
use crate::config::{CONFIG_FILE, Config, ConfigSource, Overrides};

/// Where the configuration is, and values over it.
#[derive(Debug, Args)]
pub(super) struct ConfigOptions {
    /// Configuration file (.yaml, .toml or .json)
    #[arg(long, short, value_name = "FILE", env = "MESHD_CONFIG", default_value = CONFIG_FILE)]
    pub(super) config: PathBuf,
    /// A value over the file and the environment, e.g. --set routing.metric=100 (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// The same as --set cluster.name=NAME
    #[arg(long, value_name = "NAME")]
    pub(super) cluster_name: Option<String>,
    /// The same as --set cluster.id=ID
    #[arg(long, value_name = "ID")]
    pub(super) cluster_id: Option<String>,
    /// The same as --set node.name=NAME
    #[arg(long, value_name = "NAME")]
    pub(super) node_name: Option<String>,
    /// The same as --set state_dir=DIR
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<String>,
    /// The same as --set log.level=LEVEL
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
}

impl ConfigOptions {
    /// The source these flags describe, with the environment of this process.
    pub(super) fn source(&self) -> Result<ConfigSource, Failure> {
        let mut flags = Overrides::new();
        for text in &self.set {
            let Some((key, value)) = text.split_once('=') else {
                return Err(Failure::usage(
                    format!("--set {text} has no value"),
                    "write --set KEY=VALUE, e.g. --set routing.metric=100",
                ));
            };
            flags.push((key.trim().to_owned(), value.to_owned(), format!("--set {text}")));
        }
        let named = [
            ("cluster.name", "--cluster-name", &self.cluster_name),
            ("cluster.id", "--cluster-id", &self.cluster_id),
            ("node.name", "--node-name", &self.node_name),
            ("state_dir", "--state-dir", &self.state_dir),
            ("log.level", "--log-level", &self.log_level),
        ];
        for (key, flag, value) in named {
            if let Some(value) = value {
                flags.push((key.to_owned(), value.clone(), flag.to_owned()));
            }
        }
        Ok(ConfigSource::new(self.config.clone(), Config::process_environment(), flags))
    }
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// For machines; the field names are stable
    Json,
    /// The same fields as YAML
    Yaml,
}

/// The output format.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct OutputOptions {
    /// Output format
    #[arg(long, short, value_enum, default_value = "table")]
    pub(super) output: Format,
}

/// Reads `30s`, `500ms`, `2m`, `1h` or plain seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = digits.parse().map_err(|_| format!("{text:?} is not a duration such as 30s or 2m"))?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(count)),
        "" | "s" => Ok(Duration::from_secs(count)),
        "m" => Ok(Duration::from_secs(count.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(count.saturating_mul(3600))),
        unit => Err(format!("unknown unit {unit:?}, use ms, s, m or h")),
    }
}
