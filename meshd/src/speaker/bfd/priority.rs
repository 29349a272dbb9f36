//! How the kernel schedules the thread.

use nix::errno::Errno;
use serde::Serialize;

/// Above everything that is not real-time; among what is, low.
const FIFO_PRIORITY: i32 = 10;
/// The next best, as most processes that care have it.
const NICE: i32 = -15;

/// How the kernel schedules the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// `SCHED_FIFO`: it runs as soon as it wants to.
    RealTime,
    /// A larger share than others.
    Raised,
    /// Like everybody.
    Ordinary,
}

/// Takes the best priority that the process may have, for the calling thread alone.
pub(super) fn raise() -> Priority {
    let parameters = libc::sched_param { sched_priority: FIFO_PRIORITY };
    // SAFETY: the structure outlives the call, which copies it; 0 is the calling thread.
    let fifo =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    match Errno::result(fifo) {
        Ok(_) => return Priority::RealTime,
        Err(errno) => tracing::debug!(%errno, "BFD thread gets no real-time priority"),
    }
    // SAFETY: no pointers; on Linux 0 with PRIO_PROCESS is the calling thread.
    let nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    match Errno::result(nice) {
        Ok(_) => Priority::Raised,
        Err(errno) => {
            tracing::warn!(
                %errno,
                hint = "give meshd CAP_SYS_NICE",
                "BFD thread runs at ordinary priority, a busy machine may delay it"
            );
            Priority::Ordinary
        }
    }
}
