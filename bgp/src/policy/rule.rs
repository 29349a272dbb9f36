//! Rules: what they match, what they change, and what they decide.

use std::{net::IpAddr, ops::RangeInclusive, sync::Arc};

use ipnet::IpNet;

use super::{
    as_path_pattern::AsPathList,
    candidate::{Candidate, NextHopEdit, Source, SourceKind},
    community::{Community, CommunityPattern},
    prefix_list::PrefixList,
    rpki::{Validity, Vrps, origin_of},
};
use crate::{
    family::Family,
    id::Asn,
    wire::attributes::{Attributes, Origin},
};

/// Rules with a name, as several peers use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// Its name.
    pub name: Arc<str>,
    /// In their order.
    pub rules: Vec<Rule>,
}

/// One rule. What matches all of its matches is changed by its actions and then decided about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, unique in its set.
    pub name: Arc<str>,
    /// All must hold; without any, the rule holds for everything.
    pub matches: Vec<Match>,
    /// In their order.
    pub actions: Vec<Action>,
    /// What comes after them.
    pub then: Then,
}

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The path is accepted; no further rule is looked at.
    Accept,
    /// The path is rejected.
    Reject,
    /// The next rule sees the path as this one changed it.
    Next,
    /// The next rule set does.
    NextPolicy,
}

/// A property of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The prefix is on the list.
    Prefix(Arc<PrefixList>),
    /// The prefix is of this family.
    Family(Family),
    /// The path has at least one of these communities.
    AnyCommunity(Arc<[CommunityPattern]>),
    /// For each of these patterns the path has a community.
    AllCommunities(Arc<[CommunityPattern]>),
    /// The AS path is on the list.
    AsPath(Arc<AsPathList>),
    /// Length of the AS path, as best path selection counts it.
    AsPathLength(RangeInclusive<u32>),
    /// The first AS of the path.
    NeighborAs(Arc<[RangeInclusive<u32>]>),
    /// The AS that originated the path.
    OriginAs(Arc<[RangeInclusive<u32>]>),
    /// The next hop, also the link-local one of a pair, is on the list as a host prefix.
    NextHop(Arc<PrefixList>),
    /// ORIGIN is one of these.
    Origin(Vec<Origin>),
    /// MED; a path without has 0.
    Med(RangeInclusive<u32>),
    /// LOCAL_PREF; a path without has 100.
    LocalPref(RangeInclusive<u32>),
    /// Where we have it from.
    Source(Vec<SourceKind>),
    /// It comes from one of these peers.
    Peer(Arc<[IpAddr]>),
    /// It comes from a peer in one of these AS.
    PeerAs(Arc<[RangeInclusive<u32>]>),
    /// What the RPKI says about prefix and origin.
    Rpki(Vec<Validity>),
    /// The opposite.
    Not(Box<Match>),
    /// At least one of these.
    Any(Vec<Match>),
}

/// LOCAL_PREF of a path that has none.
const LOCAL_PREF_DEFAULT: u32 = 100;

/// What a match looks at.
pub(super) struct View<'a> {
    pub(super) prefix: &'a IpNet,
    /// As changed so far.
    pub(super) attributes: Attributes<'a>,
    pub(super) next_hop: Option<crate::NextHop>,
    pub(super) source: Source,
    pub(super) local_as: Asn,
    pub(super) vrps: Option<&'a Vrps>,
}

impl<'a> View<'a> {
    pub(super) const fn of(candidate: &'a Candidate<'a>) -> Self {
        Self {
            prefix: &candidate.prefix,
            attributes: candidate.attributes,
            next_hop: candidate.next_hop,
            source: candidate.source,
            local_as: candidate.local_as,
            vrps: candidate.vrps,
        }
    }
}

impl Match {
    pub(super) fn holds(&self, view: &View<'_>) -> bool {
        match self {
            Self::Prefix(list) => list.contains(view.prefix),
            Self::Family(family) => Family::of(view.prefix) == *family,
            Self::AnyCommunity(patterns) => patterns.iter().any(|pattern| pattern.matches_any_of(view.attributes)),
            Self::AllCommunities(patterns) => patterns.iter().all(|pattern| pattern.matches_any_of(view.attributes)),
            Self::AsPath(list) => list.contains(view.attributes.as_path()),
            Self::AsPathLength(range) => range.contains(&view.attributes.as_path().hops()),
            Self::NeighborAs(ranges) => is_in(view.attributes.as_path().neighbor(), ranges),
            Self::OriginAs(ranges) => is_in(origin_of(view.attributes.as_path(), view.local_as), ranges),
            Self::NextHop(list) => view.next_hop.is_some_and(|next_hop| {
                let second = match next_hop {
                    crate::NextHop::V6Pair { link_local, .. } => Some(IpAddr::V6(link_local)),
                    crate::NextHop::V4(_) | crate::NextHop::V6(_) => None,
                };
                let mut addresses = std::iter::once(next_hop.address()).chain(second);
                addresses.any(|address| list.contains(&IpNet::from(address)))
            }),
            Self::Origin(origins) => origins.contains(&view.attributes.origin()),
            Self::Med(range) => range.contains(&view.attributes.med().unwrap_or(0)),
            Self::LocalPref(range) => range.contains(&view.attributes.local_pref().unwrap_or(LOCAL_PREF_DEFAULT)),
            Self::Source(kinds) => kinds.contains(&view.source.kind()),
            Self::Peer(addresses) => match view.source {
                Source::Peer(peer) => addresses.contains(&peer.address),
                Source::Local(_) => false,
            },
            Self::PeerAs(ranges) => match view.source {
                Source::Peer(peer) => is_in(Some(peer.asn), ranges),
                Source::Local(_) => false,
            },
            Self::Rpki(states) => {
                let state = view.vrps.map_or(Validity::NotFound, |vrps| {
                    vrps.validity(view.prefix, origin_of(view.attributes.as_path(), view.local_as))
                });
                states.contains(&state)
            }
            Self::Not(inner) => !inner.holds(view),
            Self::Any(inner) => inner.iter().any(|one| one.holds(view)),
        }
    }

    /// What it says about every path of a family, when that is always the same.
    pub(super) fn constant(&self, family: Option<Family>) -> Option<bool> {
        let admits = |list: &PrefixList| match family {
            Some(family) => list.admits_family(family),
            None => Family::ALL.iter().any(|family| list.admits_family(*family)),
        };
        match self {
            Self::Prefix(list) if !admits(list) => Some(false),
            Self::Family(wanted) => family.map(|family| family == *wanted),
            Self::AnyCommunity(patterns) if patterns.is_empty() => Some(false),
            Self::AllCommunities(patterns) if patterns.is_empty() => Some(true),
            Self::Not(inner) => inner.constant(family).map(|held| !held),
            Self::Any(inner) => {
                let mut all = Some(false);
                for one in inner {
                    match one.constant(family) {
                        Some(true) => return Some(true),
                        Some(false) => {}
                        None => all = None,
                    }
                }
                all
            }
            Self::Prefix(_)
            | Self::AnyCommunity(_)
            | Self::AllCommunities(_)
            | Self::AsPath(_)
            | Self::AsPathLength(_)
            | Self::NeighborAs(_)
            | Self::OriginAs(_)
            | Self::NextHop(_)
            | Self::Origin(_)
            | Self::Med(_)
            | Self::LocalPref(_)
            | Self::Source(_)
            | Self::Peer(_)
            | Self::PeerAs(_)
            | Self::Rpki(_) => None,
        }
    }

    pub(super) fn depends_on_prefix(&self) -> bool {
        self.looks_at(&[Subject::Prefix, Subject::Origin])
    }

    pub(super) fn depends_on_peer(&self) -> bool {
        self.looks_at(&[Subject::Peer])
    }

    pub(super) fn depends_on_rpki(&self) -> bool {
        self.looks_at(&[Subject::Origin])
    }

    fn looks_at(&self, subjects: &[Subject]) -> bool {
        let subject = match self {
            Self::Not(inner) => return inner.looks_at(subjects),
            Self::Any(inner) => return inner.iter().any(|one| one.looks_at(subjects)),
            Self::Prefix(_) | Self::Family(_) => Subject::Prefix,
            Self::Rpki(_) => Subject::Origin,
            Self::Peer(_) | Self::PeerAs(_) => Subject::Peer,
            Self::AnyCommunity(_)
            | Self::AllCommunities(_)
            | Self::AsPath(_)
            | Self::AsPathLength(_)
            | Self::NeighborAs(_)
            | Self::OriginAs(_)
            | Self::NextHop(_)
            | Self::Origin(_)
            | Self::Med(_)
            | Self::LocalPref(_)
            | Self::Source(_) => Subject::Path,
        };
        subjects.contains(&subject)
    }
}

/// What a single match looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Prefix,
    /// The prefix and who may originate it.
    Origin,
    /// Which peer the path comes from.
    Peer,
    /// What all prefixes of a message share.
    Path,
}

fn is_in(asn: Option<Asn>, ranges: &[RangeInclusive<u32>]) -> bool {
    asn.is_some_and(|asn| ranges.iter().any(|range| range.contains(&asn.0)))
}

/// A change of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// LOCAL_PREF.
    LocalPref(NumberEdit),
    /// MED.
    Med(NumberEdit),
    /// Takes MED away.
    RemoveMed,
    /// ORIGIN.
    Origin(Origin),
    /// Replaces all communities of the kinds that are in the list.
    SetCommunities(Arc<[Community]>),
    /// Adds those that the path has not yet.
    AddCommunities(Arc<[Community]>),
    /// Takes away what matches.
    RemoveCommunities(Arc<[CommunityPattern]>),
    /// Puts an AS in front of the path so many times.
    Prepend(PrependAs, u8),
    /// The next hop.
    NextHop(NextHopEdit),
}

/// A change of a number; a path that has none is taken to have the default (LOCAL_PREF 100, MED 0). Results stay between
/// 0 and 4294967295.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberEdit {
    /// To this.
    Set(u32),
    /// By so much up.
    Add(u32),
    /// By so much down.
    Subtract(u32),
}

impl NumberEdit {
    const fn apply(self, before: u32) -> u32 {
        match self {
            Self::Set(value) => value,
            Self::Add(value) => before.saturating_add(value),
            Self::Subtract(value) => before.saturating_sub(value),
        }
    }

    /// The new LOCAL_PREF.
    pub(super) fn local_pref(self, before: Option<u32>) -> u32 {
        self.apply(before.unwrap_or(LOCAL_PREF_DEFAULT))
    }

    /// The new MED.
    pub(super) fn med(self, before: Option<u32>) -> u32 {
        self.apply(before.unwrap_or(0))
    }
}

/// What is put in front of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrependAs {
    /// The AS we are towards the peer.
    Own,
    /// The one that is in front already; nothing when there is none.
    First,
    /// This one.
    Number(Asn),
}
