//! Why a record was refused.
//!
//! One variant per check, so that a test can name the check and a person reads what was found, what was expected and
//! where to look. Text that comes from the record is cut and escaped ([`Excerpt`]): it was written by somebody else and
//! ends up in a terminal.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use thiserror::Error;

use super::keys::KeyError;

/// Most characters of foreign text shown in a message.
pub const EXCERPT_MAX: usize = 80;

/// A piece of foreign text, cut to [`EXCERPT_MAX`] characters and printed quoted and escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

impl Excerpt {
    /// Cuts `text`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let end = text.char_indices().nth(EXCERPT_MAX).map(|(at, _)| at);
        Self(match end {
            Some(at) => format!("{}…", &text[..at]).into(),
            None => text.into(),
        })
    }

    /// Cuts and escapes a message that may hold foreign text, without quoting it.
    #[must_use]
    pub fn plain(text: &str) -> String {
        let mut plain = String::new();
        for c in Self::new(text).0.chars() {
            if c.is_control() { plain.extend(c.escape_default()) } else { plain.push(c) }
        }
        plain
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl Serialize for Excerpt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A kind of address that must never be routed to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpecialRange {
    /// 0.0.0.0/8 and ::
    Unspecified,
    /// 127.0.0.0/8 and ::1
    Loopback,
    /// 169.254.0.0/16 and fe80::/10
    LinkLocal,
    /// 224.0.0.0/4 and ff00::/8
    Multicast,
    /// 255.255.255.255
    Broadcast,
    /// ::ffff:0:0/96
    Ipv4Mapped,
}

impl fmt::Display for SpecialRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Ipv4Mapped => "IPv4-mapped IPv6",
        })
    }
}

/// What is wrong with a base64 mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskProblem {
    /// Not standard base64.
    #[error("is not standard base64")]
    Base64,
    /// Not as long as the address.
    #[error("is not 4 bytes for an IPv4 or 16 bytes for an IPv6 address")]
    Length,
    /// Ones after zeros.
    #[error("has ones after zeros")]
    Holes,
}

/// How a foreign prefix lies against one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// The same prefix.
    Equal,
    /// The foreign one is a part of ours.
    Inside,
    /// Ours is a part of the foreign one.
    Covers,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "is",
            Self::Inside => "lies inside",
            Self::Covers => "covers",
        })
    }
}

/// Why a record was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rejection {
    /// The table of this cluster is full.
    #[error("the cluster has more than {limit} records of this kind")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The key does not follow the contract.
    #[error("{problem}")]
    Key {
        /// What is wrong.
        #[serde(serialize_with = "as_text")]
        problem: KeyError,
    },
    /// The key is scoped to another cluster than the one we read.
    #[error("the key belongs to cluster {found}, but this is the store of cluster {expected:?}")]
    KeyCluster {
        /// Cluster in the key.
        found: Excerpt,
        /// Cluster we read.
        expected: String,
    },
    /// The value is larger than we read.
    #[error("the value has {size} bytes, more than the {limit} that are read")]
    Oversized {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The value is empty.
    #[error("the value is empty")]
    Empty,
    /// The value is not text.
    #[error("the value is not UTF-8 text, from byte {at} on")]
    NotText {
        /// Position of the first bad byte.
        at: usize,
    },
    /// The value is not JSON of the right shape.
    #[error("malformed JSON at line {line} column {column}: {problem}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        problem: String,
    },
    /// The value is not a zstd frame, or a damaged one.
    #[error("malformed zstd frame: {problem}")]
    Zstd {
        /// What the decoder says.
        problem: String,
    },
    /// The value grows beyond what we hold when it is decompressed.
    #[error("the value decompresses to more than {limit} bytes")]
    DecompressedTooLarge {
        /// The limit.
        limit: usize,
    },
    /// The decompressed value is not a protobuf message of the right shape.
    #[error("malformed protobuf: {problem}")]
    Protobuf {
        /// What the decoder says.
        problem: String,
    },
    /// A field that must be there is not.
    #[error("field {field} is missing or empty")]
    MissingField {
        /// Its name on the wire.
        field: &'static str,
    },
    /// A field holds something it cannot hold.
    #[error("field {field} is {found}, and must be {expected}")]
    BadField {
        /// Its name on the wire.
        field: &'static str,
        /// Its content.
        found: Excerpt,
        /// What it may be.
        expected: &'static str,
    },
    /// A number is outside what its field can hold.
    #[error("field {field} is {found}, and must be {expected}")]
    BadNumber {
        /// Its name on the wire.
        field: &'static str,
        /// Its content.
        found: i64,
        /// What it may be.
        expected: &'static str,
    },
    /// The record names another cluster.
    #[error("the record names cluster {found}, but was published by cluster {expected:?}")]
    WrongCluster {
        /// Cluster in the record.
        found: Excerpt,
        /// Cluster that published it.
        expected: String,
    },
    /// The record carries another cluster id than the cluster-config.
    #[error("the record has cluster id {found}, but the cluster-config of {cluster:?} says {expected}")]
    WrongClusterId {
        /// Id in the record.
        found: u32,
        /// Id in the cluster-config.
        expected: u16,
        /// Cluster that published it.
        cluster: String,
    },
    /// Key and value name different things.
    #[error("the key says {key}, but {field} in the value is {value}")]
    KeyMismatch {
        /// Name of the field on the wire.
        field: &'static str,
        /// What the key says.
        key: Excerpt,
        /// What the value says.
        value: Excerpt,
    },
    /// An identity number of another cluster.
    #[error(
        "identity {found} is outside {low} to {high}, the range of cluster id {id} (is max_clusters the same in both clusters?)"
    )]
    IdentityOutOfRange {
        /// The number.
        found: u32,
        /// First number of the cluster.
        low: u32,
        /// Last number of the cluster.
        high: u32,
        /// Id of the cluster.
        id: u16,
    },
    /// An identity that does not say whose it is.
    #[error("the labels have no k8s:io.cilium.k8s.policy.cluster")]
    NoClusterLabel,
    /// The cluster label was given by somebody else than the cluster itself.
    #[error("label io.cilium.k8s.policy.cluster has source {found}, and must have k8s")]
    ClusterLabelSource {
        /// The source.
        found: Excerpt,
    },
    /// An identity that says it is of another cluster.
    #[error(
        "label k8s:io.cilium.k8s.policy.cluster is {found}, but the identity was published by cluster {expected:?}"
    )]
    ForeignClusterLabel {
        /// Value of the label.
        found: Excerpt,
        /// Cluster that published it.
        expected: String,
    },
    /// Labels that are not labels.
    #[error("malformed label {label}: {problem}")]
    Label {
        /// The label.
        label: Excerpt,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Text that should be an address.
    #[error("{field} is {found}, which is not an IP address")]
    Address {
        /// Name of the field on the wire.
        field: &'static str,
        /// Its content.
        found: Excerpt,
    },
    /// An address that is not written in its one canonical form.
    #[error("{field} is {found}, which in canonical form is {canonical}")]
    NotCanonical {
        /// Name of the field on the wire.
        field: &'static str,
        /// Its content.
        found: Excerpt,
        /// How it should be written.
        canonical: IpAddr,
    },
    /// An address of the wrong family.
    #[error("{field} holds {found}, an address of the wrong family")]
    Family {
        /// Name of the field on the wire.
        field: &'static str,
        /// The address.
        found: IpAddr,
    },
    /// A mask that is not a mask.
    #[error("the mask {found} in {field} {problem}")]
    Mask {
        /// Name of the field on the wire.
        field: &'static str,
        /// The mask as text.
        found: Excerpt,
        /// What is wrong with it.
        problem: MaskProblem,
    },
    /// A prefix with bits set beyond its length.
    #[error("prefix {found} has host bits set; the prefix would be {network}")]
    HostBits {
        /// The prefix.
        found: IpNet,
        /// The same without host bits.
        network: IpNet,
    },
    /// 0.0.0.0/0 or ::/0.
    #[error("{found} covers every address; a cluster cannot own the default route")]
    DefaultRoute {
        /// The prefix.
        found: IpNet,
    },
    /// A prefix larger than any one node can have.
    #[error("prefix {found} is too large: its length must be at least {min}")]
    PrefixTooShort {
        /// The prefix.
        found: IpNet,
        /// Shortest accepted length.
        min: u8,
    },
    /// An address or prefix that means something else everywhere.
    #[error("{field} {found} is in the {range} range")]
    Special {
        /// Name of the field on the wire.
        field: &'static str,
        /// The address or prefix.
        found: IpNet,
        /// What it means.
        range: SpecialRange,
    },
    /// A PodCIDR outside what the configuration lets this cluster own.
    #[error("PodCIDR {found} is outside accept.pod_cidrs of cluster {cluster:?}{}", no_list_hint(*.no_list))]
    PodCidrNotAccepted {
        /// The prefix.
        found: IpNet,
        /// Cluster that published it.
        cluster: String,
        /// The configuration has no list at all.
        no_list: bool,
    },
    /// A node address outside what the configuration lets this cluster use.
    #[error("node address {found} is outside accept.node_cidrs of cluster {cluster:?}{}", no_list_hint(*.no_list))]
    NodeAddressNotAccepted {
        /// The address.
        found: IpAddr,
        /// Cluster that published it.
        cluster: String,
        /// The configuration has no list at all.
        no_list: bool,
    },
    /// An endpoint, backend or router address outside every accept list of the cluster.
    #[error("{field} {found} is outside accept.pod_cidrs and accept.node_cidrs of cluster {cluster:?}{}", no_list_hint(*.no_list))]
    AddressNotAccepted {
        /// Name of the field on the wire.
        field: &'static str,
        /// The address or prefix.
        found: IpNet,
        /// Cluster that published it.
        cluster: String,
        /// The configuration has no list at all.
        no_list: bool,
    },
    /// A prefix or address that is ours.
    #[error("{field} {found} {overlap} our own PodCIDR {own}; own prefixes always win")]
    OwnPrefix {
        /// Name of the field on the wire.
        field: &'static str,
        /// The foreign prefix or address.
        found: IpNet,
        /// How it lies against ours.
        overlap: Overlap,
        /// Our prefix.
        own: IpNet,
    },
    /// A prefix or address that holds an address of this node.
    #[error("{field} {found} contains {own}, an address of this node")]
    OwnAddress {
        /// Name of the field on the wire.
        field: &'static str,
        /// The foreign prefix or address.
        found: IpNet,
        /// Our address.
        own: IpAddr,
    },
    /// More entries in one record than we keep.
    #[error("{field} has {found} entries, more than the {limit} that are read")]
    TooManyEntries {
        /// Name of the field on the wire.
        field: &'static str,
        /// How many there are.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The same PodCIDR twice in one node.
    #[error("PodCIDR {found} is listed twice")]
    DuplicatePodCidr {
        /// The prefix.
        found: IpNet,
    },
    /// A PodCIDR inside another one of the same node.
    #[error("PodCIDR {inner} lies inside PodCIDR {outer} of the same node")]
    NestedPodCidr {
        /// The longer prefix.
        inner: IpNet,
        /// The shorter prefix.
        outer: IpNet,
    },
}

impl From<KeyError> for Rejection {
    fn from(problem: KeyError) -> Self {
        Self::Key { problem }
    }
}

fn as_text<S: Serializer>(problem: &KeyError, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(problem)
}

fn no_list_hint(no_list: bool) -> &'static str {
    if no_list {
        ", which has no entry: nothing is accepted until peers[].accept or peers_defaults.accept names it"
    } else {
        ""
    }
}
