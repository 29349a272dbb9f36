//! `meshd bgp`: the BGP speaker, in the words of FRR and BIRD.

use std::net::IpAddr;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    bgp_page, bgp_paths,
    client::{SocketOptions, block_on, encode},
    failure::Failure,
    options::{Format, OutputOptions},
    output,
};
use crate::api::{
    bgp_paths_view::{BgpMessageView, BgpResetView},
    bgp_view::{BgpDumpView, BgpNeighborView, BgpSummaryView},
};

/// Show the BGP speaker, its neighbors and what they exchange
#[derive(Debug, Subcommand)]
pub(super) enum Bgp {
    /// One line for each neighbor
    Summary(Summary),
    /// All about each neighbor, or about one
    Neighbors(Neighbors),
    /// Paths in the tables, and why all but one of each prefix are not best
    Rib(Rib),
    /// What neighbors sent, before policy, and what was not accepted
    Received(OfPeer),
    /// What neighbors are told
    Advertised(OfPeer),
    /// End the session with a neighbor, or, with `soft`, exchange everything anew in it
    Reset(Reset),
    /// The last messages from and to a neighbor, and its changes of state
    Messages(Messages),
    /// Write the table into an MRT file of the configured folder
    Dump(Dump),
}

impl Bgp {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Summary(verb) => verb.run(),
            Self::Neighbors(verb) => verb.run(),
            Self::Rib(verb) => verb.run(),
            Self::Received(verb) => bgp_paths::received(&verb.socket, verb.output.output, verb.neighbor.as_deref()),
            Self::Advertised(verb) => bgp_paths::advertised(&verb.socket, verb.output.output, verb.neighbor.as_deref()),
            Self::Reset(verb) => verb.run(),
            Self::Messages(verb) => verb.run(),
            Self::Dump(verb) => verb.run(),
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

#[derive(Debug, Args)]
pub(super) struct Rib {
    /// Only this prefix; for an address the longest prefix with a best path
    #[arg(value_name = "PREFIX|ADDRESS")]
    prefix: Option<String>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

impl Rib {
    fn run(self) -> Result<(), Failure> {
        if let Some(text) = &self.prefix
            && text.parse::<IpAddr>().is_err()
            && text.parse::<IpNet>().is_err()
        {
            return Err(Failure::usage(
                format!("{text:?} is neither a prefix nor an address"),
                "for instance 198.51.100.0/24, 2001:db8::/32 or 198.51.100.7",
            ));
        }
        bgp_paths::rib(&self.socket, self.output.output, self.prefix.as_deref())
    }
}

#[derive(Debug, Args)]
pub(super) struct OfPeer {
    /// Only this neighbor: its address, address%link, or link
    neighbor: Option<String>,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

#[derive(Debug, Args)]
pub(super) struct Reset {
    /// The neighbor: its address, address%link, or link
    neighbor: String,
    /// `soft` asks for everything again and sends everything again, and the session goes on
    #[arg(value_enum)]
    how: Option<How>,
    /// Words for the neighbor's operator (RFC 9003), at most 255 octets
    #[arg(long, value_name = "TEXT", default_value = "")]
    message: String,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// The session goes on
    Soft,
}

impl Reset {
    fn run(self) -> Result<(), Failure> {
        if self.how.is_some() && !self.message.is_empty() {
            let hint = "leave out --message or soft";
            return Err(Failure::usage("a soft reset sends no message to the neighbor's operator", hint));
        }
        let (name, message) = (encode(&self.neighbor), encode(&self.message));
        let path = format!("/v1/bgp/reset?name={name}&soft={}&message={message}", self.how.is_some());
        let view: BgpResetView = block_on(self.socket.post(&path))??;
        match self.output.output {
            Format::Table | Format::Wide => output::text(&format!("{}\n", reset_line(&view))),
            Format::Json => output::json(&view),
            Format::Yaml => output::yaml(&view),
        }
    }
}

fn reset_line(view: &BgpResetView) -> String {
    match (view.soft, view.was_established) {
        (false, true) => format!("{}: session ended, a new one begins", view.peer),
        (false, false) => format!("{}: was not established, a new attempt begins", view.peer),
        (true, false) => format!("{}: is not established, nothing to refresh", view.peer),
        (true, true) if view.requested.is_empty() => {
            format!("{}: sent again {}; it does not know route refresh", view.peer, view.resent.join(", "))
        }
        (true, true) => {
            format!("{}: asked for {}; sent again {}", view.peer, view.requested.join(", "), view.resent.join(", "))
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Dump {
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

impl Dump {
    fn run(self) -> Result<(), Failure> {
        let view: BgpDumpView = block_on(self.socket.post("/v1/bgp/dump"))??;
        match self.output.output {
            Format::Table | Format::Wide => output::text(&format!("{}\n", view.file)),
            Format::Json => output::json(&view),
            Format::Yaml => output::yaml(&view),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Messages {
    /// The neighbor: its address, address%link, or link
    neighbor: String,
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    socket: SocketOptions,
}

impl Messages {
    fn run(self) -> Result<(), Failure> {
        let path = format!("/v1/bgp/messages?name={}", encode(&self.neighbor));
        let views: Vec<BgpMessageView> = block_on(self.socket.get(&path))??;
        match self.output.output {
            Format::Table => output::text(&bgp_paths::messages(&views, false)),
            Format::Wide => output::text(&bgp_paths::messages(&views, true)),
            Format::Json => output::json(&views),
            Format::Yaml => output::yaml(&views),
        }
    }
}
