//! Whole IP packets with UDP inside, as echo packets need them: their destination is their sender, so no ordinary socket
//! makes them.

use std::net::{IpAddr, Ipv4Addr};

use bgp::bfd::ECHO_PORT;

/// Protocol number of UDP.
const UDP: u8 = 17;
/// Octets of an IPv4 header without options.
const IPV4_LEN: usize = 20;
/// Octets of a UDP header.
const UDP_LEN: usize = 8;
/// Traffic class CS6, and the TTL of what comes from no farther than the link.
const TRAFFIC_CLASS: u8 = 0xc0;
pub(crate) const TTL: u8 = 255;
/// The bits of an IPv4 header that say that a packet is not whole: more fragments, and the offset.
const FRAGMENT: u16 = 0x3fff;

/// A packet from and to the port of echo packets. The IPv4 header has no checksum, which the kernel writes.
pub(crate) fn encode(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(UDP_LEN + payload.len()).unwrap_or(u16::MAX);
    let (mut packet, addresses) = match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60 | (TRAFFIC_CLASS >> 4), TRAFFIC_CLASS << 4, 0, 0];
            header.extend(udp_len.to_be_bytes());
            header.extend([UDP, TTL]);
            let addresses = [source.octets(), destination.octets()].concat();
            header.extend(&addresses);
            (header, addresses)
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(address) => Ipv4Addr::octets(&address),
                IpAddr::V6(address) => address.to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
            };
            let mut header = vec![0x45, TRAFFIC_CLASS];
            let length = udp_len.saturating_add(u16::try_from(IPV4_LEN).unwrap_or(u16::MAX));
            header.extend(length.to_be_bytes());
            // The identification is the kernel's; the packet is not to be fragmented.
            header.extend([0, 0, 0x40, 0, TTL, UDP, 0, 0]);
            let addresses = [octets(source), octets(destination)].concat();
            header.extend(&addresses);
            (header, addresses)
        }
    };
    let mut udp = [ECHO_PORT, ECHO_PORT, udp_len, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let pseudo_header = [addresses.as_slice(), &[0, UDP], &udp_len.to_be_bytes()].concat();
    let sum = checksum(pseudo_header.iter().chain(&udp));
    if let Some(place) = udp.get_mut(6..UDP_LEN) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    packet.append(&mut udp);
    packet
}

/// What an IPv4 packet to the port of echo packets says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) ttl: u8,
    pub(crate) payload: &'a [u8],
}

/// Reads a whole IPv4 packet from its header on; `None` for everything that is not UDP to the port of echo packets. What follows
/// it on the wire, as padding of short frames, is left out.
pub(crate) fn decode_ipv4(octets: &[u8]) -> Option<Datagram<'_>> {
    let (header, _) = octets.split_first_chunk::<IPV4_LEN>()?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT != 0;
    if header[0] >> 4 != 4 || header_len < IPV4_LEN || is_fragment || header[9] != UDP {
        return None;
    }
    let (udp, rest) = octets.get(header_len..length)?.split_first_chunk::<UDP_LEN>()?;
    let udp_len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    if u16::from_be_bytes([udp[2], udp[3]]) != ECHO_PORT {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    Some(Datagram {
        source: address(12),
        destination: address(16),
        ttl: header[8],
        payload: rest.get(..udp_len.checked_sub(UDP_LEN)?)?,
    })
}

/// The Internet checksum (RFC 1071); never 0, which in UDP means that there is none.
fn checksum<'a>(octets: impl Iterator<Item = &'a u8>) -> u16 {
    let mut sum = 0_u32;
    for (number, octet) in octets.enumerate() {
        let shift = if number % 2 == 0 { 8 } else { 0 };
        sum += u32::from(*octet) << shift;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !u16::try_from(sum).unwrap_or(u16::MAX) {
        0 => u16::MAX,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_ipv4_packet_is_read_as_it_was_written() {
        let packet = encode(ip("10.255.1.1"), ip("192.0.2.1"), b"payload");
        assert_eq!(packet.len(), 20 + 8 + 7);
        assert_eq!(packet[..10], [0x45, 0xc0, 0, 35, 0, 0, 0x40, 0, 255, 17]);
        let expected = Datagram {
            source: Ipv4Addr::new(10, 255, 1, 1),
            destination: Ipv4Addr::new(192, 0, 2, 1),
            ttl: 255,
            payload: b"payload",
        };
        assert_eq!(decode_ipv4(&packet), Some(expected));
        let padded = [packet.as_slice(), &[0; 18]].concat();
        assert_eq!(decode_ipv4(&padded), Some(expected));
        for length in 0..packet.len() {
            assert_eq!(decode_ipv4(&packet[..length]), None, "cut after {length}");
        }
        let with_options = [&[0x46], &packet[1..3], &[39], &packet[4..20], &[1, 1, 1, 0], &packet[20..]].concat();
        assert_eq!(decode_ipv4(&with_options), Some(expected));
        // Version, fragments, protocol, port, and lengths that cannot be.
        for (place, octet) in [(0, 0x65), (0, 0x44), (6, 0x20), (7, 1), (9, 6), (23, 200), (25, 7), (25, 200), (3, 27)]
        {
            let mut wrong = packet.clone();
            wrong[place] = octet;
            assert_eq!(decode_ipv4(&wrong), None, "{octet:#x} at {place}");
        }
    }

    /// What a sum over everything gives when the checksum in it is right.
    #[test]
    fn checksums_are_right() {
        for (source, destination, header_len) in [("10.255.1.1", "192.0.2.1", 20), ("fd00:1::1", "2001:db8::1", 40)] {
            for payload in [&b"even"[..], b"odd", b""] {
                let packet = encode(ip(source), ip(destination), payload);
                let addresses = if header_len == 20 { &packet[12..20] } else { &packet[8..40] };
                let udp = &packet[header_len..];
                let pseudo_header = [addresses, &[0, UDP], &udp[4..6]].concat();
                let sum = checksum(pseudo_header.iter().chain(udp));
                assert_eq!(sum, u16::MAX, "{source} {payload:?}");
                assert_ne!(udp[6..8], [0, 0]);
            }
        }
        let packet = encode(ip("fd00:1::1"), ip("2001:db8::1"), b"payload");
        assert_eq!(packet[..8], [0x6c, 0, 0, 0, 0, 15, 17, 255]);
    }
}
