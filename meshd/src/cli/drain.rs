//! `meshd drain`: leave the mesh.

use std::fmt::Write as _;

use clap::Args;

use super::client::{SocketOptions, block_on};
use super::failure::Failure;
use super::options::{Format, OutputOptions};
use super::output;
use crate::api::view::DrainView;

/// Withdraw what this node publishes and remove its routes; stopping the daemon alone does neither
#[derive(Debug, Args)]
pub(super) struct Drain {
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

impl Drain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let view: DrainView = block_on(self.socket.post("/v1/drain"))??;
        match self.output.output {
            Format::Table | Format::Wide => {
                let mut page = format!(
                    "drained: {} keys withdrawn, {} routes removed\n",
                    view.withdrawn_keys, view.removed_routes
                );
                if view.closed_sessions > 0 {
                    let _ = writeln!(page, "{} BGP sessions closed", view.closed_sessions);
                }
                for error in &view.errors {
                    let _ = writeln!(page, "failed: {error}");
                }
                output::text(&page)?;
            }
            Format::Json => output::json(&view)?,
            Format::Yaml => output::yaml(&view)?,
        }
        if view.errors.is_empty() { Ok(()) } else { Err(Failure::Negative) }
    }
}
