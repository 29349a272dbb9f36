//! Which programs belong onto which links, and putting them there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use meshd_core::{
    derive::LocalNode,
    id::IfIndex,
    observed::{LinkRow, RouteKind},
};
use meshd_datapath::{Attached, Program, Programs};
use tracing::{info, warn};

use super::error_chain;
use crate::{
    config::model::services::{LinkPattern, XdpUse},
    pipeline::Snapshot,
};

/// What the configuration says about links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkPlan {
    /// Links that lead out of the node; empty: those that carry its addresses.
    pub uplinks: Vec<LinkPattern>,
    /// Links of workloads; empty: those that routes to its workloads name.
    pub workloads: Vec<LinkPattern>,
    /// Where packets from outside are taken over.
    pub xdp: XdpUse,
}

/// A program on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attachment {
    /// The link's name.
    pub name: Arc<str>,
    /// How it is attached, or why not.
    pub outcome: Result<Attached, String>,
}

/// Programs on links.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) attached: BTreeMap<(Program, IfIndex), Attachment>,
    known: bool,
}

impl Links {
    /// True when a program is attached to the link with this name.
    pub(super) fn is_on(&self, program: Program, link: &str) -> bool {
        self.attached
            .iter()
            .any(|((on, _), attachment)| *on == program && &*attachment.name == link && attachment.outcome.is_ok())
    }

    /// Attaches and detaches until the programs are where they belong; returns what the kernel refused. A refusal is tried again
    /// with the next snapshot.
    pub(super) fn follow(
        &mut self,
        plan: &LinkPlan,
        local: &LocalNode,
        snapshot: &Snapshot,
        programs: &mut Programs,
    ) -> Vec<String> {
        if !snapshot.local_known {
            return Vec::new();
        }
        let wanted = wanted(plan, local, snapshot);
        if !self.known {
            self.known = true;
            // Links of an earlier process that nobody wants any more.
            for (program, link) in programs.attached() {
                if !wanted.contains_key(&(program, link)) {
                    detach(programs, program, link);
                }
            }
        }
        let gone: Vec<(Program, IfIndex)> =
            self.attached.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for (program, link) in gone {
            self.attached.remove(&(program, link));
            detach(programs, program, link);
        }
        let mut refusals = Vec::new();
        for ((program, link), name) in wanted {
            if self.attached.get(&(program, link)).is_some_and(|attachment| attachment.outcome.is_ok()) {
                continue;
            }
            let outcome = programs.attach(program, link).map_err(|error| error_chain(&error));
            match &outcome {
                Ok(attached) => info!(link = %name, program = program.name(), ?attached, "attached"),
                Err(error) => refusals.push(format!("{} is not on {name}: {error}", program.name())),
            }
            self.attached.insert((program, link), Attachment { name, outcome });
        }
        refusals
    }
}

fn detach(programs: &mut Programs, program: Program, link: IfIndex) {
    match programs.detach(program, link) {
        Ok(true) => info!(%link, program = program.name(), "detached"),
        // The link went, and took the program along.
        Ok(false) => {}
        Err(error) => warn!(%link, program = program.name(), error = error_chain(&error), "failed to detach"),
    }
}

fn wanted(plan: &LinkPlan, local: &LocalNode, snapshot: &Snapshot) -> BTreeMap<(Program, IfIndex), Arc<str>> {
    let mut wanted = BTreeMap::new();
    for (link, row) in snapshot.observed.links.iter().filter(|(_, row)| !row.loopback && row.mac.is_some()) {
        let mut want = |program| drop(wanted.insert((program, *link), row.name.clone()));
        if is_uplink(plan, local, snapshot, *link, row) {
            want(Program::UplinkIngress);
            want(Program::UplinkEgress);
            // A virtual link has to make a frame of what is a segment of many, which costs more than the stack.
            if plan.xdp == XdpUse::On || (plan.xdp == XdpUse::Auto && row.kind.is_none()) {
                want(Program::XdpUplink);
            }
        } else if is_workload(plan, local, snapshot, *link, row) {
            want(Program::WorkloadIngress);
            want(Program::WorkloadEgress);
        }
    }
    wanted
}

fn is_uplink(plan: &LinkPlan, local: &LocalNode, snapshot: &Snapshot, link: IfIndex, row: &LinkRow) -> bool {
    if !plan.uplinks.is_empty() {
        return plan.uplinks.iter().any(|pattern| pattern.matches(&row.name));
    }
    snapshot.observed.addresses.iter().any(|(key, _)| key.link == link && local.addresses.contains(&key.address.addr()))
}

/// By default a link is one of workloads when a route to an address or a part of our PodCIDRs leads through it directly.
fn is_workload(plan: &LinkPlan, local: &LocalNode, snapshot: &Snapshot, link: IfIndex, row: &LinkRow) -> bool {
    if !plan.workloads.is_empty() {
        return plan.workloads.iter().any(|pattern| pattern.matches(&row.name));
    }
    workload_links(local, snapshot).contains(&link)
}

fn workload_links(local: &LocalNode, snapshot: &Snapshot) -> BTreeSet<IfIndex> {
    let is_own = |prefix: &ipnet::IpNet| local.pod_cidrs.iter().any(|cidr| cidr.contains(prefix));
    snapshot
        .observed
        .routes
        .iter()
        .filter(|(key, row)| row.kind == RouteKind::Unicast && is_own(&key.prefix))
        .flat_map(|(_, row)| row.hops.iter().filter(|hop| hop.via.is_none()).map(|hop| hop.dev))
        .collect()
}
