//! The hop limit of a packet that is forwarded and otherwise stays what it is.

use meshd_abi::Address;

use crate::{Frame, checksum::Difference};

/// Hops that are left.
#[must_use]
#[inline(always)]
pub fn left<A: Address>(frame: &Frame, l3: usize) -> Option<u8> {
    let [first, second]: [u8; 2] = frame.read(word::<A>(l3))?;
    Some(if A::IS_V4 { first } else { second })
}

/// Takes one hop, which must be there. `None` when the header is not inside of the frame.
#[must_use]
#[inline(always)]
pub fn take<A: Address>(frame: &Frame, l3: usize) -> Option<()> {
    let at = word::<A>(l3);
    let old: [u8; 2] = frame.read(at)?;
    let is_written = if A::IS_V4 {
        let new = [old[0].wrapping_sub(1), old[1]];
        let sum: u16 = frame.read(l3 + 10)?;
        let sum = Difference::default().word(u16::from_ne_bytes(old), u16::from_ne_bytes(new)).apply(sum);
        // TTL, protocol and checksum lie side by side.
        frame.write(at, [u16::from_ne_bytes(new), sum])
    } else {
        frame.write(at, [old[0], old[1].wrapping_sub(1)])
    };
    if is_written { Some(()) } else { None }
}

/// TTL and protocol of IPv4, next header and hop limit of IPv6.
#[inline(always)]
fn word<A: Address>(l3: usize) -> usize {
    if A::IS_V4 { l3 + 8 } else { l3 + 6 }
}
