//! The way to one node: its addresses on-link, or the far end of a tunnel.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{HOPS_MAX, NodeKey, NotOnLink, RouteDeriver};
use crate::{
    derive::{OVERHEAD_V4, OVERHEAD_V6, OnLinkAnswer, PathMode},
    desired::{Desired, Encap, Hop, NodeTarget, RouteMode, RouteProblem, RouteRow, Target, TargetKey},
    id::TUNNEL_LINK,
    observed::{NodeRow, Observed, PathKey, PathRow, Touched},
    probe::probed_prefix,
};

impl RouteDeriver {
    /// Takes over what decides between the ways; adds the nodes that may be reached in another one now.
    pub(super) fn update_ways(&mut self, observed: &Observed, touched: &Touched, targets: &mut BTreeSet<NodeKey>) {
        self.paths = observed.paths.clone();
        targets.extend(touched.paths.iter().map(|key| (key.cluster.clone(), key.node.clone())));
        let tunnel = self.on_link.tunnel();
        if tunnel != self.tunnel || self.policy_is_new {
            self.tunnel = tunnel;
            self.policy_is_new = false;
            targets.extend(self.nodes.keys().cloned());
        }
    }

    pub(super) fn target(&self, row: &NodeRow, node: &NodeKey, ipv4: bool) -> Target {
        if !self.kernel_known {
            return Target::unreachable(RouteProblem::KernelUnknown, RouteMode::Native);
        }
        let key = PathKey { cluster: node.0.clone(), node: node.1.clone(), ipv4 };
        let path = self.paths.get(&key).copied().unwrap_or_default();
        match self.policy.mode_of(&node.0, &node.1, row) {
            PathMode::Native => self.native(row, node, ipv4, path),
            PathMode::Tunnel => self.tunnelled(row, node, ipv4, path),
            PathMode::Auto => {
                let native = self.native(row, node, ipv4, path);
                if native.problem.is_none() && !path.broken {
                    return native;
                }
                let tunnel = self.tunnelled(row, node, ipv4, path);
                if tunnel.problem.is_some() { native } else { tunnel }
            }
        }
    }

    /// The native way that probes of a node have while workloads' packets go another way or have a smaller size: without one they
    /// could not tell when it is whole again. Says the prefix that is probed, the route and where it leads.
    pub(super) fn probe_way(
        &self,
        row: &NodeRow,
        node: &NodeKey,
        ipv4: bool,
        target: &Target,
    ) -> Option<(IpNet, IpNet, Target)> {
        if self.policy.mode_of(&node.0, &node.1, row) != PathMode::Auto {
            return None;
        }
        let native = self.native(row, node, ipv4, PathRow::default());
        if native.problem.is_some() || native == *target {
            return None;
        }
        let (cidr, address) = probed_prefix(row.pod_cidrs.iter(), ipv4)?;
        Some((cidr, address.into(), native))
    }

    /// Gives probes of a node a way of their own, or takes it.
    pub(super) fn pin(&mut self, node: NodeTarget, way: Option<(IpNet, Target)>, desired: &mut Desired) {
        let key = TargetKey::Probe(node.clone());
        let prefix = way.as_ref().map(|(prefix, _)| *prefix);
        if let Some(old) = self.pinned.get(&node).filter(|old| Some(**old) != prefix) {
            let is_ours = desired.routes.get(old).is_some_and(|row| row.target == key);
            if is_ours {
                desired.routes.remove(old);
            }
            self.pinned.remove(&node);
        }
        match way {
            // A node may have a prefix that is just this address.
            Some((prefix, target)) if desired.routes.get(&prefix).is_none_or(|row| row.target == key) => {
                desired.targets.upsert(key.clone(), Arc::new(target));
                desired.routes.upsert(prefix, Arc::new(RouteRow { target: key }));
                self.pinned.insert(node, prefix);
            }
            Some(_) | None => drop(desired.targets.remove(&key)),
        }
    }

    /// By way of the node's addresses that are on-link.
    pub(super) fn native(&self, row: &NodeRow, node: &NodeKey, ipv4: bool, path: PathRow) -> Target {
        let (mut found, mut refusal) = self.hops(row, ipv4);
        if found.is_empty() && ipv4 {
            // IPv4 packets can be sent through an IPv6 next hop (kernel 5.2 and newer), never the other way round.
            let (by_ipv6, refused) = self.hops(row, false);
            found = by_ipv6;
            refusal = refusal.or(refused);
        }
        if found.is_empty() {
            let problem = refusal.map_or_else(
                || no_address(node, ipv4),
                |(address, reason)| RouteProblem::NotOnLink { address, reason },
            );
            return Target::unreachable(problem, RouteMode::Native);
        }
        found.sort_unstable();
        found.truncate(HOPS_MAX);
        let mtu = found.iter().map(|(_, mtu)| *mtu).min().unwrap_or(0);
        let hops = found.into_iter().map(|(hop, _)| hop).collect();
        let target = Target::native(hops, mtu);
        path.native_mtu.map_or(target.clone(), |probed| target.narrowed(probed))
    }

    /// On-link addresses of one family with the MTU of their link, and the first one that is not, with the reason.
    fn hops(&self, row: &NodeRow, ipv4: bool) -> (Vec<(Hop, u32)>, Option<NotOnLink>) {
        let (mut found, mut refusal) = (Vec::new(), None);
        for address in row.next_hop_addresses(ipv4) {
            if self.local.addresses.contains(&address) {
                refusal.get_or_insert((address, "it is an address of this node".into()));
                continue;
            }
            match self.on_link.find(address) {
                OnLinkAnswer::Link(dev, mtu) => found.push((Hop { via: address, dev, tunnel: None }, mtu)),
                OnLinkAnswer::No(reason) => {
                    refusal.get_or_insert((address, reason));
                }
            }
        }
        (found, refusal)
    }

    /// Through the tunnel to the first of the node's addresses that the kernel has a route to, one of IPv4 if there is one: its
    /// headers are shorter.
    fn tunnelled(&self, row: &NodeRow, node: &NodeKey, ipv4: bool, path: PathRow) -> Target {
        let unreachable = |problem| Target::unreachable(problem, RouteMode::Tunnel);
        let Some((dev, link_mtu)) = self.tunnel else {
            return unreachable(RouteProblem::NoTunnel { link: TUNNEL_LINK });
        };
        let vni = self.policy.tunnel.map_or(0, |tunnel| tunnel.vni);
        let mut refusal: Option<(IpAddr, Arc<str>)> = None;
        for via in row.next_hop_addresses(true).chain(row.next_hop_addresses(false)) {
            if self.local.addresses.contains(&via) {
                refusal.get_or_insert((via, "it is an address of this node".into()));
                continue;
            }
            match self.on_link.resolve(via) {
                Ok((_, _, underlay, _)) => {
                    let overhead = if via.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
                    let hop = Hop { via, dev, tunnel: Some(Encap { vni, ipv4 }) };
                    let fits = underlay.saturating_sub(overhead);
                    return Target::tunnel(hop, link_mtu)
                        .narrowed(path.tunnel_mtu.map_or(fits, |probed| probed.min(fits)));
                }
                Err(reason) => {
                    refusal.get_or_insert((via, reason));
                }
            }
        }
        let no_way = |(address, reason)| RouteProblem::NoUnderlay { address, reason };
        unreachable(refusal.map_or_else(|| no_address(node, ipv4), no_way))
    }
}

fn no_address(node: &NodeKey, ipv4: bool) -> RouteProblem {
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    RouteProblem::NoAddress { node: format!("{}/{}", node.0, node.1), family }
}

#[cfg(test)]
mod tests;
