//! Plans handed to the kernel, and its answers.

use std::collections::VecDeque;

use meshd_core::plan::Action;

use crate::kernel::{Failure, KernelError, KernelRoutes, Receipt};

/// A plan the kernel is working on.
#[derive(Debug)]
pub struct Round {
    receipt: Receipt,
}

/// What became of a plan.
#[derive(Debug)]
pub struct Outcome {
    /// Actions that did not happen.
    pub failures: Vec<Failure>,
}

impl Outcome {
    /// True when a failure shows that our picture of the kernel is wrong.
    #[must_use]
    pub fn needs_dump(&self) -> bool {
        self.failures.iter().any(|failure| failure.is_already_gone() || failure.is_taken())
    }
}

/// Queues a plan at the kernel.
///
/// # Errors
/// When the kernel writer has ended.
pub async fn submit(kernel: &dyn KernelRoutes, actions: Vec<Action>) -> Result<Round, KernelError> {
    Ok(Round { receipt: kernel.submit(actions).await? })
}

/// Waits for the oldest plan under way; for ever when there is none. A plan whose answer is lost counts as answered: the
/// next dump tells what happened.
pub async fn first_answer(in_flight: &mut VecDeque<Round>) -> Outcome {
    let Some(round) = in_flight.front_mut() else { return std::future::pending().await };
    let failures = (&mut round.receipt).await.unwrap_or_default();
    in_flight.pop_front();
    Outcome { failures }
}

/// The failure in the operator's words.
#[must_use]
pub fn explain(failure: &Failure) -> String {
    match &failure.action {
        Action::PutRoute { key, .. } if failure.is_taken() => format!(
            "a foreign route to {} with metric {} exists and is left alone; remove it or change routing.metric",
            key.prefix, key.metric
        ),
        Action::PutNexthop { id, .. } | Action::PutGroup { id, .. } if failure.is_taken() => {
            format!("a foreign nexthop object has the id {id} and is left alone; another id is tried")
        }
        _ => failure.reason.to_string(),
    }
}
