//! `meshd version`: what this binary is.

use clap::Args;
use serde::Serialize;

use super::failure::Failure;
use super::options::{Format, OutputOptions};
use super::output;

/// Print the version of this binary
#[derive(Debug, Args)]
pub(super) struct Version {
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(Serialize)]
struct VersionView {
    version: &'static str,
    architecture: &'static str,
}

impl Version {
    pub(super) fn run(self) -> Result<(), Failure> {
        let view = VersionView { version: env!("CARGO_PKG_VERSION"), architecture: std::env::consts::ARCH };
        match self.output.output {
            Format::Table | Format::Wide => output::text(&format!("meshd {} {}\n", view.version, view.architecture)),
            Format::Json => output::json(&view),
            Format::Yaml => output::yaml(&view),
        }
    }
}
