//! The BGP speaker at work: sockets and time for [`bgp::speaker`].
//!
//! ```text
//!  peers ◄─ TCP ─► connections ─┐                          ┌─► routes ──► pipeline (as a source)
//!  listeners ───────────────────┼─► bgp::speaker::Speaker ─┤
//!  pipeline: next hops, links ──┤   (one thread owns it)   └─► answers to the API
//!  BFD thread ──────────────────┘
//! ```
//!
//! Everything of BGP lives in one thread with a runtime of its own, so nothing there is shared and nothing is copied
//! between threads: a reading from a socket goes through decoder, session and tables in one call. The work on the tables
//! is done in slices ([`WORK_SLICE`]), between which every connection gets its turn. BFD has another thread, because its
//! packets must leave in time whatever the tables do.
//!
//! As a source, the speaker hands best paths to the pipeline when that has room ([`fib`]); as a reader of snapshots it
//! learns how next hops are reached. Nothing here writes to the kernel. [`bmp`] feeds monitoring stations and [`mrt`] writes
//! files, both without ever making the speaker wait.
//!
//! What is ugly: tasks of the thread share their state through a `RefCell`. They are one owner in several places; a
//! borrow that is held across an await would be a panic, which the tests with many peers would meet.

pub mod answers;
pub mod bfd;
pub mod bmp;
pub mod boot;
mod configure;
mod connection;
pub mod convert;
mod core;
mod discovery;
mod fib;
mod host;
mod listen;
mod monitor;
pub mod mrt;
mod nuisance;
pub mod pages;
mod paths;
mod restart;
mod services;
pub mod settings;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod unnumbered;

use std::{cell::RefCell, io, pin::pin, rc::Rc, sync::Arc, thread, time::Duration};

use bgp::{PerFamily, session::LocalRestart, speaker::Speaker};
use meshd_core::{clustermesh::over_bgp::OverBgp, observed::Change};
use tokio::{
    runtime::LocalOptions,
    sync::{mpsc, oneshot, watch},
    task::{spawn_local, yield_now},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    boot::{Mark, Predecessor},
    core::{Core, Shared},
    discovery::Discovery,
    listen::Listeners,
    settings::{MeshSettings, Settings},
};
use crate::{lifecycle::Problems, pipeline::Snapshot};

/// Destinations worked on before connections get their turn.
const WORK_SLICE: usize = 4_096;
/// Questions that may wait.
const QUESTIONS_MAX: usize = 64;

/// What runs on the speaker's thread on behalf of somebody else.
type Question = Box<dyn FnOnce(&Shared) + Send>;

/// Asks the speaker.
#[derive(Debug, Clone)]
pub struct SpeakerHandle(mpsc::Sender<QuestionBox>);

struct QuestionBox(Question);

impl std::fmt::Debug for QuestionBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a question")
    }
}

/// The speaker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the BGP speaker has ended")]
pub struct Ended;

impl SpeakerHandle {
    /// Asks every peer to prefer other ways than through this node (RFC 8326).
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn begin_drain(&self) -> Result<(), Ended> {
        self.ask(Core::begin_drain).await
    }

    /// Ends every session; returns how many were established.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn shut_down(&self, words: &'static str) -> Result<usize, Ended> {
        self.ask(move |core| Core::shut_down_all(core, words)).await
    }

    async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Shared) -> T + Send + 'static) -> Result<T, Ended> {
        let (tx, rx) = oneshot::channel();
        let question: Question = Box::new(move |core| drop(tx.send(question(core))));
        self.0.send(QuestionBox(question)).await.map_err(|_| Ended)?;
        rx.await.map_err(|_| Ended)
    }
}

/// What the speaker is connected to.
pub struct Surroundings {
    /// What it is told to be; a new version takes effect at once.
    pub settings: watch::Receiver<Settings>,
    /// Where its rows go.
    pub changes: mpsc::Sender<Change>,
    /// Next hops, links and addresses.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where its problems are shown.
    pub problems: Problems,
    /// Where the next speaker learns whether there was one before it.
    pub mark: Mark,
    /// What the speaker before this one left.
    pub predecessor: Predecessor,
    /// Clusters that peers told the previous run.
    pub remembered: OverBgp,
}

/// Starts the thread. It ends, without a word to the peers, when `stop` is cancelled; the token that comes back is cancelled when
/// it has ended, whatever ended it.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(around: Surroundings, stop: CancellationToken) -> io::Result<(SpeakerHandle, CancellationToken)> {
    let (tx, questions) = mpsc::channel(QUESTIONS_MAX);
    let has_ended = CancellationToken::new();
    let ending = has_ended.clone().drop_guard();
    let (built, has_begun) = std::sync::mpsc::channel();
    thread::Builder::new().name("bgp".to_owned()).spawn(move || {
        // Its tasks belong to this thread, so one wakes another without the kernel.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let (runtime, result) = match runtime {
            Ok(runtime) => (Some(runtime), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // The receiver is at the end of this function.
        let _told = built.send(result);
        let Some(runtime) = runtime else { return };
        runtime.block_on(run(around, questions, stop));
        // With what is still being written to the disk. Whoever waits for the end has a deadline.
        drop(runtime);
        drop(ending);
    })?;
    has_begun.recv().map_err(io::Error::other)??;
    Ok((SpeakerHandle(tx), has_ended))
}

async fn run(mut around: Surroundings, mut questions: mpsc::Receiver<QuestionBox>, stop: CancellationToken) {
    let settings = around.settings.borrow_and_update().clone();
    let (path_events, mut path_changes) = mpsc::channel(paths::EVENTS_MAX);
    let Predecessor { ran, established } = around.predecessor;
    // What the kernel forwards by is still there.
    let restart = LocalRestart { restarted: ran, forwarding_kept: PerFamily { ipv4: ran, ipv6: ran } };
    let speaker = Speaker::new(settings.rib.clone(), restart, rand::random());
    let (had_session, sessions) = watch::channel(established.clone());
    let empty =
        Settings { originate: Vec::new(), aggregates: Vec::new(), mesh: MeshSettings::default(), ..settings.clone() };
    let core: Shared =
        Rc::new(RefCell::new(Core::new(speaker, empty, path_events, around.problems.clone(), had_session)));
    core.borrow_mut().over_bgp = around.remembered;
    let mut discovery = Discovery::default();
    let mut listeners = Listeners::default();
    let worker = spawn_local(work(core.clone()));
    let carrier = spawn_local(fib::carry(core.clone(), around.changes.clone()));
    let first = around.snapshots.borrow_and_update().clone();
    Core::look(&core, &first);
    Core::settle(&core, settings);
    spawn_local(boot::keep(around.mark, sessions, around.problems.clone()));
    if ran {
        Core::begin_restart(&core, &established);
    }
    discovery.update(&core);
    let routers_changed = core.borrow().routers_changed.clone();
    let mut retry = listeners.update(&core, &around.problems).map(|after| Instant::now() + after);
    loop {
        let again = async {
            match retry {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            changed = around.settings.changed() => {
                if changed.is_err() { break }
                let settings = around.settings.borrow_and_update().clone();
                Core::settle(&core, settings);
                discovery.update(&core);
                retry = listeners.update(&core, &around.problems).map(|after| Instant::now() + after);
            }
            changed = around.snapshots.changed() => {
                if changed.is_err() { break }
                let snapshot = around.snapshots.borrow_and_update().clone();
                Core::look(&core, &snapshot);
                discovery.update(&core);
            }
            event = path_changes.recv() => {
                // The sender is kept by the core: this never ends.
                if let Some(event) = event { paths::changed(&core, &event) }
            }
            question = questions.recv() => {
                let Some(QuestionBox(question)) = question else { break };
                question(&core);
                Core::run_commands(&core);
            }
            () = routers_changed.notified() => {
                retry = listeners.update(&core, &around.problems).map(|after| Instant::now() + after);
            }
            () = again => retry = listeners.update(&core, &around.problems).map(|after| Instant::now() + after),
        }
    }
    drop(listeners);
    Core::stop(&core);
    let (farewells, logs) = Core::stop_watching(&core);
    worker.abort();
    carrier.abort();
    // Connections say their last words in tasks of their own.
    tokio::time::sleep(STOP_PAUSE).await;
    for farewell in farewells {
        if let Err(error) = farewell.await {
            tracing::warn!(%error, "a BMP station was left without a farewell");
        }
    }
    drop(logs);
}

/// How long connections have to be closed in.
const STOP_PAUSE: Duration = Duration::from_millis(50);

/// Works on the tables whenever there is something, and keeps the timers of all sessions.
async fn work(core: Shared) {
    let worker = core.borrow().worker.clone();
    let mut idle = false;
    // Set to an earlier moment when need be, and never to a later one: timers are put off with every message, and each time
    // the runtime would wake itself up by way of the kernel. It goes off for nothing now and then instead.
    let mut timer = pin!(sleep_until(Instant::now()));
    let mut armed: Option<Instant> = None;
    loop {
        let before = core.borrow().readings;
        let more = {
            let mut core = core.borrow_mut();
            let now = core.now();
            core.speaker.timers(now);
            let more = core.speaker.work(now, WORK_SLICE, idle);
            core.note_end_of_restart();
            more
        };
        Core::run_commands(&core);
        if core.borrow().has_news() {
            core.borrow().fib_news.notify_one();
        }
        // After what waited for more input is told, the next input wakes us; before that, connections that have something to
        // read do so now.
        if !idle || more {
            yield_now().await;
        }
        let (quiet, waits, deadline) = {
            let mut core = core.borrow_mut();
            core.wake_at = core.speaker.next_deadline();
            let deadline = core.wake_at.map(|at| core.instant(at));
            (core.readings == before, core.speaker.has_waiting_exports(), deadline)
        };
        // What waits for more input is sent when none came.
        if more || !quiet || (waits && !idle) {
            idle = quiet;
            continue;
        }
        idle = false;
        if let Some(at) = deadline.filter(|at| armed.is_none_or(|armed| *at < armed)) {
            timer.as_mut().reset(at);
            armed = Some(at);
        }
        tokio::select! {
            () = worker.notified() => {}
            () = &mut timer, if armed.is_some() => armed = None,
        }
    }
}
