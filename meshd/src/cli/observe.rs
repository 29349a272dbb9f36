//! `meshd observe`: connections and drops as the datapath tells them.

use std::io::{self, Write as _};

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;
use meshd_abi::Reason;

use super::client::{SocketOptions, block_on, encode};
use super::failure::Failure;
use super::observe_page;
use crate::api::flow_view::{FlowKind, FlowLine, LostView, Verdict};
use crate::flows::filter::{Addresses, Filter, List, Word};

/// Flows that are shown without `--last` and without `--follow`.
const LAST: usize = 20;

/// Show connections that begin and end, and packets that are dropped
///
/// The daemon remembers the last 4,096 of them. Filters of one kind are alternatives, different kinds must all fit; an end of a
/// connection fits before translation or after. Needs the datapath (services.enabled).
#[derive(Debug, Args)]
pub(super) struct Observe {
    /// Go on with what comes, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// So many of the past [default: 20, with --follow 0]
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// What is told
    #[arg(long = "type", value_name = "TYPE", value_enum, value_delimiter = ',')]
    kind: Vec<FlowKind>,
    /// What was decided
    #[arg(long, value_enum, value_delimiter = ',')]
    verdict: Vec<Verdict>,
    /// Why, e.g. no_backend
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(Reason::ALL.iter().map(|reason| reason.word())), hide_possible_values = true)]
    reason: Vec<String>,
    /// Cluster of an end
    #[arg(long, value_delimiter = ',')]
    cluster: Vec<String>,
    /// Numeric identity of an end
    #[arg(long, value_delimiter = ',')]
    identity: Vec<u32>,
    /// Address or prefix of an end
    #[arg(long, visible_alias = "cidr", value_name = "ADDRESS|PREFIX", value_parser = Addresses::read, value_delimiter = ',')]
    address: Vec<Addresses>,
    /// Port of an end
    #[arg(long, value_delimiter = ',')]
    port: Vec<u16>,
    /// tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_delimiter = ',')]
    protocol: Vec<String>,
    /// Service
    #[arg(long, value_name = "[NAMESPACE/]NAME", value_delimiter = ',')]
    service: Vec<String>,
    /// Workload of an end
    #[arg(long, value_name = "[NAMESPACE/]NAME", value_delimiter = ',')]
    workload: Vec<String>,
    /// Output format
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    socket: SocketOptions,
}

/// How flows are printed: a stream has a line for each and nothing around them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for people
    Table,
    /// The same with identities, link and length
    Wide,
    /// A JSON object a line; the field names are stable
    Json,
}

impl Observe {
    pub(super) fn run(self) -> Result<(), Failure> {
        let path = self.path()?;
        let format = self.output;
        let zone = TimeZone::system();
        let print = |line: &[u8]| {
            let mut stdout = io::stdout().lock();
            if format == Format::Json {
                stdout.write_all(line)?;
                stdout.write_all(b"\n")?;
            } else {
                let line: FlowLine = serde_json::from_slice(line).map_err(|error| {
                    Failure::message(format!("a flow of the daemon cannot be read: {error}"))
                        .hint("daemon and command line may be of different versions (meshd version, meshd status)")
                })?;
                match line {
                    FlowLine::Flow(flow) => {
                        writeln!(stdout, "{}", observe_page::line(&flow, format == Format::Wide, &zone))?;
                    }
                    FlowLine::Lost(lost) => report(&lost),
                }
            }
            // Whoever follows wants to see it now.
            stdout.flush()?;
            Ok(())
        };
        block_on(async {
            let lines = self.socket.lines(&path, print);
            if !self.follow {
                return lines.await;
            }
            tokio::select! {
                ended = lines => ended.and_then(|()| {
                    Err(Failure::message("the daemon ended the answer").hint("is it running (systemctl status meshd)?"))
                }),
                // Interrupting is how one stops to follow.
                _ = tokio::signal::ctrl_c() => Ok(()),
            }
        })?
    }

    /// The request.
    fn path(&self) -> Result<String, Failure> {
        let last = self.last.unwrap_or(if self.follow { 0 } else { LAST });
        let filter = Filter {
            kind: List(self.kind.clone()),
            verdict: List(self.verdict.clone()),
            reason: List(self.reason.clone()),
            cluster: List(self.cluster.clone()),
            identity: List(self.identity.clone()),
            address: List(self.address.clone()),
            port: List(self.port.clone()),
            protocol: List(self.protocol.clone()),
            service: List(self.service.clone()),
            workload: List(self.workload.clone()),
        };
        let fields = serde_json::to_value(&filter)
            .map_err(|error| Failure::message(format!("the filter cannot be written: {error}")))?;
        let mut path = format!("/v1/flows?last={last}&follow={}", self.follow);
        for (name, words) in fields.as_object().into_iter().flatten() {
            path.push_str(&format!("&{name}={}", encode(words.as_str().unwrap_or_default())));
        }
        Ok(path)
    }
}

/// Losses are no flows: they go where other messages go.
fn report(lost: &LostView) {
    // Nobody is left to tell when standard error is gone.
    let _ = writeln!(io::stderr().lock(), "warning: {}", observe_page::lost(lost));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        observe: Observe,
    }

    fn path(arguments: &[&str]) -> String {
        let line = Line::try_parse_from([&["observe"], arguments].concat()).unwrap();
        line.observe.path().unwrap()
    }

    #[test]
    fn flags_are_a_query() {
        assert_eq!(path(&[]), "/v1/flows?last=20&follow=false");
        assert_eq!(path(&["-f"]), "/v1/flows?last=0&follow=true");
        assert_eq!(
            path(&[
                "--last",
                "5",
                "--type",
                "new,drop",
                "--cidr",
                "10.0.0.0/8",
                "--address",
                "fd00::1",
                "--port",
                "80"
            ]),
            "/v1/flows?last=5&follow=false&address=10.0.0.0%2F8%2Cfd00%3A%3A1%2F128&port=80&type=new%2Cdrop"
        );
        for bad in [
            ["--address", "10.0.0"],
            ["--type", "often"],
            ["--verdict", "x"],
            ["--reason", "bad_luck"],
            ["--port", "65536"],
        ] {
            assert!(Line::try_parse_from([&["observe"][..], &bad].concat()).is_err(), "{bad:?}");
        }
    }
}
