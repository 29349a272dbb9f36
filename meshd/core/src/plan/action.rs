//! Actions on the kernel's routes and nexthop objects.

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use super::{ActualKey, GroupMember};
use crate::{desired::Hop, id::NexthopId};

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum RouteVia {
    /// A nexthop object or group of ours (`nhid`).
    Object(NexthopId),
    /// One or more gateways inside the route itself.
    Hops(Box<[Hop]>),
    /// Nowhere: packets are dropped (`blackhole`).
    Blackhole,
    /// There, with packets of at most so many bytes (`mtu`).
    Narrow(Box<Self>, u32),
}

impl RouteVia {
    /// The nexthop object of ours it refers to.
    #[must_use]
    pub fn object(&self) -> Option<NexthopId> {
        match self {
            Self::Object(id) => Some(*id),
            Self::Narrow(via, _) => via.object(),
            Self::Hops(_) | Self::Blackhole => None,
        }
    }

    /// The next hops in the route itself.
    #[must_use]
    pub fn hops(&self) -> &[Hop] {
        match self {
            Self::Hops(hops) => hops,
            Self::Narrow(via, _) => via.hops(),
            Self::Object(_) | Self::Blackhole => &[],
        }
    }
}

/// One change at the kernel. Every object carries protocol 77.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Add a nexthop object, or replace the one of ours with this id (`RTM_NEWNEXTHOP`).
    PutNexthop {
        /// Its id.
        id: NexthopId,
        /// Gateway and link.
        hop: Hop,
        /// True when an object of ours with this id exists.
        replace: bool,
    },
    /// Add or replace a group of nexthop objects.
    PutGroup {
        /// Its id.
        id: NexthopId,
        /// Members, sorted.
        members: Box<[GroupMember]>,
        /// True when a group of ours with this id exists.
        replace: bool,
    },
    /// Add a route (`NLM_F_CREATE|NLM_F_EXCL`), or replace the one of ours (`NLM_F_REPLACE`).
    PutRoute {
        /// Prefix, table and metric.
        key: ActualKey,
        /// Where it leads.
        via: RouteVia,
        /// True when a route of ours with this key exists.
        replace: bool,
    },
    /// Delete a route of ours.
    DeleteRoute {
        /// Prefix, table and metric.
        key: ActualKey,
    },
    /// Delete a nexthop object or group of ours, and with it the routes over it.
    DeleteNexthop {
        /// Its id.
        id: NexthopId,
        /// Routes of ours that go with it; all of them are unwanted.
        routes: usize,
    },
}

impl Action {
    /// The route the action is about, if any.
    #[must_use]
    pub fn prefix(&self) -> Option<IpNet> {
        match self {
            Self::PutRoute { key, .. } | Self::DeleteRoute { key } => Some(key.prefix),
            Self::PutNexthop { .. } | Self::PutGroup { .. } | Self::DeleteNexthop { .. } => None,
        }
    }

    /// True for deletions.
    #[must_use]
    pub fn is_delete(&self) -> bool {
        matches!(self, Self::DeleteRoute { .. } | Self::DeleteNexthop { .. })
    }

    /// The verb: `add`, `replace` or `delete`.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::PutNexthop { replace, .. } | Self::PutGroup { replace, .. } | Self::PutRoute { replace, .. } => {
                if *replace {
                    "replace"
                } else {
                    "add"
                }
            }
            Self::DeleteRoute { .. } | Self::DeleteNexthop { .. } => "delete",
        }
    }
}

impl fmt::Display for RouteVia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(id) => write!(f, "nhid {id}"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Narrow(via, mtu) => write!(f, "{via} mtu {mtu}"),
            Self::Hops(hops) => {
                for (i, hop) in hops.iter().enumerate() {
                    let space = if i == 0 { "" } else { " " };
                    write!(f, "{space}{hop}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.verb())?;
        match self {
            Self::PutNexthop { id, hop, .. } => write!(f, "nexthop {id} {hop}"),
            Self::PutGroup { id, members, .. } => {
                write!(f, "nexthop {id} group")?;
                members.iter().try_for_each(|member| match member.weight {
                    1 => write!(f, " {}", member.id),
                    weight => write!(f, " {},{weight}", member.id),
                })
            }
            Self::PutRoute { key, via, .. } => write!(f, "route {} {via} metric {}", key.prefix, key.metric),
            Self::DeleteRoute { key } => write!(f, "route {} metric {}", key.prefix, key.metric),
            Self::DeleteNexthop { id, routes: 0 } => write!(f, "nexthop {id}"),
            Self::DeleteNexthop { id, routes } => write!(f, "nexthop {id} with its {routes} routes"),
        }
    }
}
