//! The door: bytes of a store in, a checked row or a reason out.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    context::PeerContext,
    identity,
    interner::Interner,
    ip,
    keys::{KEY_MAX, Key, KeyError, Keyspace},
    node,
    rejection::{Excerpt, Rejection},
    service,
};
use crate::{
    id::{NodeName, NumericIdentity},
    observed::{EndpointRow, IdentityRow, Kind, NodeRow, ServiceName, ServiceRow},
};

/// Largest value that is read; larger ones are refused unread. It is etcd's own default limit of a request.
pub const VALUE_MAX: usize = 1536 * 1024;

/// Which row a key is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// A node.
    Node(NodeName),
    /// An identity.
    Identity(NumericIdentity),
    /// An endpoint.
    Endpoint(IpNet),
    /// A service.
    Service(ServiceName),
}

impl RecordKey {
    /// The kind of row.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Nodes,
            Self::Identity(_) => Kind::Identities,
            Self::Endpoint(_) => Kind::Endpoints,
            Self::Service(_) => Kind::Services,
        }
    }
}

/// A record that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A node.
    Node(NodeName, NodeRow),
    /// An identity.
    Identity(NumericIdentity, IdentityRow),
    /// An endpoint.
    Endpoint(IpNet, EndpointRow),
    /// A service.
    Service(ServiceName, ServiceRow),
    /// The record takes its row back (a service that is no longer shared).
    Withdrawn(RecordKey),
    /// A key without a row of ours: allocator keys, canaries, cluster-config, heartbeat, service exports, slices.
    Ignored,
}

/// A record that failed a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Kind of record; `None` when the key fits no kind.
    pub kind: Option<Kind>,
    /// The row the key is about, when that much could be read. A row it already has stays until the key is deleted.
    pub key: Option<RecordKey>,
    /// Why.
    pub reason: Rejection,
}

/// Checks a written key and its value. `keyspace` is the form the store uses according to its cluster-config.
///
/// # Errors
/// [`Refused`] with the first check the record fails. A record is refused as a whole: a node with one bad PodCIDR is
/// not half a node, it is a node we do not understand.
pub fn accept_upsert(
    ctx: &PeerContext,
    interner: &mut Interner,
    keyspace: Keyspace,
    key: &[u8],
    value: &[u8],
) -> Result<Record, Refused> {
    let key = match locate(ctx, keyspace, key) {
        Ok(Some(key)) => key,
        Ok(None) => return Ok(Record::Ignored),
        Err((kind, reason)) => return Err(Refused { kind, key: None, reason }),
    };
    let accepted = check_size(value).and_then(|()| match &key {
        RecordKey::Node(name) => node::accept(ctx, name, value).map(|row| Record::Node(name.clone(), row)),
        RecordKey::Identity(id) => identity::accept(ctx, *id, value).map(|row| Record::Identity(*id, row)),
        RecordKey::Endpoint(prefix) => {
            ip::accept(ctx, interner, *prefix, value).map(|row| Record::Endpoint(*prefix, row))
        }
        RecordKey::Service(name) => service::accept(ctx, name, value).map(|row| match row {
            Some(row) => Record::Service(name.clone(), row),
            None => Record::Withdrawn(key.clone()),
        }),
    });
    accepted.map_err(|reason| Refused { kind: Some(key.kind()), key: Some(key), reason })
}

/// Reads a deleted key. `None` when it has no row of ours: it fits no kind, belongs to another cluster, or could never
/// have been accepted.
#[must_use]
pub fn parse_delete(ctx: &PeerContext, keyspace: Keyspace, key: &[u8]) -> Option<RecordKey> {
    locate(ctx, keyspace, key).ok().flatten()
}

/// The namespace and the name of the slice that a key is about; `None` when it is about something else.
///
/// # Errors
/// The rule that the key breaks.
pub(super) fn locate_slice<'a>(
    ctx: &PeerContext,
    keyspace: Keyspace,
    key: &'a [u8],
) -> Result<Option<(&'a str, &'a str)>, Rejection> {
    match Key::parse(key)? {
        Key::EndpointSlice { keyspace: found, .. } if found != keyspace => Err(KeyError::Unknown.into()),
        Key::EndpointSlice { cluster, .. } if cluster != ctx.cluster.as_str() => {
            Err(Rejection::KeyCluster { found: Excerpt::new(cluster), expected: ctx.cluster.to_string() })
        }
        Key::EndpointSlice { namespace, name, .. } => Ok(Some((namespace, name))),
        Key::Heartbeat
        | Key::ClusterConfig { .. }
        | Key::Canary { .. }
        | Key::Node { .. }
        | Key::Endpoint { .. }
        | Key::Identity { .. }
        | Key::IdentityAllocator
        | Key::Service { .. }
        | Key::ServiceExport { .. } => Ok(None),
    }
}

/// A key as text for `get rejected`: cut to [`KEY_MAX`](super::keys::KEY_MAX) bytes, with what is not text replaced and
/// control characters escaped.
#[must_use]
pub fn key_text(key: &[u8]) -> Arc<str> {
    let cut = &key[..key.len().min(KEY_MAX)];
    let mut text = String::with_capacity(cut.len());
    for c in String::from_utf8_lossy(cut).chars() {
        if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
    }
    if cut.len() < key.len() {
        text.push('…');
    }
    text.into()
}

/// Refuses values that are not read.
pub(super) fn check_size(value: &[u8]) -> Result<(), Rejection> {
    match value.len() {
        0 => Err(Rejection::Empty),
        size if size > VALUE_MAX => Err(Rejection::Oversized { size, limit: VALUE_MAX }),
        _ => Ok(()),
    }
}

/// The row a key is about, checked against the cluster we read. `None` for keys without a row.
fn locate(ctx: &PeerContext, keyspace: Keyspace, key: &[u8]) -> Result<Option<RecordKey>, (Option<Kind>, Rejection)> {
    let parsed = Key::parse(key).map_err(|problem| (kind_of(keyspace, key), Rejection::from(problem)))?;
    let (found_keyspace, cluster, kind) = match parsed {
        Key::Heartbeat
        | Key::ClusterConfig { .. }
        | Key::Canary { .. }
        | Key::IdentityAllocator
        | Key::ServiceExport { .. }
        | Key::EndpointSlice { .. } => return Ok(None),
        Key::Node { keyspace, cluster, .. } => (keyspace, Some(cluster), Kind::Nodes),
        Key::Service { keyspace, cluster, .. } => (keyspace, Some(cluster), Kind::Services),
        Key::Endpoint { cluster, .. } => (form(cluster), cluster, Kind::Endpoints),
        Key::Identity { cluster, .. } => (form(cluster), cluster, Kind::Identities),
    };
    if found_keyspace != keyspace {
        return Err((Some(kind), KeyError::Unknown.into()));
    }
    if let Some(found) = cluster.filter(|found| *found != ctx.cluster.as_str()) {
        let reason = Rejection::KeyCluster { found: Excerpt::new(found), expected: ctx.cluster.to_string() };
        return Err((Some(kind), reason));
    }
    match parsed {
        Key::Node { node, .. } => match node.parse() {
            Ok(name) => Ok(Some(RecordKey::Node(name))),
            Err(_) => Err((Some(kind), KeyError::Form("cilium/state/nodes/v1/CLUSTER/NODE").into())),
        },
        Key::Service { namespace, name, .. } => {
            Ok(Some(RecordKey::Service(ServiceName { namespace: namespace.into(), name: name.into() })))
        }
        Key::Endpoint { prefix, .. } => Ok(Some(RecordKey::Endpoint(prefix))),
        Key::Identity { id, .. } => match ctx.check_identity_range(id.0) {
            Ok(()) => Ok(Some(RecordKey::Identity(id))),
            Err(reason) => Err((Some(kind), reason)),
        },
        Key::Heartbeat
        | Key::ClusterConfig { .. }
        | Key::Canary { .. }
        | Key::IdentityAllocator
        | Key::ServiceExport { .. }
        | Key::EndpointSlice { .. } => Ok(None),
    }
}

fn form(cluster: Option<&str>) -> Keyspace {
    if cluster.is_some() { Keyspace::Cache } else { Keyspace::State }
}

/// The kind a malformed key was meant to be of, for `get rejected`.
fn kind_of(keyspace: Keyspace, key: &[u8]) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| {
        let base = format!("cilium/{}/{}/v1/", keyspace.word(), kind.key_word());
        key.starts_with(base.as_bytes())
    })
}

#[cfg(test)]
mod tests;
