//! Endpoint slices: zstd frames around a protobuf message (wire contract section 1.8).
//!
//! Both layers can make much out of little. Decompression stops at [`DECOMPRESSED_MAX`], frames that ask for a larger
//! window are refused before anything is allocated, and entries are counted before the message is decoded.

use std::net::IpAddr;

use ipnet::IpNet;
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, skip_field},
};
use ruzstd::{
    decoding::{
        BlockDecodingStrategy, FrameDecoder,
        errors::{FrameDecoderError, ReadFrameHeaderError},
    },
    encoding::{CompressionLevel, compress_to_vec},
};

use super::{
    address,
    context::PeerContext,
    keys::is_object_name,
    labels,
    record::check_size,
    rejection::{Excerpt, Rejection},
};
use crate::{
    id::{ClusterId, ClusterName},
    observed::{Labels, Protocol, ServiceName},
};

/// Most bytes a slice may decompress to; a full slice of 1,000 endpoints has about 100 KiB. Fuzzing stops at less: a
/// frame that says "repeat this byte" costs milliseconds there and shows nothing new after the first few thousand.
pub const DECOMPRESSED_MAX: usize = if cfg!(fuzzing) { 32 * 1024 } else { 2 * 1024 * 1024 };
/// Most endpoints of one slice, as in Kubernetes.
pub const SLICE_ENDPOINTS_MAX: usize = 1000;
/// Most ports of one slice.
pub const SLICE_PORTS_MAX: usize = 256;
/// Most labels of one slice.
pub const SLICE_LABELS_MAX: usize = 256;
/// Most addresses of one endpoint, as in Kubernetes.
pub const SLICE_ADDRESSES_MAX: usize = 100;
/// Most zone hints of one endpoint.
pub const SLICE_HINTS_MAX: usize = 64;
/// The label that names the service of a slice.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

const TAG_LABELS: u32 = 5;
const TAG_ENDPOINTS: u32 = 8;
const TAG_PORTS: u32 = 9;

/// A slice that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Id of its cluster.
    pub cluster_id: ClusterId,
    /// Namespace.
    pub namespace: String,
    /// Name of the slice.
    pub name: String,
    /// Labels, without source; [`SERVICE_NAME_LABEL`] names the service.
    pub labels: Labels,
    /// Its addresses are IPv4; else IPv6.
    pub ipv4: bool,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Ports every endpoint has.
    pub ports: Vec<SlicePort>,
}

impl EndpointSlice {
    /// The service it belongs to; `None` when it says none, and then it is nobody's.
    ///
    /// # Errors
    /// [`Rejection::BadField`] for what cannot be the name of a service.
    pub fn service(&self) -> Result<Option<ServiceName>, Rejection> {
        let mut labels = self.labels.iter();
        let Some((_, _, name)) = labels.find(|(_, key, _)| *key == SERVICE_NAME_LABEL) else { return Ok(None) };
        service_name(&self.namespace, name).map(Some)
    }
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SliceEndpoint {
    /// Its addresses, all of the slice's family.
    pub addresses: Vec<IpAddr>,
    /// Ready for traffic, if said.
    pub ready: Option<bool>,
    /// Serving, ready or not, if said.
    pub serving: Option<bool>,
    /// Shutting down, if said.
    pub terminating: Option<bool>,
    /// Hostname.
    pub hostname: Option<String>,
    /// Node it runs on.
    pub node: Option<String>,
    /// Zone it is in.
    pub zone: Option<String>,
    /// Zones that should prefer it.
    pub hints: Vec<String>,
}

/// One port of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// Name; the unnamed port has the name "".
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port; `None` means every port.
    pub port: Option<u16>,
    /// Application protocol.
    pub app_protocol: Option<String>,
}

/// `ClusterEndpointSlice`.
#[derive(Clone, PartialEq, Message)]
struct WireSlice {
    #[prost(string, optional, tag = "1")]
    cluster: Option<String>,
    #[prost(uint32, optional, tag = "2")]
    cluster_id: Option<u32>,
    #[prost(string, optional, tag = "3")]
    namespace: Option<String>,
    #[prost(string, optional, tag = "4")]
    name: Option<String>,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: std::collections::BTreeMap<String, String>,
    #[prost(string, optional, tag = "7")]
    address_type: Option<String>,
    #[prost(message, repeated, tag = "8")]
    endpoints: Vec<WireEndpoint>,
    #[prost(message, repeated, tag = "9")]
    ports: Vec<WirePort>,
}

#[derive(Clone, PartialEq, Message)]
struct WireEndpoint {
    #[prost(string, repeated, tag = "1")]
    addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    conditions: Option<WireConditions>,
    #[prost(string, optional, tag = "3")]
    hostname: Option<String>,
    #[prost(string, optional, tag = "6")]
    node: Option<String>,
    #[prost(string, optional, tag = "7")]
    zone: Option<String>,
    #[prost(message, optional, tag = "8")]
    hints: Option<WireHints>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct WireConditions {
    #[prost(bool, optional, tag = "1")]
    ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    terminating: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct WireHints {
    #[prost(message, repeated, tag = "1")]
    zones: Vec<WireZone>,
}

#[derive(Clone, PartialEq, Message)]
struct WireZone {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct WirePort {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    port: Option<i32>,
    #[prost(string, optional, tag = "4")]
    app_protocol: Option<String>,
}

/// Reads and checks a slice published under `namespace` and `name`.
///
/// # Errors
/// The first check it fails.
pub fn accept(ctx: &PeerContext, namespace: &str, name: &str, value: &[u8]) -> Result<EndpointSlice, Rejection> {
    check_size(value)?;
    accept_message(ctx, namespace, name, &decompress(value)?)
}

/// The same for a message that was decompressed before.
///
/// # Errors
/// The first check it fails.
pub fn accept_message(
    ctx: &PeerContext,
    namespace: &str,
    name: &str,
    message: &[u8],
) -> Result<EndpointSlice, Rejection> {
    count_entries(message)?;
    let wire = WireSlice::decode(message).map_err(protobuf)?;
    for (field, text) in [("cluster", &wire.cluster), ("namespace", &wire.namespace), ("name", &wire.name)] {
        if text.as_deref().unwrap_or_default().is_empty() {
            return Err(Rejection::MissingField { field });
        }
    }
    ctx.check_cluster(wire.cluster.as_deref().unwrap_or_default())?;
    for (field, key, value) in [("namespace", namespace, &wire.namespace), ("name", name, &wire.name)] {
        let value = value.as_deref().unwrap_or_default();
        if value != key {
            return Err(Rejection::KeyMismatch { field, key: Excerpt::new(key), value: Excerpt::new(value) });
        }
    }
    ctx.check_cluster_id(wire.cluster_id.unwrap_or(0))?;
    let ipv4 = match wire.address_type.as_deref().unwrap_or_default() {
        "IPv4" => true,
        "IPv6" => false,
        other => {
            let expected = "IPv4 or IPv6";
            return Err(Rejection::BadField { field: "addressType", found: Excerpt::new(other), expected });
        }
    };
    let pairs: Vec<_> = wire.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    Ok(EndpointSlice {
        cluster_id: ctx.id,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        labels: labels::from_map(pairs)?,
        ipv4,
        endpoints: wire.endpoints.into_iter().map(|wire| endpoint(ctx, ipv4, wire)).collect::<Result<_, _>>()?,
        ports: wire.ports.into_iter().map(port).collect::<Result<_, _>>()?,
    })
}

/// The service of a slice that was refused, when that much can be read.
pub(super) fn service_of_refused(namespace: &str, value: &[u8]) -> Option<ServiceName> {
    check_size(value).ok()?;
    let message = decompress(value).ok()?;
    count_entries(&message).ok()?;
    let wire = WireSlice::decode(&*message).ok()?;
    service_name(namespace, wire.labels.get(SERVICE_NAME_LABEL)?).ok()
}

fn service_name(namespace: &str, name: &str) -> Result<ServiceName, Rejection> {
    if is_object_name(name) {
        return Ok(ServiceName { namespace: namespace.into(), name: name.into() });
    }
    let expected = "the name of a service";
    Err(Rejection::BadField { field: SERVICE_NAME_LABEL, found: Excerpt::new(name), expected })
}

fn endpoint(ctx: &PeerContext, ipv4: bool, wire: WireEndpoint) -> Result<SliceEndpoint, Rejection> {
    const FIELD: &str = "addresses";
    bound(FIELD, wire.addresses.len(), SLICE_ADDRESSES_MAX)?;
    let mut addresses = Vec::with_capacity(wire.addresses.len());
    for text in &wire.addresses {
        let ip = address::parse_address(FIELD, text)?;
        if ip.is_ipv4() != ipv4 {
            return Err(Rejection::Family { field: FIELD, found: ip });
        }
        ctx.check_endpoint(FIELD, IpNet::from(ip))?;
        addresses.push(ip);
    }
    let hints = wire.hints.unwrap_or_default().zones;
    bound("forZones", hints.len(), SLICE_HINTS_MAX)?;
    for zone in wire.zone.iter().chain(hints.iter().filter_map(|hint| hint.name.as_ref())) {
        super::service::check_zone(zone)?;
    }
    let conditions = wire.conditions.unwrap_or_default();
    Ok(SliceEndpoint {
        addresses,
        ready: conditions.ready,
        serving: conditions.serving,
        terminating: conditions.terminating,
        hostname: wire.hostname,
        node: wire.node,
        zone: wire.zone,
        hints: hints.into_iter().map(|zone| zone.name.unwrap_or_default()).collect(),
    })
}

fn port(wire: WirePort) -> Result<SlicePort, Rejection> {
    let name = wire.name.unwrap_or_default();
    super::service::check_port_name(&name)?;
    let port = wire.port.map(|found| {
        let expected = "between 0 and 65535";
        u16::try_from(found).map_err(|_| Rejection::BadNumber { field: "port", found: found.into(), expected })
    });
    Ok(SlicePort {
        name,
        // Kubernetes leaves TCP out.
        protocol: match wire.protocol.as_deref() {
            None | Some("") => Protocol::Tcp,
            Some(word) => super::service::parse_protocol(word)?,
        },
        port: port.transpose()?,
        app_protocol: wire.app_protocol,
    })
}

fn bound(field: &'static str, found: usize, limit: usize) -> Result<(), Rejection> {
    if found > limit { Err(Rejection::TooManyEntries { field, found, limit }) } else { Ok(()) }
}

/// Counts the repeated fields of a message, because two bytes of an empty entry become two hundred when decoded.
fn count_entries(mut message: &[u8]) -> Result<(), Rejection> {
    let (mut labels, mut endpoints, mut ports) = (0, 0, 0);
    while !message.is_empty() {
        let (tag, wire_type) = decode_key(&mut message).map_err(protobuf)?;
        match tag {
            TAG_LABELS => labels += 1,
            TAG_ENDPOINTS => endpoints += 1,
            TAG_PORTS => ports += 1,
            _ => {}
        }
        if matches!(wire_type, WireType::StartGroup | WireType::EndGroup) {
            return Err(Rejection::Protobuf { problem: "groups are not part of the message".to_owned() });
        }
        skip_field(wire_type, tag, &mut message, DecodeContext::default()).map_err(protobuf)?;
    }
    bound("labels", labels, SLICE_LABELS_MAX)?;
    bound("endpoints", endpoints, SLICE_ENDPOINTS_MAX)?;
    bound("ports", ports, SLICE_PORTS_MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn protobuf(error: prost::DecodeError) -> Rejection {
    Rejection::Protobuf { problem: Excerpt::plain(&error.to_string()) }
}

/// Decompresses all frames of `input`, up to [`DECOMPRESSED_MAX`] bytes.
fn decompress(mut input: &[u8]) -> Result<Vec<u8>, Rejection> {
    let refuse = |problem: String| Rejection::Zstd { problem: Excerpt::plain(&problem) };
    let too_large = Rejection::DecompressedTooLarge { limit: DECOMPRESSED_MAX };
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(DECOMPRESSED_MAX as u64);
    let mut output = Vec::new();
    while !input.is_empty() {
        match decoder.reset(&mut input) {
            Ok(()) => {}
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let rest = usize::try_from(length).ok().and_then(|length| input.get(length..));
                input = rest.ok_or_else(|| refuse("a skippable frame is cut short".to_owned()))?;
                continue;
            }
            Err(FrameDecoderError::WindowSizeTooBig { .. }) => return Err(too_large),
            Err(error) => return Err(refuse(error.to_string())),
        }
        while !decoder.is_finished() {
            decoder
                .decode_blocks(&mut input, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(|error| refuse(error.to_string()))?;
            if output.len() + decoder.can_collect() > DECOMPRESSED_MAX {
                return Err(too_large);
            }
            decoder.collect_to_writer(&mut output).map_err(|error| refuse(error.to_string()))?;
        }
        if decoder.get_checksum_from_data().is_some_and(|sum| Some(sum) != decoder.get_calculated_checksum()) {
            return Err(refuse("the checksum of a frame does not match".to_owned()));
        }
    }
    Ok(output)
}

/// Writes a slice.
#[must_use]
pub fn encode(cluster: &ClusterName, slice: &EndpointSlice) -> Vec<u8> {
    compress_to_vec(&*encode_message(cluster, slice), CompressionLevel::Fastest)
}

/// The message of a slice, not compressed.
#[must_use]
pub fn encode_message(cluster: &ClusterName, slice: &EndpointSlice) -> Vec<u8> {
    let wire = WireSlice {
        cluster: Some(cluster.to_string()),
        cluster_id: Some(slice.cluster_id.get().into()),
        namespace: Some(slice.namespace.clone()),
        name: Some(slice.name.clone()),
        labels: slice.labels.iter().map(|(_, key, value)| (key.to_owned(), value.to_owned())).collect(),
        address_type: Some(if slice.ipv4 { "IPv4" } else { "IPv6" }.to_owned()),
        endpoints: slice.endpoints.iter().map(wire_endpoint).collect(),
        ports: slice.ports.iter().map(wire_port).collect(),
    };
    wire.encode_to_vec()
}

fn wire_endpoint(endpoint: &SliceEndpoint) -> WireEndpoint {
    let SliceEndpoint { addresses, ready, serving, terminating, hostname, node, zone, hints } = endpoint;
    let zones: Vec<_> = hints.iter().map(|name| WireZone { name: Some(name.clone()) }).collect();
    WireEndpoint {
        addresses: addresses.iter().map(ToString::to_string).collect(),
        conditions: Some(WireConditions { ready: *ready, serving: *serving, terminating: *terminating }),
        hostname: hostname.clone(),
        node: node.clone(),
        zone: zone.clone(),
        hints: (!zones.is_empty()).then_some(WireHints { zones }),
    }
}

fn wire_port(port: &SlicePort) -> WirePort {
    WirePort {
        name: Some(port.name.clone()),
        protocol: Some(super::service::protocol_text(port.protocol).to_owned()),
        port: port.port.map(i32::from),
        app_protocol: port.app_protocol.clone(),
    }
}

#[cfg(test)]
mod tests;
