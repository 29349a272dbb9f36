//! `meshd bgp`: the BGP speaker, in the words of FRR and BIRD.

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{
    bgp_page,
    client::{SocketOptions, block_on, encode},
    failure::Failure,
    options::{Format, OutputOptions},
    output,
};
use crate::api::bgp_view::{BgpNeighborView, BgpSummaryView};

/// Show the BGP speaker, its neighbors and what they exchange
#[derive(Debug, Subcommand)]
pub(super) enum Bgp {
    /// One line for each neighbor
    Summary(Summary),
    /// All about each neighbor, or about one
    Neighbors(Neighbors),
}

impl Bgp {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Summary(verb) => verb.run(),
            Self::Neighbors(verb) => verb.run(),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Summary {
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

impl Summary {
    fn run(self) -> Result<(), Failure> {
        let view: BgpSummaryView = block_on(self.socket.get("/v1/bgp/summary"))??;
        match self.output.output {
            Format::Table => output::text(&bgp_page::summary(&view, false, Timestamp::now())),
            Format::Wide => output::text(&bgp_page::summary(&view, true, Timestamp::now())),
            Format::Json => output::json(&view),
            Format::Yaml => output::yaml(&view),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Neighbors {
    /// Only this one: its address, address%link, or link
    neighbor: Option<String>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

impl Neighbors {
    fn run(self) -> Result<(), Failure> {
        let path = match &self.neighbor {
            Some(name) => format!("/v1/bgp/neighbors?name={}", encode(name)),
            None => "/v1/bgp/neighbors".to_owned(),
        };
        let views: Vec<BgpNeighborView> = block_on(self.socket.get(&path))??;
        match self.output.output {
            Format::Table | Format::Wide => output::text(&bgp_page::neighbors(&views)),
            Format::Json => output::json(&views),
            Format::Yaml => output::yaml(&views),
        }
    }
}
