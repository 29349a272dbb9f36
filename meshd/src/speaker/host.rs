//! This node's links and addresses, as far as sessions need them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use bgp::{NextHop, PerFamily, speaker::Endpoints};
use meshd_core::{id::IfIndex, observed::Observed};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Host {
    links: BTreeMap<String, (IfIndex, bool)>,
    addresses: BTreeMap<IfIndex, Vec<IpAddr>>,
    link_of: BTreeMap<IpAddr, IfIndex>,
    /// Routers heard on links.
    routers: BTreeMap<IfIndex, Ipv6Addr>,
}

/// What is another way than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News {
    /// A link came, went, or changed its state.
    pub(super) links: bool,
    /// A usable address came or went.
    pub(super) addresses: bool,
}

impl Host {
    /// Takes over what the kernel says now.
    pub(super) fn update(&mut self, observed: &Observed) -> News {
        let links: BTreeMap<String, (IfIndex, bool)> =
            observed.links.iter().map(|(index, row)| (row.name.to_string(), (*index, row.up && row.running))).collect();
        let links_differ = links != self.links;
        self.links = links;
        let before = std::mem::take(&mut self.addresses);
        self.link_of.clear();
        for (key, _) in observed.addresses.iter().filter(|(_, row)| row.usable) {
            let ip = key.address.addr();
            self.addresses.entry(key.link).or_default().push(ip);
            if !is_link_local(ip) {
                self.link_of.insert(ip, key.link);
            }
        }
        News { links: links_differ, addresses: before != self.addresses }
    }

    /// The name of a link.
    pub(super) fn name(&self, link: IfIndex) -> Option<&str> {
        self.links.iter().find(|(_, (index, _))| *index == link).map(|(name, _)| name.as_str())
    }

    /// The number of a link.
    pub(super) fn index(&self, name: &str) -> Option<IfIndex> {
        self.links.get(name).map(|(index, _)| *index)
    }

    /// The link works.
    pub(super) fn is_up(&self, name: &str) -> bool {
        self.links.get(name).is_some_and(|(_, up)| *up)
    }

    /// The router heard on a link.
    pub(super) fn router_on(&self, link: &str) -> Option<Ipv6Addr> {
        self.routers.get(&self.index(link)?).copied()
    }

    /// A router was heard, or (`None`) has not been heard for too long. True when that is news.
    pub(super) fn set_router(&mut self, link: IfIndex, router: Option<Ipv6Addr>) -> bool {
        match router {
            Some(router) => self.routers.insert(link, router) != Some(router),
            None => self.routers.remove(&link).is_some(),
        }
    }

    /// Our next hops on a connection with this local end; `given` are those of the configuration, IPv4 and IPv6.
    ///
    /// Towards a peer on a link the IPv6 next hop is the global address with the link-local one beside it, as RFC 2545
    /// section 3 wants it; on a link without global addresses it is the link-local one alone.
    pub(super) fn endpoints(&self, local: SocketAddr, given: [Option<IpAddr>; 2]) -> Endpoints {
        let link = match local {
            SocketAddr::V6(local) if local.scope_id() != 0 => Some(IfIndex(local.scope_id())),
            local => self.link_of.get(&local.ip()).copied(),
        };
        let here = link.and_then(|link| self.addresses.get(&link)).map_or(&[][..], Vec::as_slice);
        let first_v4 = here.iter().find(|ip| ip.is_ipv4()).copied();
        let link_local = here.iter().find_map(|ip| match ip {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(*ip),
            _ => None,
        });
        let global = match local.ip() {
            IpAddr::V6(ip) if !ip.is_unicast_link_local() => Some(ip),
            _ => here.iter().find_map(|ip| match ip {
                IpAddr::V6(ip) if !ip.is_unicast_link_local() => Some(*ip),
                _ => None,
            }),
        };
        let ipv6 = match (given[1], global, link_local) {
            (Some(given), ..) => Some(NextHop::from(given)),
            (None, Some(global), Some(link_local)) => Some(NextHop::V6Pair { global, link_local }),
            (None, Some(only), None) | (None, None, Some(only)) => Some(NextHop::V6(only)),
            (None, None, None) => None,
        };
        let own_v4 = if local.is_ipv4() { Some(local.ip()) } else { first_v4 };
        let ipv4 = given[0].or(own_v4).map(NextHop::from);
        let extended_next_hop = if given[0].is_none() && local.is_ipv6() { ipv6 } else { None };
        Endpoints { own_next_hops: PerFamily { ipv4, ipv6 }, extended_next_hop }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}
