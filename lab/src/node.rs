//! A node of a lab that is up: running programs in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::lab::{Inner, SWITCHES};
use crate::namespace::{Birth, LAB_ENV, Namespaces};
use crate::process::ProcessId;
use crate::topology::NodeSpec;

/// Where programs of the lab itself are found in a node, before the host's.
pub(crate) const LAB_BIN: &str = "/run/lab/bin";
/// What a node searches when the environment does not say.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const POLL: Duration = Duration::from_millis(5);

/// A node, a pod, or a switch of a lab that is up. Cheap to clone, usable from any thread.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) lab: Arc<Inner>,
    pub(crate) name: String,
    pub(crate) holder: ProcessId,
}

impl Node {
    /// Its name in the topology.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the topology says about it; nothing for a switch.
    pub fn spec(&self) -> Option<&NodeSpec> {
        self.lab.record.topology.node(&self.name)
    }

    /// The process that holds its namespaces.
    pub fn holder_pid(&self) -> i32 {
        self.holder.pid
    }

    /// Its network namespace, for programs that take a path.
    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.pid))
    }

    /// Its control group as a folder of the host, where there is cgroup v2.
    pub fn cgroup_path(&self) -> Option<PathBuf> {
        self.lab.record.group.as_ref().map(|group| group.child(self.place()).path().to_owned())
    }

    /// Its folder on the host: `pki`, `log` and `daemon` are in it.
    pub fn folder(&self) -> PathBuf {
        self.lab.folder.node(self.place())
    }

    /// Runs code in its namespaces, in a thread of its own. Files are the node's files, sockets are in its network.
    pub fn within<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespaces()?.within(|| Ok(inside()))
    }

    /// Runs a command to its end and returns what it wrote. A failing command is an [`Output`] too.
    pub fn exec<S: AsRef<str> + Sync>(&self, command: &[S]) -> Result<Output> {
        let mut prepared = self.command(command)?;
        prepared.stdin(Stdio::null());
        self.birth()?.register(&mut prepared);
        let output = self.namespaces()?.within(|| prepared.output().map_err(self.start_failed(command)))?;
        Ok(Output {
            command: words(command),
            node: self.name.clone(),
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command to its end with our own standard input and outputs, as a terminal user expects it.
    pub fn exec_attached<S: AsRef<str> + Sync>(&self, command: &[S]) -> Result<ExitStatus> {
        let mut prepared = self.command(command)?;
        self.birth()?.register(&mut prepared);
        self.namespaces()?.within(|| prepared.status().map_err(self.start_failed(command)))
    }

    /// Starts a command and leaves it running; its outputs go to a file until [`Running::finish`] reads it.
    pub fn spawn<S: AsRef<str> + Sync>(&self, command: &[S]) -> Result<Running> {
        let mut prepared = self.command(command)?;
        let output = tempfile::NamedTempFile::new_in(self.lab.folder.path())
            .map_err(Error::file("create a file in", self.lab.folder.path()))?;
        prepared.stdin(Stdio::null()).stdout(append(output.path())?).stderr(append(output.path())?);
        self.birth()?.detach(&mut prepared);
        let child = self.namespaces()?.within(|| prepared.spawn().map_err(self.start_failed(command)))?;
        Ok(Running { command: words(command), node: self.name.clone(), child, output })
    }

    /// A daemon of this node by its name in the topology.
    pub fn daemon(&self, name: &str) -> Result<Daemon> {
        let spec = self.spec().and_then(|node| node.daemons.iter().find(|daemon| daemon.name == name));
        match spec {
            Some(spec) => Ok(Daemon { node: self.clone(), spec: spec.clone() }),
            None => Err(Error::NoDaemon { node: self.name.clone(), daemon: name.to_owned() }),
        }
    }

    /// All daemons of this node, the main one first.
    pub fn daemons(&self) -> Vec<Daemon> {
        let specs = self.spec().map(|node| node.daemons.clone()).unwrap_or_default();
        specs.into_iter().map(|spec| Daemon { node: self.clone(), spec }).collect()
    }

    /// Makes `meshd` in this node mean another binary from its next start on.
    pub fn use_meshd(&self, binary: &Path) -> Result<()> {
        let binary = binary.to_owned();
        self.namespaces()?.within(move || {
            let folder = Path::new(LAB_BIN);
            std::fs::create_dir_all(folder).map_err(Error::file("create folder", folder))?;
            let (link, new) = (folder.join("meshd"), folder.join(".meshd.new"));
            std::os::unix::fs::symlink(&binary, &new).map_err(Error::file("link", &new))?;
            std::fs::rename(&new, &link).map_err(Error::file("replace", &link))
        })
    }

    /// Waits until its health check passes once; without one, until its daemons run.
    pub fn wait_healthy(&self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let Err(error) = self.health() else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let condition = format!("node {} of lab {} to be healthy", self.name, self.lab.folder.name());
                return Err(Error::Deadline { condition, within, last: crate::error::chain(&error) });
            }
            std::thread::sleep(POLL);
        }
    }

    /// One look at whether the node works.
    fn health(&self) -> Result<()> {
        for daemon in self.daemons() {
            if !daemon.is_running() {
                let daemon = daemon.name().to_owned();
                return Err(Error::NotRunning { node: self.name.clone(), daemon });
            }
        }
        let Some(check) = self.spec().and_then(|spec| spec.healthcheck.clone()) else {
            return Ok(());
        };
        let mut command = vec!["timeout".to_owned(), check.timeout_s.to_string()];
        command.extend(check.command);
        self.exec(&command)?.ok().map(drop)
    }

    pub(crate) fn namespaces(&self) -> Result<Namespaces> {
        if !self.holder.is_alive() {
            return Err(Error::NotUp { name: self.lab.folder.name().to_owned() });
        }
        Namespaces::of(self.holder.pid)
    }

    /// The name of its folder and control group; switches share one of each.
    fn place(&self) -> &str {
        if self.spec().is_some() { &self.name } else { SWITCHES }
    }

    pub(crate) fn birth(&self) -> Result<Birth> {
        let group = self.lab.record.group.as_ref().map(|group| group.child(self.place()));
        Birth::open(group.as_ref(), &self.lab.folder.journal())
    }

    /// A command with the environment of this node.
    pub(crate) fn command<S: AsRef<str>>(&self, words: &[S]) -> Result<Command> {
        let Some((program, arguments)) = words.split_first() else {
            let empty = std::io::Error::from(std::io::ErrorKind::InvalidInput);
            return Err(Error::Start { command: String::new(), node: self.name.clone(), source: empty });
        };
        let inherited = std::env::var("PATH").unwrap_or_else(|_| SYSTEM_PATH.to_owned());
        let mut command = Command::new(program.as_ref());
        command
            .args(arguments.iter().map(AsRef::as_ref))
            .current_dir("/")
            .env("PATH", format!("{LAB_BIN}:{inherited}:{SYSTEM_PATH}"))
            .env(LAB_ENV, self.lab.folder.name())
            .env("MESHD_LAB_NODE", &self.name);
        if let Some(spec) = self.spec() {
            command.envs(&spec.env);
        }
        Ok(command)
    }

    pub(crate) fn start_failed<S: AsRef<str>>(&self, command: &[S]) -> impl FnOnce(std::io::Error) -> Error {
        let (command, node) = (words(command), self.name.clone());
        move |source| Error::Start { command, node, source }
    }
}

/// What a command that has ended left behind.
#[derive(Debug, Clone)]
pub struct Output {
    command: String,
    node: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error; empty for a spawned command, whose outputs share one file.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with status 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Its standard output, or an error with what it said when it did not succeed.
    pub fn ok(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        Err(Error::Command {
            stderr: said.trim().to_owned(),
            command: self.command,
            node: self.node,
            status: self.status.to_string(),
        })
    }

    /// Its standard output as JSON; an empty output is an empty list, as `ip -j` means it.
    pub fn json(self) -> Result<serde_json::Value> {
        let path = PathBuf::from(&self.command);
        let text = self.ok()?;
        if text.trim().is_empty() {
            return Ok(serde_json::Value::Array(Vec::new()));
        }
        serde_json::from_str(&text).map_err(|source| Error::Record { path, source })
    }
}

/// A command that still runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    command: String,
    node: String,
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Running {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn so_far(&self) -> Result<String> {
        let bytes = std::fs::read(self.output.path()).map_err(Error::file("read", self.output.path()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        let waited = self.child.try_wait().map_err(Error::file("wait for", &self.command))?;
        Ok(waited.is_none())
    }

    /// Sends a signal, for instance SIGINT to make `ping` print its summary.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.is_running()? {
            // Not waited for yet, so the number is still its own.
            let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
            nix::sys::signal::kill(pid, signal)
                .map_err(Error::system(format!("send {signal} to {} in {}", self.command, self.node)))?;
        }
        Ok(())
    }

    /// Waits for its end, killing it at the deadline, and returns what it wrote.
    pub fn finish(mut self, within: Duration) -> Result<Output> {
        let deadline = Instant::now() + within;
        let status = loop {
            if let Some(status) = self.child.try_wait().map_err(Error::file("wait for", &self.command))? {
                break status;
            }
            if Instant::now() >= deadline {
                let condition = format!("{} in {} to end", self.command, self.node);
                return Err(Error::Deadline { condition, within, last: self.so_far()? });
            }
            std::thread::sleep(POLL);
        };
        let stdout = self.so_far()?;
        let (command, node) = (std::mem::take(&mut self.command), std::mem::take(&mut self.node));
        Ok(Output { command, node, status, stdout, stderr: String::new() })
    }

    /// Sends a signal and waits for the end.
    pub fn stop(mut self, signal: Signal, within: Duration) -> Result<Output> {
        self.signal(signal)?;
        self.finish(within)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a process that has already ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn append(path: &Path) -> Result<File> {
    std::fs::OpenOptions::new().append(true).create(true).open(path).map_err(Error::file("open", path))
}

fn words<S: AsRef<str>>(command: &[S]) -> String {
    command.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ")
}
