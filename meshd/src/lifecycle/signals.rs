//! Signals: TERM and INT stop, HUP reloads.

use std::io;

use nix::sys::signal::{SigmaskHow, Signal::SIGHUP, pthread_sigmask};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Resolves at SIGTERM or SIGINT. A second one ends the process at once: whoever asks twice does not want to wait.
///
/// # Errors
/// When the signal handler cannot be installed.
pub async fn stop_signal() -> io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    wait(&mut term, &mut int).await;
    tokio::spawn(async move {
        wait(&mut term, &mut int).await;
        tracing::warn!("second stop signal: leaving at once");
        #[expect(clippy::disallowed_methods, reason = "the second signal asks for exactly this: no clean-up")]
        std::process::exit(1);
    });
    Ok(())
}

async fn wait(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Keeps SIGHUPs of this thread, and of those it starts, until somebody asks for [`hangups`]: one that nobody handles ends the process, also while
/// it reads its configuration.
///
/// # Errors
/// When the kernel refuses it.
pub fn hold_hangups() -> io::Result<()> {
    Ok(pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SIGHUP.into()), None)?)
}

/// The stream of SIGHUPs, with one that was held.
///
/// # Errors
/// When the signal handler cannot be installed.
pub fn hangups() -> io::Result<Signal> {
    let hangups = signal(SignalKind::hangup())?;
    pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&SIGHUP.into()), None)?;
    Ok(hangups)
}
