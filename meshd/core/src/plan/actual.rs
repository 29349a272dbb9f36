//! What the kernel holds of ours, as the kernel told it.

use ipnet::IpNet;
use serde::Serialize;

use super::RouteVia;
use crate::{
    desired::Hop,
    id::{Metric, NexthopId, TableId},
};

/// What makes a route of ours unique in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ActualKey {
    /// Destination.
    pub prefix: IpNet,
    /// Route table.
    pub table: TableId,
    /// Metric.
    pub metric: Metric,
}

/// A route with our protocol number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActualRoute {
    /// Where it leads.
    pub via: RouteVia,
    /// False when it carries our protocol but is not a plain unicast route as we install them (changed by hand): it is
    /// replaced.
    pub regular: bool,
}

/// A nexthop object in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct GroupMember {
    /// Its id.
    pub id: NexthopId,
    /// Its share of the traffic, at least 1.
    pub weight: u8,
}

impl From<NexthopId> for GroupMember {
    fn from(id: NexthopId) -> Self {
        Self { id, weight: 1 }
    }
}

/// A nexthop object with an id in our range, and our protocol number unless it is [`Self::Foreign`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActualNexthop {
    /// Gateway and link.
    Hop(Hop),
    /// Group of objects, sorted.
    Group(Box<[GroupMember]>),
    /// Something we never install (changed by hand): it is replaced.
    Irregular,
    /// An object of somebody else. It stays as it is, and its id is passed over.
    Foreign,
}

/// One message about the actual tables, in the order the kernel told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActualChange {
    /// A full dump of our nexthop objects and routes begins.
    DumpBegin,
    /// The dump was broken off; another follows.
    DumpAbort,
    /// The dump is complete: what it did not tell is gone.
    DumpEnd,
    /// A nexthop object exists with this content, or (`None`) is gone.
    Nexthop(NexthopId, Option<ActualNexthop>),
    /// A route exists with this content, or (`None`) is gone.
    Route(ActualKey, Option<ActualRoute>),
}
