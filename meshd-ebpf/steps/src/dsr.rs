//! Direct server return: what is added to a packet so that the backend's node knows which frontend was asked.
//!
//! The packet itself has the backend's address and port already, and the client's. What is missing is the *note*: the frontend's
//! address and port. It travels in one of three [`Form`]s, all of which other implementations know:
//!
//! ```text
//! option   IPv4: option 0x9a, 8 octets:  9a 08 port(2) address(4), both with their octets reversed
//!          IPv6: destination options, 24 octets:  next 02 1b 14 address(16) port(2) 0(2)
//! ipip     another IP header from node to node, and inside of it the packet with the option
//! geneve   IP, UDP 6081, Geneve with the critical option class 0x014b type 0x81: address port(2) 0(2),
//!          and inside of it a whole Ethernet frame with the packet
//! ```
//!
//! The option of IPv4 has its octets reversed because Cilium writes it so on little-endian machines. It stands right behind the fixed
//! header, before all others, so that it is found without a walk. Its type is copied into fragments.

use meshd_abi::{Address, V4, V6};

use crate::{
    Frame,
    checksum::{Difference, fold},
    header::{ETHERNET, Family, IPV4, IPV6, protocol},
    rewrite::written,
};

/// How a note travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In an option or extension of the packet's own network header.
    Option,
    /// In that of a packet inside of another one.
    Ipip,
    /// In an option of Geneve.
    Geneve,
}

/// The frontend that a client asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note<A> {
    /// Its address.
    pub frontend: A,
    /// Its port, network byte order.
    pub port: u16,
    /// Not used.
    pub reserved: u16,
}

/// The nodes at both ends of an outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A> {
    /// Who sends.
    pub from: A,
    /// The backend's node.
    pub to: A,
}

/// The port of Geneve (RFC 8926 section 3.3).
pub const GENEVE_PORT: u16 = 6_081;
/// The virtual network of our Geneve packets: the identity of the world, from which clients come.
pub const VNI: u8 = 2;
/// IPv4 inside of something.
pub const IPV4_INSIDE: u8 = 4;
/// IPv6 inside of something.
pub const IPV6_INSIDE: u8 = 41;
/// Destination options of IPv6.
const DESTINATION_OPTIONS: u8 = 60;
/// The option of IPv4: copied into fragments, class control, number 26; eight octets.
const OPTION4: [u8; 2] = [0x9a, 8];
/// The extension of IPv6 behind its first octet: two times eight octets more than the first eight; the option, to be passed over by
/// whoever does not know it, and its length.
const OPTION6: [u8; 3] = [2, 0x1b, 20];
/// Octets of UDP and Geneve without options.
const UDP_GENEVE: usize = 16;
/// Class and type of the option of Geneve.
const GENEVE_OPTION: [u8; 3] = [0x01, 0x4b, 0x81];
/// The flag of Geneve which says that there is an option that must be understood.
const GENEVE_CRITICAL: u8 = 0x40;
/// Ethernet inside of Geneve.
pub(crate) const ETHERNET_INSIDE: u16 = 0x6558;
/// TTL of an outer header.
const OUTER_TTL: u8 = 64;

/// IP protocol number of a packet inside of another one.
#[must_use]
#[inline(always)]
pub const fn inside<A: Address>() -> u8 {
    if A::IS_V4 { IPV4_INSIDE } else { IPV6_INSIDE }
}

/// Octets of the option of a family.
#[must_use]
#[inline(always)]
pub const fn option_length<A: Address>() -> usize {
    8 + if A::IS_V4 { 0 } else { 16 }
}

/// Octets that a form adds to a packet.
#[must_use]
#[inline(always)]
pub const fn overhead<A: Family>(form: Form) -> usize {
    match form {
        Form::Option => option_length::<A>(),
        Form::Ipip => A::HEADER + option_length::<A>(),
        Form::Geneve => A::HEADER + UDP_GENEVE + geneve_option::<A>() + ETHERNET,
    }
}

/// Octets of the option of Geneve.
const fn geneve_option<A: Address>() -> usize {
    8 + size_of::<A>()
}

/// Length of the IP packet at `l3` as its header says.
#[must_use]
#[inline(always)]
pub fn ip_length<A: Family>(frame: &Frame, l3: usize) -> Option<u32> {
    if A::IS_V4 {
        Some(u32::from(u16::from_be(frame.read(l3 + 2)?)))
    } else {
        Some(u32::from(u16::from_be(frame.read(l3 + 4)?)) + IPV6 as u32)
    }
}

/// True when the packet at `l3` has no room for the option: IPv4 has no more than forty octets for all of them, and with IPv6 the
/// hop-by-hop options must be the first.
#[must_use]
#[inline(always)]
pub fn has_no_room<A: Family>(frame: &Frame, l3: usize) -> bool {
    let Some(head) = frame.read::<[u8; 8]>(l3) else { return true };
    if A::IS_V4 { head[0] & 0x0f > 13 } else { head[6] == 0 }
}

/// Moves the network header from behind a gap of [`option_length`] octets at `at` to its beginning, and writes the option behind
/// it. `None` when it is not inside of the frame, or there is no room: the packet must be dropped then.
#[must_use]
#[inline(always)]
pub fn insert_option<A: Family>(frame: &Frame, at: usize, note: &Note<A>) -> Option<()> {
    if A::IS_V4 {
        let [first, second, third]: [u32; 3] = frame.read(at + 8)?;
        let addresses: [u32; 2] = frame.read(at + 20)?;
        let [version, service, high, low] = first.to_ne_bytes();
        if version & 0x0f > 13 {
            return None;
        }
        let [high, low] = u16::from_be_bytes([high, low]).wrapping_add(8).to_be_bytes();
        let lengthened = u32::from_ne_bytes([version + 2, service, high, low]);
        let [a, b] = note.port.to_ne_bytes();
        let option = [u32::from_ne_bytes([OPTION4[0], OPTION4[1], b, a]), note.frontend.words()[0].swap_bytes()];
        let [ttl, inner, a, b] = third.to_ne_bytes();
        let changed = Difference::default().double(first, lengthened).double(0, option[0]).double(0, option[1]);
        let [a, b] = changed.apply(u16::from_ne_bytes([a, b])).to_ne_bytes();
        written(frame.write(at, [lengthened, second, u32::from_ne_bytes([ttl, inner, a, b])]))?;
        written(frame.write(at + 12, addresses))?;
        return written(frame.write(at + IPV4, option));
    }
    let [first, second]: [u32; 2] = frame.read(at + 24)?;
    let addresses: [u32; 8] = frame.read(at + 32)?;
    let [high, low, next, hops] = second.to_ne_bytes();
    let [high, low] = u16::from_be_bytes([high, low]).wrapping_add(24).to_be_bytes();
    written(frame.write(at, [first, u32::from_ne_bytes([high, low, DESTINATION_OPTIONS, hops])]))?;
    written(frame.write(at + 8, addresses))?;
    written(frame.write(at + IPV6, u32::from_ne_bytes([next, OPTION6[0], OPTION6[1], OPTION6[2]])))?;
    written(frame.write(at + IPV6 + 4, note.frontend.words()))?;
    written(frame.write(at + IPV6 + 20, [note.port, 0]))
}

/// The note in the option of the packet at `l3`.
#[must_use]
#[inline(always)]
pub fn option<A: Family>(frame: &Frame, l3: usize) -> Option<Note<A>> {
    if A::IS_V4 {
        let [version, _]: [u8; 2] = frame.read(l3)?;
        let [kind, address]: [u32; 2] = frame.read(l3 + IPV4)?;
        let [kind, length, b, a] = kind.to_ne_bytes();
        if version & 0x0f < 7 || [kind, length] != OPTION4 {
            return None;
        }
        let frontend = A::from_words([address.swap_bytes(), 0, 0, 0]);
        return Some(Note { frontend, port: u16::from_ne_bytes([a, b]), reserved: 0 });
    }
    let [next, _]: [u8; 2] = frame.read(l3 + 6)?;
    let [_, length, kind, octets]: [u8; 4] = frame.read(l3 + IPV6)?;
    let frontend: [u32; 4] = frame.read(l3 + IPV6 + 4)?;
    let [port, _]: [u16; 2] = frame.read(l3 + IPV6 + 20)?;
    if next != DESTINATION_OPTIONS || [length, kind, octets] != OPTION6 {
        return None;
    }
    Some(Note { frontend: A::from_words(frontend), port, reserved: 0 })
}

/// A network header without options, as words of the packet; IPv4 uses five of them.
pub type Header = [u32; 10];

/// The network header of the packet at `l3` as it was before [`insert_option`], which is known to be there; what other options it has
/// stay behind it.
#[must_use]
#[inline(always)]
pub fn without_option<A: Family>(frame: &Frame, l3: usize, header: &mut Header) -> Option<()> {
    if A::IS_V4 {
        let [first, second, third]: [u32; 3] = frame.read(l3)?;
        let [source, destination]: [u32; 2] = frame.read(l3 + 12)?;
        let option: [u32; 2] = frame.read(l3 + IPV4)?;
        let [version, service, high, low] = first.to_ne_bytes();
        let [high, low] = u16::from_be_bytes([high, low]).wrapping_sub(8).to_be_bytes();
        let shortened = u32::from_ne_bytes([version.wrapping_sub(2), service, high, low]);
        let [ttl, inner, a, b] = third.to_ne_bytes();
        let changed = Difference::default().double(first, shortened).double(option[0], 0).double(option[1], 0);
        let [a, b] = changed.apply(u16::from_ne_bytes([a, b])).to_ne_bytes();
        header[0] = shortened;
        header[1] = second;
        header[2] = u32::from_ne_bytes([ttl, inner, a, b]);
        header[3] = source;
        header[4] = destination;
        return Some(());
    }
    let words: [u32; 10] = frame.read(l3)?;
    let [next, _]: [u8; 2] = frame.read(l3 + IPV6)?;
    let [high, low, _, hops] = words[1].to_ne_bytes();
    let [high, low] = u16::from_be_bytes([high, low]).wrapping_sub(24).to_be_bytes();
    *header = words;
    header[1] = u32::from_ne_bytes([high, low, next, hops]);
    Some(())
}

/// Writes a header of [`without_option`].
#[must_use]
#[inline(always)]
pub fn put_header<A: Family>(frame: &Frame, l3: usize, header: &Header) -> Option<()> {
    if A::IS_V4 {
        written(frame.write(l3, [header[0], header[1], header[2]]))?;
        return written(frame.write(l3 + 12, [header[3], header[4]]));
    }
    written(frame.write(l3, *header))
}

/// Writes an IP header at `l3` around `length` octets of a protocol.
#[inline(always)]
pub(crate) fn put_outer<A: Family>(
    frame: &Frame,
    l3: usize,
    length: u32,
    protocol: u8,
    ends: &Ends<A>,
    service: u8,
) -> Option<()> {
    if A::IS_V4 {
        let [_, _, high, low] = (length + IPV4 as u32).to_be_bytes();
        let [source, destination] = [ends.from.words()[0], ends.to.words()[0]];
        let first = u32::from_ne_bytes([0x45, service, high, low]);
        // No identification is needed for what must not be taken apart (RFC 6864).
        let second = u32::from_ne_bytes([0, 0, 0x40, 0]);
        let third = u32::from_ne_bytes([OUTER_TTL, protocol, 0, 0]);
        let all = [first, second, third, source, destination];
        let mut sum = 0;
        for word in all {
            sum += (word & 0xffff) + (word >> 16);
        }
        let [a, b] = (!fold(sum)).to_ne_bytes();
        let third = u32::from_ne_bytes([OUTER_TTL, protocol, a, b]);
        written(frame.write(l3, [first, second, third]))?;
        return written(frame.write(l3 + 12, [source, destination]));
    }
    let [_, _, high, low] = length.to_be_bytes();
    written(frame.write(l3, [0x60 | service >> 4, service << 4, 0, 0, high, low, protocol, OUTER_TTL]))?;
    written(frame.write(l3 + 8, ends.from.words()))?;
    written(frame.write(l3 + 24, ends.to.words()))
}

/// Writes the outer header of IPIP at `l3`, around `length` octets.
#[must_use]
#[inline(always)]
pub fn put_ipip<A: Family>(frame: &Frame, l3: usize, length: u32, ends: &Ends<A>) -> Option<()> {
    put_outer(frame, l3, length, inside::<A>(), ends, 0)
}

/// Writes everything of Geneve at `l3`, around an IP packet of `length` octets. `entropy` becomes the source port, by which networks and
/// devices tell flows apart.
///
/// There is no sum in UDP: what is inside has its own, and the note is checked against what the receiver knows (RFC 6936).
#[must_use]
#[inline(always)]
pub fn put_geneve<A: Family>(
    frame: &Frame,
    l3: usize,
    length: u32,
    ends: &Ends<A>,
    note: &Note<A>,
    entropy: u32,
) -> Option<()> {
    let behind = (UDP_GENEVE + geneve_option::<A>() + ETHERNET) as u32;
    put_outer(frame, l3, length + behind, protocol::UDP, ends, 0)?;
    let udp = l3 + A::HEADER;
    let [_, _, high, low] = (length + behind).to_be_bytes();
    let [pa, pb] = (entropy as u16 | 0xc000).to_be_bytes();
    let [ga, gb] = GENEVE_PORT.to_be_bytes();
    written(frame.write(udp, [pa, pb, ga, gb, high, low, 0, 0]))?;
    let words = (geneve_option::<A>() / 4) as u8;
    let [ea, eb] = ETHERNET_INSIDE.to_be_bytes();
    written(frame.write(udp + 8, [words, GENEVE_CRITICAL, ea, eb, 0, 0, VNI, 0]))?;
    let option = udp + UDP_GENEVE;
    let [a, b, c] = GENEVE_OPTION;
    written(frame.write(option, [a, b, c, words - 1]))?;
    let address = note.frontend.words();
    let port = if A::IS_V4 {
        written(frame.write(option + 4, address[0]))?;
        option + 8
    } else {
        written(frame.write(option + 4, address))?;
        option + 20
    };
    written(frame.write(port, [note.port, 0]))?;
    // Nobody looks at the addresses of the frame inside.
    written(frame.write(port + 4, [0u16; 6]))?;
    written(frame.write(port + 16, A::ETHERTYPE.to_be()))
}

/// The note of a Geneve packet whose outer header at `l3` has no options.
#[must_use]
#[inline(always)]
pub fn geneve<A: Family>(frame: &Frame, l3: usize) -> Option<Note<A>> {
    let udp = l3 + A::HEADER;
    let head: [u8; 8] = frame.read(udp + 8)?;
    let words = (geneve_option::<A>() / 4) as u8;
    let [ea, eb] = ETHERNET_INSIDE.to_be_bytes();
    // The version is 0; bits of the control octet and the virtual network are not ours to judge.
    if head[0] != words || [head[2], head[3]] != [ea, eb] {
        return None;
    }
    let option = udp + UDP_GENEVE;
    let [a, b, c, length]: [u8; 4] = frame.read(option)?;
    if [a, b, c] != GENEVE_OPTION || length & 0x1f != words - 1 {
        return None;
    }
    let (frontend, port) = if A::IS_V4 {
        let address: V4 = frame.read(option + 4)?;
        (A::from_words(address.words()), option + 8)
    } else {
        let address: V6 = frame.read(option + 4)?;
        (A::from_words(address.words()), option + 20)
    };
    let [port_number, _]: [u16; 2] = frame.read(port)?;
    let ethertype: u16 = frame.read(port + 16)?;
    (ethertype == A::ETHERTYPE.to_be()).then_some(Note { frontend, port: port_number, reserved: 0 })
}

/// Addresses and next protocol of an IP header at `l3` that has no options and is no fragment.
#[must_use]
#[inline(always)]
pub fn plain_outer<A: Family>(frame: &Frame, l3: usize) -> Option<(Ends<A>, u8)> {
    let (from, to, next) = if A::IS_V4 {
        let head: [u8; 12] = frame.read(l3)?;
        let addresses: [u32; 2] = frame.read(l3 + 12)?;
        let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff;
        if head[0] != 0x45 || fragment != 0 {
            return None;
        }
        (A::from_words([addresses[0], 0, 0, 0]), A::from_words([addresses[1], 0, 0, 0]), head[9])
    } else {
        let head: [u8; 8] = frame.read(l3)?;
        let from: [u32; 4] = frame.read(l3 + 8)?;
        let to: [u32; 4] = frame.read(l3 + 24)?;
        (A::from_words(from), A::from_words(to), head[6])
    };
    Some((Ends { from, to }, next))
}

/// Octets of a packet that an ICMP error of ours quotes: the headers of both families, and the ports.
pub const QUOTE: usize = 64;
/// Octets of an ICMP error.
const ICMP: usize = 8;

/// Octets that an error needs before what it quotes.
#[must_use]
#[inline(always)]
pub const fn error_length<A: Family>() -> usize {
    A::HEADER + ICMP
}

/// Both halves of a word, added.
#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// Writes an error before the packet whose first [`QUOTE`] octets are in the frame behind [`error_length`] octets at `l3`: it is longer
/// than `mtu`. From the destination of the packet to its source.
#[must_use]
#[inline(always)]
pub fn put_too_big<A: Family>(frame: &Frame, l3: usize, mtu: u32) -> Option<()> {
    let quoted = l3 + error_length::<A>();
    let ends = if A::IS_V4 {
        let [source, destination]: [u32; 2] = frame.read(quoted + 12)?;
        Ends { from: A::from_words([destination, 0, 0, 0]), to: A::from_words([source, 0, 0, 0]) }
    } else {
        let source: [u32; 4] = frame.read(quoted + 8)?;
        let destination: [u32; 4] = frame.read(quoted + 24)?;
        Ends { from: A::from_words(destination), to: A::from_words(source) }
    };
    let length = (ICMP + QUOTE) as u32;
    let number = if A::IS_V4 { protocol::ICMP } else { protocol::ICMPV6 };
    put_outer(frame, l3, length, number, &ends, 0)?;
    // One comparison for all of it: of several the compiler keeps those that the verifier does not understand.
    let quote: [u64; QUOTE / 8] = frame.read(quoted)?;
    // Without loops: some of those that the compiler makes of them are none to Linux 6.1, which wants them entered at their head.
    let [a, b, c, d, e, f, g, h] = quote;
    let half = |words: u64| (words & 0xffff_ffff) + (words >> 32);
    let quoted = half(a) + half(b) + half(c) + half(d) + half(e) + half(f) + half(g) + half(h);
    let mut sum = halves(quoted as u32) + (quoted >> 32) as u32;
    let [_, _, high, low] = mtu.to_be_bytes();
    // Fragmentation needed (RFC 1191) has sixteen bits for the MTU, packet too big (RFC 4443) thirty-two.
    let (kind, second) = if A::IS_V4 { ([3, 4], u32::from_ne_bytes([0, 0, high, low])) } else { ([2, 0], mtu.to_be()) };
    let first = u32::from_ne_bytes([kind[0], kind[1], 0, 0]);
    sum += halves(first) + halves(second);
    if !A::IS_V4 {
        let ([a, b, c, d], [e, f, g, h]) = (ends.from.words(), ends.to.words());
        sum += halves(a) + halves(b) + halves(c) + halves(d) + halves(e) + halves(f) + halves(g) + halves(h);
        sum += halves(length.to_be()) + halves(u32::from_ne_bytes([0, 0, 0, number]));
    }
    let [a, b] = (!fold(sum)).to_ne_bytes();
    let error = l3 + A::HEADER;
    written(frame.write(error, [u32::from_ne_bytes([kind[0], kind[1], a, b]), second]))
}
