//! A lab from its topology to running nodes, and back to nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::daemon::Daemon;
use crate::error::{Error, Result, chain};
use crate::namespace::{self, Birth, MountPlan, Plan, ResolvedBind};
use crate::node::{Node, Output};
use crate::process::ProcessId;
use crate::record::{Folder, Lock, Record};
use crate::topology::{NodeSpec, Role, Stage, Topology};
use crate::{catalog, certificate, links};

/// The namespace all switches of a lab share, as a name that no node can have.
const SWITCHES: &str = ".switches";
/// How long a node may take to become healthy when another one waits for it.
const AWAITED_WITHIN: Duration = Duration::from_secs(30);

/// How to bring a lab up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the lab; by default the topology's. Several labs of one topology need different names.
    pub name: Option<String>,
    /// Whether to start the daemons.
    pub daemons: bool,
    /// How long to wait until every node is healthy; not at all by default.
    pub ready_within: Option<Duration>,
    /// The `meshd` binary of the nodes; by default the one that [`catalog::meshd`] finds.
    pub meshd: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { name: None, daemons: true, ready_within: None, meshd: None }
    }
}

/// A lab that is up.
///
/// The value that [`Lab::up`] returns takes the lab down when it is dropped; [`Lab::keep`] leaves it up.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<Inner>,
    owned: AtomicBool,
}

/// What the handles of a lab share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) folder: Folder,
    pub(crate) record: Record,
}

impl Lab {
    /// Brings up the topology of that name or path. When a step fails, everything made before it is removed again.
    pub fn up(topology: &str, options: &Options) -> Result<Self> {
        Self::up_topology(&catalog::load(topology)?, options)
    }

    /// Brings up a topology that was read before.
    pub fn up_topology(topology: &Topology, options: &Options) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let folder = Folder::of(options.name.as_deref().unwrap_or(&topology.name))?;
        let lock = folder.create()?;
        let built = Builder { folder: &folder, topology, options }.build();
        match built {
            Ok(lab) => {
                drop(lock);
                Ok(lab)
            }
            Err(source) => {
                let cleanup = remove(&folder, lock);
                Err(Error::Up { name: folder.name().to_owned(), source: Box::new(source), cleanup })
            }
        }
    }

    /// A lab that another process brought up. Dropping the value leaves it up.
    pub fn open(name: &str) -> Result<Self> {
        let folder = Folder::of(name)?;
        let record = folder.read()?;
        Ok(Self { inner: Arc::new(Inner { folder, record }), owned: AtomicBool::new(false) })
    }

    /// The names of the labs that are up, or half up.
    pub fn list() -> Vec<String> {
        Folder::all()
    }

    /// Takes a lab down by name, in whatever state it is. Goes on after errors and returns them all.
    pub fn down_by_name(name: &str) -> Result<()> {
        let folder = Folder::of(name)?;
        if !folder.exists() {
            return Err(Error::NotUp { name: name.to_owned() });
        }
        let lock = folder.lock()?;
        match remove(&folder, lock) {
            problems if problems.is_empty() => Ok(()),
            problems => Err(Error::Down { name: name.to_owned(), problems }),
        }
    }

    /// Takes the lab down.
    pub fn down(self) -> Result<()> {
        self.owned.store(false, Ordering::Relaxed);
        Self::down_by_name(self.name())
    }

    /// Leaves the lab up when this value is dropped.
    pub fn keep(self) -> Self {
        self.owned.store(false, Ordering::Relaxed);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.inner.folder.name()
    }

    /// Its folder on the host.
    pub fn folder(&self) -> &Path {
        self.inner.folder.path()
    }

    /// The topology it was made from.
    pub fn topology(&self) -> &Topology {
        &self.inner.record.topology
    }

    /// A node, a pod or a switch.
    pub fn node(&self, name: &str) -> Result<Node> {
        let record = &self.inner.record;
        let holder = match record.holders.get(name) {
            Some(holder) => *holder,
            None if record.topology.bridges.iter().any(|bridge| bridge == name) => record.switches,
            None => {
                let known: Vec<&str> =
                    record.holders.keys().chain(&record.topology.bridges).map(String::as_str).collect();
                return Err(Error::NoNode {
                    lab: self.name().to_owned(),
                    node: name.to_owned(),
                    known: known.join(", "),
                });
            }
        };
        Ok(Node { lab: Arc::clone(&self.inner), name: name.to_owned(), holder })
    }

    /// Every node and pod, in the order of the topology.
    pub fn nodes(&self) -> Vec<Node> {
        let names = self.topology().nodes.iter().map(|node| &node.name);
        names.filter_map(|name| self.node(name).ok()).collect()
    }

    /// Every daemon called `name`, in the order of the topology.
    pub fn daemons(&self, name: &str) -> Vec<Daemon> {
        self.nodes().into_iter().filter_map(|node| node.daemon(name).ok()).collect()
    }

    /// Waits until every node is healthy.
    pub fn wait_healthy(&self, within: Duration) -> Result<()> {
        let deadline = std::time::Instant::now() + within;
        for node in self.nodes() {
            node.wait_healthy(deadline.saturating_duration_since(std::time::Instant::now()))?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.owned.load(Ordering::Relaxed)
            && let Err(error) = Self::down_by_name(self.name())
        {
            eprintln!("lab: {}", chain(&error));
        }
    }
}

/// The steps of bringing a lab up, in their order.
struct Builder<'a> {
    folder: &'a Folder,
    topology: &'a Topology,
    options: &'a Options,
}

impl Builder<'_> {
    fn build(&self) -> Result<Lab> {
        let meshd = self.meshd()?;
        let group = self.group()?;
        self.node_folders()?;
        if let Some(meshd) = &meshd {
            let authority = self.folder.path().join("authority");
            certificate::issue(self.topology, meshd, &authority, |node| self.folder.node(node).join("pki"))?;
        }
        let record = self.namespaces(group)?;
        self.folder.write(&record)?;
        let pids = record.holders.iter().map(|(name, holder)| (name.clone(), holder.pid)).collect();
        let inner = Arc::new(Inner { folder: self.folder.clone(), record });
        // Owned from the end on: until then the caller cleans up.
        let lab = Lab { inner, owned: AtomicBool::new(false) };
        self.wire(&lab, &pids)?;
        each(lab.nodes(), |node| self.configure(node, meshd.as_deref()))?;
        if self.options.daemons {
            self.start_daemons(&lab)?;
        }
        lab.owned.store(true, Ordering::Relaxed);
        Ok(lab)
    }

    /// The binary, when anything in this topology needs one.
    fn meshd(&self) -> Result<Option<PathBuf>> {
        let runs_it = |node: &NodeSpec| node.daemons.iter().any(|daemon| daemon.command[0] == "meshd");
        let needed = self.topology.nodes.iter().any(|node| !node.certificates.is_empty() || runs_it(node));
        match &self.options.meshd {
            Some(meshd) => Ok(Some(meshd.clone())),
            None if needed => catalog::meshd().map(Some),
            None => Ok(None),
        }
    }

    fn group(&self) -> Result<Option<Cgroup>> {
        let Some(group) = Cgroup::of_lab(self.folder.name()) else {
            return Ok(None);
        };
        if !group.create()? {
            return Ok(None);
        }
        for name in self.names() {
            group.child(name).create()?;
        }
        Ok(Some(group))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.topology.nodes.iter().map(|node| node.name.as_str()).chain([SWITCHES])
    }

    fn node_folders(&self) -> Result<()> {
        for name in self.names() {
            for folder in ["stage", "pki", "log", "daemon"] {
                let path = self.folder.node(name).join(folder);
                std::fs::create_dir_all(&path).map_err(Error::file("create folder", path))?;
            }
        }
        Ok(())
    }

    fn namespaces(&self, group: Option<Cgroup>) -> Result<Record> {
        let switches = self.create(SWITCHES, None, group.as_ref())?;
        let created = each_result(&self.topology.nodes, |node| {
            self.create(&node.name, Some(node), group.as_ref()).map(|holder| (node.name.clone(), holder))
        })?;
        Ok(Record { topology: self.topology.clone(), holders: created.into_iter().collect(), switches, group })
    }

    fn create(&self, name: &str, node: Option<&NodeSpec>, group: Option<&Cgroup>) -> Result<ProcessId> {
        let binds = node.map(|node| self.binds(node)).unwrap_or_default();
        let stage = self.folder.node(name).join("stage");
        let host_name = name.trim_start_matches('.');
        let plan = Plan {
            lab: self.folder.name(),
            name: host_name,
            role: node.map(|node| node.role),
            mounts: MountPlan { stage, binds },
        };
        let group = group.map(|group| group.child(name));
        namespace::create(&plan, Birth::open(group.as_ref(), &self.folder.journal())?)
    }

    fn binds(&self, node: &NodeSpec) -> Vec<ResolvedBind> {
        let own = self.folder.node(&node.name);
        let resolve = |written: &str| {
            let written = written
                .replace("__clabNodeDir__", &own.to_string_lossy())
                .replace("__clabDir__", &self.folder.path().to_string_lossy());
            self.topology.folder.join(written)
        };
        node.binds
            .iter()
            .map(|bind| ResolvedBind {
                source: resolve(&bind.source),
                target: bind.target.clone(),
                read_only: bind.read_only,
            })
            .collect()
    }

    fn wire(&self, lab: &Lab, holders: &BTreeMap<String, i32>) -> Result<()> {
        let switches =
            Node { lab: Arc::clone(&lab.inner), name: SWITCHES.to_owned(), holder: lab.inner.record.switches };
        let batch = links::wiring(self.topology, holders);
        switches.namespaces()?.within(|| links::run_batch(&batch, "the switches"))
    }

    fn configure(&self, node: &Node, meshd: Option<&Path>) -> Result<()> {
        let batch = links::up(self.topology, node.name());
        node.namespaces()?.within(|| links::run_batch(&batch, node.name()))?;
        if let Some(meshd) = meshd {
            node.use_meshd(meshd)?;
        }
        let commands = node.spec().map(|spec| spec.exec.as_slice()).unwrap_or_default();
        commands.iter().try_for_each(|command| node.exec(command).and_then(Output::ok).map(drop))
    }

    /// Starts the daemons of every node after those of the nodes it waits for.
    fn start_daemons(&self, lab: &Lab) -> Result<()> {
        let mut settled: BTreeSet<String> = BTreeSet::new();
        let mut started: BTreeSet<String> = BTreeSet::new();
        let total = self.topology.nodes.len();
        while started.len() < total {
            // Waiting for oneself is refused when the topology is read, so each round finds a node to start.
            for spec in self.topology.nodes.iter() {
                let free = spec.wait_for.iter().all(|wait| started.contains(&wait.node));
                if !free || started.contains(&spec.name) {
                    continue;
                }
                for wait in &spec.wait_for {
                    self.await_stage(lab, &wait.node, wait.stage, &mut settled)?;
                }
                std::thread::sleep(Duration::from_secs(spec.startup_delay_s.into()));
                lab.node(&spec.name)?.daemons().iter().try_for_each(Daemon::start)?;
                started.insert(spec.name.clone());
            }
        }
        for spec in self.topology.nodes.iter().filter(|spec| !spec.on_healthy.is_empty()) {
            self.await_stage(lab, &spec.name, Stage::Healthy, &mut settled)?;
        }
        match self.options.ready_within {
            Some(within) => lab.wait_healthy(within),
            None => Ok(()),
        }
    }

    /// Waits for a stage of a node; the first time it is seen healthy, its commands for that moment run.
    fn await_stage(&self, lab: &Lab, name: &str, stage: Stage, settled: &mut BTreeSet<String>) -> Result<()> {
        let node = lab.node(name)?;
        match stage {
            Stage::Configured => Ok(()),
            Stage::Exit => {
                let main = node.daemons().into_iter().next();
                wait_until(|| main.as_ref().is_none_or(|main| !main.is_running()), &format!("{name} to end"))
            }
            Stage::Healthy if settled.contains(name) => Ok(()),
            Stage::Healthy => {
                node.wait_healthy(AWAITED_WITHIN)?;
                settled.insert(name.to_owned());
                let commands = node.spec().map(|spec| spec.on_healthy.as_slice()).unwrap_or_default();
                commands.iter().try_for_each(|command| node.exec(command).and_then(Output::ok).map(drop))
            }
        }
    }
}

fn wait_until(condition: impl Fn() -> bool, name: &str) -> Result<()> {
    let deadline = std::time::Instant::now() + AWAITED_WITHIN;
    while !condition() {
        if std::time::Instant::now() >= deadline {
            let last = "it is not so yet".to_owned();
            return Err(Error::Deadline { condition: name.to_owned(), within: AWAITED_WITHIN, last });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Removes everything a lab of this name can have left, in any state, and says what could not be removed.
fn remove(folder: &Folder, lock: Lock) -> Vec<Error> {
    let mut problems = Vec::new();
    let record = folder.read().ok();
    let ours = record.as_ref().map(|record| owned_processes(folder, record)).unwrap_or_default();
    match Cgroup::of_lab(folder.name()) {
        Some(group) => problems.extend(group.destroy().err()),
        None => problems.extend(kill_journalled(folder).err()),
    }
    if record.is_some_and(|record| record.group.is_none()) {
        problems.extend(kill_journalled(folder).err());
    }
    // Looking at a process of ours that has ended takes its exit status, so that none stays as a zombie.
    let alive: Vec<i32> = ours.into_iter().filter(|process| process.is_alive()).map(|process| process.pid).collect();
    if !alive.is_empty() {
        let last = format!("still there: {alive:?}");
        problems.push(Error::Deadline { condition: "all processes to end".to_owned(), within: Duration::ZERO, last });
    }
    drop(lock);
    problems.extend(folder.remove().err());
    problems
}

/// Holders and daemons, as far as the record knows them.
fn owned_processes(folder: &Folder, record: &Record) -> Vec<ProcessId> {
    let mut processes: Vec<ProcessId> = record.holders.values().copied().chain([record.switches]).collect();
    for node in &record.topology.nodes {
        for daemon in &node.daemons {
            let recorded = std::fs::read(folder.node(&node.name).join("daemon").join(&daemon.name));
            processes.extend(recorded.ok().and_then(|text| serde_json::from_slice::<ProcessId>(&text).ok()));
        }
    }
    processes
}

/// Without control groups: ends every process that was noted down and still carries the mark of this lab.
fn kill_journalled(folder: &Folder) -> Result<()> {
    let journal = folder.journal();
    let text = match std::fs::read_to_string(&journal) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::file("read", journal)(source)),
    };
    let mark = format!("{}={}", namespace::LAB_ENV, folder.name());
    for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()) {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_ours = environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes());
        if let (true, Some(process)) = (is_ours, ProcessId::of(pid)) {
            process.signal(nix::sys::signal::Signal::SIGKILL)?;
            process.wait_gone(AWAITED_WITHIN);
        }
    }
    Ok(())
}

/// Does the same for every node at the same time and returns the first error in the order of the nodes.
fn each(nodes: Vec<Node>, action: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    each_result(&nodes, action).map(drop)
}

fn each_result<I: Sync, T: Send>(items: &[I], action: impl Fn(&I) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let action = &action;
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(move || action(item))).collect();
        let results: Vec<Result<T>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.into_iter().collect()
    })
}

impl Role {
    /// The word for it in tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Pod => "pod",
        }
    }
}
