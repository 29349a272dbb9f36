//! What the tables should hold, computed from all paths each time, slowly and step by step as the RFCs put it.

use std::collections::BTreeMap;

use crate::{
    Asn, NextHop, PathId, PeerId, Prefix as _, RouterId,
    family::{V4, V6},
    rib::{
        Stored,
        tests::harness::{OWN_AS, OWN_ID, OWN_V4, OWN_V6, Peer, default_next_hop},
    },
    session::PeerKind,
    wire::{
        as_path::{AsPath, SegmentKind, prepend},
        attributes::{Attributes, Builder, code},
    },
};

const NO_EXPORT: u32 = 0xffff_ff01;
const NO_ADVERTISE: u32 = 0xffff_ff02;
const LLGR_STALE: u32 = 0xffff_0006;

/// A family of which histories are made.
pub(crate) trait Kind: Stored {
    /// Our next hop.
    const OWN: NextHop;
    /// One of the prefixes of a history.
    fn numbered(number: u8) -> Self;
    /// A peer as next hop.
    fn next_hop(peer: u16) -> NextHop {
        default_next_hop::<Self>(usize::from(peer))
    }
}

impl Kind for V4 {
    const OWN: NextHop = OWN_V4;

    fn numbered(number: u8) -> Self {
        Self::from_wire(24, &[10, 1, number]).expect("a prefix")
    }
}

impl Kind for V6 {
    const OWN: NextHop = OWN_V6;

    fn numbered(number: u8) -> Self {
        Self::from_wire(48, &[0x20, 1, 0xd, 0xb8, 1, number]).expect("a prefix")
    }
}

/// A path as a peer sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelPath {
    pub(crate) attributes: Vec<u8>,
    pub(crate) next_hop: NextHop,
    pub(crate) stale: bool,
    pub(crate) long_lived: bool,
}

/// All paths, by prefix, sender ([`PeerId::LOCAL`] for our own) and path identifier.
#[derive(Clone, Debug)]
pub(crate) struct Model<P> {
    pub(crate) paths: BTreeMap<P, BTreeMap<(PeerId, PathId), ModelPath>>,
    /// Next hops nothing leads to.
    pub(crate) unreachable: Vec<NextHop>,
    /// Metrics that are not 10.
    pub(crate) metrics: BTreeMap<NextHop, u32>,
}

/// A path that takes part in selection.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) peer: PeerId,
    pub(crate) path_id: PathId,
    pub(crate) attributes: Vec<u8>,
    pub(crate) next_hop: NextHop,
}

impl<P: Kind> Model<P> {
    pub(crate) fn new() -> Self {
        Self { paths: BTreeMap::new(), unreachable: Vec::new(), metrics: BTreeMap::new() }
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(PeerId, &ModelPath) -> bool) {
        for paths in self.paths.values_mut() {
            paths.retain(|(peer, _), path| keep(*peer, path));
        }
        self.paths.retain(|_, paths| !paths.is_empty());
    }

    pub(crate) fn mark(&mut self, peer: PeerId, mark: impl Fn(&mut ModelPath)) {
        for paths in self.paths.values_mut() {
            for (_, path) in paths.iter_mut().filter(|((sender, _), _)| *sender == peer) {
                mark(path);
            }
        }
    }

    /// Paths that may be selected.
    pub(crate) fn candidates(&self, peers: &[Peer], prefix: P) -> Vec<Candidate> {
        let Some(paths) = self.paths.get(&prefix) else {
            return Vec::new();
        };
        let mut candidates = Vec::new();
        for ((id, path_id), path) in paths {
            let attributes = Attributes(&path.attributes);
            let as_loop = attributes.as_path().contains(OWN_AS);
            let cluster_loop = attributes.cluster_list().any(|cluster| cluster == OWN_ID);
            let originator_loop = attributes.originator_id() == Some(OWN_ID);
            let peer = peers.iter().find(|peer| peer.id == *id);
            let first_as = peer.is_some_and(|peer| {
                peer.negotiated.kind == PeerKind::External
                    && attributes.as_path().neighbor() != Some(peer.negotiated.remote_as)
            });
            let refused = peer.is_some() && (as_loop || cluster_loop || originator_loop || first_as);
            if refused || *id != PeerId::LOCAL && self.unreachable.contains(&path.next_hop) {
                continue;
            }
            let mut octets = path.attributes.clone();
            if path.long_lived && !attributes.communities().any(|community| community == LLGR_STALE) {
                let all: Vec<u32> = attributes.communities().chain([LLGR_STALE]).collect();
                octets = Builder::of(attributes).communities(all).build();
            }
            candidates.push(Candidate { peer: *id, path_id: *path_id, attributes: octets, next_hop: path.next_hop });
        }
        candidates
    }

    /// RFC 4271 section 9.1.2.2: step after step takes paths out, until one is left.
    pub(crate) fn best(&self, peers: &[Peer], prefix: P) -> Option<Candidate> {
        let mut left = self.candidates(peers, prefix);
        let peer = |c: &Candidate| peers.iter().find(|peer| peer.id == c.peer);
        keep_least(&mut left, |c| Attributes(&c.attributes).communities().any(|c| c == LLGR_STALE));
        keep_least(&mut left, |c| u32::MAX - Attributes(&c.attributes).local_pref().unwrap_or(100));
        keep_least(&mut left, |c| peer(c).is_some());
        keep_least(&mut left, |c| Attributes(&c.attributes).as_path().hops());
        keep_least(&mut left, |c| Attributes(&c.attributes).origin());
        let all = left.clone();
        let neighbor = |c: &Candidate| Attributes(&c.attributes).as_path().neighbor().unwrap_or(Asn(0));
        let med = |c: &Candidate| Attributes(&c.attributes).med().unwrap_or(0);
        left.retain(|c| !all.iter().any(|other| neighbor(other) == neighbor(c) && med(other) < med(c)));
        keep_least(&mut left, |c| peer(c).is_none_or(|peer| peer.negotiated.kind != PeerKind::External));
        keep_least(&mut left, |c| {
            if c.peer == PeerId::LOCAL { 0 } else { self.metrics.get(&c.next_hop).copied().unwrap_or(10) }
        });
        keep_least(&mut left, |c| {
            let own = peer(c).map_or(OWN_ID, |peer| peer.negotiated.router_id);
            Attributes(&c.attributes).originator_id().unwrap_or(own)
        });
        keep_least(&mut left, |c| Attributes(&c.attributes).cluster_list().count());
        keep_least(&mut left, |c| c.peer);
        keep_least(&mut left, |c| c.path_id);
        left.into_iter().next()
    }

    /// What a peer should have heard of one path; `None` when nothing.
    pub(crate) fn told(&self, peers: &[Peer], to: &Peer, path: &Candidate) -> Option<(Vec<u8>, NextHop)> {
        if path.peer == to.id {
            return None;
        }
        let from = peers.iter().find(|peer| peer.id == path.peer);
        let attributes = Attributes(&path.attributes);
        let has = |wanted: u32| attributes.communities().any(|community| community == wanted);
        let external = to.negotiated.kind == PeerKind::External;
        let knows_llgr = !to.negotiated.remote_open.capabilities.is_empty();
        if has(NO_ADVERTISE) || external && has(NO_EXPORT) || has(LLGR_STALE) && !knows_llgr {
            return None;
        }
        let mut builder = Builder::of(attributes);
        if external {
            for code in [code::LOCAL_PREF, code::ORIGINATOR_ID, code::CLUSTER_LIST] {
                builder.remove(code);
            }
            if from.is_some() {
                builder.remove(code::MED);
            }
            let before = attributes.get(code::AS_PATH).unwrap_or_default();
            builder.set(code::AS_PATH, prepend(AsPath::of_canonical(before), SegmentKind::Sequence, OWN_AS, 1));
            return Some((builder.build(), P::OWN));
        }
        if attributes.local_pref().is_none() {
            builder.number(code::LOCAL_PREF, 100);
        }
        if let Some(from) = from.filter(|from| from.negotiated.kind == PeerKind::Internal) {
            if !from.settings.reflector_client && !to.settings.reflector_client {
                return None;
            }
            let originator: RouterId = attributes.originator_id().unwrap_or(from.negotiated.router_id);
            builder.number(code::ORIGINATOR_ID, originator.0);
            let clusters = [OWN_ID].into_iter().chain(attributes.cluster_list());
            builder.set(code::CLUSTER_LIST, clusters.flat_map(|cluster| cluster.0.to_be_bytes()).collect());
        }
        let via = if path.peer == PeerId::LOCAL { P::OWN } else { path.next_hop };
        Some((builder.build(), via))
    }
}

fn keep_least<K: Ord>(candidates: &mut Vec<Candidate>, key: impl Fn(&Candidate) -> K) {
    if let Some(least) = candidates.iter().map(&key).min() {
        candidates.retain(|candidate| key(candidate) == least);
    }
}
