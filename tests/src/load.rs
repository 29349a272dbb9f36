//! Load on services: clients of the web with connections that stay open, a stream without a pause, and clients that come and go, for as
//! long as a test does something to the nodes that carry them.
//!
//! Everything runs in one thread of its own, so that a thousand connections cost no thousand threads. Sockets are made
//! inside of the nodes they belong to and stay there.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use lab::Node;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Port that answers requests.
pub const HTTP_PORT: u16 = 80;
/// Port that takes a stream.
pub const STREAM_PORT: u16 = 5201;

/// How long an answer may take before its connection counts as broken.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two requests over the same connection.
const THINKING: Duration = Duration::from_millis(300);
/// Time between two clients that come and go.
const COMING: Duration = Duration::from_millis(5);
/// Octets that a stream writes at once, and the pause after them: no faster than the machine can do besides everything else.
const PIECE_LEN: usize = 32 << 10;
const PAUSE: Duration = Duration::from_millis(1);
/// Longest line of the head of a request or an answer.
const LINE_LEN_MAX: u64 = 256;

/// What a load has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Connections that were open all the time.
    pub open: usize,
    /// Requests that were answered over them.
    pub answered: u64,
    /// The longest that one of them waited for an answer.
    pub slowest: Duration,
    /// Octets that arrived over streams.
    pub streamed: u64,
    /// The longest time in which nothing arrived over one.
    pub longest_pause: Duration,
    /// Connections that were opened, asked once and closed.
    pub passing: u64,
    /// The longest that one of those took.
    pub slowest_passing: Duration,
}

/// Servers in nodes, and the clients that use them.
#[derive(Debug)]
pub struct Load {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    /// Clients with an open connection, each with the number of its answers.
    open: Vec<Running>,
    streams: Vec<Running>,
    passing: Vec<Running>,
    received: Arc<Received>,
}

/// What arrived over streams.
#[derive(Debug, Default)]
struct Received {
    octets: AtomicU64,
    longest_pause_us: AtomicU64,
}

/// A client: how far it is, and what ends with the longest that it had to wait.
type Running = (Arc<AtomicU64>, JoinHandle<anyhow::Result<Duration>>);

impl Load {
    /// Nothing yet.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let stop = Arc::default();
        Ok(Self { runtime, stop, open: Vec::new(), streams: Vec::new(), passing: Vec::new(), received: Arc::default() })
    }

    /// Starts a server that answers requests with its address, and one that takes streams.
    ///
    /// # Errors
    /// When somebody listens there already.
    pub fn serve(&self, node: &Node, address: IpAddr) -> anyhow::Result<()> {
        let listen = |port| node.within(|| std::net::TcpListener::bind((address, port)));
        let [http, stream] = [listen(HTTP_PORT)??, listen(STREAM_PORT)??];
        for listener in [&http, &stream] {
            listener.set_nonblocking(true)?;
        }
        let _context = self.runtime.enter();
        let [http, stream] = [TcpListener::from_std(http)?, TcpListener::from_std(stream)?];
        self.runtime.spawn(async move {
            while let Ok((client, _)) = http.accept().await {
                // A client that goes away has what it wanted; one that did not get it says so itself.
                tokio::spawn(async move { drop(answer(client, address).await) });
            }
        });
        let received = self.received.clone();
        self.runtime.spawn(async move {
            while let Ok((client, _)) = stream.accept().await {
                let received = received.clone();
                tokio::spawn(async move { drop(swallow(client, &received).await) });
            }
        });
        Ok(())
    }

    /// Opens connections that stay open, and asks over each of them again and again.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub fn open(&mut self, from: &Node, to: SocketAddr, count: usize) -> anyhow::Result<()> {
        let connect = || -> std::io::Result<Vec<std::net::TcpStream>> {
            (0..count).map(|_| std::net::TcpStream::connect_timeout(&to, PATIENCE)).collect()
        };
        let streams = from.within(connect)?.with_context(|| format!("{} opens {count} connections", from.name()))?;
        let _context = self.runtime.enter();
        for (number, stream) in streams.into_iter().enumerate() {
            let client = Client::new(stream)?;
            let (stop, answers) = (self.stop.clone(), Arc::new(AtomicU64::new(0)));
            let name = format!("connection {number} of {} to {to}", from.name());
            // Spread over the time between two requests.
            let begin = THINKING * u32::try_from(number % 100)? / 100;
            let task = keep_asking(client, begin, stop, answers.clone());
            let task = self.runtime.spawn(async move { task.await.context(name) });
            self.open.push((answers, task));
        }
        Ok(())
    }

    /// Opens a connection over which octets flow.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn stream(&mut self, from: &Node, to: SocketAddr) -> anyhow::Result<()> {
        let stream = from.within(|| std::net::TcpStream::connect_timeout(&to, PATIENCE))??;
        stream.set_nonblocking(true)?;
        let _context = self.runtime.enter();
        let stream = TcpStream::from_std(stream)?;
        let (stop, sent) = (self.stop.clone(), Arc::new(AtomicU64::new(0)));
        let task = pour(stream, stop, sent.clone());
        let name = format!("the stream of {} to {to}", from.name());
        let task = self.runtime.spawn(async move { task.await.context(name).map(|()| Duration::ZERO) });
        self.streams.push((sent, task));
        Ok(())
    }

    /// Starts a client that opens a connection, asks once, closes it, and begins again.
    pub fn come_and_go(&mut self, from: &Node, to: SocketAddr) {
        let (from, stop, count) = (from.clone(), self.stop.clone(), Arc::new(AtomicU64::new(0)));
        let task = {
            let count = count.clone();
            self.runtime.spawn_blocking(move || pass(&from, to, &stop, &count))
        };
        self.passing.push((count, task));
    }

    /// Waits until everybody has got on by this many answers, and streams by as many megabytes.
    ///
    /// # Errors
    /// When that takes too long, with the reason of the first client that ended.
    pub fn wait_progress(&mut self, steps: u64) -> anyhow::Result<()> {
        let others = || self.open.iter().chain(&self.passing);
        let counts =
            |of: &[&Arc<AtomicU64>]| -> Vec<u64> { of.iter().map(|count| count.load(Ordering::Relaxed)).collect() };
        let clients: Vec<&Arc<AtomicU64>> = others().map(|(count, _)| count).collect();
        let before = counts(&clients);
        let received = self.received.octets.load(Ordering::Relaxed);
        let target = if self.streams.is_empty() { received } else { received + (steps << 20) };
        let deadline = Instant::now() + 4 * PATIENCE;
        let is_over = || {
            let clients_done = counts(&clients).iter().zip(&before).all(|(now, before)| *now >= before + steps);
            clients_done && self.received.octets.load(Ordering::Relaxed) >= target
        };
        while !is_over() {
            let ended = others().chain(&self.streams).any(|(_, task)| task.is_finished());
            if ended || Instant::now() > deadline {
                return Err(self.reason());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Why there is no progress.
    fn reason(&mut self) -> anyhow::Error {
        let mut all: Vec<_> = self.open.drain(..).chain(self.passing.drain(..)).chain(self.streams.drain(..)).collect();
        let ended: Vec<_> = all.extract_if(.., |(_, task)| task.is_finished()).collect();
        let count = ended.len();
        for (_, task) in ended {
            if let Ok(Err(error)) = self.runtime.block_on(task) {
                return error.context(format!("{count} clients have ended"));
            }
        }
        anyhow!("somebody waits for more than {:?}", 4 * PATIENCE)
    }

    /// Ends everything in order, and says what was seen.
    ///
    /// # Errors
    /// The first connection that broke, and how many did.
    pub fn finish(mut self) -> anyhow::Result<Figures> {
        self.stop.store(true, Ordering::Relaxed);
        let mut figures = Figures { open: self.open.len(), ..Figures::default() };
        let mut broken = Vec::new();
        let mut end = |tasks: Vec<Running>| {
            let (mut count, mut longest) = (0, Duration::ZERO);
            for (counter, task) in tasks {
                match self.runtime.block_on(task).map_err(anyhow::Error::from).flatten() {
                    Ok(slowest) => longest = longest.max(slowest),
                    Err(error) => broken.push(error),
                }
                count += counter.load(Ordering::Relaxed);
            }
            (count, longest)
        };
        (figures.answered, figures.slowest) = end(std::mem::take(&mut self.open));
        (figures.passing, figures.slowest_passing) = end(std::mem::take(&mut self.passing));
        let (sent, _) = end(std::mem::take(&mut self.streams));
        figures.longest_pause = Duration::from_micros(self.received.longest_pause_us.load(Ordering::Relaxed));
        figures.streamed = self.received.octets.load(Ordering::Relaxed);
        // The servers' ports are free after it.
        self.runtime.shutdown_timeout(PATIENCE);
        let count = broken.len();
        if let Some(first) = broken.into_iter().next() {
            return Err(first.context(format!("{count} connections broke")));
        }
        ensure!(sent == figures.streamed, "{sent} octets were sent over streams and {} arrived", figures.streamed);
        Ok(figures)
    }
}

/// A connection over which one asks.
struct Client {
    stream: BufStream<TcpStream>,
    /// Who answered first.
    server: Option<String>,
}

impl Client {
    /// Must be called where the runtime is known.
    fn new(stream: std::net::TcpStream) -> anyhow::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: BufStream::new(TcpStream::from_std(stream)?), server: None })
    }

    /// Asks once; returns how long the answer took.
    async fn ask(&mut self, number: u64) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        let request = format!("GET /{number} HTTP/1.1\r\nHost: webpod\r\n\r\n");
        let answer = async {
            self.stream.write_all(request.as_bytes()).await?;
            self.stream.flush().await?;
            let head = head(&mut self.stream).await?.context("the server closed the connection")?;
            ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "no answer: {head:?}");
            let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
            let mut body = vec![0; length.context("an answer without a length")?];
            self.stream.read_exact(&mut body).await?;
            Ok(String::from_utf8(body)?)
        };
        let asked = |error: anyhow::Error| error.context(format!("request {number}"));
        let body = match timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(asked)?,
            Err(_) => bail!("request {number}: no answer within {PATIENCE:?}"),
        };
        let (server, answered) = body.split_once(' ').context("an answer of two words")?;
        ensure!(answered == format!("/{number}"), "request {number} was answered with {body:?}");
        let first = self.server.get_or_insert_with(|| server.to_owned());
        ensure!(first == server, "request {number} was answered by {server} and not by {first}");
        Ok(begin.elapsed())
    }
}

async fn keep_asking(
    mut client: Client,
    begin: Duration,
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
) -> anyhow::Result<Duration> {
    let mut slowest = Duration::ZERO;
    sleep(begin).await;
    while !stop.load(Ordering::Relaxed) {
        let number = answers.load(Ordering::Relaxed);
        slowest = slowest.max(client.ask(number).await?);
        answers.store(number + 1, Ordering::Relaxed);
        sleep(THINKING).await;
    }
    Ok(slowest)
}

async fn pour(mut stream: TcpStream, stop: Arc<AtomicBool>, sent: Arc<AtomicU64>) -> anyhow::Result<()> {
    let piece = vec![7; PIECE_LEN];
    while !stop.load(Ordering::Relaxed) {
        timeout(PATIENCE, stream.write_all(&piece))
            .await
            .with_context(|| format!("nobody took it for {PATIENCE:?}"))??;
        sent.fetch_add(PIECE_LEN as u64, Ordering::Relaxed);
        sleep(PAUSE).await;
    }
    // The other end closes when it has everything.
    stream.shutdown().await?;
    let rest = timeout(PATIENCE, stream.read(&mut [0])).await.context("the stream has no end")??;
    ensure!(rest == 0, "a stream was answered");
    Ok(())
}

/// Returns how long the slowest of the clients took.
fn pass(from: &Node, to: SocketAddr, stop: &AtomicBool, count: &AtomicU64) -> anyhow::Result<Duration> {
    let runtime = tokio::runtime::Handle::current();
    let mut slowest = Duration::ZERO;
    from.within(|| {
        while !stop.load(Ordering::Relaxed) {
            let number = count.load(Ordering::Relaxed);
            let begin = Instant::now();
            let stream = std::net::TcpStream::connect_timeout(&to, PATIENCE)
                .with_context(|| format!("passing connection {number} of {} to {to}", from.name()))?;
            let _context = runtime.enter();
            let mut client = Client::new(stream)?;
            runtime.block_on(client.ask(number)).with_context(|| format!("passing connection of {}", from.name()))?;
            slowest = slowest.max(begin.elapsed());
            count.store(number + 1, Ordering::Relaxed);
            std::thread::sleep(COMING);
        }
        anyhow::Ok(())
    })??;
    Ok(slowest)
}

/// Answers requests with the own address and what was asked for.
async fn answer(client: TcpStream, own: IpAddr) -> anyhow::Result<()> {
    let mut client = BufStream::new(client);
    while let Some(head) = head(&mut client).await? {
        let asked = head.split(' ').nth(1).context("a request names something")?;
        let body = format!("{own} {asked}");
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        client.write_all(answer.as_bytes()).await?;
        client.flush().await?;
    }
    Ok(())
}

async fn swallow(mut client: TcpStream, received: &Received) -> anyhow::Result<()> {
    let mut buffer = vec![0; PIECE_LEN];
    let mut last = Instant::now();
    loop {
        let length = client.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        received.octets.fetch_add(length as u64, Ordering::Relaxed);
        received.longest_pause_us.fetch_max(last.elapsed().as_micros() as u64, Ordering::Relaxed);
        last = Instant::now();
    }
}

/// Reads up to the empty line that ends a head; `None` when the other end has closed before the first octet.
async fn head(stream: &mut BufStream<TcpStream>) -> anyhow::Result<Option<String>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.take(LINE_LEN_MAX).read_line(&mut head).await? == 0 {
            ensure!(head.is_empty(), "a head that ends within: {head:?}");
            return Ok(None);
        }
    }
    Ok(Some(head))
}
