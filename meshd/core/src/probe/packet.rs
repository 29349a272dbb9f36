//! Probes as bytes.
//!
//! ```text
//!  question: IP · UDP · "MSHP" version kind 0 0 · token (16) · size (4) · zeros up to the size that is tried
//!  answer:             "MSHP" version 3    0 0 · token (16) · size (4)           between the nodes, never longer than its question
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::derive::TunnelSettings;

const MAGIC: [u8; 4] = *b"MSHP";
const VERSION: u8 = 1;
const ANSWER: u8 = 3;
/// Octets of what a question or an answer says.
pub const MESSAGE_LEN: usize = 28;
const UDP: u8 = 17;
const UDP_LEN: usize = 8;
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
/// Octets of VXLAN and Ethernet headers in front of the packet.
const VXLAN_LEN: usize = 8 + 14;
/// How a VXLAN header with a VNI begins (RFC 7348).
const VXLAN_HEAD: [u8; 4] = [0x08, 0, 0, 0];
/// How a Geneve header around Ethernet begins that has no options (RFC 8926).
const GENEVE_HEAD: [u8; 4] = [0, 0, 0x65, 0x58];
/// Link-layer addresses inside the tunnel: local ones that no link has.
const FRAME: [u8; 12] = [0x02, b'm', b'e', b's', b'h', 2, 0x02, b'm', b'e', b's', b'h', 1];

/// Proof that an answer belongs to a question: whoever has not seen the question does not know it.
pub type Token = [u8; 16];

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Address of the asking node's prefix.
    pub source: IpAddr,
    /// Address of the asked node's prefix, of the same family.
    pub destination: IpAddr,
    /// UDP port of both.
    pub port: u16,
    /// Sent through the tunnel?
    pub tunnelled: bool,
    /// The token.
    pub token: Token,
}

impl Question {
    /// The packet, with `size` octets in all as far as that is possible. `None` when the addresses are of two families.
    #[must_use]
    pub fn encode(&self, size: u16) -> Option<Vec<u8>> {
        let headers = match (self.source, self.destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => V4_LEN,
            (IpAddr::V6(_), IpAddr::V6(_)) => V6_LEN,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        let size = usize::from(size).max(headers + UDP_LEN + MESSAGE_LEN);
        let udp_len = u16::try_from(size - headers).ok()?;
        let mut udp = Vec::with_capacity(size - headers);
        for word in [self.port, self.port, udp_len, 0] {
            udp.extend(word.to_be_bytes());
        }
        udp.extend(message(if self.tunnelled { 2 } else { 1 }, &self.token, u32::try_from(size).ok()?));
        udp.resize(size - headers, 0);
        let sum = checksum(&[&pseudo(self.source, self.destination, udp_len), &udp]);
        // Zero would say that there is none.
        udp[6..8].copy_from_slice(&(if sum == 0 { u16::MAX } else { sum }).to_be_bytes());
        let mut packet = Vec::with_capacity(size);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let total = u16::try_from(size).ok()?.to_be_bytes();
                packet.extend([0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, UDP, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                let sum = checksum(&[&packet]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let length = udp_len.to_be_bytes();
                packet.extend([0x60, 0, 0, 0, length[0], length[1], UDP, 64]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        }
        packet.extend(udp);
        Some(packet)
    }

    /// Reads a packet that was routed to our probe address; `None` when it is something else.
    #[must_use]
    pub fn decode(packet: &[u8], port: u16) -> Option<(Self, u16)> {
        let (source, destination, udp) = match packet.first()? >> 4 {
            4 => {
                let header = packet.first_chunk::<V4_LEN>()?;
                // Options and fragments are nothing that we send.
                if header[0] != 0x45 || header[9] != UDP || u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
                    return None;
                }
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
                (IpAddr::V4(address(12)), IpAddr::V4(address(16)), packet.get(V4_LEN..total)?)
            }
            6 => {
                let header = packet.first_chunk::<V6_LEN>()?;
                let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
                if header[6] != UDP {
                    return None;
                }
                let address = |at: usize| -> Option<Ipv6Addr> {
                    Some(Ipv6Addr::from(*header.get(at..at + 16)?.first_chunk::<16>()?))
                };
                let udp = packet.get(V6_LEN..V6_LEN + length)?;
                (IpAddr::V6(address(8)?), IpAddr::V6(address(24)?), udp)
            }
            _ => return None,
        };
        let header = udp.first_chunk::<UDP_LEN>()?;
        if u16::from_be_bytes([header[2], header[3]]) != port {
            return None;
        }
        let (kind, token, size) = read(&udp[UDP_LEN..])?;
        let tunnelled = match kind {
            1 => false,
            2 => true,
            _ => return None,
        };
        let size = u16::try_from(size).ok()?;
        (usize::from(size) == packet.len()).then_some((Self { source, destination, port, tunnelled, token }, size))
    }
}

/// A packet in a tunnel's header, as it stands in a datagram to the other end.
#[must_use]
pub fn encapsulate(tunnel: TunnelSettings, packet: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(VXLAN_LEN + packet.len());
    datagram.extend(if tunnel.geneve { GENEVE_HEAD } else { VXLAN_HEAD });
    datagram.extend((tunnel.vni << 8).to_be_bytes());
    datagram.extend(FRAME);
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    datagram.extend(if is_v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    datagram.extend(packet);
    datagram
}

/// The answer to a question.
#[must_use]
pub fn answer(token: &Token, size: u16) -> [u8; MESSAGE_LEN] {
    message(ANSWER, token, size.into())
}

/// Reads an answer.
#[must_use]
pub fn read_answer(datagram: &[u8]) -> Option<Token> {
    let (kind, token, _) = read(datagram)?;
    (kind == ANSWER && datagram.len() == MESSAGE_LEN).then_some(token)
}

fn message(kind: u8, token: &Token, size: u32) -> [u8; MESSAGE_LEN] {
    let mut message = [0; MESSAGE_LEN];
    message[..4].copy_from_slice(&MAGIC);
    message[4..6].copy_from_slice(&[VERSION, kind]);
    message[8..24].copy_from_slice(token);
    message[24..].copy_from_slice(&size.to_be_bytes());
    message
}

fn read(bytes: &[u8]) -> Option<(u8, Token, u32)> {
    let message = bytes.first_chunk::<MESSAGE_LEN>()?;
    if message[..4] != MAGIC || message[4] != VERSION {
        return None;
    }
    let size = u32::from_be_bytes([message[24], message[25], message[26], message[27]]);
    Some((message[5], *message[8..24].first_chunk()?, size))
}

fn pseudo(source: IpAddr, destination: IpAddr, length: u16) -> Vec<u8> {
    let mut header = Vec::with_capacity(40);
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => header.extend(address.octets()),
            IpAddr::V6(address) => header.extend(address.octets()),
        }
    }
    header.extend(length.to_be_bytes());
    header.extend([0, UDP]);
    header
}

/// The Internet checksum (RFC 1071) over parts, each but the last of an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(ipv4: bool) -> Question {
        let address = |last: u8| {
            if ipv4 { IpAddr::from([10, 0, last, 0]) } else { format!("fd00:{last}::ffff").parse().unwrap() }
        };
        Question { source: address(1), destination: address(2), port: 7747, tunnelled: true, token: [7; 16] }
    }

    #[test]
    fn a_question_is_a_packet_with_right_checksums() {
        for ipv4 in [true, false] {
            for size in [0, 100, 1500] {
                let question = question(ipv4);
                let packet = question.encode(size).unwrap();
                let headers = if ipv4 { V4_LEN } else { V6_LEN };
                let least = headers + UDP_LEN + MESSAGE_LEN;
                assert_eq!(packet.len(), usize::from(size).max(least));
                assert_eq!(Question::decode(&packet, 7747), Some((question, u16::try_from(packet.len()).unwrap())));
                assert_eq!(Question::decode(&packet, 7748), None, "another port");
                if ipv4 {
                    assert_eq!(checksum(&[&packet[..V4_LEN]]), 0);
                }
                let length = u16::try_from(packet.len() - headers).unwrap();
                let pseudo = pseudo(question.source, question.destination, length);
                assert_eq!(checksum(&[&pseudo, &packet[headers..]]), 0);
                // No answer is longer than its question, and none is taken for a question.
                let answer = answer(&question.token, size);
                assert!(answer.len() < packet.len());
                assert_eq!(read_answer(&answer), Some(question.token));
                assert_eq!(read_answer(&packet[headers + UDP_LEN..]), None);
            }
        }
    }

    #[test]
    fn a_tunnel_header_is_the_one_of_rfc_7348() {
        let packet = question(true).encode(0).unwrap();
        let tunnel = TunnelSettings { port: 8472, vni: 0x01_02_03, geneve: false, any_source: false };
        let geneve = encapsulate(TunnelSettings { geneve: true, ..tunnel }, &packet);
        let datagram = encapsulate(tunnel, &packet);
        assert_eq!(datagram[..8], [0x08, 0, 0, 0, 1, 2, 3, 0]);
        assert_eq!(geneve[..8], [0, 0, 0x65, 0x58, 1, 2, 3, 0]);
        assert_eq!(geneve[8..], datagram[8..]);
        assert_eq!(datagram[20..22], [0x08, 0x00]);
        assert_eq!(datagram[22..], packet);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, cut in 0usize..80, flip in 0usize..80, bit in 0u8..8) {
            let _read = Question::decode(&bytes, 7747);
            let _read = read_answer(&bytes);
            for ipv4 in [true, false] {
                let mut packet = question(ipv4).encode(0).unwrap();
                let whole = packet.len();
                let cut = cut.min(whole);
                if cut < whole {
                    assert_eq!(Question::decode(&packet[..cut], 7747), None);
                }
                packet[flip % whole] ^= 1 << bit;
                let _read = Question::decode(&packet, 7747);
            }
        }
    }
}
