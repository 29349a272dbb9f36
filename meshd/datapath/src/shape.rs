//! The maps there are, and what shape they must have.

use std::fmt;

use aya::maps::MapType;
use meshd_abi::{
    AffinityKey, AffinityValue, Backend, Bucket, CidrKey, Counter, Direct, FRONTEND_WORDS, Fragment, FragmentKey,
    IDENTITY_WAYS, Identity, IdentityLine, LINKS, Link, NeighborKey, NextHop, Policy, PolicyKey, RangeKey, Reason,
    ReceiverKey, Service, ServiceKey, Settings, SocketClient, SocketKey, SocketValue, Tunnel, V4, V6, WAYS,
};
use meshd_steps::bucket::GROUP;

use crate::identities;

/// Kind and sizes of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    /// Octets of a key.
    pub key_size: u32,
    /// Octets of a value.
    pub value_size: u32,
    /// Most elements.
    pub max_entries: u32,
}

impl MapShape {
    /// True when it differs in the number of elements at most.
    #[must_use]
    pub const fn has_same_elements(&self, other: &Self) -> bool {
        self.kind == other.kind && self.key_size == other.key_size && self.value_size == other.value_size
    }
}

impl fmt::Display for MapShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "type {}, {}-byte keys, {}-byte values and {} entries",
            self.kind, self.key_size, self.value_size, self.max_entries
        )
    }
}

/// How many elements the maps have whose size is a matter of taste.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Frontends, per family and scope: one of each address, port and protocol.
    pub services: u32,
    /// Backends, per family.
    pub backends: u32,
    /// Members of all services together.
    pub members: u32,
    /// Chunks of Maglev tables: a service takes one, or four with the large table.
    pub maglev: u32,
    /// Entries of IPv4 connections that find room, two for each; IPv6 gets a quarter. Up to twice as many are taken as long as they find a
    /// place.
    pub connections: u32,
    /// Connections whose packets were seen a moment ago, found faster than in their table: a power of two; IPv6 gets a quarter. 131,072
    /// of IPv4 are found faster still, in two megabytes. 0: all are looked for in the table.
    pub recent: u32,
    /// Clients with session affinity, per family.
    pub affinity: u32,
    /// Datagrams in fragments at a time, per family.
    pub fragments: u32,
    /// Addresses of workloads and nodes, per family.
    pub identities: u32,
    /// Prefixes of the mesh, and prefixes with an identity, per family.
    pub prefixes: u32,
    /// Entries of policies.
    pub policy: u32,
    /// Source ranges of all services together, per family.
    pub ranges: u32,
    /// Sockets that asked for a service, and backend each got, per family.
    pub sockets: u32,
    /// Neighbors, with the far ends of tunnels.
    pub next_hops: u32,
    /// Octets of the ring of flow events, a power of two of pages.
    pub events: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            services: 65_536,
            backends: 65_536,
            members: 262_144,
            maglev: 4_096,
            connections: 524_288,
            recent: 262_144,
            affinity: 65_536,
            fragments: 8_192,
            identities: 524_288,
            prefixes: 65_536,
            policy: 65_536,
            ranges: 65_536,
            sockets: 65_536,
            next_hops: 4_096,
            events: 1 << 20,
        }
    }
}

/// True where a processor keeps loads in order, and stores.
pub(crate) const KEEPS_ORDER: bool = cfg!(any(target_arch = "x86_64", target_arch = "s390x"));

impl Sizes {
    /// Elements of both families in which the programs remember connections. None where a processor may change the order of loads or
    /// of stores, because readers there would have to ask for it with every packet.
    #[must_use]
    pub fn remembered(&self) -> [u32; 2] {
        /// As many as a connection may be in.
        const WAYS: u32 = 4;
        [self.recent, self.recent / 4].map(|wanted| {
            // The greatest power of two that is not more.
            let power = wanted.checked_ilog2().map_or(0, |bits| 1 << bits);
            if KEEPS_ORDER && power >= WAYS { power } else { 0 }
        })
    }
}

/// A map of the object.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Its name in the object and below the folder of pins.
    pub name: &'static str,
    /// Its shape.
    pub shape: MapShape,
}

const fn spec<K, V>(name: &'static str, kind: MapType, max_entries: u32) -> MapSpec {
    let shape =
        MapShape { kind: kind as u32, key_size: size_of::<K>() as u32, value_size: size_of::<V>() as u32, max_entries };
    MapSpec { name, shape }
}

/// Buckets of a table in which so many entries of connections find room: there is twice as much, because not every entry may be anywhere.
const fn buckets(connections: u32) -> u32 {
    connections.saturating_mul(2).div_ceil(WAYS as u32).next_multiple_of(GROUP)
}

/// Lines in front of a table of so many identities: with all of them one in five finds no room in its line, with half of them one in 27.
pub(crate) const fn identity_lines(identities: u32) -> u32 {
    identities.div_ceil(IDENTITY_WAYS as u32)
}

/// Every map of the object that is pinned.
#[must_use]
pub fn maps(sizes: &Sizes) -> Vec<MapSpec> {
    use MapType::{Array, ArrayOfMaps, Hash, LpmTrie, LruHash, PerCpuArray, RingBuf};
    vec![
        spec::<u32, Settings>("SETTINGS", Array, 1),
        spec::<u32, u32>("EPOCH", Array, 1),
        spec::<u32, u32>("HANDOVER", Array, 1),
        spec::<u32, u64>("FRONTENDS", Array, FRONTEND_WORDS),
        spec::<u32, Counter>("COUNTERS", PerCpuArray, Reason::COUNT),
        spec::<NeighborKey, u32>("NEIGHBORS", Hash, sizes.next_hops),
        spec::<u32, u32>("MEMBERS", Array, sizes.members),
        spec::<u32, u32>("MAGLEV", ArrayOfMaps, sizes.maglev),
        spec::<u32, NextHop>("NEXT_HOPS", Array, sizes.next_hops),
        spec::<u32, Link>("LINKS", Array, LINKS),
        spec::<u32, Tunnel>("TUNNELS", Array, sizes.next_hops),
        spec::<V6, u32>("FAR_ENDS", Hash, sizes.next_hops),
        spec::<(), ()>("EVENTS", RingBuf, sizes.events),
        spec::<ServiceKey<V4>, Service>("SERVICES4", Hash, sizes.services),
        spec::<ServiceKey<V6>, Service>("SERVICES6", Hash, sizes.services),
        spec::<u32, Backend<V4>>("BACKENDS4", Array, sizes.backends),
        spec::<u32, Backend<V6>>("BACKENDS6", Array, sizes.backends),
        spec::<u32, Direct<V4>>("DIRECT4", Array, sizes.backends),
        spec::<u32, Direct<V6>>("DIRECT6", Array, sizes.backends),
        spec::<ReceiverKey<V4>, u32>("RECEIVERS4", Hash, sizes.backends),
        spec::<ReceiverKey<V6>, u32>("RECEIVERS6", Hash, sizes.backends),
        spec::<u32, u64>("SEED", Array, 1),
        spec::<u32, Bucket<V4>>("CONNECTIONS4", Array, buckets(sizes.connections)),
        spec::<u32, Bucket<V6>>("CONNECTIONS6", Array, buckets(sizes.connections.div_ceil(4))),
        spec::<AffinityKey<V4>, AffinityValue>("AFFINITY4", LruHash, sizes.affinity),
        spec::<AffinityKey<V6>, AffinityValue>("AFFINITY6", LruHash, sizes.affinity),
        spec::<FragmentKey<V4>, Fragment>("FRAGMENTS4", LruHash, sizes.fragments),
        spec::<FragmentKey<V6>, Fragment>("FRAGMENTS6", LruHash, sizes.fragments),
        spec::<V4, Identity>("IDENTITIES4", Hash, sizes.identities),
        spec::<u32, IdentityLine>(identities::LINES, Array, identity_lines(sizes.identities)),
        spec::<V6, Identity>("IDENTITIES6", Hash, sizes.identities),
        spec::<CidrKey<V4>, Identity>("CIDRS4", LpmTrie, sizes.prefixes),
        spec::<CidrKey<V6>, Identity>("CIDRS6", LpmTrie, sizes.prefixes),
        spec::<CidrKey<V4>, u32>("MESH4", LpmTrie, sizes.prefixes),
        spec::<CidrKey<V6>, u32>("MESH6", LpmTrie, sizes.prefixes),
        spec::<PolicyKey, Policy>("POLICY", Hash, sizes.policy),
        spec::<RangeKey<V4>, u32>("RANGES4", LpmTrie, sizes.ranges),
        spec::<RangeKey<V6>, u32>("RANGES6", LpmTrie, sizes.ranges),
        spec::<SocketKey<V4>, SocketValue<V4>>("SOCKETS4", LruHash, sizes.sockets),
        spec::<SocketKey<V6>, SocketValue<V6>>("SOCKETS6", LruHash, sizes.sockets),
        spec::<SocketClient, AffinityValue>("SOCKET_AFFINITY", LruHash, sizes.affinity),
    ]
}
