//! `meshd man` (hidden): man pages, one per verb, for packages.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man as Page;

use super::failure::Failure;

/// Write the man pages into a folder
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The folder; it must exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut command = super::Cli::command();
        command.build();
        self.write(&command, "meshd")
    }

    fn write(&self, command: &Command, name: &str) -> Result<(), Failure> {
        let mut page = Vec::new();
        Page::new(command.clone()).render(&mut page)?;
        let path = self.dir.join(format!("{name}.1"));
        fs::write(&path, page).map_err(|error| {
            Failure::message(format!("failed to write {}: {error}", path.display()))
                .hint("the folder must exist and be writable")
        })?;
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            self.write(verb, &format!("{name}-{}", verb.get_name()))?;
        }
        Ok(())
    }
}
