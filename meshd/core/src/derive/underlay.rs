//! What the mesh stands on and must not take away: the networks this node is connected to, its gateways, nodes.
//!
//! A route of ours takes the traffic of every address in its prefix that had no more specific route. So a PodCIDR is
//! dangerous when it
//!
//! - is a network this node has an address in;
//! - lies inside one. Some layouts do give workloads addresses of the node network; a remote cluster may do that where an
//!   entry of its `accept.pod_cidrs` lies inside the network as well, so that somebody wrote it on purpose;
//! - contains a gateway or a node, and is at least as specific as the route by which that address is reached. Nodes count
//!   when they are our cluster's, the claiming cluster's own, or in a connected network: a third cluster could
//!   otherwise have any prefix refused by publishing an address inside it.
//!
//! The last of these counts only against a prefix the cluster does not have yet: a route that works is not taken away
//! because a more specific one flaps, or because somebody publishes an address in it.
//!
//! A prefix that only covers a connected network is harmless: the network's own route is more specific.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use crate::{
    clustermesh::Accept,
    desired::ConflictCause,
    observed::{AddressKey, AddressRow, Observed},
    table::{RowDiff, Table},
};

/// The networks this node has an address in.
#[derive(Debug, Clone, Default)]
pub(super) struct Underlay {
    seen_addresses: Table<AddressKey, AddressRow>,
    /// With the number of addresses in them.
    networks: JointPrefixMap<IpNet, usize>,
}

impl Underlay {
    /// Takes over the observed addresses; returns the networks that came or went.
    pub(super) fn update(&mut self, observed: &Observed) -> BTreeSet<IpNet> {
        let old = std::mem::replace(&mut self.seen_addresses, observed.addresses.clone());
        let mut changed = BTreeSet::new();
        for diff in observed.addresses.diff(&old) {
            let network = diff.key().address.trunc();
            match diff {
                RowDiff::Added(..) => {
                    let count = self.networks.entry(network).or_default();
                    *count += 1;
                    if *count == 1 {
                        changed.insert(network);
                    }
                }
                RowDiff::Removed(..) => {
                    let Some(count) = self.networks.get_mut(&network) else { continue };
                    *count -= 1;
                    if *count == 0 {
                        self.networks.remove(&network);
                        changed.insert(network);
                    }
                }
                RowDiff::Changed(..) => {}
            }
        }
        changed
    }

    /// True when the address is in a connected network.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        self.networks.cover(&IpNet::from(address)).next().is_some()
    }

    /// The connected network that a PodCIDR is or lies inside, unless `accept` names a part of the network. `None` as
    /// `accept`: every part may be claimed.
    pub(super) fn network_around(&self, prefix: IpNet, accept: Option<&Accept>) -> Option<ConflictCause> {
        let named = |network: &IpNet| {
            accept.is_none_or(|accept| {
                let names = |entry: &&IpNet| entry.prefix_len() > network.prefix_len() && network.contains(*entry);
                accept.pod_cidrs.iter().filter(names).any(|entry| entry.contains(&prefix))
            })
        };
        let mut around = self.networks.cover(&prefix).map(|(network, _)| network);
        around.find_map(|network| match network == prefix {
            true => Some(ConflictCause::Network { network }),
            false => (!named(&network)).then_some(ConflictCause::InsideNetwork { network }),
        })
    }
}
