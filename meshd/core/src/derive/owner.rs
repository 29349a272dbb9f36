//! Who may have a prefix.
//!
//! A cluster that was granted a prefix keeps it; a later claim by another cluster that equals it, lies inside it or covers
//! it waits. Our own node's prefixes and addresses are granted for ever, our own cluster outranks every other. While the
//! mesh is *unsettled* (a cold start: not every configured cluster has been heard) a lower cluster id may still displace a
//! higher one, so that the outcome of a cold start does not depend on who answers first; grants remembered from before
//! the restart are never displaced. Within one cluster the alphabetically first node that claims a prefix gets it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use crate::id::{ClusterId, ClusterName, NodeName};

/// One node claiming one prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The prefix.
    pub prefix: IpNet,
    /// The cluster of the node.
    pub cluster: ClusterName,
    /// The node.
    pub node: NodeName,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The node has the prefix.
    Granted,
    /// Another cluster, or another node of the same cluster, has `owned`.
    Refused {
        /// The prefix in the way.
        owned: IpNet,
        /// Who has it.
        owner: ClusterName,
    },
    /// The claim is gone.
    Withdrawn,
}

#[derive(Debug, Clone)]
struct Grant {
    cluster: ClusterName,
    rank: u16,
    firm: bool,
    nodes: BTreeSet<NodeName>,
}

/// Grants and waiting claims.
#[derive(Debug, Clone)]
pub struct PrefixOwners {
    own: ClusterName,
    grants: JointPrefixMap<IpNet, Grant>,
    waiting: BTreeMap<Claim, u16>,
    reserved: JointPrefixMap<IpNet, ()>,
    remembered: BTreeMap<IpNet, ClusterName>,
    settled: bool,
}

/// Rank of our own cluster: before every cluster id.
const OWN_RANK: u16 = 0;

impl PrefixOwners {
    /// Owners for a node of cluster `own`; `reserved` are the node's own PodCIDRs and addresses, `remembered` the grants
    /// of the previous run.
    #[must_use]
    pub fn new(own: ClusterName, reserved: &[IpNet], remembered: BTreeMap<IpNet, ClusterName>) -> Self {
        let mut map = JointPrefixMap::new();
        for prefix in reserved {
            map.insert(*prefix, ());
        }
        Self { own, grants: JointPrefixMap::new(), waiting: BTreeMap::new(), reserved: map, remembered, settled: false }
    }

    /// Says that every configured cluster has been heard: grants are final from here on.
    pub fn settle(&mut self) {
        self.settled = true;
        self.remembered.clear();
    }

    /// True once [`Self::settle`] was called.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The owner of each granted prefix, to be remembered across a restart.
    pub fn granted(&self) -> impl Iterator<Item = (IpNet, &ClusterName)> {
        self.grants.iter().map(|(prefix, grant)| (prefix, &grant.cluster))
    }

    /// The node that has exactly this prefix.
    #[must_use]
    pub fn holder(&self, prefix: &IpNet) -> Option<(&ClusterName, &NodeName)> {
        let grant = self.grants.get(prefix)?;
        Some((&grant.cluster, grant.nodes.first()?))
    }

    /// True when the cluster has this prefix, or had it before the restart.
    #[must_use]
    pub fn is_established(&self, prefix: IpNet, cluster: &ClusterName) -> bool {
        let grant = self.grants.get(&prefix).map(|grant| &grant.cluster);
        grant.or_else(|| self.remembered.get(&prefix)) == Some(cluster)
    }

    /// Applies withdrawals, then claims, and returns what changed for whom. Claims that waited are looked at again when
    /// something overlapping them was given up.
    pub fn update(&mut self, withdrawn: &[Claim], mut claims: Vec<(Claim, ClusterId)>) -> BTreeMap<Claim, Verdict> {
        let mut verdicts = BTreeMap::new();
        let mut freed = Vec::new();
        for claim in withdrawn {
            self.withdraw(claim, &mut freed);
            verdicts.insert(claim.clone(), Verdict::Withdrawn);
        }
        let rank_of = |claim: &Claim, id: ClusterId| if claim.cluster == self.own { OWN_RANK } else { id.get() };
        let mut queue: BTreeMap<(bool, u16, Claim), ()> = BTreeMap::new();
        for (claim, id) in claims.drain(..) {
            let rank = rank_of(&claim, id);
            queue.insert((!self.is_remembered(&claim), rank, claim), ());
        }
        for (claim, rank) in self.waiting_over(&freed) {
            queue.entry((!self.is_remembered(&claim), rank, claim)).or_default();
        }
        while let Some(((_, rank, claim), ())) = queue.pop_first() {
            let mut displaced = Vec::new();
            let verdict = self.consider(&claim, rank, &mut displaced);
            verdicts.insert(claim, verdict);
            // What the losers held is free where the winner does not take it: others may have waited for that.
            let freed: Vec<IpNet> = displaced.iter().map(|(loser, _)| loser.prefix).collect();
            for (loser, rank) in displaced.into_iter().chain(self.waiting_over(&freed)) {
                queue.insert((!self.is_remembered(&loser), rank, loser), ());
            }
        }
        verdicts
    }

    fn is_remembered(&self, claim: &Claim) -> bool {
        self.remembered.get(&claim.prefix) == Some(&claim.cluster)
    }

    fn withdraw(&mut self, claim: &Claim, freed: &mut Vec<IpNet>) {
        self.waiting.remove(claim);
        let Some(grant) = self.grants.get_mut(&claim.prefix) else { return };
        if grant.cluster == claim.cluster && grant.nodes.remove(&claim.node) {
            // A second node of the cluster may wait behind the one that left, so this counts as freed as well.
            freed.push(claim.prefix);
            if grant.nodes.is_empty() {
                self.grants.remove(&claim.prefix);
            }
        }
    }

    fn waiting_over(&self, freed: &[IpNet]) -> Vec<(Claim, u16)> {
        if freed.is_empty() {
            return Vec::new();
        }
        let overlaps = |claim: &Claim| freed.iter().any(|f| overlap(f, &claim.prefix));
        self.waiting.iter().filter(|(claim, _)| overlaps(claim)).map(|(claim, rank)| (claim.clone(), *rank)).collect()
    }

    fn consider(&mut self, claim: &Claim, rank: u16, displaced: &mut Vec<(Claim, u16)>) -> Verdict {
        let firm = self.settled || self.is_remembered(claim);
        let verdict = match self.obstacle(claim, rank, firm) {
            Some((owned, owner)) => Verdict::Refused { owned, owner },
            None => Verdict::Granted,
        };
        if let Verdict::Refused { .. } = verdict {
            self.waiting.insert(claim.clone(), rank);
            return verdict;
        }
        self.waiting.remove(claim);
        for prefix in self.foreign_overlaps(claim) {
            if let Some(grant) = self.grants.remove(&prefix) {
                let losers = grant.nodes.into_iter().map(|node| Claim { prefix, cluster: grant.cluster.clone(), node });
                displaced.extend(losers.map(|loser| (loser, grant.rank)));
            }
        }
        match self.grants.get_mut(&claim.prefix) {
            Some(grant) => {
                if let Some(holder) = grant.nodes.first().filter(|node| **node > claim.node).cloned() {
                    // The alphabetically first node of a cluster holds a prefix two of its nodes claim.
                    grant.nodes.clear();
                    displaced.push((Claim { node: holder, ..claim.clone() }, rank));
                }
                grant.nodes.insert(claim.node.clone());
            }
            None => {
                let nodes = BTreeSet::from([claim.node.clone()]);
                self.grants.insert(claim.prefix, Grant { cluster: claim.cluster.clone(), rank, firm, nodes });
            }
        }
        verdict
    }

    /// What stands against the claim, or `None` when it can be granted (perhaps by displacing others).
    fn obstacle(&self, claim: &Claim, rank: u16, firm: bool) -> Option<(IpNet, ClusterName)> {
        if let Some(prefix) = first_overlap(&self.reserved, &claim.prefix) {
            return Some((prefix, self.own.clone()));
        }
        for prefix in self.foreign_overlaps(claim) {
            let grant = self.grants.get(&prefix)?;
            // Nothing displaces our own cluster, or the two would displace each other for ever.
            let yields = !self.settled && !grant.firm && grant.rank != OWN_RANK;
            let outranked = rank == OWN_RANK || (yields && (firm || rank < grant.rank));
            if !outranked {
                return Some((prefix, grant.cluster.clone()));
            }
        }
        let same = self.grants.get(&claim.prefix)?;
        let holder = same.nodes.first()?;
        (same.cluster == claim.cluster && *holder < claim.node).then(|| (claim.prefix, claim.cluster.clone()))
    }

    fn foreign_overlaps(&self, claim: &Claim) -> Vec<IpNet> {
        let cover = self.grants.cover(&claim.prefix);
        let inside = self.grants.children(&claim.prefix);
        let mut found: Vec<IpNet> =
            cover.chain(inside).filter(|(_, grant)| grant.cluster != claim.cluster).map(|(prefix, _)| prefix).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn first_overlap(map: &JointPrefixMap<IpNet, ()>, prefix: &IpNet) -> Option<IpNet> {
    map.cover(prefix).chain(map.children(prefix)).map(|(found, ())| found).next()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::MaxClusters;

    fn claim(prefix: &str, cluster: &str, node: &str) -> Claim {
        Claim { prefix: prefix.parse().unwrap(), cluster: cluster.parse().unwrap(), node: node.parse().unwrap() }
    }

    fn id(id: u32) -> ClusterId {
        ClusterId::new(id, MaxClusters::C255).unwrap()
    }

    fn owners() -> PrefixOwners {
        PrefixOwners::new("own".parse().unwrap(), &["10.0.0.0/24".parse().unwrap()], BTreeMap::new())
    }

    fn refused(verdict: &Verdict) -> Option<&str> {
        match verdict {
            Verdict::Refused { owner, .. } => Some(owner.as_str()),
            Verdict::Granted | Verdict::Withdrawn => None,
        }
    }

    #[test]
    fn own_prefixes_are_refused_whether_equal_inside_or_covering() {
        for prefix in ["10.0.0.0/24", "10.0.0.128/25", "10.0.0.0/8"] {
            let mut owners = owners();
            let c = claim(prefix, "b", "n");
            let verdicts = owners.update(&[], vec![(c.clone(), id(2))]);
            assert_eq!(refused(&verdicts[&c]), Some("own"), "{prefix}");
        }
    }

    #[test]
    fn the_first_owner_keeps_a_prefix_once_settled_and_a_waiting_claim_follows_it() {
        let mut owners = owners();
        owners.settle();
        let (first, second) = (claim("10.1.0.0/24", "c", "n"), claim("10.1.0.0/16", "b", "m"));
        owners.update(&[], vec![(first.clone(), id(3))]);
        let verdicts = owners.update(&[], vec![(second.clone(), id(2))]);
        assert_eq!(refused(&verdicts[&second]), Some("c"));
        let verdicts = owners.update(std::slice::from_ref(&first), vec![]);
        assert_eq!(verdicts[&second], Verdict::Granted);
        assert_eq!(owners.holder(&second.prefix).unwrap().0.as_str(), "b");
    }

    #[test]
    fn a_cold_start_ends_with_the_lower_id_whatever_the_order() {
        let (low, high) = (claim("10.1.0.0/24", "b", "n"), claim("10.1.0.0/24", "c", "m"));
        let orders = [[(low.clone(), id(2)), (high.clone(), id(3))], [(high.clone(), id(3)), (low.clone(), id(2))]];
        for order in orders {
            let mut owners = owners();
            let mut last = BTreeMap::new();
            for one in order {
                last.extend(owners.update(&[], vec![one]));
            }
            owners.settle();
            assert_eq!(last[&low], Verdict::Granted);
            assert_eq!(refused(&last[&high]), Some("b"));
        }
    }

    #[test]
    fn who_waited_for_a_displaced_prefix_gets_what_the_winner_leaves() {
        let (narrow, wide, half) =
            (claim("10.1.0.0/24", "d", "n"), claim("10.1.0.0/16", "c", "n"), claim("10.1.128.0/17", "b", "n"));
        let mut owners = owners();
        owners.update(&[], vec![(narrow.clone(), id(4))]);
        let verdicts = owners.update(&[], vec![(wide.clone(), id(3))]);
        assert_eq!(refused(&verdicts[&narrow]), Some("c"));
        let verdicts = owners.update(&[], vec![(half, id(2))]);
        assert_eq!(refused(&verdicts[&wide]), Some("b"));
        assert_eq!(verdicts[&narrow], Verdict::Granted);
    }

    #[test]
    fn remembered_grants_survive_a_restart_against_a_lower_id() {
        let (low, high) = (claim("10.1.0.0/24", "b", "n"), claim("10.1.0.0/24", "c", "m"));
        let remembered = BTreeMap::from([(high.prefix, high.cluster.clone())]);
        let mut owners = PrefixOwners::new("own".parse().unwrap(), &[], remembered);
        let verdicts = owners.update(&[], vec![(low.clone(), id(2))]);
        assert_eq!(verdicts[&low], Verdict::Granted, "nobody else is there yet");
        let verdicts = owners.update(&[], vec![(high.clone(), id(3))]);
        assert_eq!(verdicts[&high], Verdict::Granted);
        assert_eq!(refused(&verdicts[&low]), Some("c"));
    }

    #[test]
    fn two_nodes_of_one_cluster_the_first_name_holds_the_prefix() {
        let (a, b) = (claim("10.1.0.0/24", "c", "a"), claim("10.1.0.0/24", "c", "b"));
        for order in [[&a, &b], [&b, &a]] {
            let mut owners = owners();
            owners.settle();
            let mut last = BTreeMap::new();
            for one in order {
                last.extend(owners.update(&[], vec![(one.clone(), id(3))]));
            }
            assert_eq!(owners.holder(&a.prefix).unwrap().1.as_str(), "a");
            assert_eq!(refused(&last[&b]), Some("c"));
            let verdicts = owners.update(std::slice::from_ref(&a), vec![]);
            assert_eq!(verdicts[&b], Verdict::Granted, "the waiting node follows");
        }
    }

    #[test]
    fn the_own_cluster_outranks_even_what_was_remembered() {
        let (theirs, ours) = (claim("10.1.0.0/24", "c", "n"), claim("10.1.0.0/24", "own", "m"));
        let remembered = BTreeMap::from([(theirs.prefix, theirs.cluster.clone())]);
        for order in [[(&theirs, id(3)), (&ours, id(9))], [(&ours, id(9)), (&theirs, id(3))]] {
            let mut owners = PrefixOwners::new("own".parse().unwrap(), &[], remembered.clone());
            for (claim, id) in order {
                owners.update(&[], vec![(claim.clone(), id)]);
            }
            assert_eq!(owners.holder(&ours.prefix).unwrap().0.as_str(), "own");
        }
    }

    #[test]
    fn nested_prefixes_of_one_cluster_are_fine() {
        let mut owners = owners();
        let (wide, narrow) = (claim("10.1.0.0/16", "c", "a"), claim("10.1.1.0/24", "c", "b"));
        let verdicts = owners.update(&[], vec![(wide.clone(), id(3)), (narrow.clone(), id(3))]);
        assert_eq!((&verdicts[&wide], &verdicts[&narrow]), (&Verdict::Granted, &Verdict::Granted));
    }

    #[test]
    fn the_own_cluster_takes_back_what_another_holds() {
        let mut owners = owners();
        owners.settle();
        let (theirs, ours) = (claim("10.1.0.0/24", "c", "n"), claim("10.1.0.0/24", "own", "m"));
        owners.update(&[], vec![(theirs.clone(), id(3))]);
        let verdicts = owners.update(&[], vec![(ours.clone(), id(9))]);
        assert_eq!(verdicts[&ours], Verdict::Granted);
        assert_eq!(refused(&verdicts[&theirs]), Some("own"));
    }
}
