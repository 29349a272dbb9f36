//! Writing another tuple into a packet.

use meshd_abi::Tuple;

use crate::{
    Frame, Packet, Part,
    checksum::Difference,
    header::{Family, L4_MAX, protocol},
};

/// What a rewrite did to the sum of layer 4.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changed {
    /// By the addresses, which are part of the pseudo header.
    pub pseudo: Difference,
    /// By the ports.
    pub ports: Difference,
}

/// Writes addresses, ports and the header checksum of IPv4, and with `forward` a TTL that is one lower. The checksum of layer
/// 4 is left to the caller, because in an skb it can be half a checksum.
///
/// `None` when the headers are not inside of the frame: nothing useful was written then, and the packet must be dropped.
#[must_use]
#[inline(always)]
pub fn rewrite<A: Family>(
    frame: &Frame,
    l3: usize,
    packet: &Packet<A>,
    to: &Tuple<A>,
    forward: bool,
) -> Option<Changed> {
    let mut changed = Changed { pseudo: network(frame, l3, packet, to, forward)?, ports: Difference::default() };
    if packet.part != Part::Later {
        changed.ports = ports(frame, packet, to)?;
    }
    Some(changed)
}

/// Writes addresses, the header checksum of IPv4, and with `forward` a TTL that is one lower; what the addresses do to sums.
#[inline(always)]
pub(crate) fn network<A: Family>(
    frame: &Frame,
    l3: usize,
    packet: &Packet<A>,
    to: &Tuple<A>,
    forward: bool,
) -> Option<Difference> {
    let pseudo =
        Difference::default().address(&packet.key.source, &to.source).address(&packet.key.destination, &to.destination);
    let (source_at, ttl_at) = if A::IS_V4 { (l3 + 12, l3 + 8) } else { (l3 + 8, l3 + 6) };
    // TTL and protocol of IPv4, next header and hop limit of IPv6: one word each, the TTL in one of its octets.
    let old: u16 = frame.read(ttl_at)?;
    let new = if !forward {
        old
    } else if A::IS_V4 {
        let [ttl, other] = old.to_ne_bytes();
        u16::from_ne_bytes([ttl.wrapping_sub(1), other])
    } else {
        let [other, ttl] = old.to_ne_bytes();
        u16::from_ne_bytes([other, ttl.wrapping_sub(1)])
    };
    if A::IS_V4 {
        let sum: u16 = frame.read(l3 + 10)?;
        let sum = pseudo.word(old, new).apply(sum);
        // TTL, protocol and checksum lie side by side.
        written(frame.write(ttl_at, [new, sum]))?;
        written(frame.write(source_at, [to.source.words()[0], to.destination.words()[0]]))?;
    } else {
        written(frame.write(ttl_at, new))?;
        written(write_address(frame, source_at, to.source.words()))?;
        written(write_address(frame, source_at + 16, to.destination.words()))?;
    }
    Some(pseudo)
}

/// Writes an address of IPv6 in halves: of a whole one the compiler makes a call, and calls below this one have no stack left where
/// kernels count 32 octets for each (before 6.8).
#[inline(always)]
fn write_address(frame: &Frame, at: usize, [a, b, c, d]: [u32; 4]) -> bool {
    frame.write(at, [a, b]) && frame.write(at + 8, [c, d])
}

/// Writes the ports, or the identifier of an ICMP echo.
#[inline(always)]
pub(crate) fn ports<A: Family>(frame: &Frame, packet: &Packet<A>, to: &Tuple<A>) -> Option<Difference> {
    if packet.l4 > L4_MAX {
        return None;
    }
    let changed = Difference::default()
        .word(packet.key.source_port, to.source_port)
        .word(packet.key.destination_port, to.destination_port);
    if packet.key.protocol == protocol::ICMP || packet.key.protocol == protocol::ICMPV6 {
        // One of the two is the identifier, the other is zero before and after.
        written(frame.write(packet.l4 + 4, to.source_port | to.destination_port))?;
    } else {
        written(frame.write(packet.l4, [to.source_port, to.destination_port]))?;
    }
    Some(changed)
}

/// Brings the checksum of layer 4 in the packet itself up to date.
#[must_use]
#[inline(always)]
pub fn patch_checksum<A: Family>(frame: &Frame, packet: &Packet<A>, changed: &Changed) -> Option<()> {
    if packet.part == Part::Later || packet.l4 > L4_MAX {
        return Some(());
    }
    let difference = changed.ports.plus(changed.pseudo);
    match packet.key.protocol {
        protocol::TCP => patch(frame, packet.l4 + 16, difference),
        protocol::UDP => {
            let at = packet.l4 + 6;
            let sum: u16 = frame.read(at)?;
            // RFC 768: no sum at all, which stays so.
            if sum == 0 {
                return Some(());
            }
            let sum = difference.apply(sum);
            written(frame.write(at, if sum == 0 { 0xffff } else { sum }))
        }
        // The pseudo header is part of the sum of ICMPv6, not of ICMP.
        protocol::ICMPV6 => patch(frame, packet.l4 + 2, difference),
        protocol::ICMP => patch(frame, packet.l4 + 2, changed.ports),
        _ => Some(()),
    }
}

#[inline(always)]
fn patch(frame: &Frame, at: usize, difference: Difference) -> Option<()> {
    let sum: u16 = frame.read(at)?;
    written(frame.write(at, difference.apply(sum)))
}

#[inline(always)]
pub(crate) fn written(done: bool) -> Option<()> {
    if done { Some(()) } else { None }
}
