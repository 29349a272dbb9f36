//! What can go wrong in a lab, worded for the person who typed the command.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use crate::topology::TopologyError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a lab could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The topology file is not usable.
    #[error("topology {topology} cannot be used")]
    Topology {
        /// Name or path as given.
        topology: String,
        /// What is wrong with it.
        source: TopologyError,
    },
    /// No file of that name.
    #[error("no topology {topology}; looked for {}", list(.searched))]
    NoTopology {
        /// Name as given.
        topology: String,
        /// The files looked for.
        searched: Vec<PathBuf>,
    },
    /// The effective user cannot create namespaces.
    #[error("namespaces can only be created by root")]
    NotRoot,
    /// The name of a lab is used for folders.
    #[error("{name:?} cannot be the name of a lab: use letters, digits, '-', '_' and '.', at most 63")]
    BadName {
        /// Name as given.
        name: String,
    },
    /// A lab of that name exists.
    #[error("lab {name} is already up")]
    AlreadyUp {
        /// The lab.
        name: String,
    },
    /// No lab of that name exists.
    #[error("lab {name} is not up")]
    NotUp {
        /// The lab.
        name: String,
    },
    /// Another process holds the lab.
    #[error("lab {name} is being brought up or down by another process")]
    Busy {
        /// The lab.
        name: String,
    },
    /// The lab has no node of that name.
    #[error("lab {lab} has no node {node}; it has {known}")]
    NoNode {
        /// The lab.
        lab: String,
        /// Name as given.
        node: String,
        /// The names that exist.
        known: String,
    },
    /// The node has no daemon of that name.
    #[error("node {node} has no daemon {daemon}")]
    NoDaemon {
        /// The node.
        node: String,
        /// Name as given.
        daemon: String,
    },
    /// The daemon runs already.
    #[error("daemon {daemon} of node {node} already runs as process {pid}")]
    AlreadyRuns {
        /// The node.
        node: String,
        /// The daemon.
        daemon: String,
        /// Its process.
        pid: i32,
    },
    /// The daemon does not run.
    #[error("daemon {daemon} of node {node} does not run")]
    NotRunning {
        /// The node.
        node: String,
        /// The daemon.
        daemon: String,
    },
    /// The `meshd` binary is needed and not there.
    #[error("the meshd binary was not found; looked for {}", list(.searched))]
    NoMeshd {
        /// The files looked for.
        searched: Vec<PathBuf>,
    },
    /// A file operation failed.
    #[error("failed to {operation} {path}")]
    File {
        /// What was tried, as a verb.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A system call on namespaces or processes failed.
    #[error("failed to {operation}")]
    System {
        /// What was tried, with its object.
        operation: String,
        /// The system's answer.
        source: Errno,
    },
    /// A program could not be started.
    #[error("failed to start {command} in {node}")]
    Start {
        /// The command.
        command: String,
        /// Where.
        node: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A command ended without success.
    #[error("{command} in {node} ended with {status}: {stderr}")]
    Command {
        /// The command.
        command: String,
        /// Where.
        node: String,
        /// How it ended.
        status: String,
        /// What it said on standard error.
        stderr: String,
    },
    /// A condition did not become true in time.
    #[error("waited {}s for {condition}: {last}", .within.as_secs_f32())]
    Deadline {
        /// The condition.
        condition: String,
        /// How long.
        within: Duration,
        /// What was seen last.
        last: String,
    },
    /// What a scenario saw is not what it is meant to show.
    #[error("expected {expected}, saw {seen}")]
    Unexpected {
        /// What should have been there.
        expected: String,
        /// What was there.
        seen: String,
    },
    /// A mount point would have to be created in the host's root folder.
    #[error("{path} cannot appear in a node: no folder above it but / exists on the host")]
    NoMountPoint {
        /// The path in the node.
        path: PathBuf,
    },
    /// The record of a lab cannot be understood.
    #[error("the record {path} of the lab is not readable")]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Bringing the lab up failed; what was there is gone again, except for what is named.
    #[error("failed to bring up lab {name}{}", leftovers(.cleanup))]
    Up {
        /// The lab.
        name: String,
        /// The cause.
        source: Box<Error>,
        /// What failed while cleaning up.
        cleanup: Vec<Error>,
    },
    /// Taking the lab down did not fully succeed.
    #[error("failed to take down lab {name}{}", leftovers(.problems))]
    Down {
        /// The lab.
        name: String,
        /// Everything that failed.
        problems: Vec<Error>,
    },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoTopology { .. } => Some("`lab list` prints the topologies there are; a path works too".to_owned()),
            Self::NotRoot => Some("run the same command as root".to_owned()),
            Self::AlreadyUp { name } => {
                Some(format!("take it down with `lab down {name}`, or give this one another name with --name"))
            }
            Self::NotUp { .. } => Some("`lab list` prints the labs that are up".to_owned()),
            Self::NoMeshd { .. } => {
                Some("build it with `cargo build --package meshd`, or name it in MESHD_BIN".to_owned())
            }
            Self::Up { source, .. } => source.hint(),
            _ => None,
        }
    }

    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }

    pub(crate) fn system(operation: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        let operation = operation.into();
        move |source| Self::System { operation, source }
    }
}

/// An error with all its causes on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn leftovers(problems: &[Error]) -> String {
    problems.iter().map(|problem| format!("; {}", chain(problem))).collect()
}
