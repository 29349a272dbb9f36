//! Observed to desired: one pure function per desired table.
//!
//! [`RouteDeriver`] looks only at what was touched and keeps the indexes it needs for that (claims by prefix, nodes by
//! address), so that one changed node costs a few tree lookups whatever the size of the mesh (I11). Two smaller parts
//! decide the two hard questions: [`PrefixOwners`] says which cluster may have a prefix, [`OnLink`] says through which
//! link an address is directly reachable.

mod onlink;
mod owner;
mod route;

pub use onlink::{OnLink, OnLinkAnswer};
pub use owner::{Claim, PrefixOwners, Verdict};
pub use route::{LocalNode, RouteDeriver};
