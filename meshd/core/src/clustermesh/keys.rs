//! Keys of the ClusterMesh keyspace, both directions (wire contract section 1.1).
//!
//! A key is read into a borrowed [`Key`] and written by its `Display`; the two are inverse, and a key that would be
//! written differently from how it was read (leading zeros, upper-case IPv6, host bits) is an error. State and cache
//! form differ in their second component, and in that the cache form scopes addresses and identities by cluster.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::{
    id::{ClusterName, NodeName, NumericIdentity},
    observed::{Kind, ServiceName},
};

/// Key of the heartbeat; also the prefix readers watch.
pub const HEARTBEAT: &str = "cilium/.heartbeat";
/// Prefix of every cluster-config key.
pub const CLUSTER_CONFIG_PREFIX: &str = "cilium/cluster-config/";
/// Prefix of every canary key.
pub const SYNCED_PREFIX: &str = "cilium/synced/";
/// Longest key we look at; longer ones are refused unread. Every legal key is far shorter.
pub const KEY_MAX: usize = 1024;

/// The scope word of addresses in state form.
const ADDRESS_SPACE: &str = "default";
/// Longest namespace or object name (a DNS subdomain).
const OBJECT_NAME_MAX: usize = 253;

/// Where the records of a cluster are: in its own store, or copied into the store of another cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keyspace {
    /// `cilium/state`: the cluster's own store.
    State,
    /// `cilium/cache`: a copy, with every key scoped by cluster.
    Cache,
}

impl Keyspace {
    /// The second component of its keys.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Cache => "cache",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::State, Self::Cache].into_iter().find(|keyspace| keyspace.word() == word)
    }
}

/// Every kind of record the contract knows, the ones without a table of ours included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// `nodes/v1`
    Nodes,
    /// `identities/v1`
    Identities,
    /// `ip/v1`
    Endpoints,
    /// `services/v1`
    Services,
    /// `serviceexports/v1`
    ServiceExports,
    /// `endpointslices/v1`
    EndpointSlices,
}

impl KeyKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Nodes, Self::Identities, Self::Endpoints, Self::Services, Self::ServiceExports, Self::EndpointSlices];

    /// The word used in keys.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Nodes => Kind::Nodes.key_word(),
            Self::Identities => Kind::Identities.key_word(),
            Self::Endpoints => Kind::Endpoints.key_word(),
            Self::Services => Kind::Services.key_word(),
            Self::ServiceExports => "serviceexports",
            Self::EndpointSlices => "endpointslices",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

impl From<Kind> for KeyKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Nodes => Self::Nodes,
            Kind::Identities => Self::Identities,
            Kind::Endpoints => Self::Endpoints,
            Kind::Services => Self::Services,
        }
    }
}

/// Why bytes are not a key of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Longer than [`KEY_MAX`].
    #[error("the key is longer than {KEY_MAX} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("the key is not UTF-8 text")]
    NotText,
    /// Nothing of the contract begins like this.
    #[error("the key is outside the ClusterMesh keyspace")]
    Unknown,
    /// The components after the kind do not have the right form.
    #[error("the key must have the form {0}")]
    Form(&'static str),
    /// A number or address is not written in its one canonical form.
    #[error("the key is not in canonical form: {0}")]
    NotCanonical(&'static str),
}

/// A key, borrowed from its bytes or from the names it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// `cilium/.heartbeat`
    Heartbeat,
    /// `cilium/cluster-config/C`
    ClusterConfig {
        /// Name of the cluster.
        cluster: &'a str,
    },
    /// `cilium/synced/C/cilium/state/nodes/v1`
    Canary {
        /// Name of the cluster.
        cluster: &'a str,
        /// Form of the prefix it vouches for.
        keyspace: Keyspace,
        /// Kind of the prefix it vouches for.
        kind: KeyKind,
    },
    /// `cilium/state/nodes/v1/C/<node>`
    Node {
        /// State or cache.
        keyspace: Keyspace,
        /// Name of the cluster.
        cluster: &'a str,
        /// Name of the node.
        node: &'a str,
    },
    /// `cilium/state/ip/v1/default/<ip>[/<plen>]`, `cilium/cache/ip/v1/C/<ip>[/<plen>]`
    Endpoint {
        /// Name of the cluster in cache form; state form has none.
        cluster: Option<&'a str>,
        /// Address or prefix; a single address has the full length.
        prefix: IpNet,
    },
    /// `cilium/state/identities/v1/id/<n>`, `cilium/cache/identities/v1/C/id/<n>`
    Identity {
        /// Name of the cluster in cache form; state form has none.
        cluster: Option<&'a str>,
        /// The number.
        id: NumericIdentity,
    },
    /// `cilium/state/identities/v1/value/…` and `…/locks/…`: allocator keys that remote readers pass over.
    IdentityAllocator,
    /// `cilium/state/services/v1/C/<ns>/<name>`
    Service {
        /// State or cache.
        keyspace: Keyspace,
        /// Name of the cluster.
        cluster: &'a str,
        /// Namespace.
        namespace: &'a str,
        /// Name.
        name: &'a str,
    },
    /// `cilium/state/serviceexports/v1/C/<ns>/<name>`
    ServiceExport {
        /// State or cache.
        keyspace: Keyspace,
        /// Name of the cluster.
        cluster: &'a str,
        /// Namespace.
        namespace: &'a str,
        /// Name.
        name: &'a str,
    },
    /// `cilium/state/endpointslices/v1/C/<ns>/<slice>`
    EndpointSlice {
        /// State or cache.
        keyspace: Keyspace,
        /// Name of the cluster.
        cluster: &'a str,
        /// Namespace.
        namespace: &'a str,
        /// Name of the slice.
        name: &'a str,
    },
}

impl<'a> Key<'a> {
    /// Key of a node record.
    #[must_use]
    pub fn node(keyspace: Keyspace, cluster: &'a ClusterName, node: &'a NodeName) -> Self {
        Self::Node { keyspace, cluster: cluster.as_str(), node: node.as_str() }
    }

    /// Key of an endpoint record.
    #[must_use]
    pub fn endpoint(keyspace: Keyspace, cluster: &'a ClusterName, prefix: IpNet) -> Self {
        Self::Endpoint { cluster: scope(keyspace, cluster), prefix }
    }

    /// Key of an identity record.
    #[must_use]
    pub fn identity(keyspace: Keyspace, cluster: &'a ClusterName, id: NumericIdentity) -> Self {
        Self::Identity { cluster: scope(keyspace, cluster), id }
    }

    /// Key of a service record.
    #[must_use]
    pub fn service(keyspace: Keyspace, cluster: &'a ClusterName, service: &'a ServiceName) -> Self {
        Self::Service { keyspace, cluster: cluster.as_str(), namespace: &service.namespace, name: &service.name }
    }

    /// Key of a cluster-config.
    #[must_use]
    pub fn cluster_config(cluster: &'a ClusterName) -> Self {
        Self::ClusterConfig { cluster: cluster.as_str() }
    }

    /// Key of the canary that says the first full list of `kind` is written.
    #[must_use]
    pub fn canary(keyspace: Keyspace, cluster: &'a ClusterName, kind: impl Into<KeyKind>) -> Self {
        Self::Canary { cluster: cluster.as_str(), keyspace, kind: kind.into() }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`KeyError`] says which rule the bytes break.
    pub fn parse(key: &'a [u8]) -> Result<Self, KeyError> {
        if key.len() > KEY_MAX {
            return Err(KeyError::TooLong);
        }
        let text = std::str::from_utf8(key).map_err(|_| KeyError::NotText)?;
        if text == HEARTBEAT {
            return Ok(Self::Heartbeat);
        }
        if let Some(cluster) = text.strip_prefix(CLUSTER_CONFIG_PREFIX) {
            return one(cluster)
                .map(|cluster| Self::ClusterConfig { cluster })
                .ok_or(KeyError::Form("cilium/cluster-config/CLUSTER"));
        }
        if let Some(rest) = text.strip_prefix(SYNCED_PREFIX) {
            return parse_canary(rest).ok_or(KeyError::Form("cilium/synced/CLUSTER/cilium/state|cache/KIND/v1"));
        }
        let (keyspace, kind, rest) = parse_base(text).ok_or(KeyError::Unknown)?;
        parse_record(keyspace, kind, rest)
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Heartbeat => f.write_str(HEARTBEAT),
            Self::ClusterConfig { cluster } => write!(f, "{CLUSTER_CONFIG_PREFIX}{cluster}"),
            Self::Canary { cluster, keyspace, kind } => {
                write!(f, "{SYNCED_PREFIX}{cluster}/cilium/{}/{}/v1", keyspace.word(), kind.word())
            }
            Self::Node { keyspace, cluster, node } => {
                write!(f, "cilium/{}/nodes/v1/{cluster}/{node}", keyspace.word())
            }
            Self::Endpoint { cluster, prefix } => {
                match cluster {
                    Some(cluster) => write!(f, "cilium/cache/ip/v1/{cluster}/")?,
                    None => write!(f, "cilium/state/ip/v1/{ADDRESS_SPACE}/")?,
                }
                write!(f, "{}", EndpointText(prefix))
            }
            Self::Identity { cluster: Some(cluster), id } => write!(f, "cilium/cache/identities/v1/{cluster}/id/{id}"),
            Self::Identity { cluster: None, id } => write!(f, "cilium/state/identities/v1/id/{id}"),
            Self::IdentityAllocator => f.write_str("cilium/state/identities/v1/value/"),
            Self::Service { keyspace, cluster, namespace, name } => {
                write!(f, "cilium/{}/services/v1/{cluster}/{namespace}/{name}", keyspace.word())
            }
            Self::ServiceExport { keyspace, cluster, namespace, name } => {
                write!(f, "cilium/{}/serviceexports/v1/{cluster}/{namespace}/{name}", keyspace.word())
            }
            Self::EndpointSlice { keyspace, cluster, namespace, name } => {
                write!(f, "cilium/{}/endpointslices/v1/{cluster}/{namespace}/{name}", keyspace.word())
            }
        }
    }
}

/// An endpoint's address as its key ends: without a length when it is a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointText(pub IpNet);

impl fmt::Display for EndpointText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            write!(f, "{}", self.0.addr())
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// The prefix that holds every record of `kind` of one cluster; ends with `/`.
#[must_use]
pub fn prefix(keyspace: Keyspace, cluster: &ClusterName, kind: impl Into<KeyKind>) -> String {
    let kind = kind.into();
    let base = base(keyspace, kind);
    match (keyspace, kind) {
        (Keyspace::State, KeyKind::Endpoints) => format!("{base}/{ADDRESS_SPACE}/"),
        (Keyspace::State, KeyKind::Identities) => format!("{base}/id/"),
        (Keyspace::Cache, KeyKind::Identities) => format!("{base}/{cluster}/id/"),
        (Keyspace::State | Keyspace::Cache, _) => format!("{base}/{cluster}/"),
    }
}

/// The prefix that holds every canary of one cluster.
#[must_use]
pub fn canary_prefix(cluster: &ClusterName) -> String {
    format!("{SYNCED_PREFIX}{cluster}/")
}

/// The end of the range that holds every key beginning with `prefix`: its last byte that can grow, grown by one. A
/// prefix of only 0xff bytes (or none) has no end: etcd writes that as a single zero byte.
#[must_use]
pub fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn scope(keyspace: Keyspace, cluster: &ClusterName) -> Option<&str> {
    match keyspace {
        Keyspace::State => None,
        Keyspace::Cache => Some(cluster.as_str()),
    }
}

fn base(keyspace: Keyspace, kind: KeyKind) -> String {
    format!("cilium/{}/{}/v1", keyspace.word(), kind.word())
}

/// `cilium/state/nodes/v1/rest` to its parts.
fn parse_base(text: &str) -> Option<(Keyspace, KeyKind, &str)> {
    let mut parts = text.strip_prefix("cilium/")?.splitn(4, '/');
    let keyspace = Keyspace::from_word(parts.next()?)?;
    let kind = KeyKind::from_word(parts.next()?)?;
    let version = parts.next()?;
    Some((keyspace, kind, parts.next().filter(|_| version == "v1")?))
}

fn parse_canary(rest: &str) -> Option<Key<'_>> {
    let (cluster, prefix) = rest.split_once('/')?;
    let mut parts = prefix.strip_prefix("cilium/")?.split('/');
    let keyspace = Keyspace::from_word(parts.next()?)?;
    let kind = KeyKind::from_word(parts.next()?)?;
    let end = (parts.next(), parts.next());
    (!cluster.is_empty() && end == (Some("v1"), None)).then_some(Key::Canary { cluster, keyspace, kind })
}

fn parse_record(keyspace: Keyspace, kind: KeyKind, rest: &str) -> Result<Key<'_>, KeyError> {
    match kind {
        KeyKind::Nodes => {
            let parsed = rest.split_once('/').and_then(|(cluster, node)| Some((one(cluster)?, one(node)?)));
            let (cluster, node) = parsed.ok_or(KeyError::Form("cilium/state/nodes/v1/CLUSTER/NODE"))?;
            Ok(Key::Node { keyspace, cluster, node })
        }
        KeyKind::Endpoints => {
            let form = KeyError::Form(
                "cilium/state/ip/v1/default/ADDRESS[/LENGTH] or cilium/cache/ip/v1/CLUSTER/ADDRESS[/LENGTH]",
            );
            let (scope, address) = rest.split_once('/').ok_or(form)?;
            let cluster = match keyspace {
                Keyspace::State if scope == ADDRESS_SPACE => None,
                Keyspace::State => return Err(form),
                Keyspace::Cache => Some(one(scope).ok_or(form)?),
            };
            Ok(Key::Endpoint { cluster, prefix: parse_prefix(address, form)? })
        }
        KeyKind::Identities => parse_identity(keyspace, rest),
        KeyKind::Services => {
            let (cluster, namespace, name) =
                three(rest).ok_or(KeyError::Form("cilium/state/services/v1/CLUSTER/NAMESPACE/NAME"))?;
            Ok(Key::Service { keyspace, cluster, namespace, name })
        }
        KeyKind::ServiceExports => {
            let (cluster, namespace, name) =
                three(rest).ok_or(KeyError::Form("cilium/state/serviceexports/v1/CLUSTER/NAMESPACE/NAME"))?;
            Ok(Key::ServiceExport { keyspace, cluster, namespace, name })
        }
        KeyKind::EndpointSlices => {
            let (cluster, namespace, name) =
                three(rest).ok_or(KeyError::Form("cilium/state/endpointslices/v1/CLUSTER/NAMESPACE/SLICE"))?;
            Ok(Key::EndpointSlice { keyspace, cluster, namespace, name })
        }
    }
}

fn parse_identity(keyspace: Keyspace, rest: &str) -> Result<Key<'_>, KeyError> {
    let form = KeyError::Form("cilium/state/identities/v1/id/NUMBER or cilium/cache/identities/v1/CLUSTER/id/NUMBER");
    let (cluster, rest) = match keyspace {
        Keyspace::State => (None, rest),
        Keyspace::Cache => {
            let (cluster, rest) = rest.split_once('/').ok_or(form)?;
            (Some(one(cluster).ok_or(form)?), rest)
        }
    };
    let Some(digits) = rest.strip_prefix("id/") else {
        let allocator = rest.starts_with("value/") || rest.starts_with("locks/");
        return if allocator { Ok(Key::IdentityAllocator) } else { Err(form) };
    };
    let all_digits = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
    if all_digits && digits.len() > 1 && digits.starts_with('0') {
        return Err(KeyError::NotCanonical("the number has leading zeros"));
    }
    match digits.parse() {
        Ok(id) if all_digits => Ok(Key::Identity { cluster, id: NumericIdentity(id) }),
        _ => Err(form),
    }
}

/// `10.0.0.1`, `fd00::1` or `10.0.0.0/24`, each only in the form Go prints it.
fn parse_prefix(text: &str, form: KeyError) -> Result<IpNet, KeyError> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address = parse_canonical(address, form)?;
    let full = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => full,
        Some(digits) => {
            let length: u8 = digits.parse().map_err(|_| form)?;
            if digits.len() != decimal_len(length) {
                return Err(KeyError::NotCanonical("the prefix length has leading zeros or a sign"));
            }
            if length == full {
                return Err(KeyError::NotCanonical("a single address is written without a length"));
            }
            length
        }
    };
    let net = match address {
        IpAddr::V4(v4) => Ipv4Net::new(v4, length).map(IpNet::V4),
        IpAddr::V6(v6) => Ipv6Net::new(v6, length).map(IpNet::V6),
    };
    net.map_err(|_| form)
}

fn parse_canonical(text: &str, form: KeyError) -> Result<IpAddr, KeyError> {
    if let Ok(v4) = text.parse::<Ipv4Addr>() {
        return Ok(IpAddr::V4(v4));
    }
    let v6: Ipv6Addr = text.parse().map_err(|_| form)?;
    if !super::address::is_canonical(IpAddr::V6(v6), text) {
        return Err(KeyError::NotCanonical(
            "an IPv6 address is written in lower case with its longest run of zeros as ::",
        ));
    }
    Ok(IpAddr::V6(v6))
}

fn decimal_len(n: u8) -> usize {
    match n {
        0..=9 => 1,
        10..=99 => 2,
        100..=255 => 3,
    }
}

/// Whether a namespace or an object may have this name, as far as keys are concerned.
pub(super) fn is_object_name(name: &str) -> bool {
    one(name).is_some()
}

fn one(part: &str) -> Option<&str> {
    let bad = |c: char| c == '/' || c.is_control() || c.is_whitespace();
    (!part.is_empty() && part.len() <= OBJECT_NAME_MAX && !part.contains(bad)).then_some(part)
}

fn three(rest: &str) -> Option<(&str, &str, &str)> {
    let mut parts = rest.splitn(3, '/');
    Some((one(parts.next()?)?, one(parts.next()?)?, one(parts.next()?)?))
}

#[cfg(test)]
mod tests;
