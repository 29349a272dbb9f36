//! Packets that are counted: numbered datagrams from one node to another, for as long as a test does something to the routers
//! between them.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use lab::Node;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

/// Time between two datagrams.
const PACE: Duration = Duration::from_millis(2);
/// Octets that may wait in the receiving socket: a receiver that has to wait for its turn must not look like a loss.
const RECEIVE_BUFFER: usize = 8 << 20;
/// How long datagrams that are under way may take when no more are sent.
const LATE: Duration = Duration::from_secs(2);
/// How often the receiver looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// What became of the datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Different ones of them that arrived.
    pub received: u64,
    /// The longest time in which none arrived.
    pub longest_gap: Duration,
}

impl Counted {
    /// Datagrams that did not arrive.
    pub const fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// A stream under way.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Duration>,
}

impl Traffic {
    /// Sends from one node to an address of another one, and waits for the first datagram to arrive.
    pub fn start(from: &Node, to: &Node, address: IpAddr) -> anyhow::Result<Self> {
        let any = SocketAddr::new(if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() }, 0);
        let source = from.within(|| UdpSocket::bind(any))?.context("no socket to send from")?;
        let sink = to.within(|| UdpSocket::bind(SocketAddr::new(address, 0)))?.context("no socket to receive by")?;
        setsockopt(&sink, RcvBufForce, &RECEIVE_BUFFER).context("no room to receive")?;
        sink.set_read_timeout(Some(LOOK))?;
        let target = sink.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let sender = {
            let (stop, sent) = (stop.clone(), sent.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    // What the own kernel refuses is lost like everything else that does not arrive.
                    let _taken = source.send_to(&number.to_be_bytes(), target);
                    sleep(PACE);
                }
            })
        };
        let receiver = {
            let (stop, sent, received) = (stop.clone(), sent.clone(), received.clone());
            thread::spawn(move || receive(&sink, &stop, &sent, &received))
        };
        let traffic = Self { stop, sent, received, sender, receiver };
        crate::routers::until("the first datagram", crate::routers::DEADLINE, || {
            anyhow::ensure!(traffic.received.load(Ordering::Relaxed) > 0, "none has arrived");
            Ok(())
        })?;
        Ok(traffic)
    }

    /// Datagrams that were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends no more, waits for what is under way, and counts.
    pub fn finish(self) -> anyhow::Result<Counted> {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let longest_gap = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))?;
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        Ok(Counted { sent, received, longest_gap })
    }
}

/// Counts until all has arrived that was sent, or what is missing is too late. Returns the longest gap.
fn receive(sink: &UdpSocket, stop: &AtomicBool, sent: &AtomicU64, received: &AtomicU64) -> Duration {
    let mut seen = Vec::new();
    let mut last: Option<Instant> = None;
    let (mut longest, mut stopped) = (Duration::ZERO, None);
    let mut octets = [0; 8];
    loop {
        if sink.recv(&mut octets).is_ok_and(|length| length == octets.len()) {
            let number = usize::try_from(u64::from_be_bytes(octets)).unwrap_or(usize::MAX);
            if number >= seen.len() && u64::try_from(number).is_ok_and(|number| number < sent.load(Ordering::Relaxed)) {
                seen.resize(number + 1, false);
            }
            if let Some(slot) = seen.get_mut(number)
                && !std::mem::replace(slot, true)
            {
                received.fetch_add(1, Ordering::Relaxed);
            }
            let now = Instant::now();
            longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
            last = Some(now);
        }
        if stop.load(Ordering::Relaxed) {
            let since = *stopped.get_or_insert_with(Instant::now);
            let all = received.load(Ordering::Relaxed) == sent.load(Ordering::Relaxed);
            // The sender may be about to send one more.
            if (all && since.elapsed() > LOOK) || since.elapsed() > LATE {
                return longest;
            }
        }
    }
}
