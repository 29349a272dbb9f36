//! Has this node spoken BGP since it booted, and with whom?
//!
//! A speaker that was killed and started again finds the routes of its predecessor in the kernel, and tells its peers so
//! (the R and F bits of graceful restart). After a reboot there is nothing left to forward by. A file beside the state says in
//! which boot the speaker ran last, and with which peers it had a session.
//!
//! The restarted speaker defers route selection "until it receives the End-of-RIB marker from all its peers" (RFC 4724 section
//! 4.1). We take its peers to be those that had a session when the predecessor ended: only they hold paths of ours that an
//! early choice could harm, and only their paths are in the kernel. A peer that was away before is no reason to keep everybody
//! else's paths waiting until the deferral time is over.
//!
//! The file is written whenever a session begins or ends, by a task that does so off the speaker's thread and only ever
//! with the last state. It is not synchronised to the disk: what a crash of the whole machine loses is of no use after it.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use bgp::session::PeerKey;
use tokio::{sync::watch, task::spawn_blocking};

use crate::lifecycle::Problems;

/// The kernel's name for the time since it started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Name of the file: the boot in the first line, then a peer in each.
const FILE: &str = "bgp.boot";
/// Name of the file while it is written.
const NEW_FILE: &str = ".bgp.boot.new";

/// What the speaker that ran before this one left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Predecessor {
    /// There was one since the machine booted.
    pub ran: bool,
    /// The peers with which it had a session to its end.
    pub established: BTreeSet<PeerKey>,
}

/// The file that says so to the next one.
#[derive(Clone, Debug)]
pub struct Mark {
    folder: PathBuf,
    boot: String,
}

impl Mark {
    /// Finds out about the predecessor, and remembers that a speaker runs now.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn take_over(state_dir: &Path) -> io::Result<(Self, Predecessor)> {
        let mark = Self { folder: state_dir.to_owned(), boot: fs::read_to_string(BOOT_ID)?.trim().to_owned() };
        let before = match fs::read_to_string(state_dir.join(FILE)) {
            Ok(before) => before,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut lines = before.lines();
        let ran = lines.next() == Some(&mark.boot);
        // A line that is no peer was written by somebody else; nobody can be waited for by it.
        let established = if ran { lines.filter_map(|line| line.parse().ok()).collect() } else { BTreeSet::default() };
        mark.write(&established)?;
        Ok((mark, Predecessor { ran, established }))
    }

    /// Says with whom there is a session.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, established: &BTreeSet<PeerKey>) -> io::Result<()> {
        let mut text = format!("{}\n", self.boot);
        for peer in established {
            // Writing to a string does not fail.
            let _written = writeln!(text, "{peer}");
        }
        let new = self.folder.join(NEW_FILE);
        fs::write(&new, text)?;
        fs::rename(&new, self.folder.join(FILE))
    }
}

/// Writes every last state until nobody is left to change it.
pub(super) async fn keep(mark: Mark, mut established: watch::Receiver<BTreeSet<PeerKey>>, problems: Problems) {
    while established.changed().await.is_ok() {
        let peers = established.borrow_and_update().clone();
        let mark = mark.clone();
        let result = match spawn_blocking(move || mark.write(&peers)).await {
            Ok(result) => result,
            Err(error) => Err(io::Error::other(error)),
        };
        let message = result.err().map(|error| format!("failed to write {FILE}: {error}"));
        problems.report("bgp/restart", message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(names: &[&str]) -> BTreeSet<PeerKey> {
        names.iter().map(|name| name.parse().expect("a peer")).collect()
    }

    #[test]
    fn the_second_start_in_a_boot_is_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let start = || Mark::take_over(folder.path()).expect("a start");
        let (mark, before) = start();
        assert_eq!(before, Predecessor::default());
        let established = peers(&["192.0.2.1", "fe80::1%eth0", "eth1"]);
        mark.write(&established).expect("written");
        assert_eq!(start().1, Predecessor { ran: true, established: established.clone() });
        assert_eq!(start().1.established, established, "who was killed before a peer came back waits for it again");
        mark.write(&peers(&["eth1"])).expect("written");
        assert_eq!(start().1.established, peers(&["eth1"]));
        fs::write(folder.path().join(FILE), "another boot\n192.0.2.1\n").expect("written");
        assert_eq!(start().1, Predecessor::default());
    }

    #[tokio::test]
    async fn the_last_state_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mark, _) = Mark::take_over(folder.path()).expect("a start");
        let (tx, rx) = watch::channel(BTreeSet::new());
        let task = tokio::spawn(keep(mark, rx, Problems::default()));
        for names in [&["192.0.2.1"][..], &["192.0.2.1", "192.0.2.2"], &["192.0.2.2"]] {
            tx.send_replace(peers(names));
        }
        drop(tx);
        task.await.expect("it ends");
        let (_, before) = Mark::take_over(folder.path()).expect("a start");
        assert_eq!(before.established, peers(&["192.0.2.2"]));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_a_problem() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mark, _) = Mark::take_over(folder.path()).expect("a start");
        drop(folder);
        let (tx, rx) = watch::channel(BTreeSet::new());
        let problems = Problems::default();
        let task = tokio::spawn(keep(mark, rx, problems.clone()));
        tx.send_replace(peers(&["192.0.2.1"]));
        drop(tx);
        task.await.expect("it ends");
        assert!(problems.list()[0].message.starts_with("failed to write bgp.boot: "), "{:?}", problems.list());
    }
}
