//! `meshd check`: is a configuration right?

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use meshd_core::id::ClusterName;

use super::certificate::{self, Certificate};
use super::failure::{Failure, print_finding};
use super::output;
use crate::config::model::{StoreConfig, TlsFiles};
use crate::config::{CONFIG_FILE, Config, ConfigSource, Finding, Overrides};
use crate::sources::config::{Before, PeerSources, watch};

/// Certificates that end sooner than this are reported.
const EXPIRES_SOON_DAYS: i64 = 30;

/// Read a configuration as `run` would and say what is wrong with it
#[derive(Debug, Args)]
pub(super) struct Check {
    /// Configuration file (.yaml, .toml or .json)
    #[arg(value_name = "CONFIG", default_value = CONFIG_FILE)]
    config: PathBuf,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let source = ConfigSource::new(self.config, Config::process_environment(), Overrides::new());
        let config = source.load()?;
        let mut warnings = config.warnings.clone();
        warnings.extend(certificate_dates(&config, Timestamp::now()));
        // A wrong file of the watched directory never stops the daemon, so it does not fail the check.
        let directory = watch::read(&PeerSources::from(&config), &Before::default());
        warnings.extend(directory.problems.into_iter().map(|problem| {
            let hint = "the daemon reads the file again when it changes";
            Finding::new("peers_dir", format!("{}: {}", problem.file.display(), problem.message)).hint(hint)
        }));
        for warning in &warnings {
            print_finding("warning", warning);
        }
        let peers: Vec<&str> = directory.peers.keys().map(ClusterName::as_str).collect();
        let peers = if peers.is_empty() { "no peers".to_owned() } else { format!("peers {}", peers.join(", ")) };
        let and = match warnings.len() {
            0 => String::new(),
            1 => ", 1 warning".to_owned(),
            n => format!(", {n} warnings"),
        };
        output::text(&format!(
            "{}: ok (cluster {}, id {}, {peers}{and})\n",
            config.file.display(),
            config.cluster.name,
            config.cluster.id,
        ))
    }
}

/// Dates are warnings: an expired certificate must not keep a node from starting with the routes it has.
fn certificate_dates(config: &Config, now: Timestamp) -> Vec<Finding> {
    let mut files: Vec<(String, &TlsFiles)> = Vec::new();
    match &config.store {
        StoreConfig::Embedded { tls, .. } | StoreConfig::Etcd { tls, .. } => {
            files.extend(tls.as_ref().map(|tls| ("store.tls".to_owned(), tls)));
        }
    }
    for peer in &config.peers {
        files.extend(peer.tls.as_ref().map(|tls| (format!("peer {} tls", peer.cluster), tls)));
    }
    let mut findings = Vec::new();
    for (key, tls) in files {
        for (part, path) in [("ca", &tls.ca), ("cert", &tls.cert)] {
            let Ok(certificates) = certificate::read(path) else { continue };
            for certificate in certificates {
                if let Some(message) = date_message(&certificate, now) {
                    let finding = Finding::new(format!("{key}.{part}"), format!("{} {message}", path.display()));
                    findings
                        .push(finding.hint("issue a new one (`meshd cert issue`); it is taken up without a restart"));
                }
            }
        }
    }
    findings
}

fn date_message(certificate: &Certificate, now: Timestamp) -> Option<String> {
    let days_left = (certificate.not_after.as_second() - now.as_second()) / 86_400;
    if now > certificate.not_after {
        Some(format!("expired on {}", certificate.not_after))
    } else if now < certificate.not_before {
        Some(format!("is valid from {} only", certificate.not_before))
    } else if days_left < EXPIRES_SOON_DAYS {
        Some(format!("expires on {}, in {days_left} days", certificate.not_after))
    } else {
        None
    }
}
