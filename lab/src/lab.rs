//! A lab from its topology to running nodes, and back to nothing.

use std::collections::BTreeMap;
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
use crate::record::{Folder, Record};
use crate::remove::remove;
use crate::topology::{NodeSpec, Role, Topology};
use crate::{catalog, certificate, links, start};

/// The namespace all switches of a lab share, as a name that no node can have.
pub(crate) const SWITCHES: &str = ".switches";

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
                let cleanup = remove(&folder, Some(lock));
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
        match remove(&folder, Some(lock)) {
            problems if problems.is_empty() => Ok(()),
            problems => Err(Error::Down { name: name.to_owned(), problems }),
        }
    }

    /// Takes a lab down although another thread of this program may still be bringing it up, for a program that ends
    /// right afterwards. That other thread fails at its next step.
    pub fn abandon(name: &str) -> Result<()> {
        let folder = Folder::of(name)?;
        if !folder.exists() {
            return Ok(());
        }
        match remove(&folder, None) {
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
            start::daemons(&lab)?;
            if let Some(within) = self.options.ready_within {
                lab.wait_healthy(within)?;
            }
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
}

/// Does the same for every node at the same time and returns the first error in the order of the nodes.
pub(crate) fn each(nodes: Vec<Node>, action: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    each_result(&nodes, action).map(drop)
}

/// The same with a result for each item.
pub(crate) fn each_result<I: Sync, T: Send>(items: &[I], action: impl Fn(&I) -> Result<T> + Sync) -> Result<Vec<T>> {
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
