//! The real kernel, over routing netlink.
//!
//! Two threads, because both sides block: the writer inside the kernel while it works through a send, the listener in
//! dumps. They share a few counters ([`Shared`]) and nothing else. Reading order: `wire` (numbers), `socket` (frames),
//! `filter` (what the kernel should not even queue), `encode` and `decode`, `writer`, `links`, `events`.
//!
//! Needs `CAP_NET_ADMIN`, and `CAP_SYS_ADMIN` only when told to enter another network namespace.

pub(crate) mod decode;
pub(crate) mod encode;
mod events;
pub(crate) mod filter;
pub(crate) mod links;
pub(crate) mod socket;
pub mod tun;
pub mod tunnel;
pub(crate) mod wire;
mod writer;

pub use events::{BULK_ACTIONS, DUMP_PERIOD, EVENT_BUFFER};
pub use socket::Netns;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc as std_mpsc,
    },
    thread,
};

use futures_util::future::BoxFuture;
use meshd_core::{
    id::{Metric, ROUTE_METRIC},
    plan::Action,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use self::{
    events::Events,
    writer::{Job, Writer},
};
use super::{ACTION_BATCHES_MAX, ActualEvents, EVENT_BATCHES_MAX, KernelError, KernelRoutes, Receipt};

/// How to talk to the kernel about routes.
#[derive(Debug, Clone)]
pub struct LinuxOptions {
    /// Network namespace.
    pub netns: Netns,
    /// Metric of our routes: a foreign route that replaces one with it is noticed at once.
    pub metric: Metric,
    /// Metric of those learned by BGP.
    pub bgp_metric: Metric,
    /// Receive buffer of the event socket in bytes.
    pub event_buffer: usize,
}

impl Default for LinuxOptions {
    fn default() -> Self {
        let metric = Metric(ROUTE_METRIC);
        Self { netns: Netns::current(), metric, bgp_metric: metric, event_buffer: EVENT_BUFFER }
    }
}

/// The kernel's routes; dropping it ends both threads.
#[derive(Debug)]
pub struct LinuxRoutes {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

impl LinuxRoutes {
    /// Opens the sockets and starts both threads. The event stream begins with a full dump.
    ///
    /// # Errors
    /// [`KernelError::Socket`] without `CAP_NET_ADMIN`, or when the namespace cannot be entered.
    pub fn start(options: LinuxOptions) -> Result<(Self, ActualEvents), KernelError> {
        let (jobs, jobs_rx) = mpsc::channel(ACTION_BATCHES_MAX);
        let (out, events) = mpsc::channel(EVENT_BATCHES_MAX);
        let shared = Arc::new(Shared::new()?);
        let netns = options.netns.clone();
        let port = start("routes-write", shared.clone(), move || {
            netns.enter()?;
            let writer = Writer::open()?;
            Ok((writer.port(), move |shared: &Shared| writer.run(jobs_rx, shared)))
        })?;
        start("routes-listen", shared.clone(), move || {
            options.netns.enter()?;
            let events = Events::open([options.metric, options.bgp_metric], port, options.event_buffer, out)?;
            Ok(((), move |shared: &Shared| events.run(shared)))
        })?;
        Ok((Self { jobs, shared }, events))
    }
}

impl KernelRoutes for LinuxRoutes {
    fn submit(&self, actions: Vec<Action>) -> BoxFuture<'_, Result<Receipt, KernelError>> {
        Box::pin(async move {
            let (done, receipt) = Receipt::new();
            let room = self.jobs.reserve().await.map_err(|_| KernelError::Stopped)?;
            self.shared.submitted(actions.len());
            room.send(Job { actions, done });
            Ok(receipt)
        })
    }

    fn request_dump(&self) {
        self.shared.request_dump();
    }
}

impl Drop for LinuxRoutes {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// What the two threads and the handle tell each other.
#[derive(Debug)]
struct Shared {
    /// Actions submitted and not answered yet.
    unanswered: AtomicUsize,
    dump_requested: AtomicBool,
    stop: AtomicBool,
    /// Wakes the listener.
    wake: EventFd,
}

impl Shared {
    fn new() -> Result<Self, KernelError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).map_err(KernelError::errno("create an event descriptor"))?;
        Ok(Self {
            unanswered: AtomicUsize::new(0),
            dump_requested: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            wake,
        })
    }

    fn submitted(&self, actions: usize) {
        let before = self.unanswered.fetch_add(actions, Ordering::AcqRel);
        if before < BULK_ACTIONS && before + actions >= BULK_ACTIONS {
            self.wake();
        }
    }

    fn written(&self, actions: usize) {
        self.unanswered.fetch_sub(actions, Ordering::AcqRel);
    }

    fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Acquire)
    }

    fn request_dump(&self) {
        self.dump_requested.store(true, Ordering::Release);
        self.wake();
    }

    fn take_dump_request(&self) -> bool {
        self.dump_requested.swap(false, Ordering::AcqRel)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the listener is awake anyway.
        let _ = self.wake.write(1);
    }
}

/// Starts a thread with `shared`, waits until it has opened what it needs, and returns what it says about it.
pub(crate) fn start<S, T, R>(
    name: &str,
    shared: Arc<S>,
    open: impl FnOnce() -> Result<(T, R), KernelError> + Send + 'static,
) -> Result<T, KernelError>
where
    S: Send + Sync + 'static,
    T: Send + 'static,
    R: FnOnce(&S),
{
    let (tx, rx) = std_mpsc::sync_channel(1);
    let body = move || match open() {
        Ok((opened, run)) => {
            let _ = tx.send(Ok(opened));
            drop(tx);
            run(&shared);
        }
        Err(error) => {
            let _ = tx.send(Err(error));
        }
    };
    thread::Builder::new().name(name.into()).spawn(body).map_err(KernelError::socket("start a thread"))?;
    rx.recv().map_err(|_| KernelError::Stopped)?
}
