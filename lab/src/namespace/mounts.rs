//! The file systems of a node: the host's, with a few places of its own.
//!
//! Programs, libraries and configuration come from the host, so every Debian package installed there works in a node.
//! Private are `/run` and `/var/lib/meshd` (tmpfs: they last as long as the node, longer than any daemon in it), `/sys`
//! (its links are the node's) and `/sys/fs/bpf`. A path that does not exist on the host can still appear in a node: the
//! closest folder above it is covered with an overlay whose changes go to the node's own memory. The host sees nothing
//! of all this, because the mount namespace is private.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Error, Result};

/// Folders that every node has for itself, empty at its start.
const PRIVATE: &[&str] = &["/var/lib/meshd"];
/// While a node is set up, the host's whole tree is visible here.
const HOST: &str = "/run/.host";
/// The node's own pieces: layers of overlays and the new `/sys` before it is in place.
const OWN: &str = "/run/.lab";

/// What is mounted for one node.
#[derive(Debug)]
pub(crate) struct MountPlan {
    /// An empty folder of the host to build the node's `/run` on.
    pub(crate) stage: PathBuf,
    /// Files and folders of the host to show.
    pub(crate) binds: Vec<ResolvedBind>,
}

/// A bind whose source is an absolute path of the host.
#[derive(Debug)]
pub(crate) struct ResolvedBind {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

impl MountPlan {
    /// Mounts everything in the mount namespace of the calling thread, which must be a new one.
    pub(super) fn apply(&self) -> Result<()> {
        mounted(Path::new("/"), None, None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
        self.private_run()?;
        private_sys()?;
        self.make_mount_points()?;
        for folder in PRIVATE {
            mounted(Path::new(folder), Some("tmpfs".as_ref()), Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        }
        for bind in &self.binds {
            bind.apply()?;
        }
        umount2(HOST, MntFlags::MNT_DETACH).map_err(Error::system(format!("unmount {HOST}")))
    }

    /// A tmpfs with the host's tree in it, moved over `/run` when both are ready.
    fn private_run(&self) -> Result<()> {
        let stage = self.stage.as_path();
        mounted(stage, Some("tmpfs".as_ref()), Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        for own in [HOST, OWN] {
            make_folder(&stage.join(own.trim_start_matches("/run/")))?;
        }
        let host = stage.join(HOST.trim_start_matches("/run/"));
        mounted(&host, Some("/".as_ref()), None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
        mounted(Path::new("/run"), Some(stage), None, MsFlags::MS_MOVE, None)
    }

    fn targets(&self) -> impl Iterator<Item = (&Path, bool)> {
        let private = PRIVATE.iter().map(|folder| (Path::new(folder), true));
        let binds = self.binds.iter().map(|bind| (bind.target.as_path(), on_host(&bind.source).is_dir()));
        private.chain(binds)
    }

    /// Every target exists afterwards, in memory of the node where the host does not have it.
    fn make_mount_points(&self) -> Result<()> {
        let mut covered: BTreeSet<PathBuf> = BTreeSet::new();
        for (target, _) in self.targets() {
            if target.exists() || target.starts_with("/run") {
                continue;
            }
            let existing = target.ancestors().skip(1).find(|ancestor| ancestor.is_dir());
            match existing {
                Some(folder) if folder != Path::new("/") => covered.insert(folder.to_owned()),
                _ => {
                    return Err(Error::NoMountPoint { path: target.to_owned() });
                }
            };
        }
        for (index, folder) in covered.iter().enumerate() {
            if !folder.ancestors().skip(1).any(|above| covered.contains(above)) {
                overlay(folder, index)?;
            }
        }
        for (target, is_folder) in self.targets() {
            if target.exists() {
                continue;
            }
            if is_folder {
                make_folder(target)?;
            } else {
                target.parent().map_or(Ok(()), make_folder)?;
                std::fs::File::create(target).map_err(Error::file("create", target))?;
            }
        }
        Ok(())
    }
}

impl ResolvedBind {
    fn apply(&self) -> Result<()> {
        let source = on_host(&self.source);
        if !source.exists() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::file("bind", &self.source)(missing));
        }
        mounted(&self.target, Some(&source), None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
        if self.read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mounted(&self.target, None, None, flags, None)?;
        }
        Ok(())
    }
}

/// A `/sys` that shows the node's links, with the host's control groups and a bpffs of the node's own.
fn private_sys() -> Result<()> {
    let sys = Path::new(OWN).join("sys");
    make_folder(&sys)?;
    mounted(&sys, Some("sysfs".as_ref()), Some("sysfs"), MsFlags::empty(), None)?;
    let groups = Path::new("/sys/fs/cgroup");
    if groups.is_dir() {
        mounted(&sys.join("fs/cgroup"), Some(groups), None, MsFlags::MS_BIND | MsFlags::MS_REC, None)?;
    }
    mounted(&sys.join("fs/bpf"), Some("bpf".as_ref()), Some("bpf"), MsFlags::empty(), Some("mode=700"))?;
    mounted(Path::new("/sys"), Some(&sys), None, MsFlags::MS_MOVE, None)
}

/// Covers a folder so that changes in it stay in the node.
fn overlay(folder: &Path, index: usize) -> Result<()> {
    let layers = Path::new(OWN).join(format!("layer-{index}"));
    let (changes, work) = (layers.join("changes"), layers.join("work"));
    make_folder(&changes)?;
    make_folder(&work)?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", on_host(folder).display(), changes.display(), work.display());
    mounted(folder, Some("overlay".as_ref()), Some("overlay"), MsFlags::empty(), Some(&options))
}

fn on_host(path: &Path) -> PathBuf {
    Path::new(HOST).join(path.strip_prefix("/").unwrap_or(path))
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::file("create folder", path))
}

fn mounted(
    target: &Path,
    source: Option<&Path>,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    mount(source, target, kind, flags, options).map_err(Error::system(format!(
        "mount {} on {}",
        kind.unwrap_or("the file system"),
        target.display()
    )))
}
