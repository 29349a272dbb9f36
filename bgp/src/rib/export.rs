//! What a peer is told of a path: the RFCs' conditions, policy, and the changes that the kind of the session asks for.

use super::{
    Core,
    attributes::{AttrId, View, has},
    group::GroupKey,
    next_hops::{NextHopId, Scope},
    peer::{NextHopMode, Peer},
    reasons::NotAdvertised,
};
use crate::{
    NextHop,
    family::{Family, Prefix},
    id::{Asn, PeerId, RouterId},
    policy::{Candidate, LocalSource, NextHopEdit, Outcome, Source},
    session::PeerKind,
    wire::{
        as_path::{AsPath, Segment, SegmentKind, prepend, write_segments},
        attributes::{Attributes, code, known_flags, write_attribute},
        capability::Role,
    },
};

/// Attributes that this room sets, removes or adds at most.
const EDITS_MAX: usize = 8;
/// Octets of a message beside attributes: header and lengths, MP_REACH_NLRI with the longest next hop, one prefix with a
/// path identifier.
const FRAME_OCTETS_MAX: usize = 23 + (4 + 4 + 32 + 1) + (4 + 1 + 16);

/// Where a path comes from, for export.
#[derive(Clone, Copy, Debug)]
pub(super) struct From {
    pub(super) peer: PeerId,
    pub(super) local: LocalSource,
}

/// The changes to one set of attributes, in ascending order of codes when applied.
#[derive(Default)]
struct Edits {
    list: Vec<(u8, Option<Vec<u8>>)>,
}

impl Edits {
    fn set(&mut self, code: u8, value: Vec<u8>) {
        self.list.push((code, Some(value)));
    }

    fn remove(&mut self, code: u8) {
        self.list.push((code, None));
    }

    /// Writes `attributes` with the changes.
    fn apply(mut self, attributes: Attributes<'_>, out: &mut Vec<u8>) {
        debug_assert!(self.list.len() <= EDITS_MAX, "each code is edited once");
        self.list.sort_by_key(|(code, _)| *code);
        let mut edits = self.list.into_iter().peekable();
        let write = |out: &mut Vec<u8>, code: u8, value: Option<Vec<u8>>| {
            if let Some(value) = value {
                write_attribute(out, known_flags(code).unwrap_or_default(), code, &value);
            }
        };
        for attribute in attributes.iter() {
            while let Some((code, value)) = edits.next_if(|(code, _)| *code < attribute.code) {
                write(out, code, value);
            }
            match edits.next_if(|(code, _)| *code == attribute.code) {
                Some((code, value)) => write(out, code, value),
                None => out.extend_from_slice(attribute.octets),
            }
        }
        for (code, value) in edits {
            write(out, code, value);
        }
    }
}

/// What a group is told of a path. The caller holds the result.
pub(super) fn export<P: Prefix>(
    core: &mut Core,
    key: &GroupKey,
    prefix: P,
    set: AttrId,
    from: From,
) -> Result<AttrId, NotAdvertised> {
    if key.watches {
        if !fits(key, core.sets.octets(set).len()) {
            return Err(NotAdvertised::TooLong);
        }
        core.sets.hold(set);
        return Ok(set);
    }
    let view = *core.sets.view(set);
    let source = core.peers.get(from.peer);
    withhold(key, &view, source)?;
    let otc = otc(key, &view)?;
    let attributes = core.sets.attributes(set);
    let via = core.sets.next_hop(set);
    let next_hop = core.next_hops.get(via);
    let candidate = Candidate {
        prefix: prefix.to_net(),
        attributes,
        next_hop: next_hop.map(|(next_hop, _)| next_hop),
        source: source.map_or(Source::Local(from.local), |peer| Source::Peer(peer.source())),
        local_as: key.local_as,
        vrps: core.vrps.as_deref(),
    };
    let decision = key.policy.evaluate(&candidate);
    let edited = match decision.outcome {
        Outcome::Reject => return Err(NotAdvertised::Policy(decision.rule)),
        Outcome::Accept => None,
        Outcome::Edit(edited) => Some(edited),
    };
    let next_hop_edit = edited.as_ref().map(|edited| edited.next_hop).unwrap_or_default();
    let said = edited.as_ref().and_then(|edited| edited.attributes.as_deref());
    let base = Attributes(said.unwrap_or(attributes.0));
    let policy_set_med = said.is_some() && base.med() != attributes.med();
    let mut edits = Edits::default();
    if let Some(asn) = otc {
        edits.set(code::OTC, asn.0.to_be_bytes().to_vec());
    }
    match key.kind {
        PeerKind::External => edit_external(&mut edits, key, base, source, policy_set_med),
        PeerKind::Internal => edit_internal(&mut edits, core, base, source),
        PeerKind::Confederation => edit_confederation(&mut edits, core, key, base),
    }
    let out_via = out_next_hop(core, key, via, next_hop, next_hop_edit)?;
    let mut scratch = std::mem::take(&mut core.scratch);
    scratch.clear();
    match said {
        Some(octets) => edits.apply(Attributes(octets), &mut scratch),
        None => edits.apply(core.sets.attributes(set), &mut scratch),
    }
    let fits = fits(key, scratch.len());
    let out = core.sets.intern(&scratch, out_via, &mut core.next_hops);
    core.scratch = scratch;
    if fits {
        return Ok(out);
    }
    core.release(out);
    Err(NotAdvertised::TooLong)
}

/// Do so many octets of attributes leave room for a prefix?
fn fits(key: &GroupKey, octets: usize) -> bool {
    // A peer with two-octet AS numbers gets long paths twice.
    let octets = if key.asn4 { octets } else { octets * 2 };
    octets + FRAME_OCTETS_MAX <= usize::from(key.length_limit.octets())
}

/// The conditions under which a path is not for this kind of peer.
fn withhold(key: &GroupKey, view: &View, source: Option<&Peer>) -> Result<(), NotAdvertised> {
    if view.has(has::NO_ADVERTISE) {
        return Err(NotAdvertised::NoAdvertise);
    }
    if view.has(has::NO_EXPORT) && key.kind == PeerKind::External {
        return Err(NotAdvertised::NoExport);
    }
    if view.has(has::NO_EXPORT_SUBCONFED) && key.kind != PeerKind::Internal {
        return Err(NotAdvertised::NoExportSubconfed);
    }
    if view.has(has::LLGR_STALE) && !key.long_lived {
        return Err(NotAdvertised::LongLivedStale);
    }
    if let Some(source) = source
        && (source.kind, key.kind) == (PeerKind::Internal, PeerKind::Internal)
        && !source.settings.reflector_client
        && !key.reflector_client
    {
        return Err(NotAdvertised::InternalToInternal);
    }
    Ok(())
}

/// RFC 9234 section 5, egress: what must not go up or across, and the mark for what goes down or across.
fn otc(key: &GroupKey, view: &View) -> Result<Option<Asn>, NotAdvertised> {
    if key.kind != PeerKind::External {
        return Ok(None);
    }
    match key.role {
        Some(Role::Customer | Role::Peer | Role::RouteServerClient) if view.has(has::OTC) => {
            Err(NotAdvertised::OnlyToCustomer)
        }
        Some(Role::Provider | Role::Peer | Role::RouteServer) if !view.has(has::OTC) => Ok(Some(key.local_as)),
        Some(Role::Provider | Role::Peer | Role::RouteServer | Role::Customer | Role::RouteServerClient) | None => {
            Ok(None)
        }
    }
}

/// RFC 4271 sections 5.1.2, 5.1.4 and 5.1.5; RFC 5065 section 4.1; RFC 7947 section 2.2.
fn edit_external(edits: &mut Edits, key: &GroupKey, base: Attributes<'_>, source: Option<&Peer>, keep_med: bool) {
    if base.local_pref().is_some() {
        edits.remove(code::LOCAL_PREF);
    }
    edits.remove(code::ORIGINATOR_ID);
    edits.remove(code::CLUSTER_LIST);
    if key.route_server_client {
        return;
    }
    if base.med().is_some() && source.is_some() && !keep_med {
        edits.remove(code::MED);
    }
    let path = base.as_path();
    let is_plain = !key.remove_private_as && path.segments().all(|segment| !segment.kind.is_confederation());
    let cleaned = if is_plain { None } else { Some(clean(path, key.remove_private_as)) };
    let path = cleaned.as_deref().map_or(path, AsPath::of_canonical);
    edits.set(code::AS_PATH, prepend(path, SegmentKind::Sequence, key.local_as, 1));
}

/// The path without segments of a confederation and, if asked for, without private numbers.
fn clean(path: AsPath<'_>, remove_private: bool) -> Vec<u8> {
    let kept = path.segments().filter(|segment| !segment.kind.is_confederation()).map(|segment: Segment<'_>| {
        let numbers: Vec<Asn> = segment.numbers().filter(|asn| !(remove_private && asn.is_private())).collect();
        (segment.kind, numbers)
    });
    let kept: Vec<(SegmentKind, Vec<Asn>)> = kept.collect();
    write_segments(kept.iter().map(|(kind, numbers)| (*kind, numbers.as_slice())))
}

/// RFC 4271 section 5.1.5, and RFC 4456 section 8 for what came from an internal peer.
fn edit_internal(edits: &mut Edits, core: &Core, base: Attributes<'_>, source: Option<&Peer>) {
    if base.local_pref().is_none() {
        edits.set(code::LOCAL_PREF, core.config.local_pref_default.to_be_bytes().to_vec());
    }
    if base.get(code::AS_PATH).is_none() {
        edits.set(code::AS_PATH, Vec::new());
    }
    let Some(source) = source.filter(|source| source.kind == PeerKind::Internal) else {
        return;
    };
    if base.originator_id().is_none() {
        let RouterId(originator) = source.router_id;
        edits.set(code::ORIGINATOR_ID, originator.to_be_bytes().to_vec());
    }
    let mut clusters = core.config.cluster_id.0.to_be_bytes().to_vec();
    clusters.extend_from_slice(base.get(code::CLUSTER_LIST).unwrap_or_default());
    edits.set(code::CLUSTER_LIST, clusters);
}

/// RFC 5065 section 4.1.
fn edit_confederation(edits: &mut Edits, core: &Core, key: &GroupKey, base: Attributes<'_>) {
    if base.local_pref().is_none() {
        edits.set(code::LOCAL_PREF, core.config.local_pref_default.to_be_bytes().to_vec());
    }
    edits.remove(code::ORIGINATOR_ID);
    edits.remove(code::CLUSTER_LIST);
    edits.set(code::AS_PATH, prepend(base.as_path(), SegmentKind::ConfedSequence, key.local_as, 1));
}

/// The next hop that is said; [`NextHopId::OWN`] stands for the address of each session.
fn out_next_hop(
    core: &mut Core,
    key: &GroupKey,
    via: NextHopId,
    next_hop: Option<(NextHop, Scope)>,
    edit: NextHopEdit,
) -> Result<NextHopId, NotAdvertised> {
    let unchanged_by_kind = key.kind != PeerKind::External || key.route_server_client;
    let unchanged = match (edit, key.next_hop) {
        (NextHopEdit::Own, _) => false,
        (NextHopEdit::Unchanged, _) => true,
        (NextHopEdit::Address(address), _) => {
            check_family(key, address)?;
            return Ok(core.next_hops.enter(address, Scope::default()));
        }
        (NextHopEdit::Default | NextHopEdit::Discard, NextHopMode::Own) => false,
        (NextHopEdit::Default | NextHopEdit::Discard, NextHopMode::Unchanged) => true,
        (NextHopEdit::Default | NextHopEdit::Discard, NextHopMode::Default) => unchanged_by_kind,
    };
    let Some((address, _)) = next_hop.filter(|_| unchanged) else {
        return Ok(NextHopId::OWN);
    };
    // A link-local next hop means nothing to anybody else.
    match address {
        NextHop::V6(address) if address.is_unicast_link_local() => Ok(NextHopId::OWN),
        NextHop::V6Pair { global, .. } => {
            check_family(key, address)?;
            Ok(core.next_hops.enter(NextHop::V6(global), Scope::default()))
        }
        NextHop::V4(_) | NextHop::V6(_) => {
            check_family(key, address)?;
            Ok(via)
        }
    }
}

/// An IPv6 next hop of an IPv4 prefix only goes to peers that said they know it (RFC 8950 section 4).
fn check_family(key: &GroupKey, next_hop: NextHop) -> Result<(), NotAdvertised> {
    match (key.family, next_hop) {
        (Family::Ipv4Unicast, NextHop::V4(_)) => Ok(()),
        (Family::Ipv4Unicast, NextHop::V6(_) | NextHop::V6Pair { .. }) if key.extended_next_hop => Ok(()),
        (Family::Ipv6Unicast, NextHop::V6(_) | NextHop::V6Pair { .. }) => Ok(()),
        (Family::Ipv4Unicast | Family::Ipv6Unicast, _) => Err(NotAdvertised::NextHopFamily),
    }
}
