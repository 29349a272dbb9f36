//! `meshd troubleshoot`: why a remote cluster cannot be read.
//!
//! It needs no daemon. Step by step it does what the daemon does, with the same files, and says at the first step that
//! fails what was found, what the likely cause is and what to do: files and dates of the certificates, names, TCP,
//! TLS, etcd's version, what the certificate may read, clocks, cluster-config, canaries. Nothing is written anywhere.

mod endpoint;
mod files;
mod handshake;
mod report;
mod store;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use meshd_core::id::{ClusterId, ClusterName};

use super::client::block_on;
use super::failure::{Failure, print_finding};
use super::options::{ConfigOptions, Format, OutputOptions};
use super::output;
use crate::config::Config;
use crate::config::model::{Endpoint, Peer, StoreConfig, TlsFiles};
use crate::sources::config::{Before, PeerSources, watch};
use report::{Diagnosis, Report};

/// Find out why a remote cluster cannot be read: names, TCP, TLS, certificates, rights, clocks, content
///
/// Works without a running daemon. Exit 1 when anything fails.
#[derive(Debug, Args)]
pub(super) struct Troubleshoot {
    /// Only this cluster; the own name means the own store [default: all]
    #[arg(value_name = "CLUSTER")]
    cluster: Option<String>,
    /// How long each step may take, e.g. 5s
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = super::options::duration)]
    timeout: Duration,
    #[command(flatten)]
    options: ConfigOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// A store to look at.
struct Target {
    cluster: ClusterName,
    own_store: bool,
    endpoints: Vec<Endpoint>,
    tls: Option<TlsFiles>,
    host_aliases: BTreeMap<String, Vec<IpAddr>>,
    source: String,
    /// Names (CN) such a store knows its readers by.
    readers: Vec<String>,
}

impl Troubleshoot {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.options.source()?.load()?;
        for warning in &config.warnings {
            print_finding("warning", warning);
        }
        let peers = watch::read(&PeerSources::from(&config), &Before::default());
        let mut targets: Vec<Target> = own_store(&config).into_iter().collect();
        let (over_bgp, by_store): (Vec<&Peer>, Vec<&Peer>) =
            peers.peers.values().map(|entry| &entry.peer).partition(|peer| peer.over_bgp.is_some());
        targets.extend(by_store.into_iter().map(|peer| remote(&config, peer)));
        let mut broken: Vec<Report> = peers.problems.iter().map(broken_file).collect();
        broken.extend(over_bgp.into_iter().map(told_over_bgp));
        if let Some(name) = &self.cluster {
            let known: Vec<String> = targets.iter().map(|target| target.cluster.to_string()).collect();
            targets.retain(|target| target.cluster.as_str() == name);
            broken.retain(|report| report.cluster == *name);
            if targets.is_empty() && broken.is_empty() {
                return Err(Failure::usage(
                    format!("cluster {name} is not configured"),
                    format!("known here: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") }),
                ));
            }
        }
        let mut reports = broken;
        reports.extend(block_on(look_at(&config, &targets, self.timeout))?);
        match self.output.output {
            Format::Table | Format::Wide => output::text(&report::page(&reports))?,
            Format::Json => output::json(&reports)?,
            Format::Yaml => output::yaml(&reports)?,
        }
        if reports.iter().all(|report| report.ok) { Ok(()) } else { Err(Failure::Negative) }
    }
}

async fn look_at(config: &Config, targets: &[Target], timeout: Duration) -> Vec<Report> {
    let mut reports = Vec::new();
    // Ids of the clusters seen so far, so that two with the same id are noticed.
    let mut taken: Vec<(ClusterName, ClusterId)> = Vec::new();
    for target in targets {
        let mut report = Report::new(target.cluster.to_string(), target.own_store, target.source.clone());
        let certificate = target.tls.as_ref().map(|tls| files::check(&mut report, tls, &target.readers));
        let reached = endpoint::check(&mut report, target, certificate.as_ref(), timeout).await;
        match reached {
            Some(reached) => {
                let id =
                    store::check(&mut report, config, target, certificate.as_ref(), &reached, &taken, timeout).await;
                taken.extend(id.map(|id| (target.cluster.clone(), id)));
            }
            None => {
                for check in ["access", "clock", "cluster_config", "canaries"] {
                    report.skip(check, target.cluster.as_str(), "no endpoint can be reached");
                }
            }
        }
        reports.push(report);
    }
    reports
}

/// The own store, when it is somewhere else: an embedded one is served by the daemon itself.
fn own_store(config: &Config) -> Option<Target> {
    let StoreConfig::Etcd { endpoints, tls } = &config.store else { return None };
    let name = &config.cluster.name;
    Some(Target {
        cluster: name.clone(),
        own_store: true,
        endpoints: endpoints.clone(),
        tls: tls.clone(),
        host_aliases: BTreeMap::new(),
        source: config.file.display().to_string(),
        readers: vec![format!("node-{name}"), format!("admin-{name}"), "root".to_owned()],
    })
}

fn remote(config: &Config, peer: &Peer) -> Target {
    Target {
        cluster: peer.cluster.clone(),
        own_store: false,
        endpoints: peer.endpoints.clone(),
        tls: peer.tls.clone(),
        host_aliases: peer.host_aliases.clone(),
        source: peer.source.display().to_string(),
        readers: vec!["remote".to_owned(), format!("remote-{}", config.cluster.name)],
    }
}

/// There is no store to look at.
fn told_over_bgp(peer: &Peer) -> Report {
    let mut report = Report::new(peer.cluster.to_string(), false, peer.source.display().to_string());
    report.skip(
        "endpoints",
        peer.cluster.as_str(),
        "it is told over BGP; see `meshd bgp summary` and `meshd get peers`",
    );
    report
}

fn broken_file(problem: &crate::sources::config::PeerProblem) -> Report {
    let file = problem.file.display().to_string();
    let cluster = problem.cluster.as_ref().map_or_else(|| file.clone(), ToString::to_string);
    let mut report = Report::new(cluster, false, file.clone());
    let hint = "correct the file; the daemon reads it again by itself";
    report.fail(
        "configuration",
        file,
        Diagnosis::new(&problem.message, "a file of the peers directory is wrong", hint),
    );
    report
}
