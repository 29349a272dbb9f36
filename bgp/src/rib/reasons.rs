//! Why a path is not used, not best, or not advertised: one name for each way to lose.

use std::fmt;

use serde::Serialize;

use crate::policy::RuleId;

/// Why a received path takes no part in best path selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejection {
    /// A rule of the import policy.
    Policy(RuleId),
    /// Our AS is in its AS path (RFC 4271 section 9.1.2).
    AsLoop,
    /// Its AS path does not begin with the AS of the peer (RFC 4271 section 6.3).
    FirstAs,
    /// We originated it: ORIGINATOR_ID is ours (RFC 4456 section 8).
    OriginatorLoop,
    /// It was in our cluster before (RFC 4456 section 8).
    ClusterLoop,
    /// It went down and came up again on its way (RFC 9234 section 5).
    RouteLeak,
    /// Its next hop is our own address (RFC 4271 section 6.3).
    OwnNextHop,
    /// Its confederation segments came from outside of the confederation, or it lacks what its kind needs.
    Confederation,
}

impl Rejection {
    /// Numbers from here on are no attribute sets.
    pub(super) const FIRST: u32 = 0xfffe_0000;

    pub(super) const fn to_bits(self) -> u32 {
        match self {
            Self::Policy(rule) => Self::FIRST | rule.0 as u32,
            Self::AsLoop => 0xffff_0000,
            Self::FirstAs => 0xffff_0001,
            Self::OriginatorLoop => 0xffff_0002,
            Self::ClusterLoop => 0xffff_0003,
            Self::RouteLeak => 0xffff_0004,
            Self::OwnNextHop => 0xffff_0005,
            Self::Confederation => 0xffff_0006,
        }
    }

    pub(super) const fn from_bits(bits: u32) -> Self {
        match bits {
            0xffff_0000 => Self::AsLoop,
            0xffff_0001 => Self::FirstAs,
            0xffff_0002 => Self::OriginatorLoop,
            0xffff_0003 => Self::ClusterLoop,
            0xffff_0004 => Self::RouteLeak,
            0xffff_0005 => Self::OwnNextHop,
            0xffff_0006 => Self::Confederation,
            _ => Self::Policy(RuleId(bits as u16)),
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy(_) => "import policy",
            Self::AsLoop => "own AS in path",
            Self::FirstAs => "path does not begin with the AS of the peer",
            Self::OriginatorLoop => "originated by this speaker",
            Self::ClusterLoop => "already in this cluster",
            Self::RouteLeak => "route leak (OTC)",
            Self::OwnNextHop => "next hop is this speaker",
            Self::Confederation => "confederation segments of a stranger",
        })
    }
}

/// The steps of best path selection, in their order. The reason why a path is not best is the step at which it lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Paths that are long-lived stale come last (RFC 9494 section 4.3).
    LongLivedStale,
    /// Higher LOCAL_PREF.
    LocalPref,
    /// Originated by this speaker.
    LocalOrigin,
    /// Shorter AS path.
    AsPathLength,
    /// Lower ORIGIN.
    Origin,
    /// Lower MED, among paths of one neighboring AS.
    Med,
    /// External before internal.
    ExternalFirst,
    /// Nearer next hop.
    NextHopMetric,
    /// The external path that is best already (RFC 5004).
    Oldest,
    /// Lower router identifier, ORIGINATOR_ID in its place.
    RouterId,
    /// Shorter CLUSTER_LIST (RFC 4456 section 9).
    ClusterListLength,
    /// Lower address of the peer.
    PeerAddress,
    /// Lower path identifier of one peer (RFC 7911).
    PathId,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LongLivedStale => "long-lived stale",
            Self::LocalPref => "local preference",
            Self::LocalOrigin => "local origin",
            Self::AsPathLength => "AS path length",
            Self::Origin => "origin",
            Self::Med => "MED",
            Self::ExternalFirst => "external before internal",
            Self::NextHopMetric => "metric of next hop",
            Self::Oldest => "oldest external path",
            Self::RouterId => "router ID",
            Self::ClusterListLength => "cluster list length",
            Self::PeerAddress => "peer address",
            Self::PathId => "path ID",
        })
    }
}

/// What became of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Selected.
    Best,
    /// Forwarded to beside the best path.
    Multipath,
    /// Lost at this step.
    Lost(Step),
    /// No way to its next hop is known.
    UnresolvedNextHop,
    /// Not decided yet.
    Waiting,
    /// Not accepted.
    Rejected(Rejection),
}

/// Why the best path to a prefix is not advertised to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotAdvertised {
    /// There is no best path.
    NoBestPath,
    /// The peer does not have the family, or its session is down.
    NoSession,
    /// We have no address that could be the next hop for this family.
    NoNextHop,
    /// It came from this peer.
    SplitHorizon,
    /// It came from an internal peer, and neither is a client of this reflector (RFC 4456 section 6).
    InternalToInternal,
    /// NO_ADVERTISE (RFC 1997).
    NoAdvertise,
    /// NO_EXPORT (RFC 1997).
    NoExport,
    /// NO_EXPORT_SUBCONFED (RFC 1997).
    NoExportSubconfed,
    /// Only to Customer, and the peer is none (RFC 9234 section 5).
    OnlyToCustomer,
    /// Long-lived stale, and the peer does not know that (RFC 9494 section 4.5).
    LongLivedStale,
    /// An aggregate stands for it.
    Summarized,
    /// Its IPv6 next hop cannot be said to this peer (RFC 8950).
    NextHopFamily,
    /// A rule of the export policy.
    Policy(RuleId),
    /// With our changes its attributes do not fit into a message.
    TooLong,
    /// There are as many better paths as this peer is told.
    BeyondMaximum,
}

impl fmt::Display for NotAdvertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoBestPath => "no best path",
            Self::NoSession => "no session for this family",
            Self::NoNextHop => "no own next hop for this family",
            Self::SplitHorizon => "came from this peer",
            Self::InternalToInternal => "internal to internal",
            Self::NoAdvertise => "NO_ADVERTISE",
            Self::NoExport => "NO_EXPORT",
            Self::NoExportSubconfed => "NO_EXPORT_SUBCONFED",
            Self::OnlyToCustomer => "only to customer (OTC)",
            Self::LongLivedStale => "long-lived stale",
            Self::Summarized => "summarized by an aggregate",
            Self::NextHopFamily => "next hop of another family",
            Self::Policy(_) => "export policy",
            Self::TooLong => "too long for a message",
            Self::BeyondMaximum => "beyond the maximum of paths",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_survive_being_numbers() {
        let rules = [RuleId(0), RuleId(77), RuleId(u16::MAX)].map(Rejection::Policy);
        let others = [
            Rejection::AsLoop,
            Rejection::FirstAs,
            Rejection::OriginatorLoop,
            Rejection::ClusterLoop,
            Rejection::RouteLeak,
            Rejection::OwnNextHop,
            Rejection::Confederation,
        ];
        for rejection in rules.into_iter().chain(others) {
            assert!(rejection.to_bits() >= Rejection::FIRST);
            assert_eq!(Rejection::from_bits(rejection.to_bits()), rejection);
        }
    }
}
