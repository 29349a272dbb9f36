//! `meshd get`: the tables of the daemon.

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::{SocketOptions, block_on, encode};
use super::failure::Failure;
use super::options::{Format, OutputOptions};
use super::rows::{self, Rows};

/// Show a table of the daemon
#[derive(Debug, Args)]
pub(super) struct Get {
    /// Table
    #[arg(value_enum)]
    table: Table,
    /// Only the row of this name (node, prefix, service, number or cluster)
    name: Option<String>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

/// The tables.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Table {
    /// Nodes of this and the remote clusters
    Nodes,
    /// Prefixes of workloads and their nodes
    Prefixes,
    /// Routes this node wants and has
    Routes,
    /// Services of this cluster and their backends in all clusters
    Services,
    /// Backends of services, with weight, node and whether they are used
    Backends,
    /// Identities and their labels
    Identities,
    /// Addresses of workloads
    Endpoints,
    /// Remote clusters
    Peers,
    /// Records of remote clusters that were refused, and why
    Rejected,
    /// Prefixes that are excluded from masquerade
    Exclusions,
}

/// Show the remote clusters: the same as `get peers`
#[derive(Debug, Args)]
pub(super) struct Peers {
    /// Only this cluster
    name: Option<String>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

impl Peers {
    pub(super) fn run(self) -> Result<(), Failure> {
        Get { table: Table::Peers, name: self.name, output: self.output, socket: self.socket }.run()
    }
}

impl Get {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.table {
            Table::Nodes => self.show("nodes", rows::nodes),
            Table::Prefixes => self.show("prefixes", rows::prefixes),
            Table::Routes => self.show("routes", rows::routes),
            Table::Services => self.show("services", rows::services),
            Table::Backends => self.show("backends", rows::backends),
            Table::Identities => self.show("identities", rows::identities),
            Table::Endpoints => self.show("endpoints", rows::endpoints),
            Table::Peers => self.show("peers", rows::peers),
            Table::Rejected => self.show("rejected", rows::rejected),
            Table::Exclusions => self.show("exclusions", rows::exclusions),
        }
    }

    fn show<T: DeserializeOwned + Serialize>(&self, table: &str, rows: fn(&[T], bool) -> Rows) -> Result<(), Failure> {
        let path = match &self.name {
            Some(name) => format!("/v1/get/{table}?name={}", encode(name)),
            None => format!("/v1/get/{table}"),
        };
        let views: Vec<T> = block_on(self.socket.get(&path))??;
        if let Some(name) = self.name.as_ref().filter(|_| views.is_empty()) {
            return Err(Failure::message(format!("there is no {name} in {table}"))
                .hint(format!("`meshd get {table}` lists what there is")));
        }
        match self.output.output {
            Format::Table => rows(&views, false).print(),
            Format::Wide => rows(&views, true).print(),
            Format::Json => super::output::json(&views),
            Format::Yaml => super::output::yaml(&views),
        }
    }
}
