//! Records we refused, and why (invariant I12).

use jiff::Timestamp;
use serde::Serialize;

use super::Kind;
pub use crate::clustermesh::Rejection;

/// A refused record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RejectedRow {
    /// Kind of record; `None` when the key fits no kind.
    pub kind: Option<Kind>,
    /// Why it was refused.
    pub reason: Rejection,
    /// Since when.
    pub since: Timestamp,
}
