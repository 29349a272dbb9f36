//! Ctrl-C while a lab is up or coming up: the lab goes down before the program ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lab::{Error, Lab, Result, chain};
use nix::sys::signal::{SigSet, Signal};

/// What a shell expects of a program that ended because of SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

/// Waits for SIGINT and SIGTERM in a thread of its own.
pub(crate) struct Guard {
    expected: Arc<AtomicBool>,
}

impl Guard {
    /// From now on a signal takes the lab of this name down and ends the program.
    pub(crate) fn set(name: &str) -> Result<Self> {
        let signals = blocked(&[Signal::SIGINT, Signal::SIGTERM])?;
        let expected = Arc::new(AtomicBool::new(false));
        let (name, is_expected) = (name.to_owned(), Arc::clone(&expected));
        std::thread::spawn(move || {
            let waited = signals.wait();
            let expected = is_expected.load(Ordering::Relaxed);
            let failed = match waited.map_err(failed_to_wait).and_then(|_| Lab::abandon(&name)) {
                Ok(()) => false,
                Err(error) => {
                    eprintln!("lab: {}", chain(&error));
                    true
                }
            };
            let code = match (failed, expected) {
                (true, _) => 1,
                (false, true) => 0,
                (false, false) => EXIT_INTERRUPTED,
            };
            end(code);
        });
        Ok(Self { expected })
    }

    /// Waits for the signal, which from now on is the way to end.
    pub(crate) fn wait(self) -> ! {
        self.expected.store(true, Ordering::Relaxed);
        loop {
            std::thread::park();
        }
    }
}

/// Leaves Ctrl-C to the program that is run in a node: it ends, and we report how.
pub(crate) fn leave_to_child() -> Result<()> {
    blocked(&[Signal::SIGINT, Signal::SIGQUIT]).map(drop)
}

/// Blocks signals in this thread and those it starts; programs in nodes start with none blocked.
fn blocked(signals: &[Signal]) -> Result<SigSet> {
    let mut set = SigSet::empty();
    signals.iter().for_each(|&signal| set.add(signal));
    set.thread_block().map_err(failed_to_wait)?;
    Ok(set)
}

fn failed_to_wait(source: nix::errno::Errno) -> Error {
    Error::System { operation: "wait for a signal".to_owned(), source }
}

#[expect(clippy::disallowed_methods, reason = "the main thread is in the middle of something that will never finish")]
fn end(code: i32) -> ! {
    std::process::exit(code)
}
