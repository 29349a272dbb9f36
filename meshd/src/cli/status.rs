//! `meshd status`: is this node well?

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;

use super::client::{SocketOptions, block_on};
use super::failure::Failure;
use super::options::{Format, OutputOptions};
use super::{output, rows};
use crate::api::view::{Health, ProgramView, StatusView};

/// How often `--wait` asks.
const WAIT_INTERVAL: Duration = Duration::from_millis(250);

/// Show how this node is; exit 0 only when it is healthy
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Wait until it is healthy
    #[arg(long)]
    wait: bool,
    /// How long to wait, e.g. 30s, 2m, or seconds
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = super::options::duration)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        let view = block_on(self.ask())??;
        match self.output.output {
            Format::Table => output::text(&page(&view, false))?,
            Format::Wide => output::text(&page(&view, true))?,
            Format::Json => output::json(&view)?,
            Format::Yaml => output::yaml(&view)?,
        }
        if view.health == Health::Ok { Ok(()) } else { Err(Failure::Negative) }
    }

    /// Asks once, or until the node is healthy or the time is over; then the last answer is the result.
    async fn ask(&self) -> Result<StatusView, Failure> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let answer = self.socket.get::<StatusView>("/v1/status").await;
            let healthy = answer.as_ref().is_ok_and(|view| view.health == Health::Ok);
            if healthy || !self.wait || Instant::now() + WAIT_INTERVAL > deadline {
                return answer;
            }
            tokio::time::sleep(WAIT_INTERVAL).await;
        }
    }
}

fn page(view: &StatusView, wide: bool) -> String {
    let mut page = String::new();
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let addresses = list(view.node.addresses.iter().map(ToString::to_string).collect());
    let pod_cidrs = list(view.node.pod_cidrs.iter().map(ToString::to_string).collect());
    let _ = writeln!(page, "Health:     {}", view.health);
    let _ = writeln!(page, "Cluster:    {} (id {})", view.cluster.name, view.cluster.id);
    let _ = writeln!(page, "Node:       {} (addresses {addresses}; pod CIDRs {pod_cidrs})", view.node.name);
    let ready = view.peers.iter().filter(|peer| peer.ready).count();
    let _ = writeln!(page, "Peers:      {ready}/{} ready", view.peers.len());
    let routes = view.routes;
    let _ = writeln!(page, "Routes:     {}/{} installed, {} errors", routes.installed, routes.desired, routes.errors);
    if view.bgp.peers > 0 {
        let bgp = view.bgp;
        let _ = writeln!(
            page,
            "BGP:        {}/{} established; paths {} received, {} accepted, {} installed",
            bgp.established, bgp.peers, bgp.received, bgp.accepted, bgp.installed
        );
    }
    let program = |view: &ProgramView| {
        let how = view.attached.as_deref().or(view.error.as_deref()).unwrap_or("not attached");
        format!("{} on {} ({how})", view.program, view.link)
    };
    let datapath = &view.datapath;
    let programs =
        if datapath.enabled { list(datapath.programs.iter().map(program).collect()) } else { "off".to_owned() };
    let direct = view.datapath.direct_return.as_ref();
    let direct = direct.map_or_else(String::new, |form| format!("; direct server return by {form}"));
    let tunnel =
        view.datapath.tunnel.as_ref().map_or_else(String::new, |form| format!("; tunnel by programs ({form})"));
    let fast = if datapath.fast_path { "; fast path between workloads" } else { "" };
    let _ = writeln!(page, "Datapath:   {programs}{direct}{tunnel}{fast}");
    for (feature, consequence) in &datapath.lacking {
        let _ = writeln!(page, "            this kernel lacks {feature}: {consequence}");
    }
    let masquerade = &view.masquerade;
    if masquerade.enabled {
        let state = if masquerade.installed { "on" } else { "not installed" };
        let _ = writeln!(
            page,
            "Masquerade: {state} (by {}; uplinks {}; {}/{} exclusions installed)",
            masquerade.by,
            list(masquerade.uplinks.clone()),
            masquerade.exclusions_installed,
            masquerade.exclusions
        );
    }
    if wide {
        let started = view.started.map_or_else(|| "unknown".to_owned(), |started| started.to_string());
        let _ = writeln!(page, "Version:    {}\nStarted:    {started}", view.version);
    }
    if !view.peers.is_empty() {
        page.push('\n');
        page.push_str(&rows::peers(&view.peers, wide).into_text());
    }
    if !view.problems.is_empty() {
        page.push_str("\nProblems:\n");
        for problem in &view.problems {
            let _ = writeln!(page, "  {}: {} (since {:.0})", problem.component, problem.message, problem.since);
        }
    }
    page
}
