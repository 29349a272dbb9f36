//! `meshd plan`: what the reconcilers would do now.

use std::fmt::Write as _;

use clap::Args;

use super::client::{SocketOptions, block_on};
use super::failure::Failure;
use super::options::{Format, OutputOptions};
use super::output;
use crate::api::view::PlanView;

/// Show what would change in the kernel now, without changing it
#[derive(Debug, Args)]
pub(super) struct Plan {
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

impl Plan {
    pub(super) fn run(self) -> Result<(), Failure> {
        let view: PlanView = block_on(self.socket.get("/v1/plan"))??;
        match self.output.output {
            Format::Table | Format::Wide => {
                let mut page = String::new();
                for action in &view.actions {
                    let _ = writeln!(page, "{} {} {}", action.op, action.object, action.detail);
                }
                if view.actions.is_empty() {
                    page.push_str("nothing to do\n");
                }
                output::text(&page)
            }
            Format::Json => output::json(&view),
            Format::Yaml => output::yaml(&view),
        }
    }
}
