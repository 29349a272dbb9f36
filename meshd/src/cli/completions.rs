//! `meshd completions`: a script for the shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::failure::Failure;
use super::output;

/// Print a completion script, e.g. `meshd completions bash > /etc/bash_completion.d/meshd`
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "meshd", &mut script);
        output::text(&String::from_utf8_lossy(&script))
    }
}
