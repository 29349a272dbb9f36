//! What the kernel holds, taken over into the planner.

use meshd_core::plan::{ActualChange, RoutePlanner};

use crate::kernel::{ActualEvents, EVENT_BATCHES_MAX};

/// Tells the planner one batch and whatever else is waiting, so that a burst costs one plan.
pub fn observe(planner: &mut RoutePlanner, first: Vec<ActualChange>, events: &mut ActualEvents) {
    let mut batch = Some(first);
    for _ in 0..=EVENT_BATCHES_MAX {
        let Some(changes) = batch.take().or_else(|| events.try_recv().ok()) else { return };
        changes.into_iter().for_each(|change| planner.observe(change));
    }
}
