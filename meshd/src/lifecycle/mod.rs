//! How the daemon starts, stays visible and stops.
//!
//! [`Problems`] is the one list of what is wrong now; [`Tasks`] owns every task and says when one ended that should not;
//! [`notify`] talks to systemd; [`stop_signal`] waits for the two ways to stop; [`SteadyClock`] is what waits are
//! measured by. Stopping withdraws nothing (I10).

mod clock;
pub mod log;
pub mod notify;
mod predecessor;
mod problems;
mod signals;
mod tasks;

pub use clock::SteadyClock;
pub use predecessor::once_free;
pub use problems::Problems;
pub use signals::{hangups, hold_hangups, stop_signal};
pub use tasks::Tasks;
