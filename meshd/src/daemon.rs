//! The daemon, put together in the order data flows.
//!
//! Everything a node does is started here and nowhere else: state directory, kernel, own store, sources, pipeline,
//! reconcilers, API. Then the main loop waits for signals. Stopping ends the tasks and leaves every route and record
//! where it is (I10).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
use meshd_core::{
    derive::{LocalNode, RouteDeriver},
    id::{ClusterName, MAIN_TABLE, TableId},
    plan::PlannerOptions,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::{
        server::{self, Api, Drain},
        view::DrainView,
    },
    config::{Config, ConfigSource, host},
    kernel::linux::{LinuxOptions, LinuxRoutes, Netns},
    lifecycle::{Problems, Tasks, hangups, notify, stop_signal},
    pipeline::{CHANGES_MAX, Pipeline, Snapshot},
    reconcilers::routes::{Routes, RoutesHandle},
    sources::{
        config::{self as peers, PeerSet, PeerSources},
        etcd::{EtcdSource, OwnCluster},
        netlink::NetlinkSource,
    },
    store::own::OwnStore,
};

/// Longest wait for tasks and the store to end.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long other nodes get to hear that a drained node is gone before its own routes go.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// Worker threads: the daemon waits most of its life, and every thread costs memory.
const WORKERS: usize = 2;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When a part cannot be started, or a task ends that should not.
pub fn run(config: Config, source: ConfigSource) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let result = runtime.block_on(start(config, source));
    runtime.shutdown_timeout(STOP_DEADLINE);
    result
}

async fn start(config: Config, source: ConfigSource) -> anyhow::Result<()> {
    let started = Timestamp::now();
    let stop = CancellationToken::new();
    let problems = Problems::default();
    let mut tasks = Tasks::default();
    let local = Arc::new(local_node(&config)?);
    info!(cluster = %local.cluster, node = %local.name, version = env!("CARGO_PKG_VERSION"), "meshd starts");
    for warning in &config.warnings {
        warn!(%warning, "configuration");
    }
    let listener = server::bind(&config.api.socket)
        .with_context(|| format!("failed to listen on {}", config.api.socket.display()))?;

    let (kernel, events) =
        LinuxRoutes::start(LinuxOptions { metric: config.routing.metric, ..LinuxOptions::default() })
            .context("failed to talk to the kernel about routes; meshd run needs CAP_NET_ADMIN")?;
    let kernel = Arc::new(kernel);
    let own_store = OwnStore::open(&config, local.name.as_str(), &problems, &mut tasks, &stop).await?;

    // ① sources
    let (changes, changes_rx) = mpsc::channel(CHANGES_MAX);
    let (peer_sources, peer_sources_rx) = watch::channel(PeerSources::from(&config));
    let first_peers = peers::watch::read(&peer_sources.borrow(), &BTreeMap::new());
    let (peer_set, peer_set_rx) = watch::channel(first_peers);
    tasks.spawn("peers", peers::run(peer_sources_rx, peer_set));
    let _netlink = NetlinkSource::start(Netns::current(), changes.clone(), problems.clone())
        .context("failed to follow links, addresses and routes")?;
    let etcd = EtcdSource {
        own: own_cluster(&config, &local),
        own_store: own_store.address(),
        peers: peer_set_rx.clone(),
        changes,
        known_ids: BTreeMap::new(),
        timers: Default::default(),
    };
    tasks.spawn("etcd", etcd.run(stop.clone()));

    // ② derive
    let (snapshots, snapshots_rx) = watch::channel(Arc::new(Snapshot::default()));
    let (clusters, clusters_rx) = watch::channel(BTreeSet::new());
    let (names, names_rx) = watch::channel(BTreeMap::new());
    tasks.spawn("peer-names", follow_peers(peer_set_rx, local.cluster.clone(), clusters, names, problems.clone()));
    let deriver = RouteDeriver::new((*local).clone(), BTreeMap::new());
    tasks.spawn(
        "pipeline",
        Pipeline { changes: changes_rx, clusters: clusters_rx, snapshots, deriver, memory: () }.run(),
    );

    // ③ reconcilers
    let options = PlannerOptions {
        table: TableId(MAIN_TABLE),
        metric: config.routing.metric,
        nexthop_objects: config.routing.nexthop_objects,
    };
    let (routes, routes_handle, settled) = Routes::new(options, kernel, events, snapshots_rx.clone(), problems.clone());
    tasks.spawn("routes", routes.run());

    // what people see
    let api = Api {
        local: local.clone(),
        cluster_id: config.cluster.id,
        snapshots: snapshots_rx,
        peer_sources: names_rx,
        routes: routes_handle.clone(),
        problems: problems.clone(),
        ready: settled.clone(),
        drain: drain(routes_handle),
        started,
    };
    tasks.spawn("api", server::serve(listener, api));

    let result = main_loop(&config, source, &problems, &mut tasks, peer_sources, settled, &own_store).await;
    notify::stopping();
    stop.cancel();
    if timeout(STOP_DEADLINE, async {
        tasks.stop().await;
        own_store.close().await;
    })
    .await
    .is_err()
    {
        warn!("some tasks did not end in time");
    }
    info!("meshd stops; routes and records stay");
    result
}

async fn main_loop(
    config: &Config,
    source: ConfigSource,
    problems: &Problems,
    tasks: &mut Tasks,
    peer_sources: watch::Sender<PeerSources>,
    mut settled: watch::Receiver<bool>,
    own_store: &OwnStore,
) -> anyhow::Result<()> {
    let mut hangups = hangups().context("failed to handle SIGHUP")?;
    let stop = stop_signal();
    tokio::pin!(stop);
    let mut watchdog = notify::watchdog_period().map(interval);
    let mut announced = false;
    loop {
        tokio::select! {
            result = &mut stop => return result.context("failed to handle stop signals"),
            end = tasks.first_end() => anyhow::bail!("{end}"),
            _ = hangups.recv() => {
                notify::reloading();
                reload(config, &source, problems, &peer_sources, own_store);
                notify::ready("running");
            }
            changed = settled.changed(), if !announced => {
                announced = true;
                if changed.is_ok() {
                    info!("the kernel holds every route we know of");
                    notify::ready("running");
                }
            }
            () = tick(&mut watchdog) => notify::alive(),
        }
    }
}

async fn tick(watchdog: &mut Option<tokio::time::Interval>) {
    match watchdog {
        Some(period) => drop::<Instant>(period.tick().await),
        None => std::future::pending().await,
    }
}

/// Reads the configuration again. Peers and certificates change at once; the rest needs a restart and says so.
fn reload(
    running: &Config,
    source: &ConfigSource,
    problems: &Problems,
    peer_sources: &watch::Sender<PeerSources>,
    own_store: &OwnStore,
) {
    let new = match source.load() {
        Ok(new) => new,
        Err(errors) => {
            problems.set("config", format!("the last good configuration stays in use: {errors}"));
            return;
        }
    };
    own_store.reload(&new, problems);
    peer_sources.send_replace(PeerSources::from(&new));
    let live = Config {
        peers: running.peers.clone(),
        peers_dir: running.peers_dir.clone(),
        peers_defaults: running.peers_defaults.clone(),
        warnings: running.warnings.clone(),
        ..new
    };
    let needs_restart = live != *running;
    problems.report(
        "config",
        needs_restart.then(|| "a change outside `peers` takes effect at the next restart".to_owned()),
    );
    info!("configuration reloaded");
}

fn local_node(config: &Config) -> anyhow::Result<LocalNode> {
    let resolved = host::resolve(&config.node).context("failed to find out who this node is")?;
    Ok(LocalNode {
        cluster: config.cluster.name.clone(),
        name: resolved.name,
        addresses: resolved.addresses,
        pod_cidrs: config.node.pod_cidrs.clone(),
    })
}

fn own_cluster(config: &Config, local: &LocalNode) -> OwnCluster {
    OwnCluster {
        name: config.cluster.name.clone(),
        id: config.cluster.id,
        max_clusters: config.cluster.max_clusters,
        node: local.name.clone(),
        addresses: local.addresses.clone() as Vec<IpAddr>,
        pod_cidrs: local.pod_cidrs.clone(),
    }
}

/// Tells the pipeline which clusters there are and the API where they come from; problems of the peers directory
/// become problems of the node.
async fn follow_peers(
    mut peers: watch::Receiver<PeerSet>,
    own: ClusterName,
    clusters: watch::Sender<BTreeSet<ClusterName>>,
    names: watch::Sender<BTreeMap<ClusterName, String>>,
    problems: Problems,
) {
    let mut reported: BTreeSet<String> = BTreeSet::new();
    loop {
        let set = peers.borrow_and_update().clone();
        clusters.send_replace(set.peers.keys().cloned().chain([own.clone()]).collect());
        let source = |entry: &peers::PeerEntry| entry.peer.source.display().to_string();
        names.send_replace(set.peers.iter().map(|(name, entry)| (name.clone(), source(entry))).collect());
        let now: BTreeMap<String, String> = set
            .problems
            .iter()
            .map(|problem| (format!("peers/{}", problem.file.display()), problem.message.clone()))
            .collect();
        for solved in reported.iter().filter(|component| !now.contains_key(*component)) {
            problems.clear(solved);
        }
        for (component, message) in &now {
            problems.set(component, message);
        }
        reported = now.into_keys().collect();
        if peers.changed().await.is_err() {
            return;
        }
    }
}

/// Takes the node out of the mesh: first its records, so that nobody sends to it any more, then its routes.
fn drain(routes: RoutesHandle) -> Drain {
    Arc::new(move || {
        let routes = routes.clone();
        Box::pin(async move {
            let mut view = DrainView::default();
            tokio::time::sleep(DRAIN_GRACE).await;
            match routes.withdraw().await {
                Ok(Ok(count)) => view.removed_routes = count as u64,
                Ok(Err(message)) => view.errors.push(message),
                Err(ended) => view.errors.push(ended.to_string()),
            }
            view
        })
    })
}
