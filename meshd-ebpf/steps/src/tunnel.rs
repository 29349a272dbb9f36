//! Frames of a tunnel: VXLAN (RFC 7348) and Geneve without options (RFC 8926), which differ in eight octets.
//!
//! ```text
//! Ethernet │ IP from node to node │ UDP │ VXLAN or Geneve: 8 octets with the VNI │ Ethernet │ the packet
//! ```
//!
//! UDP has no sum, also between IPv6 nodes (RFC 6936): what is inside has its own.

use crate::{
    Frame,
    dsr::{ETHERNET_INSIDE, Ends, put_outer},
    header::{ETHERNET, Family, protocol},
    rewrite::written,
};

/// Octets of UDP and of VXLAN or Geneve.
pub const UDP_TUNNEL: usize = 16;
/// The flag of VXLAN which says that there is a VNI.
const VXLAN_VNI: u8 = 0x08;
/// Bits of the service octet that tell of congestion (RFC 3168).
const ECN: u8 = 0x03;
/// Congestion was experienced.
pub const ECN_CE: u8 = 0x03;
/// A sender that understands congestion marks.
const ECN_ECT0: u8 = 0x02;

/// What the eight octets behind UDP are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// VXLAN with this VNI.
    Vxlan(u32),
    /// Geneve with this VNI around Ethernet.
    Geneve(u32),
    /// Geneve with options.
    GeneveOptions,
    /// Nothing that is known.
    Other,
}

/// What a frame's headers say besides its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrap {
    /// Length of the packet inside.
    pub length: u32,
    /// VNI.
    pub vni: u32,
    /// UDP port of the receiver, host byte order.
    pub port: u16,
    /// Bits by which flows differ.
    pub entropy: u16,
    /// Ethernet type of the packet inside, network byte order.
    pub ethertype: u16,
    /// The service octet of the packet inside.
    pub service: u8,
    /// Geneve instead of VXLAN.
    pub geneve: bool,
}

/// Octets that are put around a packet, without the link-layer header that is in front of all.
#[must_use]
#[inline(always)]
pub const fn overhead<A: Family>() -> usize {
    A::HEADER + UDP_TUNNEL + ETHERNET
}

/// The service octet of the outer header: what it tells of congestion is carried over, and a mark on the way inside begins anew
/// (RFC 6040 section 4.1, as Linux does it).
#[must_use]
#[inline(always)]
pub const fn outer_service(inner: u8) -> u8 {
    if inner & ECN == ECN_CE { ECN_ECT0 } else { inner & ECN }
}

/// Writes everything that goes around a packet at `l3`; `link` are the addresses of the frame inside.
#[must_use]
#[inline(always)]
pub fn put<A: Family>(frame: &Frame, l3: usize, ends: &Ends<A>, wrap: &Wrap, link: [u16; 6]) -> Option<()> {
    let length = wrap.length + (UDP_TUNNEL + ETHERNET) as u32;
    put_outer(frame, l3, length, protocol::UDP, ends, outer_service(wrap.service))?;
    let udp = l3 + A::HEADER;
    let [_, _, high, low] = length.to_be_bytes();
    let [sa, sb] = (wrap.entropy | 0xc000).to_be_bytes();
    let [da, db] = wrap.port.to_be_bytes();
    written(frame.write(udp, [sa, sb, da, db, high, low, 0, 0]))?;
    let [_, a, b, c] = wrap.vni.to_be_bytes();
    let [ea, eb] = ETHERNET_INSIDE.to_be_bytes();
    let head = if wrap.geneve { [0, 0, ea, eb, a, b, c, 0] } else { [VXLAN_VNI, 0, 0, 0, a, b, c, 0] };
    written(frame.write(udp + 8, head))?;
    written(frame.write(udp + UDP_TUNNEL, link))?;
    written(frame.write(udp + UDP_TUNNEL + 12, wrap.ethertype))
}

/// The eight octets behind the UDP header at `udp`.
#[must_use]
#[inline(always)]
pub fn head(frame: &Frame, udp: usize) -> Option<Head> {
    let [first, second, pa, pb, a, b, c, _]: [u8; 8] = frame.read(udp + 8)?;
    let vni = u32::from_be_bytes([0, a, b, c]);
    if [first, second, pa, pb] == [VXLAN_VNI, 0, 0, 0] {
        return Some(Head::Vxlan(vni));
    }
    // Version 0; what only control packets have is for whoever knows it.
    if first & 0xc0 != 0 || second & 0x80 != 0 || [pa, pb] != ETHERNET_INSIDE.to_be_bytes() {
        return Some(Head::Other);
    }
    Some(if first == 0 { Head::Geneve(vni) } else { Head::GeneveOptions })
}

#[cfg(test)]
mod tests {
    use meshd_abi::{V4, V6};

    use super::*;

    fn frame(octets: &mut [u8]) -> Frame {
        let start = octets.as_mut_ptr() as usize;
        // SAFETY: the array lives longer than the frame, and nobody else uses it meanwhile.
        unsafe { Frame::new(start, start + octets.len()) }
    }

    const WRAP: Wrap = Wrap {
        length: 100,
        vni: 0x0001_0203,
        port: 8472,
        entropy: 0x1234,
        ethertype: 0x0800_u16.to_be(),
        service: 0xb8 | 0x01,
        geneve: false,
    };

    #[test]
    fn a_frame_is_written_as_the_rfcs_have_it() {
        let mut octets = [0; 14 + 50];
        let ends = Ends { from: V4::from_octets([192, 0, 2, 1]), to: V4::from_octets([192, 0, 2, 2]) };
        let link = [0x0102_u16.to_be(); 6];
        put(&frame(&mut octets), 14, &ends, &WRAP, link).expect("there is room");
        assert_eq!(octets[14..26], [0x45, 1, 0, 150, 0, 0, 0x40, 0, 64, 17, 0xb6, 0x52]);
        assert_eq!(octets[34..42], [0xd2, 0x34, 0x21, 0x18, 0, 130, 0, 0]);
        assert_eq!(octets[42..50], [8, 0, 0, 0, 1, 2, 3, 0]);
        assert_eq!(octets[50..64], [1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 8, 0]);
        assert_eq!(head(&frame(&mut octets), 34), Some(Head::Vxlan(0x0001_0203)));
    }

    #[test]
    fn geneve_between_ipv6_nodes() {
        let mut octets = [0; 14 + 70];
        let ends = Ends { from: V6::from_octets([1; 16]), to: V6::from_octets([2; 16]) };
        put(&frame(&mut octets), 14, &ends, &Wrap { geneve: true, ..WRAP }, [0; 6]).expect("there is room");
        assert_eq!(octets[14..22], [0x60, 0x10, 0, 0, 0, 130, 17, 64]);
        assert_eq!(octets[62..70], [0, 0, 0x65, 0x58, 1, 2, 3, 0]);
        assert_eq!(head(&frame(&mut octets), 54), Some(Head::Geneve(0x0001_0203)));
        for (at, octet, expected) in
            [(62, 2, Head::GeneveOptions), (62, 0x40, Head::Other), (63, 0x80, Head::Other), (64, 0x08, Head::Other)]
        {
            let mut other = octets;
            other[at] = octet;
            assert_eq!(head(&frame(&mut other), 54), Some(expected), "{at}");
        }
        assert_eq!(head(&frame(&mut octets[..69]), 54), None);
    }

    #[test]
    fn congestion_marks_begin_anew_inside_of_a_tunnel() {
        assert_eq!([0xb8, 1, 2, 3].map(outer_service), [0, 1, 2, 2]);
    }
}
