//! Address records: an address or prefix, the identity behind it and the node that owns it (wire contract section 1.4).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{
    address,
    context::PeerContext,
    go_json::{self, Text, go_record},
    interner::Interner,
    keys::EndpointText,
    rejection::{Excerpt, Rejection},
};
use crate::{id::NumericIdentity, observed::EndpointRow};

/// Longest namespace or pod name we keep (a DNS subdomain).
pub const WORKLOAD_NAME_MAX: usize = 253;

go_record! {
    /// The fields of an address record that we read.
    WireEndpoint {
        ip: Text<'de> = "IP",
        mask: Text<'de> = "Mask",
        host: Text<'de> = "HostIP",
        identity: u32 = "ID",
        encryption_key: u8 = "Key",
        namespace: Text<'de> = "K8sNamespace",
        pod: Text<'de> = "K8sPodName",
    }
}

/// Reads and checks an address record.
///
/// # Errors
/// The first check it fails.
pub(super) fn accept(
    ctx: &PeerContext,
    interner: &mut Interner,
    prefix: IpNet,
    value: &[u8],
) -> Result<EndpointRow, Rejection> {
    let wire: WireEndpoint<'_> = go_json::read(value)?;
    check_key(prefix, &wire)?;
    ctx.check_endpoint("IP", prefix)?;
    let host = match &*wire.host {
        "" => None,
        text => {
            let host = address::parse_address("HostIP", text)?;
            ctx.check_node_address("HostIP", host)?;
            Some(host)
        }
    };
    for (field, text) in [("K8sNamespace", &wire.namespace), ("K8sPodName", &wire.pod)] {
        if text.len() > WORKLOAD_NAME_MAX || text.chars().any(char::is_control) {
            let expected = "at most 253 characters, none of them a control character";
            return Err(Rejection::BadField { field, found: Excerpt::new(text), expected });
        }
    }
    Ok(EndpointRow {
        identity: identity(ctx, wire.identity)?,
        host,
        encryption_key: wire.encryption_key,
        namespace: interner.intern(&wire.namespace),
        name: wire.pod.0.into_owned().into(),
    })
}

/// The key must be what the value says, letter for letter.
fn check_key(prefix: IpNet, wire: &WireEndpoint<'_>) -> Result<(), Rejection> {
    if wire.ip.is_empty() {
        return Err(Rejection::MissingField { field: "IP" });
    }
    let address = address::parse_address("IP", &wire.ip)?;
    let said = match &*wire.mask {
        "" => IpNet::from(address),
        mask => address::prefix_from_mask("IP", address, mask)?,
    };
    if said == prefix {
        return Ok(());
    }
    let key = Excerpt::new(&EndpointText(prefix).to_string());
    Err(Rejection::KeyMismatch { field: "IP", key, value: Excerpt::new(&EndpointText(said).to_string()) })
}

/// Reserved numbers mean the same everywhere, except that the host of another node is a remote node here.
fn identity(ctx: &PeerContext, found: u32) -> Result<NumericIdentity, Rejection> {
    let id = NumericIdentity(found);
    if found == 0 {
        return Err(Rejection::MissingField { field: "ID" });
    }
    if id == NumericIdentity::HOST {
        return Ok(NumericIdentity::REMOTE_NODE);
    }
    if !id.is_reserved() {
        ctx.check_identity_range(found)?;
    }
    Ok(id)
}

#[derive(Serialize)]
struct OutEndpoint<'a> {
    #[serde(rename = "IP")]
    ip: IpAddr,
    #[serde(rename = "Mask")]
    mask: Option<String>,
    #[serde(rename = "HostIP")]
    host: String,
    #[serde(rename = "ID")]
    identity: u32,
    #[serde(rename = "Key")]
    encryption_key: u8,
    #[serde(rename = "Metadata")]
    metadata: &'static str,
    #[serde(rename = "K8sNamespace", skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    #[serde(rename = "K8sPodName", skip_serializing_if = "str::is_empty")]
    pod: &'a str,
}

/// Writes an address record.
#[must_use]
pub fn encode(prefix: IpNet, row: &EndpointRow) -> Vec<u8> {
    let single = prefix.prefix_len() == prefix.max_prefix_len();
    go_json::write(&OutEndpoint {
        ip: prefix.addr(),
        mask: (!single).then(|| address::mask_text(prefix)),
        host: row.host.map(|host| host.to_string()).unwrap_or_default(),
        identity: row.identity.0,
        encryption_key: row.encryption_key,
        metadata: "",
        namespace: &row.namespace,
        pod: &row.name,
    })
}
