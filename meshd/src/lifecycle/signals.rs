//! Signals: TERM and INT stop, HUP reloads.

use std::io;

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

/// The stream of SIGHUPs.
///
/// # Errors
/// When the signal handler cannot be installed.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}
