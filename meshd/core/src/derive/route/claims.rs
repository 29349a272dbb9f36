//! Which claims take part in the question of owners: those that leave the underlay alone.

use super::*;

/// What changed about claims in one derivation.
#[derive(Debug, Default)]
pub(super) struct ClaimChanges {
    /// What is no longer claimed, or barred from now on.
    pub(super) withdrawn: Vec<Claim>,
    /// What is claimed from now on, or no longer barred.
    pub(super) claims: Vec<(Claim, ClusterId)>,
    /// What is barred from now on, or for another reason.
    pub(super) barred: Vec<(Claim, ConflictCause)>,
    /// Claims nobody has judged yet.
    fresh: BTreeSet<Claim>,
    /// Prefixes whose claims are to be judged.
    suspects: BTreeSet<IpNet>,
}

impl ClaimChanges {
    /// Takes over the PodCIDRs of a node that was touched.
    pub(super) fn node(&mut self, deriver: &mut RouteDeriver, key: &NodeKey, old: &[IpNet], new: &[IpNet]) {
        let stays: BTreeSet<&IpNet> = new.iter().collect();
        for prefix in old.iter().filter(|prefix| !stays.contains(prefix)) {
            if let Some(claimants) = deriver.claimants.get_mut(prefix) {
                claimants.remove(key);
                if claimants.is_empty() {
                    deriver.claimants.remove(prefix);
                }
            }
            let claim = claim(*prefix, key);
            deriver.barred.remove(&claim);
            self.withdrawn.push(claim);
        }
        for prefix in new {
            if deriver.claimants.entry(*prefix).or_default().insert(key.clone()) {
                self.fresh.insert(claim(*prefix, key));
            }
        }
        self.suspects.extend(new);
    }

    /// The claims around a network that came or went are to be judged again.
    pub(super) fn network(&mut self, deriver: &RouteDeriver, network: IpNet) {
        let (cover, inside) = (deriver.claimants.cover(&network), deriver.claimants.children(&network));
        self.suspects.extend(cover.chain(inside).map(|(prefix, _)| prefix));
    }

    /// The claims that contain an address are to be judged again.
    pub(super) fn address(&mut self, deriver: &RouteDeriver, address: IpAddr) {
        self.suspects.extend(deriver.claimants.cover(&IpNet::from(address)).map(|(prefix, _)| prefix));
    }

    /// Every claim is to be judged again.
    pub(super) fn all(&mut self, deriver: &RouteDeriver) {
        self.suspects.extend(deriver.claimants.iter().map(|(prefix, _)| prefix));
    }

    /// Judges the claims that may have become dangerous, or harmless.
    pub(super) fn judge(&mut self, deriver: &mut RouteDeriver, observed: &Observed) {
        for prefix in std::mem::take(&mut self.suspects) {
            let claimants = deriver.claimants.get(&prefix).cloned().unwrap_or_default();
            // Many nodes of a cluster may claim one prefix: it is judged once for each cluster.
            let mut judged: BTreeMap<ClusterName, Option<ConflictCause>> = BTreeMap::new();
            for key in claimants {
                let claim = claim(prefix, &key);
                let Some(id) = deriver.nodes.get(&key).map(|row| row.cluster_id) else { continue };
                let is_fresh = self.fresh.remove(&claim);
                let danger = match judged.get(&key.0) {
                    Some(danger) => danger.clone(),
                    None => judged.entry(key.0.clone()).or_insert(deriver.danger(prefix, &key.0, observed)).clone(),
                };
                match (danger, deriver.barred.get(&claim)) {
                    (Some(cause), Some(known)) if cause == *known => {}
                    (Some(cause), known) => {
                        if !is_fresh && known.is_none() {
                            self.withdrawn.push(claim.clone());
                        }
                        deriver.barred.insert(claim.clone(), cause.clone());
                        self.barred.push((claim, cause));
                    }
                    (None, Some(_)) => {
                        deriver.barred.remove(&claim);
                        self.claims.push((claim, id));
                    }
                    (None, None) if is_fresh => self.claims.push((claim, id)),
                    (None, None) => {}
                }
            }
        }
    }
}

impl RouteDeriver {
    /// What a route to `prefix` for `cluster` would take away from the underlay.
    fn danger(&self, prefix: IpNet, cluster: &ClusterName, observed: &Observed) -> Option<ConflictCause> {
        if !self.kernel_known {
            return None;
        }
        // Rows from before a restart were judged under the list of that time; the list comes with their source.
        let accept = observed.clusters.get(cluster).and_then(|tables| tables.accept.as_ref());
        if let Some(cause) = self.underlay.network_around(prefix, accept) {
            return Some(cause);
        }
        // A route that works is not taken away because a host route flaps, or because somebody now has an address in it.
        if self.owners.is_established(prefix, cluster) {
            return None;
        }
        let is_taken = |address: IpAddr| self.on_link.longest(address).is_some_and(|len| len <= prefix.prefix_len());
        // Tunnels of other programs have a route to each remote PodCIDR through an address of its own, which is no part of
        // the underlay.
        let is_taken_gateway = |address: &IpAddr| is_taken(*address) && !self.on_link.leads_via(prefix, *address);
        if let Some(address) = self.on_link.gateways_in(prefix).find(is_taken_gateway) {
            return Some(ConflictCause::Gateway { address });
        }
        let nodes = self.by_address.range(prefix.network()..=prefix.broadcast());
        nodes.filter(|(address, _)| is_taken(**address)).find_map(|(address, nodes)| {
            let counts =
                |of: &&NodeKey| of.0 == self.local.cluster || of.0 == *cluster || self.underlay.contains(*address);
            let (cluster, node) = nodes.iter().find(counts)?;
            Some(ConflictCause::Node { address: *address, node: format!("{cluster}/{node}").into() })
        })
    }
}

fn claim(prefix: IpNet, key: &NodeKey) -> Claim {
    Claim { prefix, cluster: key.0.clone(), node: key.1.clone() }
}
