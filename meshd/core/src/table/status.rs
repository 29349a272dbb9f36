//! What a reconciler reports about a desired row.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

/// State of a desired row at its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RowState {
    /// Not tried yet, or being tried.
    Pending,
    /// The target holds the row.
    Done,
    /// The target refused it, or it cannot be built; the text says why.
    Error(Arc<str>),
}

/// Row state with the time it was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowStatus {
    /// The state.
    pub state: RowState,
    /// Since when.
    pub since: Timestamp,
}
