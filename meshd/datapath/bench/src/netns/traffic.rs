//! Who talks: a client and a server on one processor, ahead of everything else that wants to run there.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::place::{Namespace, Place};

/// How long a way is measured in a round, for each of the two figures.
const ROUND: Duration = Duration::from_millis(40);
/// A connection that takes longer has lost a packet.
const PATIENCE: Duration = Duration::from_secs(3);
/// What the server greets with, and what makes it go home.
const GREETING: u8 = b'.';
const GOODBYE: u8 = b'!';
/// Port of the server.
pub(super) const PORT: u16 = 8_080;
/// Priority of both among what runs before everything else.
const PRIORITY: i32 = 50;

/// What was measured in a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// Connections a second: opened, an octet from the server, reset.
    pub(super) connects: f64,
    /// Octets there and back a second, on one connection.
    pub(super) round_trips: f64,
}

/// A server that runs, and where clients are.
pub(super) struct Talk {
    client: Namespace,
    back: Namespace,
    server: JoinHandle<anyhow::Result<()>>,
}

impl Talk {
    /// Starts the server.
    pub(super) fn new(place: &Place) -> anyhow::Result<Self> {
        let namespace = place.server.again()?;
        let server = thread::spawn(move || {
            namespace.enter()?;
            let listener = TcpListener::bind(("0.0.0.0", PORT)).context("failed to listen")?;
            come_first()?;
            serve(&listener)
        });
        Ok(Self { client: place.client.again()?, back: place.routers[0].again()?, server })
    }

    /// A round of a way whose clients ask for this address.
    pub(super) fn measure(&self, target: SocketAddr) -> anyhow::Result<Rates> {
        let outcome = thread::scope(|scope| {
            let client = scope.spawn(|| {
                self.client.enter()?;
                come_first()?;
                patiently(target)?;
                Ok::<_, anyhow::Error>(Rates { connects: connects(target)?, round_trips: round_trips(target)? })
            });
            client.join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Ends the server.
    pub(super) fn end(self) -> anyhow::Result<()> {
        self.client.enter()?;
        let mut stream = open(SocketAddr::from(([10, 65, 0, 2], PORT)))?;
        stream.write_all(&[GOODBYE])?;
        self.back.enter()?;
        self.server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Keeps the thread on the last processor, before all that shares time there.
fn come_first() -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(thread::available_parallelism()?.get() - 1)?;
    // A thread that is on the processor already sees only that one.
    if sched_setaffinity(Pid::from_raw(0), &cpus).is_err() {
        return Ok(());
    }
    let priority = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the structure is the one the kernel asks for, and 0 is the calling thread.
    let answer = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    ensure!(answer == 0, "failed to come first: {}", io::Error::last_os_error());
    Ok(())
}

fn serve(listener: &TcpListener) -> anyhow::Result<()> {
    loop {
        // One that was reset before it was taken is none.
        let Ok((mut stream, _)) = listener.accept() else { continue };
        stream.set_nodelay(true)?;
        if stream.write_all(&[GREETING]).is_err() {
            continue;
        }
        let mut octet = [0];
        while matches!(stream.read(&mut octet), Ok(1)) {
            if octet[0] == GOODBYE {
                return Ok(());
            }
            if stream.write_all(&octet).is_err() {
                break;
            }
        }
    }
}

fn open(target: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Connections of a way that was just made.
fn patiently(target: SocketAddr) -> anyhow::Result<()> {
    for _ in 0..20 {
        reset(open(target)?)?;
    }
    Ok(())
}

/// Ends a connection at once: nothing of it is left at either end.
fn reset(stream: TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the structure is the one the kernel asks for, and as long as it is told.
    let answer = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn connects(target: SocketAddr) -> io::Result<f64> {
    let (begin, mut count) = (Instant::now(), 0u32);
    while begin.elapsed() < ROUND {
        let mut stream = TcpStream::connect(target)?;
        stream.read_exact(&mut [0])?;
        reset(stream)?;
        count += 1;
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

fn round_trips(target: SocketAddr) -> io::Result<f64> {
    let mut stream = open(target)?;
    stream.set_nodelay(true)?;
    let (begin, mut count) = (Instant::now(), 0u32);
    let mut octet = [b'a'];
    while begin.elapsed() < ROUND {
        stream.write_all(&octet)?;
        stream.read_exact(&mut octet)?;
        count += 1;
    }
    let rate = f64::from(count) / begin.elapsed().as_secs_f64();
    reset(stream)?;
    Ok(rate)
}
