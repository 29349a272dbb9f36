//! The benchmark is ended from outside: daemons, namespaces and folders go before the program does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{park, spawn},
};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use tests::routers;

/// What a shell expects of a program that ended because of a signal, less the signal's number.
const EXIT_SIGNAL: i32 = 128;

/// Waits for SIGINT and SIGTERM in a thread of its own.
pub(super) struct Guard {
    is_ending: Arc<AtomicBool>,
}

impl Guard {
    /// From now on a signal takes down what this program brought up, and ends it. To be called before other threads are started:
    /// they and the programs they run must leave the signals to this one.
    pub(super) fn set() -> anyhow::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block().context("failed to block signals")?;
        let is_ending = Arc::new(AtomicBool::new(false));
        let is_told = Arc::clone(&is_ending);
        spawn(move || {
            let waited = signals.wait();
            is_told.store(true, Ordering::Release);
            let code = match waited.context("failed to wait for a signal").and_then(|signal| {
                eprintln!("\nbench: {signal}: takes everything down");
                routers::abandon().map(|()| EXIT_SIGNAL + signal as i32)
            }) {
                Ok(code) => code,
                Err(error) => {
                    eprintln!("bench: {error:#}");
                    1
                }
            };
            end(code);
        });
        Ok(Self { is_ending })
    }

    /// Passes on what was measured. Once a signal came nothing that was measured counts, and it is that other thread that ends the
    /// program, when everything is gone.
    pub(super) fn unless_ending<T>(&self, measured: T) -> T {
        while self.is_ending.load(Ordering::Acquire) {
            park();
        }
        measured
    }
}

#[expect(clippy::disallowed_methods, reason = "the main thread is in the middle of something that will never finish")]
fn end(code: i32) -> ! {
    std::process::exit(code)
}
