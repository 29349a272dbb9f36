//! From the tables to what is probed and who is answered.

use std::{collections::BTreeMap, net::IpAddr};

use meshd_core::{
    derive::{LocalNode, OVERHEAD_V4, OVERHEAD_V6, PathMode, PathPolicy},
    desired::{NodeTarget, RouteMode, TargetKey},
    observed::{NodeRow, PathKey},
    plan::tunnel_mtu,
    probe::{Subject, probe_address, probed_prefix},
};

use crate::pipeline::Snapshot;

/// Paths to probe, and the nodes that are answered: their probe addresses with the addresses answers go to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// What is probed.
    pub subjects: Vec<Subject>,
    /// Who is answered.
    pub answered: BTreeMap<IpAddr, IpAddr>,
}

/// Our own probe addresses.
pub(super) fn own_addresses(local: &LocalNode) -> Vec<IpAddr> {
    [true, false].iter().filter_map(|ipv4| Some(probed_prefix(&local.pod_cidrs, *ipv4)?.1)).collect()
}

/// What the tables say is to be probed.
pub(super) fn wanted(snapshot: &Snapshot, policy: &PathPolicy, local: &LocalNode) -> Wanted {
    let mut wanted = Wanted::default();
    let size = |mtu: u32| u16::try_from(mtu).unwrap_or(u16::MAX);
    let Some(tunnel_size) = tunnel_mtu(&snapshot.observed, &local.addresses) else { return wanted };
    let overhead = if local.addresses.iter().any(IpAddr::is_ipv4) { OVERHEAD_V4 } else { OVERHEAD_V6 };
    for (cluster, tables) in &snapshot.observed.clusters {
        for (name, row) in tables.nodes.iter() {
            if (cluster, name) == (&local.cluster, &local.name) {
                continue;
            }
            let Some(outer) = outer(row, local) else { continue };
            let is_auto = policy.mode_of(cluster, name, row) == PathMode::Auto;
            for ipv4 in [true, false] {
                let target = NodeTarget { cluster: cluster.clone(), node: name.clone(), ipv4 };
                let holds = |cidr: &&ipnet::IpNet| {
                    snapshot.desired.routes.get(cidr).is_some_and(|route| route.target.node() == Some(&target))
                };
                let held = row.pod_cidrs.iter().filter(holds).filter(|cidr| cidr.addr().is_ipv4() == ipv4);
                wanted.answered.extend(held.clone().filter_map(|cidr| Some((probe_address(cidr)?, outer))));
                let Some((_, destination)) = probed_prefix(held, ipv4) else { continue };
                let Some((_, source)) = probed_prefix(&local.pod_cidrs, ipv4).filter(|_| is_auto) else { continue };
                let mode = snapshot.desired.targets.get(&TargetKey::Node(target.clone()));
                let mode = mode.filter(|target| target.problem.is_none()).map(|target| target.mode);
                let has_own_way = snapshot.desired.targets.contains(&TargetKey::Probe(target));
                wanted.subjects.push(Subject {
                    key: PathKey { cluster: cluster.clone(), node: name.clone(), ipv4 },
                    source,
                    destination,
                    outer,
                    has_native: mode == Some(RouteMode::Native) || has_own_way,
                    native_size: size(tunnel_size + overhead),
                    tunnel_size: size(tunnel_size),
                });
            }
        }
    }
    wanted
}

/// The node's own address.
fn outer(row: &NodeRow, local: &LocalNode) -> Option<IpAddr> {
    let mut addresses = row.next_hop_addresses(true).chain(row.next_hop_addresses(false));
    addresses.find(|address| !local.addresses.contains(address))
}
