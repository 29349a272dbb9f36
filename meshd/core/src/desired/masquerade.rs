//! What masquerade is to do.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::table::Table;

/// Most prefixes that are excluded from masquerade.
pub const EXCLUSIONS_MAX: usize = 16_384;

/// Masquerade as this node wants it.
#[derive(Debug, Clone, Default)]
pub struct Masquerade {
    /// Whether, and by which rules.
    pub wish: MasqueradeWish,
    /// Prefixes between which, or to which, sources stay as they are. Within one set no prefix lies inside another.
    pub exclusions: Table<Exclusion, ()>,
    /// Prefixes that [`EXCLUSIONS_MAX`] left out.
    pub left_out: usize,
}

/// Whether to masquerade.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MasqueradeWish {
    /// Not known yet: whatever is there stays.
    #[default]
    Unknown,
    /// No.
    Off,
    /// Yes.
    On(Arc<MasqueradeRules>),
}

/// What the rules name, apart from the exclusions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MasqueradeRules {
    /// Prefixes of this node's workloads.
    pub sources: BTreeSet<IpNet>,
    /// Links that lead out of the node.
    pub uplinks: BTreeSet<Arc<str>>,
    /// The source address to use for IPv4; `None` leaves it to the kernel.
    pub ipv4: Option<IpAddr>,
    /// The same for IPv6.
    pub ipv6: Option<IpAddr>,
    /// The datapath's programs give what leaves the node's address, so that no rule does. The reconciler says so as long as they can.
    pub by_programs: bool,
}

/// An excluded prefix. When there are too many, the first ones count.
pub type Exclusion = (ExclusionSet, IpNet);

/// Why a prefix is excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExclusionSet {
    /// People said so: our workloads keep their source to it.
    Kept,
    /// Workloads of the mesh, our own included: what goes from one of them to another keeps its source, whoever forwards it.
    Pods,
    /// An address of a node of the mesh: what goes between it and our workloads keeps its source.
    Nodes,
}

impl ExclusionSet {
    /// Every set, those that count first at first.
    pub const ALL: [Self; 3] = [Self::Kept, Self::Pods, Self::Nodes];

    /// The word in names and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Pods => "pods",
            Self::Nodes => "nodes",
        }
    }
}
