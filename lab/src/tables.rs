//! What `lab` prints.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use lab::{Daemon, Lab, Role, catalog};

/// What a shell adds to the number of the signal that ended a program.
const SIGNAL_EXIT_BASE: i32 = 128;

/// The nodes of a lab with their daemons.
pub(crate) fn nodes(lab: &Lab) -> String {
    let mut rows = vec![["NODE", "ROLE", "HOLDER", "DAEMONS"].map(str::to_owned)];
    for node in lab.nodes() {
        let role = node.spec().map_or(Role::Node, |spec| spec.role).word();
        let daemons: Vec<String> = node.daemons().iter().map(daemon).collect();
        let daemons = if daemons.is_empty() { "-".to_owned() } else { daemons.join(", ") };
        rows.push([node.name().to_owned(), role.to_owned(), node.holder_pid().to_string(), daemons]);
    }
    align(&rows)
}

/// The labs that are up and the topologies that could be.
pub(crate) fn labs() -> String {
    let mut rows = vec![["LAB", "STATE", "NODES", "TOPOLOGY"].map(str::to_owned)];
    for name in Lab::list() {
        let row = match Lab::open(&name) {
            Ok(lab) => {
                let topology = lab.topology();
                [name, "up".to_owned(), topology.nodes.len().to_string(), topology.name.clone()]
            }
            // Half made or half removed: `down` clears it.
            Err(_) => [name, "broken".to_owned(), "-".to_owned(), "-".to_owned()],
        };
        rows.push(row);
    }
    for (name, path) in catalog::list() {
        rows.push(["-".to_owned(), "-".to_owned(), "-".to_owned(), format!("{name} ({})", path.display())]);
    }
    align(&rows)
}

/// The exit code that stands for how a program ended, as a shell reports it.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| SIGNAL_EXIT_BASE + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(crate) fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<usize> = (0..N).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn daemon(daemon: &Daemon) -> String {
    match daemon.pid() {
        Some(pid) => format!("{} ({pid})", daemon.name()),
        None => format!("{} (stopped)", daemon.name()),
    }
}
