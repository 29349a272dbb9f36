//! ICMP errors (RFC 792, RFC 4443): they carry the head of the packet they are about, as it was where the error arose.
//!
//! A packet that was translated on this node was another one there than its sender knows. Whoever translates packets
//! must translate what is told about them (RFC 5508 section 4): the addresses of the error itself, and addresses, ports and
//! sums of the packet inside, as far as it is there.

use meshd_abi::{ConnectionKey, Tuple};

use crate::{
    Frame, Packet, Part, Skip,
    checksum::Difference,
    header::{Family, L4_MAX, protocol},
    rewrite::{network, ports, written},
};

/// Octets of an ICMP error before the packet it is about.
pub const ICMP_ERROR: usize = 8;

/// An ICMP error: its own headers, and those of the packet it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError<A> {
    /// The error itself; it has no ports.
    pub outer: Packet<A>,
    /// The packet it is about.
    pub inner: Packet<A>,
}

impl<A: Family> IcmpError<A> {
    /// The tuple of an answer to the packet that the error is about, which is what a connection is found by.
    #[must_use]
    #[inline(always)]
    pub fn answer_key(&self) -> ConnectionKey<A> {
        self.inner.key.answer()
    }

    /// Where the network header of the packet inside begins.
    #[must_use]
    #[inline(always)]
    pub const fn inner_l3(&self) -> usize {
        self.outer.l4 + ICMP_ERROR
    }
}

/// True for the type of an ICMP error.
#[must_use]
#[inline(always)]
pub(crate) const fn is_error<A: Family>(kind: u8) -> bool {
    if A::IS_V4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }
}

/// Reads the headers of a packet that [`crate::parse`] called [`Skip::IcmpError`].
///
/// # Errors
/// [`Skip`] says why it is none that can be told of a connection.
#[inline(always)]
pub fn parse_outer<A: Family>(frame: &Frame, l3: usize) -> Result<Packet<A>, Skip> {
    let outer = A::network::<true>(frame, l3)?;
    let icmp = if A::IS_V4 { protocol::ICMP } else { protocol::ICMPV6 };
    if outer.part != Part::Whole || outer.key.protocol != icmp || outer.l4 > L4_MAX {
        return Err(Skip::OtherProtocol);
    }
    let [kind, _]: [u8; 2] = frame.read(outer.l4).ok_or(Skip::Malformed)?;
    if is_error::<A>(kind) { Ok(outer) } else { Err(Skip::OtherProtocol) }
}

/// Reads the headers of the packet that an error is about, which begins at `l3`. Of its layer 4 only eight octets must be there.
///
/// # Errors
/// [`Skip`] says why it is none that can be told of a connection.
#[inline(always)]
pub fn parse_inner<A: Family>(frame: &Frame, l3: usize) -> Result<Packet<A>, Skip> {
    if l3 > L4_MAX {
        return Err(Skip::OtherProtocol);
    }
    let mut inner = A::network::<true>(frame, l3)?;
    // A later fragment has no ports, and those of its first one are known by another identification.
    if inner.part == Part::Later || inner.l4 > L4_MAX {
        return Err(Skip::OtherProtocol);
    }
    let head: [u16; 4] = frame.read(inner.l4).ok_or(Skip::Malformed)?;
    let icmp = if A::IS_V4 { protocol::ICMP } else { protocol::ICMPV6 };
    if inner.key.protocol == icmp {
        let (request, reply) = if A::IS_V4 { (8, 0) } else { (128, 129) };
        let [kind, _] = head[0].to_ne_bytes();
        if kind == request {
            inner.key.source_port = head[2];
        } else if kind == reply {
            inner.key.destination_port = head[2];
        } else {
            return Err(Skip::OtherProtocol);
        }
        return Ok(inner);
    }
    match inner.key.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            (inner.key.source_port, inner.key.destination_port) = (head[0], head[1]);
            Ok(inner)
        }
        _ => Err(Skip::OtherProtocol),
    }
}

/// Writes other addresses into the error itself, and with `forward` a hop limit that is one lower; what that does to its sum, for
/// [`rewrite_inner`]. `None` when the header is not inside of the frame: the packet must be dropped then.
#[must_use]
#[inline(always)]
pub fn rewrite_outer<A: Family>(
    frame: &Frame,
    l3: usize,
    error: &IcmpError<A>,
    to: &Tuple<A>,
    forward: bool,
) -> Option<Difference> {
    let pseudo = network(frame, l3, &error.outer, to, forward)?;
    // The pseudo header is part of the sum of ICMPv6, not of ICMP.
    Some(if A::IS_V4 { Difference::default() } else { pseudo })
}

/// Writes another tuple into the packet that the error is about, and the sum of the error, which `pseudo` changed already. `None`
/// when it is not inside of the frame: the packet must be dropped then.
///
/// That sum is written whole, also in an skb: what changes below it changes it back, so that a sum that the device made over
/// everything stays what it is, and nobody leaves the sum of an error to a device.
#[must_use]
#[inline(always)]
pub fn rewrite_inner<A: Family>(frame: &Frame, error: &IcmpError<A>, to: &Tuple<A>, pseudo: Difference) -> Option<()> {
    // Read once: the verifier believes a bound of the value that was compared only.
    let l4 = error.outer.l4;
    if l4 > L4_MAX {
        return None;
    }
    // Read before what is behind it: the compiler leaves out the comparison afterwards, which the verifier wants.
    let sum: u16 = frame.read(l4 + 2)?;
    let inside = inside(frame, l4 + ICMP_ERROR, &error.inner, to)?;
    written(frame.write(l4 + 2, inside.plus(pseudo).apply(sum)))
}

/// Writes the packet inside; what that does to the sum of the error around it.
#[inline(always)]
fn inside<A: Family>(frame: &Frame, l3: usize, packet: &Packet<A>, to: &Tuple<A>) -> Option<Difference> {
    // The header checksum of IPv4 is part of what the error's sum covers.
    let before: u16 = if A::IS_V4 { frame.read(l3 + 10)? } else { 0 };
    let pseudo = network(frame, l3, packet, to, false)?;
    let mut all = pseudo;
    if A::IS_V4 {
        all = all.word(before, frame.read(l3 + 10)?);
    }
    let ports = ports(frame, packet, to)?;
    all = all.plus(ports);
    let Some(offset) = packet.checksum_offset() else { return Some(all) };
    // Compared where it is used: what is kept on the stack meanwhile is kept without its bound.
    let l4 = packet.l4;
    if l4 > L4_MAX {
        return None;
    }
    // Eight octets are there, and the sum of TCP is behind them.
    let Some(old) = frame.read::<u16>(l4 + offset) else { return Some(all) };
    let new = match packet.key.protocol {
        // No sum at all stays so.
        protocol::UDP if old == 0 => return Some(all),
        protocol::ICMP => ports.apply(old),
        protocol::UDP => match ports.plus(pseudo).apply(old) {
            0 => 0xffff,
            new => new,
        },
        _ => ports.plus(pseudo).apply(old),
    };
    written(frame.write(l4 + offset, new))?;
    Some(all.word(old, new))
}
