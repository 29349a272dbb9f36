//! Who has an address: workloads and nodes of all clusters.
//!
//! Several may claim one. The source that stands higher counts, whoever came first: our own cluster over others, a
//! workload over a node with the same address, the lower cluster id over the higher.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use meshd_abi::{Identity, V4, V6};

use super::{Write, ip, v4, v6};
use crate::id::ClusterName;

/// Who says something about an address, and how much that counts; the lowest wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// False for our own cluster.
    pub remote: bool,
    /// False for a workload.
    pub node: bool,
    /// Id of the cluster, as far as it is known.
    pub cluster: u16,
    /// The cluster.
    pub name: ClusterName,
}

impl Standing {
    /// True when it is the same source, also if the id of its cluster was learned in between.
    fn is_of(&self, other: &Self) -> bool {
        self.name == other.name && self.node == other.node
    }
}

/// Plans `IDENTITIES4` and `IDENTITIES6`.
#[derive(Debug, Default)]
pub struct IdentityPlanner {
    claims: BTreeMap<IpAddr, Vec<(Standing, Identity)>>,
    /// What an earlier process wrote and nobody has claimed yet.
    inherited: HashMap<IpAddr, Identity>,
}

impl IdentityPlanner {
    /// Takes over what the maps hold.
    #[must_use]
    pub fn new(identities4: &[(V4, Identity)], identities6: &[(V6, Identity)]) -> Self {
        let four = identities4.iter().map(|(address, identity)| (ip(*address), *identity));
        let six = identities6.iter().map(|(address, identity)| (ip(*address), *identity));
        Self { claims: BTreeMap::new(), inherited: four.chain(six).collect() }
    }

    /// A source says who has an address; `None` takes it back. Returns the change of the map, if it is one.
    pub fn put(&mut self, address: IpAddr, standing: &Standing, identity: Option<Identity>) -> Option<Write> {
        let inherited = self.inherited.remove(&address);
        let claims = self.claims.entry(address).or_default();
        let before = claims.first().map(|(_, identity)| *identity).or(inherited);
        claims.retain(|(other, _)| !other.is_of(standing));
        if let Some(identity) = identity {
            let at = claims.partition_point(|(other, _)| other < standing);
            claims.insert(at, (standing.clone(), identity));
        }
        let after = claims.first().map(|(_, identity)| *identity);
        if claims.is_empty() {
            self.claims.remove(&address);
        }
        (before != after).then(|| write(address, after))
    }

    /// Removes what an earlier process wrote and nobody has claimed since: to be called when every list is complete.
    pub fn finish(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.inherited).into_keys().map(|address| write(address, None)).collect()
    }

    /// By which next hop the fast path reaches a workload; 0: through the stack. What a node has goes through the stack always.
    pub fn set_way(&mut self, address: IpAddr, way: u32) -> Option<Write> {
        let claims = self.claims.get_mut(&address)?;
        let before = claims.first().map(|(_, identity)| *identity);
        for (_, identity) in claims.iter_mut().filter(|(standing, _)| !standing.node) {
            identity.way = way;
        }
        let after = claims.first().map(|(_, identity)| *identity);
        (before != after).then(|| write(address, after))
    }

    /// The next hop of an address as it is written, maybe by an earlier process.
    #[must_use]
    pub fn way(&self, address: IpAddr) -> u32 {
        self.find(address).or_else(|| self.inherited.get(&address).copied()).map_or(0, |identity| identity.way)
    }

    /// Next hops that records name, also those of an earlier process: none of them may become another neighbor's.
    #[must_use]
    pub fn ways(&self) -> BTreeSet<u32> {
        let claimed = self.claims.values().flatten().map(|(_, identity)| identity.way);
        claimed.chain(self.inherited.values().map(|identity| identity.way)).filter(|way| *way != 0).collect()
    }

    /// Addresses that are a workload's.
    pub fn workloads(&self) -> impl Iterator<Item = IpAddr> {
        let is_workload =
            |claims: &Vec<(Standing, Identity)>| claims.first().is_some_and(|(standing, _)| !standing.node);
        self.claims.iter().filter(move |(_, claims)| is_workload(claims)).map(|(address, _)| *address)
    }

    /// Who has an address.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> Option<Identity> {
        self.claims.get(&address)?.first().map(|(_, identity)| *identity)
    }

    /// Addresses in the maps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.claims.len() + self.inherited.len()
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn write(address: IpAddr, identity: Option<Identity>) -> Write {
    match (v4(address), v6(address)) {
        (Some(address), _) => Write::Identity4(address, identity),
        (None, address) => Write::Identity6(address.unwrap_or_default(), identity),
    }
}
