//! Has this node spoken BGP since it booted?
//!
//! A speaker that was killed and started again finds the routes of its predecessor in the kernel, and tells its peers so
//! (the R and F bits of graceful restart). After a reboot there is nothing left to forward by. A file beside the state says in
//! which boot the speaker ran last.

use std::{fs, io, path::Path};

/// The kernel's name for the time since it started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Name of the file.
const FILE: &str = "bgp.boot";

/// True when a speaker has run since this machine booted; remembers that one runs now.
///
/// # Errors
/// When the file cannot be written.
pub fn has_run(state_dir: &Path) -> io::Result<bool> {
    let now = fs::read_to_string(BOOT_ID)?;
    let file = state_dir.join(FILE);
    let before = match fs::read_to_string(&file) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if before.as_ref() == Some(&now) {
        return Ok(true);
    }
    let new = state_dir.join(".bgp.boot.new");
    fs::write(&new, now)?;
    fs::rename(&new, &file)?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_start_in_a_boot_is_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(!has_run(folder.path()).expect("a first start"));
        assert!(has_run(folder.path()).expect("a second start"));
        fs::write(folder.path().join(FILE), "another boot\n").expect("written");
        assert!(!has_run(folder.path()).expect("a start after a reboot"));
    }
}
