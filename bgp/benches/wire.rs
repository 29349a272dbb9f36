//! What reading and writing a full table costs: `cargo bench -p bgp --bench wire`.
//!
//! The stream looks like the Internet's: a million IPv4 prefixes in 60,000 UPDATEs, most of them with a handful of prefixes
//! and some with hundreds, paths of three to eight hops, up to eighteen communities, some large communities, MED and
//! AGGREGATOR. Each row is the best of several rounds over the whole stream, in one thread.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{hint::black_box, net::Ipv4Addr, time::Instant};

use bgp::{
    Asn, NextHop, PathId, Prefix,
    family::{PerFamily, V4},
    session::PeerKind,
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::{Attributes, Builder, LargeCommunity, Origin, code},
        encode::{self, Target},
        header::{LengthLimit, next_frame},
        nlri::Nlri,
        update::{self, Context, FamilyContext},
        value,
    },
};
use zettabgp::{
    BgpSessionParams, BgpTransportMode,
    afi::{BgpAddrV4, decode_bgpitems_from},
    message::attributes::BgpAttrItem,
};

const PREFIXES: u32 = 1_000_000;
const MESSAGES: u32 = 60_000;
const ROUNDS: u32 = 7;

/// The sequence of Lehmer's generator: enough to spread sizes.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        // The upper half, scaled down; it fits.
        (((self.0 >> 32) * u64::from(limit)) >> 32) as u32
    }
}

/// Attributes and prefixes of one message.
type Set = (Vec<u8>, Vec<(PathId, V4)>);

fn sets() -> Vec<Set> {
    let mut random = Random(7);
    let mut next = 0_u32;
    (0..MESSAGES)
        .map(|index| {
            let left = PREFIXES - next;
            let messages = MESSAGES - index;
            let size = match random.below(100) {
                0..=49 => 1 + random.below(5),
                50..=89 => 5 + random.below(20),
                90..=98 => 24 + random.below(120),
                _ => 200 + random.below(700),
            };
            let size = if messages == 1 { left } else { size.min(left - messages + 1) };
            let prefixes = (next..next + size).map(|number| {
                let [_, b, c, d] = number.to_be_bytes();
                let length = if number % 3 == 0 { 22 } else { 24 };
                (PathId(0), V4::from_wire(length, &[b.wrapping_add(1), c, d]).expect("a prefix"))
            });
            next += size;
            (attributes(&mut random), prefixes.collect())
        })
        .collect()
}

fn attributes(random: &mut Random) -> Vec<u8> {
    let path: Vec<Asn> = (0..3 + random.below(6)).map(|_| Asn(1 + random.below(400_000))).collect();
    let mut builder = Builder::new();
    builder.origin(Origin::Igp).set(code::AS_PATH, write_segments([(SegmentKind::Sequence, path.as_slice())]));
    let count = random.below(19);
    builder.communities((0..count).map(|_| random.below(u32::MAX)));
    if random.below(4) == 0 {
        builder.number(code::MED, random.below(1_000));
    }
    if random.below(8) == 0 {
        builder.large_communities((0..3).map(|local_1| LargeCommunity { global: 65_001, local_1, local_2: 7 }));
    }
    if random.below(20) == 0 {
        builder.set(code::AGGREGATOR, vec![0, 1, 0x86, 0xa0, 192, 0, 2, 9]);
    }
    builder.build()
}

fn encode_all(out: &mut Vec<u8>, sets: &[Set]) {
    let target = Target { asn4: true, length_limit: LengthLimit::Standard, add_path: PerFamily::default() };
    let next_hop = NextHop::V4(Ipv4Addr::new(192, 0, 2, 1));
    for (attributes, prefixes) in sets {
        let mut rest = prefixes.iter().copied().peekable();
        while rest.peek().is_some() {
            encode::announce(out, &target, Attributes(attributes), next_hop, &mut rest).expect("it fits");
        }
    }
}

fn for_each_body(stream: &[u8], mut see: impl FnMut(&[u8])) {
    let mut rest = stream;
    while let Some(frame) = next_frame(rest, LengthLimit::Standard).expect("our own header") {
        see(frame.body);
        rest = frame.rest;
    }
}

fn fields(body: &[u8]) -> (&[u8], &[u8]) {
    let length = |octets: &[u8]| usize::from(u16::from_be_bytes([octets[0], octets[1]]));
    let rest = &body[2 + length(body)..];
    rest[2..].split_at(length(rest))
}

fn measure(name: &str, mut round: impl FnMut() -> usize) {
    let mut best = f64::INFINITY;
    let mut count = 0;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        count = black_box(round());
        best = best.min(started.elapsed().as_secs_f64());
    }
    let millions = count as f64 / best / 1e6;
    println!("{name:<52} {:>8.1} ms {millions:>8.1} M prefixes/s", best * 1e3);
}

fn main() {
    let sets = sets();
    let mut stream = Vec::new();
    encode_all(&mut stream, &sets);
    let family = FamilyContext { enabled: true, ..FamilyContext::default() };
    let context = Context {
        kind: PeerKind::External,
        asn4: true,
        refuse_as_sets: false,
        families: PerFamily { ipv4: family, ipv6: family },
    };
    println!("{PREFIXES} prefixes, {} attribute sets, {} octets", sets.len(), stream.len());

    measure("floor: framing and a walk over the prefixes", || {
        let mut count = 0;
        for_each_body(&stream, |body| {
            let nlri = Nlri::decode(bgp::Family::Ipv4Unicast, false, fields(body).1).expect("prefixes");
            count += nlri.len();
        });
        count
    });
    let mut scratch = Vec::new();
    measure("decode", || {
        let mut count = 0;
        for_each_body(&stream, |body| {
            let update = update::decode(body, &context, &mut scratch).expect("our own message");
            count += update.announced.map_or(0, |announced| announced.nlri.len());
        });
        count
    });
    measure("decode, and look at every prefix", || {
        let mut count = 0;
        for_each_body(&stream, |body| {
            let update = update::decode(body, &context, &mut scratch).expect("our own message");
            for announced in update.announcements() {
                announced.nlri.iter::<V4>().for_each(|prefix| {
                    black_box(prefix);
                    count += 1;
                });
            }
        });
        count
    });
    measure("zettabgp 0.6 behind checks: attributes and prefixes", || zettabgp_all(&stream, &context));
    let mut out = Vec::with_capacity(stream.len());
    measure("encode", || {
        out.clear();
        encode_all(&mut out, &sets);
        assert_eq!(out.len(), stream.len());
        PREFIXES as usize
    });
    measure("describe every attribute set for people", || {
        sets.iter()
            .map(|(attributes, prefixes)| value::describe(Attributes(attributes)).len().min(prefixes.len()))
            .sum()
    });
}

/// Decodes with our own checks first, then every value and all prefixes once more with zettabgp.
fn zettabgp_all(stream: &[u8], context: &Context) -> usize {
    let mut session = BgpSessionParams::new(1, 0, BgpTransportMode::IPv4, Ipv4Addr::UNSPECIFIED, Vec::new());
    session.fuzzy_pathid = false;
    let mut scratch = Vec::new();
    let mut count = 0;
    for_each_body(stream, |body| {
        let update = update::decode(body, context, &mut scratch).expect("our own message");
        for attribute in Attributes(update.attributes).iter() {
            let (code, flags, value) = (attribute.code, attribute.flags, attribute.value);
            let item = BgpAttrItem::decode_from(&session, code, flags, value.len(), value);
            black_box(item.expect("a shape that was checked"));
        }
        for announced in update.announcements() {
            let (items, _) = decode_bgpitems_from::<BgpAddrV4>(announced.nlri.octets()).expect("prefixes");
            count += black_box(items).len();
        }
    });
    count
}
