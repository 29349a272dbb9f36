//! Through which link is an address directly reachable?
//!
//! The answer is the kernel's own: longest prefix match over the foreign routes of the main table. A match without a
//! gateway (a connected network, or a host route with `scope link`) makes the address on-link; a gateway in between does
//! not, because a direct route through it would only work if that router knew the PodCIDRs.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use prefix_trie::joint::JointPrefixMap;

use crate::{
    id::{IfIndex, MAIN_TABLE, Metric, TableId},
    observed::{LinkRow, NextHopSpec, Observed, RouteKey, RouteKind, RouteRow},
    table::{RowDiff, Table},
};

/// Where an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnLinkAnswer {
    /// Directly reachable through this link, which has this MTU in bytes.
    Link(IfIndex, u32),
    /// Not directly reachable; the text says what the kernel's routes say.
    No(Arc<str>),
}

/// Longest prefix match over foreign routes, kept up to date from the observed tables.
#[derive(Debug, Clone, Default)]
pub struct OnLink {
    seen_routes: Table<RouteKey, RouteRow>,
    links: Table<IfIndex, LinkRow>,
    by_prefix: JointPrefixMap<IpNet, BTreeMap<(Metric, RouteKey), RouteRow>>,
}

impl OnLink {
    /// Takes over the observed links and routes; returns the prefixes whose routes changed.
    pub fn update(&mut self, observed: &Observed) -> Vec<IpNet> {
        let old = std::mem::replace(&mut self.seen_routes, observed.routes.clone());
        self.links = observed.links.clone();
        let mut changed = Vec::new();
        for diff in observed.routes.diff(&old) {
            let key = *diff.key();
            if key.table != TableId(MAIN_TABLE) || key.tos != 0 {
                continue;
            }
            changed.push(key.prefix);
            match diff {
                RowDiff::Added(_, row) | RowDiff::Changed(_, _, row) => {
                    self.by_prefix.entry(key.prefix).or_default().insert((key.metric, key), row.clone());
                }
                RowDiff::Removed(..) => {
                    if let Some(rows) = self.by_prefix.get_mut(&key.prefix) {
                        rows.remove(&(key.metric, key));
                        if rows.is_empty() {
                            self.by_prefix.remove(&key.prefix);
                        }
                    }
                }
            }
        }
        changed
    }

    /// Where is `address`?
    #[must_use]
    pub fn find(&self, address: IpAddr) -> OnLinkAnswer {
        let mut reason: Option<Arc<str>> = None;
        let host = IpNet::from(address);
        let mut covering: Vec<_> = self.by_prefix.cover(&host).collect();
        covering.reverse();
        for (prefix, rows) in covering {
            for row in rows.values() {
                match self.judge(prefix, row, address) {
                    Some(OnLinkAnswer::No(why)) => return OnLinkAnswer::No(reason.unwrap_or(why)),
                    Some(found @ OnLinkAnswer::Link(..)) => return found,
                    // The link is down: the kernel skips such a route, so a wider or worse one decides.
                    None => reason = reason.or_else(|| Some(self.down_text(prefix, row))),
                }
            }
        }
        OnLinkAnswer::No(reason.unwrap_or_else(|| "no route leads to it".into()))
    }

    fn judge(&self, prefix: IpNet, row: &RouteRow, address: IpAddr) -> Option<OnLinkAnswer> {
        match row.kind {
            RouteKind::Unicast => {}
            RouteKind::Local => return Some(OnLinkAnswer::No("it is an address of this node".into())),
            RouteKind::Throw | RouteKind::Other => return None,
            RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit => {
                return Some(OnLinkAnswer::No(format!("route {prefix} forbids it").into()));
            }
        }
        if row.hops.is_empty() {
            return Some(OnLinkAnswer::No(
                format!("route {prefix} leads through a nexthop object of another program").into(),
            ));
        }
        let usable =
            |hop: &&NextHopSpec| self.links.get(&hop.dev).is_some_and(|link| link.up && link.running && !link.loopback);
        let hop = row.hops.iter().find(usable)?;
        match hop.via {
            Some(via) if via != address => {
                Some(OnLinkAnswer::No(format!("it is reached via {via} (route {prefix})").into()))
            }
            _ => Some(OnLinkAnswer::Link(hop.dev, self.links.get(&hop.dev).map_or(0, |link| link.mtu))),
        }
    }

    fn down_text(&self, prefix: IpNet, row: &RouteRow) -> Arc<str> {
        let name =
            |hop: &NextHopSpec| self.links.get(&hop.dev).map_or_else(|| hop.dev.to_string(), |l| l.name.to_string());
        let names: Vec<_> = row.hops.iter().map(name).collect();
        format!("link {} of route {prefix} is down", names.join(", ")).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{Change, KernelChange};
    use jiff::Timestamp;

    fn link(index: u32, up: bool) -> KernelChange {
        let row =
            LinkRow { name: format!("eth{index}").into(), up, running: up, loopback: false, mtu: 1500, kind: None };
        KernelChange::Link(IfIndex(index), Some(row))
    }

    fn route(prefix: &str, via: Option<&str>, dev: u32, metric: u32, kind: RouteKind) -> KernelChange {
        let hop = NextHopSpec { via: via.map(|v| v.parse().unwrap()), dev: IfIndex(dev) };
        let key = RouteKey {
            table: TableId(MAIN_TABLE),
            prefix: prefix.parse().unwrap(),
            metric: Metric(metric),
            tos: 0,
            protocol: 2,
            hop: Some(hop),
        };
        let forwards = kind == RouteKind::Unicast;
        let hops: &[NextHopSpec] = if forwards { &[hop] } else { &[] };
        KernelChange::Route(key, Some(RouteRow { kind, hops: hops.into(), nexthop: None }))
    }

    fn on_link(changes: Vec<KernelChange>) -> OnLink {
        let mut observed = Observed::default();
        observed.apply(Change::Kernel(changes), Timestamp::UNIX_EPOCH);
        let mut on_link = OnLink::default();
        on_link.update(&observed);
        on_link
    }

    #[test]
    fn the_kernels_longest_match_decides() {
        let on_link = on_link(vec![
            link(2, true),
            link(3, false),
            route("172.18.0.0/16", None, 2, 0, RouteKind::Unicast),
            route("172.18.9.0/24", Some("172.18.0.1"), 2, 0, RouteKind::Unicast),
            route("172.18.8.0/24", None, 3, 0, RouteKind::Unicast),
            route("172.18.7.0/24", None, 2, 0, RouteKind::Blackhole),
            route("0.0.0.0/0", Some("172.18.0.1"), 2, 0, RouteKind::Unicast),
        ]);
        let find = |a: &str| on_link.find(a.parse().unwrap());
        assert_eq!(find("172.18.0.3"), OnLinkAnswer::Link(IfIndex(2), 1500));
        assert_eq!(find("172.18.9.1"), OnLinkAnswer::No("it is reached via 172.18.0.1 (route 172.18.9.0/24)".into()));
        assert_eq!(find("172.18.8.1"), OnLinkAnswer::Link(IfIndex(2), 1500), "the route over the dead link is skipped");
        assert_eq!(find("172.18.7.1"), OnLinkAnswer::No("route 172.18.7.0/24 forbids it".into()));
        assert_eq!(find("8.8.8.8"), OnLinkAnswer::No("it is reached via 172.18.0.1 (route 0.0.0.0/0)".into()));
        assert_eq!(find("fd00::1"), OnLinkAnswer::No("no route leads to it".into()));
    }

    #[test]
    fn the_lower_metric_wins_and_a_dead_link_is_named() {
        let both = on_link(vec![
            link(2, true),
            link(3, true),
            route("172.18.0.0/16", None, 3, 100, RouteKind::Unicast),
            route("172.18.0.0/16", None, 2, 200, RouteKind::Unicast),
        ]);
        assert_eq!(both.find("172.18.0.3".parse().unwrap()), OnLinkAnswer::Link(IfIndex(3), 1500));
        let dead = on_link(vec![link(3, false), route("172.18.0.0/16", None, 3, 100, RouteKind::Unicast)]);
        let answer = dead.find("172.18.0.3".parse().unwrap());
        assert_eq!(answer, OnLinkAnswer::No("link eth3 of route 172.18.0.0/16 is down".into()));
    }
}
