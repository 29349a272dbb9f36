//! Services of our own cluster: addresses that this node advertises, and that nobody else may tell it.
//!
//! A service is known from the record that our cluster publishes of it, which it does when the service is shared with the mesh.
//! Its addresses are advertised while it has somewhere to go: a backend of its own, or leave to use those of other
//! clusters. Addresses without are still ours, and refused from peers like those of this node. The records say nothing of
//! a traffic policy, so every node that advertises services advertises all of them.

use std::{collections::BTreeSet, sync::Arc};

use bgp::policy::{ImportGuard, LocalSource};
use ipnet::IpNet;
use meshd_core::{
    observed::{Observed, ServiceName, ServiceRow},
    table::Table,
};

use super::{convert, settings::Settings};

/// Addresses as of the last look.
#[derive(Debug, Default)]
pub(super) struct Services {
    seen: Table<ServiceName, Arc<ServiceRow>>,
    /// All of them.
    own: BTreeSet<IpNet>,
    /// Those that have somewhere to go.
    served: BTreeSet<IpNet>,
}

impl Services {
    /// Looks again; true when there are other addresses than before.
    pub(super) fn update(&mut self, observed: &Observed, settings: &Settings) -> bool {
        let Some(tables) = observed.clusters.get(&settings.cluster) else { return false };
        if tables.services.diff(&self.seen).next().is_none() {
            return false;
        }
        self.seen = tables.services.clone();
        let (own, served) = addresses(&self.seen);
        let changed = (&own, &served) != (&self.own, &self.served);
        (self.own, self.served) = (own, served);
        changed
    }

    /// Settings with these services.
    pub(super) fn complete(&self, base: &Settings) -> Settings {
        let mut settings = base.clone();
        if self.own.is_empty() {
            return settings;
        }
        if base.service_vips {
            let route = |prefix: &IpNet| (*prefix, convert::local_route(LocalSource::Service));
            settings.originate.extend(self.served.iter().map(route));
        }
        let own = base.reserved.iter().chain(&self.own).copied();
        let guard = Arc::new(ImportGuard::new(own, base.guard));
        let peers = settings.peers.values_mut().chain(settings.ranges.iter_mut().map(|range| &mut range.template));
        for peer in peers {
            let import = &mut peer.config.tables.import;
            *import = import.with_guard(guard.clone());
        }
        settings
    }
}

fn addresses(services: &Table<ServiceName, Arc<ServiceRow>>) -> (BTreeSet<IpNet>, BTreeSet<IpNet>) {
    let (mut own, mut served) = (BTreeSet::new(), BTreeSet::new());
    for (_, row) in services.iter() {
        let prefixes = row.frontends.keys().map(|address| IpNet::from(*address));
        own.extend(prefixes.clone());
        if !row.backends.is_empty() || row.include_external {
            served.extend(prefixes);
        }
    }
    (own, served)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meshd_core::id::{ClusterId, MaxClusters};

    use super::*;

    #[test]
    fn a_service_without_backends_is_ours_and_not_advertised() {
        let mut services = Table::default();
        let name = |name: &str| ServiceName { namespace: "default".into(), name: name.into() };
        let row = |frontends: &[&str], backends: &[&str], include_external| {
            let ports = |addresses: &[&str]| {
                addresses.iter().map(|it| (it.parse().expect("an address"), BTreeMap::new())).collect()
            };
            let cluster_id = ClusterId::new(1, MaxClusters::C255).expect("an id");
            Arc::new(ServiceRow {
                cluster_id,
                frontends: ports(frontends),
                backends: ports(backends),
                include_external,
                zones: BTreeMap::new(),
            })
        };
        services.upsert(name("a"), row(&["10.9.0.1", "fd09::1"], &["10.0.1.5"], false));
        services.upsert(name("b"), row(&["10.9.0.2"], &[], false));
        services.upsert(name("c"), row(&["10.9.0.3"], &[], true));
        services.upsert(name("headless"), row(&[], &["10.0.1.6"], false));
        let (own, served) = addresses(&services);
        let net = |text: &str| -> IpNet { text.parse().expect("a prefix") };
        assert_eq!(own, BTreeSet::from(["10.9.0.1/32", "10.9.0.2/32", "10.9.0.3/32", "fd09::1/128"].map(net)));
        assert_eq!(served, BTreeSet::from(["10.9.0.1/32", "10.9.0.3/32", "fd09::1/128"].map(net)));
    }
}
