//! Records of the services our own cluster shares.
//!
//! Each service is written twice: as one JSON value, which readers before release 1.20 know, and as endpoint slices, which
//! later ones prefer. Only the writer of the cluster writes them, because a service is the whole cluster's and not a
//! node's: with several writers the last one would win, whatever it knew. They carry a mark in their labels, by which a
//! later run of meshd knows them again (I5); a record without it was written by somebody else and is not removed.
//!
//! A JSON value lists active backends only. Slices have conditions and list those that shut down as well. An address is in
//! the slice that its hash says, of a number of slices that is a power of two, so that one backend that comes or goes
//! changes one slice and not all behind it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{OwnState, RefusedWorkload, allocate::hash};
use crate::{
    clustermesh::{
        Key, Keyspace, PeerContext, VALUE_MAX,
        endpointslice::{self, EndpointSlice, SERVICE_NAME_LABEL, SliceEndpoint, SlicePort},
        labels,
        service::{self, BACKENDS_MAX, ServiceExtras},
    },
    desired::{ExportedBackend, ExportedService, Exports},
    observed::{BackendZone, L4Addr, Ports, Protocol, ServiceName, ServiceRow, Topology},
    table::{RowDiff, Table},
};

/// The label of a service by which its record is known to be ours, and its value.
const SERVICE_MARK: (&str, &str) = ("app.kubernetes.io/managed-by", "meshd");
/// The same for slices.
const SLICE_MARK: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "meshd");
/// Endpoints a slice has on average at most, as in Kubernetes.
const SLICE_ENDPOINTS: usize = 100;

/// Name, protocol and number of a port, as slices have it.
type PortKey = (Arc<str>, Protocol, u16);

/// The records of every service that is shared, written once per change.
#[derive(Debug, Clone, Default)]
pub struct ServiceRecords {
    complete: bool,
    seen: Table<ServiceName, Arc<ExportedService>>,
    records: BTreeMap<ServiceName, Written>,
}

/// The records of one service.
type Written = Result<Vec<(Arc<str>, Arc<[u8]>)>, RefusedWorkload>;

impl ServiceRecords {
    /// Writes what changed; false when nothing did.
    pub fn update(&mut self, own: &OwnState, exports: &Exports) -> bool {
        let mut changed = self.complete != exports.complete;
        self.complete = exports.complete;
        for diff in exports.services.diff(&self.seen) {
            changed = true;
            match diff {
                RowDiff::Added(name, row) | RowDiff::Changed(name, _, row) => {
                    self.records.insert(name.clone(), write(own, name, row));
                }
                RowDiff::Removed(name, _) => drop(self.records.remove(name)),
            }
        }
        self.seen = exports.services.clone();
        changed
    }

    /// Everything that is shared is here: what the store has beyond it may go.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Keys and values.
    pub(super) fn records(&self) -> impl Iterator<Item = &(Arc<str>, Arc<[u8]>)> {
        self.records.values().flatten().flatten()
    }

    /// Services that cannot be written.
    pub(super) fn refused(&self) -> impl Iterator<Item = &RefusedWorkload> {
        self.records.values().filter_map(|written| written.as_ref().err())
    }
}

/// True for the record of a service or a slice that carries our mark.
pub(super) fn is_marked(context: &PeerContext, key: &Key<'_>, value: &[u8]) -> bool {
    match key {
        Key::Service { .. } => service::has_label(value, SERVICE_MARK.0, SERVICE_MARK.1),
        Key::EndpointSlice { namespace, name, .. } => endpointslice::accept(context, namespace, name, value)
            .is_ok_and(|slice| slice.labels.iter().any(|(_, key, value)| (key, value) == SLICE_MARK)),
        Key::Heartbeat
        | Key::ClusterConfig { .. }
        | Key::Canary { .. }
        | Key::Node { .. }
        | Key::Endpoint { .. }
        | Key::Identity { .. }
        | Key::IdentityAllocator
        | Key::ServiceExport { .. } => false,
    }
}

fn write(own: &OwnState, name: &ServiceName, service: &ExportedService) -> Written {
    let mut records = vec![json(own, name, service)?];
    records.extend(slices(own, name, service).into_iter().map(|slice| {
        let (cluster, namespace) = (own.cluster.as_str(), &*name.namespace);
        let key = Key::EndpointSlice { keyspace: Keyspace::State, cluster, namespace, name: &slice.name };
        (key.to_string().into(), endpointslice::encode(&own.cluster, &slice).into())
    }));
    Ok(records)
}

fn json(
    own: &OwnState,
    name: &ServiceName,
    service: &ExportedService,
) -> Result<(Arc<str>, Arc<[u8]>), RefusedWorkload> {
    let frontend =
        |port: &crate::desired::ExportedPort| (port.name.clone(), L4Addr { protocol: port.protocol, port: port.port });
    let frontends: Ports = service.ports.iter().map(frontend).collect();
    let mut backends: BTreeMap<IpAddr, Ports> = BTreeMap::new();
    for port in &service.ports {
        for backend in port.backends.iter().filter(|backend| !backend.terminating) {
            let l4 = L4Addr { protocol: port.protocol, port: backend.port };
            backends.entry(backend.address).or_default().insert(port.name.clone(), l4);
        }
    }
    let count = backends.len();
    let zone = |backend: &ExportedBackend| {
        let zone = backend.zone.clone()?;
        let for_zones = hints(service, &zone).map(Into::into).collect();
        Some((backend.address, BackendZone { zone: Some(zone), for_zones }))
    };
    let row = ServiceRow {
        cluster_id: own.id,
        frontends: service.cluster_ips.iter().map(|address| (*address, frontends.clone())).collect(),
        backends,
        include_external: true,
        zones: service.ports.iter().flat_map(|port| port.backends.iter()).filter_map(zone).collect(),
    };
    let extras = ServiceExtras {
        labels: [(SERVICE_MARK.0.to_owned(), SERVICE_MARK.1.to_owned())].into(),
        selector: service.selector.clone(),
        ..ServiceExtras::default()
    };
    let value = service::encode(&own.cluster, name, &row, &extras);
    if count > BACKENDS_MAX || value.len() > VALUE_MAX {
        return Err(RefusedWorkload::Service { service: name.to_string(), backends: count, size: value.len() });
    }
    Ok((Key::service(Keyspace::State, &own.cluster, name).to_string().into(), value.into()))
}

/// The zones that should prefer a backend of this zone.
fn hints(service: &ExportedService, zone: &str) -> impl Iterator<Item = String> {
    (service.topology == Topology::Zone).then(|| zone.to_owned()).into_iter()
}

/// The slices of a service. The endpoints of a slice have the same family and the same ports.
fn slices(own: &OwnState, name: &ServiceName, service: &ExportedService) -> Vec<EndpointSlice> {
    let mut endpoints: BTreeMap<IpAddr, (Vec<PortKey>, &ExportedBackend)> = BTreeMap::new();
    for port in &service.ports {
        for backend in port.backends.iter() {
            let (ports, last) = endpoints.entry(backend.address).or_insert((Vec::new(), backend));
            ports.push((port.name.clone(), port.protocol, backend.port));
            *last = backend;
        }
    }
    let mut groups: BTreeMap<(bool, Vec<PortKey>), Vec<SliceEndpoint>> = BTreeMap::new();
    for (address, (ports, backend)) in endpoints {
        let terminating = backend.terminating;
        groups.entry((!address.is_ipv4(), ports)).or_default().push(SliceEndpoint {
            addresses: vec![address],
            ready: Some(!terminating),
            serving: Some(true),
            terminating: Some(terminating),
            node: backend.node.as_ref().map(ToString::to_string),
            zone: backend.zone.as_deref().map(str::to_owned),
            hints: backend.zone.iter().flat_map(|zone| hints(service, zone)).collect(),
            ..SliceEndpoint::default()
        });
    }
    let marks = [(SERVICE_NAME_LABEL, &*name.name), SLICE_MARK];
    let labels = labels::from_map(marks).unwrap_or_default();
    let mut slices = Vec::new();
    for ((is_ipv6, ports), endpoints) in groups {
        // Static backends may listen elsewhere than workloads, so the ports belong to the name.
        let text: Vec<String> = ports.iter().map(|(name, _, number)| format!("{name}/{number}")).collect();
        let stem =
            format!("{}-{}-{:08x}", name.name, if is_ipv6 { "ipv6" } else { "ipv4" }, short(text.join(",").as_bytes()));
        let count = endpoints.len().div_ceil(SLICE_ENDPOINTS).next_power_of_two();
        let mut buckets: Vec<Vec<SliceEndpoint>> = vec![Vec::new(); count];
        for endpoint in endpoints {
            let text = endpoint.addresses.first().map(ToString::to_string).unwrap_or_default();
            buckets[short(text.as_bytes()) as usize & (count - 1)].push(endpoint);
        }
        for (nth, endpoints) in buckets.into_iter().enumerate().filter(|(_, endpoints)| !endpoints.is_empty()) {
            let port = |(name, protocol, number): &PortKey| SlicePort {
                name: name.to_string(),
                protocol: *protocol,
                port: Some(*number),
                app_protocol: None,
            };
            slices.push(EndpointSlice {
                cluster_id: own.id,
                namespace: name.namespace.to_string(),
                name: format!("{stem}-{nth}"),
                labels: labels.clone(),
                ipv4: !is_ipv6,
                endpoints,
                ports: ports.iter().map(port).collect(),
            });
        }
    }
    slices
}

/// The low half of the hash that also places labels: it depends on everything.
fn short(bytes: &[u8]) -> u32 {
    (hash(bytes) & u64::from(u32::MAX)) as u32
}
