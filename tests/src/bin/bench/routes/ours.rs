//! Our way: desired rows to acknowledged routes.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use jiff::Timestamp;
use meshd::{
    kernel::{
        ActualEvents, KernelRoutes as _,
        linux::{LinuxOptions, LinuxRoutes},
    },
    reconcilers::routes::{ROUNDS_IN_FLIGHT, actual},
};
use meshd_core::{
    desired::{Desired, Hop, NodeTarget, RouteRow, Target, TargetKey},
    id::{IfIndex, MAIN_TABLE, Metric, ROUTE_METRIC, TableId},
    plan::{FLUSH_ROUTES_MIN, PlannerOptions, RoutePlanner},
};
use tokio::{runtime, time::timeout};

use super::{Family, LINK};

/// The slowest machine confirms a million routes within this.
const DEADLINE: Duration = Duration::from_secs(120);

/// All prefixes behind one node.
pub(super) fn desired(family: Family, prefixes: &[IpNet]) -> Desired {
    let key = TargetKey::from(NodeTarget {
        cluster: "east".parse().expect("a cluster name"),
        node: "worker".parse().expect("a node name"),
        ipv4: family == Family::V4,
    });
    let hop = Hop { via: family.gateway().parse().expect("an address"), dev: IfIndex(LINK), tunnel: None };
    let target = Target::native([hop].into(), 1500);
    let row = Arc::new(RouteRow { target: key.clone() });
    Desired {
        routes: prefixes.iter().map(|prefix| (*prefix, row.clone())).collect(),
        targets: [(key, Arc::new(target))].into_iter().collect(),
        ..Desired::default()
    }
}

/// Installs the routes; returns how long it took until the kernel had acknowledged all of them, and until the planner
/// knew it from the kernel's own table.
pub(super) fn install(desired: &Desired) -> anyhow::Result<(Duration, Duration)> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build()?;
    let (kernel, mut events) = LinuxRoutes::start(LinuxOptions::default())?;
    let metric = Metric(ROUTE_METRIC);
    let options = PlannerOptions {
        table: TableId(MAIN_TABLE),
        metric,
        bgp_metric: metric,
        nexthop_objects: true,
        flush_routes_min: FLUSH_ROUTES_MIN,
    };
    let mut planner = RoutePlanner::new(options);
    runtime.block_on(async {
        // The daemon's first dump, of an empty table here, is not part of an installation.
        follow(&mut planner, &mut events).await?;
        let started = Instant::now();
        planner.set_desired(desired, true);
        let mut in_flight = VecDeque::new();
        loop {
            while let Ok(batch) = events.try_recv() {
                actual::observe(&mut planner, batch, &mut events);
            }
            let (actions, _) = planner.plan(Timestamp::now());
            let done = actions.is_empty();
            if !done {
                in_flight.push_back(kernel.submit(actions).await?);
            }
            while in_flight.len() >= ROUNDS_IN_FLIGHT || (done && !in_flight.is_empty()) {
                let Some(receipt) = in_flight.pop_front() else { break };
                let failures = receipt.await?;
                ensure!(failures.is_empty(), "{} routes failed, first: {}", failures.len(), failures[0]);
            }
            if done {
                break;
            }
        }
        let acknowledged = started.elapsed();
        while planner.actual_routes() < desired.routes.len() {
            follow(&mut planner, &mut events).await?;
        }
        let known = started.elapsed();
        ensure!(planner.plan(Timestamp::now()).0.is_empty(), "something is left to do");
        Ok((acknowledged, known))
    })
}

async fn follow(planner: &mut RoutePlanner, events: &mut ActualEvents) -> anyhow::Result<()> {
    let batch = timeout(DEADLINE, events.recv()).await.context("no events")?.context("the listener ended")?;
    actual::observe(planner, batch, events);
    Ok(())
}
