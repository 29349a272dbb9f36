//! Service records (wire contract section 1.6).
//!
//! One JSON value holds a whole service. Addresses are object keys, ports are Go structs without tags (`Protocol`,
//! `Port`). Frontends are kept for display only; backends are what other clusters merge.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::Serialize;

use super::{
    address,
    context::PeerContext,
    endpointslice::SLICE_HINTS_MAX,
    go_json::{self, Entries, List, Text, go_record},
    rejection::{Excerpt, Rejection},
};
use crate::{
    id::ClusterName,
    observed::{self, L4Addr, Ports, Protocol, ServiceName, ServiceRow},
};

/// Most frontends of one service.
pub const FRONTENDS_MAX: usize = 256;
/// Most backends of one service and cluster; the size limit of a value allows about as many.
pub const BACKENDS_MAX: usize = 16_384;
/// Most ports of one address.
pub const PORTS_MAX: usize = 256;
/// Longest port name (a Kubernetes port name has at most 63 characters).
pub const PORT_NAME_MAX: usize = 63;
/// Longest name of a zone: it is the value of a label.
pub const ZONE_MAX: usize = 63;

go_record! {
    /// Protocol and port.
    WirePort {
        protocol: Text<'de> = "Protocol",
        port: u16 = "Port",
    }
}

go_record! {
    /// A zone that should prefer a backend.
    WireForZone {
        name: Text<'de> = "name",
    }
}

go_record! {
    /// Where a backend is.
    WireZone {
        zone: Text<'de> = "zone",
        for_zones: List<WireForZone<'de>, SLICE_HINTS_MAX> = "forZones",
    }
}

type WireAddresses<'de, const MAX: usize> = Entries<'de, Entries<'de, WirePort<'de>, PORTS_MAX>, MAX>;

go_record! {
    /// The fields of a service that we read.
    WireService {
        cluster: Text<'de> = "cluster",
        namespace: Text<'de> = "namespace",
        name: Text<'de> = "name",
        frontends: WireAddresses<'de, FRONTENDS_MAX> = "frontends",
        backends: WireAddresses<'de, BACKENDS_MAX> = "backends",
        zones: Entries<'de, WireZone<'de>, BACKENDS_MAX> = "zones",
        include_external: bool = "includeExternal",
        shared: bool = "shared",
        cluster_id: u32 = "clusterID",
    }
}

/// Reads and checks a service record. `None` when it is not shared: that takes it back.
///
/// # Errors
/// The first check it fails. One bad backend refuses the whole record.
pub(super) fn accept(ctx: &PeerContext, name: &ServiceName, value: &[u8]) -> Result<Option<ServiceRow>, Rejection> {
    let wire: WireService<'_> = go_json::read(value)?;
    ctx.check_cluster(&wire.cluster)?;
    for (field, key, value) in [("namespace", &*name.namespace, &wire.namespace), ("name", &*name.name, &wire.name)] {
        if **value != *key {
            return Err(Rejection::KeyMismatch { field, key: Excerpt::new(key), value: Excerpt::new(value) });
        }
    }
    ctx.check_cluster_id(wire.cluster_id)?;
    if !wire.shared {
        return Ok(None);
    }
    let mut frontends = BTreeMap::new();
    for (address, ports) in wire.frontends.bounded("frontends")? {
        // Frontends lie in service ranges that no accept list names, and nothing is sent to them.
        let ip = address::parse_address("frontends", address)?;
        address::check_address("frontends", ip)?;
        frontends.insert(ip, read_ports(ports)?);
    }
    let mut backends = BTreeMap::new();
    for (address, ports) in wire.backends.bounded("backends")? {
        let ip = address::parse_address("backends", address)?;
        ctx.check_endpoint("backends", IpNet::from(ip))?;
        backends.insert(ip, read_ports(ports)?);
    }
    let mut zones = BTreeMap::new();
    for (address, wire) in wire.zones.bounded("zones")? {
        let ip = address::parse_address("zones", address)?;
        // A zone of somebody who is no backend says nothing.
        let told = read_zone(wire)?;
        if backends.contains_key(&ip) && told != observed::BackendZone::default() {
            zones.insert(ip, told);
        }
    }
    let include_external = wire.include_external;
    Ok(Some(ServiceRow { cluster_id: ctx.id, frontends, backends, include_external, zones }))
}

fn read_zone(wire: &WireZone<'_>) -> Result<observed::BackendZone, Rejection> {
    let name = |text: &Text<'_>| -> Result<Arc<str>, Rejection> {
        check_zone(text)?;
        Ok((&**text).into())
    };
    let for_zones = wire.for_zones.bounded("forZones")?.iter().map(|zone| name(&zone.name));
    Ok(observed::BackendZone {
        zone: Some(name(&wire.zone)?).filter(|zone| !zone.is_empty()),
        for_zones: for_zones.collect::<Result<_, _>>()?,
    })
}

fn read_ports(found: &Entries<'_, WirePort<'_>, PORTS_MAX>) -> Result<Ports, Rejection> {
    let mut ports = Ports::new();
    for (name, wire) in found.bounded("ports")? {
        check_port_name(name)?;
        let protocol = parse_protocol(&wire.protocol)?;
        ports.insert((&**name).into(), L4Addr { protocol, port: wire.port });
    }
    Ok(ports)
}

/// Checks the name of a zone.
pub(super) fn check_zone(name: &str) -> Result<(), Rejection> {
    if name.len() <= ZONE_MAX && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let expected = "at most 63 characters, none of them a control character";
    Err(Rejection::BadField { field: "zone", found: Excerpt::new(name), expected })
}

/// Checks the name of a port.
pub(super) fn check_port_name(name: &str) -> Result<(), Rejection> {
    if name.len() <= PORT_NAME_MAX && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let expected = "at most 63 characters, none of them a control character";
    Err(Rejection::BadField { field: "port name", found: Excerpt::new(name), expected })
}

/// Reads the word of a protocol.
pub(super) fn parse_protocol(word: &str) -> Result<Protocol, Rejection> {
    match word {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        "ANY" => Ok(Protocol::Any),
        "NONE" | "" => Ok(Protocol::None),
        other => {
            let expected = "TCP, UDP, SCTP, ANY or NONE";
            Err(Rejection::BadField { field: "protocol", found: Excerpt::new(other), expected })
        }
    }
}

/// What a service record says beyond its row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceExtras {
    /// Hostname of each backend that has one.
    pub hostnames: BTreeMap<IpAddr, String>,
    /// Labels of the service.
    pub labels: BTreeMap<String, String>,
    /// Its selector.
    pub selector: BTreeMap<String, String>,
}

/// True when the record of a service has this label. A record that cannot be read has none.
pub(super) fn has_label(record: &[u8], label: &str, value: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Labelled {
        #[serde(default)]
        labels: BTreeMap<String, String>,
    }
    let read = serde_json::from_slice::<Labelled>(record);
    read.is_ok_and(|record| record.labels.get(label).is_some_and(|found| found == value))
}

#[derive(Serialize)]
struct OutPort {
    #[serde(rename = "Protocol")]
    protocol: &'static str,
    #[serde(rename = "Port")]
    port: u16,
}

#[derive(Serialize)]
struct OutZone<'a> {
    zone: &'a str,
    #[serde(rename = "forZones")]
    for_zones: Vec<OutForZone<'a>>,
}

#[derive(Serialize)]
struct OutForZone<'a> {
    name: &'a str,
}

type OutAddresses<'a> = BTreeMap<String, BTreeMap<&'a str, OutPort>>;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutService<'a> {
    cluster: &'a str,
    namespace: &'a str,
    name: &'a str,
    frontends: OutAddresses<'a>,
    backends: OutAddresses<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hostnames: BTreeMap<String, &'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    zones: BTreeMap<String, OutZone<'a>>,
    labels: &'a BTreeMap<String, String>,
    selector: &'a BTreeMap<String, String>,
    include_external: bool,
    shared: bool,
    #[serde(rename = "clusterID")]
    cluster_id: u16,
}

/// Writes a service record that is shared.
#[must_use]
pub fn encode(cluster: &ClusterName, name: &ServiceName, row: &ServiceRow, extras: &ServiceExtras) -> Vec<u8> {
    go_json::write(&OutService {
        cluster: cluster.as_str(),
        namespace: &name.namespace,
        name: &name.name,
        frontends: out_addresses(&row.frontends),
        backends: out_addresses(&row.backends),
        // Go sorts object keys as text, not as addresses.
        hostnames: extras.hostnames.iter().map(|(ip, name)| (ip.to_string(), &**name)).collect(),
        zones: row.zones.iter().map(|(ip, told)| (ip.to_string(), out_zone(told))).collect(),
        labels: &extras.labels,
        selector: &extras.selector,
        include_external: row.include_external,
        shared: true,
        cluster_id: row.cluster_id.get(),
    })
}

fn out_zone(told: &observed::BackendZone) -> OutZone<'_> {
    let for_zones = told.for_zones.iter().map(|name| OutForZone { name }).collect();
    OutZone { zone: told.zone.as_deref().unwrap_or_default(), for_zones }
}

fn out_addresses(addresses: &BTreeMap<IpAddr, Ports>) -> OutAddresses<'_> {
    let port = |l4: &L4Addr| OutPort { protocol: protocol_text(l4.protocol), port: l4.port };
    addresses
        .iter()
        .map(|(ip, ports)| (ip.to_string(), ports.iter().map(|(name, l4)| (&**name, port(l4))).collect()))
        .collect()
}

/// The word of a protocol.
pub(super) fn protocol_text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
        Protocol::Any => "ANY",
        Protocol::None => "NONE",
    }
}
