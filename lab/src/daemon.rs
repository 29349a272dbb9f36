//! A daemon of a node: started detached, found again by its process, stopped on request.
//!
//! Nothing watches over a daemon. A lab shows what happens when one dies, so it stays dead until somebody starts it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::{Error, Result};
use crate::namespace::started;
use crate::node::{Node, append};
use crate::process::ProcessId;
use crate::topology::DaemonSpec;

/// How long a daemon may take to end after SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a killed process.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// A daemon of a node of a lab that is up, running or not.
#[derive(Debug, Clone)]
pub struct Daemon {
    pub(crate) node: Node,
    pub(crate) spec: DaemonSpec,
}

impl Daemon {
    /// Its name in the topology.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Starts it; its outputs are appended to its log.
    pub fn start(&self) -> Result<()> {
        if let Some(process) = self.process() {
            let (node, daemon) = (self.node.name().to_owned(), self.spec.name.clone());
            return Err(Error::AlreadyRuns { node, daemon, pid: process.pid });
        }
        let (log, pid_file) = (self.log_path(), self.pid_path());
        for folder in [&log, &pid_file].into_iter().filter_map(|path| path.parent()) {
            std::fs::create_dir_all(folder).map_err(Error::file("create folder", folder))?;
        }
        let mut command = self.node.command(&self.spec.command)?;
        command.stdin(Stdio::null()).stdout(append(&log)?).stderr(append(&log)?);
        self.node.birth()?.detach(&mut command);
        let failed = self.node.start_failed(&self.spec.command);
        let process = self.node.namespaces()?.within(|| {
            let child = command.spawn().map_err(failed)?;
            started(child.id(), self.node.name())
        })?;
        let text = serde_json::to_vec(&process).map_err(|source| Error::Record { path: pid_file.clone(), source })?;
        std::fs::write(&pid_file, text).map_err(Error::file("write", pid_file))
    }

    /// Asks it to end with SIGTERM and waits; kills it when it does not.
    pub fn stop(&self) -> Result<()> {
        let Some(process) = self.process() else {
            return Ok(());
        };
        process.signal(Signal::SIGTERM)?;
        if process.wait_gone(STOP_WITHIN) {
            return Ok(());
        }
        self.kill9()?;
        let condition = format!("daemon {} of {} to end after SIGTERM", self.spec.name, self.node.name());
        Err(Error::Deadline { condition, within: STOP_WITHIN, last: "killed it".to_owned() })
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub fn kill9(&self) -> Result<()> {
        let Some(process) = self.process() else {
            return Ok(());
        };
        process.signal(Signal::SIGKILL)?;
        if process.wait_gone(KILL_WITHIN) {
            return Ok(());
        }
        let condition = format!("daemon {} of {} to end after SIGKILL", self.spec.name, self.node.name());
        Err(Error::Deadline { condition, within: KILL_WITHIN, last: "it still runs".to_owned() })
    }

    /// Stops it and starts it again.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match self.process() {
            Some(process) => process.signal(signal),
            None => Err(Error::NotRunning { node: self.node.name().to_owned(), daemon: self.spec.name.clone() }),
        }
    }

    /// Asks it to read its configuration again (SIGHUP).
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// Its process number while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.process().map(|process| process.pid)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process().is_some()
    }

    /// Everything it wrote, over all its starts.
    pub fn log(&self) -> Result<String> {
        let path = self.log_path();
        match std::fs::read(&path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(Error::file("read", path)(source)),
        }
    }

    /// The file with everything it wrote.
    pub fn log_path(&self) -> PathBuf {
        self.node.folder().join("log").join(format!("{}.log", self.spec.name))
    }

    fn pid_path(&self) -> PathBuf {
        self.node.folder().join("daemon").join(&self.spec.name)
    }

    fn process(&self) -> Option<ProcessId> {
        let text = std::fs::read(self.pid_path()).ok()?;
        let process: ProcessId = serde_json::from_slice(&text).ok()?;
        process.is_alive().then_some(process)
    }
}
