//! Folders of pins, one for each generation of maps.
//!
//! The kernel can give a map neither another size nor another layout. A build with another layout, or a configuration with
//! other sizes, therefore makes new maps in a folder of its own and takes over what the old ones hold ([`crate::takeover`]). Generations are numbered: the one
//! with the highest number is the one whose tables are up to date. A folder's name is `v<layout>-<number>`, and just
//! `v<layout>` for number 0.

use std::{
    fs,
    path::{Path, PathBuf},
};

use meshd_abi::LAYOUT_VERSION;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::{DatapathError, pins, shape::MapSpec};

/// Name of the folder that says that a generation holds everything its predecessors held.
const COMPLETE: &str = "complete";

/// A folder of pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) path: PathBuf,
    pub(crate) layout: u32,
    number: u32,
}

impl Generation {
    fn new(folder: &Path, layout: u32, number: u32) -> Self {
        let name = if number == 0 { format!("v{layout}") } else { format!("v{layout}-{number}") };
        Self { path: folder.join(name), layout, number }
    }

    /// `None` for what is no folder of ours.
    fn of(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_prefix('v')?;
        let (layout, number) = name.split_once('-').unwrap_or((name, "0"));
        let (layout, number) = (layout.parse().ok()?, number.parse().ok()?);
        Some(Self { path, layout, number })
    }

    /// True when it needs nothing from its predecessors any more but what changed since.
    pub(crate) fn is_complete(&self) -> bool {
        self.path.join(COMPLETE).exists()
    }

    /// Says that it does.
    pub(crate) fn set_complete(&self) -> Result<(), DatapathError> {
        let mark = self.path.join(COMPLETE);
        fs::create_dir_all(&mark).map_err(|source| DatapathError::Pins { operation: "create", path: mark, source })
    }

    /// Detaches what is attached by its pins and removes them.
    pub(crate) fn remove(&self) -> Result<(), DatapathError> {
        pins::remove_empty_folder(&self.path.join(COMPLETE))?;
        let mut outcome = Ok(());
        for pin in pins::entries(&self.path)? {
            outcome = outcome.and(if pins::is_attachment(&pin) {
                pins::detach(&pin).map(|_| ())
            } else {
                pins::remove(&pin)
            });
        }
        outcome?;
        pins::remove_empty_folder(&self.path)
    }

    /// True when every map that is pinned in it has the shape that the programs need.
    fn fits(&self, specs: &[MapSpec]) -> Result<bool, DatapathError> {
        for spec in specs {
            if pins::shape_of(&self.path.join(spec.name), spec.name)?.is_some_and(|shape| shape != spec.shape) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Every generation below a folder, the latest last.
pub(crate) fn all(folder: &Path) -> Result<Vec<Generation>, DatapathError> {
    let mut all: Vec<Generation> = pins::entries(folder)?.into_iter().filter_map(Generation::of).collect();
    all.sort_by_key(|generation| (generation.number, generation.layout));
    Ok(all)
}

/// The one to go by: the latest that is complete. A process that was refused something, or ended too early, leaves one behind that is not.
pub(crate) fn best(all: &[Generation]) -> Option<&Generation> {
    all.iter().rev().find(|generation| generation.is_complete()).or_else(|| all.last())
}

/// The generation in use below a folder; `None` without any.
///
/// # Errors
/// When the folder cannot be listed.
pub fn latest(folder: &Path) -> Result<Option<PathBuf>, DatapathError> {
    Ok(best(&all(folder)?).map(|generation| generation.path.clone()))
}

/// The generation in use, which must be there and have our layout.
pub(crate) fn existing(folder: &Path) -> Result<Generation, DatapathError> {
    let nothing = || DatapathError::NothingPinned { folder: folder.to_owned() };
    let all = match all(folder) {
        Ok(all) => all,
        Err(DatapathError::Pins { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(nothing());
        }
        Err(error) => return Err(error),
    };
    let best = best(&all).ok_or_else(nothing)?;
    if best.layout == LAYOUT_VERSION {
        return Ok(best.clone());
    }
    Err(DatapathError::OtherVersion { folder: folder.to_owned(), found: best.layout })
}

/// The generation to use, which is made when it is absent, and those before it.
pub(crate) fn prepare(folder: &Path, specs: &[MapSpec]) -> Result<(Generation, Vec<Generation>), DatapathError> {
    let existing = if folder.exists() { folder } else { folder.parent().unwrap_or(folder) };
    let kind = statfs(existing)
        .map_err(|errno| DatapathError::Pins { operation: "inspect", path: existing.to_owned(), source: errno.into() })?
        .filesystem_type();
    if kind != BPF_FS_MAGIC {
        return Err(DatapathError::NotBpffs { folder: folder.to_owned() });
    }
    let mut older = if folder.exists() { all(folder)? } else { Vec::new() };
    let latest = older.last().cloned();
    let current = match latest {
        Some(latest) if latest.layout == LAYOUT_VERSION && latest.fits(specs)? => {
            older.pop();
            latest
        }
        Some(latest) => Generation::new(folder, LAYOUT_VERSION, latest.number + 1),
        None => Generation::new(folder, LAYOUT_VERSION, 0),
    };
    fs::create_dir_all(&current.path).map_err(|source| DatapathError::Pins {
        operation: "create",
        path: current.path.clone(),
        source,
    })?;
    Ok((current, older))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let folder = Path::new("/sys/fs/bpf/meshd");
        for (layout, number, name) in [(3, 0, "v3"), (3, 1, "v3-1"), (12, 30, "v12-30")] {
            let generation = Generation::new(folder, layout, number);
            assert_eq!(generation.path, folder.join(name));
            assert_eq!(Generation::of(folder.join(name)), Some(generation));
        }
        for foreign in ["3", "v", "v3-", "v3-x", "w3", "vx", "v-1"] {
            assert_eq!(Generation::of(folder.join(foreign)), None, "{foreign}");
        }
    }
}
