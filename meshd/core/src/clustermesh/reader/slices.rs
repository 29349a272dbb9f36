//! Services of a cluster that publishes them as endpoint slices only.
//!
//! A service is spread over slices, and the tables have one row for it, so the slices are held here and put together
//! again. The rules of single records hold for the whole:
//!
//! - While a list is under way nothing is told: a service of which half the slices have come is not half a service.
//! - A slice that is refused keeps what it said before. If it never said anything in this run, its service is not told
//!   at all, and what an earlier run knew of it stays.
//! - Slices that a list no longer has go when the list ends, with everything else that it no longer has.
//!
//! Only endpoints that are ready become backends, as in the JSON form.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    net::IpAddr,
    sync::Arc,
};

use crate::{
    clustermesh::{endpointslice::EndpointSlice, service::BACKENDS_MAX},
    id::ClusterId,
    observed::{BackendZone, L4Addr, Limits, Ports, ServiceName, ServiceRow},
};

/// Namespace and name of a slice.
pub(super) type SliceName = (Arc<str>, Arc<str>);

/// The slices of one cluster.
#[derive(Debug, Default)]
pub(super) struct Slices {
    slices: BTreeMap<SliceName, Slice>,
    /// Slices by their service.
    services: BTreeMap<ServiceName, BTreeSet<SliceName>>,
    /// Backends in all slices, each port of an address counted.
    backends: usize,
    /// What the list under way has told so far.
    listing: Option<BTreeSet<SliceName>>,
    /// Services to tell.
    pending: BTreeSet<ServiceName>,
}

#[derive(Debug)]
struct Slice {
    service: ServiceName,
    /// `None` while it was refused whenever it was told.
    content: Option<Content>,
}

/// What one slice says of its service.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    ports: Ports,
    endpoints: Box<[(IpAddr, BackendZone)]>,
}

impl Content {
    fn new(slice: EndpointSlice) -> Self {
        let port = |port: crate::clustermesh::endpointslice::SlicePort| {
            Some((port.name.into(), L4Addr { protocol: port.protocol, port: port.port? }))
        };
        // What does not say whether it is ready is ready.
        let ready = slice.endpoints.into_iter().filter(|endpoint| endpoint.ready != Some(false));
        let endpoints = ready.flat_map(|endpoint| {
            let told = BackendZone {
                zone: endpoint.zone.filter(|zone| !zone.is_empty()).map(Into::into),
                for_zones: endpoint.hints.into_iter().filter(|zone| !zone.is_empty()).map(Into::into).collect(),
            };
            endpoint.addresses.into_iter().map(move |address| (address, told.clone()))
        });
        Self { ports: slice.ports.into_iter().filter_map(port).collect(), endpoints: endpoints.collect() }
    }

    fn backends(&self) -> usize {
        self.endpoints.len() * self.ports.len().max(1)
    }
}

/// What is known of a service.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// All of it.
    Whole(ServiceRow),
    /// Not all of its slices could be read.
    Part,
    /// It has more backends than are read.
    TooMany,
    /// No slice names it any more.
    Gone,
}

/// There is no room for a slice; this many slices or backends are kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom(pub(super) usize);

impl Slices {
    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.listing = Some(BTreeSet::new());
    }

    /// The list is complete: slices that it did not tell are gone.
    pub(super) fn end(&mut self) {
        let Some(told) = self.listing.take() else { return };
        let gone: Vec<SliceName> = self.slices.keys().filter(|name| !told.contains(*name)).cloned().collect();
        for name in &gone {
            self.remove(name);
        }
    }

    /// Takes in a slice of `service`.
    pub(super) fn put(&mut self, name: &SliceName, service: ServiceName, slice: EndpointSlice) -> Result<(), NoRoom> {
        let content = Content::new(slice);
        let old = self.slices.get(name);
        let before = old.and_then(|slice| slice.content.as_ref()).map_or(0, Content::backends);
        let backends = self.backends - before + content.backends();
        if backends > Limits::SLICE_BACKENDS {
            self.refuse(name, Some(service));
            return Err(NoRoom(Limits::SLICE_BACKENDS));
        }
        if old.is_none() && self.slices.len() >= Limits::SLICES {
            return Err(NoRoom(Limits::SLICES));
        }
        self.backends = backends;
        self.set(name, Slice { service, content: Some(content) });
        Ok(())
    }

    /// A slice was refused; `service` is what it belongs to, as far as that could be read.
    pub(super) fn refuse(&mut self, name: &SliceName, service: Option<ServiceName>) {
        if let Some(slice) = self.slices.get(name) {
            let service = slice.service.clone();
            self.mark(name, &service);
        } else if let Some(service) = service
            && self.slices.len() < Limits::SLICES
        {
            self.set(name, Slice { service, content: None });
        }
    }

    /// A slice is gone, or belongs to no service.
    pub(super) fn remove(&mut self, name: &SliceName) {
        if let Some(told) = &mut self.listing {
            told.remove(name);
        }
        if let Some(old) = self.slices.remove(name) {
            self.backends -= old.content.as_ref().map_or(0, Content::backends);
            self.unlink(name, &old.service);
            self.pending.insert(old.service);
        }
    }

    /// The services of which something was told since the last time, for the rows of the cluster `id`.
    pub(super) fn take(&mut self, id: ClusterId) -> Vec<(ServiceName, Told)> {
        let pending = mem::take(&mut self.pending);
        pending.into_iter().map(|service| (service.clone(), self.merge(id, &service))).collect()
    }

    fn set(&mut self, name: &SliceName, slice: Slice) {
        let service = slice.service.clone();
        if let Some(old) = self.slices.insert(name.clone(), slice)
            && old.service != service
        {
            self.unlink(name, &old.service);
            self.pending.insert(old.service);
        }
        self.services.entry(service.clone()).or_default().insert(name.clone());
        self.mark(name, &service);
    }

    fn mark(&mut self, name: &SliceName, service: &ServiceName) {
        if let Some(told) = &mut self.listing {
            told.insert(name.clone());
        }
        self.pending.insert(service.clone());
    }

    fn unlink(&mut self, name: &SliceName, service: &ServiceName) {
        if let Some(names) = self.services.get_mut(service) {
            names.remove(name);
            if names.is_empty() {
                self.services.remove(service);
            }
        }
    }

    fn merge(&self, cluster_id: ClusterId, service: &ServiceName) -> Told {
        let Some(names) = self.services.get(service) else { return Told::Gone };
        let slices: Option<Vec<&Content>> =
            names.iter().filter_map(|name| self.slices.get(name)).map(|slice| slice.content.as_ref()).collect();
        let Some(slices) = slices else { return Told::Part };
        let mut backends: BTreeMap<IpAddr, Ports> = BTreeMap::new();
        let mut zones: BTreeMap<IpAddr, BackendZone> = BTreeMap::new();
        for slice in slices {
            for (address, told) in &slice.endpoints {
                let ports = backends.entry(*address).or_default();
                // An endpoint may be in several slices for a while. The slice whose name comes first is believed.
                for (name, l4) in &slice.ports {
                    ports.entry(name.clone()).or_insert(*l4);
                }
                if *told != BackendZone::default() {
                    zones.entry(*address).or_insert_with(|| told.clone());
                }
            }
            if backends.len() > BACKENDS_MAX {
                return Told::TooMany;
            }
        }
        // Slices have no frontends, and only services that take part in both directions are published at all.
        Told::Whole(ServiceRow { cluster_id, frontends: BTreeMap::new(), backends, include_external: true, zones })
    }
}

#[cfg(test)]
mod tests;
