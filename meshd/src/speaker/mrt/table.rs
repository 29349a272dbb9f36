//! A table in a file: all of it, or no file.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
};

use tokio::sync::oneshot;

use super::{MrtError, create, make_folder, name_now, prune};

/// The kind in names.
const KIND: &str = "rib";
/// Chunks that may wait for the disk.
const CHUNKS_MAX: usize = 8;
/// Octets of a chunk, about: records are not cut.
const CHUNK_OCTETS: usize = 256 * 1024;

/// What the thread is told.
enum Part {
    Octets(Vec<u8>),
    Finish(oneshot::Sender<Result<PathBuf, MrtError>>),
}

/// A table that is being written. Dropped before [`Self::finish`], nothing of it stays.
#[derive(Debug)]
pub struct TableDump {
    parts: SyncSender<Part>,
    chunk: Vec<u8>,
}

impl TableDump {
    /// Begins a file `rib.TIME.mrt` in a folder, in which `files_max` of them are kept. The folder is made if it is missing.
    pub fn begin(folder: &Path, files_max: usize) -> Result<Self, MrtError> {
        let (parts, queue) = sync_channel(CHUNKS_MAX);
        let folder = folder.to_owned();
        std::thread::Builder::new()
            .name("mrt-dump".to_owned())
            .spawn(move || write(&folder, files_max, &queue))
            .map_err(MrtError::Thread)?;
        Ok(Self { parts, chunk: Vec::new() })
    }

    /// True when [`Self::push`] will take a record. Where not, the disk is behind: go on later.
    pub fn has_room(&mut self) -> bool {
        self.chunk.len() < CHUNK_OCTETS || self.hand_over()
    }

    /// Takes the record that `write` appends; false, without calling it, when there is no room.
    pub fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let room = self.has_room();
        if room {
            write(&mut self.chunk);
        }
        room
    }

    /// Ends the file and gives what becomes of it; `Err` gives the dump back, to be finished when there is room.
    pub fn finish(mut self) -> Result<oneshot::Receiver<Result<PathBuf, MrtError>>, Self> {
        if !self.chunk.is_empty() && !self.hand_over() {
            return Err(self);
        }
        let (answer, outcome) = oneshot::channel();
        match self.parts.try_send(Part::Finish(answer)) {
            // Of a thread that has failed, the answer is there already or never comes, which the receiver sees.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(outcome),
            Err(TrySendError::Full(_)) => Err(self),
        }
    }

    fn hand_over(&mut self) -> bool {
        match self.parts.try_send(Part::Octets(std::mem::take(&mut self.chunk))) {
            // The thread has failed and logged why; what is pushed goes nowhere, and finish says so.
            Ok(()) | Err(TrySendError::Disconnected(_)) => true,
            Err(TrySendError::Full(Part::Octets(chunk))) => {
                self.chunk = chunk;
                false
            }
            Err(TrySendError::Full(Part::Finish(_))) => false,
        }
    }
}

fn write(folder: &Path, files_max: usize, queue: &Receiver<Part>) {
    let mut temporary = None;
    let outcome = receive(folder, queue, &mut temporary);
    let outcome = match outcome {
        Ok(Some((finished, answer))) => {
            let kept = prune(folder, KIND, files_max).map(|()| finished);
            // Whoever asked may have gone.
            let _gone = answer.send(kept);
            return;
        }
        Ok(None) => None,
        Err(error) => Some(error),
    };
    if let Some(error) = &outcome {
        tracing::warn!(error = error as &dyn std::error::Error, "MRT table is not written");
    }
    if let Some(path) = temporary
        && let Err(error) = fs::remove_file(&path)
    {
        tracing::warn!(path = %path.display(), %error, "part of an MRT table was left");
    }
    // Who finishes a table that failed is told why.
    if let Some(error) = outcome {
        for part in queue {
            if let Part::Finish(answer) = part {
                let _gone = answer.send(Err(error));
                return;
            }
        }
    }
}

type Finished = (PathBuf, oneshot::Sender<Result<PathBuf, MrtError>>);

/// Writes until the end; `None` when the dump was given up.
fn receive(
    folder: &Path,
    queue: &Receiver<Part>,
    temporary: &mut Option<PathBuf>,
) -> Result<Option<Finished>, MrtError> {
    make_folder(folder)?;
    let finished = name_now(folder, KIND);
    let name = finished.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let path = folder.join(format!(".{name}.part"));
    let mut file = create(&path)?;
    *temporary = Some(path.clone());
    for part in queue {
        match part {
            Part::Octets(octets) => file.write_all(&octets).map_err(MrtError::file("write to", &path))?,
            Part::Finish(answer) => {
                file.sync_all().map_err(MrtError::file("write to", &path))?;
                fs::rename(&path, &finished).map_err(MrtError::file("rename", &path))?;
                *temporary = None;
                return Ok(Some((finished, answer)));
            }
        }
    }
    Ok(None)
}
