//! Services, identities and neighbors into the maps of the kernel's programs, and the programs onto links.
//!
//! One task. A new snapshot is compared with the last one (I11) and handed to the planners of `meshd_core::plan::datapath`; what they
//! want written is carried out in their order ([`ops`]). Between snapshots it looks at the connections every few
//! seconds ([`actual`]): entries that nobody uses go, and backends that nothing refers to are freed.
//!
//! ```text
//! snapshot ─► links ──────► attach, detach
//!          ─► neighbors ──► next hops ─┐
//!          ─► endpoints ──► identities ├─► writes ─► maps
//!          ─► services ───► services ──┘        └─► sockets of backends that are gone
//! ```
//!
//! System calls here block, but for microseconds each; a round runs on a thread for blocking work, so that the rest of
//! the daemon does not wait for it.

mod actual;
mod far_ends;
mod fast;
mod links;
mod local_ports;
mod masquerade;
mod ops;
mod refusals;
mod sockets;
mod status;

pub use status::{DatapathStatus, LinkStatus, MapStatus};

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::{Bound, RangeInclusive},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use meshd_abi::{Identity, NextHop, Reason, Settings, V4, V6, identity_flags, settings_flags};
use meshd_core::{
    derive::{LocalNode, PathPolicy},
    desired::Service,
    id::{ClusterId, ClusterName, NumericIdentity, TUNNEL_LINK},
    maglev::Slots,
    observed::{ClusterTables, EndpointRow, KernelKind, NeighborKey, NeighborRow, NodeRow, ServiceName},
    plan::datapath::{
        Hop, HopPlanner, IdentityPlanner, Role, ServicePlan, ServicePlanner, ServiceSettings, Standing, Way, Ways,
        Write,
    },
    table::RowDiff,
};
use meshd_datapath::{DatapathError, Programs, Unwritten, shape::Sizes, ticks};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, info, warn};

use self::{
    actual::Lifetimes,
    far_ends::FarEnds,
    fast::Fast,
    links::{LinkPlan, Links},
    local_ports::Used,
    masquerade::Masquerade,
    ops::Refused,
    refusals::{Busiest, Refusal, Refusals},
    sockets::Sockets,
};
use crate::{
    config::{
        Config,
        model::services::{BackendAlgorithm, DsrKind},
    },
    flows::{EVENTS_PER_TICK, ServiceNumbers},
    lifecycle::Problems,
    pipeline::Snapshot,
};

/// Name of this part among the problems of a node.
const COMPONENT: &str = "datapath";
/// Most connections of IPv4 that programs remember beside their table: 64 MiB.
const MOST_RECENT: u32 = 1 << 20;
/// How often the connections are looked at.
const SWEEP_PERIOD: Duration = Duration::from_secs(5);
/// How often they are when there is hardly any room.
const SWEEP_PRESSED: Duration = Duration::from_secs(1);
/// Hundredths of the table of connections from which on there is hardly any room.
const PRESSED_PERCENT: usize = 85;
/// Services with a problem that are planned again at a time.
const RETRIES: usize = 16;
/// Seed of every choice by hash: the same on every node of every mesh, so that all send a flow to the same backend.
const SEED: u32 = 7606;
/// Source address a workload sees when it reaches itself through a service: one that no network has.
const LOOPBACK4: [u8; 4] = [169, 254, 77, 1];
/// The same of IPv6: a unique local one, because a workload would look for a link-local one on its link.
const LOOPBACK6: [u8; 16] = [0xfd, 0x77, 0x6d, 0x65, 0x73, 0x68, 0x64, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// What the reconciler is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder for pins.
    pub folder: PathBuf,
    /// This node.
    pub local: Arc<LocalNode>,
    /// Id of the own cluster.
    pub cluster_id: ClusterId,
    /// Sizes of the maps.
    pub sizes: Sizes,
    /// What holds for all services.
    pub services: ServiceSettings,
    /// Links and programs.
    pub links: LinkPlan,
    /// Sockets below this control group are translated when they connect.
    pub group: Option<PathBuf>,
    /// Ports for translated sources: the first and how many.
    pub ports: (u16, u16),
    /// Ports of services on every node.
    pub node_ports: RangeInclusive<u16>,
    /// May the programs give the node's address to what leaves the mesh?
    pub masquerade: bool,
    /// Flow events of a kind that a processor may tell in a tick.
    pub events_per_tick: u32,
    /// How notes of frontends travel with direct server return.
    pub dsr: DsrKind,
    /// Workloads of different nodes reach each other past the stack.
    pub fast_path: bool,
}

impl Options {
    /// What the configuration says.
    #[must_use]
    pub fn new(config: &Config, local: &Arc<LocalNode>, folder: &Path) -> Self {
        let services = &config.services;
        let maps = &services.maps;
        let sizes = Sizes {
            services: maps.services,
            backends: maps.backends,
            connections: maps.connections,
            recent: (maps.connections / 2).min(MOST_RECENT),
            affinity: maps.affinity,
            identities: maps.identities,
            sockets: maps.sockets,
            members: maps.members,
            maglev: maps.maglev,
            fragments: maps.fragments,
            prefixes: maps.prefixes,
            ranges: maps.source_ranges,
            next_hops: maps.next_hops,
            policy: maps.policy,
            ..Sizes::default()
        };
        let size = if services.table_size == Slots::Large.count() { Slots::Large } else { Slots::Normal };
        let slots = match services.algorithm {
            BackendAlgorithm::Maglev => Some(size),
            BackendAlgorithm::Random => None,
        };
        Self {
            folder: folder.to_owned(),
            local: local.clone(),
            cluster_id: config.cluster.id,
            sizes,
            services: ServiceSettings {
                slots,
                seed: SEED,
                mode: services.mode,
                backends: sizes.backends,
                members: sizes.members,
                chunks: sizes.maglev,
                ranges: sizes.ranges,
            },
            links: LinkPlan {
                uplinks: services.uplinks.clone(),
                workloads: services.workload_links.clone(),
                xdp: services.xdp,
            },
            group: services.cgroup.clone(),
            ports: (*services.snat_ports.start(), services.snat_ports.len() as u16),
            node_ports: services.node_port_range.clone(),
            masquerade: config.masquerade.as_ref().is_some_and(|masquerade| masquerade.by_programs),
            events_per_tick: EVENTS_PER_TICK,
            dsr: services.dsr,
            fast_path: config.routing.fast_path,
        }
    }
}

/// What the rest of the daemon has of the datapath.
#[derive(Debug, Clone)]
pub struct DatapathHandle {
    /// What it says about itself.
    pub status: watch::Receiver<DatapathStatus>,
    /// Names of services by their number in the maps.
    pub services: watch::Receiver<ServiceNumbers>,
    /// True while the programs give the node's address to what leaves the mesh.
    pub masquerades: watch::Receiver<bool>,
    withdraw: mpsc::Sender<oneshot::Sender<Result<(), String>>>,
}

impl DatapathHandle {
    /// Takes the programs off their links and removes the maps; this process does not put them back.
    ///
    /// # Errors
    /// Why something is still there.
    pub async fn withdraw(&self) -> Result<(), String> {
        let ended = || "the datapath reconciler has ended".to_owned();
        let (tx, rx) = oneshot::channel();
        self.withdraw.send(tx).await.map_err(|_| ended())?;
        rx.await.map_err(|_| ended())?
    }
}

/// Loads the programs and starts keeping their maps.
///
/// # Errors
/// When the kernel refuses the programs or a map.
pub fn start(
    options: Options,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    policies: watch::Receiver<Arc<PathPolicy>>,
    problems: Problems,
) -> Result<(impl Future<Output = ()> + Send + 'static, DatapathHandle), DatapathError> {
    let begin = Instant::now();
    let programs = Programs::load(&options.folder, &options.sizes)?;
    let existing = actual::existing(&programs.maps)?;
    let held_hops = existing.next_hops();
    let maps = &programs.maps;
    let neighbors = maps.neighbors.all()?;
    let identities = IdentityPlanner::new(&maps.v4.identities.all()?, &maps.v6.identities.all()?)
        .with_prefixes(actual::prefixes(maps)?);
    let mut names = actual::named_hops(maps)?;
    names.extend(identities.ways());
    let mut named = BTreeMap::new();
    for index in names {
        named.extend(maps.next_hops.get(&index)?.map(|hop| (index, hop)));
    }
    let tunnels = far_ends::existing(maps.tunnels.all()?);
    let inherited = maps.settings.get(&0)?;
    let was_on = inherited.is_some_and(|settings| settings.flags & settings_flags::MASQUERADE != 0);
    let sockets = Sockets::new(options.group.clone(), &existing);
    let (status, status_rx) = watch::channel(DatapathStatus::default());
    let (withdraw, withdrawals) = mpsc::channel(1);
    let (numbers, numbers_rx) = watch::channel(ServiceNumbers::default());
    let mut state = State {
        services: ServicePlanner::new(options.services, existing).of_cluster(options.local.cluster.clone()),
        hops: HopPlanner::new(options.sizes.next_hops, &neighbors, &named),
        identities,
        masquerade: Masquerade::new(maps, was_on)?,
        ways: Ways::default(),
        links: Links::default(),
        far_ends: FarEnds::new(options.sizes.next_hops, &tunnels, inherited, policies),
        sockets,
        fast: Fast::default(),
        last: Arc::default(),
        held_hops,
        finished: false,
        listed: false,
        has_direct: false,
        swept: Instant::now(),
        connections: [0; 2],
        unwritten: Default::default(),
        refused: Refused::default(),
        problems: BTreeMap::new(),
        again: None,
        link_problems: Vec::new(),
        cluster_ids: BTreeMap::new(),
        busiest: None,
        numbers,
        refusals: Refusals::default(),
        local_ports: None,
        programs,
        options,
    };
    state.has_direct = state.services.has_direct();
    state.look_at_local_ports();
    state.write_settings()?;
    for (feature, consequence) in state.programs.features().lacking() {
        info!(feature, consequence, "the kernel lacks a feature");
    }
    info!(elapsed = ?begin.elapsed(), "the datapath's programs are loaded");
    let handle =
        DatapathHandle { status: status_rx, services: numbers_rx, masquerades: state.masquerade.watch(), withdraw };
    Ok((run(Box::new(state), snapshots, problems, status, withdrawals), handle))
}

async fn run(
    mut state: Box<State>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    problems: Problems,
    status: watch::Sender<DatapathStatus>,
    mut withdrawals: mpsc::Receiver<oneshot::Sender<Result<(), String>>>,
) {
    let mut tick = interval(SWEEP_PRESSED);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let snapshot = tokio::select! {
            changed = snapshots.changed() => {
                if changed.is_err() { return }
                Some(snapshots.borrow_and_update().clone())
            }
            _ = tick.tick() => None,
            Some(answer) = withdrawals.recv() => {
                problems.report(COMPONENT, None);
                status.send_replace(DatapathStatus::default());
                let folder = state.options.folder.clone();
                drop(state);
                let outcome = meshd_datapath::remove(&folder).map(drop::<bool>);
                // Nobody waits for the answer any more: the programs are gone all the same.
                let _ = answer.send(outcome.map_err(|error| error_chain(&error)));
                info!("took the datapath's programs off their links");
                return std::future::pending().await;
            }
        };
        let round = spawn_blocking(move || {
            let outcome = match snapshot {
                Some(snapshot) => {
                    state.round(snapshot);
                    Ok(())
                }
                None => state.sweep(),
            };
            (state, outcome)
        });
        let Ok((back, outcome)) = round.await else {
            // The daemon ends with a task of it, and says why.
            warn!("a round of the datapath did not end");
            return;
        };
        state = back;
        let message = outcome.err().map(|error| error_chain(&error)).or_else(|| state.problem());
        problems.report(COMPONENT, message);
        for (component, message) in state.pressure() {
            problems.report(component, message);
        }
        status.send_replace(state.status());
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

struct State {
    options: Options,
    programs: Programs,
    services: ServicePlanner,
    hops: HopPlanner,
    identities: IdentityPlanner,
    masquerade: Masquerade,
    ways: Ways,
    links: Links,
    far_ends: FarEnds,
    sockets: Sockets,
    fast: Fast,
    last: Arc<Snapshot>,
    /// Next hops of backends and of their nodes that an earlier process wrote, until this one has read the neighbors.
    held_hops: BTreeMap<IpAddr, u32>,
    /// What an earlier process left of nodes has been swept.
    finished: bool,
    /// And of services and workloads.
    listed: bool,
    /// Services use direct server return, and the programs know.
    has_direct: bool,
    swept: Instant,
    connections: [usize; 2],
    /// Entries that somebody claimed and did not write, per family.
    unwritten: [Unwritten; 2],
    /// The destination with the fewest ports left.
    busiest: Option<Busiest>,
    /// Names of services by their number, for those who read flow events.
    numbers: watch::Sender<ServiceNumbers>,
    /// Connections that were refused.
    refusals: Refusals,
    /// Ports that the programs and sockets of the node use.
    local_ports: Option<String>,
    /// Writes that the kernel refused.
    refused: Refused,
    /// What is wrong with services; they are planned again from time to time.
    problems: BTreeMap<ServiceName, Vec<String>>,
    /// The last of them that was planned again.
    again: Option<ServiceName>,
    /// Programs that are not where they belong.
    link_problems: Vec<String>,
    cluster_ids: BTreeMap<ClusterName, u16>,
}

impl State {
    fn write_settings(&self) -> Result<(), DatapathError> {
        let mut settings = Settings {
            ports: self.options.ports.0,
            port_count: self.options.ports.1,
            flags: settings_flags::EVENTS
                | if self.options.fast_path { settings_flags::FAST_PATH } else { 0 }
                | dsr_flags(self.options.dsr, self.has_direct)
                | self.masquerade.flags()
                | if self.programs.features().ipv6_checksum { settings_flags::IPV6_CHECKSUM_FLAG } else { 0 },
            seed: SEED,
            loopback4: V4::from_octets(LOOPBACK4),
            loopback6: V6::from_octets(LOOPBACK6),
            events_per_tick: self.options.events_per_tick,
            ..Settings::default()
        };
        for address in self.options.local.addresses.iter().rev() {
            match address {
                IpAddr::V4(address) => settings.source4 = V4::from_octets(address.octets()),
                IpAddr::V6(address) => settings.source6 = V6::from_octets(address.octets()),
            }
        }
        self.far_ends.write(&mut settings);
        let maps = &self.programs.maps;
        // What programs remember of a connection is in part told by these.
        let sources = |settings: &Settings| (settings.source4, settings.ports, settings.port_count);
        let is_other = maps.settings.get(&0)?.is_some_and(|old| sources(&old) != sources(&settings));
        if is_other {
            maps.forget_recent()?;
        }
        maps.settings.put(&0, &settings)?;
        // Again for what was written in between.
        if is_other { maps.forget_recent() } else { Ok(()) }
    }

    /// Takes a new snapshot over.
    fn round(&mut self, snapshot: Arc<Snapshot>) {
        let last = std::mem::replace(&mut self.last, snapshot.clone());
        self.services.begin_round();
        let mut writes = Vec::new();
        let mut moved = self.neighbors(&last, &snapshot, &mut writes);
        let neighbors_known = snapshot.local_known && snapshot.observed.is_kernel_initialized(KernelKind::Neighbors);
        if neighbors_known {
            moved.extend(std::mem::take(&mut self.held_hops).into_keys());
        }
        self.fit_routes(&last, &snapshot, &mut writes);
        moved.extend(self.moved_ways(&last, &snapshot));
        moved.extend(self.hops.take_moved().into_iter().flat_map(|neighbor| self.ways.behind(neighbor)));
        let removed = self.follow_far_ends(&last, &snapshot, &mut moved, &mut writes);
        self.identities(&last, &snapshot, &mut writes);
        self.move_fast(moved.iter().copied(), &snapshot, &mut writes);
        writes.extend(self.masquerade.exclusions.update(&snapshot.desired.masquerade));
        let count = writes.len() + removed.len();
        // Who leads to a next hop is written before that is removed: packets that find none would take another way for a moment.
        let is_gone = |write: &Write| matches!(write, Write::NextHop(_, hop) if *hop == NextHop::default());
        let (gone, writes): (Vec<Write>, Vec<Write>) = writes.into_iter().partition(is_gone);
        self.refused.run(&self.programs.maps, writes);
        self.refused.run(&self.programs.maps, gone.into_iter().chain(removed).collect());
        if count > 0 {
            debug!(writes = count, "changed neighbors and identities");
        }
        self.plan_services(&last, &snapshot, &moved);
        if snapshot.complete && neighbors_known && !self.finished {
            self.finished = true;
            self.finish(&snapshot);
        }
        if snapshot.listed && self.finished && !self.listed {
            self.listed = true;
            self.finish_services(&snapshot);
        }
        self.tell_direct();
        let ended = self.sockets.end(&self.programs.maps);
        // Links last: a program that is attached finds its tables filled.
        self.follow_links(&snapshot);
        if let Err(error) = ended {
            self.link_problems.push(format!("sockets of removed backends are still there: {}", error_chain(&error)));
        }
        if snapshot.local_known {
            self.sockets.follow(&mut self.programs);
            if let Err(error) = self.programs.settle() {
                self.link_problems.push(format!("earlier maps are still there: {}", error_chain(&error)));
            }
        }
        if snapshot.local_known {
            self.decide_masquerade(&snapshot);
        }
    }

    /// Puts programs onto links, and takes them off.
    fn follow_links(&mut self, snapshot: &Snapshot) {
        self.link_problems = self.links.follow(&self.options.links, &self.options.local, snapshot, &mut self.programs);
        self.follow_fast(snapshot);
        let untold = self.tell_tunnel();
        self.link_problems.extend(untold);
    }

    /// Whether the programs give the node's address to what leaves. The tables are filled before they are told to look, and the packet
    /// filter does it before they are told to stop.
    fn decide_masquerade(&mut self, snapshot: &Snapshot) {
        let can = self.options.masquerade
            && snapshot.known
            && masquerade::can(&snapshot.desired.masquerade, &self.options.local, &self.links);
        if self.masquerade.decide(can)
            && let Err(error) = self.write_settings()
        {
            self.link_problems.push(format!("the programs are not told about masquerade: {}", error_chain(&error)));
        }
    }

    /// Tells the programs whether notes of other nodes are to be looked for.
    fn tell_direct(&mut self) {
        let has_direct = self.services.has_direct();
        if has_direct == self.has_direct {
            return;
        }
        let before = std::mem::replace(&mut self.has_direct, has_direct);
        if let Err(error) = self.write_settings() {
            warn!(error = error_chain(&error), "failed to switch direct server return, trying again");
            self.has_direct = before;
        }
    }

    /// Removes what an earlier process left of nodes and no list has named.
    fn finish(&mut self, snapshot: &Snapshot) {
        let mut writes = Vec::new();
        self.finish_far_ends(snapshot, &mut writes);
        writes.extend(self.hops.finish());
        writes.extend(self.masquerade.exclusions.finish());
        self.refused.run(&self.programs.maps, writes);
        let inherited: BTreeSet<IpAddr> = self.services.addresses().collect();
        self.rehop(&inherited, snapshot);
    }

    /// The same of services and workloads, which clusters tell after their nodes.
    fn finish_services(&mut self, snapshot: &Snapshot) {
        let (plan, held) = self.services.finish();
        let mut writes = plan.writes;
        self.sockets.note(&writes);
        writes.extend(self.identities.finish());
        self.refused.run(&self.programs.maps, writes);
        for name in held {
            let service = snapshot.desired.services.get(&name).cloned();
            self.plan_service(&name, service.as_deref(), snapshot);
        }
    }

    /// Next hops from neighbors; returns the addresses whose element may be another one now.
    fn neighbors(&mut self, last: &Snapshot, new: &Snapshot, writes: &mut Vec<Write>) -> BTreeSet<IpAddr> {
        let mut changed = BTreeSet::new();
        let links_changed = new.observed.links.revision() != last.observed.links.revision();
        let mut put = |hops: &mut HopPlanner, key: &NeighborKey, row: Option<&NeighborRow>| {
            let mac = row.filter(|row| !row.failed).and_then(|row| row.mac);
            let link = new.observed.links.get(&key.link);
            let hop = mac.zip(link.filter(|link| link.up && !link.loopback)).and_then(|(destination, link)| {
                let has_peer = matches!(link.kind.as_deref(), Some("veth" | "netkit"));
                Some(Hop { destination, source: link.mac?, mtu: link.mtu, has_peer, is_tunnel: false })
            });
            let planned = hops.put(key.link, key.address, hop);
            changed.insert((key.link, key.address));
            writes.extend(planned);
        };
        if links_changed {
            for (key, row) in new.observed.neighbors.iter() {
                put(&mut self.hops, key, Some(row));
            }
        }
        for diff in new.observed.neighbors.diff(&last.observed.neighbors) {
            match diff {
                RowDiff::Added(key, row) | RowDiff::Changed(key, _, row) => {
                    put(&mut self.hops, key, Some(row));
                }
                RowDiff::Removed(key, _) => put(&mut self.hops, key, None),
            }
        }
        changed.into_iter().flat_map(|neighbor| self.ways.behind(neighbor)).collect()
    }

    /// Next hops take no more than routes by way of them.
    fn fit_routes(&mut self, last: &Snapshot, new: &Snapshot, writes: &mut Vec<Write>) {
        for diff in new.desired.targets.diff(&last.desired.targets) {
            let (key, target) = match diff {
                RowDiff::Added(key, target) | RowDiff::Changed(key, _, target) => (key, Some(&**target)),
                RowDiff::Removed(key, _) => (key, None),
            };
            writes.extend(self.hops.put_target(key, target));
        }
    }

    fn identities(&mut self, last: &Snapshot, new: &Snapshot, writes: &mut Vec<Write>) {
        let nothing = ClusterTables::default();
        let names: BTreeSet<&ClusterName> = new.observed.clusters.keys().chain(last.observed.clusters.keys()).collect();
        for name in names {
            let tables = new.observed.clusters.get(name).unwrap_or(&nothing);
            let old = last.observed.clusters.get(name).unwrap_or(&nothing);
            let cluster = self.cluster_id(name, tables);
            self.cluster_identities(name, cluster, tables, old, new, writes);
            if self.cluster_ids.insert(name.clone(), cluster).is_some_and(|before| before != cluster) {
                // All rows say another id now, also those that did not change.
                self.cluster_identities(name, cluster, tables, &nothing, new, writes);
            }
        }
    }

    /// What differs between two states of a cluster.
    fn cluster_identities(
        &mut self,
        name: &ClusterName,
        cluster: u16,
        tables: &ClusterTables,
        old: &ClusterTables,
        snapshot: &Snapshot,
        writes: &mut Vec<Write>,
    ) {
        let remote = *name != self.options.local.cluster;
        let workload = Standing { remote, role: Role::Workload, cluster, name: name.clone(), node: None };
        for diff in tables.endpoints.diff(&old.endpoints) {
            let (prefix, row) = match diff {
                RowDiff::Added(prefix, row) | RowDiff::Changed(prefix, _, row) => (prefix, Some(row)),
                RowDiff::Removed(prefix, _) => (prefix, None),
            };
            let is_address = prefix.prefix_len() == prefix.max_prefix_len();
            let identity = row.map(|row| match is_address {
                true => self.endpoint(prefix.addr(), row, (remote, cluster), snapshot, writes),
                // Nobody has it, so nobody is reached by it.
                false => Identity { identity: row.identity.0, way: 0, flags: 0, cluster },
            });
            writes.extend(self.identities.put(prefix.trunc(), &workload, identity));
        }
        for diff in tables.nodes.diff(&old.nodes) {
            let (node, before, after) = match diff {
                RowDiff::Added(node, row) => (node, None, Some(row)),
                RowDiff::Changed(node, before, after) => (node, Some(before), Some(after)),
                RowDiff::Removed(node, row) => (node, Some(row), None),
            };
            let (before, after) = (self.of_node(before, cluster), self.of_node(after, cluster));
            let standing = |role: Role| Standing { role, node: Some(node.clone()), ..workload.clone() };
            for (role, gone) in before.keys().filter(|key| !after.contains_key(*key)) {
                writes.extend(self.identities.put(*gone, &standing(*role), None));
            }
            for ((role, address), identity) in after {
                writes.extend(self.identities.put(address, &standing(role), Some(identity)));
            }
        }
    }

    /// Who has the addresses of a node.
    fn of_node(&self, row: Option<&Arc<NodeRow>>, cluster: u16) -> BTreeMap<(Role, IpAddr), Identity> {
        let Some(row) = row else { return BTreeMap::new() };
        // What runs on this node is one of its workloads.
        let is_own = row.addresses.iter().any(|address| self.options.local.addresses.contains(&address.ip));
        let flags = if is_own { identity_flags::LOCAL } else { 0 };
        let beside = |role: Role, addresses: &[IpAddr], identity: NumericIdentity| {
            let known = Identity { identity: identity.0, way: 0, flags, cluster };
            addresses.iter().map(|address| ((role, *address), known)).collect::<Vec<_>>()
        };
        let mut all: BTreeMap<(Role, IpAddr), Identity> =
            row.addresses.iter().map(|address| ((Role::Node, address.ip), self.node(address.ip, cluster))).collect();
        all.extend(beside(Role::Health, &row.health, NumericIdentity::HEALTH));
        all.extend(beside(Role::Ingress, &row.ingress, NumericIdentity::INGRESS));
        all
    }

    /// Id of a cluster: its nodes say it, or its store; 0 as long as neither has.
    fn cluster_id(&self, name: &ClusterName, tables: &ClusterTables) -> u16 {
        if *name == self.options.local.cluster {
            return self.options.cluster_id.get();
        }
        let node = || tables.nodes.iter().next().map(|(_, row)| row.cluster_id.get());
        let peer = || tables.peer.as_ref().and_then(|peer| peer.id).map(ClusterId::get);
        let known = || self.cluster_ids.get(name).copied();
        node().or_else(peer).or_else(known).unwrap_or(0)
    }

    fn endpoint(
        &mut self,
        address: IpAddr,
        row: &EndpointRow,
        (remote, cluster): (bool, u16),
        snapshot: &Snapshot,
        writes: &mut Vec<Write>,
    ) -> Identity {
        let local = !remote && row.host.is_some_and(|host| self.options.local.addresses.contains(&host));
        let flags = if local { identity_flags::LOCAL } else { 0 };
        let way = self.fast_way(address, snapshot, writes);
        Identity { identity: row.identity.0, way, flags, cluster }
    }

    fn node(&self, address: IpAddr, cluster: u16) -> Identity {
        let own = self.options.local.addresses.contains(&address);
        let (identity, flags) = if own {
            (NumericIdentity::HOST, identity_flags::NODE | identity_flags::THIS_NODE)
        } else {
            (NumericIdentity::REMOTE_NODE, identity_flags::NODE)
        };
        Identity { identity: identity.0, way: 0, flags, cluster }
    }

    /// Addresses whose way is another one because routes or nodes are.
    fn moved_ways(&mut self, last: &Snapshot, new: &Snapshot) -> BTreeSet<IpAddr> {
        let nodes = |of: &Snapshot| -> Vec<_> {
            of.observed.clusters.iter().map(|(name, tables)| (name.clone(), tables.nodes.revision())).collect()
        };
        let changed = nodes(new) != nodes(last)
            || new.desired.routes.revision() != last.desired.routes.revision()
            || new.desired.bgp.revision() != last.desired.bgp.revision()
            || new.desired.targets.revision() != last.desired.targets.revision()
            || new.observed.routes.revision() != last.observed.routes.revision();
        if !changed {
            return BTreeSet::new();
        }
        self.ways.recheck((&last.observed, &last.desired), (&new.observed, &new.desired))
    }

    fn plan_services(&mut self, last: &Snapshot, new: &Snapshot, moved: &BTreeSet<IpAddr>) {
        let changes: Vec<(ServiceName, _)> = new
            .desired
            .services
            .diff(&last.desired.services)
            .map(|diff| match diff {
                RowDiff::Added(name, row) | RowDiff::Changed(name, _, row) => (name.clone(), Some(row.clone())),
                RowDiff::Removed(name, _) => (name.clone(), None),
            })
            .collect();
        for (name, service) in changes {
            self.plan_service(&name, service.as_deref(), new);
        }
        self.rehop(moved, new);
    }

    /// Brings one service into the maps.
    fn plan_service(&mut self, name: &ServiceName, service: Option<&Service>, snapshot: &Snapshot) {
        let old: Vec<u32> = self.services.numbers(name).collect();
        let (ways, hops, held) = (RefCell::new(&mut self.ways), &self.hops, &self.held_hops);
        let hop = |address| next_hop(address, &mut ways.borrow_mut(), hops, snapshot, held);
        let ServicePlan { writes, mut problems } = self.services.plan(name, service, hop);
        self.sockets.note(&writes);
        let (carried, error) = self.refused.run_service(&self.programs.maps, writes);
        self.services.done(name, carried);
        self.renumber(name, &old);
        problems.extend(error.map(|error| format!("service {name}: {}", error_chain(&error))));
        if problems.is_empty() {
            self.problems.remove(name);
        } else {
            self.problems.insert(name.clone(), problems);
        }
    }

    /// Tells the numbers that a service has now.
    fn renumber(&mut self, name: &ServiceName, old: &[u32]) {
        let new: Vec<u32> = self.services.numbers(name).collect();
        if new == old {
            return;
        }
        self.numbers.send_modify(|numbers| {
            for number in old {
                // A number that somebody else has already is his.
                if numbers.get(number) == Some(name) {
                    numbers.remove(number);
                }
            }
            numbers.extend(new.into_iter().map(|number| (number, name.clone())));
        });
    }

    /// The way to these addresses is another one now.
    fn rehop(&mut self, addresses: &BTreeSet<IpAddr>, snapshot: &Snapshot) {
        let (ways, hops, held) = (RefCell::new(&mut self.ways), &self.hops, &self.held_hops);
        let hop = |address| next_hop(address, &mut ways.borrow_mut(), hops, snapshot, held);
        let plan = self.services.rehop(addresses, hop);
        self.refused.run(&self.programs.maps, plan.writes);
    }

    /// Tries again what was refused or had no room.
    fn retry(&mut self) {
        self.refused.retry(&self.programs.maps);
        let after = self.again.take().map_or(Bound::Unbounded, Bound::Excluded);
        let names: Vec<ServiceName> =
            self.problems.range((after, Bound::Unbounded)).map(|(name, _)| name.clone()).take(RETRIES).collect();
        let snapshot = self.last.clone();
        self.services.begin_round();
        for name in &names {
            let service = snapshot.desired.services.get(name).cloned();
            self.plan_service(name, service.as_deref(), &snapshot);
        }
        self.again = names.last().cloned();
    }

    /// Looks at the connections when it is time.
    fn sweep(&mut self) -> Result<(), DatapathError> {
        if self.links.is_due(Instant::now()) {
            let last = self.last.clone();
            self.follow_links(&last);
            self.decide_masquerade(&last);
        }
        let room = [self.options.sizes.connections as usize, self.options.sizes.connections.div_ceil(4) as usize];
        let refused = self.counter(Reason::NoConnection)?;
        self.refusals.saw(Refusal::NoPort, self.counter(Reason::NoPort)?, Instant::now());
        let is_pressed = self.refusals.saw(Refusal::NoRoom, refused, Instant::now())
            || self.connections.iter().zip(room).any(|(used, room)| used * 100 >= room * PRESSED_PERCENT);
        let period = if is_pressed { SWEEP_PRESSED } else { SWEEP_PERIOD };
        if self.swept.elapsed() < period {
            return Ok(());
        }
        self.swept = Instant::now();
        if self.masquerade.is_over() {
            self.write_settings()?;
        }
        let lifetimes = if is_pressed { Lifetimes::PRESSED } else { Lifetimes::RELAXED };
        let sweep = actual::sweep(&self.programs.maps, ticks(), &lifetimes, &mut self.unwritten)?;
        self.connections = sweep.left;
        self.busiest = sweep.busiest;
        let plan = self.services.release(|ipv4, index| sweep.used[usize::from(!ipv4)].contains(&index));
        let wanted: BTreeSet<IpAddr> = self.services.addresses().chain(self.far_ends.addresses()).collect();
        let (ways, identities) = (&mut self.ways, &self.identities);
        ways.retain(|address| {
            wanted.contains(&address) || self.options.fast_path && identities.find(address).is_some()
        });
        self.refused.run(&self.programs.maps, plan.writes);
        let ways = self.identities.ways();
        let freed = self.hops.release(|index| sweep.hops.contains(&index) || ways.contains(&index));
        self.refused.run(&self.programs.maps, freed);
        self.retry();
        if self.last.local_known {
            self.sockets.follow(&mut self.programs);
        }
        self.look_at_local_ports();
        self.sockets.sweep(&self.programs.maps)?;
        self.programs.maps.trim_frontends()
    }

    fn look_at_local_ports(&mut self) {
        let (first, count) = self.options.ports;
        self.local_ports = local_ports::problem(&[
            Used { setting: "services.node_port_range", ports: self.options.node_ports.clone() },
            Used { setting: "services.snat_ports", ports: first..=first + (count - 1) },
        ]);
    }

    /// What holds up connections, or soon will.
    fn pressure(&self) -> [(&'static str, Option<String>); 3] {
        let room = [self.options.sizes.connections as usize, self.options.sizes.connections.div_ceil(4) as usize];
        [
            (refusals::CONNECTIONS, self.refusals.connections(self.connections, room)),
            (refusals::PORTS, self.refusals.ports(self.busiest, self.options.ports.1)),
            (local_ports::COMPONENT, self.local_ports.clone()),
        ]
    }

    fn counter(&self, reason: Reason) -> Result<u64, DatapathError> {
        Ok(self.programs.maps.counters.get(reason as u32)?.iter().map(|counter| counter.packets).sum())
    }

    /// The most important of what is wrong.
    fn problem(&self) -> Option<String> {
        let services = self.problems.values().flatten();
        let others = self.refused.problem().into_iter().chain(self.sockets.problem());
        let mut all = self.link_problems.iter().chain(services).cloned().chain(others);
        let first = all.next()?;
        let more = all.count();
        Some(if more == 0 { first } else { format!("{first} (and {more} more)") })
    }
}

/// What the programs are told of direct server return. The form of notes stays for connections that are left of it.
const fn dsr_flags(kind: DsrKind, is_used: bool) -> u32 {
    let form = match kind {
        DsrKind::Option => 0,
        DsrKind::Ipip => settings_flags::DSR_IPIP,
        DsrKind::Geneve => settings_flags::DSR_GENEVE,
    };
    if is_used { form | settings_flags::DSR } else { form }
}

/// The element of an address's next hop; 0 leaves the packet to the stack.
fn next_hop(
    address: IpAddr,
    ways: &mut Ways,
    hops: &HopPlanner,
    snapshot: &Snapshot,
    held: &BTreeMap<IpAddr, u32>,
) -> u32 {
    let found = way_of(address, ways, snapshot).map_or(0, |way| hops.find(way.link, way.via));
    if found == 0 { held.get(&address).copied().unwrap_or(0) } else { found }
}

/// The way of an address that programs may take.
fn way_of(address: IpAddr, ways: &mut Ways, snapshot: &Snapshot) -> Option<Way> {
    let way = ways.of(address, &snapshot.observed, &snapshot.desired)?;
    // Only a link with a peer can hand a packet over to a workload; behind a bridge the stack has to find the port.
    let row = snapshot.observed.links.get(&way.link);
    let kind = row.and_then(|row| row.kind.as_deref());
    let can = kind.is_none_or(|kind| matches!(kind, "veth" | "vlan" | "bond" | "macvlan"))
        || row.is_some_and(|row| &*row.name == TUNNEL_LINK);
    can.then_some(way)
}
