//! The generator's side of a session: connect, shake hands, write a prepared stream, or read and count.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use socket2::{Domain, Socket, Type};

use super::wire::{self, Prefix};

/// How long a daemon may take to accept a session.
pub const ACCEPT_WITHIN: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(50);
/// A hold time that no daemon goes beyond: they propose less or equal.
pub const HOLD_TIME_S: u16 = 240;
/// Longest wait for octets before the reader looks at its deadline.
const LOOK: Duration = Duration::from_millis(20);
const BUFFER: usize = 1 << 20;

/// One of our speakers.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Its AS.
    pub asn: u32,
    /// Its address, and its identifier.
    pub address: Ipv4Addr,
    /// The daemon's address on the same link.
    pub daemon: Ipv4Addr,
    /// The hold time it proposes.
    pub hold_time_s: u16,
    /// How many octets the kernel may keep for it that it has not read; by default as the system says.
    pub receive_buffer: Option<usize>,
}

/// An established session.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    /// Held while octets are written, so that KEEPALIVEs come between messages.
    writing: Mutex<()>,
}

impl Session {
    /// Reads what is there into `buffer`: how many octets, or none for now.
    ///
    /// # Errors
    /// When the session has ended.
    pub fn receive(&self, buffer: &mut [u8]) -> anyhow::Result<usize> {
        match (&self.stream).read(buffer) {
            Ok(0) => bail!("the daemon closed the session"),
            Ok(count) => Ok(count),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(0),
            Err(error) => Err(error).context("failed to read from the daemon"),
        }
    }

    /// Connects until the daemon is willing.
    ///
    /// # Errors
    /// When it is not within a minute.
    pub fn establish(identity: &Identity) -> anyhow::Result<Self> {
        Self::establish_within(identity, ACCEPT_WITHIN)
    }

    /// The same, for somebody who may wait so long.
    ///
    /// # Errors
    /// When the daemon is not willing by then.
    pub fn establish_within(identity: &Identity, within: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + within;
        loop {
            match Self::try_establish(identity) {
                Ok(session) => return Ok(session),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("no session from {} within {within:?}", identity.address)));
                }
                Err(_) => sleep(RETRY),
            }
        }
    }

    /// Tries it once.
    ///
    /// # Errors
    /// When the daemon does not want it.
    pub fn try_establish(identity: &Identity) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        if let Some(octets) = identity.receive_buffer {
            socket.set_recv_buffer_size(octets)?;
        }
        socket.bind(&SocketAddrV4::new(identity.address, 0).into())?;
        socket.connect(&SocketAddrV4::new(identity.daemon, 179).into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut out = Vec::new();
        wire::open(&mut out, identity.asn, identity.address, identity.hold_time_s);
        stream.write_all(&out)?;
        let mut next = || -> anyhow::Result<u8> {
            let mut header = [0; wire::HEADER];
            stream.read_exact(&mut header)?;
            let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
            let mut body = vec![0; length.checked_sub(wire::HEADER).context("a message without a header")?];
            stream.read_exact(&mut body)?;
            ensure!(header[18] != wire::NOTIFICATION, "the daemon refuses: NOTIFICATION {body:?}");
            Ok(header[18])
        };
        ensure!(next()? == wire::OPEN, "no OPEN");
        let mut keepalive = Vec::new();
        wire::keepalive(&mut keepalive);
        (&stream).write_all(&keepalive)?;
        let mut header = [0; wire::HEADER];
        (&stream).read_exact(&mut header)?;
        ensure!(header[18] == wire::KEEPALIVE, "no KEEPALIVE but type {}", header[18]);
        stream.set_read_timeout(Some(LOOK))?;
        Ok(Self { stream, writing: Mutex::new(()) })
    }

    /// Writes whole messages.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn send(&self, messages: &[u8]) -> anyhow::Result<()> {
        let _turn = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (&self.stream).write_all(messages).context("failed to send")
    }

    /// Writes a KEEPALIVE, unless a stream is being written: that says as much.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn keep_alive(&self) -> anyhow::Result<()> {
        let Ok(_turn) = self.writing.try_lock() else { return Ok(()) };
        let mut message = Vec::new();
        wire::keepalive(&mut message);
        (&self.stream).write_all(&message).context("failed to send a KEEPALIVE")
    }

    /// Ends the connection without a word.
    ///
    /// # Errors
    /// When it has ended.
    pub fn close(&self) -> anyhow::Result<()> {
        self.stream.shutdown(Shutdown::Both).context("failed to close a session")
    }

    /// Reads and drops what comes, until the flag or the end of the session.
    ///
    /// # Errors
    /// When the session ends in another way than by being closed.
    pub fn drain(&self, done: &AtomicBool) -> anyhow::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        while !done.load(Ordering::Relaxed) {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error).context("failed to read"),
            }
        }
        Ok(())
    }
}

/// Numbers the prefixes of a table, and remembers when each was last sent.
#[derive(Debug)]
pub struct Index {
    slots: Vec<(u64, u32)>,
    shift: u32,
    /// Microseconds since the beginning, by number; 0 when the change has arrived.
    pub sent_us: Vec<AtomicU64>,
}

impl Index {
    /// Numbers in the order of the prefixes.
    pub fn new(prefixes: impl Iterator<Item = Prefix>) -> Self {
        let prefixes: Vec<Prefix> = prefixes.collect();
        let size = (prefixes.len() * 2).next_power_of_two();
        let mut index = Self {
            slots: vec![(0, 0); size],
            shift: 64 - size.trailing_zeros(),
            sent_us: prefixes.iter().map(|_| AtomicU64::new(0)).collect(),
        };
        for (number, prefix) in prefixes.iter().enumerate() {
            let slot = index.slot(prefix.key());
            index.slots[slot] = (prefix.key(), number as u32);
        }
        index
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sent_us.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.sent_us.is_empty()
    }

    /// The number of a prefix.
    pub fn number(&self, prefix: Prefix) -> Option<usize> {
        let (key, number) = self.slots[self.slot(prefix.key())];
        (key != 0).then_some(number as usize)
    }

    /// Where the key is, or would be.
    fn slot(&self, key: u64) -> usize {
        let mut slot = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        while self.slots[slot].0 != 0 && self.slots[slot].0 != key {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        slot
    }
}

/// What a sink has seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// UPDATE messages.
    pub updates: u64,
    /// Prefixes in them that were announced.
    pub announced: u64,
    /// Prefixes in them that were withdrawn.
    pub withdrawn: u64,
    /// Distinct prefixes it holds.
    pub held: usize,
    /// When the last UPDATE came.
    pub last: Option<Instant>,
}

/// The reading end of a session.
#[derive(Debug)]
pub struct Sink<'a> {
    session: &'a Session,
    index: &'a Index,
    buffer: Vec<u8>,
    filled: usize,
    held: Vec<bool>,
    /// What came so far.
    pub seen: Seen,
    /// Microseconds from sending a change to seeing it, of the changes that were timed.
    pub delays_us: Vec<u64>,
    epoch: Instant,
}

impl<'a> Sink<'a> {
    /// A sink for what a session brings of these prefixes; times count from `epoch`.
    pub fn new(session: &'a Session, index: &'a Index, epoch: Instant) -> Self {
        Self {
            session,
            index,
            buffer: vec![0; BUFFER],
            filled: 0,
            held: vec![false; index.len()],
            seen: Seen::default(),
            delays_us: Vec::new(),
            epoch,
        }
    }

    /// Reads until `done`.
    ///
    /// # Errors
    /// At the deadline, at the end of the session, and for what nobody has sent.
    pub fn read_until(&mut self, what: &str, within: Duration, done: impl Fn(&Seen) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        while !done(&self.seen) {
            if Instant::now() >= deadline {
                bail!("waited {within:?} for {what}: {:?}", self.seen);
            }
            self.filled += self.session.receive(&mut self.buffer[self.filled..])?;
            self.take()?;
        }
        Ok(())
    }

    /// Takes the whole messages out of the buffer.
    fn take(&mut self) -> anyhow::Result<()> {
        let Self { index, buffer, filled, held, seen, delays_us, epoch, .. } = self;
        let mut rest = &buffer[..*filled];
        let now = Instant::now();
        let now_us = now.duration_since(*epoch).as_micros() as u64;
        while let Some((kind, body, behind)) = wire::split(rest)? {
            rest = behind;
            match kind {
                wire::UPDATE => {
                    seen.updates += 1;
                    seen.last = Some(now);
                    wire::update(body, |prefix, announced| {
                        let number = index.number(prefix).with_context(|| format!("nobody sent {prefix:?}"))?;
                        if announced {
                            seen.announced += 1;
                            seen.held += usize::from(!held[number]);
                        } else {
                            seen.withdrawn += 1;
                            seen.held -= usize::from(held[number]);
                        }
                        held[number] = announced;
                        let sent_us = index.sent_us[number].load(Ordering::Relaxed);
                        if sent_us != 0 {
                            index.sent_us[number].store(0, Ordering::Relaxed);
                            delays_us.push(now_us.saturating_sub(sent_us));
                        }
                        Ok(())
                    })?;
                }
                wire::NOTIFICATION => bail!("the daemon ends the session: NOTIFICATION {body:?}"),
                _ => {}
            }
        }
        let left = rest.len();
        let start = *filled - left;
        buffer.copy_within(start..*filled, 0);
        *filled = left;
        Ok(())
    }
}
