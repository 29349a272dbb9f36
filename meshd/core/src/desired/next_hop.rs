//! What became of BGP next hops.

use std::sync::Arc;

use serde::Serialize;

use super::Hop;

/// How the kernel reaches a BGP next hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Resolution {
    /// Through this gateway (the next hop itself when it is on-link).
    Reachable {
        /// Where packets go.
        hop: Hop,
        /// MTU of the link, in bytes.
        mtu: u32,
        /// Metric of the route that leads there; 0 for a connected network.
        metric: u32,
    },
    /// Not at all; the text says why.
    Unreachable(Arc<str>),
    /// The links and routes have not been read yet.
    Unknown,
}

impl Resolution {
    /// True with a usable gateway.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        matches!(self, Self::Reachable { .. })
    }
}
