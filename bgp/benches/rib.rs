//! What the tables cost: CPU of one thread and octets of memory, without any socket.
//!
//! `cargo bench -p bgp --bench rib` runs every scenario in a process of its own, so that the peak of memory is its own;
//! `-- feed 1000000` runs one. The stream looks like that of a full table: set sizes, prefix lengths and attributes are
//! drawn from the same distribution each time.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads clocks; the library does not")]

use std::{
    fs,
    net::Ipv4Addr,
    process::Command,
    time::{Duration, Instant},
};

use bgp::{
    Asn, Moment, NextHop, PathId, PeerId, PerFamily, Prefix as _, RouterId,
    family::V4,
    policy::Policy,
    rib::{PeerSettings, Rib, RibConfig},
    session::{Negotiated, NegotiatedFamily, PeerKind},
    wire::{
        as_path::{SegmentKind, write_segments},
        attributes::{Builder, LargeCommunity, Origin, code},
    },
};

const SOURCE: PeerId = PeerId(0);
/// Octets read from a socket at once; also what the sink is sent at once.
const READ_OCTETS: usize = 64 << 10;
const RUN_BUDGET: usize = 16_384;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["feed", count] => feed(number(count)),
        ["overlap", count] => overlap(16, number(count)),
        ["peers", count] => many_peers(100, number(count)),
        _ => {
            let itself = std::env::current_exe().expect("a program knows its file");
            for scenario in [["feed", "200000"], ["feed", "1000000"], ["overlap", "50000"], ["peers", "10000"]] {
                let status = Command::new(&itself).args(scenario).status().expect("the same program again");
                assert!(status.success(), "{scenario:?}");
            }
        }
    }
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number of prefixes")
}

/// One UPDATE: attributes and prefixes.
struct Message {
    attributes: Vec<u8>,
    prefixes: Vec<(PathId, V4)>,
}

impl Message {
    fn octets(&self) -> usize {
        23 + 7 + self.attributes.len() + self.prefixes.len() * 4
    }
}

/// Pseudo-random numbers, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Sizes with median 5, ninth decile 24, 99th percentile 255, maximum 948.
    fn set_size(&mut self) -> usize {
        let points = [(0.0, 1.0), (0.5, 4.3), (0.9, 20.0), (0.99, 200.0), (1.0, 948.0_f64)];
        let at = self.below(1_000_000) as f64 / 1e6;
        let span = points.windows(2).find(|pair| at < pair[1].0).expect("below 1");
        let part = (at - span[0].0) / (span[1].0 - span[0].0);
        (span[0].1.ln() + part * (span[1].1 / span[0].1).ln()).exp().round() as usize
    }
}

/// A full table of `count` prefixes whose attributes differ for each `sender`.
fn stream(count: u32, sender: u32) -> Vec<Message> {
    let mut numbers = Numbers(0x9e37_79b9 + u64::from(sender));
    let mut of_length = [0_u32; 33];
    let (mut messages, mut left) = (Vec::new(), count as usize);
    let mut prefixes_from = Numbers(4_711);
    while left > 0 {
        let size = numbers.set_size().min(left);
        left -= size;
        let prefixes = (0..size).map(|_| (PathId(0), next_prefix(&mut prefixes_from, &mut of_length))).collect();
        messages.push(Message { attributes: attributes(&mut numbers, sender), prefixes });
    }
    messages
}

fn next_prefix(numbers: &mut Numbers, of_length: &mut [u32; 33]) -> V4 {
    let length = match numbers.below(100) {
        0..64 => 24,
        64..75 => 22,
        75..83 => 23,
        83..90 => 20,
        90..95 => 21,
        _ => 19,
    };
    let number = of_length[usize::from(length)];
    of_length[usize::from(length)] += 1;
    // An odd factor visits every number of that many bits once.
    let address = number.wrapping_mul(0x0001_9661) << (32 - length);
    V4::from_wire(length, &address.to_be_bytes()[..usize::from(length).div_ceil(8)]).expect("a length below 33")
}

fn attributes(numbers: &mut Numbers, sender: u32) -> Vec<u8> {
    let mut path = vec![Asn(64_600 + sender)];
    path.extend((0..2 + numbers.below(5)).map(|_| Asn(100_000 + numbers.below(300_000) as u32)));
    let path_value = write_segments([(SegmentKind::Sequence, path.as_slice())]);
    let mut builder = Builder::new();
    builder
        .origin(if numbers.below(10) == 0 { Origin::Incomplete } else { Origin::Igp })
        .set(code::AS_PATH, path_value);
    let communities = numbers.below(19);
    builder.communities((0..communities).map(|_| 65_000_u32 << 16 | numbers.below(60_000) as u32));
    if numbers.below(5) == 0 {
        let large = |n: &mut Numbers| LargeCommunity { global: 65_000, local_1: n.below(99) as u32, local_2: 7 };
        let list: Vec<_> = (0..=numbers.below(3)).map(|_| large(numbers)).collect();
        builder.large_communities(list);
    }
    if numbers.below(3) == 0 {
        builder.number(code::MED, numbers.below(200) as u32);
    }
    if numbers.below(8) == 0 {
        builder.set(code::AGGREGATOR, [65_000_u32.to_be_bytes(), [10, 0, 0, 1]].concat());
    }
    builder.build()
}

fn rib(peers: u16) -> Rib {
    let mut config = RibConfig::new(Asn(65_000), RouterId(1), 12_345);
    config.next_hop_tracking = false;
    let mut rib = Rib::new(config);
    for peer in 0..peers {
        let address = Ipv4Addr::from_bits(0x0a00_0002 + u32::from(peer));
        let settings = PeerSettings::new(address.into(), Policy::accept_all(), Policy::accept_all());
        rib.add_peer(PeerId(peer), settings);
        let own = PerFamily { ipv4: Some(NextHop::V4([10, 0, 0, 1].into())), ipv6: None };
        rib.peer_up(PeerId(peer), &negotiated(peer), own);
    }
    rib
}

fn negotiated(peer: u16) -> Negotiated {
    let (asn, router_id) = (Asn(64_600 + u32::from(peer)), RouterId(100 + u32::from(peer)));
    let families = PerFamily { ipv4: Some(NegotiatedFamily::default()), ipv6: None };
    Negotiated { route_refresh: true, ..Negotiated::plain(PeerKind::External, Asn(65_000), asn, router_id, families) }
}

/// One peer sends everything to one sink, then leaves.
fn feed(count: u32) {
    let messages = stream(count, u32::from(SOURCE.0));
    let (sets, sink) = (messages.len(), PeerId(1));
    let before = memory("VmRSS");
    let mut rib = rib(2);
    let mut parts = Parts::default();
    let (mut taken, mut sent) = (0, Sent::default());
    let start = cpu();
    for message in &messages {
        announce(&mut rib, SOURCE, message);
        taken += message.octets();
        if taken >= READ_OCTETS {
            taken = 0;
            drain(&mut rib, &[sink], &mut sent, &mut parts);
        }
    }
    drain(&mut rib, &[sink], &mut sent, &mut parts);
    let fed = cpu() - start;
    let peak = memory("VmHWM") - before;
    assert_eq!(rib.advertised_count::<V4>(sink), count);
    println!(
        "feed {count} prefixes in {sets} sets: {fed:.3} CPU s ({parts}), peak {:.1} MB, {:.0} octets per prefix, \
         {} octets in {} messages sent",
        peak / 1e6,
        peak / f64::from(count),
        sent.octets,
        sent.messages
    );
    let start = cpu();
    rib.peer_down(SOURCE, PerFamily::default());
    let mut parts = Parts::default();
    drain(&mut rib, &[sink], &mut sent, &mut parts);
    println!("withdraw {count} prefixes: {:.3} CPU s ({parts})", cpu() - start);
    assert_eq!(rib.advertised_count::<V4>(sink), 0);
    assert_eq!((rib.totals().attribute_sets, rib.totals().families.ipv4.destinations), (0, 0));
    println!("left {:.1} MB", (memory("VmRSS") - before) / 1e6);
}

/// Peers that all have the same prefixes, with other attributes each.
fn overlap(peers: u16, count: u32) {
    let streams: Vec<_> = (0..peers).map(|peer| stream(count, u32::from(peer))).collect();
    let before = memory("VmRSS");
    let mut rib = rib(peers + 1);
    let sink = PeerId(peers);
    let everybody: Vec<PeerId> = (0..=peers).map(PeerId).collect();
    let (mut sent, mut parts) = (Sent::default(), Parts::default());
    let start = cpu();
    let mut cursors = vec![0; streams.len()];
    let mut more = true;
    while more {
        more = false;
        for (peer, (messages, cursor)) in streams.iter().zip(&mut cursors).enumerate() {
            let mut taken = 0;
            while taken < READ_OCTETS
                && let Some(message) = messages.get(*cursor)
            {
                announce(&mut rib, PeerId(peer as u16), message);
                taken += message.octets();
                *cursor += 1;
            }
            more |= *cursor < messages.len();
            while rib.run(RUN_BUDGET) {}
        }
        // All sockets were read once: a real owner exports after every such round.
        drain(&mut rib, &everybody, &mut sent, &mut parts);
    }
    let all = cpu() - start;
    println!(
        "overlap of {peers} peers x {count}: {all:.3} CPU s, peak {:.1} MB, {:.2} prefixes announced to the sink per \
         unique prefix",
        (memory("VmHWM") - before) / 1e6,
        sent.announced_to(sink) / f64::from(count)
    );
}

/// Peers with prefixes of their own, all of them told everything.
fn many_peers(peers: u16, each: u32) {
    let messages = stream(u32::from(peers) * each, 0);
    let before = memory("VmRSS");
    let mut rib = rib(peers);
    let everybody: Vec<PeerId> = (0..peers).map(PeerId).collect();
    let (mut sent, mut parts) = (Sent::default(), Parts::default());
    let start = cpu();
    let per_peer = messages.len().div_ceil(usize::from(peers));
    for (peer, messages) in messages.chunks(per_peer).enumerate() {
        for message in messages {
            let path = [Asn(64_600 + peer as u32), Asn(1)];
            let attributes = Builder::of(bgp::wire::attributes::Attributes(&message.attributes))
                .set(code::AS_PATH, write_segments([(SegmentKind::Sequence, path.as_slice())]))
                .build();
            let message = Message { attributes, prefixes: message.prefixes.clone() };
            announce(&mut rib, PeerId(peer as u16), &message);
        }
        while rib.run(RUN_BUDGET) {}
        drain(&mut rib, &everybody, &mut sent, &mut parts);
    }
    println!(
        "{peers} peers x {each}: {:.3} CPU s, peak {:.1} MB, {} octets sent",
        cpu() - start,
        (memory("VmHWM") - before) / 1e6,
        sent.octets
    );
}

/// What was sent to the peers.
#[derive(Default)]
struct Sent {
    octets: usize,
    messages: usize,
    /// Prefixes announced, by peer.
    announced: Vec<usize>,
}

impl Sent {
    fn count(&mut self, peer: PeerId, octets: &[u8]) {
        self.octets += octets.len();
        self.announced.resize(self.announced.len().max(peer.index() + 1), 0);
        let mut rest = octets;
        while let Some((message, after)) = split(rest) {
            self.messages += 1;
            self.announced[peer.index()] += announced_in(message);
            rest = after;
        }
    }

    fn announced_to(&self, peer: PeerId) -> f64 {
        self.announced[peer.index()] as f64
    }
}

/// The first message and the rest.
fn split(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u16::from_be_bytes(*octets.get(16..)?.first_chunk()?);
    octets.split_at_checked(usize::from(length))
}

/// Prefixes in the last field of an UPDATE.
fn announced_in(message: &[u8]) -> usize {
    let field = |at: usize| usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    let attributes_at = 21 + field(19);
    let mut rest = &message[attributes_at + 2 + field(attributes_at)..];
    let mut count = 0;
    while let Some(length) = rest.first() {
        rest = &rest[1 + usize::from(*length).div_ceil(8)..];
        count += 1;
    }
    count
}

/// Where the time went beside taking messages in.
#[derive(Default)]
struct Parts {
    run: Duration,
    export: Duration,
}

impl std::fmt::Display for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "of which run {:.3}, export {:.3}", self.run.as_secs_f64(), self.export.as_secs_f64())
    }
}

/// Decides, exports and forwards everything.
fn drain(rib: &mut Rib, sinks: &[PeerId], sent: &mut Sent, parts: &mut Parts) {
    let mut out = Vec::with_capacity(2 * READ_OCTETS);
    loop {
        let start = Instant::now();
        let more = rib.run(RUN_BUDGET);
        while !rib.take_fib_changes(1_024).is_empty() {}
        parts.run += start.elapsed();
        if !more {
            break;
        }
    }
    let start = Instant::now();
    rib.flush_exports();
    for sink in sinks {
        loop {
            out.clear();
            let more = rib.poll_export(*sink, &mut out, READ_OCTETS);
            sent.count(*sink, &out);
            if !more {
                break;
            }
        }
    }
    parts.export += start.elapsed();
    // Destinations whose withdrawal has been heard.
    while rib.run(RUN_BUDGET) {}
}

/// CPU seconds of this thread so far.
fn cpu() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("a Linux kernel");
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).expect("nanoseconds") / 1e9
}

/// A field of the process status, in octets.
fn memory(field: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("a Linux kernel");
    let line = status.lines().find(|line| line.starts_with(field)).expect("a known field");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).expect("a number of kB") * 1024.0
}

fn announce(rib: &mut Rib, peer: PeerId, message: &Message) {
    let next_hop = NextHop::V4(Ipv4Addr::from_bits(0x0a00_0002 + u32::from(peer.0)));
    rib.announce(peer, &message.attributes, next_hop, message.prefixes.iter().copied(), Moment(0)).expect("no limit");
}
