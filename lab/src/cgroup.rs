//! The control group of a lab: how its processes are found and ended, whoever started them.
//!
//! Every process of a lab is born in `meshd-lab/<lab>/<node>` below the mount of cgroup v2, so ending a lab is one write
//! to `cgroup.kill`, also when the process that brought it up died half way. Where there is no writable cgroup v2 the
//! numbers of the processes, which each of them notes down before it starts its program, serve instead.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The folder of all labs, below the mount of cgroup v2.
const PARENT: &str = "meshd-lab";
/// How long the kernel may take to end the processes of a group.
const KILL_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// The group of a lab, or of one node in it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Where the group of a lab is or would be; nothing without cgroup v2.
    pub(crate) fn of_lab(name: &str) -> Option<Self> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        Some(Self { path: mount_point(&mountinfo)?.join(PARENT).join(name) })
    }

    /// The group of a node in a lab's group.
    pub(crate) fn child(&self, node: &str) -> Self {
        Self { path: self.path.join(node) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the group; false when this machine does not let us.
    pub(crate) fn create(&self) -> Result<bool> {
        loop {
            match std::fs::create_dir_all(&self.path) {
                Ok(()) => return Ok(true),
                // Somebody removed the common parent, empty at that moment, between two steps of ours.
                Err(error) if error.kind() == ErrorKind::NotFound && self.mount_exists() => {}
                Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                    return Ok(false);
                }
                Err(source) => return Err(Error::file("create control group", &self.path)(source)),
            }
        }
    }

    fn mount_exists(&self) -> bool {
        self.path.ancestors().nth(2).is_some_and(Path::exists)
    }

    /// The file that takes the number of a process into this group.
    pub(crate) fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Ends every process in the group and below, waits until they are gone, and removes the group.
    pub(crate) fn destroy(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let kill = self.path.join("cgroup.kill");
        match std::fs::write(&kill, "1") {
            Ok(()) => {}
            // Kernels before 5.14 have no such file.
            Err(error) if error.kind() == ErrorKind::NotFound => self.kill_one_by_one(&self.path)?,
            Err(source) => return Err(Error::file("write", kill)(source)),
        }
        self.wait_empty()?;
        remove_tree(&self.path)?;
        if let Some(parent) = self.path.parent() {
            match std::fs::remove_dir(parent) {
                Ok(()) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy
                    ) => {}
                Err(source) => return Err(Error::file("remove control group", parent)(source)),
            }
        }
        Ok(())
    }

    fn kill_one_by_one(&self, group: &Path) -> Result<()> {
        for child in subgroups(group)? {
            self.kill_one_by_one(&child)?;
        }
        let procs = group.join("cgroup.procs");
        let text = std::fs::read_to_string(&procs).map_err(Error::file("read", &procs))?;
        for pid in text.lines().filter_map(|line| line.parse().ok()) {
            if let Some(process) = crate::process::ProcessId::of(pid) {
                process.signal(nix::sys::signal::Signal::SIGKILL)?;
            }
        }
        Ok(())
    }

    fn wait_empty(&self) -> Result<()> {
        let events = self.path.join("cgroup.events");
        let deadline = Instant::now() + KILL_WITHIN;
        loop {
            let text = std::fs::read_to_string(&events).map_err(Error::file("read", &events))?;
            if text.lines().any(|line| line == "populated 0") {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Deadline {
                    condition: format!("the processes in {} to end", self.path.display()),
                    within: KILL_WITHIN,
                    last: text.replace('\n', " "),
                });
            }
            std::thread::sleep(POLL);
        }
    }
}

fn remove_tree(group: &Path) -> Result<()> {
    for child in subgroups(group)? {
        remove_tree(&child)?;
    }
    let deadline = Instant::now() + KILL_WITHIN;
    loop {
        match std::fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // The last process is out of the list a moment before it is out of the group.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(POLL);
            }
            Err(source) => return Err(Error::file("remove control group", group)(source)),
        }
    }
}

fn subgroups(group: &Path) -> Result<Vec<PathBuf>> {
    let failed = || Error::file("list control group", group);
    let mut groups = Vec::new();
    for entry in std::fs::read_dir(group).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if entry.file_type().map_err(failed())?.is_dir() {
            groups.push(entry.path());
        }
    }
    Ok(groups)
}

/// The mount point of cgroup v2: at `/sys/fs/cgroup`, or beside the groups of version 1.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let is_v2 = right.split(' ').next() == Some("cgroup2");
        is_v2.then(|| left.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_second_version_only() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:5 - cgroup2 cgroup2 rw
";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }
}
