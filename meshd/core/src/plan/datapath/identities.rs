//! Who has an address: workloads and nodes of all clusters.
//!
//! Several may claim one. The source that stands higher counts, whoever came first: our own cluster over others, a
//! workload over a node with the same address, the lower cluster id over the higher.

use std::{collections::BTreeMap, net::IpAddr};

use meshd_abi::Identity;

use super::{Write, v4, v6};

/// How much the word of a source counts; the lowest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// False for our own cluster.
    pub remote: bool,
    /// False for a workload.
    pub node: bool,
    /// Id of the cluster.
    pub cluster: u16,
}

/// Plans `IDENTITIES4` and `IDENTITIES6`.
#[derive(Debug, Default)]
pub struct IdentityPlanner {
    claims: BTreeMap<IpAddr, Vec<(Standing, Identity)>>,
}

impl IdentityPlanner {
    /// A source says who has an address; `None` takes it back. Returns the change of the map, if it is one.
    pub fn put(&mut self, address: IpAddr, standing: Standing, identity: Option<Identity>) -> Option<Write> {
        let claims = self.claims.entry(address).or_default();
        let before = claims.first().map(|(_, identity)| *identity);
        claims.retain(|(other, _)| *other != standing);
        if let Some(identity) = identity {
            let at = claims.partition_point(|(other, _)| *other < standing);
            claims.insert(at, (standing, identity));
        }
        let after = claims.first().map(|(_, identity)| *identity);
        if claims.is_empty() {
            self.claims.remove(&address);
        }
        (before != after).then(|| write(address, after))
    }

    /// Who has an address.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> Option<Identity> {
        self.claims.get(&address)?.first().map(|(_, identity)| *identity)
    }

    /// Addresses in the maps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }
}

fn write(address: IpAddr, identity: Option<Identity>) -> Write {
    match (v4(address), v6(address)) {
        (Some(address), _) => Write::Identity4(address, identity),
        (None, address) => Write::Identity6(address.unwrap_or_default(), identity),
    }
}
