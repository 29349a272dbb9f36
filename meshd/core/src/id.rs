//! Names, numbers and ownership marks.
//!
//! Every identifier has a type of its own, so that a cluster id is never taken for an identity or a route table.
//! The constants say what carries our mark: meshd deletes nothing else (invariant I5).

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Route protocol number of every route and nexthop object meshd owns (`meshd` in `rt_protos.d`).
pub const ROUTE_PROTOCOL: u8 = 77;
/// Route table for routes that must not live in the main table.
pub const ROUTE_TABLE: u32 = 77;
/// The kernel's main route table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;
/// Metric of our routes unless `routing.metric` says otherwise.
pub const ROUTE_METRIC: u32 = 77;
/// First and last policy rule priority we may own.
pub const RULE_PRIORITIES: std::ops::RangeInclusive<u32> = 7700..=7799;
/// Ids of the kernel nexthop objects and groups we may own.
pub const NEXTHOP_IDS: std::ops::RangeInclusive<u32> = 77_000_000..=77_999_999;
/// Prefix of the names of links we create.
pub const LINK_PREFIX: &str = "meshd_";
/// The link through which packets are encapsulated.
pub const TUNNEL_LINK: &str = "meshd_vxlan";
/// The link through which path probes come and go.
pub const PROBE_LINK: &str = "meshd_probe";

/// Longest cluster name Cilium accepts (1.17 and newer refuse more).
pub const CLUSTER_NAME_MAX: usize = 32;
/// Longest node name we accept (a DNS subdomain).
pub const NODE_NAME_MAX: usize = 253;

/// Why a text is not a valid name or number.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// The text breaks the cluster name rule.
    #[error("invalid cluster name {0:?}: 1 to 32 characters of a-z, 0-9 and -, first and last alphanumeric")]
    ClusterName(String),
    /// The name `default` is reserved for clusters without an id.
    #[error("cluster name \"default\" is reserved for clusters that have no id")]
    DefaultName,
    /// The text is not a node name.
    #[error("invalid node name {0:?}: 1 to 253 printable characters without /")]
    NodeName(String),
    /// The number is not a cluster id in this mesh.
    #[error("cluster id {0} is outside 1 to {1}")]
    ClusterId(u32, u16),
    /// Neither 255 nor 511.
    #[error("max_clusters is {0}, and can only be 255 or 511")]
    MaxClusters(u32),
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }
    };
}

name_type! {
    /// Name of a cluster: 1 to 32 characters, lower-case alphanumeric or `-`, first and last alphanumeric, not `default`.
    ClusterName
}
name_type! {
    /// Name of a node inside its cluster; not empty and without `/`, because it is the last element of a store key.
    NodeName
}

impl FromStr for ClusterName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let edge = |c: Option<&u8>| c.is_some_and(|c| inner(*c) && *c != b'-');
        let bytes = text.as_bytes();
        if text.len() > CLUSTER_NAME_MAX
            || !edge(bytes.first())
            || !edge(bytes.last())
            || !bytes.iter().all(|c| inner(*c))
        {
            return Err(IdError::ClusterName(text.to_owned()));
        }
        if text == "default" {
            return Err(IdError::DefaultName);
        }
        Ok(Self(text.into()))
    }
}

impl FromStr for NodeName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = |c: char| c == '/' || c.is_control() || c.is_whitespace();
        if text.is_empty() || text.len() > NODE_NAME_MAX || text.chars().any(bad) {
            return Err(IdError::NodeName(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

/// How many clusters a mesh can hold, and with it how many bits of an identity number the cluster id takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum MaxClusters {
    /// 255 clusters of 65,536 identities.
    #[default]
    C255,
    /// 511 clusters of 32,768 identities.
    C511,
}

impl MaxClusters {
    /// The largest cluster id.
    #[must_use]
    pub fn get(self) -> u16 {
        match self {
            Self::C255 => 255,
            Self::C511 => 511,
        }
    }

    /// How far the cluster id is shifted inside an identity number (wire contract: 16 or 15 bits).
    #[must_use]
    pub fn identity_shift(self) -> u32 {
        match self {
            Self::C255 => 16,
            Self::C511 => 15,
        }
    }
}

impl TryFrom<u32> for MaxClusters {
    type Error = IdError;
    fn try_from(n: u32) -> Result<Self, IdError> {
        match n {
            255 => Ok(Self::C255),
            511 => Ok(Self::C511),
            _ => Err(IdError::MaxClusters(n)),
        }
    }
}

impl From<MaxClusters> for u32 {
    fn from(max: MaxClusters) -> u32 {
        max.get().into()
    }
}

/// Number of a cluster in the mesh, 1 to 511.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(u16);

impl ClusterId {
    /// Checks `id` against the size of the mesh.
    ///
    /// # Errors
    /// [`IdError::ClusterId`] for 0 and for ids above `max`.
    pub fn new(id: u32, max: MaxClusters) -> Result<Self, IdError> {
        match u16::try_from(id) {
            Ok(small) if small >= 1 && small <= max.get() => Ok(Self(small)),
            _ => Err(IdError::ClusterId(id, max.get())),
        }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }

    /// Identity numbers that belong to this cluster, both ends included.
    #[must_use]
    pub fn identity_range(self, max: MaxClusters) -> std::ops::RangeInclusive<u32> {
        let shift = max.identity_shift();
        let low = u32::from(self.0) << shift;
        low..=(low + (1 << shift) - 1)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! number_type {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_type! {
    /// Numeric security identity (wire contract section 4); numbers below 256 are reserved and the same in every cluster.
    NumericIdentity(u32)
}
number_type! {
    /// Index of a link in its network namespace; 0 is no link.
    IfIndex(u32)
}
number_type! {
    /// Id of a kernel nexthop object or group; 0 is none.
    NexthopId(u32)
}
number_type! {
    /// Number of a route table.
    TableId(u32)
}
number_type! {
    /// Route metric (`RTA_PRIORITY`); lower wins.
    Metric(u32)
}
number_type! {
    /// Version of a table: grows with every committed change.
    Revision(u64)
}

impl NumericIdentity {
    /// The host itself; rewritten to [`Self::REMOTE_NODE`] when it comes from another cluster.
    pub const HOST: Self = Self(1);
    /// What answers the health checks of a node.
    pub const HEALTH: Self = Self(4);
    /// A node of the mesh other than this one.
    pub const REMOTE_NODE: Self = Self(6);
    /// The ingress of a node.
    pub const INGRESS: Self = Self(8);
    /// First number that is not reserved.
    pub const FIRST_UNRESERVED: Self = Self(256);

    /// True for numbers whose meaning is fixed in every cluster.
    #[must_use]
    pub fn is_reserved(self) -> bool {
        self < Self::FIRST_UNRESERVED
    }
}

impl NexthopId {
    /// True when the id lies in our range.
    #[must_use]
    pub fn is_owned(self) -> bool {
        NEXTHOP_IDS.contains(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_follow_the_rule() {
        let long = "a".repeat(33);
        for good in ["a", "west", "w-1", "0", &"a".repeat(32)] {
            assert!(good.parse::<ClusterName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "default", &long, "ä"] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn identity_ranges_match_the_wire_contract() {
        let range = |id, max| ClusterId::new(id, max).unwrap().identity_range(max);
        assert_eq!(range(1, MaxClusters::C255), 65_536..=131_071);
        assert_eq!(range(7, MaxClusters::C255), 458_752..=524_287);
        assert_eq!(range(255, MaxClusters::C255), 16_711_680..=16_777_215);
        assert_eq!(range(1, MaxClusters::C511), 32_768..=65_535);
        assert_eq!(range(255, MaxClusters::C511), 8_355_840..=8_388_607);
    }

    #[test]
    fn cluster_ids_are_bounded_by_the_mesh() {
        for (id, max, ok) in [
            (0, MaxClusters::C511, false),
            (1, MaxClusters::C255, true),
            (256, MaxClusters::C255, false),
            (256, MaxClusters::C511, true),
            (512, MaxClusters::C511, false),
            (70_000, MaxClusters::C511, false),
        ] {
            assert_eq!(ClusterId::new(id, max).is_ok(), ok, "{id}");
        }
    }

    #[test]
    fn node_names_cannot_leave_their_key() {
        for bad in ["", "a/b", "a b", "a\n"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
        assert!("west-worker.example".parse::<NodeName>().is_ok());
    }
}
