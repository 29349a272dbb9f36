//! The task that empties the ring.

use std::{os::fd::AsRawFd, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use meshd_abi::Reason;
use meshd_core::{derive::LocalNode, id::ClusterId};
use meshd_datapath::Events;
use nix::time::{ClockId, clock_gettime};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::warn;

use super::{
    FlowsHandle,
    names::{Names, ServiceNumbers},
};
use crate::{api::flow_view::LostSource, pipeline::Snapshot, reconcilers::datapath::DatapathStatus};

/// How often the ring is looked at while somebody follows.
const FOLLOWED_PERIOD: Duration = Duration::from_millis(10);
/// How often otherwise: what is there is for the history only.
const IDLE_PERIOD: Duration = Duration::from_millis(250);
/// Most records taken at a time, so that those who ask for history do not wait for all of a full ring.
const ROUND_MAX: usize = 1_024;

/// What the task reads.
pub struct Inputs {
    /// This node.
    pub local: Arc<LocalNode>,
    /// Id of its cluster.
    pub cluster_id: ClusterId,
    /// The tables.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Names of services.
    pub services: watch::Receiver<ServiceNumbers>,
    /// Counters of the datapath.
    pub status: watch::Receiver<DatapathStatus>,
}

/// The task, and where what it reads can be had. It runs until it is cancelled.
pub fn start(events: Events, inputs: Inputs) -> (impl Future<Output = ()> + Send + 'static, FlowsHandle) {
    let handle = FlowsHandle::default();
    (run(events, inputs, handle.clone()), handle)
}

/// The ring as the runtime watches it.
struct Ring(Events);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

async fn run(events: Events, inputs: Inputs, handle: FlowsHandle) {
    // SAFETY: the ring owns its descriptor, and answers the same one as long as it lives.
    let mut ring = match unsafe { AsyncFd::register_with_interest(Ring(events), Interest::READABLE) } {
        Ok(ring) => ring,
        Err(error) => {
            warn!(%error, "flow events cannot be waited for; they are not read");
            // The end of a task ends the daemon, and flows are not worth that.
            return std::future::pending().await;
        }
    };
    let mut names = None;
    let mut losses = Losses::default();
    let mut is_followed = false;
    loop {
        let period = if is_followed { FOLLOWED_PERIOD } else { IDLE_PERIOD };
        tokio::select! {
            () = sleep_until(Instant::now() + period) => {}
            () = handle.0.follows.notified() => {}
            ready = ring.readable() => if let Ok(mut ready) = ready { ready.clear_ready() },
        }
        loop {
            let (snapshot, services) = (inputs.snapshots.borrow().clone(), inputs.services.borrow().clone());
            let names = match &mut names {
                Some(names) if Names::is_of(names, &snapshot, &services) => names,
                names => names.insert(Names::new(inputs.local.clone(), inputs.cluster_id.get(), snapshot, services)),
            };
            let boot = boot_time();
            let mut taken = 0;
            let mut flows = Vec::new();
            while taken < ROUND_MAX {
                let Some(event) = ring.get_mut().0.take() else { break };
                taken += 1;
                flows.extend(names.flow(&event, boot));
            }
            is_followed = handle.put(flows);
            if taken < ROUND_MAX {
                break;
            }
            tokio::task::yield_now().await;
        }
        for (source, events) in losses.since(&inputs.status.borrow()) {
            handle.put_lost(source, events, Timestamp::now());
        }
    }
}

/// What the programs could not tell, as far as it was said.
#[derive(Debug, Default)]
struct Losses {
    /// Of the ring and by the limit; `None` before the first look, because the counters outlive a daemon.
    said: Option<[u64; 2]>,
}

impl Losses {
    /// What is new.
    fn since(&mut self, status: &DatapathStatus) -> Vec<(LostSource, u64)> {
        if status.packets.is_empty() && self.said.is_none() {
            return Vec::new();
        }
        let of = |reason| status.packets.iter().find(|(word, _)| *word == reason).map_or(0, |(_, count)| *count);
        let now = [of(Reason::EventsLost), of(Reason::EventsLimited)];
        let before = self.said.replace(now).unwrap_or(now);
        let sources = [LostSource::Ring, LostSource::Limit];
        let new = sources
            .into_iter()
            .zip(now)
            .zip(before)
            .map(|((source, now), before)| (source, now.saturating_sub(before)));
        new.filter(|(_, events)| *events > 0).collect()
    }
}

/// When the monotonic clock began, by the clock on the wall.
fn boot_time() -> SignedDuration {
    let read = |clock| {
        clock_gettime(clock).map_or(SignedDuration::ZERO, |now| {
            SignedDuration::new(now.tv_sec(), i32::try_from(now.tv_nsec()).unwrap_or(0))
        })
    };
    read(ClockId::CLOCK_REALTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_said_once_and_those_of_an_earlier_daemon_never() {
        let status = |lost, limited| DatapathStatus {
            packets: vec![(Reason::EventsLost, lost), (Reason::EventsLimited, limited)],
            ..DatapathStatus::default()
        };
        let mut losses = Losses::default();
        assert_eq!(losses.since(&DatapathStatus::default()), []);
        assert_eq!(losses.since(&status(5, 7)), []);
        assert_eq!(losses.since(&status(6, 7)), [(LostSource::Ring, 1)]);
        assert_eq!(losses.since(&status(6, 9)), [(LostSource::Limit, 2)]);
        assert_eq!(losses.since(&status(6, 9)), []);
    }
}
