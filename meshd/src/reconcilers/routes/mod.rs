//! Desired routes into the kernel.
//!
//! One task owns the [`RoutePlanner`]. It wakes when a new snapshot was published, when the kernel said something about
//! our routes ([`actual`]), when a retry is due, or when somebody asks; it then plans a bounded round and hands it to the
//! kernel ([`ops`]). Two rounds may be under way at the kernel, so that planning and system calls overlap. Everything is
//! level-triggered: whatever was missed, the next look at desired and actual finds it.

pub mod actual;
pub mod ops;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use jiff::Timestamp;
use meshd_core::{
    desired::TargetKey,
    plan::{Action, PlannerOptions, RoutePlanner},
    table::RowState,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use tracing::{debug, info, warn};

use crate::{
    kernel::{ActualEvents, KernelRoutes},
    lifecycle::{Problems, SteadyClock},
    pipeline::Snapshot,
};
use ops::Round;

/// Rounds that may wait at the kernel: enough work for it while this task waits for a processor.
pub const ROUNDS_IN_FLIGHT: usize = 4;
/// Questions that may wait.
const QUESTIONS_MAX: usize = 16;

/// State of one desired route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteState {
    /// The prefix.
    pub prefix: IpNet,
    /// What became of it.
    pub state: RowState,
}

/// Counts for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteCounts {
    /// Routes this node wants.
    pub desired: usize,
    /// Of these, routes the kernel holds.
    pub installed: usize,
    /// Of these, routes in error.
    pub errors: usize,
    /// Of those installed, routes learned by BGP.
    pub learned_installed: usize,
}

enum Question {
    Alive(oneshot::Sender<()>),
    States(oneshot::Sender<Vec<RouteState>>),
    Counts(oneshot::Sender<RouteCounts>),
    Plan(oneshot::Sender<Vec<Action>>),
    Withdraw(oneshot::Sender<Result<usize, String>>),
}

/// Asks the reconciler.
#[derive(Debug, Clone)]
pub struct RoutesHandle(mpsc::Sender<Question>);

/// The reconciler has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the route reconciler has ended")]
pub struct Ended;

impl RoutesHandle {
    /// State of every desired route, by prefix.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn states(&self) -> Result<Vec<RouteState>, Ended> {
        self.ask(Question::States).await
    }

    /// Counts of desired, installed and failed routes.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn counts(&self) -> Result<RouteCounts, Ended> {
        self.ask(Question::Counts).await
    }

    /// Resolves when the reconciler has come round to answer.
    pub async fn is_alive(&self) {
        // An ended reconciler ends the daemon by itself.
        let _ended = self.ask(Question::Alive).await;
    }

    /// What would be done now.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping.
    pub async fn plan(&self) -> Result<Vec<Action>, Ended> {
        self.ask(Question::Plan).await
    }

    /// Removes every route and nexthop object of ours and installs none any more; returns how many routes went.
    ///
    /// # Errors
    /// [`Ended`] when the daemon is stopping; the inner error when the kernel refused.
    pub async fn withdraw(&self) -> Result<Result<usize, String>, Ended> {
        self.ask(Question::Withdraw).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Ended> {
        let (tx, rx) = oneshot::channel();
        self.0.send(question(tx)).await.map_err(|_| Ended)?;
        rx.await.map_err(|_| Ended)
    }
}

/// The reconciler's parts.
pub struct Routes {
    planner: RoutePlanner,
    clock: SteadyClock,
    kernel: Arc<dyn KernelRoutes>,
    events: ActualEvents,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    questions: mpsc::Receiver<Question>,
    problems: Problems,
    in_flight: VecDeque<Round>,
    settled: watch::Sender<bool>,
    withdrawn: bool,
    /// Prefixes of clusters that were removed while nobody ran, until the first snapshot says what is wanted now.
    left_over: BTreeSet<IpNet>,
    /// The snapshot that is planned has the links and routes of this node.
    local_known: bool,
}

impl Routes {
    /// A reconciler and the handle to ask it; `left_over` are prefixes that clusters had in the previous run which are no
    /// longer configured, `settled` tells when actual matched desired for the first time with the local network known.
    #[must_use]
    pub fn new(
        options: PlannerOptions,
        kernel: Arc<dyn KernelRoutes>,
        events: ActualEvents,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        left_over: BTreeSet<IpNet>,
        problems: Problems,
    ) -> (Self, RoutesHandle, watch::Receiver<bool>) {
        let (tx, questions) = mpsc::channel(QUESTIONS_MAX);
        let (settled, is_settled) = watch::channel(false);
        let routes = Self {
            planner: RoutePlanner::new(options),
            clock: SteadyClock::start(),
            kernel,
            events,
            snapshots,
            questions,
            problems,
            in_flight: VecDeque::new(),
            settled,
            withdrawn: false,
            left_over,
            local_known: false,
        };
        (routes, RoutesHandle(tx), is_settled)
    }

    /// Runs until the kernel or the pipeline is gone.
    pub async fn run(mut self) {
        let mut wake: Option<Timestamp> = None;
        loop {
            let pause = wake.map_or(Duration::MAX, |wake| self.clock.until(wake));
            tokio::select! {
                changed = self.snapshots.changed() => {
                    if changed.is_err() { return }
                    let snapshot = self.snapshots.borrow_and_update().clone();
                    self.planner.set_desired(&snapshot.desired, snapshot.complete);
                    self.planner.retire(std::mem::take(&mut self.left_over));
                    self.local_known = snapshot.local_known;
                }
                batch = self.events.recv() => {
                    let Some(batch) = batch else { return };
                    actual::observe(&mut self.planner, batch, &mut self.events);
                }
                round = ops::first_answer(&mut self.in_flight) => self.finish(round),
                question = self.questions.recv() => {
                    let Some(question) = question else { return };
                    self.answer(question).await;
                }
                () = sleep(pause), if wake.is_some() => {}
            }
            if self.withdrawn {
                continue;
            }
            let Ok(next) = self.round().await else { return };
            wake = next;
        }
    }

    /// Plans and submits as long as there is something to do and room at the kernel; returns when to look again.
    async fn round(&mut self) -> Result<Option<Timestamp>, ()> {
        let mut wake = None;
        while self.in_flight.len() < ROUNDS_IN_FLIGHT {
            let (actions, next) = self.planner.plan(self.clock.now());
            wake = next;
            if actions.is_empty() {
                // Before the local network is read nothing can be planned, which is not the same as nothing to do.
                if self.local_known && self.in_flight.is_empty() && self.planner.is_settled() {
                    self.settled.send_if_modified(|settled| !std::mem::replace(settled, true));
                }
                break;
            }
            debug!(actions = actions.len(), "changing kernel routes");
            match ops::submit(&*self.kernel, actions).await {
                Ok(round) => self.in_flight.push_back(round),
                Err(error) => {
                    self.problems.set("routes", format!("cannot talk to the kernel: {error}"));
                    return Err(());
                }
            }
        }
        Ok(wake)
    }

    fn finish(&mut self, outcome: ops::Outcome) {
        let now = self.clock.now();
        for failure in &outcome.failures {
            if failure.is_already_gone() {
                continue;
            }
            warn!(action = %failure.action, reason = %failure.reason, "kernel refused a change");
            let message = ops::explain(failure);
            if failure.is_taken() {
                self.planner.taken(&failure.action, &message, now);
            } else {
                self.planner.refused(&failure.action, &message, now);
            }
        }
        if outcome.needs_dump() {
            self.kernel.request_dump();
        }
    }

    async fn answer(&mut self, question: Question) {
        // Whoever asked may have gone away meanwhile; that is no failure of ours.
        match question {
            Question::Alive(reply) => drop(reply.send(())),
            Question::States(reply) => drop(reply.send(self.states())),
            Question::Counts(reply) => drop(reply.send(self.counts())),
            Question::Plan(reply) => drop(reply.send(self.planner.preview(self.clock.now()))),
            Question::Withdraw(reply) => drop(reply.send(self.withdraw().await)),
        }
    }

    fn states(&self) -> Vec<RouteState> {
        let snapshot = self.snapshots.borrow().clone();
        let state =
            |(prefix, target): (IpNet, TargetKey)| RouteState { prefix, state: self.planner.state(&prefix, &target).0 };
        snapshot.desired.all_routes().map(state).collect()
    }

    fn counts(&self) -> RouteCounts {
        let (installed, errors) = self.planner.counts();
        RouteCounts {
            desired: self.snapshots.borrow().desired.all_routes().count(),
            installed,
            errors,
            learned_installed: self.planner.learned_installed(),
        }
    }

    async fn withdraw(&mut self) -> Result<usize, String> {
        self.withdrawn = true;
        while !self.in_flight.is_empty() {
            let outcome = ops::first_answer(&mut self.in_flight).await;
            self.finish(outcome);
        }
        while let Ok(batch) = self.events.try_recv() {
            actual::observe(&mut self.planner, batch, &mut self.events);
        }
        let actions = self.planner.withdraw_all();
        let routes = actions.iter().filter(|action| action.prefix().is_some()).count();
        let failures = self.kernel.apply(actions).await.map_err(|error| error.to_string())?;
        let real: Vec<String> =
            failures.iter().filter(|failure| !failure.is_already_gone()).map(ToString::to_string).collect();
        info!(routes, "withdrew all routes");
        if real.is_empty() { Ok(routes) } else { Err(real.join("; ")) }
    }
}
