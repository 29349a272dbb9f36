//! Maps that hold anything: what a daemon of another version, a half-done change or a mistake could leave in them.

use std::net::IpAddr;

use meshd_abi::{
    AffinityKey, AffinityValue, Backend, CidrKey, Direct, Fragment, FragmentKey, Identity, MAGLEV_CHUNK, NO_TABLE,
    NextHop, RangeKey, Scope, Tunnel, V4, V6, hop_flags, settings_flags,
};
use meshd_datapath::{FamilyMaps, ticks};

use crate::{
    buckets::in_buckets,
    case::{Machine, Outcome, Verdict},
    dsr::FORMS,
    fast::put_ways,
    frame::{GATEWAY, Mac, OWN, TCP, UDP},
    hostile::know,
    identities,
    random::Random,
    scene::{Family, Kind, NET4, NET6, Net, Scene, backend, service, settings},
    tunnels::{FAR, TUNNEL_MAC, put_tunnel},
};

/// Octets of the longest packet behind the link that the kernel's routes lead to.
const UPLINK_MTU: usize = 1_400;
/// The same of an error that is made here, whatever its way takes.
const ERROR_MAX: usize = 1_280;
/// Neighbors whose way is anything.
const HOPS: std::ops::RangeInclusive<u32> = 1..=5;
/// Members that are anything, and elements of backends.
const MEMBERS: u32 = 70;
/// Chunks of Maglev that are anything.
const CHUNKS: u32 = 4;
/// Identifications of datagrams that come in fragments.
pub(crate) const DATAGRAMS: u32 = 4;

/// What a way takes.
#[derive(Debug, Default)]
pub(crate) struct World {
    ways: Vec<(Mac, usize)>,
}

impl World {
    /// True when what leaves past the stack is no longer than its way takes.
    pub(crate) fn takes(&self, outcome: &Outcome) -> bool {
        if !matches!(outcome.verdict, Some(Verdict::Redirect | Verdict::Back)) {
            return true;
        }
        let (to, from) = (&outcome.out[..6], &outcome.out[6..12]);
        // Out of a frame and to the tunnel's link, which it is shorter for.
        if to == TUNNEL_MAC {
            return true;
        }
        // A far end may be behind several.
        let known = self.ways.iter().filter(|(mac, _)| mac == to).map(|(_, mtu)| *mtu).max();
        // Back where it came from: an error about the packet itself.
        let is_error = to == GATEWAY && from == OWN;
        outcome.out.len() - 14 <= known.unwrap_or(if is_error { ERROR_MAX } else { UPLINK_MTU })
    }
}

/// Makes the maps hold anything: services whose tables and members are anywhere, members and slots that name nobody, backends in any
/// state, neighbors of any link and MTU, clients and fragments of anybody, prefixes of any length, settings of any kind.
pub(crate) fn disturb(machine: &Machine, random: &mut Random) -> World {
    let scene = machine.scene();
    in_buckets(&scene.maps.v4.connections, |bucket| bucket.fill(0));
    in_buckets(&scene.maps.v6.connections, |bucket| bucket.fill(0));
    forget_prefixes(&scene.maps.v4);
    forget_prefixes(&scene.maps.v6);
    scene.reset();
    scene.maps.v4.identities.rebuild().expect("rebuilt");
    know(&scene);
    if let Some(form) = FORMS.get(random.below(4) as usize) {
        scene.put_direct(form.flag());
    }
    let mut changed = scene.maps.settings.get(&0).expect("read").unwrap_or_else(settings);
    changed.flags ^= random.next() & settings_flags::MASQUERADE;
    if random.below(4) == 0 {
        (changed.ports, changed.port_count) = (random.next() as u16, random.next() as u16 >> random.below(16));
    }
    scene.maps.settings.put(&0, &changed).expect("settings");
    let has_tunnel = random.below(2) == 0;
    if has_tunnel {
        put_tunnel(&scene, random.next() & (settings_flags::TUNNEL_GENEVE | settings_flags::TUNNEL_FILTER));
    }
    if random.below(2) == 0 {
        put_ways(&scene, random.below(6));
    }
    disturb_family::<V4>(&scene, NET4, random);
    disturb_family::<V6>(&scene, NET6, random);
    let share = [0, 0, 2, 8][random.below(4) as usize];
    in_buckets(&scene.maps.v4.connections, |bucket| scribble(bucket, random, share));
    in_buckets(&scene.maps.v6.connections, |bucket| scribble(bucket, random, share));
    let mut lines = identities::lines(machine);
    for index in (0..lines.len()).filter(|_| share > 0) {
        let mut line = lines.get(&index, 0).expect("a line");
        scribble(&mut line, random, share);
        lines.set(index, line, 0).expect("written");
    }
    scene.maps.hold_resets(ticks().wrapping_add(random.below(3))).expect("written");
    disturb_choices(&scene, random);
    disturb_hops(&scene, has_tunnel, random)
}

/// Writes anything into some buckets: words of entries that are somebody else's or nobody's, and counts of entries that are nowhere.
fn scribble(bucket: &mut [u64], random: &mut Random, share: u32) {
    if random.below(8) < share {
        bucket.fill_with(|| {
            let [low, high] = [random.next() & random.next(), random.next()];
            u64::from(low) | u64::from(high) << 32
        });
    }
}

fn forget_prefixes<A: Family>(maps: &FamilyMaps<A>) {
    for (key, _) in maps.mesh.all().expect("prefixes") {
        maps.mesh.remove(&key).expect("removed");
    }
    for (key, _) in maps.cidrs.all().expect("prefixes") {
        maps.cidrs.remove(&key).expect("removed");
    }
    for (key, _) in maps.ranges.all().expect("ranges") {
        maps.ranges.remove(&key).expect("removed");
    }
}

/// A number that means something, or any.
fn some(random: &mut Random, below: u32) -> u32 {
    if random.below(8) == 0 { random.next() } else { random.below(below) }
}

/// Members and slots, which both families have in common.
fn disturb_choices(scene: &Scene<'_>, random: &mut Random) {
    // A thing at a time, so that packets get far enough to meet the others.
    if random.below(4) == 0 {
        let members: Vec<u32> = (0..MEMBERS).collect();
        let backends: Vec<u32> = members.iter().map(|_| some(random, 2 * backend::FIRST_OF_FOUR)).collect();
        scene.maps.members.put_all(&members, &backends).expect("members");
    }
    let chunk = random.below(CHUNKS);
    if random.below(4) == 0 {
        scene.maps.remove_chunk(chunk).expect("removed");
    } else {
        let mut slots = [0; MAGLEV_CHUNK];
        let shift = random.below(16);
        slots.fill_with(|| random.next() as u16 >> shift);
        scene.maps.put_chunk(chunk, &slots).expect("a chunk");
    }
}

fn disturb_hops(scene: &Scene<'_>, has_tunnel: bool, random: &mut Random) -> World {
    let mut world = World::default();
    for index in HOPS {
        let link = if random.below(4) == 0 { random.next() } else { [1, 20, 21][random.below(3) as usize] };
        let mtu = [1_500, 1_400, 1_280, 576, 68, random.next() as u16][random.below(6) as usize];
        // A far end of the tunnel, or one that is gone.
        let far = if has_tunnel && random.below(3) == 0 { random.below(2) + FAR } else { 0 };
        let flags = if far == 0 { 0 } else { hop_flags::TUNNEL };
        let destination = if far == 0 { [2, 0, 0, 0, 9, index as u8] } else { Tunnel::link_address(far) };
        scene.maps.next_hops.put(&index, &NextHop { link, mtu, destination, source: OWN, flags }).expect("a hop");
        world.ways.push((destination, mtu.into()));
    }
    world
}

fn disturb_family<A: Family>(scene: &Scene<'_>, net: Net, random: &mut Random) {
    let maps = A::maps(scene.maps);
    for index in backend::ALL {
        if random.below(2) == 0 {
            continue;
        }
        let kind = [Kind::Cluster, Kind::NodePort, Kind::LoadBalancer][random.below(3) as usize];
        let id = if random.below(2) == 0 { index } else { some(random, MEMBERS) };
        let mut changed = service(id, if random.below(2) == 0 { index } else { random.below(MEMBERS) });
        changed.table = if random.below(2) == 0 { NO_TABLE } else { some(random, CHUNKS) };
        changed.slots = random.next() >> random.below(32);
        changed.count = random.below(3) as u16;
        changed.affinity = random.below(2) * 1_000;
        changed.flags = random.next() as u16;
        let scope = if kind == Kind::Cluster { Scope::Internal } else { Scope::External };
        for protocol in [TCP, UDP] {
            scene.put_service(net.frontend(kind, index), protocol, scope, changed);
        }
        let value = AffinityValue { backend: some(random, 12), used: ticks().wrapping_sub(some(random, 2_000)) };
        for client in [net.client_ip(), net.workload_ip()] {
            maps.affinity.put(&AffinityKey { client: A::of(client), service: changed.id }, &value).expect("a client");
        }
    }
    disturb_prefixes(maps, net, random);
    for (from, to) in senders(net).into_iter().flat_map(|from| receivers(net).map(|to| (from, to))) {
        for protocol in [TCP, UDP] {
            let (source, destination, id) = (A::of(from), A::of(to), random.below(DATAGRAMS));
            let key = FragmentKey { source, destination, id, protocol, reserved: [0; 3] };
            let port = if random.below(4) == 0 { random.next() as u16 } else { 80 + random.below(8) as u16 };
            let ports = Fragment { source_port: random.next() as u16, destination_port: port.to_be() };
            maps.fragments.put(&key, &ports).expect("a datagram");
        }
    }
    let is_wild = random.below(3) == 0;
    for index in 1..12 {
        let old = maps.backends.get(&index).expect("read").expect("an element");
        let state = if is_wild { random.below(6) as u8 } else { old.state };
        let owner = if is_wild && random.below(4) == 0 { some(random, MEMBERS) } else { old.owner };
        let next_hop = if random.below(2) == 0 { some(random, 7) } else { old.next_hop };
        let value = Backend { state, owner, next_hop, local: random.below(2) as u8, ..old };
        maps.backends.put(&index, &value).expect("a backend");
        if random.below(4) == 0 {
            let node = A::of(if random.below(2) == 0 { net.peer_ip() } else { net.node_ip() });
            maps.direct.put(&index, &Direct { node, next_hop: some(random, 7) }).expect("a node");
        }
    }
    let (from, to) = (net.client(), net.frontend(Kind::LoadBalancer, backend::REMOTE));
    let tuple = (net.workload(), net.backend(backend::POD));
    scene.put_connection(TCP, (from, to), tuple, random.next(), random.next() as u8);
}

/// Prefixes of the mesh and of services, around addresses that mean something.
fn disturb_prefixes<A: Family>(maps: &FamilyMaps<A>, net: Net, random: &mut Random) {
    let addresses = [&senders(net)[..], &receivers(net)].concat();
    let bits = if A::IS_V4 { 32 } else { 128 };
    for _ in 0..random.below(3) * random.below(8) {
        let mut prefix = || {
            let address = addresses[random.below(addresses.len() as u32) as usize];
            (A::of(address), random.below(bits + 1))
        };
        let ((address, length), (source, others)) = (prefix(), prefix());
        let key = CidrKey { length, address };
        maps.mesh.put(&key, &random.next()).expect("a prefix");
        let known = Identity {
            identity: random.next(),
            way: random.next(),
            flags: random.next() as u16,
            cluster: random.next() as u16,
        };
        maps.cidrs.put(&key, &known).expect("a prefix");
        // Also shorter than the number of a service, which is in front of it.
        let length = if random.below(4) == 0 { others } else { RangeKey::<A>::SERVICE_BITS + others };
        let range = RangeKey { length, service: some(random, MEMBERS), address: source };
        maps.ranges.put(&range, &random.next()).expect("a range");
    }
}

/// Who asks.
fn senders(net: Net) -> [IpAddr; 4] {
    [net.client_ip(), net.workload_ip(), net.far_workload().ip(), net.node_ip()]
}

/// Who is asked.
fn receivers(net: Net) -> [IpAddr; 4] {
    let [cluster, balancer] = [Kind::Cluster, Kind::LoadBalancer].map(|kind| net.frontend(kind, backend::LOCAL).ip());
    [cluster, balancer, net.backend_ip(backend::LOCAL), net.world().ip()]
}
