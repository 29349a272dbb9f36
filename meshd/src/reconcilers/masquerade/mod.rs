//! Desired masquerade into the packet filter.
//!
//! One task owns what is known of the table. It wakes when a snapshot was published, when the kernel said that our table was
//! touched ([`actual`]), when a look or another try is due, or when somebody asks; then it looks, if need be, and takes the one
//! step from held to desired ([`ops`]). A table that is there is never taken away to be put back: another one takes its place in
//! one transaction. What the task wrote itself is looked at as well, so that what it believes is what the kernel says (I6).

pub mod actual;
pub mod ops;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use meshd_core::{
    desired::{Masquerade, MasqueradeRules, MasqueradeWish},
    id::Revision,
    plan::{MasqueradePlanner, MasqueradeStep},
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use crate::{
    kernel::nftables::{KernelMasquerade, NftError},
    lifecycle::Problems,
    pipeline::Snapshot,
};
use actual::Actual;

pub use ops::describe;

/// Component of its problems.
const COMPONENT: &str = "masquerade";
/// Component of what does not fit.
const COMPONENT_LIMIT: &str = "masquerade/limit";
/// Component of missing uplinks.
const COMPONENT_UPLINKS: &str = "masquerade/uplinks";
/// How often the table is looked at when nobody says anything.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Least time between two looks: reading 10,000 prefixes takes a tenth of a second of a processor.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// First pause after a refusal, doubled by each further one.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Longest pause after refusals.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Questions that may wait.
const QUESTIONS_MAX: usize = 16;

/// What people see of it.
#[derive(Debug, Clone, Default)]
pub struct MasqueradeState {
    /// The kernel holds a table of ours whose rules are the desired ones.
    pub installed: bool,
    /// The rules leave what leaves the mesh to the datapath's programs.
    pub by_programs: bool,
    /// What the kernel holds.
    pub held: Arc<Actual>,
    /// Why the last attempt failed, while nothing else has succeeded.
    pub error: Option<String>,
}

enum Question {
    Plan(oneshot::Sender<Option<MasqueradeStep>>),
    Withdraw(oneshot::Sender<Result<(), String>>),
}

/// Asks the reconciler.
#[derive(Debug, Clone)]
pub struct MasqueradeHandle {
    questions: mpsc::Sender<Question>,
    state: Arc<RwLock<MasqueradeState>>,
}

impl MasqueradeHandle {
    /// What became of it, as of the last step.
    #[must_use]
    pub fn state(&self) -> MasqueradeState {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What would be done now; `None` when nothing, or when the daemon is stopping.
    pub async fn plan(&self) -> Option<MasqueradeStep> {
        let (tx, rx) = oneshot::channel();
        self.questions.send(Question::Plan(tx)).await.ok()?;
        rx.await.ok()?
    }

    /// Removes the table, and puts none in its place any more.
    ///
    /// # Errors
    /// Why it is still there.
    pub async fn withdraw(&self) -> Result<(), String> {
        let ended = || "the masquerade reconciler has ended".to_owned();
        let (tx, rx) = oneshot::channel();
        self.questions.send(Question::Withdraw(tx)).await.map_err(|_| ended())?;
        rx.await.map_err(|_| ended())?
    }
}

/// The reconciler's parts.
pub struct Masquerading {
    kernel: Arc<dyn KernelMasquerade>,
    touched: Arc<Notify>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    questions: mpsc::Receiver<Question>,
    state: Arc<RwLock<MasqueradeState>>,
    problems: Problems,
    planner: MasqueradePlanner,
    actual: Actual,
    /// True while the datapath's programs give what leaves the node's address.
    programs: Option<watch::Receiver<bool>>,
    /// When to look at the table; never while there is nothing to look after.
    look_at: Option<Instant>,
    looked: Option<Instant>,
    /// Pause before the next attempt, and when it is over.
    retry: Option<(Duration, Instant)>,
    /// What held was compared with last, since it is as it is.
    considered: Option<Considered>,
    withdrawn: bool,
}

/// What a plan depends on, apart from what is held.
#[derive(Debug, PartialEq, Eq)]
struct Considered {
    wish: MasqueradeWish,
    exclusions: Revision,
    known: bool,
    complete: bool,
    by_programs: bool,
}

impl Considered {
    fn of(snapshot: &Snapshot, by_programs: bool) -> Self {
        let desired = &snapshot.desired.masquerade;
        Self {
            by_programs,
            wish: desired.wish.clone(),
            exclusions: desired.exclusions.revision(),
            known: snapshot.known,
            complete: snapshot.complete,
        }
    }
}

impl Masquerading {
    /// A reconciler and the handle to ask it; `touched` tells that somebody may have changed the table, `programs` whether the
    /// datapath translates what leaves.
    #[must_use]
    pub fn new(
        kernel: Arc<dyn KernelMasquerade>,
        touched: Arc<Notify>,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        programs: Option<watch::Receiver<bool>>,
        problems: Problems,
    ) -> (Self, MasqueradeHandle) {
        let (tx, questions) = mpsc::channel(QUESTIONS_MAX);
        let state = Arc::new(RwLock::new(MasqueradeState::default()));
        let handle = MasqueradeHandle { questions: tx, state: state.clone() };
        let masquerading = Self {
            kernel,
            touched,
            snapshots,
            questions,
            state,
            problems,
            planner: MasqueradePlanner::default(),
            actual: Actual::default(),
            programs,
            look_at: None,
            looked: None,
            retry: None,
            considered: None,
            withdrawn: false,
        };
        (masquerading, handle)
    }

    /// Runs until the pipeline is gone.
    pub async fn run(mut self) {
        loop {
            self.round().await;
            let wake = self.retry.map(|(_, at)| at).or(self.look_at).filter(|_| self.is_active());
            let touched = self.touched.clone();
            tokio::select! {
                changed = self.snapshots.changed() => if changed.is_err() { return },
                () = changed(&mut self.programs) => {}
                () = touched.notified() => self.look_soon(),
                question = self.questions.recv() => {
                    let Some(question) = question else { return };
                    self.answer(question).await;
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Looks and takes steps until held is desired, or something failed.
    async fn round(&mut self) {
        let snapshot = self.snapshots.borrow_and_update().clone();
        if !self.is_active() {
            return;
        }
        let wish = &snapshot.desired.masquerade.wish;
        self.report(&snapshot.desired.masquerade);
        let now = Instant::now();
        if self.retry.is_some_and(|(_, at)| at > now) {
            return;
        }
        match self.settle(&snapshot, now).await {
            Ok(()) => {
                self.retry = None;
                self.problems.clear(COMPONENT);
            }
            // Nothing is wanted, and where nothing could ever be looked at there is nothing to remove. A node that does not use
            // the packet filter needs none.
            Err(error) if *wish == MasqueradeWish::Off && self.looked.is_none() => {
                debug!(%error, "the packet filter cannot be looked at, and need not be");
                self.actual.seen(None);
                self.retry = None;
                self.problems.clear(COMPONENT);
            }
            Err(error) => {
                let pause = self.retry.map_or(RETRY_MIN, |(pause, _)| (pause * 2).min(RETRY_MAX));
                self.retry = Some((pause, Instant::now() + pause));
                self.problems.set(COMPONENT, error.to_string());
                self.actual.forget();
                self.publish(Some(error.to_string()));
                return;
            }
        }
        self.publish(None);
    }

    /// Is there something to do at all? Not on a node that was drained, and not before it is known what is wanted and which links
    /// there are.
    fn is_active(&self) -> bool {
        let snapshot = self.snapshots.borrow();
        !self.withdrawn && snapshot.desired.masquerade.wish != MasqueradeWish::Unknown && snapshot.local_known
    }

    async fn settle(&mut self, snapshot: &Snapshot, now: Instant) -> Result<(), NftError> {
        let desired = &snapshot.desired.masquerade;
        if !self.actual.is_known() || self.look_at.is_some_and(|at| at <= now) {
            self.look().await?;
        } else if self.considered.as_ref() == Some(&self.consider(snapshot)) {
            return Ok(());
        }
        let rules = self.rules(desired);
        let Some(step) = self.plan(snapshot) else {
            // A table that is not wanted and not there needs no looking after.
            if self.actual.held(&rules).is_none() && desired.wish == MasqueradeWish::Off {
                self.look_at = None;
            }
            self.considered = Some(self.consider(snapshot));
            return Ok(());
        };
        info!(step = describe(&step), "changing masquerade");
        if let Err(error) = self.kernel.carry_out(&step, &rules).await {
            let Some(whole) = ops::whole(&step, self.actual.table()) else { return Err(error) };
            warn!(%error, "the exclusions cannot be changed; replacing the table");
            self.kernel.carry_out(&whole, &rules).await?;
            self.actual.forget();
        } else {
            self.actual.done(step);
        }
        if !self.actual.is_known() {
            self.look().await?;
            self.actual.trust(&rules)?;
        }
        self.considered = Some(self.consider(snapshot));
        Ok(())
    }

    fn by_programs(&self) -> bool {
        self.programs.as_ref().is_some_and(|programs| *programs.borrow())
    }

    fn consider(&self, snapshot: &Snapshot) -> Considered {
        Considered::of(snapshot, self.by_programs())
    }

    /// The rules that are wanted; of a table that is not, any will do.
    fn rules(&self, desired: &Masquerade) -> Arc<MasqueradeRules> {
        match &desired.wish {
            MasqueradeWish::On(rules) if self.by_programs() => {
                Arc::new(MasqueradeRules { by_programs: true, ..MasqueradeRules::clone(rules) })
            }
            MasqueradeWish::On(rules) => rules.clone(),
            MasqueradeWish::Off | MasqueradeWish::Unknown => Arc::default(),
        }
    }

    async fn look(&mut self) -> Result<(), NftError> {
        let listing = self.kernel.look().await?;
        self.looked = Some(Instant::now());
        self.look_at = Some(Instant::now() + LOOK_INTERVAL);
        self.actual.seen(listing);
        Ok(())
    }

    fn look_soon(&mut self) {
        let soon = self.looked.map_or_else(Instant::now, |looked| looked + LOOK_PAUSE);
        self.look_at = self.look_at.map(|at| at.min(soon));
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<MasqueradeStep> {
        let desired = &snapshot.desired.masquerade;
        let held = self.actual.held(&self.rules(desired));
        self.planner.plan(desired, held.as_ref(), snapshot.known, snapshot.complete)
    }

    /// States what is wrong with the wish itself.
    fn report(&self, desired: &Masquerade) {
        let left_out = desired.left_out;
        let limit = (left_out > 0).then(|| {
            let max = meshd_core::desired::EXCLUSIONS_MAX;
            format!(
                "{left_out} prefixes are not excluded from masquerade, because there are {max} already: traffic to them may be \
                 masqueraded; give `masquerade.exclude` fewer and shorter prefixes"
            )
        });
        self.problems.report(COMPONENT_LIMIT, limit);
        let is_blind = matches!(&desired.wish, MasqueradeWish::On(rules) if rules.uplinks.is_empty());
        let uplinks = is_blind.then(|| {
            "nothing is masqueraded: no link but the loopback carries an address of this node; name the links that lead out in \
             `masquerade.uplinks`"
                .to_owned()
        });
        self.problems.report(COMPONENT_UPLINKS, uplinks);
    }

    fn publish(&self, error: Option<String>) {
        let rules = self.rules(&self.snapshots.borrow().desired.masquerade);
        let state = MasqueradeState {
            installed: self.actual.held(&rules).is_some_and(|held| held.rules_fit),
            by_programs: rules.by_programs,
            held: Arc::new(self.actual.clone()),
            error,
        };
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    async fn answer(&mut self, question: Question) {
        // Whoever asked may have gone away meanwhile; that is no failure of ours.
        match question {
            Question::Plan(reply) => {
                let snapshot = self.snapshots.borrow().clone();
                drop(reply.send(self.plan(&snapshot)));
            }
            Question::Withdraw(reply) => drop(reply.send(self.withdraw().await)),
        }
    }

    async fn withdraw(&mut self) -> Result<(), String> {
        self.withdrawn = true;
        let removed = match self.kernel.look().await {
            Ok(None) | Err(NftError::Missing) => return Ok(()),
            Ok(Some(_)) => self.kernel.carry_out(&MasqueradeStep::Remove, &MasqueradeRules::default()).await,
            Err(error) => Err(error),
        };
        self.actual.seen(None);
        self.publish(None);
        removed.map_err(|error| error.to_string())
    }
}

/// Waits for news of the datapath; for ever where there is none, or none any more.
async fn changed(programs: &mut Option<watch::Receiver<bool>>) {
    if let Some(receiver) = programs
        && receiver.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;
