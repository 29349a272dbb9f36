//! Who is connected to whom, and what must come out in the end.
//!
//! The same network for every seed: a ring with chords. Each speaker is an AS of its own and originates an IPv4 prefix,
//! every fourth an IPv6 prefix as well. All let everything through, so the shortest AS path wins, and among equally long ones that of the neighbor
//! with the lowest identifier: whatever happened before, there is one result.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{Ipv4Addr, Ipv6Addr},
};

use ::bgp::{
    Asn, Prefix as _, RouterId,
    family::{V4, V6},
};

use crate::clock::Rng;

pub(crate) const SPEAKERS: usize = 64;
const CHORDS: usize = 32;

/// The links of the network, and the AS paths that must come out: by origin, then by speaker.
#[derive(Debug)]
pub(crate) struct Topology {
    neighbors: Vec<BTreeSet<usize>>,
    expected: Vec<BTreeMap<usize, Vec<Asn>>>,
}

impl Topology {
    pub(crate) fn new() -> Self {
        let mut topology = Self { neighbors: vec![BTreeSet::new(); SPEAKERS], expected: Vec::new() };
        for speaker in 0..SPEAKERS {
            topology.link(speaker, (speaker + 1) % SPEAKERS);
        }
        let mut rng = Rng::new(0);
        for _ in 0..CHORDS {
            topology.link(rng.below(SPEAKERS), rng.below(SPEAKERS));
        }
        topology.expected = (0..SPEAKERS).map(|origin| topology.as_paths(origin)).collect();
        topology
    }

    fn link(&mut self, one: usize, other: usize) {
        if one != other {
            self.neighbors[one].insert(other);
            self.neighbors[other].insert(one);
        }
    }

    pub(crate) fn neighbors(&self, speaker: usize) -> impl Iterator<Item = usize> {
        self.neighbors[speaker].iter().copied()
    }

    /// Every link once, with the lower end first.
    pub(crate) fn links(&self) -> Vec<(usize, usize)> {
        let from = |one: usize| self.neighbors(one).filter(move |other| one < *other).map(move |other| (one, other));
        (0..SPEAKERS).flat_map(from).collect()
    }

    /// The AS path that each speaker must have to what this one originates; empty for its own.
    pub(crate) fn expected(&self, origin: usize) -> impl Iterator<Item = (usize, &[Asn])> {
        self.expected[origin].iter().map(|(speaker, path)| (*speaker, path.as_slice()))
    }

    fn as_paths(&self, origin: usize) -> BTreeMap<usize, Vec<Asn>> {
        let mut paths = BTreeMap::from([(origin, Vec::new())]);
        let mut hops = vec![usize::MAX; SPEAKERS];
        hops[origin] = 0;
        let mut queue = VecDeque::from([origin]);
        while let Some(speaker) = queue.pop_front() {
            for neighbor in self.neighbors(speaker) {
                if hops[neighbor] == usize::MAX {
                    hops[neighbor] = hops[speaker] + 1;
                    queue.push_back(neighbor);
                }
            }
        }
        let mut by_distance: Vec<usize> = (0..SPEAKERS).filter(|speaker| *speaker != origin).collect();
        by_distance.sort_by_key(|speaker| hops[*speaker]);
        for speaker in by_distance {
            let nearer = self.neighbors(speaker).filter(|neighbor| hops[*neighbor] + 1 == hops[speaker]);
            let next = nearer.min_by_key(|neighbor| router_id(*neighbor)).expect("the ring connects everybody");
            let mut path = vec![asn(next)];
            path.extend_from_slice(&paths[&next]);
            paths.insert(speaker, path);
        }
        paths
    }
}

/// Two-octet and four-octet numbers by turns.
pub(crate) fn asn(speaker: usize) -> Asn {
    let number = speaker as u32;
    if speaker.is_multiple_of(2) { Asn(64_512 + number) } else { Asn(4_200_000_000 + number) }
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
