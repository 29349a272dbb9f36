//! What a policy is asked about.

use std::net::IpAddr;

use ipnet::IpNet;

use super::rpki::Vrps;
use crate::{id::Asn, next_hop::NextHop, session::PeerKind, wire::attributes::Attributes};

/// A path to be imported or exported.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Where it leads.
    pub prefix: IpNet,
    /// Its attributes in canonical form.
    pub attributes: Attributes<'a>,
    /// Its next hop; `None` for a path of this node that has none yet.
    pub next_hop: Option<NextHop>,
    /// Where we have it from.
    pub source: Source,
    /// The AS we are towards the peer that it comes from (import) or goes to (export).
    pub local_as: Asn,
    /// What is known of who may originate what. Without it the state of every path is *not found*.
    pub vrps: Option<&'a Vrps>,
}

/// Where we have a path from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This node originates it.
    Local(LocalSource),
    /// A BGP peer.
    Peer(PeerSource),
}

/// The BGP peer that sent a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSource {
    /// How it is related to us.
    pub kind: PeerKind,
    /// Its AS.
    pub asn: Asn,
    /// Its address.
    pub address: IpAddr,
}

/// What this node originates a path for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocalSource {
    /// The prefix of the workloads of this node.
    PodCidr,
    /// The address of a service.
    Service,
    /// An address of this node.
    NodeAddress,
    /// A prefix of the configuration.
    Static,
    /// A prefix that stands for more specific ones.
    Aggregate,
}

/// Sources by kind, for matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// This node, for this reason.
    Local(LocalSource),
    /// A peer of this kind.
    Peer(PeerKind),
}

impl Source {
    /// Its kind.
    #[must_use]
    pub const fn kind(self) -> SourceKind {
        match self {
            Self::Local(local) => SourceKind::Local(local),
            Self::Peer(peer) => SourceKind::Peer(peer.kind),
        }
    }
}

/// What became of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The rule that decided; see [`super::Policy::rule_name`].
    pub rule: RuleId,
    /// What it decided.
    pub outcome: Outcome,
}

/// What a policy decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it is.
    Accept,
    /// With these changes.
    Edit(Edited),
    /// Not at all.
    Reject,
}

impl Outcome {
    /// True unless rejected.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        !matches!(self, Self::Reject)
    }
}

/// What a policy changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edited {
    /// All attributes in canonical form, if any of them changed.
    pub attributes: Option<Vec<u8>>,
    /// What to do with the next hop.
    pub next_hop: NextHopEdit,
}

/// What a policy says about the next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NextHopEdit {
    /// Nothing: as the peer's kind and settings have it.
    #[default]
    Default,
    /// The address of this end of the session, which is known where messages are sent.
    Own,
    /// As received, also towards external peers.
    Unchanged,
    /// This one.
    Address(NextHop),
    /// Packets are to be dropped (RFC 7999). Only when the import settings allow it.
    Discard,
}

/// A rule of one policy, small enough to be kept with every path. Numbers mean the same only as long as the policy is the
/// same: paths are evaluated again when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u16);

impl RuleId {
    /// Nothing was to be decided: the policy accepts everything.
    pub const ACCEPT_ALL: Self = Self(u16::MAX);
    /// An external peer without a policy (RFC 8212).
    pub const NO_POLICY: Self = Self(u16::MAX - 1);
    /// No rule of the policies of the peer decided.
    pub const END_OF_POLICY: Self = Self(u16::MAX - 2);
    /// Equal to or inside a prefix of this node, or of its services.
    pub const OWN_PREFIX: Self = Self(u16::MAX - 3);
    /// Covers a prefix of this node, or of its services.
    pub const COVERS_OWN_PREFIX: Self = Self(u16::MAX - 4);
    /// A prefix that is never routed.
    pub const MARTIAN: Self = Self(u16::MAX - 5);
    /// The default route, where it is not allowed.
    pub const DEFAULT_ROUTE: Self = Self(u16::MAX - 6);
    /// The AS path has a set (RFC 9774).
    pub const AS_SET: Self = Self(u16::MAX - 7);

    /// The name of a built-in rule.
    pub(super) const fn built_in_name(self) -> Option<&'static str> {
        match self {
            Self::ACCEPT_ALL => Some("accept all"),
            Self::NO_POLICY => Some("no policy (RFC 8212)"),
            Self::END_OF_POLICY => Some("end of policy"),
            Self::OWN_PREFIX => Some("own prefix"),
            Self::COVERS_OWN_PREFIX => Some("covers own prefix"),
            Self::MARTIAN => Some("martian"),
            Self::DEFAULT_ROUTE => Some("default route"),
            Self::AS_SET => Some("AS_SET (RFC 9774)"),
            Self(_) => None,
        }
    }
}
