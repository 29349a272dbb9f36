//! Security identities: a number for a set of labels.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Labels in canonical text form: `source:key=value;` sorted by key, as on the wire (contract section 1.5). Node labels use
/// the same form without a source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub Arc<str>);

impl Default for Labels {
    fn default() -> Self {
        Self("".into())
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Labels {
    /// Labels of a node, which have no source: sorted by key, and without `;` and `=` in what is given.
    #[must_use]
    pub fn of_node<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(labels.into_iter().map(|(key, value)| format!("{key}={value};")).collect::<String>().into())
    }

    /// The labels as `(source, key, value)`; pieces without a colon have an empty source.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.0.split(';').filter(|piece| !piece.is_empty()).map(|piece| {
            let (left, value) = piece.split_once('=').unwrap_or((piece, ""));
            let (source, key) = left.split_once(':').unwrap_or(("", left));
            (source, key, value)
        })
    }
}

/// An identity as its cluster published it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRow {
    /// Its labels.
    pub labels: Labels,
}
