//! The daemon, put together in the order data flows.
//!
//! Everything a node does is started here and nowhere else: state directory, kernel, own store, sources, pipeline,
//! reconcilers, API. Then the main loop waits for signals. Stopping ends the tasks and leaves every route and record
//! where it is (I10).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use bgp::policy::Vrps;
use jiff::Timestamp;
use meshd_core::{
    clustermesh::{
        export::{OwnState, Workload},
        over_bgp::OverBgp,
    },
    derive::{LocalNode, MasqueradeDeriver, PathPolicy, RouteDeriver, ServiceDeriver, ZONE_LABEL},
    id::{ClusterName, MAIN_TABLE, TableId},
    observed::{Change, Labels, NodeAddress, NodeAddressKind, NodeRow, Observed, PathRow},
    plan::{FLUSH_ROUTES_MIN, PlannerOptions},
};
use meshd_datapath::Events;
use tokio::{
    signal::unix::Signal,
    sync::{Notify, mpsc, watch},
    task::{JoinError, JoinHandle, spawn_blocking},
    time::{Instant, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::{
        scrape,
        server::{self, Api, Drain},
        view::DrainView,
    },
    config::{
        self, Config, ConfigErrors, ConfigSource, host,
        model::bgp::{BgpConfig, BgpImport},
    },
    flows::{self, FlowsHandle},
    kernel::{
        linux::{LinuxOptions, LinuxRoutes, Netns},
        nftables::{self, Nft},
    },
    lifecycle::{Problems, Tasks, hangups, log, notify, once_free, stop_signal},
    pipeline::{CHANGES_MAX, Pipeline, Snapshot},
    reconcilers::{
        datapath::{self, DatapathHandle},
        export::{ExportHandle, ExportInputs, ExportTimers, Exporter, WriterRole},
        masquerade::{MasqueradeHandle, Masquerading},
        routes::{Routes, RoutesHandle},
        tunnels::{TunnelInputs, Tunnels, TunnelsHandle},
    },
    sources::{
        config::{self as peers, PeerSet, PeerSources, services::OwnServices},
        etcd::{self, EtcdSource, OwnCluster},
        masquerade::{self, MasqueradeSources},
        netlink::NetlinkSource,
        probes::{self, PathReports, ProbeSource},
    },
    speaker::{self, SpeakerHandle, Surroundings, boot::Mark, convert::SpeakerConfig, settings::Settings},
    state::{State, StateError},
    store::own::OwnStore,
};

/// Longest wait for tasks and the store to end.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long the route reconciler may take to answer the watchdog.
const ALIVE_DEADLINE: Duration = Duration::from_secs(5);
/// How long other nodes get to hear that a drained node is gone before its own routes go.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// What operators of BGP peers read when a node is drained.
const DRAIN_WORDS: &str = "this node is being drained";
/// Worker threads: the daemon waits most of its life, and every thread costs memory.
const WORKERS: usize = 2;

/// How often it is looked whether the file of VRPs is another one.
const VRPS_INTERVAL: Duration = Duration::from_secs(10);

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When a part cannot be started, or a task ends that should not.
pub fn run(config: Config, source: ConfigSource) -> anyhow::Result<()> {
    log::start(&config.log).context("failed to start logging")?;
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
    // First of all: a signal that nobody handles ends the process, and one that comes before we are ready is a reload, too.
    let hangups = hangups().context("failed to handle SIGHUP")?;
    let stop = CancellationToken::new();
    let problems = Problems::default();
    let mut tasks = Tasks::default();
    let local = Arc::new(local_node(&config)?);
    info!(cluster = %local.cluster, node = %local.name, version = env!("CARGO_PKG_VERSION"), "meshd starts");
    for warning in &config.warnings {
        warn!(%warning, "configuration");
    }
    let listener = once_free(|| server::bind(&config.api.socket), |error| error.kind() == io::ErrorKind::AddrInUse)
        .await
        .with_context(|| format!("failed to listen on {}", config.api.socket.display()))?;

    let (peer_sources, peer_sources_rx) = watch::channel(PeerSources::from(&config));
    // Systemd makes it; a daemon started by hand should not fail because nobody did.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state_dir)
        .with_context(|| format!("failed to make the state directory {}", config.state_dir.display()))?;
    let mut first_peers = PeerSet::default();
    let open = || {
        // Which of them are configured can depend on which there are: see `PeerSet::kept`.
        let configured = |remembered: &BTreeSet<ClusterName>| {
            let remembered = remembered.iter().filter(|name| **name != local.cluster).cloned().collect();
            let before = peers::Before { remembered, ..peers::Before::default() };
            first_peers = peers::watch::read(&peer_sources.borrow(), &before);
            first_peers.clusters().chain([&local.cluster]).cloned().collect()
        };
        State::open(&config.state_dir, configured, started)
    };
    let (state, mut loaded) = once_free(open, |error| matches!(error, StateError::InUse { .. }))
        .await
        .with_context(|| format!("failed to open the state directory {}", config.state_dir.display()))?;
    // What is remembered of those that BGP tells is limited prefix by prefix, and not node by node, by the speaker.
    for (name, entry) in first_peers.peers.iter().filter(|(_, entry)| entry.peer.over_bgp.is_none()) {
        loaded.limit(name, etcd::accept(entry), started);
    }
    problems.report("state", loaded.set_aside.as_ref().map(ToString::to_string));
    // What was found out about paths counts from the first look on: nobody is sent where packets get lost.
    let broken_paths = probes::memory::load(&config.state_dir);
    let rows = broken_paths.iter().map(|key| (key.clone(), Some(PathRow { broken: true, ..PathRow::default() })));
    loaded.observed.apply(Change::Paths(rows.collect()), started);
    let metric = config.routing.metric;
    let bgp_metric = config.bgp.as_ref().map_or(metric, |bgp| bgp.import.metric);
    let (kernel, events) = LinuxRoutes::start(LinuxOptions { metric, bgp_metric, ..LinuxOptions::default() })
        .context("failed to talk to the kernel about routes; meshd run needs CAP_NET_ADMIN")?;
    let kernel = Arc::new(kernel);
    let own_store = OwnStore::open(&config, local.name.as_str(), &problems, &mut tasks, &stop).await?;
    let own_store = Arc::new(own_store);

    // ① sources
    let (changes, changes_rx) = mpsc::channel(CHANGES_MAX);
    let (peer_set, peer_set_rx) = watch::channel(first_peers);
    let remembered_clusters: BTreeSet<ClusterName> =
        loaded.observed.clusters.keys().filter(|name| **name != local.cluster).cloned().collect();
    tasks.spawn("peers", peers::run(peer_sources_rx, remembered_clusters.clone(), peer_set));
    let _netlink = NetlinkSource::start(Netns::current(), changes.clone(), problems.clone())
        .context("failed to follow links, addresses and routes")?;
    let (masquerade_sources, masquerade_sources_rx) = watch::channel(MasqueradeSources::from(&config));
    tasks.spawn("masquerade-source", masquerade::run(masquerade_sources_rx, changes.clone(), problems.clone()));
    let bgp_changes = changes.clone();
    let probe_changes = changes.clone();
    let (own_services, own_services_rx) = watch::channel(config.own_services.clone());
    tasks.spawn("services", peers::services::run(own_services_rx, changes.clone()));
    let etcd = EtcdSource {
        own: own_cluster(&config, &local),
        own_store: own_store.address(),
        peers: peer_set_rx.clone(),
        changes,
        known_ids: loaded.known_ids.clone(),
        remembered: remembered_clusters,
        timers: Default::default(),
    };
    tasks.spawn("etcd", etcd.run(stop.clone()));
    let (snapshots, snapshots_rx) = watch::channel(Arc::new(Snapshot::default()));
    let around = AroundSpeaker {
        changes: bgp_changes,
        snapshots: snapshots_rx.clone(),
        remembered: told_over_bgp(&config, &loaded.observed),
    };
    let speaker = start_speaker(&config, &local, around, &problems, &mut tasks, &stop)?;

    // ② derive
    let (clusters, clusters_rx) = watch::channel(BTreeSet::new());
    let (policies, policies_rx) = watch::channel(Arc::new(config.path_policy()));
    let (names, names_rx) = watch::channel(BTreeMap::new());
    let names_task =
        follow_peers(peer_set_rx, local.cluster.clone(), clusters, names, own_store.clone(), problems.clone());
    tasks.spawn("peer-names", names_task);
    let remembered = loaded.remembered(&local.cluster, &local.name);
    let deriver = RouteDeriver::new((*local).clone(), loaded.owners);
    let services = ServiceDeriver::new((*local).clone(), config.services.remote_timeout);
    let pipeline = Pipeline {
        remembered: loaded.observed,
        changes: changes_rx,
        clusters: clusters_rx,
        policies: policies_rx.clone(),
        snapshots,
        has_speaker: speaker.is_some(),
        deriver,
        services,
        masquerade: MasqueradeDeriver::new((*local).clone()),
    };
    tasks.spawn("pipeline", pipeline.run());

    // ③ reconcilers
    let options = PlannerOptions {
        table: TableId(MAIN_TABLE),
        metric,
        bgp_metric,
        nexthop_objects: config.routing.nexthop_objects,
        flush_routes_min: FLUSH_ROUTES_MIN,
    };
    let (routes, routes_handle, settled) =
        Routes::new(options, kernel, events, snapshots_rx.clone(), loaded.left_over, problems.clone());
    tasks.spawn("routes", routes.run());
    let path_reports = PathReports::default();
    let probes = ProbeSource {
        local: local.clone(),
        settings: config.routing.probe,
        policies: policies_rx.clone(),
        snapshots: snapshots_rx.clone(),
        changes: probe_changes,
        problems: problems.clone(),
        state_dir: config.state_dir.clone(),
        remembered: broken_paths,
        reports: path_reports.clone(),
    };
    tasks.spawn("probes", probes.run());
    let tunnels = TunnelInputs {
        local: local.clone(),
        policies: policies_rx.clone(),
        snapshots: snapshots_rx.clone(),
        routes: routes_handle.clone(),
        touched: Arc::default(),
        problems: problems.clone(),
    };
    let tunnels = start_tunnels(tunnels, &mut tasks);
    let datapath = start_datapath(&config, &local, (snapshots_rx.clone(), policies_rx), &problems, &mut tasks);
    let programs = datapath.as_ref().map(|(handle, _)| handle.masquerades.clone());
    let masquerade = start_masquerade(snapshots_rx.clone(), programs, &problems, &mut tasks);
    let role = if own_store.is_embedded() { WriterRole::Host } else { WriterRole::Elected };
    let (own, own_rx) = watch::channel(Arc::new(own_state(&config, &local)));
    let (exporter, export_handle) = Exporter::new(
        ExportInputs { own: own_rx, snapshots: snapshots_rx.clone() },
        own_store.address(),
        role,
        ExportTimers::default(),
        remembered,
        state.facts(),
        problems.clone(),
    );
    tasks.spawn("export", exporter.run());
    let saving = tokio::spawn(state.run(snapshots_rx.clone(), problems.clone(), stop.clone()));

    // what people see
    let api = Api {
        local: local.clone(),
        cluster_id: config.cluster.id,
        snapshots: snapshots_rx,
        peer_sources: names_rx,
        routes: routes_handle.clone(),
        masquerade: masquerade.clone(),
        datapath: datapath.as_ref().map(|(handle, _)| handle.status.clone()),
        flows: datapath.as_ref().and_then(|(_, flows)| flows.clone()),
        paths: path_reports,
        problems: problems.clone(),
        ready: settled.clone(),
        own_store: own_store.clone(),
        speaker: speaker.as_ref().map(|speaker| speaker.handle.clone()),
        drain: drain(Leaving {
            routes: routes_handle.clone(),
            tunnels,
            masquerade,
            datapath: datapath.map(|(handle, _)| handle),
            export: export_handle,
            speaker: speaker.as_ref().map(|speaker| speaker.handle.clone()),
        }),
        started,
    };
    if let Some(address) = config.api.metrics {
        tasks.spawn("metrics", scrape::serve(address, server::metrics_router(api.clone()), problems.clone()));
    }
    tasks.spawn("api", server::serve(listener, api));

    let speaker_ended = speaker.as_ref().map(|speaker| speaker.ended.clone());
    let live = Live {
        bgp: speaker.map(|speaker| speaker.config),
        config,
        source,
        local,
        peer_sources,
        masquerade_sources,
        policies,
        own,
        own_services,
        own_store: own_store.clone(),
        routes: routes_handle,
        problems,
    };
    let result = main_loop(&live, &mut tasks, settled, hangups).await;
    notify::stopping();
    stop.cancel();
    let ended = timeout(STOP_DEADLINE, async {
        if let Err(error) = saving.await {
            warn!(%error, "the state was not saved to the end");
        }
        tasks.stop().await;
        // It says goodbye to those who watch, and finishes its files, perhaps on another disk than the store's.
        let speaker = async {
            if let Some(ended) = speaker_ended {
                ended.cancelled().await;
            }
        };
        tokio::join!(speaker, own_store.close());
    });
    if ended.await.is_err() {
        warn!("some tasks did not end in time");
    }
    info!("meshd stops; routes and records stay");
    result
}

/// What the main loop needs to reload the configuration and to tell that the daemon lives.
struct Live {
    /// Where the speaker's configuration goes, if there is a speaker.
    bgp: Option<watch::Sender<SpeakerConfig>>,
    config: Config,
    source: ConfigSource,
    local: Arc<LocalNode>,
    peer_sources: watch::Sender<PeerSources>,
    masquerade_sources: watch::Sender<MasqueradeSources>,
    policies: watch::Sender<Arc<PathPolicy>>,
    own: watch::Sender<Arc<OwnState>>,
    own_services: watch::Sender<OwnServices>,
    own_store: Arc<OwnStore>,
    routes: RoutesHandle,
    problems: Problems,
}

async fn main_loop(
    live: &Live,
    tasks: &mut Tasks,
    mut settled: watch::Receiver<bool>,
    mut hangups: Signal,
) -> anyhow::Result<()> {
    let stop = stop_signal();
    tokio::pin!(stop);
    let mut watchdog = notify::watchdog_period().map(interval);
    let mut announced = false;
    let mut reading = None;
    loop {
        tokio::select! {
            result = &mut stop => return result.context("failed to handle stop signals"),
            end = tasks.first_end() => anyhow::bail!("{end}"),
            // The files it names can be large, or on a disk that hangs. One reading at a time; a signal meanwhile is kept.
            _ = hangups.recv(), if reading.is_none() => {
                notify::reloading();
                let source = live.source.clone();
                reading = Some(spawn_blocking(move || source.load()));
            }
            new = read(&mut reading) => {
                reading = None;
                live.take_over(new.context("failed to read the configuration again")?);
                notify::ready("running");
            }
            changed = settled.changed(), if !announced => {
                announced = true;
                if changed.is_ok() {
                    info!("the kernel holds every route we know of");
                    notify::ready("running");
                }
            }
            // Only a reconciler that answers is alive: it waits for the kernel and the pipeline, not for us.
            () = tick(&mut watchdog) => if timeout(ALIVE_DEADLINE, live.routes.is_alive()).await.is_ok() {
                notify::alive();
            } else {
                warn!("the route reconciler does not answer; systemd is not told that we are alive");
            },
        }
    }
}

/// The end of a reading of the configuration, if there is one.
async fn read<T>(reading: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}

async fn tick(watchdog: &mut Option<tokio::time::Interval>) {
    match watchdog {
        Some(period) => drop::<Instant>(period.tick().await),
        None => std::future::pending().await,
    }
}

impl Live {
    /// Takes over a configuration that was read again. Peers, workloads, services of the cluster, masquerade, users and
    /// certificates change at once; the rest needs a restart and says so.
    fn take_over(&self, new: Result<Config, ConfigErrors>) {
        let new = match new {
            Ok(new) => new,
            Err(errors) => {
                self.problems.set("config", format!("the last good configuration stays in use: {errors}"));
                return;
            }
        };
        self.own_store.reload(&new, &self.problems);
        if let (Some(speaker), Some(wanted)) = (&self.bgp, SpeakerConfig::of(&new)) {
            // The name and the number of the own cluster are those of the start.
            speaker.send_replace(SpeakerConfig { cluster: self.config.cluster.clone(), ..wanted });
        }
        self.peer_sources.send_replace(PeerSources::from(&new));
        let unchanged = self.config.clone();
        // Of the section `routing` the one of the start counts, of the clusters the one that was read.
        let policy = Config { peers: new.peers.clone(), ..unchanged.clone() }.path_policy();
        self.policies.send_if_modified(|known| {
            let is_new = **known != policy;
            *known = Arc::new(policy);
            is_new
        });
        let native = unchanged.routing.native_cidrs.clone();
        self.masquerade_sources.send_replace(MasqueradeSources { native, ..MasqueradeSources::from(&new) });
        // The cluster's name, id and size are those that this process allocated identities and read remote clusters with: a
        // new id must not be published before a restart, because readers drop what they had of the old one.
        let own = Config { workloads: new.workloads.clone(), ..unchanged.clone() };
        self.own.send_replace(Arc::new(own_state(&own, &self.local)));
        self.own_services.send_replace(new.own_services.clone());
        let rest = Config {
            peers: unchanged.peers,
            peers_dir: unchanged.peers_dir,
            peers_defaults: unchanged.peers_defaults,
            workloads: unchanged.workloads,
            own_services: unchanged.own_services,
            masquerade: unchanged.masquerade,
            bgp: match (unchanged.bgp, &new.bgp) {
                // The kernel's routes have had this metric since the start.
                (Some(known), Some(new)) => {
                    let import = BgpImport { metric: new.import.metric, ..known.import };
                    Some(BgpConfig { import, ..known })
                }
                (None, Some(new)) => Some(new.clone()),
                (_, None) => None,
            },
            warnings: unchanged.warnings,
            ..new
        };
        let waits = rest != self.config;
        let message = "a change outside `peers`, `workloads`, `masquerade` and `bgp`, or of `bgp.import.metric`, takes effect at the next restart";
        self.problems.report("config", waits.then(|| message.to_owned()));
        info!("configuration reloaded");
    }
}

/// A speaker that runs.
struct RunningSpeaker {
    config: watch::Sender<SpeakerConfig>,
    handle: SpeakerHandle,
    /// Its thread is over.
    ended: CancellationToken,
}

/// What the speaker hears of, and who hears of it.
struct AroundSpeaker {
    changes: mpsc::Sender<Change>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Clusters that BGP told the previous run.
    remembered: OverBgp,
}

/// What is remembered of the clusters that BGP tells.
fn told_over_bgp(config: &Config, remembered: &Observed) -> OverBgp {
    let told = config.peers.iter().filter(|peer| peer.over_bgp.is_some());
    let known = told.filter_map(|peer| Some((&peer.cluster, remembered.clusters.get(&peer.cluster)?)));
    let rows = known.map(|(name, tables)| {
        let nodes = tables.nodes.iter().map(|(node, row)| (node.clone(), row.clone()));
        (name.clone(), nodes.collect())
    });
    OverBgp::new(rows.collect())
}

/// Starts the BGP speaker, if there is to be one.
fn start_speaker(
    config: &Config,
    local: &LocalNode,
    around: AroundSpeaker,
    problems: &Problems,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> anyhow::Result<Option<RunningSpeaker>> {
    let Some(wanted) = SpeakerConfig::of(config) else { return Ok(None) };
    let AroundSpeaker { changes, snapshots, remembered } = around;
    let (mark, predecessor) = Mark::take_over(&config.state_dir).context("failed to remember that BGP is spoken")?;
    let stamp = vrps_stamp(&wanted.bgp);
    let (settings, settings_rx) = watch::channel(speaker_settings(&wanted, local, problems, None)?);
    let around = Surroundings {
        settings: settings_rx,
        changes,
        snapshots,
        problems: problems.clone(),
        mark,
        predecessor,
        remembered,
    };
    let (handle, ended) = speaker::start(around, stop.clone()).context("failed to start the BGP speaker")?;
    tasks.spawn("bgp", ended.clone().cancelled_owned());
    let (config, config_rx) = watch::channel(wanted);
    tasks.spawn("bgp-settings", tell_speaker(config_rx, settings, local.clone(), problems.clone(), stamp));
    Ok(Some(RunningSpeaker { config, handle, ended }))
}

/// Loads the programs of the datapath, or takes away what an earlier process left of them when it is switched off. A datapath that cannot
/// be started is a problem; everything else of the node works without it.
fn start_datapath(
    config: &Config,
    local: &Arc<LocalNode>,
    (snapshots, policies): (watch::Receiver<Arc<Snapshot>>, watch::Receiver<Arc<PathPolicy>>),
    problems: &Problems,
    tasks: &mut Tasks,
) -> Option<(DatapathHandle, Option<FlowsHandle>)> {
    let folder = Path::new(meshd_abi::BPFFS_FOLDER);
    if !config.services.enabled {
        match meshd_datapath::remove(folder) {
            Ok(false) => {}
            Ok(true) => info!("removed the programs of the datapath, which is switched off"),
            Err(error) => problems.set("datapath", format!("what is left of it cannot be removed: {error}")),
        }
        return None;
    }
    let options = datapath::Options::new(config, local, folder);
    let flow_snapshots = snapshots.clone();
    match datapath::start(options, snapshots, policies, problems.clone()) {
        Ok((task, handle)) => {
            tasks.spawn("datapath", task);
            let inputs = flows::Inputs {
                local: local.clone(),
                cluster_id: config.cluster.id,
                snapshots: flow_snapshots,
                services: handle.services.clone(),
                status: handle.status.clone(),
            };
            let flows = match Events::open(folder) {
                Ok(events) => {
                    let (task, flows) = flows::start(events, inputs);
                    tasks.spawn("flows", task);
                    Some(flows)
                }
                Err(error) => {
                    problems.set("flows", format!("not read: {:#}", anyhow::Error::from(error)));
                    None
                }
            };
            Some((handle, flows))
        }
        Err(error) => {
            problems.set("datapath", format!("not started: {:#}", anyhow::Error::from(error)));
            None
        }
    }
}

/// Starts what looks after the tunnel's link. Without notifications of the kernel the packet filter is looked at periodically.
fn start_tunnels(inputs: TunnelInputs, tasks: &mut Tasks) -> TunnelsHandle {
    match nftables::watch::start(inputs.touched.clone()) {
        Ok(watch) => tasks.spawn("tunnels-watch", watch),
        Err(error) => warn!(%error, "nobody tells about changes of the packet filter; it is looked at periodically"),
    }
    let (tunnels, handle) = Tunnels::new(inputs);
    tasks.spawn("tunnels", tunnels.run());
    handle
}

/// Starts what makes the packet filter hold the desired masquerade. Without notifications of the kernel it looks periodically.
fn start_masquerade(
    snapshots: watch::Receiver<Arc<Snapshot>>,
    programs: Option<watch::Receiver<bool>>,
    problems: &Problems,
    tasks: &mut Tasks,
) -> MasqueradeHandle {
    let touched = Arc::new(Notify::new());
    match nftables::watch::start(touched.clone()) {
        Ok(watch) => tasks.spawn("masquerade-watch", watch),
        Err(error) => warn!(%error, "nobody tells about changes of the packet filter; it is looked at periodically"),
    }
    let (masquerading, handle) = Masquerading::new(Arc::new(Nft), touched, snapshots, programs, problems.clone());
    tasks.spawn("masquerade", masquerading.run());
    handle
}

/// Differs when the file is another one.
type Stamp = Option<(u64, u64, i64, i64)>;

fn vrps_stamp(bgp: &BgpConfig) -> Stamp {
    let file = fs::metadata(bgp.vrps.as_ref()?).ok()?;
    Some((file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

/// Tells the speaker what it is to be whenever its configuration is another one, or the file of VRPs. That file can be large, so
/// it is read where nobody else waits for it.
async fn tell_speaker(
    mut configs: watch::Receiver<SpeakerConfig>,
    settings: watch::Sender<Settings>,
    local: LocalNode,
    problems: Problems,
    mut stamp: Stamp,
) {
    let mut ticks = interval(VRPS_INTERVAL);
    loop {
        let is_new = tokio::select! {
            changed = configs.changed() => {
                if changed.is_err() {
                    // The daemon is stopping; the end of this task is no news.
                    return std::future::pending().await;
                }
                true
            }
            _ = ticks.tick() => false,
        };
        let wanted = if is_new { configs.borrow_and_update().clone() } else { configs.borrow().clone() };
        let known = settings.borrow().vrps.clone();
        let (local, reported) = (local.clone(), problems.clone());
        let made = spawn_blocking(move || {
            let now = vrps_stamp(&wanted.bgp);
            (is_new || now != stamp).then(|| (now, speaker_settings(&wanted, &local, &reported, known)))
        });
        let message = match made.await {
            Ok(None) => continue,
            Ok(Some((now, made))) => {
                stamp = now;
                made.map(|made| drop(settings.send_replace(made))).err().map(|error| error.to_string())
            }
            Err(error) => Some(error.to_string()),
        };
        problems.report("bgp", message);
    }
}

/// What the speaker is told; peers that had to be kept down become a problem.
fn speaker_settings(
    wanted: &SpeakerConfig,
    local: &LocalNode,
    problems: &Problems,
    known: Option<Arc<Vrps>>,
) -> anyhow::Result<Settings> {
    let (settings, refused) = speaker::convert::settings(wanted, local, known)?;
    let lines: Vec<String> = refused.iter().map(|it| format!("{}: {}", it.peer, it.reason)).collect();
    problems.report("bgp/config", (!lines.is_empty()).then(|| lines.join("; ")));
    Ok(settings)
}

fn local_node(config: &Config) -> anyhow::Result<LocalNode> {
    let resolved = host::resolve(&config.node).context("failed to find out who this node is")?;
    Ok(LocalNode {
        cluster: config.cluster.name.clone(),
        name: resolved.name,
        addresses: resolved.addresses,
        pod_cidrs: config.node.pod_cidrs.clone(),
        zone: config.node.labels.get(ZONE_LABEL).map(|zone| zone.as_str().into()),
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

/// What this node publishes.
fn own_state(config: &Config, local: &LocalNode) -> OwnState {
    let address = |ip: &IpAddr| NodeAddress { kind: NodeAddressKind::InternalIP, ip: *ip };
    let row = NodeRow {
        health: Box::default(),
        ingress: Box::default(),
        cluster_id: config.cluster.id,
        addresses: local.addresses.iter().map(address).collect(),
        pod_cidrs: local.pod_cidrs.clone().into(),
        // The others are for this node's own choices.
        labels: local.zone.as_deref().map_or_else(Labels::default, |zone| Labels::of_node([(ZONE_LABEL, zone)])),
    };
    let workload = |workload: &config::model::Workload| Workload {
        namespace: workload.namespace.clone(),
        name: workload.name.clone(),
        addresses: workload.addresses.clone(),
        labels: workload.labels.clone(),
        service_account: workload.service_account.clone(),
    };
    OwnState {
        cluster: local.cluster.clone(),
        id: config.cluster.id,
        max_clusters: config.cluster.max_clusters,
        node: local.name.clone(),
        row: Arc::new(row),
        workloads: config.workloads.iter().map(workload).collect(),
    }
}

/// Tells the pipeline which clusters there are and the API where they come from; problems of the peers directory
/// become problems of the node.
async fn follow_peers(
    mut peers: watch::Receiver<PeerSet>,
    own: ClusterName,
    clusters: watch::Sender<BTreeSet<ClusterName>>,
    names: watch::Sender<BTreeMap<ClusterName, String>>,
    own_store: Arc<OwnStore>,
    problems: Problems,
) {
    let mut reported: BTreeSet<String> = BTreeSet::new();
    loop {
        let set = peers.borrow_and_update().clone();
        own_store.set_remotes(set.clusters().cloned().collect());
        clusters.send_replace(set.clusters().cloned().chain([own.clone()]).collect());
        let sources = set.peers.iter().map(|(name, entry)| (name, &entry.peer.source)).chain(&set.kept);
        names.send_replace(sources.map(|(name, source)| (name.clone(), source.display().to_string())).collect());
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

/// Whom a node that leaves the mesh has to ask.
#[derive(Clone)]
struct Leaving {
    routes: RoutesHandle,
    tunnels: TunnelsHandle,
    masquerade: MasqueradeHandle,
    datapath: Option<DatapathHandle>,
    export: ExportHandle,
    speaker: Option<SpeakerHandle>,
}

/// Takes the node out of the mesh: first its records, so that nobody sends to it any more, then its routes, its table of the
/// packet filter and its programs.
fn drain(leaving: Leaving) -> Drain {
    Arc::new(move || {
        let Leaving { routes, tunnels, masquerade, datapath, export, speaker } = leaving.clone();
        Box::pin(async move {
            let mut view = DrainView::default();
            if let Some(speaker) = &speaker
                && let Err(ended) = speaker.begin_drain().await
            {
                view.errors.push(ended.to_string());
            }
            match export.drain().await {
                Ok(keys) => view.withdrawn_keys = keys as u64,
                Err(message) => view.errors.push(message),
            }
            tokio::time::sleep(DRAIN_GRACE).await;
            if let Some(speaker) = &speaker {
                match speaker.shut_down(DRAIN_WORDS).await {
                    Ok(sessions) => view.closed_sessions = sessions as u64,
                    Err(ended) => view.errors.push(ended.to_string()),
                }
            }
            match routes.withdraw().await {
                Ok(Ok(count)) => view.removed_routes = count as u64,
                Ok(Err(message)) => view.errors.push(message),
                Err(ended) => view.errors.push(ended.to_string()),
            }
            if let Err(message) = tunnels.withdraw().await {
                view.errors.push(message);
            }
            if let Err(message) = masquerade.withdraw().await {
                view.errors.push(message);
            }
            if let Some(datapath) = &datapath
                && let Err(message) = datapath.withdraw().await
            {
                view.errors.push(message);
            }
            view
        })
    })
}
