//! Who has an address: workloads and nodes of all clusters; and what is known of prefixes, which nobody has.
//!
//! Several may claim one. The source that stands higher counts, whoever came first: our own cluster over others, a
//! workload over a node with the same address, the lower cluster id over the higher.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use meshd_abi::{CidrKey, Identity, V4, V6};

use super::{Write, ip, v4, v6};
use crate::id::{ClusterName, NodeName};

/// What an address is to whoever says something about it. The first counts most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A workload's, or a prefix.
    Workload,
    /// A node's own.
    Node,
    /// That of what answers the health checks of a node.
    Health,
    /// That of a node's ingress.
    Ingress,
}

/// Who says something about an address, and how much that counts; the lowest wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// False for our own cluster.
    pub remote: bool,
    /// What it is.
    pub role: Role,
    /// Id of the cluster, as far as it is known.
    pub cluster: u16,
    /// The cluster.
    pub name: ClusterName,
    /// The node whose record says it; `None` for workloads, of which an address has one.
    pub node: Option<NodeName>,
}

impl Standing {
    /// True when it is the same source, also if the id of its cluster was learned in between.
    fn is_of(&self, other: &Self) -> bool {
        (self.role, &self.name, &self.node) == (other.role, &other.name, &other.node)
    }
}

/// Elements of the maps, those of IPv4 first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct IdentityUse {
    /// Whole addresses.
    pub addresses: [usize; 2],
    /// Prefixes.
    pub prefixes: [usize; 2],
}

impl IdentityUse {
    fn of(&mut self, prefix: &IpNet) -> &mut usize {
        let counts = if is_whole(prefix) { &mut self.addresses } else { &mut self.prefixes };
        &mut counts[usize::from(prefix.addr().is_ipv6())]
    }
}

/// Plans `IDENTITIES4` and `IDENTITIES6` with whole addresses, `CIDRS4` and `CIDRS6` with what is shorter.
#[derive(Debug, Default)]
pub struct IdentityPlanner {
    claims: BTreeMap<IpNet, Vec<(Standing, Identity)>>,
    /// What an earlier process wrote and nobody has claimed yet.
    inherited: HashMap<IpNet, Identity>,
    /// Elements of the maps.
    used: IdentityUse,
}

impl IdentityPlanner {
    /// Takes over what the maps hold.
    #[must_use]
    pub fn new(identities4: &[(V4, Identity)], identities6: &[(V6, Identity)]) -> Self {
        let four = identities4.iter().map(|(address, identity)| (ip(*address), *identity));
        let six = identities6.iter().map(|(address, identity)| (ip(*address), *identity));
        let inherited = four.chain(six).map(|(address, identity)| (IpNet::from(address), identity));
        Self::default().with_prefixes(inherited)
    }

    /// The same with prefixes.
    #[must_use]
    pub fn with_prefixes(mut self, prefixes: impl IntoIterator<Item = (IpNet, Identity)>) -> Self {
        for (prefix, identity) in prefixes {
            if self.inherited.insert(prefix, identity).is_none() {
                *self.used.of(&prefix) += 1;
            }
        }
        self
    }

    /// A source says who has an address, or what holds for a prefix; `None` takes it back. Returns the change of the map, if it is one.
    pub fn put(&mut self, prefix: impl Into<IpNet>, standing: &Standing, identity: Option<Identity>) -> Option<Write> {
        let prefix = prefix.into();
        let inherited = self.inherited.remove(&prefix);
        let claims = self.claims.entry(prefix).or_default();
        let before = claims.first().map(|(_, identity)| *identity).or(inherited);
        claims.retain(|(other, _)| !other.is_of(standing));
        if let Some(identity) = identity {
            let at = claims.partition_point(|(other, _)| other < standing);
            claims.insert(at, (standing.clone(), identity));
        }
        let after = claims.first().map(|(_, identity)| *identity);
        if claims.is_empty() {
            self.claims.remove(&prefix);
        }
        let used = self.used.of(&prefix);
        *used = *used + usize::from(after.is_some()) - usize::from(before.is_some());
        (before != after).then(|| write(prefix, after))
    }

    /// Removes what an earlier process wrote and nobody has claimed since: to be called when every list is complete.
    pub fn finish(&mut self) -> Vec<Write> {
        let used = &mut self.used;
        let remove = |prefix: IpNet| {
            *used.of(&prefix) -= 1;
            write(prefix, None)
        };
        std::mem::take(&mut self.inherited).into_keys().map(remove).collect()
    }

    /// By which next hop the fast path reaches a workload; 0: through the stack. What a node has goes through the stack always.
    pub fn set_way(&mut self, address: IpAddr, way: u32) -> Option<Write> {
        let prefix = IpNet::from(address);
        let claims = self.claims.get_mut(&prefix)?;
        let before = claims.first().map(|(_, identity)| *identity);
        for (_, identity) in claims.iter_mut().filter(|(standing, _)| standing.role == Role::Workload) {
            identity.way = way;
        }
        let after = claims.first().map(|(_, identity)| *identity);
        (before != after).then(|| write(prefix, after))
    }

    /// The next hop of an address as it is written, maybe by an earlier process.
    #[must_use]
    pub fn way(&self, address: IpAddr) -> u32 {
        self.find(address).or_else(|| self.inherited.get(&address.into()).copied()).map_or(0, |identity| identity.way)
    }

    /// Next hops that records name, also those of an earlier process: none of them may become another neighbor's.
    #[must_use]
    pub fn ways(&self) -> BTreeSet<u32> {
        let claimed = self.claims.values().flatten().map(|(_, identity)| identity.way);
        claimed.chain(self.inherited.values().map(|identity| identity.way)).filter(|way| *way != 0).collect()
    }

    /// Addresses that are a workload's.
    pub fn workloads(&self) -> impl Iterator<Item = IpAddr> {
        let is_workload = |claims: &Vec<(Standing, Identity)>| {
            claims.first().is_some_and(|(standing, _)| standing.role == Role::Workload)
        };
        let is_address = |prefix: &IpNet| is_whole(prefix);
        let workloads = self.claims.iter().filter(move |(prefix, claims)| is_address(prefix) && is_workload(claims));
        workloads.map(|(prefix, _)| prefix.addr())
    }

    /// Who has an address.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> Option<Identity> {
        self.claims.get(&address.into())?.first().map(|(_, identity)| *identity)
    }

    /// How many elements the maps have.
    #[must_use]
    pub const fn used(&self) -> IdentityUse {
        self.used
    }
}

/// True for a prefix of one address.
fn is_whole(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

fn write(prefix: IpNet, identity: Option<Identity>) -> Write {
    let length = prefix.prefix_len().into();
    match (v4(prefix.addr()), v6(prefix.addr())) {
        (Some(address), _) if is_whole(&prefix) => Write::Identity4(address, identity),
        (Some(address), _) => Write::Cidr4(CidrKey { length, address }, identity),
        (None, address) => {
            let address = address.unwrap_or_default();
            if is_whole(&prefix) {
                Write::Identity6(address, identity)
            } else {
                Write::Cidr6(CidrKey { length, address }, identity)
            }
        }
    }
}
