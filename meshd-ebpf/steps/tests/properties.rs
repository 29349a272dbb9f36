//! What holds for packets of any bytes: parsing looks at nothing but the packet, rewriting can be taken back, sums stay right.

use meshd_abi::{Tuple, V4, V6};
use meshd_steps::{
    Frame, Packet, Part, Skip,
    header::{ETHERNET, Family, protocol},
    icmp::{self, IcmpError},
    parse, rewrite,
};
use proptest::prelude::*;

/// Octets around a packet that nobody may read or write.
const MARGIN: usize = 64;

/// A packet between octets of one value.
struct Room {
    bytes: Vec<u8>,
    margin: u8,
}

impl Room {
    fn new(packet: &[u8], margin: u8) -> Self {
        let margins = [margin; MARGIN];
        Self { bytes: [&margins[..], packet, &margins].concat(), margin }
    }

    fn frame(&mut self) -> Frame {
        let start = self.bytes.as_mut_ptr() as usize + MARGIN;
        // SAFETY: the bytes between the margins, which live as long as the room and are looked at through the frame only
        // until the next call of a method.
        unsafe { Frame::new(start, start + self.bytes.len() - 2 * MARGIN) }
    }

    fn packet(&self) -> &[u8] {
        let (before, rest) = self.bytes.split_at(MARGIN);
        let (packet, after) = rest.split_at(rest.len() - MARGIN);
        assert!(before.iter().chain(after).all(|octet| *octet == self.margin), "written outside");
        packet
    }
}

/// Everything that is read of a packet.
type Read<A> = (Result<Packet<A>, Skip>, Result<Packet<A>, Skip>, Result<Packet<A>, Skip>, Result<Packet<A>, Skip>);

fn read<A: Family>(packet: &[u8], margin: u8) -> Read<A> {
    let mut room = Room::new(packet, margin);
    let frame = room.frame();
    let inner = icmp::parse_inner(&frame, ETHERNET + A::HEADER + icmp::ICMP_ERROR);
    (
        parse::<A, true>(&frame, ETHERNET),
        parse::<A, false>(&frame, ETHERNET),
        icmp::parse_outer(&frame, ETHERNET),
        inner,
    )
}

/// RFC 1071 over everything, from big-endian words.
fn sum(parts: &[&[u8]]) -> u16 {
    let all = parts.concat();
    let words = all.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Both forms of zero are the same number.
fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}

/// A family as the properties need it.
trait Net: Family + std::fmt::Debug {
    const ICMP: u8;
    fn octets_of(&self) -> Vec<u8>;
    fn of(words: [u32; 4]) -> Self;
}

impl Net for V4 {
    const ICMP: u8 = protocol::ICMP;
    fn octets_of(&self) -> Vec<u8> {
        self.octets().to_vec()
    }
    fn of(words: [u32; 4]) -> Self {
        Self(words[0])
    }
}

impl Net for V6 {
    const ICMP: u8 = protocol::ICMPV6;
    fn octets_of(&self) -> Vec<u8> {
        self.octets().to_vec()
    }
    fn of(words: [u32; 4]) -> Self {
        Self(words)
    }
}

/// The sum of layer 4 at an offset of it, computed over everything.
fn sum_of<A: Net>(source: &[u8], destination: &[u8], number: u8, body: &[u8], at: usize) -> u16 {
    let length = (body.len() as u32).to_be_bytes();
    let zeroed = [&body[..at], &[0, 0], &body[at + 2..]].concat();
    if number == protocol::ICMP {
        sum(&[&zeroed])
    } else {
        sum(&[source, destination, &length, &[0, 0, 0, number], &zeroed])
    }
}

/// A good packet: network header, layer 4 with its sum.
fn packet<A: Net>(tuple: &Tuple<A>, number: u8, data: &[u8]) -> Vec<u8> {
    let (source, destination) = (tuple.source.octets_of(), tuple.destination.octets_of());
    let ports = [tuple.source_port.to_ne_bytes(), tuple.destination_port.to_ne_bytes()].concat();
    let (at, mut body) = match number {
        protocol::TCP => (16, [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0], data].concat()),
        protocol::UDP => (6, [&ports[..], &(8 + data.len() as u16).to_be_bytes(), &[0, 0], data].concat()),
        _ => {
            let kind = if A::IS_V4 { 8 } else { 128 };
            (2, [&[kind, 0, 0, 0][..], &ports[..2], &[0, 1], data].concat())
        }
    };
    let right = match sum_of::<A>(&source, &destination, number, &body, at) {
        0 if number == protocol::UDP => 0xffff,
        right => right,
    };
    body[at..at + 2].copy_from_slice(&right.to_be_bytes());
    [network(&source, &destination, number, body.len()), body].concat()
}

fn network(source: &[u8], destination: &[u8], number: u8, length: usize) -> Vec<u8> {
    if source.len() == 4 {
        let total = (20 + length as u16).to_be_bytes();
        let mut header = vec![0x45, 0, total[0], total[1], 0, 7, 0, 0, 64, number, 0, 0];
        header.extend([source, destination].concat());
        let right = sum(&[&header]).to_be_bytes();
        header[10..12].copy_from_slice(&right);
        return header;
    }
    let length = (length as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], number, 64][..], source, destination].concat()
}

/// Checks every sum of a good packet, from its network header on.
fn check_sums<A: Net>(bytes: &[u8]) {
    let (header, body) = bytes.split_at(A::HEADER);
    let (source, destination, number) = if A::IS_V4 {
        assert!(same_sum(sum(&[header]), 0), "IPv4 header {header:02x?}");
        (&header[12..16], &header[16..20], header[9])
    } else {
        (&header[8..24], &header[24..40], header[6])
    };
    let at = match number {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => 2,
    };
    let found = u16::from_be_bytes([body[at], body[at + 1]]);
    assert!(same_sum(found, sum_of::<A>(source, destination, number, body, at)), "layer 4 {body:02x?}");
    assert!(number != protocol::UDP || found != 0, "a sum became none");
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [&[0; ETHERNET][..], packet].concat()
}

fn tuple_of<A: Net>(packet: &Packet<A>) -> Tuple<A> {
    let key = &packet.key;
    Tuple {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
    }
}

/// Rewrites, checks, rewrites back.
fn there_and_back<A: Net>(from: &Tuple<A>, to: &Tuple<A>, number: u8, data: &[u8]) {
    let before = framed(&packet(from, number, data));
    let mut room = Room::new(&before, 0xee);
    let frame = room.frame();
    let parsed = parse::<A, true>(&frame, ETHERNET).expect("a good packet");
    assert_eq!(tuple_of(&parsed), *from);
    let changed = rewrite::rewrite(&frame, ETHERNET, &parsed, to, true).expect("it fits");
    rewrite::patch_checksum(&frame, &parsed, &changed).expect("it fits");
    check_sums::<A>(&room.packet()[ETHERNET..]);

    let frame = room.frame();
    let parsed = parse::<A, true>(&frame, ETHERNET).expect("still good");
    assert_eq!(tuple_of(&parsed), *to);
    assert_eq!(parsed.ttl, 63);
    let changed = rewrite::rewrite(&frame, ETHERNET, &parsed, from, false).expect("it fits");
    rewrite::patch_checksum(&frame, &parsed, &changed).expect("it fits");
    let mut after = room.packet().to_vec();
    let (ttl, header_sum) = if A::IS_V4 { (ETHERNET + 8, Some(ETHERNET + 10)) } else { (ETHERNET + 7, None) };
    after[ttl] += 1;
    if let Some(at) = header_sum {
        after[at..at + 2].copy_from_slice(&before[at..at + 2]);
    }
    assert_eq!(after, before);
}

/// Tells of an error about a packet `from`, that it was one `to`; checks; tells it back.
fn told_and_back<A: Net>(from: &Tuple<A>, to: &Tuple<A>, number: u8, data: &[u8], length: usize) {
    let mut quoted = packet(from, number, data);
    quoted.truncate((A::HEADER + 8).max(length));
    let kind = if A::IS_V4 { 3 } else { 1 };
    let mut body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
    // The error comes back to whoever sent the packet.
    let (router, sender) = (from.destination.octets_of(), from.source.octets_of());
    let right = sum_of::<A>(&router, &sender, A::ICMP, &body, 2);
    body[2..4].copy_from_slice(&right.to_be_bytes());
    let before = framed(&[network(&router, &sender, A::ICMP, body.len()), body].concat());

    let mut room = Room::new(&before, 0xee);
    assert_eq!(parse::<A, true>(&room.frame(), ETHERNET), Err(Skip::IcmpError));
    tell(&mut room, from, to);
    let told = room.packet()[ETHERNET..].to_vec();
    check_sums::<A>(&told);
    let inside = &told[A::HEADER + 8..];
    if inside.len() == packet(from, number, data).len() {
        check_sums::<A>(inside);
    } else if A::IS_V4 {
        assert!(same_sum(sum(&[&inside[..20]]), 0));
    }
    tell(&mut room, to, from);
    assert_eq!(room.packet(), before);
}

/// Both halves of what the programs do with an error.
fn retell<A: Net>(frame: &Frame, error: &IcmpError<A>, around: &Tuple<A>, inside: &Tuple<A>) -> Option<()> {
    let pseudo = icmp::rewrite_outer(frame, ETHERNET, error, around, false)?;
    icmp::rewrite_inner(frame, error, inside, pseudo)
}

fn tell<A: Net>(room: &mut Room, from: &Tuple<A>, to: &Tuple<A>) {
    let frame = room.frame();
    let outer = icmp::parse_outer::<A>(&frame, ETHERNET).expect("an error");
    let inner = icmp::parse_inner::<A>(&frame, outer.l4 + icmp::ICMP_ERROR).expect("about a packet");
    let error = IcmpError { outer, inner };
    assert_eq!(tuple_of(&inner), *from);
    let answer = error.answer_key();
    assert_eq!((answer.source, answer.destination_port), (from.destination, from.source_port));
    let around = Tuple { source: to.destination, destination: to.source, source_port: 0, destination_port: 0 };
    retell(&frame, &error, &around, to).expect("it fits");
    let outer = icmp::parse_outer::<A>(&room.frame(), ETHERNET).expect("still an error");
    assert_eq!((outer.key.source, outer.key.destination), (to.destination, to.source));
}

fn tuples<A: Net>(number: u8) -> impl Strategy<Value = Tuple<A>> {
    (any::<[u32; 4]>(), any::<[u32; 4]>(), any::<u16>(), any::<u16>()).prop_map(
        move |(source, destination, from, to)| {
            let destination_port = if number == A::ICMP { 0 } else { to };
            Tuple { source: A::of(source), destination: A::of(destination), source_port: from, destination_port }
        },
    )
}

/// Two tuples of a protocol, and that protocol.
fn translations<A: Net>() -> impl Strategy<Value = (u8, Tuple<A>, Tuple<A>)> {
    prop::sample::select(vec![protocol::TCP, protocol::UDP, A::ICMP])
        .prop_flat_map(|number| (Just(number), tuples::<A>(number), tuples::<A>(number)))
}

/// Bytes that look like a packet at first sight more often than not.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let like = (prop::collection::vec(any::<u8>(), 0..140), any::<bool>(), 0u8..70, any::<u8>());
    like.prop_map(|(mut bytes, is_v4, number, kind)| {
        let (first, number_at, type_at) = if is_v4 { (0x45, 23, 34) } else { (0x60, 20, 54) };
        for (at, octet) in [(14, first), (number_at, number), (type_at, kind % 13)] {
            if let Some(place) = bytes.get_mut(at) {
                *place = octet;
            }
        }
        bytes
    })
}

proptest! {
    #[test]
    fn parsing_looks_at_nothing_but_the_packet(bytes in bytes()) {
        prop_assert_eq!(read::<V4>(&bytes, 0x00), read::<V4>(&bytes, 0xff));
        prop_assert_eq!(read::<V6>(&bytes, 0x00), read::<V6>(&bytes, 0xff));
    }

    #[test]
    fn what_the_fast_parser_reads_the_thorough_one_reads_the_same(bytes in bytes()) {
        let (thorough, fast, ..) = read::<V4>(&bytes, 0);
        prop_assert!(fast.is_err() || fast == thorough);
        let (thorough, fast, ..) = read::<V6>(&bytes, 0);
        prop_assert!(fast.is_err() || fast == thorough);
    }

    #[test]
    fn rewriting_any_bytes_stays_inside_of_them(bytes in bytes(), words in any::<[u32; 4]>(), ports in any::<(u16, u16)>()) {
        fn try_it<A: Net>(bytes: &[u8], words: [u32; 4], ports: (u16, u16)) {
            let to = Tuple { source: A::of(words), destination: A::of(words), source_port: ports.0, destination_port: ports.1 };
            let mut room = Room::new(bytes, 0xee);
            let frame = room.frame();
            if let Ok(packet) = parse::<A, true>(&frame, ETHERNET) {
                let changed = rewrite::rewrite(&frame, ETHERNET, &packet, &to, true).expect("what was parsed fits");
                rewrite::patch_checksum(&frame, &packet, &changed).expect("what was parsed fits");
                let is_later = packet.part == Part::Later;
                let after = parse::<A, true>(&frame, ETHERNET).expect("still a packet");
                assert!(is_later || packet.key.protocol == A::ICMP || tuple_of(&after) == to);
            }
            if let Ok(outer) = icmp::parse_outer::<A>(&frame, ETHERNET)
                && let Ok(inner) = icmp::parse_inner::<A>(&frame, outer.l4 + icmp::ICMP_ERROR)
            {
                retell(&frame, &IcmpError { outer, inner }, &to, &to).expect("what was parsed fits");
            }
            room.packet();
        }
        try_it::<V4>(&bytes, words, ports);
        try_it::<V6>(&bytes, words, ports);
    }

    #[test]
    fn a_translation_taken_back_leaves_the_packet(
        (number4, from4, to4) in translations::<V4>(),
        (number6, from6, to6) in translations::<V6>(),
        data in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        // Echoes of identifier zero look like packets without one from both sides.
        prop_assume!(to4.source_port != 0 && to6.source_port != 0);
        there_and_back(&from4, &to4, number4, &data);
        there_and_back(&from6, &to6, number6, &data);
    }

    #[test]
    fn an_error_told_back_is_the_error_that_came(
        (number4, from4, to4) in translations::<V4>(),
        (number6, from6, to6) in translations::<V6>(),
        data in prop::collection::vec(any::<u8>(), 0..40),
        length in 0usize..120,
    ) {
        prop_assume!(from4.source_port != 0 && from6.source_port != 0);
        told_and_back(&from4, &to4, number4, &data, length);
        told_and_back(&from6, &to6, number6, &data, length);
    }
}

#[test]
fn errors_are_the_types_that_quote_a_packet() {
    fn kinds<A: Net>() -> Vec<u8> {
        let is_error = |kind: &u8| {
            let body = [[*kind, 0, 0, 0], [0; 4], [0; 4], [0; 4], [0; 4]].concat();
            let (from, to) = (A::of([1, 2, 3, 4]).octets_of(), A::of([5, 6, 7, 8]).octets_of());
            let bytes = framed(&[network(&from, &to, A::ICMP, body.len()), body].concat());
            parse::<A, true>(&Room::new(&bytes, 0).frame(), ETHERNET) == Err(Skip::IcmpError)
        };
        (0..=255).filter(is_error).collect()
    }
    assert_eq!(kinds::<V4>(), [3, 11, 12]);
    assert_eq!(kinds::<V6>(), [1, 2, 3, 4]);
}

#[test]
fn an_error_about_an_error_or_a_later_fragment_is_not_told() {
    let tuple = Tuple { source: V4(1), destination: V4(2), source_port: 7, destination_port: 9 };
    let about = |change: fn(&mut Vec<u8>)| {
        let mut inner = packet(&tuple, protocol::UDP, &[1, 2, 3, 4]);
        change(&mut inner);
        icmp::parse_inner::<V4>(&Room::new(&framed(&inner), 0).frame(), ETHERNET).map(|inner| inner.key.source_port)
    };
    assert_eq!(about(|_| ()), Ok(7));
    assert_eq!(about(|inner| inner.truncate(28)), Ok(7));
    assert_eq!(about(|inner| inner.truncate(27)), Err(Skip::Malformed));
    assert_eq!(about(|inner| inner[6] = 0x20), Ok(7), "a first fragment");
    assert_eq!(about(|inner| inner[7] = 1), Err(Skip::OtherProtocol), "a later fragment");
    assert_eq!(about(|inner| inner[9] = 47), Err(Skip::OtherProtocol), "another protocol");
    assert_eq!(about(|inner| (inner[9], inner[20]) = (1, 3)), Err(Skip::OtherProtocol), "an error");
}
