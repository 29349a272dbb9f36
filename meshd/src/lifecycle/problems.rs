//! What is wrong now.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;

use crate::api::view::ProblemView;

/// Most problems kept; a component beyond that is only logged.
const PROBLEMS_MAX: usize = 256;

/// Problems by component. Cheap to clone: all clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Problems(Arc<Mutex<BTreeMap<String, ProblemView>>>);

impl Problems {
    /// States or updates the problem of a component; its time stays when the message does.
    pub fn set(&self, component: &str, message: impl Into<String>) {
        let message = message.into();
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = problems.len() < PROBLEMS_MAX;
        match problems.get_mut(component) {
            Some(known) if known.message == message => {}
            Some(known) => {
                tracing::warn!(component, message, "problem changed");
                known.message = message;
            }
            None => {
                tracing::warn!(component, message, "problem");
                if room {
                    let since = Timestamp::now();
                    problems
                        .insert(component.to_owned(), ProblemView { component: component.to_owned(), message, since });
                }
            }
        }
    }

    /// The component is fine again.
    pub fn clear(&self, component: &str) {
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.remove(component).is_some() {
            tracing::info!(component, "problem solved");
        }
    }

    /// Sets or clears in one call.
    pub fn report(&self, component: &str, message: Option<String>) {
        match message {
            Some(message) => self.set(component, message),
            None => self.clear(component),
        }
    }

    /// All problems, by component.
    #[must_use]
    pub fn list(&self) -> Vec<ProblemView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_keeps_its_time_until_it_is_solved() {
        let problems = Problems::default();
        problems.set("store", "refused");
        let first = problems.list();
        problems.set("store", "refused");
        assert_eq!(problems.list(), first);
        problems.report("store", None);
        assert!(problems.list().is_empty());
    }

    #[test]
    fn the_list_is_bounded() {
        let problems = Problems::default();
        for i in 0..PROBLEMS_MAX + 10 {
            problems.set(&format!("peer/{i}"), "x");
        }
        assert_eq!(problems.list().len(), PROBLEMS_MAX);
    }
}
