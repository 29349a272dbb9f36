//! Folders in which files are watched.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use futures_util::{FutureExt, StreamExt};
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask};
use tracing::{debug, warn};

/// Bytes read from inotify at once; any number of events may be lost, one is enough.
const EVENT_BYTES: usize = 4096;

/// The inotify side; without it (limits, no kernel support) only the rescan of its owner remains.
pub(super) struct Folders {
    stream: Option<EventStream<[u8; EVENT_BYTES]>>,
    watched: BTreeMap<PathBuf, WatchDescriptor>,
}

impl Folders {
    /// Watches nothing yet.
    pub(super) fn new() -> Self {
        let stream = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; EVENT_BYTES]));
        let stream = match stream {
            Ok(stream) => Some(stream),
            Err(error) => {
                warn!(%error, "no file notifications, files are read periodically");
                None
            }
        };
        Self { stream, watched: BTreeMap::new() }
    }

    /// Folders exactly these folders; one that does not exist is tried again with the next reading.
    pub(super) fn set(&mut self, folders: BTreeSet<PathBuf>) {
        let Some(stream) = &self.stream else { return };
        let mut watches = stream.watches();
        self.watched.retain(|folder, descriptor| {
            let keep = folders.contains(folder) && folder.exists();
            if !keep {
                // A folder that is gone took its watch along.
                let _ = watches.remove(descriptor.clone());
            }
            keep
        });
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        for folder in folders {
            // Adding a watched folder again is cheap, and right when the folder was replaced by another.
            if let Ok(descriptor) = watches.add(&folder, mask) {
                self.watched.insert(folder, descriptor);
            }
        }
    }

    /// Waits for any event.
    pub(super) async fn event(&mut self) {
        match &mut self.stream {
            Some(stream) => {
                if let Some(Err(error)) = stream.next().await {
                    // An overflow is reported as an event, not here; whatever this is, reading again is right.
                    debug!(%error, "file notifications failed");
                }
            }
            None => std::future::pending().await,
        }
    }

    /// Forgets the events that are already there.
    pub(super) fn drain(&mut self) {
        if let Some(stream) = &mut self.stream {
            while stream.next().now_or_never().is_some_and(|event| event.is_some_and(|event| event.is_ok())) {}
        }
    }
}
