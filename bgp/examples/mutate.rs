//! Mutated UPDATEs through the decoder: `cargo run --release -p bgp --example mutate -- 50000000 [SEED]`.
//!
//! Takes well-formed messages apart along their own structure (fields, attributes, segments, prefixes), changes one to four
//! places, mends the lengths of most of them so that they get past the framing, and checks the promises of
//! `bgp::fuzzing::update` for each. Beside that it counts what each message makes the decoder allocate. Every run with the
//! same seed does the same. `mutate seeds FOLDER` writes the well-formed messages as inputs of the fuzz target `update`.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeMap,
    panic::catch_unwind,
};

use bgp::{
    Asn, NextHop, PathId, Prefix,
    family::{PerFamily, V4, V6},
    fuzzing,
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::{Attributes, Builder, LargeCommunity, Origin, code},
        encode::{self, Target},
        header::{HEADER_LEN, LengthLimit},
        update,
    },
};

/// What one message may allocate.
const ALLOCATED_MAX: usize = 1 << 20;

/// Counts what is asked for.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

fn count(octets: usize) {
    // At the end of a thread there is nothing left to count into.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + octets));
}

// SAFETY: everything is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Xorshift: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        // The remainder is below the limit, which is a usize.
        (self.next() % limit.max(1) as u64) as usize
    }

    fn octet(&mut self) -> u8 {
        self.next().to_be_bytes()[2]
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// A message in parts: the two octets that choose the context, and the fields of the body.
#[derive(Clone, Debug, Default)]
struct Parts {
    choice: [u8; 2],
    withdrawn: Vec<u8>,
    /// Each with its flags, code, length and value.
    attributes: Vec<Vec<u8>>,
    announced: Vec<u8>,
}

impl Parts {
    /// Takes a body apart that is known to be well-formed.
    fn of(choice: [u8; 2], body: &[u8]) -> Self {
        let counted = |octets: &[u8]| usize::from(u16::from_be_bytes([octets[0], octets[1]]));
        let (withdrawn, rest) = body[2..].split_at(counted(body));
        let (list, announced) = rest[2..].split_at(counted(rest));
        let mut attributes = Vec::new();
        let mut list = list;
        while !list.is_empty() {
            let octets = if list[0] & 0x10 == 0 { 3 + usize::from(list[2]) } else { 4 + counted(&list[2..]) };
            attributes.push(list[..octets].to_vec());
            list = &list[octets..];
        }
        Self { choice, withdrawn: withdrawn.to_vec(), attributes, announced: announced.to_vec() }
    }

    /// Puts the parts together, with lengths that are right, or now and then wrong where `random` is there.
    fn join(&self, mut random: Option<&mut Random>, out: &mut Vec<u8>) {
        let mut length = |out: &mut Vec<u8>, octets: usize| {
            let octets = u16::try_from(octets).unwrap_or(u16::MAX);
            let wrong = random.as_mut().map_or(0, |random| if random.one_in(40) { random.below(9) as u16 } else { 0 });
            out.extend_from_slice(&octets.wrapping_add(wrong).wrapping_sub(wrong / 2).to_be_bytes());
        };
        out.clear();
        out.extend_from_slice(&self.choice);
        length(out, self.withdrawn.len());
        out.extend_from_slice(&self.withdrawn);
        length(out, self.attributes.iter().map(Vec::len).sum());
        self.attributes.iter().for_each(|attribute| out.extend_from_slice(attribute));
        out.extend_from_slice(&self.announced);
    }

    fn mutate(&mut self, random: &mut Random, others: &[Self]) {
        let field = match random.below(20) {
            0 => &mut self.withdrawn,
            1 => &mut self.announced,
            2 => {
                self.choice = [random.octet(), random.octet()];
                return;
            }
            3..=8 => return self.shuffle(random, others),
            _ => {
                let index = random.below(self.attributes.len());
                match self.attributes.get_mut(index) {
                    Some(attribute) if random.one_in(2) => return reshape(attribute, random),
                    Some(attribute) => attribute,
                    None => return,
                }
            }
        };
        scratch_octets(field, random);
    }

    /// Whole attributes: away, again, elsewhere, or from another message.
    fn shuffle(&mut self, random: &mut Random, others: &[Self]) {
        let index = random.below(self.attributes.len());
        let donor = &others[random.below(others.len())].attributes;
        match random.below(5) {
            0 if !self.attributes.is_empty() => drop(self.attributes.remove(index)),
            1 if !self.attributes.is_empty() => self.attributes.push(self.attributes[index].clone()),
            2 if !self.attributes.is_empty() => {
                let other = random.below(self.attributes.len());
                self.attributes.swap(index, other);
            }
            3 => {
                let value: Vec<u8> = (0..random.below(24)).map(|_| random.octet()).collect();
                let length = u8::try_from(value.len()).unwrap_or(0);
                let flags = [0x40, 0x80, 0xc0, 0xe0, 0xd0][random.below(5)];
                self.attributes.push([&[flags, random.octet() % 40, length], value.as_slice()].concat());
            }
            _ if !donor.is_empty() => self.attributes.insert(index, donor[random.below(donor.len())].clone()),
            _ => {}
        }
    }
}

/// Changes the value of an attribute and mends its length; or its head.
fn reshape(attribute: &mut Vec<u8>, random: &mut Random) {
    if random.one_in(4) {
        let at = random.below(3);
        if let Some(octet) = attribute.get_mut(at) {
            *octet = if random.one_in(2) { *octet ^ 1 << random.below(8) } else { random.octet() };
        }
        return;
    }
    let [flags, code, ..] = attribute[..] else {
        return;
    };
    let mut value = attribute.split_off(if flags & 0x10 == 0 { 3 } else { 4 }.min(attribute.len()));
    scratch_octets(&mut value, random);
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    attribute.clear();
    match u8::try_from(length) {
        Ok(length) if flags & 0x10 == 0 => attribute.extend_from_slice(&[flags, code, length]),
        _ => attribute.extend_from_slice(&[&[flags | 0x10, code][..], &length.to_be_bytes()].concat()),
    }
    attribute.extend_from_slice(&value);
}

/// Changes octets where they lie, or how many there are.
fn scratch_octets(octets: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(octets.len());
    match random.below(6) {
        0 | 1 if !octets.is_empty() => octets[at] ^= 1 << random.below(8),
        2 if !octets.is_empty() => {
            octets[at] = [0, 1, 2, 3, 4, 8, 24, 32, 33, 127, 128, 129, 254, 255][random.below(14)]
        }
        3 if !octets.is_empty() => octets.truncate(at),
        4 => {
            let new: Vec<u8> = (0..=random.below(5)).map(|_| random.octet()).collect();
            octets.splice(at..at, new);
        }
        _ if !octets.is_empty() => {
            // Long values are where arithmetic goes wrong.
            let times = if random.one_in(200) { 1 + random.below(60_000 / octets.len().max(1)) } else { 2 };
            *octets = octets.repeat(times);
        }
        _ => octets.push(random.octet()),
    }
}

/// Well-formed messages of every kind that this speaker writes.
fn seeds() -> Vec<Parts> {
    let mut seeds = Vec::new();
    for choice in [[0, 0], [4, 0], [1, 0], [5, 22], [2, 4], [6, 4], [0, 22]] {
        let context = fuzzing::context(choice);
        let target = Target {
            asn4: context.asn4,
            length_limit: LengthLimit::Extended,
            add_path: PerFamily { ipv4: context.families.ipv4.add_path, ipv6: context.families.ipv6.add_path },
        };
        for richness in 0..4_u32 {
            let attributes = attributes(richness, choice);
            let link_local = [0xfe80, 0, 0, 0, 0, 0, 0, 1].into();
            let global = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into();
            let v4 = (1..=richness * 4 + 1)
                .map(|index| (PathId(index), V4::from_wire(24, &[10, 0, index as u8]).expect("a prefix")));
            let v6 = (1..=richness * 4 + 1)
                .map(|index| (PathId(index), V6::from_wire(32, &[0x20, 1, 0xd, index as u8]).expect("a prefix")));
            let mut push = |write: &mut dyn FnMut(&mut Vec<u8>)| {
                let mut message = Vec::new();
                write(&mut message);
                if !message.is_empty() {
                    seeds.push(Parts::of(choice, &message[HEADER_LEN..]));
                }
            };
            for next_hop in
                [NextHop::V4([192, 0, 2, 1].into()), NextHop::V6(global), NextHop::V6Pair { global, link_local }]
            {
                push(&mut |out| {
                    let _ =
                        encode::announce(out, &target, Attributes(&attributes), next_hop, &mut v4.clone().peekable());
                });
                push(&mut |out| {
                    let _ =
                        encode::announce(out, &target, Attributes(&attributes), next_hop, &mut v6.clone().peekable());
                });
            }
            push(&mut |out| {
                let _ = encode::withdraw(out, &target, &mut v4.clone().peekable());
            });
            push(&mut |out| {
                let _ = encode::withdraw(out, &target, &mut v6.clone().peekable());
            });
        }
    }
    seeds
}

fn attributes(richness: u32, choice: [u8; 2]) -> Vec<u8> {
    let numbers: Vec<Asn> = (0..=richness * richness).map(|index| Asn(64_990 + index * 7_001)).collect();
    let set = [Asn(5), Asn(500_000)];
    let mut segments = vec![(SegmentKind::Sequence, numbers.as_slice())];
    if richness > 1 {
        segments.push((SegmentKind::Set, &set));
    }
    if choice[0] & 3 == 2 {
        segments.insert(0, (SegmentKind::ConfedSequence, &set));
    }
    let mut builder = Builder::new();
    builder.origin(Origin::Igp).set(code::AS_PATH, write_segments(segments));
    if richness > 0 {
        builder.number(code::MED, 100).communities((0..richness * 9).map(|index| 65_001 << 16 | index));
    }
    if richness > 1 {
        builder.set(code::ATOMIC_AGGREGATE, vec![]).set(code::AGGREGATOR, vec![0, 1, 0x86, 0xa0, 192, 0, 2, 9]);
        builder.number(code::OTC, 65_001).extended_communities([[0, 2, 0xfd, 0xe9, 0, 0, 0, 1]]);
    }
    if richness > 2 {
        let community = |index| LargeCommunity { global: 65_001, local_1: index, local_2: 7 };
        builder.large_communities((0..40).map(community)).set(99, vec![7; 300]).set(41, vec![]);
    }
    if choice[0] & 3 == 1 {
        builder.number(code::LOCAL_PREF, 100).number(code::ORIGINATOR_ID, 7).set(code::CLUSTER_LIST, vec![1; 8]);
    }
    builder.build()
}

fn write_seeds(folder: &str) {
    let mut input = Vec::new();
    for (index, seed) in seeds().iter().enumerate() {
        seed.join(None, &mut input);
        std::fs::write(format!("{folder}/seed-{index:03}"), &input).expect("a folder to write to");
    }
}

#[derive(Debug, Default)]
struct Counts {
    clean: u64,
    discard: u64,
    withdraw: u64,
    reset: BTreeMap<u8, u64>,
    allocated_max: usize,
    octets: u64,
}

/// Decodes with an empty buffer and counts what that allocates.
fn measure(input: &[u8], counts: &mut Counts) {
    let (Some(choice), Some(body)) = (input.first_chunk::<2>(), input.get(2..)) else {
        return;
    };
    let body = &body[..body.len().min(65_516)];
    let context = fuzzing::context(*choice);
    let before = ALLOCATED.get();
    let mut scratch = Vec::new();
    let outcome = update::decode(body, &context, &mut scratch);
    match &outcome {
        Ok(update) if update.problems.is_empty() => counts.clean += 1,
        Ok(update) if update.treat_as_withdraw => counts.withdraw += 1,
        Ok(_) => counts.discard += 1,
        Err(error) => *counts.reset.entry(error.notification().subcode).or_default() += 1,
    }
    let allocated = ALLOCATED.get() - before;
    counts.allocated_max = counts.allocated_max.max(allocated);
    counts.octets += body.len() as u64;
    assert!(allocated <= ALLOCATED_MAX, "{allocated} octets for one message");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, folder] = arguments.as_slice()
        && verb == "seeds"
    {
        return write_seeds(folder);
    }
    let mut arguments = arguments.iter().map(|argument| argument.parse::<u64>().expect("a number"));
    let runs = arguments.next().unwrap_or(1_000_000);
    let seed = arguments.next().unwrap_or(1);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let seeds = seeds();
    let mut counts = Counts::default();
    let mut input = Vec::new();
    for run in 0..runs {
        let mut parts = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(4) {
            parts.mutate(&mut random, &seeds);
        }
        parts.join(Some(&mut random), &mut input);
        if random.one_in(50) {
            let at = random.below(input.len());
            input.truncate(at);
        }
        let checked = catch_unwind(std::panic::AssertUnwindSafe(|| {
            measure(&input, &mut counts);
            fuzzing::update(&input);
        }));
        if checked.is_err() {
            let hex: String = input.iter().map(|octet| format!("{octet:02x}")).collect();
            eprintln!("run {run} of seed {seed}: {hex}");
            std::process::exit(1);
        }
    }
    println!("{runs} messages of {} seeds, {} octets", seeds.len(), counts.octets);
    println!("{} clean, {} with attributes ignored, {} as withdrawal", counts.clean, counts.discard, counts.withdraw);
    println!("resets by subcode: {:?}", counts.reset);
    println!("at most {} octets allocated for one message", counts.allocated_max);
}
