//! A stream of iperf3 from one node to another one, for as long as a test does something to the routers between them: a program that is
//! not ours opens the connection and says what became of it.
//!
//! An iperf3 that is interrupted calls that a failure. So it sends a file of zeros that has no end for it, until a test lets that end.

use std::{fs::File, net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail, ensure};
use lab::{Node, Running};
use serde_json::Value;

/// What a stream sends in a second, in bits: more than enough to see every pause, and little for the machine.
const BIT_RATE: &str = "20M";
/// Octets that are written at once: many pieces for every line of the server.
const PIECE_LEN: &str = "16K";
/// Time that a line of the server tells of.
const LINE: Duration = Duration::from_millis(100);
/// What the client sends, in its node: nothing but a length, as long as nobody has written to it.
const ZEROS: &str = "/run/iperf3-zeros";
const ZEROS_LEN: u64 = 1 << 40;
/// How long it sends at most, in seconds.
const LASTS: &str = "3600";
/// How long both may take to end.
const END: Duration = Duration::from_secs(20);

/// What arrived within some time of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    begin: Duration,
    end: Duration,
    is_empty: bool,
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streamed {
    /// Octets that the client sent.
    pub sent: u64,
    /// Octets that the server has read.
    pub received: u64,
    /// Segments that were sent more than once.
    pub sent_again: u64,
    /// The longest time in which nothing arrived, up to two lines of the server too short or too long.
    pub longest_pause: Duration,
}

/// A stream under way. Dropped, its programs are killed.
#[derive(Debug)]
pub struct Iperf {
    from: Node,
    client: Running,
    server: Running,
}

impl Iperf {
    /// Starts a server at an address of a node, and a client on another node that connects to `to`, which may be a service. Returns when
    /// something arrives.
    ///
    /// # Errors
    /// When one of the two does not start, or nothing arrives.
    pub fn start(from: &Node, to: SocketAddr, server: &Node, address: SocketAddr) -> anyhow::Result<Self> {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let line = LINE.as_secs_f64().to_string();
        let server =
            server.spawn(&["iperf3", "-s", "-1", "-B", &ip, "-p", &port, "-i", &line, "-f", "k", "--forceflush"])?;
        until("the server of iperf3", || {
            ensure!(server.so_far()?.contains("Server listening"), "{}", server.so_far()?);
            Ok(())
        })?;
        set_zeros(from, ZEROS_LEN)?;
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let client =
            ["iperf3", "-c", &ip, "-p", &port, "-t", LASTS, "-b", BIT_RATE, "-l", PIECE_LEN, "-F", ZEROS, "-J"];
        let mut stream = Self { from: from.clone(), client: from.spawn(&client)?, server };
        stream.wait_progress(3)?;
        Ok(stream)
    }

    /// Waits for so many more lines of the server that say that something arrived.
    ///
    /// # Errors
    /// When the stream ends before that, and when it takes too long.
    pub fn wait_progress(&mut self, count: usize) -> anyhow::Result<()> {
        let before = self.flowed()?;
        until("progress of iperf3", || {
            if !self.client.is_running()? {
                bail!("iperf3 has ended before the test: {}", self.client.so_far()?);
            }
            ensure!(self.flowed()? >= before + count, "{}", self.server.so_far()?);
            Ok(())
        })
    }

    /// Lets it end in order.
    ///
    /// # Errors
    /// When it has ended before, and when one of the two programs reports a failure.
    pub fn finish(mut self) -> anyhow::Result<Streamed> {
        ensure!(self.client.is_running()?, "iperf3 has ended before the test: {}", self.client.so_far()?);
        set_zeros(&self.from, 0)?;
        let report = self.client.finish(END)?.ok().context("the client of iperf3")?;
        let report: Value = serde_json::from_str(&report).with_context(|| format!("no report of iperf3: {report}"))?;
        ensure!(report.get("error").is_none(), "iperf3 says {}", report["error"]);
        let said = self.server.finish(END)?.ok().context("the server of iperf3")?;
        let octets = |sum: &str| report["end"][sum]["bytes"].as_u64().with_context(|| format!("no {sum}: {report}"));
        let sent_again = report["end"]["sum_sent"]["retransmits"].as_u64().context("no retransmissions")?;
        let (sent, received) = (octets("sum_sent")?, octets("sum_received")?);
        Ok(Streamed { sent, received, sent_again, longest_pause: longest_pause(&lines(&said)) })
    }

    fn flowed(&self) -> anyhow::Result<usize> {
        Ok(lines(&self.server.so_far()?).iter().filter(|line| !line.is_empty).count())
    }
}

/// Makes the file that a client sends so long.
fn set_zeros(node: &Node, length: u64) -> anyhow::Result<()> {
    let resize = || File::options().write(true).create(true).truncate(false).open(ZEROS)?.set_len(length);
    node.within(resize)?.with_context(|| format!("{ZEROS} of {length} octets in {}", node.name()))
}

fn until(what: &str, holds: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    crate::routers::until(what, crate::routers::DEADLINE, holds)
}

/// The lines of a server without the summary behind them: `[  5]   0.10-0.20   sec   240 KBytes  19.7 Mbits/sec`.
fn lines(said: &str) -> Vec<Line> {
    said.lines().take_while(|line| !line.starts_with("- -")).filter_map(line).collect()
}

fn line(text: &str) -> Option<Line> {
    let mut words = text.split_once(']')?.1.split_whitespace();
    let (begin, end) = words.next()?.split_once('-')?;
    let is_time = words.next()? == "sec";
    let octets: f64 = words.next()?.parse().ok()?;
    let [begin, end] = [begin, end].map(|text| text.parse().map(Duration::from_secs_f64));
    is_time.then_some(Line { begin: begin.ok()?, end: end.ok()?, is_empty: octets == 0.0 })
}

/// The longest row of lines in which nothing arrived.
fn longest_pause(lines: &[Line]) -> Duration {
    let rows = lines.chunk_by(|one, next| one.is_empty == next.is_empty);
    let empty = rows.filter(|row| row[0].is_empty);
    empty.map(|row| row[row.len() - 1].end.saturating_sub(row[0].begin)).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_read_from_the_lines_of_a_server() {
        let said = "\
Server listening on 5999 (test #1)
[  5] local 127.0.0.1 port 5999 connected to 127.0.0.1 port 47684
[ ID] Interval           Transfer     Bitrate
[  5]   0.00-0.10   sec   256 KBytes  21000 Kbits/sec
[  5]   0.10-0.20   sec  0.00 Bytes  0.00 Kbits/sec
[  5]   0.20-0.30   sec  1.20 MBytes  19700 Kbits/sec
[  5]   0.30-0.40   sec  0.00 Bytes  0.00 Kbits/sec
[  5]   0.40-0.55   sec  0.00 Bytes  0.00 Kbits/sec
[  5]   0.55-0.60   sec   240 KBytes  19700 Kbits/sec
- - - - - - - - - - - - - - - - - - - - - - - - -
[ ID] Interval           Transfer     Bitrate
[  5]   0.00-0.60   sec  4.78 MBytes  20100 Kbits/sec                  receiver
";
        let lines = lines(said);
        assert_eq!(lines.len(), 6);
        assert_eq!(lines.iter().filter(|line| line.is_empty).count(), 3);
        assert_eq!(longest_pause(&lines), Duration::from_millis(250));
        assert_eq!(longest_pause(&lines[..1]), Duration::ZERO);
    }
}
