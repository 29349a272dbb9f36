//! When the kernel of a daemon has all routes, or none of them, found out without holding the daemon up.
//!
//! The kernel counts its routes by walking all of them, which takes a processor longer than a daemon with threads can spare. So
//! a few routes of the table are asked for one after the other, each a lookup, and only when all of those are right everything is
//! counted.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tests::bgp::wire::Prefix;

use super::limit::Limit;

/// Routes that are asked for, spread over the table.
const SAMPLE: usize = 1_000;
/// Pause between two looks at the same one.
const LOOK: Duration = Duration::from_millis(2);
/// Octets of an answer that are read; what follows are attributes.
const HEAD: usize = 256;
/// Where the length of the prefix is in an answer: behind the header of netlink and the family.
const LENGTH_AT: usize = 17;

/// The kernel of the thread that made it.
pub(super) struct Fib {
    socket: Socket,
}

impl Fib {
    /// Of the namespace that this thread is in.
    pub(super) fn of_this_thread() -> anyhow::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("failed to open a netlink socket")?;
        socket.bind_auto().context("failed to bind a netlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("failed to connect a netlink socket")?;
        Ok(Self { socket })
    }

    /// Waits until all of these prefixes are there, or none of them; none of them overlap, and the others are `base` in number.
    pub(super) fn wait(&self, limit: Limit, prefixes: &[Prefix], there: bool, base: usize) -> anyhow::Result<()> {
        let step = prefixes.len().div_ceil(SAMPLE).max(1);
        for prefix in prefixes.iter().step_by(step) {
            limit.wait("the FIB", LOOK, || Ok(self.has(*prefix)? == there))?;
        }
        let wanted = if there { base + prefixes.len() } else { base };
        limit.wait("the last routes of the FIB", LOOK, || Ok(len()? == wanted))
    }

    /// Is there a route to exactly this prefix?
    fn has(&self, prefix: Prefix) -> anyhow::Result<bool> {
        let mut request = Vec::with_capacity(36);
        request.extend(36_u32.to_ne_bytes());
        request.extend(libc::RTM_GETROUTE.to_ne_bytes());
        request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
        // Sequence and sender.
        request.extend([0; 8]);
        // One address is looked for; the answer is the route that the kernel found (`RTM_F_FIB_MATCH`).
        request.extend([libc::AF_INET as u8, 32, 0, 0, 0, 0, 0, 0]);
        request.extend(0x2000_u32.to_ne_bytes());
        request.extend(8_u16.to_ne_bytes());
        request.extend(libc::RTA_DST.to_ne_bytes());
        request.extend(prefix.address.to_be_bytes());
        self.socket.send(&request, 0).context("failed to ask for a route")?;
        let mut answer = Vec::with_capacity(HEAD);
        self.socket.recv(&mut answer, 0).context("failed to read a route")?;
        let kind = answer.get(4..6).and_then(|octets| octets.try_into().ok()).map(u16::from_ne_bytes);
        ensure!(
            kind == Some(libc::RTM_NEWROUTE) || kind == Some(libc::NLMSG_ERROR as u16),
            "an answer of the kernel that is none: {answer:?}"
        );
        Ok(kind == Some(libc::RTM_NEWROUTE) && answer.get(LENGTH_AT) == Some(&prefix.length))
    }
}

/// The number of routes in the main table of the calling thread's namespace. While local and main table are one trie, the kernel
/// prints that trie under both names: the first one counts.
pub(super) fn len() -> anyhow::Result<usize> {
    let text = std::fs::read_to_string("/proc/thread-self/net/fib_triestat").context("failed to read fib_triestat")?;
    let count = text.lines().find_map(|line| line.trim().strip_prefix("Prefixes:"));
    Ok(count.context("fib_triestat names no prefixes")?.trim().parse()?)
}
