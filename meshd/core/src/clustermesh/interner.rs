//! One allocation per distinct namespace instead of one per endpoint.

use std::{collections::BTreeSet, sync::Arc};

/// Most texts one interner holds; what comes after is allocated by itself.
pub const INTERNER_MAX: usize = 16_384;
/// Longest text worth sharing; a Kubernetes namespace has at most 63 characters.
pub const INTERNED_LEN_MAX: usize = 63;

/// Shares equal texts. Keep one per cluster and drop it with the cluster.
#[derive(Debug, Default)]
pub struct Interner {
    known: BTreeSet<Arc<str>>,
    last: Option<Arc<str>>,
}

impl Interner {
    /// The shared copy of `text`.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        // Lists come in key order, and neighbours often share a namespace.
        if let Some(last) = self.last.as_ref().filter(|last| ***last == *text) {
            return last.clone();
        }
        let shared = match self.known.get(text) {
            Some(known) => known.clone(),
            None => {
                let new: Arc<str> = text.into();
                if self.known.len() < INTERNER_MAX && text.len() <= INTERNED_LEN_MAX {
                    self.known.insert(new.clone());
                }
                new
            }
        };
        self.last = Some(shared.clone());
        shared
    }

    /// Forgets texts that nobody else holds any more.
    pub fn shrink(&mut self) {
        self.last = None;
        self.known.retain(|text| Arc::strong_count(text) > 1);
    }

    /// Number of texts held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True when nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_shared_and_the_set_is_bounded() {
        let mut interner = Interner::default();
        let a = interner.intern("billing");
        interner.intern("other");
        assert!(Arc::ptr_eq(&a, &interner.intern("billing")));
        for i in 0..INTERNER_MAX + 10 {
            interner.intern(&format!("ns-{i}"));
        }
        assert_eq!(interner.len(), INTERNER_MAX);
        interner.intern(&"x".repeat(INTERNED_LEN_MAX + 1));
        assert_eq!(interner.len(), INTERNER_MAX);
        interner.shrink();
        assert_eq!(interner.len(), 1, "only what somebody holds stays");
    }
}
