//! Taking a lab down: everything it can have left goes, whatever state it is in and whatever fails on the way.

use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::namespace;
use crate::process::ProcessId;
use crate::record::{Folder, Lock, Record};

/// How long the kernel may take to end a killed process.
const KILL_WITHIN: Duration = Duration::from_secs(10);

/// Removes everything a lab of this name can have left, in any state, and says what could not be removed.
pub(crate) fn remove(folder: &Folder, lock: Option<Lock>) -> Vec<Error> {
    let mut problems = Vec::new();
    let record = folder.read().ok();
    let ours = record.as_ref().map(|record| owned_processes(folder, record)).unwrap_or_default();
    problems.extend(Cgroup::of_lab(folder.name()).and_then(|group| group.destroy().err()));
    if record.is_none_or(|record| record.group.is_none()) {
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
            process.wait_gone(KILL_WITHIN);
        }
    }
    Ok(())
}
