//! MRT files: a log of what happens, and tables as they are at a moment.
//!
//! ```text
//!  speaker ── Log::record ──► buffer (bounded, whole records) ──► thread "mrt-log" ──► updates.TIME.mrt.open ─► .mrt
//!  speaker ── TableDump::push ──► chunks (bounded) ──► thread "mrt-dump" ──► .rib.TIME.mrt.part ──► rib.TIME.mrt
//! ```
//!
//! Whoever feeds them never waits for a disk. A log whose disk cannot follow loses records, which is counted and logged; a
//! table that would lose one is pushed again in the next slice, because [`TableDump::push`] says that there was no room.
//!
//! A file with its final name is complete: it was renamed after it was written. A log begins a new file when one is
//! large or old enough, and of each kind only so many are kept, so a folder has a bound too. After a crash the file that was
//! being written is kept under its final name; its last record may be cut. What a disk that failed took whole is kept as well.
//! Files can be read by our group and nobody else: they say what the network looks like.
//!
//! What is ugly: the names carry the time by the clock on the wall, so setting that back makes new files the oldest.

mod log;
mod table;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use thiserror::Error;

pub use log::{Log, LogSettings, LogStatus};
pub use table::TableDump;

/// What a finished file ends with.
const FINISHED: &str = "mrt";
/// Who may read folders.
const FOLDER_MODE: u32 = 0o750;
/// Who may read files.
const FILE_MODE: u32 = 0o640;

/// Why no file is written.
#[derive(Debug, Error)]
pub enum MrtError {
    /// The folder or a file in it.
    #[error("failed to {operation} {}", .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The thread could not be started, or has ended.
    #[error("failed to run the thread that writes MRT files")]
    Thread(#[source] io::Error),
}

impl MrtError {
    fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { operation, path, source }
    }
}

/// Makes a folder that is missing.
fn make_folder(folder: &Path) -> Result<(), MrtError> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(MrtError::file("create", folder))
}

/// Begins a file.
fn create(path: &Path) -> Result<File, MrtError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(FILE_MODE).open(path).map_err(MrtError::file("create", path))
}

/// The final name of a file that begins now: `KIND.YYYYMMDD.HHMMSS.MICROSECONDS.mrt`, by UTC. Names sort as their times do.
fn name_now(folder: &Path, kind: &str) -> PathBuf {
    folder.join(format!("{kind}.{}.{FINISHED}", Timestamp::now().strftime("%Y%m%d.%H%M%S.%6f")))
}

/// Removes the oldest finished files of a kind beyond `max`.
fn prune(folder: &Path, kind: &str, max: usize) -> Result<(), MrtError> {
    let mut finished: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(MrtError::file("list", folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(&format!("{kind}.")) && name.ends_with(&format!(".{FINISHED}"))
        })
        .collect();
    finished.sort();
    let surplus = finished.len().saturating_sub(max);
    for path in finished.iter().take(surplus) {
        fs::remove_file(path).map_err(MrtError::file("remove", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
