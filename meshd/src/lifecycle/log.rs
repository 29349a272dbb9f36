//! The log: lines on standard error, for people or machines.

use tracing_subscriber::{EnvFilter, fmt::time::SystemTime, util::SubscriberInitExt as _, util::TryInitError};

use crate::config::model::{LogConfig, LogFormat};

/// Starts logging as configured.
///
/// # Errors
/// When the process logs already.
pub fn start(config: &LogConfig) -> Result<(), TryInitError> {
    // The filter was checked with the configuration; a word it does not know is left out.
    let filter = EnvFilter::builder().parse_lossy(&config.filter);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_timer(SystemTime);
    match config.format {
        LogFormat::Text => lines.with_ansi(false).finish().try_init(),
        LogFormat::Json => lines.json().finish().try_init(),
    }
}
