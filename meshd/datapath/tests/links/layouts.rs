//! Maps and attachments of earlier layouts, as a meshd of that time left them, are taken over by one of today.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use aya::{
    EbpfLoader, include_bytes_aligned,
    maps::{Array, Map, MapData, MapInfo},
    programs::{
        SchedClassifier, TcAttachType,
        links::{FdLink, LinkOrder},
        tc::TcAttachOptions,
    },
};
use meshd_abi::{
    Address, AffinityKey, AffinityValue, Backend, Bucket, CidrKey, Connection, ConnectionKey, Direct, Fragment,
    FragmentKey, Identity, LAYOUT_VERSION, MAGLEV_CHUNK, NeighborKey, NextHop, RangeKey, ReceiverKey, Scope, Service,
    ServiceKey, SocketClient, SocketKey, SocketValue, Tunnel, Tuple, V4, V6, connection_flags, mesh_flags,
};
use meshd_datapath::{
    Attached, FamilyMaps, Maps, Program, Programs,
    shape::{self, Sizes},
};

use super::{
    LINK, Pair, TC, assert_seen, generations, handover::assert_holds, in_namespaces, on_link, passed, shell, short,
    small,
};

/// An earlier layout and its programs.
struct Layout {
    version: u32,
    object: &'static [u8],
}

const LAYOUT_2: Layout = Layout { version: 2, object: include_bytes_aligned!("../layouts/2.o") };
const LAYOUT_3: Layout = Layout { version: 3, object: include_bytes_aligned!("../layouts/3.o") };
const LAYOUT_4: Layout = Layout { version: 4, object: include_bytes_aligned!("../layouts/4.o") };
const LAYOUT_5: Layout = Layout { version: 5, object: include_bytes_aligned!("../layouts/5.o") };

/// The first layout whose connections are in buckets as today's are.
const BUCKETS_SINCE: u32 = 4;
/// The service of IPv4, and that of IPv6.
const SERVICES: [u32; 2] = [7, 8];
/// The chunk of Maglev that both use.
const CHUNK: u32 = 3;

/// Elements of a map that are not empty, as octets and in order.
type Elements = Vec<(Vec<u8>, Vec<u8>)>;

/// The octets of a value of `meshd-abi`.
fn octets<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: the types of that crate have no padding.
    unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }.to_vec()
}

fn elements<K: Copy, V: Copy>(all: &[(K, V)]) -> Elements {
    let mut all: Elements = all.iter().map(|(key, value)| (octets(key), octets(value))).collect();
    all.retain(|(_, value)| value.iter().any(|octet| *octet != 0));
    all.sort();
    all
}

/// What maps hold that is taken over, by the names of the maps.
fn contents(maps: &Maps) -> BTreeMap<String, Elements> {
    fn of_family<A: Address>(maps: &FamilyMaps<A>, digit: char, all: &mut BTreeMap<String, Elements>) {
        let mut put = |name: &str, elements: Elements| all.insert(format!("{name}{digit}"), elements);
        put("SERVICES", elements(&maps.services.all().expect("read")));
        put("BACKENDS", elements(&maps.backends.all().expect("read")));
        put("DIRECT", elements(&maps.direct.all().expect("read")));
        put("RECEIVERS", elements(&maps.receivers.all().expect("read")));
        put("CONNECTIONS", elements(&maps.connections.all().expect("read")));
        put("AFFINITY", elements(&maps.affinity.all().expect("read")));
        put("FRAGMENTS", elements(&maps.fragments.all().expect("read")));
        put("IDENTITIES", elements(&maps.identities.all().expect("read")));
        put("MESH", elements(&maps.mesh.all().expect("read")));
        put("RANGES", elements(&maps.ranges.all().expect("read")));
        put("SOCKETS", elements(&maps.sockets.all().expect("read")));
    }
    let mut all = BTreeMap::new();
    let mut put = |name: &str, elements: Elements| all.insert(name.to_owned(), elements);
    put("NEXT_HOPS", elements(&maps.next_hops.all().expect("read")));
    put("NEIGHBORS", elements(&maps.neighbors.all().expect("read")));
    put("TUNNELS", elements(&maps.tunnels.all().expect("read")));
    put("FAR_ENDS", elements(&maps.far_ends.all().expect("read")));
    put("MEMBERS", elements(&maps.members.all().expect("read")));
    put("SOCKET_AFFINITY", elements(&maps.socket_affinity.all().expect("read")));
    of_family(&maps.v4, '4', &mut all);
    of_family(&maps.v6, '6', &mut all);
    all
}

/// The key of a connection from a port, and the entry of it.
fn connection<A: Address>(
    port: u16,
    flags: u8,
    used: u32,
    address: impl Fn(u8) -> A,
) -> (ConnectionKey<A>, Connection<A>) {
    let (source_port, destination_port) = (port.to_be(), 80_u16.to_be());
    let (source, destination) = (address(1), address(2));
    let key = ConnectionKey { source, destination, source_port, destination_port, protocol: 6, reserved: [0; 3] };
    let source = if flags & connection_flags::SNAT == 0 { source } else { address(4) };
    let tuple = Tuple { source, destination: address(3), source_port, destination_port: 8_080_u16.to_be() };
    (key, Connection { tuple, to: 5, service: 7, used, began: 3, flags, closed_by: 0, reserved: [0; 2] })
}

fn v4(last: u8) -> V4 {
    V4::from_octets([10, 1, 0, last])
}

fn v6(last: u8) -> V6 {
    V6::from_octets([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
}

/// Puts something into every map that a daemon or programs fill.
fn fill(maps: &Maps) {
    fn fill_family<A: Address>(maps: &FamilyMaps<A>, id: u32, members: u32, address: impl Fn(u8) -> A) {
        let service = Service { id, table: CHUNK, slots: 16_381, members, affinity: 9, count: 2, flags: 1 };
        for (port, scope) in [(80_u16, Scope::Internal), (443, Scope::External)] {
            maps.services.put(&ServiceKey::new(address(2), port.to_be(), 6, scope), &service).expect("a service");
        }
        for (index, state) in [(5, 1), (6, 2)] {
            let port = 8_080_u16.to_be();
            let backend = Backend { address: address(index as u8), next_hop: 2, port, state, local: 1, owner: id };
            maps.backends.put(&index, &backend).expect("a backend");
        }
        maps.direct.put(&5, &Direct { node: address(9), next_hop: 2 }).expect("a node");
        let receiver = ReceiverKey { backend: address(5), service: id, port: 80, protocol: 6, reserved: 0 };
        maps.receivers.put(&receiver, &5).expect("a receiver");
        let flags = connection_flags::REPLY | connection_flags::ANSWERED;
        let nat = connection_flags::SNAT | connection_flags::MASQUERADE;
        for (port, flags) in [(1_000, 0), (1_001, flags), (1_002, nat), (1_003, nat | flags)] {
            let (key, connection) = connection(port, flags, 50, &address);
            maps.connections.put(&key, &connection).expect("a connection");
        }
        let value = AffinityValue { backend: 5, used: 50 };
        maps.affinity.put(&AffinityKey { client: address(1), service: id }, &value).expect("a client");
        let fragment =
            FragmentKey { source: address(1), destination: address(2), id: 4, protocol: 17, reserved: [0; 3] };
        maps.fragments.put(&fragment, &Fragment { source_port: 1, destination_port: 2 }).expect("a fragment");
        for last in 20..60 {
            let identity = Identity { identity: 300 + u32::from(last), way: 0, flags: 1, cluster: 2 };
            maps.identities.put(&address(last), &identity).expect("an identity");
        }
        maps.mesh.put(&CidrKey { length: 8, address: address(0) }, &mesh_flags::KEEP_SOURCE).expect("a prefix");
        let range = RangeKey { length: RangeKey::<A>::SERVICE_BITS + 8, service: id, address: address(0) };
        maps.ranges.put(&range, &1).expect("a range");
        let socket =
            SocketKey { cookie_low: 1, cookie_high: 0, address: address(2), port: 80, protocol: 6, reserved: 0 };
        let backend = SocketValue { address: address(5), service: id, backend: 5, port: 8_080, reserved: 0 };
        maps.sockets.put(&socket, &backend).expect("a socket");
    }
    let [first, second] = SERVICES;
    fill_family(&maps.v4, first, 40, v4);
    fill_family(&maps.v6, second, 42, v6);
    maps.members.put_all(&[40, 41, 42, 43], &[5, 6, 5, 6]).expect("members");
    let hop = NextHop { link: 77, mtu: 1_500, destination: [2; 6], source: [4; 6], flags: 0 };
    maps.next_hops.put(&2, &hop).expect("a next hop");
    maps.neighbors.put(&NeighborKey { link: 77, address: [2; 6], reserved: 0 }, &2).expect("a neighbor");
    let tunnel = Tunnel { address: v6(9), next_hop: 2, mtu: 1_450, reserved: 0 };
    maps.tunnels.put(&9, &tunnel).expect("a far end");
    maps.far_ends.put(&v6(9), &9).expect("a far end");
    let client = SocketClient { namespace_low: 1, namespace_high: 0, service: first };
    maps.socket_affinity.put(&client, &AffinityValue { backend: 5, used: 50 }).expect("a client");
    maps.put_chunk(CHUNK, &[1; MAGLEV_CHUNK]).expect("a chunk");
}

/// Loads and attaches the programs of a layout as a meshd of that time did. Returns the folder of its pins.
fn leave(pair: &Pair, layout: &Layout) -> PathBuf {
    let folder = pair.pins().join(format!("v{}", layout.version));
    fs::create_dir_all(&folder).expect("a folder");
    let mut loader = EbpfLoader::new();
    let specs = shape::maps(&small());
    let entries = |name: &str| specs.iter().find(|spec| spec.name == name).expect("a map").shape.max_entries;
    let changes_order = !cfg!(any(target_arch = "x86_64", target_arch = "s390x"));
    let globals = [
        ("CHANGES_ORDER", u32::from(changes_order)),
        ("CONNECTIONS4_BUCKETS", entries("CONNECTIONS4")),
        ("CONNECTIONS6_BUCKETS", entries("CONNECTIONS6")),
        ("RECENT4_MASK", small().remembered()[0].saturating_sub(1)),
        ("RECENT6_MASK", small().remembered()[1].saturating_sub(1)),
    ];
    for (name, value) in &globals {
        loader.override_global(name, value, false);
    }
    for (name, elements) in ["RECENT4", "RECENT6"].into_iter().zip(small().remembered()) {
        loader.map_max_entries(name, elements.max(1));
    }
    for spec in &specs {
        loader.map_max_entries(spec.name, spec.shape.max_entries).map_pin_path(spec.name, folder.join(spec.name));
    }
    let mut old = loader.load(layout.object).expect("load");
    for program in TC {
        let direction = match program {
            Program::UplinkIngress | Program::WorkloadIngress => TcAttachType::Ingress,
            _ => TcAttachType::Egress,
        };
        let classifier: &mut SchedClassifier =
            old.program_mut(program.name()).expect("a program").try_into().expect("of TC");
        classifier.load().expect("load");
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = classifier.attach_with_options("own", direction, options).expect("attach");
        let attachment = FdLink::try_from(classifier.take_link(id).expect("ours")).expect("a link of its own");
        attachment.pin(folder.join(format!("{}_link_{LINK}", program.name()))).expect("pin");
    }
    folder
}

/// Writes elements into pinned maps; values of earlier layouts are the first octets of today's.
fn put(folder: &Path, all: &BTreeMap<String, Elements>) {
    let hex = |octets: &[u8]| octets.iter().fold(String::new(), |text, octet| text + &format!(" {octet:02x}"));
    let mut batch = String::new();
    for (name, elements) in all {
        let pin = folder.join(name);
        if !pin.exists() {
            continue;
        }
        let length = MapInfo::from_pin(&pin).expect("a map").value_size() as usize;
        for (key, value) in elements {
            let (key, value) = (hex(key), hex(&value[..length]));
            writeln!(batch, "map update pinned {} key hex{key} value hex{value}", pin.display()).expect("text");
        }
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), batch).expect("written");
    shell(&format!("bpftool batch file {}", file.path().display()));
}

fn array<V: aya::Pod>(folder: &Path, name: &str) -> Array<MapData, V> {
    let map =
        Map::from_map_data(MapData::from_pin(folder.join(name)).expect("a map")).expect("of a kind that is known");
    map.try_into().expect("an array")
}

/// Copies arrays as they are.
fn copy<V: aya::Pod>(from: &Path, to: &Path, name: &str) {
    let (from, mut to) = (array::<V>(from, name), array::<V>(to, name));
    assert_eq!(from.len(), to.len(), "{name}");
    for index in 0..from.len() {
        to.set(index, from.get(&index, 0).expect("read"), 0).expect("written");
    }
}

/// Fills the maps of a layout with what maps of today hold.
fn hand_down(pair: &Pair, layout: &Layout, today: &Path, folder: &Path, all: &BTreeMap<String, Elements>) {
    let mut all = all.clone();
    if layout.version >= BUCKETS_SINCE {
        copy::<u64>(today, folder, "SEED");
        copy::<[u8; size_of::<Bucket<V4>>()]>(today, folder, "CONNECTIONS4");
        copy::<[u8; size_of::<Bucket<V6>>()]>(today, folder, "CONNECTIONS6");
        all.retain(|name, _| !name.starts_with("CONNECTIONS"));
    }
    put(folder, &all);
    // The kernel takes one map into another by its descriptor, which `bpftool` does.
    let chunk = pair.folder.path().join("chunk");
    shell(&format!("bpftool map create {} type array key 4 value 32768 entries 1 name meshd_chunk", chunk.display()));
    array::<[u16; MAGLEV_CHUNK]>(pair.folder.path(), "chunk").set(0, [1; MAGLEV_CHUNK], 0).expect("slots");
    let [a, b, c, d] = CHUNK.to_ne_bytes();
    let maglev = folder.join("MAGLEV");
    shell(&format!(
        "bpftool map update pinned {} key {a} {b} {c} {d} value pinned {}",
        maglev.display(),
        chunk.display()
    ));
    fs::remove_file(chunk).expect("unpin the chunk");
}

/// Takes a layout over with maps of these sizes.
fn assert_taken_over(layout: &'static Layout, sizes: Sizes) {
    in_namespaces(move |pair| {
        // What there is to be taken over, in maps of today.
        let donor = Programs::load(&pair.folder.path().join("donor"), &small()).expect("load");
        fill(&donor.maps);
        let today = pair.folder.path().join(format!("donor/v{LAYOUT_VERSION}"));
        let folder = leave(pair, layout);
        let mut expected = contents(&donor.maps);
        hand_down(pair, layout, &today, &folder, &expected);
        assert_eq!(on_link("own"), short(&TC));
        for (name, elements) in &mut expected {
            // What there was no map for begins empty.
            if !folder.join(name).exists() {
                elements.clear();
            }
        }
        let full = expected.values().filter(|elements| !elements.is_empty()).count();
        assert!(full > 16, "{full} maps are filled");
        donor.remove().expect("remove");

        let mut programs = Programs::load(&pair.pins(), &sizes).expect("load");
        assert_eq!(contents(&programs.maps), expected);
        let mut chunks = Vec::new();
        programs
            .maps
            .walk_chunks(|index, slots| chunks.push((index, slots.iter().all(|slot| *slot == 1))))
            .expect("read");
        assert_eq!(chunks, [(CHUNK, true)]);
        for (name, table) in [("CONNECTIONS4", 4), ("CONNECTIONS6", 6)] {
            let id = |folder: &Path| MapInfo::from_pin(folder.join(name)).expect("a map").id();
            let new = pair.pins().join(format!("v{LAYOUT_VERSION}-1"));
            assert_ne!(id(&folder), id(&new), "the table of IPv{table}");
        }

        // A packet of one that is known, and another one that begins, by the old programs.
        let meanwhile = [connection(1_000, 0, 60, v4), connection(2_000, 0, 61, v4)];
        if layout.version < BUCKETS_SINCE {
            put(&folder, &BTreeMap::from([("CONNECTIONS4".to_owned(), elements(&meanwhile))]));
        }
        let generation = format!("v{LAYOUT_VERSION}-1");
        let mut attach = |program| assert_eq!(programs.attach(program, LINK).expect("adopt"), Attached::Adopted);
        assert_holds(pair, &generation, || TC.into_iter().for_each(&mut attach));
        assert_eq!(on_link("own"), short(&TC), "each is there once");
        programs.settle().expect("settle");
        assert_eq!(generations(pair), [generation]);
        if layout.version < BUCKETS_SINCE {
            for (key, connection) in meanwhile {
                assert_eq!(programs.maps.v4.connections.get(&key).expect("read"), Some(connection));
            }
        }
        let before = passed(&programs);
        pair.ping(4);
        assert_seen(&programs, before, 16);
        programs.remove().expect("remove");
        assert!(!pair.pins().exists(), "pins remain");
    });
}

#[test]
fn layout_2_is_taken_over() {
    assert_taken_over(&LAYOUT_2, small());
}

#[test]
fn layout_3_is_taken_over() {
    assert_taken_over(&LAYOUT_3, small());
}

#[test]
fn layout_4_is_taken_over() {
    assert_taken_over(&LAYOUT_4, small());
}

#[test]
fn layout_5_is_taken_over() {
    assert_taken_over(&LAYOUT_5, small());
}

#[test]
fn layout_5_is_taken_over_by_maps_of_other_sizes() {
    assert_taken_over(&LAYOUT_5, Sizes { connections: 4_096, services: 512, ..small() });
}
