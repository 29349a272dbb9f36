//! A path as every router can tell it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

/// One way to a prefix with its attributes, in one notation for all programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The destination.
    pub prefix: IpNet,
    /// The identifier of RFC 7911, where the program tells it.
    pub path_id: Option<u32>,
    /// The peer it came from, as the program names it; nothing for a path of the router's own.
    pub from: Option<String>,
    /// Next hops, global ones before link-local ones.
    pub next_hops: Vec<String>,
    /// `igp`, `egp` or `incomplete`.
    pub origin: String,
    /// Numbers in order, sets in braces, confederation sequences in parentheses.
    pub as_path: String,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// `65001:1`.
    pub communities: BTreeSet<String>,
    /// `rt:65001:1`, `soo:…`, otherwise as the program writes it, in lower case.
    pub extended: BTreeSet<String>,
    /// `65001:1:2`.
    pub large: BTreeSet<String>,
    /// Whether it is the chosen one; nothing from programs that do not choose.
    pub best: Option<bool>,
    /// Whether it is kept although its peer is gone.
    pub stale: bool,
    /// What else the program tells, under its own names.
    pub other: BTreeMap<String, String>,
}

impl Path {
    /// A path without any attribute.
    pub(super) fn to(prefix: IpNet) -> Self {
        Self {
            prefix,
            path_id: None,
            from: None,
            next_hops: Vec::new(),
            origin: String::new(),
            as_path: String::new(),
            med: None,
            local_pref: None,
            communities: BTreeSet::new(),
            extended: BTreeSet::new(),
            large: BTreeSet::new(),
            best: None,
            stale: false,
            other: BTreeMap::new(),
        }
    }
}

/// One notation for extended communities: lower case, the kinds `rt` and `soo` by these names.
pub(super) fn extended(kind: &str, rest: &str) -> String {
    let kind = match kind.to_lowercase().as_str() {
        "target" | "rt" => "rt".to_owned(),
        "origin" | "ro" | "soo" => "soo".to_owned(),
        other => other.to_owned(),
    };
    format!("{kind}:{}", rest.to_lowercase())
}

/// The well-known communities have names in some programs.
pub(super) fn community(written: &str) -> String {
    let numbers = match written {
        "no-export" | "no_export" | "noExport" => "65535:65281",
        "no-advertise" | "no_advertise" | "noAdvertise" => "65535:65282",
        "no-export-subconfed" | "local-as" | "localAs" => "65535:65283",
        "graceful-shutdown" | "gracefulShutdown" => "65535:0",
        "llgr-stale" | "llgrStale" => "65535:6",
        "no-llgr" | "noLlgr" => "65535:7",
        "blackhole" => "65535:666",
        other => other,
    };
    numbers.to_owned()
}
