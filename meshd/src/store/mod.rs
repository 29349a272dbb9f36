//! The client side of a store: how meshd reaches any etcd v3, its own embedded store included.
//!
//! A [`StoreAddress`] is what configuration says; [`StoreAddress::connect`] turns it into one connection with an etcd
//! client on top. There is no hidden reconnecting below that client: when the connection ends every call on it fails,
//! and whoever owns it decides when to connect again (the reader of a cluster, the exporter). Certificate, key and
//! authority are read from their files at every connection, so a rotated certificate needs no restart, and the members
//! of the store are tried in an order that differs from node to node, so that they share the load.

mod connect;
mod error;
pub mod own;
mod tls;

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use tonic::transport::Channel;

pub use connect::CONNECT_TIMEOUT;
pub use error::{ConnectError, RpcFailure, cancel_reason, chain};

use crate::config::model::{Endpoint, TlsFiles};

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteStore {
    /// Its members.
    pub endpoints: Vec<Endpoint>,
    /// The certificate to use there.
    pub tls: Option<TlsFiles>,
    /// Addresses of names in `endpoints`, asked before DNS.
    pub host_aliases: BTreeMap<String, Vec<IpAddr>>,
}

/// Where a store is: over the network, or inside this process.
#[derive(Clone)]
pub enum StoreAddress {
    /// Members on the network.
    Remote(Arc<RemoteStore>),
    /// The embedded store of this process.
    Local(Channel),
}

impl StoreAddress {
    /// Its members as text, for display.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        match self {
            Self::Remote(remote) => remote.endpoints.iter().map(|endpoint| endpoint.to_string().into()).collect(),
            Self::Local(_) => vec!["embedded".into()],
        }
    }
}

impl fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(remote) => remote.fmt(f),
            Self::Local(_) => f.write_str("embedded"),
        }
    }
}
