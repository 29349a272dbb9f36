//! A node as a daemon of layout 2 left it: its programs on the links, its maps pinned.

use std::{fs, path::Path, process::Command};

use aya::{
    EbpfLoader, include_bytes_aligned,
    maps::{Array, HashMap, Map, MapData},
    programs::{
        SchedClassifier, TcAttachType,
        links::{FdLink, LinkOrder},
        tc::TcAttachOptions,
    },
};
use meshd_abi::{BPFFS_FOLDER, Connection, ConnectionKey, LAYOUT_VERSION, MAGLEV_CHUNK, V4};
use meshd_datapath::{Maps, Program, shape, shape::Sizes};

/// Puts the programs of layout 2 in the place of today's, with maps that hold the same, and removes today's. To be called inside of a
/// node where no daemon runs.
pub(super) fn leave() {
    let folder = Path::new(BPFFS_FOLDER);
    let today = folder.join(format!("v{LAYOUT_VERSION}"));
    let old = folder.join("v2");
    fs::create_dir(&old).expect("a folder");
    let mut loader = EbpfLoader::new();
    for spec in shape::maps(&Sizes::default()) {
        loader.map_max_entries(spec.name, spec.shape.max_entries).map_pin_path(spec.name, old.join(spec.name));
    }
    let object = include_bytes_aligned!("../../../meshd/datapath/tests/layouts/2.o");
    let mut programs = loader.load(object).expect("loaded");
    fill(&today, &old);

    // Both are on a link for a moment, and whoever comes first does the work.
    let attached = pinned_links(&today);
    for (name, link) in &attached {
        let program = Program::ALL.into_iter().find(|program| program.name() == name).expect("a program");
        let direction = match program {
            Program::UplinkIngress | Program::WorkloadIngress => TcAttachType::Ingress,
            _ => TcAttachType::Egress,
        };
        let classifier: &mut SchedClassifier =
            programs.program_mut(name).expect("a program").try_into().expect("of TC");
        if classifier.fd().is_err() {
            classifier.load().expect("verified");
        }
        let link_name = nix::net::if_::if_indextoname(*link).expect("a link").into_string().expect("text");
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = classifier.attach_with_options(&link_name, direction, options).expect("attached");
        let attachment = FdLink::try_from(classifier.take_link(id).expect("ours")).expect("a link of its own");
        attachment.pin(old.join(format!("{name}_link_{link}"))).expect("pinned");
    }
    assert_eq!(attached.len(), 6, "{attached:?}");
    fs::remove_dir(today.join("complete")).expect("a mark");
    for pin in fs::read_dir(&today).expect("listed") {
        fs::remove_file(pin.expect("listed").path()).expect("removed");
    }
    fs::remove_dir(&today).expect("removed");
}

/// Programs and links, from the names of pins.
fn pinned_links(folder: &Path) -> Vec<(String, u32)> {
    let pins = fs::read_dir(folder).expect("listed").map(|pin| pin.expect("listed").file_name());
    let names = pins.map(|name| name.into_string().expect("text"));
    names
        .filter_map(|name| {
            let (program, link) = name.split_once("_link_")?;
            Some((program.to_owned(), link.parse().ok()?))
        })
        .collect()
}

/// Copies what both layouts have. Sizes of keys and values are those of the maps; backends of layout 2 do not name their service.
fn fill(today: &Path, old: &Path) {
    array::<72, 56>(today, old, "SETTINGS");
    array::<20, 20>(today, old, "NEXT_HOPS");
    array::<4, 4>(today, old, "MEMBERS");
    array::<16, 12>(today, old, "BACKENDS4");
    hash::<12, 4>(today, old, "NEIGHBORS");
    hash::<8, 24>(today, old, "SERVICES4");
    hash::<4, 12>(today, old, "IDENTITIES4");
    let maps = Maps::existing(Path::new(BPFFS_FOLDER)).expect("maps of today");
    // Then they were a hash table of the kernel.
    let mut connections: HashMap<_, [u8; 16], [u8; 32]> = open(old, "CONNECTIONS4").try_into().expect("a hash");
    for (key, connection) in maps.v4.connections.all().expect("read") {
        // SAFETY: plain types without padding, in a crate that says so.
        let key = unsafe { std::mem::transmute::<ConnectionKey<V4>, [u8; 16]>(key) };
        // SAFETY: as above.
        let connection = unsafe { std::mem::transmute::<Connection<V4>, [u8; 32]>(connection) };
        connections.insert(key, connection, 0).expect("written");
    }
    maps.walk_chunks(|index, slots| chunk(old, index, slots)).expect("chunks");
}

fn open(folder: &Path, name: &str) -> Map {
    Map::from_map_data(MapData::from_pin(folder.join(name)).expect("a map")).expect("of a kind that is known")
}

fn array<const FROM: usize, const TO: usize>(today: &Path, old: &Path, name: &str) {
    let from: Array<_, [u8; FROM]> = open(today, name).try_into().expect("an array");
    let mut to: Array<_, [u8; TO]> = open(old, name).try_into().expect("an array");
    for index in 0..from.len().min(to.len()) {
        let value = from.get(&index, 0).expect("read");
        let value: [u8; TO] = value[..TO].try_into().expect("the first octets");
        if value != [0; TO] {
            to.set(index, value, 0).expect("written");
        }
    }
}

fn hash<const KEY: usize, const VALUE: usize>(today: &Path, old: &Path, name: &str) {
    let from: HashMap<_, [u8; KEY], [u8; VALUE]> = open(today, name).try_into().expect("a hash");
    let mut to: HashMap<_, [u8; KEY], [u8; VALUE]> = open(old, name).try_into().expect("a hash");
    for element in from.iter() {
        let (key, value) = element.expect("read");
        to.insert(key, value, 0).expect("written");
    }
}

/// The kernel takes one map into another by its descriptor, which `bpftool` does.
fn chunk(old: &Path, index: u32, slots: &[u16; MAGLEV_CHUNK]) {
    let pin = old.join("chunk");
    let octets = size_of_val(slots);
    let run = |words: &str| {
        let output = Command::new("bpftool").args(words.split(' ')).output().expect("bpftool runs");
        assert!(output.status.success(), "bpftool {words}: {output:?}");
    };
    run(&format!("map create {} type array key 4 value {octets} entries 1 name meshd_chunk", pin.display()));
    let mut inner: Array<_, [u16; MAGLEV_CHUNK]> = open(old, "chunk").try_into().expect("an array");
    inner.set(0, *slots, 0).expect("slots");
    let [a, b, c, d] = index.to_ne_bytes();
    run(&format!("map update pinned {}/MAGLEV key {a} {b} {c} {d} value pinned {}", old.display(), pin.display()));
    fs::remove_file(pin).expect("removed");
}
