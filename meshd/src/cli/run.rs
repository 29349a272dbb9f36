//! `meshd run`: the daemon.

use clap::Args;

use super::failure::Failure;
use super::options::ConfigOptions;
use crate::config::{Config, ConfigSource};
use crate::lifecycle::hold_hangups;

/// What runs the daemon: the checked configuration, and where to read it again on SIGHUP.
pub type Daemon = fn(Config, ConfigSource) -> anyhow::Result<()>;

/// Run the node: learn, publish, keep routes
#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    options: ConfigOptions,
    /// The same as --set api.socket=PATH
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
}

impl Run {
    pub(super) fn run(self, daemon: Daemon) -> Result<(), Failure> {
        // A reload that comes while we start is one, too.
        hold_hangups().map_err(|error| Failure::new(&error))?;
        let mut source = self.options.source()?;
        if let Some(socket) = self.socket {
            source.flags.push(("api.socket".to_owned(), socket, "--socket".to_owned()));
        }
        let config = source.load()?;
        daemon(config, source).map_err(|error| Failure::new(error.as_ref()))
    }
}
