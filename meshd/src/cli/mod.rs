//! The command line: one file per verb.
//!
//! A verb returns `Ok` or a [`Failure`]; only [`main`] prints failures and chooses the exit code: 0, 1 for a
//! failure, 64 for a wrong command line or configuration. Results go to standard output, everything else to
//! standard error. A reader that goes away early (`meshd get routes | head -1`) is no failure.
//!
//! Read verbs ask a running daemon through its unix socket. `bpf`, `check`, `cert`, `troubleshoot`, `connect`,
//! `disconnect`, `completions` and `version` work without one.

mod bgp;
mod bgp_page;
mod bgp_paths;
mod bpf;
mod cert;
mod certificate;
mod check;
mod client;
mod completions;
mod config_reference;
mod connect;
mod drain;
mod failure;
mod get;
mod man;
mod observe;
mod observe_page;
mod options;
mod output;
mod plan;
mod rows;
mod run;
mod status;
mod troubleshoot;
mod version;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

pub use failure::{EXIT_FAILURE, EXIT_USAGE, Failure};
pub use run::Daemon;

/// Joins clusters into one natively routed network.
#[derive(Debug, Parser)]
#[command(name = "meshd", version, about, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Run),
    Status(status::Status),
    Get(get::Get),
    Peers(get::Peers),
    #[command(subcommand)]
    Bgp(bgp::Bgp),
    Observe(observe::Observe),
    #[command(subcommand)]
    Bpf(bpf::Bpf),
    Plan(plan::Plan),
    Drain(drain::Drain),
    Troubleshoot(troubleshoot::Troubleshoot),
    Connect(connect::Connect),
    Disconnect(connect::Disconnect),
    Check(check::Check),
    #[command(subcommand)]
    Cert(cert::Cert),
    Completions(completions::Completions),
    Version(version::Version),
    #[command(hide = true)]
    ConfigReference,
    #[command(hide = true)]
    Man(man::Man),
}

/// Runs the command line of this process; `daemon` is what `meshd run` starts.
#[must_use]
pub fn main(daemon: Daemon) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done when even this text cannot be written.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EXIT_USAGE),
            };
        }
    };
    let result = match cli.verb {
        Verb::Run(verb) => verb.run(daemon),
        Verb::Status(verb) => verb.run(),
        Verb::Get(verb) => verb.run(),
        Verb::Peers(verb) => verb.run(),
        Verb::Bgp(verb) => verb.run(),
        Verb::Observe(verb) => verb.run(),
        Verb::Bpf(verb) => verb.run(),
        Verb::Plan(verb) => verb.run(),
        Verb::Drain(verb) => verb.run(),
        Verb::Troubleshoot(verb) => verb.run(),
        Verb::Connect(verb) => verb.run(),
        Verb::Disconnect(verb) => verb.run(),
        Verb::Check(verb) => verb.run(),
        Verb::Cert(verb) => verb.run(),
        Verb::Completions(verb) => verb.run(),
        Verb::Version(verb) => verb.run(),
        Verb::ConfigReference => config_reference::run(),
        Verb::Man(verb) => verb.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
