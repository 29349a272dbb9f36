//! What the kernel's programs are to find in their maps.
//!
//! Each part is a planner of its own, fed with what changed and answering with [`Write`]s in the order in which they must be
//! carried out: a service is written after its members, and what it no longer needs is freed after that (invariant I8). What the
//! maps held when the process started is taken over by content, so that known connections keep their backends.

mod direct;
mod exclusions;
mod hops;
mod identities;
mod ranges;
mod services;
mod space;
mod tunnels;
mod ways;

pub use exclusions::{ExclusionPlanner, prefix4, prefix6};
pub use hops::{Hop, HopPlanner, Neighbor};
pub use identities::{IdentityPlanner, IdentityUse, Role, Standing};
pub use services::{Carried, Existing, ServicePlan, ServicePlanner, ServiceSettings, digest_of};
pub use tunnels::{TunnelPlan, TunnelPlanner};
pub use ways::{Way, Ways};

use std::net::IpAddr;

use meshd_abi::{
    Address, Backend, CidrKey, Direct, Identity, MAGLEV_CHUNK, NeighborKey, NextHop, RangeKey, ReceiverKey, Service,
    ServiceKey, Tunnel, V4, V6,
};

/// A change to a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A backend of IPv4.
    Backend4(u32, Backend<V4>),
    /// A backend of IPv6.
    Backend6(u32, Backend<V6>),
    /// The node of a backend of IPv4.
    Direct4(u32, Direct<V4>),
    /// The node of a backend of IPv6.
    Direct6(u32, Direct<V6>),
    /// A backend of IPv4 that other nodes may send to, with its index; `None` removes it.
    Receiver4(ReceiverKey<V4>, Option<u32>),
    /// A backend of IPv6 that other nodes may send to, with its index; `None` removes it.
    Receiver6(ReceiverKey<V6>, Option<u32>),
    /// Members from this place on.
    Members(u32, Vec<u32>),
    /// A chunk of a Maglev table.
    Chunk(u32, Box<[u16; MAGLEV_CHUNK]>),
    /// A frontend of IPv4; `None` removes it.
    Service4(ServiceKey<V4>, Option<Service>),
    /// A frontend of IPv6; `None` removes it.
    Service6(ServiceKey<V6>, Option<Service>),
    /// A source range of a service of IPv4, wanted or not.
    Range4(RangeKey<V4>, bool),
    /// The same of IPv6.
    Range6(RangeKey<V6>, bool),
    /// A neighbor.
    NextHop(u32, NextHop),
    /// A neighbor by its link-layer address; `None` removes it.
    Neighbor(NeighborKey, Option<u32>),
    /// A far end of the tunnel.
    Tunnel(u32, Tunnel),
    /// A far end by its address, in the form of [`V6::mapped`]; `None` removes it.
    FarEnd(V6, Option<u32>),
    /// Who has an address of IPv4; `None` removes it.
    Identity4(V4, Option<Identity>),
    /// Who has an address of IPv6; `None` removes it.
    Identity6(V6, Option<Identity>),
    /// What is known of a prefix of IPv4; `None` removes it.
    Cidr4(CidrKey<V4>, Option<Identity>),
    /// The same of IPv6.
    Cidr6(CidrKey<V6>, Option<Identity>),
    /// What masquerade thinks of a prefix of IPv4 (`mesh_flags`); `None` removes it.
    Mesh4(CidrKey<V4>, Option<u32>),
    /// The same of IPv6.
    Mesh6(CidrKey<V6>, Option<u32>),
}

/// An address as maps have it.
fn v4(address: IpAddr) -> Option<V4> {
    match address {
        IpAddr::V4(address) => Some(V4::from_octets(address.octets())),
        IpAddr::V6(_) => None,
    }
}

/// See [`v4`].
fn v6(address: IpAddr) -> Option<V6> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(V6::from_octets(address.octets())),
    }
}

/// The address that a map's words are.
fn ip<A: Address>(address: A) -> IpAddr {
    let [a, b, c, d] = address.words();
    if A::IS_V4 { IpAddr::from(V4(a).octets()) } else { IpAddr::from(V6([a, b, c, d]).octets()) }
}

#[cfg(test)]
mod tests;
