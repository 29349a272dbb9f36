//! Frames of the tables: what is in their headers, and from that their bytes.
//!
//! A frame that a program is expected to make is built here from nothing, with sums by `etherparse`, so that comparing bytes
//! compares what the programs patched with what somebody else computed over everything. [`verify`] asks the same of a frame that
//! was not built here.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Header, Icmpv6Header, Ipv4Header, TcpHeader, UdpHeader};

/// A link-layer address.
pub(crate) type Mac = [u8; 6];

/// The node itself.
pub(crate) const OWN: Mac = [2, 0, 0, 0, 0, 1];
/// The router of the node, which sends what comes from outside.
pub(crate) const GATEWAY: Mac = [2, 0, 0, 0, 0, 0xfe];

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// Sum of an SCTP packet: a CRC over ports and data, which no program may need to change.
const CRC: [u8; 4] = [0xc0, 0xff, 0xee, 0x11];

/// What is behind the network header.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Tcp {
        ports: (u16, u16),
        flags: u8,
        data: Vec<u8>,
    },
    Udp {
        ports: (u16, u16),
        summed: bool,
        data: Vec<u8>,
    },
    Sctp {
        ports: (u16, u16),
        data: Vec<u8>,
    },
    Echo {
        is_reply: bool,
        id: u16,
        data: Vec<u8>,
    },
    /// An ICMP error: type, code, what is in the second word, and the packet it is about.
    Error {
        kind: u8,
        code: u8,
        word: u32,
        quoted: Vec<u8>,
    },
    Raw {
        protocol: u8,
        bytes: Vec<u8>,
    },
}

/// Which part of its datagram a frame is: offset and length in octets of what is behind the network header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub id: u32,
    pub offset: usize,
    pub length: usize,
}

/// A frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub to: Mac,
    pub from: Mac,
    /// Bytes before the Ethernet type: VLAN tags.
    pub tags: Vec<u8>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    /// Options of IPv4.
    pub options: Vec<u8>,
    /// Extension headers of IPv6: the number of each and its octets, of which the first is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub piece: Option<Piece>,
    /// IPv4: it must not be fragmented.
    pub whole: bool,
    pub body: Body,
}

fn frame(from: SocketAddr, to: SocketAddr, body: Body) -> Frame {
    between(from.ip(), to.ip(), body)
}

/// A frame with any body.
pub(crate) fn between(source: IpAddr, destination: IpAddr, body: Body) -> Frame {
    Frame {
        to: OWN,
        from: GATEWAY,
        tags: Vec::new(),
        source,
        destination,
        ttl: 64,
        options: Vec::new(),
        extensions: Vec::new(),
        piece: None,
        whole: false,
        body,
    }
}

/// A TCP packet in the middle of a connection.
pub(crate) fn tcp(from: SocketAddr, to: SocketAddr) -> Frame {
    frame(from, to, Body::Tcp { ports: (from.port(), to.port()), flags: ACK | PSH, data: b"hello, world".to_vec() })
}

/// The packet that opens a TCP connection.
pub(crate) fn syn(from: SocketAddr, to: SocketAddr) -> Frame {
    tcp(from, to).flags(SYN).data(b"")
}

/// A UDP datagram.
pub(crate) fn udp(from: SocketAddr, to: SocketAddr) -> Frame {
    frame(from, to, Body::Udp { ports: (from.port(), to.port()), summed: true, data: b"datagram".to_vec() })
}

/// An SCTP packet.
pub(crate) fn sctp(from: SocketAddr, to: SocketAddr) -> Frame {
    frame(from, to, Body::Sctp { ports: (from.port(), to.port()), data: b"\x01chunk".to_vec() })
}

/// A packet of one of the three protocols; a TCP packet is one that opens a connection.
pub(crate) fn opening(protocol: u8, from: SocketAddr, to: SocketAddr) -> Frame {
    match protocol {
        TCP => syn(from, to),
        _ => packet(protocol, from, to),
    }
}

/// A packet of one of the three protocols, in the middle of a connection.
pub(crate) fn packet(protocol: u8, from: SocketAddr, to: SocketAddr) -> Frame {
    match protocol {
        TCP => tcp(from, to),
        UDP => udp(from, to),
        SCTP => sctp(from, to),
        _ => unreachable!("no ports in protocol {protocol}"),
    }
}

/// An echo request.
pub(crate) fn ping(source: IpAddr, destination: IpAddr, id: u16) -> Frame {
    between(source, destination, Body::Echo { is_reply: false, id, data: b"echo, echo".to_vec() })
}

/// An echo reply.
pub(crate) fn pong(source: IpAddr, destination: IpAddr, id: u16) -> Frame {
    between(source, destination, Body::Echo { is_reply: true, id, data: b"echo, echo".to_vec() })
}

impl Frame {
    pub(crate) fn flags(mut self, new: u8) -> Self {
        if let Body::Tcp { flags, .. } = &mut self.body {
            *flags = new;
        }
        self
    }

    pub(crate) fn data(mut self, new: &[u8]) -> Self {
        match &mut self.body {
            Body::Tcp { data, .. } | Body::Udp { data, .. } | Body::Sctp { data, .. } | Body::Echo { data, .. } => {
                *data = new.to_vec();
            }
            Body::Error { .. } | Body::Raw { .. } => {}
        }
        self
    }

    /// UDP without a sum.
    pub(crate) fn unsummed(mut self) -> Self {
        if let Body::Udp { summed, .. } = &mut self.body {
            *summed = false;
        }
        self
    }

    pub(crate) fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// As it leaves to a neighbor: its address, ours, one hop less.
    pub(crate) fn sent(mut self, to: Mac, from: Mac) -> Self {
        (self.to, self.from) = (to, from);
        self.ttl -= 1;
        self
    }

    /// As it arrives from somebody else than the gateway.
    pub(crate) fn by(mut self, from: Mac) -> Self {
        self.from = from;
        self
    }

    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub(crate) fn extension(mut self, number: u8, octets: &[u8]) -> Self {
        self.extensions.push((number, octets.to_vec()));
        self
    }

    pub(crate) fn tag(mut self, tag: &[u8]) -> Self {
        self.tags.extend_from_slice(tag);
        self
    }

    /// Not to be fragmented.
    pub(crate) fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// A fragment: `length` octets from `offset` of what is behind the network header.
    pub(crate) fn piece(mut self, id: u32, offset: usize, length: usize) -> Self {
        self.piece = Some(Piece { id, offset, length });
        self
    }

    /// What is behind the network header, whole, with its sum.
    fn body(&self) -> (u8, Vec<u8>) {
        let ports = |ports: &(u16, u16)| [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        let (protocol, sum_at, mut bytes) = match &self.body {
            Body::Tcp { ports: numbers, flags, data } => {
                let rest = [0, 0, 0, 7, 0, 0, 0, 9, 5 << 4, *flags, 0x40, 0, 0, 0, 0, 0];
                (TCP, Some(16), [&ports(numbers)[..], &rest, data].concat())
            }
            Body::Udp { ports: numbers, summed, data } => {
                let length = (8 + data.len() as u16).to_be_bytes();
                (UDP, summed.then_some(6), [&ports(numbers)[..], &length, &[0, 0], data].concat())
            }
            Body::Sctp { ports: numbers, data } => {
                (SCTP, None, [&ports(numbers)[..], &[0, 0, 0, 5], &CRC, data].concat())
            }
            Body::Echo { is_reply, id, data } => {
                let (protocol, kind) = match (self.source, is_reply) {
                    (IpAddr::V4(_), false) => (ICMP, 8),
                    (IpAddr::V4(_), true) => (ICMP, 0),
                    (IpAddr::V6(_), false) => (ICMPV6, 128),
                    (IpAddr::V6(_), true) => (ICMPV6, 129),
                };
                (protocol, Some(2), [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 3], data].concat())
            }
            Body::Error { kind, code, word, quoted } => {
                let protocol = if self.source.is_ipv4() { ICMP } else { ICMPV6 };
                (protocol, Some(2), [&[*kind, *code, 0, 0][..], &word.to_be_bytes(), quoted].concat())
            }
            Body::Raw { protocol, bytes } => (*protocol, None, bytes.clone()),
        };
        if let Some(at) = sum_at {
            let sum = sum(self.source, self.destination, protocol, &bytes);
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        (protocol, bytes)
    }

    /// Octets behind the headers of the network, of all fragments together.
    pub(crate) fn body_len(&self) -> usize {
        self.body().1.len()
    }

    /// The network header and what follows.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let (protocol, body) = self.body();
        let part = self.piece.map_or(&body[..], |piece| &body[piece.offset..piece.offset + piece.length]);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (id, fragment) = self.piece.map_or((1, if self.whole { 0x4000 } else { 0 }), |piece| {
                    let more = if piece.offset + piece.length < body.len() { 0x2000 } else { 0 };
                    (piece.id as u16, (piece.offset / 8) as u16 | more)
                });
                let header = 20 + self.options.len();
                let mut bytes = vec![0x40 | (header / 4) as u8, 0];
                bytes.extend(((header + part.len()) as u16).to_be_bytes());
                bytes.extend(id.to_be_bytes());
                bytes.extend(fragment.to_be_bytes());
                bytes.extend([self.ttl, protocol, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(&self.options);
                let (parsed, _) = Ipv4Header::from_slice(&bytes).expect("an IPv4 header");
                bytes[10..12].copy_from_slice(&parsed.calc_header_checksum().to_be_bytes());
                [&bytes, part].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions = self.extensions.clone();
                if let Some(piece) = self.piece {
                    let more = u16::from(piece.offset + piece.length < body.len());
                    let fragment = (piece.offset as u16 | more).to_be_bytes();
                    extensions.push((44, [&[0, 0], &fragment[..], &piece.id.to_be_bytes()].concat()));
                }
                let mut next = protocol;
                let mut chain = part.to_vec();
                for (number, octets) in extensions.iter().rev() {
                    chain = [&[next], &octets[1..], &chain].concat();
                    next = *number;
                }
                let length = (chain.len() as u16).to_be_bytes();
                let head = [0x60, 0, 0, 0, length[0], length[1], next, self.ttl];
                [&head[..], &source.octets(), &destination.octets(), &chain].concat()
            }
            _ => unreachable!("one family at a time"),
        }
    }

    /// The whole frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let ethertype: [u8; 2] = if self.source.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
        [&self.to[..], &self.from, &self.tags, &ethertype, &self.packet()].concat()
    }
}

/// The sum of layer 4 over everything, as `etherparse` computes it; what stands in its place does not matter.
fn sum(source: IpAddr, destination: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    match (source, destination, protocol) {
        (IpAddr::V4(source), IpAddr::V4(destination), TCP) => {
            let (header, data) = TcpHeader::from_slice(bytes).expect("a TCP header");
            header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), data).expect("a length")
        }
        (IpAddr::V6(source), IpAddr::V6(destination), TCP) => {
            let (header, data) = TcpHeader::from_slice(bytes).expect("a TCP header");
            header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), data).expect("a length")
        }
        (IpAddr::V4(source), IpAddr::V4(destination), UDP) => {
            let (header, data) = UdpHeader::from_slice(bytes).expect("a UDP header");
            header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), data).expect("a length")
        }
        (IpAddr::V6(source), IpAddr::V6(destination), UDP) => {
            let (header, data) = UdpHeader::from_slice(bytes).expect("a UDP header");
            header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), data).expect("a length")
        }
        (_, _, ICMP) => {
            let (mut header, data) = Icmpv4Header::from_slice(bytes).expect("an ICMP header");
            header.update_checksum(data);
            header.checksum
        }
        (IpAddr::V6(source), IpAddr::V6(destination), ICMPV6) => {
            let (mut header, data) = Icmpv6Header::from_slice(bytes).expect("an ICMPv6 header");
            header.update_checksum(source.octets(), destination.octets(), data).expect("a length");
            header.checksum
        }
        _ => unreachable!("no sum in protocol {protocol}"),
    }
}

/// Checks every sum of a frame of IP; those of layer 4 only where all of it is there.
pub(crate) fn verify(frame: &[u8]) -> Result<(), String> {
    match frame.get(12..14) {
        Some([8, 0] | [0x86, 0xdd]) => verify_packet(&frame[14..]),
        _ => Ok(()),
    }
}

fn verify_packet(packet: &[u8]) -> Result<(), String> {
    let short = || "cut short".to_owned();
    if packet.first().ok_or_else(short)? >> 4 == 4 {
        let (header, rest) = Ipv4Header::from_slice(packet).map_err(|error| error.to_string())?;
        equal("IPv4 header", header.header_checksum, header.calc_header_checksum())?;
        let length = usize::from(header.total_len).checked_sub(header.header_len()).ok_or_else(short)?;
        if header.is_fragmenting_payload() || rest.len() < length {
            return Ok(());
        }
        return verify_body(header.source.into(), header.destination.into(), header.protocol.0, &rest[..length]);
    }
    if packet.len() < 40 {
        return Ok(());
    }
    let address = |at: usize| -> Result<IpAddr, String> {
        let octets: [u8; 16] = packet.get(at..at + 16).ok_or_else(short)?.try_into().expect("sixteen");
        Ok(octets.into())
    };
    let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let (mut next, mut rest) = (packet[6], packet.get(40..40 + length).unwrap_or_default());
    loop {
        match (next, rest) {
            (0 | 43 | 60, [following, words, ..]) => {
                next = *following;
                rest = rest.get((usize::from(*words) + 1) * 8..).ok_or_else(short)?;
            }
            (44, [following, _, 0, 0, _, _, _, _, behind @ ..]) => (next, rest) = (*following, behind),
            (0 | 43 | 60 | 44, _) => return Ok(()),
            _ => return verify_body(address(8)?, address(24)?, next, rest),
        }
    }
}

fn verify_body(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Result<(), String> {
    let at = match protocol {
        // The sum covers options, too.
        TCP if TcpHeader::from_slice(body).is_ok() => 16,
        UDP if body.len() >= 8 => 6,
        // Timestamps have a length of their own, and nobody translates them.
        ICMP if body.len() >= 8 && !matches!(body[0], 13 | 14) => 2,
        ICMPV6 if body.len() >= 8 => 2,
        _ => return Ok(()),
    };
    let found = u16::from_be_bytes([body[at], body[at + 1]]);
    if protocol == UDP && found == 0 {
        return Ok(());
    }
    equal("layer 4", found, sum(source, destination, protocol, body))?;
    let is_error = match protocol {
        ICMP => matches!(body[0], 3 | 11 | 12),
        ICMPV6 => (1..=4).contains(&body[0]),
        _ => false,
    };
    if is_error && body.len() >= 8 + 20 { verify_packet(&body[8..]) } else { Ok(()) }
}

fn equal(what: &str, found: u16, computed: u16) -> Result<(), String> {
    if found == computed { Ok(()) } else { Err(format!("{what}: sum {found:04x}, computed {computed:04x}")) }
}

/// Two octets of data that make the sum of a UDP datagram come out as zero, which is written as 0xffff: the sum of all the rest.
pub(crate) fn octets_for_sum_zero(frame: &Frame) -> [u8; 2] {
    let (_, bytes) = frame.clone().data(&[0, 0]).body();
    [bytes[6], bytes[7]]
}
