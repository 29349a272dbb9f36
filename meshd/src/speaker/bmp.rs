//! BMP on the wire: one task per monitoring station, which must never hold up who feeds it.
//!
//! ```text
//!  speaker ── Feed::push ──► buffer (bounded, whole messages) ──► task ──► station
//!     ▲                                                            │
//!     └── StationEvent::{Up, Down} (bounded) ◄─────────────────────┘
//! ```
//!
//! The task connects and says who we are; [`StationEvent::Up`] then asks the speaker to tell everything, peers first, in
//! slices of what [`Feed::room`] allows. After that it pushes what happens. Pushing is a copy into memory under a lock that
//! is held as long as a copy takes, and never waits.
//!
//! A station that reads too slowly fills the buffer. Leaving messages out would leave it with a wrong picture and
//! nobody would see it, so its connection is closed instead: counted, logged, and told with [`StationEvent::Down`].
//! The next connection begins from the beginning, after a pause that doubles each time.
//!
//! What is ugly: the closing is a bare one, since the message that would explain it ([`Termination::OutOfResources`]) would
//! have to wait behind what the station does not read.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bgp::bmp::{self, Termination};
use rand::RngExt as _;
use serde::Serialize;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Octets that may wait for a station, unless its settings say otherwise. The task holds as many again while it writes.
pub const BUFFER_OCTETS_MAX: usize = 8 * 1024 * 1024;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a station may take to read what was written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after the first failure; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A connection that lasted this long was no failure.
const PROVEN_AFTER: Duration = Duration::from_secs(60);
/// How long the farewell may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a station is and what it is told first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StationSettings {
    /// Its address.
    pub address: SocketAddr,
    /// The name of this node.
    pub name: String,
    /// What this is, with a version.
    pub description: String,
    /// Octets that may wait for it; [`BUFFER_OCTETS_MAX`] is a good number.
    pub buffer_octets_max: usize,
    /// Pause before the next connection, after the first failure.
    pub pause_min: Duration,
}

impl StationSettings {
    /// With the usual bounds.
    #[must_use]
    pub fn new(address: SocketAddr, name: &str, description: &str) -> Self {
        let (name, description) = (name.to_owned(), description.to_owned());
        Self { address, name, description, buffer_octets_max: BUFFER_OCTETS_MAX, pause_min: PAUSE_MIN }
    }
}

/// A connection to a station, counted from 1. What is pushed names it, so that nothing meant for an earlier one gets into a
/// later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Connection(pub u64);

/// What the speaker has to know about a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StationEvent {
    /// It listens: tell it everything.
    Up(Connection),
    /// It does not any more.
    Down(Connection),
}

/// A station for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StationStatus {
    /// The connection that stands.
    pub connection: Option<Connection>,
    /// Octets written, over all connections.
    pub sent_octets: u64,
    /// Octets that wait now.
    pub waiting_octets: usize,
    /// How often a connection was closed because the station was too slow.
    pub overflows: u64,
    /// Why the last connection ended or was not made.
    pub problem: Option<String>,
}

/// What the speaker and the task share.
struct Shared {
    inner: Mutex<Inner>,
    /// There is something to write, or the connection is to be closed.
    wake: Notify,
    buffer_octets_max: usize,
}

#[derive(Default)]
struct Inner {
    buffer: Vec<u8>,
    overflowed: bool,
    stopping: bool,
    count: u64,
    status: StationStatus,
}

impl Shared {
    /// Nobody panics while holding it; and if, the bytes are whole messages or the connection is closed for being behind.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The speaker's end of a station.
#[derive(Clone)]
pub struct Feed(Arc<Shared>);

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Feed").field(&self.0.lock().status).finish()
    }
}

impl Feed {
    /// Queues the messages that `write` appends. False when that connection is over, also when this made it so.
    pub fn push(&self, connection: Connection, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut inner = self.0.lock();
        if inner.status.connection != Some(connection) {
            return false;
        }
        write(&mut inner.buffer);
        let fits = inner.buffer.len() <= self.0.buffer_octets_max;
        if !fits {
            inner.buffer = Vec::new();
            inner.overflowed = true;
            inner.status.connection = None;
            inner.status.overflows += 1;
        }
        drop(inner);
        self.0.wake.notify_one();
        fits
    }

    /// Ends a connection because the station has missed something; the next one is told everything.
    pub fn close(&self, connection: Connection) {
        let mut inner = self.0.lock();
        if inner.status.connection == Some(connection) {
            inner.buffer = Vec::new();
            inner.overflowed = true;
            inner.status.connection = None;
            inner.status.overflows += 1;
        }
        drop(inner);
        self.0.wake.notify_one();
    }

    /// Octets that [`Self::push`] can take now; 0 when that connection is over.
    #[must_use]
    pub fn room(&self, connection: Connection) -> usize {
        let inner = self.0.lock();
        if inner.status.connection == Some(connection) {
            self.0.buffer_octets_max.saturating_sub(inner.buffer.len())
        } else {
            0
        }
    }

    /// What is known of the station.
    #[must_use]
    pub fn status(&self) -> StationStatus {
        let inner = self.0.lock();
        StationStatus { waiting_octets: inner.buffer.len(), ..inner.status.clone() }
    }
}

/// A station that is fed. Dropped, its connection closes.
#[derive(Debug)]
pub struct Station {
    feed: Feed,
    task: JoinHandle<()>,
}

impl Station {
    /// Starts the task, which connects and goes on trying.
    #[must_use]
    pub fn spawn(settings: StationSettings, events: mpsc::Sender<StationEvent>) -> Self {
        let buffer_octets_max = settings.buffer_octets_max;
        let shared = Shared { inner: Mutex::default(), wake: Notify::new(), buffer_octets_max };
        let feed = Feed(Arc::new(shared));
        let task = tokio::spawn(run(settings, Arc::clone(&feed.0), events));
        Self { feed, task }
    }

    /// The end that the speaker pushes into.
    #[must_use]
    pub fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// Writes what waits and says goodbye, as far as a second allows.
    pub async fn stop(mut self) {
        self.feed.0.lock().stopping = true;
        self.feed.0.wake.notify_one();
        if timeout(STOP_TIMEOUT, &mut self.task).await.is_err() {
            tracing::info!("BMP station did not read its farewell in time");
        }
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a connection ended.
enum End {
    Stopped,
    Overflow,
    Failed(io::Error),
}

async fn run(settings: StationSettings, shared: Arc<Shared>, events: mpsc::Sender<StationEvent>) {
    let mut pause = settings.pause_min;
    let station = settings.address;
    loop {
        let begun = Instant::now();
        let end = match timeout(CONNECT_TIMEOUT, TcpStream::connect(station)).await {
            Ok(Ok(stream)) => serve(&settings, stream, &shared, &events).await,
            Ok(Err(error)) => End::Failed(error),
            Err(_) => End::Failed(io::ErrorKind::TimedOut.into()),
        };
        let problem = match end {
            End::Stopped => return,
            End::Overflow => "it read too slowly, everything will be told anew".to_owned(),
            End::Failed(error) => error.to_string(),
        };
        if begun.elapsed() >= PROVEN_AFTER {
            pause = settings.pause_min;
        }
        // Nodes that lost one station do not come back at one moment.
        let wait = pause.mul_f64(rand::rng().random_range(0.75..1.0));
        tracing::warn!(%station, problem, ?wait, "BMP station is not fed");
        shared.lock().status.problem = Some(problem);
        if stopped_within(&shared, wait).await {
            return;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Waits, and ends early with true when the station is given up.
async fn stopped_within(shared: &Shared, wait: Duration) -> bool {
    let stopping = async {
        while !shared.lock().stopping {
            shared.wake.notified().await;
        }
    };
    tokio::select! {
        () = stopping => true,
        () = sleep(wait) => false,
    }
}

/// Makes a connection known, feeds it, and makes its end known.
async fn serve(
    settings: &StationSettings,
    stream: TcpStream,
    shared: &Shared,
    events: &mpsc::Sender<StationEvent>,
) -> End {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
        return End::Failed(error);
    }
    let connection = {
        let mut inner = shared.lock();
        inner.count += 1;
        inner.overflowed = false;
        inner.buffer.clear();
        bmp::initiation(&mut inner.buffer, &settings.name, &settings.description, &[]);
        let connection = Connection(inner.count);
        inner.status.connection = Some(connection);
        inner.status.problem = None;
        connection
    };
    tracing::info!(station = %settings.address, "BMP station is connected");
    // Whoever is not told any more has ended, and with it this task's reason.
    let known = events.send(StationEvent::Up(connection)).await;
    let end = if known.is_ok() { feed(stream, shared).await } else { End::Stopped };
    {
        let mut inner = shared.lock();
        inner.status.connection = None;
        inner.buffer = Vec::new();
    }
    if events.send(StationEvent::Down(connection)).await.is_err() {
        return End::Stopped;
    }
    end
}

async fn feed(stream: TcpStream, shared: &Shared) -> End {
    let (mut reader, mut writer) = stream.into_split();
    let mut writing = Vec::new();
    let mut ignored = [0; 64];
    loop {
        let (overflowed, stopping) = {
            let mut inner = shared.lock();
            writing.clear();
            std::mem::swap(&mut writing, &mut inner.buffer);
            (inner.overflowed, inner.stopping)
        };
        if overflowed {
            return End::Overflow;
        }
        if stopping {
            bmp::termination(&mut writing, Termination::AdministrativelyClosed, None);
        }
        if writing.is_empty() {
            tokio::select! {
                () = shared.wake.notified() => {}
                // A station has nothing to say; what counts is the end.
                read = reader.read(&mut ignored) => match read {
                    Ok(0) => return End::Failed(io::ErrorKind::ConnectionReset.into()),
                    Ok(_) => {}
                    Err(error) => return End::Failed(error),
                },
            }
            continue;
        }
        let written = tokio::select! {
            written = timeout(WRITE_TIMEOUT, writer.write_all(&writing)) => written,
            () = overflow(shared) => return End::Overflow,
        };
        match written {
            Ok(Ok(())) => shared.lock().status.sent_octets += writing.len() as u64,
            Ok(Err(error)) => return End::Failed(error),
            Err(_) => return End::Failed(io::ErrorKind::TimedOut.into()),
        }
        if stopping {
            // The farewell is written; that the station closes first is none of our concern.
            let _closed = writer.shutdown().await;
            return End::Stopped;
        }
    }
}

/// Ends when the buffer has overflowed. A message that is pushed meanwhile wakes it too, and is found by the next look at
/// the buffer.
async fn overflow(shared: &Shared) {
    while !shared.lock().overflowed {
        shared.wake.notified().await;
    }
}

#[cfg(test)]
mod tests;
