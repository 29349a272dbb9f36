//! The tunnel's link into the kernel.
//!
//! One task looks after the link `meshd_vxlan` and the rule that takes frames out of it. It wakes when a snapshot was published in
//! which links or addresses differ, when somebody touched our table of the packet filter, when a nexthop through the link may be gone,
//! and now and then. The link stays when the daemon stops; it goes when no tunnel is configured any more and no route of ours leads
//! through it, and with `meshd drain`.
//!
//! A link of somebody else with the same UDP port is never touched: ours cannot be up then, which is a problem that names it.

pub mod actual;
pub mod ops;

use std::{sync::Arc, time::Duration};

use meshd_core::{
    derive::{LocalNode, PathPolicy},
    desired::RouteMode,
    id::{IfIndex, Revision},
    plan::{TunnelWish, plan_tunnel, tunnel_mtu},
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::info;

use crate::{
    lifecycle::Problems,
    pipeline::Snapshot,
    reconcilers::{routes::RoutesHandle, tunnels::actual::Actual},
};

/// Component of its problems.
const COMPONENT: &str = "tunnel";
/// How often the link and the table are looked at when nobody says anything.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// The same where no tunnel is wanted.
const IDLE: Duration = Duration::from_secs(3_600);
/// Pause after a failure, and before a link that is not wanted is looked at again.
const RETRY: Duration = Duration::from_secs(1);
/// Questions that may wait.
const QUESTIONS_MAX: usize = 4;

/// Asks the reconciler.
#[derive(Debug, Clone)]
pub struct TunnelsHandle(mpsc::Sender<oneshot::Sender<Result<(), String>>>);

impl TunnelsHandle {
    /// Removes the link and the table, and makes none any more.
    ///
    /// # Errors
    /// Why something is still there.
    pub async fn withdraw(&self) -> Result<(), String> {
        let ended = || "the tunnel reconciler has ended".to_owned();
        let (tx, rx) = oneshot::channel();
        self.0.send(tx).await.map_err(|_| ended())?;
        rx.await.map_err(|_| ended())?
    }
}

/// What it works with.
pub struct TunnelInputs {
    /// This node.
    pub local: Arc<LocalNode>,
    /// How nodes are to be reached.
    pub policies: watch::Receiver<Arc<PathPolicy>>,
    /// All tables.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The routes that may lead through the link.
    pub routes: RoutesHandle,
    /// Somebody touched our table of the packet filter.
    pub touched: Arc<Notify>,
    /// Where its problems go.
    pub problems: Problems,
}

/// The reconciler's parts.
pub struct Tunnels {
    inputs: TunnelInputs,
    questions: mpsc::Receiver<oneshot::Sender<Result<(), String>>>,
    actual: Actual,
    /// What the last look was about.
    considered: Option<(Revision, Revision)>,
    look_at: Option<Instant>,
    withdrawn: bool,
}

impl Tunnels {
    /// A reconciler and the handle to ask it.
    #[must_use]
    pub fn new(inputs: TunnelInputs) -> (Self, TunnelsHandle) {
        let (tx, questions) = mpsc::channel(QUESTIONS_MAX);
        let tunnels =
            Self { inputs, questions, actual: Actual::default(), considered: None, look_at: None, withdrawn: false };
        (tunnels, TunnelsHandle(tx))
    }

    /// Runs until the pipeline is gone.
    pub async fn run(mut self) {
        let mut due = true;
        loop {
            if due && !self.withdrawn {
                self.round().await;
            }
            let touched = self.inputs.touched.clone();
            let wake = self.look_at;
            due = tokio::select! {
                changed = self.inputs.snapshots.changed() => {
                    if changed.is_err() { return }
                    self.is_news()
                }
                changed = self.inputs.policies.changed() => {
                    if changed.is_err() { return }
                    true
                }
                () = touched.notified() => self.actual.is_in_use(),
                question = self.questions.recv() => {
                    let Some(reply) = question else { return };
                    self.withdrawn = true;
                    // Whoever asked may have gone away meanwhile; that is no failure of ours.
                    let _gone = reply.send(self.withdraw().await);
                    false
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => true,
            };
        }
    }

    /// Are links or addresses other ones than at the last look?
    fn is_news(&mut self) -> bool {
        let snapshot = self.inputs.snapshots.borrow_and_update().clone();
        self.considered != Some(revisions(&snapshot))
    }

    async fn round(&mut self) {
        let snapshot = self.inputs.snapshots.borrow().clone();
        if !snapshot.local_known {
            return;
        }
        self.considered = Some(revisions(&snapshot));
        let tunnel = self.inputs.policies.borrow_and_update().tunnel;
        let wish = tunnel.and_then(|tunnel| {
            let mtu = tunnel_mtu(&snapshot.observed, &self.inputs.local.addresses)?;
            Some(TunnelWish { port: tunnel.port, mtu })
        });
        let result = match wish {
            Some(wish) => self.keep(wish).await.map(|()| LOOK_INTERVAL),
            // Without an address of the node on a link the tunnel has no width yet; what is there stays.
            None if tunnel.is_some() => {
                Err("no link carries an address of this node yet; see `node.addresses`".to_owned())
            }
            None => self.remove(&snapshot).await,
        };
        let mss_clamp = self.inputs.policies.borrow().mss_clamp;
        let clamped = self.actual.keep_clamp(mss_clamp).await;
        let result = if mss_clamp { result.map(|pause| pause.min(LOOK_INTERVAL)) } else { result };
        let result = result.and_then(|pause| clamped.map(|()| pause));
        self.look_at = Some(Instant::now() + result.as_ref().copied().unwrap_or(RETRY));
        self.inputs.problems.report(COMPONENT, result.err());
    }

    async fn keep(&mut self, wish: TunnelWish) -> Result<(), String> {
        let links = ops::look().await?;
        for step in plan_tunnel(Some(wish), links.held) {
            info!(?step, "changing the tunnel's link");
            ops::carry_out(step, wish.port, &links.foreign).await?;
        }
        let index = match links.held {
            Some(held) if held.port == Some(wish.port) => held.index,
            Some(_) | None => ops::look().await?.held.map_or(IfIndex(0), |held| held.index),
        };
        ops::give_address(index, &self.inputs.local.addresses).await?;
        self.actual.keep_arrivals(index).await
    }

    /// Removes what is left of a tunnel once no route of ours leads through it; says when to look again.
    async fn remove(&mut self, snapshot: &Snapshot) -> Result<Duration, String> {
        if ops::look().await?.held.is_none() {
            return Ok(IDLE);
        }
        let is_wanted = snapshot.desired.targets.iter().any(|(_, target)| target.mode == RouteMode::Tunnel);
        let is_settled = self.inputs.routes.plan().await.is_ok_and(|plan| plan.is_empty());
        if is_wanted || !is_settled || !snapshot.complete {
            // Nobody says when the last route has gone.
            return Ok(RETRY);
        }
        info!("removing the tunnel's link: none is configured any more");
        self.withdraw().await.map(|()| IDLE)
    }

    async fn withdraw(&mut self) -> Result<(), String> {
        self.actual.keep_clamp(false).await?;
        let held = ops::look().await?.held;
        for step in plan_tunnel(None, held) {
            ops::carry_out(step, 0, &[]).await?;
        }
        if held.is_some() || self.actual.is_in_use() { self.actual.remove_arrivals().await } else { Ok(()) }
    }
}

fn revisions(snapshot: &Snapshot) -> (Revision, Revision) {
    (snapshot.observed.links.revision(), snapshot.observed.addresses.revision())
}
