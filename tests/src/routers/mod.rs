//! Real routers in network namespaces, as values: FRR, BIRD, GoBGP and ExaBGP with a configuration text each.
//!
//! A [`Network`] is a lab that is written by the test instead of by a file: every router is a node of it, all of them sit
//! on one switch with the addresses they were given, and further links can join two of them directly. So whatever the lab
//! promises holds here too: a file system view with a `/run` of its own for each, every process in the lab's control group, and nothing
//! left when the value is dropped.
//!
//! A [`Router`] answers in one language whichever program it is: which sessions are established, which [`Path`]s it holds,
//! what it has written to its log. The programs are asked through their own commands (`birdc`, `vtysh`, `gobgp`; ExaBGP writes what
//! it receives to a file), so what a test compares is what an operator of theirs would read.
//!
//! What is ugly: BIRD has no JSON, its table is read from text.

mod bird;
mod exabgp;
mod frr;
mod gobgp;
mod meshd;
mod path;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;
use lab::{Lab, Node, Options, Topology};
use serde_json::Value;

pub use exabgp::EXABGP_API;
pub use path::Path;

/// How long any one condition may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two questions; each one starts a program.
const POLL: Duration = Duration::from_millis(50);
/// Lines of a log that explain a failure.
const LOG_LINES: usize = 30;
/// The link of every router on the common switch.
pub const FABRIC: &str = "eth0";

/// Which program a router is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// FRR: zebra, bgpd and, with a configuration for it, bfdd.
    Frr,
    /// BIRD 2.
    Bird,
    /// GoBGP.
    GoBgp,
    /// ExaBGP, which sends and receives but chooses nothing.
    ExaBgp,
    /// Ours.
    Meshd,
    /// No router: a place for the test's own sockets and packets.
    Plain,
}

/// A router before it exists.
#[derive(Debug, Clone)]
pub struct Blueprint {
    kind: Kind,
    name: String,
    /// File in the node and its text.
    files: Vec<(String, String)>,
    /// Daemons in the order they are started: name and command.
    daemons: Vec<(String, String)>,
    exec: Vec<String>,
}

impl Blueprint {
    fn new(kind: Kind, name: &str) -> Self {
        Self { kind, name: name.to_owned(), files: Vec::new(), daemons: Vec::new(), exec: Vec::new() }
    }

    /// `meshd run` with its configuration.
    pub fn meshd(name: &str, configuration: &str) -> Self {
        Self::new(Kind::Meshd, name)
            .file("/etc/meshd/meshd.yaml", configuration)
            .daemon("meshd", "meshd run --config /etc/meshd/meshd.yaml")
    }

    /// A namespace with nothing in it.
    pub fn plain(name: &str) -> Self {
        Self::new(Kind::Plain, name)
    }

    /// Gives it an address on the common switch.
    #[must_use]
    pub fn address(self, address: &str) -> Self {
        self.run(&format!("ip address add {address} dev {FABRIC}"))
    }

    /// Runs a command before its daemons start, when its links are there.
    #[must_use]
    pub fn run(mut self, command: &str) -> Self {
        self.exec.push(command.to_owned());
        self
    }

    /// Gives it a file.
    #[must_use]
    pub fn file(mut self, path: &str, text: &str) -> Self {
        self.files.push((path.to_owned(), text.to_owned()));
        self
    }

    fn daemon(mut self, name: &str, command: &str) -> Self {
        self.daemons.push((name.to_owned(), command.to_owned()));
        self
    }

    /// Runs its daemons ahead of what else the machine does: where ours is measured, a foreign one is not to be what comes late.
    #[must_use]
    pub fn ahead(mut self) -> Self {
        for (_, command) in &mut self.daemons {
            *command = format!("nice -n -15 {command}");
        }
        self
    }

    /// Its node in the topology.
    fn to_yaml(&self, files: &std::path::Path) -> anyhow::Result<String> {
        let mut text = format!("    {}:\n", self.name);
        if !self.daemons.is_empty() {
            text.push_str("      labels:\n");
        }
        for (name, command) in &self.daemons {
            writeln!(text, "        meshd.lab/daemon.{name}: {}", quoted(command)?)?;
        }
        if !self.files.is_empty() {
            text.push_str("      binds:\n");
        }
        for (index, (path, content)) in self.files.iter().enumerate() {
            let source = files.join(format!("{}-{index}", self.name));
            fs::write(&source, content).with_context(|| format!("failed to write {}", source.display()))?;
            writeln!(text, "        - {}", quoted(&format!("{}:{path}", source.display()))?)?;
        }
        if !self.exec.is_empty() {
            text.push_str("      exec:\n");
        }
        for command in &self.exec {
            writeln!(text, "        - {}", quoted(command)?)?;
        }
        Ok(text)
    }
}

/// A string of YAML; JSON's form of it is one.
fn quoted(text: &str) -> anyhow::Result<String> {
    Ok(serde_json::to_string(text)?)
}

/// Routers that are wired and running. Dropped, everything is gone.
#[derive(Debug)]
pub struct Network {
    lab: Lab,
    kinds: Vec<(String, Kind)>,
    _files: tempfile::TempDir,
}

impl Network {
    /// Routers on one switch.
    pub fn up(routers: &[Blueprint]) -> anyhow::Result<Self> {
        Self::with_links(routers, &[])
    }

    /// The same with further links, each between two ends written `ROUTER:LINK`.
    pub fn with_links(routers: &[Blueprint], links: &[(&str, &str)]) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let is_over = IS_OVER.read().unwrap_or_else(PoisonError::into_inner);
        ensure!(!*is_over, "this program takes down its networks and brings up none any more");
        let name = format!("{}{}", own_prefix(), COUNT.fetch_add(1, Ordering::Relaxed));
        let files = tempfile::Builder::new().prefix(&format!("{name}.")).tempdir();
        let files = files.context("failed to create a folder for configurations")?;
        let mut text =
            format!("name: {name}\ntopology:\n  defaults: {{kind: linux}}\n  nodes:\n    fabric: {{kind: bridge}}\n");
        for router in routers {
            text.push_str(&router.to_yaml(files.path())?);
        }
        text.push_str("  links:\n");
        for (index, router) in routers.iter().enumerate() {
            writeln!(text, "    - endpoints: [\"{}:{FABRIC}\", \"fabric:port{index}\"]", router.name)?;
        }
        for (one, other) in links {
            writeln!(text, "    - endpoints: [\"{one}\", \"{other}\"]")?;
        }
        let topology = Topology::parse(&text, files.path().to_owned()).with_context(|| text.clone())?;
        let lab = Lab::up_topology(&topology, &Options { name: Some(name), ..Options::default() })?;
        let kinds = routers.iter().map(|router| (router.name.clone(), router.kind)).collect();
        Ok(Self { lab, kinds, _files: files })
    }

    /// The router of that name.
    pub fn router(&self, name: &str) -> anyhow::Result<Router> {
        let kind = self.kinds.iter().find(|(known, _)| known == name).map(|(_, kind)| *kind);
        Ok(Router { kind: kind.with_context(|| format!("no router {name}"))?, node: self.lab.node(name)? })
    }

    /// The switch they share.
    pub fn switch(&self) -> anyhow::Result<Node> {
        Ok(self.lab.node("fabric")?)
    }

    /// Takes everything down and says what could not be removed.
    pub fn down(self) -> anyhow::Result<()> {
        let is_over = IS_OVER.read().unwrap_or_else(PoisonError::into_inner);
        if *is_over {
            // It is gone already.
            self.lab.keep();
            return Ok(());
        }
        Ok(self.lab.down()?)
    }
}

/// What the names of this process's networks begin with.
fn own_prefix() -> String {
    format!("routers-{}-", std::process::id())
}

/// Whether [`abandon`] was called. Held while a network comes up or goes, so that none is half there when all are taken down.
static IS_OVER: RwLock<bool> = RwLock::new(false);

/// Takes down every network of this process, whoever holds it, for a program that ends right afterwards. There will be no others.
///
/// # Errors
/// What could not be removed; the rest is gone.
pub fn abandon() -> anyhow::Result<()> {
    let mut is_over = IS_OVER.write().unwrap_or_else(PoisonError::into_inner);
    *is_over = true;
    let prefix = own_prefix();
    let mut problems = Vec::new();
    for name in Lab::list().into_iter().filter(|name| name.starts_with(&prefix)) {
        problems.extend(Lab::abandon(&name).err().map(|error| lab::chain(&error)));
    }
    let temporary = std::env::temp_dir();
    let folders = fs::read_dir(&temporary).with_context(|| format!("failed to read {}", temporary.display()))?;
    for folder in folders.filter_map(Result::ok).filter(|it| it.file_name().to_string_lossy().starts_with(&prefix)) {
        if let Err(error) = fs::remove_dir_all(folder.path()) {
            problems.push(format!("failed to remove {}: {error}", folder.path().display()));
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// A router of a network that is up.
#[derive(Debug, Clone)]
pub struct Router {
    kind: Kind,
    node: Node,
}

impl Router {
    /// A router that some other lab has started.
    pub fn of(kind: Kind, node: Node) -> Self {
        Self { kind, node }
    }

    /// Its node in the lab, for everything that is not about BGP.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Runs a command in it and returns what it wrote.
    pub fn run(&self, command: &[&str]) -> anyhow::Result<String> {
        Ok(self.node.exec(command)?.ok()?)
    }

    /// What its command answers: `meshd WORDS`, `vtysh -c WORDS`, `birdc WORDS` or `gobgp WORDS`.
    pub fn text(&self, words: &str) -> anyhow::Result<String> {
        let split = words.split(' ');
        let command: Vec<&str> = match self.kind {
            Kind::Frr => vec!["vtysh", "-c", words],
            Kind::Bird => ["birdc"].into_iter().chain(split).collect(),
            Kind::GoBgp => ["gobgp"].into_iter().chain(split).collect(),
            Kind::Meshd => ["meshd"].into_iter().chain(split).collect(),
            Kind::ExaBgp | Kind::Plain => bail!("{:?} has no command", self.kind),
        };
        self.run(&command)
    }

    /// The same as JSON, of those that have it.
    pub fn json(&self, words: &str) -> anyhow::Result<Value> {
        match self.kind {
            Kind::Frr => frr::vtysh(&self.node, &format!("{words} json")),
            Kind::GoBgp => gobgp::gobgp(&self.node, words),
            Kind::Meshd => meshd::meshd(&self.node, words),
            Kind::Bird | Kind::ExaBgp | Kind::Plain => bail!("{:?} has no JSON", self.kind),
        }
    }

    /// Changes the configuration of an FRR, by these lines one after the other.
    pub fn configure(&self, lines: &[&str]) -> anyhow::Result<()> {
        let lines = lines.iter().flat_map(|line| ["-c", line]);
        self.run(&["vtysh", "-c", "configure terminal"].into_iter().chain(lines).collect::<Vec<_>>()).map(drop)
    }

    /// The peers, by address or interface, with which it has an established session.
    pub fn established(&self) -> anyhow::Result<BTreeSet<String>> {
        match self.kind {
            Kind::Bird => bird::established(&self.node),
            Kind::Frr => frr::established(&self.node),
            Kind::GoBgp => gobgp::established(&self.node),
            Kind::ExaBgp => exabgp::established(&self.node),
            Kind::Meshd => meshd::established(&self.node),
            Kind::Plain => Ok(BTreeSet::new()),
        }
    }

    /// Every path it holds, best or not, in the order of prefixes.
    pub fn paths(&self) -> anyhow::Result<Vec<Path>> {
        let mut paths = match self.kind {
            Kind::Bird => bird::paths(&self.node)?,
            Kind::Frr => frr::paths(&self.node)?,
            Kind::GoBgp => gobgp::paths(&self.node)?,
            Kind::ExaBgp => exabgp::paths(&self.node)?,
            Kind::Meshd => meshd::paths(&self.node)?,
            Kind::Plain => Vec::new(),
        };
        paths.sort_by(|a, b| (a.prefix, &a.from, a.path_id).cmp(&(b.prefix, &b.from, b.path_id)));
        Ok(paths)
    }

    /// The paths to one prefix.
    pub fn paths_to(&self, prefix: &str) -> anyhow::Result<Vec<Path>> {
        let wanted: IpNet = prefix.parse()?;
        Ok(self.paths()?.into_iter().filter(|path| path.prefix == wanted).collect())
    }

    /// Waits for an established session with this peer.
    pub fn wait_established(&self, peer: &str) -> anyhow::Result<()> {
        self.wait(&format!("a session with {peer}"), || {
            let established = self.established()?;
            if established.contains(peer) { Ok(()) } else { bail!("established are {established:?}") }
        })
    }

    /// Waits until there is no session with this peer.
    pub fn wait_down(&self, peer: &str) -> anyhow::Result<()> {
        self.wait(&format!("the end of the session with {peer}"), || {
            if self.established()?.contains(peer) { bail!("it is established") } else { Ok(()) }
        })
    }

    /// Waits for a path to this prefix and returns the only one there is.
    pub fn wait_path(&self, prefix: &str) -> anyhow::Result<Path> {
        self.wait(&format!("a path to {prefix}"), || {
            let mut paths = self.paths_to(prefix)?;
            match (paths.pop(), paths.is_empty()) {
                (Some(path), true) => Ok(path),
                (last, _) => bail!("it has {last:?} and {paths:?}"),
            }
        })
    }

    /// Waits until it has no path to this prefix.
    pub fn wait_no_path(&self, prefix: &str) -> anyhow::Result<()> {
        self.wait(&format!("the loss of {prefix}"), || {
            let paths = self.paths_to(prefix)?;
            if paths.is_empty() { Ok(()) } else { bail!("it has {paths:?}") }
        })
    }

    /// Waits until asking gives no error. What fails at the deadline comes with the end of the log.
    pub fn wait<T>(&self, what: &str, ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
        until(&format!("{what} in {}", self.node.name()), DEADLINE, ask).map_err(|error| {
            let log = self.log().unwrap_or_default();
            let end: Vec<&str> = log.lines().rev().take(LOG_LINES).collect();
            error.context(format!("the end of its log:\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n")))
        })
    }

    /// Everything its daemons wrote, over all starts.
    pub fn log(&self) -> anyhow::Result<String> {
        let logs: Vec<String> = self.node.daemons().iter().map(lab::Daemon::log).collect::<Result<_, _>>()?;
        Ok(logs.concat())
    }

    /// The lines of the log in which it complains about a peer or a message. What every start says about the machine and what follows
    /// from a session that ended is left out.
    pub fn complaints(&self) -> anyhow::Result<Vec<String>> {
        let complains: fn(&str) -> bool = match self.kind {
            Kind::Bird => return Ok(bird::complaints(&self.log()?)),
            Kind::Frr => frr::complains,
            Kind::GoBgp => return Ok(gobgp::complaints(&self.log()?)),
            Kind::ExaBgp => exabgp::complains,
            Kind::Meshd => meshd::complains,
            Kind::Plain => |_| false,
        };
        Ok(self.log()?.lines().filter(|line| complains(line)).map(str::to_owned).collect())
    }

    /// Kills the daemon that speaks BGP, as a crash would.
    pub fn kill9(&self) -> anyhow::Result<()> {
        Ok(self.node.daemon(self.speaker())?.kill9()?)
    }

    /// Starts it again, with the same files.
    pub fn start(&self) -> anyhow::Result<()> {
        Ok(self.node.daemon(self.speaker())?.start()?)
    }

    /// Ends it as a service manager would.
    pub fn stop(&self) -> anyhow::Result<()> {
        Ok(self.node.daemon(self.speaker())?.stop()?)
    }

    /// Process numbers of its daemons, in the order of their start.
    pub fn pids(&self) -> Vec<i32> {
        self.node.daemons().iter().filter_map(lab::Daemon::pid).collect()
    }

    /// The name of the daemon that has the sessions.
    fn speaker(&self) -> &'static str {
        match self.kind {
            Kind::Frr => "bgpd",
            Kind::Bird => "bird",
            Kind::GoBgp => "gobgpd",
            Kind::ExaBgp => "exabgp",
            Kind::Meshd => "meshd",
            Kind::Plain => "none",
        }
    }
}

/// Asks again until the answer is no error; the last error is part of the one at the deadline.
pub fn until<T>(what: &str, within: Duration, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let error = match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(error.context(format!("waited {within:?} for {what}")));
        }
        sleep(POLL);
    }
}
