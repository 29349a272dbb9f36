//! What the local kernel says: links, addresses, foreign routes, rules, neighbors.
//!
//! One thread subscribes, dumps and follows ([`watch`]); parsing is `netlink-packet-route`'s, and the way from its messages
//! to observed rows is [`convert`]. The rows go into the pipeline's bounded queue in batches, each dump between
//! `ListBegin` and `ListEnd` of its kind, so that what a dump does not tell is swept.
//!
//! Our own routes do not come this way: a socket filter inside the kernel keeps them out, and [`crate::kernel`] follows
//! them. Neither do the local table, multicast, broadcast and cached routes, and bridge forwarding entries.
//!
//! A node with a full Internet table must not make us hold a million rows nobody asks for. Beyond
//! [`FOREIGN_ROUTES_MAX`] foreign routes only connected ones (without a gateway) are taken; the others are counted and
//! the problem `netlink` says so. What is lost then is the knowledge that a more specific route leads elsewhere: a node
//! address that lies in a connected prefix counts as on-link although an unread route may say otherwise.
//!
//! What is ugly: the kernel drops IPv4 routes over a link that goes down without saying so, and reports a replaced route
//! without saying which one it replaced. Both lead to a new dump of the routes some milliseconds later.

mod convert;
mod watch;

pub(crate) use watch::parse;
pub use watch::{FOREIGN_ROUTES_MAX, NetlinkSource};
