//! MCS service exports (wire contract section 1.7).

use jiff::Timestamp;
use serde::Serialize;

use super::{
    context::PeerContext,
    go_json::{self, List, Text, go_record},
    heartbeat,
    record::check_size,
    rejection::{Excerpt, Rejection},
    service,
};
use crate::{
    id::ClusterName,
    observed::{Protocol, ServiceName},
};

/// Most ports of one export.
pub const EXPORT_PORTS_MAX: usize = 256;
/// Most address families of one export.
const FAMILIES_MAX: usize = 2;
/// Longest free word (traffic policies, application protocols) we keep.
pub const WORD_MAX: usize = 253;

/// What an exported service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportType {
    /// One address for the cluster set.
    ClusterSetIp,
    /// No address of its own.
    Headless,
}

impl ExportType {
    fn word(self) -> &'static str {
        match self {
            Self::ClusterSetIp => "ClusterSetIP",
            Self::Headless => "Headless",
        }
    }
}

/// Whether a client stays with its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAffinity {
    /// No.
    None,
    /// By client address, for this long when a time is given.
    ClientIp {
        /// Seconds.
        timeout_s: Option<u32>,
    },
}

/// One port of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportPort {
    /// Name; the unnamed port has the name "".
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Application protocol, empty when not given.
    pub app_protocol: String,
    /// Port.
    pub port: u16,
}

/// A service export that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceExport {
    /// When it was created; in a conflict between clusters the oldest wins.
    pub created: Timestamp,
    /// Its ports.
    pub ports: Vec<ExportPort>,
    /// What it is.
    pub export_type: ExportType,
    /// Session affinity.
    pub session_affinity: SessionAffinity,
    /// Address families in order of preference: true for IPv4.
    pub ipv4_families: Vec<bool>,
    /// `internalTrafficPolicy`, empty when not given.
    pub internal_traffic_policy: String,
    /// `trafficDistribution`, empty when not given.
    pub traffic_distribution: String,
}

go_record! {
    WirePort {
        name: Text<'de> = "name",
        protocol: Text<'de> = "protocol",
        app_protocol: Text<'de> = "appProtocol",
        port: u16 = "port",
    }
}

go_record! {
    WireClientIp {
        timeout_s: Option<u32> = "timeoutSeconds",
    }
}

go_record! {
    WireAffinityConfig {
        client_ip: WireClientIp<'de> = "clientIP",
    }
}

go_record! {
    WireExport {
        cluster: Text<'de> = "cluster",
        name: Text<'de> = "name",
        namespace: Text<'de> = "namespace",
        created: Text<'de> = "exportCreationTimestamp",
        ports: List<WirePort<'de>, EXPORT_PORTS_MAX> = "ports",
        export_type: Text<'de> = "type",
        affinity: Text<'de> = "sessionAffinity",
        affinity_config: WireAffinityConfig<'de> = "sessionAffinityConfig",
        families: List<Text<'de>, FAMILIES_MAX> = "ipFamilies",
        internal_traffic_policy: Text<'de> = "internalTrafficPolicy",
        traffic_distribution: Text<'de> = "trafficDistribution",
    }
}

/// Reads and checks a service export.
///
/// # Errors
/// The first check it fails.
pub fn accept(ctx: &PeerContext, key: &ServiceName, value: &[u8]) -> Result<ServiceExport, Rejection> {
    check_size(value)?;
    let wire: WireExport<'_> = go_json::read(value)?;
    ctx.check_cluster(&wire.cluster)?;
    for (field, key, value) in [("namespace", &*key.namespace, &wire.namespace), ("name", &*key.name, &wire.name)] {
        if **value != *key {
            return Err(Rejection::KeyMismatch { field, key: Excerpt::new(key), value: Excerpt::new(value) });
        }
    }
    let bad = |field, found: &Text<'_>, expected| Rejection::BadField { field, found: Excerpt::new(found), expected };
    let created = heartbeat::parse(wire.created.as_bytes());
    let created = created.ok_or_else(|| bad("exportCreationTimestamp", &wire.created, "an RFC 3339 time"))?;
    let export_type = match &*wire.export_type {
        "ClusterSetIP" => ExportType::ClusterSetIp,
        "Headless" => ExportType::Headless,
        _ => return Err(bad("type", &wire.export_type, "ClusterSetIP or Headless")),
    };
    let session_affinity = match &*wire.affinity {
        "None" => SessionAffinity::None,
        "ClientIP" => SessionAffinity::ClientIp { timeout_s: wire.affinity_config.client_ip.timeout_s },
        _ => return Err(bad("sessionAffinity", &wire.affinity, "None or ClientIP")),
    };
    let mut ipv4_families = Vec::new();
    for family in wire.families.bounded("ipFamilies")? {
        ipv4_families.push(match &**family {
            "IPv4" => true,
            "IPv6" => false,
            _ => return Err(bad("ipFamilies", family, "IPv4 or IPv6")),
        });
    }
    Ok(ServiceExport {
        created,
        ports: wire.ports.bounded("ports")?.iter().map(port).collect::<Result<_, _>>()?,
        export_type,
        session_affinity,
        ipv4_families,
        internal_traffic_policy: word("internalTrafficPolicy", &wire.internal_traffic_policy)?,
        traffic_distribution: word("trafficDistribution", &wire.traffic_distribution)?,
    })
}

fn port(wire: &WirePort<'_>) -> Result<ExportPort, Rejection> {
    service::check_port_name(&wire.name)?;
    Ok(ExportPort {
        name: wire.name.to_string(),
        // Kubernetes leaves TCP out.
        protocol: if wire.protocol.is_empty() { Protocol::Tcp } else { service::parse_protocol(&wire.protocol)? },
        app_protocol: word("appProtocol", &wire.app_protocol)?,
        port: wire.port,
    })
}

fn word(field: &'static str, text: &str) -> Result<String, Rejection> {
    if text.len() > WORD_MAX || text.chars().any(char::is_control) {
        let expected = "at most 253 characters, none of them a control character";
        return Err(Rejection::BadField { field, found: Excerpt::new(text), expected });
    }
    Ok(text.to_owned())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutExport<'a> {
    cluster: &'a str,
    name: &'a str,
    namespace: &'a str,
    export_creation_timestamp: String,
    ports: Vec<OutPort<'a>>,
    #[serde(rename = "type")]
    export_type: &'static str,
    session_affinity: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_affinity_config: Option<OutAffinityConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_families: Vec<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    internal_traffic_policy: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    traffic_distribution: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutPort<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    app_protocol: &'a str,
    port: u16,
}

#[derive(Serialize)]
struct OutAffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: OutClientIp,
}

#[derive(Serialize)]
struct OutClientIp {
    #[serde(rename = "timeoutSeconds")]
    timeout_s: u32,
}

/// Writes a service export.
#[must_use]
pub fn encode(cluster: &ClusterName, name: &ServiceName, export: &ServiceExport) -> Vec<u8> {
    let (session_affinity, timeout_s) = match export.session_affinity {
        SessionAffinity::None => ("None", None),
        SessionAffinity::ClientIp { timeout_s } => ("ClientIP", timeout_s),
    };
    go_json::write(&OutExport {
        cluster: cluster.as_str(),
        name: &name.name,
        namespace: &name.namespace,
        export_creation_timestamp: heartbeat::time_text(export.created),
        ports: export.ports.iter().map(out_port).collect(),
        export_type: export.export_type.word(),
        session_affinity,
        session_affinity_config: timeout_s.map(|timeout_s| OutAffinityConfig { client_ip: OutClientIp { timeout_s } }),
        ip_families: export.ipv4_families.iter().map(|ipv4| if *ipv4 { "IPv4" } else { "IPv6" }).collect(),
        internal_traffic_policy: &export.internal_traffic_policy,
        traffic_distribution: &export.traffic_distribution,
    })
}

fn out_port(port: &ExportPort) -> OutPort<'_> {
    let ExportPort { name, protocol, app_protocol, port } = port;
    OutPort { name, protocol: service::protocol_text(*protocol), app_protocol, port: *port }
}

#[cfg(test)]
mod tests;
