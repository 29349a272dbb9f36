//! The `meshd` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshd::cli::main(|_config, _source| Err(anyhow::anyhow!("this build has no daemon yet")))
}
