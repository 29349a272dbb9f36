//! One node of the mesh: the real readers, tables, deriver and planner, wired as the daemon wires them.
//!
//! What is simulated is only what lies around them: the store, the kernel, time, and a process that dies and comes back
//! with or without what it had written to its state directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use meshd_core::{
    clustermesh::{
        Accept,
        reader::{Command, Input, Now, Output, Reader, Settings, Timers},
    },
    derive::{LocalNode, RouteDeriver},
    desired::Desired,
    id::{ClusterId, ClusterName, IfIndex, MAIN_TABLE, MaxClusters, Metric, NodeName, ROUTE_METRIC, TableId},
    observed::{Change, ClusterChange, Kind, Limits, NodeRow, Observed},
    plan::{Action, ActualChange, ActualNexthop, PLAN_ACTIONS_MAX, PlannerOptions, RoutePlanner},
    table::Table,
};

use super::{
    kernel::{Kernel, Note, Refusal},
    sabotage::Sabotage,
    store::Good,
};

/// How long a cold start waits for silent clusters.
const SETTLE_AFTER: Duration = Duration::from_secs(30);
/// Plans in a row after which a planner is called endless.
const PLANS_MAX: usize = 40;
/// Actions of a round nobody needs: a full installation takes about 150 in this mesh.
const ROUND_ACTIONS_MAX: usize = 1_000;

/// What survives the process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    rows: BTreeMap<ClusterName, Table<NodeName, Arc<NodeRow>>>,
    ids: BTreeMap<ClusterName, ClusterId>,
    owners: BTreeMap<IpNet, ClusterName>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) cluster: usize,
    pub(crate) name: NodeName,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// Clusters it reads, its own included.
    pub(crate) configured: BTreeSet<usize>,
    /// False once an operator took it out of its cluster.
    pub(crate) member: bool,
    pub(crate) memory: Memory,
    pub(crate) kernel: Kernel,
    pub(crate) life: Option<Life>,
    /// Counts the processes, so that messages for a dead one are not given to the next.
    pub(crate) incarnation: u64,
    /// How far its wall clock is off.
    pub(crate) skew: SignedDuration,
    /// Factor on every delay of its messages.
    pub(crate) slow: u32,
    /// It was restarted without its memory.
    pub(crate) amnesia: bool,
    /// What the stores told it last, kept by the harness: cluster, node, record.
    pub(crate) told: BTreeMap<usize, BTreeMap<usize, Rc<Good>>>,
    /// Links that are down, since when.
    pub(crate) down: BTreeMap<IfIndex, Duration>,
    /// Nodes whose records this process refused when it read them last.
    pub(crate) unread: BTreeSet<usize>,
    /// Routes of somebody else.
    pub(crate) hand_made: BTreeSet<meshd_core::plan::ActualKey>,
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) observed: Observed,
    pub(crate) desired: Desired,
    pub(crate) planner: RoutePlanner,
    pub(crate) peers: BTreeMap<usize, Peer>,
    pub(crate) round_due: bool,
    pub(crate) notes_due: bool,
    pub(crate) persist_due: bool,
    pub(crate) wake_at: Option<Duration>,
    pub(crate) dumping: bool,
    pub(crate) dump_asked: bool,
    pub(crate) dumped: bool,
    first_half: Vec<Note>,
    /// Prefixes of clusters it stopped reading while it was down.
    left_over: Vec<IpNet>,
    deriver: RouteDeriver,
    settle_at: Duration,
    claims: BTreeMap<ClusterId, usize>,
}

/// The reader of one cluster and its connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) reader: Reader,
    /// Counts the connections.
    pub(crate) epoch: u64,
    /// There is a connection, and it works.
    pub(crate) alive: bool,
    pub(crate) tick_at: Option<Duration>,
    /// A watch stream keeps its order: nothing arrives before this.
    pub(crate) stream_free: Duration,
    /// Nodes of the pages that came so far.
    pub(crate) listing: BTreeMap<usize, Rc<Good>>,
}

/// What a round did.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) done: Vec<(Action, Result<Vec<IpNet>, Refusal>)>,
    pub(crate) wake: Option<Duration>,
    pub(crate) wants_dump: bool,
    pub(crate) touched_nodes: bool,
    pub(crate) problem: Option<String>,
}

/// What a reader made of an input.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) commands: Vec<Command>,
    pub(crate) changes: Vec<ClusterChange>,
    pub(crate) deadline: Option<Duration>,
}

pub(crate) fn cluster_name(cluster: usize) -> ClusterName {
    format!("c{cluster}").parse().expect("a cluster name")
}

pub(crate) fn cluster_id(cluster: usize) -> ClusterId {
    ClusterId::new(u32::try_from(cluster).expect("small") + 1, MaxClusters::C255).expect("a cluster id")
}

/// What every node accepts of a cluster: its own range, and one that two clusters may quarrel about.
pub(crate) fn accept(cluster: usize) -> Accept {
    let parse = |text: String| text.parse().expect("a prefix");
    Accept {
        pod_cidrs: vec![
            parse(format!("10.{}.0.0/16", 10 + cluster)),
            parse("10.100.0.0/16".to_owned()),
            parse(format!("fd0{cluster}::/16")),
        ],
        node_cidrs: vec![parse("172.18.0.0/15".to_owned()), parse("fdaa::/16".to_owned())],
    }
}

/// A moment as the planner counts it: never back, whatever the wall clock does.
pub(crate) fn steady(now: Duration) -> Timestamp {
    let start = Timestamp::from_second(1_800_000_000).expect("in range");
    start + SignedDuration::try_from(now).expect("short")
}

impl Node {
    pub(crate) fn now(&self, now: Duration) -> Now {
        Now { elapsed: now, wall: steady(now) + self.skew }
    }

    /// Starts the process; returns the first commands of its readers.
    pub(crate) fn start(&mut self, now: Duration, seed: u64, sabotage: Option<Sabotage>) -> Vec<(usize, Vec<Command>)> {
        self.incarnation += 1;
        self.unread.clear();
        let wall = self.now(now).wall;
        let local = LocalNode {
            cluster: cluster_name(self.cluster),
            name: self.name.clone(),
            addresses: self.addresses.clone(),
            pod_cidrs: self.known_pod_cidrs(sabotage),
            zone: None,
        };
        let mut observed = Observed::default();
        for cluster in &self.configured {
            let name = cluster_name(*cluster);
            if let Some(rows) = self.memory.rows.get(&name) {
                let rows = rows.iter().map(|(node, row)| ClusterChange::Node(node.clone(), Some(row.clone())));
                let changes = [ClusterChange::Stale(wall)].into_iter().chain(rows).collect();
                observed.apply(Change::Cluster(name, changes), wall);
            }
        }
        let table = TableId(MAIN_TABLE);
        let metric = Metric(ROUTE_METRIC);
        let options = PlannerOptions {
            table,
            metric,
            bgp_metric: metric,
            nexthop_objects: self.index % 5 != 4,
            flush_routes_min: 2,
        };
        let is_read = |owner: &ClusterName| self.configured.iter().any(|cluster| cluster_name(*cluster) == *owner);
        let (owners, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            self.memory.owners.clone().into_iter().partition(|(_, owner)| is_read(owner));
        self.life = Some(Life {
            observed,
            desired: Desired::default(),
            planner: RoutePlanner::new(options),
            peers: BTreeMap::new(),
            round_due: false,
            notes_due: false,
            persist_due: false,
            wake_at: None,
            dumping: false,
            dump_asked: false,
            dumped: false,
            first_half: Vec::new(),
            left_over: others.into_keys().collect(),
            deriver: RouteDeriver::new(local, owners),
            settle_at: now + SETTLE_AFTER,
            claims: BTreeMap::new(),
        });
        let configured: Vec<usize> = self.configured.iter().copied().collect();
        configured.into_iter().map(|cluster| (cluster, self.add_peer(cluster, seed, sabotage))).collect()
    }

    /// Starts to read a cluster.
    pub(crate) fn add_peer(&mut self, cluster: usize, seed: u64, sabotage: Option<Sabotage>) -> Vec<Command> {
        self.configured.insert(cluster);
        let mut reader = Reader::new(self.settings(cluster, seed, sabotage));
        let mut out = Output::default();
        reader.start(Duration::from_millis(seed % 200), &mut out);
        let Some(life) = &mut self.life else { return Vec::new() };
        life.observed.apply(Change::Cluster(cluster_name(cluster), out.changes), Timestamp::UNIX_EPOCH);
        let peer = Peer {
            reader,
            epoch: 0,
            alive: false,
            tick_at: None,
            stream_free: Duration::ZERO,
            listing: BTreeMap::new(),
        };
        life.peers.insert(cluster, peer);
        out.commands
    }

    /// Stops reading a cluster and forgets it.
    pub(crate) fn remove_peer(&mut self, cluster: usize, now: Duration) {
        self.configured.remove(&cluster);
        self.told.remove(&cluster);
        let wall = self.now(now).wall;
        if let Some(life) = &mut self.life {
            life.peers.remove(&cluster);
            life.claims.retain(|_, owner| *owner != cluster);
            life.observed.apply(Change::Cluster(cluster_name(cluster), vec![ClusterChange::Drop]), wall);
        }
    }

    /// Gives an input to the reader of a cluster and its changes to the tables.
    pub(crate) fn hear(&mut self, cluster: usize, input: Input, now: Duration, sabotage: Option<Sabotage>) -> Heard {
        let moment = self.now(now);
        let Some(life) = &mut self.life else { return Heard::default() };
        let Some(peer) = life.peers.get_mut(&cluster) else { return Heard::default() };
        let mut out = Output::default();
        peer.reader.handle(input, moment, &mut out);
        let deadline = peer.reader.deadline();
        if let Some(sabotage) = sabotage {
            sabotage.spoil_changes(&mut out.changes);
        }
        if !out.changes.is_empty() {
            life.observed.apply(Change::Cluster(cluster_name(cluster), out.changes.clone()), moment.wall);
        }
        Heard { commands: out.commands, changes: out.changes, deadline }
    }

    pub(crate) fn claim(&mut self, cluster: usize, id: ClusterId) -> Result<(), ClusterName> {
        let Some(life) = &mut self.life else { return Ok(()) };
        match life.claims.get(&id) {
            Some(owner) if *owner != cluster => Err(cluster_name(*owner)),
            Some(_) | None => {
                life.claims.retain(|_, owner| *owner != cluster);
                life.claims.insert(id, cluster);
                Ok(())
            }
        }
    }

    /// Derives, plans and acts until nothing is left to do.
    pub(crate) fn round(&mut self, now: Duration, sabotage: Option<Sabotage>) -> Round {
        let mut round = Round::default();
        let Some(life) = &mut self.life else { return round };
        let known = |cluster: &usize| life.observed.clusters.get(&cluster_name(*cluster));
        let complete =
            self.configured.iter().all(|cluster| known(cluster).is_some_and(|t| t.is_initialized(Kind::Nodes)));
        if !life.deriver.is_settled() && (complete || now >= life.settle_at) {
            life.deriver.settle();
        }
        let touched = life.observed.take_touched();
        round.touched_nodes = !touched.nodes.is_empty();
        if touched.any {
            life.deriver.update(&life.observed, &touched, steady(now) + self.skew, &mut life.desired);
        }
        let complete = complete || sabotage == Some(Sabotage::PruneUnheard);
        life.planner.set_desired(&life.desired, complete);
        life.planner.retire(std::mem::take(&mut life.left_over));
        for turn in 0.. {
            let (mut actions, wake) = life.planner.plan(steady(now));
            round.wake =
                wake.map(|at| Duration::try_from(at.duration_since(steady(Duration::ZERO))).unwrap_or_default());
            if actions.is_empty() {
                break;
            }
            if let Some(sabotage) = sabotage {
                sabotage.spoil_actions(&mut actions);
            }
            if turn == PLANS_MAX || actions.len() > PLAN_ACTIONS_MAX || round.done.len() > ROUND_ACTIONS_MAX {
                round.problem = Some(format!("the planner does not come to an end: {:?}", actions.first()));
                break;
            }
            for action in actions {
                let result = self.kernel.apply(&action);
                match result {
                    Ok(_) => {}
                    // As the daemon does: what is gone already is no failure, but our picture of the kernel was wrong.
                    Err(Refusal::Gone) => round.wants_dump = true,
                    Err(reason) => {
                        round.wants_dump |= reason == Refusal::Exists;
                        life.planner.refused(&action, &format!("{reason:?}"), steady(now));
                    }
                }
                round.done.push((action, result));
            }
        }
        if !life.deriver.is_settled() {
            round.wake = Some(round.wake.map_or(life.settle_at, |wake| wake.min(life.settle_at)));
        }
        round
    }

    /// Takes in what the kernel told; true when a dump is needed.
    pub(crate) fn read_kernel(&mut self, now: Duration) -> bool {
        let Some(notes) = self.kernel.read() else { return true };
        // A link that went down or a nexthop that somebody deleted took routes along in silence.
        let silent = notes.iter().any(|note| match note {
            Note::Kernel(change) => matches!(change, meshd_core::observed::KernelChange::Link(..)),
            Note::Actual(change) => matches!(change, ActualChange::Nexthop(_, None)),
        });
        self.take_notes(notes, now);
        silent
    }

    pub(crate) fn dump_first(&mut self) {
        let notes = self.kernel.dump_first();
        if let Some(life) = &mut self.life {
            life.first_half = notes;
        }
    }

    pub(crate) fn dump_second(&mut self, now: Duration) {
        let rest = self.kernel.dump_second();
        if let Some(life) = &mut self.life {
            let notes = std::mem::take(&mut life.first_half).into_iter().chain(rest).collect();
            self.take_notes(notes, now);
        }
    }

    /// Writes the state directory.
    pub(crate) fn persist(&mut self) {
        let Some(life) = &self.life else { return };
        let mut ids = std::mem::take(&mut self.memory.ids);
        ids.extend(life.claims.iter().map(|(id, cluster)| (cluster_name(*cluster), *id)));
        self.memory = Memory {
            rows: life.observed.clusters.iter().map(|(name, tables)| (name.clone(), tables.nodes.clone())).collect(),
            ids,
            owners: life.deriver.granted().map(|(prefix, owner)| (prefix, owner.clone())).collect(),
        };
    }

    /// Something that has grown beyond its bound.
    pub(crate) fn unbounded(&self) -> Option<String> {
        let life = self.life.as_ref()?;
        let over = |tables: &meshd_core::observed::ClusterTables| {
            tables.rejected.len() > Limits::REJECTED || tables.nodes.len() > Limits::NODES
        };
        let clusters = life.observed.clusters.len() > self.configured.len();
        let found = clusters || life.observed.clusters.values().any(over);
        found.then(|| format!("tables of node {} have grown beyond their bounds", self.index))
    }

    /// Nexthop objects the kernel holds that no route and no group refers to.
    pub(crate) fn idle_nexthops(&self) -> usize {
        let mut used = BTreeSet::new();
        for entry in self.kernel.routes.values() {
            if let Some(id) = entry.via.object() {
                used.insert(id);
            }
        }
        for nexthop in self.kernel.nexthops.values() {
            if let ActualNexthop::Group(members) = nexthop {
                used.extend(members.iter().map(|member| member.id));
            }
        }
        self.kernel.nexthops.keys().filter(|id| !used.contains(id)).count()
    }

    fn take_notes(&mut self, notes: Vec<Note>, now: Duration) {
        let wall = self.now(now).wall;
        let Some(life) = &mut self.life else { return };
        let mut changes = Vec::new();
        for note in notes {
            match note {
                Note::Actual(change) => life.planner.observe(change),
                Note::Kernel(change) => changes.push(change),
            }
        }
        if !changes.is_empty() {
            life.observed.apply(Change::Kernel(changes), wall);
        }
    }

    fn known_pod_cidrs(&self, sabotage: Option<Sabotage>) -> Vec<IpNet> {
        if sabotage == Some(Sabotage::ForgetOwn) { Vec::new() } else { self.pod_cidrs.clone() }
    }

    fn settings(&self, cluster: usize, seed: u64, sabotage: Option<Sabotage>) -> Settings {
        let everything = || vec!["0.0.0.0/0".parse().expect("a prefix"), "::/0".parse().expect("a prefix")];
        let accept = match sabotage {
            Some(Sabotage::AcceptEverything) => Accept { pod_cidrs: everything(), node_cidrs: everything() },
            _ => accept(cluster),
        };
        Settings {
            cluster: cluster_name(cluster),
            endpoints: Vec::new(),
            own_cluster: cluster_name(self.cluster),
            own_id: cluster_id(self.cluster),
            max_clusters: MaxClusters::C255,
            own_node: self.name.clone(),
            own_pod_cidrs: self.known_pod_cidrs(sabotage),
            own_addresses: self.addresses.clone(),
            accept,
            known_id: self.memory.ids.get(&cluster_name(cluster)).copied(),
            listed_from: BTreeMap::new(),
            timers: Timers::default(),
            page_limit: if self.index.is_multiple_of(3) { 4 } else { 2_000 },
            seed,
        }
    }
}
