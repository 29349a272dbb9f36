//! Finding a topology by name, and the binary that its nodes run.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::topology::Topology;

/// Folder with topologies, for a `lab` that is not run from the source tree.
pub const TOPOLOGIES_ENV: &str = "LAB_TOPOLOGIES";
/// The `meshd` binary that nodes run.
pub const MESHD_ENV: &str = "MESHD_BIN";

const SUFFIX: &str = ".clab.yml";

/// Reads the topology of that name, or the file at that path.
pub fn load(name_or_path: &str) -> Result<Topology> {
    let is_path = name_or_path.contains('/') || name_or_path.ends_with(".yml") || name_or_path.ends_with(".yaml");
    let searched: Vec<PathBuf> = if is_path {
        vec![PathBuf::from(name_or_path)]
    } else {
        folders().into_iter().map(|folder| folder.join(format!("{name_or_path}{SUFFIX}"))).collect()
    };
    let Some(path) = searched.iter().find(|path| path.is_file()) else {
        return Err(Error::NoTopology { topology: name_or_path.to_owned(), searched });
    };
    Topology::load(path).map_err(|source| Error::Topology { topology: path.display().to_string(), source })
}

/// The topologies that can be named, with their files.
pub fn list() -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for folder in folders() {
        let Ok(files) = std::fs::read_dir(&folder) else {
            continue;
        };
        for path in files.flatten().map(|file| file.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            match name {
                Some(name) if !found.iter().any(|(known, _)| known == name) => {
                    found.push((name.to_owned(), path.clone()));
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// The `meshd` binary: the one named in the environment, else the one built beside this program.
pub fn meshd() -> Result<PathBuf> {
    let searched: Vec<PathBuf> = match std::env::var_os(MESHD_ENV) {
        Some(path) => vec![PathBuf::from(path)],
        None => beside_us().into_iter().map(|folder| folder.join("meshd")).collect(),
    };
    let found = searched.iter().find(|path| path.is_file()).and_then(|path| std::path::absolute(path).ok());
    found.ok_or(Error::NoMeshd { searched })
}

/// The folder of this program and, for tests, the one above it.
fn beside_us() -> Vec<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    program.ancestors().skip(1).take(2).map(Path::to_owned).collect()
}

fn folders() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os(TOPOLOGIES_ENV) {
        return vec![PathBuf::from(folder)];
    }
    // Run from the source tree, from a folder below it, or from anywhere on the machine that built it.
    let here = std::env::current_dir().unwrap_or_default();
    let mut folders: Vec<PathBuf> = here.ancestors().map(|folder| folder.join("lab/topologies")).collect();
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies"));
    folders.dedup();
    folders.retain(|folder| folder.is_dir());
    folders
}
