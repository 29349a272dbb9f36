//! Why a record was refused.

use serde::Serialize;
use thiserror::Error;

/// Why a record was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize)]
pub enum Rejection {
    /// The table of this cluster is full.
    #[error("the cluster has more than {limit} records of this kind")]
    TooMany {
        /// The limit.
        limit: usize,
    },
}
