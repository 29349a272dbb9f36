//! From a frame to the tuple of its packet.

use meshd_abi::{Address, ConnectionKey, V4, V6};

use crate::{Frame, icmp::is_error};

/// Octets of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Octets of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Octets of an IPv6 header.
pub const IPV6: usize = 40;
/// Largest offset of a layer 4 header that is looked at; above it is what no sender needs.
pub const L4_MAX: usize = 255;

/// IP protocol numbers.
pub mod protocol {
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// The fragment header of IPv6 (RFC 8200 section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// Bits of the flags octet of a TCP header.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise: the first packet of each direction.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, which has the ports.
    First,
    /// A later fragment, which has none.
    Later,
}

/// Why a packet is none that is served.
///
/// As wide as a word of an address: the compiler puts it where the first word of a packet would be, and with a single octet it would
/// take all packets' addresses apart, octet by octet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Another Ethernet type: ARP, a VLAN tag, or the other family.
    OtherType,
    /// A layer 4 protocol without ports, or an extension header that is not passed over.
    OtherProtocol,
    /// Cut short, or lengths that contradict each other.
    Malformed,
    /// Options, extension headers or fragments, which the fast parser leaves to the thorough one.
    Unusual,
    /// An ICMP error: what it is about is inside of it.
    IcmpError,
}

/// What the headers of a packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// Its tuple, which is the key of its connection. An ICMP echo request has its identifier as source port and 0 as
    /// destination port, an echo reply the other way round; later fragments have 0 in both.
    pub key: ConnectionKey<A>,
    /// Flags of TCP, 0 otherwise.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Fragment or whole.
    pub part: Part,
    /// Where the layer 4 header begins in the frame.
    pub l4: usize,
    /// Identification of a fragment, network byte order; 0 in whole packets.
    pub id: u32,
}

impl<A: Address> Packet<A> {
    /// True for the packet that opens a TCP connection.
    #[must_use]
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.key.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
    }

    /// Where the checksum of layer 4 is in its header; `None` for a protocol whose sum is of another kind (SCTP).
    #[must_use]
    #[inline(always)]
    pub const fn checksum_offset(&self) -> Option<usize> {
        match self.key.protocol {
            protocol::TCP => Some(16),
            protocol::UDP => Some(6),
            protocol::ICMP | protocol::ICMPV6 => Some(2),
            _ => None,
        }
    }
}

/// The Ethernet type of a frame, host order.
#[must_use]
#[inline(always)]
pub fn ethertype(frame: &Frame) -> Option<u16> {
    frame.read::<u16>(ETHERNET - 2).map(u16::from_be)
}

/// Families whose headers can be parsed.
pub trait Family: Address {
    /// Octets of the header without options.
    const HEADER: usize;

    /// Reads the network header at `l3`; ports are not filled in. With `THOROUGH` options, extension headers and fragments are
    /// read, otherwise they are [`Skip::Unusual`] and [`Packet::l4`] is a constant offset from `l3`.
    ///
    /// # Errors
    /// See [`Skip`].
    fn network<const THOROUGH: bool>(frame: &Frame, l3: usize) -> Result<Packet<Self>, Skip>;
}

impl Family for V4 {
    const HEADER: usize = IPV4;

    #[inline(always)]
    fn network<const THOROUGH: bool>(frame: &Frame, l3: usize) -> Result<Packet<Self>, Skip> {
        // Version and length, service, total length, identification, fragment; TTL, protocol, checksum; addresses.
        let head = octets(frame.read::<[u32; 3]>(l3).ok_or(Skip::Malformed)?);
        let [source, destination]: [u32; 2] = frame.read(l3 + 12).ok_or(Skip::Malformed)?;
        if head[0] >> 4 != 4 {
            return Err(Skip::Malformed);
        }
        let header = ((head[0] & 0x0f) as usize) * 4;
        if header < IPV4 {
            return Err(Skip::Malformed);
        }
        let total = u16::from_be_bytes([head[2], head[3]]) as usize;
        if total < header {
            return Err(Skip::Malformed);
        }
        let fragment = u16::from_be_bytes([head[6], head[7]]);
        let (more, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
        let (l4, part) = if THOROUGH {
            let part = match (more, offset) {
                (false, 0) => Part::Whole,
                (true, 0) => Part::First,
                _ => Part::Later,
            };
            (l3 + header, part)
        } else {
            if header != IPV4 || more || offset != 0 {
                return Err(Skip::Unusual);
            }
            (l3 + IPV4, Part::Whole)
        };
        let id = if matches!(part, Part::Whole) { 0 } else { u16::from_ne_bytes([head[4], head[5]]) as u32 };
        Ok(Packet { key: key(V4(source), V4(destination), head[9]), tcp_flags: 0, ttl: head[8], part, l4, id })
    }
}

/// A key without ports.
#[inline(always)]
fn key<A: Address>(source: A, destination: A, protocol: u8) -> ConnectionKey<A> {
    let mut key =
        ConnectionKey { source, destination, source_port: 0, destination_port: 0, protocol: 0, reserved: [0; 3] };
    // One store for the protocol and the octets behind it: three zeroes by themselves become a call of a loop.
    // SAFETY: the protocol and the reserved octets are four octets side by side, and their offset is a multiple of four.
    unsafe { (&raw mut key.protocol).cast::<u32>().write(u32::from_ne_bytes([protocol, 0, 0, 0])) };
    key
}

/// The octets of three words as they lie in the packet. Words are loaded with one instruction each, octets are not.
#[inline(always)]
const fn octets(words: [u32; 3]) -> [u8; 12] {
    let ([a, b, c, d], [e, f, g, h], [i, j, k, l]) =
        (words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes());
    [a, b, c, d, e, f, g, h, i, j, k, l]
}

/// Extension headers of IPv6 that are passed over (RFC 8200 section 4): hop-by-hop, routing, destination options.
const PASSED_OVER: [u8; 3] = [0, 43, 60];
/// Most extension headers of one packet.
const EXTENSIONS_MAX: usize = 4;

impl Family for V6 {
    const HEADER: usize = IPV6;

    #[inline(always)]
    fn network<const THOROUGH: bool>(frame: &Frame, l3: usize) -> Result<Packet<Self>, Skip> {
        let [first, second]: [u32; 2] = frame.read(l3).ok_or(Skip::Malformed)?;
        let version = first.to_ne_bytes()[0] >> 4;
        let [_, _, next_header, hop_limit] = second.to_ne_bytes();
        let source: V6 = frame.read(l3 + 8).ok_or(Skip::Malformed)?;
        let destination: V6 = frame.read(l3 + 24).ok_or(Skip::Malformed)?;
        if version != 6 {
            return Err(Skip::Malformed);
        }
        let mut packet = Packet {
            key: key(source, destination, next_header),
            tcp_flags: 0,
            ttl: hop_limit,
            part: Part::Whole,
            l4: l3 + IPV6,
            id: 0,
        };
        if !THOROUGH {
            return Ok(packet);
        }
        let mut seen = 0;
        while seen < EXTENSIONS_MAX {
            if packet.l4 > L4_MAX {
                return Err(Skip::OtherProtocol);
            }
            if packet.key.protocol == protocol::FRAGMENT {
                let extension: [u8; 8] = frame.read(packet.l4).ok_or(Skip::Malformed)?;
                let fragment = u16::from_be_bytes([extension[2], extension[3]]);
                packet.part = match (fragment & 1 != 0, fragment & 0xfff8) {
                    (false, 0) => Part::Whole,
                    (true, 0) => Part::First,
                    _ => Part::Later,
                };
                packet.id = u32::from_ne_bytes([extension[4], extension[5], extension[6], extension[7]]);
                packet.key.protocol = extension[0];
                packet.l4 += 8;
                if packet.part == Part::Later {
                    return Ok(packet);
                }
            } else if PASSED_OVER.contains(&packet.key.protocol) {
                let extension: [u8; 2] = frame.read(packet.l4).ok_or(Skip::Malformed)?;
                packet.key.protocol = extension[0];
                packet.l4 += (extension[1] as usize + 1) * 8;
            } else {
                return Ok(packet);
            }
            seen += 1;
        }
        Ok(packet)
    }
}

/// Parses a frame of one family whose network header begins at `l3`.
///
/// # Errors
/// [`Skip`] says why the packet is none that is served.
#[inline(always)]
pub fn parse<A: Family, const THOROUGH: bool>(frame: &Frame, l3: usize) -> Result<Packet<A>, Skip> {
    let mut packet = A::network::<THOROUGH>(frame, l3)?;
    if THOROUGH && packet.part == Part::Later {
        return match packet.key.protocol {
            protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6 => Ok(packet),
            _ => Err(Skip::OtherProtocol),
        };
    }
    transport::<A, THOROUGH>(frame, &mut packet)?;
    Ok(packet)
}

/// Reads the ports.
#[inline(always)]
fn transport<A: Family, const THOROUGH: bool>(frame: &Frame, packet: &mut Packet<A>) -> Result<(), Skip> {
    let l4 = packet.l4;
    if THOROUGH && l4 > L4_MAX {
        return Err(Skip::OtherProtocol);
    }
    let is_icmp = packet.key.protocol == if A::IS_V4 { protocol::ICMP } else { protocol::ICMPV6 };
    if is_icmp {
        if !THOROUGH {
            return Err(Skip::Unusual);
        }
        let head: [u8; 8] = frame.read(l4).ok_or(Skip::Malformed)?;
        let (request, reply) = if A::IS_V4 { (8, 0) } else { (128, 129) };
        let identifier = u16::from_ne_bytes([head[4], head[5]]);
        if head[0] == request {
            packet.key.source_port = identifier;
        } else if head[0] == reply {
            packet.key.destination_port = identifier;
        } else {
            return Err(if is_error::<A>(head[0]) { Skip::IcmpError } else { Skip::OtherProtocol });
        }
        return Ok(());
    }
    let needed = match packet.key.protocol {
        protocol::TCP => 20,
        protocol::UDP => 8,
        protocol::SCTP => 12,
        // An extension header after IPv6's own, which the fast parser does not pass over.
        _ if !THOROUGH && !A::IS_V4 => return Err(Skip::Unusual),
        _ => return Err(Skip::OtherProtocol),
    };
    let ports: [u16; 2] = frame.read(l4).ok_or(Skip::Malformed)?;
    // The last two octets of what there must be, by constant offsets.
    let whole = match needed {
        20 => frame.read::<u16>(l4 + 18).is_some(),
        12 => frame.read::<u16>(l4 + 10).is_some(),
        _ => frame.read::<u16>(l4 + 6).is_some(),
    };
    if !whole {
        return Err(Skip::Malformed);
    }
    if packet.key.protocol == protocol::TCP {
        let offset_and_flags: u16 = frame.read(l4 + 12).ok_or(Skip::Malformed)?;
        packet.tcp_flags = offset_and_flags.to_ne_bytes()[1];
    }
    packet.key.source_port = ports[0];
    packet.key.destination_port = ports[1];
    Ok(())
}
