//! Processes by number and start time, so that a number the kernel has given to somebody else is never mistaken for ours.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// Pause between two looks at a process that is expected to end.
const POLL: Duration = Duration::from_millis(2);
/// Position of the start time in `/proc/PID/stat`, counted after the command in parentheses (proc(5), field 22).
const STAT_START_TIME_AFTER_COMMAND: usize = 19;

/// One process, for its whole life and not longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessId {
    /// The living process that has this number now.
    pub fn of(pid: i32) -> Option<Self> {
        let (state, start_ticks) = stat(pid)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, start_ticks })
    }

    /// A child of ours that nobody has waited for, so its number is still its own even if it has ended.
    pub(crate) fn of_child(pid: i32) -> Option<Self> {
        stat(pid).map(|(_, start_ticks)| Self { pid, start_ticks })
    }

    /// Whether it still runs. A process that ended but was not waited for does not run.
    pub fn is_alive(self) -> bool {
        match stat(self.pid) {
            Some(('Z' | 'X', start)) if start == self.start_ticks => {
                self.reap();
                false
            }
            Some((_, start)) => start == self.start_ticks,
            None => false,
        }
    }

    /// Sends a signal; a process that is already gone is no error.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(Error::System { operation: format!("send {signal} to process {}", self.pid), source }),
        }
    }

    /// Waits until it has ended; false when it still runs at the deadline.
    pub fn wait_gone(self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// Takes the exit status if it is our child, so that no zombie stays. Somebody else's child is left to them.
    fn reap(self) {
        match waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(_) | Err(Errno::ECHILD | Errno::EINTR) => {}
            Err(errno) => debug_assert!(false, "waitpid({}) says {errno}", self.pid),
        }
    }
}

/// State and start time; nothing when there is no such process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may contain spaces and parentheses; the last one ends it.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(STAT_START_TIME_AFTER_COMMAND - 1)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = ProcessId::of(pid).unwrap();
        assert!(process.is_alive());
        assert!(!ProcessId { start_ticks: process.start_ticks + 1, ..process }.is_alive());
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.wait_gone(Duration::from_secs(5)));
        assert_eq!(ProcessId::of(pid), None);
        process.signal(Signal::SIGKILL).unwrap();
        // The exit status was taken above; the standard library then has nothing left to wait for.
        let _ = child.wait();
    }
}
