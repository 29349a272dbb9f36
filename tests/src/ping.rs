//! A `ping` that runs for as long as a test does something to the routers on its way, and what it says of each packet.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use lab::{Node, Running};
use nix::sys::signal::Signal;

/// Answers before a test begins.
const FIRST: usize = 10;
/// How long it may take to end.
const END: Duration = Duration::from_secs(5);

/// What became of the packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The last packet that was answered.
    pub last: u32,
    /// Packets before it that nobody answered.
    pub lost: Vec<u32>,
    /// The longest time between two answers.
    pub longest_gap: Duration,
}

impl Answers {
    /// Packets that were lost in a row, each row from its first to its last.
    #[must_use]
    pub fn rows_lost(&self) -> Vec<(u32, u32)> {
        self.lost.chunk_by(|one, next| one + 1 == *next).map(|row| (row[0], row[row.len() - 1])).collect()
    }
}

/// A ping under way. Dropped, it is killed.
#[derive(Debug)]
pub struct Ping(Running);

impl Ping {
    /// Sends from a node to an address, a packet in each `pace`, and waits until answers come.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn start(from: &Node, to: IpAddr, pace: Duration) -> anyhow::Result<Self> {
        let (to, pace) = (to.to_string(), pace.as_secs_f64().to_string());
        let ping = Self(from.spawn(&["ping", "-n", "-O", "-D", "-i", &pace, &to])?);
        crate::routers::until("answers to ping", crate::routers::DEADLINE, || {
            let said = ping.0.so_far()?;
            ensure!(answers(&said).len() >= FIRST, "{said}");
            Ok(())
        })?;
        Ok(ping)
    }

    /// Sends no more and counts up to the last packet that was answered.
    ///
    /// # Errors
    /// When it does not end in order.
    pub fn finish(self) -> anyhow::Result<Answers> {
        let said = self.0.stop(Signal::SIGINT, END)?.ok()?;
        let answered = answers(&said);
        let (last, _) = answered.last_key_value().context("nobody answered")?;
        let lost = (1..=*last).filter(|number| !answered.contains_key(number)).collect();
        let mut times: Vec<Duration> = answered.values().copied().collect();
        times.sort_unstable();
        let longest_gap = times.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default();
        Ok(Answers { last: *last, lost, longest_gap })
    }
}

/// Numbers of answered packets and the time of the first answer to each:
/// `[1700000000.123456] 64 bytes from 10.1.1.10: icmp_seq=7 ttl=62 time=0.050 ms`.
fn answers(said: &str) -> BTreeMap<u32, Duration> {
    let mut answered = BTreeMap::new();
    for line in said.lines().filter(|line| line.contains("bytes from")) {
        let number = line.split("icmp_seq=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let time = line.strip_prefix('[').and_then(|rest| rest.split_once(']')?.0.parse().ok());
        if let (Some(number), Some(time)) = (number, time) {
            answered.entry(number).or_insert_with(|| Duration::from_secs_f64(time));
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_number_and_time() {
        let said = "\
PING 10.1.1.10 (10.1.1.10) 56(84) bytes of data.
[1700000000.000000] 64 bytes from 10.1.1.10: icmp_seq=1 ttl=62 time=0.050 ms
[1700000000.200000] no answer yet for icmp_seq=2
[1700000000.300000] 64 bytes from 10.1.1.10: icmp_seq=3 ttl=62 time=0.050 ms
[1700000000.350000] 64 bytes from 10.1.1.10: icmp_seq=3 ttl=62 time=50.0 ms (DUP!)
";
        let answered: Vec<(u32, Duration)> = answers(said).into_iter().collect();
        assert_eq!(answered.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 3]);
        let between = answered[1].1.saturating_sub(answered[0].1);
        assert!(between.abs_diff(Duration::from_millis(300)) < Duration::from_millis(1), "{between:?}");
    }

    #[test]
    fn losses_are_told_in_rows() {
        let of = |lost: &[u32]| Answers { last: 9, lost: lost.to_vec(), longest_gap: Duration::ZERO }.rows_lost();
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[2, 3, 4, 7]), [(2, 4), (7, 7)]);
    }
}
