//! The log: lines on standard error, for people or machines.

use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{layer, time::SystemTime},
    layer::SubscriberExt as _,
    registry,
    util::{SubscriberInitExt as _, TryInitError},
};

use crate::config::model::{LogConfig, LogFormat};

/// Starts logging as configured.
///
/// # Errors
/// When the process logs already.
pub fn start(config: &LogConfig) -> Result<(), TryInitError> {
    // The filter was checked with the configuration.
    let filter = config.filter.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    let lines = layer().with_writer(std::io::stderr).with_timer(SystemTime);
    match config.format {
        LogFormat::Text => registry().with(filter).with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry().with(filter).with(lines.json()).try_init(),
    }
}
