//! Observed to desired: one pure function per desired table.
//!
//! [`RouteDeriver`] looks only at what was touched and keeps the indexes it needs for that (claims by prefix, nodes by
//! address), so that one changed node costs a few tree lookups whatever the size of the mesh (I11). Three smaller
//! parts decide the hard questions: [`PrefixOwners`] says which cluster may have a prefix, [`OnLink`] says through which
//! link an address is directly reachable, and `underlay` says which prefixes nobody may have, because a route to them
//! would take away the network the mesh stands on. [`MasqueradeDeriver`] comes after it: the prefixes that have an owner are
//! those between which no address is translated.
//!
//! [`PathPolicy`] says which nodes are reached natively and which through a tunnel.
//!
//! [`ServiceDeriver`] merges the services of our own cluster with what other clusters share, in the same way: one changed
//! endpoint or remote service derives the services concerned again, and no other.

mod masquerade;
mod onlink;
mod owner;
mod path;
mod route;
mod service;
mod underlay;

pub use masquerade::MasqueradeDeriver;
pub use onlink::{OnLink, OnLinkAnswer};
pub use owner::{Claim, PrefixOwners, Verdict};
pub use path::{OVERHEAD_V4, OVERHEAD_V6, PathMode, PathPolicy, TunnelSettings};
pub use route::{LocalNode, RouteDeriver};
pub use service::{REMOTE_TIMEOUT, ServiceDeriver, ZONE_LABEL};
