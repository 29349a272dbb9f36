//! What a reader knows before it opens a record: whose store it is, and what that cluster may claim.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    address,
    rejection::{Excerpt, Overlap, Rejection},
};
use crate::id::{ClusterId, ClusterName, MaxClusters};

/// What a remote cluster may claim (`peers[].accept`). An empty list accepts nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accept {
    /// Prefixes its PodCIDRs and endpoints must lie in.
    pub pod_cidrs: Vec<IpNet>,
    /// Prefixes its node addresses must lie in.
    pub node_cidrs: Vec<IpNet>,
}

/// Everything the checks of one cluster's records need; built once per connection, when its cluster-config is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerContext {
    /// Name of the cluster whose store it is.
    pub cluster: ClusterName,
    /// Its id, from its cluster-config.
    pub id: ClusterId,
    /// Size of the mesh.
    pub max_clusters: MaxClusters,
    /// The cluster is our own and the records come from our own store: accept lists do not apply, and endpoints may lie
    /// in our own prefixes. Every other check stays.
    pub own: bool,
    /// What the cluster may claim.
    pub accept: Accept,
    /// PodCIDRs nobody else may claim: of this node, or of this cluster when the records are a remote cluster's.
    pub own_pod_cidrs: Vec<IpNet>,
    /// Addresses of this node, which no PodCIDR and no foreign record may contain.
    pub own_addresses: Vec<IpAddr>,
}

impl PeerContext {
    /// Checks the cluster a record names.
    pub(super) fn check_cluster(&self, found: &str) -> Result<(), Rejection> {
        if found == self.cluster.as_str() {
            return Ok(());
        }
        Err(Rejection::WrongCluster { found: Excerpt::new(found), expected: self.cluster.to_string() })
    }

    /// Checks the cluster id a record carries.
    pub(super) fn check_cluster_id(&self, found: u32) -> Result<(), Rejection> {
        if found == u32::from(self.id.get()) {
            return Ok(());
        }
        Err(Rejection::WrongClusterId { found, expected: self.id.get(), cluster: self.cluster.to_string() })
    }

    /// Checks that an identity number belongs to the cluster.
    pub(super) fn check_identity_range(&self, found: u32) -> Result<(), Rejection> {
        let range = self.id.identity_range(self.max_clusters);
        if range.contains(&found) {
            return Ok(());
        }
        Err(Rejection::IdentityOutOfRange { found, low: *range.start(), high: *range.end(), id: self.id.get() })
    }

    /// Checks a PodCIDR: a prefix of its own, inside the accept list, clear of ours.
    pub(super) fn check_pod_cidr(&self, field: &'static str, found: IpNet) -> Result<(), Rejection> {
        address::check_prefix(field, found)?;
        self.check_own_prefixes(field, found)?;
        self.check_own_addresses(field, found)?;
        if self.own || covers(&self.accept.pod_cidrs, found) {
            return Ok(());
        }
        let no_list = self.accept.pod_cidrs.is_empty();
        Err(Rejection::PodCidrNotAccepted { found, cluster: self.cluster.to_string(), no_list })
    }

    /// Checks an address that packets for the cluster may be sent to.
    pub(super) fn check_node_address(&self, field: &'static str, found: IpAddr) -> Result<(), Rejection> {
        address::check_address(field, found)?;
        self.check_own_prefixes(field, IpNet::from(found))?;
        if self.own || covers(&self.accept.node_cidrs, IpNet::from(found)) {
            return Ok(());
        }
        let no_list = self.accept.node_cidrs.is_empty();
        Err(Rejection::NodeAddressNotAccepted { found, cluster: self.cluster.to_string(), no_list })
    }

    /// Checks an address or prefix that is only looked up, never sent to by itself: endpoints, backends, routers.
    pub(super) fn check_endpoint(&self, field: &'static str, found: IpNet) -> Result<(), Rejection> {
        if found.prefix_len() == found.max_prefix_len() {
            address::check_address(field, found.addr())?;
        } else {
            address::check_prefix(field, found)?;
        }
        if self.own {
            return Ok(());
        }
        self.check_own_prefixes(field, found)?;
        self.check_own_addresses(field, found)?;
        if covers(&self.accept.pod_cidrs, found) || covers(&self.accept.node_cidrs, found) {
            return Ok(());
        }
        let no_list = self.accept.pod_cidrs.is_empty() && self.accept.node_cidrs.is_empty();
        Err(Rejection::AddressNotAccepted { field, found, cluster: self.cluster.to_string(), no_list })
    }

    fn check_own_prefixes(&self, field: &'static str, found: IpNet) -> Result<(), Rejection> {
        for own in &self.own_pod_cidrs {
            let overlap = match (own.contains(&found), found.contains(own)) {
                (true, true) => Overlap::Equal,
                (true, false) => Overlap::Inside,
                (false, true) => Overlap::Covers,
                (false, false) => continue,
            };
            return Err(Rejection::OwnPrefix { field, found, overlap, own: *own });
        }
        Ok(())
    }

    fn check_own_addresses(&self, field: &'static str, found: IpNet) -> Result<(), Rejection> {
        match self.own_addresses.iter().find(|own| found.contains(*own)) {
            Some(own) => Err(Rejection::OwnAddress { field, found, own: *own }),
            None => Ok(()),
        }
    }
}

fn covers(list: &[IpNet], found: IpNet) -> bool {
    list.iter().any(|prefix| prefix.contains(&found))
}
