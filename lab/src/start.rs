//! Starting the daemons of a lab, each node after the nodes it waits for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::lab::{Lab, each};
use crate::node::{Node, Output};
use crate::topology::{NodeSpec, Stage};

/// How long a node may take to reach a stage that another one waits for.
const AWAITED_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// Starts the daemons of every node. Nodes that wait for nobody start together, then those that wait for them, and so
/// on; at the end every node with commands for the moment it becomes healthy has run them.
pub(crate) fn daemons(lab: &Lab) -> Result<()> {
    let mut waiting: Vec<&NodeSpec> = lab.topology().nodes.iter().collect();
    let mut started: BTreeSet<&str> = BTreeSet::new();
    let mut healthy: BTreeSet<&str> = BTreeSet::new();
    while !waiting.is_empty() {
        // No node waits for itself, not even through others: that is refused when the topology is read. So each round
        // has at least one node.
        let (round, later): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|spec| spec.wait_for.iter().all(|wait| started.contains(wait.node.as_str())));
        waiting = later;
        let awaited = |stage: Stage| {
            let waits = round.iter().flat_map(|spec| &spec.wait_for);
            waits.filter(move |wait| wait.stage == stage).map(|wait| wait.node.as_str()).collect::<BTreeSet<_>>()
        };
        each(handles(lab, &awaited(Stage::Exit))?, await_exit)?;
        let unsettled: BTreeSet<&str> = awaited(Stage::Healthy).difference(&healthy).copied().collect();
        each(handles(lab, &unsettled)?, settle)?;
        healthy.extend(unsettled);
        let names: BTreeSet<&str> = round.iter().map(|spec| spec.name.as_str()).collect();
        each(handles(lab, &names)?, start)?;
        started.extend(names);
    }
    let with_commands = lab.topology().nodes.iter().filter(|spec| !spec.on_healthy.is_empty());
    let unsettled: BTreeSet<&str> =
        with_commands.map(|spec| spec.name.as_str()).filter(|name| !healthy.contains(name)).collect();
    each(handles(lab, &unsettled)?, settle)
}

fn handles(lab: &Lab, names: &BTreeSet<&str>) -> Result<Vec<Node>> {
    names.iter().map(|name| lab.node(name)).collect()
}

fn start(node: &Node) -> Result<()> {
    let delay_s = node.spec().map_or(0, |spec| spec.startup_delay_s);
    std::thread::sleep(Duration::from_secs(delay_s.into()));
    node.daemons().iter().try_for_each(Daemon::start)
}

/// Waits until a node is healthy and runs its commands for that moment.
fn settle(node: &Node) -> Result<()> {
    node.wait_healthy(AWAITED_WITHIN)?;
    let commands = node.spec().map(|spec| spec.on_healthy.as_slice()).unwrap_or_default();
    commands.iter().try_for_each(|command| node.exec(command).and_then(Output::ok).map(drop))
}

/// Waits until the main daemon of a node has ended.
fn await_exit(node: &Node) -> Result<()> {
    let deadline = Instant::now() + AWAITED_WITHIN;
    while node.daemons().first().is_some_and(Daemon::is_running) {
        if Instant::now() >= deadline {
            let condition = format!("the main daemon of {} to end", node.name());
            return Err(Error::Deadline { condition, within: AWAITED_WITHIN, last: "it still runs".to_owned() });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
