//! The command `lab`: brings topologies up and down and runs commands in their nodes.

mod demo;
mod interrupt;
mod tables;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use lab::{Error, Lab, Options, catalog, certificate, chain};

use interrupt::Guard;

/// Exit code for a wrong command line or topology, as in sysexits.h.
const EXIT_USAGE: u8 = 64;

/// Runs containerlab topologies in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "lab", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring a topology up and leave it running.
    Up {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
    },
    /// Take a lab down, in whatever state it is.
    Down {
        /// Name of the lab, or the topology it was made from.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        lab: Option<String>,
        /// Name given to `up`, if it was not the topology's.
        #[arg(long)]
        name: Option<String>,
        /// Take all labs down.
        #[arg(long)]
        all: bool,
    },
    /// Run a command in a node and end with its status.
    Exec {
        /// Name of the lab, or the topology it was made from.
        lab: String,
        /// Node, pod or switch.
        node: String,
        /// Command with its arguments.
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Show the labs that are up and the topologies there are.
    List,
    /// Bring a topology up, wait until it works, and take it down at Ctrl-C.
    Run {
        #[command(flatten)]
        which: Which,
        /// Seconds until every node must be healthy.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
    /// Print what a daemon has written.
    Log {
        /// Name of the lab, or the topology it was made from.
        lab: String,
        /// Node it runs in.
        node: String,
        /// Daemon; by default the main one.
        daemon: Option<String>,
    },
    /// Read a topology and say what is wrong with it.
    Check {
        /// Name or path of the topology.
        topology: String,
    },
    /// Make the certificates of a topology, for a run in containerlab itself.
    Certificates {
        /// Name or path of the topology.
        topology: String,
        /// Folder that gets a folder per node, by containerlab's custom `clab-NAME`.
        #[arg(long)]
        out: PathBuf,
    },
    /// Show two clusters becoming one network, in half a minute.
    Demo,
}

#[derive(Debug, Args)]
struct Which {
    /// Name or path of the topology.
    topology: String,
    /// Name of the lab; by default the topology's.
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
struct How {
    /// Do not start the daemons.
    #[arg(long)]
    no_daemons: bool,
    /// Return only when every node is healthy.
    #[arg(long, conflicts_with = "no_daemons")]
    wait: bool,
    /// Seconds until every node must be healthy.
    #[arg(long, default_value_t = 60, requires = "wait")]
    timeout: u64,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Failing to print leaves nothing else to say it with.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli.verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {}", chain(&error));
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            let usage = matches!(
                error,
                Error::Topology { .. } | Error::NoTopology { .. } | Error::NotRoot | Error::BadName { .. }
            );
            ExitCode::from(if usage { EXIT_USAGE } else { 1 })
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode, Error> {
    match verb {
        Verb::Up { which, how } => {
            let ready_within = how.wait.then(|| Duration::from_secs(how.timeout));
            let options = Options { daemons: !how.no_daemons, ready_within, ..Options::default() };
            let (lab, _guard) = up(&which, options)?;
            let lab = lab.keep();
            print!("{}", tables::nodes(&lab));
        }
        Verb::Down { all: true, .. } => return Ok(down_all()),
        Verb::Down { lab, name, .. } => {
            let lab = name.or(lab).unwrap_or_default();
            Lab::down_by_name(&running(&lab)?)?;
        }
        Verb::Exec { lab, node, command } => {
            interrupt::leave_to_child()?;
            let status = Lab::open(&running(&lab)?)?.node(&node)?.exec_attached(&command)?;
            return Ok(tables::exit_code(status));
        }
        Verb::List => print!("{}", tables::labs()),
        Verb::Run { which, timeout } => {
            return run_until_interrupted(&which, Duration::from_secs(timeout));
        }
        Verb::Log { lab, node, daemon } => {
            let node = Lab::open(&running(&lab)?)?.node(&node)?;
            let daemon = match daemon {
                Some(name) => node.daemon(&name)?,
                None => match node.daemons().into_iter().next() {
                    Some(main) => main,
                    None => node.daemon("main")?,
                },
            };
            print!("{}", daemon.log()?);
        }
        Verb::Check { topology } => {
            let checked = catalog::load(&topology)?;
            println!("{}: {} nodes, {} links: ok", checked.name, checked.nodes.len(), checked.links.len());
        }
        Verb::Certificates { topology, out } => {
            let topology = catalog::load(&topology)?;
            certificate::issue(&topology, &catalog::meshd()?, &out.join("authority"), |node| {
                out.join(node).join("pki")
            })?;
        }
        Verb::Demo => return Ok(demo::run()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The lab that a name or a topology means: one that is up, else the one its file would name.
fn running(lab_or_topology: &str) -> Result<String, Error> {
    if Lab::list().iter().any(|name| name == lab_or_topology) {
        return Ok(lab_or_topology.to_owned());
    }
    match catalog::load(lab_or_topology) {
        Ok(topology) => Ok(topology.name),
        Err(Error::NoTopology { .. }) => Err(Error::NotUp { name: lab_or_topology.to_owned() }),
        Err(other) => Err(other),
    }
}

/// Brings a lab up; Ctrl-C takes it down again at any moment.
fn up(which: &Which, options: Options) -> Result<(Lab, Guard), Error> {
    let topology = catalog::load(&which.topology)?;
    let name = which.name.clone().unwrap_or_else(|| topology.name.clone());
    if Lab::list().contains(&name) {
        return Err(Error::AlreadyUp { name });
    }
    let guard = Guard::set(&name)?;
    let lab = Lab::up_topology(&topology, &Options { name: Some(name), ..options })?;
    Ok((lab, guard))
}

fn down_all() -> ExitCode {
    let problems: Vec<Error> = Lab::list().iter().filter_map(|name| Lab::down_by_name(name).err()).collect();
    for problem in &problems {
        eprintln!("lab: {}", chain(problem));
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_until_interrupted(which: &Which, within: Duration) -> Result<ExitCode, Error> {
    let (lab, guard) = up(which, Options::default())?;
    let ready = lab.wait_healthy(within);
    print!("{}", tables::nodes(&lab));
    match ready {
        Ok(()) => println!("lab {} is up; Ctrl-C takes it down", lab.name()),
        Err(error) => eprintln!("lab: {}\nlab {} stays up; Ctrl-C takes it down", chain(&error), lab.name()),
    }
    guard.wait()
}
