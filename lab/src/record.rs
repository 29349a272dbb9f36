//! What a lab remembers on disk, so that another process can use it and take it down.
//!
//! Everything is below `/run/meshd-lab/<lab>`: the record itself, the numbers of all processes ever started, and per
//! node its certificates, the logs of its daemons and their process numbers. The folder is made before anything else
//! and removed after everything else, so a lab that exists in any part has one.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::process::ProcessId;
use crate::topology::Topology;

/// The folder of all labs; gone when there is none.
const LABS: &str = "/run/meshd-lab";
/// How long `up` and `down` wait for each other.
const LOCK_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
const NAME_LEN_MAX: usize = 63;

/// The folder of one lab.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    name: String,
    path: PathBuf,
}

/// The record of a lab that is up.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Record {
    /// The topology as it was when the lab came up.
    pub(crate) topology: Topology,
    /// The processes that hold the namespaces, by node.
    pub(crate) holders: BTreeMap<String, ProcessId>,
    /// The process that holds the namespace of the switches.
    pub(crate) switches: ProcessId,
    /// The lab's control group, where there is one.
    pub(crate) group: Option<Cgroup>,
}

impl Folder {
    /// The folder of a lab of that name, whether it exists or not.
    pub(crate) fn of(name: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || !name.chars().all(allowed) || name.len() > NAME_LEN_MAX {
            return Err(Error::BadName { name: name.to_owned() });
        }
        Ok(Self { name: name.to_owned(), path: Path::new(LABS).join(name) })
    }

    /// The names of all labs that exist in any part.
    pub(crate) fn all() -> Vec<String> {
        let Ok(folders) = std::fs::read_dir(LABS) else {
            return Vec::new();
        };
        let mut names: Vec<String> =
            folders.flatten().filter_map(|folder| folder.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Claims the name: fails when the folder is there already.
    pub(crate) fn create(&self) -> Result<Lock> {
        loop {
            std::fs::create_dir_all(LABS).map_err(Error::file("create folder", LABS))?;
            match std::fs::create_dir(&self.path) {
                Ok(()) => return self.lock(),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(Error::AlreadyUp { name: self.name.clone() });
                }
                // The last lab just went down and took the folder of all labs with it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::file("create folder", &self.path)(source)),
            }
        }
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Waits until nobody else brings this lab up or down.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let path = self.path.join("lock");
        let deadline = Instant::now() + LOCK_WITHIN;
        let mut file = File::create(&path).map_err(Error::file("create", &path))?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Lock { _file: lock }),
                Err((same, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => {
                    file = same;
                    std::thread::sleep(POLL);
                }
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(Error::Busy { name: self.name.clone() });
                }
                Err((_, source)) => {
                    return Err(Error::system(format!("lock {}", path.display()))(source));
                }
            }
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The list of all processes ever started in the lab.
    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join("pids")
    }

    /// The folder of a node: `pki`, `log` and `daemon` are in it.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.path.join("nodes").join(node)
    }

    /// Writes the record in one step.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let (path, new) = (self.path.join("lab.json"), self.path.join("lab.json.new"));
        let text = serde_json::to_vec_pretty(record).map_err(|source| Error::Record { path: path.clone(), source })?;
        std::fs::write(&new, text).map_err(Error::file("write", &new))?;
        std::fs::rename(&new, &path).map_err(Error::file("write", &path))
    }

    /// Reads the record of a lab that is up.
    pub(crate) fn read(&self) -> Result<Record> {
        let path = self.path.join("lab.json");
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::NotUp { name: self.name.clone() },
            _ => Error::file("read", &path)(error),
        })?;
        serde_json::from_slice(&text).map_err(|source| Error::Record { path, source })
    }

    /// Removes the folder, and the folder of all labs with the last one.
    pub(crate) fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Ok(()) => {}
            // Somebody else took the same lab down while we waited for them.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::file("remove", &self.path)(source)),
        }
        match std::fs::remove_dir(LABS) {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotFound) =>
            {
                Ok(())
            }
            Err(source) => Err(Error::file("remove", LABS)(source)),
        }
    }
}

/// Held while a lab comes up or goes down; the kernel gives it back when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}
