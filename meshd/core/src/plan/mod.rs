//! Desired against actual: an ordered list of actions, before the first system call.
//!
//! [`RoutePlanner`] keeps the actual table (fed only by what the kernel says: a dump, then its notifications, I6) and the
//! ids of our nexthop objects. A plan is ordered so that forwarding state is added or replaced before anything is
//! deleted (I8), and nothing without our mark is ever named in it (I5).

mod action;
mod actual;
pub mod datapath;

mod masquerade;
mod nexthops;
mod planner;
mod tunnel;

pub use action::{Action, RouteVia};
pub use actual::{ActualChange, ActualKey, ActualNexthop, ActualRoute, GroupMember};
pub use masquerade::{HeldMasquerade, MasqueradePlanner, MasqueradeStep};
pub use planner::{
    FLUSH_ROUTES_MIN, PLAN_ACTIONS_MAX, PlannerOptions, RETRY_MAX, RETRY_MIN, RoutePlanner, WITHDRAW_HOLD,
};
pub use tunnel::{HeldTunnel, MTU_MIN, TunnelStep, TunnelWish, plan_tunnel, tunnel_mtu};
