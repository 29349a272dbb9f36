//! Through which link is an address directly reachable?
//!
//! The answer is the kernel's own: longest prefix match over the foreign routes of the main table. A match without a
//! gateway (a connected network, or a host route with `scope link`) makes the address on-link; a gateway in between does
//! not, because a direct route through it would only work if that router knew the PodCIDRs.
//!
//! Who needs an answer watches the address, and is told when its answer changes. What an answer depends on is kept in two
//! indexes, so that an event costs what it may change (I11): the links it was read from, and the prefix that decided.
//! Only a route at least as specific as that one can change the answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::joint::JointPrefixMap;

use crate::{
    id::{IfIndex, MAIN_TABLE, Metric, TUNNEL_LINK, TableId},
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
    watched: BTreeMap<IpAddr, Watched>,
    by_link: BTreeMap<IfIndex, BTreeSet<IpAddr>>,
    by_decider: JointPrefixMap<IpNet, BTreeSet<IpAddr>>,
    /// Gateways of the routes, with the number of next hops that name them. They are watched.
    gateways: BTreeMap<IpAddr, usize>,
    /// The tunnel's link.
    tunnel: Option<IfIndex>,
    lookups: u64,
}

/// An address somebody asked for.
#[derive(Debug, Clone)]
struct Watched {
    watchers: usize,
    found: Found,
}

/// An answer and what it depends on.
#[derive(Debug, Clone)]
struct Found {
    answer: OnLinkAnswer,
    /// Length of the most specific route to the address, whatever it does.
    longest: Option<u8>,
    /// The prefix whose route decided; the widest there is when none did.
    decider: IpNet,
    /// Links of the routes that were looked at.
    links: BTreeSet<IfIndex>,
}

impl OnLink {
    /// Takes over the observed links and routes; returns the watched addresses that now have another answer or another
    /// most specific route, and the gateways that came or went.
    pub fn update(&mut self, observed: &Observed) -> BTreeSet<IpAddr> {
        let old_links = std::mem::replace(&mut self.links, observed.links.clone());
        let mut affected = BTreeSet::new();
        for diff in self.links.diff(&old_links) {
            affected.extend(self.by_link.get(diff.key()).into_iter().flatten().copied());
            match diff {
                RowDiff::Added(key, row) | RowDiff::Changed(key, _, row) if &*row.name == TUNNEL_LINK => {
                    self.tunnel = Some(*key);
                }
                RowDiff::Added(key, _) | RowDiff::Changed(key, ..) | RowDiff::Removed(key, _) => {
                    if self.tunnel == Some(*key) {
                        self.tunnel = None;
                    }
                }
            }
        }
        let mut gateways = BTreeMap::new();
        for prefix in self.update_routes(observed, &mut gateways) {
            for (_, addresses) in self.by_decider.cover(&prefix) {
                affected.extend(addresses.range(prefix.network()..=prefix.broadcast()).copied());
            }
        }
        affected.retain(|address| self.look_up_again(*address));
        affected.extend(self.update_gateways(gateways));
        affected
    }

    /// Keeps the answer for `address` up to date until [`Self::unwatch`] was called as often.
    pub fn watch(&mut self, address: IpAddr) {
        if let Some(watched) = self.watched.get_mut(&address) {
            watched.watchers += 1;
            return;
        }
        let found = self.look_up(address);
        self.lookups += 1;
        self.index(address, &found);
        self.watched.insert(address, Watched { watchers: 1, found });
    }

    /// Ends one [`Self::watch`].
    pub fn unwatch(&mut self, address: IpAddr) {
        let Some(watched) = self.watched.get_mut(&address) else { return };
        watched.watchers -= 1;
        if watched.watchers == 0
            && let Some(gone) = self.watched.remove(&address)
        {
            self.unindex(address, &gone.found);
        }
    }

    /// Where is `address`? Costs a lookup in the routes when nobody watches it.
    #[must_use]
    pub fn find(&self, address: IpAddr) -> OnLinkAnswer {
        match self.watched.get(&address) {
            Some(watched) => watched.found.answer.clone(),
            None => self.look_up(address).answer,
        }
    }

    /// Through which gateway, on which link with which MTU and with which metric, is `address` reached? On-link addresses
    /// are their own gateway. One level is followed, as the kernel does it: a gateway has to be on-link.
    ///
    /// # Errors
    /// What the kernel's routes say instead.
    pub fn resolve(&self, address: IpAddr) -> Result<(IpAddr, IfIndex, u32, u32), Arc<str>> {
        let reason = match self.find(address) {
            OnLinkAnswer::Link(dev, mtu) => return Ok((address, dev, mtu, 0)),
            OnLinkAnswer::No(reason) => reason,
        };
        let host = IpNet::from(address);
        let mut covering: Vec<_> = self.by_prefix.cover(&host).collect();
        covering.reverse();
        for row in covering.iter().flat_map(|(_, rows)| rows.iter()) {
            let ((metric, _), row) = row;
            if row.kind != RouteKind::Unicast {
                return Err(reason);
            }
            if let Some((dev, mtu, via)) = self.usable_hop(row) {
                return via.map(|via| (via, dev, mtu, metric.0)).ok_or(reason);
            }
        }
        Err(reason)
    }

    fn usable_hop(&self, row: &RouteRow) -> Option<(IfIndex, u32, Option<IpAddr>)> {
        row.hops.iter().find_map(|hop| {
            let link = self.links.get(&hop.dev).filter(|link| link.up && link.running && !link.loopback)?;
            Some((hop.dev, link.mtu, hop.via))
        })
    }

    /// Is the link there and up, and which MTU has it?
    #[must_use]
    pub fn link_mtu(&self, link: IfIndex) -> Option<u32> {
        self.links.get(&link).filter(|link| link.up && link.running).map(|link| link.mtu)
    }

    /// The tunnel's link and its MTU, while it is up.
    #[must_use]
    pub fn tunnel(&self) -> Option<(IfIndex, u32)> {
        let link = self.tunnel?;
        self.link_mtu(link).map(|mtu| (link, mtu))
    }

    /// Length of the most specific route to a watched address, whatever that route does.
    #[must_use]
    pub fn longest(&self, address: IpAddr) -> Option<u8> {
        self.watched.get(&address).and_then(|watched| watched.found.longest)
    }

    /// Gateways of the routes, as far as they lie in `prefix`.
    pub fn gateways_in(&self, prefix: IpNet) -> impl Iterator<Item = IpAddr> {
        self.gateways.range(prefix.network()..=prefix.broadcast()).map(|(address, _)| *address)
    }

    /// True when a route to exactly this prefix has this gateway.
    #[must_use]
    pub fn leads_via(&self, prefix: IpNet, gateway: IpAddr) -> bool {
        let rows = self.by_prefix.get(&prefix).into_iter().flatten();
        rows.flat_map(|(_, row)| row.hops.iter()).any(|hop| hop.via == Some(gateway))
    }

    /// How often a watched address was looked up in the routes so far: the work that was done.
    #[must_use]
    pub fn lookups(&self) -> u64 {
        self.lookups
    }

    /// Takes over the observed routes; returns the prefixes whose routes changed, and says in `gateways` how many next
    /// hops more or fewer name a gateway.
    fn update_routes(&mut self, observed: &Observed, gateways: &mut BTreeMap<IpAddr, isize>) -> BTreeSet<IpNet> {
        let old = std::mem::replace(&mut self.seen_routes, observed.routes.clone());
        let mut changed = BTreeSet::new();
        for diff in observed.routes.diff(&old) {
            let key = *diff.key();
            if key.table != TableId(MAIN_TABLE) || key.tos != 0 {
                continue;
            }
            changed.insert(key.prefix);
            let mut count = |row: &RouteRow, by: isize| {
                for via in row.hops.iter().filter_map(|hop| hop.via) {
                    *gateways.entry(via).or_default() += by;
                }
            };
            if let RowDiff::Removed(_, old) | RowDiff::Changed(_, old, _) = &diff {
                count(old, -1);
            }
            if let RowDiff::Added(_, new) | RowDiff::Changed(_, _, new) = &diff {
                count(new, 1);
            }
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

    /// Counts gateways; returns those that came or went.
    fn update_gateways(&mut self, changes: BTreeMap<IpAddr, isize>) -> Vec<IpAddr> {
        let mut changed = Vec::new();
        for (address, by) in changes {
            let before = self.gateways.get(&address).copied().unwrap_or_default();
            let after = before.saturating_add_signed(by);
            match (before, after) {
                (0, 0) => continue,
                (0, _) => self.watch(address),
                (_, 0) => self.unwatch(address),
                _ => {}
            }
            if after == 0 {
                self.gateways.remove(&address);
            } else {
                self.gateways.insert(address, after);
            }
            if (before == 0) != (after == 0) {
                changed.push(address);
            }
        }
        changed
    }

    /// True when the answer or the most specific route is another than before.
    fn look_up_again(&mut self, address: IpAddr) -> bool {
        let new = self.look_up(address);
        self.lookups += 1;
        let Some(watched) = self.watched.get_mut(&address) else { return false };
        let old = std::mem::replace(&mut watched.found, new.clone());
        let differs = old.answer != new.answer || old.longest != new.longest;
        self.unindex(address, &old);
        self.index(address, &new);
        differs
    }

    fn index(&mut self, address: IpAddr, found: &Found) {
        self.by_decider.entry(found.decider).or_default().insert(address);
        for link in &found.links {
            self.by_link.entry(*link).or_default().insert(address);
        }
    }

    fn unindex(&mut self, address: IpAddr, found: &Found) {
        if let Some(addresses) = self.by_decider.get_mut(&found.decider) {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.by_decider.remove(&found.decider);
            }
        }
        for link in &found.links {
            if let Some(addresses) = self.by_link.get_mut(link) {
                addresses.remove(&address);
                if addresses.is_empty() {
                    self.by_link.remove(link);
                }
            }
        }
    }

    fn look_up(&self, address: IpAddr) -> Found {
        let host = IpNet::from(address);
        let mut covering: Vec<_> = self.by_prefix.cover(&host).collect();
        covering.reverse();
        let longest = covering.first().map(|(prefix, _)| prefix.prefix_len());
        let mut links = BTreeSet::new();
        let mut reason: Option<Arc<str>> = None;
        for (prefix, rows) in covering {
            for row in rows.values() {
                links.extend(row.hops.iter().map(|hop| hop.dev));
                let answer = match self.judge(prefix, row, address) {
                    Some(OnLinkAnswer::No(why)) => OnLinkAnswer::No(reason.unwrap_or(why)),
                    Some(found @ OnLinkAnswer::Link(..)) => found,
                    // The link is down: the kernel skips such a route, so a wider or worse one decides.
                    None => {
                        reason = reason.or_else(|| Some(self.down_text(prefix, row)));
                        continue;
                    }
                };
                return Found { answer, longest, decider: prefix, links };
            }
        }
        let answer = OnLinkAnswer::No(reason.unwrap_or_else(|| "no route leads to it".into()));
        Found { answer, longest, decider: everything(address), links }
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

/// The widest prefix of the family of `address`.
fn everything(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{Change, KernelChange};
    use jiff::Timestamp;

    fn link(index: u32, up: bool) -> KernelChange {
        let row = LinkRow {
            name: format!("eth{index}").into(),
            up,
            running: up,
            loopback: false,
            mtu: 1500,
            kind: None,
            mac: None,
        };
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

    #[test]
    fn an_event_looks_up_only_what_it_may_change() {
        let mut observed = Observed::default();
        let mut on_link = OnLink::default();
        let mut tell = |on_link: &mut OnLink, change: KernelChange| {
            observed.apply(Change::Kernel(vec![change]), Timestamp::UNIX_EPOCH);
            let before = on_link.lookups();
            let changed: Vec<String> = on_link.update(&observed).iter().map(ToString::to_string).collect();
            (on_link.lookups() - before, changed)
        };
        for index in [2, 3, 4] {
            tell(&mut on_link, link(index, true));
        }
        for (prefix, dev) in [("172.18.0.0/16", 2), ("172.19.0.0/16", 3)] {
            tell(&mut on_link, route(prefix, None, dev, 0, RouteKind::Unicast));
        }
        let addresses = ["172.18.0.3", "172.18.9.3", "172.19.0.3", "192.0.2.3"];
        for address in addresses {
            on_link.watch(address.parse().unwrap());
        }
        let mut check = |change: KernelChange, lookups: u64, changed: &[&str]| {
            assert_eq!(
                tell(&mut on_link, change.clone()),
                (lookups, changed.iter().map(ToString::to_string).collect())
            );
        };
        check(link(4, false), 0, &[]);
        check(link(5, true), 0, &[]);
        check(link(3, false), 1, &["172.19.0.3"]);
        check(link(3, true), 1, &["172.19.0.3"]);
        check(route("198.51.100.0/24", None, 4, 0, RouteKind::Unicast), 0, &[]);
        // A gateway is looked up as well.
        check(route("172.18.9.0/24", Some("172.18.0.1"), 2, 0, RouteKind::Unicast), 2, &["172.18.0.1", "172.18.9.3"]);
        // What has a better route does not ask for the way out.
        check(route("0.0.0.0/0", Some("172.18.0.1"), 2, 0, RouteKind::Unicast), 1, &["192.0.2.3"]);
        check(link(2, false), 4, &["172.18.0.1", "172.18.0.3", "172.18.9.3", "192.0.2.3"]);
    }

    #[test]
    fn an_address_is_forgotten_with_its_last_watcher() {
        let mut on_link = on_link(vec![link(2, true), route("172.18.0.0/16", None, 2, 0, RouteKind::Unicast)]);
        let address = "172.18.0.3".parse().unwrap();
        on_link.watch(address);
        on_link.watch(address);
        on_link.unwatch(address);
        assert_eq!(on_link.watched.len(), 1);
        on_link.unwatch(address);
        assert!(on_link.watched.is_empty() && on_link.by_link.is_empty() && on_link.by_decider.is_empty());
    }
}
