//! Network namespaces of the processes in a control group.
//!
//! A namespace has no name of its own that could be listed; it is found through a process in it. A namespace that only a file holds
//! (`/run/netns/NAME`) and in which no process of the group runs is not found, and needs not be: its sockets were made by
//! processes outside of the group, which nothing translates.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Most processes that are looked at.
pub(super) const PROCESSES_MAX: usize = 65_536;
/// Most namespaces that are entered.
pub(super) const NAMESPACES_MAX: usize = 4_096;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The namespaces, each once, without that of the caller.
    pub namespaces: Vec<File>,
    /// A bound was reached, so there may be more.
    pub is_cut: bool,
}

/// Looks for the namespaces of the processes in a control group and below it. `own` is left out.
pub(super) fn find(group: &Path, own: &File) -> Found {
    let mut found = Found::default();
    let mut known: BTreeSet<(u64, u64)> = number(own).into_iter().collect();
    let mut processes = 0;
    let mut folders: Vec<PathBuf> = vec![group.to_owned()];
    while let Some(folder) = folders.pop() {
        // A group that is gone meanwhile has no processes.
        let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        // Processes of another PID namespace are zeroes.
        for pid in text.lines().filter(|pid| *pid != "0") {
            processes += 1;
            if processes > PROCESSES_MAX || found.namespaces.len() >= NAMESPACES_MAX {
                found.is_cut = true;
                return found;
            }
            // A process that has ended is none of interest.
            let Ok(namespace) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
            if number(&namespace).is_some_and(|number| known.insert(number)) {
                found.namespaces.push(namespace);
            }
        }
        let below = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|it| it.path()));
    }
    found
}

fn number(namespace: &File) -> Option<(u64, u64)> {
    namespace.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
