//! The thread that listens: what happens to our routes and nexthop objects, in the kernel's order.
//!
//! Subscribe, dump, follow. The event socket is subscribed before the first dump and only carries what concerns us
//! (`filter`), dumps use a socket of their own. A new dump is made
//!
//! - after a bulk write of our own ([`BULK_ACTIONS`]): a notification a route would compete with the writer for the
//!   processor and tell what one dump tells in a fraction of the time, so the groups are left meanwhile (a filter that
//!   lets nothing in would still cost the writer a copy of each notification);
//! - when the event socket overflowed (`ENOBUFS`);
//! - a moment after a link changed or an address vanished, because the kernel removes IPv4 routes over them silently, and
//!   after somebody else deleted a nexthop object, which takes its IPv4 routes with it silently;
//! - when somebody asks, and every few minutes anyway (I6).
//!
//! Notifications that arrive while a dump is read are told after it. They may repeat what the dump said already; every
//! change states a whole row, so that does no harm.

use std::{
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use meshd_core::{id::Metric, plan::ActualChange};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::sync::mpsc;

use super::{
    Shared, decode, encode,
    filter::Filter,
    links::LinkStates,
    socket::{DumpError, Frame, RECEIVE_LEN, RouteSocket, dump, frames},
    wire::*,
};
use crate::kernel::{EVENT_BATCH_LEN, KernelError};

/// A full dump at least this often, for whatever no notification told.
pub const DUMP_PERIOD: Duration = Duration::from_secs(300);
/// Receive buffer of the event socket; a notification takes about 1 KiB of kernel memory.
pub const EVENT_BUFFER: usize = 16 * 1024 * 1024;
/// How long changes of links and addresses are collected before the dump they call for.
const LINK_DEBOUNCE: Duration = Duration::from_millis(10);
/// After a dump that took `t`, the next one waits at least `t` times this: dumps never take more than a part of the time.
const DUMP_REST: u32 = 4;
/// This many actions waiting at the writer make a bulk write: nothing is followed until they are done.
pub const BULK_ACTIONS: usize = 8_192;
/// How long an overflow or a bulk write waits for the writer to become idle; after that a dump is made in the middle.
const CALM_MAX: Duration = Duration::from_secs(10);
/// How often the writer is looked at meanwhile.
const CALM_STEP: Duration = Duration::from_millis(2);
/// The writer must be idle for this many looks: the next round of a bulk write comes within them.
const CALM_LOOKS: u32 = 2;
/// Dumps that the kernel says were overtaken by changes are repeated this often before one is taken as it is.
const INTERRUPTED_MAX: u32 = 5;
/// Pause after a dump failed.
const RETRY: Duration = Duration::from_millis(500);

/// Why a dump did not come to its end.
#[derive(Debug)]
enum Broken {
    /// Nobody listens any more.
    Closed,
    /// The table changed under the dump.
    Interrupted,
    /// The kernel refused or the socket failed.
    Failed(Errno),
}

impl From<DumpError> for Broken {
    fn from(error: DumpError) -> Self {
        match error {
            DumpError::Interrupted => Self::Interrupted,
            DumpError::Failed(errno) => Self::Failed(errno),
        }
    }
}

/// What the event socket hears: our objects, and what makes the kernel remove routes silently.
const GROUPS: [u32; 6] =
    [RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, RTNLGRP_NEXTHOP, RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];

/// Owner of the event socket.
pub(super) struct Events {
    socket: RouteSocket,
    /// The groups have been left for a moment.
    closed: bool,
    writer_port: u32,
    out: mpsc::Sender<Vec<ActualChange>>,
    batch: Vec<ActualChange>,
    buffer: Vec<u8>,
    seq: u32,
    links: LinkStates,
    /// When to dump next.
    dump_at: Instant,
    last_dump: (Instant, Duration),
}

impl Events {
    /// Opens and subscribes in the calling thread's namespace.
    pub(super) fn open(
        metrics: [Metric; 2],
        writer_port: u32,
        receive_buffer: usize,
        out: mpsc::Sender<Vec<ActualChange>>,
    ) -> Result<Self, KernelError> {
        let socket = RouteSocket::open_for_events(&GROUPS, &Filter::own(metrics[0], metrics[1]), receive_buffer)?;
        let now = Instant::now();
        Ok(Self {
            socket,
            closed: false,
            writer_port,
            out,
            batch: Vec::new(),
            buffer: vec![0; RECEIVE_LEN],
            seq: 0,
            links: LinkStates::default(),
            dump_at: now,
            last_dump: (now, Duration::ZERO),
        })
    }

    /// Works until the handle or the receiver is dropped.
    pub(super) fn run(mut self, shared: &Shared) {
        while !shared.stopped() && !self.out.is_closed() {
            if Instant::now() >= self.dump_at {
                match self.dump_until_clean(shared) {
                    Ok(()) => {}
                    Err(Broken::Closed) => return,
                    Err(Broken::Interrupted) => self.dump_at = Instant::now() + RETRY,
                    Err(Broken::Failed(errno)) => {
                        tracing::warn!(%errno, "dump of our routes failed, trying again");
                        self.dump_at = Instant::now() + RETRY;
                    }
                }
                continue;
            }
            if let Err(errno) = self.wait(shared) {
                tracing::error!(%errno, "waiting for kernel events failed");
                thread::sleep(RETRY);
            }
            if shared.take_dump_request() {
                self.dump_soon(Duration::ZERO);
            }
            if shared.unanswered() >= BULK_ACTIONS {
                self.sit_out(shared);
                continue;
            }
            match self.follow(shared) {
                Ok(()) => {}
                Err(Broken::Closed) => return,
                Err(Broken::Interrupted | Broken::Failed(_)) => {
                    tracing::debug!("kernel events overflowed, dumping again");
                    self.recover(shared);
                }
            }
        }
    }

    /// Sleeps until there is an event, a request or a dump to make.
    fn wait(&self, shared: &Shared) -> Result<(), Errno> {
        let timeout = self.dump_at.saturating_duration_since(Instant::now());
        // Rounded up: a wait that is too short would spin.
        let timeout = PollTimeout::try_from(timeout + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds =
            [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        if fds[1].any().unwrap_or(false) {
            shared.wake.read()?;
        }
        Ok(())
    }

    /// Reads what has arrived, or stops at the beginning of a bulk write.
    fn follow(&mut self, shared: &Shared) -> Result<(), Broken> {
        loop {
            if shared.unanswered() >= BULK_ACTIONS {
                return Ok(());
            }
            let length = match self.socket.try_receive(&mut self.buffer) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return self.emit(),
                Err(errno) => return Err(Broken::Failed(errno)),
            };
            let buffer = std::mem::take(&mut self.buffer);
            for frame in frames(&buffer[..length]) {
                self.take(&frame);
            }
            self.buffer = buffer;
            if self.batch.len() >= EVENT_BATCH_LEN {
                self.emit()?;
            }
        }
    }

    fn take(&mut self, frame: &Frame<'_>) {
        match frame.kind {
            RTM_NEWLINK | RTM_DELLINK => self.take_link(frame),
            RTM_DELADDR => self.dump_soon(LINK_DEBOUNCE),
            _ => {
                let Some(change) = decode::change(frame) else { return };
                let deleted = matches!(change, ActualChange::Nexthop(_, None));
                if deleted && frame.port != self.writer_port {
                    self.dump_soon(LINK_DEBOUNCE);
                }
                self.batch.push(change);
            }
        }
    }

    fn take_link(&mut self, frame: &Frame<'_>) {
        if self.links.observe(frame) {
            self.dump_soon(LINK_DEBOUNCE);
        }
    }

    /// Moves the next dump forward, as far as the rest after the last one allows.
    fn dump_soon(&mut self, delay: Duration) {
        let (ended, took) = self.last_dump;
        let at = (Instant::now() + delay).max(ended + took * DUMP_REST);
        self.dump_at = self.dump_at.min(at);
    }

    /// During a bulk write: lets nothing in, waits for its end and dumps.
    fn sit_out(&mut self, shared: &Shared) {
        self.closed = true;
        if let Err(error) = self.socket.leave(&GROUPS) {
            tracing::warn!(%error, "the events of a bulk write fill the queue");
        }
        self.recover(shared);
    }

    /// Lets events in again.
    fn reopen(&mut self) -> Result<(), Broken> {
        if self.closed {
            self.socket.join(&GROUPS).map_err(|error| {
                tracing::warn!(%error, "no events of our routes");
                Broken::Failed(Errno::EIO)
            })?;
            self.closed = false;
        }
        Ok(())
    }

    /// Waits for calm, forgets what is queued (the dump tells it) and lets a dump follow.
    fn recover(&mut self, shared: &Shared) {
        self.batch.clear();
        let deadline = Instant::now() + CALM_MAX;
        let mut calm = 0;
        while calm < CALM_LOOKS && Instant::now() < deadline && !shared.stopped() {
            thread::sleep(CALM_STEP);
            calm = if shared.unanswered() == 0 { calm + 1 } else { 0 };
        }
        while let Ok(_) | Err(Errno::ENOBUFS | Errno::EMSGSIZE) = self.socket.try_receive(&mut self.buffer) {}
        self.links = LinkStates::default();
        self.dump_at = Instant::now();
    }

    fn dump_until_clean(&mut self, shared: &Shared) -> Result<(), Broken> {
        let started = Instant::now();
        self.reopen()?;
        self.emit()?;
        for attempt in 1.. {
            self.batch.push(ActualChange::DumpBegin);
            match self.dump(attempt < INTERRUPTED_MAX && !shared.stopped()) {
                Ok(()) => break,
                Err(broken) => {
                    // What was read of it is void.
                    self.batch.clear();
                    self.batch.push(ActualChange::DumpAbort);
                    self.emit()?;
                    if !matches!(broken, Broken::Interrupted) {
                        return Err(broken);
                    }
                }
            }
        }
        self.batch.push(ActualChange::DumpEnd);
        self.emit()?;
        let now = Instant::now();
        self.last_dump = (now, now - started);
        self.dump_at = now + DUMP_PERIOD;
        Ok(())
    }

    /// One dump: nexthop objects first, because routes refer to them.
    fn dump(&mut self, strict: bool) -> Result<(), Broken> {
        // A fresh socket each time: after a broken dump the old one would answer EBUSY.
        let socket = RouteSocket::open_for_dumps().map_err(|error| {
            tracing::warn!(%error, "no socket for a dump");
            Broken::Failed(Errno::EIO)
        })?;
        for part in 0..3 {
            self.seq = self.seq.wrapping_add(1);
            let seq = self.seq;
            let request = match part {
                0 => encode::dump_nexthops(seq),
                1 => encode::dump_routes(seq, AF_INET),
                _ => encode::dump_routes(seq, AF_INET6),
            };
            dump(&socket, &request, seq, strict, |frame| {
                self.batch.extend(decode::change(frame).filter(exists));
                if self.batch.len() >= EVENT_BATCH_LEN { self.emit() } else { Ok(()) }
            })?;
        }
        Ok(())
    }

    /// Hands the batch on and waits for room.
    fn emit(&mut self) -> Result<(), Broken> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.out.blocking_send(batch).map_err(|_| Broken::Closed)
    }
}

/// In a dump, an object with a foreign protocol is not news about ours.
fn exists(change: &ActualChange) -> bool {
    match change {
        ActualChange::Nexthop(_, content) => content.is_some(),
        ActualChange::Route(_, content) => content.is_some(),
        ActualChange::DumpBegin | ActualChange::DumpAbort | ActualChange::DumpEnd => true,
    }
}
