//! The network for every seed: a ring with chords. Each speaker originates an IPv4 prefix, every fourth an IPv6 prefix as
//! well, and all let everything through.
//!
//! Most speakers are an AS of their own. Eight together are one AS with two route reflectors, which are peers of each other,
//! and six clients of both. Four hang on a single link over which they hear several paths for a prefix (RFC 7911).
//!
//! What must come out is computed here, by applying selection and the rules of advertising again and again until nothing
//! changes: whatever happened before, there is one result.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ::bgp::{
    Asn, Prefix as _, RouterId,
    family::{V4, V6},
};

use crate::clock::Rng;

pub(crate) const SPEAKERS: usize = 64;
/// Speakers on the ring; the others are listeners.
const RING: usize = 60;
const CHORDS: usize = 32;
/// Members of one AS.
const GROUP: std::ops::Range<usize> = 8..16;
const GROUP_AS: Asn = Asn(65_000);
/// Those of them that reflect.
const REFLECTORS: [usize; 2] = [8, 9];
/// Who hears several paths, from whom, and how many at most (0 for all).
pub(crate) const LISTENERS: [(usize, usize, u16); 4] = [(60, 5, 0), (61, 12, 0), (62, 8, 2), (63, 30, 0)];
/// More rounds than the longest way has hops.
const ROUNDS_MAX: usize = 200;

/// The links of the network, and the AS paths that must come out: by origin, then by speaker.
#[derive(Debug)]
pub(crate) struct Topology {
    neighbors: Vec<BTreeSet<usize>>,
    expected: Vec<BTreeMap<usize, Vec<Asn>>>,
}

/// The same for all seeds.
pub(crate) static TOPOLOGY: LazyLock<Topology> = LazyLock::new(Topology::new);

/// A path as selection sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    path: Vec<Asn>,
    /// Nobody, when it is the speaker's own.
    from: Option<usize>,
    internal: bool,
    originator: RouterId,
    clusters: Vec<RouterId>,
}

impl Topology {
    fn new() -> Self {
        let mut topology = Self { neighbors: vec![BTreeSet::new(); SPEAKERS], expected: Vec::new() };
        for speaker in 0..RING {
            topology.link(speaker, (speaker + 1) % RING);
        }
        let mut rng = Rng::new(0);
        for _ in 0..CHORDS {
            topology.link(rng.below(RING), rng.below(RING));
        }
        // Inside of the AS there are the links to the reflectors only.
        for reflector in REFLECTORS {
            GROUP.filter(|member| *member != reflector).for_each(|member| topology.join(reflector, member));
        }
        LISTENERS.iter().for_each(|(listener, speaker, _)| topology.join(*listener, *speaker));
        topology.expected = (0..SPEAKERS).map(|origin| topology.as_paths(origin)).collect();
        topology
    }

    /// A link between different ASes.
    fn link(&mut self, one: usize, other: usize) {
        if asn(one) != asn(other) {
            self.join(one, other);
        }
    }

    fn join(&mut self, one: usize, other: usize) {
        self.neighbors[one].insert(other);
        self.neighbors[other].insert(one);
    }

    pub(crate) fn neighbors(&self, speaker: usize) -> impl Iterator<Item = usize> {
        self.neighbors[speaker].iter().copied()
    }

    /// Every link once, with the lower end first.
    pub(crate) fn links(&self) -> Vec<(usize, usize)> {
        let from = |one: usize| self.neighbors(one).filter(move |other| one < *other).map(move |other| (one, other));
        (0..SPEAKERS).flat_map(from).collect()
    }

    /// The AS path that each speaker must have to what this one originates; empty for its own and inside of its AS.
    pub(crate) fn expected(&self, origin: usize) -> impl Iterator<Item = (usize, &[Asn])> {
        self.expected[origin].iter().map(|(speaker, path)| (*speaker, path.as_slice()))
    }

    fn as_paths(&self, origin: usize) -> BTreeMap<usize, Vec<Asn>> {
        let own = Known {
            path: Vec::new(),
            from: None,
            internal: false,
            originator: router_id(origin),
            clusters: Vec::new(),
        };
        let mut best: Vec<Option<Known>> = vec![None; SPEAKERS];
        for _ in 0..ROUNDS_MAX {
            let select = |speaker: usize| {
                if speaker == origin {
                    return Some(own.clone());
                }
                let heard = self.neighbors(speaker).filter_map(|from| told(from, speaker, best[from].as_ref()?));
                heard.min_by_key(|known| {
                    let address = known.from.map(address);
                    (known.path.len(), known.internal, known.originator, known.clusters.len(), address)
                })
            };
            let next: Vec<Option<Known>> = (0..SPEAKERS).map(select).collect();
            if next == best {
                let path = |(speaker, known): (usize, Option<Known>)| (speaker, known.expect("a way").path);
                return best.into_iter().enumerate().map(path).collect();
            }
            best = next;
        }
        panic!("there is no stable choice of paths to what {origin} originates");
    }
}

/// What a speaker tells a neighbor of its best path, as the neighbor takes it.
fn told(from: usize, to: usize, known: &Known) -> Option<Known> {
    if known.from == Some(to) {
        return None;
    }
    if asn(from) != asn(to) {
        let path: Vec<Asn> = [asn(from)].into_iter().chain(known.path.iter().copied()).collect();
        let told = Known { path, from: Some(from), internal: false, originator: router_id(from), clusters: Vec::new() };
        return (!told.path.contains(&asn(to))).then_some(told);
    }
    let mut told = Known { from: Some(from), internal: true, originator: router_id(from), ..known.clone() };
    if known.internal {
        let source = known.from.expect("it came from a neighbor");
        if !is_client(from, source) && !is_client(from, to) {
            return None;
        }
        told.originator = known.originator;
        told.clusters.insert(0, router_id(from));
    }
    let loops = told.originator == router_id(to) || told.clusters.contains(&router_id(to));
    (!loops).then_some(told)
}

/// Does this speaker reflect for that one?
pub(crate) fn is_client(speaker: usize, other: usize) -> bool {
    REFLECTORS.contains(&speaker) && GROUP.contains(&other) && !REFLECTORS.contains(&other)
}

/// How many paths for a prefix this speaker tells that one at most (0 for all), if it tells several.
pub(crate) fn paths_told(speaker: usize, to: usize) -> Option<u16> {
    LISTENERS.iter().find(|(listener, from, _)| (*listener, *from) == (to, speaker)).map(|(.., max)| *max)
}

pub(crate) fn is_listener(speaker: usize) -> bool {
    LISTENERS.iter().any(|(listener, ..)| *listener == speaker)
}

/// Two-octet and four-octet numbers by turns.
pub(crate) fn asn(speaker: usize) -> Asn {
    let number = speaker as u32;
    match (GROUP.contains(&speaker), speaker.is_multiple_of(2)) {
        (true, _) => GROUP_AS,
        (false, true) => Asn(64_512 + number),
        (false, false) => Asn(4_200_000_000 + number),
    }
}

/// In another order than the numbers of the speakers.
pub(crate) fn router_id(speaker: usize) -> RouterId {
    RouterId(0x0a00_0000 + (speaker as u32 * 37) % 64 + 1)
}

/// An address that stands for a speaker in next hops.
pub(crate) fn address(speaker: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, speaker as u8 + 1)
}

pub(crate) fn address6(speaker: usize) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, speaker as u16 + 1)
}

pub(crate) fn prefix(speaker: usize) -> V4 {
    V4::from_wire(24, &[10, speaker as u8, 0]).expect("a prefix")
}

pub(crate) fn prefix6(speaker: usize) -> Option<V6> {
    let prefix = V6::from_wire(48, &[0x20, 1, 0xd, 0xb8, 1, speaker as u8]);
    prefix.filter(|_| speaker.is_multiple_of(4))
}
