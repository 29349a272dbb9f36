//! Addresses and the identity behind them.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::id::NumericIdentity;

/// An address or prefix and who is behind it. Kept small: a mesh has hundreds of thousands of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRow {
    /// Who it is.
    pub identity: NumericIdentity,
    /// Node that owns it; `None` when the record has none.
    pub host: Option<IpAddr>,
    /// Encryption key index; 255 means WireGuard.
    pub encryption_key: u8,
    /// Kubernetes namespace, empty when unknown. Shared between endpoints of one namespace.
    pub namespace: Arc<str>,
    /// Pod or workload name, empty when unknown.
    pub name: Box<str>,
}
