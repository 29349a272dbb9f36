//! How long a daemon may take for a scenario. One that takes longer is ended, and the others are measured all the same.

use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tests::bgp::speaker::{ACCEPT_WITHIN, Identity, Session};

use super::daemon::Bench;

/// What one daemon may take for one scenario, from when it runs until everything was measured, unless the environment says
/// something else.
const LIMIT_S: u64 = 300;
/// The name of that in the environment.
const VARIABLE: &str = "BGP_LIMIT_S";

/// Time that runs out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    within: Duration,
    until: Instant,
}

/// How a measurement under a limit ended.
#[derive(Debug)]
pub(super) enum Outcome<T> {
    /// With what was measured.
    Done(T),
    /// The daemon was ended after this time.
    NotDone(Duration),
}

/// What the environment allows.
pub(super) fn read() -> anyhow::Result<Duration> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(Duration::from_secs(LIMIT_S)) };
    let seconds = text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    Ok(Duration::from_secs(seconds.with_context(|| format!("{VARIABLE} is no number of seconds: {}", text.display()))?))
}

impl Limit {
    /// It begins now.
    pub(super) fn of(within: Duration) -> Self {
        Self { within, until: Instant::now() + within }
    }

    /// What is left of it.
    pub(super) fn left(self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// A session with a daemon that is there, unless time is up before.
    pub(super) fn establish(self, identity: &Identity) -> anyhow::Result<Session> {
        Session::establish_within(identity, self.left().min(ACCEPT_WITHIN))
    }

    /// Looks again, with this pause between two looks, until something is there.
    pub(super) fn wait(
        self,
        what: &str,
        look: Duration,
        mut is: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        while !is()? {
            ensure!(!self.left().is_zero(), "waited {:?} for {what}", self.within);
            sleep(look);
        }
        Ok(())
    }

    /// Measures, and ends the daemon when time is up: whoever writes to it, reads from it or waits for it comes to an end by that.
    pub(super) fn watch<T>(
        self,
        bench: &Bench,
        measure: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<Outcome<T>> {
        scope(|threads| {
            let (done, is_done) = channel::<()>();
            let watchdog = threads.spawn(move || {
                let is_over = is_done.recv_timeout(self.left()) == Err(RecvTimeoutError::Timeout);
                if is_over {
                    bench.end();
                }
                is_over
            });
            let measured = measure();
            drop(done);
            let is_over = watchdog.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match measured {
                Ok(measured) => Ok(Outcome::Done(measured)),
                // Whoever waits for something gives up at the same moment.
                Err(_) if is_over || self.left().is_zero() => Ok(Outcome::NotDone(self.within)),
                Err(error) => Err(error),
            }
        })
    }
}
